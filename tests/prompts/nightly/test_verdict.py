import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.prompts.nightly.night import Night
from etameter.prompts.nightly.noise import SHIPPED
from etameter.prompts.nightly.verdict import EXIT_CODES, HEADLINE, judge
from etameter.prompts.nightly.wording import sentences

from .laid_out import figure, run

pytestmark = pytest.mark.unit


def night(day: int, *figures: Any, **told: Any) -> Night:
    return Night(run(run_id=f"202611{day:02}T020000Z-0a1b2c3d", **told), (), figures)


def at(value: float | None, **told: Any) -> Any:
    ends = {} if value is None else {"low": 0.995 * value, "high": 1.005 * value}
    return figure(**{"value": value, **({"low": None, "high": None} if value is None else ends), **told})


def test_a_first_night_compares_nothing_and_is_no_failure() -> None:
    verdict = judge([], night(1, at(3.0)))
    assert (verdict.word, verdict.exit_code, verdict.changes) == ("first", 0, ())


def test_a_second_night_like_the_first_is_the_same() -> None:
    verdict = judge([night(1, at(3.0))], night(2, at(3.01)))
    assert (verdict.word, verdict.exit_code) == ("same", 0)
    assert verdict.compared == ("20261101T020000Z-0a1b2c3d",)


@pytest.mark.parametrize(("factor", "word", "exit_code"), [(1.1, "regression", 3), (0.9, "improvement", 0)])
def test_a_tenth_more_or_less_is_seen_in_the_night_it_comes(factor: float, word: str, exit_code: int) -> None:
    nights = [night(1, at(3.0)), night(2, at(3.01))]
    verdict = judge(nights, night(3, at(3.0 * factor)))
    assert (verdict.word, verdict.exit_code) == (word, exit_code)
    [change] = verdict.changes
    assert change.change is not None
    assert change.low is not None
    assert change.high is not None
    assert change.change == pytest.approx(factor - 1, abs=0.01)
    assert change.low < factor - 1 < change.high
    assert (change.since, change.nights_since, change.nights_before) == ("20261103T020000Z-0a1b2c3d", 1, 2)


def test_where_more_is_better_less_is_worse() -> None:
    nights = [night(day, at(3.0), at(100.0, metric="tokens_per_s")) for day in (1, 2, 3)]
    verdict = judge(nights, night(4, at(3.0), at(80.0, metric="tokens_per_s")))
    assert {change.metric: change.word for change in verdict.changes} == {
        "j_per_token": "same",
        "tokens_per_s": "worse",
    }
    assert verdict.word == "same", "what explains does not decide"


def test_a_change_that_is_sure_and_small_is_none() -> None:
    nights = [night(day, at(3.0, low=2.9999, high=3.0001)) for day in range(1, 15)]
    [change] = judge(nights, night(15, at(3.03, low=3.0299, high=3.0301))).changes
    assert change.word == "same"


def test_a_figure_that_scatters_says_nothing() -> None:
    nights = [night(day, at(3.0 * (1 + 0.2 * (-1) ** day))) for day in (1, 2, 3, 4)]
    verdict = judge(nights, night(5, at(3.3)))
    assert (verdict.word, verdict.exit_code) == ("unclear", 0)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("source", {"source": "measured"}),
        ("model", {"model_hash": "another"}),
        ("configuration", {"config_hash": "another"}),
        ("power cap", {"power_cap_w": 500.0}),
        ("highest clock", {"clock_mhz": 1200.0}),
        ("hardware", {"hardware": {"boards": [{"board": "A100"}], "cpu": "some", "cores": 2}}),
        (
            "hardware",
            {"hardware": {"boards": [{"board": "simulated H100", "gpu_uuid": "GPU-2"}], "cpu": "some", "cores": 2}},
        ),
        ("seed", {"seed": 2}),
        ("tasks", {"tasks_hash": "another"}),
    ],
)
def test_unlike_nights_are_not_compared(what: str, told: Any) -> None:
    verdict = judge([night(1, at(3.0))], night(2, at(9.0), **told))
    assert (verdict.word, verdict.exit_code, verdict.changes) == ("not comparable", 4, ())
    assert [each.what for each in verdict.unlike] == [what]


def test_nights_of_another_name_and_later_ones_are_not_looked_at() -> None:
    nights = [night(1, at(9.0), name="weekly"), night(3, at(9.0))]
    assert judge(nights, night(2, at(3.0))).word == "first"


def test_nights_that_did_not_end_well_are_no_measure() -> None:
    nights = [night(1, at(3.0)), night(2, at(9.0), status="unstable"), night(3, at(9.0), status="incomplete")]
    assert judge(nights, night(4, at(3.0))).compared == ("20261101T020000Z-0a1b2c3d",)


