"""Boards are held at other limits for as long as a block runs, and not longer, whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from etameter.errors import CounterError
from etameter.prompts.nightly.guard import limited
from tests.simnvml.board import Board, Call

pytestmark = pytest.mark.unit

HOLDER = """
import sys, time
from etameter.prompts.nightly.guard import limited
with limited([sys.argv[1]], 300.0, 1200):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    made = Board(tmp_path / "board", gpus=2)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)  # the guard is a process of its own
    with made:
        yield made


def limits(board: Board) -> list[tuple[int, int]]:
    return [(gpu.power_limit_mw, gpu.locked_mhz) for gpu in board.gpus]


FREE = [(700_000, 0), (700_000, 0)]


def wait_until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_limits_hold_while_the_block_runs(board: Board) -> None:
    with limited([board.uuid(0)], 300.0, 1200):
        assert limits(board) == [(300_000, 1200), (700_000, 0)]
    assert limits(board) == FREE


def test_they_are_set_back_when_the_block_fails(board: Board) -> None:
    with pytest.raises(RuntimeError), limited([board.uuid(0), board.uuid(1)], 250.0, None):  # noqa: PT012
        assert limits(board) == [(250_000, 0), (250_000, 0)]
        raise RuntimeError
    assert limits(board) == FREE


def test_they_are_set_back_when_the_night_is_killed(board: Board) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, board.uuid(1)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert limits(board) == [(700_000, 0), (300_000, 1200)]
        holder.send_signal(signal.SIGKILL)
    wait_until(lambda: limits(board) == FREE)


def test_they_are_set_back_when_the_guard_is_killed(board: Board) -> None:
    with limited([board.uuid(0)], 300.0, 1200):
        (guard,) = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if board.uuid(0).encode() in path.read_bytes() and int(path.parent.name) != os.getpid()
        ]
        os.kill(guard, signal.SIGKILL)
        assert limits(board)[0] == (300_000, 1200)
    assert limits(board) == FREE


def test_a_guard_does_not_listen_to_signals(board: Board) -> None:
    with limited([board.uuid(0)], 300.0, None):
        (guard,) = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if board.uuid(0).encode() in path.read_bytes() and int(path.parent.name) != os.getpid()
        ]
        os.kill(guard, signal.SIGTERM)
        os.kill(guard, signal.SIGINT)
        time.sleep(0.1)
        assert limits(board)[0] == (300_000, 0)
        assert Path(f"/proc/{guard}/stat").read_text().rpartition(")")[2].split()[0] == "S", (
            "it waits, and is no zombie"
        )
    assert limits(board) == FREE


@pytest.mark.parametrize(
    ("power_w", "said"), [(100.0, "can't be held at 100 W: it takes 200 to 700 W"), (701.0, "200 to 700 W")]
)
def test_what_the_board_can_not_do_is_not_tried(power_w: float, said: str, board: Board) -> None:
    with pytest.raises(CounterError, match=said), limited([board.uuid(0)], power_w, None):
        pass
    assert limits(board) == FREE


def test_a_user_who_may_not_is_told_so(board: Board) -> None:
    board.fail(Call.SET, pynvml.NVML_ERROR_NO_PERMISSION)
    with pytest.raises(CounterError, match="may not set limits") as told, limited([board.uuid(0)], 300.0, None):
        pass
    assert told.value.cause == "no_permission"


def test_without_a_gpu_there_is_nothing_to_limit() -> None:
    with pytest.raises(CounterError, match="no GPU whose limits"), limited([], 300.0, None):
        pass
