"""The slack brake around small applications: what goes on, what is ended, and what is left alone."""

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.serving.arms import Arms
from etameter.serving.asgi import CUT
from etameter.serving.brakes import BRAKES
from etameter.serving.braking import DETECTORS, HEADER, Braking
from etameter.slack.brake import identity
from tests.serving.fake_meter import ENERGY, FakeMeter
from tests.serving.scripted import STREAM, Scripted, chunked, fetch, post, running
from tests.serving.test_middleware import Client, client_of, meter, run_dir, vllm_internals  # noqa: F401  # fixtures
from tests.serving.test_proxy import place, proxied  # noqa: F401  # a fixture

pytestmark = pytest.mark.unit

ON = [(HEADER, b"on")]
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris.\n\n"
CLOSING = "Let me know if you have any other questions about it, or about any other city of the country."
DONE = b"data: [DONE]\n\n"


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "m", "stream": True, "messages": [{"role": "user", "content": QUESTION}], **more}


def chunk(text: str | None, finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"id": "chatcmpl-1", "choices": [choice], **more}).encode() + b"\n\n"


def stream(text: str, *, usage: bool = False) -> list[bytes]:
    """A word an event, as a server would stream it to its own end."""
    words = text.replace("\n\n", "\n\n\x00").replace(" ", " \x00").split("\x00")
    told: list[dict[str, Any]] = [
        {"usage": {"prompt_tokens": 7, "completion_tokens": n}} if usage else {} for n in range(len(words))
    ]
    return [*(chunk(word, **each) for word, each in zip(words, told, strict=True)), chunk(None, "stop"), DONE]


class Writing:
    """An application that streams `events`, and knows whether it was given up."""

    def __init__(self, events: list[bytes]) -> None:
        self.events = events
        self.sent = 0
        self.cancelled = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        try:
            for event in self.events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
                self.sent += 1
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def called(app: Any, request: dict[str, Any], headers: Any = ()) -> Client:
    async def main() -> Client:
        async with client_of(app) as client:
            await client.call(request=request, headers=headers)
            return client

    return asyncio.run(main())


def chunks(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(event[6:]) for event in body.split(b"\n\n") if event.startswith(b"data: {")]


def said(body: bytes) -> str:
    return "".join(choice["delta"].get("content", "") for told in chunks(body) for choice in told["choices"])


def test_a_closing_is_ended_the_engine_is_left_and_the_energy_says_so(meter: FakeMeter) -> None:  # noqa: F811
    app = Writing(stream(ANSWER + CLOSING))
    client = called(app, asked(), ON)
    assert said(client.body()) == ANSWER + "Let me know if you "
    assert app.cancelled
    assert app.sent < len(app.events) - 5
    *_, last = chunks(client.body())
    assert (last["id"], last["choices"][0]["finish_reason"], last["choices"][0]["delta"]) == ("chatcmpl-1", "stop", {})
    assert last["energy"].items() >= {**ENERGY, "braked": "closing"}.items()
    assert client.body().endswith(DONE)
    assert client.header(HEADER) == b"on"
    assert client.header(DETECTORS) == identity().encode()
    assert [message["more_body"] for message in client.sent[1:]][-1] is False
    assert not [each for each in meter.messages if each["type"] == "waste"], "nobody abandoned it"


def test_without_a_meter_it_is_said_all_the_same(run_dir: Path) -> None:  # noqa: F811
    async def main() -> bytes:
        async with client_of(Writing(stream(ANSWER + CLOSING)), connected=False) as client:
            return await client.call(request=asked(), headers=ON)

    *_, last = chunks(asyncio.run(main()))
    assert (last["energy"], last["energy_braked"]) == (None, "closing")


