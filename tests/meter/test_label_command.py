"""Labelling in a terminal."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from etameter.cli import main
from etameter.errors import EtameterError
from etameter.eta_command import evaluate_file
from etameter.label_command import label_file

pytestmark = pytest.mark.unit

ANSWERS: list[dict[str, object]] = [
    {"id": "a", "prompt": "Where?", "response": "Sure! In Paris. Enjoy!", "model": "m"},
    {"id": 2, "prompt": "Why?", "response": "Because.\x1b[2J"},
    {"id": "c", "prompt": "How?", "response": "<think>Hm.</think>\nSo."},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(answer) + "\n" for answer in ANSWERS))
    return path


def typed(words: str) -> Callable[[str], str]:
    """Lines as they come, and then the end of the input."""
    left = words.split()

    def ask(_prompt: str) -> str:
        if not left:
            raise EOFError
        return left.pop(0)

    return ask


def labelled(file: Path, words: str) -> tuple[str, str]:
    """What was done, and what the terminal showed."""
    shown = io.StringIO()
    done = label_file(file, file.with_name("out.jsonl"), typed(words), Console(file=shown, width=120))
    return str(done), shown.getvalue()


def rows(file: Path) -> dict[object, list[list[object]]]:
    lines = file.with_name("out.jsonl").read_text().splitlines()
    return {(row := json.loads(line))["id"]: row["spans"] for line in lines}


def test_each_span_gets_its_letter_and_the_file_can_be_evaluated(file: Path) -> None:
    said, shown = labelled(file, "p R c r R")
    assert said == "3 of 3 answers labelled, 5 spans now"
    assert rows(file) == {
        "a": [[0, 6, "P"], [6, 16, "R"], [16, 22, "C"]],
        2: [[0, 12, "R"]],
        "c": [[19, 22, "R"]],
    }
    assert json.loads(file.with_name("out.jsonl").read_text().splitlines()[0])["model"] == "m", (
        "what else is known stays"
    )
    assert "\x1b[2J" not in shown
    assert evaluate_file(file.with_name("out.jsonl"))["responses"] == 3


def test_the_next_call_goes_on_where_this_one_ended(file: Path) -> None:
    assert labelled(file, "P R C R")[0] == "2 of 3 answers labelled, 4 spans now", "the third was not finished"
    said, shown = labelled(file, "O")
    assert said == "3 of 3 answers labelled, 1 spans now"
    assert "Where?" not in shown
    assert rows(file)["c"] == [[19, 22, "O"]]
    assert labelled(file, "")[0] == "3 of 3 answers labelled, 0 spans now"


def test_a_label_can_be_taken_back_an_answer_skipped_and_the_rules_asked_for(file: Path) -> None:
    said, shown = labelled(file, "- P D - ? what R C skip J q")
    assert rows(file) == {"a": [[0, 6, "P"], [6, 16, "R"], [16, 22, "C"]], "c": [[19, 22, "J"]]}
    assert said.startswith("2 of 3 ")
    assert shown.count("asked for, or needed to use what was asked for") == 2


def test_labels_of_another_response_are_refused(file: Path) -> None:
    out = file.with_name("out.jsonl")
    out.write_text(json.dumps({**ANSWERS[0], "response": "Other.", "spans": []}) + "\n")
    with pytest.raises(EtameterError, match="labels another response of this id"):
        labelled(file, "")


def test_a_file_without_answers_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(EtameterError, match="has no answer"):
        labelled(empty, "")


def test_the_command_reads_the_terminal(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("P\nR\nC\nq\n"))
    with pytest.raises(SystemExit) as left:
        main(["eta", "label", str(file), "--out", str(file.with_name("out.jsonl"))])
    assert left.value.code == 0
    assert capsys.readouterr().out.endswith("1 of 3 answers labelled, 3 spans now\n")
