import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from etameter import facts, facts_command, facts_label
from etameter.cli import app
from etameter.errors import InputError
from etameter.footprint import Factor, Footprint
from etameter.prompts.nightly import night
from tests.meter.arithmetic.test_measured import analysis, block, outcome
from tests.prompts.nightly.laid_out import figure, run

pytestmark = pytest.mark.unit

NO_FACTORS = Footprint()
GRID = Footprint(
    pue=Factor(1.5, "J/J", "own", None),
    price=Factor(0.2, "EUR/kWh", "own", None),
    intensity=Factor(400.0, "g/kWh", "a table", 2024),
)
BLOCKS = [
    block("unconstrained", 0, 1000.0),
    block("unconstrained", 1, 1200.0),
    block("entrace", 2, 500.0),
    block("unconstrained", 3, 9e9, excluded="hot"),
]
OUTCOMES = [
    outcome("unconstrained", 0, 101),
    outcome("unconstrained", 1, 301),
    outcome("entrace", 2, 50),
    outcome("unconstrained", 3, 100_000),
]
ABOUT: dict[str, Any] = {
    "run": "r1",
    "began": "2026-11-22T06:14:54+00:00",
    "boards": [{"board": "H100"}],
    "server": {"version": "0.32.0"},
}


def whole(source: str = "measured") -> dict[str, Any]:
    return {**analysis(source), "model": "Qwen/Qwen3-32B", "suite": "core"}


def of_comparison(source: str = "measured", footprint: Footprint = NO_FACTORS, arm: str | None = None) -> facts.Facts:
    return facts.of_comparison(whole(source), ABOUT, BLOCKS, OUTCOMES, arm, footprint)


def named(made: facts.Facts) -> dict[str, facts.Fact]:
    return {fact.name: fact for fact in made.facts}


def test_worked_by_hand() -> None:
    made = of_comparison()
    told = named(made)
    assert told[facts.ANSWER].value == pytest.approx(2200 / 2 / 3600)
    assert told[facts.OUTPUT].value == pytest.approx(200 / 400 * 1000 / 3600)
    assert told[facts.PROMPT].value == pytest.approx(60 / 120 * 1000 / 3600)
    correct = sum(row.correct for row in BLOCKS[:2])
    assert told[facts.CORRECT].value == pytest.approx(2200 / correct / 3600)
    half = 12.7062 * (2 * 2 * 100**2) ** 0.5 / 2 / 3600
    assert told[facts.ANSWER].high == pytest.approx(2200 / 2 / 3600 + half, rel=1e-4)
    assert told[facts.ANSWER].low == 0.0, "energy is never below nothing"
    assert (made.model, made.hardware, made.server, made.date) == (
        "Qwen/Qwen3-32B",
        "H100",
        "vLLM 0.32.0",
        "2026-11-22",
    )


def test_another_arm_and_one_that_is_not_there() -> None:
    assert named(of_comparison(arm="entrace"))[facts.ANSWER].value == pytest.approx(500 / 3600)
    assert named(of_comparison(arm="entrace"))[facts.ANSWER].low is None, "one block tells no interval"
    with pytest.raises(InputError, match=r"no arm concise.*unconstrained, entrace"):
        of_comparison(arm="concise")


def test_money_and_carbon_only_where_factors_are() -> None:
    assert "CO2e per 1,000 answers" not in named(of_comparison())
    told = named(of_comparison(footprint=GRID))
    kwh = 1000 * 1100 * 1.5 / 3.6e6
    assert told["CO2e per 1,000 answers"].value == pytest.approx(400 * kwh)
    assert told["Electricity per 1,000 answers"].value == pytest.approx(0.2 * kwh)
    assert told["Electricity per 1,000 answers"].unit == "EUR"
    assert any("a table, 2024" in factor for factor in of_comparison(footprint=GRID).factors)


