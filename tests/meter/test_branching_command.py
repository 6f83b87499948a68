"""`etameter eta branching`."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from etameter.branching_command import report_of, text_of
from etameter.cli import main
from etameter.errors import EtameterError

pytestmark = pytest.mark.unit

PIECES = ["Sure, here", " you go:\n", "It", " is", " “", "Par", "is", "”."]
RESPONSE = "".join(PIECES)


def token(text: str, choices: int) -> dict[str, Any]:
    """One of so many equally likely tokens, the others of which are told."""
    top = [{"token": f"{text}{place or ''}", "logprob": -math.log(choices)} for place in range(choices)]
    return {"token": text, "bytes": list(text.encode()), "logprob": -math.log(choices), "top_logprobs": top}


def answer(slack: int = 4, rest: int = 1, **about: Any) -> dict[str, Any]:
    tokens = [token(piece, slack if place < 2 else rest) for place, piece in enumerate(PIECES)]
    ending = {**token("<|end|>", 3), "bytes": []}
    return {"prompt": "Where?", "response": RESPONSE, "logprobs": {"content": [*tokens, ending]}, **about}


def report(folder: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return report_of(path)


def test_slack_is_told_from_the_rest_and_arms_from_each_other(tmp_path: Path) -> None:
    rows = [answer(prompt=f"{number}?", arm="long") for number in range(12)]
    rows += [answer(2, 2, prompt=f"{number}?", arm="short") for number in range(12)]
    found = report(tmp_path, *rows)
    assert (found["answers"], found["labels"]) == (24, "fast")
    slack, rest = found["groups"]["slack"], found["groups"]["not shown to be slack"]
    assert (slack["tokens"], rest["tokens"]) == (48, 144)
    assert slack["low"] == slack["high"] == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert found["arms"]["long"]["forced"] == 0.75
    assert found["slack_less_required"]["pairs"] == 24
    assert found["slack_less_required_at_like_place"]["pairs"] == 0
    assert found["slack_less_required"]["difference"] == pytest.approx(math.log(4) / 2)
    (arms,) = found["arm_differences"]
    assert (arms["arm"], arms["less"], arms["pairs"]) == ("long", "short", 12)
    assert arms["difference"] == pytest.approx((2 * math.log(4) - 8 * math.log(2)) / 8)
    assert arms["half_width"] == pytest.approx(0.0, abs=1e-9)


def test_tokens_that_have_one_text_are_tokens_of_their_own(tmp_path: Path) -> None:
    """As parts of characters have, which no text shows."""
    told = answer()
    for each in told["logprobs"]["content"]:
        each["top_logprobs"] = [{"token": each["token"], "logprob": -math.log(4)}] * 2 + [
            {"token": "\ufffd", "logprob": -math.log(4)}
        ] * 2
        each["logprob"] = -math.log(4)
    found = report(tmp_path, told)
    assert [group["low"] for group in found["groups"].values()] == pytest.approx([math.log(4)] * 2)


def test_labels_of_the_file_go_before_what_is_named(tmp_path: Path) -> None:
    spans = [[0, 19, "P"], [19, len(RESPONSE), "R"]]
    found = report(tmp_path, answer(spans=spans), {**answer(), "logprobs": None})
    assert found["labels"] == "of the file"
    assert set(found["groups"]) == {"slack", "required"}
    assert found["slack_less_required"] == {"difference": pytest.approx(math.log(4)), "half_width": None, "pairs": 1}
    assert found["slack_less_required_after_first"]["difference"] == pytest.approx(math.log(4))
    unlabelled = report(tmp_path, answer(spans=[[0, 19, "O"]]))
    assert {name: each["tokens"] for name, each in unlabelled["groups"].items()} == {"optional": 2}


def test_the_first_token_of_each_span_can_be_left_out(tmp_path: Path) -> None:
    row = answer(spans=[[0, 19, "P"], [19, len(RESPONSE), "R"]])
    row["logprobs"]["content"][2] = token("It", 50)
    found = report(tmp_path, row)
    assert found["slack_less_required"]["difference"] < found["slack_less_required_after_first"]["difference"]


def test_what_comes_late_is_compared_with_what_comes_late(tmp_path: Path) -> None:
    words = [f"w{place} " for place in range(12)]
    tokens = [token(word, 1 + place) for place, word in enumerate(words)]
    text = "".join(words)
    row = {
        "prompt": "?",
        "response": text,
        "logprobs": {"content": tokens},
        "spans": [[0, 18, "R"], [18, len(text), "O"]],
    }
    found = report(tmp_path, row)
    assert found["slack_less_required"]["difference"] > 0.5
    assert abs(found["slack_less_required_at_like_place"]["difference"]) < 0.1


def test_tokens_may_split_characters(tmp_path: Path) -> None:
    text = "Où ça ? 🙂"
    content = [{**token("x", 2), "bytes": [byte]} for byte in text.encode()]
    found = report(tmp_path, {**answer(), "response": text, "logprobs": {"content": content}})
    assert found["arms"]["unlabelled"]["tokens"] == len(text.encode())


def test_a_token_that_was_drawn_against_all_odds_counts_with_the_likeliest(tmp_path: Path) -> None:
    rare = {**token(PIECES[0], 1), "logprob": math.log(1e-3)}
    rare["top_logprobs"] = [{"token": "No", "logprob": math.log(0.999)}]
    row = answer()
    row["logprobs"]["content"][0] = rare
    assert report(tmp_path, row)["groups"]["slack"]["high"] < (0.02 + math.log(4)) / 2


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"logprobs": None}, "has no log-probabilities"),
        ({"logprobs": [1]}, "of another form"),
        ({"logprobs": {"content": [token("Sure", 2)]}}, r"log-probabilities of 4 bytes for a response of"),
        ({"logprobs": {"content": [{"logprob": -1.0}]}}, "a token without text"),
        (
            {"logprobs": {"content": [{"token": RESPONSE, "logprob": 0.5, "top_logprobs": []}]}},
            "probabilities that sum to",
        ),
        ({"logprobs": {"content": [{"token": RESPONSE, "logprob": "x", "top_logprobs": []}]}}, "that are none"),
    ],
)
def test_what_cant_be_read_is_named(tmp_path: Path, about: dict[str, Any], message: str) -> None:
    with pytest.raises(EtameterError, match=message):
        report(tmp_path, answer(**about))


def test_labels_for_some_answers_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EtameterError, match="labels for 1 of 2 answers"):
        report(tmp_path, answer(spans=[[0, 19, "P"]]), answer())


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(answer()) + "\n")
    for options, begins in (([], "1 answers, labels: fast\n"), (["--json"], '{"answers": 1')):
        with pytest.raises(SystemExit) as left:
            main(["eta", "branching", str(path), *options])
        assert left.value.code == 0
        assert capsys.readouterr().out.startswith(begins)
    text = text_of(report_of(path))
    assert "slack less the rest, within answers: +1.386 (1 pairs)" in text
    assert "the same at like places of answers: nothing to compare" in text, "eight tokens are too few"
