"""Learns what a step costs while it runs: coefficients of energy and time, and how late the counter publishes."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from etameter.costs import PRIOR_DEVIATION, Costs, edge_variance_j2, prior
from etameter.durations import DECODED, coefficients_of_time, told_at_limit
from etameter.evidence import Published, Spans, Steps
from etameter.least_squares import ridge_nnls
from etameter.records import Interval
from etameter.work import TERMS, Array, BoolArray, IntArray, Work

WINDOW_INTERVALS = 3000
"""The fit looks back over so many intervals: five minutes at an update period of 100 ms."""
HALF_LIFE_S = 30.0
"""What was measured so long ago counts half: leakage follows the temperature."""
MIN_INTERVALS = 20
ROUNDS = 5
"""So often weights, and which steps run at the power limit, are found anew in a fit."""
LAG_STEP_NS = 10_000_000
LAGS_NS = tuple(range(0, 201_000_000, LAG_STEP_NS))
LEAST_LAG_ERROR_NS = 1_000_000
LIKELY = 4.0
"""Two standard deviations of a misfit in units of its variance."""
LAG_INTERVALS, LAG_SPAN_NS = 200, 10_000_000_000
"""What so many intervals, over so long, tell of the lag is kept."""
LEAST_MISFIT = 0.05
"""Of an interval, in units of its variance. A load that is explained better than that is no better proof."""
LAG_MEMORY = 0.97
"""What is kept counts so much less with each that is added."""
COMMON_LAG_NS = 100_000_000
"""Before anything is known, a lag of twice as much is unlikely."""
MIN_IDLE_INTERVALS, IDLE_INTERVALS, IDLE_DEVIATION = 5, 200, 0.05
"""Idle power is the median of so many idle intervals; warm boards draw some percent more than cool ones."""
HUBER = 2.5
"""An interval further off than so many deviations pulls no harder for it."""
STEP_NOISE = 0.04
"""Relative noise of an interval's energy beside the model, for weights."""
LEAST_NOISE, OUTLIER = 0.01, 9.0
"""No step is better known than that; what is so many times the variance is no noise."""
IDENTIFIED = 0.3
"""A coefficient is known where its standard error is no more of it."""
EPOCH_CHANGE = np.array([0.02] + [0.3] * (len(TERMS) - 1))
"""So much may a power cap or throttling change the coefficients: what the idle board draws hardly, all that clocks drive by much."""
_SAME_TOKEN = np.eye(len(TERMS))
_SAME_TOKEN[4, 2] = 1.0
"""A decode token takes what a prefill token takes, and more: what is fitted of its cost is the rest."""


Fitted = tuple[Sequence[float], Sequence[Sequence[float]]]
"""Coefficients of energy and time."""


