"""Who pays for the energy of an interval. Pure: no clock, no I/O.

An interval's measured joules are first divided among what happened in it (steps, gaps, idle time), then each step's joules among the requests
that were scheduled in it. See docs/method.md for the rules and their limits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from etameter.costs import TERMS, Array, Costs, IntArray, Work, edge_variance_j2
from etameter.records import Balance, Interval
from etameter.steps import Missing

BUBBLE_NS = 50_000_000
"""A shorter gap between steps with the same requests on both sides is a host bubble, which they pay; a longer one is idle."""
OUTLIER_DEVIATIONS = 4.0
"""Energy that exceeds the model by more is not forced onto requests: a neighbour on the card, or a wrong model."""
FORM_ERROR = 0.01
"""Relative standard error of a request's energy because no board is quite linear: from `python -m benchmarks.attribution`, whose engine
has a roofline, a power cap and a temperature (docs/measurements/attribution.md)."""


@dataclass(slots=True)
class Share:
    """What one request takes of an interval, or of several (`add`)."""

    prompt_j: float = 0.0
    output_j: float = 0.0
    marginal_j: float = 0.0
    recomputed_j: float = 0.0
    draft_waste_j: float = 0.0
    avoided_j: float = 0.0
    variance_j2: float = 0.0
    """From edge times and step noise: independent between intervals."""
    sensitivity: Array = field(default_factory=lambda: np.zeros(len(TERMS)))
    """d(energy)/d(coefficients): their error is common to all intervals, so it is summed before it is squared."""

    @property
    def energy_j(self) -> float:
        return self.prompt_j + self.output_j

    def add(self, other: "Share") -> None:
        self.prompt_j += other.prompt_j
        self.output_j += other.output_j
        self.marginal_j += other.marginal_j
        self.recomputed_j += other.recomputed_j
        self.draft_waste_j += other.draft_waste_j
        self.avoided_j += other.avoided_j
        self.variance_j2 += other.variance_j2
        self.sensitivity = self.sensitivity + other.sensitivity

    def error_j(self, covariance: Array) -> float:
        """Half-width of the 95 % interval, given the coefficients' covariance."""
        joint = max(float(self.sensitivity @ covariance @ self.sensitivity), 0.0)
        form_j = FORM_ERROR * self.energy_j
        return 1.96 * math.sqrt(self.variance_j2 + joint + form_j**2)


@dataclass(frozen=True, slots=True)
class Settlement:
    """An interval, paid: `balance.attributed_j` is Σ `shares`."""

    balance: Balance
    shares: dict[str, Share]


def attribute(
    interval: Interval,
    start_ns: int,
    end_ns: int,
    work: Work,
    costs: Costs,
    engine_started_ns: int,
    missing: Sequence[Missing] = (),
) -> Settlement:
    """Settle one interval of one GPU.

    The interval's edges say when its joules were *published*; `start_ns` and `end_ns` say when the work was done that they paid for
    (the edges less the publishing lag). `work` holds the engine's completed steps, at least all that overlap, and their neighbours
    within `BUBBLE_NS`. What comes before `engine_started_ns` is start-up: loading, compiling, capturing graphs. In the spans
    of `missing` steps may have run that nobody recorded.
    """
    cause = interval.cause
    if cause is None and any(span.start_ns < end_ns and span.end_ns > start_ns for span in missing):
        cause = "steps_missing"
    if cause is not None:
        return _settle(interval, start_ns, end_ns, {}, unattributed={cause: interval.energy_j})
    if end_ns <= engine_started_ns:
        return _settle(interval, start_ns, end_ns, {}, engine_overhead_j=interval.energy_j)
    power_w = float(costs.energy[0])
    features = work.step_features
    part = _overlap(work.start_ns, work.end_ns, start_ns, end_ns)
    modelled_j = costs.step_energy(features) * part
    variance_j2 = costs.part_variance(features, part)
    bubbles = _bubbles(work, start_ns, end_ns)
    bubble_s = sum(seconds for seconds, _ in bubbles)
    start_up_s = max(0, engine_started_ns - start_ns) * 1e-9
    duration_s = (end_ns - start_ns) * 1e-9
    busy_s = float(np.sum(features[:, 0] * part))
    idle_s = max(duration_s - busy_s - bubble_s - start_up_s, 0.0)
    power_variance = float(costs.covariance[0, 0]) + (costs.step_noise * power_w) ** 2
    modelled = np.concatenate([modelled_j, [power_w * bubble_s, power_w * idle_s, power_w * start_up_s]])
    variance = np.concatenate(
        [variance_j2, [power_variance * seconds**2 for seconds in (bubble_s, idle_s, start_up_s)]]
    )
    edge_j2 = edge_variance_j2(interval)
    if start_up_s > 0:  # nothing is known of what start-up draws: it takes whatever the rest leaves
        variance[-1] += interval.energy_j**2
    tolerance_j2 = edge_j2 + _lag_variance(work, costs, features, start_ns, end_ns)
    if costs.intervals == 0:  # a first guess can't tell a neighbour from its own error
        tolerance_j2 = math.inf
    paid_j, residual_j = reconcile(modelled, variance, interval.energy_j, tolerance_j2)
    step_j, (bubble_j, idle_j, start_up_j) = paid_j[:-3], paid_j[-3:]
    shares = _step_shares(work, costs, part, step_j, edge_j2, interval.energy_j)
    for seconds, payers in bubbles:
        each_j = float(bubble_j) * (seconds / bubble_s) / len(payers)
        for request_id, in_prefill in payers:
            share = shares.setdefault(request_id, Share())
            if in_prefill:
                share.prompt_j += each_j
            else:
                share.output_j += each_j
    return _settle(
        interval,
        start_ns,
        end_ns,
        shares,
        idle_j=float(idle_j),
        engine_overhead_j=float(start_up_j),
        unattributed={"model_residual": residual_j} if residual_j > 0 else {},
        host_bubble_j=float(bubble_j),
    )


