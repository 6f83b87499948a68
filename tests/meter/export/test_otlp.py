"""Energy over OTLP: what a receiver reads of it, and one that is away, slow or refuses."""

import math
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otlp` is not installed")

from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.sdk.metrics.export import Sum
from opentelemetry.sdk.resources import Resource

from etameter import pushing
from etameter.errors import ConfigError
from etameter.export import otlp
from etameter.export.catalogue import energy, health, requests
from etameter.export.otlp import INTERVAL, MAPPED, Board, Otlp, metrics_data
from etameter.export.prometheus import Metrics
from tests.meter.export.otlp_receiver import Receiver, attributes_of, metrics_of, points_of
from tests.meter.export.test_prometheus import GPU, _balance, _charge
from tests.meter.test_daemon import engine, free_port, lit_board, running, serve_one, until

pytestmark = pytest.mark.unit

BOARDS = {GPU: Board("gpu", "NVIDIA H100 80GB HBM3"), "RAPL-package-0": Board("cpu", "a CPU")}
GPU_SUMS: dict[tuple[str, ...], float] = {
    (GPU, "measured"): 12.5,
    ("RAPL-package-0", "measured"): 3.0,
    ("unheard-of", "simulated"): 1.0,
}
BRIEFLY = {INTERVAL: "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BRIEFLY.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def pushing_to() -> Iterator[Callable[..., Otlp]]:
    """Begins pushing what a meter's metrics say."""
    begun: list[Otlp] = []

    def begin(address: str, metrics: Metrics | None = None) -> Otlp:
        begun.append(Otlp(address, lambda: (metrics or metered()).counters(MAPPED), BOARDS))
        begun[-1].start()
        return begun[-1]

    yield begin
    for each in begun:
        each.stop()


def metered() -> Metrics:
    metrics = Metrics(["m"], ["entrace"])
    with metrics.together:
        metrics.settle(_balance(), "simulated")
        _charge(metrics)
    return metrics


def told(**attributes: str) -> frozenset[tuple[str, str]]:
    return frozenset((name.replace("__", "."), value) for name, value in attributes.items())


def test_joules_of_devices_are_as_the_semantic_conventions_have_them() -> None:
    data = metrics_data({energy.GPU_ENERGY: GPU_SUMS}, BOARDS, Resource({}), start_unix_ns=5, now_unix_ns=7)
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("hw.energy", "J")
    assert isinstance(metric.data, Sum)
    assert metric.data.is_monotonic
    assert {frozenset((each.attributes or {}).items()): each.value for each in metric.data.data_points} == {
        told(hw__id=GPU, hw__type="gpu", hw__name="NVIDIA H100 80GB HBM3", etameter__source="measured"): 12.5,
        told(hw__id="RAPL-package-0", hw__type="cpu", hw__name="a CPU", etameter__source="measured"): 3.0,
        told(hw__id="unheard-of", etameter__source="simulated"): 1.0,
    }
    assert {(each.start_time_unix_nano, each.time_unix_nano) for each in metric.data.data_points} == {(5, 7)}


def test_every_label_has_its_attribute_and_sources_are_never_dropped() -> None:
    for declaration, mapped in MAPPED.items():
        assert len(mapped.attributes) == len(declaration.labels)
        assert ("etameter.source" in mapped.attributes) == ("source" in declaration.labels)
        assert (declaration.type, mapped.unit) == (
            "counter",
            {"joules": "J", "tokens": "{token}"}.get(declaration.unit, "{export}"),
        )
    assert set(MAPPED) == {energy.GPU_ENERGY, energy.ENERGY, energy.UNASSIGNED, requests.TOKENS, health.OTLP_EXPORTS}


def test_a_receiver_reads_sums_that_add_up(briefly: None, pushing_to: Callable[..., Otlp]) -> None:
    with Receiver() as receiver:
        before_ns = time.time_ns()
        pushing_to(receiver.address)
        pushed = receiver.heard()
        metrics = metrics_of(pushed)
        for metric in metrics.values():
            assert metric.sum.is_monotonic
            assert metric.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
            for point in metric.sum.data_points:
                assert before_ns - 10**9 < point.start_time_unix_nano < point.time_unix_nano <= time.time_ns()
        device = told(hw__id=GPU, hw__type="gpu", hw__name="NVIDIA H100 80GB HBM3", etameter__source="simulated")
        total = points_of(metrics["hw.energy"])
        assert total == {device: 10.0}
        paid = points_of(metrics["etameter.request.energy"])
        prompt = told(
            etameter__model="m", etameter__arm="entrace", etameter__phase="prompt", etameter__source="simulated"
        )
        assert paid[prompt] > 0.0
        rest = points_of(metrics["etameter.unassigned.energy"])
        assert math.fsum([*paid.values(), *rest.values()]) == pytest.approx(10.0)
        assert all(attributes - {("etameter.source", "simulated")} != attributes for attributes in (*paid, *rest))
        resource = dict(attributes_of(pushed.resource.attributes))
        assert resource["service.name"] == "etameter"
        assert {"service.version", "host.name"} <= resource.keys()


@pytest.mark.parametrize(
    ("variables", "service", "host"),
    [
        ({}, "etameter", platform.node()),
        ({"OTEL_SERVICE_NAME": ""}, "etameter", platform.node()),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=meters,host.name=rack-7"}, "meters", "rack-7"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=meters", "OTEL_SERVICE_NAME": "m7"}, "m7", platform.node()),
    ],
)
def test_a_resource_is_what_its_user_calls_it(
    briefly: None,
    monkeypatch: pytest.MonkeyPatch,
    pushing_to: Callable[..., Otlp],
    variables: Any,
    service: str,
    host: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with Receiver() as receiver:
        pushing_to(receiver.address)
        resource = dict(attributes_of(receiver.heard().resource.attributes))
    assert (resource["service.name"], resource["host.name"]) == (service, host)


def test_opentelemetrys_own_variables_hold(
    briefly: None, monkeypatch: pytest.MonkeyPatch, pushing_to: Callable[..., Otlp]
) -> None:
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "meter-7")
        pushing_to(None)
        resource = dict(attributes_of(receiver.heard().resource.attributes))
        assert (resource["deployment.environment.name"], resource["service.name"]) == ("prod", "meter-7")
        assert receiver.headers[0]["x-tenant"] == "a"


@pytest.mark.parametrize("interval", ["often", "0", "-1", "nan", "inf"])
def test_an_interval_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, interval: str) -> None:
    monkeypatch.setenv(INTERVAL, interval)
    with pytest.raises(ConfigError, match="can't be used"):
        Otlp("http://127.0.0.1:1", dict, {})


def test_what_a_receiver_missed_while_it_was_away_the_next_push_says(
    briefly: None, pushing_to: Callable[..., Otlp], caplog: pytest.LogCaptureFixture
) -> None:
    metrics, port = metered(), free_port()
    sending = pushing_to(f"http://127.0.0.1:{port}", metrics)
    until(lambda: sending.outcomes["lost"])
    metrics.settle(_balance(), "simulated")
    with Receiver(port=port) as receiver:
        pushed = metrics_of(receiver.heard())
        assert list(points_of(pushed["hw.energy"]).values()) == [20.0]
        until(lambda: sending.outcomes["taken"])
    until(lambda: "again" in caplog.text)
    assert len([line for line in caplog.messages if "doesn't take energy" in line]) <= 2, "once, not at every push"


@pytest.mark.parametrize("status", [400, 401, 413, 503])
def test_a_receiver_that_refuses_is_counted(briefly: None, pushing_to: Callable[..., Otlp], status: int) -> None:
    with Receiver(status=status) as receiver:
        sending = pushing_to(receiver.address)
        until(lambda: sending.outcomes["lost"])
        assert (sending.outcomes["taken"], receiver.requests) == (0, [])


def test_a_receiver_that_hangs_makes_pushes_skip_and_the_meter_wait_for_nothing(
    briefly: None, pushing_to: Callable[..., Otlp]
) -> None:
    with Receiver(hangs=True) as receiver:
        metrics = metered()
        sending = pushing_to(receiver.address, metrics)
        assert receiver.asked.wait(60)
        metrics.settle(_balance(), "simulated")  # no lock is held meanwhile
        assert sending.outcomes == {"taken": 0, "lost": 0, "skipped": 0}
        until(lambda: sending.outcomes["lost"] and sending.outcomes["skipped"] > 2)


def test_the_end_waits_for_no_receiver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERVAL, "10")
    monkeypatch.setattr(otlp, "STOP_S", 0.1)
    with Receiver(hangs=True) as receiver:
        sending = Otlp(receiver.address, metered().counters(MAPPED).copy, BOARDS)
        sending.start()
        assert receiver.asked.wait(60)
        sending.stop()  # its own patience would be ten seconds
        assert sending._thread.is_alive()
        assert sending.outcomes["taken"] == 0


def test_the_last_push_says_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        metrics = metered()
        sending = Otlp(receiver.address, lambda: metrics.counters(MAPPED), BOARDS)  # by default once a minute
        sending.start()
        metrics.settle(_balance(), "simulated")
        sending.stop()
        assert list(points_of(metrics_of(receiver.heard())["hw.energy"]).values()) == [20.0]


class TestWhetherItIsPushed:
    metrics = Metrics([], [])

    def test_by_default_it_is_not(self) -> None:
        assert pushing.otlp_of(None, self.metrics, []) is None

    @pytest.mark.parametrize("name", pushing.ENDPOINTS)
    def test_opentelemetrys_variables_switch_it_on_and_off(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        assert isinstance(pushing.otlp_of(None, self.metrics, []), Otlp)
        for off, value in (("OTEL_METRICS_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "True")):
            with monkeypatch.context() as still:
                still.setenv(off, value)
                assert pushing.otlp_of(None, self.metrics, []) is None
                assert isinstance(pushing.otlp_of("http://127.0.0.1:1", self.metrics, []), Otlp)

    def test_without_the_extra_the_configuration_is_refused_and_the_environment_is_not(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.delitem(sys.modules, "etameter.export.otlp")
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics.export", None)
        with pytest.raises(ConfigError, match=r"pip install 'etameter\[otlp\]'"):
            pushing.otlp_of("http://127.0.0.1:1", self.metrics, [])
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        assert pushing.otlp_of(None, self.metrics, []) is None
        assert "is not installed" in caplog.text


def test_the_meter_imports_no_opentelemetry() -> None:
    asked = "import sys, etameter.daemon; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


def test_a_meter_pushes_what_it_tells_prometheus(tmp_path: Path) -> None:
    with Receiver() as receiver, lit_board(tmp_path) as board, engine(tmp_path) as ring:
        environment = {**board.environment(), "ETAMETER_OTLP__ENDPOINT": receiver.address, INTERVAL: "100"}
        with running(tmp_path, environment) as meter:
            until(lambda: "engine-0" in meter.get("/health")[1])
            serve_one(ring)
            spent_j = until(meter.settled)["energy_joules"]
            until(lambda: meter.samples().get('etameter_otlp_exports_total{outcome="taken"}', 0.0) > 0)
            meter.process.send_signal(signal.SIGTERM)
            assert meter.process.wait(60) == 0
        metrics = metrics_of(receiver.heard())  # the last one, after all was settled
        paid = points_of(metrics["etameter.request.energy"])
        assert math.fsum(paid.values()) == pytest.approx(spent_j)
        assert all(("etameter.source", "simulated") in attributes for attributes in paid)
        ((device, total_j),) = points_of(metrics["hw.energy"]).items()
        assert ("hw.type", "gpu") in device
        rest = points_of(metrics["etameter.unassigned.energy"])
        assert math.fsum([*paid.values(), *rest.values()]) == pytest.approx(total_j, rel=1e-9)
        assert ("etameter.outcome", "taken") in {
            pair for each in points_of(metrics["etameter.otlp.exports"]) for pair in each
        }


def test_a_meter_whose_receiver_hangs_meters_on_and_ends(tmp_path: Path) -> None:
    with Receiver(hangs=True) as receiver, lit_board(tmp_path) as board, engine(tmp_path) as ring:
        environment = {**board.environment(), "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.address, INTERVAL: "50"}
        with running(tmp_path, environment) as meter:
            assert receiver.asked.wait(60)
            serve_one(ring)
            until(meter.settled)
            meter.process.send_signal(signal.SIGTERM)
            assert meter.process.wait(60) == 0
        assert receiver.requests == []


def test_a_meter_whose_receiver_resets_connections_goes_on(tmp_path: Path, briefly: None) -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        sending = Otlp(f"http://127.0.0.1:{door.getsockname()[1]}", metered().counters(MAPPED).copy, BOARDS)
        sending.start()
        caller: Any = door.accept()[0]
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        caller.close()
        until(lambda: sending.outcomes["lost"])
        sending.stop()
