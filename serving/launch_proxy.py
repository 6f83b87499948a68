"""`etameter proxy`: the proxy, a ring of the steps that it guesses, and the meter, started and stopped together."""

import asyncio
import json
import os
import resource
import signal
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from aiohttp import ClientSession, ClientTimeout, web

from etameter import config
from etameter.errors import EngineError

from . import launch, ports, streamed
from .arrivals import Arrivals
from .engine_counters import compare
from .interrupts import interruptible
from .proxy import BROKEN, Proxy
from .ring import RingWriter
from .streamed import TokenSteps
from .supervisor import Supervisor

DRAIN_S = 30.0
"""How long answers that have begun may go on when the proxy is to end; a second signal ends them."""
_PROBE_S = 10.0
_TEND_S = 0.2
_BACKLOG = 2048
_OTHER_PORT = "choose another with --port"


@dataclass(frozen=True, slots=True)
class Place:
    """What is proxied, and where. `model` None: as the server calls it."""

    upstream: str
    host: str
    port: int
    model: str | None = None
    gpu_uuids: Sequence[str] = ()
    metrics: str | None = None
    """Address of what the server counts itself, for Prometheus."""


def proxy(place: Place, settings: config.Config, config_file: Path | None = None) -> int:
    """Proxies until interrupted. `config_file` is handed on to the meter.

    Returns:
        130 after Ctrl-C or SIGTERM.

    Raises:
        EtameterError: nothing could be started; nothing is left running.
    """
    try:
        with interruptible():
            _proxy(place, settings, config_file)
    except KeyboardInterrupt:
        return launch.INTERRUPTED
    return launch.INTERRUPTED


def _proxy(place: Place, settings: config.Config, config_file: Path | None) -> None:
    launch.check_metering(settings)
    upstream = address_of(place.upstream)
    ring_path = config.ring_path(settings.serve.engine)
    with ExitStack() as held:
        held.enter_context(closing(ports.claim_ring(ring_path, "name this engine with --engine")))
        held.enter_context(closing(ports.claim(place.host, place.port, _OTHER_PORT)))
        model = place.model or asyncio.run(model_of(upstream))
        left = held.enter_context(ExitStack())
        supervisor = held.enter_context(Supervisor(launch.say, settings.serve.restart_backoff_s))
        if settings.serve.meter:
            launch.start_metering(supervisor, settings, config_file)
        ring = RingWriter(
            ring_path,
            engine=settings.serve.engine,
            model=model,
            dtype="unknown",
            gpu_uuids=place.gpu_uuids,
            details={"method": streamed.METHOD},
        )
        left.callback(ring_path.unlink, missing_ok=True)
        left.enter_context(closing(ring))
        meter = f"the meter is on http://{settings.meter.host}:{settings.meter.port}"
        if not settings.serve.meter:
            meter = f"for a meter of --ring {ring_path}"
        os.environ |= launch.middleware_environment(settings)
        _allow_many_streams()
        arrivals = Arrivals(TokenSteps(ring))
        proxy = Proxy(upstream, arrivals)
        told = f"metering {model} at {upstream} on http://{place.host}:{place.port}, {meter}"
        launch.start_audits(supervisor, settings, (place.host, place.port), config_file)
        asyncio.run(_serve(proxy, place, supervisor, told, arrivals))


async def _serve(proxy: Proxy, place: Place, supervisor: Supervisor, told: str, arrivals: Arrivals) -> None:
    """Answers until a signal comes, then ends what it has begun."""
    stops: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stops.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)  # `interruptible` puts back what was there
    async with proxy:
        runner = web.ServerRunner(proxy.server(), shutdown_timeout=DRAIN_S)
        await runner.setup()
        await web.TCPSite(runner, place.host, place.port, backlog=_BACKLOG).start()
        launch.say(told)
        comparing = (
            asyncio.create_task(compare(place.metrics, lambda: arrivals.output_tokens, launch.say))
            if place.metrics
            else None
        )
        while not stops:
            supervisor.tend()
            await asyncio.sleep(_TEND_S)
        if comparing is not None:
            comparing.cancel()
        draining = asyncio.create_task(runner.cleanup())
        while not draining.done() and len(stops) == 1:
            supervisor.tend()
            await asyncio.wait({draining}, timeout=_TEND_S)
        draining.cancel()


def address_of(url: str) -> str:
    """The address without a final slash or `/v1`. Raises EngineError for what is none."""
    bare = url.rstrip("/").removesuffix("/v1").rstrip("/")
    fault = EngineError(f"{url} is no address of a server", "give one such as --upstream http://127.0.0.1:30000")
    try:
        parts = urlsplit(bare)
        port = parts.port
    except ValueError:
        raise fault from None
    if parts.username is not None:  # a refusal tells clients the address, and the log does
        raise EngineError(
            "the server's address names a user", "leave that out: what clients send as Authorization passes"
        )
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise fault
    return bare


async def model_of(upstream: str) -> str:
    """The first model that the server says it has. Raises EngineError."""
    url = f"{upstream}/v1/models"
    try:
        async with (
            ClientSession(timeout=ClientTimeout(total=_PROBE_S)) as session,
            session.get(url) as response,
        ):
            status, told = response.status, await response.read()
    except (*BROKEN, TimeoutError) as failure:
        remedy = "start it first, and name it as in --upstream http://127.0.0.1:30000"
        raise EngineError(
            f"the server at {upstream} can't be reached ({str(failure) or 'no answer'})", remedy
        ) from failure
    try:
        return str(json.loads(told)["data"][0]["id"])
    except (ValueError, TypeError, LookupError) as failure:
        raise EngineError(
            f"{url} names no model (status {status})",
            "give the address of an OpenAI-compatible server; where it wants a key for that, name the model with --model",
        ) from failure


def _allow_many_streams() -> None:
    """Each takes two files, and shells allow few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
