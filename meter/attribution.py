"""Who pays for the energy of an interval. Pure: no clock, no I/O.

An interval's measured joules are first divided among what happened in it (steps, gaps, idle time), then each step's joules among the requests
that were scheduled in it. See docs/method.md for the rules and their limits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from etameter.costs import Costs, edge_variance_j2
from etameter.division import OF_PREFILLS, divide
from etameter.records import Balance, Interval
from etameter.spans import length_ns
from etameter.stages import Span
from etameter.steps import Missing
from etameter.work import CACHED, DRAFT, EXPERTS, RECOMPUTED, TERMS, Array, BoolArray, IntArray, Work

BUBBLE_NS = 50_000_000
"""A shorter gap between steps with the same requests on both sides is a host bubble, which they pay; a longer one is idle."""
OUTLIER_DEVIATIONS = 4.0
"""Energy that exceeds the model by more is not forced onto requests: a neighbour on the card, or a wrong model."""
FORM_ERROR = 0.12
"""Relative standard error of each term of a step's cost because no board is quite what the model says: from `python -m benchmarks.attribution`,
whose engine has clocks that fall, a temperature and more (docs/measurements/attribution.md). A request whose work is mixed as its
batch's is doesn't feel it."""


AMOUNTS = ("prompt_j", "output_j", "marginal_j", "recomputed_j", "draft_waste_j", "avoided_j", "variance_j2")
"""What a request takes. The variance is from edge times and step noise: independent between intervals."""
PROMPT_J, OUTPUT_J, MARGINAL_J, RECOMPUTED_J, DRAFT_WASTE_J, AVOIDED_J, VARIANCE_J2 = range(len(AMOUNTS))


@dataclass(frozen=True, slots=True)
class Shares:
    """What requests take of an interval, or of several: a line for each request."""

    slots: IntArray  # n, distinct
    amounts: Array  # n × 7: AMOUNTS
    sensitivity: Array
    """n × TERMS: d(energy)/d(coefficients). Their error is common to all intervals, so it is summed before it is squared."""
    limited: Array
    """n × TERMS: the same of steps at the power limit, whose energy follows the coefficients of time instead (d(energy)/d(limit·coefficient))."""

    @property
    def energy_j(self) -> Array:
        joules: Array = self.amounts[:, PROMPT_J] + self.amounts[:, OUTPUT_J]
        return joules

    def variance_j2(self, costs: Costs | None) -> Array:
        """Of `energy_j`, given the coefficients in use (None where they are no longer known), but for the form's."""
        variance: Array = self.amounts[:, VARIANCE_J2].copy()
        if costs is None:
            return variance
        variance += _quadratic(self.sensitivity, costs.covariance)
        if self.limited.any():
            variance += costs.power_limit_w**2 * _quadratic(self.limited, costs.time_covariance)
        return variance

    def form_j(self, costs: Costs | None) -> Array:
        """By how much `energy_j` were more if a term were worth twice as much, n × TERMS. The form is wrong alike on all GPUs of an engine."""
        if costs is None:
            return np.zeros_like(self.sensitivity)
        joules: Array = (self.sensitivity + self.limited) * costs.energy
        return joules

    @staticmethod
    def of_nobody(requests: int = 0) -> "Shares":
        """Nothing, of so many requests."""
        terms = np.zeros((requests, len(TERMS)))
        return Shares(np.arange(requests), np.zeros((requests, len(AMOUNTS))), terms, terms.copy())

    def of(self, lines: IntArray) -> "Shares":
        """Some of them."""
        return Shares(self.slots[lines], self.amounts[lines], self.sensitivity[lines], self.limited[lines])

    def sum(self) -> "Shares":
        """One line, of all of them together: what is common to their errors is summed before it is squared."""
        summed = (np.sum(each, axis=0, keepdims=True) for each in (self.amounts, self.sensitivity, self.limited))
        return Shares(np.zeros(1, dtype=np.int64), *summed)

    def add(self, lines: IntArray, other: "Shares") -> None:
        """Add what `other` says to these lines, each of which comes once."""
        self.amounts[lines] += other.amounts
        self.sensitivity[lines] += other.sensitivity
        self.limited[lines] += other.limited


