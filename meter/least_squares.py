"""Least squares without negative coefficients, of columns of any size, however alike."""

import numpy as np

from etameter.work import Array, BoolArray

ALIKE = 1e-12
"""Columns that differ by less are told apart by nothing but rounding."""


def ridge_nnls(design: Array, target: Array, guess: Array, covariance: Array) -> tuple[Array, Array]:
    """Solve for the θ ≥ 0 that minimises |design·θ − target|² + |(θ − guess)/σ|²; with it, the covariance of θ.

    σ² is the diagonal of `covariance`. By normal equations whose diagonal is one, so that coefficients of very different size are equally
    well conditioned.
    """
    spread = np.sqrt(np.diag(covariance))
    scaled = design * spread
    gram = scaled.T @ scaled + np.eye(len(spread))
    size = np.sqrt(np.diag(gram))
    unit = spread / size
    gram = gram / np.outer(size, size) + ALIKE * np.eye(len(size))
    moment = (scaled.T @ target + guess / spread) / size
    return _non_negative(gram, moment) * unit, np.linalg.inv(gram) * np.outer(unit, unit)


def _non_negative(gram: Array, moment: Array) -> Array:
    """The x ≥ 0 that minimises x·gram·x/2 − moment·x: Lawson and Hanson's active set (Solving Least Squares Problems, 1974, ch. 23).

    Each round lessens the sum, so that no set comes twice; where rounding says otherwise the search ends.
    """
    solution: Array = np.linalg.solve(gram, moment).astype(np.float64)
    if np.min(solution) >= 0:
        return solution
    solution = np.zeros(len(moment))
    passive = np.zeros(len(moment), dtype=np.bool_)
    least, negligible = 0.0, ALIKE * float(np.abs(moment).max())
    while True:
        gradient = np.where(passive, -np.inf, moment - gram @ solution)
        entering = int(np.argmax(gradient))
        if gradient[entering] <= negligible:
            return solution
        passive[entering] = True
        better = _stepped(gram, moment, solution, passive)
        value = float(better @ gram @ better / 2 - moment @ better)
        if not value < least:
            return solution
        solution, least = better, value


def _stepped(gram: Array, moment: Array, solution: Array, passive: BoolArray) -> Array:
    """From `solution` to the least sum over the `passive` coefficients, of which those that would fall below zero leave."""
    while passive.any():
        trial = np.zeros(len(moment))
        trial[passive] = np.linalg.solve(gram[np.ix_(passive, passive)], moment[passive])
        below = passive & (trial <= 0)
        if not below.any():
            return trial
        parts = np.where(below, solution / np.where(below, np.maximum(solution - trial, 1e-300), 1.0), np.inf)
        first = int(np.argmin(parts))
        solution = np.maximum(solution + float(parts[first]) * (trial - solution), 0.0)
        passive[below & (solution <= 0)] = False
        passive[first] = False
        solution[~passive] = 0.0
    return np.zeros(len(moment))
