"""Runs a plan against a server, block by block, beside the machine's own energy counters.

The joules of a block are what the counters grew by from its first request to its last answer. Nothing is attributed for them: an engine that knows nothing
of etameter has them, too. What a receipt says of a single conversation stands beside them, in its own row.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle, islice
from typing import Any, Final, TypeVar

import aiohttp

from etameter.errors import CounterError, EngineError, ExperimentError
from etameter.joules import FIRST_EDGE_S, SETTLE_S, TICK_S, Joules

from .asking import Asker, Held, outcome_of, with_eta
from .boards import Boards, Seen, over
from .endpoint import Fault
from .journal import Journal
from .plan import Asking, Block, PartPlan, Plan
from .tables import BlockRow

T = TypeVar("T")

LOOK_S: Final = 10.0
"""Between two looks at the boards; some of its calls take locks in the driver."""
POLL_S: Final = 0.02
SECOND_NS: Final = 1_000_000_000
COMES_BACK_S: Final = 900.0
"""So long is waited for a server that went away and may be started again."""
WARM_AT_ONCE: Final = 4
"""Where the load is a rate."""
WARM_FAILURES: Final = 4
"""Requests of a warm-up that are refused one after the other until the run is given up."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things take that are no part of a block, in seconds."""

    idle_s: float = 10.0
    rest_s: float = 3.0
    """After the last request, before the board is taken for idle."""
    round_s: float = 8.0
    """Of warming up: power and temperature of two rounds are compared."""
    warm_up_s: float = 180.0
    """At most."""


PATIENCE = Patience()
LEVEL: Final = 0.05
"""Mean power of two rounds of warming up may differ by so much, …"""
LEVEL_C: Final = 1.0
"""… and their temperatures by so many kelvins."""


@dataclass(frozen=True, slots=True)
class State:
    """How far a run is."""

    doing: str
    done: int
    """Conversations of blocks that are done, and of the one that runs."""
    of: int
    left_s: float | None


