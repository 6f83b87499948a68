import json
from pathlib import Path

import pytest

from etameter.cli import main
from etameter.errors import EtameterError
from etameter.eta_command import classify_file, evaluate_file, report

pytestmark = pytest.mark.unit

RESPONSE = "Sure! It is four.\n\nLet me know if you have any other questions!"
ROW = {"id": "a", "prompt": "What is 2+2?", "response": RESPONSE, "spans": [[0, 6, "P"], [6, 17, "R"], [19, 63, "C"]]}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_classify_writes_spans_that_tile_each_response(tmp_path: Path) -> None:
    file = written(tmp_path / "in.jsonl", ROW, {"id": 7, "prompt": "", "response": ""})
    assert "2 responses" in classify_file(file, tmp_path / "out.jsonl")
    first, empty = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["id"], first["eta_strict"], first["method"], first["bound"]) == ("a", None, "fast", "upper")
    assert "".join(RESPONSE[start:end] for start, end, *_ in first["spans"]) == RESPONSE
    assert first["spans"][-1][2] == "C"
    assert first["interval"][1] == first["eta_lenient"] < 1.0
    assert (empty["id"], empty["eta_lenient"], empty["spans"]) == (7, None, [])


def test_evaluate_scores_by_character(tmp_path: Path) -> None:
    found = evaluate_file(written(tmp_path / "in.jsonl", ROW))
    assert isinstance(found["categories"], dict)
    closing = found["categories"]["closing"]
    assert (closing["precision"], closing["recall"]) == (1.0, 1.0)
    assert "closing" in report(found)


def test_slack_without_a_category_is_slack(tmp_path: Path) -> None:
    """Nobody labels an X; it is right where there is slack of any category."""
    again = "Sleep is good for the heart and for the mind. So, sleeping well does your heart and your mind good, as sleep is good."
    span = [46, len(again), "D"]
    found = evaluate_file(written(tmp_path / "in.jsonl", ROW | {"response": again, "spans": [[0, 46, "R"], span]}))
    assert found["slack_without_category"] == 1.0
    assert found["slack_named"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "mcc": pytest.approx(1.0)}
    assert "slack without category, X" in report(found)


JUDGED = {
    "id": "a",
    "eta_strict": 0.2,
    "eta_lenient": 0.3,
    "spans": [[0, 6, "P", 0.0, 1.0], [6, 19, "R", 1.0, 0.0], [19, 63, None, 0.5, 0.5]],
}


def test_what_another_judge_said_is_scored_by_id(tmp_path: Path) -> None:
    file = written(
        tmp_path / "in.jsonl", {"id": "b", "prompt": "", "response": "Not judged.", "spans": [[0, 3, "R"]]}, ROW
    )
    found = evaluate_file(file, written(tmp_path / "judged.jsonl", JUDGED))
    assert found["responses"] == 1
    assert found["slack_lenient"] == found["slack_named"]
    assert found["slack_lenient"]["recall"] == pytest.approx(6 / 50)  # type: ignore[index]
    assert found["slack_strict"]["precision"] == 1.0  # type: ignore[index]
    strict = {"responses": 1, "mae": pytest.approx(abs(0.2 - 11 / 61)), "spearman": None, "not_below": 1.0}
    assert found["eta_strict"] == strict
    assert "η strict of 1" in report(found)


