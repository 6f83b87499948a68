"""How well slack is named, on models that were left out of the training.

    python -m benchmarks.eta [--quick] [--data DIR]

Each of the four real models in turn is left out of all that is learnt: weights, thresholds, calibration and bound. The
baselines are scored on the same responses: all required, all slack, word lists, and a logistic regression on TF-IDF of the
spans' words, trained on the same data. The labels are by language models, so agreement flatters; and the cues were written
by somebody who had read answers of all four models, so even these figures flatter. `--quick` leaves out one model instead
of four and the times, and holds the figures to no goal.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.labelled import load
from benchmarks.report import Goal, finish
from etameter.slack.eta import fast_eta
from etameter.slack.fast import Labelled, Model, classify, label_all
from etameter.slack.labelled import Answer
from etameter.slack.labels import LABELS, LENIENT_SLACK, NAMES, STRICT_SLACK, UNTOLD
from etameter.slack.lexical import lexical
from etameter.slack.segment import segment
from etameter.slack.training import (
    Floats,
    Table,
    calibration,
    fit,
    folds,
    left_out,
    regress,
    slack_threshold,
    table,
    thresholds,
)

_LENIENT = np.array([LABELS.index(label) for label in LENIENT_SLACK])
_STRICT = np.array([LABELS.index(label) for label in STRICT_SLACK])
TFIDF_WORDS = 1500


@dataclass(frozen=True, slots=True)
class Said:
    """What a method says of each token of an answer."""

    answer: Answer
    label: list[str | None]
    slack: Floats  # probability of lenient slack; 0 where nothing is said
    bound: float  # on lenient η


def said(answer: Answer, spans: Sequence[Labelled]) -> Said:
    eta = fast_eta(spans, answer.tokens.tolist())
    return Said(
        answer,
        [spans[owner].label for owner in answer.owner],
        np.array([spans[owner].p_slack or 0.0 for owner in answer.owner]),
        1.0 if eta.lenient is None else eta.lenient,
    )


def flat(answer: Answer, label: str | None, slack: float) -> Said:
    return Said(answer, [label] * len(answer.owner), np.full(len(answer.owner), slack), 1.0 - slack)


def by_words(answer: Answer) -> Said:
    labels = [label for _, label in lexical(answer.response)]
    slack = np.array([float(labels[owner] is not None) for owner in answer.owner])
    return Said(
        answer, [labels[owner] for owner in answer.owner], slack, 1.0 - float(slack.mean() if len(slack) else 0)
    )


def tfidf(answers: Sequence[Answer], out: NDArray[np.bool_]) -> Callable[[Answer], Said]:
    """Slack by a logistic regression on the words of a span."""
    kept = [each for each, is_out in zip(answers, out, strict=True) if not is_out]
    texts = [text for each in kept for text in _texts(each)]
    seen_in = Counter(word for words in texts for word in set(words))
    words = {word: place for place, (word, _) in enumerate(seen_in.most_common(TFIDF_WORDS))}
    rarity = np.array([math.log((1 + len(texts)) / (1 + seen_in[word])) + 1 for word in words])

    def rows(texts: Sequence[Sequence[str]]) -> Floats:
        found = np.zeros((len(texts), len(words)))
        for row, text in zip(found, texts, strict=True):
            for word in text:
                if word in words:
                    row[words[word]] += 1.0
        found *= rarity
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
        return found

    is_slack = np.concatenate([each.classes > 0 for each in kept])
    features = np.hstack([rows(texts), np.ones((len(texts), 1))])
    weights = regress(features, np.eye(2)[is_slack.astype(int)], np.ones(len(texts)), 0.3)

    def classify_by_words(answer: Answer) -> Said:
        score = rows(_texts(answer)) @ weights[:-1] + weights[-1]
        slack = 1.0 / (1.0 + np.exp(score[:, 0] - score[:, 1]))
        tokens = slack[answer.owner]
        return Said(
            answer, ["X" if each >= 0.5 else None for each in tokens], tokens, 1.0 - float((tokens >= 0.5).mean())
        )

    return classify_by_words


def _texts(answer: Answer) -> list[list[str]]:
    return [answer.response[each.span.start : each.span.end].lower().split() for each in answer.seen]


def trained_without(rows: Table, found: Floats, out: NDArray[np.bool_]) -> Model:
    """Weights never saw the models in `out`. Thresholds and calibration come from the others' left-out predictions."""
    kept = ~out[rows.answer]
    scale, shift = calibration(rows, found, kept)
    least = thresholds(rows, found, kept)
    return Model(fit(rows, kept), least, slack_threshold(rows, found, kept, least), scale, shift)


