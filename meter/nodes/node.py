"""Another machine of an engine, as the meter sees it: its counters' edges come over TCP, and are placed on the clock here.

An edge is as exact as the exchange of clocks around it: what that leaves open is added to its half-width, and so enters every error that follows from it.
While nothing is heard of a node its counters are said to fail: what they count meanwhile is `readings_missing` when they are back, and nobody else waits.
"""

import logging
import math
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from etameter.errors import NodeError
from etameter.nodes.address import address_of, check_token
from etameter.nodes.clock import Exchange, RemoteClock
from etameter.nodes.wire import (
    LINE_LIMIT_BYTES,
    VERSION,
    RemoteCounter,
    counter_of,
    is_proof,
    line,
    message_of,
    proof,
)
from etameter.records import Conditions, Edge, Finding, ReadFailure, Reboot

logger = logging.getLogger("etameter")

EXCHANGE_NS = 250_000_000
FIRST_EXCHANGES = 8
"""At once when a connection is made: the quickest of them counts."""
SILENT_S = 1.0
"""A node that answers nothing for so long is lost."""
RETRY_S = 0.5
PATIENCE_S = 10.0
"""A sampler that starts beside the meter may take so long."""
CAPACITY = 65_536
LOST, ABSENT, LEAPT = "node_lost", "gpu_absent", "clock_leapt"
"""Causes of failed reads: nothing is heard of the node; its sampler reads that GPU no more; when it was read isn't known."""

State = Mapping[str, Any]