class CostFit:
    """Fits `Costs` of one GPU on a trailing window, by non-negative least squares with a ridge towards a prior.

    Steps at the power limit take what the limit allows: they tell nothing of the coefficients. Which they are is decided by the
    coefficients, except in intervals that took less than that.

    Intervals that fit badly pull less than those that fit (Huber's weights): a neighbour on the card must not move the model, and yet
    none is left out, or a wrong model would never learn better.

    The lag between work and publication is the one of `LAGS_NS` under which work has explained energy best so far: it is the sensor's and
    does not change, and a steady load, which can't tell one lag from another, adds nothing to what is known of it.
    """

    def __init__(self, roofline: Costs, fitted: Fitted | None = None) -> None:
        """Begin with the first guess, or with the coefficients of an earlier fit. One of an earlier form of the model is of no use."""
        self._roofline = roofline
        self._prior = roofline
        if (
            fitted is not None
            and np.shape(fitted[0]) == roofline.energy.shape
            and np.shape(fitted[1]) == roofline.time_s.shape
            and np.isfinite(fitted[0]).all()
            and np.isfinite(fitted[1]).all()
        ):
            self._prior = prior(*fitted, EPOCH_CHANGE, roofline.energy)
        self.costs = self._prior
        self.power_limit_w = math.inf
        self._intervals: deque[tuple[int, int, float, float]] = deque(maxlen=WINDOW_INTERVALS)
        self._steps: deque[tuple[IntArray, IntArray, Array]] = deque()  # starts, ends, features of runs of steps
        self._idle_w: deque[float] = deque(maxlen=IDLE_INTERVALS)
        self._idle_until_ns = self._lag_until_ns = -math.inf
        self._lag_evidence = (np.array(LAGS_NS) / COMMON_LAG_NS) ** 2
        self._told: tuple[Array, Array] | None = None
        """What durations at the power limit told of `DECODED`."""

    def add_interval(self, interval: Interval) -> None:
        """Energy between two edges, as published."""
        error_j = edge_variance_j2(interval) ** 0.5
        self._intervals.append((interval.start_ns, interval.end_ns, interval.energy_j, error_j))

    def add_steps(self, work: Work) -> None:
        """Completed steps, in order of time."""
        if len(work.start_ns):
            self._steps.append((work.start_ns, work.end_ns, work.step_features))
        oldest_ns = self._intervals[0][0] if self._intervals else int(work.end_ns[-1]) if len(work.end_ns) else 0
        horizon_ns = oldest_ns - LAGS_NS[-1]
        while self._steps and self._steps[0][1][-1] < horizon_ns:
            self._steps.popleft()

    def limit(self, power_limit_w: float | None) -> None:
        """The power limit that the board enforces, None where it doesn't tell."""
        limit_w = math.inf if power_limit_w is None else power_limit_w
        if limit_w != self.power_limit_w:
            self.power_limit_w = limit_w
            self.costs = replace(self.costs, power_limit_w=limit_w)

    def restart(self) -> None:
        """Conditions of the board changed: a new epoch, whose prior is what was learned. The lag is the sensor's, and stays."""
        size = np.maximum(np.maximum(self.costs.energy, self._roofline.energy), 1e-12)
        learned = np.sqrt(np.diag(self.costs.covariance)) / size
        deviation = np.minimum(2 * learned + EPOCH_CHANGE, PRIOR_DEVIATION)
        self._prior = prior(self.costs.energy, self.costs.time_s, deviation, self._roofline.energy)
        self._intervals.clear()

    def fit(self) -> Costs:
        """Fit the window; with fewer than `MIN_INTERVALS` intervals or no step the costs in use stand."""
        if len(self._intervals) < MIN_INTERVALS or not self._steps:
            return self.costs
        published = Published(*np.array(self._intervals, dtype=np.float64).T)
        steps = Steps.of(self._steps)
        capped = self.costs.capped(steps.features)
        self._told = told_at_limit(steps, capped, self.costs, self._roofline, self._decoded_j())
        reached = steps.reached(capped, self.power_limit_w)
        expected_j = _modelled(*steps.between(published.lagged(self.costs.lag_ns), reached), self.costs.energy)
        noise_j = STEP_NOISE * np.maximum(np.maximum(published.joules, expected_j), 0.1 * published.joules.mean())
        lag_ns, lag_error_ns = self._lag(steps, reached, published, np.hypot(published.error_j, noise_j))
        spans = published.lagged(lag_ns)
        self._remember_idle(steps, spans, published, lag_error_ns)
        shifted_j = published.change_w() * lag_error_ns * 1e-9
        age_s = (published.end_ns[-1] - published.end_ns) * 1e-9
        deviation = np.sqrt(published.error_j**2 + noise_j**2 + shifted_j**2) * 2 ** (age_s / HALF_LIFE_S / 2)
        # Energy at the limit has no slope: from coefficients that are too high no way leads down. So it is tried from below, too.
        best = self._energy(steps, spans, published.joules, deviation, capped, reached)
        if np.any(capped):
            below = np.zeros_like(capped)
            reached = steps.reached(below, self.power_limit_w)
            other = self._energy(steps, spans, published.joules, deviation, below, reached)
            best = min(best, other, key=lambda each: each.improbability)
        step_j = replace(self.costs, energy=best.energy).step_energy(steps.features)
        step_noise, unevenness = self._noise(steps, step_j, spans, best.residual_j, published.error_j)
        time_s, time_covariance = coefficients_of_time(steps, self.costs, self._prior, self._roofline)
        self.costs = Costs(
            energy=best.energy,
            covariance=best.covariance,
            time_s=time_s,
            time_covariance=time_covariance,
            step_noise=step_noise,
            unevenness=unevenness,
            intervals=len(published.joules),
            lag_ns=lag_ns,
            lag_error_ns=lag_error_ns,
            power_limit_w=self.power_limit_w,
            unidentified=best.unidentified,
            residual=best.residual(published.joules, steps.count(spans) > 0),
        )
        return self.costs

    def _energy(
        self, steps: Steps, spans: Spans, joules: Array, deviation: Array, capped: BoolArray, reached: Array
    ) -> "_Energy":
        """Find coefficients, and which steps run at the power limit, beginning with those that are `capped`, with which so much was `reached`."""
        start = self._start()
        trust = 1.0 / deviation
        design, limited_j = steps.between(spans, reached)
        work = design
        for _ in range(ROUNDS):
            energy, covariance = _solved(design * trust[:, None], (joules - limited_j) * trust, start)
            residual_j = joules - _modelled(design, limited_j, energy)
            doubted = steps.within(spans, residual_j < -HUBER * deviation)
            before, capped = capped, replace(self.costs, energy=energy).capped(steps.features) & ~doubted
            if not np.array_equal(before, capped):
                design, limited_j = steps.between(spans, steps.reached(capped, self.power_limit_w))
            residual_j = joules - _modelled(design, limited_j, energy)
            off = np.abs(residual_j) / deviation
            scale = max(1.4826 * float(np.median(off)), 0.25)  # the noise in the better half of the intervals
            trust = np.sqrt(np.minimum(1.0, HUBER * scale / np.maximum(off, 1e-12))) / (scale * deviation)
        unsure = np.sqrt(np.diag(covariance)) > IDENTIFIED * np.maximum(energy, 1e-12)
        unidentified = tuple(np.array(TERMS)[unsure & np.any(work > 0, axis=0)].tolist())
        improbability = len(joules) * math.log(max(_huber(off), 1e-9)) + _narrowness(energy, covariance, start)
        return _Energy(energy, covariance, residual_j, improbability, unidentified)

    def _remember_idle(self, steps: Steps, spans: Spans, published: Published, lag_error_ns: int) -> None:
        """Keep what the board drew in intervals without work, whatever the lag, for times when it has none."""
        known_ns = steps.t_ns[-1] - lag_error_ns
        idle = steps.count(Spans(spans.start_ns - lag_error_ns, spans.end_ns + lag_error_ns)) == 0
        idle &= (spans.start_ns >= self._idle_until_ns) & (spans.end_ns <= known_ns)
        self._idle_w.extend(published.power_w[idle].tolist())
        self._idle_until_ns = max(self._idle_until_ns, min(float(spans.end_ns[-1]), float(known_ns)))

    def _decoded_j(self) -> Array:
        """What the prior expects of `DECODED`."""
        energy = self._prior.energy
        return np.array([max(energy[4] - energy[2], 0.0), energy[5]])

    def _start(self) -> Costs:
        """The prior, with what is known beside the joules of the load: of a decode from durations at the power limit, and from an idle board of
        p0, which no load tells better from c and a.
        """
        energy, covariance = self._prior.energy.copy(), self._prior.covariance.copy()
        if self._told is not None:
            known, told = covariance[DECODED, DECODED], self._told[1] ** 2
            decoded_j = (self._decoded_j() * told + self._told[0] * known) / (known + told)
            energy[4], energy[5] = energy[2] + decoded_j[0], decoded_j[1]
            covariance[DECODED, DECODED] = known * told / (known + told)
        if len(self._idle_w) >= MIN_IDLE_INTERVALS:
            idle_w = float(np.median(self._idle_w))
            energy[0], covariance[0, 0] = idle_w, (IDLE_DEVIATION * idle_w) ** 2
        return replace(self._prior, energy=energy, covariance=covariance)

    def _lag(self, steps: Steps, reached: Array, published: Published, deviation: Array) -> tuple[int, int]:
        """The lag under which work has explained energy best so far, and how far others do nearly as well."""
        new = published.start_ns >= self._lag_until_ns
        if np.count_nonzero(new) < MIN_INTERVALS:
            return self.costs.lag_ns, self.costs.lag_error_ns
        start, deviation = self._start(), deviation[new]
        joules = published.joules[new]
        misfit = np.empty(len(LAGS_NS))
        for index, lag_ns in enumerate(LAGS_NS):
            design, limited_j = steps.between(published.lagged(lag_ns).only(new), reached)
            design, target = design / deviation[:, None], (joules - limited_j) / deviation
            energy, _ = _solved(design, target, start)
            misfit[index] = _huber(np.abs(target - design @ energy))
        spans = published.lagged(0).only(new)
        # the noise of a long step is that of all its intervals
        independent = min(float(len(joules)), float(np.sum(steps.count(spans))))
        least = float(np.min(misfit))
        evidence = self._lag_evidence + (misfit - least) * independent / max(least, LEAST_MISFIT * len(joules))
        if len(joules) >= LAG_INTERVALS and spans.end_ns[-1] - spans.start_ns[0] >= LAG_SPAN_NS:
            self._lag_evidence = LAG_MEMORY * evidence
            self._lag_until_ns = float(spans.end_ns[-1])
        return _bottom(evidence - np.min(evidence))

    def _noise(
        self, steps: Steps, step_j: Array, spans: Spans, residual_j: Array, edge_error: Array
    ) -> tuple[float, float]:
        """Relative noise of steps, and unevenness within them, from how intervals miss that hold whole steps and parts of steps."""
        whole, cut = steps.squares(step_j, spans)
        busy = whole + cut > 0
        columns = np.stack([whole, 4 * cut], axis=1)[busy]
        excess = residual_j[busy] ** 2 - edge_error[busy] ** 2
        guess = np.array([self.costs.step_noise, self.costs.unevenness]) ** 2
        for _ in range(3):
            variance = columns @ guess + edge_error[busy] ** 2
            deviation = np.maximum(variance, 1e-12) * 2**0.5
            clipped = np.minimum(excess, OUTLIER * variance)
            guess, _ = ridge_nnls(
                columns / deviation[:, None], clipped / deviation, guess, np.diag(guess**2 + LEAST_NOISE**4)
            )
            guess = np.maximum(guess, LEAST_NOISE**2)
        return float(guess[0] ** 0.5), float(guess[1] ** 0.5)


