"""How much of its thinking a model needed: cut short, does its answer still hold?

The thinking of a correct answer is closed after fewer and fewer of its spans, and the model goes on from there to an answer, without sampling. Searched is the
least number of spans after which that is correct, by halves: as if a longer beginning never did worse, which is mostly so.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from etameter.answers import rows
from etameter.auditing import AUDIT
from etameter.errors import EtameterError
from etameter.slack.segment import segment

from . import checkers, looking
from .checkers import Checker
from .endpoint import Answer, Endpoint, Refused
from .looking import Missed, Tell

FORM: Final = '{"id", "prompt", "checker": {"kind", …}}'
OPEN, CLOSE = "<think>", "</think>"
"""How the beginning of an answer is written for the model, whatever its template makes of it."""
MOST_TOKENS: Final = 8192
MOST_AFTER: Final = 1024
"""Of an answer after the thinking was cut."""

Reason = Literal["no_thinking", "wrong_answer", "checker_not_run", "server_cannot_continue"]
"""Why nothing is known."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked, and what makes an answer correct."""

    id: object
    prompt: str
    checker: Checker


@dataclass(frozen=True, slots=True)
class Found:
    """What of a model's thinking was needed; shares are by characters."""

    id: object
    output_tokens: int
    spans: int
    needed: int | None
    """So many of its first spans."""
    eta_thinking: float | None
    eta_at_most: float | None
    """Of thinking and answer together, if all of the answer was needed."""
    thinking: float | None
    """Share of the output that was thinking."""
    asked: int
    reason: Reason | None


def cases(file: Path) -> list[Case]:
    """Raises EtameterError for a line that is none."""
    return [_case(row, f"{file}:{line}", line) for line, row in rows(file, FORM)]


def _case(row: Mapping[str, Any], place: str, line: int) -> Case:
    match row:
        case {"prompt": str(prompt), "checker": dict(described)}:
            try:
                return Case(row.get("id", line), prompt, checkers.parse(json.dumps(described)))
            except ValidationError as error:
                raise EtameterError(
                    f"{place}: {error.errors()[0]['msg']}", "see docs/tasks.md for the kinds"
                ) from error
        case _:
            raise EtameterError(f"{place} is no prompt with a checker", f"give {FORM}")


async def look(file: Path, url: str, model: str | None, tell: Tell[Found]) -> None:
    """Ask the server at `url` each of FILE's prompts, under the arm `audit`, and tell what is found of it. Raises EtameterError."""
    await looking.look(cases(file), url, model, look_at, tell)


async def look_at(endpoint: Endpoint, model: str, case: Case) -> Found:
    """At one prompt. Raises Failed where the server doesn't answer it."""
    said = [{"role": "user", "content": case.prompt}]
    greedy = {"model": model, "temperature": 0.0}
    whole = await endpoint.chat({**greedy, "messages": said, "max_tokens": MOST_TOKENS}, AUDIT)
    thought, answer = parted(whole)
    spans = segment(thought)

    def nothing(reason: Reason, asked: int = 1) -> Found:
        return Found(case.id, whole.output_tokens, len(spans), None, None, None, None, asked, reason)

    if not spans:
        return nothing("no_thinking")
    verdict = checkers.check(case.checker, answer).correct
    if verdict is not True:
        return nothing("wrong_answer" if verdict is False else "checker_not_run")
    fails, holds, asked = -1, len(spans), 1
    while holds - fails > 1:
        half = (fails + holds) // 2
        begun = f"{OPEN}\n{_first(thought, half)}\n{CLOSE}\n\n"
        told = {"messages": [*said, {"role": "assistant", "content": begun}], "max_tokens": MOST_AFTER}
        try:
            after = await endpoint.chat(
                {**greedy, **told, "continue_final_message": True, "add_generation_prompt": False}, AUDIT
            )
        except Refused:
            return nothing("server_cannot_continue", asked)
        asked += 1
        if checkers.check(case.checker, said_after(after)).correct is True:
            holds = half
        else:
            fails = half
    kept = len(_first(thought, holds))
    length = len(thought) + len(answer)
    return Found(
        case.id,
        whole.output_tokens,
        len(spans),
        holds,
        kept / len(thought),
        (kept + len(answer)) / length,
        len(thought) / length,
        asked,
        None,
    )


def parted(answer: Answer) -> tuple[str, str]:
    """Thinking and answer: as the server tells them apart, or as they are marked in the text."""
    if answer.reasoning.strip():
        return answer.reasoning, answer.text
    before, close, after = answer.text.partition(CLOSE)
    return (before.removeprefix(OPEN).strip(), after) if close else ("", answer.text)


def said_after(answer: Answer) -> str:
    """The answer after a beginning that closes its thinking: some servers take all of it for thinking, as they didn't see it open."""
    return answer.text if answer.text.strip() else answer.reasoning


def _first(thought: str, spans: int) -> str:
    """So many of the thinking's first spans."""
    return thought[: segment(thought)[spans - 1].end] if spans else ""


def as_row(found: Found) -> dict[str, object]:
    """As JSON has it."""
    return {name: getattr(found, name) for name in Found.__slots__}


def summary(looked: Sequence[Found | Missed]) -> str:
    """In a few lines."""
    found = [each for each in looked if isinstance(each, Found)]
    told = [each for each in found if each.eta_thinking is not None and each.eta_at_most is not None]
    lines = [f"of {len(told)} of {len(looked)} answers it is known what of their thinking was needed"]
    reasons = Counter(each.reason for each in looked if each.reason is not None)
    lines += [f"  {count} not: {reason}" for reason, count in sorted(reasons.items())]
    if told:
        for name in ("eta_thinking", "eta_at_most", "thinking"):
            mean = sum(getattr(each, name) for each in told) / len(told)
            lines.append(f"{_MEANING[name]}: {mean:.2f} on average")
    return "\n".join(lines)


_MEANING: Final = {
    "eta_thinking": "η of the thinking",
    "eta_at_most": "η of thinking and answer, at most",
    "thinking": "share of the output that was thinking",
}
