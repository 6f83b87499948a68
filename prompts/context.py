"""Which pieces of a context an answer needed: passages that were retrieved, turns that went before. The model is asked again without some of them.

Delta debugging as for spans of an answer (`slack.deletion`): a set of pieces is needed if a correct answer comes with it, and none with any one piece less.
What the rest cost is not modelled but measured: both prompts are asked once more, with prefix caching kept from either, and their receipts compared.
"""

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from pydantic import ValidationError

from etameter.answers import rows
from etameter.auditing import AUDIT
from etameter.errors import EtameterError
from etameter.records import Source, weakest
from etameter.slack.deletion import delete
from etameter.slack.segment import Span

from . import checkers, looking
from .checkers import Checker
from .endpoint import Answer, Endpoint
from .looking import Missed, Tell

FORM: Final = '{"id", "context": ["…", …], "prompt", "checker": {"kind", …}}'
BETWEEN: Final = "\n\n"
MOST_ASKED: Final = 48
"""Of one prompt."""
SETTLE_S: Final = 15.0
_MOST_TOKENS: Final = 512


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt with a context, and what makes an answer correct."""

    id: object
    context: tuple[str, ...]
    prompt: str
    checker: Checker


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt with some of its context: tokens, and joules where they are known."""

    prompt_tokens: int
    prompt_j: float | None
    energy_j: float | None
    source: Source | None


@dataclass(frozen=True, slots=True)
class Found:
    """What of a context was needed."""

    id: object
    pieces: int
    correct: bool | None
    """With the whole context; where it isn't, nothing is known of what was needed."""
    needed: tuple[int, ...] | None
    whole: Asked
    less: Asked | None
    """With what was needed alone."""
    bare_tokens: int | None
    """Of the prompt without any context; None where that was never asked."""
    asked: int
    minimal: bool

    @property
    def eta(self) -> float | None:
        """Share of the context's tokens that was needed."""
        if self.less is None or self.bare_tokens is None or self.whole.prompt_tokens <= self.bare_tokens:
            return None
        return (self.less.prompt_tokens - self.bare_tokens) / (self.whole.prompt_tokens - self.bare_tokens)


def cases(file: Path) -> list[Case]:
    """Raises EtameterError for a line that is none."""
    return [_case(row, f"{file}:{line}", line) for line, row in rows(file, FORM)]


def _case(row: Mapping[str, Any], place: str, line: int) -> Case:
    match row:
        case {"context": [*pieces], "prompt": str(prompt), "checker": dict(described)} if all(
            isinstance(piece, str) and piece.strip() for piece in pieces
        ):
            try:
                checker = checkers.parse(json.dumps(described))
            except ValidationError as error:
                raise EtameterError(
                    f"{place}: {error.errors()[0]['msg']}", "see docs/tasks.md for the kinds"
                ) from error
            return Case(row.get("id", line), tuple(pieces), prompt, checker)
        case _:
            raise EtameterError(f"{place} is no prompt with a context", f"give {FORM}")


async def look(file: Path, url: str, model: str | None, tell: Tell[Found]) -> None:
    """Ask the server at `url` about each of FILE's prompts, under the arm `audit`, and tell what is found of it. Raises EtameterError."""
    await looking.look(cases(file), url, model, _look_at, tell)


async def _look_at(endpoint: Endpoint, model: str, case: Case) -> Found:
    return await Looking(endpoint, model, case).run()


