"""`etameter eta train` and `etameter eta agree`: weights from labels of one's own, and how far two who label agree."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .answers import answers
from .errors import EtameterError
from .eta_command import labels_of
from .slack.agreement import raters
from .slack.fast import shipped
from .slack.labelled import Answer, answer
from .slack.labels import Label
from .slack.training import FEW, as_json, scores, train

LEAST_ANSWERS = 20


def train_files(files: Sequence[Path], out: Path) -> dict[str, Any]:
    """Weights from the labels in FILES, starting from those that are shipped, to OUT; and how both do on answers that were left out.

    Raises:
        EtameterError: a file can't be read or written, or there are too few labelled answers.
    """
    labelled = [found for file in files for found in _labelled(file)]
    if len(labelled) < LEAST_ANSWERS:
        raise EtameterError(
            f"{len(labelled)} answers are labelled", f"label {LEAST_ANSWERS} or more: etameter eta label FILE --out OUT"
        )
    start = shipped()
    model, rows, found = train(labelled, start)
    about = {"answers": len(labelled), "spans": len(rows.tokens), "start": "shipped"}
    try:
        out.write_text(as_json(model, "etameter eta train", about))
    except OSError as error:
        raise EtameterError(
            f"{out} can't be written ({error.strerror})", "name a file in a folder that exists"
        ) from None
    slack = int((rows.classes > 0).sum())
    return {
        "out": str(out),
        **about,
        "slack_spans": slack,
        "learnt_thresholds": slack >= FEW,
        "shipped": scores(start, rows, start.probabilities(rows.features)),
        "trained": scores(model, rows, found),
    }


def _labelled(file: Path) -> list[Answer]:
    return [answer({**each.row, "spans": each.row["spans"]}) for each in answers(file) if any(labels_of(each, file))]


def trained(found: dict[str, Any]) -> str:
    """As text, what `train_files` found."""
    lines = [
        f"{found['answers']} answers, {found['spans']} spans, {found['slack_spans']} of them slack, to {found['out']}"
    ]
    for name in ("shipped", "trained"):
        each = found[name]
        cells = (
            f"{key} {'–' if each[key] is None else format(each[key], '.3f')}" for key in ("precision", "recall", "f1")
        )
        lines.append(f"{name:8} names {each['spans_named']} spans: {', '.join(cells)}")
    if not found["learnt_thresholds"]:
        lines.append(
            f"Under {FEW} spans of slack nothing but weights is learnt: thresholds and calibration are as shipped."
        )
    return "\n".join(
        [
            *lines,
            "By token, on answers that the trained weights had not seen; its thresholds had. Use them with [eta] weights.",
        ]
    )


def agree_files(one: Path, other: Path) -> dict[str, Any]:
    """How far the labels of two files agree, on the responses that both label, by id.

    Raises:
        EtameterError: a file can't be read, both label no response, or they label different ones under an id.
    """
    second = {_key(each.id): each for each in answers(other)}
    pairs: list[tuple[Sequence[Label | None], Sequence[Label | None]]] = []
    for each in answers(one):
        twin = second.get(_key(each.id))
        if twin is None:
            continue
        if twin.response != each.response:
            raise EtameterError(
                f"{other}:{twin.line} has another response under this id than {one}:{each.line}",
                "compare labels of the same file of answers",
            )
        labels = labels_of(each, one), labels_of(twin, other)
        if any(map(any, labels)):
            pairs.append(labels)
    if not pairs:
        raise EtameterError(f"{one} and {other} label no response in common", "give files that label the same answers")
    return raters(pairs)


def _key(identity: object) -> str:
    return f"{type(identity).__name__} {identity}"


def agreed(found: dict[str, Any]) -> str:
    """As text, what `agree_files` found."""
    lines = [f"{found['responses']} responses, {found['characters']} characters that both label"]
    for name in ("labels", "strict", "lenient"):
        each = found[name]
        kappa = "–" if each["kappa"] is None else f"{each['kappa']:.3f}"
        lines.append(f"{name:8} alike {each['alike']:.1%}, Cohen's κ {kappa}")
    for view in ("strict", "lenient"):
        each = found[f"eta_{view}"]
        rank = "–" if each["spearman"] is None else f"{each['spearman']:.3f}"
        lines.append(f"η {view}: mean difference {each['bias']:+.3f}, mean error {each['mae']:.3f}, Spearman {rank}")
    lines += [f"  {pair['one']} here, {pair['other']} there: {pair['share']:.1%}" for pair in found["confusions"]]
    return "\n".join(lines)
