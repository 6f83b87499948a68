"""Layouts on real vLLM engines: pipelines and tensors over several workers, ranks behind one and several API servers, several models.

Each has the eight GPUs of the stand-in NVML, steadily at 250 W, and a whole meter. The engines compute on the CPU.
"""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from etameter.ranks import group_of
from etameter.serving.ring import RingReader
from etameter.stages import stage_of
from tests.meter.test_daemon import Meter, lit_board, running, until
from tests.meter.test_engines import booked_j, engines_of
from tests.meter.test_faults import assert_sound, settled
from tests.serving.processes import session_of
from tests.serving.real_server import ENVIRONMENT
from tests.serving.stand_in_gpus import GPUS, cuda_of
from tests.simnvml.board import Board

READY_WITHIN_S = 420
REQUESTS, TOKENS = 8, 12
ANSWERED_WITHIN_S = 400
"""Workers that wait for each other take turns on the cores that there are."""
TWO_STAGES = ("-pp", "2", "--worker-cls", "tests.serving.staged_worker.Worker")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(model: Path, directory: Path, gpu_uuids: Sequence[str], engine: str, *options: str) -> Iterator[str]:
    """A server of engines that are named after `engine`; its address, once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "tests.serving.stand_in_gpus", "serve", str(model), "--served-model-name", engine]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--max-model-len", "512"]
    command += ["--enforce-eager", "--scheduler-cls", "tests.serving.stand_in_gpus.scheduler"]
    command += ["--middleware", "etameter.serving.middleware.EnergyMiddleware", *options]
    own = {"ETAMETER_RUN": str(directory / "run"), "ETAMETER_RING_DIR": str(directory), "ETAMETER_ENGINE": engine}
    # Workers are bound to NUMA nodes of their own otherwise, and there may be one; as many threads in each as there are cores are in each other's way.
    alone = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **ENVIRONMENT, **alone, **own, GPUS: ",".join(gpu_uuids)}
    log = directory / f"{engine}.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        give_up_s = time.monotonic() + READY_WITHIN_S
        while not answers(url):
            if server.poll() is not None or time.monotonic() > give_up_s:
                raise AssertionError(f"the server did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        give_up_s = time.monotonic() + 30
        while session_of(server.pid) and time.monotonic() < give_up_s:
            server.poll()
            time.sleep(0.1)
        if session_of(server.pid):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2):
            return True
    except OSError:
        return False


def receipt_of(url: str, model: str, number: int) -> str:
    """Of a completion of so many tokens."""
    body = {"model": model, "prompt": f"Say {number} words:", "max_tokens": TOKENS, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ANSWERED_WITHIN_S) as response:
        told: dict[str, Any] = json.load(response)
    return str((told["energy"] or {}).get("receipt_id") or told["energy_receipt_id"])


def ask_all(servers: dict[str, str]) -> list[str]:
    """Receipts of `REQUESTS` at once to each of the servers, by model."""
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(receipt_of, url, model, n) for model, url in servers.items() for n in range(REQUESTS)]
        return [each.result() for each in asked]


@contextmanager
def metering(directory: Path, board: Board, engines: Sequence[str]) -> Iterator[Meter]:
    rings = [word for engine in engines for word in ("--ring", str(directory / f"etameter-{engine}.ring"))]
    with running(directory, board.environment(), *rings) as meter:
        yield meter


MIXTURE = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16"} | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}


@pytest.mark.engine
@pytest.mark.filterwarnings("default")  # vLLM's and torch's are theirs
def test_ranks_of_a_mixture_are_told_that_they_belong_together(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank is handed a copy of one configuration; that of a dense model names no group."""
    from vllm.engine.arg_utils import EngineArgs

    from etameter.serving.scheduler import open_ring

    (tmp_path / "config.json").write_text(json.dumps(MIXTURE))
    monkeypatch.setenv("ETAMETER_RING_DIR", str(tmp_path))
    groups = []
    for model in (tmp_path, tmp_path, model_dir):
        asked = EngineArgs(str(model), dtype="bfloat16", data_parallel_size=2, skip_tokenizer_init=True)
        config = asked.create_engine_config()
        ranks = set()
        for copy in (config, pickle.loads(pickle.dumps(config))):
            ring = open_ring(copy)
            reader = RingReader(ring.path)
            ranks.add(group_of(reader.header))
            reader.close()
            ring.close()
        groups.append(ranks)
    first, second, dense = groups
    assert len(first) == len(second) == 1
    assert first.isdisjoint(second)
    assert None not in first | second
    assert dense == {None}


