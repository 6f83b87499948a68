"""Verdicts are computed, and inputs are taken only with a value and a unit that make sense."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.arithmetic import INPUTS, ROWS, WHAT_IF
from etameter.arithmetic.rows import Input, Row, figure, in_base_units, judge, tornado, with_value, work_out
from etameter.errors import InputError

pytestmark = pytest.mark.unit

positive = st.floats(1e-9, 1e9)


@pytest.mark.parametrize(
    ("printed", "recomputed", "verdict", "reason"),
    [
        ((2.87,), (2.871,), "consistent", ""),
        ((2200.0,), (2233.0,), "rounded", "1.5 % apart"),
        ((5.0,), (4.15,), "inconsistent", "20 % apart"),
        ((1000.0,), (50.0,), "inconsistent", "a factor of 20"),
        ((260.0,), (3600.0,), "inconsistent", "a factor of 14"),
        ((1.0, 2.2), (1.0, 2.0), "inconsistent", "10 % apart"),
        ((0.0,), (0.0,), "consistent", ""),
        ((1.0,), (0.0,), "inconsistent", "inf % apart"),
        ((0.2, 0.4), (0.3,), "consistent", "inside of the printed range"),
        ((0.2, 0.4), (0.5,), "inconsistent", "outside of the printed range"),
        (None, (1.0,), None, ""),
    ],
)
def test_verdicts(
    printed: tuple[float, ...] | None, recomputed: tuple[float, ...], verdict: str | None, reason: str
) -> None:
    assert judge(printed, recomputed) == (verdict, reason)


def test_what_is_beyond_a_bound_is_impossible_however_close() -> None:
    assert judge((90.0,), (68.0,), (-math.inf, 70.0)) == ("impossible", "90 is above 70, the most there can be")
    assert judge((0.5,), (2.0,), (1.0, 5.0)) == ("impossible", "0.5 is below 1, the least there can be")
    assert judge((70.0,), (70.0,), (-math.inf, 70.0))[0] == "consistent"


@given(positive, positive, st.sampled_from([1e-3, 1.0, 1e6]))
def test_a_verdict_does_not_depend_on_the_unit(printed: float, recomputed: float, scale: float) -> None:
    apart = abs(printed - recomputed) / recomputed
    near = min(abs(apart - edge) for edge in (0.005, 0.05))
    if near > 1e-9:
        assert judge((printed,), (recomputed,))[0] == judge((printed * scale,), (recomputed * scale,))[0]


def _row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def test_an_input_is_given_in_any_unit_of_its_dimension() -> None:
    assert with_value(INPUTS, "price", 90.0, "USD/MWh")["price"].value == pytest.approx(0.09)
    assert with_value(INPUTS, "wh_per_token", 1.8, "J/token")["wh_per_token"].value == pytest.approx(5e-4)
    changed = with_value(INPUTS, "price", 0.1)["price"]
    assert (changed.value, changed.origin) == (0.1, "yours")
    assert INPUTS["price"].value == 0.05


@pytest.mark.parametrize(
    ("name", "value", "unit", "said"),
    [
        ("prize", 1.0, None, "there is no input 'prize'"),
        ("price", -0.1, None, "price = -0.1 USD/kWh makes no sense: it is 0 or more"),
        ("price", 0.1, "EUR/kWh", "is in USD/kWh, which EUR/kWh can't be turned into"),
        ("price", 0.1, "USD/kg", "is in USD/kWh"),
        ("pue_low", 0.9, None, "pue_low = 0.9 makes no sense: it is 1 to 5"),
        ("eta_after", 1.2, None, "eta_after = 1.2 makes no sense"),
        ("eta_after", math.nan, None, "makes no sense"),
        ("industry_energy", math.inf, None, "makes no sense"),
        ("price", 1.0, "USD/furlong", "'furlong' is no unit"),
    ],
)
def test_what_makes_no_sense_is_named(name: str, value: float, unit: str | None, said: str) -> None:
    with pytest.raises(InputError) as caught:
        with_value(INPUTS, name, value, unit)
    assert said in str(caught.value)


@given(st.floats(0.0, 1e6))
def test_a_value_survives_the_way_to_base_units_and_back(value: float) -> None:
    for name, unit in (("price", "USD/kWh"), ("industry_energy", "TWh/year"), ("cost_1", "USD/Mtoken")):
        given_ = with_value(INPUTS, name, value, unit)
        again = in_base_units([given_[name]])[name]
        assert again == pytest.approx(in_base_units([INPUTS[name]])[name] / (INPUTS[name].value or 1) * value)


def test_a_row_without_an_input_says_which() -> None:
    found = work_out(_row("eta-entrace"), INPUTS)
    assert (found.recomputed, found.verdict) == (None, None)
    assert found.reason == "needs eta_measured_entrace: give a run, or set it"


def test_a_row_is_worth_what_its_least_certain_input_is() -> None:
    row = _row("money-saved")
    assert work_out(row, INPUTS).origin == "document"
    mine = with_value(INPUTS, "price", 0.1)
    assert work_out(row, mine).origin == "yours"
    simulated = with_value(mine, "eta_before", 0.5, origin="simulated")
    assert work_out(row, simulated).origin == "simulated"
    assert work_out(_row("bill"), simulated).origin == "document", "it has no such input"


def test_a_measured_figure_has_its_interval() -> None:
    inputs = with_value(INPUTS, "saving_measured", 0.5, origin="measured")
    inputs = {**inputs, "saving_measured": replace(inputs["saving_measured"], span=(0.4, 0.6))}
    found = work_out(_row("saving-measured"), inputs)
    assert found.interval == pytest.approx((40.0, 60.0))
    assert found.verdict == "inconsistent"


def test_dividing_by_zero_is_said() -> None:
    row = Row("r", "E", "", (1.0,), "1", "", ("a",), lambda v: (1 / v["a"],))
    assert work_out(row, {"a": Input("a", 0.0, "1", "")}).reason == "an input is zero that the formula divides by"


def test_no_elasticity_eats_a_saving_that_there_is_not() -> None:
    inputs = with_value(INPUTS, "eta_after", 0.3)
    assert work_out(_row("jevons-elasticity"), inputs).reason == "there is no such value at these inputs"


def test_the_tornado_worked_by_hand() -> None:
    energy, money = (tornado(row, INPUTS) for row in WHAT_IF)
    assert [(bar.name, bar.span) for bar in energy] == [("eta_before", (0.2, 0.4)), ("eta_after", (0.6, 0.8))]
    assert energy[0].outcome == pytest.approx((75.0, 50.0))
    assert energy[1].outcome == pytest.approx((50.0, 62.5))
    assert [bar.name for bar in money] == ["price", "eta_before", "eta_after"]
    assert money[0].outcome == pytest.approx((3.125, 5.0))


@given(st.floats(0.05, 0.5), st.floats(0.5, 1.0))
def test_the_widest_bar_comes_first_whatever_the_inputs(before: float, after: float) -> None:
    inputs = with_value(with_value(INPUTS, "eta_before", before), "eta_after", after)
    for row in WHAT_IF:
        swings = [bar.swing for bar in tornado(row, inputs)]
        assert swings == sorted(swings, reverse=True)


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0, "0"), (62.5, "62.5"), (223288.0, "223,288"), (2.871e-21, "2.871e-21"), (5.2e19, "5.200e19"), (-0.5, "-0.5")],
)
def test_figures(value: float, told: str) -> None:
    assert figure(value) == told


@pytest.mark.parametrize(
    ("printed", "interval", "verdict"),
    [
        ((0.2, 0.4), (0.45, 0.55), "inconsistent"),
        ((0.2, 0.4), (0.35, 0.65), "consistent"),
        ((0.625,), (0.6, 0.65), "consistent"),
        ((0.625,), (0.4, 0.6), "inconsistent"),
        ((0.2, 0.4), None, "inconsistent"),
    ],
)
def test_what_a_measured_interval_reaches_is_not_contradicted(
    printed: tuple[float, ...], interval: tuple[float, float] | None, verdict: str
) -> None:
    assert judge(printed, (0.5,), None, interval)[0] == verdict
