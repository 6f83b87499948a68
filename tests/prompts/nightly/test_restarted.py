"""A sweep that starts its server anew, and is cut off just then: real processes, the stand-in's board, and a server of a few lines."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from etameter.prompts.nightly import night
from tests.processes import runs
from tests.prompts.nightly import bench, lone
from tests.simnvml.board import Board

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[3]
KEYS = {"batches": [2], "rates_per_s": [], "arms": [], "window_s": 0.3, "idle_s": 0.3, "model": "small"}
KEYS |= {"sweep_max_num_seqs": [4], "sweep_power_w": [300.0], "sweep_clock_mhz": []}
SOON_S = 300.0
FREE = (700_000, 0)


def limits(board: Board) -> tuple[int, int]:
    return board.gpus[0].power_limit_mw, board.gpus[0].locked_mhz


@pytest.fixture
def start(tmp_path: Path, board: Board) -> Callable[[], "subprocess.Popen[bytes]"]:
    (tmp_path / "hold").touch()
    config = bench.configured(tmp_path, None, **KEYS)
    places = {"ETAMETER_RING_DIR": str(tmp_path), "ETAMETER_STATE": str(tmp_path / "state"), "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **board.environment(), **places}
    command = [sys.executable, "-m", lone.MODULE, "night", str(config), "--sweep"]
    return lambda: subprocess.Popen(command, cwd=tmp_path, env=environment)


def wait_until(true: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + SOON_S
    while not true():
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def pid_in(path: Path, process: "subprocess.Popen[bytes]") -> int:
    wait_until(path.exists, process)
    return int(path.read_text())


def told(folder: Path) -> night.Night:
    (run,) = (folder / "runs").iterdir()
    return night.read(run)


@pytest.mark.timeout(900)
def test_a_server_that_is_killed_while_it_is_started_anew_ends_the_night_recorded(
    tmp_path: Path, board: Board, start: Callable[[], "subprocess.Popen[bytes]"]
) -> None:
    with start() as process:
        os.kill(pid_in(tmp_path / "starting", process), signal.SIGKILL)
        assert process.wait() == 2
    whole = told(tmp_path)
    assert (whole.run.status, whole.run.exit_code) == ("failed", 2)
    assert whole.run.reason == "vLLM ended with signal 9"
    known = {figure.stage for figure in whole.figures if figure.metric == "j_per_token" and figure.value is not None}
    assert known == {"batch-2", "sweep-cap-300"}, "what was measured before is kept"
    assert limits(board) == FREE


@pytest.mark.timeout(900)
def test_a_server_that_is_killed_under_a_cap_ends_the_night_recorded_and_the_cap(
    tmp_path: Path, board: Board, start: Callable[[], "subprocess.Popen[bytes]"]
) -> None:
    with start() as process:
        pid = pid_in(tmp_path / "serving", process)
        wait_until(lambda: limits(board) != FREE, process)
        os.kill(pid, signal.SIGKILL)
        assert process.wait() == 2
    run = told(tmp_path).run
    assert (run.status, run.exit_code, run.reason) == ("failed", 2, "vLLM ended with signal 9")
    assert limits(board) == FREE


@pytest.mark.timeout(900)
def test_a_night_that_is_killed_while_its_server_is_started_anew_goes_on(
    tmp_path: Path, board: Board, start: Callable[[], "subprocess.Popen[bytes]"]
) -> None:
    with start() as process:
        server = pid_in(tmp_path / "starting", process)
        process.kill()
        process.wait()
    assert limits(board) == FREE
    deadline_s = time.monotonic() + SOON_S
    while runs(server):  # it does not outlive the night
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    (tmp_path / "hold").unlink()
    with start() as process:
        assert process.wait() == 0
    whole = told(tmp_path)
    assert (whole.run.status, whole.run.sessions) == ("complete", 2)
    assert {row.session for row in whole.stages if row.stage == "sweep-seqs-4"} == {1}
    assert {row.session for row in whole.stages if row.stage == "sweep-cap-300"} == {0}
