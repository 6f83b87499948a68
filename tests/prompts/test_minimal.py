"""The least of code that passes, and of calls of tools, in tokens and joules."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import calls
from etameter.cli import main
from etameter.errors import EtameterError
from etameter.prompts import minimal, sandbox
from etameter.prompts.checkers import Code, CodeTest, parse
from etameter.prompts.minimal import Least, least_code

pytestmark = pytest.mark.unit
runs_code = pytest.mark.skipif(sandbox.unavailable() is not None, reason=f"no sandbox: {sandbox.unavailable()}")

DOUBLED = {
    "kind": "code",
    "entry": "double",
    "cases": [{"arguments": [1], "returns": 2}, {"arguments": [3], "returns": 6}, {"arguments": [0], "returns": 0}],
}
WORDY = '''Sure! Here is a function:

```python
import math  # for later

def half(number: float) -> float:
    """Not asked for."""
    return number / 2

def double(number: int) -> int:
    """Doubles a number."""
    result: int = number * 2  # twice
    if result < -10**9:
        raise ValueError("too small")
    return result
```

It multiplies by two. Let me know if you need more!'''
LEAST = "def double(number):\n    result = number * 2\n    return result"
CALL: dict[str, Any] = {
    "request": {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "default": "C"}},
                        "required": ["city"],
                    },
                },
            }
        ]
    },
    "answer": {
        "choices": [
            {
                "message": {
                    "content": None,
                    "tool_calls": [{"function": {"name": "weather", "arguments": '{"city":"Paris","unit":"C"}'}}],
                }
            }
        ],
        "usage": {"completion_tokens": 34},
        "energy": {
            "receipt_id": "r",
            "energy_joules": 30.0,
            "output_joules": 20.0,
            "draft_waste_joules": 3.0,
            "source": "simulated",
        },
    },
}


def checker(**described: Any) -> Code | CodeTest:
    made = parse(json.dumps(DOUBLED | described))
    assert isinstance(made, Code | CodeTest)
    return made


@runs_code
def test_of_code_only_what_its_tests_need_is_left() -> None:
    found = least_code(WORDY, checker())
    assert isinstance(found, Least)
    assert found.text == LEAST
    assert found.minimal
    assert found.checks <= minimal.MOST_CHECKS
    assert found.eta == pytest.approx(13 / 106)


@runs_code
def test_with_few_checks_statements_are_left_and_it_is_not_called_minimal() -> None:
    found = least_code(WORDY, checker(), 3)
    assert isinstance(found, Least)
    assert (found.minimal, found.checks) == (False, 3)
    assert '"""' not in found.text
    assert "-> int" not in found.text
    assert "half" in found.text


@runs_code
def test_hints_that_are_more_than_hints_stay() -> None:
    source = "from dataclasses import dataclass\n@dataclass\nclass P:\n    '''A point.'''\n    x: int\ndef double(number):\n    return P(number).x * 2"
    found = least_code(source, checker(), 4)
    assert isinstance(found, Least)
    assert "x: int" in found.text
    assert "A point" not in found.text


@runs_code
def test_what_is_least_already_stays_whole() -> None:
    found = least_code(LEAST, checker())
    assert isinstance(found, Least)
    assert (found.text, found.eta) == (LEAST, 1.0)


@runs_code
def test_of_a_wrong_answer_nothing_is_known() -> None:
    assert least_code("def double(number): return 3", checker()) == "wrong_answer"


def test_where_nothing_runs_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "unavailable", lambda: "no namespaces")
    assert least_code(LEAST, checker()) == "checker_not_run"


def written(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_calls_are_told_in_tokens_and_joules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [found] = minimal.look(written(tmp_path, CALL))
    with pytest.raises(SystemExit) as left:
        main(["eta", "minimal", str(tmp_path / "answers.jsonl"), "--json"])
    assert (left.value.code, json.loads(capsys.readouterr().out)) == (0, minimal.as_row(found))
    assert (found.kind, found.reason, found.source) == ("call", None, "simulated")
    assert found.eta == pytest.approx((7 + 16) / (7 + 27))
    assert found.beyond_tokens == pytest.approx(11.0)
    assert found.beyond_j == pytest.approx(17.0 * 11 / 34)
    told = minimal.as_row(found)
    assert told["eta_minimal"] == found.eta
    assert "beyond the least: 5.5 J of 1 answers (source=simulated)" in minimal.summary([found])


def test_words_beside_a_call_are_beyond_it() -> None:
    message = CALL["answer"]["choices"][0]["message"]
    alone = minimal.eta_of_calls(CALL["request"]["tools"], message)
    chatty = minimal.eta_of_calls(CALL["request"]["tools"], {**message, "content": "I'll look."})
    assert alone == pytest.approx(23 / 34)
    assert chatty == pytest.approx(23 / 44)


@runs_code
def test_code_is_told_so_too(tmp_path: Path) -> None:
    answer = {"choices": [{"message": {"content": WORDY}}], "usage": {"completion_tokens": 106}}
    [found] = minimal.look(written(tmp_path, {"id": 7, "request": {}, "answer": answer, "checker": DOUBLED}))
    assert (found.id, found.kind, found.beyond_j, found.source) == (7, "code", None, None)
    assert found.beyond_tokens == pytest.approx(93.0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({**CALL, "request": {}}, "call_unknown"),
        ({"request": {}, "answer": {"choices": [{"message": {"content": "4"}}]}}, "no_code_or_call"),
    ],
)
def test_what_is_not_known_has_a_reason(tmp_path: Path, line: dict[str, Any], reason: str) -> None:
    [found] = minimal.look(written(tmp_path, line))
    assert (found.eta, found.reason) == (None, reason)
    assert f"1 not known: {reason}" in minimal.summary([found])


