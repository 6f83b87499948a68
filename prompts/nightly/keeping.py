"""Which nights there are that did not end, who may measure now, and room on the disk to say how a night ended."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from etameter import config
from etameter.counters import nvml
from etameter.errors import CounterError, NightError
from etameter.locks import hold_lock

from . import closing, journal
from .journal import Ending, Journal
from .night import JOURNAL_FILE, RUN_FILE, Night

RESUMED_WITHIN_S: Final = 6 * 3600.0
"""A night that was cut off longer ago is closed: its stages would be of two nights."""
RESERVE_FILE: Final = ".reserve"
RESERVE_BYTES: Final = 1 << 20
"""Kept on the disk for the whole night, so that on a full one there is room to say so."""
LEAST_FREE_BYTES: Final = 64 << 20
CPU: Final = "cpu"

_OF_A_MACHINE: Final[Mapping[str, Callable[[Mapping[str, Any]], object]]] = {
    "host": lambda session: [session["cpu"], session["cores"]],
    "board": lambda session: [closing.lasting(board) for board in session["boards"]],
    "energy of a simulated board": lambda session: [board.get("times_energy", 1) for board in session["boards"]],
    "source of joules": lambda session: session["source"],
    "model": lambda session: [session["model"], session["server"].get("model_fingerprint")],
}


@dataclass(frozen=True, slots=True)
class Job:
    """What a night is known by."""

    name: str
    config_hash: str
    sweep: bool


def new_run_id(now: datetime) -> str:
    """Sorts by time."""
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def measured_here() -> tuple[str, ...]:
    """What a run has for itself: GPUs by their UUIDs, those that CUDA is let to see, or the CPU where there is no NVML.

    Raises:
        CounterError: there is an NVML, and it fails.
    """
    try:
        counters = nvml.discover()
    except CounterError as error:
        if error.cause != "library_missing":
            raise
        return (CPU,)
    uuids = [counter.gpu_uuid for counter in counters]
    for counter in counters:
        counter.close()
    return _visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _visible(uuids: Sequence[str], told: str | None) -> tuple[str, ...]:
    """Those of the list, by number or by the beginning of their UUIDs; all where it says nothing that is known here."""
    wanted = [each.strip() for each in (told or "").split(",") if each.strip()]
    chosen = [
        uuid
        for number, uuid in enumerate(uuids)
        if any(each == str(number) or (each.startswith("GPU-") and uuid.startswith(each)) for each in wanted)
    ]
    return tuple(chosen or uuids)


@contextmanager
def alone(measured: Sequence[str]) -> Iterator[None]:
    """No other run measures any of these while the block runs. Raises MeterBusy."""
    with ExitStack() as held:
        for each in sorted(measured):
            path = config.ring_dir() / f"etameter-nightly-{each}.lock"
            held.enter_context(hold_lock(path, f"measures {each}", "wait for its end", who="run"))
        yield


def clear_up(runs: Path, job: Job, now: datetime) -> Path | None:
    """Closes every night of this job that was cut off, but for the last one where it may go on: that is returned.

    Raises:
        NightError: the folder can't be read.
        OSError: a night can't be closed, as on a full disk.
    """
    cut = [path for path in sorted(runs.glob(f"*/{JOURNAL_FILE}")) if not (path.parent / RUN_FILE).exists()]
    going_on: Path | None = None
    for path in cut:
        with ExitStack() as opened:
            try:
                kept = opened.enter_context(Journal(path))
            except NightError:  # damaged, or somebody is at it
                continue
            head = kept.told.head
            if head["name"] != job.name:
                continue
            same = (head["config_hash"], head["sweep"]) == (job.config_hash, job.sweep)
            age_s = (now - datetime.fromisoformat(head["began"])).total_seconds()
            if same and path == cut[-1] and kept.told.ending is None and 0 <= age_s < RESUMED_WITHIN_S:
                going_on = path.parent
                continue
            if kept.told.ending is None:
                ending = Ending("incomplete", "it was killed", "see the system's log of that time", closing.INTERRUPTED)
                kept.close_with(ending, now.isoformat(timespec="seconds"))
            closing.conclude(path.parent, kept.told)
            (path.parent / RESERVE_FILE).unlink(missing_ok=True)
    return going_on


def refuse_another_machine(begun: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Figures of one night are of one machine: raises NightError where a session does not go on where the first began."""
    for what, of in _OF_A_MACHINE.items():
        if of(begun) != of(here):
            raise NightError(
                f"the night was begun with another {what} ({of(begun)}, and this is {of(here)})",
                "start it again: the next one begins anew",
            )


def begin(runs: Path, head: dict[str, object]) -> Path:
    """The folder of a new night. Raises NightError."""
    folder = runs / str(head["run_id"])
    try:
        runs.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(runs).free
    except OSError as error:
        raise NightError(f"{runs} can't be written ({error.strerror})", "set nightly.runs to another folder") from error
    if free < LEAST_FREE_BYTES:
        raise NightError(
            f"{runs} has {free >> 20} MiB free, and a night takes up to {LEAST_FREE_BYTES >> 20}", "make room"
        )
    journal.begin(folder, head)
    return folder


def reserve(folder: Path) -> None:
    """Takes room for the end. Raises OSError."""
    with (folder / RESERVE_FILE).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)


def close(kept: Journal, ending: Ending, ended: datetime) -> Night:
    """Says how the night ended, on a full disk in the room that was reserved. Raises OSError."""
    (kept.folder / RESERVE_FILE).unlink(missing_ok=True)
    kept.close_with(ending, ended.isoformat(timespec="seconds"))
    return closing.conclude(kept.folder, kept.told)


def now() -> datetime:
    return datetime.now(UTC)
