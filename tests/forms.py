"""The forms in which a server is asked, and what of an answer's bytes is the server's own."""

import json
import re
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tests.serving.real_server import MODEL_NAME

Form = tuple[str, dict[str, Any]]

_TOOL = {"type": "function", "function": {"name": "paint", "parameters": {"type": "object", "properties": {}}}}
_SPEAK = {"messages": [{"role": "user", "content": "Name a colour."}]}
_BRIEFLY = {"model": MODEL_NAME, "max_tokens": 6, "temperature": 0}
_OF_THREE = {"n": 3, "temperature": 1, "seed": 1}
FORMS: dict[str, Form] = {
    "chat": ("/v1/chat/completions", _BRIEFLY | _SPEAK),
    "chat, three answers": ("/v1/chat/completions", _BRIEFLY | _SPEAK | _OF_THREE),
    "chat, a tool's call": (
        "/v1/chat/completions",
        _BRIEFLY | _SPEAK | {"max_tokens": 60, "tools": [_TOOL], "tool_choice": "required"},
    ),
    "completions": ("/v1/completions", _BRIEFLY | {"prompt": "The sky is"}),
    "completions, two prompts": ("/v1/completions", _BRIEFLY | {"prompt": ["The sky is", "Grass is very"]}),
}
EMBEDDINGS: dict[str, Form] = {
    "embeddings": ("/v1/embeddings", {"model": MODEL_NAME, "input": "The sky is"}),
    "embeddings, two prompts": ("/v1/embeddings", {"model": MODEL_NAME, "input": ["The sky is", "Grass is very"]}),
    "embeddings of a chat": ("/v1/embeddings", {"model": MODEL_NAME, **_SPEAK}),
}

_FIELD = re.compile(rb',"energy":(?:\{.*\}|null,"energy_reason":"\w+","energy_receipt_id":"[0-9a-f]{32}")(?=\}\n?)')
"""Ours, before the last brace of a line."""
_CHOICE = re.compile(rb'"choices":\[\{"index":(\d+)')
_SAID = re.compile(rb',?"(content|reasoning|text|arguments)":(?:null|"((?:[^"\\]|\\.)*)")')
_PASSING = re.compile(rb'"created":\d+|"chatcmpl-tool-[0-9a-f]+"')
"""What no two answers have in common: the instant, and what vLLM calls a tool's call."""


@dataclass(frozen=True)
class Told:
    """What was heard of a server."""

    body: bytes

    @property
    def own(self) -> list[bytes]:
        """What is not ours of the answer, without what passes. Of a stream its events one choice after the other, and what each choice says.

        A server that is behind puts several tokens into one event: events that differ in no more than what they say are one here.
        """
        answer = _PASSING.sub(b"", _FIELD.sub(b"", self.body))
        if not answer.startswith(b"data: "):
            return [answer]
        parts = sorted(answer.split(b"\n\n"), key=_choice)
        said: defaultdict[tuple[int, bytes], bytes] = defaultdict(bytes)
        for part in parts:
            for kind, text in _SAID.findall(part):
                said[_choice(part), kind] += text
        events = [event for event, _ in groupby(_SAID.sub(b"", part) for part in parts)]
        return events + [b"%d, %b: %b" % (*where, text) for where, text in sorted(said.items())]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The whole answer, or each event of its stream."""
        lines = [line.removeprefix(b"data: ") for line in self.body.split(b"\n\n")]
        return [json.loads(line) for line in lines if line not in {b"", b"[DONE]"}]

    @property
    def energy(self) -> dict[str, Any] | None:
        """In the last object, and in no other."""
        *others, last = self.objects
        assert not any("energy" in each for each in others)
        assert ("energy_reason" in last) == (last["energy"] is None)
        energy: dict[str, Any] | None = last["energy"]
        return energy


def _choice(part: bytes) -> int:
    """Whose event it is; a number beyond all where it is no single choice's."""
    found = _CHOICE.search(part)
    return int(found[1]) if found else sys.maxsize


def ask(url: str, form: Form, *, stream: bool) -> Told:
    """Both times the same question has the same answer, and ids."""
    path, question = form
    if stream:
        question = question | {"stream": True, "stream_options": {"include_usage": True}}
    headers = {"Content-Type": "application/json", "X-Request-Id": "same"}
    request = urllib.request.Request(f"{url}{path}", json.dumps(question).encode(), headers)
    try:
        response = urllib.request.urlopen(request, timeout=60.0)
    except urllib.error.HTTPError as refused:
        with refused:
            raise AssertionError(refused.read().decode()) from refused
    with response:
        body = response.read()
        length = response.headers["Content-Length"]
        assert length is None if stream else int(length) == len(body)
    return Told(body)
