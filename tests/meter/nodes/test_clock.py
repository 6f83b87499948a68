"""Instants of another clock lie within what is told of them, however long messages travelled and however the clocks drift."""

from bisect import bisect_right
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.nodes.clock import DRIFT_PPM, KEPT_EXCHANGES, Exchange, RemoteClock

pytestmark = pytest.mark.unit

MS = 1_000_000
SECOND = 1_000 * MS


@dataclass(frozen=True)
class There:
    """A clock there: what it shows at an instant here. Its rate changes at the start of each leg."""

    offset_ns: int
    legs: tuple[tuple[int, int], ...]
    """Length in ns, and how many ppm it is fast, in order from instant 0; the last goes on."""

    def shows(self, here_ns: int) -> int:
        starts, shown = [0], [self.offset_ns]
        for length_ns, ppm in self.legs[:-1]:
            starts.append(starts[-1] + length_ns)
            shown.append(shown[-1] + length_ns + length_ns * ppm // 1_000_000)
        leg = bisect_right(starts, here_ns) - 1
        passed_ns = here_ns - starts[leg]
        return shown[leg] + passed_ns + passed_ns * self.legs[leg][1] // 1_000_000


LEGAL_PPM = DRIFT_PPM - 2
"""The bound is on how fast the clock here runs by the one there: 1 / (1 - 998 ppm) is 1 + 999 ppm."""
CLOCKS = st.builds(
    There,
    st.integers(-(10**15), 10**15),
    st.lists(st.tuples(st.integers(MS, 20 * SECOND), st.integers(-LEGAL_PPM, LEGAL_PPM)), min_size=1, max_size=6).map(
        tuple
    ),
)
DELAYS_NS = st.integers(0, 2 * SECOND)
JOURNEYS = st.lists(
    st.tuples(st.integers(0, 5 * SECOND), DELAYS_NS, DELAYS_NS, DELAYS_NS), min_size=1, max_size=2 * KEPT_EXCHANGES
)
"""How long after the last one's end each exchange begins, the way there, the stay, and the way back."""


def exchanged(clock: There, journeys: list[tuple[int, int, int, int]]) -> tuple[RemoteClock, int]:
    """What is known after these exchanges, and when the last ended."""
    known, now_ns = RemoteClock(), 0
    for wait_ns, there_ns, stay_ns, back_ns in journeys:
        sent_ns = now_ns + wait_ns
        arrived_ns = sent_ns + there_ns
        left_ns = arrived_ns + stay_ns
        now_ns = left_ns + back_ns
        known.see(Exchange(sent_ns, clock.shows(arrived_ns), clock.shows(left_ns), now_ns))
    return known, now_ns


@given(CLOCKS, JOURNEYS, st.lists(st.integers(0, 400 * SECOND), min_size=1, max_size=8))
def test_the_truth_lies_within_the_bound(
    clock: There, journeys: list[tuple[int, int, int, int]], instants_ns: list[int]
) -> None:
    known, now_ns = exchanged(clock, journeys)
    assert known.restarts == 0, "nothing contradicts itself within the drift allowed"
    for truth_ns in [*instants_ns, now_ns]:
        t_ns, error_ns = known.here(clock.shows(truth_ns))
        assert abs(t_ns - truth_ns) <= error_ns + 2, "two roundings of the clock in this test"


@given(st.integers(-(10**15), 10**15), DELAYS_NS, DELAYS_NS)
def test_one_exchange_is_as_exact_as_half_its_round_trip(offset_ns: int, there_ns: int, back_ns: int) -> None:
    known, now_ns = exchanged(There(offset_ns, ((1, 0),)), [(0, there_ns, 0, back_ns)])
    _, error_ns = known.here(offset_ns + there_ns)
    assert error_ns <= (there_ns + back_ns) // 2 + 1
    assert now_ns == there_ns + back_ns


def test_the_quickest_exchange_counts_and_ages() -> None:
    clock = There(7 * SECOND, ((1, 0),))
    slow, quick = (SECOND // 4, 20 * MS, 0, 180 * MS), (SECOND // 4, MS, 0, MS)
    known, now_ns = exchanged(clock, [slow, quick, slow])
    age_ns = SECOND // 4 + 200 * MS
    assert known.here(clock.shows(now_ns))[1] == pytest.approx(MS + age_ns * DRIFT_PPM // 1_000_000, abs=2_000)
    known, now_ns = exchanged(clock, [quick, *[slow] * KEPT_EXCHANGES])
    assert known.here(clock.shows(now_ns))[1] > 10 * MS, "the quick one is forgotten"


@pytest.mark.parametrize("jump_ns", [-SECOND, SECOND])
def test_what_contradicts_the_rest_is_all_that_is_known_then(jump_ns: int) -> None:
    before, after = There(0, ((1, 0),)), There(jump_ns, ((1, 0),))
    known, now_ns = exchanged(before, [(0, MS, 0, MS)] * 3)
    known.see(Exchange(now_ns, after.shows(now_ns + MS), after.shows(now_ns + MS), now_ns + 2 * MS))
    assert known.restarts == 1
    t_ns, error_ns = known.here(after.shows(now_ns))
    assert abs(t_ns - now_ns) <= error_ns <= MS + 2_000


def test_what_ends_before_it_begins_is_no_exchange() -> None:
    with pytest.raises(ValueError, match="ends before it begins"):
        Exchange(2, 0, 0, 1)
    with pytest.raises(ValueError, match="ends before it begins"):
        Exchange(0, 1, 0, 1)
    with pytest.raises(ValueError, match="nothing is known"):
        RemoteClock().here(0)
