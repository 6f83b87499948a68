"""What a response shows of its tokens as it goes by: for a server whose engine tells nothing itself.

Each part of an answer that says something is taken for one token, until the server's own `usage` says how many there were. How long a prompt is
is known by the first `usage` too; before, it is guessed from the size of the request, by the tokens a byte of the requests before it.
An answer that is not streamed shows nothing before its end. Its tokens are taken to have come evenly, the first after the prompt was read.
"""

import json
import re
import time
import uuid
from typing import Any

from .streamed import TokenSteps

_SAYING = re.compile(rb'"(?:content|reasoning_content|reasoning|text|arguments)":\s*"(?!")')
_USAGE = re.compile(rb'"usage":\s*\{')
_REASON = re.compile(rb'"finish_reason":\s*"([a-z_]{1,32})"')
_MOST_TOKENS = 1 << 31
"""A count that no model reaches: it is not believed."""
_GUESS_TOKENS, _GUESS_BYTES = 256, 1024
"""What is guessed from, before there was a `usage`: four bytes a token."""
ABORT = "abort"


class Arrivals:
    """All responses of one server. Used from one thread."""

    def __init__(self, steps: TokenSteps) -> None:
        self.steps = steps
        self.output_tokens = 0
        """Of all responses until now."""
        self._known_tokens, self._known_bytes = _GUESS_TOKENS, _GUESS_BYTES

    def of(self, receipt_id: str) -> "Arriving":
        """A response that is to come. In the ring its request is known by an id that ends as one of vLLM's with the receipt's id in it does."""
        return Arriving(self, f"proxy-{receipt_id}{uuid.uuid4().hex[:8]}")

    def guess_tokens(self, size_bytes: int) -> int:
        """Of the prompt in a request of so many bytes."""
        return min(max(1, size_bytes * self._known_tokens // self._known_bytes), _MOST_TOKENS - 1)

    def learn(self, size_bytes: int, prompt_tokens: int) -> None:
        """So many tokens were in a request of so many bytes."""
        self._known_bytes += size_bytes
        self._known_tokens += prompt_tokens


class Arriving:
    """One response."""

    def __init__(self, server: Arrivals, request_id: str) -> None:
        self._server = server
        self._steps = server.steps
        self._request_id = request_id
        self._sent_ns = time.monotonic_ns()
        self._size_bytes = 0
        self._prompt_tokens = 0
        """As the server told it; 0 before."""
        self._tokens = 0
        self._reason = ABORT
        self._ended = False

    def asked(self, size_bytes: int) -> None:
        """The whole request has gone to the server."""
        self._size_bytes = size_bytes
        self._sent_ns = time.monotonic_ns()

    def went_by(self, events: bytes) -> None:
        """Whole events of a stream."""
        if self._ended:
            return
        new = len(_SAYING.findall(events))
        if b'"usage"' in events and _USAGE.search(events):
            for line in events.splitlines():
                if line.startswith(b"data:") and _USAGE.search(line):
                    new = max(new, self._told(_usage(line[len(b"data:") :])) - self._tokens)
        if new > 0:
            self._came(new, time.monotonic_ns())
        if b'"finish_reason":null' not in events and (reason := _REASON.search(events)):
            self._reason = reason[1].decode()

    def answered(self, body: bytes) -> None:
        """A response in one piece."""
        usage = _usage(body)
        new = self._told(usage)
        if new > 0 or self._prompt_tokens:  # of an embedding it is all prompt
            details = usage.get("prompt_tokens_details")
            cached = _count(details, "cached_tokens") if isinstance(details, dict) else 0
            now_ns = time.monotonic_ns()
            first_ns = self._sent_ns + (now_ns - self._sent_ns) // max(new, 1)
            self._came(min(new, 1), first_ns, min(cached, self._prompt_tokens))
            if new > 1:
                self._came(new - 1, now_ns)
        reason = _REASON.search(body)
        self._reason = reason[1].decode() if reason else "stop"

    def ended(self) -> None:
        """Nothing more comes. What is said after the first time has no effect."""
        if not self._ended:
            self._ended = True
            self._steps.finished(self._request_id, time.monotonic_ns(), self._reason)

    def _told(self, usage: dict[str, Any]) -> int:
        """Output tokens until now, by the server's own count."""
        prompt_tokens = _count(usage, "prompt_tokens")
        if prompt_tokens and not self._prompt_tokens:
            self._prompt_tokens = prompt_tokens
            self._server.learn(self._size_bytes, prompt_tokens)
        return _count(usage, "completion_tokens")

    def _came(self, tokens: int, t_ns: int, cached_tokens: int = 0) -> None:
        # Once a response has begun, nobody asks how long its prompt was.
        prompt_tokens = self._prompt_tokens
        if not prompt_tokens and not self._tokens:
            prompt_tokens = self._server.guess_tokens(self._size_bytes)
        self._tokens += tokens
        self._server.output_tokens += tokens
        self._steps.arrived(self._request_id, self._sent_ns, prompt_tokens, tokens, t_ns, cached_tokens)


def _usage(text: bytes) -> dict[str, Any]:
    """Empty where there is none."""
    try:
        usage = json.loads(text)["usage"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return {}
    return usage if isinstance(usage, dict) else {}


def _count(usage: dict[str, Any], name: str) -> int:
    """0 where it is no count."""
    value = usage.get(name)
    return value if type(value) is int and 0 <= value < _MOST_TOKENS else 0