@dataclass(slots=True)
class Experiment:
    """A run: a plan, whom it asks, what it reads, and where it writes. `joules` have been started."""

    plan: Plan
    asker: Asker
    joules: Joules
    boards: Boards
    journal: Journal
    machine: Mapping[str, Any]
    """What the session's line says of where this runs."""
    texts: bool = False
    """Keep what was asked and answered."""
    patience: Patience = PATIENCE
    tell: Callable[[State], None] = lambda _: None
    tend: Callable[[], None] = lambda: None
    """Called some twenty times a second; what it raises ends the run."""
    _held: int = field(init=False, default=0)
    _pace_s: dict[str, list[float]] = field(init=False, default_factory=dict)

    async def run(self) -> None:
        """All that is not done yet.

        Raises:
            CounterError: a counter stands still, or can't be read.
            EngineError: the server can't be asked, or went away and did not come back.
            ExperimentError: the machine is another than that of the run so far.
        """
        self._check_machine()
        await self._while_tended(self._run())

    async def _while_tended(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=TICK_S))[0]:
                self.joules.advance()
                self.tend()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return task.result()

    async def _run(self) -> None:
        todo = [block for block in self.plan.blocks if not self._is_done(block)]
        if not todo:
            return
        await self._counters_move()
        self.journal.session({**self.machine, "boards": self.boards.describe()})
        await self._warm_up(todo[0])
        await self._idle()
        for block in todo:
            while not self._is_done(block):
                row = await self._block(block)
                if row.excluded == "server_gone":
                    await self._comes_back(block)
                    await self._warm_up(block)
        await self._idle()

    def _is_done(self, block: Block) -> bool:
        return self.journal.told.is_done(block.number, self.plan.exclusion.attempts)

    def _check_machine(self) -> None:
        """A run's blocks are compared with each other, so that they have to come from the same counters."""
        here = _named(self.boards.describe()), self.joules.source
        for session in self.journal.told.sessions:
            there = _named(session["boards"]), session["source"]
            if here != there:
                raise ExperimentError(
                    f"the run was begun on {', '.join(there[0])} ({there[1]}), and this is {', '.join(here[0])} ({here[1]})",
                    "go on where it was begun, or begin another with --out",
                )

    async def _counters_move(self) -> None:
        self._say("waiting for the counters")
        deadline_s = time.monotonic() + FIRST_EDGE_S
        while still := self.joules.standing_still():
            if time.monotonic() > deadline_s:
                raise CounterError(
                    "stale", f"the counter of {', '.join(still)} stands still", "etameter doctor says more"
                )
            await asyncio.sleep(POLL_S)

    async def _comes_back(self, block: Block) -> None:
        """Waits for a server that went away."""
        self._say("the server went away: waiting for it")
        deadline_s = time.monotonic() + COMES_BACK_S
        while time.monotonic() < deadline_s:
            try:
                await self.asker.endpoint.models()
            except (aiohttp.ClientError, TimeoutError, EngineError, ValueError):
                await asyncio.sleep(1.0)
            else:
                return
        raise EngineError(f"the server went away in block {block.number} and did not come back", "start it again")

    async def _warm_up(self, block: Block) -> None:
        """Asks until power and temperature are level; what it costs is no block's."""
        part = self._part(block)
        askings = cycle([asking for each in part.blocks for asking in each.askings])
        at_once = part.concurrency or WARM_AT_ONCE
        rounds: list[tuple[float | None, Seen]] = []
        failed: list[Fault] = []
        began_s = time.monotonic()
        level = False
        while not level and time.monotonic() < began_s + self.patience.warm_up_s:
            self._say("warming up until power and temperature are level")
            start_ns = time.monotonic_ns()
            end_ns = start_ns
            while end_ns <= start_ns + int(self.patience.round_s * 1e9):
                held = await _all([self.asker.hold(block, -1, asking) for asking in islice(askings, at_once)])
                failures = [one.failure for one in held if one.failure is not None]
                failed = [*failed, *failures] if len(failures) == len(held) else []
                _refuse_strangers(failed)
                end_ns = time.monotonic_ns()
            seen = await asyncio.to_thread(self.boards.look)
            rounds.append((_watts(await self._spent(start_ns, end_ns), start_ns, end_ns), seen))
            level = len(rounds) > 1 and _level(rounds[-2], rounds[-1])
        self.journal.warmed_up(time.monotonic() - began_s, level=level, watts=[watts for watts, _ in rounds])

    async def _idle(self) -> None:
        """What the counters say while nobody asks."""
        self._say("measuring idle power")
        await asyncio.sleep(self.patience.rest_s)
        start_ns = time.monotonic_ns()
        await asyncio.sleep(self.patience.idle_s)
        end_ns = time.monotonic_ns()
        spent = await self._spent(start_ns, end_ns)
        self.journal.idle(start_ns, end_ns, None if spent is None else spent[0])

    async def _block(self, block: Block) -> BlockRow:
        """Runs a block to its end, and drains it."""
        looks: list[Seen] = []
        looking = asyncio.ensure_future(self._look(looks))
        wall = datetime.now(UTC).isoformat(timespec="milliseconds")
        attempt = self.journal.begin(block, time.monotonic_ns(), wall)
        try:
            start_ns = time.monotonic_ns()
            held = await self._ask(block, attempt)
            end_ns = time.monotonic_ns()
        finally:
            looking.cancel()
        looks.append(await asyncio.to_thread(self.boards.look))
        spent = await self._spent(start_ns, end_ns)
        await self.asker.settle(held)
        for one in held:
            outcome = outcome_of(one, block, attempt, texts=self.texts)
            self.journal.outcome(await asyncio.to_thread(with_eta, outcome, one, texts=self.texts))
        row = self._row(block, attempt, wall, (start_ns, end_ns), spent, over(looks), held)
        self.journal.power(block.number, attempt, self._watts_of_seconds(start_ns, end_ns))
        self.journal.end(row)
        self._held = 0
        if row.excluded is None:
            self._pace_s.setdefault(block.part, []).append((time.monotonic_ns() - start_ns) * 1e-9)
        return row

    async def _ask(self, block: Block, attempt: int) -> list[Held]:
        """Every conversation of the block, until the last has ended; none is begun after the server has gone."""
        part = self._part(block)
        gate = asyncio.Semaphore(part.concurrency or len(block.askings))
        start_s = time.monotonic()
        gone = False
        self._held = 0

        async def one(place: int, asking: Asking) -> Held | None:
            nonlocal gone
            if part.rate_per_s is not None:
                await asyncio.sleep(max(start_s + place / part.rate_per_s - time.monotonic(), 0.0))
            async with gate:
                if gone:
                    return None
                held = await self.asker.hold(block, attempt, asking)
            gone |= held.failure == "server_gone"
            self.journal.outcome(outcome_of(held, block, attempt, texts=self.texts))
            self._held += 1
            self._say(f"{block.part}, block {block.number + 1} of {len(self.plan.blocks)}, {block.arm}")
            return held

        ended = await _all([one(place, asking) for place, asking in enumerate(block.askings)])
        return [held for held in ended if held is not None]

    async def _look(self, looks: list[Seen]) -> None:
        while True:
            looks.append(await asyncio.to_thread(self.boards.look))
            await asyncio.sleep(LOOK_S)

    async def _spent(self, start_ns: int, end_ns: int) -> tuple[float, float] | None:
        """Joules and error between two instants, once the counters have been published for long enough."""
        deadline_s = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline_s:
            if self.joules.reach(end_ns):
                break
            await asyncio.sleep(POLL_S)
        return self.joules.energy_between(start_ns, end_ns)

    def _watts_of_seconds(self, start_ns: int, end_ns: int) -> list[float | None]:
        """Mean power of each whole second."""
        begins_ns = range(start_ns, end_ns - SECOND_NS + 1, SECOND_NS)
        return [
            _watts(self.joules.energy_between(begin_ns, begin_ns + SECOND_NS), begin_ns, begin_ns + SECOND_NS)
            for begin_ns in begins_ns
        ]

    def _row(
        self,
        block: Block,
        attempt: int,
        wall: str,
        span_ns: tuple[int, int],
        spent: tuple[float, float] | None,
        seen: Seen,
        held: Sequence[Held],
    ) -> BlockRow:
        energy_j, error_j = (None, None) if spent is None else spent
        failures = [one.failure for one in held if one.failure is not None]
        answers = [answer for one in held for answer in one.answers]
        excluded = self.plan.exclusion.reason(
            energy_j=energy_j,
            conversations=len(block.askings),
            failures=failures,
            throttled=seen.throttled,
            neighbours=seen.neighbours,
        )
        return BlockRow(
            part=block.part,
            block=block.number,
            attempt=attempt,
            repeat=block.repeat,
            arm=block.arm,
            arm_hash=self.plan.arm_hashes.get(block.arm, ""),
            position=block.position,
            start_ns=span_ns[0],
            end_ns=span_ns[1],
            started_wall=wall,
            energy_j=energy_j,
            energy_error_j=error_j,
            idle_w=None,
            requests=len(answers) + len(failures),
            failures=len(failures),
            correct=sum(one.dialogue is not None and one.dialogue.correct is True for one in held),
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            output_tokens=sum(answer.output_tokens for answer in answers),
            power_w=_watts(spent, *span_ns),
            temperature_c=seen.temperature_c,
            throttled=seen.throttled,
            neighbours=seen.neighbours,
            excluded=excluded,
            source=self.joules.source,
            counter=self.joules.counters[0].kind,
        )

    def _part(self, block: Block) -> PartPlan:
        return next(part for part in self.plan.parts if part.part == block.part)

    def _say(self, doing: str) -> None:
        done = sum(len(block.askings) for block in self.plan.blocks if self._is_done(block)) + self._held
        self.tell(State(doing, done, self.plan.conversations, self._left_s()))

    def _left_s(self) -> float | None:
        """By the pace of the blocks of each part, and of what was seen so far for parts that are yet to come; None before the first."""
        seen = [pace_s for paces_s in self._pace_s.values() for pace_s in paces_s]
        if not seen:
            return None
        left_s = 0.0
        for block in self.plan.blocks:
            if not self._is_done(block):
                paces_s = self._pace_s.get(block.part, seen)
                left_s += sum(paces_s) / len(paces_s)
        return left_s


