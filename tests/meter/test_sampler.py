import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from etameter.counters import Kind, Scope
from etameter.errors import CounterError
from etameter.records import Edge, Finding, ReadFailure, Source, Standstill
from etameter.sampler import RETRY_NS, EdgeFinder, Sampler

pytestmark = pytest.mark.unit

MS = 1_000_000


class Clockwork:
    """A counter that publishes 10 J each 40 ms of the machine's clock and fails or blocks on demand."""

    scope: Scope = "gpu"
    kind: Kind = "simulated"
    source: Source = "simulated"
    board_name = "clockwork"
    parts: tuple[str, ...] = ()
    update_ns = 40 * MS

    def __init__(self, gpu_uuid: str) -> None:
        self.gpu_uuid = gpu_uuid
        self.lost = False
        self.blocks_s = 0.0
        self.frozen_mj: int | None = None
        self.blur_ns = 0
        self.power_w: float | None = None
        self.cap_mw = 700_000
        self.reads = 0
        self.pids: tuple[int, ...] | None = (7,)
        self.hot: bool | None = None

    def read_mj(self) -> int:
        self.reads += 1
        blocks_s, self.blocks_s = self.blocks_s, 0.0
        time.sleep(blocks_s)
        if self.lost:
            raise CounterError("gpu_lost", "the GPU is lost", "reboot")
        if self.frozen_mj is not None:
            return self.frozen_mj
        return time.monotonic_ns() // self.update_ns * 10_000

    def conditions(self) -> tuple[Hashable, ...]:
        return (self.cap_mw,)

    def throttled(self) -> bool | None:
        return self.hot

    def power_limit_w(self) -> float | None:
        return None

    def processes(self) -> tuple[int, ...] | None:
        return self.pids

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def sampling(*counters: Clockwork, period_ns: int = 2 * MS, capacity: int = 1000) -> Iterator[Sampler]:
    sampler = Sampler(counters, period_ns, capacity)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop()


def wait_for(sampler: Sampler, count: int, gpu_uuid: str = "GPU-0") -> list[Finding]:
    """What the sampler found, up to and with the `count`th finding about one GPU."""
    found: list[Finding] = []
    give_up_ns = time.monotonic_ns() + 20_000 * MS
    while sum(one.gpu_uuid == gpu_uuid for one in found) < count:
        assert time.monotonic_ns() < give_up_ns, found
        time.sleep(0.005)
        found += sampler.drain()
    return found


def edges(found: list[Finding], gpu_uuid: str = "GPU-0") -> list[Edge]:
    return [one for one in found if isinstance(one, Edge) and one.gpu_uuid == gpu_uuid]


def test_the_first_reading_and_repeated_ones_are_no_edges() -> None:
    finder = EdgeFinder("GPU-0")
    assert finder.see(100, 5_000, 110) is None
    assert finder.see(200, 5_000, 210) is None
    assert finder.see(300, 5_000, 310) is None


def test_an_edge_spans_the_last_old_and_the_first_new_call() -> None:
    finder = EdgeFinder("GPU-0")
    finder.see(100, 5_000, 110)
    finder.see(200, 5_000, 210)
    assert finder.see(300, 7_000, 320) == Edge("GPU-0", 260, 60, 7_000)
    assert finder.see(400, 6_999, 401) == Edge("GPU-0", 350, 51, 6_999)


def test_a_stalled_call_widens_its_edge() -> None:
    finder = EdgeFinder("GPU-0")
    finder.see(0, 5_000, 10)
    assert finder.see(100, 7_000, 2_000) == Edge("GPU-0", 1_000, 1_000, 7_000)
    # The value may have been taken early in the stalled call, so the next edge begins where that call did.
    assert finder.see(2_100, 8_000, 2_110) == Edge("GPU-0", 1_105, 1_005, 8_000)


def test_the_reading_after_a_failure_is_a_baseline() -> None:
    finder = EdgeFinder("GPU-0")
    finder.see(0, 5_000, 10)
    finder.forget()
    assert finder.see(900, 9_000, 910) is None
    assert finder.see(1_000, 9_500, 1_010) == Edge("GPU-0", 955, 55, 9_500)


def test_every_edge_holds_the_instant_of_publication() -> None:
    counter = Clockwork("GPU-0")
    with sampling(counter) as sampler:
        found = edges(wait_for(sampler, 10))
    assert len(found) >= 10
    for edge in found:
        published_ns = edge.energy_mj // 10_000 * counter.update_ns
        assert abs(edge.t_ns - published_ns) <= edge.half_width_ns


def test_a_gpu_that_fails_does_not_stop_the_others_and_comes_back() -> None:
    sick, well = Clockwork("GPU-0"), Clockwork("GPU-1")
    with sampling(sick, well) as sampler:
        wait_for(sampler, 2)
        sick.lost = True
        found = wait_for(sampler, 3)
        failures = [one for one in found if isinstance(one, ReadFailure)]
        assert {(one.gpu_uuid, one.cause) for one in failures} == {("GPU-0", "gpu_lost")}
        assert len(edges(wait_for(sampler, 3, "GPU-1"), "GPU-1")) >= 3
        sick.lost = False
        assert len(edges(wait_for(sampler, 6))) >= 3


