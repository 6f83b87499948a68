"""The proxy before servers that say exactly what a test wants, over real sockets: what a client gets through it, beside what it gets without."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.client_proto import ResponseHandler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etameter.records import receipt_id_of
from etameter.serving.arrivals import Arrivals
from etameter.serving.proxy import Proxy, _Connection
from etameter.serving.ring import Dispatch, Finish, RingReader, RingWriter
from etameter.serving.streamed import TokenSteps
from tests.serving.fake_meter import ENERGY, FakeMeter
from tests.serving.scripted import STREAM, Got, Scripted, chunked, fetch, head, parsed, post, running

pytestmark = pytest.mark.unit

_OURS = rb'"energy":(?:\{[^{}]*\}|null,"energy_reason":"[a-z_]+","energy_receipt_id":"[0-9a-f]{32}")'
OURS = re.compile(rb"(?<!\{)," + _OURS + rb"|" + _OURS)
"""The field of an answer, with what parts it from the others."""
ASKED = json.dumps({"model": "small", "stream": True, "messages": [{"role": "user", "content": "Zanzibar?"}]}).encode()


def event(**payload: Any) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def delta(text: str, finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return event(id="chatcmpl-1", choices=[choice], **more)


WORDS = [delta(""), *(delta(f" {word}") for word in ("an", "island", "in", "the", "sea"))]
LAST = delta("", "stop")
USAGE = event(id="chatcmpl-1", choices=[], usage={"prompt_tokens": 9, "completion_tokens": 6})
DONE = b"data: [DONE]\n\n"
EVENTS = [*WORDS, LAST, USAGE, DONE]
WHOLE = b'{"id":"chatcmpl-1","choices":[{"message":{"content":"an island"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}'


def json_head(body: bytes, status: bytes = b"200 OK") -> bytes:
    return head(status, Content_Type=b"application/json", Content_Length=b"%d" % len(body))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ring is, and no meter."""
    monkeypatch.setenv("ETAMETER_RUN", str(tmp_path))
    for name in ("ETAMETER_ARMS", "ETAMETER_CLASSIFY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def meter(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMeter]:
    monkeypatch.setattr("etameter.serving.exchange.HOLD_S", 5.0)
    with FakeMeter(place / "meter.sock") as fake:
        yield fake


@contextlib.asynccontextmanager
async def proxied(upstream: int, place: Path, *, met: bool = False) -> AsyncIterator[int]:
    """The port of a proxy before the server on port `upstream`, with the meter's line up if it is `met`."""
    ring = RingWriter(place / "ring", engine="e", model="small", dtype="unknown", capacity_bytes=1 << 20)
    proxy = Proxy(f"http://127.0.0.1:{upstream}", Arrivals(TokenSteps(ring)))
    async with proxy:
        while met and proxy._metered.link._writer is None:  # noqa: ASYNC110  # the link tells nobody when it is up
            await asyncio.sleep(0.001)
        runner = web.ServerRunner(proxy.server(), shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
        try:
            yield int(runner.addresses[0][1])
        finally:
            await runner.cleanup()
            ring.close()


def both(scripted: Scripted, request: bytes, place: Path, *, met: bool = False) -> tuple[Got, Got]:
    """What a client gets directly, and what through the proxy less the energy field."""

    async def main() -> tuple[Got, Got]:
        async with running(scripted) as port, proxied(port, place, met=met) as before:
            direct, through = await fetch(port, request), await fetch(before, request)
            return direct, Got(through.head, OURS.sub(b"", through.body), through.is_whole)

    return asyncio.run(asyncio.wait_for(main(), 10.0))


def ring_of(place: Path) -> tuple[list[tuple[str, int, int]], list[list[int]], list[Finish]]:
    """Introductions (id, prompt tokens, number), rows and ends."""
    reader = RingReader(place / "ring")
    records = reader.poll()
    reader.close()
    steps = [record for record in records if isinstance(record, Dispatch)]
    introduced = [(each.request_id, each.prompt_tokens, each.number) for step in steps for each in step.introductions]
    rows = [row for step in steps for row in step.rows.tolist()]
    return introduced, rows, [record for record in records if isinstance(record, Finish)]


def framed(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> list[bytes]:
    return [STREAM, chunked(*pieces, end=end)]


MALFORMED = [b"data: {not json\n\n", b"data\n\n", b"\n\n\n\n", b'data: {"choices":[]}}\n\n', b"\xff\xfe: \x00\n\n"]
FAULTS = {
    "a stream": Scripted(framed(*EVENTS)),
    "no usage": Scripted(framed(*WORDS, LAST, DONE)),
    "no [DONE]": Scripted(framed(*WORDS, LAST)),
    "events that end as Windows' lines": Scripted(framed(*(each.replace(b"\n", b"\r\n") for each in EVENTS))),
    "malformed events": Scripted(framed(*MALFORMED, *WORDS, *MALFORMED, LAST, DONE)),
    "data after the end": Scripted(framed(*EVENTS, *WORDS, b'data: {"choices":[]}\n\n', b"more")),
    "an event without its end": Scripted(framed(*WORDS, LAST[:-2])),
    "an answer in one piece": Scripted([json_head(WHOLE), WHOLE]),
    "counts that can't be": Scripted(
        framed(delta("a", usage={"prompt_tokens": 1 << 40, "completion_tokens": -3}), delta("b", usage={"x": []}), DONE)
    ),
    "an answer that isn't JSON": Scripted([json_head(b'{"id":'), b'{"id":']),
    "an answer that is an array": Scripted([json_head(b"[1]"), b"[1]"]),
    "an error": Scripted([json_head(b'{"error":{}}', b"400 Bad Request"), b'{"error":{}}']),
    "an error of its own wording": Scripted([head(b"418 I'm a teapot", Content_Length=b"0")]),
    "nothing": Scripted([head(b"204 No Content")]),
    "no length, and the connection's end": Scripted([head(Content_Type=b"text/plain"), b"words"], then="close"),
    "compressed": Scripted([head(Content_Type=b"application/json", Content_Encoding=b"gzip", Content_Length=b"3"), b"\x1f\x8b\x00"]),
}  # fmt: skip


class Dying(FakeMeter):
    """Its socket is gone once it is asked anything."""

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        self.path.unlink(missing_ok=True)
        raise ConnectionError(f"{message} killed it")


METERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[object]]] = {
    "no meter": lambda _: contextlib.nullcontext(),
    "a meter": FakeMeter,
    "a slow one": lambda path: FakeMeter(path, delay_s=0.06),
    "one that does not read": lambda path: FakeMeter(path, deaf=True),
    "one that has no figure": lambda path: FakeMeter(path, reason="no_edge_yet"),
    "one that dies": Dying,
}


@pytest.mark.parametrize("meter", METERS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_client_gets_what_it_would_get_without_the_proxy_but_for_the_energy(
    name: str, meter: str, place: Path
) -> None:
    with METERS[meter](place / "meter.sock"):
        direct, through = both(FAULTS[name], post(ASKED), place, met=meter != "no meter")
    assert (through.body, through.is_whole) == (direct.body, direct.is_whole)
    assert through.is_whole == (name != "an event without its end" or direct.is_whole)
    assert through.head.split(b"\r\n")[0] == direct.head.split(b"\r\n")[0]


@pytest.mark.parametrize("then", ["close", "abort"])
@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(framed(*EVENTS[:4], end=b""), id="between events"),
        pytest.param(framed(*EVENTS[:-1], end=b""), id="before [DONE]"),
        pytest.param([STREAM, chunked(*EVENTS[:4], end=b"") + b"fff\r\ndata: {"], id="within a chunk"),
        pytest.param([STREAM, chunked(*EVENTS[:4], end=b"") + b"zz\r\nno chunk"], id="no chunk"),
        pytest.param([json_head(WHOLE), WHOLE[:40]], id="within an answer in one piece"),
    ],
)
def test_a_server_that_dies_leaves_what_it_has_said_and_no_proper_end(
    then: Any, pieces: list[bytes], place: Path
) -> None:
    direct, through = both(Scripted(pieces, then=then, pause_s=0.02), post(ASKED), place)
    assert not direct.is_whole
    assert not through.is_whole
    expected = direct.body.split(b"zz")[0]  # what follows no size is in no chunk
    assert through.body == expected
    _, rows, ends = ring_of(place)
    assert [end.reason for end in ends] == (["stop" if LAST in pieces[1] else "abort"] if rows else [])


