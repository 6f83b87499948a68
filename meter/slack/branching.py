"""|B_t|: how many continuations a model had to choose from, by the entropy H_t of its next token: exp(H_t) equally likely ones would have it.

A server tells the likeliest tokens only, some 20. The rest of the probability, m, is on tokens of which none is likelier than the least that is told, p. So

    known − ⌊m/p⌋·p·ln p − r·ln r   ≤   H_t   ≤   known − m·ln(m / (V − k))        r = m − ⌊m/p⌋·p

where known is −Σ pᵢ·ln pᵢ of those that are told: entropy is least where the rest is on as few tokens as it may, and most where it is spread over all
V − k others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from .task import t95

VOCABULARY: Final = 262_144
"""No fewer tokens than any model is likely to have; the upper bound grows by m for e times as many."""
LEAST_ANSWERS: Final = 10
LEAST_TOKENS: Final = 10
"""Of an answer in which places are compared."""
_TOLERANCE: Final = 1e-3
"""Probabilities are told as rounded logarithms, so that they may sum to a little more than 1."""


@dataclass(frozen=True, slots=True)
class Branching:
    """Bounds on H_t of one token, in nats."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


@dataclass(frozen=True, slots=True)
class Placed:
    """A token by its place in its answer."""

    place: int
    slack: bool
    branching: Branching


@dataclass(frozen=True, slots=True)
class Summary:
    """Of the tokens of a group: means of both bounds of H_t, and of exp(H_t) for their middle."""

    tokens: int
    low: float
    high: float
    median: float
    """Of exp(H_t)."""
    forced: float
    """Share of tokens for which exp(H_t) is under 1.1: all but one continuation are as good as excluded."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A mean difference in H_t, in nats, with the half-width of its 95 % interval; None with fewer than ten pairs."""

    difference: float
    half_width: float | None
    pairs: int


def branching(log_probabilities: Sequence[float], vocabulary: int = VOCABULARY) -> Branching:
    """From the natural logarithms of the probabilities of the likeliest tokens, all different.

    Raises:
        ValueError: they are no probabilities of different tokens: none, above 1, or more than 1 in all.
    """
    told = [math.exp(each) for each in log_probabilities]
    total = math.fsum(told)
    if not told or not all(math.isfinite(each) or each == -math.inf for each in log_probabilities):
        raise ValueError("no log-probabilities")
    if total > 1 + _TOLERANCE:
        raise ValueError(f"probabilities that sum to {total:.4f}")
    known = math.fsum(_term(each) for each in told)
    rest = max(1.0 - total, 0.0)
    least = min(told)
    others = vocabulary - len(told)
    if rest < 1e-9 or least <= 0.0 or others < 1:
        return Branching(known, known)
    whole = math.floor(rest / least)
    low = known + whole * _term(least) + _term(rest - whole * least)
    return Branching(low, max(known + rest * math.log(others / rest), low))


def summary(tokens: Sequence[Branching]) -> Summary | None:
    """None of no token."""
    if not tokens:
        return None
    counts = sorted(math.exp(each.middle) for each in tokens)
    return Summary(
        tokens=len(tokens),
        low=math.fsum(each.low for each in tokens) / len(tokens),
        high=math.fsum(each.high for each in tokens) / len(tokens),
        median=counts[len(counts) // 2],
        forced=sum(count < 1.1 for count in counts) / len(counts),
    )


def difference(one: Mapping[str, Sequence[Branching]], other: Mapping[str, Sequence[Branching]]) -> Gap | None:
    """Mean over answers (or prompts), by their names, of the difference in mean H_t between two groups of their tokens, one less other.

    An answer is one draw: its tokens resemble each other. Only those count that have tokens of both. None where there is none; no interval under ten.
    """
    pairs = [(one[name], other[name]) for name in one if one[name] and other.get(name)]
    return _gap([_mean(first) - _mean(second) for first, second in pairs])


def difference_at_like_place(answers: Iterable[Sequence[Placed]]) -> Gap | None:
    """As `difference`, of slack less the rest, where H_t also goes with ln(1 + place): least squares within each answer.

    What comes late in an answer is slack more often than what comes early, and a model may be less sure there whatever it says.
    """
    gaps = []
    for tokens in answers:
        slack = np.array([float(token.slack) for token in tokens])
        if len(tokens) < LEAST_TOKENS or slack.min() == slack.max():
            continue
        known = np.column_stack([np.ones(len(tokens)), slack, np.log1p([token.place for token in tokens])])
        fitted, *_ = np.linalg.lstsq(known, np.array([token.branching.middle for token in tokens]), rcond=None)
        gaps.append(float(fitted[1]))
    return _gap(gaps)


def _gap(gaps: Sequence[float]) -> Gap | None:
    if not gaps:
        return None
    mean = math.fsum(gaps) / len(gaps)
    if len(gaps) < LEAST_ANSWERS:
        return Gap(mean, None, len(gaps))
    spread = math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
    return Gap(mean, t95(len(gaps) - 1) * spread, len(gaps))


def _mean(tokens: Sequence[Branching]) -> float:
    return math.fsum(each.middle for each in tokens) / len(tokens)


def _term(probability: float) -> float:
    return -probability * math.log(probability) if probability > 0 else 0.0
