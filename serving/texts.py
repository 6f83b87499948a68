"""What was asked and what was answered, collected for the meter to classify. Only where that is turned on; kept nowhere.

Reasoning and tool calls are put into marks, so that whoever reads the answer can tell them from its text.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

LIMIT_BYTES = 256 << 10
"""A request whose prompt and answers are longer isn't classified."""
PIECES_LIMIT = 32_768
"""Of a stream in more of them, only the text is told."""
TOO_LONG = "too_long"
NO_TEXT = "no_text"

_Piece = tuple[str, int]

_REASONING = ("reasoning_content", "reasoning")
"""vLLM's names for it, the older first."""


class Texts:
    """The texts of one request: the prompt, or the last thing that the user said, and each choice; of a stream the pieces in which it came, too."""

    def __init__(self) -> None:
        self._prompts: list[str] = []
        self._tools: dict[str, object] = {}
        """Schemas of what the model may call."""
        self._choices: dict[int, _Choice] = {}
        self._bytes = 0
        self._too_long = False
        self._streamed = False

    def asked(self, request: object) -> None:
        """The body of the request; None where it was too long to be looked into."""
        if request is None:
            self._give_up()
        elif isinstance(request, dict):
            prompts = list(_prompts(request))
            if self._has_room("".join(prompts)):
                self._prompts = prompts
            self._tools = dict(_tools(request))

    def answered(self, body: bytes) -> None:
        """A response in one piece."""
        self._take(body, "message")

    def went_by(self, events: bytes) -> None:
        """Whole events of a stream."""
        self._streamed = True
        for event in events.split(b"\n\n"):
            if event.startswith(b"data:") and not self._too_long:
                self._take(event[len(b"data:") :], "delta")

    def message(self) -> dict[str, object]:
        """What the meter is told: prompts and responses, in the order of the choices, or why there are none."""
        if self._too_long:
            return {"reason": TOO_LONG}
        choices = [self._choices[index] for index in sorted(self._choices)]
        responses = [choice.text() for choice in choices]
        if not any(responses):
            return {"reason": NO_TEXT}
        told: dict[str, object] = {"prompts": self._prompts, "responses": responses}
        if self._streamed and sum(map(len, choices)) <= PIECES_LIMIT:
            told["pieces"] = [choice.pieces() for choice in choices]
        called = {
            name: self._tools[name] for choice in choices for name in choice.names.values() if name in self._tools
        }
        if called and self._bytes + len(json.dumps(called)) <= LIMIT_BYTES:
            told["calls"] = [[*choice.names.values()] for choice in choices]
            told["tools"] = called
        return told

    def _take(self, text: bytes, part: str) -> None:
        try:
            choices = json.loads(text)["choices"]
            for choice in choices:
                self._add(choice["index"], choice.get(part) or {}, choice.get("text"), choice.get("token_ids"))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return  # no answer of the kind that is classified

    def _add(self, index: int, said: Mapping[str, Any], text: str | None, token_ids: object) -> None:
        if type(index) is not int:
            raise TypeError(f"a choice of number {index!r}")
        tokens = len(token_ids) if isinstance(token_ids, list) else 1
        choice = self._choices.setdefault(index, _Choice())
        reasoning = next((said[name] for name in _REASONING if said.get(name)), None)
        calls = []
        for place, call in enumerate(said.get("tool_calls") or ()):
            calls.append(call["function"].get("arguments"))
            if isinstance(name := call["function"].get("name"), str):
                choice.names[call.get("index", place)] = name
        for pieces, piece in (
            (choice.reasoning, reasoning),
            (choice.content, text if text is not None else said.get("content")),
            *((choice.calls, call) for call in calls),
        ):
            if isinstance(piece, str) and piece and self._has_room(piece):
                pieces.append((piece, tokens))
                tokens = 0  # an event's tokens are counted once

    def _has_room(self, text: str) -> bool:
        self._bytes += len(text.encode(errors="replace"))
        if self._bytes > LIMIT_BYTES:
            self._give_up()
        return not self._too_long

    def _give_up(self) -> None:
        self._too_long = True
        self._prompts.clear()
        self._choices.clear()


class _Choice:
    """Pieces of what one choice says, as they came, each with how many tokens came with it: as many as the client was told the ids of, else one."""

    def __init__(self) -> None:
        self.reasoning: list[_Piece] = []
        self.content: list[_Piece] = []
        self.calls: list[_Piece] = []
        self.names: dict[int, str] = {}
        """Of what is called, in the order of the calls."""

    def __len__(self) -> int:
        return len(self.reasoning) + len(self.content) + len(self.calls)

    def text(self) -> str:
        return "".join(text for text, _ in self._marked())

    def pieces(self) -> list[int]:
        """Characters and tokens of each piece in turn."""
        return [number for text, tokens in self._marked() for number in (len(text), tokens)]

    def _marked(self) -> list[_Piece]:
        parts = list(self.content)
        if self.reasoning:
            parts = [("<think>", 0), *self.reasoning, ("</think>\n", 0), *parts]
        if self.calls:
            parts += [("\n<tool_call>", 0), *self.calls, ("</tool_call>", 0)]
        return parts


def prompt_of(request: Mapping[str, Any]) -> str:
    """The one prompt of a request, or the last thing that a chat's user says."""
    return next(iter(_prompts(request)), "")


def _prompts(request: Mapping[str, Any]) -> Iterable[str]:
    """Prompts of a completion, of which some may be token ids, or the last message of a chat's user."""
    messages = request.get("messages")
    if isinstance(messages, list):
        said = [each.get("content") for each in messages if isinstance(each, dict) and each.get("role") == "user"]
        yield _text(said[-1]) if said else ""
        return
    prompt = request.get("prompt")
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    for each in prompt if several and isinstance(prompt, list) else [prompt]:
        yield each if isinstance(each, str) else ""


def _tools(request: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    tools = request.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("parameters"), dict):
            yield str(function.get("name")), function["parameters"]


def _text(content: object) -> str:
    """Of a message, whose content may be a text or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
