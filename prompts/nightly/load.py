"""Keeps a server under a load, and notes when each token came."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import aiohttp

from etameter.errors import EngineError
from etameter.prompts.checkers import Verdict
from etameter.prompts.deletion import remainder
from etameter.prompts.endpoint import Endpoint, Failed, Fault, energy_in
from etameter.prompts.tasks import Task, check
from etameter.slack.eta import fast_eta
from etameter.slack.fast import classify
from etameter.slack.lexical import lexical
from etameter.slack.tokens import by_length

from .deck import Deck, Question
from .windows import Reply

ARM: Final = "unconstrained"
SETTLE_S: Final = 15.0
DRAIN_S: Final = 600.0
"""So long at most is waited for what is still being answered at the end of a stage."""
GONE: Final = 3
"""After so many requests in a row that found no server there is none."""
BREATH_S: Final = 0.5
"""After a failed request, before its place asks again: a server that is away is not flooded."""


@dataclass(slots=True)
class Load:
    """What was asked of a server in one stage."""

    endpoint: Endpoint
    deck: Deck
    replies: list[Reply] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    _asked: int = 0
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def gone(self) -> bool:
        """Whether the server has gone away: one connection that breaks is no such thing."""
        last = [reply.failure for reply in self.replies[-GONE:]]
        return last == ["server_gone"] * GONE

    async def hold(self, at_once: int) -> None:
        """So many conversations at once, until it is stopped."""

        async def place() -> None:
            while not self._stopped.is_set():
                await self._ask()

        async with asyncio.TaskGroup() as places:
            for _ in range(at_once):
                places.create_task(place())

    async def arrive(self, due_s: Iterator[float]) -> None:
        """A conversation at each of these instants, whatever became of the earlier ones, until it is stopped."""
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as conversations:
            for at_s in due_s:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), max(began_s + at_s - time.monotonic(), 0.0))
                if self._stopped.is_set():
                    return
                conversations.create_task(self._ask())

    def stop(self) -> None:
        """Nothing more is asked; what was is answered yet."""
        self._stopped.set()

    async def _ask(self) -> None:
        question = self.deck(self._asked)
        self._asked += 1
        if question.task is not None:
            self.tasks[question.task.id] = question.task
        reply = await ask(self.endpoint, question)
        self.replies.append(reply)
        if reply.failure is not None:
            await asyncio.sleep(BREATH_S)


@asynccontextmanager
async def under(load: Load, at_once: int | None, due_s: Iterator[float] | None) -> AsyncIterator[None]:
    """The server is under the load while the block runs, and has answered everything after it; when the block fails nobody waits."""
    assert (at_once is None) != (due_s is None)
    asking = asyncio.ensure_future(load.hold(at_once) if at_once is not None else load.arrive(due_s or iter(())))
    try:
        yield
        load.stop()
        async with asyncio.timeout(DRAIN_S):
            await asking
    except TimeoutError as error:
        raise EngineError(f"the server has not answered everything after {DRAIN_S:.0f} s", "see its log") from error
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def ask(endpoint: Endpoint, question: Question) -> Reply:
    """One request, and what became of it, whatever the server does."""
    start_ns = time.monotonic_ns()
    heard = _Heard()
    failure: Fault | None = None
    try:
        async for chunk in endpoint.chunks(question.body, ARM):
            heard.take(chunk, time.monotonic_ns())
    except Failed as failed:
        failure = failed.fault
    except TimeoutError:
        failure = "timeout"
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
        failure = "server_gone"
    except (aiohttp.ClientResponseError, json.JSONDecodeError, UnicodeDecodeError):
        failure = "malformed"
    except (TypeError, LookupError, AttributeError, ValueError):
        failure = "malformed"
    if failure is None and heard.finish_reason is None:
        failure = "malformed"  # the stream ended without a last word
    return Reply(
        start_ns=start_ns,
        end_ns=time.monotonic_ns(),
        token_ns=tuple(heard.token_ns),
        prompt_tokens=heard.prompt_tokens,
        cached_tokens=heard.cached_tokens,
        finish_reason=heard.finish_reason,
        failure=failure,
        text="".join(heard.parts),
        reasoning=heard.reasoning,
        task=None if question.task is None else question.task.id,
        energy=heard.energy,
        receipt_id=heard.receipt_id,
    )


@dataclass(slots=True)
class _Heard:
    """What the chunks of one answer have said so far."""

    token_ns: list[int] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    reasoning: bool = False
    energy: Any = None
    receipt_id: str | None = None

    def take(self, chunk: dict[str, Any], t_ns: int) -> None:
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            self.parts.append(delta.get("content") or "")
            self.reasoning |= bool(delta.get("reasoning") or delta.get("reasoning_content"))
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if usage := chunk.get("usage"):
            self.token_ns += [t_ns] * (int(usage["completion_tokens"]) - len(self.token_ns))
            self.prompt_tokens = int(usage["prompt_tokens"])
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
            self.cached_tokens = self.cached_tokens if cached is None else int(cached)
        if "energy" in chunk:
            self.energy = energy_in(chunk)
            self.receipt_id = chunk.get("energy_receipt_id") if self.energy is None else self.energy["receipt_id"]


async def settled(endpoint: Endpoint, replies: list[Reply]) -> list[Reply]:
    """The replies with what is known of their energy in the end; all of them are waited for together."""
    deadline_s = time.monotonic() + SETTLE_S
    return list(await asyncio.gather(*(_settled(endpoint, reply, deadline_s) for reply in replies)))


async def _settled(endpoint: Endpoint, reply: Reply, deadline_s: float) -> Reply:
    if reply.receipt_id is None or (reply.energy is not None and reply.energy.get("settled")):
        return reply
    try:
        energy, _ = await endpoint.settled(reply.receipt_id, deadline_s)
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return reply
    return reply if energy is None else replace(reply, energy=energy)


def marked(replies: list[Reply], tasks: dict[str, Task]) -> list[Reply]:
    """The replies, checked, with what is found in their texts. Computes for milliseconds an answer; the same answer to the same task is looked at once."""
    found: dict[tuple[str, str], Reply] = {}
    done = []
    for reply in replies:
        if reply.task is None or reply.failure is not None:
            done.append(reply)
            continue
        key = reply.task, reply.text
        if key not in found:
            found[key] = _marked(reply, tasks[reply.task])
        first = found[key]
        done.append(
            replace(
                reply,
                correct=first.correct,
                eta_lenient_at_most=first.eta_lenient_at_most,
                eta_deletion=first.eta_deletion,
                lexical_slack=first.lexical_slack,
            )
        )
    return done


def _marked(reply: Reply, task: Task) -> Reply:
    verdict = check(task, reply.text)
    reply = replace(reply, correct=verdict.correct)
    if reply.reasoning or not reply.output_tokens:  # how many of the tokens the text has is not known then
        return reply
    spans = classify(task.turns[-1], reply.text)
    words = lexical(reply.text)
    whole = sum(span.end - span.start for span, _ in words)
    return replace(
        reply,
        eta_lenient_at_most=fast_eta(spans, by_length(spans, reply.output_tokens).tokens).lenient,
        eta_deletion=_deletion(reply, task, verdict),
        lexical_slack=sum(span.end - span.start for span, label in words if label) / whole if whole else None,
    )


def _deletion(reply: Reply, task: Task, verdict: Verdict) -> float | None:
    if verdict.correct is not True:
        return None
    return remainder(task, reply.text, verdict, reply.output_tokens).eta
