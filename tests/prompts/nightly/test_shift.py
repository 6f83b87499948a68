import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etameter.prompts.nightly.noise import SHIPPED, Noise
from etameter.prompts.nightly.shift import RECENT, WINDOW, interval, shift

pytestmark = pytest.mark.unit

NONE_BETWEEN = Noise(spread=1e-9, spread_factor=1.0001, correlation=0.0, outliers=0.0, outlier_factor=1.0)
"""Nights differ by the figures' own errors alone."""


def test_with_known_errors_it_is_the_weighted_difference_of_means() -> None:
    values = np.array([0.0, 0.02, 0.01, 0.06])
    errors = np.array([0.01, 0.02, 0.01, 0.02])
    weights = 1 / errors[:3] ** 2
    before = (weights * values[:3]).sum() / weights.sum()
    deviation = math.sqrt(1 / weights.sum() + errors[3] ** 2)
    low, high = interval(values, errors, 1, NONE_BETWEEN)
    assert (high + low) / 2 == pytest.approx(values[3] - before)
    assert (high - low) / 2 == pytest.approx(1.95996 * deviation, rel=1e-4)
    found = shift(values[[0, 3]], errors[[0, 3]], NONE_BETWEEN)
    assert found.p == pytest.approx(2 * NormalDist().cdf(-0.06 / math.hypot(0.01, 0.02)))


def test_the_change_is_found_where_it_is() -> None:
    values = np.array([0.0, 0.001, -0.001, 0.0, 0.001, 0.0, 0.05, 0.051, 0.05])
    found = shift(values, np.full(9, 0.002))
    assert found.recent == 3
    assert found.log == pytest.approx(0.05, abs=0.002)


def test_only_so_many_nights_before_are_looked_at() -> None:
    recent = SHIPPED.draw(np.random.default_rng(1), 1, WINDOW + max(RECENT), 0.002)[0]
    older = np.concatenate([np.full(40, 5.0), recent])
    found, with_older = (shift(values, np.full(len(values), 0.002)) for values in (recent, older))
    assert found.p == pytest.approx(float(with_older.p))


def test_a_night_off_by_itself_is_less_of_an_alarm_where_such_nights_come() -> None:
    values, errors = np.array([0.0] * 10 + [0.03]), np.full(11, 0.002)
    steady = Noise(SHIPPED.spread, SHIPPED.spread_factor, SHIPPED.correlation, outliers=0.0, outlier_factor=1.0)
    assert shift(values, errors).p > shift(values, errors, steady).p


def test_resemblance_widens_what_several_nights_say() -> None:
    values, errors = np.array([0.0] * 10 + [0.02] * 3), np.full(13, 0.001)
    apart, alike = (
        interval(values, errors, 3, Noise(SHIPPED.spread, SHIPPED.spread_factor, correlation, 0.0, 1.0))
        for correlation in (0.0, 0.6)
    )
    assert alike[1] - alike[0] > apart[1] - apart[0]


def test_a_scatter_ten_times_the_expected_one_is_believed() -> None:
    values = np.array([0.2, -0.2] * 7 + [0.2])
    assert shift(values, np.full(15, 0.002)).p > 0.2


@settings(max_examples=25)
@given(st.integers(2, 12), st.integers(0, 10_000), st.floats(-5, 5))
def test_level_does_not_matter_and_sign_only_turns(nights: int, seed: int, level: float) -> None:
    values = SHIPPED.draw(np.random.default_rng(seed), 3, nights, 0.003)
    errors = np.full(nights, 0.003)
    found, moved, turned = (shift(each, errors) for each in (values, values + level, -values))
    np.testing.assert_allclose(moved.log, found.log, atol=1e-9)
    np.testing.assert_allclose(turned.log, -found.log, atol=1e-12)
    np.testing.assert_allclose(moved.p, found.p, rtol=1e-5)
    np.testing.assert_allclose(turned.p, found.p, rtol=1e-9)
    assert ((found.p >= 0) & (found.p <= 1)).all()


def test_drawn_nights_scatter_as_the_model_says() -> None:
    drawn = SHIPPED.draw(np.random.default_rng(1), 20_000, 2, 0.0)
    assert np.median(np.abs(drawn)) == pytest.approx(0.6745 * SHIPPED.spread, rel=0.05)
    assert (np.sign(drawn[:, 0]) == np.sign(drawn[:, 1])).mean() == pytest.approx(
        0.5 + math.asin(SHIPPED.correlation) / math.pi, abs=0.02
    )
