"""Energy counters: what the sampler polls. Each module here knows one way to ask a machine for its joules."""

from collections.abc import Hashable
from typing import Literal, Protocol

from etameter.records import Source

Scope = Literal["gpu", "module", "package"]
"""What the counter covers: a GPU board, a module with its CPU (Grace-Hopper), or a CPU package."""

Kind = Literal["nvml", "power", "rapl", "simulated"]
"""``power``: no counter, but power readings of NVML that are integrated."""


class Described(Protocol):
    """What is known of a device without reading its counter, be it of this machine or of another."""

    @property
    def gpu_uuid(self) -> str:
        """Names the device on this machine, e.g. ``GPU-…`` or ``RAPL-package-0``."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Under which names programs may know it, too: of a GPU that is split by MIG they see a part, e.g. ``MIG-…``."""

    @property
    def board_name(self) -> str:
        """What the device calls itself, e.g. ``NVIDIA H100 80GB HBM3``: the first guess of its costs goes by it."""

    @property
    def scope(self) -> Scope: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def source(self) -> Source: ...

    def power_limit_w(self) -> float | None:
        """The power that the device is held to, in watts; None where it is not known. Raises CounterError."""


class Counter(Described, Protocol):
    """A cumulative energy counter of one device, as its driver publishes it.

    The value stands still between two updates of the driver and only ever grows; when it goes down it was reset.
    Reads may come from a thread of their own, but never from two threads at once.
    """

    @property
    def blur_ns(self) -> int:
        """How far an edge's instant may be off beyond what the times of reads tell: 0 where the joules are counted."""

    @property
    def power_w(self) -> float | None:
        """Instantaneous power as of the last read, in watts; None where the device doesn't tell it."""

    def read_mj(self) -> int:
        """Cumulative energy in millijoules.

        Raises CounterError when this read failed; a later read may succeed again.
        """

    def conditions(self) -> tuple[Hashable, ...]:
        """What the cost of a step depends on besides the step: the power cap, throttling. A change opens a new fit.

        Cheap enough to ask every few seconds. Raises CounterError as `read_mj` does.
        """

    def throttled(self) -> bool | None:
        """Whether heat or a power brake holds the device back, not merely its power cap; None where it doesn't tell. Raises CounterError."""

    def processes(self) -> tuple[int, ...] | None:
        """The processes that compute on the device, by the driver's numbers; None where it doesn't tell. Raises CounterError."""

    def close(self) -> None:
        """Give the driver back. No read may follow."""
