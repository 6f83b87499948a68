"""The middleware over small ASGI applications, with a meter's socket at the other end."""

import asyncio
import contextlib
import json
import re
import sys
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etameter.records import receipt_id_of
from etameter.serving import exchange
from etameter.serving.link import MeterLink
from etameter.serving.middleware import EnergyMiddleware
from tests.serving.fake_meter import ENERGY, FakeMeter

pytestmark = pytest.mark.unit

CHAT = b'{"id":"chatcmpl-1","model":"m","choices":[{"message":{"content":"a}\\n\\n"},"finish_reason":"stop"}],"usage":{"total_tokens":3}}'


def no_figure(reason: str) -> bytes:
    """What a response gets instead of its energy, as a pattern: the receipt's id is for asking again later."""
    return rb',"energy":null,"energy_reason":"%b","energy_receipt_id":"[0-9a-f]{32}"' % reason.encode()


class InputProcessor:
    """What the patch finds in vLLM."""

    @staticmethod
    def assign_request_id(request: Any) -> None:
        request.external_req_id = request.request_id
        request.request_id = f"{request.external_req_id}-0123abcd"


class EngineRequest:
    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.external_req_id: str | None = None


def engine_id(request_id: str) -> str:
    """The id by which the engine would know a request that is added now."""
    request = EngineRequest(request_id)
    sys.modules["vllm.v1.engine.input_processor"].InputProcessor.assign_request_id(request)
    return request.request_id


