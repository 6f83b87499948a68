"""From a board to joules, through the real nvidia-ml-py: counter, sampler and timeline against the stand-in's truth.

The sums are checked against what the edges themselves promise: each edge holds the instant of its publication within
its half-width, so energy between two edges is off by at most what the board can burn in those half-widths.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from etameter.counters.nvml import discover
from etameter.records import Interval, ReadFailure
from etameter.sampler import Sampler
from etameter.timeline import Timeline
from tests.simnvml.board import Board, Call, Sensor, now_ns

pytestmark = pytest.mark.unit

MS = 1_000_000
SECOND = 1_000 * MS
FAST = Sensor(period_ns=20 * MS, phase_ns=7 * MS)
LIMIT_W = 700.0


@dataclass
class Watch:
    """What a meter would know of each GPU of a board."""

    board: Board
    sampler: Sampler
    timelines: dict[str, Timeline]
    intervals: dict[str, list[Interval]]
    causes: set[str] = field(default_factory=set)

    def look(self) -> None:
        for found in self.sampler.drain():
            self.timelines[found.gpu_uuid].add(found)
            if isinstance(found, ReadFailure):
                self.causes.add(found.cause)
        for uuid, timeline in self.timelines.items():
            self.intervals[uuid] += timeline.take()

    def until(self, done: Callable[[], bool]) -> None:
        give_up_ns = now_ns() + 60 * SECOND
        while not done():
            assert now_ns() < give_up_ns, self.intervals
            time.sleep(0.01)
            self.look()

    def good(self, gpu: int = 0) -> list[Interval]:
        return [one for one in self.intervals[self.board.uuid(gpu)] if one.cause is None]

    def bad(self, gpu: int = 0) -> list[Interval]:
        return [one for one in self.intervals[self.board.uuid(gpu)] if one.cause is not None]

    def assert_true(self, intervals: list[Interval], gpu: int = 0, most_w: float = LIMIT_W) -> None:
        """Each interval is right to what its edges promise, and to a millijoule of rounding at either end."""
        assert intervals
        for one in intervals:
            truth_j = float(self.board.truth_j(gpu, one.start_ns, one.end_ns))
            bound_j = most_w * (one.start_half_width_ns + one.end_half_width_ns) * 1e-9 + 0.002
            assert abs(one.energy_j - truth_j) <= bound_j, one


@contextmanager
def watching(board: Board) -> Iterator[Watch]:
    with board:
        counters = discover()
        sampler = Sampler(counters)
        timelines = {counter.gpu_uuid: Timeline(counter.gpu_uuid, power_limit_w=LIMIT_W) for counter in counters}
        sampler.start()
        try:
            yield Watch(board, sampler, timelines, {uuid: [] for uuid in timelines})
        finally:
            sampler.stop()
            for counter in counters:
                counter.close()


def llm_like(board: Board, start_ns: int, end_ns: int, gpu: int = 0) -> None:
    """Steps of 8 to 40 ms at 250 to 650 W, between idle gaps."""
    dice = random.Random(20)
    t_ns, steps = start_ns, [(0, 90.0)]
    while t_ns < end_ns:
        for _ in range(dice.randrange(5, 40)):
            steps.append((t_ns, dice.uniform(250, 650)))
            t_ns += dice.randrange(8 * MS, 40 * MS)
        steps.append((t_ns, 90.0))
        t_ns += dice.randrange(0, 400 * MS)
    board.set_power_w(gpu, steps)


@pytest.mark.parametrize("sensor", [Sensor(phase_ns=33 * MS), FAST], ids=["100 ms", "20 ms"])
def test_a_short_run_is_right_to_the_half_widths_of_its_edges(tmp_path: Path, sensor: Sensor) -> None:
    board = Board(tmp_path / "board", energy=sensor)
    start_ns = now_ns() + SECOND
    llm_like(board, start_ns, start_ns + 60 * SECOND)
    with watching(board) as watch:
        watch.until(lambda: len(watch.good()) > 0 and watch.good()[-1].end_ns > start_ns + 3 * SECOND)
    watch.assert_true(watch.good())
    first, last = watch.good()[0], watch.good()[-1]
    whole = Interval(
        first.gpu_uuid,
        first.start_ns,
        last.end_ns,
        sum(one.energy_j for one in watch.good()),
        first.start_half_width_ns,
        last.end_half_width_ns,
    )
    watch.assert_true([whole])
    timeline = watch.timelines[board.uuid()]
    for begins_ns, ends_ns in [(500, 2_500), (333, 2_777), (1_000, 1_010)]:
        spent = timeline.energy_between(start_ns + begins_ns * MS, start_ns + ends_ns * MS)
        truth_j = board.truth_j(0, start_ns + begins_ns * MS, start_ns + ends_ns * MS)
        assert abs(spent.energy_j - float(truth_j)) <= spent.bound_j + 0.002


@pytest.mark.slow
@pytest.mark.parametrize("delay_ms", [0, 30])
def test_the_total_of_thirty_seconds_is_within_half_a_percent(tmp_path: Path, delay_ms: int) -> None:
    sensor = Sensor(phase_ns=33 * MS, delay_ns=delay_ms * MS, jitter_ns=3 * MS, noise=50, latency_ns=100_000)
    board = Board(tmp_path / "board", energy=sensor)
    start_ns = now_ns() + SECOND
    llm_like(board, start_ns, start_ns + 60 * SECOND)
    with watching(board) as watch:
        watch.until(lambda: len(watch.good()) > 0 and watch.good()[-1].end_ns > start_ns + 30 * SECOND)
    assert watch.bad() == []
    energy_j = watch.timelines[board.uuid()].energy_between(start_ns, start_ns + 30 * SECOND).energy_j
    truth_j = float(board.truth_j(0, start_ns, start_ns + 30 * SECOND))
    assert abs(energy_j / truth_j - 1) <= 0.005


def test_a_reset_is_one_interval_without_joules(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", energy=FAST)
    board.set_power_w(0, [(0, 300.0)])
    with watching(board) as watch:
        watch.until(lambda: len(watch.good()) >= 5)
        reset_ns = now_ns() + 50 * MS
        board.reset_counter(reset_ns)
        watch.until(lambda: len(watch.good()) >= 15)
    assert [(one.cause, one.energy_j) for one in watch.bad()] == [("reset", 0.0)]
    assert watch.bad()[0].start_ns < reset_ns < watch.bad()[0].end_ns + 20 * MS
    assert watch.timelines[board.uuid()].resets == 1
    watch.assert_true(watch.good())


def test_a_frozen_counter_is_stale_and_its_joules_are_kept(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", energy=FAST)
    board.set_power_w(0, [(0, 300.0)])
    with watching(board) as watch:
        watch.until(lambda: len(watch.good()) >= 8)
        before = len(watch.good())
        frozen_ns = now_ns()
        board.freeze(Call.ENERGY, frozen_ns)
        watch.until(lambda: len(watch.bad()) >= 2)  # nobody waits for it to thaw
        assert {(one.cause, one.energy_j) for one in watch.bad()} == {("stale", 0.0)}
        board.heal()
        watch.until(lambda: len(watch.good()) >= before + 8)
    assert {one.cause for one in watch.bad()} == {"stale"}
    first, last = watch.bad()[0], watch.bad()[-1]
    energy_j, widths_ns = last.energy_j, (first.start_half_width_ns, last.end_half_width_ns)
    watch.assert_true([Interval(first.gpu_uuid, first.start_ns, last.end_ns, energy_j, *widths_ns)])
    watch.assert_true(watch.good())


def test_one_gpu_is_lost_and_back_and_the_others_go_on(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", gpus=2, energy=FAST)
    for gpu in range(2):
        board.set_power_w(gpu, [(0, 300.0)])
    with watching(board) as watch:
        watch.until(lambda: len(watch.good(0)) >= 5 and len(watch.good(1)) >= 5)
        lost_ns = now_ns()
        board.lose(0)
        watch.until(lambda: len(watch.good(1)) >= 15)
        back_ns = now_ns()
        board.heal()
        watch.until(lambda: len(watch.good(0)) >= 15)
    assert watch.causes == {"gpu_lost"}
    assert [one.cause for one in watch.bad(0)] == ["readings_missing"]
    missing = watch.bad(0)[0]
    assert missing.start_ns < lost_ns < back_ns < missing.end_ns
    watch.assert_true([missing, *watch.good(0)], 0)
    assert watch.bad(1) == []
    watch.assert_true(watch.good(1), 1)


def test_a_regular_counter_is_read_around_its_edges_only(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", gpus=2, energy=Sensor(phase_ns=33 * MS, jitter_ns=MS))
    board.set_power_w(0, [(0, 300.0)])
    llm_like(board, now_ns(), now_ns() + 60 * SECOND, gpu=1)
    with watching(board) as watch:
        watch.until(lambda: min(len(watch.good(0)), len(watch.good(1))) >= 12)
        polls, edges = watch.sampler.polls, len(watch.good(1))
        watch.until(lambda: len(watch.good(1)) >= edges + 20)
        polls = watch.sampler.polls - polls
        read_densely = 2 * 20 * 100 // 5
    assert polls < read_densely / 2
    watch.assert_true(watch.good(1), 1)


@pytest.mark.parametrize("stall_ms", [300, 1500])
def test_stalled_calls_widen_an_interval_and_smear_no_joule(tmp_path: Path, stall_ms: int) -> None:
    board = Board(tmp_path / "board", energy=FAST)
    start_ns = now_ns()
    llm_like(board, start_ns, start_ns + 60 * SECOND)
    with watching(board) as watch:
        watch.until(lambda: len(watch.good()) >= 5)
        stall_ns = now_ns()
        # One call begins in this window, whenever that is, and is not back when the window ends.
        board.stall(Call.ENERGY, stall_ms * MS, from_ns=stall_ns, until_ns=stall_ns + stall_ms * MS)
        watch.until(lambda: len(watch.good()) > 0 and watch.good()[-1].start_ns > stall_ns + 2 * stall_ms * MS)
    stalled_ns = stall_ns + stall_ms * MS - 1
    around = [one for one in watch.intervals[board.uuid()] if one.start_ns <= stalled_ns < one.end_ns]
    assert [one.cause for one in around] == [None], "what the call tells in the end is the counter's"
    assert around[0].end_ns - around[0].start_ns >= stall_ms * MS - FAST.period_ns
    watch.assert_true(watch.intervals[board.uuid()])
    assert watch.sampler.missed_polls >= stall_ms // 5 - 1


def test_a_counter_that_leaps_is_implausible(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", energy=FAST)
    board.set_power_w(0, [(0, 300.0)])
    with watching(board) as watch:
        watch.until(lambda: len(watch.good()) >= 5)
        leap_ns = now_ns() + 20 * MS
        board.set_power_w(0, [(leap_ns, 50_000.0), (leap_ns + 10 * MS, 300.0)])
        watch.until(lambda: len(watch.good()) >= 15)
    assert [one.cause for one in watch.bad()] == ["implausible"]
    assert watch.bad()[0].energy_j > 500
    watch.assert_true(watch.good())
