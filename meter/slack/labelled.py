"""Labelled answers: lines of {id, prompt, response, spans: [[start, end, label]], model or style, category}.

Figures are by token. There is no tokenizer of the models that wrote the answers, so a word or a mark of punctuation counts
as one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .fast import CLASSES, look, rows_of
from .features import KINDS_KNOWN, Seen
from .labels import LABELS, LENIENT_SLACK, Label

TOKEN = re.compile(r"\w+|[^\w\s]")
_SLACK = frozenset(LENIENT_SLACK)


@dataclass(frozen=True, slots=True)
class Answer:
    """A labelled response, cut into our spans. The arrays have an entry a token; the lists one a span."""

    id: str
    group: str  # the model, or the imitated style
    category: str
    prompt: str
    response: str
    seen: list[Seen]
    label: list[Label | None]  # of most of the span's tokens
    truth: NDArray[np.int64]  # label of each token, as a place in LABELS; -1: in no labelled span
    owner: NDArray[np.int64]  # our span of each token
    second: NDArray[np.int64] | None  # the second rater's label of each token

    @property
    def public(self) -> bool:
        return not self.group.startswith("style ")

    @property
    def tokens(self) -> NDArray[np.float64]:
        """Of each of our spans."""
        return np.bincount(self.owner, minlength=len(self.seen)).astype(np.float64)

    @property
    def features(self) -> NDArray[np.float64]:
        return rows_of(self.seen)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which spans are of a kind that is classified."""
        return np.array([each.span.kind in KINDS_KNOWN and each.english for each in self.seen], dtype=bool)

    @property
    def classes(self) -> NDArray[np.int64]:
        return np.array(
            [CLASSES.index(label) if label in CLASSES and label in _SLACK else 0 for label in self.label],
            dtype=np.int64,
        )


def answer(row: Mapping[str, object]) -> Answer:
    prompt, response = str(row["prompt"]), str(row["response"])
    seen = look(prompt, response)
    starts = np.array([match.start() for match in TOKEN.finditer(response)], dtype=np.int64)
    ends = np.array([each.span.end for each in seen], dtype=np.int64)
    truth = _of_characters(row["spans"], len(response))[starts]
    owner = np.searchsorted(ends, starts, side="right")
    labels: list[Label | None] = []
    for place in range(len(seen)):
        own = truth[(owner == place) & (truth >= 0)]
        labels.append(LABELS[int(np.bincount(own).argmax())] if len(own) else None)
    spans, second = row["spans"], row.get("second_rater")
    assert isinstance(spans, list)
    return Answer(
        str(row.get("id", "")),
        str(row["model"]) if "model" in row else f"style {row.get('style', 'unknown')}",
        str(row.get("category", "")),
        prompt,
        response,
        seen,
        labels,
        truth,
        owner,
        _second(spans, second, len(response), starts),
    )


def _second(
    spans: list[list[object]], labels: object, length: int, starts: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """The second rater labelled the same spans."""
    if not labels:
        return None
    assert isinstance(labels, str | list)
    return _of_characters([[*span[:2], label] for span, label in zip(spans, labels, strict=True)], length)[starts]


def _of_characters(spans: object, length: int) -> NDArray[np.int64]:
    of = np.full(length + 1, -1, dtype=np.int64)
    assert isinstance(spans, list)
    for start, end, label in spans:
        of[start:end] = LABELS.index(label)
    return of
