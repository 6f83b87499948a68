"""From the journal of a run to its tables, its analysis and its report, in the run's folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from etameter.errors import ExperimentError
from etameter.footprint import Footprint

from . import journal, report, verdict
from .across import Taken
from .plan import Plan
from .report import Record
from .tables import BlockRow, Outcome, read_parquet, write_csv, write_parquet

RUN_FILE: Final = "run.json"
BLOCKS_FILE: Final = "blocks.parquet"
REQUESTS_FILE: Final = "requests.parquet"


def conclude(folder: Path, footprint: Footprint) -> Record:
    """Writes everything that follows from the journal, and returns it. The same journal and factors give the same files.

    Raises:
        ExperimentError: the folder holds no run, or it is damaged.
    """
    plan, told = journal.load(folder)
    blocks, outcomes = told.rows(), told.conversations(plan)
    about = about_of(told.sessions)
    stated = {**planned(plan), **about}
    write_parquet(folder / BLOCKS_FILE, BlockRow, blocks, stated)
    write_parquet(folder / REQUESTS_FILE, Outcome, outcomes, stated)
    write_csv(folder / "blocks.csv", BlockRow, blocks)
    write_csv(folder / "requests.csv", Outcome, outcomes)
    analysis = verdict.analyse(plan, blocks, outcomes)
    whole = {
        "plan_hash": plan.hash,
        "complete": is_complete(plan, told),
        "about": about,
        "sessions": told.sessions,
        "warm_ups": told.warm_ups,
        "idle": [asdict(idle) for idle in told.idle],
        "analysis": asdict(analysis),
    }
    (folder / RUN_FILE).write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    record = Record(plan, tuple(blocks), tuple(outcomes), analysis, about, told.watts, footprint)
    report.write(record, folder)
    return record


def planned(plan: Plan) -> Mapping[str, Any]:
    """What of the plan has to be alike for two runs to be compared."""
    same = ("suite", "suite_hash", "model", "samples", "max_tokens", "temperature", "until_correct", "prefix_cache")
    loads = [{"part": part.part, "rate_per_s": part.rate_per_s, "concurrency": part.concurrency} for part in plan.parts]
    return {"plan": plan.hash, "loads": loads, **{name: getattr(plan, name) for name in same}}


def taken(path: Path) -> Taken:
    """What a run has left: by its folder, or by one of its two tables.

    Raises:
        ExperimentError: there is none.
    """
    if path.suffix == ".parquet" and path.name not in {BLOCKS_FILE, REQUESTS_FILE}:
        raise ExperimentError(
            f"{path} is no table of a run by its name",
            f"name the run's folder, or its {BLOCKS_FILE} with {REQUESTS_FILE} beside it",
        )
    folder = path.parent if path.suffix == ".parquet" else path
    blocks, about = read_parquet(folder / BLOCKS_FILE, BlockRow)
    outcomes, _ = read_parquet(folder / REQUESTS_FILE, Outcome)
    return Taken(str(folder), about, blocks, outcomes)


def is_complete(plan: Plan, told: journal.Told) -> bool:
    """Nothing of the plan is left to do."""
    return all(told.is_done(block.number, plan.exclusion.attempts) for block in plan.blocks)


def about_of(sessions: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Where a run was made, and with what: as its first session says, and what a later one says otherwise."""
    if not sessions:
        return {}
    about = dict(sessions[0])
    about["sessions"] = len(sessions)
    for name in sessions[0]:
        said = list({json.dumps(session.get(name), sort_keys=True): session.get(name) for session in sessions}.values())
        if len(said) > 1 and name not in {"began", "run"}:
            about[f"{name}, later"] = said[1:]
    return about
