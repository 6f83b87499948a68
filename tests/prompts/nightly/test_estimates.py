"""Intervals from windows: against the closed form where there is one, and covering the truth as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.prompts.nightly.estimates import Statistic, estimate, quantile, ratio
from etameter.prompts.stats import t_quantile

pytestmark = pytest.mark.unit

Pair = tuple[float, float]
RATIO: Statistic[Pair] = ratio(lambda pair: pair[0], lambda pair: pair[1])


def test_of_equal_divisors_it_is_students_interval() -> None:
    """With the same divisor in each window the jackknife is the sample's own variance, on the logarithm to first order."""
    uppers = [100.0, 101.0, 99.0, 100.5, 99.5]
    found = estimate([(upper, 10.0) for upper in uppers], RATIO)
    assert found is not None
    assert found.value == pytest.approx(10.0)
    half = float(t_quantile(0.975, 4.0)) * np.std(uppers, ddof=1) / math.sqrt(5) / 100
    assert found.low == pytest.approx(10.0 * math.exp(-half), rel=1e-3)
    assert found.high == pytest.approx(10.0 * math.exp(half), rel=1e-3)
    assert found.n == 5


def test_the_truth_is_inside_as_often_as_is_said() -> None:
    chance = np.random.default_rng(1)
    inside = 0
    for _ in range(600):
        tokens = chance.poisson(400, 5)
        pairs = [(3.0 * count * chance.lognormal(0, 0.05), float(count)) for count in tokens]
        found = estimate(pairs, RATIO)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 3.0 * math.exp(0.05**2 / 2) <= found.high
    assert 0.92 <= inside / 600 <= 0.975


def test_a_share_stays_one() -> None:
    found = estimate([(9.0, 10.0), (10.0, 10.0), (10.0, 10.0)], RATIO, share=True)
    assert found is not None
    assert found.high == 1.0
    assert found.low is not None
    assert 0.7 < found.low < found.value < 1
    nothing = estimate([(0.0, 10.0)] * 4, RATIO, share=True)
    assert nothing is not None
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_too_few_windows_have_no_interval_and_nothing_known_no_figure() -> None:
    two = estimate([(1.0, 1.0), (2.0, 1.0)], RATIO)
    assert two is not None
    assert (two.value, two.low, two.high, two.n) == (1.5, None, None, 2)
    assert estimate([(1.0, 0.0)] * 3, RATIO) is None
    unknown: Statistic[Pair] = ratio(lambda _: None, lambda pair: pair[1])
    assert estimate([(1.0, 1.0)] * 3, unknown) is None
    lonely = estimate([(0.0, 0.0), (0.0, 0.0), (4.0, 2.0)], RATIO)
    assert lonely is not None
    assert (lonely.value, lonely.low) == (2.0, None), "one window alone decides whether there is a figure"


def test_a_quantile_is_of_all_values_together() -> None:
    median = quantile(lambda values: values, 0.5)
    assert median([[1.0, 2.0], [3.0, 4.0, 100.0]]) == 3.0
    assert median([[], []]) is None


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=3, max_size=12), st.floats(0.01, 100))
def test_a_ratio_knows_no_unit_and_lies_in_its_interval(pairs: list[Pair], factor: float) -> None:
    plain = estimate(pairs, RATIO)
    scaled = estimate([(factor * upper, lower) for upper, lower in pairs], RATIO)
    assert plain is not None
    assert scaled is not None
    assert plain.low is not None
    assert plain.high is not None
    assert plain.low <= plain.value <= plain.high
    assert scaled.value == pytest.approx(factor * plain.value)
    assert scaled.low == pytest.approx(factor * plain.low, rel=1e-6)
