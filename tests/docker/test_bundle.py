"""What the init container copies into an engine's pod, tried for real: a vLLM in whose environment etameter isn't installed serves with it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.docker.chart import ROOT
from tests.serving.processes import wait_until
from tests.test_boot import Place, _ask, _said, place

pytestmark = [pytest.mark.boot, pytest.mark.slow]

__all__ = ["place"]


def bundle(folder: Path) -> Path:
    """As the stages `wheel` and `bundle` of the Dockerfile make it."""
    source, wheels, made = folder / "source", folder / "wheels", folder / "bundle"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "meter", "serving", "prompts", "dashboards"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, source], check=True)
    install = ["install", "--no-deps", "--no-compile", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, *install, "--target", made, *wheels.glob("*.whl"), "nvidia-ml-py"], check=True)
    shutil.rmtree(made / "bin", ignore_errors=True)
    (made / "bin").mkdir()
    shutil.copy(ROOT / "docker" / "etameter", made / "bin" / "etameter")
    return made


def test_a_vllm_without_etameter_serves_with_the_bundle_on_its_path(place: Place, model_dir: Path) -> None:
    made = bundle(place.path)
    (place.path / "bin").mkdir()
    python = place.path / "bin" / "python3"
    python.symlink_to(Path(sys.executable).resolve())  # the environment's packages, but not what .pth files add to them
    place.environment |= {
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    place.environment.pop("VIRTUAL_ENV", None)
    alone = subprocess.run([python, "-c", "import etameter"], env=place.environment, cwd="/", check=False)
    assert alone.returncode != 0
    command = [str(made / "bin" / "etameter"), *place.serve("--simulate-gpu", "h100", "--host", "127.0.0.1")]
    command[2] = str(model_dir)
    command += ["--served-model-name", "small", "--max-model-len", "1024", "--dtype", "bfloat16", "--enforce-eager"]
    log = place.path / "log"
    with log.open("w") as output:
        serve = subprocess.Popen(command, env=place.environment, cwd="/", stderr=output)
    try:
        wait_until(lambda: _said(log, "etameter: serving ")() or serve.poll() is not None, 300.0)
        wait_until(lambda: (_ask(place.port)["energy"] or {}).get("attribution_method") == "step-cost", 30.0)
    finally:
        serve.terminate()
        serve.wait(60.0)
    assert place.left() == []
    assert {path.name for path in made.iterdir()} >= {"etameter", "pynvml.py", "bin"}
