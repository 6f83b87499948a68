"""Another machine of an engine, as the meter sees it: its counters' edges come over TCP, and are placed on the clock here.

An edge is as exact as the exchange of clocks around it: what that leaves open is added to its half-width, and so enters every error that follows from it.
While nothing is heard of a node its counters are said to fail: what they count meanwhile is `readings_missing` when they are back, and nobody else waits.
Which counters it has is known once it was heard, be it by an earlier meter.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from etameter.errors import NodeError
from etameter.nodes.address import address_of, check_token
from etameter.nodes.clock import Exchange, RemoteClock
from etameter.nodes.kept import Known
from etameter.nodes.link import SILENT_S, Attempt, Link, State
from etameter.nodes.wire import RemoteCounter
from etameter.records import Conditions, Edge, Finding, ReadFailure, Reboot

logger = logging.getLogger("etameter")

EXCHANGE_NS = 250_000_000
FIRST_EXCHANGES = 8
"""At once when a connection is made: the quickest of them counts."""
RETRY_S = 0.5
PATIENCE_S = 10.0
"""A sampler that starts beside the meter may take so long. One that an earlier meter has heard is waited for until `RETRY_S`, or a refusal."""
OWN = "this meter"
CAPACITY = 65_536
LOST, ABSENT, LEAPT = "node_lost", "gpu_absent", "clock_leapt"
"""Causes of failed reads: nothing is heard of the node; its sampler reads that GPU no more; when it was read isn't known."""


