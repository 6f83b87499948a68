"""Programs that are run together: started, watched, started again or given up, and stopped in reverse order."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from etameter.errors import EngineError, EtameterError

from .child import Child
from .interrupts import interrupts_held

_POLL_S = 0.1
_READY_POLL_S = 0.5
_START_GRACE_S = 2.0
"""A program that is still loading has nothing to finish."""
_BACKOFF_LIMIT_S = 30.0
_STEADY_S = 60.0
"""A service that ran this long is restarted as if it had never died."""


@dataclass(frozen=True, slots=True)
class Service:
    """A program that `Supervisor` runs. When a `vital` one ends everything ends, any other is started again."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    vital: bool
    grace_s: float
    ready: Callable[[], bool] = lambda: True
    sink: Callable[[str], None] | None = None


@dataclass(slots=True)
class _Running:
    service: Service
    child: Child
    started_s: float
    was_ready: bool = False
    deaths: int = 0
    restart_at_s: float | None = None


class Supervisor:
    """Runs services; on leaving its `with` block it stops them in the reverse order of their start.

    Args:
        say: prints one line for the user.
        backoff_s: the wait before the first restart of a service; doubles with every death, up to 30 s.
    """

    def __init__(self, say: Callable[[str], None], backoff_s: float = 1.0) -> None:
        self._say = say
        self._backoff_s = backoff_s
        self._running: list[_Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        while self._running:
            running = self._running[-1]
            running.child.stop(
                running.service.grace_s if running.was_ready else min(_START_GRACE_S, running.service.grace_s)
            )
            self._running.pop()

    def start(self, service: Service) -> None:
        """Starts a service and returns at once."""
        with interrupts_held():
            self._running.append(_Running(service, _child(service), time.monotonic()))

    def wait_ready(self, service: Service, timeout_s: float, tick: Callable[[], None] = lambda: None) -> None:
        """Waits until a started service is ready, looking after the others; calls `tick` ten times a second.

        Raises:
            EtameterError: it died, or is not ready in time.
        """
        running = next(each for each in self._running if each.service is service)
        deadline_s = time.monotonic() + timeout_s
        next_look_s = 0.0
        while time.monotonic() < deadline_s:
            if running.child.exit_code is not None:
                raise _death(service, running.child)
            self.tend()
            if time.monotonic() >= next_look_s:
                if service.ready():
                    running.was_ready = True
                    return
                next_look_s = time.monotonic() + _READY_POLL_S
            tick()
            time.sleep(_POLL_S)
        raise EngineError(
            f"{service.name} was not ready after {timeout_s:.0f} s", "see its output above, or give it more memory"
        )

    def tend(self) -> None:
        """Starts again what died, when its wait is over.

        Raises:
            EtameterError: a vital service died.
        """
        now_s = time.monotonic()
        for running in self._running:
            if running.restart_at_s is None:
                self._note_death(running, now_s)
            elif now_s >= running.restart_at_s:
                with interrupts_held():
                    running.child = _child(running.service)
                running.started_s, running.restart_at_s = now_s, None
                self._say(f"{running.service.name} started again")

    def _note_death(self, running: _Running, now_s: float) -> None:
        if running.child.exit_code is None:
            return
        if running.service.vital:
            raise _death(running.service, running.child)
        running.child.stop(0.0)  # what it left behind
        running.deaths = 1 if now_s - running.started_s > _STEADY_S else running.deaths + 1
        wait_s = min(self._backoff_s * 2 ** (running.deaths - 1), _BACKOFF_LIMIT_S)
        running.restart_at_s = now_s + wait_s
        ended = _exit(running.child.exit_code)
        if running.child.exit_code > 0:
            ended += f": {reason_of_death(running.child.last_words())}"
        self._say(f"{running.service.name} ended ({ended}); serving goes on; it is started again in {wait_s:g} s")


def _child(service: Service) -> Child:
    return Child(service.name, service.argv, service.environment, service.sink)


def _death(service: Service, child: Child) -> EtameterError:
    """The error that a child's end means: its own line, if it is one of ours, else the last relevant one."""
    lines, code = child.last_words(), child.exit_code
    assert code is not None
    if code == EtameterError.exit_code:
        own = next((line for line in reversed(lines) if line.startswith("etameter: ")), None)
        if own is not None:
            message, _, remedy = own.removeprefix("etameter: ").rpartition(": ")
            return EtameterError(message, remedy)
    return EngineError(f"{service.name} ended with {_exit(code)}", reason_of_death(lines))


def _exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


_LOG_PREFIX = re.compile(
    r"^(\([^)]*\) )*((DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d )?(\[[^\]]*\] ?)*"
)
_CAUSE = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|NotFound|Interrupt)\b: .|^[\w./-]+: error: .")
_INVALID = re.compile(r"\S*ValidationError: \d+ validation error")  # the next line says which
_CONSEQUENCE = re.compile(r"Engine core initialization failed|Engine process failed to start|EngineDeadError|leaked ")


def reason_of_death(lines: Sequence[str]) -> str:
    """The line of a log that best says why its program ended: the last that names an error, but not a mere consequence."""
    bare = [_LOG_PREFIX.sub("", line).strip() for line in lines]
    for here, line in enumerate(bare[:-1]):
        if _INVALID.match(line):
            bare[here] = f"ValidationError: {bare[here + 1].partition(' [type=')[0]}"
    causes = [line for line in bare if _CAUSE.match(line) and not _CONSEQUENCE.search(line)]
    said = causes or [line for line in bare if line]
    return said[-1][:400] if said else "it said nothing"
