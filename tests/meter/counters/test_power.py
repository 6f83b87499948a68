"""What replaces an energy counter: power readings, integrated as what they are."""

import random
import time
from pathlib import Path

import pynvml
import pytest

from etameter.counters.nvml import NvmlCounter, PowerCounter, discover
from etameter.counters.power import AVERAGED_1_S, INSTANT, PowerIntegral
from etameter.errors import CounterError
from etameter.records import Edge
from etameter.sampler import Sampler
from tests.simnvml.board import AVERAGE_POWER, INSTANT_POWER, Board, Call, Sensor, now_ns

pytestmark = pytest.mark.unit

MS = 1_000_000
NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED


def integrate(integral: PowerIntegral, power_mw: list[tuple[int, int]], until_ms: int) -> dict[int, int]:
    """When the integral changed (ms) and to what (mJ), read each 5 ms from a sensor that is published at these instants."""
    changes, last_mj = {}, 0
    for t_ms in range(0, until_ms + 1, 5):
        shown_mw = [mw for at_ms, mw in power_mw if at_ms <= t_ms][-1]
        now_mj = integral.add(t_ms * MS, shown_mw)
        if now_mj != last_mj:
            changes[t_ms] = now_mj
        last_mj = now_mj
    return changes


def test_instantaneous_power_is_joined_by_straight_lines_and_stands_still_between() -> None:
    readings = [(0, 100_000), (100, 200_000), (200, 400_000), (300, 400_000)]
    assert integrate(PowerIntegral(INSTANT), readings, 450) == {100: 15_000, 200: 45_000, 400: 125_000}


