"""Asks a judge what the spans of a response were for, and again where its server or its thinking came between."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from etameter.slack.judge import Question, case_of, labels_in, thinks
from etameter.slack.labels import Label

from .endpoint import Answer, Failed, Refused

THINKING_TOKENS: Final = 8192
"""A judge that thinks before it replies is given so many more, once it is known to."""

Ask = Callable[[Mapping[str, Any]], Awaitable[Answer]]
"""Of the judge. Raises Failed."""
Judge = Callable[[Question], Awaitable[tuple[Answer, ...]]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of the spans of an answer, in both orders, by their numbers."""

    forwards: Mapping[int, Label]
    backwards: Mapping[int, Label]
    answers: tuple[Answer, ...]
    """The judge's own."""


async def judge_of(prompt: str, response: str, ask: Judge) -> Judgement:
    """Ask what the spans of a response were for. What the judge refuses, or can't label, has no label."""
    labels: tuple[dict[int, Label], dict[int, Label]] = {}, {}
    answers: list[Answer] = []
    for question in case_of(prompt, response).questions:
        try:
            told = await ask(question)
        except Failed:
            continue
        answers += told
        labels[question.backwards].update(labels_in(told[-1].text, question))
    return Judgement(*labels, tuple(answers))


async def replies_to(question: Question, model: str, ask: Ask) -> tuple[Answer, ...]:
    """All that a judge answers to a question, the last of which counts.

    A server that can't hold a reply to a form refuses the question, and is asked without it. A judge that was cut off because it thinks before it replies gets more tokens, if they
    fit into its context; where nothing comes of that, what it said first is all, because that took joules.

    Raises Failed: it refuses the question in any form, or gives no answer.
    """
    body = question.body(model)
    try:
        first = await ask(body)
    except Refused:
        del body["response_format"]
        first = await ask(body)
    if first.finish_reason != "length" or not (first.reasoning or thinks(first.text)):
        return (first,)
    try:
        return first, await ask({**body, "max_tokens": body["max_tokens"] + THINKING_TOKENS})
    except Failed:
        return (first,)
