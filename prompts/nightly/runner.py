"""Runs the stages of a night against a server, one after the other, beside the machine's own energy counters."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from etameter.errors import CounterError, EngineError
from etameter.joules import FIRST_EDGE_S, SETTLE_S, TICK_S, Joules
from etameter.nightly_section import NightlySection
from etameter.prompts.boards import Boards, Seen, over
from etameter.prompts.endpoint import Endpoint
from etameter.prompts.plan import EXCLUSION

from . import beside, external, figures, load, meter_page
from .conditions import Budget, ClockWatch, Losses, Spending
from .deck import Deck
from .estimates import LEAST_WINDOWS
from .external import CantMake
from .figures import Limits, Machine
from .journal import SPOILED, Journal
from .load import Load
from .rows import Figure, Stage, StageRow
from .schedule import WARM_UP, Setting, Stint
from .steady import Glimpse, Steadiness, steadiness
from .windows import Window, cut

T = TypeVar("T")

IDLE_WINDOWS: Final = 3
REST_S: Final = 3.0
"""After the last request, before the board is taken for idle."""
LOOK_S: Final = 5.0
"""Between two looks at the boards; some of its calls take locks in the driver."""
POLL_S: Final = 0.02
TOLD_NS: Final = 500_000_000
"""What was spent longer ago than this the counters have told."""
WARM_AT_ONCE: Final = 8

Compare = Callable[[Stint], Coroutine[Any, Any, tuple[Sequence[StageRow], Sequence[Figure]]]]
"""Runs a comparison of arms, or what is left of one."""
Make = Callable[[Stint], Coroutine[Any, Any, tuple[Window, dict[str, Any]]]]
"""Lets another tool make the load; CantMake where it makes none. With it comes what the tool says."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A span of time in which a load was held, and what was seen in it."""

    start_ns: int
    end_ns: int
    started_wall: str
    spent: tuple[float, float] | None
    seen: Seen
    excluded: str | None
    lived_s: float = 0.0
    """By the boards' own clock."""


