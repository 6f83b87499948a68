"""Boards are held at other limits for as long as a block runs, and not longer, whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pynvml
import pytest

from etameter.counters.nvml_limits import Limiter
from etameter.errors import CounterError
from etameter.prompts.nightly import former
from etameter.prompts.nightly.guard import MODULE, limited
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
    monkeypatch.setenv("ETAMETER_STATE", str(tmp_path / "state"))
    made = Board(tmp_path / "board", gpus=2)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)  # the guard is a process of its own
    with made:
        yield made


def limits(board: Board) -> list[tuple[int, int]]:
    return [(gpu.power_limit_mw, gpu.locked_mhz) for gpu in board.gpus]


SOON_S = 10.0
"""By then the kernel has let go what a killed guard held."""
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


def guard_of(uuid: str) -> int:
    """Its process id."""
    (guard,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"\0{MODULE}\0".encode() in (words := path.read_bytes()) and uuid.encode() in words
    ]
    return guard


def both_killed(board: Board) -> None:
    """As by a service manager that clears up: first the guard, which then sees nothing of the night's end."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, board.uuid(1)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert former.set_back() == [], "its guard lives"
        pid = guard_of(board.uuid(1))
        os.kill(pid, signal.SIGSTOP)
        holder.send_signal(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
    assert limits(board) == [(700_000, 0), (300_000, 1200)]


def test_they_are_set_back_by_the_services_last_command_when_both_are_killed(board: Board) -> None:
    both_killed(board)
    board.fail(Call.SET, pynvml.NVML_ERROR_NO_PERMISSION)
    last = subprocess.run([sys.executable, "-m", MODULE], capture_output=True, text=True, check=False)
    assert (last.returncode, last.stdout) == (1, "")
    assert "may not set limits of the GPU: run as root" in last.stderr
    board.heal()
    last = subprocess.run([sys.executable, "-m", MODULE], capture_output=True, text=True, check=True)
    assert limits(board) == FREE
    assert board.uuid(1) in last.stderr
    last = subprocess.run([sys.executable, "-m", MODULE], capture_output=True, text=True, check=True)
    assert last.stderr == "", "once"


def test_they_are_set_back_by_the_next_night_when_both_are_killed(board: Board) -> None:
    both_killed(board)
    board.fail(Call.SET, pynvml.NVML_ERROR_NO_PERMISSION)
    with pytest.raises(CounterError, match="may not set limits"):
        former.set_back(SOON_S)
    board.fail(Call.SET, pynvml.NVML_SUCCESS)
    assert former.set_back(SOON_S) == [board.uuid(1)], "it stood noted"
    assert limits(board) == FREE
    assert former.set_back() == []


def test_a_limit_that_somebody_set_since_stays(board: Board) -> None:
    both_killed(board)
    with closing(Limiter()) as limiter:
        limiter.set_power_limit(board.uuid(1), 500_000)
    assert former.set_back(SOON_S) == [board.uuid(1)]
    assert limits(board)[1] == (500_000, 0)


def test_after_a_reboot_nothing_is_set_back(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    both_killed(board)
    with monkeypatch.context() as patched:
        patched.setattr(former, "boot_id", lambda: "another")
        assert former.set_back(SOON_S) == []
    assert limits(board)[1] == (300_000, 1200)
    assert former.set_back(SOON_S) == [], "nor later"


def test_a_note_that_is_not_whole_is_of_a_guard_that_changed_nothing(board: Board, tmp_path: Path) -> None:
    (tmp_path / "state" / "limits").mkdir(parents=True)
    (tmp_path / "state" / "limits" / f"{board.uuid(0)}.json").write_text('{"boot_id": "')
    assert former.set_back() == []
    assert not list((tmp_path / "state" / "limits").iterdir())


def test_what_can_not_be_noted_is_not_changed(board: Board, tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(CounterError, match="can't be noted"), limited([board.uuid(0)], 300.0, None):
        pass
    assert limits(board) == FREE


def test_what_another_guard_left_noted_is_not_forgotten_for_a_new_one(board: Board) -> None:
    both_killed(board)
    with pytest.raises(CounterError, match="can't be noted"), limited([board.uuid(1)], 400.0, None):
        pass
    assert limits(board) == FREE, "as they were before the first of them"


def test_they_are_set_back_when_the_guard_is_killed(board: Board) -> None:
    with limited([board.uuid(0)], 300.0, 1200):
        os.kill(guard_of(board.uuid(0)), signal.SIGKILL)
        assert limits(board)[0] == (300_000, 1200)
    assert limits(board) == FREE


def test_a_guard_does_not_listen_to_signals(board: Board) -> None:
    with limited([board.uuid(0)], 300.0, None):
        pid = guard_of(board.uuid(0))
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        time.sleep(0.1)
        assert limits(board)[0] == (300_000, 0)
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S", "it waits, and is no zombie"
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
