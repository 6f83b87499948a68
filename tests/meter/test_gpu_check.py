"""The whole check in miniature: torch on the CPU is the load, a board of the stand-in draws power as the ring's steps go."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from etameter import check_report, findings, gpu_check, playback
from etameter.costs import Costs
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
    told = dict.fromkeys(("attributed", "fit", "sensor"))  # how long a CPU takes for a step says little of its tokens
    assert held == dict.fromkeys(("metered", "balance", "requests", "replay"), "good") | {
        name: held[name] for name in told
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
    assert sum(phase["requests"] for phase in written["phases"]) == len(playback.replay(out / "recording.zip").rows)
    text = (out / "report.txt").read_text()
    assert "batch of 32" in text
    assert "sees the whole period" in text or "lag" in text
    assert "work of a GPU: the load ran on the CPU" in text
    assert {"python", "numpy", "torch"} <= report.versions.keys()
    manifest = playback.replay(out / "recording.zip").manifest
    assert manifest["about"]["doctor"]["can_measure"] is True
    assert [phase["phase"] for phase in playback.replay(out / "recording.zip").health["load"][1:]] == list(phases)  # type: ignore[index]
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
    replayed = playback.Replay({}, outcomes=5, differing=differing)
    checks, balance_j = check_report.judge([balance], [row(paid_j)], [{}, {"requests": ran}], replayed)
    assert {check.name for check in checks if check.verdict == "bad"} == broken
    assert balance_j["unattributed_stale"] == lost_j
    sensor = next(check for check in checks if check.name == "sensor")
    assert (sensor.verdict, sensor.finding) == ("note", "intervals that can't be trusted: 1 × stale")


def test_a_load_that_fails_says_why() -> None:
    with (
        pytest.raises(EngineError, match="no GPU, no check"),
        gpu_check.told_by(["python3", "-c", "raise SystemExit('no GPU, no check')"]),
    ):
        pass


def test_a_fit_that_misses_or_cannot_tell_says_so() -> None:
    good = Costs(np.ones(6), np.eye(6), np.ones(6), 0.04, 300, unidentified=("d_j", "a2_j"), residual=0.012)
    told = check_report.fit_check({"GPU-0": good})
    assert told.verdict == "good"
    assert (
        told.finding
        == "fitted costs miss the counter by 1.2% of the energy of busy intervals; this load doesn't tell a2_j, d_j"
    )
    assert check_report.fit_check({"GPU-0": good, "GPU-1": replace(good, residual=0.2)}).verdict == "note"
    assert "too few" in check_report.fit_check({"GPU-0": replace(good, intervals=0)}).finding
    assert "too few" in check_report.fit_check({}).finding


def test_what_was_not_measured_is_listed() -> None:
    lag = findings.lag_check(None, asked=True)
    gpus = [findings.GpuChecks(name, "H100", "measured", [lag]) for name in ("GPU-0", "GPU-1")]
    diagnosis = findings.Diagnosis("0", True, "", [], gpus)
    costs = {"GPU-0": Costs(np.ones(6), np.eye(6), np.ones(6), 0.04, 300)}
    listed = list(check_report.not_measured(diagnosis, costs, "cuda", server=True))
    assert [each.partition(":")[0] for each in listed] == [
        "the board's own gain (± 5%)",
        "lag of GPU-0",
        "GPU-1 under load",
        "several GPUs working together, experts, adapters, drafts, prefix caching",
    ]
    assert any(
        each.startswith("a server") for each in check_report.not_measured(diagnosis, costs, "cuda", server=False)
    )


def test_a_server_that_fails_spoils_the_check() -> None:
    assert check_report.server_check({"failed": "no room"}).verdict == "bad"
    served = {"source": "measured", "requests": [{"energy": {"energy_joules": 2.0}}] * 3}
    assert check_report.server_check(served).finding == "3 requests to vLLM took 6.0 J, source=measured"


def test_the_servers_figures_or_its_last_words_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    demo = tmp_path / "python"
    monkeypatch.setattr("sys.executable", str(demo))
    for script, taken in (
        ("echo loading >&2; echo '{\"requests\": []}'", {"requests": []}),
        ("echo etameter: no vLLM >&2; echo >&2; exit 2", {"failed": "no vLLM"}),
        ("exit 1", {"failed": "it ended with 1"}),
    ):
        demo.write_text(f"#!/bin/sh\n{script}\n")
        demo.chmod(0o755)
        assert gpu_check._server() == taken
