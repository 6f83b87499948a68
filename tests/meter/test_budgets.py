"""What budgets have left: drawn as tables of joules and windows."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.budget_section import BudgetSection, Window
from etameter.budgets import ANYBODY, Budgets, Draw, Spent, bounds
from etameter.ledger import Ledger
from etameter.records import Balance, Source
from tests.meter.test_ledger import resume

pytestmark = pytest.mark.unit

MS = 1_000_000
NOON_S = datetime(2026, 3, 11, 12, 30, tzinfo=UTC).timestamp()  # a Wednesday
DAY_S = int(datetime(2026, 3, 11, tzinfo=UTC).timestamp())


def of(who: str = "entrace", window: Window = "day", joules: float = 100.0) -> BudgetSection:
    return BudgetSection(arms=frozenset({who}), joules=joules, window=window)


def interval(end_ns: int = 0, length_ns: int = 100 * MS, unattributed_j: Mapping[str, float] = {}) -> Balance:
    return Balance("GPU-0", end_ns - length_ns, end_ns, 10.0, 0.0, 0.0, 0.0, unattributed_j, 0.0)


def draw(*budgets: str, joules: float = 1.0, noise_j2: float = 0.0, common_j: float = 0.0) -> Draw:
    return Draw(budgets, joules, noise_j2, common_j)


def taken(budgets: Budgets, *draws: Draw, at_s: float = NOON_S, source: Source = "measured", **lost_j: float) -> None:
    budgets.add(budgets.drawn([(interval(unattributed_j=lost_j), source, draws)], at_s))


@pytest.mark.parametrize(
    ("window", "start", "end"),
    [
        ("hour", "2026-03-11T12:00", "2026-03-11T13:00"),
        ("day", "2026-03-11T00:00", "2026-03-12T00:00"),
        ("week", "2026-03-09T00:00", "2026-03-16T00:00"),
        ("month", "2026-03-01T00:00", "2026-04-01T00:00"),
    ],
)
def test_windows_are_those_of_the_calendar(window: Window, start: str, end: str) -> None:
    told = [int(datetime.fromisoformat(f"{instant}+00:00").timestamp()) for instant in (start, end)]
    assert list(bounds(window, NOON_S)) == told


@given(st.sampled_from(["hour", "day", "week", "month"]), st.floats(0, 4e9))
def test_every_instant_has_one_window_and_the_next_begins_where_it_ends(window: Window, t_s: float) -> None:
    start_s, end_s = bounds(window, t_s)
    assert start_s <= t_s < end_s
    assert bounds(window, end_s)[0] == end_s
    assert bounds(window, start_s) == (start_s, end_s)


def test_a_request_draws_on_each_of_its_budgets_and_on_no_other() -> None:
    budgets = Budgets({name: of() for name in ("team", "arm", "else")}, "measured")
    taken(budgets, draw("team", "arm", joules=3.0), draw("team", joules=4.0), draw("gone", joules=9.0), draw())
    assert {name: each.used_j for name, each in budgets.standings(NOON_S).items()} == {
        "team": 7.0,
        "arm": 3.0,
        "else": 0.0,
    }


def test_a_new_window_begins_with_nothing_and_late_joules_count_when_they_were_spent() -> None:
    budgets = Budgets({"team": of(window="hour")}, "measured")
    taken(budgets, draw("team", joules=5.0), at_s=NOON_S)
    next_hour_s = NOON_S + 3600
    assert budgets.standings(next_hour_s)["team"].used_j == 0.0
    late = budgets.drawn([(interval(), "measured", [draw("team", joules=7.0)])], NOON_S)
    budgets.add(late)
    assert [(each.start_s, each.energy_j) for each in late] == [(bounds("hour", NOON_S)[0], 7.0)]
    assert budgets.standings(next_hour_s)["team"].used_j == 0.0


def test_an_interval_counts_in_the_window_in_which_it_ends() -> None:
    budgets = Budgets({"team": of()}, "measured")
    for end_ns in (-50 * MS, 50 * MS):
        (spent,) = budgets.drawn([(interval(end_ns), "measured", [draw("team")])], float(DAY_S))
        assert spent.start_s == (DAY_S if end_ns > 0 else DAY_S - 86_400)


@pytest.mark.parametrize(
    ("used_j", "noise_j2", "common_j", "lost_j", "level"),
    [
        (90.0, 0.0, 0.0, 0.0, "within"),
        (100.0, 0.0, 0.0, 0.0, "within"),
        (100.1, 0.0, 0.0, 0.0, "exceeded"),
        (95.0, 9.0, 0.0, 0.0, "maybe"),
        (105.0, 9.0, 0.0, 0.0, "maybe"),
        (107.0, 9.0, 0.0, 0.0, "exceeded"),
        (107.0, 0.0, 3.0, 0.0, "exceeded"),
        (107.0, 9.0, 3.0, 0.0, "maybe"),
        (90.0, 0.0, 0.0, 10.5, "maybe"),
        (101.0, 0.0, 0.0, 10.5, "exceeded"),
    ],
)
def test_exceeded_is_what_is_so_beyond_doubt(
    used_j: float, noise_j2: float, common_j: float, lost_j: float, level: str
) -> None:
    budgets = Budgets({"team": of()}, "measured")
    taken(budgets, draw("team", joules=used_j, noise_j2=noise_j2, common_j=common_j), stale=lost_j, model_residual=50.0)
    assert budgets.standings(NOON_S)["team"].level == level


def test_independent_errors_add_as_squares_and_common_ones_as_they_are() -> None:
    budgets = Budgets({"team": of()}, "measured")
    for _ in range(100):
        taken(budgets, draw("team", noise_j2=0.01, common_j=0.001))
    standing = budgets.standings(NOON_S)["team"]
    assert standing.error_j == pytest.approx(1.96 * math.sqrt(1.0 + 0.01))
    assert standing.least_j == pytest.approx(100 - standing.error_j)
    assert standing.most_j == pytest.approx(100 + standing.error_j)


def test_what_may_have_been_anybodys_is_in_doubt_and_in_no_sum() -> None:
    budgets = Budgets({"team": of(), "other": of(window="hour")}, "measured")
    taken(
        budgets,
        Draw(None, 2.0, 0.0, 0.0),
        draw(joules=7.0),
        draw("team"),
        readings_missing=3.0,
        steps_missing=0.5,
        model_residual=50.0,
    )
    told = {name: (each.used_j, each.unknown_j) for name, each in budgets.standings(NOON_S).items()}
    assert told == {"team": (1.0, 5.5), "other": (0.0, 5.5)}


def test_the_joules_of_a_gap_may_have_been_spent_at_either_end_of_it() -> None:
    budgets = Budgets({"team": of()}, "measured")
    gap = interval(3600 * 1000 * MS, 7200 * 1000 * MS, {"readings_missing": 9.0})
    spent = budgets.drawn([(gap, "measured", [])], float(DAY_S))
    assert {(each.budget, each.start_s, each.energy_j) for each in spent} == {
        (ANYBODY, DAY_S - 86_400, 9.0),
        (ANYBODY, DAY_S, 9.0),
    }


def test_a_simulated_joule_makes_the_sum_simulated_and_before_any_the_counter_says() -> None:
    budgets = Budgets({"team": of(), "other": of()}, "measured")
    assert budgets.standings(NOON_S)["team"].source == "measured"
    taken(budgets, draw("team"))
    taken(budgets, draw("team"), source="simulated")
    told = budgets.standings(NOON_S)
    assert (told["team"].source, told["team"].used_j, told["other"].source) == ("simulated", 2.0, "measured")


def test_so_does_a_simulated_joule_that_may_have_been_anybodys() -> None:
    budgets = Budgets({"team": of()}, "measured")
    taken(budgets, draw("team"))
    taken(budgets, source="simulated", stale=1.0)
    told = budgets.standings(NOON_S)["team"]
    assert (told.source, told.most_j) == ("simulated", 2.0)


def test_a_restarted_meter_goes_on_from_its_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.spent(0.0) == []
    budgets = Budgets({"team": of()}, "measured")
    for joules in (3.0, 4.0):
        spent = budgets.drawn(
            [(interval(unattributed_j={"stale": 1.0}), "measured", [draw("team", joules=joules, noise_j2=1.0)])], NOON_S
        )
        ledger.settle_together([([], [], resume(), [])], NOON_S, drawn=spent)
        budgets.add(spent)
    again = Budgets({"team": of()}, "measured", ledger.spent(DAY_S))
    assert again.standings(NOON_S) == budgets.standings(NOON_S)
    assert again.standings(NOON_S)["team"].used_j == 7.0
    assert ledger.spent(DAY_S + 1) == []
    ledger.close()


def test_of_another_kind_of_window_nothing_is_known(tmp_path: Path) -> None:
    midnight_s = DAY_S + 60.0  # the hour and the day began together
    budgets = Budgets({"team": of(window="hour")}, "measured", [Spent("team", "day", DAY_S, "measured", 50.0)])
    assert budgets.standings(midnight_s)["team"].used_j == 0.0
