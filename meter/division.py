"""How the modelled energy of a step is divided among the requests in it: by their Shapley values.

What a set of requests would cost as a step of its own is what `Costs` says of their work and of the time that it takes. What an empty step
costs is paid alike; the rest by each request's mean addition over all orders in which the requests might have come. By Owen's formula
(Multilinear extensions of games, Management Science 18, 1972) that mean is an integral over q from 0 to 1 of the addition to a set that
holds each of the others with probability q. The largest prefills of a step are in that set or out of it, one by one; of the work of
everybody else, which is many small parts, the set holds the share q, and each is charged by the slope.
"""

import math
from dataclasses import dataclass

import numpy as np

from etameter.costs import COMPUTING, READING, Costs
from etameter.work import EXPERTS, OWN, Array, IntArray, Work, experts

LARGE = 3
"""So many prefills of a step are in or out one by one."""
OF_PREFILLS = (2, 3)
"""Terms of which only prefills have anything."""
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(4)
_SHARES, _SHARE_WEIGHTS = (_POINTS + 1) / 2, _WEIGHTS / 2
_SETS = np.array([[number >> large & 1 for large in range(LARGE)] for number in range(2**LARGE)], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Division:
    """Of R rows."""

    joules: Array
    """R: what the model charges the row; Σ over a step is near, not at, what it charges the step."""
    seconds: Array
    """R: the part of the step's time."""


def divide(work: Work, costs: Costs, features: Array) -> Division:
    """Divide each step; `features` are the `step_features` of `work`."""
    large, rest, place = _prefills(work, costs)
    step = work.row_step[large]
    steps, most = len(features), int(place.max(initial=-1)) + 1
    sets = _SETS[: 2**most, :most]
    loads = np.zeros((steps, most, OWN.stop - OWN.start))
    loads[step, place] = work.features[large, OWN]
    there = np.zeros((steps, most))
    there[step, place] = 1.0
    others = features[:, OWN] - loads.sum(axis=1)
    load = _SHARES[:, None, None] * others[:, None, None] + np.einsum("ek,skf->sef", sets, loads)[:, None]
    probability = _SHARES[:, None, None] * there[:, None, None]
    held = np.where(sets > 0, probability, 1 - probability)
    weight = _SHARE_WEIGHTS[:, None] * held.prod(axis=-1)  # S × shares × sets
    value, slopes = _value(load, costs, work.routed)
    slopes = np.einsum("sqe,vsqef->vfs", weight, slopes)
    shares = np.zeros((2, len(work.row_step)))
    for term in work.terms:
        rows = rest if term in OF_PREFILLS else slice(None)
        shares[:, rows] += work.features[rows, term] * slopes[:, term - OWN.start].take(work.row_step[rows], axis=1)
    for each in range(most):
        without = sets[:, each] == 0
        of_others = weight[:, :, without] / (
            1 - _SHARES[:, None]
        )  # the set's probability, whether this one is in it or out
        mine = place == each
        added = np.sum(of_others * (value[..., ~without] - value[..., without]), axis=(2, 3))
        shares[:, large[mine]] = added[:, step[mine]]
    shares += _empty(costs)[:, None] * work.row_weight
    return Division(*shares)


def _prefills(work: Work, costs: Costs) -> tuple[IntArray, IntArray, IntArray]:
    """Rows of the largest prefills of each step and of the others, and the places of the former in their steps."""
    rows = work.prefill_rows
    size_s = work.features[rows] @ costs.time_s[COMPUTING]
    rows = rows[np.lexsort((-size_s, work.row_step[rows]))]
    step = work.row_step[rows]
    place = np.arange(len(rows)) - np.searchsorted(step, step)
    kept = place < LARGE
    return rows[kept], rows[~kept], place[kept]


def _empty(costs: Costs) -> Array:
    """Joules and seconds of a step without work."""
    seconds = max(costs.time_s[READING, 1], costs.time_s[COMPUTING, 1])
    return np.array([min(costs.energy[1] + costs.energy[0] * seconds, costs.power_limit_w * seconds), seconds])


def _value(load: Array, costs: Costs, routed: float) -> tuple[Array, Array]:
    """Joules and seconds of steps with this load (… × OWN): 2 × …; and their slopes: 2 × … × OWN."""
    rates, own = costs.time_s[:, OWN], costs.energy[OWN]
    loads = load.reshape(-1, load.shape[-1]).T  # products with one matrix, not with one for each step
    both = [(of_time[OWN] @ loads).reshape(load.shape[:-1]) + of_time[1] for of_time in costs.time_s]
    joules = (own @ loads).reshape(load.shape[:-1]) + costs.energy[1]
    if routed:
        tokens = load[..., 0] + load[..., 2]
        woken = experts(tokens, routed)
        waking = -math.log1p(-routed) * (1 - woken)
        both = [each + woken * per_expert for each, per_expert in zip(both, costs.time_s[:, EXPERTS], strict=True)]
        joules = joules + woken * costs.energy[EXPERTS]
    computing = both[COMPUTING] > both[READING]
    value, slopes = np.empty((2, *computing.shape)), np.empty((2, *load.shape))
    seconds = np.maximum(both[READING], both[COMPUTING], out=value[1])
    seconds_slope = np.where(computing[..., None], rates[COMPUTING], rates[READING])
    joules_slope = own
    if routed:
        token = np.array([1.0, 0.0, 1.0, 0.0, 0.0, 0.0]) * waking[..., None]
        passing_s = np.where(computing, costs.time_s[COMPUTING, EXPERTS], costs.time_s[READING, EXPERTS])
        seconds_slope = seconds_slope + token * passing_s[..., None]
        joules_slope = joules_slope + token * costs.energy[EXPERTS]
    joules = np.add(joules, costs.energy[0] * seconds, out=value[0])
    slopes[0], slopes[1] = joules_slope + costs.energy[0] * seconds_slope, seconds_slope
    capped = joules > costs.power_limit_w * seconds
    if capped.any():
        joules[capped] = costs.power_limit_w * seconds[capped]
        slopes[0, capped] = costs.power_limit_w * slopes[1, capped]
    return value, slopes
