"""From edges of a counter to energy between two instants. Pure: no clock, no input, no output.

Between two edges of one epoch the energy is the difference of the two values, exactly; *when* within that time it was
spent is unknown. A decrease starts a new epoch: a difference over a reset does not exist. Time in which the counter
can't be trusted keeps its joules, so that the sum over all intervals of an epoch is always the counter's own difference,
but carries a `cause`. Here, and nowhere else, millijoules become joules.
"""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from etameter.records import Edge, Finding, Interval, ReadFailure, Reboot, Standstill

MISSED_PERIODS = 5
"""After so many update periods without a change the counter is taken to be frozen, or the readings to be missing."""

MISSING_NS = 1_000_000_000
"""Shorter times without readings only make an interval longer, as do calls that take long: the counter runs on meanwhile."""

WIDTHS_PER_INTERVAL = 4
"""An interval is at least so many half-widths of its last edge long: a stalled call smears an edge over seconds, and an
interval that ended there would charge the wrong steps."""

WIDTHS_PER_MARK = 5
"""An edge counts for the energy between two instants if its neighbours are at least so many half-widths apart."""

IMPLAUSIBLE = 1.2
"""Mean power above the power limit by more than this factor isn't a measurement."""

NORMAL_95 = 1.96
NEARBY = 32
"""So many periods on either side of an instant say how power changes within its own."""
POWER_AGE_NS = 200_000_000
"""Instantaneous power is published as rarely as the counter, or more rarely: a reading may be so old."""
SHAPE = 0.55
"""Of the variance that power would cause which swings once a period, the slowest that leaves the period's mean as it is."""
UNSEEN = 0.5
"""Where no instantaneous power is told, power within a period is taken to stray by this share of the most that its mean
and the power limit allow."""
SCARCE = 4
"""Few periods say little: what is made of n has (1 + 4/n) times their variance, much as Student's quantiles have."""

FEWEST_DISTANCES, MOST_DISTANCES = 4, 31
"""Edge distances from which the update period is learned."""


def _joules(energy_mj: float) -> float:
    return energy_mj / 1000


@dataclass(frozen=True, slots=True)
class _Mark:
    """A kept edge. `spent_mj` grows over all epochs; `epoch` counts the resets before it."""

    t_ns: int
    half_width_ns: int
    spent_mj: int
    epoch: int
    power_w: float | None = None
    deviation_ns: float = 0.0


def _mark(edge: Edge, spent_mj: int, epoch: int) -> _Mark:
    """Where the rhythm doesn't tell it, an edge's instant is uniform within its half-width."""
    deviation_ns = edge.half_width_ns / math.sqrt(3) if edge.deviation_ns is None else edge.deviation_ns
    return _Mark(edge.t_ns, edge.half_width_ns, spent_mj, epoch, edge.power_w, deviation_ns)


@dataclass(frozen=True, slots=True)
class Spent:
    """Energy between two instants by the counter's account."""

    energy_j: float
    error_j: float
    """Half-width of the 95 % interval: it assumes that power changes within a period as it does around it."""
    bound_j: float
    """How far off the truth can be whatever the power did, up to 1.2 times its limit; infinite where the counter was reset."""