def test_what_is_no_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EtameterError, match=r"answers.jsonl:1 is no request with its answer"):
        minimal.look(written(tmp_path, {"request": {}}))


@runs_code
def test_code_that_is_deeper_than_can_be_written_is_kept_as_it_is() -> None:
    """A model may write such a thing at any time, in the middle of a run."""
    source = f"def double(number):\n    waste = {'+'.join(['1'] * 1500)}\n    return number * 2\n"
    assert least_code(source, checker()) == Least(source, 1.0, 1, minimal=False)


@pytest.mark.parametrize("told", [{"usage": [1]}, {"usage": {"completion_tokens": "many"}}])
def test_a_usage_that_is_none_is_unknown(told: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({**CALL, "answer": {**CALL["answer"], **told}}) + "\n")
    (found,) = minimal.look(path)
    assert (found.output_tokens, found.beyond_tokens) == (None, None)


@pytest.mark.parametrize("calls", [5, "ab", [1]])
def test_calls_that_are_none_are_unknown(calls: object, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({**CALL, "answer": {"choices": [{"message": {"tool_calls": calls}}]}}) + "\n")
    (found,) = minimal.look(path)
    assert (found.kind, found.eta, found.reason) == ("call", None, "call_unknown")


def call_for(question: calls.Question, *, wordy: bool) -> str:
    """The arguments that are right, or with all defaults and a key that nobody knows."""
    parameters = next(
        tool["function"]["parameters"] for tool in calls.TOOLS if tool["function"]["name"] == question.name
    )
    defaults = {name: each["default"] for name, each in parameters["properties"].items() if "default" in each}
    told = {**defaults, **question.arguments, "why": "asked"} if wordy else question.arguments
    return json.dumps(told, separators=(",", ":"))


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_generated_calls_are_right_however_they_are_written_and_have_slack_where_they_say_more(
    seed: int, count: int
) -> None:
    asked = calls.questions(seed, count)
    assert asked == calls.questions(seed, count + 1)[:count]
    for question in asked:
        line: dict[str, Any] = {"request": calls.request_of(question, "m")}
        line["calls"] = [{"name": question.name, "arguments": dict(question.arguments)}]
        for wordy in (False, True):
            function = {"name": question.name, "arguments": call_for(question, wordy=wordy)}
            line["answer"] = {"choices": [{"message": {"content": None, "tool_calls": [{"function": function}]}}]}
            found = minimal._look_at(line, "here", 1)
            assert (found.kind, found.reason) == ("call", None)
            assert found.eta is not None
            assert (found.eta == 1.0) is not wordy


@pytest.mark.parametrize("wrong", [{"city": "Rome", "unit": "C"}, {"city": "Paris", "unit": "F"}, {}])
def test_a_call_that_does_something_else_has_no_eta(tmp_path: Path, wrong: dict[str, Any]) -> None:
    right = {"name": "weather", "arguments": {"city": "Paris"}}
    lines = [{**CALL, "calls": wanted} for wanted in ([right], [right, right], [{**right, "arguments": wrong}])]
    assert [found.reason for found in minimal.look(written(tmp_path, *lines))] == [None, *["wrong_answer"] * 2]


@pytest.mark.parametrize(
    ("days", "reason"), [("1.0", None), ("1e0", None), ("1.5", "wrong_answer"), ("true", "wrong_answer")]
)
def test_a_number_is_the_same_however_it_is_written(days: str, reason: str | None, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"days": {"type": "number"}}, "required": ["days"]}
    function = {"name": "forecast", "arguments": f'{{"days":{days}}}'}
    line = {
        **CALL,
        "request": {"messages": [], "tools": [{"function": {"name": "forecast", "parameters": schema}}]},
        "answer": {"choices": [{"message": {"content": None, "tool_calls": [{"function": function}]}}]},
        "calls": [{"name": "forecast", "arguments": {"days": 1}}],
    }
    (found,) = minimal.look(written(tmp_path, line))
    assert found.reason == reason


@pytest.mark.parametrize("wanted", [5, ["weather"], [{"name": "weather"}]])
def test_calls_to_compare_with_that_are_none_are_refused(tmp_path: Path, wanted: object) -> None:
    with pytest.raises(EtameterError, match=r"answers.jsonl:1 has "):
        minimal.look(written(tmp_path, {**CALL, "calls": wanted}))


def test_a_server_is_asked_for_calls(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        question = next(each for each in calls.questions(1, 8) if each.text == body["messages"][0]["content"])
        function = {"name": question.name, "arguments": call_for(question, wordy=True)}
        message = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
        return web.json_response({"choices": [{"message": message}], "usage": {"completion_tokens": 20}})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def collected() -> list[dict[str, Any]]:
        application = web.Application()
        application.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", answer)])
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            return await calls.collect(f"http://127.0.0.1:{runner.addresses[0][1]}", 1, 8)
        finally:
            await runner.cleanup()

    found = minimal.look(written(tmp_path, *asyncio.run(collected())))
    assert [each.id for each in found] == [f"calls-1-{number}" for number in range(8)]
    assert all(each.eta is not None and each.eta < 1.0 and each.beyond_tokens for each in found)
