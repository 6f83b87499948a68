"""What is known of the boards beside their joules while a block runs: how warm they are, what slows them down, and who else is on them."""

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from etameter.counters import Counter
from etameter.counters.nvml import LASTING_THROTTLES
from etameter.counters.nvml_facts import THROTTLES, Facts, Informant
from etameter.counters.simulated import SimulatedCounter
from etameter.errors import CounterError, EngineError
from etameter.neighbours import foreign
from etameter.serving.ring import RingReader

LASTING = frozenset(words for reason, words in THROTTLES.items() if reason & LASTING_THROTTLES)
"""Throttle reasons that change what a step costs; the power cap comes and goes with the load itself."""

_OF_GPUS: Final = frozenset({"nvml", "power"})
"""Kinds of counters."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Of all boards, at a glance or over some. None where nothing tells."""

    temperature_c: float | None = None
    throttled: bool | None = None
    neighbours: int | None = None
    clock_mhz: float | None = None


def over(glances: Iterable[Seen]) -> Seen:
    """The worst that was seen."""
    seen = list(glances)
    return Seen(
        max((one.temperature_c for one in seen if one.temperature_c is not None), default=None),
        max((one.throttled for one in seen if one.throttled is not None), default=None),
        max((one.neighbours for one in seen if one.neighbours is not None), default=None),
        min((one.clock_mhz for one in seen if one.clock_mhz is not None), default=None),
    )


class Boards:
    """The GPUs of some counters. A counter that is no GPU's tells nothing but its joules."""

    def __init__(self, counters: Sequence[Counter], ring: Path) -> None:
        """`ring` is that of the engine whose own processes are nobody else's; there need be none. Raises CounterError."""
        self._counters = counters
        self._ring = ring
        self._informants = [Informant(each.gpu_uuid) for each in counters if each.kind in _OF_GPUS]

    def look(self) -> Seen:
        """A few calls to the driver, some of which may block for a while."""
        return over(self._glance(facts) for informant in self._informants if (facts := _told(informant)) is not None)

    def describe(self) -> list[dict[str, Any]]:
        """What each board is, and how it is set up now."""
        known = {informant.gpu_uuid: _told(informant) for informant in self._informants}
        return [_described(each, known.get(each.gpu_uuid)) for each in self._counters]

    def clock_s(self) -> float:
        """By which the boards live. A modelled one lives in slow motion: it is as fast as its steps, not as the CPU that stands in for them."""
        modelled = [each.modelled_s for each in self._counters if isinstance(each, SimulatedCounter)]
        return modelled[0] if modelled else time.monotonic()

    def close(self) -> None:
        for informant in self._informants:
            informant.close()

    def _glance(self, facts: Facts) -> Seen:
        engine = self._engine_pid()
        neighbours = None if facts.processes is None or engine is None else foreign(facts.processes, engine)
        return Seen(facts.temperature_c, bool(LASTING.intersection(facts.throttles)), neighbours, facts.clock_mhz)

    def _engine_pid(self) -> int | None:
        try:
            with closing(RingReader(self._ring)) as reader:
                return int(reader.header.pid)
        except (OSError, EngineError):
            return None


def _told(informant: Informant) -> Facts | None:
    """None where the board can't be asked: its counter says so, too, and what was measured meanwhile does not count."""
    try:
        return informant.facts()
    except CounterError:
        return None


def _described(counter: Counter, facts: Facts | None) -> dict[str, Any]:
    """A GPU by its UUID, so that one that was put in another's place is told from it; other counters have none that lasts."""
    told: dict[str, Any] = {"board": counter.board_name, "counter": counter.kind, "source": counter.source}
    if counter.kind in _OF_GPUS:
        told["gpu_uuid"] = counter.gpu_uuid
    if isinstance(counter, SimulatedCounter) and counter.times_energy != 1:
        told["times_energy"] = counter.times_energy
    if facts is not None:
        told |= {
            "driver": facts.driver,
            "power_limit_w": facts.power_limit_w,
            "clock_mhz": facts.clock_mhz,
            "max_clock_mhz": facts.max_clock_mhz,
            "persistence": facts.persistence,
        }
    return told
