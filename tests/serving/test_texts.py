import json
from typing import Any

import pytest

from etameter.serving import texts as module
from etameter.serving.texts import Texts

pytestmark = pytest.mark.unit


def event(index: int = 0, text: str | None = None, **delta: Any) -> bytes:
    choice = {"index": index, "delta": delta} if text is None else {"index": index, "text": text}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def chat(*contents: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "S"}, *({"role": "user", "content": each} for each in contents)]}


def test_a_chat_in_one_piece() -> None:
    texts = Texts()
    texts.asked(chat("first", [{"type": "text", "text": "last"}, {"type": "image_url"}]))
    message = {"content": "4", "reasoning_content": "2+2"}
    texts.answered(json.dumps({"choices": [{"index": 0, "message": message}]}).encode())
    assert texts.message() == {"prompts": ["last"], "responses": ["<think>2+2</think>\n4"]}


def test_a_stream_of_two_choices() -> None:
    texts = Texts()
    texts.asked({"prompt": ["a", "b"]})
    texts.went_by(event(1, "B1") + event(0, "A1") + b": alive\n\n")
    texts.went_by(event(0, "A2") + b'data: {"choices":[],"usage":{}}\n\ndata: [DONE]\n\n')
    assert texts.message() == {
        "prompts": ["a", "b"],
        "responses": ["A1A2", "B1"],
        "pieces": [[2, 1, 2, 1], [2, 1]],  # characters and tokens in turn
    }


def test_an_event_has_as_many_tokens_as_it_tells_the_ids_of(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts()
    texts.asked(chat("q"))
    for said in ({"reasoning": "hm"}, {"reasoning": "!", "content": "A"}):
        choice = {"index": 0, "delta": said, "token_ids": [5, 6, 7]}
        texts.went_by(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
    told = texts.message()
    assert told["responses"] == ["<think>hm!</think>\nA"]
    assert told["pieces"] == [[7, 0, 2, 3, 1, 3, 9, 0, 1, 0]], "the three that came with both are counted once"
    monkeypatch.setattr(module, "PIECES_LIMIT", 2)
    assert "pieces" not in texts.message()


def test_a_tool_call_is_put_into_marks() -> None:
    texts = Texts()
    texts.asked(chat("q"))
    for piece in ('{"a"', ":1}"):
        texts.went_by(event(tool_calls=[{"index": 0, "function": {"arguments": piece}}]))
    assert texts.message()["responses"] == ['\n<tool_call>{"a":1}</tool_call>']


@pytest.mark.parametrize("long", ["prompt", "response"])
def test_long_texts_are_let_go(monkeypatch: pytest.MonkeyPatch, long: str) -> None:
    monkeypatch.setattr(module, "LIMIT_BYTES", 40)
    texts = Texts()
    texts.asked(chat("x" * (41 if long == "prompt" else 1)))
    for _ in range(5):
        texts.went_by(event(content="y" * 10))
    assert texts.message() == {"reason": "too_long"}
    assert texts._choices == {}


@pytest.mark.parametrize("request_", [None, [], {}, {"prompt": [1, 2]}, {"messages": "x"}, {"messages": [7]}])
@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b'{"choices":[1]}', b'{"choices":[{"index":0}]}', b"\xff"])
def test_a_response_that_says_nothing_is_told_without_its_prompt(request_: Any, answer: bytes) -> None:
    texts = Texts()
    texts.asked(request_)
    texts.answered(answer)
    texts.went_by(b"data: " + answer + b"\n\n")
    assert set(texts.message()) == {"reason"}


def test_a_choice_whose_number_is_none_is_no_choice() -> None:
    texts = Texts()
    for index in ("0", 1.5, None, True, 0):
        texts.answered(json.dumps({"choices": [{"index": index, "message": {"content": "said"}}]}).encode())
    assert texts.message()["responses"] == ["said"]


TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "never", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "bare"}},
    "no tool",
]


def test_of_what_is_called_the_schemas_are_told() -> None:
    for streamed in (False, True):
        texts = Texts()
        texts.asked({**chat("Rain?"), "tools": TOOLS})
        if streamed:
            texts.went_by(event(tool_calls=[{"index": 0, "function": {"name": "weather", "arguments": ""}}]))
            texts.went_by(event(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}]))
            texts.went_by(event(tool_calls=[{"index": 0, "function": {"arguments": '"Paris"}'}}]))
        else:
            calls = [{"function": {"name": "weather", "arguments": '{"city":"Paris"}'}}]
            texts.answered(json.dumps({"choices": [{"index": 0, "message": {"tool_calls": calls}}]}).encode())
        told = texts.message()
        assert told["responses"] == ['\n<tool_call>{"city":"Paris"}</tool_call>']
        assert (told["calls"], told["tools"]) == ([["weather"]], {"weather": {"type": "object"}})


def test_schemas_that_are_too_long_or_of_nothing_that_was_called_are_not_told() -> None:
    long = [{"type": "function", "function": {"name": "weather", "parameters": {"x": "y" * module.LIMIT_BYTES}}}]
    for tools, name in ((long, "weather"), (TOOLS, "bare"), (TOOLS, "other"), (None, "weather")):
        texts = Texts()
        texts.asked({**chat("Rain?"), "tools": tools})
        calls = [{"function": {"name": name, "arguments": "{}"}}]
        texts.answered(json.dumps({"choices": [{"index": 0, "message": {"tool_calls": calls}}]}).encode())
        assert texts.message().keys() == {"prompts", "responses"}
