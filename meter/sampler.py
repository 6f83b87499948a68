"""Polls energy counters and keeps the edges: the moments at which a counter was seen to change.

Between two edges the energy is known, whatever happened there. A repeated value is no reading of zero joules: the
driver has not published since. So only changes leave this module, each with the span of time in which it happened, and
the word that a counter stands still which should not.
"""

import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from etameter.counters import Counter
from etameter.errors import CounterError
from etameter.pacing import Pace
from etameter.records import Conditions, Edge, Finding, ReadFailure, Standstill

RETRY_NS = 250_000_000
"""A counter that failed is asked again after this long: lost devices answer slowly and would delay their neighbours."""

CONDITIONS_NS = 5_000_000_000
"""Power cap and throttling are asked for so rarely: a call more is not free, and they last."""

PROCESSES_NS = 30_000_000_000
"""Lists of processes take locks in the driver."""

STANDSTILL_PERIODS = 5
"""A counter that should have been published so often is said to stand still, and again after as long."""

LONGEST_SLEEP_S = 0.1
"""The thread looks so often whether it is to end."""

BUSY = 0.1
"""Share of the time that reads may take where they are slow, all counters together."""


class EdgeFinder:
    """Turns the readings of one counter into edges. Pure: the caller brings the clock readings around each call."""

    def __init__(self, gpu_uuid: str) -> None:
        self._gpu_uuid = gpu_uuid
        self._last_mj: int | None = None
        self._last_before_ns = 0

    def see(self, before_ns: int, energy_mj: int, after_ns: int) -> Edge | None:
        """The edge that this reading reveals, or None where the value is the old one (or the first).

        A call that began at `before_ns` and ended at `after_ns` returned `energy_mj`. When within the call the value
        was taken is unknown, so the new value was published between the start of the last call that returned the old
        value and the end of this one: a slow call makes a wide edge, never a wrong one.
        """
        last_mj, last_before_ns = self._last_mj, self._last_before_ns
        self._last_mj, self._last_before_ns = energy_mj, before_ns
        if last_mj is None or energy_mj == last_mj:
            return None
        t_ns = (last_before_ns + after_ns) // 2
        return Edge(self._gpu_uuid, t_ns, after_ns - t_ns, energy_mj)

    def forget(self) -> None:
        """Start over: the next reading is a baseline. When it was published is unknown after readings failed."""
        self._last_mj = None


@dataclass(slots=True)
class _Watch:
    """What the sampler remembers of one counter; instants are when something is due."""

    counter: Counter
    finder: EdgeFinder
    pace: Pace
    read_ns: int = 0
    conditions_ns: int = 0
    processes_ns: int = 0
    standstill_ns: int = 0
    asked_ns: int = 0
    """When its last read was over; how long the thread had been in calls by then."""
    called_ns: int = 0
    began: bool = False
    conditions: tuple[Hashable, ...] | None = None
    throttled: bool | None = None
    processes: tuple[int, ...] | None = None


_READ_NS = attrgetter("read_ns")


