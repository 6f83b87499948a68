"""An OTLP/HTTP receiver: what it is sent it reads by OpenTelemetry's own messages, or it refuses, or lets its clients wait."""

import gzip
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, ResourceMetrics

Attributes = frozenset[tuple[str, str]]


class Receiver:
    """Used as a context manager. `status` is what it answers; while `hangs` it answers nothing."""

    def __init__(self, *, port: int = 0, status: int = 200, hangs: bool = False) -> None:
        self.status = status
        self.requests: list[ExportMetricsServiceRequest] = []
        self.headers: list[Mapping[str, str]] = []
        self.asked = threading.Event()
        self._heard = threading.Condition()
        self._released = threading.Event()
        if not hangs:
            self._released.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.asked.set()
                receiver._released.wait()
                self.send_response(receiver.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                if receiver.status == 200:
                    if self.headers.get("Content-Encoding") == "gzip":
                        body = gzip.decompress(body)
                    receiver._take(self.path, dict(self.headers), ExportMetricsServiceRequest.FromString(body))
                    self.wfile.write(ExportMetricsServiceResponse().SerializeToString())

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.address = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def _take(self, path: str, headers: Mapping[str, str], request: ExportMetricsServiceRequest) -> None:
        assert path == "/v1/metrics"
        with self._heard:
            self.requests.append(request)
            self.headers.append(headers)
            self._heard.notify_all()

    def heard(self, count: int = 1, timeout_s: float = 10.0) -> ResourceMetrics:
        """The latest of at least so many pushes."""
        with self._heard:
            assert self._heard.wait_for(lambda: len(self.requests) >= count, timeout_s), "nothing was pushed"
            pushed: ResourceMetrics
            (pushed,) = self.requests[-1].resource_metrics
            return pushed


def metrics_of(pushed: ResourceMetrics) -> dict[str, Metric]:
    (scope,) = pushed.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def points_of(metric: Metric) -> dict[Attributes, float]:
    return {attributes_of(point.attributes): point.as_double for point in metric.sum.data_points}


def attributes_of(pairs: object) -> Attributes:
    assert all(isinstance(pair, KeyValue) for pair in pairs)  # type: ignore[attr-defined]
    return frozenset((pair.key, pair.value.string_value) for pair in pairs)  # type: ignore[attr-defined]