@pytest.fixture(autouse=True)
def vllm_internals(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("vllm.v1.engine.input_processor")
    module.InputProcessor = type("InputProcessor", (), dict(InputProcessor.__dict__))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ETAMETER_RUN", str(tmp_path))
    monkeypatch.delenv("ETAMETER_ARMS", raising=False)
    return tmp_path


@pytest.fixture
def meter(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMeter]:
    """A meter that answers, for which a busy machine may need longer than the hold."""
    monkeypatch.setattr("etameter.serving.exchange.HOLD_S", 5.0)
    with FakeMeter(run_dir / "meter.sock") as fake:
        yield fake


def application(
    *pieces: bytes, status: int = 200, content: bytes = b"application/json", during: Callable[[int], None] | None = None
) -> Any:
    """Reads its request, then answers with these pieces. `during` is called before each is sent."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", content)]
        if content == b"application/json":
            headers.append((b"Content-Length", str(sum(map(len, pieces))).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for i, piece in enumerate(pieces):
            if during:
                during(i)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


class Client:
    """One HTTP client of an application."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.sent: list[Any] = []
        self.scope: dict[str, Any] = {}

    async def call(
        self,
        path: str = "/v1/chat/completions",
        request: Any = None,
        headers: Any = (),
        method: str = "POST",
        *,
        gone: Awaitable[Any] | None = None,
    ) -> bytes:
        """The body of the answer. `gone` ends when the client disconnects."""
        body = request if isinstance(request, bytes) else json.dumps(request or {"model": "m"}).encode()
        messages = iter(
            [{"type": "http.request", "body": body[:7], "more_body": True}, {"type": "http.request", "body": body[7:]}]
        )

        async def receive() -> Any:
            message = next(messages, None)
            if message is None:
                await (gone or asyncio.Event().wait())
                return {"type": "http.disconnect"}
            return message

        async def send(message: Any) -> None:
            self.sent.append(message)

        self.sent.clear()
        self.scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": list(headers)}
        await self.app(self.scope, receive, send)
        return self.body()

    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    def header(self, name: bytes) -> bytes | None:
        return {key.lower(): value for key, value in self.sent[0]["headers"]}.get(name)


@contextlib.asynccontextmanager
async def client_of(app: Any, *, connected: bool = True) -> AsyncIterator[Client]:
    metered = EnergyMiddleware(app)
    metered.link.start()
    if connected:
        while metered.link._writer is None:  # noqa: ASYNC110  # the link tells nobody when it is up
            await asyncio.sleep(0.001)
    try:
        yield Client(metered)
    finally:
        await metered.link.stop()


def call(app: Any, *args: Any, **arguments: Any) -> Client:
    """One call, and the client with what it got."""

    async def main() -> Client:
        async with client_of(app) as client:
            await client.call(*args, **arguments)
            return client

    return asyncio.run(main())


def field(receipt_id: str) -> bytes:
    return b'"energy":' + json.dumps({**ENERGY, "receipt_id": receipt_id}, separators=(",", ":")).encode()


def event(**payload: Any) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def delta(text: str, finish_reason: str | None = None, index: int = 0) -> bytes:
    return event(
        id="chatcmpl-1", choices=[{"index": index, "delta": {"content": text}, "finish_reason": finish_reason}]
    )


ROLE, HELLO, LAST = delta(""), delta('{"finish_reason":"stop","choices":[]}}\n\n'), delta(".", "stop")
USAGE = event(id="chatcmpl-1", choices=[], usage={"total_tokens": 3})
DONE = b"data: [DONE]\n\n"
PING = b": keep-alive\n\n"


def with_field(part: bytes, receipt_id: str) -> bytes:
    """An event with the energy in it."""
    return part[: part.rindex(b"}")] + b"," + field(receipt_id) + part[part.rindex(b"}") :]


def test_an_answer_in_one_piece_gets_its_field_and_nothing_else_changes(meter: FakeMeter) -> None:
    client = call(application(CHAT[:20], CHAT[20:]))
    [ask] = meter.heard("ask")
    assert client.body() == CHAT[:-1] + b"," + field(ask["receipt_id"]) + b"}"
    assert client.header(b"content-length") == str(len(client.body())).encode()
    assert json.loads(client.body())["energy"]["energy_joules"] == 12.5
    assert ask["public_id"] == "chatcmpl-1"


@pytest.mark.parametrize(
    ("request_body", "events", "bearer"),
    [
        pytest.param({}, [ROLE, HELLO, LAST, DONE], LAST, id="no usage asked for: the last chunk"),
        pytest.param({}, [ROLE, HELLO, LAST, USAGE, DONE], USAGE, id="usage: its chunk"),
        pytest.param({}, [ROLE, PING, LAST, PING, DONE], LAST, id="comments between"),
        pytest.param(
            {"n": 2},
            [delta("a", "stop"), HELLO, delta("b", "length", 1), DONE],
            delta("b", "length", 1),
            id="n=2: the later",
        ),
        pytest.param(
            {"n": 2},
            [delta("b", "stop", 1), delta("a", "stop"), USAGE, DONE],
            USAGE,
            id="n=2 with usage",
        ),
        pytest.param(
            {"prompt": ["x", "y"]},
            [delta("a", "stop"), delta("b", "stop", 1), DONE],
            delta("b", "stop", 1),
            id="two prompts",
        ),
        pytest.param({}, [ROLE, HELLO, LAST], LAST, id="no [DONE]"),
    ],
)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stream_gets_its_field_in_one_event_however_it_is_cut(
    meter: FakeMeter, request_body: Any, events: list[bytes], bearer: bytes, data: st.DataObject
) -> None:
    whole = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=30)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    if data.draw(st.booleans(), label="an event at a time"):
        pieces = events
    asked = len([message for message in meter.messages if message["type"] == "ask"])
    client = call(application(*pieces, content=b"text/event-stream; charset=utf-8"), request=request_body)
    ask = meter.heard("ask", asked + 1)[-1]
    expected = [with_field(part, ask["receipt_id"]) if part == bearer else part for part in events]
    got = client.body()
    if PING in events:  # a comment may overtake the event that is held
        got, expected = got.replace(PING, b""), [part for part in expected if part != PING]
    assert got == b"".join(expected)


def test_only_what_may_be_the_last_event_is_held(meter: FakeMeter) -> None:
    events = [ROLE, HELLO, delta("a", "stop"), HELLO, delta("b", "stop", 1), USAGE, DONE]
    seen: list[int] = []
    client = Client(None)

    async def main() -> None:
        app = application(
            *events, content=b"text/event-stream", during=lambda _: seen.append(client.body().count(b"data: "))
        )
        async with client_of(app) as inner:
            client.app = inner.app
            await client.call(request={"n": 2, "stream": True})

    asyncio.run(main())
    #                 the second choice's end waits for the usage chunk, that one for [DONE]
    assert seen == [0, 1, 2, 3, 4, 4, 5]


