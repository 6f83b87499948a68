"""What is said of a comparison, and above all what isn't."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.experiments import Tables, Way, World, simulate, tables
from etameter.prompts.analysis import Analysis, ArmFinding, PartFinding
from etameter.prompts.tables import MIXED, BlockRow, Outcome
from etameter.prompts.verdict import analyse

pytestmark = pytest.mark.unit

ARMS = ("unconstrained", "entrace", "concise")
SURE = World(10, 40, (Way(), Way(0.4, prompt_j=14.0), Way(0.75)), accuracy=0.95, hard_accuracy=0.03)
"""An arm that saves half, one that saves a quarter; accuracy is high, so that 400 prompts show it."""


@cache
def run_of(world: World, seed: int = 1) -> Tables:
    return tables(simulate(world, 1, np.random.default_rng(seed)), 0, ARMS[: len(world.arms)])


def changed(
    run: Tables,
    blocks: Callable[[BlockRow], BlockRow | None] = lambda row: row,
    outcomes: Callable[[Outcome], Outcome | None] = lambda row: row,
) -> Tables:
    """With each row as it is told, or left out."""
    return Tables(
        run.plan,
        [row for each in run.blocks if (row := blocks(each)) is not None],
        [kept for each in run.outcomes if (kept := outcomes(each)) is not None],
    )


def only_part(analysis: Analysis) -> PartFinding:
    (part,) = analysis.parts
    return part


def found(analysis: Analysis, arm: str = "entrace") -> ArmFinding:
    return next(each for each in only_part(analysis).findings if each.arm == arm)


def said(analysis: Analysis) -> list[str]:
    part = only_part(analysis)
    return [
        *analysis.sentences,
        *part.sentences,
        *(sentence for each in part.findings for sentence in each.sentences),
    ]


def claims_nothing(analysis: Analysis) -> bool:
    """In figures and in words."""
    verdicts = {each.energy for each in only_part(analysis).findings}
    words = " ".join(said(analysis))
    return not verdicts & {"saves", "costs more"} and " saved " not in words.replace("what was saved", "")


# ---------------------------------------------------------------------------------------------------------- what is there


def test_a_saving_that_is_there_is_found_and_said_in_one_sentence() -> None:
    analysis = analyse(*run_of(SURE))
    entrace = found(analysis)
    assert (entrace.energy, entrace.accuracy_verdict, entrace.why_not) == ("saves", "kept", None)
    assert entrace.saving is not None
    assert entrace.saving.low < 1 - SURE.ratio(1) < entrace.saving.high
    assert entrace.target == "above"
    assert entrace.detectable is not None
    assert 0 < entrace.detectable < entrace.saving.saving
    low, high = (f"{100 * end:.1f} %" for end in (entrace.saving.low, entrace.saving.high))
    assert analysis.sentences[0] == (
        f"Simulated: At fixed concurrency: entrace saved {100 * entrace.saving.saving:.1f} % [{low}, {high}] of the joules per correct answer "
        "of unconstrained, and accuracy was kept."
    )


def test_its_figures_are_those_of_plain_sums_over_the_rows() -> None:
    run = run_of(SURE)
    joules = {arm: sum(row.energy_j or 0.0 for row in run.blocks if row.arm == arm) for arm in ARMS}
    correct = {arm: sum(row.correct for row in run.blocks if row.arm == arm) for arm in ARMS}
    analysis = analyse(*run)
    for arm in ARMS[1:]:
        saving = found(analysis, arm).saving
        assert saving is not None
        assert saving.arm_j == pytest.approx(joules[arm] / correct[arm])
        assert saving.control_j == pytest.approx(joules["unconstrained"] / correct["unconstrained"])
        assert saving.saving == pytest.approx(1 - saving.arm_j / saving.control_j)
        assert (saving.repeats, saving.prompts) == (10, 400)
    for each in only_part(analysis).arms:
        assert each.energy_j == pytest.approx(joules[each.arm])
        assert each.joules_per_correct == pytest.approx(joules[each.arm] / correct[each.arm])
        assert (each.correct, each.blocks, each.conversations) == (correct[each.arm], 10, 400)


def test_effects_multiply_to_the_ratio() -> None:
    entrace = found(analyse(*run_of(SURE)))
    assert entrace.saving is not None
    assert math.prod(effect.factor for effect in entrace.decomposition) == pytest.approx(1 - entrace.saving.saving)
    by_name = {effect.name: effect.log for effect in entrace.decomposition}
    assert by_name["its own prompt tokens"] > 0 > by_name["output tokens"]


def test_views_are_told_apart_and_are_left_out_where_joules_are_missing() -> None:
    run = run_of(SURE)
    entrace = found(analyse(*run))
    assert [(view.view, view.basis) for view in entrace.views] == [
        ("fully loaded", "counter"),
        ("full", "attributed"),
        ("marginal", "attributed"),
    ]
    assert entrace.views[2].arm_j == pytest.approx(0.8 * entrace.views[1].arm_j)
    first = run.outcomes[0]
    unmetered = changed(run, outcomes=lambda one: replace(one, energy_j=None, marginal_j=None) if one is first else one)
    told = found(analyse(*unmetered))
    assert [view.view for view in told.views] == ["fully loaded"]
    assert {each.why_not for each in told.categories} == {None, "the joules of some of its conversations are not known"}


def test_an_arm_that_costs_more_is_said_to() -> None:
    dearer = replace(SURE, arms=(Way(), Way(2.0)))
    analysis = analyse(*run_of(dearer))
    assert found(analysis).energy == "costs more"
    assert found(analysis).rebound is None
    assert "cost " in analysis.sentences[0]
    assert "more [" in analysis.sentences[0]


def test_the_rebound_of_what_was_saved() -> None:
    entrace = found(analyse(*run_of(SURE)))
    assert entrace.saving is not None
    assert entrace.rebound is not None
    assert entrace.rebound.demand_factor == pytest.approx(1 / (1 - entrace.saving.saving))
    assert entrace.rebound.elasticity["1"] == pytest.approx(1.0)
    assert entrace.rebound.elasticity["0.1"] > entrace.rebound.elasticity["0.5"] > 1


@pytest.mark.parametrize(
    ("ways", "verdict"),
    [
        ((Way(), Way(0.4), Way(0.75)), "better"),
        ((Way(), Way(0.75), Way(0.4)), "worse"),
        ((Way(), Way(0.75, prompt_j=10.0), Way(0.75)), "not told apart"),
    ],
)
def test_an_arm_is_more_than_brevity_or_not(ways: tuple[Way, ...], verdict: str) -> None:
    entrace = found(analyse(*run_of(replace(SURE, arms=ways))))
    assert entrace.against_concise is not None
    assert entrace.against_concise.verdict == verdict
    assert found(analyse(*run_of(replace(SURE, arms=ways))), "concise").against_concise is None


def test_what_costs_less_than_brevity_but_is_right_less_often_is_not_better() -> None:
    ways = Way(), Way(0.4, loss=0.1), Way(0.75)
    against = found(analyse(*run_of(replace(SURE, arms=ways)))).against_concise
    assert against is not None
    assert against.saving is not None
    assert against.saving.low > 0
    assert against.verdict == "not told apart"
    assert against.why_not == "it costs less, but is not shown to be right as often"


def test_arms_that_cost_the_same_are_equal() -> None:
    alike = World(
        24, 40, (Way(), Way(0.75), Way(0.75)), accuracy=1.0, hard_accuracy=0.0, spread_arm=0.01, spread_answer=0.05
    )
    against = found(analyse(*run_of(alike))).against_concise
    assert against is not None
    assert against.verdict == "equal"


def test_of_measured_joules_no_sentence_says_simulated() -> None:
    run = changed(
        run_of(SURE),
        lambda block: replace(block, source="measured", counter="nvml"),
        lambda one: replace(one, source="measured"),
    )
    analysis = analyse(*run)
    assert analysis.source == "measured"
    assert not any("imulated" in sentence for sentence in said(analysis))


def test_every_sentence_of_a_simulated_run_says_so() -> None:
    for run in (run_of(SURE), run_of(World(2, 4))):
        assert all(sentence.startswith("Simulated: ") for sentence in said(analyse(*run)))
    one_simulated = changed(run_of(SURE), lambda block: replace(block, source="measured") if block.block else block)
    assert analyse(*one_simulated).source == "simulated"


def test_the_analysis_is_the_same_whatever_the_order_of_rows_and_goes_into_json() -> None:
    run = run_of(SURE)
    blocks, outcomes = list(run.blocks), list(run.outcomes)
    random.Random(1).shuffle(blocks)
    random.Random(2).shuffle(outcomes)
    told = analyse(*run).to_json()
    assert analyse(run.plan, blocks, outcomes).to_json() == told
    assert json.loads(told)["parts"][0]["findings"][0]["arm"] == "entrace"


# -------------------------------------------------------------------------------------------------------- what is not said


@pytest.mark.parametrize(
    ("world", "why"),
    [
        (World(2, 40), "2 repeats"),
        (World(3, 3), "9 prompts"),
        (World(8, 6, accuracy=0.1, hard_accuracy=0.05), "correct answers"),
    ],
)
def test_too_little_of_anything_claims_nothing(world: World, why: str) -> None:
    analysis = analyse(*run_of(world))
    entrace = found(analysis)
    assert entrace.energy == "too few"
    assert entrace.saving is None
    assert entrace.views == ()
    assert entrace.target is None
    assert entrace.why_not is not None
    assert "too few" in entrace.why_not
    assert why in entrace.why_not
    assert "Nothing is claimed" in analysis.sentences[0]
    assert claims_nothing(analysis)


def test_no_correct_answer_at_all_claims_nothing() -> None:
    run = changed(
        run_of(SURE), lambda block: replace(block, correct=0), lambda one: replace(one, correct=False, reason="wrong")
    )
    analysis = analyse(*run)
    assert found(analysis).energy == "too few"
    assert all(each.joules_per_correct is None for each in only_part(analysis).arms)
    assert claims_nothing(analysis)


def test_a_saving_without_accuracy_shown_is_not_claimed_however_sure() -> None:
    # 120 prompts, half of the answers right: no margin of 5 points can be shown, though joules are halved.
    analysis = analyse(*run_of(World(10, 12, (Way(), Way(0.1)), accuracy=0.5)))
    entrace = found(analysis)
    assert entrace.saving is not None
    assert entrace.saving.low > 0.3
    assert (entrace.accuracy_verdict, entrace.energy) == ("not shown", "not claimed")
    assert "no saving is claimed" in analysis.sentences[0]
    assert claims_nothing(analysis)
    assert entrace.rebound is None


def test_accuracy_that_fell_is_lost_and_no_saving_claimed() -> None:
    analysis = analyse(*run_of(replace(SURE, arms=(Way(), Way(0.3, loss=0.2)))))
    entrace = found(analysis)
    assert (entrace.accuracy_verdict, entrace.energy) == ("lost", "not claimed")
    assert "accuracy was lost" in analysis.sentences[0]
    assert claims_nothing(analysis)


def test_an_interval_that_holds_everything_is_no_sign_of_the_target() -> None:
    wide = found(analyse(*run_of(World(3, 10, (Way(), Way(0.6)), accuracy=0.4))))
    assert wide.target == "inside"
    assert any("62.5 % lies inside" in sentence and "and so does 0." in sentence for sentence in wide.sentences)
    assert not any("so does 0" in sentence for sentence in found(analyse(*run_of(SURE))).sentences)


def test_no_difference_is_not_called_a_saving() -> None:
    analysis = analyse(*run_of(replace(SURE, arms=(Way(), Way(1.0)))))
    assert found(analysis).energy == "not shown"
    assert "not told apart from none" in analysis.sentences[0]
    assert claims_nothing(analysis)


def test_with_many_arms_each_has_to_be_surer() -> None:
    """Beside three arms that do nothing an arm is held to a quarter of the level."""
    lone = World(8, 60, (Way(), Way(0.9)), accuracy=0.98, hard_accuracy=0.01)
    names = ("unconstrained", "a", "b", "c", "d")
    taken = simulate(replace(lone, arms=(Way(), Way(0.9), *(Way(),) * 3)), 6, np.random.default_rng(4))
    alone, among = [], []
    for index in range(6):
        run = tables(taken, index, names)
        one = Tables(
            replace(run.plan, arms=names[:2]),
            [row for row in run.blocks if row.arm in names[:2]],
            [row for row in run.outcomes if row.arm in names[:2]],
        )
        alone.append(found(analyse(*one), "a").energy == "saves")
        among.append(found(analyse(*run), "a").energy == "saves")
    assert 0 < sum(among) < sum(alone)
    assert not any(more and not less for more, less in zip(among, alone, strict=True))


def test_unequal_samples_claim_nothing() -> None:
    run = run_of(SURE)
    lost = next(one for one in run.outcomes if one.arm == "entrace")
    analysis = analyse(*changed(run, outcomes=lambda one: None if one is lost else one))
    entrace = found(analysis)
    assert entrace.energy == "too few"
    assert entrace.why_not is not None
    assert "unequal samples" in entrace.why_not
    assert entrace.accuracy is None
    assert found(analysis, "concise").energy == "saves"


# ----------------------------------------------------------------------------------------------------- what went wrong


def test_a_block_that_is_left_out_takes_its_pair_along_and_is_told() -> None:
    run = run_of(SURE)
    hot = next(row for row in run.blocks if row.arm == "entrace" and row.repeat == 3)
    run = changed(run, lambda row: replace(row, excluded="throttled", energy_j=1e9) if row is hot else row)
    analysis = analyse(*run)
    entrace = found(analysis)
    assert entrace.saving is not None
    assert entrace.saving.repeats == 9
    joules = sum(row.energy_j or 0.0 for row in run.blocks if row.arm == "unconstrained" and row.repeat != 3)
    correct = sum(row.correct for row in run.blocks if row.arm == "unconstrained" and row.repeat != 3)
    assert entrace.saving.control_j == pytest.approx(joules / correct)
    concise = found(analysis, "concise").saving
    assert concise is not None
    assert concise.repeats == 10
    assert [(each.block, each.arm, each.reason) for each in only_part(analysis).excluded] == [
        (hot.block, "entrace", "throttled")
    ]
    assert any("1 block was left out" in sentence and "throttled" in sentence for sentence in analysis.sentences)


def test_a_second_attempt_counts_in_place_of_the_first() -> None:
    run = run_of(SURE)
    gone = run.blocks[0]
    held = [one for one in run.outcomes if one.block == gone.block]
    failed = replace(gone, excluded="server_gone", energy_j=5.0, correct=0)
    blocks = [failed, replace(gone, attempt=1), *run.blocks[1:]]
    outcomes = [
        *(replace(one, correct=False, failure="server_gone", energy_j=None) for one in held[:3]),
        *(replace(one, attempt=1) for one in held),
        *run.outcomes[len(held) :],
    ]
    told, plain = analyse(run.plan, blocks, outcomes), analyse(*run)
    assert found(told).saving == found(plain).saving
    assert found(told).accuracy == found(plain).accuracy
    assert found(told).energy == "saves"


def test_failures_count_against_the_arm_in_accuracy_and_are_told() -> None:
    run = run_of(SURE)
    some = {(one.block, one.task) for one in run.outcomes if one.arm in ARMS[:2]}
    failed = {place for place in sorted(some) if place[1].endswith(("7", "3"))}
    run = changed(
        run,
        outcomes=lambda one: replace(one, correct=False, failure="timeout") if (one.block, one.task) in failed else one,
    )
    analysis = analyse(*run)
    entrace = found(analysis)
    # Both arms failed at the same prompts, and still the arm has to answer for all of them.
    assert entrace.accuracy is not None
    assert entrace.accuracy.unknown == len(failed)
    assert entrace.accuracy.difference < -0.15
    assert entrace.energy == "not claimed"
    sums = {each.arm: each.failures for each in only_part(analysis).arms}
    assert sums["entrace"] == {"timeout": len(failed) // 2}
    assert any("failed" in sentence and "under entrace" in sentence for sentence in analysis.sentences)


def test_what_a_server_refuses_for_its_content_is_wrong_and_known() -> None:
    run = run_of(SURE)
    one = next(row for row in run.outcomes if row.arm == "unconstrained" and row.correct)
    refused = changed(run, outcomes=lambda row: replace(row, correct=False, failure="refused") if row is one else row)
    before, after = (found(analyse(*each)).accuracy for each in (run, refused))
    assert before is not None
    assert after is not None
    assert after.unknown == 0
    assert after.difference == pytest.approx(before.difference + 1 / 400)


def test_a_run_of_nothing_says_so() -> None:
    analysis = analyse(run_of(SURE).plan, [], [])
    assert analysis.parts == ()
    assert analysis.source is None
    assert "nothing is claimed" in analysis.sentences[0]


def test_a_run_whose_blocks_were_all_left_out_claims_nothing() -> None:
    analysis = analyse(*changed(run_of(SURE), lambda row: replace(row, excluded="neighbours")))
    assert found(analysis).energy == "too few"
    assert claims_nothing(analysis)


# ------------------------------------------------------------------------------------------------------------ other parts


def mixed(run: Tables) -> Tables:
    """The same, as if every repeat had been one block of all arms."""
    blocks = [
        replace(row, part="mixed", block=row.repeat, arm=MIXED, arm_hash="") for row in run.blocks if row.position == 0
    ]
    repeats = {row.block: row.repeat for row in run.blocks}
    return Tables(run.plan, blocks, [replace(one, part="mixed", block=repeats[one.block]) for one in run.outcomes])


def test_mixed_arms_are_compared_by_attributed_joules_and_are_secondary() -> None:
    run = run_of(SURE)
    analysis = analyse(*mixed(run))
    part = only_part(analysis)
    assert not part.headline
    assert part.sentences[0].startswith("Simulated: Secondary")
    entrace, plain = found(analysis).saving, found(analyse(*run)).saving
    assert entrace is not None
    assert plain is not None
    assert (entrace.view, entrace.basis) == ("full", "attributed")
    assert entrace.saving == pytest.approx(plain.saving)  # here what is attributed is what was spent
    assert all(each.energy_j is None for each in part.arms)
    assert "nothing is claimed" in analysis.sentences[0]


def test_mixed_arms_need_the_joules_of_every_conversation() -> None:
    run = mixed(run_of(SURE))
    first = run.outcomes[0]
    analysis = analyse(*changed(run, outcomes=lambda one: replace(one, energy_j=None) if one is first else one))
    assert found(analysis).saving is None
    assert found(analysis).why_not == "the joules of some of its conversations are not known"


# ---------------------------------------------------------------------------------------------------------------------- η

AGAIN = World(8, 24, (Way(), Way(0.5), Way(0.75)), crossed=True, accuracy=0.97, hard_accuracy=0.02, spread_answer=0.2)
"""The same 24 prompts eight times over: enough samples for η_task."""


def test_eta_of_tasks_predicts_beside_what_was_measured() -> None:
    entrace = found(analyse(*run_of(AGAIN)))
    (eta,) = entrace.eta
    assert eta.method == "task"
    assert eta.control is not None
    assert eta.arm is not None
    assert eta.low is not None
    assert eta.high is not None
    assert eta.low < eta.arm < eta.high
    assert "K = 8" in eta.note
    prediction = entrace.prediction
    assert prediction is not None
    assert prediction.saving == pytest.approx(1 - eta.control / eta.arm)
    assert prediction.low <= prediction.saving <= prediction.high
    assert prediction.token_saving == pytest.approx(0.5, abs=0.12)
    assert entrace.saving is not None
    assert prediction.measured == entrace.saving.saving
    assert any("1 − η_before/η_after" in sentence for sentence in entrace.sentences)


def test_without_enough_samples_there_is_no_eta_and_no_prediction() -> None:
    entrace = found(analyse(*run_of(SURE)))
    assert [(each.method, each.arm) for each in entrace.eta] == [("task", None)]
    assert "take 8 or more" in entrace.eta[0].note
    assert entrace.prediction is None


def test_methods_stand_side_by_side_with_their_reliability() -> None:
    run = run_of(AGAIN)
    lengths = {(one.arm, one.task): one.output_tokens or 0 for one in run.outcomes}

    def told(one: Outcome) -> Outcome:
        # A bound that knows something of length within the arm, and word lists that know nothing.
        return replace(
            one,
            eta_lenient_at_most=min(1.0, 60 / lengths[one.arm, one.task] + 0.3),
            lexical_slack=0.1,
        )

    entrace = found(analyse(*changed(run, outcomes=told)))
    by_method = {each.method: each for each in entrace.eta}
    assert list(by_method) == ["task", "fast", "lexical"]
    fast, lexical = by_method["fast"], by_method["lexical"]
    assert fast.bound == "at most"
    assert fast.reliability is not None
    assert fast.reliability_low is not None
    assert fast.reliability_high is not None
    assert 0 <= fast.reliability_low < fast.reliability < fast.reliability_high <= 1
    assert fast.bias is not None
    assert lexical.arm == pytest.approx(0.9)
    assert lexical.reliability is None  # what never varies correlates with nothing
    assert (lexical.reliability_low, lexical.reliability_high) == (None, None)
    ends = f"is {fast.reliability:.2f} [{fast.reliability_low:.2f}, {fast.reliability_high:.2f}]"
    assert any(ends in sentence for sentence in entrace.sentences)
    assert lexical.bias is not None
    assert any("squared correlation" in sentence for sentence in entrace.sentences)


def test_categories_are_told_and_claim_nothing() -> None:
    entrace = found(analyse(*run_of(SURE)))
    assert [each.category for each in entrace.categories] == ["arithmetic", "writing"]
    assert [each.prompts for each in entrace.categories] == [200, 200]
    for each in entrace.categories:
        assert each.saving is not None
        assert each.saving.basis == "attributed"
        assert each.accuracy is not None


def test_a_receipt_that_has_not_settled_gives_no_attributed_view() -> None:
    run = run_of(SURE)
    first = next(one for one in run.outcomes if one.arm == "unconstrained")
    late = changed(run, outcomes=lambda one: replace(one, settled=False) if one is first else one)
    assert {view.view for view in found(analyse(*run)).views} == {"fully loaded", "full", "marginal"}
    assert {view.view for view in found(analyse(*late)).views} == {"fully loaded"}
