"""One request and its response: what goes by, and where in it the energy goes.

Nearly all of a stream is handed on by a plain function that makes no coroutine of its own; a chunk is looked into where it may be the last one.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable
from typing import Any, Protocol

from .arms import Arms
from .arrivals import Arrivals
from .asgi import BODY, CUT, HEAD, Application, Message, Receive, Scope, Send
from .braking import BRAKED
from .budgets import HEADER, Budgets
from .in_band import receipt_id
from .link import METER_AWAY, Answer, MeterLink, answer_in
from .retries import Retries, client_of
from .texts import Texts

HOLD_S = 0.025
"""How long the end of a response may wait for its figure."""
SETTLE_S, SETTLE_POLL_S = 0.3, 0.02
"""How long the end of a response may wait for its settled figure where that is wanted: the period of NVML's counter, its lag, and the interval's."""
PARSED_LIMIT_BYTES = 256 << 10
"""Larger request bodies are not looked into, and taken to ask for one choice."""
EVENT_LIMIT_BYTES = 4 << 20
"""A stream without the end of an event for so long is no event stream, and is left alone."""
NOT_IN_BAND = "engine_ids_unpatched"

_MAY_BE_LAST = re.compile(rb'"finish_reason":\s*"|"choices":\s*\[\s*\]')
_UNFINISHED = b'"finish_reason":null'
_FINISHED = re.compile(rb'"finish_reason":\s*"')
_NO_CHOICES = re.compile(rb'"choices":\s*\[\s*\]')
_PUBLIC_ID = re.compile(rb'"id":\s*"([^"\\]{1,256})"')
_END_OF_EVENT = b"\n\n"
_OTHER_END_OF_EVENT = b"\r\n\r\n"
_DONE = b"data: [DONE]", b"data:[DONE]"

_compact = json.JSONEncoder(separators=(",", ":")).encode


class Metering(Protocol):
    """What the requests of a server have in common."""

    app: Application
    answering: Application
    """The same, with the slack brake around it."""
    arms: Arms
    arrivals: Arrivals | None
    budgets: Budgets
    link: MeterLink
    retries: Retries
    in_band: bool
    """The engine knows its requests by their receipt ids."""
    classify: bool
    settle: bool


class Exchange:
    """One request and its response."""

    answered = False
    complete = False
    """The client has got all of its answer."""
    abandoned = False
    request_body = b""
    request_bytes = 0
    last_choices = 1
    """So many choices end before the response does."""
    start: Message | None = None
    """The head of a response that is not streamed: held until its length is known."""
    pieces: list[bytes]
    """Of its body. Joined once, when the last has come: to add each to what there was would copy that every time."""
    goes_straight_on = False
    """The response is streamed, and nothing of it is kept back."""
    usual_end = b""
    """How all events but the last end: from their `finish_reason` on, which is null. Empty while that isn't known."""
    pending = b""
    """The beginning of an event."""
    held = b""
    """An event that may be the last."""
    finished_choices = 0
    question: asyncio.Future[Answer] | None = None
    end_of_event = _END_OF_EVENT

    def __init__(self, metering: Metering, scope: Scope, receive: Receive, send: Send, *, embeds: bool) -> None:
        self.app = metering.app if embeds else metering.answering
        self.scope = scope
        self.settle = metering.settle
        self.link = metering.link
        self.in_band = metering.in_band
        self.arms = metering.arms
        self.budgets = metering.budgets
        self.draws_on: tuple[str, ...] | None = None
        """Budgets; None where there are none, or the request has not come yet."""
        self.retries = metering.retries
        self.client = None if embeds else client_of(scope)
        """None where asking again is no retry."""
        self.asked: bytes | None = None
        """A keyed hash of client and question, under which the answer will be known."""
        self.receive = receive
        self.send = send
        self.receipt_id = os.urandom(16).hex()
        self.pass_on: Send = self._begin
        """What the next message of the response meets."""
        self.texts = Texts() if metering.classify and metering.in_band and not embeds else None
        """What the meter is to be told of what was said; None where it isn't to be, or has been."""
        self.arriving = metering.arrivals.of(self.receipt_id) if metering.arrivals is not None else None
        self.is_noted = self.texts is not None or self.arriving is not None
        """Somebody wants to know what goes by."""

    async def serve(self, scope: Scope) -> None:
        token = receipt_id.set(self.receipt_id if self.in_band else None)
        try:
            await self.app(scope, self._receive, self._send)
        except (asyncio.CancelledError, ConnectionResetError):  # how a server may say that its client is gone
            self.abandoned = not self.complete
            raise
        finally:
            receipt_id.reset(token)
            if self.question is not None:
                self.question.cancel()
            if self.arriving is not None:
                self.arriving.ended()
            self._tell()
            if self.abandoned and self.in_band:
                self.link.wasted(self.receipt_id, "abandoned")
            if self.asked is not None and self.answered and not self.abandoned:
                self.retries.answered(self.asked, self.receipt_id)
            self.link.closed(self.receipt_id)

    async def _receive(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            body = message.get("body", b"")
            self.request_bytes += len(body)
            if len(self.request_body) <= PARSED_LIMIT_BYTES:
                self.request_body += body
            if not message.get("more_body", False):
                self._open()
        elif message["type"] == "http.disconnect" and not self.complete:
            self.abandoned = True
        return message

    def _open(self) -> None:
        """Announce the request, vLLM may refuse it or not."""
        request = None
        if len(self.request_body) <= PARSED_LIMIT_BYTES:
            try:
                request = json.loads(self.request_body)
            except (ValueError, RecursionError):
                request = {}
            if isinstance(request, dict):
                self.last_choices = _choices(request)
        if self.texts is not None:
            self.texts.asked(request)
        if self.client is not None and isinstance(request, dict) and self.in_band:
            self.asked = self.retries.hash_of(self.client, request)
            earlier = None if self.asked is None else self.retries.asked(self.asked)
            if earlier is not None:
                self.link.wasted(earlier, "retry")
        self.request_body = b""
        arm = self.arms.of(self.scope, request)
        self.draws_on = self.budgets.of(self.scope, arm) if self.budgets else None
        self.link.opened(self.receipt_id, arm, self.draws_on)
        if self.arriving is not None:
            self.arriving.asked(self.request_bytes)

    def _send(self, message: Message) -> Awaitable[None]:
        """No coroutine itself: nearly all of a stream goes straight on."""
        more = message.get("more_body", False)
        if self.goes_straight_on:
            data = message.get("body", b"")
            # One event, because it has no line feed but at its end, and in it one `finish_reason`, because there is one choice.
            if more and self.usual_end and data.endswith(self.usual_end) and data.find(b"\n") == len(data) - 2:
                if self.is_noted:
                    self._note(data)
                return self.send(message)
            if more and data.endswith(self.end_of_event) and not _MAY_BE_LAST.search(data):
                at = data.rfind(_UNFINISHED)
                if at >= 0 and self.last_choices == 1:
                    self.usual_end = data[at:]
                self._note(data)
                return self.send(message)
        if message["type"] == CUT:
            return self._let_go(message)
        if message["type"] == BODY and not more:
            self.complete = True
            if self.goes_straight_on and not data:
                return self.send(message)
        return self.pass_on(message)

    async def _let_go(self, cut: Message) -> None:
        """No more will come: the client gets what is held as it is."""
        held = self.held + self.pending
        if self.start is not None:
            await self.send(self.start)
            held = b"".join(self.pieces)
        if held:
            await self.send({"type": BODY, "body": held, "more_body": True})
        await self.send(cut)

    async def _begin(self, message: Message) -> None:
        """The head of the response decides how the rest is treated."""
        if message["type"] != HEAD:
            await self.send(message)
            return
        self.answered = message["status"] == 200
        if not self.answered:
            self.texts = None  # a refusal is no response that could have been classified
        elif self.draws_on and (standings := self.link.standings(self.draws_on)):
            told = (HEADER, ", ".join(standings).encode())
            message = {**message, "headers": [*message.get("headers", ()), told]}
        headers = {name.lower(): value for name, value in message.get("headers", ())}
        content = headers.get(b"content-type", b"")
        self.pass_on = self.send
        if message["status"] == 200 and b"content-encoding" not in headers:
            if content.startswith(b"text/event-stream") and b"content-length" not in headers:
                self.pass_on = self._streamed
                self.goes_straight_on = True
            elif content.startswith(b"application/json"):
                self.pass_on = self._whole
                self.start, self.pieces = message, []
                return
        await self.send(message)

    async def _whole(self, message: Message) -> None:
        """A response in one piece: its field goes before the last brace."""
        if message["type"] != BODY:
            await self.send(message)
            return
        self.pieces.append(message.get("body", b""))
        if message.get("more_body", False) or self.start is None:
            return
        body = b"".join(self.pieces)
        if self.texts is not None:
            self.texts.answered(body)
        if self.arriving is not None:
            self.arriving.answered(body)
        body = await self._with_energy(body)
        headers = [
            (name, str(len(body)).encode() if name.lower() == b"content-length" else value)
            for name, value in self.start.get("headers", ())
        ]
        await self.send({**self.start, "headers": headers})
        await self.send({**message, "body": body})

    async def _streamed(self, message: Message) -> None:
        """Whole events go on as they come, but for one that may be the last."""
        if message["type"] != BODY:
            await self.send(message)
            return
        data = self.pending + message.get("body", b"")
        more = message.get("more_body", False)
        if self.end_of_event not in data and _OTHER_END_OF_EVENT in data:
            self.end_of_event = _OTHER_END_OF_EVENT
        mark = self.end_of_event
        end = data.rfind(mark) + len(mark) if mark in data else 0
        begin = 0
        if not self.held:  # what can't be the last goes on at once, however many events it is
            last = _MAY_BE_LAST.search(data, 0, end)
            begin = data.rfind(mark, 0, last.start() if last else end) + len(mark)
            begin = 0 if begin < len(mark) else begin
            if begin:
                self._note(data[:begin])
        *events, self.pending = data[begin:].split(mark)
        passed = [data[:begin]]
        for event in events:
            if self.held and event.startswith(_DONE):
                self.held = await self._with_energy(self.held)
            passed.append(self._event(event + mark))
        if not more:
            passed.append((await self._with_energy(self.held) if self.held else b"") + self.pending)
            self.held = self.pending = b""
        elif len(self.pending) > EVENT_LIMIT_BYTES:
            passed.append(self.held + self.pending)
            self.pass_on = self.send
            self.held = self.pending = b""
            self.texts = None
        self.goes_straight_on = self.pass_on == self._streamed and not self.pending and not self.held
        body = b"".join(passed)
        if body or not more:
            await self.send({**message, "body": body})

    def _event(self, event: bytes) -> bytes:
        """What goes to the client now that `event` has come."""
        self._note(event)
        if event.startswith(b":"):
            return event  # a comment, that keeps the connection alive
        held, self.held = self.held, b""
        finished = len(_FINISHED.findall(event))
        self.finished_choices += finished
        if (finished and self.finished_choices >= self.last_choices) or _NO_CHOICES.search(event):
            self.held = event
            if self.arriving is None:  # else it is this exchange that knows when all has come
                self._ask(event)
            return held
        return held + event

    def _note(self, events: bytes) -> None:
        """Whole events go by."""
        if self.texts is not None:
            self.texts.went_by(events)
        if self.arriving is not None:
            self.arriving.went_by(events)

    def _ask(self, part: bytes) -> None:
        """Have the meter look the figure up while the response ends."""
        self._tell()
        if self.question is None and self.in_band:
            public_id = _PUBLIC_ID.search(part)
            self.question = self.link.ask(self.receipt_id, public_id[1].decode(errors="replace") if public_id else None)

    def _tell(self) -> None:
        """Let the meter know what was said, once."""
        texts, self.texts = self.texts, None
        if texts is not None:
            self.link.said(self.receipt_id, texts.message())

    async def _with_energy(self, part: bytes) -> bytes:
        """The last part of a response, with its field; as it was where it is no JSON object."""
        self.complete = True
        end = part.rstrip()
        if not end.endswith(b"}"):
            return part
        if self.arriving is not None:
            self.arriving.ended()
        self._ask(part)
        answer = Answer(None, NOT_IN_BAND) if self.question is None else await answer_in(HOLD_S, self.question)
        if self.settle and self.question is not None:
            answer = await self._settled(answer)
        comma = b"" if end[:-1].rstrip().endswith(b"{") else b","
        receipt_id = None if self.question is None else self.receipt_id
        field = energy_field(answer, receipt_id, self.scope.get(BRAKED))
        return end[:-1] + comma + field + part[len(end) - 1 :]

    async def _settled(self, answer: Answer) -> Answer:
        """The figure once it is settled; the last one there was, where that takes too long."""
        deadline_s = time.monotonic() + SETTLE_S
        while not (answer.energy or {}).get("settled") and answer.reason != METER_AWAY:
            if time.monotonic() > deadline_s:
                break
            await asyncio.sleep(SETTLE_POLL_S)
            later = await answer_in(HOLD_S, self.link.receipt(self.receipt_id))
            answer = later if later.energy is not None or answer.energy is None else answer
        return answer


def energy_field(answer: Answer, receipt_id: str | None = None, braked: str | None = None) -> bytes:
    """`braked` is why the answer was ended early, if it was."""
    if answer.energy is not None:
        energy = answer.energy if braked is None else {**answer.energy, "braked": braked}
        return b'"energy":' + _compact(energy).encode()
    fields: dict[str, Any] = {"energy": None}
    if braked is not None:
        fields["energy_braked"] = braked
    fields["energy_reason"] = answer.reason
    if receipt_id is not None:
        fields["energy_receipt_id"] = receipt_id
    return _compact(fields)[1:-1].encode()


def _choices(request: dict[str, Any]) -> int:
    """How many choices the response will have: `n` for each prompt."""
    n, prompt = request.get("n"), request.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return prompts * n if type(n) is int and n > 0 else prompts