def test_a_choice_that_ends_before_another_in_its_event_is_not_overlooked(meter: FakeMeter) -> None:
    going_on = {"index": 1, "delta": {"content": "b"}, "finish_reason": None}
    both = event(choices=[{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}, going_on])
    last = event(choices=[{**going_on, "finish_reason": "stop"}])
    pieces = [event(choices=[going_on]), event(choices=[going_on]), both, last, DONE]
    client = call(application(*pieces, content=b"text/event-stream"), request={"stream": True, "n": 2})
    [ask] = meter.heard("ask")
    assert client.body() == b"".join(pieces[:3]) + with_field(last, ask["receipt_id"]) + DONE


def test_a_meter_that_is_away_or_late_costs_a_reason_and_no_more_than_the_hold(run_dir: Path) -> None:
    async def main() -> tuple[bytes, float]:
        async with client_of(application(CHAT), connected=(run_dir / "meter.sock").exists()) as client:
            began = time.perf_counter()
            return await client.call(), time.perf_counter() - began

    body, _ = asyncio.run(main())
    assert re.fullmatch(re.escape(CHAT[:-1]) + no_figure("meter_away") + b"}", body)
    with FakeMeter(run_dir / "meter.sock", delay_s=0.3):
        body, took_s = asyncio.run(main())
    assert re.fullmatch(re.escape(CHAT[:-1]) + no_figure("meter_late") + b"}", body)
    assert 0.024 < took_s < 0.25
    with FakeMeter(run_dir / "meter.sock", reason="no_edge_yet"):
        body, _ = asyncio.run(main())
    assert re.fullmatch(re.escape(CHAT[:-1]) + no_figure("no_edge_yet") + b"}", body)


@pytest.mark.parametrize(
    ("app", "request_body"),
    [
        pytest.param(application(b'{"error":{"code":400}}', status=400), {}, id="refused"),
        pytest.param(application(b'{"error":{"code":400}}', status=400), b"{not json", id="no JSON"),
        pytest.param(application(b"[1]"), {}, id="an array"),
        pytest.param(application(b"null"), {}, id="null"),
        pytest.param(application(b"\x1f\x8b", content=b"application/gzip"), {}, id="another type"),
        pytest.param(
            application(ROLE, event(error={"message": "no"}), DONE, content=b"text/event-stream"),
            {},
            id="an error in a stream",
        ),
    ],
)
def test_what_is_no_success_passes_untouched(meter: FakeMeter, app: Any, request_body: Any) -> None:
    plain = Client(app)
    asyncio.run(plain.call(request=request_body))
    client = call(app, request=request_body)
    assert client.body() == plain.body()
    assert client.header(b"content-length") == plain.header(b"content-length")


def test_other_paths_and_scopes_are_the_applications(meter: FakeMeter) -> None:
    assert call(application(CHAT), path="/v1/rerank").body() == CHAT
    assert call(application(CHAT), method="GET").body() == CHAT
    assert meter.messages == []


def test_the_meter_is_told_what_comes_under_which_arm_and_no_more(meter: FakeMeter) -> None:
    for header in ([(b"x-etameter-arm", b"entrace")], [(b"x-etameter-arm", b"'; drop table")], []):
        request = {"model": "lora-7", "stream": True, "stop": ["x"]}
        call(application(LAST, DONE, content=b"text/event-stream"), "/v1/completions", request, headers=header)
    opened = meter.heard("open", 3)
    assert [message["arm"] for message in opened] == ["entrace", "other", "unlabelled"]
    assert {frozenset(message) for message in opened} == {frozenset({"type", "receipt_id", "arm"})}
    assert len({message["receipt_id"] for message in opened}) == 3
    assert {message["type"] for message in meter.messages} == {"open", "ask"}


