"""One conversation of a comparison: held with a server whatever it does, and told as an `Outcome`."""

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import aiohttp

from etameter.records import Source, weakest
from etameter.slack.eta import fast_eta
from etameter.slack.fast import Labelled, classify
from etameter.slack.labels import NAMES
from etameter.slack.lexical import lexical
from etameter.slack.tokens import by_length

from .arms import Arm, Sampling
from .checkers import Code, CodeTest, Verdict
from .deletion import remainder
from .dialogue import Dialogue, Judge, Wanted, converse
from .endpoint import Answer, Endpoint, Failed, Fault
from .minimal import Least, least_code
from .plan import Asking, Block, Plan
from .tables import Outcome, Span
from .tasks import Task

SETTLE_S: Final = 15.0
LAST_LOOK_S: Final = 5.0
"""A receipt that was asked for at the deadline may take so long."""
_SLOW_CHECKERS: Final = (Code, CodeTest)
"""A sandbox takes too long for the dozens of checks of η by deletion: nobody is asked meanwhile, and boards cool down."""
_CODE_CHECKS: Final = 3
"""Of code: as it is, without docstrings and hints, and where that fails without docstrings. Statements are left where they are."""

Energy = Mapping[str, Any]


class Witness:
    """Asks an endpoint, with something added to every request, and keeps the answers: also those before a failure."""

    def __init__(self, endpoint: Endpoint, added: Mapping[str, Any], *, braked: bool | None = None) -> None:
        """`braked`: answers are streamed, with the slack brake or without."""
        self._endpoint = endpoint
        self._added = added
        self._braked = braked
        self.answers: list[Answer] = []

    def at(self, url: str) -> "Witness":
        there = Witness(self._endpoint.at(url), self._added, braked=self._braked)
        there.answers = self.answers
        return there

    async def chat(self, body: Mapping[str, Any], arm: str) -> Answer:
        """As `Endpoint.chat`."""
        asked = {**body, **self._added}
        if self._braked is None:
            answer = await self._endpoint.chat(asked, arm)
        else:
            answer = await self._endpoint.chat_streamed(asked, arm, braked=self._braked)
        self.answers.append(answer)
        return answer

    async def settled(self, receipt_id: str, deadline_s: float) -> tuple[Energy | None, str | None]:
        """As `Endpoint.settled`."""
        return await self._endpoint.settled(receipt_id, deadline_s)


@dataclass(slots=True)
class Held:
    """A conversation that has ended, well or not."""

    asking: Asking
    task: Task
    arm: Arm
    start_ns: int
    end_ns: int
    answers: list[Answer]
    dialogue: Dialogue | None
    """None where the server failed."""
    failure: Fault | None
    energies: list[Energy | None] = field(default_factory=list)
    """Of the answers, settled as far as they have."""

    @property
    def verdict(self) -> Verdict | None:
        return None if self.dialogue is None else self.dialogue.attempts[-1].verdict


@dataclass(frozen=True, slots=True)
class Asker:
    """Holds the conversations of a plan. `run` keeps the caches of different runs apart."""

    plan: Plan
    tasks: Mapping[str, Task]
    arms: Mapping[str, Arm]
    endpoint: Endpoint
    run: str
    judge: Judge

    async def hold(self, block: Block, attempt: int, asking: Asking) -> Held:
        """Holds one conversation. What the server does wrong is in the result.

        Raises:
            ArmError: the arm needs something that the task does not have.
        """
        task, arm = self.tasks[asking.task], self.arms[asking.arm]
        streams = any(each.braked for each in self.arms.values())  # all then, so that the brake alone is the difference
        server = Witness(self.endpoint, self._salt(block, attempt, asking), braked=arm.braked if streams else None)
        wanted = Wanted(task, arm, self._sampling(asking))
        start_ns = time.monotonic_ns()
        dialogue: Dialogue | None = None
        failure: Fault | None = None
        try:
            dialogue = await converse(
                server, wanted, self.plan.model, until_correct=self.plan.until_correct, judge=self.judge
            )
            failure = None if dialogue.refused is None else "refused"
        except Failed as failed:
            failure = failed.fault
        return Held(asking, task, arm, start_ns, time.monotonic_ns(), server.answers, dialogue, failure)

    async def settle(self, held: Sequence[Held]) -> None:
        """Waits until the receipts of all answers are settled, or for so long."""
        deadline_s = time.monotonic() + SETTLE_S
        await asyncio.gather(*(self._settle(one, deadline_s) for one in held))

    async def _settle(self, held: Held, deadline_s: float) -> None:
        server = self.endpoint if held.arm.endpoint is None else self.endpoint.at(held.arm.endpoint)
        held.energies = [await _settled(server, answer, deadline_s) for answer in held.answers]

    def _sampling(self, asking: Asking) -> Sampling:
        """A sample has its own seed, the same under every arm."""
        plan = self.plan
        seed = None
        if plan.temperature > 0:
            lot = f"{plan.seed} {asking.task} {asking.sample}".encode()
            seed = int.from_bytes(hashlib.sha256(lot).digest()[:4]) >> 1
        return Sampling(temperature=plan.temperature, max_tokens=plan.max_tokens, seed=seed)

    def _salt(self, block: Block, attempt: int, asking: Asking) -> dict[str, str]:
        """What keeps prefixes apart in the cache: from other blocks, or from every other conversation."""
        if self.plan.prefix_cache == "as-served":
            return {}
        salt = f"{self.run} {block.number} {attempt}"
        if self.plan.prefix_cache == "off":
            salt += f" {asking.task} {asking.sample} {asking.arm}"
        return {"cache_salt": hashlib.sha256(salt.encode()).hexdigest()[:32]}


