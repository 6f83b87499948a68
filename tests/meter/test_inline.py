"""Windows around code, on the stand-in's boards; with a ring, the requests of an engine in this process."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

import etameter
from etameter.errors import CounterError
from etameter.serving.ring import RingWriter
from tests.simnvml.board import Board, Call, Sensor, now_ns

pytestmark = pytest.mark.unit

MS = 1_000_000
SECOND = 1_000 * MS
FAST = Sensor(period_ns=20 * MS, phase_ns=7 * MS)


@pytest.fixture(autouse=True)
def _own_rings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETAMETER_RING_DIR", str(tmp_path))


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path / "board", gpus=2, energy=FAST)
    start_ns = now_ns()
    for gpu in range(2):
        steps = [(start_ns + k * 70 * MS, 600.0 if k % 2 else 100.0 + 50 * gpu) for k in range(400)]
        made.set_power_w(gpu, [(0, 100.0), *steps])
    with made:
        yield made


def test_a_window_holds_the_truth_within_its_bound(board: Board) -> None:
    with etameter.window() as w:
        time.sleep(1.0)
    truth_j = sum(float(board.truth_j(gpu, w.start_ns, w.end_ns)) for gpu in range(2))
    assert w.energy_j is not None
    assert abs(w.energy_j - truth_j) <= w.bound_j + 0.002
    assert 0 < w.error_j < w.bound_j < 0.5 * truth_j
    assert w.energy_j == pytest.approx(sum(device.energy_j or math.nan for device in w.devices))
    assert w.average_w == pytest.approx(w.energy_j / w.seconds)
    assert (w.source, w.requests) == ("simulated", ())


def test_a_steady_board_has_a_small_error(tmp_path: Path) -> None:
    board = Board(tmp_path / "steady", energy=FAST)
    board.set_power_w(0, [(0, 400.0)])
    with board, etameter.window() as w:
        time.sleep(1.0)
    assert w.energy_j == pytest.approx(400 * w.seconds, abs=w.bound_j + 0.002)
    assert w.error_j < 0.5 * w.bound_j, "power was seen to be the same all the time"


def test_a_counter_that_lags_is_within_the_error_too(tmp_path: Path) -> None:
    board = Board(tmp_path / "late", energy=Sensor(period_ns=50 * MS, delay_ns=40 * MS))
    start_ns = now_ns() + 700 * MS
    board.set_power_w(0, [(0, 100.0), (start_ns, 650.0), (start_ns + 500 * MS, 100.0)])
    with board, etameter.window() as w:
        time.sleep(max(start_ns + 250 * MS - now_ns(), 0) * 1e-9)
    assert w.energy_j is not None
    truth_j = float(board.truth_j(0, w.start_ns, w.end_ns))
    assert abs(w.energy_j - truth_j) > 5, "it lags, and its power is not steady"
    assert abs(w.energy_j - truth_j) <= w.error_j + 0.002


def test_one_gpu_alone(board: Board) -> None:
    with etameter.window([board.uuid(1)]) as w:
        time.sleep(0.2)
    assert [device.gpu_uuid for device in w.devices] == [board.uuid(1)]


def test_a_split_gpu_is_refused_unless_that_is_allowed(board: Board) -> None:
    board.gpus[1].mig_current = 1
    with pytest.raises(CounterError, match="split by MIG"):
        etameter.window()
    with etameter.window(allow_shared=True) as w:
        time.sleep(0.1)
    assert all(device.energy_j is not None for device in w.devices)


@pytest.mark.parametrize(("missing", "within"), [(Call.ENERGY, 0.2), (Call.ENERGY | Call.INSTANT, 0.4)])
def test_without_a_counter_power_is_integrated(tmp_path: Path, missing: Call, within: float) -> None:
    board = Board(tmp_path / "old")
    board.set_power_w(0, [(0, 400.0)])
    with board:
        board.fail(missing, pynvml.NVML_ERROR_NOT_SUPPORTED)
        with etameter.window() as w:
            time.sleep(1.0)
    assert w.energy_j is not None
    assert w.error_j is not None
    assert w.energy_j == pytest.approx(400 * w.seconds, abs=w.error_j)
    assert 0.02 * w.energy_j < w.error_j < within * w.energy_j


def test_a_reset_in_the_window_leaves_no_figure(board: Board) -> None:
    with etameter.window() as w:
        time.sleep(0.2)
        board.reset_counter(now_ns(), gpu=0)
        time.sleep(0.2)
    lost, sound = w.devices
    assert (lost.energy_j, lost.error_j, lost.bound_j) == (None, math.inf, math.inf)
    assert sound.energy_j is not None
    assert (w.energy_j, w.average_w) == (None, None)


def test_a_counter_that_stands_still_is_an_error(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etameter.inline.FIRST_EDGE_S", 0.3)
    board.freeze(Call.ENERGY, now_ns(), gpu=1)
    time.sleep(0.03)
    with pytest.raises(CounterError, match=f"{board.uuid(1)} stands still"), etameter.window():
        pass


def _fail_later() -> None:
    time.sleep(0.1)
    raise ZeroDivisionError


def test_an_error_in_the_block_passes_and_the_figures_stand(board: Board) -> None:
    w = etameter.window()
    with pytest.raises(ZeroDivisionError), w:
        _fail_later()
    assert w.energy_j is not None


def test_an_engine_on_another_gpu_is_none_of_the_windows_business(board: Board, tmp_path: Path) -> None:
    ring = RingWriter(
        tmp_path / "etameter-engine-0.ring", engine="engine-0", model="m", dtype="float32", gpu_uuids=[board.uuid(0)]
    )
    with etameter.window([board.uuid(1)]) as w:
        time.sleep(0.3)
    ring.close()
    assert w.energy_j is not None
    assert w.requests == ()


def test_requests_of_an_engine_in_this_process(board: Board, tmp_path: Path) -> None:
    ring = RingWriter(tmp_path / "etameter-own.ring", engine="own", model="m", dtype="float32")
    with etameter.window([board.uuid(0)], engine="own") as w:
        first = ring.open_request("first", 100, now_ns())
        second = ring.open_request("second", 100, now_ns())
        ring.dispatch(0, now_ns(), [(number, 100, 0, 0, 0, 0, 0, 0, 0) for number in (first, second)])
        time.sleep(0.05)
        ring.done(0, now_ns())
        for step in range(1, 9):
            ring.dispatch(step, now_ns(), [(number, 0, 1, 0, 0, 0, 0, 99 + step, 0) for number in (first, second)])
            time.sleep(0.03)
            ring.done(step, now_ns())
        for number in (first, second):
            ring.finish(number, now_ns(), 9, "length")
    ring.close()
    assert sorted(row.record.request_id for row in w.requests) == ["first", "second"]
    assert all(row.energy.settled and row.energy.energy_j > 0 for row in w.requests)
    assert all(row.energy.source == "simulated" for row in w.requests)
    attributed_j = sum(balance.attributed_j for balance in w.balances)
    assert sum(row.energy.energy_j for row in w.requests) == pytest.approx(attributed_j, rel=1e-9)
    assert all(abs(balance.residual_j) < 1e-9 for balance in w.balances)
