"""When to read a counter next: densely while it is unknown when it is published, then only around the edges to come.

Pure: it learns the time from the edges it is shown. A counter that is published every period T ± jitter needs three or
four reads a period: a guard an eighth of a period ahead, and one at each border and in the middle of a window around the
expected edge, until the edge is seen. An edge outside its window widens the next windows, each one inside narrows them.
"""

import statistics
from collections import deque
from dataclasses import replace
from itertools import pairwise

from etameter.records import Edge

LEARNT_EDGES = 8
"""So many edges in a row must lie on a line before reads are planned by it."""

SURE_EDGES = 3
"""After an edge that was missed reads are dense until so many in a row came as expected."""

LEAST_WINDOW_NS = 1_000_000
"""A narrower window isn't worth it: on a busy machine a thread wakes up some tenths of a millisecond late."""

WIDENING, NARROWING = 1.5, 0.99
"""Balance where one edge in 40 is outside of its window. One ahead of it is seen half as exactly as the guard is early."""

GUARD = 1 / 8
OFF = 1 / 4
"""An edge this part of a period away from where it was expected belongs to another rhythm: learn anew."""

PHASE_GAIN, PERIOD_GAIN = 0.3, 0.02


class Pace:
    """Plans the reads of one counter."""

    def __init__(self, dense_ns: int) -> None:
        """While it is not known when the counter is published, read it every `dense_ns` nanoseconds."""
        self._dense_ns = dense_ns
        self._edges: deque[Edge] = deque(maxlen=LEARNT_EDGES)
        self._usual_ns = self._period_ns = self._expected_ns = 0.0
        self._window_ns = float(LEAST_WINDOW_NS)
        self._last_ns = self._placed_ns = 0
        self._sure = 0
        self.missed_edges = 0
        """Edges that came while nobody looked: ahead of their guard, or while a read stalled."""

    @property
    def period_ns(self) -> float | None:
        """The update period, or the usual distance of edges where there is no rhythm; None while it is being learned."""
        return self._period_ns or self._usual_ns or None

    @property
    def locked(self) -> bool:
        """Whether reads are made around expected edges only."""
        return self._sure >= SURE_EDGES and self._window_ns < OFF * self._period_ns

    def forget(self) -> None:
        """Learn anew: reads have failed, and the counter may come back in another rhythm."""
        self._edges.clear()
        self._usual_ns = self._period_ns = 0.0
        self._sure = 0

    def place(self, edge: Edge) -> Edge:
        """The edge at its likeliest instant, if it is wide: where it was expected, as far as the reads around it allow.

        Its half-width grows by as much as the instant moves, so that it still holds all instants that the reads
        allow; edges stay in order. To be asked of every edge before `see`.
        """
        low_ns, high_ns = edge.t_ns - edge.half_width_ns, edge.t_ns + edge.half_width_ns
        t_ns = edge.t_ns
        if self._period_ns and edge.half_width_ns > self._window_ns:
            periods = max(0, round((t_ns - self._expected_ns) / self._period_ns))
            t_ns = int(self._expected_ns + periods * self._period_ns)
        self._placed_ns = t_ns = max(min(max(t_ns, low_ns), high_ns - 1), self._placed_ns + 1)
        return replace(edge, t_ns=t_ns, half_width_ns=max(t_ns - low_ns, high_ns - t_ns))

    def see(self, edge: Edge) -> None:
        """Take in an edge, not earlier than the one before."""
        self._edges.append(edge)
        if self._period_ns:
            self._follow(edge)
        else:
            self._learn()
        self._last_ns = edge.t_ns

    def next_ns(self, now_ns: int) -> int:
        """When to read next, given that a read has ended at `now_ns`."""
        if not self.locked:
            return now_ns + self._dense_ns
        expected_ns, window_ns = self._expected_ns, self._window_ns
        guard_ns = expected_ns - window_ns - GUARD * self._period_ns
        for planned_ns in (guard_ns, expected_ns - window_ns, expected_ns, expected_ns + window_ns):
            if planned_ns > now_ns:
                return int(planned_ns)
        return now_ns + int(min(max(window_ns, (now_ns - expected_ns) / 2), self._dense_ns))

    def overdue(self, now_ns: int, periods: float) -> bool:
        """Whether no edge was seen for more than so many periods, where the period is known."""
        return self.period_ns is not None and now_ns - self._last_ns > periods * self.period_ns

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
        self._period_ns = period_ns
        self._expected_ns = first_ns + offset_ns + period_ns * (counts[-1] + 1)
        self._window_ns = max(LEAST_WINDOW_NS, min(max(strays_ns), OFF / 2 * period_ns))
        self._sure = SURE_EDGES

    def _follow(self, edge: Edge) -> None:
        """Correct phase and period by how far the edge is from where it was expected."""
        if edge.half_width_ns > max(GUARD * self._period_ns, self._dense_ns):
            late_periods = max(0, int((edge.t_ns + edge.half_width_ns - self._expected_ns) / self._period_ns))
            self.missed_edges += max(1, late_periods)
            self._expected_ns += (late_periods + 1) * self._period_ns
            self._sure = 0
            return
        late_periods = max(0, round((edge.t_ns - self._expected_ns) / self._period_ns))
        stray_ns = edge.t_ns - self._expected_ns - late_periods * self._period_ns
        if abs(stray_ns) > OFF * self._period_ns:
            self.forget()
            return
        outside = abs(stray_ns) - edge.half_width_ns > self._window_ns / 2
        self._window_ns = max(LEAST_WINDOW_NS, self._window_ns * (WIDENING if outside else NARROWING))
        stray_ns = max(-self._window_ns, min(self._window_ns, stray_ns))
        self._expected_ns += (late_periods + 1) * self._period_ns + PHASE_GAIN * stray_ns
        self._period_ns += PERIOD_GAIN * stray_ns
        self._sure = 0 if late_periods else self._sure + 1
