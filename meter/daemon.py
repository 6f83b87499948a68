"""The meter process: counters and rings in, ledger, receipts and metrics out."""

import asyncio
import contextlib
import errno
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aiohttp import web

from etameter import audit_key, config
from etameter.accounts import Accounts, Batch
from etameter.auditing import Auditing
from etameter.audits import Audits
from etameter.budgets import LONGEST_S, Budgets
from etameter.carbon import footprint_of
from etameter.checkup import Checkup
from etameter.claims import Claims
from etameter.classifier import Classifier
from etameter.counters import Counter, Described
from etameter.counters.machine import open_counters
from etameter.devices import Device
from etameter.display import Display
from etameter.engine import Engine, check_ring
from etameter.errors import ConfigError, EtameterError, MeterBusy
from etameter.export.events import Events
from etameter.export.http import application
from etameter.export.prometheus import Metrics
from etameter.export.public_ids import PublicIds
from etameter.export.socket import MiddlewareSocket
from etameter.figures import Figures
from etameter.host import HostCounters, HostMeter
from etameter.ledger import Ledger, RequestRow, Resume
from etameter.locks import hold_lock
from etameter.nodes.kept import Known
from etameter.nodes.node import Node, open_nodes
from etameter.nodes.samplers import Samplers
from etameter.pushing import otlp_of
from etameter.recording import Recorder
from etameter.records import Source, weakest
from etameter.sampler import Sampler
from etameter.serving.ring import boot_id
from etameter.slack import fast
from etameter.slack.labels import WASTES
from etameter.slack.reading import Reading
from etameter.texts import Texts, stored_beside
from etameter.writing import Writing

logger = logging.getLogger("etameter")

TICK_S = 0.05
SLOW_TICKS = 20
"""Health of sampler, ring and fit is looked at once in so many ticks."""


def run(settings: config.Config, rings: Sequence[Path], boards: Sequence[Path], socket: Path) -> int | None:
    """Run the meter of the engines that write `rings` until SIGTERM or SIGINT; returns which of them came.

    `boards` are what simulated boards publish, one for each ring, where a board is simulated.

    Raises:
        EtameterError: no counter, no socket, no port, no ledger.
    """
    logging.basicConfig(level=logging.INFO, format="etameter: %(message)s", stream=sys.stderr)
    return asyncio.run(_run(settings, rings, boards, socket))


def record(settings: config.Config, ring: Path, board: Path | None, file: Path, seconds: float | None) -> None:
    """Record what an engine and its counters say into `file`, for `seconds` or until SIGTERM or SIGINT.

    A meter with a ledger, socket and port of its own does it, so that one that runs already is left in peace.

    Raises:
        EtameterError: no counter, or the file can't be written.
    """
    logging.basicConfig(level=logging.WARNING, format="etameter: %(message)s", stream=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="etameter-record-") as folder:
        aside = {"host": "127.0.0.1", "port": 0, "ledger": Path(folder, "ledger.db")}
        own = settings.model_copy(update={"meter": settings.meter.model_copy(update=aside)})
        boards = [] if board is None else [board]
        asyncio.run(_run(own, [ring], boards, Path(folder, "meter.sock"), file, seconds))


