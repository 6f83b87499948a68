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
from etameter.nodes.kept import Known
from etameter.nodes.node import Node, open_nodes
from etameter.nodes.samplers import Samplers
from etameter.nodes.wire import VERSION, counter_of, proof
from etameter.records import Conditions, Edge, Finding, ReadFailure, Reboot
from etameter.sampler import Sampler as OwnSampler
from tests.meter.test_daemon import free_port, until

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
def heard(
    sampler: Sampler, known: Known | None = None, readers: dict[str, str] | None = None
) -> Iterator[tuple[Node, Callable[[], list[Finding]]]]:
    """The node, and all that it has found so far."""
    node = Node(sampler.name, "", readers, known)
    found: list[Finding] = []

    def all_found() -> list[Finding]:
        found.extend(node.drain())
        return found

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


def refusal(sampler: Sampler) -> str:
    """Why a meter that starts doesn't want it."""
    with pytest.raises(NodeError) as refused:
        open_nodes([sampler.name], "", [])
    return str(refused.value)


def failures(found: list[Finding], uuid: str = GPU) -> list[str]:
    return [each.cause for each in found if isinstance(each, ReadFailure) and each.gpu_uuid == uuid]


@pytest.mark.parametrize("hello", [{"version": VERSION}, {"etameter": "sampler", "version": VERSION + 1}])
def test_who_speaks_otherwise_is_no_sampler(sampler: Sampler, hello: dict[str, Any]) -> None:
    sampler.hello = hello
    assert "is no sampler of this version" in refusal(sampler)


def test_one_that_describes_no_counters_is_refused(sampler: Sampler) -> None:
    sampler.counters = [{"gpu_uuid": GPU}]
    assert "describes no counters" in refusal(sampler)


def test_one_whose_counters_are_no_list_is_refused(sampler: Sampler) -> None:
    sampler.counters = 7  # type: ignore[assignment]
    assert "describes no counters" in refusal(sampler)


def test_a_proof_that_is_no_text_that_can_be_written_is_another_token(sampler: Sampler) -> None:
    sampler.hello["challenge"] = "\ud800"
    assert "has another token than this meter" in refusal(sampler)


@pytest.mark.parametrize("nonsense", [["edge", GPU, "soon", 1, 5], ["edge", GPU], 7])
def test_nonsense_ends_the_connection_and_another_is_made(sampler: Sampler, nonsense: object) -> None:
    with heard(sampler) as (node, found):
        sampler.say(nonsense)
        until(lambda: sampler.connections >= 2 and node.is_heard)
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


@pytest.mark.parametrize(("boot_id", "boots"), [("boot", 1), ("another", 2)])
def test_another_boot_is_told_before_what_is_read_in_it(sampler: Sampler, boot_id: str, boots: int) -> None:
    with heard(sampler) as (node, found):
        sampler.boot_id = boot_id
        sampler.hang_up()
        until(lambda: sampler.connections >= 2 and node.is_heard)
        sampler.edge(5_000)
        until(lambda: isinstance(found()[-1], Edge))
        told = [each for each in found() if isinstance(each, Reboot)]
        assert [each.gpu_uuid for each in told] == [GPU, OTHER] * boots, "the first connection's, and another boot's"
        assert node.known is not None
        assert node.known.boot_id == boot_id
        assert node.known.since_ns >= told[-1].t_ns, "not before the connection by which its first edge has come"


@pytest.mark.parametrize("boot_id", ["boot", "another", ""])
def test_it_is_told_since_when_a_boot_counts_that_an_earlier_meter_knew(sampler: Sampler, boot_id: str) -> None:
    known = Known(boot_id, 7, (counter_of(counter(GPU)),))
    began_ns = time.monotonic_ns()
    with heard(sampler, known) as (node, found):
        assert [each.gpu_uuid for each in node.counters] == [GPU, OTHER]
        assert node.known is known, "another meter may take a difference until there is a reading of this boot"
        sampler.edge(5_000)
        until(lambda: isinstance(found()[-1], Edge))
        told = {each.gpu_uuid: each.t_ns for each in found() if isinstance(each, Reboot)}
        assert told.keys() == {GPU, OTHER}
        assert (told[GPU] == 7) is (boot_id == "boot")
        assert told[GPU] == 7 or told[GPU] > began_ns
        assert node.known == Known("boot", told[GPU], tuple(node.counters))


def test_a_machine_that_an_earlier_meter_knew_is_missed_from_the_start() -> None:
    name = f"127.0.0.1:{free_port()}"
    (node,) = open_nodes([name], "", [], {name: Known("boot", 7, (counter_of(counter(GPU)),))})
    try:
        until(lambda: failures(node.drain()))
        assert not node.is_heard
    finally:
        node.stop()


def test_machines_that_have_changed_places_are_heard(sampler: Sampler) -> None:
    with closing(Sampler()) as second:
        sampler.counters, second.counters = [counter(GPU)], [counter(OTHER)]
        known = {
            sampler.name: Known("boot", 7, (counter_of(counter(OTHER)),)),
            second.name: Known("boot", 7, (counter_of(counter(GPU)),)),
        }
        nodes = open_nodes([sampler.name, second.name], "", [], known)
        try:
            until(lambda: all(node.is_heard for node in nodes))
            assert [[each.gpu_uuid for each in node.counters] for node in nodes] == [[GPU], [OTHER]]
        finally:
            for node in nodes:
                node.stop()