def test_a_server_that_is_not_there_or_says_nothing_is_named_in_a_502(place: Path) -> None:
    async def main() -> list[tuple[int, Got]]:
        got = []
        silent = Scripted([], then="abort")
        noise = Scripted([b"\x00\x01 no HTTP\r\n\r\n"], then="close")
        for scripted in (silent, noise):
            async with running(scripted) as port, proxied(port, place) as before:
                got.append((port, await fetch(before, post(ASKED))))
        async with running(silent) as port:
            pass
        async with proxied(port, place) as before:
            got.append((port, await fetch(before, post(ASKED))))
        return got

    for port, answer in asyncio.run(main()):
        assert answer.status == 502
        error = json.loads(answer.body)["error"]
        assert f"http://127.0.0.1:{port}" in error["message"]
        assert error["type"] == "upstream_unreachable"


def test_requests_pass_untouched_but_for_what_is_between_neighbours(place: Path) -> None:
    scripted = Scripted([json_head(b"{}"), b"{}"])
    requests = [
        b"GET /v1/models?a=%2F&b=%20;c&&=#x HTTP/1.1\r\nHost: a.b:1\r\nX-Ab: 1\r\nx-aB: 2\r\nConnection: close, X-Ours\r\nX-Ours: 3\r\nTE: trailers\r\n\r\n",
        b"DELETE //a/../b/%2e%2e/?? HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"PUT /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n\x1f\x8b\x00",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s\xc3\xa9\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
    ]

    async def main() -> None:
        async with running(scripted) as port, proxied(port, place) as before:
            for request in requests:
                assert (await fetch(before, request)).status == 200

    asyncio.run(main())
    first, second, third, fourth = scripted.requests
    assert first == b"GET /v1/models?a=%2F&b=%20;c&&= HTTP/1.1\r\nHost: a.b:1\r\nX-Ab: 1\r\nX-Ab: 2\r\n\r\n"
    assert second.startswith(b"DELETE //a/../b/%2e%2e/?? HTTP/1.1\r\nHost: x\r\n")
    assert third == requests[2].replace(b"Connection: close\r\n", b"")
    assert b"Authorization: Bearer s\xc3\xa9\r\n" in fourth
    assert fourth.endswith((b"abcdefg", b"\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n", b"7\r\nabcdefg\r\n0\r\n\r\n"))
    assert scripted.connections < len(requests)  # they are kept and used again


