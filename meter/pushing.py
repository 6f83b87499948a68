"""Whether energy is pushed to somebody over OTLP. OpenTelemetry is imported where it is, and nowhere else."""

import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from etameter.counters import Described
from etameter.errors import ConfigError
from etameter.export.prometheus import Metrics

if TYPE_CHECKING:
    from etameter.export.otlp import Otlp

logger = logging.getLogger("etameter")

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Environment variables of OpenTelemetry that name a receiver of metrics."""


def otlp_of(endpoint: str | None, metrics: Metrics, counters: Sequence[Described]) -> "Otlp | None":
    """What pushes energy over OTLP, where the configuration or OpenTelemetry's own variables name a receiver.

    Raises ConfigError where the configuration does, and OpenTelemetry is not installed, or a variable of its can't be used.
    """
    is_off = (
        os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_METRICS_EXPORTER") == "none"
    )
    if endpoint is None and (is_off or not any(os.environ.get(name) for name in ENDPOINTS)):
        return None
    try:
        from etameter.export.otlp import MAPPED, Board, Otlp
    except ModuleNotFoundError as error:
        missing, remedy = (
            f"no energy can be pushed over OTLP: {error.name} is not installed",
            "pip install 'etameter[otlp]'",
        )
        if endpoint is not None:
            raise ConfigError(missing, remedy) from error
        logger.warning("%s; %s", missing, remedy)  # whoever set the variable may have meant others by it
        return None
    boards = {each.gpu_uuid: Board("cpu" if each.kind == "rapl" else "gpu", each.board_name) for each in counters}
    return Otlp(endpoint, partial(metrics.counters, MAPPED), boards)
