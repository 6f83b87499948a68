"""What a whole meter makes of GPUs that are not quite one's own: split by MIG, with a CPU on the chip, with neighbours."""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from etameter.serving.ring import RingWriter
from tests.meter.test_daemon import refusal, running, serve_one, start, until
from tests.meter.test_faults import assert_sound, settled
from tests.simnvml.board import Board, Sensor

pytestmark = pytest.mark.unit

SPLIT, MODULE, USED = range(3)
PART = "MIG-5b2f1a7c-0000-4000-8000-00000000000a"


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Three GPUs; the driver doesn't call itself a stand-in."""
    made = Board(tmp_path / "board", gpus=3, energy=Sensor(period_ns=50_000_000), driver="560.35.03")
    for gpu in range(3):
        made.set_power_w(gpu, [(0, 250.0)])
    made.gpus[SPLIT].mig_current, made.gpus[SPLIT].part_count = 1, 1
    made.gpus[SPLIT].parts[0].value = PART.encode()
    made.gpus[MODULE].c2c = 1
    made.gpus[USED].process_count = 2
    made.gpus[USED].process_pid[:2] = os.getpid(), 1
    return made


def test_a_split_gpu_ends_the_meter_with_a_line_unless_all_of_it_is_wanted(board: Board, tmp_path: Path) -> None:
    with board:
        assert "--allow-shared-gpu" in refusal(start(tmp_path, board.environment()))


def test_whose_joules_they_are_is_told_with_them(board: Board, tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(board)
        named = {"split": f"GPU-{PART.partition('-')[2]}", "module": board.uuid(MODULE), "used": board.uuid(USED)}
        options = [word for engine in named for word in ("--ring", str(tmp_path / f"{engine}.ring"))]
        meter = stack.enter_context(running(tmp_path, board.environment(), "--allow-shared-gpu", *options))
        rings = {}
        for engine, uuid in named.items():
            path = tmp_path / f"{engine}.ring"
            rings[engine] = RingWriter(path, engine=engine, model="m", dtype="bfloat16", gpu_uuids=[uuid])
            stack.callback(rings[engine].close)
        known = until(lambda: len(engines := devices(meter.get("/health")[1])) == 3 and engines)
        assert {engine: (each["gpu_uuid"], each["source"], each["scope"]) for engine, each in known.items()} == {
            "split": (board.uuid(SPLIT), "shared", "gpu"),
            "module": (board.uuid(MODULE), "measured", "module"),
            "used": (board.uuid(USED), "measured", "gpu"),
        }
        serve_one(rings["split"])
        energy = until(meter.settled)
        assert (energy["source"], energy["counter"]) == ("shared", "nvml")
        serve_one(rings["used"], 20, f"chatcmpl-2-{'d' * 32}00000000")
        assert until(lambda: settled(meter, "d" * 32) and meter.energy("d" * 32))["source"] == "measured"
        neighbours = f'etameter_gpu_neighbours{{gpu_uuid="{board.uuid(USED)}"}}'
        assert until(lambda: (told := meter.samples()) and neighbours in told and told)[neighbours] == 1
        assert [name for name in meter.samples() if name.startswith("etameter_gpu_neighbours")] == [neighbours]
        assert_sound(meter)


def devices(health: str) -> dict[str, dict[str, str]]:
    """The GPU of each engine that the meter knows."""
    return {each["engine"]: each["devices"][0] for each in json.loads(health)["engines"] if each["devices"]}
