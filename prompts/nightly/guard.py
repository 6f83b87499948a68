"""Holds boards at other limits while a block runs, from a process of its own that sets them back when the block ends, however that comes about.

The guard alone changes anything. It ignores every signal that can be ignored, and waits for a line or for the end of its input, which the kernel brings about when this process
dies, whatever it died of. What it can't outlive is its own SIGKILL; then this process sets the limits back, and where both were killed, whoever comes next (`former`):

    python -m etameter.prompts.nightly.guard        sets back what was left changed, as the last command of a service
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import IO, Final, NoReturn

from etameter.counters.nvml_limits import Limiter, PowerLimit
from etameter.errors import CounterError

from . import former

MODULE: Final = "etameter.prompts.nightly.guard"
DONE: Final = "done"
WAIT_S: Final = 10.0


@contextmanager
def limited(gpu_uuids: Sequence[str], power_w: float | None, clock_mhz: int | None) -> Iterator[None]:
    """These boards are held at a power limit or clock while the block runs.

    Raises:
        CounterError: there is no board, a limit is out of its range, or this user may set none.
    """
    if not gpu_uuids:
        raise CounterError("no_gpu", "there is no GPU whose limits could be set", "leave power and clocks out")
    with closing(Limiter()) as limiter:
        before = [limiter.power_limit(each) for each in gpu_uuids]
        if power_w is not None:
            _check(before, power_w)
        wanted = {"gpus": list(gpu_uuids), "power_w": power_w, "clock_mhz": clock_mhz}
        with subprocess.Popen(
            [sys.executable, "-m", MODULE, json.dumps(wanted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as guard:
            assert guard.stdin is not None
            assert guard.stdout is not None
            try:
                _refuse_failure(guard.stdout.readline())
                yield
            finally:
                guard.stdin.close()
                try:
                    guard.wait(WAIT_S)
                except subprocess.TimeoutExpired:
                    guard.kill()
                    guard.wait()
                if guard.returncode != 0:  # it was killed, and could set nothing back
                    former.set_back()


def _check(boards: Sequence[PowerLimit], power_w: float) -> None:
    for board in boards:
        if not board.least_mw <= power_w * 1000 <= board.most_mw:
            raise CounterError(
                "out_of_range",
                f"{board.gpu_uuid} can't be held at {power_w:g} W",
                f"it takes {board.least_mw / 1000:g} to {board.most_mw / 1000:g} W",
            )


def _refuse_failure(said: str) -> None:
    """Raises CounterError where the guard's first line is no word of success."""
    if said.strip() == DONE:
        return
    try:
        cause, message, remedy = json.loads(said)
    except ValueError:
        cause, message, remedy = "nvml_error", "the guard of the boards' limits does not start", "see the system's log"
    raise CounterError(cause, message, remedy)


def _set_back(limiter: Limiter, before: Sequence[PowerLimit], *, clock: bool) -> None:
    """Every board, also where one fails; then raises CounterError."""
    failed: CounterError | None = None
    for board in before:
        try:
            former.put(limiter, board.gpu_uuid, board.limit_mw, clock=clock)
        except CounterError as error:
            failed = error
    if failed is not None:
        raise failed


def watch(
    gpu_uuids: Sequence[str], power_w: float | None, clock_mhz: int | None, orders: IO[str], said: IO[str]
) -> None:
    """The guard: sets the limits, says so, waits for the end of its orders, and sets back what was.

    Raises:
        CounterError: a board can't be set.
        OSError: what was can't be noted, and so nothing is changed.
    """
    clock, held_mw = clock_mhz is not None, None if power_w is None else round(power_w * 1000)
    with closing(Limiter()) as limiter:
        before = [limiter.power_limit(each) for each in gpu_uuids]
        _set_back(limiter, before, clock=clock)  # who may not set them back may not change them
        with former.noted(before, held_mw, clock=clock):
            try:
                for each in gpu_uuids:
                    if held_mw is not None:
                        limiter.set_power_limit(each, held_mw)
                    if clock_mhz is not None:
                        limiter.lock_clocks(each, clock_mhz)
                said.write(f"{DONE}\n")
                said.flush()
                orders.read()
            finally:
                _set_back(limiter, before, clock=clock)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    if len(sys.argv) == 1:
        _set_back_what_was_left()
        return
    wanted = json.loads(sys.argv[1])
    try:
        watch(wanted["gpus"], wanted["power_w"], wanted["clock_mhz"], sys.stdin, sys.stdout)
    except CounterError as error:
        _fail(error.cause, error.message, error.remedy)
    except OSError as error:
        _fail(
            "nvml_error",
            f"what the boards' limits are can't be noted ({error})",
            "set ETAMETER_STATE to a folder that can be written",
        )


def _set_back_what_was_left() -> None:
    try:
        for gpu_uuid in former.set_back(WAIT_S):
            sys.stderr.write(f"etameter: {gpu_uuid} has its limits back, that a sweep had left changed\n")
    except CounterError as error:
        sys.exit(f"etameter: {error.message}: {error.remedy}")


def _fail(cause: str, message: str, remedy: str) -> NoReturn:
    """On the line that `limited` reads, where it is that which fails; by the exit code it sees whether anything was left to be set back."""
    sys.stdout.write(json.dumps([cause, message, remedy]) + "\n")
    sys.stdout.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
