"""`etameter history`: which nights there are, what was said of them, and how a series went."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from etameter import config
from etameter.carbon import footprint_of
from etameter.errors import NightError
from etameter.prompts.visible import visible

from . import history, outlets
from .metrics import METRICS, series
from .night import Night
from .page import page
from .rows import Figure
from .verdict import Verdict, against, judge
from .wording import SIMULATED, number, sentences

_WIDTH = 40


def usual() -> Path:
    """Where the configured job keeps its runs."""
    return config.load().nightly.runs or config.state_dir() / "runs"


def listed(location: str, name: str | None, console: Console | None) -> int:
    """Prints the nights, oldest first; without a console as JSON."""
    with history.folder_of(location) as folder:
        found = history.nights(folder, name)
        rows = [{**_about(night), **_said(folder / night.run.run_id)} for night in found]
        rows += [{"run_id": run_id, "status": "not ended"} for run_id in history.unended(folder)]
    if console is None:
        _told(rows)
        return 0
    table = _table(("run", "job", "status", "verdict", "energy", "source"))
    for row in rows:
        energy_j = row.get("energy_j")
        energy = "" if energy_j is None else f"{energy_j:.4g} J"
        table.add_row(
            *(visible(str(row.get(key) or "")) for key in ("run_id", "name", "status", "verdict")),
            energy,
            row.get("source") or "",
        )
    console.print(_marked(found, table if rows else Text(f"no run has begun in {location}")))
    return 0


def plotted(location: str, wanted: str, name: str | None, console: Console | None) -> int:
    """Prints one series over the nights of each job."""
    with history.folder_of(location) as folder:
        found = history.nights(folder, name)
    told = [
        (night, figure) for night in found for figure in night.figures if series(figure.stage, figure.metric) == wanted
    ]
    if not told:
        there = sorted(
            {
                series(figure.stage, figure.metric)
                for night in found
                for figure in night.figures
                if METRICS[figure.metric].better
            }
        )
        raise NightError(f"no night has the series {wanted}", f"there are {', '.join(there) or 'none'}")
    if console is None:
        keys = ("value", "low", "high", "unit", "n", "source", "reason")
        _told(
            [
                {"run_id": night.run.run_id, "name": night.run.name, **{key: getattr(figure, key) for key in keys}}
                for night, figure in told
            ]
        )
        return 0
    drawn: list[RenderableType] = []
    for job in dict.fromkeys(night.run.name for night, _ in told):  # another job is another history
        own = [(night, figure) for night, figure in told if night.run.name == job]
        drawn += [Text(f"{job}: {wanted}, {own[0][1].unit}"), _drawn(own)]
    console.print(_marked([night for night, _ in told], Group(*drawn)))
    return 0


def compared(location: str, earlier: str, later: str, console: Console | None) -> int:
    """Judges one night by one other. Exit codes as of a night. Raises NightError where the other is no earlier one."""
    with history.folder_of(location) as folder:
        found = history.nights(folder)
    before, after = history.one(found, earlier), history.one(found, later)
    if before.run.run_id >= after.run.run_id:
        raise NightError(f"{before.run.run_id} is not before {after.run.run_id}", "name the earlier night first")
    verdict = against(before, after)
    _print(after, verdict, console)
    return verdict.exit_code


def reported(location: str, run_id: str | None, name: str | None, out: Path) -> int:
    """Writes the page of a night, the last one by default, judged by what is known today."""
    with history.folder_of(location) as folder:
        found = history.nights(folder, name)
    if not found:
        raise NightError(f"{location} holds no run that has ended", "name the one that `etameter nightly` writes to")
    footprint = footprint_of(config.load().footprint)
    night = found[-1] if run_id is None else history.one(found, run_id)
    before = [each for each in found if each.run.name == night.run.name and each.run.run_id < night.run.run_id]
    out.write_text(page(night, judge(before, night), before, footprint), encoding="utf-8")
    return 0


def queried(location: str, query: str, console: Console | None) -> int:
    """Prints what DuckDB answers."""
    with history.folder_of(location) as folder:
        columns, rows = history.asked(folder, query)
    if console is None:
        _told([dict(zip(columns, row, strict=True)) for row in rows])
        return 0
    table = _table(columns)
    for row in rows:
        table.add_row(*(visible(number(cell) if isinstance(cell, float) else str(cell)) for cell in row))
    console.print(table)
    return 0


def _told(what: object) -> None:
    sys.stdout.write(json.dumps(what, ensure_ascii=False, default=str) + "\n")


def _print(night: Night, verdict: Verdict, console: Console | None) -> None:
    if console is None:
        _told(outlets.told(night, verdict))
        return
    console.print(_marked([night], Group(*(Text(visible(said)) for said in sentences(night.run, verdict)))))


def _about(night: Night) -> dict[str, Any]:
    run = night.run
    return {
        key: getattr(run, key)
        for key in ("run_id", "name", "began", "status", "model", "vllm", "energy_j", "source", "counter")
    }


def _said(folder: Path) -> dict[str, Any]:
    """What was said when the night ended; nothing where it was not concluded, or cut off at that."""
    try:
        told = json.loads((folder / history.VERDICT_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return {"verdict": told["word"], "exit_code": told["exit_code"]}


def _drawn(told: Sequence[tuple[Night, Figure]]) -> Table:
    """A line a night: the value at its place between the least and the most that any interval reaches."""
    known = [end for _, figure in told for end in (figure.low, figure.value, figure.high) if end is not None]
    least, most = (min(known), max(known)) if known else (0.0, 0.0)
    table = _table(("run", "value", "95 % interval", "", "source"))
    for night, figure in told:
        ends = "" if figure.low is None or figure.high is None else f"[{number(figure.low)}, {number(figure.high)}]"
        line = figure.reason if figure.value is None else "".join(_line(figure, least, most))
        table.add_row(night.run.run_id, number(figure.value), ends, visible(line), figure.source)
    return table


def _line(figure: Figure, least: float, most: float) -> Iterator[str]:
    def place(value: float) -> int:
        return 0 if most == least else round((value - least) / (most - least) * (_WIDTH - 1))

    value = place(figure.value or 0.0)
    low, high = (value if end is None else place(end) for end in (figure.low, figure.high))
    for at in range(_WIDTH):
        yield "●" if at == value else "─" if low <= at <= high else " "


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _marked(nights: Sequence[Night], what: RenderableType) -> RenderableType:
    simulated = any(night.run.source == "simulated" for night in nights)
    return Group(*([Text(SIMULATED, style="bold")] if simulated else ()), what)