def foresee(work: Work, costs: Costs, since_ns: int) -> dict[str, Share]:
    """What the model expects the steps (or their parts) after `since_ns` to cost their requests: not measured yet."""
    part = _overlap(work.start_ns, work.end_ns, since_ns, int(work.end_ns[-1]) if len(work.end_ns) else since_ns)
    features = work.step_features
    modelled_j = costs.step_energy(features) * part
    shares = _step_shares(work, costs, part, modelled_j, 0.0, 0.0)
    variance_j2 = float(np.sum(costs.part_variance(features, part)))
    for share in shares.values():  # no counter holds the sum fixed yet
        share.variance_j2 += variance_j2 * (share.energy_j / max(float(np.sum(modelled_j)), 1e-30)) ** 2
    return shares


def reconcile(modelled: Array, variance: Array, energy_j: float, edge_j2: float) -> tuple[Array, float]:
    """Move modelled joules to sum to the measured ones, by least squares weighed with their variances, none below zero.

    Returns the joules of each part, and what exceeds `OUTLIER_DEVIATIONS`: Σ parts + excess = `energy_j`.
    """
    deviation_j = math.sqrt(float(np.sum(variance)) + edge_j2)
    excess_j = energy_j - float(np.sum(modelled)) - OUTLIER_DEVIATIONS * deviation_j
    excess_j = max(excess_j, 0.0)
    target_j = energy_j - excess_j
    paid = modelled.copy()
    free = variance > 0
    if not np.any(free):  # a window in which the model knows of nothing: nobody can be charged
        return np.zeros_like(paid), energy_j
    for _ in range(len(paid)):
        missing_j = target_j - float(np.sum(paid))
        paid = np.where(free, paid + variance * (missing_j / float(np.sum(variance[free]))), paid)
        below = free & (paid < 0)
        if not np.any(below):
            break
        paid[below] = 0.0
        free &= ~below
        if not np.any(free):
            paid *= 0.0
            paid[int(np.argmax(variance))] = target_j
            break
    return paid, excess_j


def _overlap(starts: IntArray, ends: IntArray, start_ns: int, end_ns: int) -> Array:
    """The part of each step's time that lies in the window; a step without duration counts where it ends."""
    inside = np.minimum(ends, end_ns) - np.maximum(starts, start_ns)
    length = ends - starts
    whole = (ends > start_ns) & (ends <= end_ns)
    part: Array = np.where(length > 0, np.clip(inside, 0, None) / np.maximum(length, 1), whole.astype(np.float64))
    return part


def _lag_variance(work: Work, costs: Costs, features: Array, start_ns: int, end_ns: int) -> float:
    """Variance in J² of the modelled energy from not knowing the lag: what a window as long, earlier or later, would hold."""
    shift_ns = min(costs.lag_error_ns, BUBBLE_NS)
    above_idle_j = costs.step_energy(features) - costs.energy[0] * features[:, 0]
    here, earlier, later = (
        float(np.sum(above_idle_j * _overlap(work.start_ns, work.end_ns, start_ns + by_ns, end_ns + by_ns)))
        for by_ns in (0, -shift_ns, shift_ns)
    )
    return max(abs(earlier - here), abs(later - here)) ** 2


def _bubbles(work: Work, start_ns: int, end_ns: int) -> list[tuple[float, list[tuple[str, bool]]]]:
    """Seconds of each host bubble inside the window, and who pays it: (request, whether the step after prefills it)."""
    gap_start, gap_end = work.end_ns[:-1], work.start_ns[1:]
    seconds = (np.minimum(gap_end, end_ns) - np.maximum(gap_start, start_ns)) * 1e-9
    found = []
    for before in np.flatnonzero((seconds > 0) & (gap_end - gap_start < BUBBLE_NS)):
        after = np.flatnonzero(work.row_step == before + 1)
        running = after[np.isin(work.row_request[after], work.row_request[work.row_step == before])]
        payers = {work.request_ids[work.row_request[row]]: bool(work.is_prefill[row]) for row in running}
        if payers:
            found.append((float(seconds[before]), list(payers.items())))
    return found


