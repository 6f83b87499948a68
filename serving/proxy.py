"""A reverse proxy that meters: for an OpenAI-compatible server that can't be restarted with etameter's hooks in it.

The server is presented as an ASGI application, which aiohttp's server runs under the same middleware that runs in vLLM: responses get their
`energy` by the same code. Everything else passes as it came, but for headers that are between two neighbours only. Nothing is collected
on its way, in either direction, but for answers that aren't streamed; who reads slowly is waited for.

When the client goes, the request to the server is given up at once. When the server goes, its client gets a 502 that names it, or, after the
beginning of an answer, what there is of it and no proper end.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self

from aiohttp import (
    ClientError,
    ClientPayloadError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    StreamReader,
    TCPConnector,
    hdrs,
    web,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from .arrivals import Arrivals
from .asgi import BODY, CUT, HEAD, Message, Receive, Scope, Send
from .middleware import EnergyMiddleware

CONNECT_TIMEOUT_S = 10.0
"""The only one there is: an answer takes as long as it takes."""
KEPT_ALIVE_S = 4.0
"""Less than the 5 s after which uvicorn and llama.cpp close a connection that nobody uses: none is taken that they are about to close."""
LONGEST_HEADER_BYTES = 64 << 10

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)
_ADDED_BY_CLIENTS = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT)
_REQUEST = "etameter.request"
_ALONE = "etameter.alone"
"""In the message with a response's head: nothing of its body is here yet."""
BROKEN = (ClientError, HttpProcessingError, OSError)
"""How aiohttp says that a server is not there, is gone, or speaks no HTTP."""

RawHeaders = tuple[tuple[bytes, bytes], ...]


class _Connection(ResponseHandler):
    """To the server. aiohttp has its parser look for more after every chunk that is read, at 5 µs each: one that was never paused has kept nothing back."""

    _was_paused = False

    def pause_reading(self) -> None:
        self._was_paused = True
        super().pause_reading()

    def resume_reading(self, *given: bool, **named: bool) -> None:
        if self._was_paused:
            super().resume_reading(*given, **named)


class _Connector(TCPConnector):
    """Makes such connections."""

    def __init__(self, *, limit: int, keepalive_timeout: float) -> None:
        super().__init__(limit=limit, keepalive_timeout=keepalive_timeout)
        self._factory = partial(_Connection, loop=self._loop)  # type: ignore[assignment]  # one kind of them is enough


