"""Several engines on one meter: data-parallel ranks and models on GPUs of their own, with eight GPUs of the stand-in NVML."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pynvml
import pytest

from etameter.accounts import Accounts
from etameter.devices import Device, gpus_of
from etameter.engine import Engine
from etameter.errors import EngineError
from etameter.ledger import Ledger
from etameter.serving.ring import Record, RingHeader, RingReader, RingWriter, boot_id
from tests.meter.test_daemon import Meter, lit_board, running, serve_one, until
from tests.meter.test_faults import assert_sound, settled, unassigned_j
from tests.simnvml.board import Board, Call

pytestmark = pytest.mark.unit

GPUS = 8
LAYOUT: dict[str, tuple[int, ...]] = {"big": (0, 1, 2, 3), "rank": (4,), "rank-1": (5,), "small": (6,)}
"""GPU 7 is nobody's."""

LIVING = """
import sys, time
from pathlib import Path
from etameter.serving.ring import RingWriter
path, engine, *uuids = sys.argv[1:]
ring = RingWriter(Path(path), engine=engine, model="m", dtype="bfloat16", gpu_uuids=uuids)
number = ring.open_request(f"chatcmpl-9-{'9' * 32}00000000", 30, time.monotonic_ns())
for step in range(1000):
    ring.dispatch(step, time.monotonic_ns(), [(number, 0, 1, 0, 0, 0, 0, 30 + step, 0)])
    time.sleep(0.02)
    ring.done(step, time.monotonic_ns())
"""


@pytest.mark.parametrize("kind", ["nvml", "power"])
def test_an_engine_has_the_gpus_that_it_names_and_no_guess_is_made(kind: str) -> None:
    devices = [Device(f"GPU-{gpu}", kind, "measured", "H100") for gpu in range(3)]
    assert gpus_of(header("GPU-1", "GPU-2"), devices) == {"GPU-1", "GPU-2"}
    assert gpus_of(header(), devices[:1]) == {"GPU-0"}
    unread = "works on GPU-elsewhere, which nobody reads: this meter reads GPU-0, GPU-1, GPU-2"
    for named in (("GPU-elsewhere",), ("GPU-1", "GPU-elsewhere")):  # a figure of one of two would look like a whole one
        with pytest.raises(EngineError, match=unread):
            gpus_of(header(*named), devices)
    with pytest.raises(EngineError, match="does not say on which of 3 GPUs it runs"):
        gpus_of(header(), devices)


def test_an_engine_that_sees_a_part_of_a_gpu_has_the_whole_of_it() -> None:
    devices = [
        Device("GPU-0", "nvml", "shared", "H100", parts=("MIG-a", "MIG-b")),
        Device("GPU-1", "nvml", "measured", "H100"),
    ]
    assert gpus_of(header("GPU-b"), devices) == {"GPU-0"}, "CUDA tells the part's identifier as a GPU's"
    assert gpus_of(header("MIG-a"), devices) == gpus_of(header("GPU-0"), devices) == {"GPU-0"}
    with pytest.raises(EngineError, match="works on GPU-c"):
        gpus_of(header("GPU-c"), devices)


@pytest.mark.parametrize("kind", ["rapl", "simulated"])
def test_what_no_engine_can_name_stands_for_whatever_it_names(kind: str) -> None:
    devices = [Device(f"package-{number}", kind, "measured", "CPU") for number in range(2)]
    assert gpus_of(header("GPU-1"), devices) == gpus_of(header(), devices) == {"package-0", "package-1"}


def header(*gpu_uuids: str) -> RingHeader:
    return RingHeader("boot", "engine-0", gpu_uuids, "m", "bfloat16", 1, 1, {})


def ring_of(directory: Path, engine: str) -> Path:
    return directory / f"{engine}.ring"


def receipt_of(engine: str) -> str:
    return f"{abs(hash(engine)):032x}"[-32:]


