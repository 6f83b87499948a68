"""What ends a night, or spoils a window, from outside: clocks that jump, and budgets that are used up."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from etameter.errors import CounterError, NightError
from etameter.records import Edge, Finding, ReadFailure

JUMP_S: Final = 2.0
"""Between two looks the wall clock and the monotonic one may go apart by so much: more is no correction of a drift."""


LOST_NS: Final = 10_000_000_000
"""A counter that can't be read for so long is taken for lost."""
SILENT_NS: Final = 10_000_000_000
"""Counters that can't say for so long what was spent are not late: it is never known."""


class BudgetSpent(NightError):
    """The night has used up what it may."""


@dataclass(frozen=True, slots=True)
class Jump:
    """Clocks that went apart."""

    t_ns: int
    """CLOCK_MONOTONIC, when it was seen."""
    wall_s: float
    """So much further went the wall clock."""
    asleep_s: float
    """So long the machine was suspended: CLOCK_MONOTONIC stands still then."""


def clocks() -> tuple[float, float, float]:
    """Monotonic, wall and boot time, in seconds."""
    return time.monotonic(), time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class ClockWatch:
    """Looks whether clocks keep together."""

    read: Callable[[], tuple[float, float, float]] = clocks
    jumps: list[Jump] = field(init=False, default_factory=list)
    _last: tuple[float, float, float] = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.read()

    def look(self) -> Jump | None:
        """To be called often: what has become since the last time."""
        now, last = self.read(), self._last
        self._last = now
        passed_s, wall_s, boot_s = (after - before for after, before in zip(now, last, strict=True))
        if abs(wall_s - passed_s) <= JUMP_S and boot_s - passed_s <= JUMP_S:
            return None
        jump = Jump(int(now[0] * 1e9), wall_s - passed_s, max(boot_s - passed_s, 0.0))
        self.jumps.append(jump)
        return jump


@dataclass(slots=True)
class Losses:
    """Looks whether counters can still be read."""

    _since_ns: dict[str, int] = field(init=False, default_factory=dict)

    def take(self, found: Iterable[Finding]) -> None:
        """What the sampler has found since the last time. Raises CounterError for a counter that is lost."""
        for one in found:
            if isinstance(one, Edge):
                self._since_ns.pop(one.gpu_uuid, None)
            elif isinstance(one, ReadFailure):
                since_ns = self._since_ns.setdefault(one.gpu_uuid, one.t_ns)
                if one.t_ns - since_ns >= LOST_NS:
                    raise CounterError(
                        one.cause,
                        f"the counter of {one.gpu_uuid} can't be read any more ({one.cause})",
                        "see what nvidia-smi says, and dmesg | grep Xid",
                    )


@dataclass(slots=True)
class Spending:
    """Adds up what a session takes, as far as the counters have told it."""

    between: Callable[[int, int], tuple[float, float] | None]
    """Joules and their error between two instants; None where the counters can't say."""
    whole: bool = field(init=False, default=True)
    """Whether nothing is missing: over a reset of a counter it can't be said what was spent."""
    _earlier_j: float = field(init=False, default=0.0)
    _since_j: float = field(init=False, default=0.0)
    _since_ns: int = field(init=False, default=0)
    _told_ns: int = field(init=False, default=0)
    """Up to when `_since_j` is."""

    @property
    def known_j(self) -> float:
        """What is known of it: at least so much was spent."""
        return self._earlier_j + self._since_j

    def begin(self, now_ns: int) -> None:
        self._since_ns = self._told_ns = now_ns

    def add_up(self, until_ns: int) -> None:
        """To be called often, with instants that the counters should have told by now."""
        if not self._since_ns or until_ns <= self._since_ns:
            return
        spent = self.between(self._since_ns, until_ns)
        if spent is not None:
            self._since_j, self._told_ns = spent[0], until_ns
        elif until_ns - self._told_ns > SILENT_NS:
            self.whole = False
            self._earlier_j, self._since_j = self.known_j, 0.0
            self.begin(until_ns)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a night may take. `spent_s` and `spent_j` are of its earlier sessions, joules as far as they are known."""

    seconds: float
    joules: float | None
    spent_s: float = 0.0
    spent_j: float = 0.0

    def check(self, elapsed_s: float, energy_j: float) -> None:
        """Raises BudgetSpent."""
        if self.spent_s + elapsed_s >= self.seconds:
            raise BudgetSpent(
                f"the night has taken its {self.seconds:g} s", "give it more (nightly.budget_s), or fewer stages"
            )
        if self.joules is not None and self.spent_j + energy_j >= self.joules:
            raise BudgetSpent(
                f"the night has taken its {self.joules:g} J", "give it more (nightly.budget_j), or fewer stages"
            )
