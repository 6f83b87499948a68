"""Questions out, replies in, through files."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from etameter.audit_command import ask, read_replies, write_questions
from etameter.cli import main
from etameter.errors import EtameterError
from tests.prompts.upstream import Upstream, running

pytestmark = pytest.mark.unit

ANSWERS = [
    {"id": "a", "prompt": "Name the capital of France.", "response": "Sure! It is Paris. I hope this helps!"},
    {"prompt": "Say nothing.", "response": ""},
    {"id": "c", "prompt": "Long?", "response": "word " * 20_000},
]
LABELS = {1: "P", 2: "R", 3: "C"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(answer) + "\n" for answer in ANSWERS))
    return path


def questions(file: Path) -> list[dict[str, Any]]:
    write_questions(file, out := file.with_name("questions.jsonl"), "m")
    return [json.loads(line) for line in out.read_text().splitlines()]


def reply(question: dict[str, Any], content: object, status: int = 200) -> str:
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]}
    response = {"status_code": status, "request_id": "r", "body": body}
    return json.dumps({"id": "b", "custom_id": question["custom_id"], "response": response, "error": None})


def labels(given: dict[int, str]) -> str:
    return json.dumps({"demands": ["the capital"], "spans": [{"n": n, "demand": 0, "label": given[n]} for n in given]})


def judged(file: Path, lines: list[str]) -> tuple[str, list[dict[str, Any]]]:
    replies, out = file.with_name("replies.jsonl"), file.with_name("out.jsonl")
    replies.write_text("\n".join(lines))
    said = read_replies(file, replies, out)
    return said, [json.loads(line) for line in out.read_text().splitlines()]


def test_questions_are_a_batch(file: Path) -> None:
    asked = questions(file)
    assert len(asked) == 2  # of the first answer alone: the others are empty and too long
    assert len({line["custom_id"] for line in asked}) == 2
    for line in asked:
        assert (line["method"], line["url"], line["body"]["model"]) == ("POST", "/v1/chat/completions", "m")


def test_replies_become_labels_and_eta(file: Path) -> None:
    first, second = questions(file)
    said, [a, b, c] = judged(
        file, [reply(second, labels(LABELS)), reply(first, [{"type": "text", "text": labels(LABELS)}])]
    )
    assert said.startswith("1 of 3 responses judged, 3 of 3 spans labelled alike in both orders, in ")
    assert [span[2:] for span in a["spans"]] == [["P", 0.0, 1.0], ["R", 1.0, 0.0], ["C", 0.0, 1.0]]
    assert a["eta_strict"] == a["eta_lenient"] == pytest.approx(13 / 37, abs=1e-4)
    assert (a["method"], a["unclassified"], a["reason"]) == ("deep", 0.0, None)
    assert (b["id"], b["eta_strict"], b["reason"], b["spans"]) == (2, None, "no_text", [])
    assert (c["id"], c["eta_lenient"], c["reason"]) == ("c", None, "too_long")


def test_a_judge_that_fails_leaves_spans_unclassified(file: Path) -> None:
    first, second = questions(file)
    said, [a, _, _] = judged(file, [reply(first, labels(LABELS)), reply(second, "busy", status=503)])
    assert "1 replies missing or without a label" in said
    assert (a["eta_strict"], a["unclassified"], a["reason"]) == (None, 1.0, "not_judged")


@pytest.mark.parametrize("failed_first", [True, False])
def test_a_question_that_was_asked_again_has_the_reply_that_came(file: Path, failed_first: bool) -> None:
    first, second = questions(file)
    of_second = [reply(second, None, status=503), reply(second, labels(LABELS))]
    said, _ = judged(file, [reply(first, labels(LABELS)), *(of_second if failed_first else of_second[::-1])])
    assert said.startswith("1 of 3 responses judged, 3 of 3 spans")


def test_replies_to_other_answers_are_refused_and_nothing_is_written(file: Path) -> None:
    first, _ = questions(file)
    file.with_name("out.jsonl").write_text("before")
    with pytest.raises(EtameterError, match=r"no reply in .*replies\.jsonl is to a question about"):
        judged(file, [reply(first | {"custom_id": "1-other"}, labels(LABELS))])
    assert file.with_name("out.jsonl").read_text() == "before"
    assert not list(file.parent.glob("*.part"))


def by_rule(messages: list[dict[str, str]]) -> str:
    assert '<span n="3">I hope this helps!</span>' in messages[1]["content"]
    return labels(LABELS)


def asked(upstream: Upstream, file: Path, model: str | None) -> str:
    async def within() -> str:
        async with running(upstream) as url:
            return await asyncio.to_thread(ask, file, f"{url}/v1/", model, file.with_name("out.jsonl"))

    return asyncio.run(within())


@pytest.mark.parametrize(("metered", "energy"), [(True, " J for 1 of 2 questions (source="), (False, "judge unknown")])
def test_a_server_is_asked_at_once(file: Path, metered: bool, energy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.prompts.upstream.LONGEST_PROMPT", 10_000)
    upstream = Upstream(by_rule, metered=metered)
    said = asked(upstream, file, None)
    assert said.startswith("1 of 3 responses judged, 3 of 3 spans labelled alike")
    assert energy in said
    assert [request["model"] for request in upstream.requests] == ["small", "small"]
    assert upstream.arms == ["audit", "audit"]
    assert json.loads(file.with_name("out.jsonl").read_text().splitlines()[0])["eta_lenient"] == pytest.approx(
        13 / 37, abs=1e-4
    )


def test_a_judge_that_refuses_leaves_spans_unclassified(file: Path) -> None:
    said = asked(Upstream(by_rule), file, "m")  # its context is far too small
    assert said.startswith("0 of 3 responses judged")
    assert "2 replies missing or without a label (the server refuses a request (400: " in said


def test_a_question_upon_which_the_judge_fails_costs_no_other(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.prompts.upstream.LONGEST_PROMPT", 10_000)

    def half(messages: list[dict[str, str]]) -> str:
        return "fail" if "from the last" in messages[0]["content"] else by_rule(messages)

    said = asked(Upstream(half), file, "m")
    assert said.startswith("0 of 3 responses judged, 0 of 3 spans labelled alike in both orders; 1 replies missing")
    assert "(500: " in said


def test_what_came_before_the_judge_went_away_is_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.prompts.upstream.LONGEST_PROMPT", 10_000)
    monkeypatch.setattr("etameter.audit_command.AT_ONCE", 1)
    file.write_text(json.dumps(ANSWERS[0] | {"id": "a"}) + "\n" + json.dumps(ANSWERS[0] | {"id": "b"}) + "\n")
    upstream = Upstream(by_rule)
    whole = upstream.chat

    async def some(request: web.Request) -> web.StreamResponse:
        if len(upstream.requests) == 3:
            raise web.HTTPTooManyRequests
        return await whole(request)

    monkeypatch.setattr(upstream, "chat", some)
    said = asked(upstream, file, "m")
    assert said.startswith("1 of 2 responses judged")
    assert "1 replies missing or without a label (the server refuses a request (429: " in said


@pytest.mark.parametrize("content", [None, [{"type": "refusal", "refusal": "No."}], "", {"text": "1: R"}])
def test_replies_without_text_leave_spans_unclassified(file: Path, content: object) -> None:
    first, second = questions(file)
    said, [a, _, _] = judged(file, [reply(first, labels(LABELS)), reply(second, content)])
    assert "1 replies missing or without a label" in said
    assert (a["eta_lenient"], a["reason"]) == (None, "not_judged")


def test_thinking_beside_a_reply_is_none_of_its_labels(file: Path) -> None:
    first, second = questions(file)
    thought = json.loads(reply(second, labels(LABELS)))
    thought["response"]["body"]["choices"][0]["message"]["reasoning_content"] = labels(dict.fromkeys(LABELS, "O"))
    said, _ = judged(file, [reply(first, "<think>2: O</think>\n" + labels(LABELS)), json.dumps(thought)])
    assert said.startswith("1 of 3 responses judged, 3 of 3 spans labelled alike")


def test_an_answer_of_which_one_view_alone_is_known_is_judged(file: Path) -> None:
    first, second = questions(file)
    one, other = dict.fromkeys(LABELS, "R"), dict.fromkeys(LABELS, "O")
    said, [a, _, _] = judged(file, [reply(first, labels(one)), reply(second, labels(other))])
    assert said.startswith("1 of 3 responses judged, 0 of 3 spans labelled alike")
    assert (a["eta_strict"], a["eta_lenient"]) == (None, 1.0)


def test_a_server_that_is_away_writes_nothing(file: Path) -> None:
    with pytest.raises(EtameterError, match="does not answer"):
        ask(file, "http://127.0.0.1:9", "m", file.with_name("out.jsonl"))
    assert not file.with_name("out.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", r"replies\.jsonl:1 is not JSON"), ("[]", "is no object"), ('{"id": 3}', 'has no "custom_id"')],
)
def test_lines_that_are_no_replies(file: Path, line: str, message: str) -> None:
    with pytest.raises(EtameterError, match=message):
        judged(file, [line])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs one of three forms"),
        (["--url", "http://127.0.0.1:9"], "needs one of three forms"),
        (["--batch-in", "r", "--out", "o", "--model", "m"], "needs one of three forms"),
        (["--batch-in", "r"], "needs one of three forms"),
        (["--batch-out", "answers.jsonl"], "is read and written at once"),
        (["--batch-out", "nowhere/q.jsonl"], "can't be written"),
        (["--batch-in", "nowhere.jsonl", "--out", "o"], "can't be read"),
    ],
)
def test_bad_options(
    file: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    with pytest.raises(SystemExit) as left:
        main(["eta", "audit", "answers.jsonl", *options])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert json.loads(file.read_text().splitlines()[0]) == ANSWERS[0]
