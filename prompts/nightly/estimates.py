"""A figure and its interval from windows one after the other: each left out once.

The windows of a stage are its units of chance; requests within one share its conditions and are not independent. The interval is Student's with the
jackknife's standard error: on the logarithm for what can't be negative, and as it is for shares, which it then keeps between 0 and 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from etameter.prompts.stats import t_quantile

CONFIDENCE: Final = 0.95
LEAST_WINDOWS: Final = 3

W = TypeVar("W")
Statistic = Callable[[Sequence[W]], float | None]


@dataclass(frozen=True, slots=True)
class Estimate:
    """`low` and `high` are None where too few windows count, or one of them decides whether there is a figure at all."""

    value: float
    low: float | None
    high: float | None
    n: int


def estimate(windows: Sequence[W], statistic: Statistic[W], *, share: bool = False) -> Estimate | None:
    """None where the statistic is not known of all windows together."""
    value = statistic(windows)
    if value is None or not math.isfinite(value):
        return None
    count = len(windows)
    without = [statistic([*windows[:left], *windows[left + 1 :]]) for left in range(count)] if count > 1 else []
    known = [each for each in without if each is not None and math.isfinite(each)]
    logarithmic = not share and value > 0 and all(each > 0 for each in known)
    if count < LEAST_WINDOWS or len(known) < count or not (share or logarithmic):
        return Estimate(value, None, None, count)
    scaled = np.log(known) if logarithmic else np.asarray(known)
    half = float(t_quantile((1 + CONFIDENCE) / 2, count - 1.0)) * math.sqrt((count - 1) * float(scaled.var()))
    if logarithmic:
        return Estimate(value, value * math.exp(-half), value * math.exp(half), count)
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0), count)


def ratio(above: Callable[[W], float | None], below: Callable[[W], float | None]) -> Statistic[W]:
    """Sum over sum; None where a summand is not known, or what is divided by is 0."""

    def of(windows: Sequence[W]) -> float | None:
        uppers, lowers = [above(one) for one in windows], [below(one) for one in windows]
        if any(one is None for one in (*uppers, *lowers)):
            return None
        divisor = math.fsum(one for one in lowers if one is not None)
        return math.fsum(one for one in uppers if one is not None) / divisor if divisor else None

    return of


def quantile(values: Callable[[W], Sequence[float]], share: float) -> Statistic[W]:
    """Of all values of the windows together."""

    def of(windows: Sequence[W]) -> float | None:
        pooled = [value for one in windows for value in values(one)]
        return float(np.quantile(pooled, share)) if pooled else None

    return of