@pytest.mark.engine
@pytest.mark.filterwarnings("default")  # vLLM's and torch's are theirs
@pytest.mark.parametrize(("tensor", "pipeline"), [(3, 1), (3, 2)])
def test_what_vllm_configures_is_what_the_ring_says(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, tensor: int, pipeline: int
) -> None:
    """The configuration is vLLM's own; no engine is started."""
    from vllm.engine.arg_utils import EngineArgs

    from etameter.serving.scheduler import open_ring

    monkeypatch.setenv("ETAMETER_RING_DIR", str(tmp_path))
    monkeypatch.setenv("ETAMETER_ENGINE", "e")
    asked = EngineArgs(
        str(model_dir), dtype="bfloat16", tensor_parallel_size=tensor, pipeline_parallel_size=pipeline
    ).create_engine_config()
    uuids = [f"GPU-{gpu}" for gpu in range(8)]
    with cuda_of(uuids):
        ring = open_ring(asked)
    reader = RingReader(ring.path)
    header, gpus = reader.header, tensor * pipeline
    reader.close()
    ring.close()
    assert header.gpu_uuids == tuple(uuids[:gpus])
    sizes = header.details["tensor_parallel_size"], header.details["pipeline_parallel_size"]
    assert sizes == (tensor, pipeline)
    stages = [stage_of(place, gpus, pipeline) for place in range(gpus)]
    assert stages == [stage for stage in range(pipeline) for _ in range(tensor)], (
        "a stage's workers have neighbouring ranks"
    )


@pytest.mark.boot
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "own"),
    [
        (["-tp", "3"], {"e": (0, 1, 2)}),  # of the model's nine heads three for each
        (TWO_STAGES, {"e": (0, 1)}),
        (["-dp", "2", "--api-server-count", "1"], {"e": (0,), "e-1": (1,)}),
        (["-dp", "2", "--api-server-count", "2"], {"e": (0,), "e-1": (1,)}),
    ],
    ids=["tensor parallel", "pipeline", "ranks behind one API server", "ranks behind two"],
)
def test_a_server_on_several_gpus(
    tmp_path: Path, model_dir: Path, options: Sequence[str], own: dict[str, tuple[int, ...]]
) -> None:
    with ExitStack() as stack:
        board = stack.enter_context(lit_board(tmp_path, gpus=8))
        uuids = [board.uuid(gpu) for gpu in range(8)]
        meter = stack.enter_context(metering(tmp_path, board, list(own)))
        url = stack.enter_context(serving(model_dir, tmp_path, uuids, "e", *options))
        check(meter, board, {"e": url}, own)


@pytest.mark.boot
@pytest.mark.slow
def test_two_models_on_gpus_of_their_own(tmp_path: Path, model_dir: Path) -> None:
    own = {"blue": (2, 3), "green": (5,)}
    with ExitStack() as stack:
        board = stack.enter_context(lit_board(tmp_path, gpus=8))
        meter = stack.enter_context(metering(tmp_path, board, list(own)))
        servers = {}
        for engine, options in (("blue", TWO_STAGES), ("green", ())):
            uuids = [board.uuid(gpu) for gpu in own[engine]]  # as CUDA_VISIBLE_DEVICES shows them
            servers[engine] = stack.enter_context(serving(model_dir, tmp_path, uuids, engine, *options))
        check(meter, board, servers, own)


def check(meter: Meter, board: Board, servers: dict[str, str], own: dict[str, tuple[int, ...]]) -> None:
    """Every request has its receipt, engines have their GPUs and no other, and all joules are somebody's once."""
    until(lambda: len(engines_of(meter)) == len(own))
    assert engines_of(meter) == {engine: [board.uuid(gpu) for gpu in gpus] for engine, gpus in own.items()}
    receipts = ask_all(servers)
    assert len(set(receipts)) == REQUESTS * len(servers)
    for receipt in receipts:
        until(partial(settled, meter, receipt))
    energies = [meter.energy(receipt) for receipt in receipts]
    assert {(energy["output_tokens"], energy["source"]) for energy in energies} == {(TOKENS, "simulated")}
    assert all(energy["energy_joules"] > 0 for energy in energies)
    assert booked_j(meter).keys() == {board.uuid(gpu) for gpus in own.values() for gpu in gpus}
    samples = meter.samples()
    paid_j = sum(value for name, value in samples.items() if name.startswith("etameter_energy_joules_total"))
    assert paid_j == pytest.approx(sum(energy["energy_joules"] for energy in energies), rel=1e-6)
    assert_sound(meter)
