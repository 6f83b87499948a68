"""The record of a night, line by line and on the disk before the night goes on.

    {"kind": "night", "run_id": …, "config_hash": …, "version": …, …}   the first line
    {"kind": "session", …}                       each time that the night is begun or resumed: on which machine
    {"kind": "doctor", …}                        what it found
    {"kind": "warm-up", …}                       how it went
    {"kind": "begin", "stage": …, "attempt": …}
    {"kind": "window", "row": {…}}               a `StageRow`, when the window has passed
    {"kind": "end", "stage": …, "figures": […]}  a stage, when its figures are known
    {"kind": "note", "about": …, …}              anything else that a reader may want: what codecarbon said, a clock that jumped, …
    {"kind": "close", "status": …, …}            the last line, unless the night was killed

A stage without its last line was cut off and is run again whole, as the next attempt. A last line that was cut off itself is dropped.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from etameter.errors import NightError

from .night import JOURNAL_FILE
from .rows import Figure, StageRow, Status

VERSION: Final = 1
SPOILED: Final = "spoiled"
"""Notes about windows that do not count: of a stage that is run again, they are of the attempt before."""
_REMEDY: Final = "leave it as it is: the next night begins anew"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a night ended."""

    status: Status
    reason: str
    remedy: str
    exit_code: int


@dataclass(slots=True)
class Told:
    """What a journal says."""

    head: dict[str, Any]
    sessions: list[dict[str, Any]] = field(default_factory=list)
    doctor: list[dict[str, Any]] = field(default_factory=list)
    warm_ups: list[dict[str, Any]] = field(default_factory=list)
    begun: dict[str, int] = field(default_factory=dict)
    """Stage → how often it was begun."""
    windows: dict[str, list[StageRow]] = field(default_factory=dict)
    """Stage → those of its last attempt."""
    figures: dict[str, tuple[Figure, ...]] = field(default_factory=dict)
    """Stage → its figures; those that have ended alone."""
    notes: list[dict[str, Any]] = field(default_factory=list)
    ending: Ending | None = None

    def of(self, about: str) -> list[dict[str, Any]]:
        """Notes about something."""
        return [note for note in self.notes if note["about"] == about]


class Journal:
    """The journal of a night, open for writing by nobody else."""

    def __init__(self, path: Path) -> None:
        """Goes on with a journal. Raises NightError where it is damaged, or another process writes it."""
        self.folder = path.parent
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise NightError(f"the run in {path.parent} is going on already", "wait for its end") from error
        try:
            self.told, whole = _read(path)
        except NightError:
            self._file.close()
            raise
        if path.stat().st_size > whole:
            os.truncate(path, whole)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def session_number(self) -> int:
        return len(self.told.sessions) - 1

    def session(self, machine: Mapping[str, Any]) -> None:
        self._write({"kind": "session", **machine})

    def doctor(self, found: Mapping[str, Any]) -> None:
        self._write({"kind": "doctor", **found})

    def warmed_up(self, told: Mapping[str, Any]) -> None:
        self._write({"kind": "warm-up", **told})

    def begin(self, stage: str) -> int:
        """Notes that a stage is begun, and returns the number of its attempt."""
        attempt = self.told.begun.get(stage, 0)
        self._write({"kind": "begin", "stage": stage, "attempt": attempt})
        return attempt

    def window(self, row: StageRow) -> None:
        self._write({"kind": "window", "row": asdict(row)})

    def end(self, stage: str, figures: Sequence[Figure]) -> None:
        self._write({"kind": "end", "stage": stage, "figures": [asdict(figure) for figure in figures]})

    def note(self, about: str, told: Mapping[str, Any]) -> None:
        self._write({"kind": "note", "about": about, **told})

    def close_with(self, ending: Ending, ended: str) -> None:
        """Raises OSError, as of a full disk."""
        self._write({"kind": "close", "ended": ended, **asdict(ending)})

    def _write(self, told: dict[str, Any]) -> None:
        self._file.write(json.dumps(told, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        _take(self.told, told)


def begin(folder: Path, head: Mapping[str, Any]) -> None:
    """Makes the folder of a run, and the first line of its journal. Raises NightError."""
    try:
        folder.mkdir(parents=True)
        with (folder / JOURNAL_FILE).open("xb") as file:
            file.write(json.dumps({"kind": "night", "version": VERSION, **head}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise NightError(
            f"{folder} can't be written ({error.strerror})", "set nightly.runs to another folder"
        ) from error


def load(folder: Path) -> Told:
    """Raises NightError where the folder has no journal, or a damaged one."""
    return _read(folder / JOURNAL_FILE)[0]


def _read(path: Path) -> tuple[Told, int]:
    """What the journal says, and how many bytes of it are whole lines."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NightError(f"{path} can't be read ({error.strerror})", _REMEDY) from error
    whole = content.rfind(b"\n") + 1
    lines = content[:whole].splitlines()
    try:
        head = json.loads(lines[0])
        if (head["kind"], head["version"]) != ("night", VERSION):
            raise NightError(f"{path} is no journal of version {VERSION}", _REMEDY)
        told = Told(head)
        for line in lines[1:]:
            _take(told, json.loads(line))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise NightError(f"{path} is damaged ({error})", _REMEDY) from error
    return told, whole


def _take(told: Told, line: Mapping[str, Any]) -> None:
    one = dict(line)
    match one.pop("kind"):
        case "session":
            told.sessions.append(one)
        case "doctor":
            told.doctor.append(one)
        case "warm-up":
            told.warm_ups.append(one)
        case "begin":
            told.begun[one["stage"]] = one["attempt"] + 1
            told.windows = {name: rows for name, rows in told.windows.items() if not _is_of(name, one["stage"])}
            told.notes = [note for note in told.notes if (note["about"], note.get("stage")) != (SPOILED, one["stage"])]
        case "window":
            row = StageRow(**one["row"])
            told.windows.setdefault(row.stage, []).append(row)
        case "end":
            told.figures[one["stage"]] = tuple(Figure(**figure) for figure in one["figures"])
        case "note":
            told.notes.append(one)
        case "close":
            told.ending = Ending(one["status"], one["reason"], one["remedy"], one["exit_code"])
            told.head["ended"] = one["ended"]
        case other:
            raise ValueError(f"a line of kind {other}")


def _is_of(name: str, stage: str) -> bool:
    """Whether a row's stage belongs to a stage that is run: `ab-fixed/concise` is of `ab-fixed`."""
    return name.partition("/")[0] == stage