def form_variance_j2(form_j: Array) -> Array:
    """Variance of energies from the form, whose terms are wrong independently."""
    variance: Array = FORM_ERROR**2 * np.einsum("nt,nt->n", form_j, form_j)
    return variance


def _quadratic(lines: Array, covariance: Array) -> Array:
    squares: Array = np.maximum(np.einsum("nt,nt->n", lines @ covariance, lines), 0.0)
    return squares


@dataclass(frozen=True, slots=True)
class Settlement:
    """An interval, paid: `balance.attributed_j` is Σ `shares`."""

    balance: Balance
    shares: Shares
    work: Work
    """The steps that were paid, and those beside paid bubbles."""
    passes_j: float = 0.0
    """What passes took above idle: in the balance as `steps_missing`, until requests of other ranks are found that pay it."""
    passes_variance_j2: float = 0.0


def attribute(
    interval: Interval,
    start_ns: int,
    end_ns: int,
    work: Work,
    costs: Costs,
    engine_started_ns: int,
    missing: Sequence[Missing] = (),
    passes: Sequence[Span] = (),
) -> Settlement:
    """Settle one interval of one GPU.

    The interval's edges say when its joules were *published*; `start_ns` and `end_ns` say when the work was done that they paid for
    (the edges less the publishing lag). `work` holds the engine's completed steps, at least all that overlap, and their neighbours
    within `BUBBLE_NS`. What comes before `engine_started_ns` is start-up: loading, compiling, capturing graphs. In the spans
    of `missing` steps may have run that nobody recorded. In `passes`, which lie in the window, after the start-up and outside of steps, the
    engine may have run empty passes because other ranks of its group worked.
    """
    cause = interval.cause
    if cause is None and any(span.start_ns < end_ns and span.end_ns > start_ns for span in missing):
        cause = "steps_missing"
    if cause is not None:
        return _settle(
            interval, start_ns, end_ns, Shares.of_nobody(), work.part(0, 0), unattributed={cause: interval.energy_j}
        )
    if end_ns <= engine_started_ns:
        return _settle(
            interval, start_ns, end_ns, Shares.of_nobody(), work.part(0, 0), engine_overhead_j=interval.energy_j
        )
    power_w = float(costs.energy[0])
    features = work.step_features
    step_j = costs.step_energy(features)
    by_ns = np.array([[0], [-1], [1]]) * min(costs.lag_error_ns, BUBBLE_NS)
    parts = _overlap(work.start_ns, work.end_ns, start_ns + by_ns, end_ns + by_ns)
    part = parts[0]
    modelled_j = step_j * part
    variance_j2 = costs.part_variance(features, part)
    bubbles_s = _bubbles(work, start_ns, end_ns)
    near = _near(part, bubbles_s)
    busy = work.part(near.start, near.stop)
    bubbles_s = bubbles_s[near.start : max(near.stop - 1, 0)]
    waits, prefills = _waiting(busy)
    payers = waits.sum(axis=1)
    bubbles_s[payers == 0] = 0.0
    bubble_s = float(bubbles_s.sum())
    start_up_s = max(0, engine_started_ns - start_ns) * 1e-9
    duration_s = (end_ns - start_ns) * 1e-9
    busy_s = float((features[:, 0] * part).sum())
    passes_s = length_ns(passes) * 1e-9
    idle_s = max(duration_s - busy_s - bubble_s - start_up_s - passes_s, 0.0)
    power_variance = float(costs.covariance[0, 0]) + (costs.step_noise * power_w) ** 2
    others_s = np.array([bubble_s, idle_s, start_up_s, *([passes_s] if passes else [])])
    modelled = np.concatenate([modelled_j, power_w * others_s])
    variance = np.concatenate([variance_j2, power_variance * others_s**2])
    known_j2 = edge_j2 = edge_variance_j2(interval)
    if passes:  # nor of what empty passes draw
        known_j2 = edge_j2 + float(np.sum(variance))
        variance[-1] += (interval.energy_j * passes_s / duration_s) ** 2
    if start_up_s > 0:  # nothing is known of what start-up draws: it takes whatever the rest leaves
        variance[len(modelled_j) + 2] += interval.energy_j**2
    tolerance_j2 = edge_j2 + _lag_variance(step_j - power_w * features[:, 0], parts)
    if costs.intervals == 0:  # a first guess can't tell a neighbour from its own error
        tolerance_j2 = math.inf
    paid_j, residual_j = reconcile(modelled, variance, interval.energy_j, tolerance_j2)
    step_j = paid_j[: len(modelled_j)]
    bubble_j, idle_j, start_up_j, *of_passes_j = paid_j[len(modelled_j) :].tolist()
    above_j = max(sum(of_passes_j) - power_w * passes_s, 0.0)
    posterior_j2 = _posterior(variance_j2, edge_j2 + float(np.sum(variance[len(modelled_j) + 3 :])))
    shares, ran = _step_shares(busy, costs, part[near], step_j[near], posterior_j2[near], edge_j2, interval.energy_j)
    if bubble_s > 0:
        each_j = bubble_j * (bubbles_s / bubble_s) / np.maximum(payers, 1)
        if prefills.any():
            shares.amounts[:, PROMPT_J] += each_j @ (waits & prefills)
            shares.amounts[:, OUTPUT_J] += each_j @ (waits & ~prefills)
        else:
            shares.amounts[:, OUTPUT_J] += each_j @ waits
        ran |= waits[bubbles_s > 0].any(axis=0)
    causes = {"model_residual": residual_j, "steps_missing": above_j}
    return _settle(
        interval,
        start_ns,
        end_ns,
        shares.of(np.flatnonzero(ran)),
        busy,
        idle_j=idle_j + sum(of_passes_j) - above_j,
        engine_overhead_j=start_up_j,
        unattributed={cause: joules for cause, joules in causes.items() if joules > 0},
        host_bubble_j=bubble_j,
        passes_j=above_j,
        passes_variance_j2=known_j2,
    )


