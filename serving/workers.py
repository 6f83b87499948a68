"""Which GPUs an engine's workers have, on whatever machines: each says so itself, asked once by the executor that vLLM has made for them."""

import gc
from collections.abc import Callable
from typing import Any

MOST_TOLD = 48
"""The ring's header has room for so many beside all else."""


def are_spread(parallel: Any) -> bool:
    """Whether workers may be in other machines than their scheduler."""
    return bool(getattr(parallel, "use_ray", False)) or getattr(parallel, "nnodes", 1) > 1


def gpu_uuids(vllm_config: Any) -> list[str] | None:
    """The GPUs of all workers in the order of their ranks; None where not every one of them tells, or they are too many for a ring's header.

    Raises RuntimeError where workers can't be asked.
    """
    executor = _executor_of(vllm_config)
    if executor is None or vllm_config.parallel_config.world_size > MOST_TOLD:
        return None
    told = executor.collective_rpc(teller())
    return list(told) if told and all(told) else None


def _executor_of(vllm_config: Any) -> Any:
    """VLLM makes it before the scheduler, in the same process, and hands it to nobody."""
    from vllm.v1.executor.abstract import Executor

    of_config = (each for each in gc.get_objects() if issubclass(type(each), Executor))
    return next((each for each in of_config if each.vllm_config is vllm_config), None)


def teller() -> Callable[[Any], str | None]:
    """What a worker is to run. It travels whole, as it has no name of its own: workers may have no etameter.

    It raises nothing: one worker's failure would leave the answers of the others behind, for vLLM to take for those of its next call.
    """

    def tell(worker: Any) -> str | None:
        try:
            import torch

            device = worker.device
            return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None
        except (AssertionError, AttributeError, ImportError, RuntimeError, TypeError, ValueError):
            return None

    return tell