def test_one_that_an_earlier_meter_knew_and_that_reads_what_another_reads_ends_a_start(sampler: Sampler) -> None:
    known = {sampler.name: Known("boot", 7, (counter_of(counter(OTHER)),))}
    with pytest.raises(NodeError, match=f"says that it reads {GPU}, which this meter reads"):
        open_nodes([sampler.name], "", [GPU], known)


def test_a_machine_that_was_never_heard_is_gone_on_without_unless_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("etameter.nodes.node.PATIENCE_S", 0.2)
    name = f"127.0.0.1:{free_port()}"
    why = f"no sampler answers at {name} "
    with pytest.raises(NodeError, match=f"{why}.*: start `etameter sampler --listen` there"):
        open_nodes([name], "", [])
    with pytest.raises(NodeError, match=why):
        open_nodes([name], "", [GPU], are_needed=True)
    (node,) = open_nodes([name], "", [GPU])
    node.stop()
    assert why in caplog.text
    assert "going on without it" in caplog.text


def test_two_machines_that_read_one_gpu_are_told_apart_at_the_start_and_later(
    sampler: Sampler, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Sampler()) as second:
        told = "says that it reads GPU-., which .*: name each machine once"
        with pytest.raises(NodeError, match=told) as refused:
            open_nodes([sampler.name, second.name], "", [])
        assert any(f"which {each.name} reads" in str(refused.value) for each in (sampler, second))
        with pytest.raises(NodeError, match=f"says that it reads {GPU}, which this meter reads"):
            open_nodes([sampler.name], "", [GPU])
        readers: dict[str, str] = {}
        second.counters = [counter("GPU-2")]
        with heard(sampler, readers=readers), heard(second, readers=readers) as (node, found):
            second.counters = [counter(OTHER), counter("GPU-2")]
            second.hang_up()
            until(lambda: f"{second.name} says that it reads {OTHER}, which {sampler.name} reads" in caplog.text)
            assert not node.is_heard
            assert {each.gpu_uuid for each in found() if isinstance(each, ReadFailure)} == {"GPU-2"}


def test_a_gpu_that_a_sampler_reads_later_is_taken_in(sampler: Sampler) -> None:
    with heard(sampler) as (node, found):
        sampler.counters = [*sampler.counters, counter("GPU-2")]
        sampler.hang_up()
        until(lambda: len(node.counters) == 3 and node.is_heard)
        sampler.edge(5_000, "GPU-2")
        until(lambda: any(isinstance(each, Edge) and each.gpu_uuid == "GPU-2" for each in found()))


def test_a_name_that_nobody_resolves_keeps_nobody_waiting(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = threading.Event()
    resolve = socket.getaddrinfo

    def stalls(*asked: Any, **how: Any) -> Any:
        resolved.wait()
        return resolve(*asked, **how)

    with heard(sampler) as (node, found):
        monkeypatch.setattr(socket, "getaddrinfo", stalls)
        sampler.hang_up()
        until(lambda: failures(found()).count("node_lost") >= 3)
        assert not node.is_heard
        resolved.set()
        until(lambda: node.is_heard)


def test_who_waits_for_a_name_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etameter.nodes.node.PATIENCE_S", 0.1)
    asked, resolved = threading.Event(), threading.Event()

    def stalls(*_: Any, **__: Any) -> Any:
        asked.set()
        resolved.wait()
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", stalls)
    (node,) = open_nodes(["nowhere.invalid:9431"], "a-token-of-the-test", [GPU])
    until(asked.is_set)
    node.stop(60)
    assert not node.running
    resolved.set()


def test_a_limit_that_has_changed_meanwhile_is_told(sampler: Sampler) -> None:
    with heard(sampler) as (node, _):
        sampler.counters = [counter(GPU, limit_w=500.0), counter(OTHER)]
        sampler.hang_up()
        changes: list[Conditions] = until(node.changes)
        assert [(each.gpu_uuid, each.power_limit_w) for each in changes] == [(GPU, 500.0)]


def test_whether_a_gpu_is_held_back_is_not_known_while_its_machine_is_not_heard(sampler: Sampler) -> None:
    with heard(sampler) as (node, found):
        samplers = Samplers(OwnSampler([]), [node])
        sampler.say({"throttled": {GPU: True}, "missed_edges": {GPU: 3}, "awaited": []})
        until(lambda: samplers.throttled() == {GPU: True, OTHER: None})
        sampler.hello = {}
        sampler.hang_up()
        until(lambda: failures(found()).count("node_lost") >= 2)
        assert samplers.throttled() == {GPU: None, OTHER: None}
        assert samplers.missed_edges() == {GPU: 3, OTHER: 0}, "what was missed stays so"


def test_edges_stay_in_order_whatever_the_clock_says(sampler: Sampler) -> None:
    with heard(sampler) as (_, found):
        sampler.edge(1_000)
        sampler.say(["edge", GPU, time.monotonic_ns() - SECOND_NS, 1000, 2_000, None, None, None])
        sampler.edge(3_000, "GPU-of-nobody")
        sampler.edge(4_000)
        edges: list[Edge] = until(lambda: len(of := [each for each in found() if isinstance(each, Edge)]) == 3 and of)
        instants_ns = [each.t_ns for each in edges]
        assert instants_ns == sorted(set(instants_ns))
        late = edges[1]
        assert late.half_width_ns >= SECOND_NS, "where it says that it was is within it"