def test_a_night_that_wandered_is_judged_by_nothing() -> None:
    verdict = judge([night(1, at(3.0))], night(2, at(9.0), status="unstable"))
    assert (verdict.word, verdict.exit_code) == ("unstable", 5)
    verdict = judge([night(1, at(3.0))], night(2, at(9.0), status="failed", exit_code=2))
    assert (verdict.word, verdict.exit_code) == ("incomplete", 2)


def test_what_changed_with_the_figures_is_named() -> None:
    nights = [night(day, at(3.0)) for day in (1, 2, 3)] + [night(4, at(3.4), vllm="0.33.0")]
    verdict = judge(nights, night(5, at(3.4), vllm="0.33.0"))
    assert verdict.word == "regression"
    assert [str(each) for each in verdict.changed_too] == ["vLLM: 0.32.0, then 0.33.0"]


@pytest.mark.parametrize("ago", range(1, 8))
def test_what_changed_some_nights_ago_is_named_though_not_every_night_is_tried(ago: int) -> None:
    values = [3.0 + 0.003 * (day % 3) for day in range(20)]
    nights = [
        night(day + 1, at(value * (1.1 if day >= 20 - ago else 1)), vllm="0.33.0" if day >= 20 - ago else "0.32.0")
        for day, value in enumerate(values)
    ]
    verdict = judge(nights[:-1], nights[-1])
    assert verdict.word == "regression"
    assert [str(each) for each in verdict.changed_too] == ["vLLM: 0.32.0, then 0.33.0"]


def test_of_an_old_change_it_is_not_said_since_when() -> None:
    nights = [night(day + 1, at(3.0 * (1.1 if day >= 20 else 1))) for day in range(29)]
    verdict = judge(nights[:-1], nights[-1])
    assert verdict.word == "regression"
    assert "for 7 nights or more." in sentences(run(), verdict)[1]


def test_figures_that_are_unknown_stay_unknown() -> None:
    nights = [night(1, at(3.0))]
    verdict = judge(nights, night(2, at(None, reason="nothing was asked"), at(5.0, stage="batch-1")))
    assert [(change.stage, change.word, change.reason) for change in verdict.changes] == [
        ("batch-8", "unknown", "nothing was asked"),
        ("batch-1", "unknown", "no night before has this figure"),
    ]
    assert verdict.word == "unclear"


@pytest.mark.parametrize("lost", [[at(None, stage="batch-1", reason="no answer was correct")], []])
def test_a_night_that_lost_a_figure_of_the_headline_is_not_the_same(lost: list[Any]) -> None:
    nights = [night(day, at(3.0), at(5.0, stage="batch-1"), at(7.0, stage="sweep-cap-300")) for day in (1, 2)]
    verdict = judge(nights, night(3, at(3.0), *lost))
    assert {change.stage: (change.word, change.lost) for change in verdict.changes} == {
        "batch-8": ("same", False),
        "batch-1": ("unknown", True),
    }
    assert (verdict.word, verdict.exit_code) == ("unclear", 0)
    said = sentences(run(), verdict)
    assert "lacks figures" in said[0]
    assert said[1].removeprefix("Simulated: ").startswith("batch-1 j_per_token: not known, ")
    better = judge(nights, night(3, at(2.0), *lost))
    assert [change.word for change in better.changes] == ["better", "unknown"]
    assert better.word == "unclear"
    assert judge(nights, night(3, at(4.0), *lost)).word == "regression"


@pytest.mark.parametrize(
    ("others", "half", "word"),
    [(0, 0.06, "unclear"), (3, 0.06, "same"), (3, 0.12, "unclear"), (0, 0.01, "same")],
)
def test_a_night_is_the_same_where_together_it_is_known_to_be(others: int, half: float, word: str) -> None:
    """A figure that is known to 8 % alone says too little, beside three that are known well it does not hold the night up, and one that is known to 17 % does."""
    figures = [
        at(3.0, stage="rate-2", low=3.0 * (1 - half), high=3.0 * (1 + half)),
        *(at(3.0, stage=f"batch-{number}") for number in range(others)),
    ]
    verdict = judge([night(1, *figures)], night(2, *figures))
    assert verdict.word == word
    [scattering] = [change for change in verdict.changes if change.stage == "rate-2"]
    assert scattering.word == ("same" if half < 0.03 else "unclear")


def test_zero_has_no_ratio() -> None:
    [change] = judge([night(1, at(3.0))], night(2, at(0.0))).changes
    assert (change.word, change.reason) == ("unknown", "there is no figure above zero, and so no ratio")


