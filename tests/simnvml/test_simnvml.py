"""The stand-in answers the real nvidia-ml-py, and its sensors err exactly as they were told to."""

import ctypes
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pynvml
import pytest

from tests.simnvml.board import BOARD_VARIABLE, PART_TIME, Board, Call, Sensor, library, now_ns

pytestmark = pytest.mark.unit

MS = 1_000_000
SECOND = 1_000 * MS
NO_BASE = 0


def handle(board: Board, gpu: int = 0) -> ctypes.Structure:
    """NVML's own handle of a GPU of the board."""
    pynvml.nvmlInit()
    found: ctypes.Structure = pynvml.nvmlDeviceGetHandleByUUID(board.uuid(gpu))
    return found


def code_of(call: Callable[[], object]) -> int:
    with pytest.raises(pynvml.NVMLError) as raised:
        call()
    return int(raised.value.value)


def at(instant_ns: int) -> None:
    """Wait until the board's clock shows this instant."""
    time.sleep(max(0, instant_ns - now_ns()) * 1e-9)


def read_mj(device: object) -> int:
    return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(device))


def read_with_update_mj(device: object, period_ns: int) -> tuple[int, int]:
    """The counter and the update that showed it, from a read during which no new one was due."""
    while True:
        before = now_ns() // period_ns
        energy_mj = read_mj(device)
        if now_ns() // period_ns == before:
            return energy_mj, before


def test_the_real_library_finds_devices(tmp_path: Path) -> None:
    with Board(tmp_path / "board", gpus=3, driver="999.1-sim") as board:
        board.gpus[1].name = b"Some GPU"
        pynvml.nvmlInit()
        assert pynvml.nvmlSystemGetDriverVersion() == "999.1-sim"
        assert pynvml.nvmlDeviceGetCount() == 3
        second = pynvml.nvmlDeviceGetHandleByIndex(1)
        assert pynvml.nvmlDeviceGetUUID(second) == board.uuid(1)
        assert pynvml.nvmlDeviceGetName(second) == "Some GPU"
        assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(board.uuid(2))) == 2
        assert code_of(lambda: pynvml.nvmlDeviceGetHandleByUUID("GPU-none")) == pynvml.NVML_ERROR_NOT_FOUND
        assert code_of(lambda: pynvml.nvmlDeviceGetHandleByIndex(3)) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_figures_are_the_boards(tmp_path: Path) -> None:
    with Board(tmp_path / "board") as board:
        gpu, device = board.gpus[0], handle(board)
        gpu.power_limit_mw, gpu.enforced_limit_mw, gpu.least_limit_mw, gpu.most_limit_mw = 1, 2, 3, 4
        gpu.clocks_mhz[:], gpu.max_clocks_mhz[:] = (5, 6, 7, 8), (9, 10, 11, 12)
        gpu.throttle_reasons, gpu.temperature_c, gpu.persistence = 1 << 40, 77, 0
        gpu.mig_current, gpu.mig_pending = 0, 1
        gpu.process_count = 2
        gpu.process_pid[:2], gpu.process_bytes[:2] = (123, 456), (1 << 33, 5)
        assert pynvml.nvmlDeviceGetPowerManagementLimit(device) == 1
        assert pynvml.nvmlDeviceGetEnforcedPowerLimit(device) == 2
        assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(device) == [3, 4]
        assert [pynvml.nvmlDeviceGetClockInfo(device, clock) for clock in range(4)] == [5, 6, 7, 8]
        assert [pynvml.nvmlDeviceGetMaxClockInfo(device, clock) for clock in range(4)] == [9, 10, 11, 12]
        assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(device) == 1 << 40
        assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(device) == 1 << 40
        assert pynvml.nvmlDeviceGetTemperatureV(device, pynvml.NVML_TEMPERATURE_GPU) == 77
        assert pynvml.nvmlDeviceGetPersistenceMode(device) == 0
        assert pynvml.nvmlDeviceGetMigMode(device) == [0, 1]
        memory = pynvml.nvmlDeviceGetMemoryInfo(device)
        assert (memory.total, memory.free, memory.used) == (80 << 30, 78 << 30, 2 << 30)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
        assert [(one.pid, one.usedGpuMemory) for one in processes] == [(123, 1 << 33), (456, 5)]


