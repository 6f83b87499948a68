"""`etameter eta classify` and `etameter eta evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .answers import FORM, Answer, answers, rows, write
from .errors import EtameterError
from .slack.agreement import Said, Scored, agreement, coverage, scored
from .slack.eta import Eta, fast_eta
from .slack.fast import Labelled, classify
from .slack.labels import LABELS, UNTOLD, Label
from .slack.tokens import by_length

JUDGED = '{"id", "eta_strict", "eta_lenient", "spans": [[start, end, label, p_required, p_slack], …]}'


def classify_file(file: Path, out: Path) -> str:
    """Label every response of FILE; what was done, in one line.

    Raises EtameterError for a line that can't be read, or where OUT can't be written; OUT is then what it was.
    """
    count = write(out, (_result(answer.id, classify(answer.prompt, answer.response)) for answer in answers(file)), file)
    if not count:
        raise EtameterError(f"{file} has no response", f"write one object a line: {FORM}")
    return f"{count} response{'s' * (count != 1)} classified, in {out}"


def _result(identity: object, spans: tuple[Labelled, ...]) -> dict[str, object]:
    eta = of_characters(spans)
    return {
        "id": identity,
        "eta_strict": eta.strict,
        "eta_lenient": _rounded(eta.lenient),
        "method": eta.method,
        "bound": "upper",
        "interval": None if eta.interval is None else [_rounded(end) for end in eta.interval],
        "unclassified": _rounded(eta.unclassified),
        "unit": "characters",
        "spans": [[span.start, span.end, span.label, None, _rounded(span.p_slack)] for span in spans],
    }


def of_characters(spans: tuple[Labelled, ...]) -> Eta:
    return fast_eta(spans, by_length(spans, spans[-1].end if spans else 0).tokens)


def evaluate_file(file: Path, judged: Path | None = None) -> dict[str, object]:
    """How far what is said of FILE's responses agrees with its labels: what the fast tier says, or what `judged` says, by id.

    `coverage` says of how much of them `judged` says anything: figures of a part flatter. It is None of the fast tier, which reads all.

    Raises:
        EtameterError: a line can't be read, or no response of FILE is labelled, or judged.
    """
    said = None if judged is None else {_key(row.get("id")): (line, row) for line, row in rows(judged, JUDGED)}
    responses, missing = [], []
    for answer in answers(file):
        truth = labels_of(answer, file)
        if not any(truth):
            continue
        if said is None:
            responses.append(_by_fast(answer, truth))
        elif (found := said.get(_key(answer.id))) is not None:
            responses.append(_by_row(truth, found, f"{judged}:{found[0]}"))
        else:
            missing.append(truth)
    if not responses:
        what = "labelled response" if said is None else f"labelled response that {judged} says anything of"
        raise EtameterError(f"{file} has no {what}", 'give lines with "spans": [[start, end, label], …]')
    return {
        "method": "fast" if judged is None else str(judged),
        "coverage": None if judged is None else coverage(responses, missing),
        **agreement(responses),
    }


def _key(identity: object) -> str:
    return f"{type(identity).__name__} {identity}"


def _by_fast(answer: Answer, truth: list[Label | None]) -> Scored:
    spans = classify(answer.prompt, answer.response)
    said = [Said(span.start, span.end, span.label, None, span.p_slack) for span in spans]
    return scored(truth, said, None, of_characters(spans).lenient)


def _by_row(truth: list[Label | None], found: tuple[int, Mapping[str, Any]], place: str) -> Scored:
    _, row = found
    said = []
    for span in _list_of_spans(row, place):
        match span:
            case [int(start), int(end), label, required, slack] if (
                0 <= start <= end <= len(truth)
                and label in {*LABELS, UNTOLD, None}
                and all(each is None or (_is_number(each) and 0 <= each <= 1) for each in (required, slack))
            ):
                said.append(Said(start, end, label, required, slack))
            case _:
                raise EtameterError(
                    f"{place} has the span {span!r}",
                    f"give {JUDGED}, within the response's {len(truth)} characters, labels of {''.join(LABELS)}{UNTOLD} or null",
                )
    etas = [row.get("eta_strict"), row.get("eta_lenient")]
    if not all(eta is None or _is_number(eta) for eta in etas):
        raise EtameterError(f"{place} has an η that is no number", f"give {JUDGED}")
    return scored(truth, said, etas[0], etas[1])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def labels_of(answer: Answer, file: Path) -> list[Label | None]:
    """The label of each character."""
    place, length = f"{file}:{answer.line}", len(answer.response)
    truth: list[Label | None] = [None] * length
    for span in _list_of_spans(answer.row, place):
        match span:
            case [int(start), int(end), str(label), *_] if 0 <= start <= end <= length and label in LABELS:
                if any(truth[start:end]):
                    raise EtameterError(
                        f"{place} has the span {span!r} over another one", "give each character one label"
                    )
                truth[start:end] = [LABELS[LABELS.index(label)]] * (end - start)
            case _:
                raise EtameterError(
                    f"{place} has the span {span!r}",
                    f"give [start, end, label] within the response's {length} characters, with a label of {''.join(LABELS)}",
                )
    return truth


def _list_of_spans(row: Mapping[str, Any], place: str) -> list[Any]:
    spans = row.get("spans")
    if not isinstance(spans, list | None):
        raise EtameterError(f"{place} has spans that are no list", "give [[start, end, label], …]")
    return spans or []


def report(found: Mapping[str, Any]) -> str:
    """As text, what `evaluate_file` found."""
    lines = [
        f"{found['responses']} responses",
        *_covered(found["coverage"]),
        f"{'':28} precision  recall     F1    MCC",
    ]
    shown = {
        "slack, named": found["slack_named"],
        "slack, lenient": found["slack_lenient"],
        "slack, strict": found["slack_strict"],
        **found["categories"],
    }
    for name, scores in shown.items():
        if scores is not None:
            cells = (_cell(scores[key]) for key in ("precision", "recall", "f1", "mcc"))
            lines.append(f"{name:26} {'  '.join(cells)}")
    lines.append(f"{'slack without category, X':26} {_cell(found['slack_without_category'])}")
    for view, error in (("lenient", found["calibration_lenient"]), ("strict", found["calibration_strict"])):
        if error is not None:
            lines.append(f"calibration error, {view:8} {_cell(error).strip()}")
    for view in ("strict", "lenient"):
        eta = found[f"eta_{view}"]
        if eta["responses"]:
            lines.append(
                f"η {view} of {eta['responses']}: mean error {eta['mae']:.3f}, Spearman {_cell(eta['spearman']).strip()}, not below the labels' for {eta['not_below']:.1%}"
            )
    return "\n".join([*lines, "By character. A dash: nothing was named, or there is nothing to find."])


def _covered(coverage: Mapping[str, Any] | None) -> list[str]:
    """Of what share of the labels the figures are."""
    if coverage is None:
        return []
    share = {name: f"{each:.1%}" for name, each in coverage["characters"].items()}
    labelled = f"{share['labelled_lenient']} have a label (strict view: {share['labelled_strict']})"
    return [
        f"judged: {coverage['judged']} of {coverage['responses']} labelled responses, {coverage['failed']} failed, {coverage['missing']} missing",
        f"of their characters {labelled}, {share['unclassified']} are unclassified, {share['failed']} failed, {share['missing']} missing",
        "What is missing is in no figure below; what is unclassified or failed is not called slack there.",
    ]


def _cell(value: float | None) -> str:
    return f"{'–' if value is None else f'{value:.3f}':>9}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
