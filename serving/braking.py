"""The slack brake: ends a stream where nothing but slack would follow. Experimental, and off unless an arm's report or the request itself turns it on.

An ASGI layer between the energy middleware and the server. It reads what goes by; when `slack.brake` says that the answer may end, it gives up the server's part, upon
which the engine aborts the request, and ends the stream in its place: a last chunk with `finish_reason` "stop", and the usage if it was told with each chunk. Streams of one choice
in free text alone are ended: none with tools, a format, or a least length. What isn't braked passes byte for byte.
"""

import asyncio
import json
from collections.abc import Awaitable, Mapping
from typing import Any, Final

from etameter.slack.brake import Brake, identity

from .arms import Arms
from .asgi import BODY, HEAD, Application, Message, Receive, Scope, Send
from .brakes import from_environment
from .texts import prompt_of

HEADER: Final = b"x-etameter-brake"
"""`on` in a request asks for the brake, `off` for none whatever the arm; in a response it says that the brake was on."""
DETECTORS: Final = b"x-etameter-brake-detectors"
"""In such a response: which they were, as `slack.brake.identity` has them."""
BRAKED: Final = "etameter.braked"
"""In the scope: why the answer was ended."""
_LIMIT_BYTES: Final = 256 << 10
_END: Final = b"\n\n"
_OTHER_END: Final = b"\r\n\r\n"
_NOT_FREE: Final = (
    "tools", "functions", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "ignore_eos", "min_tokens", "echo", "suffix", "use_beam_search", "continue_final_message",
)  # fmt: skip


class Braking:
    """Around an application."""

    def __init__(self, app: Application, arms: Arms) -> None:
        self.app = app
        self._arms = arms
        self._brakes = from_environment()
        self.detectors = identity().encode()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        wish = b""
        for name, value in scope["headers"]:
            if name == HEADER:
                wish = value.strip().lower()
                break
        if wish == b"on" or (self._brakes and wish != b"off"):
            return _Stream(self, scope, receive, send, asked=wish == b"on").run()
        return self.app(scope, receive, send)

    def brake_for(self, scope: Scope, body: bytes, *, asked: bool) -> Brake | None:
        """That of a request; None where it isn't to be braked."""
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(request, dict) or not _is_free(request):
            return None
        if not asked:
            model = self._brakes.get(self._arms.of(scope, request))
            if model is None or model != request.get("model"):
                return None
        return Brake(prompt_of(request))


class _Stream:
    """One request and its response."""

    def __init__(self, braking: Braking, scope: Scope, receive: Receive, send: Send, *, asked: bool) -> None:
        self._braking = braking
        self._scope, self._receive, self._send = scope, receive, send
        self._asked = asked
        self._body = b""
        self._brake: Brake | None = None
        self._watches = False
        self._pending = b""
        self._last: dict[str, Any] = {}
        """The event upon which the answer was ended."""
        self._may_end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        serving = asyncio.ensure_future(self._braking.app(self._scope, self._take, self._give))
        try:
            await asyncio.wait({serving, self._may_end}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not serving.done():
                serving.cancel()  # which ends it in the engine, as when a client goes
                await asyncio.wait({serving})
        if not self._may_end.done():
            serving.result()
            return
        if not serving.cancelled():
            serving.exception()  # how it took its end is nobody's concern
        await self._send({"type": BODY, "body": _ending(self._last), "more_body": False})

    async def _take(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and len(self._body) <= _LIMIT_BYTES:
            self._body += message.get("body", b"")
            if not message.get("more_body", False) and len(self._body) <= _LIMIT_BYTES:
                self._brake = self._braking.brake_for(self._scope, self._body, asked=self._asked)
                self._body = b""
        return message

    async def _give(self, message: Message) -> None:
        if message["type"] == HEAD and self._brake is not None:
            headers = [*message.get("headers", ())]
            said = {name.lower(): value for name, value in headers}
            is_stream = said.get(b"content-type", b"").startswith(b"text/event-stream")
            self._watches = message["status"] == 200 and is_stream and b"content-encoding" not in said
            if self._watches:
                message = {**message, "headers": [*headers, (HEADER, b"on"), (DETECTORS, self._braking.detectors)]}
        elif message["type"] == BODY and self._watches:
            message = await self._watched(message)
        elif self._pending:  # it is cut off in the middle of an event
            pending, self._pending = self._pending, b""
            await self._send({"type": BODY, "body": pending, "more_body": True})
        await self._send(message)

    async def _watched(self, message: Message) -> Message:
        """What of a body goes on. Doesn't return where the answer ends: it is cancelled then."""
        *events, self._pending = (self._pending + message.get("body", b"")).split(_END)
        if len(self._pending) > _LIMIT_BYTES or _OTHER_END in self._pending:
            self._watches = False  # it is no stream of events that is known here
        for place, event in enumerate(events):
            cause = self._fed(event)
            if cause is not None:
                passed = b"".join(each + _END for each in events[: place + 1])
                await self._send({"type": BODY, "body": passed, "more_body": True})
                self._scope[BRAKED] = cause
                self._may_end.set_result(None)
                await asyncio.get_running_loop().create_future()
        passed = b"".join(each + _END for each in events)
        if not message.get("more_body", False) or not self._watches:
            passed, self._pending = passed + self._pending, b""
        return {**message, "body": passed}

    def _fed(self, event: bytes) -> str | None:
        """Why the answer may end with this event."""
        if not self._watches or not event.startswith(b"data:") or self._brake is None:
            return None
        try:
            told = json.loads(event[len(b"data:") :])
            (choice,) = told["choices"]
            said = choice["text"] if "text" in choice else choice["delta"].get("content")
            self._watches = choice.get("finish_reason") is None and not choice.get("delta", {}).get("tool_calls")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            self._watches = False  # the last ones, or none that are known
            return None
        if not self._watches or not isinstance(said, str) or not said:
            return None
        self._last = told
        return self._brake.feed(said)


def _is_free(request: Mapping[str, Any]) -> bool:
    """Whether the answer is one stream of free text, which may be ended anywhere."""
    form = request.get("response_format")
    return (
        request.get("stream") is True
        and (request.get("n") is None or request["n"] == 1)
        and isinstance(request.get("prompt", ""), str)
        and (form is None or (isinstance(form, dict) and form.get("type") == "text"))
        and not any(request.get(name) for name in _NOT_FREE)
    )


def _ending(last: Mapping[str, Any]) -> bytes:
    """The events that end a stream after this one."""
    choice = {**last["choices"][0], "logprobs": None, "finish_reason": "stop"}
    choice = {name: value for name, value in choice.items() if name != "token_ids"}
    nothing: dict[str, object] = {"text": ""} if "text" in choice else {"delta": {}}
    ends = [{**last, "choices": [choice | nothing]}]
    if last.get("usage") is not None:
        ends.append({**last, "choices": []})
    return b"".join(b"data: " + json.dumps(end).encode() + _END for end in ends) + b"data: [DONE]\n\n"
