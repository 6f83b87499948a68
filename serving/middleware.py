"""Energy in vLLM's responses.

    vllm serve MODEL --middleware etameter.serving.middleware.EnergyMiddleware

Chat, plain completions and embeddings get a top-level `energy` object. In a stream it stands in the final usage chunk where the client asked for
usage, else in the last chunk with a `finish_reason`; no chunk is added. Everything else of a response stays byte for byte as it was,
and a response that is no success is not touched at all. Where the meter has no figure within 25 ms, `energy` is null and
`energy_reason` says why, and `energy_receipt_id` under which id `/energy/{receipt_id}` may know it later. With `ETAMETER_SETTLE_RESPONSES=1`
the end of a response waits up to 300 ms for its settled figure. With `ETAMETER_RECEIPT_TOKEN` receipts are only for who bears that token.

A request is recognised in the scheduler by a fresh receipt id, which `in_band` has vLLM insert in the id that it makes for its engine. Before
an engine that tells nothing (`proxy`), the middleware itself tells `Arrivals` of the tokens that go by.

What requests and responses say stays here, unless `ETAMETER_CLASSIFY` is 1: then the meter is told both once, when the response ends, to
find out how much of it was slack.

Where there are budgets, the head of a response says how those stand that its request draws on (`X-Etameter-Budget`), as the meter last told;
nothing where the meter is away, and no request is ever refused.

The meter is told, too, that a client went before its answer was complete, and that a client asks again what it was just answered: of the earlier
question only a keyed hash is kept, in this process, for some minutes.
"""

import asyncio
import hmac
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from etameter.config import socket_path
from etameter.serving import outside
from etameter.serving.arms import Arms
from etameter.serving.arrivals import Arrivals
from etameter.serving.braking import BRAKED, Braking
from etameter.serving.budgets import HEADER, Budgets
from etameter.serving.in_band import put_receipts_in_band, receipt_id
from etameter.serving.link import METER_AWAY, METER_LATE, Answer, MeterLink, answer_in
from etameter.serving.retries import Retries, client_of
from etameter.serving.texts import Texts

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("vllm.etameter")

HOLD_S = 0.025
"""How long the end of a response may wait for its figure."""
SETTLE_S, SETTLE_POLL_S = 0.3, 0.02
"""How long the end of a response may wait for its settled figure where that is wanted: the period of NVML's counter, its lag, and the interval's."""
RECEIPT_WAIT_S = 1.0
EMBEDDINGS = "/v1/embeddings"
ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions", EMBEDDINGS})
RECEIPT_PATH = re.compile(r"/energy/([0-9a-f]{32})")
PARSED_LIMIT_BYTES = 256 << 10
"""Larger request bodies are not looked into, and taken to ask for one choice."""
EVENT_LIMIT_BYTES = 4 << 20
"""A stream without the end of an event for so long is no event stream, and is left alone."""
NOT_IN_BAND = "engine_ids_unpatched"
UNAUTHORIZED = "token_required"
STATUS = {METER_AWAY: 503, METER_LATE: 503, UNAUTHORIZED: 401}
"""Of the answer to who asks for a receipt, by why there is none; 404 for any other reason."""

_MAY_BE_LAST = re.compile(rb'"finish_reason":\s*"|"choices":\s*\[\s*\]')
_UNFINISHED = b'"finish_reason":null'
_FINISHED = re.compile(rb'"finish_reason":\s*"')
_NO_CHOICES = re.compile(rb'"choices":\s*\[\s*\]')
_PUBLIC_ID = re.compile(rb'"id":\s*"([^"\\]{1,256})"')
_END_OF_EVENT = b"\n\n"
_OTHER_END_OF_EVENT = b"\r\n\r\n"

CUT = "http.response.cut"
"""Type of the message with which an application says that its response ends here, incomplete."""