def test_joules_that_are_not_known_are_not_zero() -> None:
    made = facts.of_comparison(
        whole(), ABOUT, [replace(BLOCKS[0], energy_j=None), BLOCKS[1]], OUTCOMES[:2], None, NO_FACTORS
    )
    fact = named(made)[facts.ANSWER]
    assert (fact.value, facts_label.written(fact), fact.remark) == (None, "not known", "not all blocks have joules")


def test_simulated_joules_say_so_in_every_cell() -> None:
    made = of_comparison("simulated", GRID)
    drawn = facts_label.svg(made)
    texts = [element.text or "" for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "SIMULATED: no measurement of hardware"
    cells = [
        text
        for text in texts
        if text.split(" ", 1)[-1].startswith(("Wh", "g", "EUR")) and text[0].isdigit() and " to " not in text
    ]
    assert len(cells) == 6
    assert all(cell.endswith("simulated") for cell in cells)
    assert "SIMULATED" in facts_label.page(made)
    assert "simulated" not in facts_label.svg(of_comparison())


def test_slack_is_named_and_shared_out_over_all_tokens_that_were_looked_at() -> None:
    held = [
        replace(OUTCOMES[0], eta_lenient_at_most=0.9, slack={"P": 10.0}),
        replace(OUTCOMES[1], eta_lenient_at_most=None, slack={}),
    ]
    made = facts.of_comparison(whole(), ABOUT, BLOCKS[:2], held, None, NO_FACTORS)
    [(name, share)] = made.slack
    assert name == "preamble"
    assert share == pytest.approx(10 / 101)
    eta = named(made)["Required output tokens (η), at most"]
    assert eta.value == pytest.approx(0.9)
    assert eta.remark == "known of 1 of 2 answers"
    assert "preamble" in facts_label.description(made)


def test_of_a_night() -> None:
    figures = (
        figure(value=3.6, low=3.2, high=4.0, metric="j_per_correct_answer"),
        figure(value=0.75, metric="accuracy", low=0.5, high=0.9),
    )
    made = facts.of_night(night.Night(run(), (), figures), "batch-8", NO_FACTORS)
    told = named(made)
    assert told[facts.CORRECT].value == pytest.approx(0.001)
    assert told[facts.CORRECT].low == pytest.approx(3.2 / 3600)
    assert facts_label.written(told["Correct answers"]) == "75 %"
    assert facts_label.written(told[facts.CORRECT]) == "0.001 Wh simulated"
    with pytest.raises(InputError, match=r"no stage batch-9.*batch-8"):
        facts.of_night(night.Night(run(), (), figures), "batch-9", NO_FACTORS)


def test_the_command_writes_all_of_it(tmp_path: Path) -> None:
    where = tmp_path / "run"
    where.mkdir()
    night.write(where, night.Night(run(), (), (figure(value=3.6, metric="j_per_correct_answer"),)))
    answer = CliRunner().invoke(
        app,
        ["facts", str(where), "--json", "--out", str(tmp_path / "out")],
        standalone_mode=False,
        catch_exceptions=False,
    )
    assert json.loads(answer.stdout)["source"] == "simulated"
    assert json.loads((tmp_path / "out" / "facts.json").read_text()) == json.loads(answer.stdout)
    assert (tmp_path / "out" / "facts.svg").read_text() in (tmp_path / "out" / "facts.html").read_text() + "\n"
    if facts_command.drawable():
        assert (tmp_path / "out" / "facts.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="tells no run"):
        facts_command.found(tmp_path, None, None)
    with pytest.raises(InputError, match="--arm is of comparisons"):
        facts_command.found(where, "entrace", None)


@given(st.text(max_size=300))
def test_any_name_is_drawn_as_text(name: str) -> None:
    drawn = ET.fromstring(facts_label.svg(replace(of_comparison(), model=name, asked=name)))
    assert {element.tag.rpartition("}")[2] for element in drawn.iter()} == {"svg", "title", "desc", "rect", "g", "text"}
    right = [float(element.get("x", "0")) for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert max(right) <= facts_label.WIDTH
