"""What the meter's side makes of a sampler that says strange things, and whose clock does."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from etameter.errors import NodeError
from etameter.nodes.node import Node
from etameter.nodes.wire import VERSION, proof
from etameter.records import Conditions, Edge, Finding, ReadFailure, Reboot
from tests.meter.test_daemon import until

pytestmark = pytest.mark.unit

GPU, OTHER = "GPU-0", "GPU-1"
SECOND_NS = 10**9


def counter(uuid: str, limit_w: float = 700.0) -> dict[str, Any]:
    about = {"parts": [], "board_name": "H100", "scope": "gpu", "kind": "nvml", "source": "simulated"}
    return {"gpu_uuid": uuid, "limit_w": limit_w, **about}


class Sampler:
    """Speaks as `etameter sampler` does, of a clock that a test sets, to one meter after another."""

    def __init__(self) -> None:
        self.ahead_ns = 0
        self.hello: dict[str, Any] = {"etameter": "sampler", "version": VERSION, "challenge": "c"}
        self.counters = [counter(GPU), counter(OTHER)]
        self.boot_id = "boot"
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._meter: socket.socket | None = None
        self.name = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def say(self, told: object) -> None:
        assert self._meter is not None
        self._meter.sendall(json.dumps(told).encode() + b"\n")

    def edge(self, energy_mj: int, uuid: str = GPU) -> None:
        self.say(["edge", uuid, time.monotonic_ns() + self.ahead_ns, 1000, energy_mj, None, None, None])

    def hang_up(self) -> None:
        assert self._meter is not None
        self._meter.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        if self._meter is not None:
            self._meter.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                meter, _ = self._listener.accept()
                with suppress(OSError, ValueError), meter, meter.makefile("rb") as lines:
                    self._talk(meter, lines)

    def _talk(self, meter: socket.socket, lines: Any) -> None:
        self._meter = meter
        self.say(self.hello)
        challenge = json.loads(lines.readline())["challenge"]
        told = {"proof": proof("", "sampler", ("c", challenge)), "boot_id": self.boot_id, "counters": self.counters}
        self.say(told)
        self.connections += 1
        for line in lines:
            now_ns = time.monotonic_ns() + self.ahead_ns
            self.say({"pong": json.loads(line)["ping"], "received_ns": now_ns, "sent_ns": now_ns})


@contextmanager
def heard(sampler: Sampler) -> Iterator[tuple[Node, Callable[[], list[Finding]]]]:
    """The node, and all that it has found so far."""
    node = Node(sampler.name, "")
    found: list[Finding] = []

    def all_found() -> list[Finding]:
        found.extend(node.drain())
        return found

    node.open(5)
    node.start()
    try:
        until(lambda: node.is_heard)
        yield node, all_found
    finally:
        node.stop()


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    with closing(Sampler()) as made:
        yield made


def failures(found: list[Finding], uuid: str = GPU) -> list[str]:
    return [each.cause for each in found if isinstance(each, ReadFailure) and each.gpu_uuid == uuid]


@pytest.mark.parametrize("hello", [{"version": VERSION}, {"etameter": "sampler", "version": VERSION + 1}])
def test_who_speaks_otherwise_is_no_sampler(sampler: Sampler, hello: dict[str, Any]) -> None:
    sampler.hello = hello
    with pytest.raises(NodeError, match="is no sampler of this version"):
        Node(sampler.name, "").open(1)


def test_one_that_describes_no_counters_is_refused(sampler: Sampler) -> None:
    sampler.counters = [{"gpu_uuid": GPU}]
    with pytest.raises(NodeError, match="describes no counters"):
        Node(sampler.name, "").open(1)


def test_a_proof_that_is_no_text_that_can_be_written_is_another_token(sampler: Sampler) -> None:
    sampler.hello["challenge"] = "\ud800"
    with pytest.raises(NodeError, match="has another token than this meter"):
        Node(sampler.name, "").open(1)


@pytest.mark.parametrize("nonsense", [["edge", GPU, "soon", 1, 5], ["edge", GPU], 7])
def test_nonsense_ends_the_connection_and_another_is_made(sampler: Sampler, nonsense: object) -> None:
    with heard(sampler) as (node, found):
        sampler.say(nonsense)
        until(lambda: sampler.connections == 2 and node.is_heard)
        assert node.running
        assert "node_lost" in failures(found())


def test_an_answer_that_nobody_waits_for_is_none(sampler: Sampler) -> None:
    with heard(sampler) as (node, found):
        sampler.say({"pong": 1})
        sampler.edge(1_000)
        until(found)
        assert sampler.connections == 1
        assert node.is_heard


def test_a_clock_that_leaps_makes_the_readings_around_it_missing(sampler: Sampler) -> None:
    with heard(sampler) as (node, found):
        sampler.ahead_ns = 3600 * SECOND_NS
        until(lambda: "clock_leapt" in failures(found()))
        until(lambda: node.error_ns < SECOND_NS)
        sampler.edge(5_000)
        until(lambda: any(isinstance(each, Edge) for each in found()))
        (edge,) = [each for each in found() if isinstance(each, Edge)]
        assert abs(edge.t_ns - time.monotonic_ns()) < 5 * SECOND_NS
        assert sampler.connections == 1


def test_a_gpu_that_its_sampler_reads_no_more_fails_and_the_other_does_not(sampler: Sampler) -> None:
    with heard(sampler) as (_, found):
        sampler.counters = [counter(OTHER, limit_w=500.0)]
        sampler.hang_up()
        until(lambda: failures(found()).count("gpu_absent") >= 2)
        assert set(failures(found(), OTHER)) == {"node_lost"}, "while it was gone"


@pytest.mark.parametrize(("boot_id", "rebooted"), [("boot", []), ("another", [GPU, OTHER])])
def test_another_boot_is_told_before_what_is_read_in_it(sampler: Sampler, boot_id: str, rebooted: list[str]) -> None:
    with heard(sampler) as (node, found):
        sampler.boot_id = boot_id
        sampler.hang_up()
        until(lambda: sampler.connections == 2 and node.is_heard)
        sampler.edge(5_000)
        until(lambda: isinstance(found()[-1], Edge))
        assert [each.gpu_uuid for each in found() if isinstance(each, Reboot)] == rebooted


def test_a_limit_that_has_changed_meanwhile_is_told(sampler: Sampler) -> None:
    with heard(sampler) as (node, _):
        sampler.counters = [counter(GPU, limit_w=500.0), counter(OTHER)]
        sampler.hang_up()
        changes: list[Conditions] = until(node.changes)
        assert [(each.gpu_uuid, each.power_limit_w) for each in changes] == [(GPU, 500.0)]


def test_edges_stay_in_order_whatever_the_clock_says(sampler: Sampler) -> None:
    with heard(sampler) as (_, found):
        sampler.edge(1_000)
        sampler.say(["edge", GPU, time.monotonic_ns() - SECOND_NS, 1000, 2_000, None, None, None])
        sampler.edge(3_000, "GPU-of-nobody")
        sampler.edge(4_000)
        until(lambda: len(found()) == 3)
        instants_ns = [each.t_ns for each in found()]
        assert instants_ns == sorted(set(instants_ns))
        late = found()[1]
        assert isinstance(late, Edge)
        assert late.half_width_ns >= SECOND_NS, "where it says that it was is within it"