def test_every_other_function_is_not_supported(tmp_path: Path) -> None:
    looked_up = set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', Path(pynvml.__file__).read_text()))
    defined = set(re.findall(r"^(?:nvmlReturn_t|const char \*|FIGURE\() ?(nvml\w+)", _source(), re.MULTILINE))
    answers = ctypes.CDLL(str(library()))
    others = looked_up - defined - set(re.findall(r"FIGURE\((\w+)", _source()))
    assert len(looked_up) - len(others) >= 20
    assert len(others) > 300
    assert {getattr(answers, name)() for name in others} == {pynvml.NVML_ERROR_NOT_SUPPORTED}
    with Board(tmp_path / "board") as board:
        device = handle(board)
        assert code_of(lambda: pynvml.nvmlDeviceGetFanSpeed(device)) == pynvml.NVML_ERROR_NOT_SUPPORTED


def _source() -> str:
    return (Path(__file__).parent / "simnvml.c").read_text()


def test_without_a_board_there_is_no_driver(tmp_path: Path) -> None:
    with Board(tmp_path / "board"):
        os.environ.pop(BOARD_VARIABLE)
        assert code_of(pynvml.nvmlInit) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
        assert code_of(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED


def test_a_board_of_another_layout_is_refused(tmp_path: Path) -> None:
    with Board(tmp_path / "board") as board:
        board._header.gpu_bytes += 8
        assert code_of(pynvml.nvmlInit) == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH


def test_a_new_process_finds_the_library_by_its_path(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", base_mj=4_000)
    asked = "import pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0)"
    answer = subprocess.run(
        [sys.executable, "-c", f"{asked}; print(n.nvmlDeviceGetTotalEnergyConsumption(h))"],
        env={**os.environ, **board.environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "4000\n"


def test_truth_is_the_exact_integral(tmp_path: Path) -> None:
    board = Board(tmp_path / "board")
    board.set_power_w(0, [(1_000, 100.0), (2_000, 0.001)])
    board.set_power_w(0, [(4_000, 700.0)])
    assert board.truth_j(0, 0, 500) == 0
    assert board.truth_j(0, 1_500, 2_500) == Fraction(500 * 100_000 + 500, 10**12)
    assert board.truth_j(0, 0, 5_000) == Fraction(1_000 * 100_000 + 2_000 + 1_000 * 700_000, 10**12)


def test_the_counter_shows_the_truth_of_its_last_update(tmp_path: Path) -> None:
    sensor = Sensor(period_ns=20 * MS, phase_ns=3 * MS)
    with Board(tmp_path / "board", energy=sensor, base_mj=5_000) as board:
        start_ns = now_ns()
        board.set_power_w(0, [(start_ns + n * 7 * MS, 100.0 + 50 * (n % 5)) for n in range(100)])
        device, shown = handle(board), set()
        while now_ns() < start_ns + 300 * MS:
            before_ns = now_ns()
            energy_mj = read_mj(device)
            possible = [(instant_ns - 3 * MS) // (20 * MS) * 20 * MS + 3 * MS for instant_ns in (before_ns, now_ns())]
            assert energy_mj in [5_000 + int(board.truth_j(0, 0, update_ns) * 1000) for update_ns in possible]
            shown.add(energy_mj)
        assert len(shown) >= 10


def test_the_counter_never_goes_back_however_much_was_spent_before(tmp_path: Path) -> None:
    """As on a machine that has been up for days: 64 bits of picojoules are five hours of a kilowatt."""
    with Board(tmp_path / "board", energy=Sensor(period_ns=MS)) as board:
        start_ns = now_ns()
        board.set_power_w(0, [(0, 1e9), (start_ns, 300.0)])
        assert board.truth_j(0, 0, start_ns) * 10**12 > 1 << 64
        device = handle(board)
        at(start_ns + 5 * MS)
        assert read_mj(device) == pytest.approx(float(board.truth_j(0, 0, start_ns) * 1000), rel=1e-6)


def test_gain_delay_and_quantum(tmp_path: Path) -> None:
    sensor = Sensor(period_ns=10 * MS, delay_ns=400 * MS, gain=1.05, quantum=500)
    with Board(tmp_path / "board", energy=sensor, base_mj=NO_BASE) as board:
        board.set_power_w(0, [(now_ns() - 10 * SECOND, 100.0)])
        energy_mj, update = read_with_update_mj(handle(board), 10 * MS)
        delayed_mj = board.truth_j(0, 0, update * 10 * MS - 400 * MS) * 1000
        assert energy_mj == int(delayed_mj * Fraction(105, 100)) // 500 * 500


def test_noise_is_bounded_repeatable_and_there(tmp_path: Path) -> None:
    noisy = Sensor(period_ns=5 * MS, noise=40, seed=7)
    with Board(tmp_path / "board", energy=noisy, base_mj=10_000) as board:
        device, errors = handle(board), set()
        for _ in range(40):
            energy_mj, _ = read_with_update_mj(device, 5 * MS)
            errors.add(energy_mj - 10_000)
            time.sleep(0.005)
        again, first = read_with_update_mj(device, 5 * MS), read_with_update_mj(device, 5 * MS)
        assert again[0] == first[0] or again[1] != first[1]
    assert min(errors) < -10
    assert max(errors) > 10
    assert max(map(abs, errors)) <= 41


def test_jitter_moves_updates_within_its_bounds(tmp_path: Path) -> None:
    jittery = Sensor(period_ns=20 * MS, jitter_ns=8 * MS, seed=3)
    with Board(tmp_path / "board", energy=jittery, base_mj=NO_BASE) as board:
        board.set_power_w(0, [(0, 1000.0)])  # 1 mJ a microsecond: the counter tells when it was published
        device = handle(board)
        offsets_ms: set[float] = set()
        while len(offsets_ms) < 30:
            offset_ns = (read_mj(device) * 1000 + 10 * MS) % (20 * MS) - 10 * MS
            offsets_ms.add(round(offset_ns / MS, 3))
    assert max(map(abs, offsets_ms)) <= 8.001
    assert max(offsets_ms) > 1
    assert min(offsets_ms) < -1


@pytest.mark.parametrize("on_first", [True, False])
def test_a_part_time_counter_sees_the_last_quarter_of_each_period(tmp_path: Path, on_first: bool) -> None:
    """A square wave in step with the sensor: 400 W in the first or last 25 ms of each 100 ms, else nothing."""
    with Board(tmp_path / "board", energy=PART_TIME, base_mj=NO_BASE) as board:
        start_ns = (now_ns() // (100 * MS) - 30) * 100 * MS
        for n in range(60):
            begins_ns = start_ns + n * 100 * MS + (0 if on_first else 75 * MS)
            board.set_power_w(0, [(begins_ns, 400.0), (begins_ns + 25 * MS, 0.0)])
        energy_mj, update = read_with_update_mj(handle(board), 100 * MS)
        periods = update - start_ns // (100 * MS)
        assert periods >= 30
        assert board.truth_j(0, 0, update * 100 * MS) == periods * 10
        assert energy_mj == (0 if on_first else periods * 40_000)


def test_a_part_time_counter_is_right_on_constant_power(tmp_path: Path) -> None:
    with Board(tmp_path / "board", energy=PART_TIME, base_mj=NO_BASE) as board:
        start_ns = now_ns() // (100 * MS) * 100 * MS - 2 * SECOND
        board.set_power_w(0, [(start_ns, 300.0)])
        energy_mj, update = read_with_update_mj(handle(board), 100 * MS)
        assert energy_mj == board.truth_j(0, 0, update * 100 * MS) * 1000


def test_power_is_a_mean_and_instant_power_is_not(tmp_path: Path) -> None:
    power = Sensor(period_ns=10 * MS, window_ns=10 * SECOND, gain=1.1)
    with Board(tmp_path / "board", power=power, instant=Sensor(period_ns=10 * MS, quantum=1_000)) as board:
        start_ns = now_ns()
        board.set_power_w(0, [(start_ns - 6 * SECOND, 100.0), (start_ns - SECOND, 500.9)])
        device = handle(board)
        average_mw = pynvml.nvmlDeviceGetPowerUsage(device)
        energy, instant, average, unknown = pynvml.nvmlDeviceGetFieldValues(device, [83, 186, 185, 9999])
    # 5 s at 100 W, 1 s (and the few ms since) at 500.9 W, nothing in the 4 s before
    assert 1.1 * 100_090 - 1.1 * 50.09 * 10 <= average_mw <= 1.1 * 150_000
    assert average.value.uiVal >= average_mw
    assert (instant.nvmlReturn, instant.value.uiVal) == (0, 500_000)
    assert (energy.nvmlReturn, energy.value.ullVal > 10**9) == (0, True)
    assert unknown.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_a_call_takes_its_latency(tmp_path: Path) -> None:
    with Board(tmp_path / "board", energy=Sensor(latency_ns=30 * MS)) as board:
        device = handle(board)
        before_ns = now_ns()
        read_mj(device)
        assert now_ns() - before_ns >= 30 * MS
        field = pynvml.nvmlDeviceGetFieldValues(device, [83])[0]
        assert field.latencyUsec >= 30_000


@pytest.mark.parametrize(
    "code", [pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_UNKNOWN]
)
def test_errors_hit_their_calls_and_their_gpu(tmp_path: Path, code: int) -> None:
    with Board(tmp_path / "board", gpus=2) as board:
        first, second = handle(board, 0), handle(board, 1)
        board.fail(Call.ENERGY, code, gpu=1)
        assert code_of(lambda: read_mj(second)) == code
        assert pynvml.nvmlDeviceGetFieldValues(second, [83])[0].nvmlReturn == code
        assert pynvml.nvmlDeviceGetPowerUsage(second) == 0
        assert read_mj(first) == 10**9
        board.fail(Call.INIT, code)
        assert code_of(pynvml.nvmlInit) == code
        board.heal()
        pynvml.nvmlInit()
        assert read_mj(second) == 10**9


def test_errors_hit_their_time(tmp_path: Path) -> None:
    with Board(tmp_path / "board") as board:
        device, from_ns = handle(board), now_ns() + 200 * MS
        until_ns = from_ns + 200 * MS
        board.fail(Call.ENERGY, pynvml.NVML_ERROR_UNKNOWN, from_ns=from_ns, until_ns=until_ns)
        while (before_ns := now_ns()) < until_ns + 100 * MS:
            try:
                read_mj(device)
            except pynvml.NVMLError:
                assert from_ns < now_ns()
                assert before_ns < until_ns
            else:
                assert before_ns < from_ns or until_ns < now_ns()


ASKED: dict[Call, Callable[[object], object]] = {
    Call.ENERGY: pynvml.nvmlDeviceGetTotalEnergyConsumption,
    Call.POWER: pynvml.nvmlDeviceGetPowerUsage,
    Call.LIMITS: pynvml.nvmlDeviceGetEnforcedPowerLimit,
    Call.CLOCKS: lambda device: pynvml.nvmlDeviceGetClockInfo(device, 0),
    Call.TEMPERATURE: lambda device: pynvml.nvmlDeviceGetTemperatureV(device, 0),
    Call.MODES: pynvml.nvmlDeviceGetPersistenceMode,
    Call.PROCESSES: pynvml.nvmlDeviceGetComputeRunningProcesses,
    Call.MEMORY: pynvml.nvmlDeviceGetMemoryInfo,
    Call.HANDLE: pynvml.nvmlDeviceGetUUID,
    Call.SYSTEM: lambda _: pynvml.nvmlDeviceGetCount(),
}


@pytest.mark.parametrize("calls", list(ASKED))
def test_a_fault_hits_its_class_of_calls_alone(tmp_path: Path, calls: Call) -> None:
    with Board(tmp_path / "board") as board:
        device = handle(board)
        board.fail(calls, pynvml.NVML_ERROR_UNKNOWN)
        failing = set()
        for asked, ask in ASKED.items():
            try:
                ask(device)
            except pynvml.NVMLError:
                failing.add(asked)
        assert failing == {calls}


def test_a_lost_gpu_answers_nothing_until_it_is_back(tmp_path: Path) -> None:
    with Board(tmp_path / "board", gpus=2) as board:
        first, second = handle(board, 0), handle(board, 1)
        board.lose(0)
        lost = pynvml.NVML_ERROR_GPU_IS_LOST
        assert code_of(lambda: read_mj(first)) == lost
        assert code_of(lambda: pynvml.nvmlDeviceGetMigMode(first)) == lost
        assert code_of(lambda: pynvml.nvmlDeviceGetHandleByUUID(board.uuid(0))) == lost
        assert read_mj(second) == 10**9
        board.heal()
        assert read_mj(first) == 10**9


def test_a_stalled_call_blocks_and_then_tells_the_value_of_now(tmp_path: Path) -> None:
    with Board(tmp_path / "board", energy=Sensor(period_ns=10 * MS), base_mj=NO_BASE) as board:
        device, start_ns = handle(board), now_ns()
        board.set_power_w(0, [(start_ns, 1000.0)])
        board.stall(Call.ENERGY, 300 * MS, until_ns=start_ns + 200 * MS)
        stalled_mj = read_mj(device)
        assert now_ns() - start_ns >= 300 * MS
        assert stalled_mj >= 280_000
        board.heal()


def test_a_frozen_counter_stands_still_and_then_catches_up(tmp_path: Path) -> None:
    with Board(tmp_path / "board", energy=Sensor(period_ns=10 * MS), base_mj=NO_BASE) as board:
        start_ns = now_ns() // (10 * MS) * 10 * MS
        board.set_power_w(0, [(start_ns - SECOND, 100.0)])
        thawed_ns = start_ns + 400 * MS
        board.freeze(Call.ENERGY, start_ns, until_ns=thawed_ns)
        device = handle(board)
        shown = [(read_mj(device), now_ns())]
        while shown[-1][1] < thawed_ns:
            shown.append((read_mj(device), now_ns()))
        assert {energy_mj for energy_mj, read_ns in shown if read_ns < thawed_ns} == {100_000}
        assert read_mj(device) >= 140_000


@pytest.mark.parametrize("sensor", [Sensor(period_ns=10 * MS), Sensor(10 * MS, window_ns=MS, part_time=True)])
def test_a_reset_counter_goes_on_from_zero(tmp_path: Path, sensor: Sensor) -> None:
    with Board(tmp_path / "board", energy=sensor, base_mj=5_000) as board:
        start_ns = now_ns() // (10 * MS) * 10 * MS
        board.set_power_w(0, [(start_ns - SECOND, 100.0)])
        device = handle(board)
        assert read_mj(device) >= 105_000
        board.reset_counter(start_ns + 100 * MS)
        at(start_ns + 150 * MS)
        energy_mj, update = read_with_update_mj(device, 10 * MS)
        assert energy_mj == (update * 10 - (start_ns // MS + 100)) * 100


def test_the_library_is_built_once_by_many(tmp_path: Path) -> None:
    ask = "from tests.simnvml.board import library; path = library(); print(path, path.stat().st_ino)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", ask], cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    assert [builder.wait() for builder in builders] == [0, 0, 0]
    for builder in builders:
        assert builder.stdout is not None
        assert builder.stdout.read().decode().startswith(str(tmp_path))
        builder.stdout.close()
    assert len(list(tmp_path.rglob("*"))) == 4  # etameter, simnvml, one digest and the library: no scratch is left
