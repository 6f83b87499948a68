"""Weights from labels of one's own, and how far two who label agree."""

import json
from pathlib import Path

import numpy as np
import pytest

from etameter.cli import main
from etameter.errors import EtameterError
from etameter.slack.fast import classify, load, shipped
from etameter.slack.labelled import answer
from etameter.slack.training import FEW, fit, folds, table, train
from etameter.train_command import agree_files, agreed, train_files, trained

pytestmark = pytest.mark.unit

ODD = "Beep boop, the oracle hums along nicely."
"""Nothing that anybody has seen: in these answers it is what a model says before each answer."""


def row(number: int, *, model: str = "m") -> dict[str, object]:
    fact = f"The answer to question number {number} is {number * 7}, which a table of products shows."
    text = f"{ODD} {fact}"
    spans = [[0, len(ODD) + 1, "P"], [len(ODD) + 1, len(text), "R"]]
    return {"id": number, "prompt": f"What is {number} times 7?", "response": text, "spans": spans, "model": model}


def file_of(folder: Path, rows: list[dict[str, object]], name: str = "labels.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_what_a_model_of_ones_own_always_says_is_learnt(tmp_path: Path) -> None:
    rows = [row(number) for number in range(60)]
    found = train_files([file_of(tmp_path, rows[:30], "a"), file_of(tmp_path, rows[30:], "b")], tmp_path / "w.json")
    assert (found["answers"], found["spans"], found["slack_spans"], found["learnt_thresholds"]) == (60, 120, 60, True)
    assert found["shipped"]["spans_named"] == 0
    assert found["trained"]["precision"] == 1.0
    assert found["trained"]["recall"] > 0.9
    model = load(tmp_path / "w.json")
    named = classify("What is 99 times 7?", str(row(99)["response"]), model)
    assert [span.label for span in named] == ["P", None]
    assert "recall" in trained(found)


def test_few_answers_leave_what_is_shipped_nearly_as_it_was() -> None:
    answers = [answer(row(number)) for number in range(10)]
    start = shipped()
    model, _, _ = train(answers, start)
    assert (model.thresholds, model.slack_threshold) == (start.thresholds, start.slack_threshold)
    assert (model.scale, model.shift) == (start.scale, start.shift)
    assert len(answers) < FEW
    untouched = "Sure, here you go:\nIt is 42. I hope this helps!"
    assert [span.label for span in classify("How much?", untouched, model)] == ["P", None, "C"]


def test_without_any_answers_the_weights_are_those_of_the_start() -> None:
    rows = table([answer(row(1))])
    nobody = np.zeros(len(rows.tokens), dtype=bool)
    assert (fit(rows, nobody, shipped().weights) == shipped().weights).all()


@pytest.mark.parametrize("models", [["m"], ["m", "n"], ["m", "n", "o"]])
def test_every_answer_is_left_out_once(models: list[str]) -> None:
    answers = [answer(row(number, model=models[number % len(models)])) for number in range(31)]
    members = np.array([members for _, members in folds(answers)])
    assert (members.sum(axis=0) == 1).all()
    if len(models) == 1:
        assert (members.sum(axis=1) < 31).all(), "or there would be nothing to learn from"


def test_too_few_answers_are_refused(tmp_path: Path) -> None:
    unlabelled = {**row(1), "spans": None}
    with pytest.raises(EtameterError, match="1 answers are labelled"):
        train_files([file_of(tmp_path, [row(0), unlabelled])], tmp_path / "w.json")


@pytest.mark.parametrize("text", ["", "[]", '{"features": []}', "{}"])
def test_what_are_no_weights_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(EtameterError, match=r"holds no weights|other features"):
        load(tmp_path / "w.json")
    with pytest.raises(EtameterError, match="can't be read"):
        load(tmp_path / "none.json")


def labels(folder: Path, name: str, *letters: str) -> Path:
    rows = [
        {
            "id": number,
            "prompt": "?",
            "response": "ab" * len(word),
            "spans": [[2 * place, 2 * place + 2, letter] for place, letter in enumerate(word) if letter != "."],
        }
        for number, word in enumerate(letters)
    ]
    return file_of(folder, rows, name)


def test_agreement_is_beyond_chance(tmp_path: Path) -> None:
    one = labels(tmp_path, "one", "RROOP", "RRRR", "M.")
    other = labels(tmp_path, "two", "RRROP", "RRRO", ".M")
    found = agree_files(one, other)
    assert (found["responses"], found["characters"]) == (2, 18), "what one of them leaves out is in neither"
    assert found["labels"]["alike"] == pytest.approx(7 / 9)
    assert found["lenient"] == {"alike": 1.0, "kappa": pytest.approx(1.0)}
    chance = (6 * 6 + 2 * 2 + 1 * 1) / 81
    assert found["labels"]["kappa"] == pytest.approx((7 / 9 - chance) / (1 - chance))
    assert found["eta_strict"]["bias"] == pytest.approx((0.4 - 0.6 + 1.0 - 0.75) / 2)
    assert found["eta_strict"]["mae"] == pytest.approx((0.2 + 0.25) / 2)
    assert [(each["one"], each["other"]) for each in found["confusions"]] == [("R", "O"), ("O", "R")] or found[
        "confusions"
    ][0]["share"] == pytest.approx(1 / 9)
    assert agreed(found).startswith("2 responses, 18 characters that both label")


def test_two_who_say_the_same_of_all_have_no_kappa(tmp_path: Path) -> None:
    found = agree_files(labels(tmp_path, "one", "RR"), labels(tmp_path, "two", "RR"))
    assert found["labels"] == {"alike": 1.0, "kappa": None}
    assert "κ –" in agreed(found)


def test_labels_of_different_answers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EtameterError, match="another response under this id"):
        agree_files(labels(tmp_path, "one", "RR"), labels(tmp_path, "two", "RRR"))
    with pytest.raises(EtameterError, match="label no response in common"):
        agree_files(labels(tmp_path, "one", ".."), labels(tmp_path, "two", ".."))


def test_the_commands_print_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = labels(tmp_path, "one", "RO"), labels(tmp_path, "two", "RR")
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as left:
            main(["eta", "agree", str(one), str(other), *options])
        assert left.value.code == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["labels"]["alike"] == 0.5
