"""By how much the last nights of a series lie off the nights before them. Arrays in, arrays out.

For each spread between nights that is possible (`noise`), levels before and after are found by generalised least squares, and the spread is weighed by its restricted likelihood
(Patterson and Thompson 1971) times what the noise model expects of it: what the shift itself adds to the scatter does not make it less credible. The size and the interval are
of that mixture. How improbable such a shift is without a change counts in addition that some of the last nights may be of the rare kind that is far off.

Of a change nobody knows how many nights ago it came: `RECENT` counts of last nights are tried, and the probability is multiplied by how many that are (Bonferroni).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .noise import SHIPPED, Noise

Array = NDArray[np.float64]

WINDOW: Final = 28
"""Nights before the change that are compared with, at most: four weeks."""
RECENT: Final = (1, 2, 3, 5, 7)

_erfc = np.vectorize(math.erfc, otypes=[float])


@dataclass(frozen=True, slots=True)
class Shift:
    """All on the natural logarithm's scale, and of the shape that is left of the values when their nights are taken away."""

    recent: NDArray[np.intp]
    """Last nights that the shift is over: of those counts that were tried, where it is least probable without a change."""
    log: Array
    p: Array
    """Two-sided: how probable so large a shift is where nothing has changed, at most."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """A shift under each of the spreads on the grid: arrays (grid, …)."""

    log: Array
    deviation: Array
    """Of the shift."""
    weights: Array
    """Of the spreads; they sum to 1."""
    spreads: Array
    """(grid,)"""


def shift(values: Array, errors: Array, noise: Noise = SHIPPED) -> Shift:
    """The last nights against those before them.

    Args:
        values: (…, nights) logarithms of figures in the order of nights, two nights or more.
        errors: (…, nights) standard errors of the same, or (nights,) where all have the same.
        noise: how nights scatter.
    """
    nights = values.shape[-1]
    counts = [count for count in RECENT if count < nights]
    fits = [_fit(*_latest(values, errors, count), count, noise) for count in counts]
    chances = np.stack([_chance(fit, count, noise) for fit, count in zip(fits, counts, strict=True)])
    best = chances.argmin(axis=0)
    return Shift(
        recent=np.asarray(counts, np.intp)[best],
        log=_chosen([(fit.weights * fit.log).sum(axis=0) for fit in fits], best),
        p=np.minimum(1.0, len(counts) * chances.min(axis=0)),
    )


def interval(values: Array, errors: Array, recent: int, noise: Noise = SHIPPED) -> tuple[Array, Array]:
    """95 % interval of the shift of the last `recent` nights, on the natural logarithm's scale. As `shift` otherwise."""
    return _ends(_fit(*_latest(values, errors, recent), recent, noise))


def _latest(values: Array, errors: Array, recent: int) -> tuple[Array, Array]:
    kept = WINDOW + recent
    return values[..., -kept:], np.broadcast_to(errors, values.shape)[..., -kept:]


def _fit(values: Array, errors: Array, recent: int, noise: Noise) -> _Fit:
    """With the resemblance R = L·Lᵀ and L⁻¹·diag(errors²)·L⁻ᵀ = U·Δ·Uᵀ the covariance s²·R + diag(errors²) is s² + Δ, and diagonal, where one looks through Uᵀ·L⁻¹: for every spread s at once."""
    nights = values.shape[-1]
    design = np.stack([np.ones(nights), np.arange(nights) >= nights - recent], axis=1).astype(np.float64)
    spreads, prior = noise.grid()
    # An outlier among the nights before widens their scatter by this much on the mean; the likelihood isn't told which night it was.
    common = 1 + noise.outliers * (noise.outlier_factor**2 - 1)
    inverse = np.linalg.inv(np.linalg.cholesky(noise.resemblance(nights)))
    own, turn = np.linalg.eigh((inverse * errors[..., None, :] ** 2) @ inverse.T)
    through = np.swapaxes(turn, -1, -2) @ inverse
    columns, seen = through @ design, (through @ values[..., None])[..., 0]
    precision = 1 / (common * _beside(spreads, values) ** 2 + np.maximum(own, 0.0))
    information = np.einsum("...ia,g...i,...ib->g...ab", columns, precision, columns, optimize=True)
    covariance = np.linalg.inv(information)
    levels = np.einsum("g...ab,...ib,g...i,...i->g...a", covariance, columns, precision, seen, optimize=True)
    off = seen - np.einsum("...ia,g...a->g...i", columns, levels)
    likelihood = -0.5 * (
        np.linalg.slogdet(information).logabsdet - np.log(precision).sum(axis=-1) + (precision * off**2).sum(axis=-1)
    )
    weights = likelihood + _beside(prior, values[..., 0])
    weights = np.exp(weights - weights.max(axis=0))
    return _Fit(
        log=levels[..., 1],
        deviation=np.sqrt(covariance[..., 1, 1]),
        weights=weights / weights.sum(axis=0),
        spreads=spreads,
    )


def _chance(fit: _Fit, recent: int, noise: Noise) -> Array:
    """Two-sided, where any of the last nights may be of the rare kind."""
    total = np.zeros(fit.log.shape[1:])
    for far in range(recent + 1):
        share = math.comb(recent, far) * noise.outliers**far * (1 - noise.outliers) ** (recent - far)
        more = far * (noise.outlier_factor**2 - 1) * (_beside(fit.spreads, total) / recent) ** 2
        deviation = np.sqrt(fit.deviation**2 + more)
        total += share * (fit.weights * 2 * _below(-np.abs(fit.log) / deviation)).sum(axis=0)
    return total


def _ends(fit: _Fit) -> tuple[Array, Array]:
    """Of the mixture over spreads, by bisection."""
    ends = []
    for share in (0.025, 0.975):
        below = (fit.log - 40 * fit.deviation).min(axis=0)
        above = (fit.log + 40 * fit.deviation).max(axis=0)
        for _ in range(60):
            middle = (below + above) / 2
            less = (fit.weights * _below((middle - fit.log) / fit.deviation)).sum(axis=0) < share
            below, above = np.where(less, middle, below), np.where(less, above, middle)
        ends.append((below + above) / 2)
    return ends[0], ends[1]


def _below(x: Array) -> Array:
    """The normal distribution's share below x, exact in its lower tail too."""
    return np.asarray(_erfc(-x / math.sqrt(2)) / 2, np.float64)


def _beside(per_spread: Array, each: Array) -> Array:
    """(grid, 1, …) with as many axes after the first as each has."""
    return per_spread.reshape(-1, *[1] * each.ndim)


def _chosen(each: Sequence[Array], best: NDArray[np.intp]) -> Array:
    return np.asarray(np.take_along_axis(np.stack(each), best[None], axis=0)[0], np.float64)