def test_a_request_for_another_server_is_refused(place: Path) -> None:
    async def main() -> tuple[int, int]:
        scripted = Scripted([json_head(b"{}"), b"{}"])
        async with running(scripted) as port, proxied(port, place) as before:
            got = await fetch(
                before, b"GET http://elsewhere/x HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n"
            )
            return got.status, len(scripted.requests)

    assert asyncio.run(main()) == (400, 0)


def test_headers_of_an_answer_pass_untouched(place: Path) -> None:
    told = head(Content_Length=b"0", Server=b"llama.cpp", Date=b"then", X_Ab=b"1, 2", Set_Cookie=b"a=1; Path=/")
    told = told[:-2] + b"Set-Cookie: b=2\r\nKeep-Alive: timeout=5\r\n\r\n"
    direct, through = both(Scripted([told]), b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", place)
    kept = [line for line in direct.head.split(b"\r\n") if not line.startswith(b"keep-alive")]
    got = [line for line in through.head.split(b"\r\n") if line != b"content-type: application/octet-stream"]
    assert [line for line in got if line != b"connection: close"] == kept


def test_a_head_does_not_wait_for_its_body(place: Path) -> None:
    """The server goes on when the client has the head."""
    has_head = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STREAM)
        await has_head.wait()
        writer.write(chunked(*EVENTS))
        writer.close()

    async def main() -> bytes:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server, proxied(server.sockets[0].getsockname()[1], place) as before:
            reader, writer = await asyncio.open_connection("127.0.0.1", before)
            writer.write(post(ASKED))
            head = await reader.readuntil(b"\r\n\r\n")
            has_head.set()
            body = await reader.read()
            writer.close()
            return head + body

    got = parsed(asyncio.run(asyncio.wait_for(main(), 30.0)))
    assert (OURS.sub(b"", got.body), got.is_whole) == (b"".join(EVENTS), True)