def _row_parts(work: Work, costs: Costs, features: Array) -> tuple[Array, Array]:
    """Modelled joules of each row (its step's whole energy, divided), and of them those that only its own work caused."""
    own_j = work.features @ costs.energy
    duration_s = features[:, 0]
    shared_s = np.minimum(duration_s, costs.time_s[1])
    marginal_s = work.features @ costs.time_s
    step_marginal_s = np.bincount(work.row_step, weights=marginal_s, minlength=len(duration_s))
    with np.errstate(invalid="ignore", divide="ignore"):
        time_share = np.where(
            step_marginal_s[work.row_step] > 0, marginal_s / step_marginal_s[work.row_step], work.row_weight
        )
    board_j = costs.energy[0] * (
        shared_s[work.row_step] * work.row_weight + (duration_s - shared_s)[work.row_step] * time_share
    )
    weights_j = costs.energy[1] * work.row_weight
    return own_j + weights_j + board_j, own_j


def _step_shares(
    work: Work, costs: Costs, part: Array, step_j: Array, edge_j2: float, energy_j: float
) -> dict[str, Share]:
    """Divide `step_j` (S, the joules that the parts of the steps are charged) among the requests scheduled in them."""
    touched = np.flatnonzero((part > 0)[work.row_step])
    if not len(touched):
        return {}
    features = work.step_features
    modelled_j = costs.step_energy(features) * part
    variance_j2 = costs.part_variance(features, part)
    row_j, own_j = _row_parts(work, costs, features)
    whole_j = np.bincount(work.row_step, weights=row_j, minlength=len(part)).astype(np.float64)
    step = work.row_step[touched]
    fraction = np.where(whole_j[step] > 0, row_j[touched] / _nonzero(whole_j[step]), work.row_weight[touched])
    scale = step_j[step] / _nonzero(modelled_j[step])
    paid_j = step_j[step] * fraction
    pass_j = np.where(work.players[step] == 1, costs.energy[1] * work.row_weight[touched], 0.0)
    prefill = work.is_prefill[touched]
    cached = work.cached_tokens[touched]
    posterior_j2 = variance_j2 * (1 - variance_j2 / max(float(np.sum(variance_j2)) + edge_j2, 1e-30))
    amounts = [
        np.where(prefill, paid_j, 0.0),
        np.where(prefill, 0.0, paid_j),
        (own_j[touched] + pass_j) * part[step] * scale,
        paid_j * work.recomputed_tokens[touched] / np.maximum(work.prefill_tokens[touched], 1.0),
        paid_j * work.rejected_tokens[touched] / np.maximum(work.decode_tokens[touched], 1.0),
        (costs.energy[2] * cached + costs.energy[3] * cached * (cached + 1) / 2) * part[step],
        posterior_j2[step] * fraction**2 + edge_j2 * (paid_j / max(energy_j, 1e-30)) ** 2,
    ]
    sensitivity = (_row_features(work, touched) - features[step] * fraction[:, None]) * part[step][:, None]
    return _by_request(work, touched, np.stack(amounts, axis=1), sensitivity)


def _nonzero(values: Array) -> Array:
    """A divisor: where it is zero the dividend is, too."""
    return np.where(values > 0, values, 1.0)


def _row_features(work: Work, touched: IntArray) -> Array:
    """Rows' features with their shares of the step's own two terms."""
    rows: Array = work.features[touched].copy()
    rows[:, 1] = work.row_weight[touched]
    seconds = (work.end_ns - work.start_ns) * 1e-9
    rows[:, 0] = seconds[work.row_step[touched]] * work.row_weight[touched]
    return rows


def _by_request(work: Work, touched: IntArray, amounts: Array, sensitivity: Array) -> dict[str, Share]:
    requests, inverse = np.unique(work.row_request[touched], return_inverse=True)
    sums = np.zeros((len(requests), amounts.shape[1]))
    np.add.at(sums, inverse, amounts)
    slopes = np.zeros((len(requests), sensitivity.shape[1]))
    np.add.at(slopes, inverse, sensitivity)
    shares = {}
    for request, row, slope in zip(requests, sums, slopes, strict=True):
        share = shares[work.request_ids[request]] = Share(*row.tolist())
        share.sensitivity = slope
    return shares


def _settle(
    interval: Interval,
    start_ns: int,
    end_ns: int,
    shares: dict[str, Share],
    *,
    idle_j: float = 0.0,
    engine_overhead_j: float = 0.0,
    unattributed: dict[str, float] | None = None,
    host_bubble_j: float = 0.0,
) -> Settlement:
    attributed_j = math.fsum(share.energy_j for share in shares.values())
    balance = Balance(
        gpu_uuid=interval.gpu_uuid,
        start_ns=start_ns,
        end_ns=end_ns,
        measured_j=interval.energy_j,
        attributed_j=attributed_j,
        idle_j=idle_j,
        engine_overhead_j=engine_overhead_j,
        unattributed_j_by_cause=unattributed or {},
        host_bubble_j=host_bubble_j,
    )
    return Settlement(balance, shares)
