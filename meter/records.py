"""Every type that flows through the meter.

Standard library only. Instants are CLOCK_MONOTONIC nanoseconds of one boot of one host (``_ns``), raw counter values are
millijoules (``_mj``), everything behind the timeline is joules (``_j``).
"""

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

Source = Literal["measured", "estimated", "shared", "simulated"]
"""Where a figure comes from. It is never dropped in an aggregation."""

WEAKEST_FIRST: tuple[Source, ...] = ("simulated", "shared", "estimated", "measured")


def weakest(sources: frozenset[Source]) -> Source:
    """The source that a sum over `sources` may claim: one simulated joule makes the sum simulated."""
    return next(source for source in WEAKEST_FIRST if source in sources)


@dataclass(frozen=True, slots=True)
class Edge:
    """The counter was seen to change: the new value was published at `t_ns` ± `half_width_ns`."""

    gpu_uuid: str
    t_ns: int
    half_width_ns: int
    energy_mj: int
    power_w: float | None = None
    """Instantaneous power that the same read told; None where it told none."""
    deviation_ns: int | None = None
    """Standard deviation of the instant, where the counter's rhythm tells it better than the half-width does."""
    unread_ns: int | None = None
    """For so long before that read nobody had asked, time in calls that took long apart: the counter runs on during those. None where that is not known."""


@dataclass(frozen=True, slots=True)
class ReadFailure:
    """A read of the counter failed at `t_ns`; `cause` is from a closed set (a label value)."""

    gpu_uuid: str
    t_ns: int
    cause: str


@dataclass(frozen=True, slots=True)
class Standstill:
    """At `t_ns` the counter still showed its last edge's value, though several updates were due since."""

    gpu_uuid: str
    t_ns: int


@dataclass(frozen=True, slots=True)
class Reboot:
    """By `t_ns` the counter's machine had started anew: what the counter shows from now on began at zero, even where it is more than before."""

    gpu_uuid: str
    t_ns: int


Finding = Edge | ReadFailure | Standstill | Reboot
"""What a sampler finds out about a counter."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the cost of a step depends on besides the step (power cap, throttling), as seen at `t_ns`: it has changed."""

    gpu_uuid: str
    t_ns: int
    values: tuple[Hashable, ...]
    power_limit_w: float | None = None
    """The limit that is enforced now, where the board tells."""


SENSED: Mapping[str, Callable[..., Finding | Conditions]] = {
    "edge": Edge,
    "failure": ReadFailure,
    "standstill": Standstill,
    "reboot": Reboot,
    "conditions": Conditions,
}
"""By the words that they have in recordings and between machines."""
SENSED_AS = {kind: word for word, kind in SENSED.items()}


@dataclass(frozen=True, slots=True)
class Interval:
    """Energy of one GPU between two edges. `cause` names why it can't be attributed, None where it can."""

    gpu_uuid: str
    start_ns: int
    end_ns: int
    energy_j: float
    start_half_width_ns: int
    end_half_width_ns: int
    cause: str | None = None
    end_mj: int = 0
    """The counter's value at the end: what a restarted meter continues from."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What is known of a request beside its energy. Instants are None until they happen."""

    request_id: str
    receipt_id: str | None
    model: str
    arm: str
    arrival_ns: int
    first_token_ns: int | None
    finished_ns: int | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class RequestEnergy:
    """What a request cost. `prompt_j` + `output_j` is its share of the counter; the other terms are views of it."""

    request_id: str
    prompt_j: float
    output_j: float
    marginal_j: float
    recomputed_j: float
    draft_waste_j: float
    avoided_j: float
    error_j: float
    """Half-width of the 95 % interval of `energy_j`; the board's gain error is stated apart."""
    settled: bool
    method: str
    source: Source

    @property
    def energy_j(self) -> float:
        return self.prompt_j + self.output_j


@dataclass(frozen=True, slots=True)
class Balance:
    """One settled interval of one GPU: attributed + idle + overhead + Σ unattributed = measured."""

    gpu_uuid: str
    start_ns: int
    end_ns: int
    measured_j: float
    attributed_j: float
    idle_j: float
    engine_overhead_j: float
    unattributed_j_by_cause: Mapping[str, float]
    host_bubble_j: float = 0.0
    """The part of `attributed_j` that was paid for gaps under 50 ms between steps."""

    @property
    def residual_j(self) -> float:
        """What the balance misses: rounding, or a bug."""
        spent_j = self.attributed_j + self.idle_j + self.engine_overhead_j
        return self.measured_j - spent_j - sum(self.unattributed_j_by_cause.values())


Part = Literal["p", "d"]
"""That of a request which prefills a prompt for another engine, and of the one that decodes there."""

_RECEIPT_SUFFIX = re.compile(r"-([0-9a-f]{32})(?:([pd]?)([0-9a-f]{32}))?[0-9a-f]{8}$")


def receipt_id_of(engine_request_id: str) -> str | None:
    """The receipt id that the middleware put into an engine request id, or None.

    vLLM ends its own engine ids in ``-<8 hex digits>``, which never matches, so that a client can't choose a receipt
    id through X-Request-Id.
    """
    match = _RECEIPT_SUFFIX.search(engine_request_id)
    return match.group(1) if match else None


def prefill_receipt_id_of(engine_request_id: str) -> str | None:
    """The receipt id of the request in which another engine has prefilled this one's prompt; None where none has."""
    match = _RECEIPT_SUFFIX.search(engine_request_id)
    return match.group(3) if match and not match.group(2) else None


def transfer_of(engine_request_id: str) -> tuple[Part, str] | None:
    """Which part a request has in a transfer that both of its engines know by one name, and a hash of that name; None where there is none."""
    match = _RECEIPT_SUFFIX.search(engine_request_id)
    if match is None or not match.group(2):
        return None
    return ("p" if match.group(2) == "p" else "d"), match.group(3)
