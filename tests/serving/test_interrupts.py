"""An interrupt ends asynchronous work from outside of its tasks, in order and once."""

import asyncio
import gc
import os
import signal
from contextlib import suppress

import pytest

from etameter.serving.interrupts import interruptible, run_interruptible

pytestmark = pytest.mark.unit

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupt_inside_a_task_ends_the_work_and_nobody_hears_of_it_later(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    async def interrupted() -> None:
        os.kill(os.getpid(), number)
        await asyncio.sleep(60)

    async def work() -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(interrupted())
        finally:
            os.kill(os.getpid(), number)  # an impatient user
            await asyncio.sleep(0.01)
            done.append("cleaned up")

    before = [signal.getsignal(each) for each in NUMBERS]
    with pytest.raises(KeyboardInterrupt), interruptible():
        run_interruptible(work())
    gc.collect()
    assert done == ["cleaned up"]
    assert caplog.messages == []
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_without_an_interrupt_it_is_what_asyncio_runs() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> int:
        raise LookupError

    with interruptible():
        assert run_interruptible(answer()) == 42
        with pytest.raises(LookupError):
            run_interruptible(fail())


def test_an_interrupt_beside_a_failure_is_an_interrupt(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise LookupError

    with pytest.raises(KeyboardInterrupt), interruptible():
        run_interruptible(fail())
    gc.collect()
    assert caplog.messages == []


def test_work_that_heeds_no_cancellation_and_ends_is_interrupted_all_the_same() -> None:
    async def heedless() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return 42

    with pytest.raises(KeyboardInterrupt), interruptible():
        run_interruptible(heedless())
