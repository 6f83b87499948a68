"""A counter made of power readings, for boards that have none. Pure: whoever reads brings the time.

What a power reading means differs. An instantaneous one is the power at the moment at which it was published, and between
two of them the best guess is a straight line. A mean over the last second is, once a second, *exactly* the energy of that
second: reading it more often and integrating would smear the energy over the neighbouring seconds.
"""

from dataclasses import dataclass

MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """How a power sensor is to be read."""

    averaged: bool
    """Whether a reading is the mean of the time since the one before, or the power at its instant."""
    least_ns: int
    """Readings are taken into account at the first change after so long, …"""
    most_ns: int
    """… or, where nothing changes, after so long."""
    blur_ns: int
    """How far the instants may be off: the time of an update is known, but not what exactly it covers."""


INSTANT = Reading(averaged=False, least_ns=0, most_ns=200 * MS, blur_ns=50 * MS)
AVERAGED_1_S = Reading(averaged=True, least_ns=950 * MS, most_ns=1_100 * MS, blur_ns=100 * MS)


class PowerIntegral:
    """Cumulative millijoules that stand still between two updates of the power sensor, as an energy counter's do."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._spent_mj = 0.0
        self._taken_ns: int | None = None
        self._taken_mw = self._last_mw = 0

    def add(self, t_ns: int, power_mw: int) -> int:
        """Take in the power that was read at `t_ns`, not earlier than the one before; give the energy up to the last update."""
        if self._taken_ns is None:
            self._taken_ns, self._taken_mw = t_ns, power_mw
        elapsed_ns = t_ns - self._taken_ns
        changed = power_mw != self._last_mw and elapsed_ns >= self.reading.least_ns
        self._last_mw = power_mw
        if changed or elapsed_ns >= self.reading.most_ns:
            mean_mw = power_mw if self.reading.averaged else (self._taken_mw + power_mw) / 2
            self._spent_mj += mean_mw * elapsed_ns * 1e-9
            self._taken_ns, self._taken_mw = t_ns, power_mw
        return int(self._spent_mj)

    def forget(self) -> None:
        """Readings have failed: what was spent meanwhile is not known, and is left out."""
        self._taken_ns = None
