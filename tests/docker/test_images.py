"""The images, built by buildah on bases of Debian's packages that stand in for the real ones: structure, not CUDA.

The stand-in of vLLM's image has two of etameter's dependencies, in versions of its own. `make slow`, as root, with Debian's buildah and debootstrap.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.docker.chart import ROOT

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.getuid() != 0 or shutil.which("buildah") is None or shutil.which("debootstrap") is None,
        reason="needs root, and Debian's buildah and debootstrap",
    ),
]

PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
CERTIFICATES, NAMES, PIP = Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/resolv.conf"), Path("/etc/pip.conf")
VLLM_OWN = {"numpy": "2.2.6", "prometheus-client": "0.22.1"}
MANAGED = "/usr/lib/python3.11/EXTERNALLY-MANAGED"
Run = Callable[..., str]


def buildah(folder: Path, *words: str) -> str:
    """Nothing is fetched but packages, and nothing is kept outside of `folder`."""
    command = ["buildah", "--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, f"{words}: {done.stderr[-2000:]}"
    return done.stdout.strip()


def base(run: Run, of: str | Path, name: str, command: str) -> None:
    container = run("from", "--pull-never", "scratch" if isinstance(of, Path) else of)
    if isinstance(of, Path):
        run("add", "--quiet", container, str(of), "/")
    run("run", container, "--", "sh", "-c", command)
    run("commit", "--quiet", container, name)
    run("rm", container)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Buildah, with the three bases and what is built on them."""
    folder = tmp_path_factory.mktemp("images")
    debian = folder / "debian"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(debian)],
        check=True,
        capture_output=True,
    )
    for file in (CERTIFICATES, NAMES, PIP):
        if file.exists():
            shutil.copy(file, debian / file.relative_to("/"))
    run: Run = partial(buildah, folder)
    stages = (ROOT / "docker" / "Dockerfile").read_text()
    vllm = stages.partition("ARG VLLM=")[2].partition("\n")[0]
    python = stages.partition("ARG PYTHON=")[2].partition("\n")[0]
    base(run, debian, f"docker.io/library/python:{python}", f"rm {MANAGED}")
    own = " ".join(f"{name}=={version}" for name, version in VLLM_OWN.items())
    of = f"docker.io/library/python:{python}"
    base(run, of, f"docker.io/vllm/vllm-openai:{vllm}", f"pip install --quiet {own} && touch {MANAGED}")
    base(run, of, "docker.io/library/busybox:1.37.0", "true")
    options = ("--pull-never", "--format", "docker", "--file", "docker/Dockerfile")
    ignored = ("--ignorefile", "docker/Dockerfile.dockerignore")
    for target in ("server", "meter", "wheels"):
        run("bud", *options, *ignored, "--target", target, "--tag", target, ".")
    yield run
    shutil.rmtree(folder)  # gigabytes


def said(run: Run, image: str, command: str) -> str:
    container = run("from", "--pull-never", image)
    try:
        return run("run", container, "--", "sh", "-c", command)
    finally:
        run("rm", container)


def about(run: Run, image: str) -> dict[str, Any]:
    told = json.loads(run("inspect", "--type", "image", image))["Docker"]["config"]
    assert isinstance(told, dict)
    return told


@pytest.mark.timeout(1200)
def test_what_an_image_runs_and_who_runs_it(run: Run) -> None:
    for image, entry, port in (
        ("server", ["etameter", "serve", "--no-meter"], "8000/tcp"),
        ("meter", ["etameter", "meter"], "9430/tcp"),
    ):
        config = about(run, image)
        assert config["Entrypoint"] == entry
        assert list(config["ExposedPorts"]) == [port]
        assert config["Healthcheck"]["Test"][0] == "CMD"
        assert said(run, image, "id -u; stat -c '%U %a' /run/etameter; etameter --version").split("\n")[:2] == [
            "2000",
            "etameter 700",
        ]
    assert said(run, "meter", "stat -c '%U %a' /data/state") == "etameter 700"


def test_vllms_packages_keep_their_versions_and_what_is_missing_is_there(run: Run) -> None:
    versions = "import importlib.metadata as m; print(m.version('numpy'), m.version('prometheus-client'), m.version('aiohttp'))"
    numpy, client, _ = said(run, "server", f'python3 -c "{versions}"').split()
    assert {"numpy": numpy, "prometheus-client": client} == VLLM_OWN


def test_the_meter_has_the_versions_that_were_tested(run: Run) -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    listed = said(run, "meter", "python3 -m pip list --format freeze").splitlines()
    own = [each for each in listed if each.lower().startswith(("aiohttp==", "numpy==", "pydantic==", "typer=="))]
    assert len(own) == 4
    assert all(f"\n{each.lower()}\n" in constraints.lower() for each in own)
    assert "etameter==0.1.0" in listed
    assert said(run, "meter", "etameter replay").splitlines()[-1].startswith("replay")


def test_the_bundle_is_etameter_and_nvmls_binding_alone(run: Run) -> None:
    assert about(run, "wheels")["Entrypoint"] == ["cp", "-R", "/bundle/.", "/opt/etameter"]
    names = said(run, "wheels", "cd /bundle && ls").split()
    assert [name for name in names if not name.endswith(".dist-info")] == ["bin", "etameter", "pynvml.py"]
    assert said(run, "wheels", "stat -c %a /bundle/bin/etameter") == "755"


def test_nothing_of_the_build_is_left_behind(run: Run) -> None:
    for image in ("server", "meter", "wheels"):
        assert said(run, image, "ls -d /wheels /source /tmp/*.txt 2> /dev/null || true") == ""
