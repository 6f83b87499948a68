"""What passing through costs: the proxy beside others, and the middleware beside none, over real sockets.

    python -m benchmarks.gateway [--quick]

A server, the proxies before it, and what asks are processes of their own. The server answers as an OpenAI-compatible server in Python does, with
Starlette under uvicorn, 128 chunks an answer, each put into JSON when it is sent. Throughput: 16 clients that ask again at once, answers in
a second; direct and through each proxy in turn, in both orders, so that what else this machine does falls on all alike. Time to the first
token: 16 streams at a token in 20 ms each, of which each begins while the other 15 are under way. Of each figure the median over rounds of the ratio, or of the difference, to the direct one.

The proxy has a meter's socket that answers at once, and writes its ring: all that it does beside passing on. `joules proxy` (landauer-gap) has no meters
to read. Those that are not installed are left out.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.overhead import BODY, CHUNKS, PARTS, be_silent_meter, chunk, processor_s, trivial_application
from benchmarks.report import Goal, finish

CLIENTS = 16
TOKEN_S = 0.020
PREFILL_S = 0.030
END = b"\r\n0\r\n\r\n"
PROXY = "etameter proxy"
PEERS = {
    "bytes alone": ("asyncio", "bytes"),
    "Starlette + httpx": ("httpx", "relay"),
    "joules proxy": ("joules", "joules"),
}
"""What else passes answers on, by the module that it takes. The first knows nothing of HTTP: the least that a process between two others can be."""
MIDDLEWARES = {
    "trivial": None,
    "trivial, wrapped": "trivial",
    "trivial, asking": "trivial",
    "trivial, metered": "trivial",
    "answering, metered": "answering",
}
"""Applications, and what they are compared with. What is wrapped has a middleware that only hands on: the least that there can be. One that asks is
the least that waits for a figure."""
GOALS = {
    f"{PROXY}, throughput to direct": 0.6,
    f"{PROXY}, added to the first token, ms": 1.0,
    "trivial, metered, throughput to without": 0.97,
}
_START_S = 30.0


# ------------------------------------------------------------------------------------------------------ what is asked


async def answering(scope: Any, receive: Any, send: Any) -> None:
    """As an OpenAI-compatible server does: Starlette, and JSON for every chunk. With a `?paced` it takes its time."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    async def events(*, paced: bool) -> AsyncIterator[bytes]:
        await asyncio.sleep(PREFILL_S if paced else 0)
        for number in range(CHUNKS - 2):
            yield chunk(f" token {number}")
            if paced:
                await asyncio.sleep(TOKEN_S)
        yield PARTS[-2]
        yield PARTS[-1]

    async def chat(request: Any) -> Any:
        await request.json()
        return StreamingResponse(events(paced=bool(request.url.query)), media_type="text/event-stream")

    async def models(_: Any) -> Any:
        return JSONResponse({"data": [{"id": "model"}]})

    global _served  # noqa: PLW0603  # made once, in the server's process
    if _served is None:
        _served = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models)])
    await _served(scope, receive, send)


_served: Any = None


def relay(upstream: str) -> Any:
    """The plain reverse proxy that one writes with Starlette and httpx."""
    import httpx
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    client = httpx.AsyncClient(base_url=upstream, timeout=None, limits=httpx.Limits(max_connections=None))  # noqa: S113

    async def passing(request: Any) -> Any:
        url = httpx.URL(path=request.url.path, query=request.url.query.encode())
        headers = [(name, value) for name, value in request.headers.raw if name != b"host"]
        asked = client.build_request(request.method, url, headers=headers, content=request.stream())
        answer = await client.send(asked, stream=True)
        told = {name: value for name, value in answer.headers.items() if name != "transfer-encoding"}
        return StreamingResponse(answer.aiter_raw(), answer.status_code, told, background=BackgroundTask(answer.aclose))

    return Starlette(routes=[Route("/{path:path}", passing, methods=["GET", "POST"])])


def wrapped(application: Any) -> Any:
    """The least that a middleware can be which sees what is sent: it hands on."""

    async def around(scope: Any, receive: Any, send: Any) -> None:
        def hand_on(message: Any) -> Any:
            return send(message)

        await application(scope, receive, hand_on)

    return around