@dataclass(frozen=True, slots=True)
class _Energy:
    """Coefficients of energy, and what they leave of each interval."""

    energy: Array
    covariance: Array
    residual_j: Array
    improbability: float
    """Twice the negative logarithm of the evidence for them, by Laplace's approximation, up to what others for the same intervals share."""
    unidentified: tuple[str, ...]

    def residual(self, joules: Array, busy: BoolArray) -> float | None:
        """Σ |measured - fitted| over Σ measured, of the intervals that were `busy`."""
        measured_j = float(np.sum(joules[busy]))
        return float(np.sum(np.abs(self.residual_j[busy]))) / measured_j if measured_j > 0 else None


def _modelled(design: Array, limited_j: Array, energy: Array) -> Array:
    joules: Array = design @ energy + limited_j
    return joules


def _huber(off: Array) -> float:
    """Σ of Huber's loss of deviations in units of their own."""
    return float(np.sum(np.where(off < HUBER, off**2, HUBER * (2 * off - HUBER))))


def _solved(design: Array, target: Array, start: Costs) -> tuple[Array, Array]:
    """Coefficients of energy and their covariance."""
    guess = np.maximum(np.linalg.solve(_SAME_TOKEN, start.energy), 0.0)
    rest, covariance = ridge_nnls(design @ _SAME_TOKEN, target, guess, start.covariance)
    return _SAME_TOKEN @ rest, _SAME_TOKEN @ covariance @ _SAME_TOKEN.T


