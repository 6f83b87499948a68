"""What a stage asks, one question after the other without end: tasks of a suite in the order of a seed, or filler of recorded lengths."""

import csv
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from etameter.errors import NightError
from etameter.prompts.arms import Arm, Sampling
from etameter.prompts.checkers import Code, CodeTest
from etameter.prompts.tasks import Task

FILLER: Final = " the"
"""Of which most vocabularies make one token."""
_COLUMNS: Final = ("arrival_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Question:
    """A request that is to be sent."""

    number: int
    body: dict[str, Any]
    task: Task | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """One of a recording."""

    after_s: float
    """The recording's first one came."""
    prompt_tokens: int
    output_tokens: int


Deck = Callable[[int], Question]
"""Its how-manieth question, from 0."""


def of_tasks(
    tasks: Sequence[Task], arm: Arm, model: str, *, stage: str, run_id: str, seed: int, max_tokens: int, salted: bool
) -> Deck:
    """Tasks of one turn that a checker judges without a sandbox, shuffled, over and over; of a seed the same every night.

    Raises:
        NightError: there is none of them.
    """
    fit = [task for task in tasks if len(task.turns) == 1 and not isinstance(task.checker, Code | CodeTest)]
    if not fit:
        raise NightError("the suite has no task of one turn that can be checked without running code", "name another")
    shuffled = random.Random(f"{seed} night").sample(fit, len(fit))  # noqa: S311  # a lot to be drawn again, not a secret
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)

    def question(number: int) -> Question:
        task = shuffled[number % len(shuffled)]
        body = arm.request(task, [{"role": "user", "content": task.turns[0]}], model, sampling)
        return Question(number, body | _salt(run_id, stage, number, salted=salted), task)

    return question


def of_arrivals(arrivals: Sequence[Arrival], model: str, *, stage: str, run_id: str, salted: bool) -> Deck:
    """Filler as long as the recording's prompts, with answers as long as its own."""

    def question(number: int) -> Question:
        one = arrivals[number % len(arrivals)]
        prompt = f"Go on counting from {number}.{FILLER * max(one.prompt_tokens - 8, 1)}"
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.0,
            "max_tokens": one.output_tokens,
            "ignore_eos": True,
        }
        return Question(number, body | _salt(run_id, stage, number, salted=salted))

    return question


def arrivals_s(arrivals: Sequence[Arrival]) -> Iterator[float]:
    """When each question is due, from the beginning; the recording begins anew a mean interval after its end."""
    last_s = arrivals[-1].after_s
    round_s = last_s * len(arrivals) / (len(arrivals) - 1)
    for turn in count():
        for one in arrivals:
            yield turn * round_s + one.after_s


def evenly_s(rate_per_s: float) -> Iterator[float]:
    """When each question is due at a fixed rate."""
    for number in count():
        yield number / rate_per_s


def read_arrivals(path: Path) -> tuple[Arrival, ...]:
    """A recording of arrivals.

    Raises:
        NightError: it can't be read, or isn't one; the message names line and fault.
    """
    shape = f"it is CSV with a head of {','.join(_COLUMNS)}, and two rows or more in order of time"
    found: list[Arrival] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := set(_COLUMNS) - set(reader.fieldnames or ()):
                raise NightError(f"{path} has no column {', '.join(sorted(missing))}", shape)
            for row in reader:
                found.append(_arrival(row, f"{path}:{reader.line_num}", found, shape))
    except (OSError, UnicodeDecodeError) as error:
        raise NightError(f"{path} can't be read ({error})", shape) from error
    if len(found) < 2 or found[-1].after_s == 0:
        raise NightError(f"{path} has {len(found)} arrivals over {found[-1].after_s if found else 0:g} s", shape)
    return tuple(found)


def _arrival(row: dict[str, str], place: str, before: Sequence[Arrival], shape: str) -> Arrival:
    try:
        at_s, prompt, output = float(row["arrival_s"]), int(row["prompt_tokens"]), int(row["output_tokens"])
    except (TypeError, ValueError) as error:
        raise NightError(f"{place}: {error}", shape) from error
    if not (0 <= at_s < 1e9) or prompt < 1 or output < 1:
        raise NightError(f"{place}: {at_s:g} s, {prompt} and {output} tokens", shape)
    if before and at_s < before[-1].after_s:
        raise NightError(f"{place}: it comes before the row above it", shape)
    return Arrival(at_s, prompt, output)


def _salt(run_id: str, stage: str, number: int, *, salted: bool) -> dict[str, str]:
    """What keeps a prompt from being found in the cache."""
    if not salted:
        return {}
    return {"cache_salt": hashlib.sha256(f"{run_id} {stage} {number}".encode()).hexdigest()[:32]}