@dataclass(slots=True)
class Runner:
    """One session of a night with one server. `joules` have been started."""

    section: NightlySection
    journal: Journal
    endpoint: Endpoint
    joules: Joules
    boards: Boards
    meter_url: str
    machine: Machine
    deck: Callable[[Stint], Deck]
    due_s: Callable[[Stint], Iterator[float] | None]
    """When a stage's questions are due; None where places ask as soon as they are free."""
    compare: Compare
    make: Make
    limits: Callable[[Setting], AbstractContextManager[None]]
    """Holds the boards at a setting of the sweep. Raises CounterError where it can't."""
    budget: Budget
    clocks: ClockWatch = field(default_factory=ClockWatch)
    tell: Callable[[str], None] = lambda _: None
    tend: Callable[[], None] = lambda: None
    """Called some twenty times a second; what it raises ends the night."""
    _losses: Losses = field(init=False, default_factory=Losses)
    _began_ns: int = field(init=False, default=0)
    _spending: Spending = field(init=False)
    _warm: bool = field(init=False, default=False)
    _tracked: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._spending = Spending(self.joules.energy_between)

    async def run(self, stints: Sequence[Stint]) -> None:
        """All of them that have not ended yet.

        Raises:
            BudgetSpent: the night has taken what it may.
            CounterError: a counter stands still, or can't be read.
            EngineError: the server can't be asked, or went away.
        """
        todo = [stint for stint in stints if stint.name not in self.journal.told.figures]
        if todo:
            await self._while_tended(self._run(todo))

    async def _while_tended(self, work: Coroutine[Any, Any, T]) -> T:
        began_s = time.monotonic()
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=TICK_S))[0]:
                self._losses.take(self.joules.advance())
                self.tend()
                if jump := self.clocks.look():
                    self.journal.note("clock", asdict(jump))
                self._spending.add_up(time.monotonic_ns() - TOLD_NS)
                self.budget.check(time.monotonic() - began_s, self._spending.known_j)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return task.result()

    async def _run(self, todo: Sequence[Stint]) -> None:
        await self._counters_move()
        self._began_ns = time.monotonic_ns()
        self._spending.begin(self._began_ns)
        for stint in todo:
            if stint.kind != "idle" and not self._warm:
                await self._warm_up()
            self.tell(stint.name)
            match stint.kind:
                case "idle":
                    await self._idle(stint)
                case "ab":
                    self.journal.begin(stint.name)
                    rows, found = await self.compare(stint)
                    self._end(stint.name, rows, found)
                case "external":
                    await self._external(stint)
                case "sweep" if stint.setting is not None:
                    await self._setting(stint, stint.setting)
                case _:
                    await self._load(stint)
        page = await meter_page.scrape(self.meter_url)
        if page is not None or meter_page.STAGE not in self.journal.told.figures:
            self.journal.end(meter_page.STAGE, meter_page.of_meter(page, self.joules.source))

    async def _counters_move(self) -> None:
        self.tell("waiting for the counters")
        deadline_s = time.monotonic() + FIRST_EDGE_S
        while still := self.joules.standing_still():
            if time.monotonic() > deadline_s:
                raise CounterError(
                    "stale", f"the counter of {', '.join(still)} stands still", "etameter doctor says more"
                )
            await asyncio.sleep(POLL_S)

    # ---- stages ----

    async def _idle(self, stint: Stint) -> None:
        attempt = self.journal.begin(stint.name)
        await asyncio.sleep(min(REST_S, self.section.idle_s))
        taken = [await self._take(self.section.idle_s / IDLE_WINDOWS) for _ in range(IDLE_WINDOWS)]
        windows = [Window(one.start_ns, one.end_ns, _j(one)) for one in taken]
        rows = [self._row((stint.name, stint.kind), number, attempt, one, None) for number, one in enumerate(taken)]
        good = [window for window, one in zip(windows, taken, strict=True) if one.excluded is None]
        self._end(stint.name, rows, figures.of_idle(stint.name, good, self.joules.source))

    async def _warm_up(self) -> None:
        """Asks until power, temperature and clocks are level, or for so long; what it costs is no stage's."""
        self.tell("warming up until power, temperature and clocks are level")
        at_once = max((min(one, WARM_AT_ONCE) for one in self.section.batches), default=WARM_AT_ONCE)
        stint = Stint(WARM_UP, "warm-up", at_once=at_once)
        attempt = self.journal.begin(WARM_UP)
        asked = Load(self.endpoint, self.deck(stint))
        began_s = time.monotonic()
        taken: list[Taken] = []
        state = Steadiness(None, None, None)
        async with load.under(asked, at_once, None):
            while not state.level and time.monotonic() < began_s + self.section.warm_up_s:
                taken.append(await self._take(self.section.window_s, asked))
                state = steadiness([_glimpse(one) for one in taken])
        unchecked = [replace(reply, task=None) for reply in asked.replies]
        windows = cut(unchecked, [(one.start_ns, one.end_ns) for one in taken])
        rows = [
            self._row((WARM_UP, "warm-up"), number, attempt, one, window)
            for number, (one, window) in enumerate(zip(taken, windows, strict=True))
        ]
        self._end(WARM_UP, rows, ())
        told = {"seconds": time.monotonic() - began_s, "level": state.level, "cv": asdict(state)}
        if not state.level:
            told |= {"reason": state.reason, "remedy": state.remedy}
        self.journal.warmed_up(told)
        self._warm = True

    async def _load(self, stint: Stint) -> None:
        attempt = self.journal.begin(stint.name)
        asked = Load(self.endpoint, self.deck(stint))
        before = await meter_page.scrape(self.meter_url)
        async with load.under(asked, stint.at_once, self.due_s(stint)):
            taken = [await self._take(self.section.window_s, asked, ramp=True)]
            async with self._tracker(stint.name):
                while self._wanted(taken):
                    taken.append(await self._take(self.section.window_s, asked))
        replies = await load.settled(self.endpoint, asked.replies)
        replies = await asyncio.to_thread(load.marked, replies, asked.tasks)
        windows = cut(replies, [(one.start_ns, one.end_ns) for one in taken])
        for window, one in zip(windows, taken, strict=True):
            window.energy_j = _j(one)
        rows = [
            self._row((stint.name, stint.kind), number, attempt, one, window)
            for number, (one, window) in enumerate(zip(taken, windows, strict=True))
        ]
        good = [window for window, one in zip(windows, taken, strict=True) if one.excluded is None]
        why_not = self._spoiled(stint.name, taken, good)
        limits = Limits(self.section.ttft_slo_s, self.section.itl_slo_s)
        found = figures.of_load(stint.name, [] if why_not else good, self.joules.source, self.machine, limits, why_not)
        after = await meter_page.scrape(self.meter_url)
        found.append(meter_page.unattributed(stint.name, before, after, self.joules.source))
        self._end(stint.name, rows, found)

    async def _setting(self, stint: Stint, setting: Setting) -> None:
        """A stage of a sweep; where the boards can't be set so, its figures say why they are not known."""
        with ExitStack() as held:
            try:
                held.enter_context(self.limits(setting))  # not in a thread, which would set limits after an interrupt
            except CounterError as error:
                self.journal.begin(stint.name)
                self._end(stint.name, (), external.nothing(stint.name, str(error), self.joules.source))
                return
            await self._load(stint)

    async def _external(self, stint: Stint) -> None:
        attempt = self.journal.begin(stint.name)
        looks: list[Seen] = []
        looking = asyncio.ensure_future(self._look(looks))
        wall, source = _now(), self.joules.source
        try:
            window, told = await self.make(stint)
        except CantMake as error:
            self._end(stint.name, (), external.nothing(stint.name, str(error), source))
            return
        finally:
            looking.cancel()
        looks.append(await asyncio.to_thread(self.boards.look))
        spent, seen = await self._spent(window.start_ns, window.end_ns), over(looks)
        one = Taken(window.start_ns, window.end_ns, wall, spent, seen, self._reason(spent, seen))
        window.energy_j = _j(one) if one.excluded is None else None
        row = self._row((stint.name, stint.kind), 0, attempt, one, window)
        self._end(stint.name, [row], external.figures_of(stint.name, window, told, source))

    # ---- windows ----

    async def _take(self, seconds: float, asked: Load | None = None, *, ramp: bool = False) -> Taken:
        """Lets so much time pass, and reads what the counters and boards say of it.

        Raises:
            EngineError: the server has gone.
        """
        looks: list[Seen] = []
        looking = asyncio.ensure_future(self._look(looks))
        wall, start_ns, start_s = _now(), time.monotonic_ns(), self.boards.clock_s()
        until_s = time.monotonic() + seconds
        try:
            while (left_s := until_s - time.monotonic()) > 0:
                await asyncio.sleep(min(left_s, 0.5))
                if asked is not None and asked.gone:
                    raise EngineError("the server went away", "see its log")
            end_ns, lived_s = time.monotonic_ns(), self.boards.clock_s() - start_s
        finally:
            looking.cancel()
        looks.append(await asyncio.to_thread(self.boards.look))
        spent, seen = await self._spent(start_ns, end_ns), over(looks)
        replies = [] if asked is None else asked.replies
        (window,) = cut(replies, [(start_ns, end_ns)])
        reason = "ramp" if ramp else self._reason(spent, seen, window)
        if reason is None and any(start_ns <= jump.t_ns <= end_ns + 1_000_000_000 for jump in self.clocks.jumps):
            reason = "clock"
        return Taken(start_ns, end_ns, wall, spent, seen, reason, lived_s)

    def _reason(self, spent: tuple[float, float] | None, seen: Seen, window: Window | None = None) -> str | None:
        """By which rule it does not count: the rules of the comparison of arms."""
        ended = [] if window is None else window.ended
        return EXCLUSION.reason(
            energy_j=None if spent is None else spent[0],
            conversations=len(ended),
            failures=[reply.failure for reply in ended if reply.failure is not None],
            throttled=seen.throttled,
            neighbours=seen.neighbours,
        )

    def _wanted(self, taken: Sequence[Taken]) -> bool:
        """Whether another window is due: what does not count is taken again, each stage up to twice its windows."""
        good = sum(one.excluded is None for one in taken)
        return good < self.section.windows and len(taken) - 1 < 2 * self.section.windows

    def _spoiled(self, stage: str, taken: Sequence[Taken], good: Sequence[Window]) -> str:
        """Why the stage has no figures; empty where it has."""
        if len(good) >= LEAST_WINDOWS:
            return ""
        rules = sorted({one.excluded for one in taken if one.excluded not in {None, "ramp"}}, key=str)
        why = f"{len(good)} of {len(taken) - 1} windows count; the others do not by these rules: {', '.join(map(str, rules))}"
        self.journal.note(SPOILED, {"stage": stage, "rules": rules, "reason": why})
        return why

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

    @asynccontextmanager
    async def _tracker(self, stage: str) -> AsyncIterator[None]:
        """Lets codecarbon run beside the first stage that is under load, where it is installed."""
        if self._tracked or self.journal.told.of("codecarbon") or not beside.installed():
            yield
            return
        self._tracked = True
        tracking = beside.tracking()
        told = await asyncio.to_thread(tracking.__enter__)
        start_ns = time.monotonic_ns()
        with ExitStack() as undo:
            undo.push(tracking)
            yield
            end_ns = time.monotonic_ns()
            undo.pop_all()
            await asyncio.to_thread(tracking.__exit__, None, None, None)
        spent = await self._spent(start_ns, end_ns)
        seconds, energy_j = (end_ns - start_ns) * 1e-9, None if spent is None else spent[0]
        found = beside.compared(told, energy_j, seconds, self.joules.counters[0].kind, stage)
        self.journal.note("codecarbon", found)

    # ---- writing ----

    def _row(self, stage: tuple[str, Stage], number: int, attempt: int, one: Taken, window: Window | None) -> StageRow:
        energy_j, error_j = one.spent or (None, None)
        return StageRow(
            stage=stage[0],
            kind=stage[1],
            window=number,
            attempt=attempt,
            session=self.journal.session_number,
            start_ns=one.start_ns,
            end_ns=one.end_ns,
            started_wall=one.started_wall,
            energy_j=energy_j,
            energy_error_j=error_j,
            requests=None if window is None else len(window.ended),
            failures=None if window is None else window.failures,
            correct=None if window is None else window.correct,
            prompt_tokens=None if window is None else window.prompt_tokens,
            output_tokens=None if window is None else window.output_tokens,
            power_w=_w(one),
            temperature_c=one.seen.temperature_c,
            clock_mhz=one.seen.clock_mhz,
            throttled=one.seen.throttled,
            neighbours=one.seen.neighbours,
            excluded=one.excluded,
            source=self.joules.source,
            counter=self.joules.counters[0].kind,
        )

    def _end(self, stage: str, rows: Sequence[StageRow], found: Sequence[Figure]) -> None:
        for row in rows:
            self.journal.window(row)
        self.journal.end(stage, found)
        self._spending.add_up(time.monotonic_ns() - TOLD_NS)
        seconds, known_j = time.monotonic() - self._began_ns * 1e-9, self._spending.known_j
        told = {"energy_j": known_j if self._spending.whole else None, "known_j": known_j}
        self.journal.note("spent", {"session": self.journal.session_number, "seconds": seconds, **told})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _j(one: Taken) -> float | None:
    return None if one.spent is None else one.spent[0]


def _w(one: Taken) -> float | None:
    return None if one.spent is None else one.spent[0] / ((one.end_ns - one.start_ns) * 1e-9)


def _glimpse(one: Taken) -> Glimpse:
    power_w = None if one.spent is None or one.lived_s <= 0 else one.spent[0] / one.lived_s
    return Glimpse(power_w, one.seen.temperature_c, one.seen.clock_mhz)
