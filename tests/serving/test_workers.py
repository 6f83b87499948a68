"""Which GPUs the workers of an engine have: asked through vLLM's executor, of which a small one stands here."""

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from etameter.serving import scheduler, workers
from etameter.serving.ring import RingWriter

pytestmark = pytest.mark.unit
cloudpickle = pytest.importorskip("cloudpickle", reason="vLLM sends functions to its workers with it")

IN_A_WORKER = """
import pickle, sys, types
sys.modules["etameter"] = None
torch = types.ModuleType("torch")
torch.cuda = types.SimpleNamespace(get_device_properties=lambda device: types.SimpleNamespace(uuid=device.name))
sys.modules["torch"] = torch
worker = types.SimpleNamespace(device=types.SimpleNamespace(type=sys.argv[1], name="51351351"))
print(pickle.load(sys.stdin.buffer)(worker))
"""


class Executor:
    """As vLLM's: it has the configuration, and runs a function on each of its workers, which are other processes."""

    def __init__(self, vllm_config: Any, devices: list[str | None]) -> None:
        self.vllm_config = vllm_config
        self._devices = devices

    def collective_rpc(self, method: Callable[[Any], str | None]) -> list[str | None]:
        sent = cloudpickle.dumps(method)
        return [cloudpickle.loads(sent)(SimpleNamespace(device=each)) for each in self._devices]


@pytest.fixture(autouse=True)
def internals(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's module of executors, and a torch of which devices say what they are called."""
    module = types.ModuleType("vllm.v1.executor.abstract")
    module.Executor = Executor  # type: ignore[attr-defined]
    torch = types.ModuleType("torch")
    torch.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        get_device_properties=lambda device: SimpleNamespace(uuid=device.name), is_available=lambda: False
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "torch", torch)


def gpu(name: str) -> Any:
    return SimpleNamespace(type="cuda", name=name)


def config(**parallel: Any) -> Any:
    return SimpleNamespace(parallel_config=SimpleNamespace(**{"world_size": 2, "use_ray": True, **parallel}))


def test_the_workers_of_ones_own_executor_name_their_gpus_in_order() -> None:
    own, other = config(), config()
    executors = [Executor(other, [gpu("x"), gpu("y")]), Executor(own, [gpu("b"), gpu("a")])]
    assert scheduler._gpu_uuids(own) == ["GPU-b", "GPU-a"]
    assert len(executors) == 2


@pytest.mark.parametrize("devices", [[gpu("a"), SimpleNamespace(type="cpu")], [gpu("a"), None], []])
def test_where_one_does_not_tell_the_machines_own_are_named(devices: list[Any]) -> None:
    own = config()
    executor = Executor(own, devices)
    assert workers.gpu_uuids(own) is None
    assert scheduler._gpu_uuids(own) == []
    assert executor.vllm_config is own


def test_a_ring_has_room_for_as_many_as_are_asked(tmp_path: Path) -> None:
    uuids = [f"GPU-51351351-0000-4000-8000-{number:012}" for number in range(workers.MOST_TOLD)]
    details = {f"number_of_something_{number}": 2**31 for number in range(24)}
    RingWriter(tmp_path / "ring", engine="e" * 64, model="m" * 256, dtype="bfloat16", gpu_uuids=uuids, details=details)


def test_more_than_that_are_not_asked() -> None:
    own = config(world_size=workers.MOST_TOLD + 1)
    executor = Executor(own, [gpu("a")])
    assert workers.gpu_uuids(own) is None
    assert workers.gpu_uuids(config()) is None, "no executor has that configuration"
    assert executor.vllm_config is own


@pytest.mark.parametrize(
    ("parallel", "spread"),
    [({"use_ray": False}, False), ({"use_ray": True}, True), ({"use_ray": False, "nnodes": 2}, True)],
)
def test_workers_of_one_machine_are_not_asked(parallel: dict[str, Any], spread: bool) -> None:
    assert workers.are_spread(SimpleNamespace(**parallel)) is spread
    assert not workers.are_spread(SimpleNamespace()), "a vLLM that knows neither"


def test_a_worker_needs_no_etameter() -> None:
    for kind, told in (("cuda", b"GPU-51351351"), ("cpu", b"None")):
        sent = cloudpickle.dumps(workers.teller())
        ran = subprocess.run(
            [sys.executable, "-c", IN_A_WORKER, kind], input=sent, capture_output=True, check=True, timeout=120
        )
        assert ran.stdout.strip() == told
