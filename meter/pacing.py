"""When to read a counter next: densely while it is unknown when it is published, then only around the edges to come.

Pure: it learns the time from the edges it is shown. A counter that is published every period T ± jitter needs three or
four reads a period: a guard an eighth of a period ahead, and one at each border and in the middle of a window around the
expected edge, until the edge is seen. An edge outside its window widens the next windows, each one inside narrows them.

Where reads are slow (on an H100 in a virtual machine one takes 4 ms of processor time: docs/measurements/h100.md) not every edge is looked for.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from etameter.records import Edge

LEARNT_EDGES = 8
"""So many edges in a row must lie on a line before reads are planned by it."""

SURE_EDGES = 1
"""After an edge that was missed reads are dense until so many in a row came as expected. Most are missed because the thread was late."""

LEAST_WINDOW_NS = 1_000_000
"""A narrower window isn't worth it: on a busy machine a thread wakes up some tenths of a millisecond late."""

WIDENING, NARROWING = 1.5, 0.99
"""Balance where one edge in 40 is outside of its window. One ahead of it is seen half as exactly as the guard is early."""

READS = 2.5
"""Slow reads that an edge takes, about."""
CALLS = 40
"""How long a read takes is the median of so many."""
LONGEST_STRIDE = 4
"""So often at least an edge is looked for, in periods: what is no edge for five is a counter that stands still."""

GUARD = 1 / 8
OFF = 1 / 4
"""An edge this part of a period away from where it was expected belongs to another rhythm: learn anew."""

LEAST_JITTER_NS = 50_000
"""No counter is taken to be more regular: the reads that it is learned from aren't."""
JITTER_GAIN = 0.05
OUTLIER = 3.0
"""An edge strays by no more standard deviations than this, as far as the rhythm is concerned."""
UNLIKELY = 1e-9
_ROOT_2, _ROOT_TAU = math.sqrt(2), math.sqrt(math.tau)
PHASE_WALK, PERIOD_WALK = 1e-3, 1e-6
"""How much a rhythm may drift from one edge to the next, as shares of its jitter's variance."""


class Rhythm:
    """The line on which a counter's edges lie: a Kalman filter of the next edge's instant and the period.

    An edge strays from it by the counter's own jitter, which is learned. That it was published between two reads says little
    where they are far apart, and nothing of where between them.
    """

    def __init__(self, period_ns: float, next_ns: float, strays_ns: Sequence[float], seen_ns2: float) -> None:
        """A line through `LEARNT_EDGES` edges, one a period, from which they stray so; `seen_ns2` is the variance of their reads."""
        self.period_ns, self.next_ns = period_ns, next_ns
        self._jitter_ns2 = max(statistics.fmean(stray_ns**2 for stray_ns in strays_ns), seen_ns2)
        count = len(strays_ns)
        self._period_ns2 = 12 * (seen_ns2 + self.jitter_ns2) / (count**3 - count)
        self._both_ns2 = self._period_ns2 * (count + 1) / 2
        self._next_ns2 = self._both_ns2 * (count + 1) / 2 + (seen_ns2 + self.jitter_ns2) / count

    @property
    def jitter_ns2(self) -> float:
        return max(self._jitter_ns2, LEAST_JITTER_NS**2)

    def likeliest_ns(self, edge: Edge, periods: int) -> tuple[float, float]:
        """The mean instant of an edge that was expected so many periods ago, given the reads around it, and its standard deviation."""
        expected_ns, deviation_ns = self.next_ns + periods * self.period_ns, math.sqrt(self._next_ns2 + self.jitter_ns2)
        mean, variance = _between(*_borders(edge, expected_ns, deviation_ns))
        return expected_ns + deviation_ns * mean, deviation_ns * math.sqrt(variance)

    def go_on(self, periods: int) -> None:
        """Expect the edge that is so many periods after the one that was expected."""
        self.next_ns += periods * self.period_ns
        self._next_ns2 += periods * (2 * self._both_ns2 + periods * self._period_ns2 + PHASE_WALK * self.jitter_ns2)
        self._both_ns2 += periods * self._period_ns2
        self._period_ns2 += periods * PERIOD_WALK * self.jitter_ns2

    def see(self, edge: Edge) -> None:
        """Take in the edge that was expected."""
        variance_ns2 = self._next_ns2 + self.jitter_ns2
        mean, variance = _between(*_borders(edge, self.next_ns, math.sqrt(variance_ns2)))
        stray_ns = max(-OUTLIER, min(OUTLIER, mean)) * math.sqrt(variance_ns2)
        phase, period = self._next_ns2 / variance_ns2, self._both_ns2 / variance_ns2
        self._jitter_ns2 += JITTER_GAIN * (stray_ns**2 + variance * variance_ns2 - self._next_ns2 - self._jitter_ns2)
        self.next_ns += phase * stray_ns
        self.period_ns += period * stray_ns
        learnt = 1 - variance
        self._period_ns2 -= learnt * period * self._both_ns2
        self._both_ns2 *= 1 - learnt * phase
        self._next_ns2 *= 1 - learnt * phase