class Timeline:
    """The energy of one GPU over time."""

    def __init__(
        self,
        gpu_uuid: str,
        min_interval_ns: int = 50_000_000,
        last_edge: Edge | None = None,
        power_limit_w: float | None = None,
        kept_edges: int = 8192,
        seen: float = 1.0,
    ) -> None:
        """Start empty, or at `last_edge`, the `settled_edge` of the timeline before a restart in the same boot.

        Consecutive edges are merged into intervals of at least `min_interval_ns`. `energy_between` reaches back over
        the last `kept_edges` edges; its errors cover that
        the counter looks only at the part `seen` of each update period.
        """
        self.gpu_uuid = gpu_uuid
        self.power_limit_w = power_limit_w
        """Watts. May be set anew at any time: it applies to the intervals that end from then on."""
        self.resets = 0
        self.failures = 0
        self._min_interval_ns = min_interval_ns
        self._unseen = 1 - seen
        self._start = self._last = last_edge
        self._unread = last_edge is not None
        self._rebooted = False
        self._cause: str | None = None
        self._distances_ns: deque[int] = deque(maxlen=MOST_DISTANCES)
        self._closed: list[Interval] = []
        self._marks: deque[_Mark] = deque(maxlen=kept_edges)
        if last_edge is not None:
            self._marks.append(_mark(last_edge, 0, 0))

    @property
    def period_ns(self) -> int | None:
        """The counter's update period, learned as the median distance of recent edges; None until it is known."""
        if len(self._distances_ns) < FEWEST_DISTANCES:
            return None
        return int(statistics.median(self._distances_ns))

    @property
    def settled_edge(self) -> Edge | None:
        """Where the last interval that was closed ends: what a restart continues from."""
        return self._start

    def add(self, found: Finding) -> None:
        """Take the next thing that the sampler found.

        Raises ValueError where an edge is of another GPU or not later than the one before it.
        """
        if found.gpu_uuid != self.gpu_uuid:
            raise ValueError(f"{found.gpu_uuid} is not the GPU of this timeline, {self.gpu_uuid}")
        if isinstance(found, ReadFailure):
            self.failures += 1
            self._unread = True
            self._go_without(found.t_ns, "readings_missing", max(MISSING_NS, self._too_long_ns))
            return
        if isinstance(found, Standstill):
            if self._too_long_ns:
                self._go_without(found.t_ns, "stale", self._too_long_ns)
            return
        if isinstance(found, Reboot):
            self._rebooted = self._rebooted or (self._last is not None and self._last.t_ns < found.t_ns)
            return
        start, last = self._start, self._last
        if start is None or last is None:
            self._start = self._last = found
            self._unread = False
            self._marks.append(_mark(found, 0, 0))
            return
        if found.t_ns <= last.t_ns:
            raise ValueError(f"an edge at {found.t_ns} ns does not follow the one at {last.t_ns} ns")
        if found.energy_mj < last.energy_mj or self._rebooted:
            self._rebooted = False
            self._reset(start, last, found)
        else:
            self._advance(start, last, found)
        self._last = found
        self._unread = False

    def take(self) -> list[Interval]:
        """The intervals that were closed since the last call, in order and without gaps between them."""
        closed, self._closed = self._closed, []
        return closed

    def energy_between(self, start_ns: int, end_ns: int) -> Spent:
        """What was spent between two instants, linear between edges.

        Neither error covers the lag with which the driver publishes. The bound: at any instant at least the last edge
        that was surely over had been spent, at most the next one that had surely not begun, and, where the power limit
        is known, no more than it allows for the time to the edges nearby. Raises ValueError where the kept edges don't
        reach over both instants.
        """
        if end_ns < start_ns:
            raise ValueError(f"the end, {end_ns} ns, is before the start, {start_ns} ns")
        low_start_mj, start_mj, high_start_mj, start_epoch = self._spent(start_ns)
        low_end_mj, end_mj, high_end_mj, end_epoch = self._spent(end_ns)
        energy_mj = end_mj - start_mj
        if start_epoch != end_epoch:
            return Spent(_joules(energy_mj), math.inf, math.inf)
        least_mj, most_mj = max(0.0, low_end_mj - high_start_mj), high_end_mj - low_start_mj
        bound_j = _joules(max(energy_mj - least_mj, most_mj - energy_mj))
        error_j = NORMAL_95 * math.sqrt(self._variance_j2(start_ns) + self._variance_j2(end_ns))
        spent = Spent(_joules(energy_mj), min(error_j, bound_j), bound_j)
        return self._blind(spent, (end_ns - start_ns) * 1e-9) if self._unseen and end_ns > start_ns else spent

    def _advance(self, start: Edge, last: Edge, found: Edge) -> None:
        distance_ns = found.t_ns - last.t_ns
        surely_still_ns = distance_ns - found.half_width_ns - last.half_width_ns
        too_long_ns = self._too_long_ns
        unread_ns = 2 * found.half_width_ns if found.unread_ns is None else found.unread_ns
        if self._unread or unread_ns > max(MISSING_NS, too_long_ns):
            self._cause = "readings_missing"
        else:
            if too_long_ns and surely_still_ns > too_long_ns:
                self._cause = self._cause or "stale"
            self._distances_ns.append(distance_ns)
        before = self._marks[-1]
        spent_mj = before.spent_mj + found.energy_mj - last.energy_mj
        self._drop_if_smeared(found.t_ns)
        self._marks.append(_mark(found, spent_mj, before.epoch))
        if found.t_ns - start.t_ns >= max(self._min_interval_ns, WIDTHS_PER_INTERVAL * found.half_width_ns):
            self._close(start, found)

    def _drop_if_smeared(self, next_ns: int) -> None:
        """An edge whose instant is known no better than the guess between its neighbours only misleads."""
        if len(self._marks) < 2:
            return
        before, smeared = self._marks[-2], self._marks[-1]
        if before.epoch == smeared.epoch and WIDTHS_PER_MARK * smeared.half_width_ns > next_ns - before.t_ns:
            self._marks.pop()

    @property
    def _too_long_ns(self) -> int:
        """0 while the update period isn't known."""
        return MISSED_PERIODS * (self.period_ns or 0)

    def _go_without(self, t_ns: int, cause: str, patience_ns: int) -> None:
        """End an interval at `t_ns` though no edge is there, if there was none for longer than `patience_ns`.

        Nobody is to wait for an edge that may never come. The joules of the time without edges, whatever they are,
        appear with the next one, in an interval that carries the same cause.
        """
        start, last = self._start, self._last
        if start is None or last is None or t_ns - max(start.t_ns, last.t_ns + last.half_width_ns) <= patience_ns:
            return
        if start.t_ns < last.t_ns:
            self._close(start, last)
            start = last
        self._append(start, Edge(self.gpu_uuid, t_ns, 0, last.energy_mj), 0.0, cause)
        self._cause = cause

    def _reset(self, start: Edge, last: Edge, found: Edge) -> None:
        if start.t_ns < last.t_ns:
            self._close(start, last)
            start = last
        self._append(start, found, 0.0, "reset")
        self._cause = None
        self.resets += 1
        before = self._marks[-1]
        self._marks.append(_mark(found, before.spent_mj, before.epoch + 1))

    def _close(self, start: Edge, end: Edge) -> None:
        energy_mj = end.energy_mj - start.energy_mj
        if self._cause is None and not self._plausible(start, end, energy_mj):
            self._cause = "implausible"
        self._append(start, end, _joules(energy_mj), self._cause)
        self._cause = None

    def _plausible(self, start: Edge | _Mark, end: Edge | _Mark, energy_mj: int) -> bool:
        longest_ns = end.t_ns + end.half_width_ns - start.t_ns + start.half_width_ns
        return self.power_limit_w is None or energy_mj * 1e6 <= IMPLAUSIBLE * self.power_limit_w * longest_ns

    def _append(self, start: Edge, end: Edge, energy_j: float, cause: str | None) -> None:
        self._closed.append(
            Interval(
                self.gpu_uuid,
                start.t_ns,
                end.t_ns,
                energy_j,
                start.half_width_ns,
                end.half_width_ns,
                cause,
                end.energy_mj,
            )
        )
        self._start = end

    def _blind(self, spent: Spent, seconds: float) -> Spent:
        """With what may have been spent in the part of each period at which the counter doesn't look, each time the same."""
        mean_w, unseen_s = spent.energy_j / seconds, self._unseen * seconds
        most_w = math.inf if self.power_limit_w is None else IMPLAUSIBLE * self.power_limit_w
        stray_w = math.sqrt(_unseen_w2(mean_w, 2 * mean_w if self.power_limit_w is None else self.power_limit_w))
        bound_j = spent.bound_j + unseen_s * max(mean_w, most_w - mean_w)
        error_j = math.hypot(spent.error_j, NORMAL_95 * unseen_s * stray_w)
        return Spent(spent.energy_j, min(error_j, bound_j), bound_j)

    def _variance_j2(self, t_ns: int) -> float:
        """Of what is taken to have been spent until an instant: where in its period it was, and when the period's edges were."""
        marks = self._marks
        following = max(1, min(bisect_right(marks, t_ns, key=lambda mark: mark.t_ns), len(marks) - 1))
        nearby = islice(marks, max(0, following - 1 - NEARBY), following + 1 + NEARBY)
        epoch = marks[following - 1].epoch
        around = [mark for mark in nearby if mark.epoch == epoch]
        if len(around) < 2:
            return 0.0
        index = min(max(0, bisect_right(around, t_ns, key=lambda mark: mark.t_ns) - 1), len(around) - 2)
        left, right = around[index], around[index + 1]
        length_ns = right.t_ns - left.t_ns
        share = (t_ns - left.t_ns) / length_ns
        swing_s = length_ns * 1e-9 / math.pi * math.sin(math.pi * share)
        edges_ns2 = ((1 - share) * left.deviation_ns) ** 2 + (share * right.deviation_ns) ** 2
        within_w2 = SHAPE * _within_w2(around, index, self.power_limit_w)
        return within_w2 * swing_s**2 + _mean_w(left, right) ** 2 * edges_ns2 * 1e-18

    def _spent(self, t_ns: int) -> tuple[float, float, float, int]:
        """The least, the likeliest and the most that had been spent at `t_ns` (mJ), and the epoch."""
        marks = self._marks
        surely_over = bisect_right(marks, t_ns, key=lambda mark: mark.t_ns + mark.half_width_ns) - 1
        surely_ahead = bisect_left(marks, t_ns, key=lambda mark: mark.t_ns - mark.half_width_ns)
        if surely_over < 0 or t_ns > marks[-1].t_ns:
            raise ValueError(f"{t_ns} ns is not between the kept edges of {self.gpu_uuid}")
        following = bisect_right(marks, t_ns, key=lambda mark: mark.t_ns)
        left, right = marks[following - 1], marks[min(following, len(marks) - 1)]
        share = (t_ns - left.t_ns) / (right.t_ns - left.t_ns) if right is not left else 0.0
        likeliest_mj = left.spent_mj + share * (right.spent_mj - left.spent_mj)
        least_mj: float = marks[surely_over].spent_mj
        most_mj: float = marks[min(surely_ahead, len(marks) - 1)].spent_mj
        if self.power_limit_w is not None and self._plausible(left, right, right.spent_mj - left.spent_mj):
            mj_per_ns = IMPLAUSIBLE * self.power_limit_w * 1e-6
            for near in (left, right):
                least_mj = max(least_mj, near.spent_mj - mj_per_ns * max(0, near.t_ns + near.half_width_ns - t_ns))
                most_mj = min(most_mj, near.spent_mj + mj_per_ns * max(0, t_ns - near.t_ns + near.half_width_ns))
        return min(least_mj, likeliest_mj), likeliest_mj, max(most_mj, likeliest_mj), left.epoch


