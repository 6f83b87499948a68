"""A comparison in miniature: eight tasks under two arms, a server of a few lines, and a counter that follows the clock."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etameter.counters import Kind, Scope
from etameter.joules import Joules
from etameter.prompts import journal
from etameter.prompts.arms import Arm, find
from etameter.prompts.asking import Asker
from etameter.prompts.boards import Boards, Seen
from etameter.prompts.checkers import parse
from etameter.prompts.endpoint import connect
from etameter.prompts.experiment import Experiment, Patience, State
from etameter.prompts.journal import Journal
from etameter.prompts.plan import Load, Plan, lay_out
from etameter.prompts.tasks import Suite, Task, check
from etameter.records import Finding, Source
from tests.prompts.upstream import Upstream, running

CHECKER = parse('{"kind": "number", "value": 42}')
TASKS = tuple(Task(f"t{n}", "mini", "sums", "easy", (f"What is {n} and {42 - n}?",), CHECKER) for n in range(8))
SUITE = Suite("mini", "1", TASKS, "h")
ARMS: tuple[Arm, ...] = (find("unconstrained"), find("concise"))
LOADS = (Load("concurrency", concurrency=4), Load("closed-loop", concurrency=1, tasks=2, blocks=1))
AT_ONCE = Patience(idle_s=0.0, rest_s=0.0, round_s=0.0, warm_up_s=5.0)
WATTS = 200.0
WORDY = "Sure! I'd be happy to help with that.\n\n{}\n\nI hope this helps! Let me know if you have any other questions."


def plan(**wishes: Any) -> Plan:
    return lay_out(SUITE, ARMS, "small", wishes.pop("loads", LOADS), **wishes)


def says(messages: Sequence[dict[str, str]]) -> str:
    """A short answer where it was asked for, one that is wrong for every fourth task, and padding elsewhere."""
    number = int(messages[-1]["content"].split()[2])
    answer = "It is 41." if number % 4 == 3 else "It is 42."
    return answer if messages[0]["role"] == "system" else WORDY.format(answer)


class Clock:
    """A counter that grows with the time, and is never late."""

    gpu_uuid, board_name = "GPU-clock", "clock"
    scope: Scope = "gpu"
    kind: Kind = "simulated"
    source: Source = "simulated"
    parts: tuple[str, ...] = ()
    blur_ns, power_w = 0, None

    def read_mj(self) -> int:
        return 0

    def conditions(self) -> tuple[()]:
        return ()

    def throttled(self) -> None:
        return None

    def power_limit_w(self) -> None:
        return None

    def processes(self) -> None:
        return None

    def close(self) -> None:
        pass


class Steady(Joules):
    """Joules at once, without a thread: `WATTS` all the time."""

    def __init__(self) -> None:
        super().__init__([Clock()])

    def advance(self) -> list[Finding]:
        return []

    def standing_still(self) -> list[str]:
        return []

    def reach(self, t_ns: int) -> bool:
        return True

    def energy_between(self, start_ns: int, end_ns: int) -> tuple[float, float] | None:
        return WATTS * (end_ns - start_ns) * 1e-9, 0.01


class Looks(Boards):
    """Boards that show what they are told to, one glance after the other, and then the last."""

    def __init__(self, *glances: Seen, name: str = "clock") -> None:
        super().__init__([], Path("/nowhere"))
        self._glances = list(glances) or [Seen()]
        self._name = name

    def look(self) -> Seen:
        return self._glances.pop(0) if len(self._glances) > 1 else self._glances[0]

    def describe(self) -> list[dict[str, Any]]:
        return [{"board": self._name, "counter": "simulated", "source": "simulated"}]


@contextmanager
def served(upstream: Upstream) -> Iterator[str]:
    """The address of a server that runs in a thread of its own, for code with a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = running(upstream)
    try:
        yield asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def go_on(
    folder: Path,
    planned: Plan,
    upstream: Upstream,
    *,
    boards: Boards | None = None,
    joules: Joules | None = None,
    texts: bool = False,
    patience: Patience = AT_ONCE,
    tell: Callable[[State], None] = lambda _: None,
) -> journal.Told:
    """Runs what is left of a plan that was begun in a folder."""

    async def main(kept: Journal) -> None:
        machine = {"run": "r", "began": "then", "texts": texts, "source": "simulated", "counter": "simulated"}
        async with running(upstream) as url, connect(url, run="r", timeout_s=planned.timeout_s) as endpoint:
            tasks, arms = {task.id: task for task in TASKS}, {arm.name: arm for arm in ARMS}
            asker = Asker(planned, tasks, arms, endpoint, "r", check)
            await Experiment(
                planned,
                asker,
                joules or Steady(),
                boards or Looks(),
                kept,
                machine,
                texts=texts,
                patience=patience,
                tell=tell,
            ).run()

    with journal.resume(folder, planned) as kept:
        asyncio.run(main(kept))
    return journal.load(folder)[1]


def done(folder: Path, planned: Plan, upstream: Upstream, **options: Any) -> journal.Told:
    """Runs a plan from its beginning to its end."""
    journal.begin(folder, planned)
    return go_on(folder, planned, upstream, **options)
