"""How far what is said of answers agrees with labels, by character; and η by response."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .labels import LABELS, LENIENT_SLACK, NAMES, UNTOLD, Label, Untold

_UNLABELLED: Final = -1
_BINS: Final = 10
_PLACES: Final[dict[str | None, int]] = {label: place for place, label in enumerate((*LABELS, UNTOLD))}
_SLACK: Final = [_PLACES[label] for label in LENIENT_SLACK]
_REQUIRED: Final = _PLACES["R"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of the characters `start` to `end`; None is nothing. Probabilities are from 0 to 1."""

    start: int
    end: int
    label: Label | Untold | None
    p_required: float | None
    p_slack: float | None


@dataclass(frozen=True, slots=True)
class Scored:
    """One response: its labels, -1 where there is none, and what is said of each character; nan is nothing."""

    truth: Ints
    label: Ints
    p_required: Floats
    p_slack: Floats
    eta_strict: float | None
    eta_lenient: float | None


def scored(
    truth: Sequence[Label | None], said: Sequence[Said], eta_strict: float | None, eta_lenient: float | None
) -> Scored:
    """`truth` has the label of each character."""
    label = np.full(len(truth), _UNLABELLED)
    required, slack = (np.full(len(truth), np.nan) for _ in range(2))
    for span in said:
        here = slice(span.start, span.end)
        label[here] = _PLACES.get(span.label, _UNLABELLED)
        required[here] = np.nan if span.p_required is None else span.p_required
        slack[here] = np.nan if span.p_slack is None else span.p_slack
    labels = np.array([_PLACES.get(each, _UNLABELLED) for each in truth], dtype=np.int64)
    return Scored(labels, label, required, slack, eta_strict, eta_lenient)


def agreement(responses: Sequence[Scored]) -> dict[str, Any]:
    """Precision, recall, F1 and Matthews' correlation of slack in both views; of each category; error and rank correlation of η.

    What is called slack is what has a label of slack, or else is said to be slack with a probability over ½. What is unclassified is not
    called slack. Responses without labels count nowhere.
    """
    responses = [each for each in responses if (each.truth != _UNLABELLED).any()]
    truth, label, p_required, p_slack = (
        np.concatenate([getattr(each, name) for each in responses] or [np.empty(0)])
        for name in ("truth", "label", "p_required", "p_slack")
    )
    known = truth != _UNLABELLED
    truth, label, p_required, p_slack = truth[known], label[known], p_required[known], p_slack[known]
    lenient, strict = np.isin(truth, _SLACK), truth != _REQUIRED
    named = np.isin(label, [*_SLACK, _PLACES[UNTOLD]])
    told = not np.isnan(p_required).all()
    return {
        "responses": len(responses),
        "unit": "characters",
        "slack_named": _scores(named, lenient),
        "slack_lenient": _scores(named | (p_slack > 0.5), lenient),
        "slack_strict": _scores(p_required < 0.5, strict) if told else None,
        "unclassified": float(np.isnan(p_slack).mean()) if len(p_slack) else None,
        "calibration_lenient": _calibration_error(p_slack, lenient),
        "calibration_strict": _calibration_error(p_required, ~strict),
        "slack_without_category": _scores(label == _PLACES[UNTOLD], lenient)["precision"],
        "categories": {NAMES[each]: _scores(label == _PLACES[each], truth == _PLACES[each]) for each in LABELS},
        "eta_strict": _of_eta([(each.eta_strict, _eta(each, _REQUIRED)) for each in responses]),
        "eta_lenient": _of_eta([(each.eta_lenient, _eta(each, *_NOT_SLACK)) for each in responses]),
    }


def coverage(judged: Sequence[Scored], missing: Sequence[Sequence[Label | None]]) -> dict[str, Any]:
    """Of how many labelled responses, and of which share of their labelled characters, a judge decided what they are.

    `missing` has the labels of those that it says nothing of. Failed is where it decided nothing of a whole response, unclassified what it left open in the others.
    Shares of characters are of the lenient view, and with those that are labelled make one, but for `labelled_strict`.
    """
    known = [each.truth != _UNLABELLED for each in judged]
    strict, lenient = (
        [_decided(getattr(each, name))[here] for each, here in zip(judged, known, strict=True)]
        for name in ("p_required", "p_slack")
    )
    failed = [not (one.any() or other.any()) for one, other in zip(strict, lenient, strict=True)]
    absent = sum(label is not None for labels in missing for label in labels)
    whole = sum(map(len, lenient)) + absent
    open_ = sum(int((~each).sum()) for each, no in zip(lenient, failed, strict=True) if not no)
    counts = {
        "labelled_strict": sum(int(each.sum()) for each in strict),
        "labelled_lenient": sum(int(each.sum()) for each in lenient),
        "unclassified": open_,
        "failed": sum(len(each) for each, no in zip(lenient, failed, strict=True) if no),
        "missing": absent,
    }
    return {
        "responses": len(judged) + len(missing),
        "judged": len(judged) - sum(failed),
        "failed": sum(failed),
        "missing": len(missing),
        "characters": {name: count / whole for name, count in counts.items()},
    }