async def _run(
    settings: config.Config,
    rings: Sequence[Path],
    boards: Sequence[Path],
    socket: Path,
    recording: Path | None = None,
    seconds: float | None = None,
) -> int | None:
    stop = asyncio.Event()
    came: list[int] = []

    def end(number: int) -> None:
        came.append(number)
        stop.set()

    loop = asyncio.get_running_loop()
    if seconds is not None:
        loop.call_later(seconds, stop.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    for ring in rings:
        check_ring(ring)
    ledger = settings.ledger.resolve()
    with contextlib.ExitStack() as held:
        run_lock = socket.with_suffix(".lock")
        held.enter_context(hold_lock(run_lock, f"runs on {socket}", "set ETAMETER_RUN to another directory"))
        audit_key.made(socket.with_name(config.audit_key_path().name))
        ledger_lock = ledger.with_name(f"{ledger.name}.lock")
        held.enter_context(hold_lock(ledger_lock, f"writes the ledger {ledger}", "name another file with --ledger"))
        section = settings.meter
        if boards and section.nodes:
            raise ConfigError("a simulated GPU has no other machines", "leave out [meter] nodes, or --simulate-gpu")
        counters = await open_counters(boards, section.allow_shared_gpu, are_elsewhere=bool(section.nodes))
        for counter in counters:
            held.callback(counter.close)
        own = [counter.gpu_uuid for counter in counters]
        known = _known_nodes(ledger) if section.nodes else {}
        opened = partial(open_nodes, are_needed=recording is not None)
        nodes = await asyncio.to_thread(opened, section.nodes, section.node_token or "", own, known)
        for node in nodes:
            held.callback(node.stop)
        await Meter(settings, rings, socket, counters, recording, nodes).run(stop)
    return came[0] if came else None


def _known_nodes(path: Path) -> dict[str, Known]:
    """Other machines, as earlier meters have left them."""
    with contextlib.closing(Ledger(path)) as ledger:
        return ledger.nodes(boot_id())


def deaf(host: str, port: int, error: OSError) -> EtameterError:
    """Why nobody can be listened to there."""
    if error.errno == errno.EADDRINUSE:
        return MeterBusy(f"port {port} of {host} is taken", "stop what has it, or name another with --port")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return ConfigError(f"port {port} is for root alone", "name one from 1024 on with --port")
    remedy = "set [meter] host to an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
    return ConfigError(f"this machine can't listen at {host} ({error.strerror})", remedy)


class Meter:
    """Wires the parts together; everything but the sampler runs on one event loop."""

    def __init__(
        self,
        settings: config.Config,
        rings: Sequence[Path],
        socket: Path,
        counters: Sequence[Counter],
        recording: Path | None = None,
        nodes: Sequence[Node] = (),
    ) -> None:
        """Simulated counters are one for each ring; any others are shared by the engines of all of them. A recording is of one."""
        assert recording is None or len(rings) == 1
        self._settings = settings
        found = [(node.name, each) for node in nodes for each in node.counters]
        self._counters: list[Described] = [*counters, *(each for _, each in found)]
        self._devices = [Device.of(each) for each in counters] + [Device.of(each, name) for name, each in found]
        self._kind = self._devices[0].kind
        self._limits_w = {each.gpu_uuid: each.power_limit_w() for each in self._counters}
        self._ledger = Ledger(settings.ledger)  # written by one thread, because a disk may make it wait
        self._receipts = Ledger(settings.ledger, read_only=True)
        self._footprint = footprint_of(settings.footprint)
        self._metrics = Metrics(models=(), arms=(*settings.arms, "unlabelled"), footprint=self._footprint)
        self._metrics.built(version("etameter"))
        for each in self._devices:
            self._metrics.device(each.gpu_uuid, each.board_name, each.kind, each.node)
        self._samplers = Samplers(Sampler(counters, period_ns=int(settings.meter.poll_ms * 1e6)), nodes)
        self._claims = Claims(self)
        model = None if settings.eta.weights is None else fast.load(settings.eta.weights)
        self._classifier = Classifier(
            self._claims,
            self._receipts.reading,
            on=settings.meter.classify,
            classify=partial(fast.classify, model=model),
            tokenizer=self._tokenizer,
        )
        stores = settings.meter.classify and settings.meter.store_text
        self._stored = Texts(stored_beside(settings.ledger)) if stores else None
        self._audits = Audits(self._metrics, self._classifier, self._receipts)
        self._auditing = Auditing(settings.eta, self._audits, on=settings.meter.classify)
        self._public_ids = PublicIds()
        self._boot_id = boot_id()
        self._recording = recording
        self._engines: list[Engine] = []
        for place, ring in enumerate(rings):
            own = self._devices[place : place + 1] if self._kind == "simulated" else self._devices
            books = partial(self._open_books, own)
            self._engines.append(Engine(ring, books, self._receipts, self._engines))
        self._display = Display(self._counters, self._samplers, self._engines, (*settings.arms, "unlabelled"))
        self._events = Events(partial(self._snapshot, whole=True), partial(self._snapshot, whole=False))
        self._host = HostMeter(HostCounters(packages=self._kind != "rapl"), time.monotonic_ns())
        self._budgets = Budgets(settings.budgets, self._source, self._ledger.spent(time.time() - LONGEST_S))
        backlogs = self._classifier.backlog, self._audits.backlog
        self._writing = Writing(self._ledger, self._budgets, backlogs, self._claims.backlog, self._count, self._known)
        self._otlp = None if recording is not None else otlp_of(settings.otlp.endpoint, self._metrics, self._counters)
        self._figures = Figures(
            self._kind,
            self._receipts,
            self._writing,
            self._engines,
            self._catch_up,
            classifier=self._classifier,
            audits=self._audits,
            claims=self._claims,
            public_ids=self._public_ids,
            host=self._host,
            footprint=self._footprint,
        )
        self._socket = MiddlewareSocket(
            socket,
            announce=self._announce,
            publish=self._public_ids.publish,
            told=self._texts,
            wasted=self._claims.told,
            ready=self._classifier.ready,
            answer=self._figures.of,
            audits=self._auditing.take,
            gone=self._auditing.gone,
        )
        self._checkup = Checkup(
            self._metrics,
            self._samplers,
            self._engines,
            self._host,
            self._writing,
            (self._classifier.backlog, self._claims.backlog, self._audits.backlog),
            self._socket,
            self._events,
        )
        self._caught_up = False
        self._started_ns = time.monotonic_ns()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; what is settled by then is written.

        Raises:
            EtameterError: the counters are read no more, or the ledger can't be written.
        """
        served = application(
            host=self._settings.meter.host,
            render=self._metrics.render,
            answer=self._figures.named,
            health=self._health,
            events=self._events,
            receipt_token=self._settings.meter.receipt_token,
        )
        runner = web.AppRunner(served, access_log=None)
        try:
            await self._socket.start()
            await self._listen(runner)
            self._samplers.start()
            if self._otlp is not None:
                self._otlp.start()
            writing = asyncio.create_task(self._writing.run())
            tick = 0
            while not stop.is_set():
                self._advance()
                if tick % SLOW_TICKS == 0:
                    self._look()
                tick += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), TICK_S)
                if writing.done() or not self._samplers.running:
                    break
            died = not self._samplers.running
            self._samplers.stop()
            self._writing.end()
            await writing
            if died:
                raise EtameterError(
                    "the thread that reads the counters has died", "see the log, and start the meter again"
                )
        finally:
            if self._otlp is not None:
                await asyncio.to_thread(self._otlp.stop)
            await runner.cleanup()
            await self._socket.stop()
            self._classifier.stop()
            if self._stored is not None:
                self._stored.close()
            self._receipts.close()
            self._ledger.close()
            self._end_recording()

    async def _listen(self, runner: web.AppRunner) -> None:
        await runner.setup()
        host, port = self._settings.meter.host, self._settings.meter.port
        try:
            await web.TCPSite(runner, host, port).start()
            port = runner.addresses[0][1]  # 0 has become one that was free
        except OSError as error:
            raise deaf(host, port, error) from error
        logger.info(
            "metering %s: counter=%s source=%s; live page http://%s:%d/, metrics http://%s:%d/metrics; ledger %s",
            ", ".join(counter.gpu_uuid for counter in self._counters),
            self._kind,
            self._source,
            *(host, port) * 2,
            self._ledger.path,
        )

    @property
    def _source(self) -> Source:
        """What a sum over all counters may claim."""
        return weakest(frozenset(counter.source for counter in self._counters))

    def _open_books(self, devices: Sequence[Device], resume: Resume) -> Accounts:
        accounts = (
            Accounts(devices, self._boot_id, resume)
            if self._recording is None
            else Recorder(self._recording, devices, self._boot_id, resume, about=self._about())
        )
        accounts.limited(
            self._limits_w
        )  # as last heard: to ask would be to wait for a driver that stalls, or to end with one that fails
        return accounts

    def _about(self) -> dict[str, object]:
        return {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "counter": self._kind,
            "scopes": sorted({counter.scope for counter in self._counters}),
            "poll_ms": self._settings.meter.poll_ms,
            "simulate_gpu": self._settings.meter.simulate_gpu,
        }

    def _end_recording(self) -> None:
        engine = self._engines[0]
        if isinstance(engine.accounts, Recorder):
            engine.accounts.close(
                polls=self._samplers.own.polls,
                missed_polls=self._samplers.own.missed_polls,
                lateness_ns=self._samplers.own.lateness_ns,
                worst_lateness_ns=self._samplers.own.worst_lateness_ns,
                dropped_edges=self._samplers.own.dropped,
                lost_records=engine.lost_records,
                torn_records=engine.torn_records,
            )

    def _advance(self) -> None:
        """Take in what is new, settle what can be, write it down."""
        if self._writing.is_full:
            return
        found, changes = self._samplers.drain(), self._samplers.changes()
        self._meet()  # afterwards, so that it knows all of whom anything was found
        self._read_rings()
        self._limits_w |= {each.gpu_uuid: each.power_limit_w for each in changes if each.power_limit_w is not None}
        self._metrics.found(found)
        self._display.found(found, changes)
        for engine in self._engines:
            engine.accounts.found(found)
            engine.accounts.changed(changes)
            batch = engine.settle()
            if batch is not None:
                self._writing.add(batch)
                self._note_residents(engine, batch)
        self._auditing.tick(sum(engine.accounts.open_requests for engine in self._engines))

    def _meet(self) -> None:
        """Take in counters of other machines that have come to be known: an engine may wait for them. A recording has those of its beginning."""
        nodes, limits_w = self._samplers.nodes, self._limits_w
        new = [(node.name, each) for node in nodes for each in node.counters if each.gpu_uuid not in limits_w]
        if not new or self._recording is not None:
            return
        for name, each in new:
            limits_w[each.gpu_uuid] = each.power_limit_w()
            self._metrics.device(each.gpu_uuid, each.board_name, each.kind, name)
            self._display.joined(each)
            if self._otlp is not None:
                self._otlp.joined(each.gpu_uuid, each.board_name)
            logger.info("metering %s of %s, too", each.gpu_uuid, name)
        self._counters += [each for _, each in new]
        known = [(node.name, each) for node in nodes for each in node.counters if each.gpu_uuid in limits_w]
        self._devices[:] = [device for device in self._devices if not device.node]  # in the order of the nodes
        self._devices += [Device.of(each, name) for name, each in known]
        for engine in self._engines:
            engine.know(self._devices)
            engine.accounts.limited(limits_w)

    def _known(self) -> dict[str, Known]:
        return {node.name: node.known for node in self._samplers.nodes if node.known is not None}

    def _read_rings(self) -> None:
        now_ns = time.monotonic_ns()
        for engine in self._engines:
            before = engine.header
            engine.read(now_ns)
            if engine.header is not None and engine.header is not before:
                self._metrics.know_model(engine.header.model)

    def _catch_up(self) -> None:
        """Read the rings once in a turn of the event loop: what is asked in it was asked before. When a crowd's answers end together that is one look ahead for all."""
        if not self._caught_up and not self._writing.is_full:
            self._caught_up = True
            asyncio.get_running_loop().call_soon(self._fall_behind)
            self._read_rings()

    def _fall_behind(self) -> None:
        self._caught_up = False

    def _note_residents(self, engine: Engine, batch: Batch) -> None:
        first = engine.accounts.devices[0].gpu_uuid
        for (balance, _), residents in zip(batch.balances, batch.request_ids, strict=True):
            if balance.gpu_uuid == first:  # all of an engine's GPUs work on the same requests
                self._host.resided(balance.start_ns, balance.end_ns, residents, batch.resume.engine)

    def _count(self, batch: Batch) -> None:
        """Metrics, and what the page shows, move when the ledger has."""
        self._display.settled(batch)
        with self._metrics.together:
            for (balance, source), increments in zip(batch.balances, batch.increments, strict=True):
                self._metrics.settle(balance, source)
                for each in increments:
                    self._metrics.increment(batch.model, **asdict(each))
                    tokens = each.prompt_tokens + each.output_tokens
                    self._auditing.spent(each.arm, each.prompt_j + each.output_j, tokens)
            settled = [row for row in batch.rows if row.energy.settled]
            self._claims.settled(settled)
            self._classifier.settled(settled)
            for row in settled:
                public_id = self._public_ids.end(row.record.receipt_id or "")
                self._metrics.finished(row, public_id)
                self._display.finished(row, public_id, self._classifier.of(row.record.receipt_id or ""))

    def classified(self, row: RequestRow, reading: Reading) -> None:
        """A settled request of which it is known how much was slack."""
        self._metrics.classified(row, reading)
        self._display.classified(row, reading, self._audits.reliability(row.record.model, row.record.arm, "fast"))

    def slack(self, row: RequestRow, category: str, tokens: float, joules: float, marginal_joules: float) -> None:
        """So much of a settled request's output was slack of a category, and is counted as no other."""
        self._metrics.slack(row, category, tokens, joules, marginal_joules)
        if category in WASTES:
            self._display.wasted(row, category, joules)

    def unclassified(self, cause: str) -> None:
        """A response could not be classified although its texts were told."""
        self._metrics.unclassified(cause)

    def _snapshot(self, *, whole: bool) -> bytes:
        return self._display.snapshot(whole=whole, dropped_messages=self._socket.dropped)

    def _look(self) -> None:
        self._checkup.look()
        self._audits.look()
        if self._budgets:
            self._socket.tell(self._checkup.budgets(self._budgets))
        if self._stored is not None:
            self._metrics.texts(dropped=self._stored.dropped)
        if self._otlp is not None:
            self._metrics.exports(self._otlp.outcomes)

    def _tokenizer(self) -> str | None:
        """Of the model that is served, where all engines serve the same."""
        headers = [engine.header for engine in self._engines if engine.header is not None]
        named = {str(header.details.get("tokenizer") or header.model) for header in headers}
        return named.pop() if len(named) == 1 else None

    def _texts(self, receipt_id: str, message: Mapping[str, Any]) -> None:
        if self._stored is not None:
            self._stored.add(receipt_id, message, time.time())
        if not self._auditing.is_own(receipt_id):
            self._classifier.told(receipt_id, message)
            self._auditing.told(receipt_id, message)

    def _announce(self, receipt_id: str, arm: str, budgets: tuple[str, ...] | None) -> None:
        self._auditing.opened(receipt_id, arm)
        if not self._budgets:
            budgets = ()
        elif budgets is not None:
            budgets = tuple(name for name in self._settings.budgets if name in budgets)  # each once
        for engine in self._engines:  # which of them will run it nobody knows yet
            engine.accounts.announce(receipt_id, arm, budgets)

    def _health(self) -> tuple[bool, dict[str, object]]:
        """Well while the sampler runs; what is not known yet is null."""
        headers = [engine.header for engine in self._engines]
        first = next((header for header in headers if header is not None), None)
        return self._samplers.running, {
            "status": "ok" if self._samplers.running else "sampler stopped",
            "source": self._source,
            "counter": self._kind,
            "awaiting_first_edge": self._samplers.awaited(),
            "engine": first.engine if first else None,
            "model": first.model if first else None,
            "engines": [
                {
                    "ring": engine.ring.name,
                    "engine": header.engine if header else None,
                    "model": header.model if header else None,
                    "devices": [asdict(device) for device in engine.accounts.devices] if header else [],
                }
                for engine, header in zip(self._engines, headers, strict=True)
            ],
            "uptime_s": (time.monotonic_ns() - self._started_ns) * 1e-9,
        }
