"""Finds the weights that name slack, from labelled answers.

A multinomial logistic regression over the features of `features`, with a ridge. Spans weigh by the square root of their tokens, answers of real
models twice as much as imitated ones. From predictions for answers that were left out (one real model at a time, and a fifth of the others
at a time) come the calibration, and for each category the least probability from which on it is named: where precision is GOAL or more over all,
over the real models and over the imitated answers, and not below WORST for any one model. A category that is sure too seldom is not named; its
spans are called slack without a category where slack itself is sure.

Few answers make no model. So whoever has some of their own starts from weights that are there: the ridge then pulls towards these instead of
nought, and what the answers are too few to tell stays as it was.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fast import CLASSES, Model
from .features import NAMES
from .labelled import Answer
from .labels import Label

GOAL = 0.87  # asked is .85; the rest is for models that differ more than these four do
RIDGE = 3.0
START_RIDGE = 30.0
"""Towards weights that are there. Of 3, 10, 30 and 100 it gave the best likelihood on a model left out, of which 5 to 20 answers were learnt."""
ROUNDS = 400
LEAST_NAMED = 15  # spans; a category that is seldom sure is not named at all
LEAST_JUDGED = 10
FLOOR = 0.6
UNTOLD_GOAL = 0.86  # the same, for slack whose category is not sure
NEVER_NAMED: frozenset[Label] = frozenset({"D"})  # thresholds that others suggest gave .70 on the model left out
WORST = 0.80  # of any one model
UNSEEN_WRONG = 1.0  # spans that count as named wrongly besides those seen, so that few spans don't make a sure category
NEVER = 1.01
FEW = 30
"""With fewer spans of it, nothing of a category is learnt but what weights say."""
PUBLIC_WEIGHT, IMITATED_WEIGHT = 1.5, 0.75

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Table:
    """Spans of many answers, one below the other, of the kinds that are classified."""

    features: Floats
    classes: NDArray[np.int64]
    tokens: Floats
    public: NDArray[np.bool_]
    answer: NDArray[np.int64]  # which answer the span is of
    group: NDArray[np.int64]  # which model or style


def table(answers: Sequence[Answer]) -> Table:
    kept = [each.known & (each.tokens > 0) for each in answers]
    groups = sorted({each.group for each in answers})
    return Table(
        np.concatenate([each.features[keep] for each, keep in zip(answers, kept, strict=True)]),
        np.concatenate([each.classes[keep] for each, keep in zip(answers, kept, strict=True)]),
        np.concatenate([each.tokens[keep] for each, keep in zip(answers, kept, strict=True)]),
        np.concatenate([np.full(int(keep.sum()), each.public) for each, keep in zip(answers, kept, strict=True)]),
        np.concatenate([np.full(int(keep.sum()), number) for number, keep in enumerate(kept)]),
        np.concatenate(
            [np.full(int(keep.sum()), groups.index(each.group)) for each, keep in zip(answers, kept, strict=True)]
        ),
    )


def fit(rows: Table, chosen: NDArray[np.bool_], start: Floats | None = None) -> Floats:
    """Weights, a row a feature and at last the intercept; near those of `start`, if it is given."""
    if start is not None and not chosen.any():
        return start
    features = np.hstack([rows.features[chosen], np.ones((int(chosen.sum()), 1))])
    weight = np.sqrt(np.clip(rows.tokens[chosen], 1, 40)) * np.where(
        rows.public[chosen], PUBLIC_WEIGHT, IMITATED_WEIGHT
    )
    weight /= weight.mean()
    ridge = RIDGE if start is None else START_RIDGE
    return regress(features, np.eye(len(CLASSES))[rows.classes[chosen]], weight, ridge, start)


def regress(
    features: Floats, wanted: Floats, weight: Floats, ridge: float = RIDGE, start: Floats | None = None
) -> Floats:
    """Full gradients with Adam's steps: the same weights on every run. The ridge pulls towards `start`, by default nought."""
    towards = np.zeros((features.shape[1], wanted.shape[1])) if start is None else start
    weights = towards.copy()
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, ROUNDS + 1):
        score = features @ weights
        score -= score.max(axis=1, keepdims=True)
        found = np.exp(score)
        found /= found.sum(axis=1, keepdims=True)
        pull = ridge * (weights - towards)
        if start is None:
            pull[-1] = 0.0
        gradient = (features.T @ ((found - wanted) * weight[:, None]) + pull) / len(features)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        rate = 0.05 if step <= 0.6 * ROUNDS else 0.01
        weights -= rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-9)
    return weights


def left_out(answers: Sequence[Answer], rows: Table, start: Floats | None = None) -> Floats:
    """Probabilities of every span, by weights that never saw its model (or, where it is imitated, its prompt)."""
    found = np.zeros((len(rows.tokens), len(CLASSES)))
    for _, members in folds(answers):
        own = members[rows.answer]
        model = Model(fit(rows, ~own, start), {}, NEVER, 1.0, 0.0)
        found[own] = model.probabilities(rows.features[own])
    return found


def thresholds(rows: Table, found: Floats, chosen: NDArray[np.bool_]) -> dict[Label, float]:
    best = 1 + found[:, 1:].argmax(axis=1)
    return {
        label: NEVER if label in NEVER_NAMED else _threshold(rows, found, chosen & (best == place), place)
        for place, label in enumerate(CLASSES)
        if place
    }