def test_arms_come_from_the_environment(meter: FakeMeter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETAMETER_ARMS", "a,b")
    call(application(CHAT), headers=[(b"x-etameter-arm", b"b")])
    call(application(CHAT), headers=[(b"x-etameter-arm", b"entrace")])
    assert [message["arm"] for message in meter.heard("open", 2)] == ["b", "other"]


def test_the_engine_knows_the_request_by_its_receipt_and_nobody_can_forge_one(meter: FakeMeter) -> None:
    made: list[str] = []
    forged = "chatcmpl-x-" + "f" * 40
    app = application(CHAT, during=lambda _: made.append(engine_id(forged)))
    call(app)
    call(app)
    opened = [message["receipt_id"] for message in meter.heard("open", 2)]
    assert [receipt_id_of(name) for name in made] == opened
    assert all(name.startswith(forged + "-") and name.endswith("0123abcd") for name in made)
    assert receipt_id_of("1_" + made[0]) == opened[0]  # a sibling of n>1
    assert receipt_id_of(engine_id(forged)) is None  # outside of a metered request


def test_two_middlewares_patch_once(run_dir: Path, vllm_internals: Any) -> None:
    EnergyMiddleware(application())
    once = vllm_internals.InputProcessor.assign_request_id
    assert EnergyMiddleware(application()).in_band
    assert vllm_internals.InputProcessor.assign_request_id is once


@pytest.mark.parametrize(
    "internals",
    [
        pytest.param(lambda self, request: None, id="no static method"),
        pytest.param(staticmethod(lambda request, salt: None), id="another signature"),
        pytest.param(staticmethod(lambda request: setattr(request, "request_id", "probe")), id="another id"),
        pytest.param(None, id="gone"),
    ],
)
def test_a_vllm_with_other_internals_is_left_alone(
    meter: FakeMeter, vllm_internals: Any, internals: Any, caplog: pytest.LogCaptureFixture
) -> None:
    vllm_internals.InputProcessor.assign_request_id = internals
    client = call(application(CHAT))
    assert client.body() == CHAT[:-1] + b',"energy":null,"energy_reason":"engine_ids_unpatched"}'
    assert vllm_internals.InputProcessor.assign_request_id is internals or internals.__func__
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    ("connector", "extra", "is_metered"),
    [
        ("NixlConnector", {}, True),
        ("NixlPullConnector", {}, True),
        ("MooncakeConnector", {}, True),
        ("NixlPushConnector", {}, False),
        ("MultiConnector", {"connectors": [{"kv_connector": "NixlPushConnector"}]}, False),
    ],
)
def test_a_connector_that_compares_parts_of_ids_keeps_them(
    meter: FakeMeter,
    connector: str,
    extra: dict[str, Any],
    is_metered: bool,
) -> None:
    made: list[str] = []
    transfer = types.SimpleNamespace(kv_connector=connector, kv_connector_extra_config=extra)
    config = types.SimpleNamespace(kv_transfer_config=transfer)
    server = types.SimpleNamespace(state=types.SimpleNamespace(vllm_config=config))
    metered = EnergyMiddleware(application(CHAT, during=lambda _: made.append(engine_id("x"))))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await metered({**scope, "app": server}, receive, send)

    client = Client(app)
    asyncio.run(client.call())
    assert (made == ["x-0123abcd"]) is not is_metered
    assert (b"engine_ids_unpatched" in client.body()) is not is_metered


async def _disconnected(scope: Any, receive: Any, send: Any) -> None:
    """The server cancels the task of a client that has gone."""
    await receive()
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": HELLO + LAST, "more_body": True})
    assert (await receive())["type"] == "http.disconnect"
    raise asyncio.CancelledError


async def _answers_null(scope: Any, receive: Any, send: Any) -> None:
    """vLLM notices that its client has gone, and then answers with null."""
    await receive()
    await receive()
    await receive()
    await application(b"null")(scope, _no_more, send)


@pytest.mark.parametrize(("app", "body"), [(_disconnected, HELLO), (_answers_null, b"null"), (application(CHAT), None)])
def test_what_has_ended_is_announced_no_more(meter: FakeMeter, run_dir: Path, app: Any, body: bytes | None) -> None:
    async def main() -> bytes:
        async with client_of(app) as client:
            with contextlib.suppress(asyncio.CancelledError):
                await client.call(gone=asyncio.sleep(0) if body else None)
            await asyncio.to_thread(meter.heard, "open")
            assert client.app.link._open == {}
            return bytes(client.body())

    answer = asyncio.run(main())
    assert body is None or answer == body


