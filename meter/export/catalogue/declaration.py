"""What may be said of a metric."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Declaration:
    """A metric: all that is said of it anywhere."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()
