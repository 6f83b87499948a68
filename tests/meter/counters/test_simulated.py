import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etameter.counters.simulated import (
    GAIN_LIMIT,
    GAIN_VARIABLE,
    IDLE_FACTOR,
    LAUNCH_S,
    SimulatedCounter,
    SlowMotionBoard,
    gain_of,
    more_of,
    step_cost,
)
from etameter.errors import CounterError
from etameter.roofline import H100, QWEN3_8B
from etameter.serving.ring import Dispatch, Done, Lost, RingWriter, Row, row_table

pytestmark = pytest.mark.unit

MS = 1_000_000


def decode(number: int, context: int = 500) -> Row:
    return (number, 0, 1, 0, 0, 0, 0, context, 0)


def prefill(number: int, tokens: int) -> Row:
    return (number, tokens, 0, 0, 0, 0, 0, 0, 0)


def board() -> SlowMotionBoard:
    return SlowMotionBoard(H100, QWEN3_8B, seed=1, start_ns=0)


def test_a_decode_waits_for_memory_and_a_long_prefill_for_arithmetic() -> None:
    weights_s = QWEN3_8B.parameters * 2 / H100.bytes_per_s
    assert step_cost(H100, QWEN3_8B, row_table([decode(0, 0)])).gpu_s == pytest.approx(weights_s + LAUNCH_S, rel=1e-3)
    flop = 2.0 * QWEN3_8B.parameters * 4096 + QWEN3_8B.pair_flop * 4096 * 2048.5
    long = step_cost(H100, QWEN3_8B, row_table([prefill(0, 4096)]))
    assert long.gpu_s >= flop / H100.flop_per_s
    assert long.energy_j / long.gpu_s <= H100.power_cap_w * 1.0001


def test_the_cap_stretches_time_and_holds_power() -> None:
    batch = row_table([decode(number, 8000) for number in range(256)])
    free = step_cost(H100, QWEN3_8B, batch)
    capped = step_cost(
        H100.__class__(*(getattr(H100, name) if name != "power_cap_w" else 350.0 for name in H100.__slots__)),
        QWEN3_8B,
        batch,
    )
    assert capped.gpu_s > free.gpu_s
    assert capped.energy_j / capped.gpu_s < free.energy_j / free.gpu_s


def test_a_step_burns_its_energy_from_dispatch_to_done() -> None:
    one = board()
    one.feed(Dispatch(0, 10 * MS, 0, row_table([decode(0)]), ()))
    one.feed(Done(0, 60 * MS))
    one.advance(100 * MS)
    expected_j = step_cost(H100, QWEN3_8B, row_table([decode(0)])).energy_j
    idle_j = H100.idle_w * IDLE_FACTOR * 0.05  # while no step runs
    assert one.true_j == pytest.approx(expected_j + idle_j, rel=0.2)  # 4 % noise on the step
    assert one.true_j_at(10 * MS) == pytest.approx(one.idle_w * 0.010)
    assert one.true_j_at(60 * MS) - one.true_j_at(35 * MS) == pytest.approx(expected_j / 2, rel=0.2)


@pytest.mark.parametrize("length_ms", [5, 50, 500])
def test_a_step_takes_its_energy_however_long_the_cpu_needs(length_ms: int) -> None:
    energies = []
    for seed in range(40):
        one = SlowMotionBoard(H100, QWEN3_8B, seed, 0)
        one.feed(Dispatch(0, 0, 0, row_table([decode(0)]), ()))
        one.feed(Done(0, length_ms * MS))
        beyond_s = max(length_ms - 50, 0) * 1e-3  # longer than foreseen: idle power goes on
        energies.append(one.true_j - one.idle_w * beyond_s)
    expected_j = step_cost(H100, QWEN3_8B, row_table([decode(0)])).energy_j
    assert sum(energies) / len(energies) == pytest.approx(expected_j, rel=0.05)


def test_slow_motion_keeps_the_shares_of_the_modelled_board() -> None:
    """p0 over the modelled time, the rest by bytes and operations: method.md's fits of an H100 with Qwen3-8B."""
    cost = step_cost(H100, QWEN3_8B, row_table([decode(number, 1000) for number in range(8)]))
    assert cost.energy_j == pytest.approx(122.8 * cost.gpu_s + 1.94 + 8 * 0.0251 + 8 * 1001 * 3.4e-5, rel=0.02)


def test_lost_records_leave_the_board_idle() -> None:
    one = board()
    one.feed(Dispatch(0, 0, 0, row_table([decode(0)]), ()))
    one.feed(Lost(3))
    before_j = one.true_j
    one.advance(1000 * MS)
    assert one.true_j - before_j == pytest.approx(one.idle_w * 1.0)
    one.feed(Done(0, 1001 * MS))  # of a step that is forgotten


def test_overlapping_steps_burn_one_after_the_other() -> None:
    one = board()
    one.feed(Dispatch(0, 0, 0, row_table([decode(0)]), ()))
    one.feed(Dispatch(1, 20 * MS, 0, row_table([decode(0)]), ()))
    one.feed(Done(0, 50 * MS))
    one.feed(Done(1, 100 * MS))
    assert one.cpu_s == pytest.approx(0.100)
    assert one.true_j == pytest.approx(2 * step_cost(H100, QWEN3_8B, row_table([decode(0)])).energy_j, rel=0.15)