def test_a_mean_over_a_second_is_taken_once_a_second() -> None:
    """A ramp's true energy of second n, though the sensor is published each 100 ms: between, nothing is added twice."""
    dice = random.Random(5)
    power_w = [dice.uniform(100, 700) for _ in range(60)]  # of each 100 ms
    means = [(n * 100, round(sum(power_w[max(0, n - 10) : n]) * 100)) for n in range(61)]
    changes = integrate(PowerIntegral(AVERAGED_1_S), means, 6000)
    assert list(changes) == [1000, 2000, 3000, 4000, 5000, 6000]
    for at_ms, energy_mj in changes.items():
        assert energy_mj / 1000 == pytest.approx(sum(power_w[: at_ms // 100]) * 0.1, abs=0.01)


def test_what_was_spent_while_readings_failed_is_left_out() -> None:
    integral = PowerIntegral(INSTANT)
    integrate(integral, [(0, 100_000), (100, 100_001)], 200)
    before_mj = integral.add(300 * MS, 100_000)
    integral.forget()
    assert integral.add(90_000 * MS, 500_000) == before_mj


@pytest.mark.parametrize(
    ("missing", "kind", "blur_ns", "source"),
    [
        (Call.CLOCKS, "nvml", 0, "measured"),
        (Call.ENERGY, "power", INSTANT.blur_ns, "estimated"),
        (Call.ENERGY | Call.INSTANT, "power", AVERAGED_1_S.blur_ns, "estimated"),
    ],
)
def test_the_best_sensor_is_taken(tmp_path: Path, missing: Call, kind: str, blur_ns: int, source: str) -> None:
    with Board(tmp_path / "board", driver="560.35.03") as board:
        board.fail(missing, NOT_SUPPORTED)
        (counter,) = discover()
        assert (counter.kind, counter.blur_ns, counter.source) == (kind, blur_ns, source)


@pytest.mark.parametrize(
    ("name", "architecture", "blur_ns"),
    [
        (b"NVIDIA A100-SXM4-80GB", pynvml.NVML_DEVICE_ARCH_AMPERE, INSTANT.blur_ns),
        (b"NVIDIA A10", pynvml.NVML_DEVICE_ARCH_AMPERE, AVERAGED_1_S.blur_ns),
        (b"Tesla V100-SXM2-32GB", pynvml.NVML_DEVICE_ARCH_VOLTA, INSTANT.blur_ns),
    ],
)
def test_what_power_usage_means_goes_by_the_chip(tmp_path: Path, name: bytes, architecture: int, blur_ns: int) -> None:
    with Board(tmp_path / "board") as board:
        board.gpus[0].name, board.gpus[0].architecture = name, architecture
        board.fail(Call.ENERGY | Call.INSTANT, NOT_SUPPORTED)
        assert discover()[0].blur_ns == blur_ns


def test_a_stand_in_stays_simulated_whatever_it_reads(tmp_path: Path) -> None:
    with Board(tmp_path / "board") as board:
        board.fail(Call.ENERGY, NOT_SUPPORTED)
        assert discover()[0].source == "simulated"


@pytest.mark.parametrize(("missing", "least_edges"), [(Call.ENERGY, 20), (Call.ENERGY | Call.INSTANT, 3)])
def test_estimated_energy_is_right_to_its_wider_bars(tmp_path: Path, missing: Call, least_edges: int) -> None:
    power = Sensor(window_ns=AVERAGE_POWER.window_ns, phase_ns=41 * MS)
    board = Board(tmp_path / "board", power=power, instant=INSTANT_POWER)
    start_ns = now_ns()
    board.set_power_w(
        0, [(start_ns - 10**10, 100.0), *((start_ns + n * 700 * MS, 250.0 + 200 * (n % 2)) for n in range(40))]
    )
    with board:
        board.fail(missing, NOT_SUPPORTED)
        counters = discover()
        sampler = Sampler(counters)
        sampler.start()
        found: list[Edge] = []
        while len(found) < least_edges:
            assert now_ns() < start_ns + 25_000 * MS
            time.sleep(0.05)
            found += [one for one in sampler.drain() if isinstance(one, Edge)]
        sampler.stop()
    first, last = found[0], found[-1]
    truth_j = float(board.truth_j(0, first.t_ns, last.t_ns))
    bound_j = 450 * (first.half_width_ns + last.half_width_ns) * 1e-9
    assert abs((last.energy_mj - first.energy_mj) / 1000 - truth_j) <= bound_j
    assert min(one.half_width_ns for one in found) >= counters[0].blur_ns


def test_energy_and_instantaneous_power_come_in_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Board(tmp_path / "board") as board:
        board.set_power_w(0, [(0, 300.0)])
        counter = NvmlCounter(board.uuid())
        monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", None)
        assert counter.read_mj() > 10**9
        assert counter.power_w == 300.0
        board.fail(Call.INSTANT, NOT_SUPPORTED)
        assert counter.read_mj() > 10**9
        assert counter.power_w is None


def test_a_counter_that_is_no_field_is_read_by_its_own_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etameter.counters.nvml.pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 9999)
    with Board(tmp_path / "board", base_mj=77) as board:
        assert NvmlCounter(board.uuid()).read_mj() == 77


def test_a_board_split_by_mig_is_shared_where_that_is_allowed(tmp_path: Path) -> None:
    with Board(tmp_path / "board", driver="560.35.03") as board:
        board.gpus[0].mig_current = 1
        with pytest.raises(CounterError, match="--allow-shared-gpu"):
            discover()
        (counter,) = discover(allow_shared=True)
        assert (counter.kind, counter.source) == ("nvml", "shared")
        board.fail(Call.ENERGY, NOT_SUPPORTED)
        assert PowerCounter(board.uuid(), allow_shared=True).source == "shared"


def test_a_split_board_tells_what_its_parts_are_called(tmp_path: Path) -> None:
    with Board(tmp_path / "board", gpus=2) as board:
        gpu, other = board.gpus
        for each in (gpu, other):
            each.part_count = 2
            each.parts[0].value, each.parts[1].value = b"MIG-a", b"MIG-b"
        gpu.mig_current = 1
        assert [counter.parts for counter in discover(allow_shared=True)] == [("MIG-a", "MIG-b"), ()]


def test_a_chip_with_a_cpu_is_a_module(tmp_path: Path) -> None:
    with Board(tmp_path / "board", gpus=2) as board:
        board.gpus[1].c2c = 1
        assert [counter.scope for counter in discover()] == ["gpu", "module"]


def test_processes_are_told_unless_they_may_not_be(tmp_path: Path) -> None:
    with Board(tmp_path / "board") as board:
        board.gpus[0].process_pid[:2], board.gpus[0].process_count = (41, 42), 2
        (counter,) = discover()
        assert counter.processes() == (41, 42)
        board.fail(Call.PROCESSES, pynvml.NVML_ERROR_NO_PERMISSION)
        assert counter.processes() is None


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED, 999])
def test_a_driver_that_was_reloaded_is_found_again(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is initialised anew the old driver goes on failing; the new one begins at zero."""
    with Board(tmp_path / "old", gpus=2) as old:
        counters = discover()
        old.fail(Call.DEVICE, code)
        reloaded = Board(tmp_path / "new", gpus=2, base_mj=5)
        monkeypatch.setenv("SIMNVML_BOARD", str(reloaded.path))
        for counter in counters:
            with pytest.raises(CounterError):
                counter.read_mj()
        assert [counter.read_mj() for counter in counters] == [5, 5]
        for counter in counters:
            counter.close()
        with pytest.raises(pynvml.NVMLError):
            pynvml.nvmlDeviceGetCount()