def scores(results: Sequence[Said]) -> dict[str, object]:
    truth = np.concatenate([each.answer.truth for each in results])
    labels = np.array([label or "" for each in results for label in each.label], dtype="U1")
    slack = np.concatenate([each.slack for each in results])
    labelled = truth >= 0
    truth, labels, slack = truth[labelled], labels[labelled], slack[labelled]
    lenient, strict = np.isin(truth, _LENIENT), np.isin(truth, _STRICT)
    likely = slack >= 0.5
    return {
        "lenient": _scores(likely, lenient),
        "lenient_named": _scores(labels != "", lenient),
        "strict": _scores(likely, strict),
        "mcc": _mcc(likely, lenient),
        "ece": _ece(slack, lenient),
        **_of_responses(results),
        "slack_without_category": _scores(labels == UNTOLD, lenient),
        "categories": {NAMES[label]: _scores(labels == label, truth == LABELS.index(label)) for label in LENIENT_SLACK},
        "categories_as_slack": {
            NAMES[label]: _scores(labels == label, lenient)["precision"] for label in LENIENT_SLACK
        },
    }


def _of_responses(results: Sequence[Said]) -> dict[str, float | None]:
    true, said_, bounds = [], [], []
    for each in results:
        labelled = each.answer.truth >= 0
        if labelled.any():
            true.append(1.0 - float(np.isin(each.answer.truth[labelled], _LENIENT).mean()))
            said_.append(1.0 - float(each.slack.mean()))
            bounds.append(each.bound)
    held = [bound >= eta - 1e-9 for bound, eta in zip(bounds, true, strict=True)]
    return {
        "responses": len(true),
        "eta_mae": float(np.mean(np.abs(np.array(said_) - true))),
        "eta_spearman": _spearman(said_, true),
        "bound_holds": float(np.mean(held)),
        "bound_mean": float(np.mean(bounds)),
        "bound_spearman": _spearman(bounds, true),
        "eta_mean": float(np.mean(true)),
    }


def _scores(named: NDArray[np.bool_], there: NDArray[np.bool_]) -> dict[str, float | int | None]:
    right, said_, all_ = int((named & there).sum()), int(named.sum()), int(there.sum())
    return {
        "precision": right / said_ if said_ else None,
        "recall": right / all_ if all_ else None,
        "f1": 2 * right / (said_ + all_) if said_ + all_ else None,
        "named_tokens": said_,
    }


def _mcc(named: NDArray[np.bool_], there: NDArray[np.bool_]) -> float | None:
    if named.all() or not named.any() or there.all() or not there.any():
        return None
    return float(np.corrcoef(named, there)[0, 1])


def _ece(slack: Floats, there: NDArray[np.bool_]) -> float:
    """Expected calibration error, in ten bins."""
    part = np.minimum((slack * 10).astype(int), 9)
    return float(sum(abs(slack[part == k].sum() - there[part == k].sum()) for k in range(10)) / max(len(slack), 1))


def _spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    first, second = _ranks(np.array(one)), _ranks(np.array(other))
    if len(first) < 3 or first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Floats) -> Floats:
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2.0


def raters(answers: Sequence[Answer]) -> dict[str, float | int | None]:
    """The second rater against the first, on lenient slack of real models."""
    pairs = [(each.second, each.truth) for each in answers if each.second is not None and each.public]
    second = np.concatenate([one for one, _ in pairs])
    first = np.concatenate([other for _, other in pairs])
    return _scores(np.isin(second, _LENIENT), np.isin(first, _LENIENT))


ODD = (
    "word ", "One. ", "a.", "\n", "- item. x\n", "|a", "```\n", "```", "<think>", "$$", "[", "{\n", "**", "…", "你。", "\ud800", "x" * 50, ". ",
    " ", "__", "<a ", "!?", "(1) ", "--", "=", "\\[ ", "}", "def ", "if x ", "a, b ",
)  # fmt: skip


