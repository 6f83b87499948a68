"""One GPU of an engine: its intervals wait here until they can be settled, and what a step costs on it is learned from them."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from etameter.attribution import BUBBLE_NS, Settlement, attribute
from etameter.fit import CostFit, Fitted
from etameter.records import Edge, Interval
from etameter.roofline import QWEN3_8B, ModelShape, board_of, roofline_prior
from etameter.spans import union, within, without
from etameter.stages import Span
from etameter.steps import Missing
from etameter.timeline import Timeline
from etameter.work import Step, Work

START_UP_NS, START_UP_PART_NS = 600_000_000_000, 10_000_000_000
"""Of the energy before an engine appears, so much is taken to be its start-up."""
FIT_EVERY_INTERVALS = 20


@dataclass(frozen=True, slots=True)
class Settled:
    """An interval, settled."""

    settlement: Settlement
    ended: Work
    """Those of its paid steps that ended in it."""
    unpaid: list[Step]
    """Steps, or parts of them, that nobody pays."""
    passes: list[Span] = field(default_factory=list)
    """When the engine may have run empty passes for others."""
    is_trusted: bool = True
    """Energy and steps are known."""


class Gpu:
    def __init__(self, gpu_uuid: str, board_name: str, last_edge: Edge | None, frontier_ns: int | None) -> None:
        """`last_edge` and `frontier_ns` are where an earlier meter stopped."""
        self.gpu_uuid = gpu_uuid
        self.board_name = board_name
        self.timeline = Timeline(gpu_uuid, last_edge=last_edge)
        self.frontier_ns = frontier_ns
        """Up to when all is settled; None before the first interval."""
        self.settled_edge = last_edge
        self.fit = CostFit(roofline_prior(board_of(board_name), QWEN3_8B))
        self._routed = 0.0
        self._pending: deque[Interval] = deque()
        self._unfitted = 0

    def expect(self, shape: ModelShape, fitted: Fitted | None) -> None:
        """A model of this shape will run here, of which an earlier fit may be known. What was learned of one is kept."""
        self._routed = shape.routed
        if self.fit.costs.intervals == 0:
            self.fit = CostFit(roofline_prior(board_of(self.board_name), shape), fitted)

    def work(self, steps: Sequence[Step]) -> Work:
        """What these steps ask of the board."""
        return Work(steps, self._routed)

    def collect(self) -> None:
        """Take the intervals that have come."""
        self._pending.extend(self.timeline.take())

    def await_engine(self) -> None:
        """Without an engine there is nothing to settle yet: keep what may turn out to be its start-up, in a few long intervals."""
        joined: deque[Interval] = deque(maxlen=START_UP_NS // START_UP_PART_NS)
        for interval in self._pending:
            if joined and joined[-1].end_ns - joined[-1].start_ns < START_UP_PART_NS:
                joined[-1] = _joined(joined[-1], interval)
            else:
                joined.append(interval)
        self._pending = deque(joined)

    def leave(self) -> None:
        """No engine of ours works here: its energy is nobody's, and metering begins anew when one does."""
        self._pending.clear()
        self.frontier_ns = self.settled_edge = None

    def next_span(self) -> tuple[int, int] | None:
        """When the work was done that the next interval pays for: its edges less the publishing lag."""
        while self._pending:
            interval, lag_ns = self._pending[0], self.fit.costs.lag_ns
            start_ns = interval.start_ns - lag_ns if self.frontier_ns is None else self.frontier_ns
            end_ns = interval.end_ns - lag_ns
            if end_ns > start_ns:
                return start_ns, end_ns
            if len(self._pending) < 2:
                return None
            self._pending.popleft()  # another lag was learned: this interval is settled with the next one
            self._pending[0] = _joined(interval, self._pending[0])
        return None

    def settle(
        self,
        start_ns: int,
        end_ns: int,
        steps: list[Step],
        engine_started_ns: int,
        missing: Sequence[Missing],
        elsewhere: Sequence[Span] = (),
    ) -> Settled:
        """Settle the next interval, whose work was done from `start_ns` to `end_ns`; `steps` are in order of time.

        Where other ranks of its group worked `elsewhere`, the engine ran empty passes unless it had steps of its own.
        """
        interval = self._pending.popleft()
        first = bisect_right(steps, start_ns - BUBBLE_NS, key=_done_ns)
        last = bisect_left(steps, end_ns + BUBBLE_NS, key=_dispatch_ns)
        self.fit.limit(self.timeline.power_limit_w)
        work = self.work(steps[first:last])
        beside = within(elsewhere, engine_started_ns, end_ns + BUBBLE_NS)
        idle_beside = without(beside, _bridged(work.steps)) if beside else []
        passes = within(idle_beside, start_ns, end_ns)
        settlement = attribute(interval, start_ns, end_ns, work, self.fit.costs, engine_started_ns, missing, passes)
        is_trusted = interval.cause is None and not _touches(missing, start_ns, end_ns)
        unpaid = []
        if not len(settlement.shares.slots):
            unpaid = [step for step in work.steps if step.dispatch_ns < end_ns and step.done_ns > start_ns]
        self.fit.add_steps(work.begun(start_ns, end_ns))  # also what has not ended in it
        doubt_ns = self.fit.costs.lag_error_ns
        is_own = not within(idle_beside, start_ns - doubt_ns, end_ns + doubt_ns)  # nothing of what others caused
        if is_trusted and is_own and start_ns >= engine_started_ns:
            self.fit.add_interval(interval)
            self._unfitted += 1
            intervals = self.fit.costs.intervals
            if self._unfitted >= max(FIT_EVERY_INTERVALS, min(intervals // 10, 10 * FIT_EVERY_INTERVALS)):
                self._unfitted = 0
                self.fit.fit()
        self.frontier_ns = end_ns
        self.settled_edge = Edge(interval.gpu_uuid, interval.end_ns, interval.end_half_width_ns, interval.end_mj)
        return Settled(settlement, settlement.work.ended(start_ns, end_ns), unpaid, passes, is_trusted)


def _bridged(steps: Sequence[Step]) -> list[Span]:
    """When the engine worked itself, gaps in between that are too short to be idle included."""
    return [
        (start, end - BUBBLE_NS) for start, end in union((each.dispatch_ns, each.done_ns + BUBBLE_NS) for each in steps)
    ]


def _done_ns(step: Step) -> int:
    return step.done_ns


def _dispatch_ns(step: Step) -> int:
    return step.dispatch_ns


def _touches(spans: Sequence[Missing], start_ns: int, end_ns: int) -> bool:
    return any(span.start_ns < end_ns and span.end_ns > start_ns for span in spans)


def _joined(first: Interval, second: Interval) -> Interval:
    return replace(
        second,
        start_ns=first.start_ns,
        start_half_width_ns=first.start_half_width_ns,
        energy_j=first.energy_j + second.energy_j,
        cause=first.cause or second.cause,
    )
