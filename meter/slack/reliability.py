"""How far an η is to be trusted: by what audits of the same arm found, and by how few answers it rests on.

Of pairs of what a method says and what an audit found, within one arm: with several arms together, a method that merely knows the arms apart
would look good. The agreement is the squared correlation ρ². By the decomposition of Goodhart's law, of a gain in what the method says the
share ρ² is a gain in what was found, under the assumption that the method's noise is independent of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .task import half_width

LEAST_PAIRS: Final = 20
"""With fewer nothing is said: the correlation of 20 unrelated pairs is under ½ in 39 of 40 cases, its square far lower."""
TRUSTED: Final = 0.5
"""From this agreement on η is shown without a warning: what it says then owes at least half of its variance to what was found."""

Pair = tuple[float, float]
"""What a method says of a response, and what an audit found; from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Trust:
    """How a method compares with audits. What can't be told is None."""

    pairs: int
    agreement: float | None
    """ρ²; 0 where what is said rises as what was found falls. None where either never varies."""
    bias: float | None
    """Mean of what is said less what was found."""
    slope: float | None
    """Of what was found over what is said, by least squares."""
    agreement_low: float | None = None
    agreement_high: float | None = None
    """The 95 % interval of ρ² by which pairs were drawn: see `interval`."""

    @property
    def reliable(self) -> bool | None:
        """None with too few pairs. Where one of the two never varies, nothing shows that the method tells answers apart."""
        if self.pairs < LEAST_PAIRS:
            return None
        return self.agreement is not None and self.agreement >= TRUSTED


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far the η of an arm is to be trusted, as it stands beside that η."""

    agreement: float | None = None
    interval: tuple[float, float] | None = None
    """95 % of the agreement; there where the agreement is."""
    reliable: bool | None = None
    """Whether η may be shown without a warning; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Mean:
    """η of an arm over sampled answers, and the half-width of its 95 % interval by their sampling; None with fewer than ten."""

    eta: float
    half_width: float | None
    answers: int


def trust(pairs: Sequence[Pair]) -> Trust:
    """As `compare`; under `LEAST_PAIRS` nothing is told but their number."""
    return compare(pairs) if len(pairs) >= LEAST_PAIRS else Trust(len(pairs), None, None, None)


def compare(pairs: Sequence[Pair]) -> Trust:
    """Compare what was said with what was found, of four pairs or more."""
    count = len(pairs)
    said, found = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    mean_said, mean_found = math.fsum(said) / count, math.fsum(found) / count
    var_said = math.fsum((each - mean_said) ** 2 for each in said)
    var_found = math.fsum((each - mean_found) ** 2 for each in found)
    together = math.fsum((one - mean_said) * (other - mean_found) for one, other in pairs)
    vary = var_said > _NOTHING and var_found > _NOTHING
    low, high = interval([(one - mean_said, other - mean_found) for one, other in pairs]) if vary else (None, None)
    return Trust(
        count,
        agreement=min(max(together, 0.0) ** 2 / (var_said * var_found), 1.0) if vary else None,
        bias=mean_said - mean_found,
        slope=together / var_said if var_said > _NOTHING else None,
        agreement_low=low,
        agreement_high=high,
    )


def interval(centred: Sequence[Pair]) -> tuple[float, float]:
    """95 % of ρ², 0 where ρ is negative, of pairs less their means, both of which vary.

    Fisher's z = artanh r. Its standard error is 1/√(n − 3) for pairs from a normal distribution. Shares are from none: many are at 1, and answers that
    are far from the others weigh more. So the error is taken by each pair's influence on r, x·y − r·(x² + y²)/2 of what is standardised, and the larger of both counts.
    """
    count = len(centred)
    spread = [math.sqrt(math.fsum(each * each for each in side) / count) for side in zip(*centred, strict=True)]
    pairs = [(one / spread[0], other / spread[1]) for one, other in centred]
    r = min(max(math.fsum(one * other for one, other in pairs) / count, -1.0), 1.0)
    rest = 1.0 - r * r
    if rest < _NOTHING:
        return (1.0, 1.0) if r > 0 else (0.0, 0.0)
    influence = math.fsum((one * other - r * (one * one + other * other) / 2) ** 2 for one, other in pairs) / count
    error = max(1.0, math.sqrt(influence) / rest) / math.sqrt(count - 3)
    low, high = (math.tanh(math.atanh(r) + sign * _Z95 * error) for sign in (-1, 1))
    return max(low, 0.0) ** 2, max(high, 0.0) ** 2


_NOTHING: Final = 1e-12
_Z95: Final = 1.959964


def both(one: bool | None, other: bool | None) -> bool | None:  # noqa: FBT001  # verdicts, no switches
    """Whether two verdicts allow trust: one that forbids it is enough, and one that is missing leaves it open."""
    if one is False or other is False:
        return False
    return True if one and other else None


def mean(answers: Sequence[tuple[float, float]]) -> Mean | None:
    """Of η and output tokens of each answer. None without tokens."""
    parts = [(eta * tokens, tokens) for eta, tokens in answers]
    total = math.fsum(tokens for _, tokens in parts)
    if total <= 0:
        return None
    return Mean(math.fsum(required for required, _ in parts) / total, half_width(parts), len(parts))