def _named(boards: Sequence[Mapping[str, Any]]) -> list[str]:
    """A simulated board that was told to take more is another."""
    return [
        each["board"] + (f" at {each['times_energy']:g} times its energy" if "times_energy" in each else "")
        for each in boards
    ]


def _refuse_strangers(failures: Sequence[Fault]) -> None:
    """A server that fails at one request after the other is not what the plan was made for; that it refuses one may be the prompt's doing."""
    if len(failures) >= WARM_FAILURES or set(failures) - {"refused"}:
        raise EngineError(
            f"the server answers no request of the warm-up ({failures[0]})",
            "see its log; without vLLM's cache_salt, use --prefix-cache as-served",
        )


async def _all(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What they return, in order; when one fails the others are given up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _watts(spent: tuple[float, float] | None, start_ns: int, end_ns: int) -> float | None:
    return None if spent is None else spent[0] / ((end_ns - start_ns) * 1e-9)


def _level(before: tuple[float | None, Seen], after: tuple[float | None, Seen]) -> bool:
    (before_w, cold), (after_w, warm) = before, after
    if before_w is None or after_w is None or abs(after_w - before_w) > LEVEL * after_w:
        return False
    return (
        cold.temperature_c is None
        or warm.temperature_c is None
        or abs(warm.temperature_c - cold.temperature_c) <= LEVEL_C
    )