def test_a_meter_that_comes_back_is_told_of_the_open_requests(run_dir: Path) -> None:
    async def main() -> tuple[list[Any], Any]:
        end = asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await application()(scope, receive, _ignore)
            await end.wait()
            await application(CHAT)(scope, _no_more, send)

        async with client_of(slow) as client:
            call = asyncio.create_task(client.call())
            await asyncio.to_thread(first.heard, "open")
            first.__exit__(None, None, None)
            with FakeMeter(run_dir / "meter.sock") as second:
                again = await asyncio.to_thread(second.heard, "open")
                end.set()
                body = await call
            return again, json.loads(body)["energy"]

    with FakeMeter(run_dir / "meter.sock") as first:
        again, energy = asyncio.run(main())
    assert again == first.messages
    assert energy["energy_joules"] == 12.5


async def _ignore(message: Any) -> None:
    pass


async def _no_more() -> Any:
    return {"type": "http.request"}


def test_a_meter_that_does_not_read_delays_nobody_and_its_losses_are_counted(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etameter.serving.link.UNSENT_LIMIT_BYTES", 1000)
    monkeypatch.setattr("etameter.serving.exchange.HOLD_S", 5.0)

    async def main() -> tuple[bytes, MeterLink]:
        async with client_of(application(CHAT)) as client:
            link = client.app.link
            while not link.dropped:
                link.opened("x", "x" * 1000)
            began = time.perf_counter()
            body = await client.call()
            assert time.perf_counter() - began < 1.0
            return body, link

    with FakeMeter(run_dir / "meter.sock", deaf=True):
        body, link = asyncio.run(main())
    assert re.search(no_figure("meter_late") + b"}$", body)
    assert link.dropped == 3  # ours, then what the request would have opened and asked


def test_receipts_are_answered_on_the_servers_port(meter: FakeMeter) -> None:
    receipt = "0123456789abcdef" * 2
    client = call(application(), f"/energy/{receipt}", method="GET")
    assert (client.sent[0]["status"], json.loads(client.body())["energy"]["receipt_id"]) == (200, receipt)
    assert meter.heard("receipt") == [{"type": "receipt", "receipt_id": receipt}]
    assert (client.scope["path"], client.scope["raw_path"]) == ("/energy/", b"/energy/")  # which the server logs
    for bad in ("", "x", receipt[:-1], receipt + "0", "..%2f"):
        client = call(application(), f"/energy/{bad}", method="GET")
        assert (client.sent[0]["status"], client.body()) == (404, b'{"energy":null,"energy_reason":"no_such_receipt"}')
    meter.reason = "unknown"
    assert call(application(), f"/energy/{receipt}", method="GET").sent[0]["status"] == 404


@pytest.mark.parametrize("line", [b'"0123456789abcdef"', b"0123456789abcdef"])
def test_what_is_no_answer_is_not_repeated_in_the_log(
    run_dir: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    async def main() -> None:
        async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(line + b"\n")
            await writer.drain()
            writer.close()

        async with (
            await asyncio.start_unix_server(nonsense, run_dir / "meter.sock"),
            client_of(application(), connected=False),
        ):
            while not caplog.records:  # noqa: ASYNC110  # a log tells nobody that it has a line
                await asyncio.sleep(0.001)

    asyncio.run(main())
    assert "the meter's socket" in caplog.text
    assert "0123456789abcdef" not in caplog.text


def test_receipts_without_a_meter_are_503(run_dir: Path) -> None:
    async def main() -> Any:
        async with client_of(application(), connected=False) as client:
            await client.call("/energy/" + "0" * 32, method="GET")
            return client.sent[0]["status"]

    assert asyncio.run(main()) == 503


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stream_of_anything_loses_no_byte(run_dir: Path, noise: bytes, cuts: list[int]) -> None:
    cuts = sorted(min(cut, len(noise)) for cut in cuts)
    pieces = [noise[a:b] for a, b in zip([0, *cuts], [*cuts, len(noise)], strict=True)]

    async def main() -> bytes:
        client = Client(EnergyMiddleware(application(*pieces, content=b"text/event-stream")))
        return await client.call()

    assert (
        re.sub(b"(?:" + no_figure("meter_away") + b"|" + no_figure("meter_away")[1:] + b")", b"", asyncio.run(main()))
        == noise
    )


def test_a_stream_that_never_ends_an_event_is_not_collected(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "EVENT_LIMIT_BYTES", 50)
    sent_before_the_end: list[int] = []
    client = Client(None)
    app = application(
        *[b"x" * 40] * 4, content=b"text/event-stream", during=lambda _: sent_before_the_end.append(len(client.body()))
    )
    client.app = EnergyMiddleware(app)
    assert asyncio.run(client.call()) == b"x" * 160
    assert sent_before_the_end == [0, 0, 80, 120]


def test_texts_stay_in_the_server_unless_the_meter_may_classify(
    meter: FakeMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {"messages": [{"role": "user", "content": "Zanzibar?"}]}
    pieces = [b'data: {"choices":[{"index":0,"delta":{"content":"An "}}]}\n\n']
    pieces += [b'data: {"choices":[{"index":0,"delta":{"content":"island."},"finish_reason":"stop"}]}\n\n']
    pieces += [b"data: [DONE]\n\n"]
    told = []
    for classify in ("0", "1"):
        monkeypatch.setenv("ETAMETER_CLASSIFY", classify)
        call(application(*pieces, content=b"text/event-stream"), request=request)
        call(application(CHAT), request=request)
        meter.heard("ask", 2 * (1 + int(classify)))
        told.append([message for message in meter.messages if message["type"] == "text"])
    assert told[0] == []
    assert [message.get("responses") for message in told[1]] == [["An island."], None]  # CHAT's choice has no index
    kinds = [message["type"] for message in meter.messages if message["receipt_id"] == told[1][0]["receipt_id"]]
    assert kinds == ["open", "text", "ask"]


def test_of_a_request_that_is_refused_no_text_is_told(meter: FakeMeter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETAMETER_CLASSIFY", "1")

    async def calls() -> None:
        client = await connected(application(b'{"error":{"message":"too long"}}', status=400))
        await client.call(request={"messages": []})
        await asyncio.to_thread(meter.heard, "open")  # each has a connection of its own
        client = await connected(application(CHAT))
        await client.call(request={"messages": []})

    asyncio.run(calls())
    meter.heard("ask")
    refused, answered = opened(meter)
    told = [message["receipt_id"] for message in meter.messages if message["type"] == "text"]
    assert (told, refused != answered) == ([answered], True)


def wastes(meter: FakeMeter) -> list[tuple[str, str]]:
    return [(message["waste"], message["receipt_id"]) for message in meter.messages if message["type"] == "waste"]


async def connected(app: Any) -> Client:
    middleware = EnergyMiddleware(app)
    middleware.link.start()
    while middleware.link._writer is None:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    return Client(middleware)


def opened(meter: FakeMeter) -> list[str]:
    return [message["receipt_id"] for message in meter.messages if message["type"] == "open"]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_whose_client_goes_before_its_end_is_abandoned_and_one_that_is_complete_is_not(
    meter: FakeMeter, *, streamed: bool
) -> None:
    last = b'data: {"choices":[{"index":0,"delta":{"content":"A"},"finish_reason":"stop"}]}\n\n'
    pieces = [last, b"data: [DONE]\n\n"] if streamed else [CHAT]
    content = b"text/event-stream" if streamed else b"application/json"
    after = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if not after:
            assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content)]})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if after:
            assert (await receive())["type"] == "http.disconnect"

    async def calls() -> None:
        nonlocal after
        client = await connected(app)
        await client.call(gone=asyncio.sleep(0))
        after = True
        await client.call(gone=asyncio.sleep(0))

    asyncio.run(calls())
    meter.heard("open", 2)
    meter.heard("ask", 2)
    assert wastes(meter) == [("abandoned", opened(meter)[0])]