def _narrowness(energy: Array, covariance: Array, start: Costs) -> float:
    """What coefficients lose in evidence: by how far they are from where they started, and by how much surer than that they have to be."""
    to_rest = np.linalg.inv(_SAME_TOKEN)
    deviation = np.sqrt(np.diag(start.covariance))
    moved = (to_rest @ energy - np.maximum(to_rest @ start.energy, 0.0)) / deviation
    left = to_rest @ covariance @ to_rest.T / np.outer(deviation, deviation)
    return float(moved @ moved - np.linalg.slogdet(left)[1])


def _bottom(misfit: Array) -> tuple[int, int]:
    """Where between `LAGS_NS` the misfit is least, and how far from there it is `LIKELY` for other lags."""
    best = int(np.argmin(misfit))
    far = int(np.max(np.abs(np.flatnonzero(misfit <= LIKELY) - best))) * LAG_STEP_NS
    middle = min(max(best, 1), len(misfit) - 2)
    left, centre, right = misfit[middle - 1 : middle + 2]
    bend = (left - 2 * centre + right) / 2  # of the parabola through the three, per step squared
    if far > LAG_STEP_NS or bend <= 0:
        return LAGS_NS[best], max(far, LAG_STEP_NS)
    bottom = min(max(middle - (right - left) / (4 * bend), 0.0), len(misfit) - 1.0)
    return int(bottom * LAG_STEP_NS), max(int((LIKELY / bend) ** 0.5 * LAG_STEP_NS), LEAST_LAG_ERROR_NS)
