"""The directory of a run, `runs/RUN_ID/`: written once at its end, read for good.

    journal.jsonl     everything as it happened, on the disk before the run goes on; its first line has the configuration's hash
    stages.parquet    `StageRow`s
    figures.parquet   `Figure`s
    run.json          `Run`, with the version of the format

A later version may add columns and keys that may be unknown; an earlier file then reads as not knowing them. Columns and keys that this version doesn't know are passed over,
unless the file says that it is of a later format.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from etameter.errors import NightError
from etameter.prompts.tables import schema

from .rows import Figure, Run, StageRow

FORMAT: Final = 1
JOURNAL_FILE: Final = "journal.jsonl"
STAGES_FILE: Final = "stages.parquet"
FIGURES_FILE: Final = "figures.parquet"
RUN_FILE: Final = "run.json"

RowT = TypeVar("RowT", StageRow, Figure)
_KEY: Final = b"etameter"


@dataclass(frozen=True, slots=True)
class Night:
    """A run with its tables."""

    run: Run
    stages: tuple[StageRow, ...]
    figures: tuple[Figure, ...]

    def stands_for_it(self) -> str:
        """The stage that does where one has to: the comparison's control, whose answers are checked, else the first under load."""
        stages = list(dict.fromkeys(figure.stage for figure in self.figures))
        arms = self.run.config.get("arms") or []
        control = [f"ab-fixed/{arms[0]}"] if arms else []
        loaded = [stage for stage in stages if not stage.startswith("idle") and stage != "meter"]
        wanted = [*control, *(stage for stage in loaded if stage.startswith("batch-")), *loaded]
        return next((stage for stage in wanted if stage in stages), "batch-1")


def write(folder: Path, night: Night) -> None:
    """Writes the tables and then `run.json`, each whole or not at all: where that is, the rest is. Raises OSError, as of a full disk."""
    _write_table(folder / STAGES_FILE, StageRow, night.stages, night.run.run_id)
    _write_table(folder / FIGURES_FILE, Figure, night.figures, night.run.run_id)
    told = {"format": FORMAT, **asdict(night.run)}
    text = json.dumps(told, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    building = folder / f".{RUN_FILE}"
    with building.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    building.rename(folder / RUN_FILE)


def read(folder: Path) -> Night:
    """What a run has left.

    Raises:
        NightError: there is no run in the folder that has ended, it is damaged, or of a later format.
    """
    return Night(read_run(folder), read_stages(folder), read_figures(folder))


def read_run(folder: Path) -> Run:
    """Raises NightError."""
    path = folder / RUN_FILE
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NightError(f"{folder} holds no run that has ended", "name a folder under runs/") from None
    except (OSError, ValueError) as error:
        raise NightError(f"{path} can't be read ({error})", "name another run") from error
    _refuse_later(path, told)
    known = {each.name: told[each.name] for each in fields(Run) if each.name in told}
    try:
        return Run(**known)
    except TypeError as error:
        raise NightError(f"{path} is damaged ({error})", "name another run") from error


def read_stages(folder: Path) -> tuple[StageRow, ...]:
    """Raises NightError."""
    return _read_table(folder / STAGES_FILE, StageRow)


def read_figures(folder: Path) -> tuple[Figure, ...]:
    """Raises NightError."""
    return _read_table(folder / FIGURES_FILE, Figure)


def _write_table(path: Path, kind: type[RowT], rows: Sequence[RowT], run_id: str) -> None:
    """Every row begins with its run, so that the files of many nights are one table."""
    about = {_KEY.decode(): json.dumps({"table": path.stem, "format": FORMAT})}
    columns = pa.schema([pa.field("run_id", pa.string(), nullable=False), *schema(kind)]).with_metadata(about)
    table = pa.Table.from_pylist([{"run_id": run_id, **asdict(row)} for row in rows], columns)
    building = path.with_name(f".{path.name}")
    with building.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    building.rename(path)


def _read_table(path: Path, kind: type[RowT]) -> tuple[RowT, ...]:
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        raise NightError(f"{path} can't be read ({error})", "name another run") from error
    _refuse_later(path, json.loads((table.schema.metadata or {}).get(_KEY, b"{}")))
    columns = schema(kind)
    missing = [name for name in columns.names if name not in table.column_names]
    defaults = {each.name: each.default for each in fields(kind) if each.default is not MISSING}
    if lost := [name for name in missing if name not in defaults and not columns.field(name).nullable]:
        raise NightError(f"{path} has no {', '.join(lost)}", "name another run")
    unknown: dict[str, Any] = {name: defaults.get(name) for name in missing}
    known = [name for name in columns.names if name not in unknown]
    return tuple(kind(**row, **unknown) for row in table.select(known).to_pylist())


def _refuse_later(path: Path, told: dict[str, Any]) -> None:
    if not isinstance(told.get("format"), int):
        raise NightError(f"{path} was not written by `etameter nightly`", "name another run")
    if told["format"] > FORMAT:
        raise NightError(
            f"{path} has format {told['format']}, and this version reads up to {FORMAT}", "update etameter"
        )