def _threshold(rows: Table, found: Floats, candidates: NDArray[np.bool_], place: int) -> float:
    for least in np.arange(FLOOR, 0.96, 0.02):
        named = candidates & (found[:, place] >= least)
        if named.sum() < LEAST_NAMED:
            break
        if all(_precision(rows, part, place) >= GOAL for part in _halves(rows, named)) and all(
            _precision(rows, part, place, 0.0) >= WORST for part in _models(rows, named)
        ):
            return round(float(least), 2)
    return NEVER


def slack_threshold(rows: Table, found: Floats, chosen: NDArray[np.bool_], least_of: dict[Label, float]) -> float:
    """From which probability of slack on a span is called slack though its category is not named."""
    best = 1 + found[:, 1:].argmax(axis=1)
    least_named = np.array([NEVER, *(least_of[label] for label in CLASSES[1:])])
    untold = chosen & (found[np.arange(len(best)), best] < least_named[best])
    for least in np.arange(0.50, 0.96, 0.02):
        named = untold & (1.0 - found[:, 0] >= least)
        if all(_share_of_slack(rows, named & part) >= UNTOLD_GOAL for part in (rows.public, ~rows.public)):
            return round(float(least), 2)
    return NEVER


def _share_of_slack(rows: Table, named: NDArray[np.bool_]) -> float:
    total = float(rows.tokens[named].sum())
    return float(rows.tokens[named & (rows.classes > 0)].sum()) / total if total else 1.0


def _halves(rows: Table, named: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """All, the real and the imitated: those that are many enough to judge by."""
    return [named, *(part for part in (named & rows.public, named & ~rows.public) if part.sum() >= LEAST_JUDGED)]


def _models(rows: Table, named: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    parts = [named & (rows.group == group) for group in np.unique(rows.group[rows.public])]
    return [part for part in parts if part.sum() >= 3]


def _precision(rows: Table, named: NDArray[np.bool_], place: int, unseen_wrong: float = UNSEEN_WRONG) -> float:
    if not named.any():
        return 0.0
    tokens = rows.tokens[named]
    return float(tokens[rows.classes[named] == place].sum() / (tokens.sum() + unseen_wrong * tokens.mean()))


def calibration(rows: Table, found: Floats, chosen: NDArray[np.bool_]) -> tuple[float, float]:
    """Scale and shift of the log odds, by Newton's method on the tokens' likelihood."""
    slack = np.clip(1.0 - found[chosen, 0], 1e-6, 1 - 1e-6)
    odds = np.column_stack([np.log(slack / (1 - slack)), np.ones(int(chosen.sum()))])
    wanted, weight = (rows.classes[chosen] > 0).astype(float), rows.tokens[chosen]
    at = np.array([1.0, 0.0])
    for _ in range(25):
        said = 1.0 / (1.0 + np.exp(-odds @ at))
        curve = odds.T @ (odds * (weight * said * (1 - said))[:, None]) + 1e-6 * np.eye(2)
        at = at + np.linalg.solve(curve, odds.T @ (weight * (wanted - said)))
    return float(at[0]), float(at[1])


def train(answers: Sequence[Answer], start: Model | None = None) -> tuple[Model, Table, Floats]:
    """The model, the spans that it was made from, and their probabilities by models that never saw their group.

    What there are too few spans to tell is as in `start`, where that is given.
    """
    rows = table(answers)
    weights = None if start is None else start.weights
    found = left_out(answers, rows, weights)
    every = np.ones(len(rows.tokens), dtype=bool)
    scale, shift = calibration(rows, found, every)
    least = thresholds(rows, found, every)
    untold = slack_threshold(rows, found, every, least)
    if start is not None:
        best = 1 + found[:, 1:].argmax(axis=1)
        few = {label for place, label in enumerate(CLASSES) if place and (best == place).sum() < FEW}
        least = {label: start.thresholds[label] if label in few else least[label] for label in least}
        if (rows.classes > 0).sum() < FEW:
            untold, scale, shift = start.slack_threshold, start.scale, start.shift
    return Model(fit(rows, every, weights), least, untold, scale, shift), rows, found


def scores(model: Model, rows: Table, found: Floats) -> dict[str, float | int | None]:
    """Of slack named by the thresholds of `model` from these probabilities: precision, recall and F1 by token, and how many spans it names."""
    named = np.array([model.name(probabilities) is not None for probabilities in found], dtype=bool)
    slack = rows.classes > 0
    right, said, there = (float(rows.tokens[each].sum()) for each in (named & slack, named, slack))
    return {
        "spans_named": int(named.sum()),
        "precision": right / said if said else None,
        "recall": right / there if there else None,
        "f1": 2 * right / (said + there) if said + there else None,
    }


def as_json(model: Model, made_by: str, trained_on: Mapping[str, Any]) -> str:
    """As `fast.parse` reads it."""
    data = {
        "made_by": made_by,
        "trained_on": dict(trained_on),
        "goal_precision": GOAL,
        "classes": list(CLASSES),
        "thresholds": model.thresholds,
        "slack_threshold": model.slack_threshold,
        "scale": round(model.scale, 4),
        "shift": round(model.shift, 4),
        "features": list(NAMES),
        "weights": [[round(value, 4) for value in row] for row in model.weights.tolist()],
    }
    return json.dumps(data) + "\n"


def folds(answers: Sequence[Answer], parts: int = 5) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Name and members of each fold: a real model, or a fifth of the other answers, which mix the styles. A single model is parted, too."""
    models = list(dict.fromkeys(each.group for each in answers if each.public))
    if len(models) < 2:
        models = []
    for model in models:
        yield model, np.array([each.group == model for each in answers])
    mixed = np.array([each.group not in models for each in answers])
    number = np.cumsum(mixed) - 1
    for part in range(parts):
        yield f"prompts {part + 1}/{parts}", mixed & ((number // parts) % parts == part)
