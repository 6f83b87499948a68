"""The pace is played against counters whose every publication is known."""

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from etameter.pacing import LEARNT_EDGES, LONGEST_STRIDE, Pace
from etameter.records import Edge
from etameter.sampler import EdgeFinder

pytestmark = pytest.mark.unit

MS = 1_000_000
CALL_NS = 50_000
DENSE_NS = 5 * MS


@dataclass
class Played:
    """A counter that was read by a pace from 0 ns on."""

    pace: Pace
    published_ns: list[int]
    reads_ns: list[int] = field(default_factory=list)
    seen: list[Edge] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    """As they were placed."""
    locked_at: int | None = None

    def reads_per_s(self, from_s: float, until_s: float) -> float:
        return sum(from_s * 1e9 <= t_ns < until_s * 1e9 for t_ns in self.reads_ns) / (until_s - from_s)

    def scatter_ms(self, edges: list[Edge], from_s: float) -> float:
        """How far edges are from the publications, beside what all are too early or too late."""
        return statistics.stdev(
            (each.t_ns - self.published_ns[each.energy_mj - 1]) / MS for each in edges if each.t_ns >= from_s * 1e9
        )

    def half_widths_ms(self, from_s: float) -> list[float]:
        return sorted(edge.half_width_ns / MS for edge in self.edges if edge.t_ns >= from_s * 1e9)


def play(
    published_ns: list[int],
    until_s: float,
    wake_up_ns: Callable[[], int] = lambda: 100_000,
    call_ns: Callable[[], int] = lambda: CALL_NS,
    share: float = 1.0,
) -> Played:
    """Read a counter whose value is how often it was published; each read starts `wake_up_ns` late and takes `call_ns`."""
    played = Played(Pace(DENSE_NS, share), published_ns)
    finder = EdgeFinder("GPU-0")
    now_ns = value = 0
    while now_ns < until_s * 1e9:
        played.reads_ns.append(now_ns)
        took_ns = call_ns()
        while value < len(published_ns) and published_ns[value] <= now_ns + took_ns // 2:
            value += 1
        played.pace.took(took_ns)
        if played.pace.passed_over(now_ns):
            finder.forget()
        edge = finder.see(now_ns, value, now_ns + took_ns)
        if edge is not None:
            played.seen.append(edge)
            played.edges.append(played.pace.place(edge))
            played.pace.see(edge)
            if played.pace.locked and played.locked_at is None:
                played.locked_at = len(played.edges)
        now_ns = played.pace.next_ns(now_ns + took_ns) + wake_up_ns()
    return played


def regular(period_ms: float, until_s: float, jitter_ms: float = 0.0, phase_ms: float = 33.0) -> list[int]:
    dice = random.Random(7)
    count = int(until_s * 1000 / period_ms)
    return [round((phase_ms + n * period_ms + dice.uniform(-jitter_ms, jitter_ms)) * MS) for n in range(1, count)]


@pytest.mark.parametrize("jitter_ms", [0.0, 1.0, 3.0, 8.0])
def test_at_100_ms_forty_reads_a_second_are_enough(jitter_ms: float) -> None:
    played = play(regular(100, 60, jitter_ms), 60)
    assert played.locked_at == LEARNT_EDGES
    assert played.reads_per_s(1.5, 60) <= 40
    assert played.pace.missed_edges == 0
    assert len(played.edges) == len(played.published_ns)


