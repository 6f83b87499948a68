import math
import random
import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from etameter.records import Edge, Finding, Interval, ReadFailure, Reboot, Standstill
from etameter.timeline import Spent, Timeline

pytestmark = pytest.mark.unit

GPU = "GPU-0"
MS = 1_000_000
unhurried = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def edge(at_ms: float, energy_mj: int, half_width_ms: float = 2.5) -> Edge:
    return Edge(GPU, round(at_ms * MS), round(half_width_ms * MS), energy_mj)


def steady(count: int, from_ms: int = 0, every_ms: int = 100, step_mj: int = 20_000) -> list[Edge]:
    """A counter that is published each 100 ms at 200 W."""
    return [edge(from_ms + n * every_ms, (from_ms // every_ms + n) * step_mj) for n in range(count)]


def intervals(*found: Finding, **options: float) -> list[Interval]:
    timeline = Timeline(GPU, **options)  # type: ignore[arg-type]
    for one in found:
        timeline.add(one)
    return timeline.take()


def drawn(intervals: list[Interval]) -> list[tuple[float, float, float, str | None]]:
    return [(i.start_ns / MS, i.end_ns / MS, i.energy_j, i.cause) for i in intervals]


def test_edges_become_intervals_in_joules() -> None:
    assert intervals(edge(0, 5_000), edge(100, 25_000, 3.0), edge(200, 25_500)) == [
        Interval(GPU, 0, 100 * MS, 20.0, 2_500_000, 3_000_000, end_mj=25_000),
        Interval(GPU, 100 * MS, 200 * MS, 0.5, 3_000_000, 2_500_000, end_mj=25_500),
    ]


def test_a_fast_counter_is_merged_into_intervals_of_the_least_length() -> None:
    found = [edge(at_ms, at_ms * 100, 0.5) for at_ms in range(0, 126, 5)]
    assert drawn(intervals(*found)) == [(0, 50, 5.0, None), (50, 100, 5.0, None)]


def test_take_hands_out_each_interval_once() -> None:
    timeline = Timeline(GPU)
    for one in steady(3):
        timeline.add(one)
    assert len(timeline.take()) == 2
    assert timeline.take() == []
    timeline.add(edge(300, 60_000))
    assert drawn(timeline.take()) == [(200, 300, 20.0, None)]


def test_the_period_is_learned_as_a_median() -> None:
    timeline = Timeline(GPU)
    learned = []
    for one in [*steady(4), edge(700, 70_000), edge(800, 90_000)]:
        timeline.add(one)
        learned.append(timeline.period_ns)
    assert learned == [None, None, None, None, 100 * MS, 100 * MS]


def test_a_decrease_starts_an_epoch_and_has_no_joules() -> None:
    timeline = Timeline(GPU)
    for one in [*steady(3), edge(300, 7_000), edge(400, 27_000)]:
        timeline.add(one)
    assert drawn(timeline.take()) == [
        (0, 100, 20.0, None),
        (100, 200, 20.0, None),
        (200, 300, 0.0, "reset"),
        (300, 400, 20.0, None),
    ]
    assert timeline.resets == 1
    assert timeline.energy_between(150 * MS, 350 * MS) == Spent(20.0, math.inf, math.inf)
    assert timeline.energy_between(310 * MS, 390 * MS).energy_j == pytest.approx(16.0)


def test_a_counter_of_a_new_boot_begins_an_epoch_though_it_shows_more() -> None:
    found: list[Finding] = [Reboot(GPU, 0), *steady(3), ReadFailure(GPU, 210 * MS, "node_lost"), Reboot(GPU, 290 * MS)]
    assert drawn(intervals(*found, edge(300, 90_000), edge(400, 110_000))) == [
        (0, 100, 20.0, None),
        (100, 200, 20.0, None),
        (200, 300, 0.0, "reset"),
        (300, 400, 20.0, None),
    ]


@pytest.mark.parametrize(("since_ns", "reset"), [(90 * MS, False), (100 * MS, False), (110 * MS, True)])
def test_a_boot_from_before_the_last_edge_is_that_edges_own(since_ns: int, reset: bool) -> None:
    timeline = Timeline(GPU, last_edge=edge(100, 5_000))
    for found in (Reboot(GPU, since_ns), Reboot(GPU, since_ns - 1), edge(300, 90_000), edge(400, 110_000)):
        timeline.add(found)
    assert [interval.cause for interval in timeline.take()] == ["reset" if reset else "readings_missing", None]


def test_joules_before_a_reset_are_kept() -> None:
    found = [edge(0, 1_000), edge(20, 3_000), edge(40, 0), edge(140, 10_000)]
    assert drawn(intervals(*found)) == [(0, 20, 2.0, None), (20, 40, 0.0, "reset"), (40, 140, 10.0, None)]


@pytest.mark.parametrize(
    ("silent_ms", "cause"),
    [(400, None), (500, None), (510, "stale"), (30_000, "stale")],
)
def test_a_counter_that_stood_still_for_five_periods_is_stale(silent_ms: float, cause: str | None) -> None:
    found = [*steady(10), edge(905 + silent_ms, 200_000), edge(1005 + silent_ms, 220_000)]
    assert drawn(intervals(*found))[9:] == [
        (900, 905 + silent_ms, 20.0, cause),
        (905 + silent_ms, 1005 + silent_ms, 20.0, None),
    ]


def test_a_standstill_is_stale_before_the_counter_changes_again() -> None:
    timeline = Timeline(GPU)
    first: list[Finding] = [*steady(6), Standstill(GPU, 1000 * MS), Standstill(GPU, 1010 * MS)]
    for one in first:
        timeline.add(one)
    assert drawn(timeline.take())[5:] == [(500, 1010, 0.0, "stale")]
    edges = [edge(1600, 320_000), edge(1700, 340_000)]
    second: list[Finding] = [Standstill(GPU, 1500 * MS), Standstill(GPU, 1520 * MS), *edges]
    for one in second:
        timeline.add(one)
    assert drawn(timeline.take()) == [
        (1010, 1520, 0.0, "stale"),
        (1520, 1600, 220.0, "stale"),
        (1600, 1700, 20.0, None),
    ]


def test_a_standstill_says_nothing_while_the_period_is_unknown() -> None:
    assert intervals(edge(0, 0), edge(100, 20_000), Standstill(GPU, 9_000 * MS))[1:] == []


def test_a_device_that_is_gone_for_long_makes_nobody_wait() -> None:
    failures = [ReadFailure(GPU, at_ms * MS, "gpu_lost") for at_ms in range(750, 3000, 250)]
    found: list[Finding] = [*steady(6), *failures, *steady(2, from_ms=3000)]
    assert drawn(intervals(*found))[5:] == [
        (500, 1750, 0.0, "readings_missing"),
        (1750, 3000, 500.0, "readings_missing"),
        (3000, 3100, 20.0, None),
    ]


def test_a_reset_after_a_standstill_begins_where_that_ended() -> None:
    found: list[Finding] = [*steady(6), Standstill(GPU, 1010 * MS), edge(1200, 5), *steady(2, from_ms=1300)]
    assert drawn(intervals(*found))[5:] == [
        (500, 1010, 0.0, "stale"),
        (1010, 1200, 0.0, "reset"),
        (1200, 1300, pytest.approx(259.995), None),
        (1300, 1400, 20.0, None),
    ]


def test_a_smeared_edge_does_not_bend_the_line_between_its_neighbours() -> None:
    timeline = Timeline(GPU)
    for one in [*steady(5), edge(450, 100_000, 50), *steady(3, from_ms=600)]:  # published at 500 ms, seen at once after
        timeline.add(one)
    for at_ms in (410, 450, 500, 590):
        assert timeline.energy_between(10 * MS, at_ms * MS).energy_j == pytest.approx((at_ms - 10) * 0.2)


def test_a_failed_read_makes_the_interval_around_it_missing() -> None:
    found: list[Finding] = [*steady(6), ReadFailure(GPU, 520 * MS, "gpu_lost"), *steady(3, from_ms=600)]
    timeline = Timeline(GPU)
    for one in found:
        timeline.add(one)
    assert [i.cause for i in timeline.take()] == [None] * 5 + ["readings_missing"] + [None] * 2
    assert timeline.failures == 1


def test_failures_before_the_first_edge_concern_no_interval() -> None:
    found: list[Finding] = [ReadFailure(GPU, 0, "gpu_lost"), *steady(2, from_ms=100)]
    assert drawn(intervals(*found)) == [(100, 200, 20.0, None)]


@pytest.mark.parametrize(
    ("unread_ms", "cause"), [(5, None), (1000, None), (1001, "readings_missing"), (None, "readings_missing")]
)
def test_a_stalled_call_makes_one_long_interval_and_smears_no_joule(unread_ms: int | None, cause: str | None) -> None:
    # Calls at 895 to 905 ms see the edge of 900 ms; the next call returns only at 2905 ms, with the value of 2900 ms.
    unread_ns = None if unread_ms is None else unread_ms * MS
    smeared = replace(edge(1905, 29 * 20_000, 1000), unread_ns=unread_ns)
    assert drawn(intervals(*steady(10), smeared, *steady(3, from_ms=3000)))[8:] == [
        (800, 900, 20.0, None),
        (900, 3000, 420.0, cause),
        (3000, 3100, 20.0, None),
        (3100, 3200, 20.0, None),
    ]


def test_a_short_stall_only_lengthens_an_interval() -> None:
    found = [*steady(10), edge(1052.5, 12 * 20_000, 150), *steady(2, from_ms=1300)]
    assert drawn(intervals(*found))[8:] == [(800, 900, 20.0, None), (900, 1300, 80.0, None), (1300, 1400, 20.0, None)]


def test_time_in_a_smeared_edge_is_not_time_in_which_the_counter_stood_still() -> None:
    found = [*steady(10, every_ms=20), edge(335, 23 * 20_000, 150), edge(500, 25 * 20_000)]
    assert drawn(intervals(*found))[-1] == (180, 500, 320.0, None)


def test_slow_calls_make_intervals_of_four_half_widths() -> None:
    found = [edge(n * 200, n * 40_000, 200) for n in range(9)]
    assert drawn(intervals(*found)) == [(0, 800, 160.0, None), (800, 1600, 160.0, None)]


def test_power_over_the_limit_is_implausible_even_with_the_widest_duration() -> None:
    limit_w = 100.0
    # 105 ms at 120 W are 12.6 J
    assert intervals(edge(0, 0), edge(100, 12_600), power_limit_w=limit_w)[0].cause is None
    above = intervals(edge(0, 0), edge(100, 12_601), power_limit_w=limit_w)[0]
    assert (above.energy_j, above.cause) == (12.601, "implausible")


def test_a_restart_bridges_the_gap_with_one_missing_interval() -> None:
    before = Timeline(GPU)
    for one in [*steady(5), edge(420, 81_000)]:
        before.add(one)
    before.take()
    assert before.settled_edge == edge(400, 80_000)
    after = Timeline(GPU, last_edge=before.settled_edge)
    for one in steady(2, from_ms=500):
        after.add(one)
    assert drawn(after.take()) == [(400, 500, 20.0, "readings_missing"), (500, 600, 20.0, None)]


def test_a_restart_after_a_reset_has_no_joules_for_the_gap() -> None:
    timeline = Timeline(GPU, last_edge=edge(0, 500_000))
    timeline.add(edge(5_000, 1_000))
    assert drawn(timeline.take()) == [(0, 5_000, 0.0, "reset")]


def test_edges_of_another_gpu_or_out_of_order_are_refused() -> None:
    timeline = Timeline(GPU)
    timeline.add(edge(100, 0))
    with pytest.raises(ValueError, match="is not the GPU"):
        timeline.add(Edge("GPU-1", 200 * MS, 0, 5))
    with pytest.raises(ValueError, match="does not follow"):
        timeline.add(edge(100, 5))


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "energy_j", "bound_j", "limit_w"),
    [
        # until the edge at 100 ms is over, 0 to 40 J may be spent; at 300 ms 40 to 80 J
        (100, 300, 40.0, 40.0, None),
        # at 110 ms 20 to 40 J, at 290 ms 40 to 60 J
        (110, 290, 36.0, 36.0, None),
        (110, 390, 56.0, 36.0, None),
        (250, 250, 0.0, 20.0, None),
        # no less than nothing
        (190, 195, 1.0, 19.0, None),
        # at most 600 W: 20 and 60 J ± 1.5 J
        (100, 300, 40.0, 3.0, 500.0),
        # at 110 ms 20 to 27.5 J; at 290 ms 52.5 to 60 J
        (110, 290, 36.0, 11.0, 500.0),
        # a limit that the counter itself breaks bounds nothing
        (110, 290, 36.0, 36.0, 100.0),
    ],
)
def test_energy_between_two_instants(
    start_ms: int, end_ms: int, energy_j: float, bound_j: float, limit_w: float | None
) -> None:
    timeline = Timeline(GPU, power_limit_w=limit_w)
    for one in steady(6):
        timeline.add(one)
    found = timeline.energy_between(start_ms * MS, end_ms * MS)
    assert found.energy_j == pytest.approx(energy_j)
    assert found.bound_j == pytest.approx(bound_j)
    assert 0 < found.error_j <= found.bound_j


def error_j(powers_w: Sequence[float | None], steps_mj: list[int], at_ms: float = 550) -> float:
    """Of the energy from an edge to `at_ms`: a counter of 100 ms, and what instantaneous power its reads told."""
    timeline = Timeline(GPU, power_limit_w=700.0)
    for n, (power_w, energy_mj) in enumerate(zip(powers_w, accumulate(steps_mj), strict=True)):
        timeline.add(replace(edge(n * 100, energy_mj, 0.5), power_w=power_w))
    return timeline.energy_between(100 * MS, round(at_ms * MS)).error_j


def test_an_error_is_as_large_as_the_changes_of_power_around() -> None:
    even, uneven = [20_000] * 20, [4_000, 36_000] * 10
    steady_j = error_j([200.0] * 20, even)
    assert steady_j < 0.3, "what half a millisecond at either edge is worth"
    # 160 W up and down within each period are 160 W · 50 ms / 2 in its first half: 4 J, and as much less
    assert 3.0 < error_j([360.0, 40.0] * 10, even) < 9.0
    assert error_j([200.0] * 20, uneven, at_ms=450) > 3.0
    assert error_j([None] * 20, even) > 10 * steady_j, "power was not seen: it may be anything"
    assert error_j([None] * 20, even) < 2 * 20.0


def test_a_wide_edge_that_the_rhythm_tells_leaves_a_small_error() -> None:
    edges = [replace(each, half_width_ns=10 * MS, power_w=200.0) for each in steady(9)]
    told = [replace(each, deviation_ns=MS // 10) for each in edges]
    by_width, by_rhythm = Timeline(GPU), Timeline(GPU)
    for one, other in zip(edges, told, strict=True):
        by_width.add(one)
        by_rhythm.add(other)
    spent, better = (each.energy_between(150 * MS, 500 * MS) for each in (by_width, by_rhythm))
    assert better.bound_j == spent.bound_j
    assert better.error_j < 0.05 * spent.error_j


def test_an_error_is_least_at_an_edge_and_large_where_little_is_known() -> None:
    swinging, even = [360.0, 40.0] * 10, [20_000] * 20
    assert error_j(swinging, even, at_ms=500) < 0.1 * error_j(swinging, even, at_ms=550)
    assert error_j(swinging[:4], even[:4], at_ms=250) > 1.2 * error_j(swinging, even, at_ms=250)


def test_a_period_at_idle_leaves_power_no_room_to_have_been_less() -> None:
    steps_mj = [9_000] * 10 + [9_000, 45_000] * 5
    idle_j, busy_j = (error_j([90.0] * 20, steps_mj, at_ms) for at_ms in (1150, 1250))
    assert idle_j < 0.6 * busy_j


@pytest.mark.parametrize("dwell_ms", [15, 60, 250, 2000])
def test_nineteen_errors_of_twenty_hold_the_truth(dwell_ms: float) -> None:
    """Power goes up and down after times that nobody can foresee, some shorter and some longer than the counter's period."""
    dice = random.Random(round(dwell_ms))
    switches_ms, powers_w = [0.0], [100.0]
    while switches_ms[-1] < 240_000:
        switches_ms.append(switches_ms[-1] + 1 + dice.expovariate(1 / dwell_ms))
        powers_w.append(dice.uniform(90, 250) if len(powers_w) % 2 else dice.uniform(450, 650))
    parts_j = [power_w * (b - a) / 1e3 for power_w, (a, b) in zip(powers_w, pairwise(switches_ms), strict=False)]
    spent_j = [0.0, *accumulate(parts_j)]

    def truth_j(at_ms: float) -> float:
        piece = bisect_right(switches_ms, at_ms) - 1
        return spent_j[piece] + powers_w[piece] * (at_ms - switches_ms[piece]) / 1e3

    timeline = Timeline(GPU, power_limit_w=700.0)
    for n in range(2400):
        seen_ms, power_w = n * 100 + dice.uniform(-0.5, 0.5), powers_w[bisect_right(switches_ms, n * 100) - 1]
        timeline.add(replace(edge(seen_ms, round(1e3 * truth_j(n * 100)), 0.5), power_w=power_w))
    held = []
    for start_ms in range(5_000, 230_000, 500):
        from_ms, to_ms = start_ms + dice.uniform(0, 100), start_ms + dice.uniform(200, 9_000)
        found = timeline.energy_between(round(from_ms * MS), round(to_ms * MS))
        held.append(abs(found.energy_j - truth_j(to_ms) + truth_j(from_ms)) <= found.error_j)
        assert abs(found.energy_j - truth_j(to_ms) + truth_j(from_ms)) <= found.bound_j + 0.002
    assert 0.92 <= statistics.fmean(held) <= 0.99


def test_energy_is_only_told_where_edges_reach() -> None:
    timeline = Timeline(GPU, kept_edges=4)
    for one in steady(6):
        timeline.add(one)
    timeline.energy_between(203 * MS, 500 * MS)
    for start_ms, end_ms in [(202, 400), (400, 501)]:
        with pytest.raises(ValueError, match="not between the kept edges"):
            timeline.energy_between(start_ms * MS, end_ms * MS)
    with pytest.raises(ValueError, match="before the start"):
        timeline.energy_between(400 * MS, 300 * MS)


@st.composite
def histories(draw: st.DrawFn) -> list[Finding]:
    """What a sampler may find: edges in order, with stalls, failures, silences and resets among them."""
    found: list[Finding] = []
    t_ns, energy_mj = 0, draw(st.integers(0, 10**9))
    for _ in range(draw(st.integers(2, 40))):
        distance_ns = draw(st.sampled_from([1, 5, 20, 100, 700, 5000])) * MS + draw(st.integers(0, MS))
        half_width_ns = draw(st.integers(0, distance_ns // 2))
        t_ns += distance_ns
        if draw(st.integers(0, 4)) == 0:
            found.append(ReadFailure(GPU, t_ns, "gpu_lost") if draw(st.booleans()) else Standstill(GPU, t_ns))
            continue
        energy_mj = (
            draw(st.integers(0, 10**9)) if draw(st.integers(0, 9)) == 0 else energy_mj + draw(st.integers(1, 10**6))
        )
        found.append(Edge(GPU, t_ns, half_width_ns, energy_mj))
    return found


def edges_of(found: list[Finding]) -> list[Edge]:
    return [one for one in found if isinstance(one, Edge)]


@given(histories(), st.sampled_from([None, 300.0]))
@unhurried
def test_every_joule_of_every_epoch_is_in_one_interval(found: list[Finding], limit_w: float | None) -> None:
    timeline = Timeline(GPU, power_limit_w=limit_w)
    for one in found:
        timeline.add(one)
    closed, settled = timeline.take(), timeline.settled_edge
    edges = [one for one in edges_of(found) if settled is not None and one.t_ns <= settled.t_ns]
    assert all(before.end_ns == after.start_ns for before, after in pairwise(closed))
    if closed:
        assert settled is not None
        assert (closed[0].start_ns, closed[-1].end_ns) == (edges[0].t_ns, settled.t_ns)
    grown_mj = sum(max(0, after.energy_mj - before.energy_mj) for before, after in pairwise(edges))
    assert sum(interval.energy_j for interval in closed) == pytest.approx(grown_mj / 1000, rel=1e-12, abs=1e-9)
    assert all(interval.energy_j >= 0 for interval in closed)
    resets = sum(after.energy_mj < before.energy_mj for before, after in pairwise(edges_of(found)))
    assert timeline.resets == resets == sum(interval.cause == "reset" for interval in closed)


@given(histories(), st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted), st.sampled_from([None, 300.0]))
@unhurried
def test_energy_between_is_additive_monotone_and_bounded(
    found: list[Finding], shares: list[float], limit_w: float | None
) -> None:
    timeline = Timeline(GPU, power_limit_w=limit_w)
    for one in found:
        timeline.add(one)
    edges = edges_of(found)
    assume(len(edges) >= 2)
    first_ns = edges[0].t_ns + edges[0].half_width_ns
    assume(first_ns <= edges[-1].t_ns)
    a_ns, b_ns, c_ns = (first_ns + round(share * (edges[-1].t_ns - first_ns)) for share in shares)
    ab_j = timeline.energy_between(a_ns, b_ns).energy_j
    bc_j = timeline.energy_between(b_ns, c_ns).energy_j
    whole = timeline.energy_between(a_ns, c_ns)
    assert whole.energy_j == pytest.approx(ab_j + bc_j, rel=1e-9, abs=1e-9)
    assert ab_j >= 0
    assert bc_j >= 0
    assert 0 <= whole.error_j <= whole.bound_j


@given(histories(), st.integers(0, 10**9))
@unhurried
def test_where_the_counter_started_is_of_no_account(found: list[Finding], base_mj: int) -> None:
    shifted = [
        Edge(GPU, one.t_ns, one.half_width_ns, one.energy_mj + base_mj) if isinstance(one, Edge) else one
        for one in found
    ]
    back = [replace(interval, end_mj=interval.end_mj - base_mj) for interval in intervals(*shifted)]
    assert intervals(*found) == back


@given(histories(), st.data())
@unhurried
def test_a_merged_interval_is_the_sum_of_its_parts(found: list[Finding], data: st.DataObject) -> None:
    """Additivity over adjacent intervals: taking often or once, with long or short intervals, moves no joule."""
    least_ns = data.draw(st.integers(1, 10**10))
    fine, coarse = intervals(*found, min_interval_ns=1), intervals(*found, min_interval_ns=least_ns)
    for whole in coarse:
        parts = [part for part in fine if whole.start_ns <= part.start_ns and part.end_ns <= whole.end_ns]
        assume(parts and parts[-1].end_ns == whole.end_ns)
        assert whole.energy_j == pytest.approx(sum(part.energy_j for part in parts), rel=1e-12, abs=1e-9)