class Looking:
    """At one prompt."""

    def __init__(self, endpoint: Endpoint, model: str, case: Case) -> None:
        self._endpoint = endpoint
        self._model = model
        self._case = case
        self._tokens: dict[str, int] = {}
        """Of the prompts that were asked, by their context."""
        self._verdicts: dict[str, bool | None] = {}

    async def run(self) -> Found:
        """Raises Failed where the server doesn't answer with some of the context: that it was needed isn't known then."""
        context = "".join(piece + BETWEEN for piece in self._case.context)
        loop = asyncio.get_running_loop()

        def passes(left: str) -> bool:
            return asyncio.run_coroutine_threadsafe(self._passes(left), loop).result()

        if await self._check(context) is not True:
            return self._found(context, None, await self._take(context), None, minimal=True)
        left = await asyncio.to_thread(delete, context, list(self._spans()), passes, MOST_ASKED)
        whole, less = await self._take(context), await self._take(left.text)
        return self._found(context, left.kept, whole, less, minimal=left.minimal)

    def _found(
        self, context: str, needed: tuple[int, ...] | None, whole: Asked, less: Asked | None, *, minimal: bool
    ) -> Found:
        bare, correct = self._tokens.get(""), self._verdicts[context]
        asked = len(self._verdicts)
        return Found(self._case.id, len(self._case.context), correct, needed, whole, less, bare, asked, minimal)

    def _spans(self) -> Iterable[Span]:
        at = 0
        for piece in self._case.context:
            yield Span(at, at + len(piece) + len(BETWEEN), "data")
            at += len(piece) + len(BETWEEN)

    async def _passes(self, context: str) -> bool:
        return await self._check(context) is True

    async def _check(self, context: str) -> bool | None:
        if context not in self._verdicts:
            answer = await self._ask(context)
            self._tokens[context] = answer.prompt_tokens
            verdict = await asyncio.to_thread(checkers.check, self._case.checker, answer.text)
            self._verdicts[context] = verdict.correct
        return self._verdicts[context]

    async def _ask(self, context: str, salt: str | None = None) -> Answer:
        said = [{"role": "user", "content": context + self._case.prompt}]
        body = {"model": self._model, "messages": said, "temperature": 0.0, "max_tokens": _MOST_TOKENS}
        return await self._endpoint.chat(body if salt is None else {**body, "cache_salt": salt}, AUDIT)

    async def _take(self, context: str) -> Asked:
        """What it takes with nothing of it in the prefix cache."""
        answer = await self._ask(context, uuid.uuid4().hex)
        energy = answer.energy
        if answer.receipt_id is not None:
            with suppress(aiohttp.ClientError, TimeoutError, ValueError):  # what the answer itself said is left
                settled, _ = await self._endpoint.settled(answer.receipt_id, time.monotonic() + SETTLE_S)
                energy = energy if settled is None else settled
        if energy is None:
            return Asked(answer.prompt_tokens, None, None, None)
        return Asked(
            answer.prompt_tokens, float(energy["prompt_joules"]), float(energy["energy_joules"]), energy["source"]
        )


def as_row(found: Found) -> dict[str, object]:
    """As JSON has it."""
    less = found.less
    return {
        "id": found.id,
        "pieces": found.pieces,
        "correct": found.correct,
        "needed": None if found.needed is None else list(found.needed),
        "eta_context": found.eta,
        "prompt_tokens": found.whole.prompt_tokens,
        "needed_prompt_tokens": None if less is None else less.prompt_tokens,
        "prompt_joules": found.whole.prompt_j,
        "needed_prompt_joules": None if less is None else less.prompt_j,
        "energy_joules": found.whole.energy_j,
        "needed_energy_joules": None if less is None else less.energy_j,
        "source": found.whole.source,
        "asked": found.asked,
        "minimal": found.minimal,
    }


def summary(looked: Sequence[Found | Missed]) -> str:
    """In a few lines."""
    found = [each for each in looked if isinstance(each, Found)]
    missed = Counter(each.reason for each in looked if isinstance(each, Missed))
    told = [each for each in found if each.less is not None]
    lines = [f"{len(told)} of {len(found)} prompts answered correctly with their whole context"]
    lines += [f"  {count} more not measured: {reason}" for reason, count in sorted(missed.items())]
    pieces, needed = sum(each.pieces for each in told), sum(len(each.needed or ()) for each in told)
    if told:
        whole, less = (sum(each.prompt_tokens for each in side) for side in _sides(told))
        lines.append(f"{needed} of {pieces} pieces needed; prompts of {whole} tokens, of {less} with these alone")
    energies = [
        (one.energy_j, other.energy_j, one.source, other.source)
        for one, other in zip(*_sides(told), strict=True)
        if one.energy_j is not None and other.energy_j is not None
    ]
    if energies:
        sources = weakest(frozenset(source for each in energies for source in each[2:] if source is not None))
        whole_j, less_j = sum(each[0] for each in energies), sum(each[1] for each in energies)
        lines.append(f"{whole_j:.1f} J, {less_j:.1f} J with these alone, of {len(energies)} prompts (source={sources})")
    return "\n".join(lines)


def _sides(told: list[Found]) -> tuple[list[Asked], list[Asked]]:
    return [each.whole for each in told], [each.less for each in told if each.less is not None]