def test_a_parser_that_was_not_paused_is_not_asked_for_more(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resumed: list[object] = []
    resume = ResponseHandler.resume_reading

    def noting(self: ResponseHandler, *given: bool, **named: bool) -> None:
        resumed.append(self)
        resume(self, *given, **named)

    monkeypatch.setattr(ResponseHandler, "resume_reading", noting)
    direct, through = both(Scripted(framed(*WORDS * 50, LAST, DONE)), post(ASKED), place)
    assert through.body == direct.body
    assert resumed == []


def test_what_a_paused_parser_keeps_back_is_read() -> None:
    """Tiny chunks pause it by their number. It takes notice at the next one, and keeps back what stands behind that."""

    async def main() -> bytes:
        connection = _Connection(asyncio.get_running_loop())
        connection.connection_made(asyncio.Transport())
        connection.set_response_params(auto_decompress=False, read_until_eof=True)
        connection.data_received(head(Transfer_Encoding=b"chunked"))
        _, content = await connection.read()
        while not connection._reading_paused:
            connection.data_received(chunked(b"x", end=b""))
        await content.readany()
        connection.data_received(chunked(b"y"))
        return await content.read()

    assert asyncio.run(asyncio.wait_for(main(), 10.0)) == b"y"


def test_a_body_of_10_mb_passes_both_ways(place: Path) -> None:
    words = json.dumps({"prompt": "word " * 2_000_000, "stream": False}).encode()
    answer = json.dumps({"choices": [{"text": "word " * 2_000_000}], "usage": {}}).encode()
    scripted = Scripted([json_head(answer), answer])
    request = post(words, b"/v1/completions", b"Expect: 100-continue\r\n")

    async def main() -> Got:
        async with running(scripted) as port, proxied(port, place) as before:
            return await fetch(before, request)

    got = asyncio.run(main())
    assert scripted.requests[0].endswith(words)
    assert b"expect" not in scripted.requests[0][:300].lower()
    assert got.head.startswith(b"http/1.1 100 continue")
    assert OURS.sub(b"", parsed(got.body).body) == answer


def test_a_client_that_goes_ends_the_request_to_the_server_at_every_chunk(place: Path, meter: FakeMeter) -> None:
    async def main() -> None:
        for index in range(len(EVENTS)):
            pieces = [STREAM, *(chunked(each, end=b"") for each in EVENTS), b"0\r\n\r\n"]
            scripted = Scripted(pieces, pause_s=0.03)
            async with running(scripted) as port, proxied(port, place, met=True) as before:
                reader, writer = await asyncio.open_connection("127.0.0.1", before)
                writer.write(post(ASKED))
                seen = b""
                while seen.count(b"data: ") < index:
                    if not (piece := await reader.read(1 << 16)):
                        break
                    seen += piece
                writer.transport.abort()
                while not scripted.disconnects and scripted.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                _, rows, ends = ring_of(place)
                assert len(ends) == (1 if rows else 0)
                if index < EVENTS.index(LAST):
                    assert {end.reason for end in ends} <= {"abort"}

    asyncio.run(asyncio.wait_for(main(), 30.0))
    wasted = meter.heard("waste", 1)
    opened = [message["receipt_id"] for message in meter.heard("open", 1)]
    assert {message["waste"] for message in wasted} == {"abandoned"}
    assert {message["receipt_id"] for message in wasted} <= set(opened)
    assert len(wasted) >= EVENTS.index(LAST)


def test_an_answer_has_its_energy_and_the_ring_its_steps(place: Path, meter: FakeMeter) -> None:
    scripted = Scripted(framed(*EVENTS))

    async def main() -> tuple[Got, Got]:
        async with running(scripted) as port, proxied(port, place, met=True) as before:
            got = await fetch(before, post(ASKED, headers=b"X-Etameter-Arm: entrace\r\nX-Request-Id: same\r\n"))
            name = json.loads(got.body.split(b"\n\n")[-3][6:])["energy"]["receipt_id"]
            path = f"/energy/{name}".encode()
            return got, await fetch(before, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)

    got, receipt = asyncio.run(main())
    energy = json.loads(got.body.split(b"\n\n")[-3][6:])["energy"]
    assert energy["energy_joules"] == ENERGY["energy_joules"]
    assert json.loads(receipt.body)["energy"] == energy
    assert meter.heard("open")[0] == {"type": "open", "receipt_id": energy["receipt_id"], "arm": "entrace"}
    [(request_id, prompt_tokens, number)], rows, [end] = ring_of(place)
    assert receipt_id_of(request_id) == energy["receipt_id"]
    assert (end.number, end.output_tokens, end.reason) == (number, 6, "stop")
    assert sum(row[2] for row in rows) == 5  # of six tokens one came with the prefill
    assert rows[0][1] == prompt_tokens == len(ASKED) // 4  # a guess, for the first answer
    assert len(scripted.requests) == 1  # /energy is the proxy's own


def test_the_meter_is_asked_when_the_ring_has_all_of_the_answer(place: Path, meter: FakeMeter) -> None:
    """An answer in one piece has one step for the prompt and one for the rest, of which its `usage` tells all."""
    ends_when_asked: list[int] = []
    answer = meter.answer

    def noting(message: dict[str, Any]) -> dict[str, Any]:
        ends_when_asked.append(len(ring_of(place)[2]))
        return answer(message)

    meter.answer = noting  # type: ignore[method-assign]

    async def main() -> None:
        for scripted in (Scripted([json_head(WHOLE), WHOLE]), Scripted(framed(*EVENTS))):
            async with running(scripted) as port, proxied(port, place, met=True) as before:
                await fetch(before, post(ASKED))
            if scripted.pieces[0] != STREAM:
                [(_, prompt_tokens, number)], rows, [end] = ring_of(place)
                assert (prompt_tokens, rows) == (
                    9,
                    [[number, 5, 0, 4, 0, 0, 0, 4, 0], [number, 0, 1, 0, 0, 0, 0, 10, 0]],
                )
                assert (end.output_tokens, end.reason) == (2, "stop")

    asyncio.run(main())
    assert ends_when_asked == [1, 1]


def test_two_requests_of_one_id_are_two(place: Path, meter: FakeMeter) -> None:
    scripted = Scripted([STREAM, *(chunked(each, end=b"") for each in EVENTS), b"0\r\n\r\n"], pause_s=0.002)
    request = post(ASKED, headers=b"X-Request-Id: same\r\n")

    async def main() -> list[Got]:
        async with running(scripted) as port, proxied(port, place, met=True) as before:
            return list(await asyncio.gather(*(fetch(before, request) for _ in range(2))))

    names = {json.loads(got.body.split(b"\n\n")[-3][6:])["energy"]["receipt_id"] for got in asyncio.run(main())}
    introduced, _, ends = ring_of(place)
    assert {receipt_id_of(each) for each, _, _ in introduced} == names
    assert [end.output_tokens for end in ends] == [6, 6]
    assert len(names) == 2


def test_a_slow_reader_is_waited_for(place: Path) -> None:
    """Of a stream that nobody reads, no more is taken from the server than buffers hold."""
    taken = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STREAM)
        with contextlib.suppress(ConnectionError):
            while taken < 1 << 28:
                writer.write(chunked(WORDS[2] * 200, end=b""))
                await writer.drain()
                taken += len(WORDS[2]) * 200
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(flood, "127.0.0.1", 0)
        async with proxied(server.sockets[0].getsockname()[1], place) as before:
            _, writer = await asyncio.open_connection("127.0.0.1", before, limit=1 << 12)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(post(ASKED))
            last = -1
            while taken != last or not taken:
                last = taken
                await asyncio.sleep(0.3)
            writer.transport.abort()
        server.close()

    asyncio.run(asyncio.wait_for(main(), 30.0))
    assert 0 < taken < 1 << 26