def test_who_asks_again_has_the_earlier_answer_made_anew(meter: FakeMeter) -> None:
    request = {"messages": [{"role": "user", "content": "Zanzibar?"}]}

    async def calls() -> None:
        client = await connected(application(CHAT))
        for headers in ((), (), [(b"x-etameter-run", b"r1")], ()):
            await client.call(request=request, headers=headers)
        await client.call(request={"messages": []})

    asyncio.run(calls())
    meter.heard("waste", 2)
    first, second, _, _, _ = opened(meter)
    assert wastes(meter) == [("retry", first), ("retry", second)]
    assert "Zanzibar" not in json.dumps(meter.messages)


EMBEDDINGS = b'{"id":"embd-1","object":"list","data":[{"index":0,"embedding":[0.5,-1.0]}],"usage":{"prompt_tokens":3}}'


@pytest.mark.parametrize("asked", ["x", ["x", "y"], [1, 2], [[1], [2]]])
def test_embeddings_get_their_field_and_neither_texts_nor_retries(
    meter: FakeMeter, monkeypatch: pytest.MonkeyPatch, asked: Any
) -> None:
    monkeypatch.setenv("ETAMETER_CLASSIFY", "1")
    request = {"model": "m", "input": asked}

    async def calls() -> list[bytes]:
        client = await connected(application(EMBEDDINGS))
        return [await client.call("/v1/embeddings", request) for _ in range(2)]

    bodies = asyncio.run(calls())
    asks = meter.heard("ask", 2)
    assert bodies == [EMBEDDINGS[:-1] + b"," + field(ask["receipt_id"]) + b"}" for ask in asks]
    assert {message["type"] for message in meter.messages} == {"open", "ask"}


