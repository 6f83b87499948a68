"""Bounds on the entropy of a next token of which only the likeliest are told."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.slack.branching import (
    VOCABULARY,
    Branching,
    Gap,
    Placed,
    branching,
    difference,
    difference_at_like_place,
    summary,
)

pytestmark = pytest.mark.unit

distributions = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=300).map(
    lambda weights: sorted((weight / math.fsum(weights) for weight in weights), reverse=True)
)


def entropy(probabilities: list[float]) -> float:
    return -math.fsum(each * math.log(each) for each in probabilities)


def of(entropies: float) -> Branching:
    return Branching(entropies, entropies)


@given(distributions, st.integers(1, 20))
def test_the_entropy_lies_within_its_bounds(probabilities: list[float], told: int) -> None:
    found = branching([math.log(each) for each in probabilities[:told]], max(len(probabilities), told + 1))
    truth = entropy(probabilities)
    assert found.low <= truth + 1e-9
    assert truth <= found.high + 1e-9
    assert found.low <= found.middle <= found.high


@given(distributions)
def test_more_tokens_told_never_widen_the_bounds(probabilities: list[float]) -> None:
    size = len(probabilities) + 1
    widths = [
        (found := branching([math.log(each) for each in probabilities[:told]], size)).high - found.low
        for told in range(1, len(probabilities) + 1)
    ]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(widths))


def test_the_bounds_are_reached() -> None:
    half = math.log(0.5)
    found = branching([half, math.log(0.25)], 2 + 10)
    assert found.low == pytest.approx(entropy([0.5, 0.25, 0.25]))
    assert found.high == pytest.approx(entropy([0.5, 0.25, *[0.025] * 10]))
    assert branching([half, half]) == branching([half, half], 2)


def test_sure_tokens_have_one_continuation() -> None:
    assert branching([0.0]) == Branching(0.0, 0.0)
    assert branching([0.0, -math.inf]).high == 0.0


@pytest.mark.parametrize("told", [[], [0.5], [0.0, -1.0], [math.nan], [math.inf]])
def test_what_are_no_probabilities_is_refused(told: list[float]) -> None:
    with pytest.raises(ValueError, match=r"probabilities"):
        branching(told)


def test_rounding_of_logarithms_is_no_fault() -> None:
    assert branching([math.log(0.5004), math.log(0.5004)]).high < 0.7
    assert VOCABULARY > 200_000


def test_a_summary_is_of_all_tokens() -> None:
    assert summary([]) is None
    found = summary([Branching(0.0, 0.0), Branching(0.0, 0.1), Branching(1.0, 2.0)])
    assert found is not None
    assert (found.tokens, found.forced) == (3, 2 / 3)
    half = summary([of(0.5)])
    assert half is not None
    assert half.forced == 0.0, "exp ½ is 1.6"
    assert found.low == pytest.approx(1 / 3)
    assert found.high == pytest.approx(2.1 / 3)
    assert found.median == pytest.approx(math.exp(0.05))


def test_an_answer_is_one_draw_however_long_it_is() -> None:
    one = {"a": [of(2.0)] * 100, "b": [of(1.0)], "c": [of(9.0)], "d": []}
    other = {"a": [of(1.0)], "b": [of(1.0)] * 50, "d": [of(1.0)]}
    assert difference(one, other) == Gap(0.5, None, 2)
    assert difference(one, {}) is None


def test_from_ten_answers_on_there_is_an_interval() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        one = {str(name): [of(float(rng.normal(1.5, 1.0)))] for name in range(12)}
        other = {str(name): [of(float(rng.normal(1.0, 1.0)))] for name in range(12)}
        gap = difference(one, other)
        assert gap is not None
        assert gap.half_width is not None
        held += abs(gap.difference - 0.5) <= gap.half_width
    assert 180 <= held <= 199


def test_what_goes_with_the_place_alone_is_no_difference() -> None:
    rng = np.random.default_rng(2)

    def answer(slack: float) -> list[Placed]:
        """What is slack comes late; H rises with the place, and by `slack` where it is slack."""
        late = [rng.random() < place / 60 for place in range(60)]
        return [Placed(place, said, of(math.log1p(place) + slack * said)) for place, said in enumerate(late)]

    for slack in (0.0, 0.75):
        gap = difference_at_like_place([answer(slack) for _ in range(12)])
        assert gap is not None
        assert gap.difference == pytest.approx(slack)
        assert gap.pairs == 12
    alike = [Placed(place, True, of(1.0)) for place in range(60)]
    few = [Placed(place, place > 2, of(1.0)) for place in range(6)]
    assert difference_at_like_place([alike, few]) is None, "all slack, and too few"