@given(
    noise=st.lists(st.sampled_from([*EVENTS, *MALFORMED, b"data: ", b"\r\n\r\n", b'"usage": {', b"}"]), max_size=12),
    data=st.data(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stream_loses_no_byte_however_it_is_cut(place: Path, noise: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(noise)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    direct, through = both(
        Scripted([STREAM, *(chunked(each, end=b"") for each in pieces), b"0\r\n\r\n"]), post(ASKED), place
    )
    assert through == Got(through.head, whole, is_whole=True)
    assert direct.body == whole


@pytest.mark.slow
def test_a_thousand_open_streams(place: Path) -> None:
    scripted = Scripted([STREAM, *(chunked(each, end=b"") for each in EVENTS), b"0\r\n\r\n"], pause_s=0.5)

    async def main() -> list[Got]:
        async with running(scripted) as port, proxied(port, place) as before:
            return list(await asyncio.gather(*(fetch(before, post(ASKED)) for _ in range(1000))))

    answers = asyncio.run(main())
    assert {OURS.sub(b"", got.body) for got in answers} == {b"".join(EVENTS)}
    assert all(got.is_whole for got in answers)
    assert scripted.connections == 1000  # all were open at once
    _, _, ends = ring_of(place)
    assert [end.output_tokens for end in ends] == [6] * 1000
