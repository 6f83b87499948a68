"""The page's server, asked by a real client over real connections."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from etameter.export import events as module
from etameter.export.events import MAX_CLIENTS, Events
from etameter.export.http import SECURITY, application, named

pytestmark = pytest.mark.unit

PATIENCE_S = 20.0


class Snapshots:
    """Counts who asks."""

    def __init__(self, padding: int = 0) -> None:
        self.whole = self.news = 0
        self._padding = "x" * padding

    def told_whole(self) -> bytes:
        self.whole += 1
        return json.dumps({"whole": self.whole, "padding": self._padding}).encode()

    def told_news(self) -> bytes:
        self.news += 1
        return json.dumps({"news": self.news, "padding": self._padding}).encode()


class Served:
    """A server, and a client's session."""

    def __init__(
        self, session: aiohttp.ClientSession, runner: web.AppRunner, snapshots: Snapshots, events: Events
    ) -> None:
        self.session, self.runner, self.snapshots, self.events = session, runner, snapshots, events
        self.port: int = runner.addresses[0][1]

    def get(self, path: str, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.session.get(f"http://127.0.0.1:{self.port}{path}", headers=named)


def served(check: Callable[[Served], Awaitable[None]], *, host: str = "127.0.0.1", padding: int = 0) -> Snapshots:
    snapshots = Snapshots(padding)

    async def main() -> None:
        events = Events(snapshots.told_whole, snapshots.told_news)
        app = application(
            host=host,
            render=lambda _: (b"# EOF\n", "text/plain"),
            answer=lambda _: (None, "unknown_request"),
            health=lambda: (True, {"status": "ok", "awaiting_first_edge": []}),
            events=events,
        )
        runner = web.AppRunner(app, shutdown_timeout=PATIENCE_S)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session:
            try:
                await check(Served(session, runner, snapshots, events))
            finally:
                await asyncio.wait_for(runner.cleanup(), PATIENCE_S / 2)

    asyncio.run(main())
    return snapshots


async def event(response: aiohttp.ClientResponse) -> Any:
    """The next one."""
    while line := await response.content.readline():
        if line.startswith(b"data: "):
            return json.loads(line[6:])
    return None


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE_S / 0.01)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {PATIENCE_S} s")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.02)


def test_events_begin_with_all_that_is_kept_and_go_on_with_what_is_new() -> None:
    async def check(at: Served) -> None:
        async with at.get("/events") as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            assert "Access-Control-Allow-Origin" not in response.headers
            assert (await response.content.readline()) == b"retry: 1000\n"
            assert "whole" in await event(response)
            first, second = await event(response), await event(response)
            assert second["news"] == first["news"] + 1

    served(check)


def test_a_snapshot_is_made_once_for_all_and_for_nobody_not_at_all() -> None:
    async def check(at: Served) -> None:
        await asyncio.sleep(0.1)
        assert at.snapshots.news == 0
        async with at.get("/events") as one, at.get("/events") as other:
            await event(one), await event(other)
            news = [(await event(one))["news"] for _ in range(3)]
            same = [(await event(other))["news"] for _ in range(3)]
            assert set(news) & set(same)
        await until(lambda: not at.events._clients)
        before = at.snapshots.news
        await asyncio.sleep(0.1)
        assert at.snapshots.news == before

    assert served(check).whole == 2


def test_only_so_many_may_listen_and_others_are_told_to_come_again() -> None:
    async def check(at: Served) -> None:
        listening = [await at.get("/events") for _ in range(MAX_CLIENTS)]
        async with at.get("/events") as refused:
            assert refused.status == 503
            assert refused.headers["Retry-After"]
        listening.pop().close()
        await until(lambda: len(at.events._clients) < MAX_CLIENTS)
        async with at.get("/events") as admitted:
            assert admitted.status == 200
        for each in listening:
            each.close()

    served(check)


