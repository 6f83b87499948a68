"""Polls energy counters and keeps the edges: the moments at which a counter was seen to change.

Between two edges the energy is known, whatever happened there. A repeated value is no reading of zero joules: the
driver has not published since. So only changes leave this module, each with the span of time in which it happened.
"""

import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence

from etameter.counters import Counter
from etameter.errors import CounterError
from etameter.records import Conditions, Edge, ReadFailure

RETRY_NS = 250_000_000
"""A counter that failed is asked again after this long: lost devices answer slowly and would delay their neighbours."""

CONDITIONS_NS = 5_000_000_000
"""Power cap and throttling are asked for so rarely: a call more is not free, and they last."""


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


class Sampler:
    """One thread that polls every counter each `period_ns` and keeps what it finds until `drain`.

    How late it was, what it cost and what it had to drop are results like the edges: see the properties.
    """

    def __init__(self, counters: Sequence[Counter], period_ns: int = 5_000_000, capacity: int = 65_536) -> None:
        """Poll `counters` every `period_ns` nanoseconds; hold at most `capacity` edges and failures."""
        self._counters = [(counter, EdgeFinder(counter.gpu_uuid)) for counter in counters]
        self._retry_at_ns = {counter.gpu_uuid: 0 for counter in counters}
        self._ask_at_ns = {counter.gpu_uuid: 0 for counter in counters}
        self._changes: deque[Conditions] = deque(maxlen=capacity)
        self._conditions: dict[str, tuple[Hashable, ...]] = {}
        self._period_ns = period_ns
        self._found: deque[Edge | ReadFailure] = deque()
        self._capacity = capacity
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="etameter-sampler", daemon=True)
        self._polls = self._missed_polls = self._dropped = 0
        self._late_ns = self._worst_late_ns = self._cost_ns = 0

    def start(self) -> None:
        """Begin to poll. A sampler starts once."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread after the call that it is in; a call that blocks longer than `timeout_s` seconds is left."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def drain(self) -> list[Edge | ReadFailure]:
        """What was found since the last call, in the order in which it was found for each GPU."""
        with self._lock:
            found = list(self._found)
            self._found.clear()
        return found

    def changes(self) -> list[Conditions]:
        """Conditions other than those that held before, since the last call."""
        return [self._changes.popleft() for _ in range(len(self._changes))]

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def polls(self) -> int:
        """Rounds over all counters so far."""
        return self._polls

    @property
    def missed_polls(self) -> int:
        """Rounds left out because the one before ended after they were due."""
        return self._missed_polls

    @property
    def lateness_ns(self) -> int:
        """Sum over all rounds of start minus planned start; divide by `polls` for the mean."""
        return self._late_ns

    @property
    def worst_lateness_ns(self) -> int:
        return self._worst_late_ns

    @property
    def cost_ns(self) -> int:
        """Processor time that the thread has used."""
        return self._cost_ns

    @property
    def dropped(self) -> int:
        """Edges and failures lost, oldest first, because nobody drained them."""
        return self._dropped

    def _run(self) -> None:
        due_ns = time.monotonic_ns()
        while not self._stopping.is_set():
            late_ns = time.monotonic_ns() - due_ns
            self._late_ns += late_ns
            self._worst_late_ns = max(self._worst_late_ns, late_ns)
            for counter, finder in self._counters:
                self._poll(counter, finder)
            self._polls += 1
            self._cost_ns = time.thread_time_ns()
            now_ns = time.monotonic_ns()
            missed = max(0, (now_ns - due_ns) // self._period_ns)
            self._missed_polls += missed
            due_ns += (missed + 1) * self._period_ns
            time.sleep((due_ns - now_ns) * 1e-9)

    def _poll(self, counter: Counter, finder: EdgeFinder) -> None:
        before_ns = time.monotonic_ns()
        if before_ns < self._retry_at_ns[counter.gpu_uuid]:
            return
        try:
            energy_mj = counter.read_mj()
            after_ns = time.monotonic_ns()
            if after_ns >= self._ask_at_ns[counter.gpu_uuid]:
                self._ask(counter, after_ns)
        except CounterError as error:
            finder.forget()
            after_ns = time.monotonic_ns()
            self._retry_at_ns[counter.gpu_uuid] = after_ns + RETRY_NS
            self._keep(ReadFailure(counter.gpu_uuid, (before_ns + after_ns) // 2, error.cause))
            return
        edge = finder.see(before_ns, energy_mj, after_ns)
        if edge is not None:
            self._keep(edge)

    def _ask(self, counter: Counter, now_ns: int) -> None:
        self._ask_at_ns[counter.gpu_uuid] = now_ns + CONDITIONS_NS
        values = counter.conditions()
        if self._conditions.setdefault(counter.gpu_uuid, values) != values:
            self._conditions[counter.gpu_uuid] = values
            self._changes.append(Conditions(counter.gpu_uuid, now_ns, values))

    def _keep(self, found: Edge | ReadFailure) -> None:
        with self._lock:
            if len(self._found) == self._capacity:
                self._found.popleft()
                self._dropped += 1
            self._found.append(found)