def test_it_is_said_of_which_part_of_the_labels_a_judge_decided(tmp_path: Path) -> None:
    also = {"prompt": "", "response": "Ten here. Ten more.", "spans": [[0, 10, "R"]]}  # nine characters have no label
    file = written(tmp_path / "in.jsonl", ROW, also | {"id": "failed"}, also | {"id": "missing"})
    spans = [[0, 6, "P", 0.0, 1.0], [6, 17, None, 0.5, 0.0], [19, 63, None, None, None]]
    failed = {"id": "failed", "eta_strict": None, "eta_lenient": None, "spans": [[0, 19, None, None, None]]}
    found = evaluate_file(file, written(tmp_path / "judged.jsonl", JUDGED | {"spans": spans}, failed))
    whole = 6 + 11 + 44 + 10 + 10
    assert found["coverage"] == {
        "responses": 3,
        "judged": 1,
        "failed": 1,
        "missing": 1,
        "characters": {
            "labelled_strict": pytest.approx(6 / whole),
            "labelled_lenient": pytest.approx(17 / whole),
            "unclassified": pytest.approx(44 / whole),
            "failed": pytest.approx(10 / whole),
            "missing": pytest.approx(10 / whole),
        },
    }
    told = report(found)
    assert "judged: 1 of 3 labelled responses, 1 failed, 1 missing" in told
    assert "21.0% have a label (strict view: 7.4%), 54.3% are unclassified, 12.3% failed, 12.3% missing" in told
    of_fast = evaluate_file(file)
    assert of_fast["coverage"] is None
    assert "missing" not in report(of_fast)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**JUDGED, "id": "c"}, "that .* says anything of"),
        ({**JUDGED, "eta_strict": "x"}, r"judged\.jsonl:1 has an η that is no number"),
        ({**JUDGED, "spans": 3}, r"judged\.jsonl:1 has spans that are no list"),
        *(
            ({**JUDGED, "spans": [span]}, r"judged\.jsonl:1 has the span")
            for span in ([0, 64, "R", 1, 0], [0, 1, "Z", 1, 0], [0, 1, "R", 2, 0], [0, 1, "R", True, 0], [0, 1, "R"], 7)
        ),
    ],
)
def test_judgements_that_are_none(tmp_path: Path, row: object, says: str) -> None:
    with pytest.raises(EtameterError, match=says):
        evaluate_file(written(tmp_path / "in.jsonl", ROW), written(tmp_path / "judged.jsonl", row))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", ":1 is not JSON (Expecting property name"),
        ("[" * 100_000, ":1 is not JSON (nested too deeply)"),
        ("[]", ":1 is no object"),
        ('{"prompt": "x"}', 'no text as "response"'),
        ('{"prompt": "x", "response": "y", "spans": [[0, 9, "R"]]}', "within the response's 1 characters"),
        ('{"prompt": "x", "response": "y", "spans": [[0, 1, "Z"]]}', "RO"),
        ('{"prompt": "x", "response": "y", "spans": "R"}', "spans that are no list"),
        ('{"prompt": "x", "response": "y", "spans": [[0, 1, "R"], [0, 1, "O"]]}', "over another one"),
        ('{"prompt": "x", "response": "y", "spans": [[1, 0, "R"]]}', "within the response's 1 characters"),
        ('{"prompt": "x", "response": 3}', 'no text as "response"'),
        ('{"prompt": "x", "response": "y"}', "no labelled response"),
        ("", "no labelled response"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "in.jsonl").write_text(line)
    with pytest.raises(EtameterError) as raised:
        evaluate_file(tmp_path / "in.jsonl")
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"prompt": "x"',
        *(f"{json.dumps(ROW)}\n{bad}" for bad in ("[]", '{"prompt": "x"', '{"prompt": "x"}', '{"prompt": "x", "response": null}')),
    ],
)  # fmt: skip
def test_what_can_not_be_classified_leaves_no_half_a_file(tmp_path: Path, text: str) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(text)
    for before in (None, "what was there\n"):
        if before is not None:
            out.write_text(before)
        with pytest.raises(EtameterError, match=r"in\.jsonl"):
            classify_file(file, out)
        assert (out.read_text() if out.exists() else None) == before
        assert {path.name for path in tmp_path.iterdir()} <= {"in.jsonl", "out.jsonl"}


def test_the_input_is_not_written_over(tmp_path: Path) -> None:
    file = written(tmp_path / "in.jsonl", ROW)
    (tmp_path / "link.jsonl").symlink_to(file)
    for out in (file, tmp_path / "link.jsonl", tmp_path / "." / "in.jsonl"):
        with pytest.raises(EtameterError, match="read and written at once"):
            classify_file(file, out)
    assert json.loads(file.read_text()) == ROW


def test_an_output_that_can_not_be_written(tmp_path: Path) -> None:
    file = written(tmp_path / "in.jsonl", ROW)
    for out in (tmp_path / "none" / "out.jsonl", tmp_path, Path("/dev/full")):
        with pytest.raises(EtameterError, match="can't be written"):
            classify_file(file, out)
    assert classify_file(file, Path("/dev/null")) == "1 response classified, in /dev/null"


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "in.jsonl", ROW)
    with pytest.raises(SystemExit) as left:
        main(["eta", "evaluate", str(file), "--json"])
    assert not left.value.code
    assert json.loads(capsys.readouterr().out)["responses"] == 1
    with pytest.raises(SystemExit) as left:
        main(["eta", "classify", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out.jsonl")])
    assert left.value.code == 2
    assert "none.jsonl can't be read" in capsys.readouterr().err