@contextmanager
def published(ring_path: Path, board_path: Path) -> Iterator[None]:
    """A board process that publishes while the block runs."""
    command = [sys.executable, "-m", "etameter.counters.simulated", "--profile", "h100", "--engine", "e"]
    before = board_path.stat().st_ino if board_path.exists() else None
    process = subprocess.Popen([*command, "--ring", str(ring_path), "--board", str(board_path)])
    try:
        while not board_path.exists() or board_path.stat().st_ino == before:
            assert process.poll() is None
            time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("more", [None, "1.5"])
def test_a_board_has_one_gain_for_good_and_more_where_it_is_asked_for(
    more: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if more is not None:
        monkeypatch.setenv(GAIN_VARIABLE, more)
    told = []
    for number in range(2):
        with published(tmp_path / "ring", tmp_path / f"board-{number}"):
            counter = SimulatedCounter(tmp_path / f"board-{number}")
            while not counter.power_w:
                time.sleep(0.01)
            assert counter.times_energy == float(more or 1), "it is told with the joules"
            told.append(counter.power_w)
            counter.close()
    assert told[0] == told[1]
    gain = told[0] / float(more or 1) / (H100.idle_w * IDLE_FACTOR)
    assert gain == pytest.approx(gain_of("h100"), abs=1e-3)
    assert abs(gain - 1) <= GAIN_LIMIT
    assert gain_of("a100") != gain_of("h100")


def test_a_board_that_comes_back_is_read_again_and_burns_no_old_steps(tmp_path: Path) -> None:
    ring_path, board_path = tmp_path / "ring", tmp_path / "board"
    ring = RingWriter(ring_path, engine="e", model="m", dtype="d")
    number = ring.open_request("a", 1, time.monotonic_ns())
    for step_id in range(200):
        ring.dispatch(step_id, time.monotonic_ns(), [decode(number)])
        ring.done(step_id, time.monotonic_ns())
    old_j = 200 * step_cost(H100, QWEN3_8B, row_table([decode(0)])).energy_j
    with published(ring_path, board_path):
        counter = SimulatedCounter(board_path)
        time.sleep(0.3)
        assert counter.read_mj() < 0.1 * old_j * 1000
        before_mj = counter.read_mj()
    with published(ring_path, board_path):
        assert counter.read_mj() < before_mj  # from zero, in another file
        number = ring.open_request("b", 1, time.monotonic_ns())
        ring.dispatch(200, time.monotonic_ns(), [decode(number)])
        time.sleep(0.02)
        ring.done(200, time.monotonic_ns())
        while counter.read_mj() < 0.5 * old_j / 200 * 1000:
            time.sleep(0.01)
    board_path.unlink()
    with pytest.raises(CounterError, match="has ended"):
        counter.read_mj()
    counter.close()
    ring.close()


def test_steps_of_an_engine_that_is_gone_are_forgotten() -> None:
    one = board()
    one.feed(Dispatch(0, 0, 0, row_table([decode(0)]), ()))
    one.feed(Dispatch(1, 0, 0, row_table([decode(0)]), ()))
    one.forget()
    before_j = one.true_j
    one.feed(Dispatch(0, 0, 0, row_table([decode(1)]), ()))  # the next engine counts from 0
    one.feed(Done(0, 50 * MS))
    assert one.power_w == one.idle_w
    assert one.true_j - before_j < 1.3 * step_cost(H100, QWEN3_8B, row_table([decode(1)])).energy_j


def test_a_board_process_publishes_what_a_ring_shows(tmp_path: Path) -> None:
    ring_path, board_path = tmp_path / "ring", tmp_path / "board"
    with pytest.raises(CounterError, match="no simulated board publishes"):
        SimulatedCounter(board_path)
    command = [sys.executable, "-m", "etameter.counters.simulated", "--profile", "h100", "--engine", "e"]
    process = subprocess.Popen([*command, "--ring", str(ring_path), "--board", str(board_path)])
    try:
        while not board_path.exists():
            assert process.poll() is None
            time.sleep(0.01)
        counter = SimulatedCounter(board_path)
        assert (counter.gpu_uuid, counter.source, counter.kind) == ("GPU-sim-e-0", "simulated", "simulated")
        assert counter.slow_motion != counter.slow_motion  # not a number before the first step
        ring = RingWriter(ring_path, engine="e", model="m", dtype="d")
        number = ring.open_request("a", 1, time.monotonic_ns())
        for step_id in range(10):
            ring.dispatch(step_id, time.monotonic_ns(), [decode(number)])
            time.sleep(0.02)
            ring.done(step_id, time.monotonic_ns())
        least_j = 10 * step_cost(H100, QWEN3_8B, row_table([decode(0)])).energy_j * (1 - GAIN_LIMIT) * 0.9
        while counter.read_mj() < least_j * 1000:
            assert process.poll() is None
            time.sleep(0.01)
        assert 0 < counter.slow_motion < 1
        assert counter.modelled_s == pytest.approx(
            10 * step_cost(H100, QWEN3_8B, row_table([decode(0)])).gpu_s, rel=0.2
        )
        counter.close()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not os.path.lexists(board_path)
    (tmp_path / "other").write_bytes(b"\0" * 4096)
    with pytest.raises(CounterError, match="is no simulated board"):
        SimulatedCounter(tmp_path / "other")


@pytest.mark.parametrize("told", ["", "much", "0", "-1.1", "nan", "inf"])
def test_a_gain_is_a_number_above_zero(told: str) -> None:
    assert more_of("1.1") == 1.1
    with pytest.raises(CounterError, match=f"{GAIN_VARIABLE} is '{told}'"):
        more_of(told)