@contextmanager
def writers(directory: Path, board: Board, layout: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, RingWriter]]:
    with ExitStack() as stack:
        rings = {}
        for engine, gpus in layout.items():
            uuids = [board.uuid(gpu) for gpu in gpus]
            about = {"engine": engine, "model": f"model-of-{engine}", "dtype": "bfloat16", "gpu_uuids": uuids}
            rings[engine] = RingWriter(ring_of(directory, engine), **about)  # type: ignore[arg-type]
            stack.callback(rings[engine].close)
        yield rings


@contextmanager
def metering(directory: Path, board: Board, engines: Sequence[str]) -> Iterator[Meter]:
    rings = [word for engine in engines for word in ("--ring", str(ring_of(directory, engine)))]
    with running(directory, board.environment(), *rings) as meter:  # and the ring that never comes
        yield meter


@contextmanager
def living(directory: Path, engine: str, *uuids: str) -> Iterator[subprocess.Popen[str]]:
    """An engine in a process of its own, which never stops working."""
    command = [sys.executable, "-c", LIVING, str(ring_of(directory, engine)), engine, *uuids]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def engines_of(meter: Meter) -> dict[str, list[str]]:
    """Engines that the meter knows, with their GPUs."""
    told = json.loads(meter.get("/health")[1])["engines"]
    return {each["engine"]: [device["gpu_uuid"] for device in each["devices"]] for each in told if each["engine"]}


def booked_j(meter: Meter) -> dict[str, float]:
    """By GPU."""
    ledger = Ledger(meter.directory / "ledger.db", read_only=True)
    try:
        return dict(ledger._db.execute("SELECT gpu_uuid, sum(measured_j) FROM balances GROUP BY gpu_uuid").fetchall())
    finally:
        ledger.close()


def gone(meter: Meter) -> str:
    """What a meter has said, which is ended for it."""
    meter.process.send_signal(signal.SIGTERM)
    assert meter.process.stderr is not None
    return meter.process.stderr.read()


def serve_all(rings: dict[str, RingWriter], steps: int, first_step: int = 0, tail: str = "") -> dict[str, float]:
    """How many seconds each took."""
    with ThreadPoolExecutor() as pool:
        names = {engine: f"chatcmpl-{engine}-{receipt_of(engine + tail)}00000000" for engine in rings}
        served = {
            engine: pool.submit(serve_one, ring, steps, names[engine], first_step) for engine, ring in rings.items()
        }
        return {engine: each.result() for engine, each in served.items()}


def test_each_engine_pays_for_its_own_gpus_and_a_gpu_without_engine_is_nobodys(tmp_path: Path) -> None:
    with (
        lit_board(tmp_path, gpus=GPUS) as board,
        metering(tmp_path, board, list(LAYOUT)) as meter,
        writers(tmp_path, board, LAYOUT) as rings,
    ):
        for gpu in range(GPUS):
            board.set_power_w(gpu, [(0, 100.0 + 50 * gpu)])
        until(lambda: len(engines_of(meter)) == len(LAYOUT))
        assert engines_of(meter) == {name: [board.uuid(gpu) for gpu in gpus] for name, gpus in LAYOUT.items()}
        with socket.socket(socket.AF_UNIX) as middleware:  # one API server for all of them
            middleware.connect(str(tmp_path / "run" / "meter.sock"))
            for engine in rings:
                opening = {"type": "open", "receipt_id": receipt_of(engine), "arm": "entrace"}
                middleware.sendall(json.dumps(opening).encode() + b"\n")
            took_s = serve_all(rings, 20)
            for engine in rings:
                until(partial(settled, meter, receipt_of(engine)))
        for engine, gpus in LAYOUT.items():
            burnt_w = sum(100.0 + 50 * gpu for gpu in gpus)
            energy_j = meter.energy(receipt_of(engine))["energy_joules"]
            assert 0.6 * burnt_w * 0.4 < energy_j < 1.8 * burnt_w * took_s[engine], engine  # give or take the gaps
        assert booked_j(meter).keys() == {board.uuid(gpu) for gpu in range(7)}
        samples = meter.samples()
        paying = {name for name, joules in samples.items() if name.startswith("etameter_energy_joules") and joules}
        for engine in LAYOUT:
            of_engine = [name for name in paying if f'model_name="model-of-{engine}"' in name]
            assert of_engine
            assert all('arm="entrace"' in name for name in of_engine)
        assert_sound(meter)