def _mean_w(before: _Mark, after: _Mark) -> float:
    return (after.spent_mj - before.spent_mj) * 1e6 / (after.t_ns - before.t_ns)


def _unseen_w2(mean_w: float, most_w: float) -> float:
    """How far power strays from its mean where nothing told it: a variance, in square watts."""
    return UNSEEN * max(0.0, mean_w * (most_w - mean_w))


def _within_w2(marks: Sequence[_Mark], index: int, power_limit_w: float | None) -> float:
    """How far power within the period that begins at mark `index` strays from its mean: the variance, in square watts.

    As far as the means of the periods around differ, and as far as instantaneous power was seen outside of their range. More in
    a period whose mean leaves more room between the least power seen and the limit.
    """
    means_w = [_mean_w(before, after) for before, after in pairwise(marks)]
    mean_w, least_w = means_w[index], min(means_w)
    most_w = 2 * max(means_w) if power_limit_w is None else power_limit_w
    steps_w2 = [(after_w - before_w) ** 2 for before_w, after_w in pairwise(means_w)]
    reach = math.ceil(POWER_AGE_NS * len(means_w) / (marks[-1].t_ns - marks[0].t_ns))
    strays_w2 = []
    for end, mark in enumerate(marks[1:], start=1):
        if mark.power_w is not None:
            among_w = means_w[max(0, end - 1 - reach) : end + 1]
            strays_w2.append(max(0.0, mark.power_w - max(among_w), min(among_w) - mark.power_w) ** 2)
    usual_w2 = statistics.fmean(steps_w2 or [0.0])
    usual_w2 += statistics.fmean(strays_w2 or [_unseen_w2(mean_w, most_w)])
    usual_w2 *= 1 + SCARCE / len(means_w)
    rooms_w2 = [max(0.0, (each_w - least_w) * (most_w - each_w)) for each_w in means_w]
    rooms = statistics.fmean(rooms_w2) + usual_w2
    return usual_w2 * (rooms_w2[index] + usual_w2) / rooms if rooms else 0.0