class EnergyMiddleware:
    """Pure ASGI. Costs a request one look at its body and one message each to open it and to ask for its energy."""

    def __init__(self, app: Application, arrivals: Arrivals | None = None) -> None:
        """`arrivals` are told what comes from an engine that tells nothing itself; so are those of `outside`."""
        self.app = app
        self.arrivals = arrivals = arrivals or outside.arrivals()
        self.budgets = Budgets.from_environment()
        self.link = MeterLink(socket_path(), budgets=bool(self.budgets))
        self.arms = Arms.from_environment()
        self.answering = Braking(app, self.arms)
        self.settle = os.environ.get("ETAMETER_SETTLE_RESPONSES") == "1"
        self.receipt_token = os.environ.get("ETAMETER_RECEIPT_TOKEN", "").encode()
        self.classify = os.environ.get("ETAMETER_CLASSIFY") == "1"
        self.in_band = arrivals is not None or put_receipts_in_band()
        self.retries = Retries()
        self._checked_engine = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind in {"http", "lifespan"}:
            self.link.start()
        if kind != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["method"] == "POST" and path in ENDPOINTS:
            self._check_engine(scope)
            await _Exchange(self, scope, receive, send, embeds=path == EMBEDDINGS).serve(scope)
        elif scope["method"] == "GET" and path.startswith("/energy/"):
            # The server logs the path when the response begins: who knows a receipt's id may read it.
            scope["path"] = f"{scope.get('root_path', '')}/energy/"
            scope["raw_path"] = scope["path"].encode()
            await self._answer_receipt(path, scope["headers"], send)
        else:
            await self.app(scope, receive, send)

    def _check_engine(self, scope: Scope) -> None:
        """NIXL's push connector finds a request's other half by its engine id less the last 9 characters: ids stay as they are there. Its pull connector compares whole ones."""
        if self._checked_engine:
            return
        self._checked_engine = True
        vllm_config = getattr(getattr(scope.get("app"), "state", None), "vllm_config", None)
        transfer = getattr(vllm_config, "kv_transfer_config", None)
        connectors = (getattr(transfer, name, None) for name in ("kv_connector", "kv_connector_extra_config"))
        if self.in_band and any("nixlpush" in str(each).lower() for each in connectors):  # alone, or one of several
            self.in_band = False
            logger.warning("etameter: responses carry no energy: NIXL's push connector compares the engine's request ids")

    async def _answer_receipt(self, path: str, headers: Iterable[tuple[bytes, bytes]], send: Send) -> None:
        match = RECEIPT_PATH.fullmatch(path)
        if not self._may_read(headers):
            answer = Answer(None, UNAUTHORIZED)
        elif match is None:
            answer = Answer(None, "no_such_receipt")
        else:
            answer = await answer_in(RECEIPT_WAIT_S, self.link.receipt(match[1]))
        status = 200 if answer.energy is not None else STATUS.get(answer.reason or "", 404)
        body = b"{" + _energy_field(answer) + b"}"
        about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == STATUS[UNAUTHORIZED]:
            about.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": about})
        await send({"type": "http.response.body", "body": body})

    def _may_read(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether who asks bears the token, if there has to be one."""
        borne = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, token = borne.partition(b" ")
        return not self.receipt_token or (
            scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.receipt_token)
        )


class _Exchange:
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

    def __init__(
        self, middleware: EnergyMiddleware, scope: Scope, receive: Receive, send: Send, *, embeds: bool
    ) -> None:
        self.app = middleware.app if embeds else middleware.answering
        self.scope = scope
        self.settle = middleware.settle
        self.link = middleware.link
        self.in_band = middleware.in_band
        self.arms = middleware.arms
        self.budgets = middleware.budgets
        self.draws_on: tuple[str, ...] | None = None
        """Budgets; None where there are none, or the request has not come yet."""
        self.retries = middleware.retries
        self.client = None if embeds else client_of(scope)
        """None where asking again is no retry."""
        self.asked: bytes | None = None
        """A keyed hash of client and question, under which the answer will be known."""
        self.receive = receive
        self.send = send
        self.receipt_id = os.urandom(16).hex()
        self.pass_on: Send = self._begin
        """What the next message of the response meets."""
        self.texts = Texts() if middleware.classify and middleware.in_band and not embeds else None
        """What the meter is to be told of what was said; None where it isn't to be, or has been."""
        self.arriving = middleware.arrivals.of(self.receipt_id) if middleware.arrivals is not None else None
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
        if self.goes_straight_on and message.get("more_body", False):
            data = message.get("body", b"")
            # One event, because it has no line feed but at its end, and in it one `finish_reason`, because there is one choice.
            if self.usual_end and data.endswith(self.usual_end) and data.find(b"\n") == len(data) - 2:
                if self.is_noted:
                    self._note(data)
                return self.send(message)
            if data.endswith(self.end_of_event) and not _MAY_BE_LAST.search(data):
                at = data.rfind(_UNFINISHED)
                if at >= 0 and self.last_choices == 1:
                    self.usual_end = data[at:]
                self._note(data)
                return self.send(message)
        return self._take(message)

    async def _take(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
        elif message["type"] == CUT:
            await self._let_go()
        await self.pass_on(message)

    async def _let_go(self) -> None:
        """No more will come: the client gets what is held as it is."""
        held = self.held + self.pending
        if self.start is not None:
            await self.send(self.start)
            held = b"".join(self.pieces)
        if held:
            await self.send({"type": "http.response.body", "body": held, "more_body": True})

    async def _begin(self, message: Message) -> None:
        """The head of the response decides how the rest is treated."""
        if message["type"] != "http.response.start":
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
        self.pass_on = self._untouched
        if message["status"] == 200 and b"content-encoding" not in headers:
            if content.startswith(b"text/event-stream") and b"content-length" not in headers:
                self.pass_on = self._streamed
                self.goes_straight_on = True
            elif content.startswith(b"application/json"):
                self.pass_on = self._whole
                self.start, self.pieces = message, []
                return
        await self.send(message)

    async def _untouched(self, message: Message) -> None:
        await self.send(message)

    async def _whole(self, message: Message) -> None:
        """A response in one piece: its field goes before the last brace."""
        if message["type"] != "http.response.body":
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
        data = message.get("body", b"")
        more = message.get("more_body", False)
        if message["type"] != "http.response.body":
            await self.send(message)
            return
        data = self.pending + data
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
        passed = [data[:begin], *[await self._event(event + mark) for event in events]]
        if not more:
            passed.append((await self._with_energy(self.held) if self.held else b"") + self.pending)
            self.held = self.pending = b""
        elif len(self.pending) > EVENT_LIMIT_BYTES:
            passed.append(self.held + self.pending)
            self.pass_on = self._untouched
            self.held = self.pending = b""
            self.texts = None
        self.goes_straight_on = self.pass_on == self._streamed and not self.pending and not self.held
        body = b"".join(passed)
        if body or not more:
            await self.send({**message, "body": body})

    async def _event(self, event: bytes) -> bytes:
        """What goes to the client now that `event` has come."""
        self._note(event)
        if event.startswith(b":"):
            return event  # a comment, that keeps the connection alive
        held, self.held = self.held, b""
        if event.startswith((b"data: [DONE]", b"data:[DONE]")):
            return (await self._with_energy(held) if held else b"") + event
        self.finished_choices += len(_FINISHED.findall(event))
        if _NO_CHOICES.search(event) or (_FINISHED.search(event) and self.finished_choices >= self.last_choices):
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
        field = _energy_field(answer, receipt_id, self.scope.get(BRAKED))
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


def _energy_field(answer: Answer, receipt_id: str | None = None, braked: str | None = None) -> bytes:
    """`braked` is why the answer was ended early, if it was."""
    fields: dict[str, Any] = {"energy": answer.energy}
    if braked is not None:
        fields = (
            {"energy": {**answer.energy, "braked": braked}} if answer.energy else {**fields, "energy_braked": braked}
        )
    if answer.energy is None:
        fields["energy_reason"] = answer.reason
        if receipt_id is not None:
            fields["energy_receipt_id"] = receipt_id
    return json.dumps(fields, separators=(",", ":"))[1:-1].encode()


def _choices(request: dict[str, Any]) -> int:
    """How many choices the response will have: `n` for each prompt."""
    n, prompt = request.get("n"), request.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return prompts * n if type(n) is int and n > 0 else prompts