def test_a_response_that_two_ranks_worked_on_has_one_receipt(tmp_path: Path) -> None:
    layout = {"rank": (0,), "rank-1": (1,)}
    with (
        lit_board(tmp_path, gpus=2) as board,
        metering(tmp_path, board, list(layout)) as meter,
        writers(tmp_path, board, layout) as rings,
    ):
        until(lambda: len(engines_of(meter)) == 2)
        for prompt, ring in enumerate(rings.values()):
            serve_one(ring, 10, f"cmpl-1-{prompt}-{'a' * 32}00000000")
        energy = until(lambda: settled(meter, "a" * 32) and meter.energy("a" * 32))
        assert (energy["prompt_tokens"], energy["output_tokens"]) == (60, 20)
        parts_j = [j for name, j in meter.samples().items() if name.startswith("etameter_energy_joules_total")]
        assert energy["energy_joules"] == pytest.approx(sum(parts_j), rel=1e-9)
        assert_sound(meter)


def test_an_engine_dies_and_is_back_while_the_other_goes_on(tmp_path: Path) -> None:
    with ExitStack() as stack:
        board = stack.enter_context(lit_board(tmp_path, gpus=2))
        meter = stack.enter_context(metering(tmp_path, board, ["a", "b"]))
        rings = stack.enter_context(writers(tmp_path, board, {"a": (0,)}))
        with living(tmp_path, "b", board.uuid(1)):
            until(lambda: len(engines_of(meter)) == 2)
            pool = stack.enter_context(ThreadPoolExecutor())
            serving = pool.submit(serve_one, rings["a"], 100, f"chatcmpl-1-{'a' * 32}00000000")
            time.sleep(0.6)
        until(lambda: settled(meter, "9" * 32))
        back = stack.enter_context(writers(tmp_path, board, {"b": (1,)}))
        until(lambda: len(engines_of(meter)) == 2)
        took_s = serve_one(back["b"], 20, f"chatcmpl-2-{'b' * 32}00000000")
        whole_s = serving.result()
        for receipt in ("a" * 32, "b" * 32):
            until(partial(settled, meter, receipt))
        assert 0.6 * 250 * 2.0 < meter.energy("a" * 32)["energy_joules"] < 1.5 * 250 * whole_s
        assert 0.6 * 250 * 0.4 < meter.energy("b" * 32)["energy_joules"] < 1.8 * 250 * took_s
        assert unassigned_j(meter, "steps_missing", board.uuid(0)) == 0
        assert_sound(meter)
        ledger = Ledger(tmp_path / "ledger.db", read_only=True)
        reasons = {row.record.receipt_id: row.record.finish_reason for row in ledger.requests()}
        ledger.close()
        assert reasons == {"a" * 32: "length", "b" * 32: "length", "9" * 32: "engine_lost"}


