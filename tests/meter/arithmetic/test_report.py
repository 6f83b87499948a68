"""What `etameter arithmetic` prints: as recorded, as JSON, and with the word `simulated` in every cell that it belongs in."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from etameter.arithmetic import INPUTS, ROWS, recompute, report
from etameter.arithmetic.rows import with_value
from etameter.arithmetic_command import inputs_of, replaced, run
from etameter.errors import InputError

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).with_name("arithmetic.txt")


def test_the_text_is_as_recorded() -> None:
    assert run(INPUTS, as_json=False) + "\n" == GOLDEN.read_text(encoding="utf-8")


def test_json_has_every_row_and_input() -> None:
    told = json.loads(run(INPUTS, as_json=True))
    assert [row["name"] for row in told["rows"]] == [row.name for row in ROWS]
    assert set(told["inputs"]) == set(INPUTS)
    (row,) = (row for row in told["rows"] if row["name"] == "seed-governed")
    assert (row["verdict"], row["printed"], row["unit"]) == ("impossible", [90.0], "%")
    assert told["inputs"]["price"] == {
        "value": 0.05,
        "unit": "USD/kWh",
        "meaning": "of electricity",
        "span": [0.05, 0.08],
        "origin": "document",
    }
    assert [bar["name"] for bar in told["what_if"]["energy-saved"]] == ["eta_before", "eta_after"]


def test_no_simulated_figure_stands_without_the_word() -> None:
    inputs = with_value(INPUTS, "wh_per_token", 2e-4, origin="simulated")
    results = recompute(inputs)
    told = [report.recomputed(each) for each in results if "wh_per_token" in each.row.inputs]
    assert len(told) > 10
    assert all(cell.endswith("(simulated)") for cell in told if cell != report.DASH)
    assert "wh_per_token = 2.000e-4 Wh/token (simulated)" in report.as_text(results, inputs)
    others = [report.recomputed(each) for each in results if "wh_per_token" not in each.row.inputs]
    assert not any("simulated" in cell for cell in others)


def test_replaced_inputs_are_told_and_change_what_follows() -> None:
    text = run(inputs_of(["eta_before=0.5", "price=100 USD/MWh"], [], None), as_json=False)
    assert "  eta_before = 0.5 (yours)\n  price = 0.1 USD/kWh (yours)" in text
    assert "token-reduction      impossible    printed 62.5, recomputed 37.5 %" in text


@pytest.mark.parametrize("setting", ["price", "price=", "price=cheap", "=1", "price=1 USD kWh"])
def test_a_setting_that_is_none_is_named(setting: str) -> None:
    with pytest.raises(InputError, match="sets nothing"):
        replaced(INPUTS, setting)


def test_the_command_needs_no_extra() -> None:
    """Nor anything else that reads tables or draws."""
    code = (
        "import sys; from etameter.arithmetic_command import inputs_of, run; run(inputs_of([], [], None), as_json=False); "
        "print({'pyarrow', 'matplotlib', 'codecarbon'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_bars_are_on_one_scale() -> None:
    lines = list(report.bar_lines([]))
    assert lines == []
