"""Killed in any stage by SIGKILL, a night goes on where it was, and ends as one that was never killed."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from etameter.prompts.nightly import night
from tests.prompts import ab_bench
from tests.prompts.nightly import bench
from tests.simnvml.board import Board

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[3]
STAGES = ["idle-before", "batch-2", "rate-20", "recorded", "external-guidellm", "ab-fixed", "ab-audit", "idle-after"]
SWEPT = ["sweep-cap-300", "sweep-clock-1200"]
KEYS = {"batches": [2], "arrivals": "a.csv", "audit_tasks": 4, "window_s": 0.3, "idle_s": 0.6, "max_tokens": 16}
KEYS |= {"external": ["guidellm"], "sweep_max_num_seqs": [], "sweep_power_w": [300.0], "sweep_clock_mhz": [1200]}
FREE = (700_000, 0)

# As long as the shortest stage, so that there is time to be killed.
TOOL = """#!{python}
import json, re, sys, time, urllib.request
url = re.search("target=(http[^,]*)", " ".join(sys.argv))[1]
body = json.dumps({{"model": "small", "messages": [{{"role": "user", "content": "What is 1 and 41?"}}]}}).encode()
for _ in range(12):
    urllib.request.urlopen(urllib.request.Request(url + "/v1/chat/completions", body)).read()
    time.sleep(0.05)
"""


@pytest.fixture
def environment(tmp_path: Path, board: Board) -> dict[str, str]:
    places = {"ETAMETER_RING_DIR": str(tmp_path), "ETAMETER_STATE": str(tmp_path / "state"), "PYTHONPATH": str(ROOT)}
    tool = tmp_path / "guidellm"
    tool.write_text(TOOL.format(python=sys.executable))
    tool.chmod(0o755)
    return {**os.environ, **board.environment(), **places, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


def started(folder: Path, config: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.prompts.nightly.victim", str(config), "--sweep"], cwd=folder, env=environment
    )


def limits(board: Board) -> tuple[int, int]:
    return board.gpus[0].power_limit_mw, board.gpus[0].locked_mhz


def wait_for(folder: Path, stage: str, process: "subprocess.Popen[bytes]") -> None:
    line = f'"kind": "begin", "stage": "{stage}"'
    while not any(line in path.read_text() for path in folder.glob("runs/*/journal.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("stage", ["warm-up", *STAGES, *SWEPT])
def test_a_night_that_is_killed_goes_on(stage: str, tmp_path: Path, board: Board, environment: dict[str, str]) -> None:
    (tmp_path / "a.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,9,4\n0.05,9,6\n0.08,9,5\n")
    with ab_bench.served(bench.Night()) as url:
        config = bench.configured(tmp_path, url, **KEYS)
        with started(tmp_path, config, environment) as process:
            wait_for(tmp_path, stage, process)
            time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
        assert not list(tmp_path.glob("runs/*/run.json"))
        deadline_s = time.monotonic() + 10
        while limits(board) != FREE:
            assert time.monotonic() < deadline_s, "the guard sees that the night is gone"
            time.sleep(0.02)
        with started(tmp_path, config, environment) as process:
            assert process.wait() == 0
    (folder,) = (tmp_path / "runs").iterdir()
    whole = night.read(folder)
    assert (whole.run.status, whole.run.sessions) == ("complete", 2)
    assert limits(board) == FREE
    assert Counter(figure.stage for figure in whole.figures).keys() >= {*STAGES, *SWEPT} - {"ab-fixed", "ab-audit"}
    known = {figure.stage for figure in whole.figures if figure.metric == "j_per_question" and figure.value is not None}
    assert known >= {"external-guidellm", *SWEPT}
    places = Counter((row.stage, row.window) for row in whole.stages if row.excluded != "interrupted")
    assert set(places.values()) == {1}, "nothing is counted twice"
    attempts = {row.stage.partition("/")[0]: row.attempt for row in whole.stages}
    assert attempts.keys() == {"warm-up", *STAGES, *SWEPT}
    assert attempts[stage] == 1
    blocks = [row for row in whole.stages if row.stage.startswith("ab-fixed/") and row.excluded is None]
    assert Counter(row.stage for row in blocks) == {"ab-fixed/concise": 4, "ab-fixed/unconstrained": 4}
