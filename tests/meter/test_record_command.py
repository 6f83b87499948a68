"""`etameter record` beside a running meter, through the same ring and the same stand-in NVML."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from etameter.playback import replay
from etameter.recording import receipt_name
from tests.meter.test_daemon import PATIENCE_S, RECEIPT, engine, lit_board, running, serve_one, until

pytestmark = pytest.mark.unit


def recording(directory: Path, environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "etameter", "record", "--out", str(directory / "r.zip")]
    command += ["--ring", str(directory / "ring"), *options]
    own = {"ETAMETER_RUN": str(directory / "run"), "ETAMETER_STATE": str(directory / "state")}
    return subprocess.Popen(
        command,
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
    )


def test_a_recording_agrees_with_the_meter_beside_it_and_with_its_replay(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter, engine(tmp_path) as ring:
        until(lambda: json.loads(meter.get("/health")[1])["engine"])
        recorder = recording(tmp_path, board.environment())
        until((tmp_path / "r.zip.part").exists)
        serve_one(ring, 30)
        energy = until(meter.settled)
        serve_one(ring, 30, "chatcmpl-2-" + "d" * 32 + "00000000", first_step=30)
        until(lambda: (meter.energy("d" * 32) or {}).get("settled"))
        recorder.send_signal(signal.SIGINT)
        told, complaint = recorder.communicate(timeout=PATIENCE_S)
    assert recorder.returncode == 0, complaint
    assert "bit for bit" in told
    again = replay(tmp_path / "r.zip")
    assert again.identical
    assert again.health["lost_records"] == 0
    (row,) = [row for row in again.rows if row.record.receipt_id == receipt_name(RECEIPT)]
    assert row.energy.energy_j == pytest.approx(energy["energy_joules"], rel=0.1)
    assert (row.energy.settled, row.record.output_tokens) == (True, 30)
    assert row.energy.source == "simulated"


def test_a_recording_ends_by_itself_and_needs_no_engine(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board:
        recorder = recording(tmp_path, board.environment(), "--seconds", "0.5")
        told, complaint = recorder.communicate(timeout=PATIENCE_S)
    assert recorder.returncode == 0, complaint
    assert "none was seen" in told
    assert replay(tmp_path / "r.zip").rows == []


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "r.zip").write_text("mine")
    with lit_board(tmp_path) as board:
        recorder = recording(tmp_path, board.environment())
        _, complaint = recorder.communicate(timeout=PATIENCE_S)
    assert recorder.returncode == 2
    assert complaint.splitlines()[-1].startswith(f"etameter: {tmp_path}/r.zip exists already: name another file")
    assert (tmp_path / "r.zip").read_text() == "mine"
