"""Each fault that a machine has in store, on a whole meter: the real nvidia-ml-py on the stand-in, a real ring, a real ledger.

What holds in all of them: the balance, no negative joule, nothing booked twice. What each must come to stands in its test's name.
"""

import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from itertools import pairwise
from pathlib import Path

import pynvml
import pytest

from etameter.ledger import Ledger
from etameter.serving.ring import HEADER_BYTES, RingWriter, Row
from tests.meter.test_daemon import (
    ENGINE_ID,
    RECEIPT,
    Meter,
    balanced,
    engine,
    lit_board,
    refusal,
    running,
    serve_one,
    start,
    until,
)
from tests.simnvml.board import SONAME, Board, Call, now_ns

pytestmark = pytest.mark.unit

MS = 1_000_000
SECOND = 1_000 * MS
OTHER = "d" * 32


def another(ring: RingWriter, first_step: int, steps: int = 10, receipt: str = OTHER) -> float:
    return serve_one(ring, steps, f"chatcmpl-2-{receipt}00000000", first_step)


def settled(meter: Meter, receipt: str = RECEIPT) -> object:
    return (meter.energy(receipt) or {}).get("settled")


def unassigned_j(meter: Meter, cause: str, gpu_uuid: str = "") -> float:
    """As the metrics say."""
    return sum(
        value
        for name, value in meter.samples().items()
        if name.startswith("etameter_unassigned_joules_total") and f'cause="{cause}"' in name and gpu_uuid in name
    )


def metric(meter: Meter, name: str) -> float:
    return sum(value for sample, value in meter.samples().items() if sample.partition("{")[0] == name)


def settled_ns(directory: Path) -> int:
    """Up to when the meter has settled."""
    ledger = Ledger(directory / "ledger.db", read_only=True)
    try:
        return int(ledger._db.execute("SELECT max(end_ns) FROM balances").fetchone()[0])
    finally:
        ledger.close()


def more_intervals(meter: Meter, count: int = 6) -> None:
    enough_ns = settled_ns(meter.directory) + count * 50 * MS
    until(lambda: settled_ns(meter.directory) >= enough_ns)


def assert_sound(meter: Meter) -> None:
    """The balance holds in the ledger and in the metrics, no joule is negative, and no instant is booked twice."""
    totals = meter.totals()
    assert balanced(totals)
    assert min(totals.requests_j, totals.idle_j, *totals.unattributed_j_by_cause.values(), 0.0) >= 0.0
    assert all(value >= 0 for name, value in meter.samples().items() if "joules" in name)
    ledger = Ledger(meter.directory / "ledger.db", read_only=True)
    spans = ledger._db.execute("SELECT gpu_uuid, start_ns, end_ns FROM balances ORDER BY gpu_uuid, end_ns").fetchall()
    ledger.close()
    for (gpu, _, end_ns), (next_gpu, start_ns, _) in pairwise(spans):
        assert gpu != next_gpu or start_ns == end_ns


def knows_its_engine(meter: Meter) -> None:
    until(lambda: json.loads(meter.get("/health")[1])["engine"])


@contextmanager
def metering(directory: Path, gpus: int = 1) -> Iterator[tuple[Board, Meter, RingWriter]]:
    """A meter that knows its engine and has settled some intervals."""
    with (
        lit_board(directory, gpus=gpus) as board,
        running(directory, board.environment()) as meter,
        engine(directory, [board.uuid(gpu) for gpu in range(gpus)]) as ring,
    ):
        knows_its_engine(meter)
        serve_one(ring)
        until(meter.settled)
        yield board, meter, ring


def test_a_counter_reset_is_a_new_epoch_and_no_negative_joule(tmp_path: Path) -> None:
    with metering(tmp_path) as (board, meter, ring):
        board.reset_counter(now_ns() + 100 * MS)
        another(ring, 20, steps=20)
        until(lambda: settled(meter, OTHER))
        more_intervals(meter)
        until(lambda: metric(meter, "etameter_gpu_energy_resets_total") == 1)
        assert "reset" in meter.totals().unattributed_j_by_cause
        assert_sound(meter)