def foresee(work: Work, costs: Costs, since_ns: int) -> Shares:
    """What the model expects the steps (or their parts) after `since_ns` to cost their requests: not measured yet."""
    part = _overlap(work.start_ns, work.end_ns, since_ns, int(work.end_ns[-1]) if len(work.end_ns) else since_ns)
    features = work.step_features
    modelled_j = costs.step_energy(features) * part
    variances_j2 = costs.part_variance(features, part)
    lines, ran = _step_shares(work, costs, part, modelled_j, _posterior(variances_j2, 0.0), 0.0, 0.0)
    shares = lines.of(np.flatnonzero(ran))
    variance_j2 = float(np.sum(variances_j2))
    share = shares.energy_j / max(float(np.sum(modelled_j)), 1e-30)
    shares.amounts[:, VARIANCE_J2] += variance_j2 * share**2  # no counter holds the sum fixed yet
    return shares


def share_passes(work: Work, costs: Costs, part: Array, step_j: Array, variance_j2: float) -> Shares:
    """What requests pay of passes that another rank ran in parts of their steps: `step_j` (S), shared as the steps' own energy is.

    `costs` are those of the GPU that ran the steps. The tokens from its cache have been told there.
    """
    shares, ran = _step_shares(work, costs, part, step_j, np.zeros(len(part)), variance_j2, float(np.sum(step_j)))
    shares.amounts[:, AVOIDED_J] = shares.sensitivity[:] = shares.limited[:] = 0.0
    return shares.of(np.flatnonzero(ran))


def reconcile(modelled: Array, variance: Array, energy_j: float, edge_j2: float) -> tuple[Array, float]:
    """Move modelled joules to sum to the measured ones, by least squares weighed with their variances, none below zero.

    Returns the joules of each part, and what exceeds `OUTLIER_DEVIATIONS`: Σ parts + excess = `energy_j`.
    """
    deviation_j = math.sqrt(float(variance.sum()) + edge_j2)
    excess_j = max(energy_j - float(modelled.sum()) - OUTLIER_DEVIATIONS * deviation_j, 0.0)
    target_j = energy_j - excess_j
    paid, weights = modelled, variance  # of what may still be moved
    if not weights.any():  # a window in which the model knows of nothing: nobody can be charged
        return np.zeros_like(paid), energy_j
    for _ in range(len(paid)):
        paid = paid + weights * ((target_j - paid.sum()) / weights.sum())
        below = (paid < 0) & (weights > 0)
        if not below.any():
            break
        paid[below] = 0.0
        weights = np.where(below, 0.0, weights)
        if not weights.any():
            paid *= 0.0
            paid[int(np.argmax(variance))] = target_j
            break
    return paid, excess_j


