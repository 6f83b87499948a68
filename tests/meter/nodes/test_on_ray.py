"""Samplers as actors of a real Ray cluster: a head and nodes with stand-in GPUs, all of them on this machine; and vLLM's own executor for Ray on it."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from etameter.serving.ring import RingReader
from tests.meter.nodes.cluster import ROOT, TOKEN, knows_its_engine, spread_engine
from tests.meter.nodes.ray_platform import announced
from tests.meter.test_daemon import Meter, free_port, lit_board, running, serve_one, until
from tests.meter.test_faults import OTHER, another, assert_sound, metric, settled, unassigned_j
from tests.serving.real_server import ENVIRONMENT, MODEL_NAME, READY_WITHIN_S
from tests.serving.test_layouts import answers, receipt_of
from tests.simnvml.board import Board, Sensor

pytest.importorskip("ray", reason="Ray is not installed: pip install 'etameter[ray]'")
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(600)]

MEMORY_BYTES = 80 << 20
THIRD = "e" * 32


class Rayed:
    """A Ray cluster whose nodes have boards of the stand-in NVML. Addresses stay what they are when it is started anew."""

    def __init__(self, boards: Sequence[Board], environment: Mapping[str, str] = MappingProxyType({})) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "object_store_memory": MEMORY_BYTES}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        self._nodes = [
            self._cluster.add_node(
                num_cpus=1,
                num_gpus=1,
                node_ip_address=f"127.0.0.{number}",
                object_store_memory=MEMORY_BYTES,
                env_vars={**board.environment(), **environment},
            )
            for number, board in enumerate(boards, start=2)
        ]

    def lose_node(self, place: int) -> None:
        self._cluster.remove_node(self._nodes[place], allow_graceful=False)

    def lose_head(self) -> None:
        self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def starting(directory: Path, cluster: Rayed, port: int, count: int = 3) -> Iterator[subprocess.Popen[bytes]]:
    """`etameter sampler --ray`, from when all of its samplers are there."""
    command = [sys.executable, "-m", "etameter", "sampler", "--ray", cluster.address, "--listen", f"127.0.0.1:{port}"]
    log = directory / "starter"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env={**os.environ, "ETAMETER_METER__NODE_TOKEN": TOKEN}, stderr=file, cwd=ROOT
        )
    try:

        def named() -> set[str]:
            assert process.poll() is None, log.read_text()
            found: list[str] = re.findall(r"\[meter\] nodes = (.*)", log.read_text())
            return set(json.loads(found[-1])) if found else set()

        until(lambda: named() == {f"127.0.0.{number}:{port}" for number in range(2, 2 + count)})
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def boards(directory: Path, count: int, gpus: int = 1) -> Iterator[list[Board]]:
    with ExitStack() as stack:
        made = []
        for number in range(1, count + 1):
            energy = Sensor(period_ns=50_000_000)
            board = stack.enter_context(Board(directory / f"board-{number}", gpus=gpus, energy=energy))
            for gpu in range(gpus):
                board.gpus[gpu].uuid = f"GPU-51351351-0000-4000-80{number:02d}-{gpu:012}".encode()
                board.set_power_w(gpu, [(0, 100.0 * number)])
            made.append(board)
        yield made


def up(meter: Meter) -> float:
    return metric(meter, "etameter_node_up")


def test_nodes_and_the_head_of_a_ray_cluster_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    port = free_port()
    nodes = json.dumps([f"127.0.0.{number}:{port}" for number in (2, 3, 4)])
    told = {"ETAMETER_METER__NODES": nodes, "ETAMETER_METER__NODE_TOKEN": TOKEN}
    with ExitStack() as stack:
        own = stack.enter_context(lit_board(tmp_path))
        others = stack.enter_context(boards(tmp_path, 3))
        first = Rayed(others)
        stack.callback(first.close)
        with starting(tmp_path, first, port):
            meter = stack.enter_context(running(tmp_path, {**own.environment(), **told}))
            ring = stack.enter_context(spread_engine(tmp_path, [own.uuid()], 4))
            knows_its_engine(meter, 4)
            seconds = serve_one(ring, steps=60)
            until(meter.settled)
            assert meter.energy()["energy_joules"] == pytest.approx((250 + 100 + 200 + 300) * seconds, rel=0.15)
            assert "readings_missing" not in meter.totals().unattributed_j_by_cause

            first.lose_node(2)
            until(lambda: up(meter) == 2)
            another(ring, 60, receipt=OTHER)
            until(lambda: settled(meter, OTHER))
            assert unassigned_j(meter, "readings_missing", own.uuid()) == 0
            assert sum(unassigned_j(meter, "readings_missing", board.uuid()) for board in others[:2]) == 0

            first.lose_head()
            another(ring, 80, steps=100, receipt=THIRD)
            until(lambda: settled(meter, THIRD))
            assert up(meter) == 2, "what a head without a heart doesn't carry goes on"
            assert sum(unassigned_j(meter, "readings_missing", board.uuid()) for board in others[:2]) == 0

        first.close()
        until(lambda: up(meter) == 0)
        second = Rayed(others)
        stack.callback(second.close)
        with starting(tmp_path, second, port):
            until(lambda: up(meter) == 3)
            until(lambda: all(unassigned_j(meter, "readings_missing", board.uuid()) > 0 for board in others))
            another(ring, 200, receipt="f" * 32)
            until(lambda: settled(meter, "f" * 32))
            assert metric(meter, "etameter_gpu_energy_resets_total") == 0, "the machines themselves went on"
            assert unassigned_j(meter, "readings_missing", own.uuid()) == 0
            assert meter.totals().requests == 4, "none is lost, none is doubled"
            assert_sound(meter)


@contextmanager
def served(directory: Path, model: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, Meter]]:
    """`etameter serve` of a model in two stages that Ray places; its address, and its meter."""
    port, meter_port = free_port(), free_port()
    command = [sys.executable, "-m", "etameter", "serve", str(model), "--meter-port", str(meter_port)]
    command += ["--ledger", str(directory / "ledger.db"), "--served-model-name", MODEL_NAME, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", "512", "--enforce-eager"]
    command += ["--distributed-executor-backend", "ray", "-pp", "2"]
    command += ["--worker-cls", "tests.serving.staged_worker.Worker"]  # vLLM's for CPUs doesn't wait for its stages
    own = {name: str(directory) for name in ("ETAMETER_RUN", "ETAMETER_RING_DIR", "ETAMETER_STATE")}
    alone = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (directory / "serve").open("w") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT, **alone, **own, **environment},
            stdout=log,
            stderr=log,
            cwd=ROOT,
            text=True,
        )
    meter = Meter(process, directory, meter_port)
    url = f"http://127.0.0.1:{port}"
    give_up_s = time.monotonic() + READY_WITHIN_S
    try:
        while not answers(url):
            assert process.poll() is None, (directory / "serve").read_text()[-6000:]
            assert time.monotonic() < give_up_s, (directory / "serve").read_text()[-6000:]
            time.sleep(0.5)
        yield url, meter
    finally:
        process.terminate()
        process.wait()


def test_vllms_own_executor_for_ray_is_metered_on_the_gpus_that_its_workers_name(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", f"{announced(tmp_path / 'plugin')}:{ROOT}")
    port = free_port()
    nodes = json.dumps([f"127.0.0.{number}:{port}" for number in (3, 2)])  # in whatever order
    told = {"ETAMETER_METER__NODES": nodes, "ETAMETER_METER__NODE_TOKEN": TOKEN}
    with ExitStack() as stack:
        machines = stack.enter_context(boards(tmp_path, 2, gpus=2))
        cluster = Rayed(machines, {"PYTHONPATH": os.environ["PYTHONPATH"]})
        stack.callback(cluster.close)
        stack.enter_context(starting(tmp_path, cluster, port, 2))
        url, meter = stack.enter_context(served(tmp_path, model_dir, {**told, "RAY_ADDRESS": cluster.address}))
        assert up(meter) == 2
        (engine,) = json.loads(meter.get("/health")[1])["engines"]
        own, others = ({board.uuid(gpu) for board in machines} for gpu in (0, 1))
        assert {device["gpu_uuid"] for device in engine["devices"]} == own
        with closing(RingReader(tmp_path / "etameter-engine-0.ring")) as ring:
            assert set(ring.header.gpu_uuids) == own
            assert len(ring.header.gpu_uuids) == 2
        receipts = [receipt_of(url, MODEL_NAME, number) for number in range(4)]
        for receipt in receipts:
            until(partial(settled, meter, receipt))
            energy = meter.energy(receipt)
            assert energy["source"] == "simulated"
            assert not energy["attribution_method"].endswith("-partial")
        assert metric(meter, "etameter_node_up") == 2
        booked = {name for name in meter.samples() if name.startswith("etameter_gpu_energy_joules_total")}
        assert all(any(uuid in name for name in booked) for uuid in own)
        assert not any(uuid in name for name in booked for uuid in others), "which its workers don't name"
        assert meter.totals().requests == len(receipts)
        assert_sound(meter)