def test_the_usage_so_far_is_told_where_each_event_has_it(meter: FakeMeter) -> None:  # noqa: F811
    *_, end, usage = chunks(called(Writing(stream(ANSWER + CLOSING, usage=True)), asked(), ON).body())
    assert end["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 10)
    assert usage["energy"]["braked"] == "closing"


def test_who_asked_for_usage_at_the_end_alone_finds_the_tokens_in_the_energy(meter: FakeMeter) -> None:  # noqa: F811
    asks = asked(stream_options={"include_usage": True})
    events = [event.replace(b"}\n\n", b', "usage": null}\n\n') for event in stream(ANSWER + CLOSING)[:-1]]
    *_, last = chunks(called(Writing([*events, DONE]), asks, ON).body())
    assert (last["choices"][0]["finish_reason"], last["usage"]) == ("stop", None)
    assert last["energy"]["braked"] == "closing"


@pytest.mark.parametrize(
    "request_",
    [
        asked(n=2),
        asked(tools=[{"type": "function", "function": {"name": "f"}}]),
        asked(response_format={"type": "json_object"}),
        asked(min_tokens=5),
        asked(messages=[{"role": "user", "content": "Write an email that ends with an offer of help."}]),
    ],
)
def test_what_may_not_be_ended_anywhere_is_not(meter: FakeMeter, request_: dict[str, Any]) -> None:  # noqa: F811
    events = stream(ANSWER + CLOSING)
    client = called(Writing(events), request_, ON)
    assert said(client.body()) == ANSWER + CLOSING


def test_off_it_is_the_servers_own_answer_byte_for_byte(run_dir: Path) -> None:  # noqa: F811
    events = stream(ANSWER + CLOSING)
    for headers in ([], [(HEADER, b"off")]):
        app = Writing(events)

        async def main(app: Writing = app, headers: Any = headers) -> Client:
            async with client_of(app, connected=False) as client:
                await client.call(request=asked(), headers=headers)
                return client

        client = asyncio.run(main())
        [held] = [event for event in client.body().split(b"\n\n") if b'"energy"' in event]
        own = held[: held.index(b',"energy"')] + b"}"
        assert client.body().replace(held, own) == b"".join(events)
        assert client.header(HEADER) is None


def test_an_arm_is_braked_with_the_model_of_its_report_and_no_other(
    meter: FakeMeter,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(BRAKES, json.dumps({"concise": "m"}))
    for arm, model, ended in (("concise", "m", True), ("concise", "other", False), ("seed", "m", False)):
        client = called(Writing(stream(ANSWER + CLOSING)), asked(model=model), [(b"x-etameter-arm", arm.encode())])
        assert (said(client.body()) != ANSWER + CLOSING) is ended, (arm, model)
    headers = [(b"x-etameter-arm", b"concise"), (HEADER, b"off")]
    assert said(called(Writing(stream(ANSWER + CLOSING)), asked(), headers).body()) == ANSWER + CLOSING


def test_what_is_no_stream_of_events_that_is_known_goes_on_as_it_comes() -> None:
    events = [event.replace(b"\n\n", b"\r\n\r\n") for event in stream(ANSWER + CLOSING)]
    client = Client(Braking(Writing(events), Arms((), {})))
    assert asyncio.run(client.call(request=asked(), headers=ON)) == b"".join(events)
    assert len([message for message in client.sent[1:] if message["body"]]) == len(events)
    endless = [b"x" * 100_000] * 6
    client = Client(Braking(Writing(endless), Arms((), {})))
    assert asyncio.run(client.call(request=asked(), headers=ON)) == b"".join(endless)
    assert len(client.sent[3]["body"]) > 200_000, "no more is kept than that"


def test_what_is_compressed_goes_on_as_it_comes() -> None:
    class Packed(Writing):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def pack(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"].append((b"content-encoding", b"gzip"))
                await send(message)

            await super().__call__(scope, receive, pack)

    pieces = [b"\x1f\x8b" * 10] * 6
    client = Client(Braking(Packed(pieces), Arms((), {})))
    assert asyncio.run(client.call(request=asked(), headers=ON)) == b"".join(pieces)
    assert len([message for message in client.sent[1:] if message["body"]]) == len(pieces)
    assert client.header(HEADER) is None


def test_what_is_cut_off_in_an_event_is_the_clients_all_the_same() -> None:
    async def cut(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": chunk("Paris ") + b"data: {", "more_body": True})
        await send({"type": CUT})

    sent: list[Any] = []

    async def main() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": json.dumps(asked()).encode(), "more_body": False}

        await Braking(cut, Arms((), {}))({"type": "http", "headers": ON}, receive, send)

    asyncio.run(main())
    assert b"".join(message["body"] for message in sent[1:-1]) == chunk("Paris ") + b"data: {"
    assert sent[-1] == {"type": CUT}


@pytest.mark.parametrize("n", [[], {}, "1", 1.5])
def test_a_request_that_makes_no_sense_is_for_the_server_to_refuse(n: object) -> None:
    assert (
        Braking(Writing([]), Arms((), {})).brake_for({"headers": ON}, json.dumps(asked(n=n)).encode(), asked=True)
        is None
    )


@given(cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_however_events_are_cut_nothing_is_lost(cuts: list[int]) -> None:
    """Over the layer alone, where nobody adds an energy."""
    whole = b"".join(stream("Paris is the capital. It lies on the Seine."))
    at = sorted({0, *(min(cut, len(whole)) for cut in cuts), len(whole)})
    app = Writing([whole[start:end] for start, end in pairwise(at)])
    assert asyncio.run(Client(Braking(app, Arms((), {}))).call(request=asked(), headers=ON)) == whole


def test_a_client_that_goes_takes_the_server_with_it(run_dir: Path) -> None:  # noqa: F811
    app = Writing([chunk("word ")] * 10_000)

    async def main() -> None:
        async with client_of(app, connected=False) as client:
            calling = asyncio.ensure_future(client.call(request=asked(), headers=ON))
            while app.sent < 3:  # noqa: ASYNC110  # the application tells nobody
                await asyncio.sleep(0)
            calling.cancel()
            await asyncio.wait({calling})

    asyncio.run(main())
    assert app.cancelled


def test_behind_the_proxy_the_server_sees_its_client_go(place: Path) -> None:  # noqa: F811
    pieces = [STREAM, *(chunked(event, end=b"") for event in stream(ANSWER + CLOSING)), b"0\r\n\r\n"]
    scripted = Scripted(pieces, pause_s=0.01)

    async def main() -> bytes:
        async with running(scripted) as port, proxied(port, place) as before:
            got = await fetch(before, post(json.dumps(asked()).encode(), headers=HEADER + b": on\r\n"))
            assert got.is_whole
            while not scripted.disconnects:  # noqa: ASYNC110  # nor does the server
                await asyncio.sleep(0.005)
            return got.body

    body = asyncio.run(asyncio.wait_for(main(), 10.0))
    assert said(body) == ANSWER + "Let me know if you "
    assert scripted.disconnects == 1
