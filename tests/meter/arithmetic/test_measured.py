"""What a run of a comparison puts in the place of the documents' assumptions: worked by hand from a few rows."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.experiments import Way, World, simulate, tables
from etameter.arithmetic import INPUTS, recompute
from etameter.arithmetic.measured import with_branching, with_curve, with_demo, with_night, with_run
from etameter.arithmetic.rows import with_value
from etameter.arithmetic_command import analysis_of, inputs_of, of_run
from etameter.errors import ExperimentError, InputError
from etameter.prompts.nightly import night
from etameter.prompts.tables import BlockRow, Outcome
from tests.prompts.nightly.laid_out import figure, run, stage_row

pytestmark = pytest.mark.unit

RUN = tables(simulate(World(1, 1, (Way(), Way(0.5))), 1, np.random.default_rng(1)), 0, ("unconstrained", "entrace"))
BLOCK, OUTCOME = RUN.blocks[0], RUN.outcomes[0]


def block(arm: str, number: int, energy_j: float | None, *, excluded: str | None = None) -> BlockRow:
    """Ten seconds long."""
    return replace(
        BLOCK,
        part="concurrency",
        block=number,
        attempt=0,
        arm=arm,
        start_ns=0,
        end_ns=10_000_000_000,
        energy_j=energy_j,
        excluded=excluded,
    )


def outcome(arm: str, number: int, output_tokens: int, output_j: float | None = 100.0) -> Outcome:
    """Of one turn, with 100 prompt tokens of which 40 were cached, 30 J of prompt."""
    return replace(
        OUTCOME,
        part="concurrency",
        block=number,
        attempt=0,
        arm=arm,
        turns=1,
        prompt_tokens=100,
        cached_tokens=40,
        output_tokens=output_tokens,
        prompt_j=30.0,
        output_j=output_j,
        source="measured",
    )


def analysis(source: str | None = "measured", eta: tuple[float, float] | None = (0.4, 0.5)) -> dict[str, Any]:
    task = None if eta is None else {"method": "task", "control": eta[0], "arm": eta[1], "low": 0.45, "high": 0.55}
    finding = {
        "arm": "entrace",
        "eta": [] if task is None else [task],
        "saving": {"saving": 0.2, "low": 0.1, "high": 0.3},
    }
    arms = [{"arm": "unconstrained", "joules_per_correct": 250.0}, {"arm": "entrace", "joules_per_correct": 200.0}]
    part = {"part": "concurrency", "headline": True, "arms": arms, "findings": [finding]}
    return {"source": source, "control": "unconstrained", "parts": [part]}


BLOCKS = [block("unconstrained", 0, 1000.0), block("entrace", 1, 500.0), block("unconstrained", 2, 9e9, excluded="hot")]
OUTCOMES = [
    outcome("unconstrained", 0, 101),
    outcome("unconstrained", 0, 301),
    outcome("entrace", 1, 50),
    outcome("unconstrained", 2, 100_000),
]


def test_worked_by_hand() -> None:
    found = with_run(INPUTS, analysis(), BLOCKS, OUTCOMES)
    told = {name: each.value for name, each in found.items() if each.origin == "measured"}
    assert told == {
        "j_per_output_token": pytest.approx(200 / 400),
        "j_per_prompt_token": pytest.approx(60 / 120),
        "cached_share": pytest.approx(0.4),
        "kv_prompt_tokens": 100.0,
        "long_answer": 201.0,
        "short_answer": 50.0,
        "wh_per_token": pytest.approx(1000 / 402 / 3600),
        "gpu_power": pytest.approx(100.0),
        "tokens_per_s": pytest.approx(40.2),
        "answer_energy": 250.0,
        "eta_before": 0.4,
        "eta_after": 0.5,
        "eta_measured_control": 0.4,
        "eta_measured_entrace": 0.5,
        "saving_measured": 0.2,
        "prompt_per_output": pytest.approx(120 / 402),
        "query_joules": 500.0,
        "query_rate": pytest.approx(0.2),
        "success": 1.0,
    }, "the excluded block is in none of them"
    assert found["saving_measured"].span == (0.1, 0.3)


def test_claims_stand_beside_what_was_measured() -> None:
    results = {each.row.name: each for each in recompute(with_run(INPUTS, analysis(), BLOCKS, OUTCOMES))}
    assert results["token-reduction"].recomputed == pytest.approx((20.0,))
    assert results["token-reduction"].verdict == "impossible", "at η_before .4 no more than 60 % can be saved"
    assert (results["eta-entrace"].verdict, results["eta-entrace"].interval) == ("inconsistent", (0.45, 0.55))
    assert results["eta-unconstrained"].verdict == "consistent"
    assert results["saving-measured"].interval == pytest.approx((10.0, 30.0))
    assert results["output-input"].recomputed == pytest.approx((1.0,))


def test_what_was_simulated_says_so_wherever_it_goes() -> None:
    results = {each.row.name: each for each in recompute(with_run(INPUTS, analysis("simulated"), BLOCKS, OUTCOMES))}
    for name in ("gap", "actual", "money-saved", "carbon-saved", "table-1-tokens", "electricity-output", "answer-cost"):
        assert results[name].origin == "simulated"
    assert results["bill"].origin == "document"


def test_what_a_run_does_not_tell_stays_as_it_was() -> None:
    blocks = [block("unconstrained", 0, None), *BLOCKS[1:]]
    outcomes = [outcome("unconstrained", 0, 101, None), *OUTCOMES[1:]]
    found = with_run(INPUTS, analysis(eta=None), blocks, outcomes)
    for name in ("wh_per_token", "gpu_power", "j_per_output_token", "eta_before", "eta_after"):
        assert found[name] == INPUTS[name]


@pytest.mark.parametrize("source", [None, "measured"])
def test_a_run_without_figures_is_refused(source: str | None) -> None:
    told = analysis(source) if source is None else {**analysis(), "parts": []}
    with pytest.raises(InputError, match="no measured headline part"):
        with_run(INPUTS, told, BLOCKS, OUTCOMES)


def test_a_folder_that_holds_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError):
        of_run(INPUTS, tmp_path)
    with pytest.raises(InputError, match="tells no analysis"):
        analysis_of(tmp_path / "run.json")


def test_a_run_of_two_boards_is_told_of_one() -> None:
    found = with_run(INPUTS, analysis(), BLOCKS, OUTCOMES, boards=2)
    assert found["gpu_power"].value == pytest.approx(50.0)
    assert found["tokens_per_s"].value == pytest.approx(20.1)
    assert found["wh_per_token"].value == pytest.approx(1000 / 402 / 3600), "a joule is a joule"


STAGE = "ab-fixed/unconstrained"
NIGHT = night.Night(
    run(config={"arms": ["unconstrained", "entrace"]}, hardware={"boards": [{"board": "H100"}, {"board": "H100"}]}),
    (stage_row(stage=STAGE, kind="ab"), stage_row(stage="recorded", kind="recorded")),
    (
        figure(stage=STAGE, metric="j_per_token", value=3.6, low=3.5, high=3.7, source="measured"),
        figure(stage=STAGE, metric="tokens_per_s", value=2000.0, low=1990.0, high=2010.0, source="measured"),
        figure(stage=STAGE, metric="j_per_output_token", value=None, low=None, high=None, reason="no receipts"),
        figure(stage=STAGE, metric="eta_task", value=0.4, low=0.3, high=0.5, source="measured"),
        figure(stage="ab-fixed/entrace", metric="eta_task", value=0.7, low=0.6, high=0.8, source="measured"),
        figure(stage="ab-fixed/entrace", metric="saving", value=0.25, low=0.2, high=0.3, source="measured"),
        figure(stage="meter", metric="coefficient_idle_w", value=200.0, low=None, high=None, source="measured"),
        figure(stage="meter", metric="coefficient_pass_j", value=2.5, low=None, high=None, source="measured"),
        figure(stage="meter", metric="eta_reliability", value=0.36, low=None, high=None, source="measured"),
        figure(stage="recorded", metric="j_per_question", value=90.0, low=80.0, high=100.0, source="measured"),
    ),
)


def test_a_night_is_told_by_its_control_its_arms_and_its_meter() -> None:
    found = with_night(INPUTS, NIGHT)
    told = {name: each.value for name, each in found.items() if each.origin == "measured"}
    assert told == {
        "wh_per_token": pytest.approx(1e-3),
        "tokens_per_s": 1000.0,
        "eta_before": 0.4,
        "eta_measured_control": 0.4,
        "eta_after": 0.7,
        "eta_measured_entrace": 0.7,
        "saving_measured": 0.25,
        "cost_p0": 100.0,
        "cost_c": 2.5,
        "reliability_measured": 0.36,
        "query_joules": 90.0,
    }, "two boards share the rate and the waiting power"
    results = {each.row.name: each for each in recompute(found)}
    assert (results["eta-entrace"].verdict, results["eta-entrace"].interval) == ("consistent", (0.6, 0.8))
    assert results["table-rate"].interval == (995.0, 1005.0)


def test_a_night_is_read_from_its_folder_and_one_that_knows_nothing_is_refused(tmp_path: Path) -> None:
    night.write(tmp_path, NIGHT)
    assert inputs_of([], [tmp_path], None)["cost_c"].value == 2.5
    with pytest.raises(InputError, match="knows nothing of its stage batch-1"):
        with_night(INPUTS, replace(NIGHT, figures=()))


def test_the_entropy_of_tokens_comes_in_nats_and_goes_out_in_bits() -> None:
    groups = {
        "slack": {"tokens": 1, "low": 0.0, "high": math.log(2)},
        "required": {"tokens": 3, "low": math.log(4), "high": math.log(4)},
    }
    found = with_branching(INPUTS, {"groups": {**groups, "optional": None}})
    assert found["entropy_measured"].value == pytest.approx(1.625)
    assert found["bits_per_token"].span == pytest.approx((1.5, 1.75))
    with pytest.raises(InputError, match="no entropy of tokens"):
        with_branching(INPUTS, {"arms": {}})


@pytest.mark.parametrize(("utilisation", "left"), [(1.0, 1.0), (0.5, 0.4), (0.25, 0.4), (0.75, 0.8)])
def test_load_goes_into_the_cheapest_hours_that_hold_it(utilisation: float, left: float) -> None:
    """Two parts of the day at 2, two at 8: a mean of 5."""
    inputs = with_value(INPUTS, "utilisation", utilisation)
    assert with_curve(inputs, [8.0, 2.0, 8.0, 2.0])["cheap_hours"].value == pytest.approx(left)


def test_a_curve_is_read_with_or_without_a_heading(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    for heading in ("", "hour,price\n"):
        file.write_text(heading + "0,30\n1,90\n", encoding="utf-8")
        assert inputs_of(["utilisation=0.5"], [], file)["cheap_hours"].value == pytest.approx(0.5)
    for wrong in ("", "0;30\n", "hour,price\n0,cheap\n", "0,0\n"):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(InputError, match="curve"):
            inputs_of([], [], file)


def demo(**told: Any) -> dict[str, Any]:
    arm = {
        "requests": 4,
        "requests_without_energy": 0,
        "requests_metered_in_part": 0,
        "energy_joules": 80.0,
        "correct": 2,
        "not_checked": 0,
        "joules_per_correct": 40.0,
        "output_tokens": 200,
    }
    return {"source": "measured+simulated", "requests": [], "arms": {"unconstrained": {**arm, **told}}}


def test_a_demo_is_told_by_its_attributed_joules(tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(demo()), encoding="utf-8")
    told = {name: each.value for name, each in inputs_of([], [file], None).items() if each.origin == "simulated"}
    assert told == {
        "wh_per_token": pytest.approx(0.4 / 3600),
        "query_joules": 20.0,
        "long_answer": 50.0,
        "answer_energy": 40.0,
        "success": 0.5,
    }, "of joules of two sources the lesser counts"
    assert with_demo(INPUTS, demo(correct=0, joules_per_correct=None))["success"] == INPUTS["success"]


def test_a_demo_without_all_joules_is_refused() -> None:
    with pytest.raises(InputError, match="not all requests"):
        with_demo(INPUTS, demo(requests_without_energy=1))
    with pytest.raises(InputError, match="no joules of unconstrained"):
        with_demo(INPUTS, {"requests": [], "arms": {}})


def test_idle_stages_stand_for_no_night() -> None:
    idle = figure(stage="idle-before", metric="power_w", source="measured")
    served = figure(stage="external-vllm", metric="power_w", value=300.0, source="measured")
    found = with_night(INPUTS, night.Night(run(), (), (idle, served)))
    assert found["gpu_power"].value == 300.0


def test_intervals_are_in_the_unit_of_their_input() -> None:
    """A night tells joules, and the documents reckon with watt-hours."""
    tonight = night.Night(
        run(), (), (figure(stage="ab-fixed/unconstrained", value=0.6, low=0.5, high=0.7, metric="j_per_token"),)
    )
    found = with_night(INPUTS, tonight)["wh_per_token"]
    assert found.value == pytest.approx(0.6 / 3600)
    assert found.span == pytest.approx((0.5 / 3600, 0.7 / 3600))
