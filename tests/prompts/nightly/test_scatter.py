"""How far nights may be apart by chance, from windows that asked the same."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.prompts.nightly.night import Night
from etameter.prompts.nightly.scatter import error
from etameter.prompts.nightly.verdict import judge
from tests.prompts.nightly.laid_out import figure, run, stage_row

pytestmark = pytest.mark.unit

CONTENT = (1.0, 1.5, 0.8, 1.2, 0.6, 1.1)
"""What windows of a night differ by, because they ask different things."""


def night(day: int, joules: Sequence[float | None], tokens: Sequence[int] | None = None, **told: Any) -> Night:
    rows = [stage_row(window=0, energy_j=9e9, excluded="ramp")]
    rows += [
        stage_row(window=number, energy_j=one, output_tokens=3000 if tokens is None else tokens[number - 1], **told)
        for number, one in enumerate(joules, start=1)
    ]
    known = [one for one in joules if one is not None]
    value = sum(known) / sum(row.output_tokens or 0 for row in rows[1:])
    whole = figure(value=value, low=0.7 * value, high=1.4 * value)
    return Night(run(run_id=f"202611{day:02}T020000Z-0a1b2c3d"), tuple(rows), (whole,))


def drawn(generator: np.random.Generator, day: int, scatter: float) -> Night:
    return night(day, [9000.0 * one * math.exp(scatter * generator.standard_normal()) for one in CONTENT])


@given(st.floats(0.5, 2.0))
def test_what_windows_of_both_nights_have_in_common_is_no_scatter(factor: float) -> None:
    before, after = (night(day, [by * one for one in CONTENT]) for day, by in ((1, 1.0), (2, factor)))
    assert error([before, after], "batch-8", "j_per_token") == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("nights", [2, 8])
def test_the_error_covers_what_it_says(nights: int) -> None:
    """95 % of differences between two nights of one level lie within the interval that the error gives."""
    generator = np.random.default_rng(1)
    within = 0
    for _ in range(600):
        told = [drawn(generator, day, 0.02) for day in range(1, nights + 1)]
        deviation = error(told, "batch-8", "j_per_token")
        assert deviation is not None
        first, last = (one.figures[0].value or 0.0 for one in (told[0], told[-1]))
        within += abs(math.log(last / first)) <= 1.96 * math.sqrt(2) * deviation
    assert 0.93 <= within / 600 <= 0.97


def test_a_window_with_more_tokens_weighs_more() -> None:
    """Against the plain formula for a ratio's variance, of two nights whose windows differ in tokens, too."""
    before = night(1, [100.0, 210.0, 330.0], tokens=[10, 20, 30])
    after = night(2, [104.0, 200.0, 330.0], tokens=[10, 20, 31])
    moves = [
        np.array([100 / 640 - 10 / 60, 210 / 640 - 20 / 60, 330 / 640 - 30 / 60]),
        np.array([104 / 634 - 10 / 61, 200 / 634 - 20 / 61, 330 / 634 - 31 / 61]),
    ]
    t_two = 4.302653
    expected = math.sqrt(3 * (moves[1] - moves[0]).var(ddof=1) / 2) * t_two / 1.959964
    assert error([before, after], "batch-8", "j_per_token") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("joules", "metric"),
    [([1.0, 2.0], "j_per_token"), ([1.0, None, 2.0, 3.0], "j_per_token"), ([0.0] * 3, "j_per_token"), (CONTENT, "mfu")],
)
def test_where_nothing_tells_there_is_none(joules: Sequence[float | None], metric: str) -> None:
    assert error([night(1, CONTENT), night(2, joules)], "batch-8", metric) is None
    assert error([night(1, CONTENT)], "batch-8", "j_per_token") is None


def test_right_answers_are_counted_by_window() -> None:
    alike = [night(day, CONTENT, correct=18) for day in (1, 2)]
    assert error(alike, "batch-8", "j_per_correct_answer") == pytest.approx(0.0, abs=1e-9)
    none = [night(day, CONTENT, correct=0) for day in (1, 2)]
    assert error(none, "batch-8", "j_per_correct_answer") is None


def test_nights_whose_windows_differ_alike_are_the_same() -> None:
    """Each figure alone is known to a third; the nights differ by a hundredth, in every window."""
    before, after = night(1, [9000 * one for one in CONTENT]), night(2, [9090 * one for one in CONTENT])
    verdict = judge([before], after)
    assert verdict.word == "same"
    assert judge([Night(before.run, (), before.figures)], Night(after.run, (), after.figures)).word == "unclear"
