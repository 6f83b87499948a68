"""Three windows alike are level; what wanders is named, with what to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.prompts.nightly.steady import Glimpse, steadiness, variation

pytestmark = pytest.mark.unit


def seen(
    *powers_w: float | None, temperature_c: float | None = 60.0, clock_mhz: float | None = 1980.0
) -> list[Glimpse]:
    return [Glimpse(power_w, temperature_c, clock_mhz) for power_w in powers_w]


def test_the_last_three_count() -> None:
    assert not steadiness(seen(300.0, 300.0)).level
    assert not steadiness(seen(200.0, 300.0, 300.0)).level
    assert steadiness(seen(200.0, 300.0, 300.0, 300.0)).level


def test_three_percent_is_level_and_more_is_not() -> None:
    assert steadiness(seen(97.1, 100.0, 102.9)).level
    state = steadiness(seen(96.0, 100.0, 104.0))
    assert (state.level, state.wandering) == (False, ("power",))
    assert state.power == pytest.approx(0.04)
    assert "power by 4.0%" in state.reason
    assert "nightly.window_s" in state.remedy


def test_temperature_and_clocks_count_where_they_are_known() -> None:
    warming = [Glimpse(300.0, temperature_c, 1980.0) for temperature_c in (50.0, 55.0, 60.0)]
    assert steadiness(warming).wandering == ("temperature",)
    slowing = [Glimpse(300.0, None, clock_mhz) for clock_mhz in (1980.0, 1700.0, 1500.0)]
    assert steadiness(slowing).wandering == ("clocks",)
    assert "lock-gpu-clocks" in steadiness(slowing).remedy
    assert steadiness(seen(300.0, 300.0, 300.0, temperature_c=None, clock_mhz=None)).level


def test_without_power_nothing_is_level() -> None:
    state = steadiness(seen(300.0, None, 300.0))
    assert not state.level
    assert "power was not known" in state.reason


@given(st.lists(st.floats(1.0, 1e4), min_size=2, max_size=9), st.floats(0.1, 10.0))
def test_the_spread_has_no_unit(values: list[float], factor: float) -> None:
    plain, scaled = variation(values), variation([factor * value for value in values])
    assert plain is not None
    assert scaled == pytest.approx(plain, abs=1e-9)
    assert variation([*values, None]) is None