def test_who_does_not_read_is_hung_up_on_and_who_does_is_not_kept_waiting() -> None:
    async def check(at: Served) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.port, limit=1024)
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await writer.drain()
        await until(lambda: len(at.events._clients) == 1)
        async with at.get("/events") as response:
            while at.events.dropped == 0:
                assert await event(response)
            last = await event(response)
            assert (await event(response))["news"] == last["news"] + 1
        assert at.events.dropped == 1
        writer.close()
        del reader

    served(check, padding=200_000)


def test_who_leaves_is_forgotten_and_not_counted_as_slow() -> None:
    async def check(at: Served) -> None:
        async with at.get("/events") as response:
            await event(response)
            assert len(at.events._clients) == 1
        await until(lambda: not at.events._clients)
        assert at.events.dropped == 0

    served(check)


def test_a_meter_that_ends_does_not_wait_for_listeners() -> None:
    async def check(at: Served) -> None:
        async with at.get("/events") as response:
            await event(response)
            await asyncio.wait_for(at.runner.cleanup(), PATIENCE_S / 2)
            with contextlib.suppress(aiohttp.ClientError):
                while await event(response):
                    pass

    served(check)


def test_a_meter_that_ends_does_not_wait_for_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 10_000)

    async def check(at: Served) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", at.port, limit=1024)
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: any(queue.qsize() > 2 for queue in at.events._clients))
        await asyncio.wait_for(at.runner.cleanup(), PATIENCE_S / 2)
        writer.close()

    served(check, padding=1_000_000)


@pytest.mark.parametrize(
    "path", ["/", "/events", "/metrics", "/health", "/ready", "/energy/" + "0" * 32, "/page/page.js"]
)
def test_on_loopback_only_local_names_are_answered(path: str) -> None:
    async def check(at: Served) -> None:
        for host in ("evil.example", "evil.example:9430", "127.0.0.1.evil.example", "[::2]:9430", "localhost@evil", ""):
            async with at.get(path, Host=host) as response:
                assert response.status in {400, 403}, host
        for host in ("127.0.0.1:9430", "localhost", "LOCALHOST:1", "[::1]:9430"):
            async with at.get(path, Host=host) as response:
                assert response.status != 403, host

    served(check)


def test_a_meter_that_is_bound_to_the_network_answers_to_any_name() -> None:
    async def check(at: Served) -> None:
        async with at.get("/metrics", Host="meter:9430") as response:
            assert response.status == 200

    served(check, host="0.0.0.0")


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip", "gzip"), ("identity", None)])
def test_metrics_are_compressed_for_who_takes_them_so(accepted: str, encoding: str | None) -> None:
    async def check(at: Served) -> None:
        async with at.get("/metrics", Accept_Encoding=accepted) as response:
            assert response.headers.get("Content-Encoding") == encoding
            assert await response.read() == b"# EOF\n"

    served(check)


def test_no_other_sites_page_may_listen() -> None:
    async def check(at: Served) -> None:
        for site in ("cross-site", "same-site"):
            async with at.get("/events", Sec_Fetch_Site=site) as response:
                assert response.status == 403
        async with at.get("/events", Sec_Fetch_Site="same-origin") as response:
            assert response.status == 200

    served(check)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:9430", "localhost"),
        ("[::1]:9430", "::1"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("a:b:c", None),
        ("[::1", None),
        ("", ""),
    ],
)
def test_host_headers_are_read(header: str, name: str | None) -> None:
    assert named(header) == name


def test_the_page_is_served_with_its_policy_and_nothing_else_of_the_disk() -> None:
    async def check(at: Served) -> None:
        async with at.get("/") as response:
            assert response.content_type == "text/html"
            assert {name: response.headers[name] for name in SECURITY} == SECURITY
            tag = response.headers["ETag"]
        async with at.get("/", If_None_Match=tag) as response:
            assert response.status == 304
        for path in ("/page/", "/page/nothing.js", "/page/..%2fhttp.py", "/page/%2e%2e/http.py", "/page/../http.py"):
            async with at.get(path) as response:
                assert response.status == 404, path

    served(check)
