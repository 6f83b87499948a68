"""What was found in the texts of one response: η or a bound on it, and how its tokens and joules fall on categories."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from .deep import Judged, deep_eta
from .eta import Eta, fast_eta
from .fast import Labelled
from .labels import NAMES, OPTIONAL, REQUIRED, Label, Untold
from .tokens import Counted, Unit

NO_TEXT: Final = "no_text"
TOO_LONG: Final = "too_long"
BUSY: Final = "classifier_busy"
FAILED: Final = "classifier_failed"
CAUSES: Final = frozenset({NO_TEXT, TOO_LONG, BUSY, FAILED})
"""Why a response isn't classified although its texts were told."""
DEEP: Final = "deep"
"""The method of a judge, whose reading stands beside the one that is in the response."""
NEEDS: Final = (NAMES[REQUIRED], NAMES[OPTIONAL])
"""Categories that are no slack in every view. A method that only finds slack names none of them."""
MOST_PARTS: Final = 1024
"""Of a response with more, it isn't kept where in it each is."""

Classify = Callable[[str, str], Sequence[Labelled]]
"""The labelled spans of a response to a prompt."""
Count = Callable[[int, str, Sequence[Labelled]], Counted]
"""The tokens of the spans of a choice, which is given with its place."""


class Named(Protocol):
    """A span that has a label, or None."""

    @property
    def label(self) -> Label | Untold | None: ...


class Spread(Protocol):
    """How joules are spread over tokens: see `etameter.curves.Curve`."""

    def part(self, start: float, end: float) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of one choice: from `start` to `end` of its tokens as a whole, of which the response has the share `weight`."""

    category: str
    start: float
    end: float
    weight: float


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one response. Shares are of its output tokens. What a method doesn't tell is None, or not there."""

    receipt_id: str
    lenient_at_most: float
    interval: tuple[float, float]
    unclassified: float
    method: str
    reliability: float | None
    """Squared correlation with audits of the same traffic; None until there are any."""
    shares: Mapping[str, float]
    """Category → share. What isn't in it isn't shown to be of one."""
    unit: Unit = "characters"
    """By what the tokens of a span were told: see `slack.tokens`."""
    strict: float | None = None
    lenient: float | None = None
    spent: Mapping[str, tuple[float, float]] | None = None
    """Category → shares of the output's attributed and marginal joules, by when its tokens were generated; None where that isn't known."""
    parts: tuple[Part, ...] = field(default=(), compare=False)
    """Where the categories are; empty where that isn't kept, and once `spent` is known."""

    @property
    def slack(self) -> dict[str, float]:
        """Those categories that are slack."""
        return {category: share for category, share in self.shares.items() if category not in NEEDS}

    def spent_on(self, category: str) -> tuple[float, float]:
        """Shares of the output's attributed and marginal joules: as they were spent, else as tokens are."""
        share = self.shares[category]
        return (share, share) if self.spent is None else self.spent[category]

    def over(self, spread: Spread, output_tokens: float) -> "Reading":
        """With the joules divided by when they were spent. Choices (n > 1) are taken to have been written side by side."""
        if self.spent is not None or (self.shares and not self.parts):
            return self
        spent = dict.fromkeys(self.shares, (0.0, 0.0))
        for part in self.parts:
            joules, marginal = spread.part(part.start * output_tokens, part.end * output_tokens)
            before, marginal_before = spent[part.category]
            spent[part.category] = before + part.weight * joules, marginal_before + part.weight * marginal
        return replace(self, spent=spent, parts=())


def read(
    receipt_id: str, prompts: Sequence[str], responses: Sequence[str], classify: Classify, count: Count
) -> Reading | None:
    """Classify the choices of a response, which belong to the prompts in equal groups. None where they say nothing."""
    spans: list[Labelled] = []
    choices: list[tuple[Sequence[Named], Counted]] = []
    for place, response in enumerate(responses):
        prompt = prompts[place * len(prompts) // len(responses)] if prompts else ""
        found = classify(prompt, response)
        choices.append((found, count(place, response, found)))
        spans += found
    eta = fast_eta(spans, [tokens for _, counted in choices for tokens in counted.tokens])
    units = {counted.unit for named, counted in choices if named}
    return _reading(
        receipt_id, eta, _parts(choices), units.pop() if len(units) == 1 else "characters", keep=len(prompts) < 2
    )


def judged(receipt_id: str, spans: Sequence[Judged], counted: Counted) -> Reading | None:
    """What a judge says of a response of one choice. None where it could classify nothing."""
    eta = deep_eta(spans, counted.tokens)
    return _reading(receipt_id, eta, _parts([(spans, counted)]), counted.unit, keep=True)


def _reading(receipt_id: str, eta: Eta, parts: list[Part], unit: Unit, *, keep: bool) -> Reading | None:
    if eta.lenient is None or eta.interval is None:
        return None
    shares: dict[str, float] = {}
    for part in parts:
        shares[part.category] = shares.get(part.category, 0.0) + part.weight * (part.end - part.start)
    return Reading(
        receipt_id,
        eta.interval[1],
        eta.interval,
        eta.unclassified,
        eta.method,
        eta.reliability,
        shares,
        unit,
        eta.strict,
        None if eta.bound else eta.lenient,
        parts=tuple(parts) if keep and len(parts) <= MOST_PARTS else (),
    )


def _parts(choices: Sequence[tuple[Sequence[Named], Counted]]) -> list[Part]:
    """Of each choice its stretches of one category, in order."""
    total = sum(sum(counted.tokens) for _, counted in choices)
    parts: list[Part] = []
    for spans, counted in choices:
        length, at = sum(counted.tokens), 0.0
        first = len(parts)
        for span, tokens in zip(spans, counted.tokens, strict=True):
            start, at = at, at + tokens
            if span.label is None or not tokens:
                continue
            category = NAMES[span.label]
            if len(parts) > first and parts[-1].category == category and parts[-1].end == start / length:
                parts[-1] = replace(parts[-1], end=at / length)
            else:
                parts.append(Part(category, start / length, at / length, length / total))
    return parts
