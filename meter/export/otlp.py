"""Energy as OpenTelemetry metrics, pushed over OTLP/HTTP: the only module that knows OpenTelemetry (extra `otlp`).

    hw.energy                  J       hw.id, hw.type, hw.name, etameter.source      what a device's counter has published
    etameter.request.energy    J       etameter.model, .arm, .phase, .source         what of it requests pay
    etameter.unassigned.energy J       hw.id, etameter.cause, etameter.source        what nobody pays
    etameter.tokens            {token} etameter.kind, .model, .arm                   what requests paid for
    etameter.otlp.exports      {export} etameter.outcome                             pushes, and what became of them

The first is as the semantic conventions have it. All are cumulative, monotonic sums since the meter's start, read at one instant, so that at each
point the first is the sum of the next two. A push that fails loses no joule: the next one says it too. So nothing is queued: one push is on its way
at a time, in a thread of its own, and while a receiver makes it wait the following ones are skipped and counted.

The variables `OTEL_EXPORTER_OTLP_…`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME` and `OTEL_METRIC_EXPORT_INTERVAL` hold, as OpenTelemetry says.
"""

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Final, NamedTuple

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from etameter.errors import ConfigError
from etameter.export.catalogue import energy, health, requests
from etameter.export.catalogue.declaration import Declaration

logger = logging.getLogger("etameter")

SCOPE: Final = "etameter"
INTERVAL: Final = "OTEL_METRIC_EXPORT_INTERVAL"
"""Environment variable: milliseconds between two pushes."""
LONGEST_S: Final = 86_400.0
STOP_S: Final = 2.0
"""So long the last push may take when the meter ends."""

Sums = Mapping[Declaration, Mapping[tuple[str, ...], float]]
"""By label values, in the order in which the declaration has its labels."""


class Board(NamedTuple):
    """What is said of a device beside its id."""

    hw_type: str
    name: str


class _Mapped(NamedTuple):
    name: str
    unit: str
    attributes: tuple[str, ...]
    """For the labels, in their order."""


MAPPED: Final[Mapping[Declaration, _Mapped]] = {
    energy.GPU_ENERGY: _Mapped("hw.energy", "J", ("hw.id", "etameter.source")),
    energy.ENERGY: _Mapped(
        "etameter.request.energy", "J", ("etameter.model", "etameter.arm", "etameter.phase", "etameter.source")
    ),
    energy.UNASSIGNED: _Mapped("etameter.unassigned.energy", "J", ("hw.id", "etameter.cause", "etameter.source")),
    requests.TOKENS: _Mapped("etameter.tokens", "{token}", ("etameter.kind", "etameter.model", "etameter.arm")),
    health.OTLP_EXPORTS: _Mapped("etameter.otlp.exports", "{export}", ("etameter.outcome",)),
}


def metrics_data(
    sums: Sums, boards: Mapping[str, Board], resource: Resource, *, start_unix_ns: int, now_unix_ns: int
) -> MetricsData:
    """What is pushed of `sums`, which are those since `start_unix_ns`. `boards` by id."""
    metrics = [
        Metric(mapped.name, declaration.meaning, mapped.unit, _sum(points))
        for declaration, mapped in MAPPED.items()
        if (
            points := [
                NumberDataPoint(_attributes(mapped, values, boards), start_unix_ns, now_unix_ns, total)
                for values, total in sums.get(declaration, {}).items()
            ]
        )
    ]
    scope = InstrumentationScope(SCOPE, version(SCOPE))
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(scope, metrics, "")], "")])


def _sum(points: Sequence[NumberDataPoint]) -> Sum:
    return Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)


def _attributes(mapped: _Mapped, values: tuple[str, ...], boards: Mapping[str, Board]) -> dict[str, str]:
    attributes = dict(zip(mapped.attributes, values, strict=True))
    board = boards.get(attributes.get("hw.id", ""))
    if board is not None:
        attributes |= {"hw.type": board.hw_type, "hw.name": board.name}
    return attributes


class Otlp:
    """Pushes what `read` gives, every so often, until it is stopped."""

    def __init__(self, endpoint: str | None, read: Callable[[], Sums], boards: Mapping[str, Board]) -> None:
        """To `endpoint`/v1/metrics, or where OpenTelemetry's environment variables say.

        Raises:
            ConfigError: one of those can't be used.
        """
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what it says of every try is said once here
        self._read = read
        self._boards = dict(boards)
        own = {"service.name": SCOPE, "service.version": version(SCOPE), "host.name": platform.node()}
        self._resource = Resource.create(own).merge(OTELResourceDetector().detect())  # whoever runs it knows better
        self._start_unix_ns = time.time_ns()
        try:
            self._interval_s = float(os.environ.get(INTERVAL) or 60_000) / 1000
            self._exporter = OTLPMetricExporter(endpoint and f"{endpoint.rstrip('/')}/v1/metrics")
        except ValueError as error:
            raise ConfigError(f"an OTEL_… variable can't be used ({error})", "see docs/otlp.md") from error
        if not 0.0 < self._interval_s <= LONGEST_S:
            raise ConfigError(f"{INTERVAL} = {os.environ[INTERVAL]} can't be used", "give milliseconds, such as 60000")
        self._outcomes = {"taken": 0, "lost": 0, "skipped": 0}
        self._is_taken = True
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)

    @property
    def outcomes(self) -> dict[str, int]:
        """Pushes so far: `taken`, `lost` because the receiver was away or refused, `skipped` because one before took so long."""
        return dict(self._outcomes)

    def joined(self, gpu_uuid: str, name: str) -> None:
        """A GPU is metered from now on. What is being pushed has the boards of before."""
        self._boards = {**self._boards, gpu_uuid: Board("gpu", name)}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Push once more, if that takes no longer than `STOP_S`."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)
        self._exporter.shutdown()  # ends the waiting of one that takes longer

    def _run(self) -> None:
        due_s = time.monotonic() + self._interval_s
        while not self._stopping.wait(max(due_s - time.monotonic(), 0.0)):
            self._push()
            late = int((time.monotonic() - due_s) // self._interval_s)
            self._outcomes["skipped"] += late
            due_s += (1 + late) * self._interval_s
        self._push()

    def _push(self) -> None:
        times = {"start_unix_ns": self._start_unix_ns, "now_unix_ns": time.time_ns()}
        data = metrics_data(self._read(), self._boards, self._resource, **times)
        is_taken = self._exporter.export(data) is MetricExportResult.SUCCESS
        self._outcomes["taken" if is_taken else "lost"] += 1
        if is_taken != self._is_taken and not self._stopping.is_set():
            told = "takes energy again" if is_taken else "doesn't take energy; tried again"
            logger.warning("the OTLP receiver %s every %g s", told, self._interval_s)
        self._is_taken = is_taken
