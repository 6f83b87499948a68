"""The whole check in miniature: torch on the CPU is the load, a board of the stand-in draws power as the ring's steps go."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etameter import gpu_check, recording
from etameter.errors import EngineError, EtameterError
from etameter.ledger import RequestRow
from etameter.records import Balance, RequestEnergy, RequestRecord
from etameter.serving.ring import Dispatch, Done, RingReader
from tests.simnvml.board import Board, Call, Sensor, now_ns

pytestmark = pytest.mark.engine

MS = 1_000_000
IDLE_W, BUSY_W = 100.0, 400.0
FOLLOWING_NS = 60 * MS
"""The board's counter is so late that the thread below can still write the past."""


class Follower(threading.Thread):
    """Gives a board the power of an engine that is busy in its steps and idle between them."""

    def __init__(self, board: Board, folder: Path) -> None:
        super().__init__(daemon=True)
        self.board, self.folder = board, folder
        self.ended = threading.Event()
        self.reader: RingReader | None = None

    def run(self) -> None:
        while not self.ended.wait(0.01):
            for path in self.folder.glob("etameter-gpu-check-*.ring"):
                self.reader = self.reader or RingReader(path)
            for record in self.reader.poll() if self.reader else ():
                if isinstance(record, Dispatch | Done):
                    power_w = BUSY_W if isinstance(record, Dispatch) else IDLE_W
                    self.board.set_power_w(0, [(record.t_ns, power_w)])


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setenv("ETAMETER_RUN", str(tmp_path))
    monkeypatch.setenv("ETAMETER_RING_DIR", str(tmp_path))
    made = Board(tmp_path / "board", energy=Sensor(period_ns=20 * MS, delay_ns=FOLLOWING_NS))
    made.set_power_w(0, [(now_ns(), IDLE_W)])
    follower = Follower(made, tmp_path)
    with made:
        follower.start()
        yield made
        follower.ended.set()
        follower.join()


def test_the_check_in_miniature(board: Board, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = gpu_check.run(out, 4.0, device="cpu", shape="tiny", look_s=0.15, bursts=12)
    held = {check.name: check.verdict for check in report.checks}
    assert held == dict.fromkeys(("metered", "balance", "requests", "replay"), "good") | {
        "attributed": held["attributed"]
    }
    phases = {phase.name: phase for phase in report.phases}
    assert list(phases) == ["idle", *(phase for phase in phases if phase not in {"idle", "idle again"}), "idle again"]
    assert phases["batch of 32"].requests >= 32
    idle, busy = phases["idle"].power_w, phases["batch of 32"].power_w
    assert idle is not None
    assert busy is not None
    assert idle < 0.8 * busy
    assert phases["idle"].output_token_j is None
    assert report.source == "simulated"
    assert report.load["device"] == "cpu"
    written = json.loads((out / "report.json").read_text())
    assert written["sound"] is report.sound
    assert sum(phase["requests"] for phase in written["phases"]) == len(recording.replay(out / "recording.zip").rows)
    text = (out / "report.txt").read_text()
    assert "batch of 32" in text
    assert "sees the whole period" in text or "lag" in text
    assert not list(tmp_path.glob("*.ring"))


def test_an_old_report_is_not_written_over(board: Board, tmp_path: Path) -> None:
    with pytest.raises(EtameterError, match="can't be made"):
        gpu_check.run(tmp_path, 1.0, device="cpu")


def test_a_counter_that_stands_still_ends_the_check(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etameter.doctor.EDGE_WAIT_S", 0.1)
    board.freeze(Call.ENERGY, time.monotonic_ns())
    with pytest.raises(EtameterError, match="nothing can be measured: the counter changed 0 times"):
        gpu_check.run(tmp_path / "out", 1.0, device="cpu", look_s=0.05, bursts=1)
    assert not (tmp_path / "out").exists()


def row(joules: float) -> RequestRow:
    energy = RequestEnergy("r", joules, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, settled=True, method="m", source="simulated")
    record = RequestRecord("r", None, "m", "a", 0, None, None, 1, 0, 1, "length")
    return RequestRow("e", 0, 0, record, energy, 1, 0)


@pytest.mark.parametrize(
    ("paid_j", "lost_j", "ran", "differing", "broken"),
    [
        (70.0, 0.4, 1, 0, set()),
        (71.0, 0.4, 1, 0, {"balance"}),
        (69.9, 0.5 + 1e-9, 1, 0, {"attributed"}),
        (70.0, 0.4, 2, 0, {"requests"}),
        (70.0, 0.4, 1, 1, {"replay"}),
    ],
)
def test_what_does_not_hold_is_told(paid_j: float, lost_j: float, ran: int, differing: int, broken: set[str]) -> None:
    balance = Balance("GPU-0", 0, 10, 100.0, 70.4 - lost_j, 29.6, 0.0, {"stale": lost_j})
    replayed = recording.Replay({}, outcomes=5, differing=differing)
    checks, balance_j = gpu_check.judge([balance], [row(paid_j)], [{}, {"requests": ran}], replayed)
    assert {check.name for check in checks if check.verdict == "bad"} == broken
    assert balance_j["unattributed_stale"] == lost_j


def test_a_load_that_fails_says_why() -> None:
    with (
        pytest.raises(EngineError, match="no GPU, no check"),
        gpu_check.told_by(["python3", "-c", "raise SystemExit('no GPU, no check')"]),
    ):
        pass