class Node:
    """Follows the sampler at `name` (HOST:PORT), in a thread of its own, from `start` until `stop`."""

    def __init__(
        self, name: str, token: str, readers: dict[str, str] | None = None, known: Known | None = None
    ) -> None:
        """`readers` says of each GPU that has been found who reads it, and is shared by all nodes; `known` is of an earlier meter."""
        self.name = name
        self._host, self._port = address_of(name)
        check_token(self._host, token)
        self._token = token
        self._readers = {} if readers is None else readers
        self.known = known
        """What the next meter is to know; None until an edge has come."""
        self._memory = () if known is None else known.counters
        """What it had for an earlier meter, as long as that is all there is to go by."""
        self.counters: Sequence[RemoteCounter] = ()
        """All that it has, or had. There may be more at any time, and never less."""
        self.error_ns: float = math.nan
        """By how much an instant that its clock shows now may be off here; NaN while nothing is heard of it."""
        self.state: State = {}
        self._limits_w: dict[str, float | None] = {}
        self._clock = RemoteClock()
        self._boot_id: str | None = None
        """Of which the counters that were read last are; None before the first connection."""
        self._linked_ns = 0
        self._told_ns: dict[str, int] = {}
        """By GPU: up to when anything has been told of it."""
        self._found: deque[Finding] = deque(maxlen=CAPACITY)
        self._changes: deque[Conditions] = deque(maxlen=CAPACITY)
        self._sent: dict[int, int] = {}
        self._pings = 0
        self._tried = threading.Event()
        self._complaint = ""
        self._failure: OSError | NodeError | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"etameter-node-{name}", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def met(self, patience_s: float) -> bool:
        """Whether it is known which counters it has, for which it is waited so long at most.

        Raises NodeError where who answers there can't be trusted, or reads what another reads.
        """
        deadline_s = time.monotonic() + patience_s
        while not (self.counters or isinstance(self._failure, NodeError)):
            if (wait_s := deadline_s - time.monotonic()) <= 0:
                break
            self._tried.wait(wait_s)
            self._tried.clear()
        if isinstance(self._failure, NodeError):
            raise self._failure
        return bool(self.counters)

    @property
    def unheard(self) -> NodeError:
        """Why nothing is known of it."""
        why = self._failure or "no answer yet"
        return NodeError(f"no sampler answers at {self.name} ({why})", "start `etameter sampler --listen` there")

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

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
                with ExitStack() as connected:
                    link = self._connect()
                    if link is None:
                        return
                    connected.callback(link.close)
                    self._take_up(link)
                    self._tried.set()
                    self._follow(link)
            except (OSError, NodeError) as error:
                self._lose(error)
                self._tried.set()
                self._stopping.wait(RETRY_S)

    def _connect(self) -> Link | None:
        """Until it stops. It is told as often as usual that nothing is heard meanwhile. Raises OSError or NodeError."""
        attempt = Attempt(self._host, self._port, self._token)
        attempt.start()
        attempt.join(RETRY_S)
        while attempt.is_alive() and not self._stopping.is_set():
            self._miss()
            attempt.join(RETRY_S)
        if self._stopping.is_set():
            attempt.give_up()
            return None
        return attempt.link()

    def _take_up(self, link: Link) -> None:
        """Begin with a connection. Its clock is learned anew: nothing says that it is the one from before. Raises NodeError."""
        self._linked_ns = time.monotonic_ns()
        self._clock, self._sent = RemoteClock(), {}
        self._memory = ()
        self._check_readers(link.counters)
        self._admit([each for each in link.counters if each.gpu_uuid not in self._limits_w])
        self._note_boot(link.boot_id)
        for counter in link.counters:
            uuid, limit_w = counter.gpu_uuid, counter.limit_w
            if uuid in self._limits_w and limit_w != self._limits_w[uuid]:
                self._limits_w[uuid] = limit_w
                self._changes.append(Conditions(uuid, self._linked_ns, (limit_w,), limit_w))
        for _ in range(FIRST_EXCHANGES):
            self._ping(link)

    def _check_readers(self, counters: Sequence[RemoteCounter]) -> None:
        """Raises NodeError where a GPU has another reader."""
        readers = {each.gpu_uuid: self._readers.setdefault(each.gpu_uuid, self.name) for each in counters}
        told = [f"{uuid}, which {reader} reads" for uuid, reader in readers.items() if reader != self.name]
        if told:
            raise NodeError(
                f"{self.name} says that it reads {', and '.join(told)}",
                "name each machine once in [meter] nodes, and this one not at all",
            )

    def _note_boot(self, boot_id: str) -> None:
        """Say since when its counters are those of this boot, as far as is known: nobody is to take a difference over that."""
        is_another = boot_id != self._boot_id
        is_remembered = self._boot_id is None and self.known is not None and self.known.boot_id == boot_id
        if is_another and self._boot_id is not None:
            logger.warning("%s has been started anew: its counters begin at zero", self.name)
        self._boot_id = boot_id
        since_ns = self.known.since_ns if is_remembered and self.known is not None else self._linked_ns
        if is_another:
            self._found.extend(Reboot(uuid, since_ns) for uuid in self._limits_w)

    def _admit(self, counters: Sequence[RemoteCounter]) -> None:
        """Counters that it wasn't known to have."""
        now_ns = time.monotonic_ns()
        for each in counters:
            self._limits_w[each.gpu_uuid] = each.limit_w
            self._told_ns[each.gpu_uuid] = now_ns
        self.counters = (*self.counters, *counters)

    def _recall(self) -> None:
        """Take a machine that doesn't answer for what it was. What others say that they read meanwhile has moved to them."""
        name, readers = self.name, self._readers
        self._admit([each for each in self._memory if readers.setdefault(each.gpu_uuid, name) == name])
        self._memory = ()
        self._tried.set()

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
        if isinstance(found, Edge):
            self._remember()
        self._found.append(
            _widened(found, t_ns, error_ns, placed_ns) if isinstance(found, Edge) else replace(found, t_ns=placed_ns)
        )

    def _remember(self) -> None:
        """That its counters are those of this boot, once they have told anything in it."""
        assert self._boot_id is not None
        counters = tuple(self.counters)
        if self.known is None or (self.known.boot_id, self.known.counters) != (self._boot_id, counters):
            is_same = self.known is not None and self.known.boot_id == self._boot_id
            since_ns = self.known.since_ns if is_same and self.known is not None else self._linked_ns
            self.known = Known(self._boot_id, since_ns, counters)

    def _lose(self, error: OSError | NodeError) -> None:
        self._failure = error
        if self.is_heard:
            logger.warning(
                "the sampler at %s is lost (%s); its GPUs are not measured until it is back", self.name, error
            )
        elif isinstance(error, NodeError) and str(error) != self._complaint:
            logger.warning("the sampler at %s is not heard: %s", self.name, error)
        self._complaint = str(error)
        self.error_ns = math.nan
        self._miss()

    def _miss(self) -> None:
        self._recall()
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


def open_nodes(
    names: Sequence[str],
    token: str,
    own: Sequence[str],
    known: Mapping[str, Known] | None = None,
    *,
    are_needed: bool = False,
) -> list[Node]:
    """The nodes, which are listened to. One that doesn't answer may do so later, unless all `are_needed`. `own` are the GPUs of this machine.

    Raises:
        ConfigError: one is reached by a network, and there is no token.
        NodeError: one can't be trusted, or a GPU is read by two; or none answers and there is no GPU here.
    """
    readers = dict.fromkeys(own, OWN)
    with ExitStack() as opened:
        nodes = [Node(name, token, readers, (known or {}).get(name)) for name in dict.fromkeys(names)]
        for node in nodes:
            opened.callback(node.stop)
            node.start()
        deadline_s = time.monotonic() + PATIENCE_S
        unheard = [node for node in nodes if not node.met(deadline_s - time.monotonic())]
        for node in unheard:
            if are_needed or not (own or len(unheard) < len(nodes)):
                raise node.unheard
            logger.warning("%s; going on without it", node.unheard)
        opened.pop_all()
    return nodes
