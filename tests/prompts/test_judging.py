"""A judge whose server refuses forms, or that thinks before it replies."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from etameter.prompts.endpoint import Answer, Failed, Refused
from etameter.prompts.judging import THINKING_TOKENS, judge_of, replies_to
from etameter.slack.judge import case_of

pytestmark = pytest.mark.unit

PROMPT, RESPONSE = "Name the capital of France.", "Sure! It is Paris."
LABELS = json.dumps({"demands": [], "spans": [{"n": 1, "label": "P"}, {"n": 2, "label": "R"}]})
REPLY = Answer(LABELS, "", 9, 9, "stop", 0.1, None, "not_metered", "1" * 32)
CUT_OFF = replace(REPLY, text="<think>1 is R, I think", finish_reason="length", receipt_id="2" * 32)


class Server:
    """Answers in turn, after it has refused what it doesn't know."""

    def __init__(self, *answers: Answer | Failed, knows_forms: bool = True, context: int = 10**6) -> None:
        self._answers = list(answers)
        self._knows_forms, self._context = knows_forms, context
        self.asked: list[Mapping[str, Any]] = []

    async def ask(self, body: Mapping[str, Any]) -> Answer:
        self.asked.append(dict(body))
        if ("response_format" in body and not self._knows_forms) or body["max_tokens"] > self._context:
            raise Refused("refused", "the server refuses a request (400)", "mend what it says")
        answer = self._answers.pop(0)
        if isinstance(answer, Failed):
            raise answer
        return answer


def replies(server: Server) -> tuple[Answer, ...]:
    return asyncio.run(replies_to(case_of(PROMPT, RESPONSE).questions[0], "m", server.ask))


def test_a_question_is_asked_once() -> None:
    server = Server(REPLY)
    assert replies(server) == (REPLY,)
    assert len(server.asked) == 1


def test_a_server_that_refuses_the_form_is_asked_without_it() -> None:
    server = Server(REPLY, knows_forms=False)
    assert replies(server) == (REPLY,)
    first, again = server.asked
    assert again == {name: value for name, value in first.items() if name != "response_format"}


def test_a_server_that_refuses_the_question_in_any_form_is_not_asked_a_third_time() -> None:
    server = Server(context=10)
    with pytest.raises(Refused):
        replies(server)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "cut_off",
    [
        CUT_OFF,
        replace(CUT_OFF, text="", reasoning="1 is R, I think"),
        replace(CUT_OFF, text='{"spans": [', reasoning="1 is R, I think"),
        replace(CUT_OFF, text='<think>Hm.</think>{"spans": ['),
    ],
)
def test_a_judge_that_was_cut_off_because_it_thinks_gets_more_tokens(cut_off: Answer) -> None:
    server = Server(cut_off, REPLY)
    assert replies(server) == (cut_off, REPLY)  # both took joules
    first, again = server.asked
    assert again == {**first, "max_tokens": first["max_tokens"] + THINKING_TOKENS}


@pytest.mark.parametrize("said", [replace(REPLY, finish_reason="length"), replace(REPLY, text="", reasoning="Hm.")])
def test_what_was_cut_off_or_ended_otherwise_stays(said: Answer) -> None:
    server = Server(said)
    assert replies(server) == (said,)


def test_a_context_that_holds_no_more_thinking_leaves_the_first_reply() -> None:
    server = Server(CUT_OFF, context=THINKING_TOKENS)
    assert replies(server) == (CUT_OFF,)
    assert len(server.asked) == 2


def test_a_server_that_is_gone_when_it_is_asked_for_more_leaves_the_first_reply_and_its_joules() -> None:
    server = Server(CUT_OFF, Failed("server_gone", "the server does not answer", "see that it runs"))
    assert replies(server) == (CUT_OFF,)
    assert len(server.asked) == 2


def test_the_last_reply_counts_and_all_are_known() -> None:
    server = Server(CUT_OFF, REPLY, REPLY)
    judgement = asyncio.run(judge_of(PROMPT, RESPONSE, lambda question: replies_to(question, "m", server.ask)))
    assert judgement.forwards == judgement.backwards == {1: "P", 2: "R"}
    assert judgement.answers == (CUT_OFF, REPLY, REPLY)


def test_what_is_refused_has_no_labels() -> None:
    server = Server(context=10)
    judgement = asyncio.run(judge_of(PROMPT, RESPONSE, lambda question: replies_to(question, "m", server.ask)))
    assert (judgement.forwards, judgement.backwards, judgement.answers) == ({}, {}, ())
