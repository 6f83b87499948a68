"""How far figures of two nights may be apart by chance, from windows that asked the same.

Every night asks the same tasks in the same order: the first window of a stage is like the first of the night before, and not like the second. What windows of one night differ by is
mostly what they ask. So a figure's error beside other nights is taken from how much the differences between like windows scatter, of each night and the one before it; its own interval,
from that night's windows alone, is for what it says by itself.

A figure here is a ratio of sums over windows, R = Σ a / Σ b. A window moves its logarithm by u = (a − R·b) / Σ b / R, so that of two nights the logarithm of R differs by chance with a
variance of W / (W − 1) · Σ (d − d̄)², with d the difference of u in like windows (the linearised ratio: Cochran, Sampling Techniques, 1977, section 6.3). Half of it is each night's.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from etameter.prompts.stats import t_quantile

from .estimates import CONFIDENCE, LEAST_WINDOWS
from .night import Night
from .rows import StageRow

Array = NDArray[np.float64]

_RATIOS: Final = {"j_per_token": ("energy_j", "output_tokens"), "j_per_correct_answer": ("energy_j", "correct")}
_NORMAL: Final = 1.959964


def error(nights: Sequence[Night], stage: str, metric: str) -> float | None:
    """Standard error of the logarithm of such a figure of one night, so that 1.96 of it are half a 95 % interval; nights are in their order.

    None where the metric is no ratio of what windows tell, or no two nights one after the other have as many like windows as are needed.
    """
    if metric not in _RATIOS:
        return None
    moves = [_moves([row for row in night.stages if row.stage == stage], *_RATIOS[metric]) for night in nights]
    alike = [(before, after, sorted(before.keys() & after.keys())) for before, after in pairwise(moves)]
    return pooled([np.array([after[window] - before[window] for window in like]) for before, after, like in alike])


def pooled(apart: Sequence[Array]) -> float | None:
    """The same, from by how much more each window moves the logarithm than the like window of the night before: an array a pair of nights."""
    squares, free = 0.0, 0
    for each in apart:
        if len(each) >= LEAST_WINDOWS:
            squares += len(each) * float(((each - each.mean()) ** 2).sum()) / 2
            free += len(each) - 1
    if not free:
        return None
    return math.sqrt(squares / free) * float(t_quantile((1 + CONFIDENCE) / 2, float(free))) / _NORMAL


def _moves(rows: Sequence[StageRow], above: str, below: str) -> Mapping[int, float]:
    """Window → by how much it moves the logarithm of the ratio; nothing where there is none, or a window that counts doesn't tell."""
    counted = {row.window: (getattr(row, above), getattr(row, below)) for row in rows if row.excluded is None}
    if any(None in each for each in counted.values()):
        return {}
    upper, lower = (math.fsum(each[place] for each in counted.values()) for place in (0, 1))
    if upper <= 0 or lower <= 0:
        return {}
    return {window: a / upper - b / lower for window, (a, b) in counted.items()}