def test_a_frozen_counter_is_stale_and_never_zero_joules_measured(tmp_path: Path) -> None:
    with metering(tmp_path) as (board, meter, ring):
        frozen_ns = now_ns()
        board.freeze(Call.ENERGY, frozen_ns, until_ns=frozen_ns + 2 * SECOND)
        time.sleep(0.2)
        another(ring, 20)  # lives and dies while the counter stands still
        assert now_ns() < frozen_ns + 2 * SECOND
        until(lambda: meter.totals().unattributed_j_by_cause.get("stale", 0.0) > 250)
        until(lambda: "not_measured" in meter.get(f"/energy/{OTHER}")[1])
        assert meter.energy(OTHER) is None
        assert_sound(meter)


def test_one_gpu_is_lost_and_back_and_the_other_goes_on(tmp_path: Path) -> None:
    with metering(tmp_path, gpus=2) as (board, meter, ring):
        board.lose(0)
        until(lambda: metric(meter, "etameter_gpu_energy_read_failures_total") > 0)
        another(ring, 20, steps=80)
        board.heal()
        until(lambda: settled(meter, OTHER))
        until(lambda: unassigned_j(meter, "readings_missing", board.uuid(0)) > 0)
        assert unassigned_j(meter, "readings_missing", board.uuid(1)) == 0
        assert any('cause="gpu_lost"' in name for name in meter.samples())
        assert_sound(meter)


def test_a_driver_that_is_reloaded_is_read_again(tmp_path: Path) -> None:
    with metering(tmp_path) as (board, meter, ring):
        gone_ns = now_ns()
        board.fail(
            Call.INIT | Call.SYSTEM | Call.DEVICE, pynvml.NVML_ERROR_DRIVER_NOT_LOADED, until_ns=gone_ns + SECOND
        )
        board.reset_counter(gone_ns + SECOND)
        until(lambda: metric(meter, "etameter_gpu_energy_read_failures_total") > 0)
        until(lambda: now_ns() > gone_ns + SECOND)
        another(ring, 20, steps=40)
        until(lambda: settled(meter, OTHER))
        until(lambda: metric(meter, "etameter_gpu_energy_resets_total") == 1)
        assert_sound(meter)


@pytest.mark.parametrize(
    "missing", [Call.ENERGY, Call.ENERGY | Call.INSTANT], ids=["instantaneous power", "a mean over the last second"]
)
def test_without_an_energy_counter_power_is_integrated_and_said_to_be(tmp_path: Path, missing: Call) -> None:
    with lit_board(tmp_path) as board:
        board.fail(missing, pynvml.NVML_ERROR_NOT_SUPPORTED)
        with running(tmp_path, board.environment()) as meter, engine(tmp_path, [board.uuid()]) as ring:
            knows_its_engine(meter)
            until(lambda: meter.get("/ready")[0] == 200)  # what was over before its first reading nobody meters
            took_s = serve_one(ring, 30)
            energy = until(meter.settled)
            assert energy["counter"] == "power"
            assert 0.5 * 250 * 0.6 < energy["energy_joules"] < 2 * 250 * took_s
            more_intervals(meter)
            assert_sound(meter)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (pynvml.NVML_ERROR_NO_PERMISSION, "no_permission"),
        (pynvml.NVML_ERROR_NOT_SUPPORTED, "not_supported"),
        (pynvml.NVML_ERROR_UNKNOWN, "nvml_error"),
    ],
)
def test_what_is_refused_for_a_while_is_missing_and_never_zero(tmp_path: Path, code: int, cause: str) -> None:
    with metering(tmp_path) as (board, meter, ring):
        refused_ns = now_ns()
        board.fail(Call.ENERGY | Call.POWER | Call.INSTANT, code, until_ns=refused_ns + SECOND)
        another(ring, 20, steps=80)  # 1.6 s
        until(lambda: settled(meter, OTHER))
        failures = [name for name in meter.samples() if name.startswith("etameter_gpu_energy_read_failures_total")]
        assert [cause in name for name in failures] == [True], failures
        until(lambda: unassigned_j(meter, "readings_missing") > 250 * 0.9)
        assert (meter.energy(OTHER) or {})["attribution_method"] == "step-cost-partial"
        assert_sound(meter)