def _overlap(starts: IntArray, ends: IntArray, start_ns: int | IntArray, end_ns: int | IntArray) -> Array:
    """The part of each step's time that lies in the window (or in each of some windows); a step without duration counts where it ends."""
    inside = np.minimum(ends, end_ns) - np.maximum(starts, start_ns)
    length = ends - starts
    whole = (ends > start_ns) & (ends <= end_ns)
    part: Array = np.where(length > 0, np.maximum(inside, 0) / np.maximum(length, 1), whole.astype(np.float64))
    return part


def _lag_variance(above_idle_j: Array, parts: Array) -> float:
    """Variance in J² of the modelled energy from not knowing the lag: by what is in a window as long, earlier or later. `parts` are 3 × S: of
    the steps in the window itself, the earliest and the latest.
    """
    joules: list[float] = (parts @ above_idle_j).tolist()
    here, earlier, later = joules
    return max(abs(earlier - here), abs(later - here)) ** 2


def _bubbles(work: Work, start_ns: int, end_ns: int) -> Array:
    """S - 1: seconds of each host bubble inside the window, between a step and the next; 0 where there is none or nobody pays it."""
    gap_start, gap_end = work.end_ns[:-1], work.start_ns[1:]
    seconds = (np.minimum(gap_end, end_ns) - np.maximum(gap_start, start_ns)) * 1e-9
    bubbles: Array = np.where((seconds > 0) & (gap_end - gap_start < BUBBLE_NS), seconds, 0.0)
    return bubbles


def _waiting(work: Work) -> tuple[BoolArray, BoolArray]:
    """(S - 1) × slots: whose requests run on both sides of a gap, and whom of them the step after it prefills."""
    steps, lines = len(work.steps), work.lines
    runs, prefills = np.zeros((2, steps * lines), dtype=np.bool_)
    runs[work.row_place] = True
    prefills[work.row_place[work.prefill_rows]] = True
    runs = runs.reshape(steps, lines)
    return runs[:-1] & runs[1:], prefills.reshape(steps, lines)[1:]


def _near(part: Array, bubbles_s: Array) -> slice:
    """The steps that ran within the window, and those on both sides of a bubble in it."""
    near = part > 0
    near[:-1] |= bubbles_s > 0
    near[1:] |= bubbles_s > 0
    steps = np.flatnonzero(near)
    return slice(int(steps[0]), int(steps[-1]) + 1) if len(steps) else slice(0, 0)


def _posterior(variance_j2: Array, edge_j2: float) -> Array:
    """Variances of parts whose sum is known but for its own variance."""
    posterior: Array = variance_j2 * (1 - variance_j2 / max(float(variance_j2.sum()) + edge_j2, 1e-30))
    return posterior