def _borders(edge: Edge, expected_ns: float, deviation_ns: float) -> tuple[float, float]:
    """The reads around an edge, in standard deviations from where it was expected."""
    stray_ns = edge.t_ns - expected_ns
    return (stray_ns - edge.half_width_ns) / deviation_ns, (stray_ns + edge.half_width_ns) / deviation_ns


def _between(low: float, high: float) -> tuple[float, float]:
    """Mean and variance of a standard normal variable that is known to lie between two borders."""
    share = (math.erf(high / _ROOT_2) - math.erf(low / _ROOT_2)) / 2
    if share < UNLIKELY:  # the border that is nearer is all that counts
        return (low if low > 0 else high), 0.0
    at_low, at_high = math.exp(-low * low / 2) / _ROOT_TAU, math.exp(-high * high / 2) / _ROOT_TAU
    mean = (at_low - at_high) / share
    return mean, min(1.0, max(0.0, 1 + (low * at_low - high * at_high) / share - mean**2))


def _seen_ns2(edge: Edge) -> float:
    """Variance of an edge's instant by the reads alone: uniform within its half-width."""
    return edge.half_width_ns**2 / 3


class Pace:
    """Plans the reads of one counter."""

    def __init__(self, dense_ns: int, share: float = 1.0) -> None:
        """While it is not known when the counter is published, read it every `dense_ns` nanoseconds. After that reads may take that share of the time."""
        self._dense_ns = dense_ns
        self._share = share
        self._calls_ns: deque[int] = deque(maxlen=CALLS)
        self._edges: deque[Edge] = deque(maxlen=LEARNT_EDGES)
        self._rhythm: Rhythm | None = None
        self._usual_ns = 0.0
        self._window_ns = float(LEAST_WINDOW_NS)
        self._last_ns = self._placed_ns = 0
        self._sure = 0
        self.missed_edges = 0
        """Edges that came while nobody looked: ahead of their guard, or while a read stalled."""

    @property
    def period_ns(self) -> float | None:
        """The update period, or the usual distance of edges where there is no rhythm; None while it is being learned."""
        return self._rhythm.period_ns if self._rhythm else self._usual_ns or None

    @property
    def locked(self) -> bool:
        """Whether reads are made around expected edges only."""
        return self._sure >= SURE_EDGES and self._rhythm is not None and self._window_ns < OFF * self._rhythm.period_ns

    @property
    def stride(self) -> int:
        """How many periods there are from one edge that is looked for to the next."""
        if self._rhythm is None or len(self._calls_ns) < CALLS:
            return 1
        busy = READS * statistics.median(self._calls_ns) / self._rhythm.period_ns
        return max(1, min(math.ceil(busy / self._share), LONGEST_STRIDE))

    def took(self, call_ns: int) -> None:
        """A read took so long."""
        self._calls_ns.append(call_ns)

    def passed_over(self, before_ns: int) -> bool:
        """Whether a read that begins at `before_ns` finds an edge that nobody looked for: the one ahead of the next that is."""
        if self._rhythm is None or not self.locked:
            return False
        expected_ns = self._rhythm.next_ns
        return self._last_ns + self._rhythm.period_ns * (1 + OFF) < before_ns < expected_ns - self._window_ns

    def forget(self) -> None:
        """Learn anew: reads have failed, and the counter may come back in another rhythm."""
        self._edges.clear()
        self._rhythm = None
        self._usual_ns = 0.0
        self._sure = 0

    def place(self, edge: Edge) -> Edge:
        """The edge at its likeliest instant: between where it was seen and where it was expected, by the variance of either.

        Its half-width grows by as much as the instant moves, so that it still holds all instants that the reads
        allow; edges stay in order. To be asked of every edge before `see`.
        """
        low_ns, high_ns = edge.t_ns - edge.half_width_ns, edge.t_ns + edge.half_width_ns
        t_ns, deviation_ns = edge.t_ns, None
        if self._rhythm:
            likeliest = self._rhythm.likeliest_ns(edge, self._late_periods(self._rhythm, t_ns))
            t_ns, deviation_ns = map(round, likeliest)
        self._placed_ns = t_ns = max(min(max(t_ns, low_ns), high_ns - 1), self._placed_ns + 1)
        return Edge(edge.gpu_uuid, t_ns, max(t_ns - low_ns, high_ns - t_ns), edge.energy_mj, None, deviation_ns)

    def see(self, edge: Edge) -> None:
        """Take in an edge, not earlier than the one before."""
        self._edges.append(edge)
        if self._rhythm:
            self._follow(self._rhythm, edge)
        else:
            self._learn()
        self._last_ns = edge.t_ns

    def next_ns(self, now_ns: int) -> int:
        """When to read next, given that a read has ended at `now_ns`."""
        if self._rhythm is None or not self.locked:
            return now_ns + self._dense_ns
        expected_ns, window_ns = self._rhythm.next_ns, self._window_ns
        guard_ns = expected_ns - window_ns - GUARD * self._rhythm.period_ns
        for planned_ns in (guard_ns, expected_ns - window_ns, expected_ns, expected_ns + window_ns):
            if planned_ns > now_ns:
                return int(planned_ns)
        return now_ns + int(min(max(window_ns, (now_ns - expected_ns) / 2), self._dense_ns))

    def overdue(self, now_ns: int, periods: float) -> bool:
        """Whether no edge was seen for more than so many periods, where the period is known; some may have been passed over."""
        if self.period_ns is None:
            return False
        beyond_ns = now_ns - self._last_ns - periods * self.period_ns
        return beyond_ns > 0 and beyond_ns > (self.stride - 1) * self.period_ns

    def _learn(self) -> None:
        """Lay a line through the last edges; if all of them are near it, that is the rhythm."""
        edges = self._edges
        if len(edges) < LEARNT_EDGES:
            return
        first_ns = edges[0].t_ns
        times_ns = [edge.t_ns - first_ns for edge in edges]
        distances_ns = [later - earlier for earlier, later in pairwise(times_ns)]
        usual_ns = self._usual_ns = statistics.median(distances_ns)
        if usual_ns < 3 * self._dense_ns:
            return
        counts = [round(t_ns / usual_ns) for t_ns in times_ns]
        if len(set(counts)) < len(counts):
            return
        period_ns, offset_ns = statistics.linear_regression(counts, times_ns)
        strays_ns = [abs(t_ns - offset_ns - period_ns * n) for n, t_ns in zip(counts, times_ns, strict=True)]
        if max(strays_ns) > OFF * period_ns:
            return
        next_ns = first_ns + offset_ns + period_ns * (counts[-1] + 1)
        self._rhythm = Rhythm(period_ns, next_ns, strays_ns, statistics.fmean(map(_seen_ns2, edges)))
        self._window_ns = max(LEAST_WINDOW_NS, min(max(strays_ns), OFF / 2 * period_ns))
        self._sure = SURE_EDGES

    def _follow(self, rhythm: Rhythm, edge: Edge) -> None:
        """Correct phase and period by how far the edge is from where it was expected."""
        if edge.half_width_ns > max(GUARD * rhythm.period_ns, self._dense_ns):
            late_periods = max(0, int((edge.t_ns + edge.half_width_ns - rhythm.next_ns) / rhythm.period_ns))
            self.missed_edges += max(1, late_periods)
            rhythm.go_on(late_periods + 1)
            self._sure = 0
            return
        late_periods = self._late_periods(rhythm, edge.t_ns)
        rhythm.go_on(late_periods)
        stray_ns = abs(edge.t_ns - rhythm.next_ns)
        if stray_ns > OFF * rhythm.period_ns:
            self.forget()
            return
        outside = stray_ns - edge.half_width_ns > self._window_ns / 2
        self._window_ns = max(LEAST_WINDOW_NS, self._window_ns * (WIDENING if outside else NARROWING))
        rhythm.see(edge)
        self._sure = 0 if late_periods else self._sure + 1
        rhythm.go_on(self.stride if self.locked else 1)  # where reads are dense the next edge is seen, too

    @staticmethod
    def _late_periods(rhythm: Rhythm, t_ns: float) -> int:
        """How many edges that were expected before this instant have not been seen."""
        return max(0, round((t_ns - rhythm.next_ns) / rhythm.period_ns))