class Sampler:
    """One thread that reads each counter when a change is expected, and keeps what it finds until `drain`.

    How late it was, what it cost and what it had to drop are results like the edges: see the properties.
    """

    def __init__(
        self,
        counters: Sequence[Counter],
        period_ns: int = 5_000_000,
        capacity: int = 65_536,
        pacing: Literal["locked", "dense"] = "locked",
    ) -> None:
        """Read `counters` every `period_ns` nanoseconds until it is known when they are published.

        With `dense` pacing it stays at that. At most `capacity` edges and failures are held.
        """
        # Integrated power needs every reading: one that is left out is a straight line instead.
        shares = [1.0 if each.blur_ns else BUSY / len(counters) for each in counters]
        self._watches = [
            _Watch(each, EdgeFinder(each.gpu_uuid), Pace(period_ns, share))
            for each, share in zip(counters, shares, strict=True)
        ]
        self._changes: deque[Conditions] = deque(maxlen=capacity)
        self._period_ns = period_ns
        self._locks = pacing == "locked"
        self._found: deque[Finding] = deque()
        self._capacity = capacity
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="etameter-sampler", daemon=True)
        self._polls = self._missed_polls = self._dropped = 0
        self._late_ns = self._worst_late_ns = self._cost_ns = self._called_ns = 0

    def start(self) -> None:
        """Begin to read. A sampler starts once."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread after the call that it is in; a call that blocks longer than `timeout_s` seconds is left."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def drain(self) -> list[Finding]:
        """What was found since the last call, in the order in which it was found for each GPU."""
        with self._lock:
            found = list(self._found)
            self._found.clear()
        return found

    def changes(self) -> list[Conditions]:
        """Conditions other than those that held before, since the last call."""
        return [self._changes.popleft() for _ in range(len(self._changes))]

    def processes(self) -> dict[str, tuple[int, ...] | None]:
        """By GPU: who computes on it as of the last half minute, by the driver's numbers; None where it is not known."""
        return {watch.counter.gpu_uuid: watch.processes for watch in self._watches}

    def throttled(self) -> dict[str, bool | None]:
        """By GPU: if heat or a power brake held it back some seconds ago; None where it is not known."""
        return {watch.counter.gpu_uuid: watch.throttled for watch in self._watches}

    def missed_edges(self) -> dict[str, int]:
        """By GPU: edges so far that reads told apart badly or not at all."""
        return {watch.counter.gpu_uuid: watch.pace.missed_edges for watch in self._watches}

    def awaited(self) -> list[str]:
        """GPUs whose counters haven't changed yet since the start: nothing can be measured there until they do."""
        return [watch.counter.gpu_uuid for watch in self._watches if not watch.began]

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def polls(self) -> int:
        """Reads of counters so far."""
        return self._polls

    @property
    def missed_polls(self) -> int:
        """Reads that would have had time while one was late or took long."""
        return self._missed_polls

    @property
    def lateness_ns(self) -> int:
        """Sum over all reads of start minus planned start; divide by `polls` for the mean."""
        return self._late_ns

    @property
    def worst_lateness_ns(self) -> int:
        return self._worst_late_ns

    @property
    def cost_ns(self) -> int:
        """Processor time that the thread had used when it last found something, or some seconds ago."""
        return self._cost_ns

    @property
    def dropped(self) -> int:
        """Findings lost, oldest first, because nobody drained them."""
        return self._dropped

    def _run(self) -> None:
        start_ns = time.monotonic_ns()
        for watch in self._watches:
            watch.read_ns = start_ns
        if not self._watches:  # this machine has none, another has
            self._stopping.wait()
        while self._watches and not self._stopping.is_set():
            watch = min(self._watches, key=_READ_NS)
            wait_s = (watch.read_ns - time.monotonic_ns()) * 1e-9
            if wait_s > 0:
                time.sleep(min(wait_s, LONGEST_SLEEP_S))
            if wait_s <= LONGEST_SLEEP_S:
                self._poll(watch)

    def _poll(self, watch: _Watch) -> None:
        before_ns = time.monotonic_ns()
        late_ns = before_ns - watch.read_ns
        self._late_ns += late_ns
        self._worst_late_ns = max(self._worst_late_ns, late_ns)
        try:
            energy_mj = watch.counter.read_mj()
            after_ns = time.monotonic_ns()
            watch.pace.took(after_ns - before_ns)
            if watch.pace.passed_over(before_ns):
                watch.finder.forget()
            unread_ns = before_ns - watch.asked_ns - (self._called_ns - watch.called_ns)
            self._see(watch, watch.finder.see(before_ns, energy_mj, after_ns), before_ns, unread_ns)
            if after_ns >= watch.conditions_ns:
                self._ask_conditions(watch, after_ns)
            elif after_ns >= watch.processes_ns:
                watch.processes_ns = after_ns + PROCESSES_NS
                watch.processes = watch.counter.processes()
            next_ns = watch.pace.next_ns(after_ns) if self._locks else after_ns + self._period_ns
        except CounterError as error:
            watch.finder.forget()
            watch.pace.forget()
            after_ns = time.monotonic_ns()
            next_ns = after_ns + RETRY_NS
            self._keep(ReadFailure(watch.counter.gpu_uuid, (before_ns + after_ns) // 2, error.cause))
        ended_ns = time.monotonic_ns()
        self._called_ns += ended_ns - before_ns
        watch.asked_ns, watch.called_ns = ended_ns, self._called_ns
        self._polls += 1
        self._missed_polls += (ended_ns - watch.read_ns) // self._period_ns
        watch.read_ns = next_ns

    def _see(self, watch: _Watch, edge: Edge | None, before_ns: int, unread_ns: int) -> None:
        if edge is not None:
            watch.began = True
            placed = watch.pace.place(edge)
            watch.pace.see(edge)
            half_width_ns = placed.half_width_ns + watch.counter.blur_ns
            # What was drawn while nobody asked is in the integral of no power readings, however long a call took.
            certain = (None, None) if watch.counter.blur_ns else (placed.deviation_ns, unread_ns)
            about = watch.counter.power_w, *certain
            self._keep(Edge(edge.gpu_uuid, placed.t_ns, half_width_ns, edge.energy_mj, *about))
        elif before_ns >= watch.standstill_ns and watch.pace.overdue(before_ns, STANDSTILL_PERIODS):
            watch.standstill_ns = before_ns + int(STANDSTILL_PERIODS * (watch.pace.period_ns or 0))
            self._keep(Standstill(watch.counter.gpu_uuid, before_ns))

    def _ask_conditions(self, watch: _Watch, now_ns: int) -> None:
        self._cost_ns = time.thread_time_ns()
        watch.conditions_ns = now_ns + CONDITIONS_NS
        before, watch.conditions = watch.conditions, watch.counter.conditions()
        watch.throttled = watch.counter.throttled()
        if before is not None and watch.conditions != before:
            limit_w = watch.counter.power_limit_w()
            self._changes.append(Conditions(watch.counter.gpu_uuid, now_ns, watch.conditions, limit_w))

    def _keep(self, found: Finding) -> None:
        self._cost_ns = time.thread_time_ns()  # a call of the system: it would be dear after every poll
        with self._lock:
            if len(self._found) == self._capacity:
                self._found.popleft()
                self._dropped += 1
            self._found.append(found)