def _step_shares(
    work: Work, costs: Costs, part: Array, step_j: Array, posterior_j2: Array, edge_j2: float, energy_j: float
) -> tuple[Shares, BoolArray]:
    """Divide `step_j` (S, the joules that the parts of the steps are charged) among the requests scheduled in them.

    The shares have a line for each slot up to the highest in `work`; with them, which of these ran in the parts.
    """
    lines = work.lines
    shares = Shares.of_nobody(lines)
    features, step, slots = work.step_features, work.row_step, work.row_request
    division = divide(work, costs, features)
    row_j, own_j = division.joules, work.features @ costs.energy
    whole_j = np.bincount(step, weights=row_j, minlength=len(part)).astype(np.float64, copy=False)
    fraction = row_j / _nonzero(whole_j)[step]
    if not whole_j.all():
        fraction = np.where((whole_j > 0)[step], fraction, work.row_weight)
    scale = step_j / _nonzero(costs.step_energy(features) * part)
    paid_j = step_j[step] * fraction
    is_alone = work.players == 1
    if is_alone.any():  # it saves the whole pass
        own_j += costs.energy[1] * is_alone[step] * work.row_weight
    prefills = work.prefill_rows

    def book(amount: int, joules: Array, rows: IntArray | None = None) -> None:
        """Sum over the rows of each request; over `rows` alone where there is nothing in the others."""
        of, what = (slots, joules) if rows is None else (slots[rows], joules[rows])
        shares.amounts[:, amount] = np.bincount(of, weights=what, minlength=lines)

    output_j = paid_j.copy()
    output_j[prefills] = 0.0
    book(PROMPT_J, paid_j, prefills)
    book(OUTPUT_J, output_j)
    book(MARGINAL_J, own_j * (part * scale)[step])
    book(VARIANCE_J2, (posterior_j2 + edge_j2 * (step_j / max(energy_j, 1e-30)) ** 2)[step] * fraction**2)
    if len(rows := work.rows_with(RECOMPUTED)):
        book(RECOMPUTED_J, paid_j * work.recomputed_tokens / np.maximum(work.prefill_tokens, 1.0), rows)
    if len(rows := work.rows_with(DRAFT)):
        book(DRAFT_WASTE_J, paid_j * work.rejected_tokens / np.maximum(work.decode_tokens, 1.0), rows)
    if len(rows := work.rows_with(CACHED)):
        cached = work.cached_tokens
        book(AVOIDED_J, (costs.energy[2] * cached + costs.energy[3] * cached * (cached + 1) / 2) * part[step], rows)
    _add_sensitivity(shares, work, costs, part, fraction, division.seconds)
    ran = np.zeros(lines, dtype=np.bool_)
    ran[slots if part.all() else slots[(part > 0)[step]]] = True
    return shares, ran


def _nonzero(values: Array) -> Array:
    """A divisor: where it is zero the dividend is, too."""
    return np.where(values > 0, values, 1.0)


def _add_sensitivity(shares: Shares, work: Work, costs: Costs, part: Array, fraction: Array, seconds: Array) -> None:
    """How each request's energy would follow the coefficients: its own rows less its fraction of the step, which the counter holds fixed."""
    capped = costs.capped(work.step_features)
    fractions, seconds_of, weights = (work.placed(each) for each in (fraction, seconds, work.row_weight))
    # A step takes as long as it did, whatever its time was thought to be.
    lasted = work.step_features[:, 0] / _nonzero(seconds_of.sum(axis=1))
    for total, of_step in ((shares.sensitivity, part * ~capped), (shares.limited, part * capped)):
        if not of_step.any():
            continue
        of_row = of_step[work.row_step]
        total[:, 0] = (lasted * of_step) @ seconds_of
        total[:, 1] = of_step @ weights
        for term in work.terms:
            rows = work.prefill_rows if term in OF_PREFILLS else slice(None)
            own = work.features[rows, term] * of_row[rows]
            total[:, term] = np.bincount(work.row_request[rows], weights=own, minlength=work.lines)
        if work.routed:
            tokens, tokens_of_step = (table[:, 2] + table[:, 4] for table in (work.features, work.step_features))
            woken = work.step_features[:, EXPERTS] / _nonzero(tokens_of_step)
            total[:, EXPERTS] = (woken * of_step) @ work.placed(tokens)
        total[:] -= ((work.step_features * of_step[:, None]).T @ fractions).T


def _settle(
    interval: Interval,
    start_ns: int,
    end_ns: int,
    shares: Shares,
    work: Work,
    *,
    idle_j: float = 0.0,
    engine_overhead_j: float = 0.0,
    unattributed: dict[str, float] | None = None,
    host_bubble_j: float = 0.0,
    passes_j: float = 0.0,
    passes_variance_j2: float = 0.0,
) -> Settlement:
    attributed_j = math.fsum(shares.energy_j.tolist())
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
    return Settlement(balance, shares, work, passes_j, passes_variance_j2)
