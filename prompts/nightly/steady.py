"""When a board is level: what was seen of it in three windows one after the other differs by a coefficient of variation of 3 % at most."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LEVEL_CV: Final = 0.03
LOOKED_BACK: Final = 3

_REMEDIES: Final = {
    "power": "let nobody else use the machine, and give it longer windows (nightly.window_s)",
    "temperature": "let it warm up for longer (nightly.warm_up_s), and see to its cooling",
    "clocks": "lock them (nvidia-smi --lock-gpu-clocks), and see why the driver moves them (nvidia-smi -q -d PERFORMANCE)",
}


@dataclass(frozen=True, slots=True)
class Glimpse:
    """A window of warming up. None where nothing tells."""

    power_w: float | None
    """By the board's own clock: a modelled board's is slower than the machine's, and keeps no steady pace with it."""
    temperature_c: float | None
    clock_mhz: float | None


@dataclass(frozen=True, slots=True)
class Steadiness:
    """Coefficients of variation over the last three windows; None where one is not known, or there are fewer."""

    power: float | None
    temperature: float | None
    clocks: float | None

    @property
    def level(self) -> bool:
        """Power has to be known; what no board tells holds nobody up."""
        return self.power is not None and not self.wandering

    @property
    def wandering(self) -> tuple[str, ...]:
        """What is not level."""
        told = {"power": self.power, "temperature": self.temperature, "clocks": self.clocks}
        return tuple(name for name, spread in told.items() if spread is not None and spread > LEVEL_CV)

    @property
    def reason(self) -> str:
        """Why it is not level."""
        if self.power is None:
            return "power was not known over three windows of warming up"
        told = {"power": self.power, "temperature": self.temperature, "clocks": self.clocks}
        parts = [f"{name} by {told[name]:.1%}" for name in self.wandering]
        return f"after warming up, {' and '.join(parts)} wandered over three windows ({LEVEL_CV:.0%} is level)"

    @property
    def remedy(self) -> str:
        if self.power is None:
            return (
                "warm up for longer (nightly.warm_up_s): three windows have to fit in, with a counter that is published"
            )
        return "; ".join(_REMEDIES[name] for name in self.wandering)


def steadiness(glimpses: Sequence[Glimpse]) -> Steadiness:
    """Of the last three."""
    last = glimpses[-LOOKED_BACK:]
    if len(last) < LOOKED_BACK:
        return Steadiness(None, None, None)
    return Steadiness(
        variation([one.power_w for one in last]),
        variation([one.temperature_c for one in last]),
        variation([one.clock_mhz for one in last]),
    )


def variation(values: Sequence[float | None]) -> float | None:
    """Standard deviation of a sample over its mean; None where a value is not known, or all are 0."""
    known = [value for value in values if value is not None]
    if len(known) < max(len(values), 2) or not any(known):
        return None
    return statistics.stdev(known) / abs(statistics.fmean(known))
