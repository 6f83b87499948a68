"""SIGINT, SIGTERM and SIGHUP end a command in its own order: each raises KeyboardInterrupt once, and where that would do harm not at once."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, once: what follows can't disturb the clean-up."""
    interrupted = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    with _handled(interrupt):
        yield


def run_interruptible(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, whose work an interrupt cancels; when every task has ended, the handler that was there before is called.

    Were that one called at once, it would raise in whichever task runs just then: a task that nobody asks what became of it, and that says so long after the end.
    """
    interrupted: list[int] = []
    runner = asyncio.Runner()
    loop = runner.get_loop()
    task = loop.create_task(work)

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if not interrupted and not task.done():
            loop.call_soon_threadsafe(task.cancel)
        interrupted.append(number)

    try:
        with _handled(interrupt), runner:
            runner.run(asyncio.wait({task}))
        return task.result()
    finally:
        if interrupted:
            signal.raise_signal(interrupted[0])


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Holds interrupts back, so that none falls between a child's start and the note of who must stop it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _INTERRUPTS}
    for number in _INTERRUPTS:
        if number != signal.SIGHUP or before[number] != signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