@pytest.mark.skipif(
    any((folder / SONAME).exists() for folder in map(Path, ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"))),
    reason="this machine has an NVML of its own",
)
def test_without_a_library_nothing_is_metered_and_nothing_simulated(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot open"):
        ctypes.CDLL("libnvidia-ml-none.so.1")
    line = refusal(start(tmp_path, {"LD_LIBRARY_PATH": ""}))
    assert "NVML" in line or "energy counter" in line
    assert not (tmp_path / "ledger.db").exists()


@pytest.mark.parametrize(
    ("calls", "code", "says"),
    [
        (Call.INIT, pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "the NVIDIA driver isn't running"),
        (Call.INIT, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "of different versions"),
        (Call.ENERGY | Call.POWER | Call.INSTANT, pynvml.NVML_ERROR_NO_PERMISSION, "may not read the GPU"),
        (Call.ENERGY | Call.POWER | Call.INSTANT, pynvml.NVML_ERROR_NOT_SUPPORTED, "tells neither energy nor power"),
    ],
)
def test_where_nothing_can_be_read_the_meter_ends_with_a_line(
    tmp_path: Path, calls: Call, code: int, says: str
) -> None:
    with lit_board(tmp_path) as board:
        board.fail(calls, code)
        assert says in refusal(start(tmp_path, board.environment()))
    assert not (tmp_path / "ledger.db").exists()


def test_calls_that_stall_for_two_seconds_are_late_and_stay_in_one_thread(tmp_path: Path) -> None:
    with metering(tmp_path, gpus=2) as (board, meter, ring):
        usual_j = meter.settled()["error_joules"]
        threads = Path(f"/proc/{meter.process.pid}/task")
        before, late_s = len(list(threads.iterdir())), metric(meter, "etameter_sampler_lateness_seconds_total")
        stall_ns = now_ns()
        board.stall(Call.ENERGY, 2 * SECOND, gpu=0, from_ns=stall_ns, until_ns=stall_ns + 2 * SECOND)
        time.sleep(0.2)
        took_s = another(ring, 20, steps=20)  # it lives and dies while nobody hears of its first GPU
        assert now_ns() < stall_ns + 2 * SECOND
        assert len(list(threads.iterdir())) <= before
        energy = until(lambda: settled(meter, OTHER) and meter.energy(OTHER))
        assert energy["attribution_method"] == "step-cost"
        assert 0.6 * 500 * 0.4 < energy["energy_joules"] < 1.8 * 500 * took_s
        assert energy["error_joules"] > usual_j
        assert unassigned_j(meter, "readings_missing") == 0, "the counter went on, and told it in the end"
        until(lambda: metric(meter, "etameter_sampler_missed_polls_total") > 0)
        # The other GPU's reads had to wait for it.
        until(lambda: metric(meter, "etameter_sampler_lateness_seconds_total") - late_s > 1.0)
        assert_sound(meter)


def test_what_a_neighbour_takes_is_paid_by_nobody(tmp_path: Path) -> None:
    with metering(tmp_path) as (board, meter, ring):
        until(lambda: metric(meter, "etameter_cost_coefficient") > 0)
        another(ring, 20, steps=150)  # the fit learns that a step goes with 250 W
        until(lambda: settled(meter, OTHER))
        before_j = unassigned_j(meter, "model_residual")
        comes_ns = now_ns() + 200 * MS
        board.set_power_w(0, [(comes_ns, 450.0), (comes_ns + SECOND, 250.0)])
        serve_one(ring, 80, f"chatcmpl-3-{'e' * 32}00000000", 170)
        until(lambda: settled(meter, "e" * 32))
        more_intervals(meter)
        assert 100 < unassigned_j(meter, "model_residual") - before_j < 210
        assert_sound(meter)


@contextmanager
def stopped(meter: Meter) -> Iterator[None]:
    """As a suspended machine, or one that swaps."""
    os.kill(meter.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(meter.process.pid, signal.SIGCONT)


def test_a_ring_that_was_overrun_leaves_its_interval_unattributed(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter:
        ring = RingWriter(tmp_path / "ring", engine="engine-0", model="m", dtype="bfloat16", capacity_bytes=4096)
        knows_its_engine(meter)
        with stopped(meter):
            another(ring, 0, steps=60)
        time.sleep(0.3)  # it is awake, and waits behind what it lost
        serve_one(ring, 20, first_step=60)
        until(meter.settled)
        until(lambda: metric(meter, "etameter_ring_lost_records_total") > 0)
        assert unassigned_j(meter, "steps_missing") > 0
        assert_sound(meter)
        ring.close()


def test_a_torn_record_is_counted_and_its_interval_unattributed(tmp_path: Path) -> None:
    with metering(tmp_path) as (_, meter, ring):
        with stopped(meter):
            at = HEADER_BYTES + ring._committed
            another(ring, 20)
            with (tmp_path / "ring").open("r+b") as file:
                file.seek(at + 20)
                file.write(b"\xff")
        serve_one(ring, 20, f"chatcmpl-3-{'e' * 32}00000000", 30)
        until(lambda: settled(meter, "e" * 32))
        until(lambda: metric(meter, "etameter_ring_torn_records_total") == 1)
        assert unassigned_j(meter, "steps_missing") > 0
        assert_sound(meter)


def test_an_engine_that_dies_in_mid_request_and_comes_back_pays_once(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter:
        with engine(tmp_path, [board.uuid()]) as ring:
            knows_its_engine(meter)
            began_ns = now_ns()
            number = ring.open_request(ENGINE_ID, 30, began_ns)
            for step in range(20):
                row: Row = (number, 0, 1, 0, 0, 0, 0, 29 + step, 0) if step else (number, 30, 0, 0, 0, 0, 0, 0, 0)
                ring.dispatch(step, time.monotonic_ns(), [row])
                time.sleep(0.02)
                ring.done(step, time.monotonic_ns())
            first_s = (now_ns() - began_ns) * 1e-9
            ring.dispatch(20, time.monotonic_ns(), [(number, 0, 1, 0, 0, 0, 0, 50, 0)])  # and no end of it
            until(lambda: unassigned_j(meter, "idle") + metric(meter, "etameter_energy_joules_total") > 20)
        with engine(tmp_path, [board.uuid()]) as ring:
            time.sleep(0.3)
            second_s = another(ring, 0)  # the steps of the second engine have the numbers of the first one's
            until(lambda: settled(meter, OTHER))
        more_intervals(meter)
        ledger = Ledger(tmp_path / "ledger.db", read_only=True)
        rows = ledger.requests()
        ledger.close()
        assert [(row.record.receipt_id, row.record.finish_reason) for row in rows] == [
            (RECEIPT, "engine_lost"),
            (OTHER, "length"),
        ]
        for paid, took_s in zip(rows, (first_s, second_s), strict=True):  # give or take where intervals begin and end
            assert paid.energy.energy_j < 2 * 250 * (took_s + 0.2)
        booked_j = metric(meter, "etameter_energy_joules_total")
        assert booked_j == pytest.approx(sum(row.energy.energy_j for row in rows), rel=1e-9)
        assert_sound(meter)


def test_two_engines_have_a_meter_each_and_no_joule_in_common(tmp_path: Path) -> None:
    with ExitStack() as stack:
        board = stack.enter_context(lit_board(tmp_path, gpus=2))
        meters, rings = [], []
        for gpu in range(2):
            folder = tmp_path / str(gpu)
            folder.mkdir()
            meters.append(stack.enter_context(running(folder, board.environment())))
            about = {"engine": f"engine-{gpu}", "model": "m", "dtype": "bfloat16", "gpu_uuids": [board.uuid(gpu)]}
            rings.append(RingWriter(folder / "ring", **about))  # type: ignore[arg-type]
            stack.callback(rings[-1].close)
        for meter in meters:
            knows_its_engine(meter)
        for ring in rings:
            serve_one(ring)
        for gpu, meter in enumerate(meters):
            until(meter.settled)
            booked = {name for name in meter.samples() if name.startswith("etameter_gpu_energy_joules_total")}
            assert len(booked) == 1
            assert board.uuid(gpu) in booked.pop()
            assert_sound(meter)


@contextmanager
def limited(meter: Meter) -> Iterator[None]:
    """Its process may write no file beyond the first page: what it writes to the ledger fails in the middle."""
    limits = resource.prlimit(meter.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(meter.process.pid, resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.prlimit(meter.process.pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def filled(meter: Meter) -> Iterator[None]:
    """Another file takes all the room that there is beside the ledger."""
    filling = meter.directory / "filling"
    with filling.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filling.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize(
    ("disk", "full"), [(lambda folder: nullcontext(folder.mkdir()), limited), (small_disk, filled)]
)
def test_a_full_disk_delays_the_ledger_and_nothing_is_lost_or_written_twice(
    tmp_path: Path,
    disk: Callable[[Path], AbstractContextManager[None]],
    full: Callable[[Meter], AbstractContextManager[None]],
) -> None:
    with disk(tmp_path / "disk"), metering(tmp_path / "disk") as (_, meter, ring):
        with full(meter):
            another(ring, 20)
            until(lambda: settled(meter, OTHER))  # its receipt is told, though it can't be kept
            before_ns = settled_ns(meter.directory)
            time.sleep(1.5)  # it has tried again
            assert settled_ns(meter.directory) == before_ns
            assert meter.get("/health")[0] == 200
        more_intervals(meter)
        assert kept(meter) == [RECEIPT, OTHER]
        assert unassigned_j(meter, "readings_missing") == unassigned_j(meter, "steps_missing") == 0
        assert_sound(meter)


def test_a_meter_that_ends_on_a_full_disk_says_so_and_books_nothing_twice_later(tmp_path: Path) -> None:
    with ExitStack() as stack:
        board = stack.enter_context(lit_board(tmp_path))
        ring = stack.enter_context(engine(tmp_path, [board.uuid()]))
        with running(tmp_path, board.environment()) as meter:
            knows_its_engine(meter)
            serve_one(ring)
            until(meter.settled)
            resource.prlimit(meter.process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
            another(ring, 20)
            until(lambda: settled(meter, OTHER))
            meter.process.terminate()
            _, said = meter.process.communicate(timeout=30.0)
            assert meter.process.returncode == 2
            assert re.search(r"ledger.db can't be written .*: make room on its disk\n\Z", said)
        meter = stack.enter_context(running(tmp_path, board.environment()))
        later = "e" * 32
        serve_one(ring, 20, f"chatcmpl-3-{later}00000000", 40)
        until(lambda: settled(meter, later))
        until(
            lambda: kept(meter) == [RECEIPT, OTHER, later]
        )  # the steps are in the ring still; what they took is not known
        told = json.loads(meter.get(f"/energy/{OTHER}")[1])
        assert told == {"energy": None, "energy_reason": "not_measured"}
        assert unassigned_j(meter, "readings_missing") > 250 * 0.4
        assert_sound(meter)


def kept(meter: Meter) -> list[str | None]:
    """Whose requests are in the ledger."""
    ledger = Ledger(meter.directory / "ledger.db", read_only=True)
    try:
        return [row.record.receipt_id for row in ledger.requests()]
    finally:
        ledger.close()


def test_a_meter_that_was_suspended_knows_what_it_did_not_see(tmp_path: Path) -> None:
    with metering(tmp_path) as (_, meter, ring):
        with stopped(meter):
            time.sleep(1.5)
        another(ring, 20, steps=30)
        until(lambda: settled(meter, OTHER))
        assert unassigned_j(meter, "readings_missing") > 250 * 1.2
        assert_sound(meter)


def test_a_counter_that_ran_on_while_the_machine_slept_is_not_believed(tmp_path: Path) -> None:
    """CLOCK_MONOTONIC stands still in suspend; the counter may not: more joules than the board can have burnt."""
    with metering(tmp_path) as (board, meter, ring):
        leap_ns = now_ns() + 50 * MS
        board.set_power_w(0, [(leap_ns, 50_000.0), (leap_ns + 10 * MS, 250.0)])
        another(ring, 20)
        until(lambda: settled(meter, OTHER))
        until(lambda: unassigned_j(meter, "implausible") > 450)
        assert (meter.energy(OTHER) or {"energy_joules": 0.0})["energy_joules"] < 250
        assert_sound(meter)


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)], ids=["20 kills", "200 kills"])
def test_a_meter_killed_at_random_settles_nothing_twice_and_loses_little(tmp_path: Path, kills: int) -> None:
    command = [sys.executable, "-m", "tests.meter.kill_victim", str(tmp_path), str(kills), "1"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # the child forks
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["finished_early"] == 0, "there was something to kill every time"
    too_short_ns = 0  # to settle anything, since the last life that was not
    for life_ns, unsettled_ns, residual in told["left"]:
        too_short_ns = too_short_ns + life_ns if life_ns < 250 * MS else 0
        assert unsettled_ns <= 250 * MS + too_short_ns
        assert abs(residual) <= 1e-12
    assert (told["gaps"], told["settled"]) == (0, True)
    assert sorted(told["requests"]) == told["metered"], (
        "every request that was not over before the first interval, once"
    )
    assert told["measured_j"] == pytest.approx(told["counter_j"], rel=1e-12)
    left_j = told["unattributed"]
    assert set(left_j) <= {"readings_missing", "model_residual"}
    assert left_j.get("model_residual", 0.0) <= 1e-3 * told["measured_j"], (
        "a life long enough to learn costs may not believe an edge"
    )
    assert abs(told["residual_j"]) <= 1e-9
