"""The sampler of a machine whose meter is on another: `etameter sampler`. It reads the counters here, and streams what it finds to whoever knows the token."""

import asyncio
import contextlib
import logging
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from etameter.counters import Counter, nvml
from etameter.errors import EtameterError, NodeError
from etameter.nodes.address import address_of, check_token
from etameter.nodes.wire import ASKED_LIMIT_BYTES, VERSION, RemoteCounter, is_proof, line, object_of, proof
from etameter.records import Conditions
from etameter.sampler import Sampler
from etameter.serving.ring import boot_id

logger = logging.getLogger("etameter")

TICK_S = 0.02
"""What was found travels no later than this."""
STATE_TICKS = 50
GREETING_S = 5.0
BEHIND_BYTES = 4 << 20
"""A meter that takes up nothing for so long is hung up on: it comes again."""


def run(listen: str, token: str, poll_ms: float, gpu_uuids: Sequence[str], *, allow_shared_gpu: bool) -> int | None:
    """Sample the GPUs of this machine, or those named, until SIGTERM or SIGINT; returns which of them came.

    Raises:
        EtameterError: no counter, or nobody can be listened to.
    """
    logging.basicConfig(level=logging.INFO, format="etameter: %(message)s", stream=sys.stderr)
    host, port = address_of(listen)
    check_token(host, token)
    counters = nvml.discover(gpu_uuids, allow_shared=allow_shared_gpu)
    try:
        return asyncio.run(Station(counters, token, int(poll_ms * 1e6)).run(host, port))
    finally:
        for counter in counters:
            counter.close()


@dataclass(slots=True)
class _Meter:
    """A meter that listens."""

    writer: asyncio.StreamWriter
    name: str = field(init=False)

    def __post_init__(self) -> None:
        host, port, *_ = self.writer.get_extra_info("peername") or ("nobody", 0)  # who is gone already
        self.name = f"{host}:{port}"


class Station:
    """Streams what one sampler finds to any number of meters. What is found while none listens is dropped: the counters run on."""

    def __init__(self, counters: Sequence[Counter], token: str, period_ns: int) -> None:
        self._counters = {each.gpu_uuid: _described(each) for each in counters}
        self._token = token
        self._sampler = Sampler(counters, period_ns=period_ns)
        self._meters: list[_Meter] = []
        self._boot_id = boot_id()
        self.port = 0
        """That it listens at, once it does."""

    async def run(self, host: str, port: int) -> int | None:
        """Until a signal comes, which is returned. Raises NodeError."""
        stop = asyncio.Event()
        came: list[int] = []

        def end(number: int) -> None:
            came.append(number)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end, number)
        await self.serve(host, port, stop)
        return came[0] if came else None

    async def serve(self, host: str, port: int, stop: asyncio.Event) -> None:
        """Until `stop` is set. Raises NodeError."""
        try:
            server = await asyncio.start_server(self._greet, host, port, limit=ASKED_LIMIT_BYTES)
        except OSError as error:
            raise NodeError(
                f"nobody can be listened to at {host}:{port} ({error.strerror})", "name another with --listen"
            ) from error
        self.port = server.sockets[0].getsockname()[1]
        logger.info("sampling %s for meters at %s:%d", ", ".join(self._counters), host, self.port)
        self._sampler.start()
        try:
            await self._stream(stop)
        finally:
            self._sampler.stop()
            server.close()
            for meter in self._meters:
                meter.writer.close()

    async def _stream(self, stop: asyncio.Event) -> None:
        tick = 0
        while not stop.is_set():
            if not self._sampler.running:
                raise EtameterError("the thread that reads the counters has died", "see the log, and start it again")
            changes = self._sampler.changes()
            self._note(changes)
            told = [line(each) for each in (*self._sampler.drain(), *changes)]
            if tick % STATE_TICKS == 0:
                told.append(line(self._state()))
            self._send(b"".join(told))
            tick += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), TICK_S)

    def _note(self, changes: Sequence[Conditions]) -> None:
        """Limits as the sampler last heard: to ask here would be to ask a driver from two threads."""
        for each in changes:
            if each.power_limit_w is not None:
                known = self._counters[each.gpu_uuid]
                self._counters[each.gpu_uuid] = replace(known, limit_w=each.power_limit_w)

    def _state(self) -> dict[str, object]:
        sampler = self._sampler
        return {
            "throttled": sampler.throttled(),
            "missed_edges": sampler.missed_edges(),
            "awaited": sampler.awaited(),
        }

    def _send(self, told: bytes) -> None:
        for meter in list(self._meters) if told else []:
            if meter.writer.transport.get_write_buffer_size() > BEHIND_BYTES:
                logger.warning("the meter at %s is behind and is hung up on", meter.name)
                meter.writer.transport.abort()
                self._meters.remove(meter)
            else:
                meter.writer.write(told)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        meter = _Meter(writer)
        try:
            if await asyncio.wait_for(self._admit(reader, writer), GREETING_S):
                logger.info("the meter at %s listens", meter.name)
                self._meters.append(meter)
                await self._answer(reader, writer)
        except (OSError, ValueError, TimeoutError) as error:
            logger.warning("the meter at %s is gone (%s)", meter.name, str(error) or type(error).__name__)
        finally:
            if meter in self._meters:
                self._meters.remove(meter)
            writer.close()

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether who has come knows the token. Raises ValueError for nonsense."""
        challenge = secrets.token_hex(16)
        writer.write(line({"etameter": "sampler", "version": VERSION, "challenge": challenge}))
        told = object_of(await reader.readline())
        challenges = challenge, str(told.get("challenge"))
        if not is_proof(told.get("proof"), self._token, "meter", challenges):
            logger.warning("somebody without the token was refused")
            writer.write(line({"refused": "another token"}))
            await writer.drain()
            return False
        counters = [asdict(each) for each in self._counters.values()]
        about = {"proof": proof(self._token, "sampler", challenges), "boot_id": self._boot_id, "counters": counters}
        writer.write(line(about))
        return True

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while text := await reader.readline():
            received_ns = time.monotonic_ns()
            told = object_of(text)
            writer.write(line({"pong": told.get("ping"), "received_ns": received_ns, "sent_ns": time.monotonic_ns()}))


def _described(counter: Counter) -> RemoteCounter:
    """Raises CounterError where its driver fails."""
    about = counter.board_name, counter.scope, counter.kind, counter.source, counter.power_limit_w()
    return RemoteCounter(counter.gpu_uuid, counter.parts, *about)
