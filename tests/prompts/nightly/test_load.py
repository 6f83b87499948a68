"""A load is held as it was asked for, tokens have their instants, and whatever a server does is in the reply."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from etameter.prompts import endpoint
from etameter.prompts.endpoint import connect
from etameter.prompts.nightly import deck, load
from etameter.prompts.nightly.deck import Question
from etameter.prompts.nightly.load import Load, ask
from etameter.prompts.nightly.windows import Reply
from etameter.prompts.tasks import Task
from tests.prompts import ab_bench
from tests.prompts.upstream import Upstream, running

pytestmark = pytest.mark.unit

BODY = {"model": "small", "messages": [{"role": "user", "content": "What is 1 and 41?"}], "max_tokens": 9}
TASKS = {task.id: task for task in ab_bench.TASKS}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_POLL_S", 0.01)
    monkeypatch.setattr(load, "BREATH_S", 0.0)


def question(number: int) -> Question:
    task = ab_bench.TASKS[number % len(ab_bench.TASKS)]
    return Question(number, {**BODY, "messages": [{"role": "user", "content": task.turns[0]}]}, task)


def loaded(upstream: Upstream, work: Callable[[Load], Any]) -> Load:
    async def main() -> Load:
        async with running(upstream) as url, connect(url, timeout_s=5.0) as server:
            asked = Load(server, question)
            await work(asked)
            asked.replies = await load.settled(server, asked.replies)
            return asked

    return asyncio.run(main())


async def hold(asked: Load, *, at_once: int | None = None, rate_per_s: float | None = None) -> None:
    due = None if rate_per_s is None else deck.evenly_s(rate_per_s)
    async with load.under(asked, at_once, due):
        await asyncio.sleep(0.2)


def test_so_many_conversations_are_held_until_it_is_stopped() -> None:
    upstream = Upstream(ab_bench.says)
    asked = loaded(upstream, lambda one: hold(one, at_once=3))
    assert upstream.most_at_once == 3
    assert len(asked.replies) == len(upstream.requests) > 6
    assert {reply.failure for reply in asked.replies} == {None}


def test_arrivals_do_not_wait_for_each_other() -> None:
    class Slow(Upstream):
        async def chat(self, request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(0.1)
            return await super().chat(request)

    upstream = Slow(ab_bench.says)
    asked = loaded(upstream, lambda one: hold(one, rate_per_s=50.0))
    assert 8 <= len(asked.replies) <= 11
    starts = sorted(reply.start_ns for reply in asked.replies)
    assert all(start_ns - starts[0] >= (place * 0.02 - 0.01) * 1e9 for place, start_ns in enumerate(starts))


def test_a_reply_has_its_tokens_its_text_and_its_receipt() -> None:
    upstream = Upstream(ab_bench.says)
    asked = loaded(upstream, lambda one: hold(one, at_once=1))
    marked = load.marked(asked.replies, asked.tasks)
    for number, reply in enumerate(marked[:8]):
        assert reply.task == f"t{number}"
        assert reply.output_tokens == 9
        assert reply.prompt_tokens == len(ab_bench.TASKS[number].turns[0].split())
        assert reply.start_ns < reply.token_ns[0] <= reply.token_ns[-1] <= reply.end_ns
        assert reply.energy is not None
        assert reply.energy["settled"]
        assert reply.energy["energy_joules"] == 18.0


def test_answers_are_checked_and_the_same_answer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    first = load._marked

    def look(reply: Reply, task: Task) -> Reply:
        looked.append(reply.text)
        return first(reply, task)

    monkeypatch.setattr(load, "_marked", look)
    right, wrong = (Reply(0, 9, (1, 2, 3), text=text, task="t1") for text in ("It is 42.", "It is 41."))
    failed = Reply(0, 9, failure="timeout", task="t1")
    done = load.marked([right, wrong, right, failed], TASKS)
    assert [reply.correct for reply in done] == [True, False, True, None]
    assert looked == ["It is 42.", "It is 41."]
    assert (done[0].eta_deletion, done[1].eta_deletion) == (1.0, None)
    assert done[0].eta_lenient_at_most == 1.0
    assert load.marked([Reply(0, 1, text="x")], TASKS) == [Reply(0, 1, text="x")]


class Broken(Upstream):
    """Answers as it is told to."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(ab_bench.says)
        self.status, self.body = status, body

    async def chat(self, request: web.Request) -> web.StreamResponse:
        if self.status == 0:
            assert request.transport is not None
            request.transport.close()
        return web.Response(status=self.status or 200, body=self.body)


def chunk(**told: Any) -> bytes:
    return f"data: {json.dumps(told)}\n\n".encode()


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (500, b"engine died", "http_5xx"),
        (429, b"later", "http_429"),
        (400, b"the context is full", "refused"),
        (0, b"", "server_gone"),
        (200, b"data: {not json}\n\n", "malformed"),
        (200, chunk(choices=[{"delta": {"content": "x"}}]), "malformed"),
        (200, chunk(choices=3), "malformed"),
        (200, chunk(choices=[], usage={"completion_tokens": "many"}), "malformed"),
    ],
)
def test_what_a_server_does_wrong_is_in_the_reply(status: int, body: bytes, failure: str) -> None:
    async def main() -> Reply:
        async with running(Broken(status, body)) as url, connect(url) as server:
            return await ask(server, Question(0, dict(BODY)))

    assert asyncio.run(main()).failure == failure


def test_a_server_that_is_away_is_told_so() -> None:
    async def main() -> Load:
        async with connect("http://127.0.0.1:9") as server:
            asked = Load(server, question)
            async with load.under(asked, 1, None):
                await asyncio.sleep(0.05)
            return asked

    asked = asyncio.run(main())
    assert asked.gone
    assert {reply.failure for reply in asked.replies} == {"server_gone"}


class Fickle(Upstream):
    """Closes one connection in three that it kept alive, just as it is asked over it: so does uvicorn those that idle."""

    async def chat(self, request: web.Request) -> web.StreamResponse:
        if len(self.requests) % 3 == 2:
            self.requests.append(await request.json())
            assert request.transport is not None
            request.transport.close()
        return await super().chat(request)


def test_a_connection_that_breaks_is_no_server_that_is_away() -> None:
    asked = loaded(Fickle(ab_bench.says), lambda one: hold(one, at_once=1))
    assert {reply.failure for reply in asked.replies} == {None, "server_gone"}
    assert not asked.gone
