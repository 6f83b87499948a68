"""`etameter eta branching`: where in answers a model had many continuations to choose from, by the log-probabilities that came with them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from .answers import Answer, answers
from .errors import EtameterError
from .eta_command import labels_of
from .slack.branching import Branching, Gap, Placed, branching, difference, difference_at_like_place, summary
from .slack.fast import classify
from .slack.labels import LENIENT_SLACK, OPTIONAL, REQUIRED, Label

FORM: Final = '{"id", "prompt", "response", "logprobs": {"content": [{"token", "bytes", "logprob", "top_logprobs": […]}, …]}}, as a server gives them for {"logprobs": true, "top_logprobs": 20}'
NOT_SHOWN: Final = "not shown to be slack"
NO_ARM: Final = "unlabelled"
_GROUPS: Final[Mapping[Label, str]] = {
    REQUIRED: "required",
    OPTIONAL: "optional",
    **dict.fromkeys(LENIENT_SLACK, "slack"),
}


@dataclass(frozen=True, slots=True)
class _Token:
    """`name` is of its answer, `first` that it is the first of its span."""

    name: str
    prompt: str
    arm: str
    group: str
    first: bool
    branching: Branching


def report_of(file: Path) -> dict[str, Any]:
    """What FILE's answers say of branching: for each group of spans, for each arm, and the differences between them.

    Raises:
        EtameterError: a line can't be read, or none has log-probabilities.
    """
    labelled = 0
    tokens: list[_Token] = []
    for answer in answers(file):
        labels = labels_of(answer, file)
        found = list(_tokens(answer, file, labels if any(labels) else None))
        labelled += bool(found and any(labels))
        tokens += found
    if not tokens:
        raise EtameterError(f"{file} has no log-probabilities", f"give lines of {FORM}")
    names = {token.name for token in tokens}
    if 0 < labelled < len(names):
        raise EtameterError(
            f"{file} has labels for {labelled} of {len(names)} answers", 'give "spans" in each line, or in none'
        )
    groups, arms = sorted({token.group for token in tokens}), sorted({token.arm for token in tokens})
    return {
        "answers": len(names),
        "labels": "of the file" if labelled else "fast",
        "groups": {group: _summary([t for t in tokens if t.group == group]) for group in groups},
        "arms": {arm: _summary([t for t in tokens if t.arm == arm]) for arm in arms},
        "slack_less_required": _by_group(tokens),
        "slack_less_required_after_first": _by_group([token for token in tokens if not token.first]),
        "slack_less_required_at_like_place": _at_like_place(tokens),
        "arm_differences": [
            {"arm": one, "less": other, **_difference(_of_arm(tokens, one), _of_arm(tokens, other))}
            for one, other in combinations(arms, 2)
        ],
    }


def _by_group(tokens: Sequence[_Token]) -> dict[str, Any]:
    """Within answers: what is slack, in the strict view, against what is required, or is not shown to be slack."""
    needed = {_GROUPS[REQUIRED], NOT_SHOWN}
    named = {_GROUPS[OPTIONAL], "slack"}
    return _difference(
        _by_name([token for token in tokens if token.group in named]),
        _by_name([token for token in tokens if token.group in needed]),
    )


def _at_like_place(tokens: Sequence[_Token]) -> dict[str, Any]:
    found: defaultdict[str, list[Placed]] = defaultdict(list)
    for token in tokens:
        of = found[token.name]
        of.append(Placed(len(of), token.group in {_GROUPS[OPTIONAL], "slack"}, token.branching))
    return _told_gap(difference_at_like_place(found.values()))


def _by_name(tokens: Sequence[_Token]) -> dict[str, list[Branching]]:
    found = defaultdict(list)
    for token in tokens:
        found[token.name].append(token.branching)
    return found


def _of_arm(tokens: Sequence[_Token], arm: str) -> dict[str, list[Branching]]:
    """By prompt, so that arms are compared on the same."""
    found = defaultdict(list)
    for token in tokens:
        if token.arm == arm:
            found[token.prompt].append(token.branching)
    return found


def _difference(one: Mapping[str, Sequence[Branching]], other: Mapping[str, Sequence[Branching]]) -> dict[str, Any]:
    return _told_gap(difference(one, other))


def _told_gap(found: Gap | None) -> dict[str, Any]:
    return {"difference": None, "half_width": None, "pairs": 0} if found is None else asdict(found)


def _summary(tokens: Sequence[_Token]) -> dict[str, Any] | None:
    found = summary([token.branching for token in tokens])
    return None if found is None else asdict(found)


def _tokens(answer: Answer, file: Path, labels: Sequence[Label | None] | None) -> Iterator[_Token]:
    place = f"{file}:{answer.line}"
    told = _told(answer.row, place)
    if not told:
        return
    groups = _groups(answer, labels)
    ends = _ends(told, answer.response, place)
    arm = answer.row.get("arm", NO_ARM)
    before: tuple[str, int] | None = None
    for token, end in zip(told, ends, strict=True):
        if end == 0 or end > len(groups):
            continue  # a token that ends the answer, or none of its text
        span = groups[end - 1]
        if span[0] is not None:
            yield _Token(f"{answer.line}", answer.prompt, str(arm), span[0], span != before, _branching(token, place))
        before = (span[0] or "", span[1])


def _groups(answer: Answer, labels: Sequence[Label | None] | None) -> list[tuple[str | None, int]]:
    """Of each character its group, None where there is none, and where its span begins."""
    spans = classify(answer.prompt, answer.response)
    groups: list[tuple[str | None, int]] = []
    for span in spans:
        for at in range(span.start, span.end):
            if labels is not None:
                label = labels[at]
                groups.append((None if label is None else _GROUPS[label], span.start))
            else:
                group = "slack" if span.label is not None else NOT_SHOWN if span.p_slack is not None else None
                groups.append((group, span.start))
    return groups


def _ends(told: Sequence[Mapping[str, Any]], response: str, place: str) -> list[int]:
    """Where each token ends, in characters; beyond the text what ends the answer."""
    starts = {0: 0}
    at = 0
    for number, character in enumerate(response, start=1):
        at += len(character.encode("utf-8", "surrogatepass"))
        starts[at] = number
    ends, reached = [], 0
    for token in told:
        said = len(_bytes(token, place))
        reached += said
        inside = next((starts[each] for each in range(reached, reached + 4) if each in starts), len(response) + 1)
        ends.append(inside if said else len(response) + 1)
    if reached < at:
        raise EtameterError(
            f"{place} has log-probabilities of {reached} bytes for a response of {at}",
            "give those of the whole response, without reasoning",
        )
    return ends


def _bytes(token: Mapping[str, Any], place: str) -> bytes:
    match token:
        case {"bytes": list(numbers)} if all(isinstance(each, int) and 0 <= each < 256 for each in numbers):
            return bytes(numbers)
        case {"token": str(text)}:
            return text.encode("utf-8", "surrogatepass")
        case _:
            raise EtameterError(f"{place} has a token without text", f"give {FORM}")


def _told(row: Mapping[str, Any], place: str) -> list[Mapping[str, Any]]:
    match row.get("logprobs"):
        case {"content": [*tokens]} if all(isinstance(token, dict) for token in tokens):
            return tokens
        case None:
            return []
        case _:
            raise EtameterError(f"{place} has log-probabilities of another form", f"give {FORM}")


def _branching(token: Mapping[str, Any], place: str) -> Branching:
    """Each of the likeliest is a token of its own, though several may have one text: parts of a character do. The token itself is counted with them, if it is none of them."""
    try:
        top = [(str(each["token"]), float(each["logprob"])) for each in token["top_logprobs"]]
        own = str(token["token"]), float(token["logprob"])
        return branching(sorted((each for _, each in (top if own in top else [*top, own])), reverse=True))
    except (KeyError, TypeError, ValueError) as error:
        raise EtameterError(
            f"{place} has a token with log-probabilities that are none ({error})", f"give {FORM}"
        ) from None


def text_of(found: Mapping[str, Any]) -> str:
    """As text, what `report_of` found."""
    lines = [
        f"{found['answers']} answers, labels: {found['labels']}",
        f"{'':26} tokens  ⟨H⟩, nats        median exp H  exp H < 1.1",
    ]
    for name, each in {**found["groups"], **{f"arm {arm}": each for arm, each in found["arms"].items()}}.items():
        lines.append(
            f"{name:26} {each['tokens']:6}  {each['low']:.3f} to {each['high']:.3f}  {each['median']:13.2f}  {each['forced']:11.1%}"
        )
    lines.append(f"slack less the rest, within answers: {_gap(found['slack_less_required'])}")
    lines.append(f"the same without each span's first token: {_gap(found['slack_less_required_after_first'])}")
    lines.append(f"the same at like places of answers: {_gap(found['slack_less_required_at_like_place'])}")
    lines += [
        f"{each['arm']} less {each['less']}, on the same prompts: {_gap(each)}" for each in found["arm_differences"]
    ]
    return "\n".join([*lines, "Differences of mean H, in nats, with 95 % intervals from ten pairs on."])


def _gap(found: Mapping[str, Any]) -> str:
    if found["difference"] is None:
        return "nothing to compare"
    half = "" if found["half_width"] is None else f" ± {found['half_width']:.3f}"
    return f"{found['difference']:+.3f}{half} ({found['pairs']} pairs)"
