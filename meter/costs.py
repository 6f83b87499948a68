"""What a step costs: a model of its energy and one of its time.

    E = p0·Δt + c + a·n + a2·Σ n·(k + (n+1)/2) + b·decode + d·attended + encoder + adapters + experts, at most limit·Δt     (J)
    t = the longer of reading   r0 + rb·decode + rd·attended + adapters + experts
              and of computing  k0 + ka·(n + decode) + ka2·Σ n·(k + (n+1)/2) + kd·attended + encoder                         (s)

n prefill tokens on top of k cached ones, decode tokens, and the tokens whose keys and values they attend. p0 is what the board draws with
the model loaded and nothing running, c is one pass over the weights. Adapters are counted once a step each, however many requests use
them. Of a mixture of experts, each token wakes `routed` (k of E); a step with T tokens passes over 1 − (1 − routed)^T of their weights.
All coefficients are non-negative: no work gives energy back. A board that would draw more than its power limit slows its clocks until it
doesn't.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from etameter.records import Interval
from etameter.work import TERMS, Array, BoolArray

READING, COMPUTING = 0, 1
"""Rows of time coefficients: a step takes as long as the slower of the two."""
FIRST_NOISE, UNEVENNESS = 0.3, 0.1
"""Before anything was measured: relative deviation of a step's energy, and of that of half its time from half of it."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Coefficients in use. `covariance` is of `energy` (TERMS × TERMS); `step_noise` is relative and of one step."""

    energy: Array  # TERMS
    covariance: Array
    time_s: Array  # 2 × TERMS: READING and COMPUTING, of which the first column is not used
    step_noise: float
    intervals: int
    """How many intervals the fit rests on; 0 for a prior."""
    lag_ns: int = 0
    """How long after the work the counter publishes it."""
    lag_error_ns: int = 50_000_000
    """How wrong `lag_ns` may be: a steady load does not tell one from another."""
    unidentified: tuple[str, ...] = ()
    """Of `TERMS`, those that the load so far can't tell: what stands for them is mostly the prior's."""
    residual: float | None = None
    """Σ |measured - fitted| over Σ measured, of the intervals with work in them; None for a prior."""
    power_limit_w: float = math.inf
    time_covariance: Array = field(default_factory=lambda: np.zeros((len(TERMS), len(TERMS))))
    """Of the row COMPUTING of `time_s`."""
    unevenness: float = UNEVENNESS
    """By so much of a step's energy that of half its time deviates from the half."""

    @property
    def standard_errors(self) -> Array:
        """Of `energy`, TERMS."""
        errors: Array = np.sqrt(np.diag(self.covariance))
        return errors

    def capped(self, features: Array) -> BoolArray:
        """Which steps with these `step_features` run at the power limit."""
        at_limit: BoolArray = features @ self.energy > self.limit_j(features)
        return at_limit

    def limit_j(self, features: Array) -> Array | float:
        """The most joules that steps with these `step_features` can take in their time."""
        if math.isinf(self.power_limit_w):
            return math.inf
        most: Array = self.power_limit_w * features[:, 0]
        return most

    def step_energy(self, features: Array) -> Array:
        """Modelled joules of steps with these `step_features`."""
        joules: Array = np.minimum(features @ self.energy, self.limit_j(features))
        return joules

    def step_variance(self, features: Array) -> Array:
        """Variance in J² of `step_energy`: the coefficients' and the step's own."""
        return self.part_variance(features, np.ones(len(features)))

    def part_variance(self, features: Array, part: Array) -> Array:
        """Variance in J² of the energy of parts of steps (S shares of their time): power within a step is not quite constant."""
        joint = ((features @ self.covariance) * features).sum(axis=1)
        joint[self.capped(features)] = 0.0  # whatever the coefficients
        square_j2 = self.step_energy(features) ** 2
        whole = joint + self.step_noise**2 * square_j2
        variance: Array = whole * part**2 + (2 * self.unevenness) ** 2 * square_j2 * part * (1 - part)
        return variance


def edge_variance_j2(interval: Interval) -> float:
    """Variance in J² of an interval's energy from not knowing the instants of its edges: uniform within their half-widths."""
    power_w = interval.energy_j / max((interval.end_ns - interval.start_ns) * 1e-9, 1e-9)
    half_widths_s2 = (interval.start_half_width_ns * 1e-9) ** 2 + (interval.end_half_width_ns * 1e-9) ** 2
    return power_w**2 * half_widths_s2 / 3


PRIOR_DEVIATION = 0.7
"""A prior's relative standard deviation: a roofline knows the order of magnitude."""


def prior(
    energy: Sequence[float] | Array,
    time_s: Sequence[Sequence[float]] | Array,
    deviation: float | Array = PRIOR_DEVIATION,
    floor: Array | None = None,
) -> Costs:
    """Costs before anything was measured, from a roofline or an earlier fit.

    `deviation` is relative, of each coefficient, or of `floor` where that is larger: a coefficient that an earlier load did not show (0)
    may yet come.
    """
    coefficients = np.array(energy, dtype=np.float64)
    size = np.maximum(coefficients, 1e-12)
    if floor is not None:
        size = np.maximum(size, floor)
    return Costs(coefficients, np.diag((deviation * size) ** 2), np.array(time_s, dtype=np.float64), FIRST_NOISE, 0)