def test_a_gpu_of_a_living_engine_is_not_given_to_another_until_that_one_is_gone(tmp_path: Path) -> None:
    with ExitStack() as stack:
        board = stack.enter_context(lit_board(tmp_path, gpus=2))
        meter = stack.enter_context(metering(tmp_path, board, ["a", "b"]))
        with living(tmp_path, "a", board.uuid(0)):
            until(lambda: "a" in engines_of(meter))
            rings = stack.enter_context(writers(tmp_path, board, {"b": (0, 1)}))
            serve_one(rings["b"], 20, f"chatcmpl-1-{'c' * 32}00000000")
            assert "b" not in engines_of(meter)
            assert booked_j(meter).keys() == {board.uuid(0)}
        until(lambda: engines_of(meter) == {"b": [board.uuid(0), board.uuid(1)]})
        took_s = serve_one(rings["b"], 20, f"chatcmpl-2-{'d' * 32}00000000", first_step=20)
        until(lambda: settled(meter, "d" * 32))
        assert booked_j(meter).keys() == {board.uuid(0), board.uuid(1)}
        assert settled(meter, "9" * 32)
        assert 0.6 * 500 * 0.4 < meter.energy("d" * 32)["energy_joules"] < 1.8 * 500 * took_s
        assert_sound(meter)
        said = gone(meter)
        refused = (
            f"{tmp_path}/b.ring is ignored while the engine of {tmp_path}/a.ring lives: it works on {board.uuid(0)} too"
        )
        assert said.count(refused) == said.count("is ignored") == 1


def test_the_last_words_of_an_engine_that_ends_while_it_is_read_are_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Device("board", "simulated", "simulated", "H100")
    ring = RingWriter(tmp_path / "ring", engine="a", model="m", dtype="d")
    poll, last_words = RingReader.poll, [True]

    def and_then_it_ends(reader: RingReader) -> list[Record]:
        told = poll(reader)
        if last_words and last_words.pop():
            ring.done(1, time.monotonic_ns())
            ring.finish(number, time.monotonic_ns(), 1, "stop")
            ring.close()
        return told

    number = ring.open_request("r", prompt_tokens=4, arrival_ns=time.monotonic_ns())
    ring.dispatch(1, time.monotonic_ns(), [(number, 4, 0, 0, 0, 0, 0, 0, 0)])
    monkeypatch.setattr(RingReader, "poll", and_then_it_ends)
    reader = Engine(ring.path, partial(Accounts, [board], boot_id()), Ledger(tmp_path / "ledger.db"), [])
    for _ in range(2):
        reader.read(time.monotonic_ns())
    [request] = reader.accounts.running(1)
    assert (request.first_token_s is None, request.output_tokens) == (False, 1)


def test_gpus_change_hands_while_the_driver_tells_nothing_but_energy(tmp_path: Path) -> None:
    with ExitStack() as stack:
        board = stack.enter_context(lit_board(tmp_path))
        meter = stack.enter_context(metering(tmp_path, board, ["a", "b"]))
        with living(tmp_path, "a", board.uuid()):
            until(lambda: "a" in engines_of(meter))
            board.fail(Call.LIMITS | Call.CLOCKS, pynvml.NVML_ERROR_UNKNOWN)
            rings = stack.enter_context(writers(tmp_path, board, {"b": (0,)}))
        until(lambda: "b" in engines_of(meter))
        serve_one(rings["b"], 20, f"chatcmpl-1-{'c' * 32}00000000")
        until(lambda: settled(meter, "c" * 32))
        assert_sound(meter)


def test_a_meter_that_is_killed_goes_on_with_all_of_its_engines(tmp_path: Path) -> None:
    layout = {"a": (0, 1), "b": (2,)}
    with lit_board(tmp_path, gpus=3) as board, writers(tmp_path, board, layout) as rings:
        with metering(tmp_path, board, list(layout)) as meter:
            until(lambda: len(engines_of(meter)) == 2)
            serve_all(rings, 10)
            for engine in rings:
                until(partial(settled, meter, receipt_of(engine)))
        with ThreadPoolExecutor() as pool:
            pool.submit(serve_all, rings, 150, 10, "again")
            with metering(tmp_path, board, list(layout)) as meter:
                for engine in rings:
                    until(partial(settled, meter, receipt_of(engine + "again")))
                assert_sound(meter)
                assert booked_j(meter).keys() == {board.uuid(gpu) for gpu in range(3)}
                ledger = Ledger(tmp_path / "ledger.db", read_only=True)
                assert ledger.resumes().keys() == layout.keys()
                ledger.close()