class Proxy:
    """Stands before the server at `upstream`, an address without a final slash, while the `async with` block runs."""

    def __init__(self, upstream: str, arrivals: Arrivals) -> None:
        self.upstream = upstream
        self._metered = EnergyMiddleware(self._forward, arrivals)

    async def __aenter__(self) -> Self:
        self._session = ClientSession(
            connector=_Connector(limit=0, keepalive_timeout=KEPT_ALIVE_S),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_ADDED_BY_CLIENTS,
            max_line_size=LONGEST_HEADER_BYTES,
            max_field_size=LONGEST_HEADER_BYTES,
        )
        self._metered.link.start()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._metered.link.stop()

    def server(self) -> web.Server:
        """What aiohttp runs on a port."""
        return web.Server(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_line_size=LONGEST_HEADER_BYTES,
            max_field_size=LONGEST_HEADER_BYTES,
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if not request.raw_path.startswith("/"):  # a client that takes this for the other kind of proxy
            return web.Response(status=400, text="etameter proxy: ask for a path of the server, such as /v1/models\n")
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # it is no part of the answer
        scope = {
            "type": "http",
            "method": request.method,
            "path": request.rel_url.path,
            "headers": [(name.lower(), value) for name, value in request.raw_headers],
            "client": (request.remote, 0),
            _REQUEST: request,
        }
        answer = _Answer(request)

        async def receive() -> Message:
            body = await request.content.readany()
            return {"type": "http.request", "body": body, "more_body": not request.content.at_eof()}

        await self._metered(scope, receive, answer.send)
        return answer.response

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server, as an ASGI application."""
        request: web.BaseRequest = scope[_REQUEST]
        first = await receive()
        try:
            response = await self._session.request(
                request.method,
                URL(self.upstream + request.raw_path, encoded=True),
                headers=_decoded(_end_to_end(request.raw_headers)),
                data=_following(first, receive) if first["more_body"] else first["body"] or None,
                allow_redirects=False,
            )
        except BROKEN as failure:
            await _refuse(
                send, f"etameter proxy: {self.upstream} can't be reached: {str(failure) or type(failure).__name__}"
            )
            return
        try:
            content = response.content
            head = {"type": HEAD, "status": response.status, "reason": response.reason}
            is_alone = not content.total_bytes and not content.is_eof()
            await send({**head, "headers": [*_end_to_end(response.raw_headers)], _ALONE: is_alone})
            with _noticing_the_end(response):
                await _pass_on(content, send)
        finally:
            response.close()  # gives up what was not read


class _Response(web.StreamResponse):
    """Its head is sent with the first part of its body, or with nothing, when that is written."""

    _send_headers_immediately = False


class _Answer:
    """Writes the messages of an application to a client."""

    response: web.StreamResponse

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request

    async def send(self, message: Message) -> None:
        """Waits while the client is slow; raises ConnectionResetError when it is gone."""
        if message["type"] == HEAD:
            headers = _decoded(message["headers"])
            self.response = _Response(status=message["status"], reason=message.get("reason"), headers=headers)
            await self.response.prepare(self._request)
            if message.get(_ALONE, False):
                await self.response.write(b"")
        elif message["type"] == CUT:
            if self._request.transport is not None:
                self._request.transport.close()  # what was written is still sent, but no end
        elif not message.get("more_body", False):
            await self.response.write_eof(message["body"])
        elif message["body"]:
            await self.response.write(message["body"])


async def _pass_on(content: StreamReader, send: Send) -> None:
    """A body as it comes."""
    while True:
        try:
            piece = await content.readany()
        except BROKEN:
            piece = content._read_nowait(-1)  # noqa: SLF001  # what came before, which aiohttp keeps back
            if piece:
                await send({"type": BODY, "body": piece, "more_body": True})
            await send({"type": CUT})
            return
        more = not content.at_eof()
        await send({"type": BODY, "body": piece, "more_body": more})
        if not more:
            return


@contextmanager
def _noticing_the_end(response: ClientResponse) -> Iterator[None]:
    """Lets who reads `response` know when its connection is gone: aiohttp doesn't where it couldn't make sense of what came last."""
    connection = response.connection
    closed = None if connection is None or connection.protocol is None else connection.protocol.closed

    def gone(closed: asyncio.Future[None]) -> None:
        failure = closed.exception()
        if not response.content.is_eof() and response.content.exception() is None:
            response.content.set_exception(ClientPayloadError(str(failure or "what came is no HTTP")))

    if closed is None:  # all of it is here
        yield
        return
    closed.add_done_callback(gone)
    try:
        yield
    finally:
        closed.remove_done_callback(gone)  # the connection will be used again


async def _following(first: Message, receive: Receive) -> AsyncIterator[bytes]:
    """A body in pieces, as they come."""
    message = first
    while True:
        if message["body"]:
            yield message["body"]
        if not message["more_body"]:
            return
        message = await receive()


def _end_to_end(headers: RawHeaders) -> Iterator[tuple[bytes, bytes]]:
    """All headers but those that were meant for this end of the connection."""
    dropped = _HOP_BY_HOP
    for name, value in headers:
        if name.lower() == b"connection":
            dropped = dropped.union(option.strip().lower() for option in value.split(b","))
    return ((name, value) for name, value in headers if name.lower() not in dropped)


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> CIMultiDict[str]:
    """Each name as it is spelt first: of one that comes in two spellings aiohttp would keep the last alone."""
    spelt: dict[bytes, bytes] = {}
    return CIMultiDict(
        (spelt.setdefault(name.lower(), name).decode(errors="replace"), value.decode(errors="replace"))
        for name, value in headers
    )


async def _refuse(send: Send, message: str) -> None:
    error = {"error": {"message": message, "type": "upstream_unreachable", "param": None, "code": 502}}
    body = json.dumps(error).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": HEAD, "status": 502, "reason": "Bad Gateway", "headers": headers})
    await send({"type": BODY, "body": body})