def asking(application: Any) -> Any:
    """The least that can put a figure in a stream: it hands on but for the last event, before which it asks the meter. It knows nothing of the request."""
    from etameter.config import socket_path

    waiting: deque[asyncio.Future[bytes]] = deque()
    lines: list[asyncio.WriteTransport] = []

    class Answers(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            for answer in data.splitlines():
                waiting.popleft().set_result(answer)

    async def around(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        if not lines:
            lines.append((await loop.create_unix_connection(Answers, str(socket_path())))[0])

        async def put_in(message: Any) -> None:
            waiting.append(loop.create_future())
            answer = waiting[-1]
            lines[0].write(b'{"type":"ask","receipt_id":"x"}\n')
            await send({**message, "body": await answer + message["body"]})

        def hand_on(message: Any) -> Any:
            return put_in(message) if message.get("body") == PARTS[-1] else send(message)

        await application(scope, receive, hand_on)

    return around


async def pass_bytes(port: int, upstream: str) -> None:
    """What comes on a connection goes out on one of its own, both ways."""
    host, _, upstream_port = upstream.rpartition("/")[2].partition(":")
    loop = asyncio.get_running_loop()

    class End(asyncio.Protocol):
        transport: asyncio.Transport

        def __init__(self, other: "End | None" = None) -> None:
            self.other = other
            self.early = b""
            """What came before there was another end."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            if self.other is None:
                self.connecting = loop.create_task(self.connect())

        async def connect(self) -> None:
            _, self.other = await loop.create_connection(lambda: End(self), host, int(upstream_port))
            self.other.transport.write(self.early)

        def data_received(self, data: bytes) -> None:
            if self.other is None:
                self.early += data
            else:
                self.other.transport.write(data)

        def connection_lost(self, _failure: Exception | None) -> None:
            if self.other is not None:
                self.other.transport.close()

    server = await loop.create_server(End, "127.0.0.1", port)
    await server.serve_forever()


def metered(application: Any) -> Any:
    from etameter.serving.middleware import EnergyMiddleware

    middleware = EnergyMiddleware(application)
    middleware.in_band = True
    return middleware


def run_role(role: str, port: int, upstream: str) -> None:
    """A process of the benchmark."""
    if role == "meter":
        from etameter.config import socket_path

        be_silent_meter(socket_path())
    if role == "bytes":
        asyncio.run(pass_bytes(port, upstream))
    if role == "joules":
        from joules.proxy import ProxyServer

        ProxyServer(("127.0.0.1", port), upstream, meters=[]).serve_forever()
    import uvicorn

    sys.modules["vllm"] = None  # type: ignore[assignment]  # its ids are not what is measured, and it takes long to import
    applications: dict[str, Callable[[], Any]] = {
        "answering": lambda: answering,
        "answering, metered": lambda: metered(answering),
        "relay": lambda: relay(upstream),
        "trivial": lambda: trivial_application,
        "trivial, wrapped": lambda: wrapped(trivial_application),
        "trivial, asking": lambda: asking(trivial_application),
        "trivial, metered": lambda: metered(trivial_application),
    }
    application = applications[role]()
    uvicorn.run(application, host="127.0.0.1", port=port, log_level="error", lifespan="off", timeout_keep_alive=60)


# ------------------------------------------------------------------------------------------------------ who asks


@dataclass(frozen=True, slots=True)
class Load:
    """What one round of asking found."""

    answers_per_s: float
    first_token_s: float
    """Median."""
    processor_ms: float
    """Of the server's process, an answer."""


class Server(NamedTuple):
    port: int
    pid: int


async def ask(server: Server, seconds: float, *, paced: bool) -> Load:
    """`CLIENTS` connections that ask again as soon as they are answered, until `seconds` are over."""
    path = "/v1/chat/completions" + ("?paced" if paced else "")
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    request = head.encode() + BODY
    firsts: list[float] = []
    answers = 0

    async def client(number: int) -> None:
        nonlocal answers
        await asyncio.sleep(
            number * CHUNKS * TOKEN_S / CLIENTS if paced else 0
        )  # each asks while the others are answered
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while (asked_s := time.perf_counter()) < end_s:
            writer.write(request)
            told, is_first = b"", True
            while not told.endswith(END):
                piece = await reader.read(1 << 18)
                if not piece:
                    raise ConnectionError(f"the server on port {server.port} hung up after {told!r}")
                told = told[-len(END) :] + piece
                if is_first and b"data:" in told:
                    is_first = False
                    firsts.append(time.perf_counter() - asked_s)
            answers += 1
        writer.close()

    began_s, before_s = time.perf_counter(), processor_s(server.pid)
    end_s = began_s + seconds
    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    took_s, busy_s = time.perf_counter() - began_s, processor_s(server.pid) - before_s
    return Load(answers / took_s, statistics.median(firsts), 1e3 * busy_s / answers)


async def compared(servers: dict[str, Server], rounds: int, seconds: float, *, paced: bool) -> dict[str, list[Load]]:
    """By name, a load a round, in an order that turns with every round; the first round warms up."""
    loads: dict[str, list[Load]] = {name: [] for name in servers}
    for each in range(rounds + 1):
        for name in list(servers) if each % 2 else list(servers)[::-1]:
            load = await ask(servers[name], seconds, paced=paced)
            if each:
                loads[name].append(load)
    return loads


def ratios(loads: dict[str, list[Load]], name: str, plain: str) -> list[float]:
    """Throughput to throughput, a figure a round."""
    pairs = zip(loads[name], loads[plain], strict=True)
    return [one.answers_per_s / other.answers_per_s for one, other in pairs]


def added_ms(loads: dict[str, list[Load]], name: str, plain: str) -> list[float]:
    """What comes to the time to the first token, a figure a round."""
    pairs = zip(loads[name], loads[plain], strict=True)
    return [1e3 * (one.first_token_s - other.first_token_s) for one, other in pairs]


def frugality(loads: dict[str, list[Load]], name: str, plain: str) -> list[float]:
    """Processor time of an answer to that of one of the other's, the other way round: what throughput comes to where only processor time limits it."""
    pairs = zip(loads[name], loads[plain], strict=True)
    return [other.processor_ms / one.processor_ms for one, other in pairs]


# ------------------------------------------------------------------------------------------------------ processes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(command: list[str], ready: Callable[[], bool]) -> Iterator[int]:
    """Its id; it runs until the block is left."""
    running = subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + _START_S
        while not ready():
            if running.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{' '.join(command)} did not start")
            time.sleep(0.05)
        yield running.pid
    finally:
        running.terminate()
        running.wait(10)


def listens(port: int) -> Callable[[], bool]:
    def look() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return look


def role(held: ExitStack, name: str, upstream: str = "") -> Server:
    """Starts one of our own."""
    port = free_port()
    command = ["benchmarks.gateway", "--role", name, str(port), upstream]
    return Server(port, held.enter_context(process(command, listens(port))))


def main() -> None:
    parser = argparse.ArgumentParser(description="What the proxy and the middleware cost, over sockets.")
    parser.add_argument("--quick", action="store_true", help="few and short rounds: to see that it runs")
    parser.add_argument("--role", nargs=3, metavar=("ROLE", "PORT", "UPSTREAM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        run_role(given.role[0], int(given.role[1]), given.role[2])
        return
    rounds, seconds = (2, 0.5) if given.quick else (6, 2.0)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        os.environ |= {"ETAMETER_RUN": folder, "ETAMETER_RING_DIR": folder}
        line = Path(folder) / "meter.sock"
        held.enter_context(process(["benchmarks.gateway", "--role", "meter", "0", ""], line.exists))
        direct = role(held, "answering")
        upstream, port = f"http://127.0.0.1:{direct.port}", free_port()
        command = ["etameter", "proxy", "--upstream", upstream, "--port", str(port), "--no-meter"]
        proxy = Server(port, held.enter_context(process(command, listens(port))))
        proxies = {"direct": direct, PROXY: proxy}
        proxies |= {name: role(held, kind, upstream) for name, (module, kind) in PEERS.items() if find_spec(module)}
        fast = asyncio.run(compared(proxies, rounds, seconds, paced=False))
        slow = asyncio.run(compared(proxies, max(rounds // 2, 1), 3 * seconds, paced=True))
        alike = {name: role(held, name) for name in MIDDLEWARES}
        around = asyncio.run(compared({**alike, "answering": direct}, 4 * rounds, seconds / 4, paced=False))
    finish("gateway", "measured", *told(fast, slow, around, {"rounds": rounds, "round_s": seconds}))


def told(
    fast: dict[str, list[Load]], slow: dict[str, list[Load]], around: dict[str, list[Load]], context: dict[str, object]
) -> tuple[list[Goal], dict[str, object]]:
    """What is to be printed, and what it is made of."""
    found: dict[str, list[float]] = {}
    for name in (PROXY, *PEERS):
        known = name in fast
        found[f"{name}, throughput to direct"] = ratios(fast, name, "direct") if known else []
        found[f"{name}, added to the first token, ms"] = added_ms(slow, name, "direct") if known else []
    for name, plain in MIDDLEWARES.items():
        if plain:
            found[f"{name}, throughput to without"] = ratios(around, name, plain)
            found[f"{name}, by processor time"] = frugality(around, name, plain)
    goals = [
        Goal(
            name,
            statistics.median(values) if values else None,
            "ms" if name.endswith("ms") else "",
            GOALS.get(name),
            "lower" if name.endswith("ms") else "higher",
        )
        for name, values in found.items()
    ]
    loads = {"at full speed": fast, "paced": slow, "middleware": around}
    medians = {
        kind: {name: statistics.median(load.answers_per_s for load in each) for name, each in of.items()}
        for kind, of in loads.items()
    }
    firsts = {name: 1e3 * statistics.median(load.first_token_s for load in each) for name, each in slow.items()}
    spread = {
        name: [round(each, 4) for each in statistics.quantiles(values, n=4)]
        for name, values in found.items()
        if len(values) > 1
    }
    return goals, {**context, "answers_per_s": medians, "first_token_ms": firsts, "quartiles": spread}


if __name__ == "__main__":
    main()
