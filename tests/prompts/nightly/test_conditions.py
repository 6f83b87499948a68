"""Clocks that go apart are seen once, small corrections are none; budgets end a night with what would have been needed."""

from collections.abc import Iterator

import pytest

from etameter.prompts.nightly.conditions import SILENT_NS, Budget, BudgetSpent, ClockWatch, Spending, clocks

pytestmark = pytest.mark.unit

S = 1_000_000_000


def watch(*readings: tuple[float, float, float]) -> ClockWatch:
    told: Iterator[tuple[float, float, float]] = iter(readings)
    return ClockWatch(lambda: next(told))


def test_clocks_that_keep_together_jump_never() -> None:
    looked = watch((0, 1000, 0), (1, 1001, 1), (2, 1003.5, 2), (3, 1003, 3))
    assert [looked.look() for _ in range(3)] == [None, None, None]


def test_a_wall_clock_that_is_set_is_seen_once_either_way() -> None:
    looked = watch((0, 1000, 0), (1, 4601, 1), (2, 4602, 2), (3, 1003, 3))
    forward, none, back = (looked.look() for _ in range(3))
    assert forward is not None
    assert back is not None
    assert (forward.wall_s, forward.asleep_s, forward.t_ns) == (3600, 0, 1_000_000_000)
    assert none is None
    assert back.wall_s == -3600
    assert looked.jumps == [forward, back]


def test_a_machine_that_slept_says_how_long() -> None:
    looked = watch((0, 1000, 0), (1, 1031, 31))
    jump = looked.look()
    assert jump is not None
    assert jump.asleep_s == 30


def test_a_machine_that_slept_is_seen_though_its_wall_clock_was_set_back() -> None:
    jump = watch((0, 1000, 0), (1, 1001, 31)).look()
    assert jump is not None
    assert (jump.wall_s, jump.asleep_s) == (0, 30)


def test_the_real_clocks_keep_together() -> None:
    looked = ClockWatch(clocks)
    assert looked.look() is None


def test_a_budget_counts_earlier_sessions() -> None:
    budget = Budget(100.0, 1000.0, spent_s=60.0, spent_j=900.0)
    budget.check(39.0, 99.0)
    with pytest.raises(BudgetSpent, match="its 100 s"):
        budget.check(40.0, 0.0)
    with pytest.raises(BudgetSpent, match="its 1000 J"):
        budget.check(0.0, 100.0)
    Budget(100.0, None).check(99.0, 1e12)


def test_what_is_spent_counts_on_after_a_counter_was_reset() -> None:
    """300 W all the time; over an instant at 20 s nothing can be said."""
    reset_ns = 20 * S

    def between(start_ns: int, end_ns: int) -> tuple[float, float] | None:
        return None if start_ns < reset_ns <= end_ns else (300e-9 * (end_ns - start_ns), 0.0)

    spending = Spending(between)
    spending.add_up(1 * S)
    assert spending.known_j == 0.0, "it has not begun"
    spending.begin(5 * S)
    spending.add_up(15 * S)
    assert spending.known_j == pytest.approx(3000.0)
    assert spending.whole
    for at_s in range(16, 41):
        spending.add_up(at_s * S)
        late = at_s * S <= 19 * S + SILENT_NS
        assert spending.whole == late, "a counter that is late may yet tell"
    # 14 s up to 19 s, and from 30 s on
    assert spending.known_j == pytest.approx(300.0 * (14 + 10))
    with pytest.raises(BudgetSpent):
        Budget(100.0, 7200.0).check(1.0, spending.known_j)
