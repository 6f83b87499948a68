"""Counters that a machine tells of between two looks of the meter's: the node's thread is another than the meter's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from etameter import config
from etameter.daemon import Meter
from etameter.nodes.node import Node
from etameter.nodes.wire import RemoteCounter, counter_of
from etameter.records import Conditions, Edge
from tests.meter.nodes.test_node import GPU, OTHER, counter

pytestmark = pytest.mark.unit

NEW = "GPU-2"
NAME = "127.0.0.1:9431"


def described(uuid: str) -> RemoteCounter:
    return counter_of(counter(uuid))


@pytest.fixture
def node() -> Node:
    known = Node(NAME, "")
    known._admit([described(GPU), described(OTHER)])
    return known


@pytest.fixture
def meter(tmp_path: Path, node: Node) -> Iterator[Meter]:
    settings = config.load(None, {"meter": {"port": 0, "ledger": tmp_path / "ledger.db"}})
    made = Meter(settings, [tmp_path / "ring"], tmp_path / "meter.sock", [], None, [node])
    yield made
    made._receipts.close()
    made._ledger.close()


def beside(node: Node, call: Callable[[], Any], *, before: bool) -> Callable[[], Any]:
    """The call, beside which the node's thread takes up a connection whose sampler has one counter more."""

    def called() -> Any:
        told = None if before else call()
        if NEW not in node._limits_w:
            node._admit([described(NEW)])
            node._found.append(Edge(NEW, 1, 0, 5))
            node._changes.append(Conditions(NEW, 1, (500.0,), 500.0))
        return call() if before else told

    return called


def test_what_is_found_of_a_counter_is_told_to_those_who_know_it(
    meter: Meter, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "drain", beside(node, node.drain, before=True))
    meter._advance()
    (engine,) = meter._engines
    assert [device.gpu_uuid for device in engine.accounts.devices] == [GPU, OTHER, NEW]
    timeline = engine.accounts.timelines()[NEW]
    assert timeline.settled_edge == Edge(NEW, 1, 0, 5), "its first edge, from which its joules are told"
    assert timeline.power_limit_w == 500.0


def test_a_counter_that_appears_during_a_look_waits_for_the_next(
    meter: Meter, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter._samplers, "throttled", beside(node, meter._samplers.throttled, before=False))
    meter._checkup.look()
    assert NEW not in meter._metrics.render("")[0].decode()
    meter._checkup.look()
    assert NEW in meter._metrics.render("")[0].decode()
