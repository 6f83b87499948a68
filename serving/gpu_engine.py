"""Installs vLLM for NVIDIA GPUs into the running Python's environment, around the torch that is already there."""

import importlib
import importlib.metadata
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import cpu_engine

REQUIREMENT = "vllm>=0.32,<0.34"
SIZE = "about 5 GB to download and 12 GB on disk, estimated from the sizes of its parts"


def install() -> Iterator[str]:
    """Installs vLLM where none is; yields the name of each phase before it runs, nothing when all is there.

    Raises:
        EngineError: pip failed, or found no vLLM that runs with the torch that is installed.
    """
    if cpu_engine.installed_version() is not None:
        return
    cpu_engine.check_environment()
    yield "installing vLLM for NVIDIA GPUs"
    with tempfile.TemporaryDirectory(prefix="etameter-install-") as folder:
        kept = Path(folder, "constraints.txt")
        kept.write_text("".join(_installed("torch")))
        cpu_engine.pip("install", "--constraint", str(kept), REQUIREMENT)
    importlib.invalidate_caches()


def _installed(distribution: str) -> Iterator[str]:
    try:
        yield f"{distribution}=={importlib.metadata.version(distribution)}\n"
    except importlib.metadata.PackageNotFoundError:
        return