def growth() -> float:
    """How much more CPU time 160,000 characters take to segment than 40,000, for the worst of texts that repeat one odd piece: 4 where time is linear."""

    def seconds(piece: str, length: int) -> float:
        text = (piece * (length // len(piece) + 1))[:length]
        times = []
        for _ in range(3):
            begun = time.process_time()
            segment(text)
            times.append(time.process_time() - begun)
        return min(times)

    return max(seconds(piece, 160_000) / seconds(piece, 40_000) for piece in ODD)


def milliseconds(answers: Sequence[Answer]) -> float:
    """Median per 300 tokens, at four characters a token, over responses of 200 characters and more."""
    times = []
    for each in [each for each in answers if len(each.response) >= 200] * 2:
        begun = time.perf_counter()
        classify(each.prompt, each.response)
        times.append((time.perf_counter() - begun) / len(each.response) * 1200 * 1e3)
    return float(np.median(times[len(times) // 2 :]))


def megabytes() -> float:
    """Of a process that classifies, at its greatest."""
    code = (
        "from etameter.slack.fast import classify\n"
        "for n in range(50): classify('Why?', 'Sure! It is so because of that. I hope this helps! ' * 30)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out one model only")
    parser.add_argument("--data", type=Path, default=os.environ.get("ETAMETER_DATA"))
    options = parser.parse_args()
    if options.data is None or not (Path(options.data) / "slack").is_dir():
        finish(
            "eta",
            "measured",
            [Goal("labelled data", None, "", None, "higher")],
            {"skipped": "no --data DIR with slack/"},
        )
    answers = load(Path(options.data))
    rows = table(answers)
    found = left_out(answers, rows)
    parts = [
        (name, out)
        for name, out in folds(answers)
        if any(each.public for each, is_in in zip(answers, out, strict=True) if is_in)
    ]
    if options.quick:
        parts = parts[:1]
    methods: dict[str, list[Said]] = {name: [] for name in ("fast", "all_required", "all_slack", "lexical", "tfidf")}
    chosen: dict[str, dict[str, float]] = {}
    for name, out in parts:
        model = trained_without(rows, found, out)
        chosen[name] = {
            **{str(label): least for label, least in model.thresholds.items()},
            "slack": model.slack_threshold,
        }
        words = tfidf(answers, out)
        for answer, is_in in zip(answers, out, strict=True):
            if is_in:
                methods["fast"].append(said(answer, label_all(answer.seen, model)))
                methods["all_required"].append(flat(answer, None, 0.0))
                methods["all_slack"].append(flat(answer, UNTOLD, 1.0))
                methods["lexical"].append(by_words(answer))
                methods["tfidf"].append(words(answer))
    summary = {name: scores(results) for name, results in methods.items()}
    fast = methods["fast"]
    by_model = {name: scores([each for each in fast if each.answer.group == name]) for name, _ in parts}
    categories = sorted({each.answer.category for each in fast})
    by_category = {name: scores([each for each in fast if each.answer.category == name]) for name in categories}
    finish("eta", "measured", _goals(summary["fast"], answers, quick=options.quick), {
        "methods": summary, "by_model": by_model, "by_category": by_category, "thresholds": chosen,
        "raters_lenient": raters(answers), "tokens": "words and marks of punctuation", "labels": "by language models; human labels: none yet",
        "left_out": [name for name, _ in parts],
    })  # fmt: skip


def _goals(fast: dict[str, object], answers: Sequence[Answer], *, quick: bool) -> list[Goal]:
    lenient, categories = fast["lenient"], fast["categories"]
    named, untold = fast["lenient_named"], fast["slack_without_category"]
    assert isinstance(lenient, dict)
    assert isinstance(categories, dict)
    assert isinstance(named, dict)
    assert isinstance(untold, dict)
    bound, error = fast["bound_holds"], fast["ece"]
    assert isinstance(bound, float)
    assert isinstance(error, float)
    goals = [
        *(Goal(f"precision of {name}", each["precision"], "", 0.85, "higher") for name, each in categories.items()),
        Goal("precision of slack without a category", untold["precision"], "", 0.85, "higher"),
        Goal("precision of all that is named, as slack", named["precision"], "", 0.85, "higher"),
        Goal("lenient F1 of all that is named", named["f1"], "", 0.60, "higher"),
        Goal("lenient F1 at p_slack ≥ 0.5", lenient["f1"], "", 0.60, "higher"),
        Goal("responses for which the bound holds", bound, "", 0.95, "higher"),
        Goal("calibration error", error, "", None, "lower"),
        Goal("a response of 300 tokens", None if quick else milliseconds(answers), "ms", 3.0, "lower"),
        Goal("time of four times the text, the worst of odd ones", None if quick else growth(), "×", 8.0, "lower"),
        Goal("memory of a process that classifies", megabytes(), "MiB", 80.0, "lower"),
    ]
    # One model's few spans say nothing of a precision.
    return [replace(goal, goal=None) if quick and not goal.unit else goal for goal in goals]


if __name__ == "__main__":
    main()