class Settling(FakeMeter):
    """Its figures are settled from the so-many-th answer on."""

    def __init__(self, path: Path, after: int, *, first: str | None = None) -> None:
        super().__init__(path)
        self.left, self.first = after, first

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        self.left -= 1
        told = super().answer(message)
        if self.first is not None and message["type"] == "ask":
            return told | {"energy": None, "reason": self.first}
        told["energy"]["settled"] = self.left < 0
        return told


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("after", "first", "settled"),
    [(0, None, True), (3, None, True), (3, "unknown_request", True), (1_000_000, None, False)],
)
def test_a_response_may_wait_for_its_settled_figure_and_no_longer_than_so(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, after: int, first: str | None, *, settled: bool, streamed: bool
) -> None:
    monkeypatch.setenv("ETAMETER_SETTLE_RESPONSES", "1")
    monkeypatch.setattr("etameter.serving.exchange.HOLD_S", 5.0)
    app = application(HELLO, LAST, DONE, content=b"text/event-stream") if streamed else application(CHAT)
    with Settling(run_dir / "meter.sock", after, first=first):
        body = call(app).body()
    at = body.index(b'"energy":')
    energy, _ = json.JSONDecoder().raw_decode(body[at + len(b'"energy":') :].decode())
    assert energy["settled"] is settled


def test_where_the_meter_is_away_nothing_is_waited_for(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETAMETER_SETTLE_RESPONSES", "1")
    monkeypatch.setattr("etameter.serving.exchange.SETTLE_S", 1e9)

    async def main() -> bytes:
        async with client_of(application(CHAT), connected=False) as client:
            return await client.call()

    assert b'"energy_reason":"meter_away"' in asyncio.run(main())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], b"401"),
        ([(b"authorization", b"Bearer sesame-sesame-sesamf")], b"401"),
        ([(b"authorization", b"Basic sesame-sesame-sesame")], b"401"),
        ([(b"authorization", b"Bearer ")], b"401"),
        ([(b"authorization", b"Bearer \xff")], b"401"),
        ([(b"authorization", b"bearer sesame-sesame-sesame")], b"200"),
    ],
)
def test_receipts_may_be_for_who_bears_a_token(
    meter: FakeMeter, monkeypatch: pytest.MonkeyPatch, headers: Any, status: bytes
) -> None:
    monkeypatch.setenv("ETAMETER_RECEIPT_TOKEN", "sesame-sesame-sesame")
    client = call(application(CHAT), f"/energy/{'0' * 32}", headers=headers, method="GET")
    assert str(client.sent[0]["status"]).encode() == status
    assert (b"energy_joules" in client.body()) == (status == b"200")
    assert client.header(b"www-authenticate") == (b"Bearer" if status == b"401" else None)


def test_no_byte_is_lost_between_events(meter: FakeMeter) -> None:
    pieces = [ROLE[:-1], b"\n\n", HELLO, b"\n", b"\n"]
    client = call(application(*pieces, content=b"text/event-stream"))
    assert client.body() == b"".join(pieces)
