"""What boards' limits were before they were changed: on the disk until they are set back.

The guard of a sweep sets them back however the night ends. Where it is killed along with the night (by a service manager that clears up, or where memory ran out), whoever comes next
does: the service's last command, or the next night.

    $ETAMETER_STATE/limits/GPU-….json        {"boot_id": …, "limit_mw": …, "held_mw": …, "clock": …}, locked by the guard that holds them so
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from etameter import config
from etameter.counters.nvml_limits import Limiter, PowerLimit
from etameter.serving.ring import boot_id

_POLL_S = 0.02


@contextmanager
def noted(boards: Sequence[PowerLimit], held_mw: int | None, *, clock: bool) -> Iterator[None]:
    """It stands on the disk what these boards' limits are and will be, until the block has set them back; where it fails, for good. Raises OSError."""
    with ExitStack() as held:
        files = [held.enter_context(_written(board, held_mw, clock=clock)) for board in boards]
        yield
        for file in files:
            Path(file.name).unlink()


def _written(board: PowerLimit, held_mw: int | None, *, clock: bool) -> IO[str]:
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = (folder / f"{board.gpu_uuid}.json").open(
        "x", encoding="utf-8"
    )  # what is noted already is another's to set back
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    json.dump({"boot_id": boot_id(), "limit_mw": board.limit_mw, "held_mw": held_mw, "clock": clock}, file)
    file.flush()
    os.fsync(file.fileno())
    return file


def set_back(wait_s: float = 0.0) -> list[str]:
    """Sets back what guards left changed that are gone, or go within so long, and returns the boards.

    Raises:
        CounterError: a board can't be set back; its limits stay noted.
    """
    deadline_s = time.monotonic() + wait_s
    done = []
    for path in sorted(_folder().glob("*.json")):
        with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:  # its guard has just set it back
            if _locked(file, deadline_s) and os.fstat(file.fileno()).st_nlink:
                told = _read(file)
                if told is not None and told["boot_id"] == boot_id():  # else they fell back when the driver was loaded
                    _put_back(path.stem, told)
                    done.append(path.stem)
                path.unlink()
    return done


def _put_back(gpu_uuid: str, told: Mapping[str, Any]) -> None:
    """A power limit that somebody has set since stays as it is."""
    with closing(Limiter()) as limiter:
        now_mw = limiter.power_limit(gpu_uuid).limit_mw
        put(limiter, gpu_uuid, told["limit_mw"] if now_mw == told["held_mw"] else now_mw, clock=told["clock"])


def put(limiter: Limiter, gpu_uuid: str, limit_mw: int, *, clock: bool) -> None:
    """Raises CounterError."""
    limiter.set_power_limit(gpu_uuid, limit_mw)
    if clock:
        limiter.free_clocks(gpu_uuid)


def _folder() -> Path:
    return config.state_dir() / "limits"


def _locked(file: IO[str], deadline_s: float) -> bool:
    """Whether nobody else holds it any more."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def _read(file: IO[str]) -> dict[str, Any] | None:
    """None where it is not whole: then nothing was changed yet."""
    try:
        told: dict[str, Any] = json.load(file)
    except ValueError:
        return None
    return told
