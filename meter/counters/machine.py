"""The counters of this machine, whatever kind it has."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from etameter.counters import Counter, nvml, rapl
from etameter.counters.simulated import SimulatedCounter
from etameter.errors import CounterError

BOARD_WAIT_S = 10.0
_POLL_S = 0.05


async def open_counters(
    boards: Sequence[Path],
    allow_shared_gpu: bool = False,  # noqa: FBT001, FBT002  # the option's name
    *,
    are_elsewhere: bool = False,
) -> Sequence[Counter]:
    """The counters of this machine: the simulated boards that publish at `boards`, else NVML, else (where no NVML library exists) RAPL.

    GPUs that are split by MIG are metered as a whole where `allow_shared_gpu`, as `source=shared`. Where GPUs `are_elsewhere`, this machine need not
    have any: then there are none.

    Raises:
        CounterError: none, or one that fails. A library that is there and fails is never passed over.
    """
    if boards:
        return [await _board(board) for board in boards]
    try:
        return nvml.discover(allow_shared=allow_shared_gpu)
    except CounterError as error:
        if are_elsewhere and error.cause in {"library_missing", "no_gpu"}:
            return []
        if error.cause != "library_missing":
            raise
        packages = rapl.discover()
        if packages:
            return packages
        raise


async def _board(path: Path) -> SimulatedCounter:
    """The board's process starts beside this one: its file may take a moment."""
    deadline_s = time.monotonic() + BOARD_WAIT_S
    while True:
        try:
            return SimulatedCounter(path)
        except CounterError:
            if time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(_POLL_S)
