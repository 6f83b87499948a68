"""A fresh task asked under some arms, so often that it is known how short a correct answer may be: η_task of each answer, beside what is said of it unseen."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from etameter.auditing import TASK_ANSWERS
from etameter.slack.deep import deep_eta, fuse
from etameter.slack.eta import Eta, fast_eta
from etameter.slack.fast import classify
from etameter.slack.judge import case_of
from etameter.slack.task import percentile
from etameter.slack.tokens import by_length

from . import arms
from .arms import Arm, Sampling
from .checkers import Verdict
from .endpoint import Answer
from .generators import GENERATORS, generate
from .judging import Judge, Judgement, judge_of
from .tasks import Task, check

UNLABELLED: Final = "unlabelled"
"""The arm of traffic that names none. It is asked as without a system prompt."""
AS_UNLABELLED: Final = "unconstrained"
_SAMPLING: Final = Sampling(max_tokens=512)

Ask = Callable[[Mapping[str, Any]], Awaitable[Answer]]
"""Of the served model. Raises Failed."""


def task_of(seed: int) -> Task:
    """A task that nobody has seen, with its checker."""
    generator = Random(seed).choice(sorted(GENERATORS))  # noqa: S311  # tasks, no secrets
    (task,) = generate(generator, seed, 1)
    return task


def askable(named: Sequence[str]) -> dict[str, Arm]:
    """Those of the arms whose way of asking is known: the built-in ones, and traffic that names none."""
    known = arms.built_in()
    return {
        name: arms.find(AS_UNLABELLED if name == UNLABELLED else name) for name in named if name in {*known, UNLABELLED}
    }


async def audit(seed: int, named: Sequence[str], model: str, ask: Ask, judge: Judge) -> list[dict[str, object]]:
    """What the meter is told of each answer. One correct answer of each arm is judged, too.

    Raises Failed: the server answers not every time, so that the arms can't be compared.
    """
    task = task_of(seed)
    held: list[_Held] = []
    for name, arm in askable(named).items():
        body = arm.request(task, [{"role": "user", "content": task.turns[0]}], model, _SAMPLING)
        for _ in range(TASK_ANSWERS):
            answer = await ask(body)
            held.append(_Held(name, answer, await asyncio.to_thread(check, task, answer.text)))
    shortest = percentile(each.answer.output_tokens for each in held if each.verdict.correct)
    judged = {each.arm: each for each in reversed(held) if each.verdict.correct}
    return [
        {"task": task.id, "model": model, **_told(task, each, shortest, await _judged(task, each, judge, judged))}
        for each in held
    ]


@dataclass(frozen=True, slots=True)
class _Held:
    arm: str
    answer: Answer
    verdict: Verdict


async def _judged(task: Task, held: _Held, judge: Judge, chosen: Mapping[str, _Held]) -> Judgement | None:
    """Of the answer that was chosen of its arm: the first that is correct, which is as good as any, as all were drawn alike."""
    return await judge_of(task.turns[0], held.answer.text, judge) if chosen.get(held.arm) is held else None


def _told(task: Task, held: _Held, shortest: int | None, judgement: Judgement | None) -> dict[str, object]:
    answer = held.answer
    deep = None if judgement is None else _deep(task, answer, judgement)
    took = (answer, *(judgement.answers if judgement is not None else ()))
    return {
        "arm": held.arm,
        "correct": held.verdict.correct,
        "tokens": answer.output_tokens,
        "eta_task": _eta_task(held, shortest),
        "fast": None if answer.reasoning else _fast(task, answer),
        "deep_strict": None if deep is None else deep.strict,
        "deep_lenient": None if deep is None else deep.lenient,
        "receipts": [each.receipt_id for each in took if each.receipt_id is not None],
    }


def _eta_task(held: _Held, shortest: int | None) -> float | None:
    tokens = held.answer.output_tokens
    if held.verdict.correct is None or not tokens:
        return None
    return min(tokens, shortest) / tokens if held.verdict.correct and shortest is not None else 0.0


def _fast(task: Task, answer: Answer) -> float | None:
    spans = classify(task.turns[0], answer.text)
    return fast_eta(spans, by_length(spans, answer.output_tokens).tokens).lenient


def _deep(task: Task, answer: Answer, judgement: Judgement) -> Eta | None:
    if answer.reasoning:
        return None
    spans = fuse(case_of(task.turns[0], answer.text).spans, judgement.forwards, judgement.backwards)
    return deep_eta(spans, by_length(spans, answer.output_tokens).tokens)
