"""A running server is looked at before it is asked."""

import asyncio
import json
import math
import time
from typing import Any

import pytest
from aiohttp import web

from etameter.errors import EngineError
from etameter.prompts.endpoint import Answer, Failed, connect, probe
from tests.prompts.upstream import Upstream, running

pytestmark = pytest.mark.unit


class Empty(Upstream):
    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": []})


def probed(upstream: Upstream) -> tuple[str, bool]:
    async def main() -> tuple[str, bool]:
        async with running(upstream) as url:
            return await probe(url)

    return asyncio.run(main())


@pytest.mark.parametrize("metered", [True, False])
def test_probing_tells_whether_etameter_is_in_the_server_and_warms_it_up(metered: bool) -> None:
    upstream = Upstream(lambda _: "Hello.", metered=metered)
    assert probed(upstream) == ("small", metered)
    assert [body["max_tokens"] for body in upstream.requests] == [16]


def test_a_meter_that_is_late_with_the_first_answer_is_still_there() -> None:
    upstream = Upstream(lambda _: "Hello.")
    upstream.requests.append({})  # every second answer comes without its energy
    assert probed(upstream) == ("small", True)


def test_a_server_without_a_model_and_nobody_there_are_errors_of_one_line() -> None:
    with pytest.raises(EngineError, match="/v1/models names no model"):
        probed(Empty(lambda _: "Hello."))
    with pytest.raises(EngineError, match="the server does not answer"):
        asyncio.run(probe("http://127.0.0.1:1"))


class Blind(Upstream):
    """Whose counter was lost while it answered."""

    def __init__(self) -> None:
        super().__init__(lambda _: "Hello.")
        self.asked = 0

    async def receipt(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response({"energy": None, "energy_reason": "not_measured"})


def test_nobody_waits_for_what_was_not_measured() -> None:
    async def main(upstream: Blind) -> object:
        async with running(upstream) as url, connect(url) as endpoint:
            return await endpoint.settled("a" * 32, time.monotonic() + 5.0)

    upstream = Blind()
    assert asyncio.run(main(upstream)) == (None, "not_measured")
    assert upstream.asked == 1


class Guarded(Upstream):
    """Its receipts are for who bears the token."""

    async def receipt(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer sesame-sesame-sesame":
            return web.json_response({"energy": None, "energy_reason": "token_required"}, status=401)
        return await super().receipt(request)


@pytest.mark.parametrize("token", ["sesame-sesame-sesame", "another-another-", None])
def test_who_asks_for_receipts_bears_the_token_that_is_configured(
    monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    monkeypatch.delenv("ETAMETER_METER__RECEIPT_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("ETAMETER_METER__RECEIPT_TOKEN", token)

    async def main() -> object:
        body = {"messages": [{"content": "Hello?"}]}
        async with running(Guarded(lambda _: "Hello.")) as url, connect(url, api_key="its own") as endpoint:
            answer = await endpoint.chat(body, "a")
            energy, _ = await endpoint.settled(answer.receipt_id or "", time.monotonic() + 5.0)
            return energy and energy["settled"]

    if token == "sesame-sesame-sesame":
        assert asyncio.run(main()) is True
    else:
        with pytest.raises(EngineError, match="only for who bears their token: set ETAMETER_METER__RECEIPT_TOKEN to"):
            asyncio.run(main())


SAID: dict[str, Any] = {
    "choices": [{"message": {"content": "42"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}


def http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def asked(answer: bytes) -> Answer:
    """What comes of one request to a server that sends these bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def main() -> Answer:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with connect(f"http://127.0.0.1:{port}", timeout_s=5.0) as endpoint:
                return await endpoint.chat({"messages": []}, "a")

    return asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        http(b"\xff"),
        http(b"[" * 100_000),
        http(json.dumps(SAID | {"choices": [{"message": {"content": ["42"]}}]}).encode()),
        http(json.dumps(SAID | {"usage": {"prompt_tokens": 1, "completion_tokens": -1}}).encode()),
        http(json.dumps(SAID | {"usage": {"prompt_tokens": math.inf, "completion_tokens": 1}}).encode()),
        http(json.dumps(SAID | {"energy": {"receipt_id": "a", "settled": True}}).encode()),
        http(json.dumps(SAID | {"energy": {"receipt_id": "a", "source": "guessed"}}).encode()),
        http(json.dumps(SAID | {"energy": {"source": "measured"}}).encode()),
        http(json.dumps(SAID | {"energy": {"receipt_id": "a", "source": "measured", "energy_joules": "NaN"}}).encode()),
    ],
)
def test_whatever_is_no_answer_is_malformed(answer: bytes) -> None:
    with pytest.raises(Failed) as failed:
        asked(answer)
    assert failed.value.fault == "malformed"


def test_half_a_character_can_be_written_down() -> None:
    told = asked(http(json.dumps(SAID | {"choices": [{"message": {"content": "4\ud800"}}]}).encode()))
    assert told.text == "4?"