@pytest.mark.parametrize(("period_ms", "jitter_ms"), [(100.0, 0.0), (100.0, 1.0), (20.0, 0.2), (33.3, 0.5)])
def test_edges_are_sharper_than_dense_reads_make_them(period_ms: float, jitter_ms: float) -> None:
    widths_ms = play(regular(period_ms, 60, jitter_ms), 60).half_widths_ms(from_s=20)
    assert widths_ms[len(widths_ms) // 2] < 1.0
    assert widths_ms[int(len(widths_ms) * 0.9)] < 2.5


def test_every_edge_holds_its_publication() -> None:
    played = play(regular(100, 60, 3.0), 60, wake_up_ns=lambda: random.Random(3).randrange(2 * MS))
    for edge in played.edges:
        assert abs(edge.t_ns - played.published_ns[edge.energy_mj - 1]) <= edge.half_width_ns


def test_the_period_is_learned() -> None:
    pace = play(regular(97.3, 60, 1.0), 60).pace
    assert pace.period_ns == pytest.approx(97.3 * MS, rel=0.002)


def test_before_the_rhythm_is_known_reads_are_dense() -> None:
    played = play(regular(100, 5), 0.6)
    assert not played.pace.locked
    assert all(later - earlier < 6 * MS for earlier, later in pairwise(played.reads_ns))


def test_a_counter_without_rhythm_is_read_densely() -> None:
    dice = random.Random(1)
    published, t_ns = [], 0
    while t_ns < 30e9:
        t_ns += dice.randrange(30 * MS, 250 * MS)
        published.append(t_ns)
    played = play(published, 30)
    assert played.reads_per_s(5, 30) > 100


def test_a_counter_faster_than_three_reads_is_read_densely() -> None:
    assert not play(regular(10, 5), 5).pace.locked


def test_another_phase_is_found_again() -> None:
    published = [*regular(100, 10), *(t_ns for t_ns in regular(100, 40, phase_ms=81.0) if t_ns > 10e9)]
    played = play(published, 40)
    assert played.pace.locked
    assert played.half_widths_ms(from_s=30)[-1] < 2.0
    assert len(played.edges) == len(published)


def test_a_read_that_stalls_is_a_missed_edge_and_no_new_rhythm() -> None:
    stalls = iter([0] * 300 + [730 * MS])
    played = play(regular(100, 40), 40, wake_up_ns=lambda: next(stalls, 100_000))
    assert played.pace.missed_edges == 7
    assert len(played.published_ns) - len(played.edges) == 7
    assert played.reads_per_s(30, 40) <= 40


def test_a_counter_that_stopped_is_overdue_and_read_no_denser_than_before() -> None:
    published = [t_ns for t_ns in regular(100, 10) if t_ns < 5e9]
    played = play(published, 10)
    assert not played.pace.overdue(published[-1] + 400 * MS, 5)
    assert played.pace.overdue(published[-1] + 510 * MS, 5)
    assert played.reads_per_s(6, 10) <= 200


def test_after_failures_it_learns_anew() -> None:
    pace = play(regular(100, 10), 10).pace
    pace.forget()
    assert pace.period_ns is None
    assert not pace.locked
    assert not pace.overdue(10**12, 5)
    assert pace.next_ns(0) == DENSE_NS


def test_a_wide_edge_is_placed_where_it_was_expected_and_still_holds_every_instant() -> None:
    pace = play(regular(100, 10), 10).pace
    expected_ns = 10_033 * MS
    wide = Edge("GPU-0", expected_ns - 30 * MS, 40 * MS, 1)
    placed = pace.place(wide)
    assert abs(placed.t_ns - expected_ns) < MS
    assert placed.t_ns - placed.half_width_ns <= wide.t_ns - wide.half_width_ns
    assert placed.t_ns + placed.half_width_ns >= wide.t_ns + wide.half_width_ns
    early = Edge("GPU-0", expected_ns - 8 * MS, 6 * MS, 1)
    assert -MS / 4 < play(regular(100, 10), 10).pace.place(early).t_ns - (expected_ns - 2 * MS) < 0
    sharp = Edge("GPU-0", expected_ns + MS // 4, MS // 100, 1)
    assert abs(play(regular(100, 10), 10).pace.place(sharp).t_ns - sharp.t_ns) < MS // 50
    assert Pace(DENSE_NS).place(wide) == wide


@pytest.mark.parametrize(("period_ms", "jitter_ms", "gain"), [(100.0, 0.5, 1.3), (20.0, 0.1, 2.0), (100.0, 0.0, 1.7)])
def test_rhythm_tells_an_edge_better_than_the_reads_around_it(period_ms: float, jitter_ms: float, gain: float) -> None:
    dice = random.Random(5)
    played = play(regular(period_ms, 60, jitter_ms), 60, wake_up_ns=lambda: 50_000 + round(dice.expovariate(1 / 80e3)))
    scatter_ms = played.scatter_ms(played.edges, 10)
    assert played.scatter_ms(played.seen, 10) > gain * scatter_ms
    stated_ms = statistics.median((each.deviation_ns or 0) / MS for each in played.edges[100:])
    assert 0.6 * scatter_ms < stated_ms < 2 * scatter_ms


def test_an_edge_astray_bends_no_rhythm() -> None:
    published = regular(100, 30, 0.5)
    published[100] += 20 * MS
    played = play(published, 30)
    assert played.pace.period_ns == pytest.approx(100 * MS, rel=0.001)
    assert max(played.half_widths_ms(from_s=13)) < 3.0


def test_late_wake_ups_hardly_move_the_edges() -> None:
    dice = random.Random(11)
    played = play(regular(100, 60), 60, wake_up_ns=lambda: dice.choice([100_000] * 9 + [20 * MS]))
    strays_ms = sorted(abs(edge.t_ns - played.published_ns[edge.energy_mj - 1]) / MS for edge in played.edges)
    assert strays_ms[int(len(strays_ms) * 0.9)] < 4.0
    assert all(before.t_ns < after.t_ns for before, after in pairwise(played.edges))
    assert all(abs(each.t_ns - played.published_ns[each.energy_mj - 1]) <= each.half_width_ns for each in played.edges)


def slow_calls() -> Callable[[], int]:
    """As an H100 in a virtual machine answers: 3 ms, and one in a hundred 14 (docs/measurements/h100.md)."""
    dice = random.Random(3)
    return lambda: int(min(max(3.1 * dice.lognormvariate(0, 0.5), 2.3), 16) * MS)


@pytest.mark.parametrize(("share", "stride"), [(1.0, 1), (0.1, 1), (0.05, 2), (0.1 / 8, 4)])
def test_slow_reads_take_no_more_than_their_share(share: float, stride: int) -> None:
    played = play(regular(100, 120, 0.1), 120, call_ns=slow_calls(), share=share)
    assert played.pace.stride == stride
    assert played.reads_per_s(10, 120) < 26 / stride
    seen = [edge for edge in played.edges if edge.t_ns > 10e9]
    assert len(seen) == pytest.approx(1100 / stride, rel=0.02)
    assert statistics.mode(later.energy_mj - edge.energy_mj for edge, later in pairwise(seen)) == stride
    # What is told of an edge is true, and it is as sharp as one of all.
    for edge in seen:
        assert abs(played.published_ns[edge.energy_mj - 1] - edge.t_ns) <= edge.half_width_ns
    assert statistics.median(edge.half_width_ns for edge in seen) < 15 * MS
    assert played.scatter_ms(seen, 10) < 0.5


@pytest.mark.parametrize(("share", "reads_per_s"), [(0.05, 20), (0.1 / 8, 12)])
def test_an_edge_that_is_late_where_some_are_passed_over_is_no_other_rhythm(share: float, reads_per_s: float) -> None:
    published_ns = [t_ns for number, t_ns in enumerate(regular(100, 120, 0.1), 1) if number % 29]
    played = play(published_ns, 120, call_ns=slow_calls(), share=share)
    assert played.pace.stride > 1
    assert played.reads_per_s(10, 120) < reads_per_s


def test_reads_that_are_not_slow_look_for_every_edge() -> None:
    assert play(regular(100, 30), 30, share=0.1 / 8).pace.stride == 1


def test_a_counter_that_stops_is_told_however_rarely_it_is_looked_at() -> None:
    published_ns = regular(100, 30, 0.1)[:200]
    played = play(published_ns, 30, call_ns=slow_calls(), share=0.1 / 8)
    assert played.pace.stride == LONGEST_STRIDE
    assert not played.pace.overdue(published_ns[-1] + 490 * MS, 5)
    assert played.pace.overdue(published_ns[-1] + 810 * MS, 5)