def test_an_interval_that_is_narrow_by_chance_is_not_believed_more_than_most() -> None:
    nights = [night(day, at(3.0 + 0.09 * (-1) ** day, low=2.7, high=3.3)) for day in range(1, 6)]
    one, narrow = (judge(nights, night(6, at(3.4, low=3.4 - half, high=3.4 + half))) for half in (0.3, 0.001))
    assert narrow.changes[0].p == pytest.approx(one.changes[0].p, rel=0.2)


def test_an_interval_beyond_all_bounds_says_nothing() -> None:
    verdict = judge([night(1, at(3.0)), night(2, at(3.0))], night(3, at(3e-9, low=0.0, high=1e300)))
    assert verdict.word == "unclear"
    assert math.isfinite(verdict.changes[0].p or math.nan)


def test_many_series_are_held_to_one_false_alarm() -> None:
    """A change that would be shown of one series alone is not shown among a hundred."""
    nights = [[at(3.0 + 0.02 * (-1) ** day, stage=f"batch-{each}") for each in range(100)] for day in range(10)]
    tonight = [at(3.0, stage=f"batch-{each}") for each in range(100)]
    tonight[0] = at(3.16, stage="batch-0")
    alone = judge([night(day + 1, *figures[:1]) for day, figures in enumerate(nights)], night(11, tonight[0]))
    among = judge([night(day + 1, *figures) for day, figures in enumerate(nights)], night(11, *tonight))
    assert (alone.word, among.word) == ("regression", "unclear")


def test_what_all_series_show_need_not_be_shown_by_each_among_all() -> None:
    """After two nights, 7 % more in one of twenty series is too little to say, and in all of them at once is not."""
    stages = [f"batch-{each}" for each in range(20)]
    nights = [night(day, *(at(3.0, stage=stage) for stage in stages)) for day in (1, 2)]
    one = judge(nights, night(3, at(3.21, stage=stages[0]), *(at(3.0, stage=stage) for stage in stages[1:])))
    every = judge(nights, night(3, *(at(3.21, stage=stage) for stage in stages)))
    assert (one.word, every.word) == ("unclear", "regression")
    assert {change.word for change in every.changes} == {"worse"}


@given(st.floats(1e-6, 1e6), st.integers(2, 6), st.integers(0, 1000))
def test_units_do_not_matter(scale: float, count: int, seed: int) -> None:
    values = 3.0 * np.exp(SHIPPED.draw(np.random.default_rng(seed), 1, count, 0.003)[0])
    nights = [night(day + 1, at(value)) for day, value in enumerate(values)]
    scaled = [night(day + 1, at(scale * value)) for day, value in enumerate(values)]
    [one], [other] = (judge(each[:-1], each[-1]).changes for each in (nights, scaled))
    assert one.change is not None
    assert other.change is not None
    assert math.isclose(one.change, other.change, rel_tol=1e-6, abs_tol=1e-9)
    assert replace(one, value=None, change=None, low=None, high=None, p=None) == replace(
        other, value=None, change=None, low=None, high=None, p=None
    )


@pytest.mark.parametrize(
    ("stage", "metric", "decides"),
    [
        ("batch-8", "j_per_token", True),
        ("ab-fixed/concise", "j_per_token", True),
        ("ab-fixed/concise", "j_per_correct_answer", True),
        ("batch-8", "j_per_correct_answer", False),
        ("ab-audit/concise", "j_per_token", False),
        ("external-vllm", "j_per_token", False),
        ("batch-8", "tokens_per_s", False),
    ],
)
def test_what_asks_other_tasks_or_has_no_interval_decides_nothing(stage: str, metric: str, decides: bool) -> None:
    figures = at(3.0, stage="saturation"), at(5.0, stage=stage, metric=metric)
    changes = judge([night(day, *figures) for day in (1, 2, 3)], night(4, *figures)).changes
    [change] = [one for one in changes if one.stage == stage]
    assert change.headline == decides


def test_without_intervals_only_a_history_tells() -> None:
    """One window's figure: how far it scatters isn't known, and not nothing."""
    nights = [night(day, at(3.0 + 0.01 * (day % 2), low=None, high=None)) for day in range(1, 10)]
    [change] = judge(nights[:2], night(3, at(3.6, low=None, high=None))).changes
    assert (change.word, change.p) == ("unclear", None)
    assert "it takes 7 nights" in change.reason
    assert judge(nights, night(10, at(3.6, low=None, high=None))).word == "regression"


def test_exit_codes_are_of_verdicts_that_there_are() -> None:
    assert EXIT_CODES == {"regression": 3, "not comparable": 4, "unstable": 5}
    assert HEADLINE[0] == "j_per_token"