async def _settled(server: Endpoint, answer: Answer, deadline_s: float) -> Energy | None:
    """What is known of an answer's energy in the end; what the answer itself said where the server says no more."""
    if answer.receipt_id is None or (answer.energy is not None and answer.energy.get("settled")):
        return answer.energy
    try:
        async with asyncio.timeout(max(deadline_s - time.monotonic(), 0.0) + LAST_LOOK_S):
            energy, _ = await server.settled(answer.receipt_id, deadline_s)
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return answer.energy
    return answer.energy if energy is None else energy


def outcome_of(held: Held, block: Block, attempt: int, *, texts: bool) -> Outcome:
    """The row of a conversation. Without `texts` nothing that was said is in it, nor what a checker says of it."""
    answers, energies = held.answers, held.energies or [answer.energy for answer in held.answers]
    joules = {name: _sum(energies, name) for name in ("energy", "prompt", "output", "marginal", "error")}
    correct = False if held.dialogue is None else held.dialogue.correct
    reason = held.verdict.reason if held.verdict and (texts or correct is None) else ""
    return Outcome(
        part=block.part,
        block=block.number,
        attempt=attempt,
        arm=held.arm.name,
        arm_hash=held.arm.hash,
        task=held.task.id,
        category=held.task.category,
        difficulty=held.task.difficulty,
        sample=held.asking.sample,
        turns=len(answers),
        retries=0 if held.dialogue is None else held.dialogue.retries,
        start_ns=held.start_ns,
        end_ns=held.end_ns,
        prompt_tokens=sum(answer.prompt_tokens for answer in answers) if answers else None,
        cached_tokens=_cached(answers),
        output_tokens=sum(answer.output_tokens for answer in answers) if answers else None,
        finish_reason=answers[-1].finish_reason if answers else None,
        correct=correct,
        reason=reason,
        failure=held.failure,
        energy_j=joules["energy"],
        prompt_j=joules["prompt"],
        output_j=joules["output"],
        marginal_j=joules["marginal"],
        error_j=joules["error"],
        settled=bool(energies) and all(energy is not None and energy.get("settled") for energy in energies),
        source=_source(energies),
        eta_lenient_at_most=None,
        eta_deletion=None,
        lexical_slack=None,
        slack={},
        prompt_text="\n\n".join(held.task.turns) if texts else None,
        answer_text=answers[-1].text if texts and answers else None,
        braked=answers[-1].braked if answers else None,
        detectors=answers[-1].detectors if answers else None,
    )


def with_eta(outcome: Outcome, held: Held, *, texts: bool) -> Outcome:
    """The row with what is found in the text of the last answer. Computes for some milliseconds, and for longer where answers are long."""
    if not held.answers or held.answers[-1].reasoning:  # how many of the tokens the text has is not known then
        return outcome
    answer = held.answers[-1]
    spans = classify(held.task.turns[-1], answer.text)
    found = fast_eta(spans, by_length(spans, answer.output_tokens).tokens)
    return replace(
        outcome,
        eta_lenient_at_most=found.lenient,
        eta_deletion=_deletion(held, answer),
        eta_minimal=_minimal(held, answer),
        lexical_slack=_lexical(answer.text),
        slack={NAMES[label]: share * answer.output_tokens for label, share in found.slack},
        spans=_spans(spans) if texts else (),
    )


def _spans(spans: Sequence[Labelled]) -> tuple[Span, ...]:
    return tuple(Span(span.start, span.end, str(span.label)) for span in spans if span.label is not None)


def _deletion(held: Held, answer: Answer) -> float | None:
    """None but for an answer that is correct, and whose checker is quick."""
    if held.verdict is None or held.verdict.correct is not True or isinstance(held.task.checker, _SLOW_CHECKERS):
        return None
    return remainder(held.task, answer.text, held.verdict, answer.output_tokens).eta


def _minimal(held: Held, answer: Answer) -> float | None:
    """None but for code that is correct."""
    checker = held.task.checker
    if held.verdict is None or held.verdict.correct is not True or not isinstance(checker, Code | CodeTest):
        return None
    found = least_code(answer.text, checker, _CODE_CHECKS)
    return found.eta if isinstance(found, Least) else None


def _lexical(text: str) -> float | None:
    spans = lexical(text)
    whole = sum(span.end - span.start for span, _ in spans)
    return sum(span.end - span.start for span, label in spans if label is not None) / whole if whole else None


def _sum(energies: Sequence[Energy | None], name: str) -> float | None:
    """None where one of them is not known, or there is none."""
    key = f"{name}_joules"
    known = [float(energy[key]) for energy in energies if energy is not None and energy.get(key) is not None]
    return sum(known) if known and len(known) == len(energies) else None


def _source(energies: Sequence[Energy | None]) -> Source | None:
    told: frozenset[Source] = frozenset(energy["source"] for energy in energies if energy is not None)
    return weakest(told) if told else None


def _cached(answers: Sequence[Answer]) -> int | None:
    known = [answer.cached_tokens for answer in answers if answer.cached_tokens is not None]
    return sum(known) if known and len(known) == len(answers) else None