def test_a_counter_that_fails_is_asked_less_often() -> None:
    counter = Clockwork("GPU-0")
    counter.lost = True
    with sampling(counter) as sampler:
        found = wait_for(sampler, 3)
    assert counter.reads <= len(found) + 1
    distances_ns = [later.t_ns - earlier.t_ns for earlier, later in pairwise(found)]
    assert min(distances_ns) >= RETRY_NS


def test_a_stall_is_late_and_missed_polls_are_counted() -> None:
    counter = Clockwork("GPU-0")
    with sampling(counter) as sampler:
        wait_for(sampler, 2)
        missed = sampler.missed_polls
        counter.blocks_s = 0.3
        widest = max(edges(wait_for(sampler, 4)), key=lambda edge: edge.half_width_ns)
    assert 2 * widest.half_width_ns >= 300 * MS
    assert sampler.missed_polls - missed >= 149
    assert sampler.running is False


@pytest.mark.parametrize("stalled", [0, 1])
def test_a_stall_is_no_time_in_which_nobody_asked_on_any_gpu(stalled: int) -> None:
    counters = Clockwork("GPU-0"), Clockwork("GPU-1")
    with sampling(*counters) as sampler:
        wait_for(sampler, 2)
        counters[stalled].blocks_s = 0.3
        found = wait_for(sampler, 6)
    for counter in counters:
        widest = max(edges(found, counter.gpu_uuid), key=lambda edge: edge.half_width_ns)
        assert widest.unread_ns is not None
        assert 0 <= widest.unread_ns <= 2 * widest.half_width_ns - 300 * MS


def test_lateness_and_cost_are_results() -> None:
    with sampling(Clockwork("GPU-0")) as sampler:
        wait_for(sampler, 3)
    assert sampler.polls > 0
    assert 0 < sampler.lateness_ns <= sampler.polls * sampler.worst_lateness_ns
    assert sampler.cost_ns > 0


def test_what_nobody_drains_is_dropped_oldest_first_and_counted() -> None:
    counter = Clockwork("GPU-0")
    start_ns = time.monotonic_ns()
    with sampling(counter, capacity=2) as sampler:
        while sampler.dropped < 3:
            time.sleep(0.01)
    kept = sampler.drain()
    assert len(kept) == 2
    assert kept[0].t_ns < kept[1].t_ns
    assert kept[0].t_ns - start_ns >= 2 * counter.update_ns  # the fourth edge at the earliest
    assert sampler.drain() == []


def test_stop_ends_the_thread_and_is_no_error_twice() -> None:
    with sampling(Clockwork("GPU-0")) as sampler:
        assert sampler.running
        sampler.stop()
        assert not sampler.running


def test_another_power_cap_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etameter.sampler.CONDITIONS_NS", 10 * MS)
    counter = Clockwork("GPU-0")
    with sampling(counter) as sampler:
        wait_for(sampler, 2)
        assert sampler.changes() == []
        counter.cap_mw = 350_000
        wait_for(sampler, 2)
        (change,) = sampler.changes()
        assert (change.gpu_uuid, change.values) == ("GPU-0", (350_000,))
        assert sampler.changes() == []


def test_a_counter_that_stands_still_is_told_again_and_again() -> None:
    counter = Clockwork("GPU-0")
    with sampling(counter) as sampler:
        wait_for(sampler, 12)
        counter.frozen_mj = counter.read_mj()
        found: list[Finding] = []
        while sum(isinstance(one, Standstill) for one in found) < 3:
            time.sleep(0.01)
            found += sampler.drain()
    stood = [one.t_ns for one in found if isinstance(one, Standstill)]
    last_ns = counter.frozen_mj // 10_000 * counter.update_ns
    assert stood[0] - last_ns >= 4 * counter.update_ns
    assert all(later - earlier >= 4 * counter.update_ns for earlier, later in pairwise(stood))


def test_who_computes_on_a_gpu_is_asked_rarely() -> None:
    counter = Clockwork("GPU-0")
    with sampling(counter) as sampler:
        wait_for(sampler, 2)
        counter.pids = (7, 8)
        wait_for(sampler, 2)
        assert sampler.processes() == {"GPU-0": (7,)}


@pytest.mark.parametrize("hot", [True, False, None])
def test_whether_a_gpu_is_held_back_is_told_as_the_counter_tells_it(hot: bool | None) -> None:
    counter = Clockwork("GPU-0")
    counter.hot = hot
    with sampling(counter) as sampler:
        wait_for(sampler, 2)
        assert sampler.throttled() == {"GPU-0": hot}


def test_an_edge_carries_the_power_of_its_read() -> None:
    counter = Clockwork("GPU-0")
    counter.power_w = 321.0
    with sampling(counter) as sampler:
        assert {one.power_w for one in edges(wait_for(sampler, 2))} == {321.0}


def test_a_blurred_counter_has_wider_edges() -> None:
    counter = Clockwork("GPU-0")
    counter.blur_ns = 30 * MS
    with sampling(counter) as sampler:
        found = edges(wait_for(sampler, 3))
    assert min(one.half_width_ns for one in found) > 30 * MS
    assert {one.unread_ns for one in found} == {None}, "of power nothing is known but what was read"
