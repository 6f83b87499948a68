"""Whom an experiment asks, and by which counters it is metered: a server that runs on this machine, or one of our own."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from etameter import config
from etameter.counters import Counter, nvml, rapl
from etameter.counters.simulated import SimulatedCounter
from etameter.demo_report import Progress
from etameter.errors import CounterError, EngineError
from etameter.own_server import Profile, address_of, is_here, serving
from etameter.serving import small_model
from etameter.serving.interrupts import run_interruptible
from etameter.serving.ring import RingReader

from .endpoint import connect

ENGINE_OPTIONS: Final = ("--enable-prompt-tokens-details",)
_LOOKED_AT: Final = 1 << 20
"""Bytes at both ends of each of a model's files, from which its fingerprint is taken: all of it would take minutes."""
_OF_A_MODEL: Final = frozenset({".json", ".safetensors", ".bin", ".gguf", ".pt"})
_BY_NAME: Final = "its name: its files can't be read from here"


@dataclass(frozen=True, slots=True)
class Server:
    """Whom to ask: the server at `url`, else one of our own, of `model` or of the bundled small one."""

    url: str | None = None
    model: str | None = None
    engine: str | None = None
    """Of a server that runs: it names its ring and its simulated board."""
    profile: Profile = "h100"


def model_of(server: Server) -> str:
    """The name of what is served."""
    if server.url is None:
        return server.model or small_model.NAME

    async def ask(url: str) -> tuple[str, ...]:
        async with connect(url) as endpoint:
            return await endpoint.models()

    served = run_interruptible(ask(address_of(server.url)))
    if server.model is not None and server.model not in served:
        raise EngineError(f"the server has no model {server.model}", f"it has {', '.join(served)}")
    return server.model or served[0]


@dataclass(frozen=True, slots=True)
class Station:
    """A server that answers, and what belongs to it."""

    url: str
    receipts_url: str
    meter_url: str
    """Of the meter that should be beside it; it need not be."""
    engine: str
    tend: Callable[[], None]
    """To be called now and then. Raises EtameterError where a server of our own died."""


@contextmanager
def asked(
    server: Server, progress: Progress, *, name: str, options: Sequence[str] = (), restart: bool = True
) -> Iterator[Station]:
    """The server. One of our own is started with `options` of vLLM's, and its engine and what it leaves are named after the command `name`;
    with `restart` it is started again when it dies.

    Raises:
        EngineError: it is on another machine, or can't be started.
    """
    if server.url is not None:
        url = address_of(server.url)
        if not is_here(urlsplit(url).hostname or ""):
            raise EngineError(f"the server at {url} is on another machine", "run this where its GPU is")
        settings = config.load()
        meter_url = f"http://{settings.meter.host}:{settings.meter.port}"
        yield Station(url, url, meter_url, server.engine or settings.serve.engine, lambda: None)
        return
    with tempfile.TemporaryDirectory(prefix=f"etameter-{name}-") as folder:
        os.environ["ETAMETER_RUN"] = folder  # its own meter, beside any other
        told = (*ENGINE_OPTIONS, *options)
        with serving(
            server.model, server.profile, Path(folder), progress, name=name, options=told, restart=restart
        ) as served:
            progress.end()
            engine = served.meter.settings.serve.engine
            meter_url = served.meter.url
            yield Station(served.url, meter_url, meter_url, engine, served.meter.supervisor.tend)


def counters_of(engine: str) -> Sequence[Counter]:
    """Those of the engine's simulated board where one publishes; else of its GPUs, or of all where it doesn't name them; else of the CPU packages.

    Raises:
        CounterError: there is none, or one that fails.
    """
    board = config.board_path(engine)
    if board.exists():
        return [SimulatedCounter(board)]
    try:
        with closing(RingReader(config.ring_path(engine))) as reader:
            uuids = list(reader.header.gpu_uuids)
    except (OSError, EngineError):
        uuids = []
    try:
        return nvml.discover(uuids)
    except CounterError as error:
        if error.cause != "library_missing":
            raise
    return rapl.discover()


def described(told: dict[str, Any]) -> dict[str, Any]:
    """What a server says of itself; of a model in a folder that can be read here its fingerprint, in place of where it is."""
    root = Path(str(told.get("root", "")))
    if not root.is_absolute():
        return {**told, "model_known_by": _BY_NAME}
    try:
        fingerprint = _fingerprint(root)
    except OSError:  # on another file system, as in a container, or another user's
        return {**told, "root": root.name, "model_known_by": _BY_NAME}
    return {**told, "root": root.name, "model_fingerprint": fingerprint}


def _fingerprint(folder: Path) -> str:
    """Of a model's files: their names and sizes, and both ends of each. Raises OSError."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _OF_A_MODEL:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(_LOOKED_AT))
                file.seek(max(size - _LOOKED_AT, 0))
                digest.update(file.read(_LOOKED_AT))
    return digest.hexdigest()[:16]
