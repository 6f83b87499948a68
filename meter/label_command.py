"""`etameter eta label`: a person says of each span of answers what it was for, in a terminal, and may go on another day."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.text import Text

from .answers import Answer, answers, rows, write
from .errors import EtameterError
from .prompts.visible import visible
from .slack.judge import NOT_ASKED
from .slack.labels import LABELS, MEANINGS, NAMES, Label
from .slack.segment import Span, segment

LABELLED: Final = '{"id", "prompt", "response", "spans": [[start, end, label], …]}'
BACK, SKIP, QUIT, HELP = "-", "skip", "q", "?"
_RULES: Final = (
    "Read the whole answer first. Of each span ask: if it were deleted, would the user still have everything that the prompt asked for?",
    "What is judged is its purpose, not whether it is true. A span that mixes two is R if it alone gives something demanded, else what most of its words are.",
    "Of two spans that say the same, the first is R. What serves a length, a number, a style or a text that was asked for is R.",
    "Working is O where only a result was asked for, and R where steps were. A refusal is R, its moralising H.",
)

Ask = Callable[[str], str]
"""Shows a prompt and reads a line. Raises EOFError at its end."""
Answered = Label | Literal["-", "skip", "q"]


@dataclass(frozen=True, slots=True)
class Done:
    """How far it came."""

    answers: int
    of: int
    spans: int

    def __str__(self) -> str:
        return f"{self.answers} of {self.of} answers labelled, {self.spans} spans now"


def label_file(file: Path, out: Path, ask: Ask, console: Console) -> Done:
    """Ask for the labels of FILE's answers that OUT doesn't have, and write each answer to OUT as soon as it has them all.

    Raises:
        EtameterError: a file can't be read or written, or OUT has labels of another answer under an id of FILE's.
    """
    asked = list(answers(file))
    if not asked:
        raise EtameterError(f"{file} has no answer", "give lines with responses in them")
    done = _known(out, asked)
    spans = 0
    for place, answer in enumerate(asked):
        if _key(answer.id) in done:
            continue
        _show(answer, f"answer {place + 1} of {len(asked)}", console)
        labelled = _label(answer, ask, console)
        if labelled == QUIT:
            break
        if not isinstance(labelled, list):
            continue
        spans += len(labelled)
        done[_key(answer.id)] = {**answer.row, "id": answer.id, "spans": labelled}
        write(out, list(done.values()), file)
    return Done(len(done), len(asked), spans)


def _known(out: Path, asked: Sequence[Answer]) -> dict[str, Mapping[str, Any]]:
    """What OUT has, by id."""
    if not out.exists():
        return {}
    responses = {_key(answer.id): answer.response for answer in asked}
    known: dict[str, Mapping[str, Any]] = {}
    for line, row in rows(out, LABELLED):
        key = _key(row.get("id"))
        if responses.get(key, row.get("response")) != row.get("response"):
            raise EtameterError(f"{out}:{line} labels another response of this id", "name another file with --out")
        known[key] = row
    return known


def _key(identity: object) -> str:
    return f"{type(identity).__name__} {identity}"


def _label(answer: Answer, ask: Ask, console: Console) -> list[list[object]] | Literal["skip", "q"]:
    """The spans of an answer with their labels, or what was said instead."""
    spans = [span for span in segment(answer.response) if span.kind not in NOT_ASKED]
    given: list[Label] = []
    while len(given) < len(spans):
        span = spans[len(given)]
        said = _ask(answer.response, span, f"{len(given) + 1}/{len(spans)}", ask, console)
        if said == BACK:
            del given[-1:]
        elif said in {SKIP, QUIT}:
            return "skip" if said == SKIP else "q"
        else:
            given.append(LABELS[LABELS.index(said)])
    return [[span.start, span.end, label] for span, label in zip(spans, given, strict=True)]


def _ask(response: str, span: Span, place: str, ask: Ask, console: Console) -> Answered:
    console.print(Text(visible(response[span.start : span.end].strip()), style="bold"))
    while True:
        try:
            said = ask(f"{place} {''.join(LABELS)} {BACK} {SKIP} {QUIT} {HELP} > ").strip()
        except EOFError:
            return "q"
        if said.upper() in LABELS:
            return LABELS[LABELS.index(said.upper())]
        match said.lower():
            case "-" | "skip" | "q" as word:
                return word
            case _:
                _help(console)


def _show(answer: Answer, place: str, console: Console) -> None:
    console.rule(place)
    console.print(Text(visible(answer.prompt), style="cyan"))
    console.print()
    console.print(Text(visible(answer.response)))
    console.rule()


def _help(console: Console) -> None:
    for line in _RULES:
        console.print(Text(line))
    for label in LABELS:
        console.print(Text(f"  {label}  {NAMES[label]}: {MEANINGS[label]}"))
    console.print(
        Text(f"  {BACK}  the last one again   {SKIP}  this answer   {QUIT}  stop here: finished answers are kept")
    )
