"""Doctor on the stand-in's boards, healthy and sick, through the real nvidia-ml-py; its judgements on figures made here."""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pynvml
import pytest

from etameter import doctor, findings
from etameter.bursts import Burst
from etameter.counters import nvml
from etameter.errors import EngineError
from etameter.findings import Check, Diagnosis, Seen
from etameter.records import Edge
from tests.simnvml.board import Board, Call, Sensor

pytestmark = pytest.mark.unit

MS = 1_000_000
SECOND = 1_000 * MS
FAST = Sensor(period_ns=20 * MS, phase_ns=7 * MS)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETAMETER_RUN", str(tmp_path))
    monkeypatch.setenv("ETAMETER_RING_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "EDGE_WAIT_S", 0.3)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    made = Board(tmp_path / "board", energy=FAST)
    made.set_power_w(0, [(0, 120.0)])
    return made


def checks_of(diagnosis: Diagnosis, gpu: int = 0) -> dict[str, Check]:
    return {check.name: check for check in diagnosis.gpus[gpu].checks}


def test_a_sound_board(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    with board:
        assert doctor.run(seconds=0.3, burst=False, reference=None, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["can_measure"] is True
    assert told["verdict"] == "energy of 1 device can be metered, source=simulated"
    [gpu] = told["gpus"]
    found = {check["name"]: check for check in gpu["checks"]}
    assert found["update_period"]["figures"]["period_ms"] == pytest.approx(20, rel=0.3)
    assert found["idle_power"]["figures"]["power_w"] == pytest.approx(120, rel=0.2)
    assert found["counter_against_power"]["figures"]["ratio"] == pytest.approx(1.0, abs=0.2)
    assert found["driver"]["verdict"] == "note", "a stand-in says so"
    assert found["lag"]["verdict"] == "unknown"
    assert "--burst" in found["lag"]["remedy"]


def test_a_driver_that_is_not_loaded_is_named(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    board.fail(Call.INIT, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    with board:
        assert doctor.run(seconds=0.3, burst=False, reference=None, as_json=False) == 2
    text = capsys.readouterr().out
    assert "the NVIDIA driver isn't running" in text
    assert "make nvidia-smi work first" in text
    assert text.rstrip().endswith("this machine can't measure energy; `etameter demo` simulates a board")


def test_a_user_who_may_not_read_is_told_what_to_do(board: Board) -> None:
    board.fail(Call.ENERGY | Call.POWER | Call.INSTANT, pynvml.NVML_ERROR_NO_PERMISSION)
    with board:
        diagnosis = doctor.examine(seconds=0.05)
    assert not diagnosis.can_measure
    (check,) = (check for check in diagnosis.machine if check.name == "nvml")
    assert (check.verdict, check.figures["cause"]) == ("bad", "no_permission")
    assert "--gpus all" in (check.remedy or "")


def test_on_a_chip_with_a_cpu_the_counter_is_compared_with_the_power_of_both(board: Board) -> None:
    board.gpus[0].c2c, board.gpus[0].cpu_mw = 1, 60_000
    with board:
        checks = checks_of(doctor.examine(seconds=0.3))
    assert checks["power_scopes"].figures == {"gpu": pytest.approx(60.0), "module": pytest.approx(120.0)}
    assert checks["counter_against_power"].figures["ratio"] == pytest.approx(1.0, abs=0.2)
    assert (checks["counter"].verdict, checks["counter"].finding) == ("note", "nvml, scope module")


def test_a_frozen_counter_is_no_measurement(board: Board) -> None:
    board.freeze(Call.ENERGY, from_ns=time.monotonic_ns())
    with board:
        diagnosis = doctor.examine(seconds=0.05)
    assert not diagnosis.can_measure
    assert checks_of(diagnosis)["update_period"].verdict == "bad"


def test_one_of_two_gpus_is_frozen_and_the_other_measures(tmp_path: Path) -> None:
    board = Board(tmp_path / "two", gpus=2, energy=FAST)
    for gpu in range(2):
        board.set_power_w(gpu, [(0, 120.0)])
    board.freeze(Call.ENERGY, from_ns=time.monotonic_ns(), gpu=1)
    with board:
        diagnosis = doctor.examine(seconds=0.1)
    assert diagnosis.can_measure
    assert [checks_of(diagnosis, gpu)["update_period"].verdict for gpu in range(2)] != ["good", "good"]
    assert checks_of(diagnosis, 1)["update_period"].verdict == "bad"
    assert diagnosis.verdict.endswith("; 1 finding to mend")


def test_what_the_settings_of_a_board_mean(board: Board) -> None:
    gpu = board.gpus[0]
    gpu.persistence = 0
    gpu.throttle_reasons = pynvml.nvmlClocksThrottleReasonSwPowerCap | pynvml.nvmlClocksThrottleReasonGpuIdle
    gpu.enforced_limit_mw = 350_000
    gpu.process_count, gpu.process_pid[0] = 1, 1
    with board:
        checks = checks_of(doctor.examine(seconds=0.05))
    assert checks["persistence"].verdict == "note"
    assert checks["persistence"].remedy == "nvidia-smi -pm 1, as root"
    assert (checks["throttling"].verdict, checks["throttling"].finding) == ("note", "at its power cap")
    assert checks["power_limit"].finding == "350 W (of 200 to 700)"
    assert checks["neighbours"].verdict == "note"
    assert checks["neighbours"].finding.startswith("on the GPU: 1 (")
    assert checks["idle_power"].figures["in_use"] is True


def test_a_gain_error_of_the_counter_shows_against_its_power(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", energy=Sensor(period_ns=20 * MS, gain=1.5))
    board.set_power_w(0, [(0, 120.0)])
    with board:
        check = checks_of(doctor.examine(seconds=0.5))["counter_against_power"]
    assert check.verdict == "bad"
    assert check.figures["ratio"] == pytest.approx(1.5, rel=0.15)


def load_script(bursts: Sequence[Burst]) -> list[str]:
    """A load that tells of bursts at instants which the board knows, too."""
    code = f"""
import json, time
print(json.dumps({{"ready": True}}), flush=True)
for start_ns, end_ns in {[(burst.start_ns, burst.end_ns) for burst in bursts]}:
    time.sleep(max(end_ns - time.monotonic_ns(), 0) / 1e9)
    print(json.dumps({{"start_ns": start_ns, "end_ns": end_ns}}), flush=True)
time.sleep(0.3)
"""
    return [sys.executable, "-c", code]


def lag_by_bursts(directory: Path, sensor: Sensor) -> Check:
    """What doctor finds of a board with this counter while 40 ms of each 137 ms are busy."""
    board = Board(directory / "board", energy=sensor)
    start_ns = time.monotonic_ns() + 5 * SECOND
    bursts = [Burst(start_ns + k * 137 * MS, start_ns + k * 137 * MS + 40 * MS) for k in range(24)]
    steps = [step for each in bursts for step in ((each.start_ns, 500.0), (each.end_ns, 100.0))]
    board.set_power_w(0, [(start_ns - 10 * SECOND, 100.0), *steps])
    with board:
        return checks_of(doctor.examine(seconds=0.05, load=load_script(bursts)))["lag"]


def test_a_counter_that_looks_a_quarter_of_the_time_is_found_by_bursts(tmp_path: Path) -> None:
    check = lag_by_bursts(tmp_path, Sensor(window_ns=25 * MS, jitter_ns=MS // 2, part_time=True))
    assert check.verdict == "bad"
    assert check.figures["seen"] == 0.25
    assert "seen=0.25" in (check.remedy or "")


def test_the_lag_is_found_by_bursts(tmp_path: Path) -> None:
    check = lag_by_bursts(tmp_path, Sensor(period_ns=50 * MS, delay_ns=30 * MS))
    assert check.verdict == "good"
    error_ns = check.figures["lag_error_ns"]
    assert isinstance(error_ns, float)
    assert check.figures["lag_ns"] == pytest.approx(30 * MS, abs=error_ns + 5 * MS)


def test_a_load_that_does_not_start_is_one_line(board: Board) -> None:
    with board, pytest.raises(EngineError, match=r"doesn't start \(no torch here\)"):
        doctor.examine(seconds=0.05, load=[sys.executable, "-c", "raise SystemExit('no torch here')"])


def test_a_meter_that_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "meter.lock").write_text(str(os.getppid()))
    found = {check.name: check for check in doctor.machine_checks()}
    assert found["other_meter"].verdict == "note"
    assert str(os.getppid()) in found["other_meter"].finding
    assert found["ring"].verdict == "good"


@pytest.mark.parametrize(
    ("fast_w", "verdict", "change"), [(100.1, "good", 0.001), (103.0, "note", 0.03), (97.0, "note", -0.03)]
)
def test_polling_that_changes_the_total(fast_w: float, verdict: str, change: float) -> None:
    noise_w = (0.0, 0.1, -0.1)
    check = findings.polling_check([(100.0, 100.0 + noise, fast_w - noise) for noise in noise_w])
    assert check.verdict == verdict
    assert check.figures["change"] == pytest.approx(change, abs=1e-9)


def test_a_change_within_the_noise_is_no_change() -> None:
    assert (
        findings.polling_check([(100.0, 104.0, 100.0), (100.0, 96.0, 100.0), (100.0, 103.0, 100.0)]).verdict == "good"
    )


def test_no_total_no_verdict_on_polling() -> None:
    assert findings.polling_check([(None, 100.0, 100.0)] * 3).verdict == "unknown"


def test_calls_that_block_are_noted() -> None:
    edges = [Edge("GPU-0", k * 100 * MS, 2 * MS, k * 1000) for k in range(10)]
    found = {check.name: check for check in findings.timing_checks(Seen(edges, [30_000] * 95 + [9 * MS] * 5))}
    assert found["call_latency"].verdict == "note"
    assert found["call_latency"].figures["worst_us"] == 9_000
    assert found["resolution"].figures["error_10_s"] == pytest.approx(1.96 * (2 / 3) ** 0.5 * 0.002 / 10)


def test_the_gain_against_a_reference() -> None:
    bursts = [Burst(k * 40 * SECOND, k * 40 * SECOND + 20 * SECOND) for k in range(3)]
    edges, rows, energy_mj = [], [], 0
    for t_s in range(100):
        gpu_w = 500 if t_s % 40 < 20 else 100
        energy_mj += gpu_w * 1000
        edges.append(Edge("GPU-0", (t_s + 1) * SECOND, 0, energy_mj))
        rows.append((t_s * SECOND + SECOND // 2, 200.0 + gpu_w / 0.8))
    check = findings.compare_gain([edges], bursts, rows)
    assert check.figures["slope"] == pytest.approx(0.8, rel=0.01)
    assert check.figures["phases"] == 5


def test_a_board_is_held_against_a_reference_that_sometimes_fails(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference has the power supply's loss in it, and 80 W of a CPU."""
    monkeypatch.setattr(doctor, "REFERENCE_EVERY_S", 0.02)
    start_ns, phase_ns = time.monotonic_ns() + 700 * MS, 250 * MS
    # More than the three phases that it takes: on a busy machine some pass unseen.
    bursts = [Burst(start_ns + k * 2 * phase_ns, start_ns + (2 * k + 1) * phase_ns) for k in range(5)]
    board.set_power_w(0, [step for each in bursts for step in ((each.start_ns, 500.0), (each.end_ns, 100.0))])
    watts, stop = tmp_path / "watts", threading.Event()
    watts.write_text("205 W")

    def follow() -> None:
        while not stop.wait(0.01):
            now_ns = time.monotonic_ns()
            busy = any(each.start_ns <= now_ns < each.end_ns for each in bursts)
            told = "no answer" if now_ns // (40 * MS) % 4 == 0 else f"{80 + (500 if busy else 100) / 0.8} W"
            watts.with_suffix(".new").write_text(told)
            watts.with_suffix(".new").rename(watts)

    following = threading.Thread(target=follow)
    with board, ExitStack() as stack:
        following.start()
        stack.callback(following.join)
        stack.callback(stop.set)
        check = doctor.gain_check(nvml.discover(), ["cat", str(watts)], load_script(bursts))
    assert check.verdict == "note"
    assert check.figures["slope"] == pytest.approx(0.8, rel=0.25)


@pytest.mark.parametrize(("printed", "watts"), [("Instantaneous power reading: 312 Watts", 312.0), ("41.5\n", 41.5)])
def test_the_reference_prints_watts(printed: str, watts: float) -> None:
    assert doctor.watts_of(["echo", "sensor 7:" * printed.startswith("I"), printed]) == watts


def test_a_reference_without_a_number_is_refused() -> None:
    with pytest.raises(EngineError, match="prints no number"):
        doctor.watts_of(["echo", "nothing"])


def test_processes_are_named_only_where_their_ids_are_ours() -> None:
    assert findings.neighbours_check([], {}).verdict == "good"
    assert findings.neighbours_check([], None).verdict == "unknown"
    assert findings.neighbours_check(None, {}).verdict == "unknown"
    assert findings.neighbours_check([7, 8], {7: "python3"}).finding == "on the GPU: 7 (python3), 8 (gone)"
    assert findings.neighbours_check([7], None).finding == "on the GPU: 7 (unknown)"


def test_a_gpu_that_is_split_by_mig_is_examined_and_says_so(board: Board) -> None:
    board.gpus[0].mig_current = 1
    with board:
        diagnosis = doctor.examine(seconds=0.1)
    assert checks_of(diagnosis)["mig"].verdict == "bad"
    assert "--allow-shared-gpu" in (checks_of(diagnosis)["mig"].remedy or "")


def test_a_gpu_without_a_counter_is_estimated_and_says_so(board: Board) -> None:
    board.fail(Call.ENERGY, pynvml.NVML_ERROR_NOT_SUPPORTED)
    with board:
        diagnosis = doctor.examine(seconds=0.1)
    assert checks_of(diagnosis)["counter"].verdict == "note"
    assert "source=estimated" in checks_of(diagnosis)["counter"].finding
