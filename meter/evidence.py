"""What a fit looks back on: intervals as the counter published them, and steps in order of time."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from etameter.work import TERMS, Array, BoolArray, IntArray


@dataclass(frozen=True, slots=True)
class Spans:
    """When work was done that J intervals paid for."""

    start_ns: Array
    end_ns: Array

    def only(self, which: BoolArray) -> "Spans":
        return Spans(self.start_ns[which], self.end_ns[which])


@dataclass(frozen=True, slots=True)
class Published:
    """J intervals as the counter told them, in order of time."""

    start_ns: Array
    end_ns: Array
    joules: Array
    error_j: Array
    """Deviation from not knowing the instants of the edges."""

    @property
    def power_w(self) -> Array:
        watts: Array = self.joules / (self.end_ns - self.start_ns) * 1e9
        return watts

    def change_w(self) -> Array:
        """The larger of the changes of power to the interval before and the one after."""
        power_w = self.power_w
        after = np.abs(np.diff(power_w, append=power_w[-1]))
        larger: Array = np.maximum(np.abs(np.diff(power_w, prepend=power_w[0])), after)
        return larger

    def lagged(self, lag_ns: int) -> Spans:
        return Spans(self.start_ns - lag_ns, self.end_ns - lag_ns)


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps in order of time, S of them: when they ran, and what they did."""

    t_ns: Array  # 2 S: begin and end of each step
    features: Array  # S × TERMS

    @staticmethod
    def of(runs: Iterable[tuple[IntArray, IntArray, Array]]) -> "Steps":
        starts, ends, features = (np.concatenate(column) for column in zip(*runs, strict=True))
        return Steps(np.stack([starts, ends], axis=1).reshape(-1).astype(np.float64), features)

    @property
    def follows(self) -> BoolArray:
        """Which steps began when the one before them ended: whoever starts on an idle board is told of too early."""
        begin, end = self.t_ns[::2], self.t_ns[1::2]
        return np.concatenate([np.zeros(1, dtype=np.bool_), begin[1:] <= end[:-1]])

    def reached(self, capped: BoolArray, power_limit_w: float) -> Array:
        """2 S × (TERMS + 2): Σ features of the steps below the power limit until each instant of `t_ns`; of those at it, seconds and joules."""
        levels = np.zeros((2 * len(self.features), len(TERMS) + 2))
        grown = levels[1::2]
        grown[:, : len(TERMS)] = self.features
        if np.any(capped):
            grown[capped] = 0.0
            grown[capped, -2] = self.features[capped, 0]
            grown[capped, -1] = self.features[capped, 0] * power_limit_w
        np.cumsum(grown, axis=0, out=grown)
        levels[2::2] = grown[:-1]
        return levels

    def between(self, spans: Spans, reached: Array) -> tuple[Array, Array]:
        """Features of the work in each interval (J × TERMS), Δt with its idle time, and apart from it (J) the joules of steps at the limit."""
        grown = _interpolated(spans.end_ns, self.t_ns, reached) - _interpolated(spans.start_ns, self.t_ns, reached)
        grown[:, 0] = (spans.end_ns - spans.start_ns) * 1e-9 - grown[:, -2]
        return grown[:, : len(TERMS)], grown[:, -1]

    def count(self, spans: Spans) -> Array:
        """How many steps each interval holds, in fractions where it cuts them."""
        begun = np.arange(len(self.features), dtype=np.float64)
        reached = np.stack([begun, begun + 1], axis=1).reshape(-1, 1)
        number = _interpolated(spans.end_ns, self.t_ns, reached) - _interpolated(spans.start_ns, self.t_ns, reached)
        return number[:, 0]

    def squares(self, step_j: Array, spans: Spans) -> tuple[Array, Array]:
        """Of each interval Σ (part·E)² and Σ part·(1 − part)·E² over its steps, J², part being the share of a step's time."""
        starts, ends = spans.start_ns, spans.end_ns
        begin, end = self.t_ns[::2], self.t_ns[1::2]
        length = np.maximum(end - begin, 1.0)
        first, last = np.searchsorted(end, starts, "right"), np.searchsorted(begin, ends, "left") - 1
        some = first <= last
        several = first < last
        sums = np.concatenate([[0.0], np.cumsum(step_j**2)])
        whole = np.where(several, sums[last] - sums[np.minimum(first + 1, last)], 0.0)
        cut = np.zeros(len(starts))
        for edge, there in ((first, some), (last, several)):
            step = np.clip(edge, 0, len(step_j) - 1)
            inside = np.clip(np.minimum(end[step], ends) - np.maximum(begin[step], starts), 0.0, None)
            part = np.where(there, inside / length[step], 0.0)
            whole = whole + (part * step_j[step]) ** 2
            cut = cut + part * (1 - part) * step_j[step] ** 2
        return whole, cut

    def within(self, spans: Spans, which: BoolArray) -> BoolArray:
        """The steps whose middle lies in one of `which` intervals."""
        middle = (self.t_ns[::2] + self.t_ns[1::2]) / 2
        interval = np.minimum(np.searchsorted(spans.end_ns, middle, "right"), len(which) - 1)
        inside: BoolArray = which[interval] & (middle >= spans.start_ns[interval]) & (middle < spans.end_ns[interval])
        return inside


def _interpolated(t_ns: Array, known_ns: Array, levels: Array) -> Array:
    """Rows of `levels` (at the instants `known_ns`) in between, and the first or last beyond."""
    before = np.clip(np.searchsorted(known_ns, t_ns, "right") - 1, 0, len(known_ns) - 2)
    length_ns = np.maximum(known_ns[before + 1] - known_ns[before], 1.0)
    part = np.clip((t_ns - known_ns[before]) / length_ns, 0.0, 1.0)[:, None]
    rows: Array = levels[before] * (1 - part) + levels[before + 1] * part
    return rows
