"""vLLM's platform of CPUs, of which Ray may place the workers as it does those of GPUs: where Ray sees a GPU, there is one of the stand-in NVML.

vLLM's own says of no device how Ray counts it, and so refuses. It is found as vLLM's plugins are, by what `announced` has put on the path.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

ANNOUNCEMENT = "[vllm.platform_plugins]\nstand_in = tests.meter.nodes.ray_platform:register\n"


def announced(directory: Path) -> Path:
    """A folder for PYTHONPATH that names this module to vLLM."""
    about = directory / "stand_in_platform-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stand-in-platform\nVersion: 0\n")
    (about / "entry_points.txt").write_text(ANNOUNCEMENT)
    return directory


def register() -> str:
    """What vLLM asks in each of its processes."""
    from etameter.serving import workers

    workers.teller = _teller
    return "tests.meter.nodes.ray_platform.Platform"


def _teller() -> Callable[[Any], str | None]:
    """In place of the hook's, since there is no CUDA to ask: NVML's first is what the worker has."""

    def tell(_: Any) -> str | None:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)))

    return tell


def __getattr__(name: str) -> Any:
    """The class, once vLLM looks for it: it can't be imported while vLLM looks for its platform."""
    if name != "Platform":
        raise AttributeError(name)
    from vllm.platforms.cpu import CpuPlatform

    class Platform(CpuPlatform):  # type: ignore[misc]  # vLLM's are not typed here
        ray_device_key = "GPU"

    globals()["Platform"] = Platform
    return Platform