class Link:
    """A connection to a sampler whose token is the meter's. Reads and writes from one thread.

    Raises:
        OSError: nobody answers there in time.
        NodeError: who answers is no sampler of this version, or has another token.
    """

    def __init__(self, host: str, port: int, token: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=SILENT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pending = b""
        self.read_ns = 0
        """When the line that was read last had come, at the latest."""
        with ExitStack() as undoing:
            undoing.callback(self.close)
            self._greet(f"{host}:{port}", token)
            undoing.pop_all()

    def _greet(self, name: str, token: str) -> None:
        hello = self._expect(name)
        if hello.get("etameter") != "sampler" or hello.get("version") != VERSION:
            raise NodeError(f"who listens at {name} is no sampler of this version", "install the same etameter on both")
        challenges = str(hello.get("challenge")), secrets.token_hex(16)
        self.send({"challenge": challenges[1], "proof": proof(token, "meter", challenges)})
        about = self._expect(name)
        if not is_proof(about.get("proof"), token, "sampler", challenges):
            raise NodeError(
                f"the sampler at {name} has another token than this meter", "give both the same [meter] node_token"
            )
        try:
            self.boot_id = str(about["boot_id"])
            self.counters = [counter_of(each) for each in about["counters"]]
        except (KeyError, ValueError) as error:
            raise NodeError(f"the sampler at {name} describes no counters ({error})", "update it") from error

    def _expect(self, name: str) -> State:
        deadline_s = time.monotonic() + SILENT_S
        while (wait_s := deadline_s - time.monotonic()) > 0:
            told = self.receive(wait_s)
            if isinstance(told, dict):
                return told
        raise TimeoutError(f"the sampler at {name} does not answer")

    def send(self, message: State) -> None:
        """Raises OSError."""
        self._socket.settimeout(SILENT_S)
        self._socket.sendall(line(message))

    def receive(self, timeout_s: float) -> State | Finding | Conditions | None:
        """The next message; None where none comes in time. Raises OSError, and NodeError for what is no message."""
        while b"\n" not in self._pending:
            self._socket.settimeout(max(timeout_s, 1e-3))
            try:
                new = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            self.read_ns = time.monotonic_ns()
            if not new or len(self._pending) > LINE_LIMIT_BYTES:
                raise ConnectionResetError("the sampler has hung up")
            self._pending += new
        text, _, self._pending = self._pending.partition(b"\n")
        try:
            return message_of(text)
        except ValueError as error:
            raise NodeError(str(error), "install the same etameter on both") from error

    def close(self) -> None:
        self._socket.close()


class Node:
    """Follows the sampler at `name` (HOST:PORT), in a thread of its own, from `open` until `stop`."""

    def __init__(self, name: str, token: str) -> None:
        self.name = name
        self._host, self._port = address_of(name)
        check_token(self._host, token)
        self._token = token
        self.counters: list[RemoteCounter] = []
        """Those that it had when it was opened. What it reads beside them later is nobody's."""
        self.error_ns: float = math.nan
        """By how much an instant that its clock shows now may be off here; NaN while nothing is heard of it."""
        self.state: State = {}
        self._limits_w: dict[str, float | None] = {}
        self._clock = RemoteClock()
        self._boot_id = ""
        self._told_ns: dict[str, int] = {}
        """By GPU: up to when anything has been told of it."""
        self._found: deque[Finding] = deque(maxlen=CAPACITY)
        self._changes: deque[Conditions] = deque(maxlen=CAPACITY)
        self._link: Link | None = None
        self._sent: dict[int, int] = {}
        self._pings = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"etameter-node-{name}", daemon=True)

    def open(self, patience_s: float) -> None:
        """Connect, and find out what there is.

        Raises:
            NodeError: nobody answers there for `patience_s`, or it can't be trusted.
        """
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                self._link = Link(self._host, self._port, self._token)
                break
            except OSError as error:
                if time.monotonic() > deadline_s:
                    raise NodeError(
                        f"no sampler answers at {self.name} ({error})", "start `etameter sampler --listen` there"
                    ) from error
            time.sleep(0.1)
        self._boot_id = self._link.boot_id
        self.counters = self._link.counters
        self._limits_w = {each.gpu_uuid: each.limit_w for each in self.counters}
        self._told_ns = dict.fromkeys(self._limits_w, time.monotonic_ns())

    def start(self) -> None:
        """Begin to listen, after `open`."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._link is not None:
            self._link.close()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_heard(self) -> bool:
        return not math.isnan(self.error_ns)

    def drain(self) -> list[Finding]:
        """What was found since the last call, by the clock here, in order of time for each GPU."""
        return [self._found.popleft() for _ in range(len(self._found))]

    def changes(self) -> list[Conditions]:
        """Conditions other than those that held before, since the last call."""
        return [self._changes.popleft() for _ in range(len(self._changes))]

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                link = self._link or Link(self._host, self._port, self._token)
                self._link = link
                self._take_up(link)
                self._follow(link)
            except (OSError, NodeError) as error:
                self._lose(error)
                self._stopping.wait(RETRY_S)

    def _take_up(self, link: Link) -> None:
        """Begin with a connection. Its clock is learned anew: nothing says that it is the one from before."""
        now_ns = time.monotonic_ns()
        self._clock, self._sent = RemoteClock(), {}
        if link.boot_id != self._boot_id:
            logger.warning("%s has been started anew: its counters begin at zero", self.name)
            self._boot_id = link.boot_id
            self._found.extend(Reboot(uuid, now_ns) for uuid in self._limits_w)
        for counter in link.counters:
            uuid, limit_w = counter.gpu_uuid, counter.limit_w
            if uuid in self._limits_w and limit_w != self._limits_w[uuid]:
                self._limits_w[uuid] = limit_w
                self._changes.append(Conditions(uuid, now_ns, (limit_w,), limit_w))
        for _ in range(FIRST_EXCHANGES):
            self._ping(link)

    def _follow(self, link: Link) -> None:
        """Until nothing is heard any more. Raises OSError or NodeError then."""
        absent = self._limits_w.keys() - {each.gpu_uuid for each in link.counters}
        next_ns = time.monotonic_ns() + EXCHANGE_NS
        heard_s = time.monotonic()
        while not self._stopping.is_set():
            message = link.receive((next_ns - time.monotonic_ns()) * 1e-9)
            if message is not None:
                heard_s = time.monotonic()
                try:
                    self._take(message, link.read_ns)
                except (KeyError, TypeError, ValueError) as error:
                    raise NodeError(
                        f"the sampler at {self.name} says what can't be understood ({error})",
                        "install the same etameter on both",
                    ) from error
            elif time.monotonic() - heard_s > SILENT_S:
                raise TimeoutError(f"nothing was heard for {SILENT_S:g} s")
            if time.monotonic_ns() >= next_ns:
                next_ns = time.monotonic_ns() + EXCHANGE_NS
                self._ping(link)
                for uuid in absent:
                    self._fail(uuid, ABSENT)

    def _ping(self, link: Link) -> None:
        self._pings += 1
        self._sent[self._pings] = time.monotonic_ns()
        link.send({"ping": self._pings})

    def _take(self, message: State | Finding | Conditions, read_ns: int) -> None:
        if isinstance(message, Mapping):
            if "pong" in message:
                self._see(message, read_ns)
            else:
                self.state = message
        elif message.gpu_uuid in self._limits_w and self._clock.is_known:
            self._place(message, read_ns)

    def _see(self, pong: State, read_ns: int) -> None:
        sent_ns = self._sent.pop(pong["pong"], None)
        if sent_ns is None:
            return
        restarts = self._clock.restarts
        self._clock.see(Exchange(sent_ns, pong["received_ns"], pong["sent_ns"], read_ns))
        if self._clock.restarts > restarts:  # what was placed since the exchange before may be anywhere
            logger.warning("the clock of %s has leapt, as that of a machine that was suspended does", self.name)
            for uuid in self._limits_w:
                self._fail(uuid, LEAPT)
        if not self.is_heard:
            logger.info("hearing the sampler at %s", self.name)
        _, self.error_ns = self._clock.here(pong["sent_ns"])

    def _place(self, found: Finding | Conditions, read_ns: int) -> None:
        """Put what was found there on the clock here, no earlier than what was told before and no later than it has come."""
        uuid = found.gpu_uuid
        t_ns, error_ns = self._clock.here(found.t_ns)
        earliest_ns = self._told_ns[uuid] + 1
        if isinstance(found, Conditions):
            self._limits_w[uuid] = found.power_limit_w or self._limits_w[uuid]
            self._changes.append(replace(found, t_ns=min(t_ns, read_ns)))
            return
        placed_ns = max(earliest_ns, min(t_ns, read_ns))
        self._told_ns[uuid] = placed_ns
        self._found.append(
            _widened(found, t_ns, error_ns, placed_ns) if isinstance(found, Edge) else replace(found, t_ns=placed_ns)
        )

    def _lose(self, error: Exception) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        if self.is_heard:
            logger.warning(
                "the sampler at %s is lost (%s); its GPUs are not measured until it is back", self.name, error
            )
        self.error_ns = math.nan
        for uuid in self._limits_w:
            self._fail(uuid, LOST)

    def _fail(self, uuid: str, cause: str) -> None:
        now_ns = max(time.monotonic_ns(), self._told_ns[uuid] + 1)
        self._told_ns[uuid] = now_ns
        self._found.append(ReadFailure(uuid, now_ns, cause))


def _widened(edge: Edge, t_ns: int, error_ns: int, placed_ns: int) -> Edge:
    """The edge, which is at `t_ns` ± `error_ns` here, placed: its half-width still holds every instant that the reads there and the clocks allow."""
    half_width_ns = edge.half_width_ns + error_ns + abs(placed_ns - t_ns)
    deviation_ns = edge.deviation_ns
    if deviation_ns is not None:  # within the bound of the clocks nothing is likelier than the rest
        deviation_ns = round(math.hypot(deviation_ns, error_ns / math.sqrt(3)))
    return replace(edge, t_ns=placed_ns, half_width_ns=half_width_ns, deviation_ns=deviation_ns)


def open_nodes(names: Sequence[str], token: str, own: Sequence[str]) -> list[Node]:
    """The nodes, open, each of which is waited for; `own` are the GPUs of this machine.

    Raises:
        ConfigError: one is reached by a network, and there is no token.
        NodeError: one doesn't answer, or can't be trusted; a GPU is read by two.
    """
    nodes = [Node(name, token) for name in dict.fromkeys(names)]
    deadline_s = time.monotonic() + PATIENCE_S
    read = set(own)
    with ExitStack() as opened:
        for node in nodes:
            node.open(deadline_s - time.monotonic())
            opened.callback(node.stop)
            uuids = {each.gpu_uuid for each in node.counters}
            if read & uuids:
                raise NodeError(
                    f"{', '.join(sorted(read & uuids))} is read by {node.name} and by another",
                    "name each machine once, and this one not at all",
                )
            read |= uuids
        opened.pop_all()
    return nodes
