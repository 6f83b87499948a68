"""Names the slack that shows by its wording, its place and by what was said before; calls nothing else slack.

What it does not name is not thereby required: it is *not shown to be slack*. So the share it leaves is an upper bound on
lenient η, and it says nothing of strict η. It abstains from code, tables, data, formulas, tool calls and reasoning, and from
text that is not English. The weights are those of a logistic regression, in `fast.json`, as `training` finds them.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from etameter.errors import EtameterError

from .features import INDEX, KINDS_KNOWN, NAMES, Reader, Seen
from .labels import UNTOLD, Label, Untold
from .segment import Kind, Segmenter, Span

CLASSES: Final[tuple[Label, ...]] = ("R", "P", "S", "H", "M", "D", "C")
"""What the regression tells apart. `R` stands for all that is not lenient slack."""

# By the definition of the label, not by training: a bare rule is meta, a template's mark is junk, a sentence said word for
# word before is repetition unless a text was asked for, which may have a refrain.
_CERTAIN: Final = 0.97
_UNDECIDED: Final = 0.49
_TO_THE_USER: Final = frozenset({"has:questions", "has:would_like", "starts:offer", "has:version"})


@dataclass(frozen=True, slots=True)
class Labelled:
    """A span with its label, or None: where `p_slack` is given, not shown to be slack; where it is None too, not classified."""

    start: int
    end: int
    kind: Kind
    label: Label | Untold | None
    p_slack: float | None


@dataclass(frozen=True, slots=True)
class Model:
    weights: NDArray[np.float64]  # a row a feature, a column a class; the last row is the intercept
    thresholds: dict[Label, float]  # from which probability on a category is named; above 1: never
    slack_threshold: float  # from which probability of slack on it is named without its category
    scale: float  # log odds of slack, calibrated: scale · log odds + shift
    shift: float

    def probabilities(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """A row a span, a column a class."""
        score = rows @ self.weights[:-1] + self.weights[-1]
        score -= score.max(axis=1, keepdims=True)
        raised = np.exp(score)
        probabilities: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
        return probabilities

    def calibrated(self, slack: float) -> float:
        odds = math.log(max(slack, 1e-6) / max(1.0 - slack, 1e-6))
        return 1.0 / (1.0 + math.exp(-(self.scale * odds + self.shift)))

    def name(self, probabilities: NDArray[np.float64]) -> Label | Untold | None:
        best = 1 + int(np.argmax(probabilities[1:]))
        label = CLASSES[best]
        if probabilities[best] >= self.thresholds[label]:
            return label
        return UNTOLD if 1.0 - probabilities[0] >= self.slack_threshold else None


def parse(text: str) -> Model:
    """Of the data file's text. Raises EtameterError where it was made for other features than these."""
    data = json.loads(text)
    if data["features"] != list(NAMES) or data["classes"] != list(CLASSES):
        raise EtameterError("these weights were made for other features", "make them anew with etameter eta train")
    return Model(np.array(data["weights"]), data["thresholds"], data["slack_threshold"], data["scale"], data["shift"])


def load(file: Path) -> Model:
    """Weights that `etameter eta train` made. Raises EtameterError where the file holds none."""
    remedy = "name a file that etameter eta train made"
    try:
        return parse(file.read_text())
    except OSError as error:
        raise EtameterError(f"the weights {file} can't be read ({error.strerror})", remedy) from None
    except (ValueError, KeyError, TypeError) as error:
        raise EtameterError(f"{file} holds no weights ({type(error).__name__})", remedy) from None


@cache
def shipped() -> Model:
    return parse(resources.files("etameter.slack").joinpath("fast.json").read_text())


def rows_of(seen: list[Seen]) -> NDArray[np.float64]:
    rows = np.zeros((len(seen), len(NAMES)))
    for row, each in zip(rows, seen, strict=True):
        row[[INDEX[name] for name in each.on if name in INDEX]] = 1.0
    return rows


def label_all(seen: list[Seen], model: Model) -> tuple[Labelled, ...]:
    if not seen:
        return ()
    found = model.probabilities(rows_of(seen))
    return tuple(_labelled(each, probabilities, model) for each, probabilities in zip(seen, found, strict=True))


def _labelled(seen: Seen, probabilities: NDArray[np.float64], model: Model) -> Labelled:
    span = seen.span
    if (certain := _certain(seen)) is not None:
        return Labelled(span.start, span.end, span.kind, certain, _CERTAIN)
    if span.kind not in KINDS_KNOWN or not seen.english:
        return Labelled(span.start, span.end, span.kind, None, None)
    label, slack = model.name(probabilities), model.calibrated(1.0 - float(probabilities[0]))
    if label == "C" and "prompt:creative" in seen.on and seen.on.isdisjoint(_TO_THE_USER):
        label, slack = None, min(slack, _UNDECIDED)  # a letter's farewell is part of the letter
    return Labelled(span.start, span.end, span.kind, label, slack)


def _certain(seen: Seen) -> Label | None:
    if seen.span.kind == "rule":
        return "M"
    if seen.span.kind not in KINDS_KNOWN:
        return None
    if seen.leaked:
        return "J"
    if "said:verbatim" in seen.on and seen.words >= 6 and "prompt:creative" not in seen.on:
        return "D"
    return None


class Stream:
    """Labels a response while it is written."""

    def __init__(self, prompt: str, model: Model | None = None) -> None:
        self._model = model or shipped()
        self._segmenter = Segmenter()
        self._reader = Reader(prompt)
        self._text = ""  # from the first span that is not closed
        self._from = 0
        self._seen = 0

    def feed(self, chunk: str) -> tuple[Labelled, ...]:
        """Spans that closed, labelled by what is known so far: that the response ends after them is not, so take these as provisional."""
        self._text += chunk
        return self._read(self._segmenter.feed(chunk))

    def finish(self) -> tuple[Labelled, ...]:
        """All spans, as `classify` has them."""
        self._read(self._segmenter.finish())
        return label_all(self._reader.finish(), self._model)

    def _read(self, spans: list[Span]) -> tuple[Labelled, ...]:
        seen = [self._reader.read(self._text[span.start - self._from : span.end - self._from], span) for span in spans]
        if spans:
            self._text = self._text[spans[-1].end - self._from :]
            self._from = spans[-1].end
        return label_all(seen, self._model)


def classify(prompt: str, response: str, model: Model | None = None) -> tuple[Labelled, ...]:
    """Every span of the response, in order."""
    return label_all(look(prompt, response), model or shipped())


def look(prompt: str, response: str) -> list[Seen]:
    """What the features of a whole response are."""
    segmenter, reader = Segmenter(), Reader(prompt)
    for span in (*segmenter.feed(response), *segmenter.finish()):
        reader.read(response[span.start : span.end], span)
    return reader.finish()
