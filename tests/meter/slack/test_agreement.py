"""Scores worked by hand."""

import pytest

from etameter.slack.agreement import Said, Scored, agreement, scored
from etameter.slack.labels import Label

pytestmark = pytest.mark.unit

TRUTH: list[Label | None] = ["P", "P", "R", "R", "R", "O", "C", None]


def response(*said: Said, strict: float | None = None, lenient: float | None = None) -> Scored:
    return scored(TRUTH, said, strict, lenient)


def test_what_agrees_in_part() -> None:
    found = agreement(
        [
            response(
                Said(0, 2, "P", 0.0, 1.0),
                Said(2, 4, "R", 1.0, 0.0),
                Said(4, 5, "X", 0.0, 1.0),
                Said(5, 7, None, 0.5, 0.5),
                Said(7, 8, "J", 0.0, 1.0),  # of a character that nobody labelled
                strict=0.5,
                lenient=0.6,
            )
        ]
    )
    assert found["slack_named"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "mcc": 5 / 12})
    assert found["slack_strict"]["precision"] == pytest.approx(2 / 3)
    assert found["slack_strict"]["recall"] == pytest.approx(2 / 4)
    assert found["unclassified"] == 0.0  # ½ says that it is not known which: nothing is left out
    assert found["slack_without_category"] == 0.0
    assert found["calibration_lenient"] == pytest.approx(1 / 7)  # of three said to be slack two are, of two halves one
    assert found["calibration_strict"] == pytest.approx(2 / 7)
    assert found["categories"]["preamble"]["f1"] == 1.0
    assert found["categories"]["closing"]["precision"] is None
    assert found["categories"]["junk"]["precision"] is None
    assert found["eta_strict"] == {
        "responses": 1,
        "mae": pytest.approx(0.5 - 3 / 7),
        "spearman": None,
        "not_below": 1.0,
    }
    assert found["eta_lenient"]["mae"] == pytest.approx(0.6 - 4 / 7)


def test_probability_names_slack_where_no_label_does() -> None:
    found = agreement([response(Said(0, 2, None, None, 0.6), Said(2, 8, None, None, None))])
    assert (found["calibration_lenient"], found["calibration_strict"]) == (pytest.approx(0.4), None)
    assert found["slack_named"]["precision"] is None
    assert found["slack_lenient"]["precision"] == 1.0
    assert found["slack_lenient"]["recall"] == pytest.approx(2 / 3)
    assert found["slack_strict"] is None
    assert found["unclassified"] == pytest.approx(5 / 7)
    assert found["eta_strict"]["mae"] is None


def test_ranks_of_eta_are_compared() -> None:
    one, other, third = (
        scored([*"RC"[: 1 + (k > 0)], *"C" * k], [], strict, None) for k, strict in ((0, 0.9), (1, 0.4), (3, 0.5))
    )
    assert agreement([one, other, third])["eta_strict"]["spearman"] == pytest.approx(0.5)
    assert agreement([])["responses"] == 0