def _decided(said: Floats) -> Bools:
    """Where something is said, and not as much for as against."""
    decided: Bools = ~np.isnan(said) & (said != 0.5)
    return decided


_NOT_SLACK: Final = (_REQUIRED, _PLACES["O"])


def _eta(response: Scored, *counted: int) -> float:
    return float(np.isin(response.truth[response.truth != _UNLABELLED], counted).mean())


def _of_eta(pairs: Sequence[tuple[float | None, float]]) -> dict[str, float | int | None]:
    """Of η said and true: `not_below` is the share of responses whose η is not under the true one, as a bound's should be."""
    told = np.array([(said, true) for said, true in pairs if said is not None]).reshape(-1, 2)
    said, true = told[:, 0], told[:, 1]
    if not len(told):
        return {"responses": 0, "mae": None, "spearman": None, "not_below": None}
    return {
        "responses": len(told),
        "mae": float(np.abs(said - true).mean()),
        "spearman": _correlation(_ranks(said), _ranks(true)),
        "not_below": float((said >= true - 1e-9).mean()),
    }


def raters(pairs: Sequence[tuple[Sequence[Label | None], Sequence[Label | None]]]) -> dict[str, Any]:
    """How far two who label agree: by character where both say something, and η by response. Each pair has the labels of a response's characters."""
    both = [[np.array([_PLACES.get(each, _UNLABELLED) for each in labels]) for labels in pair] for pair in pairs]
    known = [(one != _UNLABELLED) & (other != _UNLABELLED) for one, other in both]
    one, other = (
        np.concatenate([pair[side][where] for pair, where in zip(both, known, strict=True)]) for side in (0, 1)
    )
    kept = [(first[where], second[where]) for (first, second), where in zip(both, known, strict=True) if where.any()]
    views = {"strict": [_REQUIRED], "lenient": list(_NOT_SLACK)}
    return {
        "responses": len(kept),
        "characters": len(one),
        "labels": _alike(one, other),
        **{view: _alike(np.isin(one, counted), np.isin(other, counted)) for view, counted in views.items()},
        **{
            f"eta_{view}": _of_two([(_share(a, counted), _share(b, counted)) for a, b in kept])
            for view, counted in views.items()
        },
        "confusions": _confusions(one, other),
    }


def _alike(one: NDArray[Any], other: NDArray[Any]) -> dict[str, float | None]:
    """Share that is alike, and how far that is beyond chance: None where there is nothing but chance."""
    if not len(one):
        return {"alike": None, "kappa": None}
    alike = float((one == other).mean())
    chance = sum(float((one == each).mean() * (other == each).mean()) for each in np.union1d(one, other))
    return {"alike": alike, "kappa": (alike - chance) / (1 - chance) if chance < 1 else None}


def _share(labels: Ints, counted: Sequence[int]) -> float:
    return float(np.isin(labels, counted).mean())


def _of_two(pairs: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    one, other = np.array(pairs).reshape(-1, 2).T
    if not len(one):
        return {"bias": None, "mae": None, "spearman": None}
    return {
        "bias": float((one - other).mean()),
        "mae": float(np.abs(one - other).mean()),
        "spearman": _correlation(_ranks(one), _ranks(other)),
    }


def _confusions(one: Ints, other: Ints, most: int = 5) -> list[dict[str, Any]]:
    """Which labels stand against each other most, as shares of all characters."""
    found = [
        {"one": a, "other": b, "share": float(((one == _PLACES[a]) & (other == _PLACES[b])).mean())}
        for a in LABELS
        for b in LABELS
        if a != b and len(one)
    ]
    return sorted((each for each in found if each["share"]), key=lambda each: -float(str(each["share"])))[:most]


def _scores(named: Bools, there: Bools) -> dict[str, float | None]:
    right, said, all_ = (int(each.sum()) for each in (named & there, named, there))
    return {
        "precision": right / said if said else None,
        "recall": right / all_ if all_ else None,
        "f1": 2 * right / (said + all_) if said + all_ else None,
        "mcc": _correlation(named.astype(float), there.astype(float)),
    }


def _calibration_error(said: Floats, true: Bools) -> float | None:
    """Mean distance of what is said from how often it holds, over ten equal bins, by character (ECE); None where nothing is said."""
    known = ~np.isnan(said)
    if not known.any():
        return None
    said, holds = said[known], true[known].astype(float)
    place = np.minimum((said * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.abs(np.bincount(place, said, _BINS) - np.bincount(place, holds, _BINS))
    return float(gaps.sum() / len(said))


def _correlation(one: Floats, other: Floats) -> float | None:
    if len(one) < 3 or one.std() == 0 or other.std() == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: Floats) -> Floats:
    """Equal values share the mean of their ranks."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2.0
