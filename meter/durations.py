"""What the durations of steps tell: coefficients of time, and at the power limit some of those of energy.

Below the limit a step's duration says nothing of its energy. A board at its limit pays for every joule more with time. With energy per operation
that falls as the m-th power of the clock, work that adds E joules and, at full clock, t seconds to a step that is computing lengthens it by

    τ = (t·m + E / (limit − p0)) / (1 + m)      so that      E = (limit − p0)·((1 + m)·τ − m·t)

m is about 1: energy goes with the square of a voltage that is lowered with the clock, down to some floor. t lies between 0, where what a decode
reads is read while the prompts are computed, and τ, where it takes its own time at the limit's own power. So E is between (limit − p0)·τ
and twice that, and three times that where m is 2. `STRETCH` stands in the middle, with a deviation that reaches over all of it.

A board may hold its limit over longer than a step. Then steps are lengthened by what ran around them, and only work that comes and goes slowly is
told of rightly. So what seems to take little is not told of more surely than by the same share of what it was expected to take.
"""

import numpy as np

from etameter.costs import COMPUTING, PRIOR_DEVIATION, READING, Costs
from etameter.evidence import Steps
from etameter.least_squares import ridge_nnls
from etameter.work import TERMS, Array, BoolArray

TIME_STEPS = 2000
"""Coefficients of time look back over so many steps."""
TIME_NOISE = 0.1
"""Relative noise of a step's time, for weights."""
STRETCH, STRETCH_DEVIATION = 1.5, 0.4
"""E / ((limit − p0)·τ), and its deviation relative to E, or to what was expected where that is more."""
LEAST_LIMITED = 100
"""So many steps at the limit tell what lengthens them."""
FAR = 4.0
"""A step whose time is off by so many deviations was told of too late, or waited for the host."""
_COMPUTED = np.array(
    [
        [0, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 0],
    ],
    dtype=np.float64,
).T
"""TERMS × what is fitted of computing: a decode token is computed as a prefill token is."""
_READ = np.eye(len(TERMS))[:, [1, 4, 5, 7, 8]]
"""The same for reading: a prefill reads nothing that the step doesn't."""
DECODED = (4, 5)
"""The terms of energy that are told of at the limit: what a decode token takes beyond a prefill token, and what it attends."""
_LIMITED = np.column_stack([_COMPUTED, np.eye(len(TERMS))[:, 4]])
"""What lengthens a step at the limit: a decode token may do more than a prefill token."""
_OF_DECODED = [int(np.flatnonzero(_LIMITED[term])[-1]) for term in DECODED]


def coefficients_of_time(steps: Steps, costs: Costs, prior: Costs, roofline: Costs) -> tuple[Array, Array]:
    """2 × TERMS: coefficients of reading and computing, each from the steps that it holds up longer, and the covariance of the latter.

    It is learned from steps that began as the one before them ended, where most do: the span of any other holds the time that the host takes
    to reach an idle board. `costs` are those in use.
    """
    features = steps.features[-TIME_STEPS:]
    follows = steps.follows[-TIME_STEPS:]
    if 2 * np.count_nonzero(follows) >= len(follows):
        features = features[follows]
    seconds = features[:, 0]
    time_s = costs.time_s.copy()
    for _ in range(3):
        expected_s = features @ time_s.T
        # A step whose predecessor was told late seems short: it weighs no more than others of its kind.
        weights = 1.0 / (TIME_NOISE * np.maximum(np.maximum(seconds, expected_s.max(axis=1)), 1e-6))
        computing = expected_s[:, COMPUTING] > expected_s[:, READING]
        for row, which, terms in ((READING, ~computing, _READ), (COMPUTING, computing, _COMPUTED)):
            mean = terms.sum(axis=0)
            guess = prior.time_s[row] @ terms / mean
            # what is computed may yet wait for what is read, and the other way round
            size = np.maximum(guess, roofline.time_s.max(axis=0) @ terms / mean)
            solution, covariance = ridge_nnls(
                (features[which] @ terms) * weights[which, None],
                seconds[which] * weights[which],
                guess,
                np.diag((PRIOR_DEVIATION * np.maximum(size, 1e-12)) ** 2),
            )
            time_s[row] = terms @ solution
    return time_s, _COMPUTED @ covariance @ _COMPUTED.T


def told_at_limit(
    steps: Steps, capped: BoolArray, costs: Costs, roofline: Costs, expected_j: Array
) -> tuple[Array, Array] | None:
    """Joules of `DECODED` terms and their standard deviations, from how long steps at the power limit (`capped`) take.

    `expected_j` is what these terms were expected to take. None where there are too few such steps.
    """
    limited = steps.features[-TIME_STEPS:][capped[-TIME_STEPS:]]
    if len(limited) < LEAST_LIMITED:
        return None
    guess = np.append(roofline.time_s[COMPUTING] @ _COMPUTED / _COMPUTED.sum(axis=0), 0.0)
    size = roofline.time_s.max(axis=0) @ _LIMITED / _LIMITED.sum(axis=0)
    deviation = 2 * np.maximum(size, 1e-12)
    seconds, design = limited[:, 0], limited @ _LIMITED
    noise_s, near = TIME_NOISE * seconds, np.ones(len(seconds), dtype=np.bool_)
    for _ in range(3):
        weights = near / noise_s
        stretch_s, covariance = ridge_nnls(design * weights[:, None], seconds * weights, guess, np.diag(deviation**2))
        off_s = np.abs(seconds - design @ stretch_s)
        spread_s = max(1.4826 * float(np.median(off_s)), 1e-6)
        noise_s, near = np.full(len(seconds), spread_s), off_s < FAR * spread_s
    joules_per_s = STRETCH * max(costs.power_limit_w - float(costs.energy[0]), 0.0)
    told_j = joules_per_s * stretch_s[_OF_DECODED]
    error_j = joules_per_s * np.sqrt(np.diag(covariance))[_OF_DECODED]
    return told_j, np.hypot(STRETCH_DEVIATION * np.maximum(told_j, expected_j), error_j)
