"""The services of compose.yaml work together, as far as that can be seen without containers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docker.chart import ROOT
from tests.docker.services import PLACES

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(
        os.getuid() != 0 or shutil.which("unshare") is None or shutil.which("prometheus") is None,
        reason="needs root, unshare and Debian's prometheus",
    ),
]


@contextmanager
def places() -> Iterator[None]:
    """Mounts are the child's own, but what they are on isn't."""
    missing = {folder for place in PLACES for folder in (place, *place.parents) if not folder.exists()}
    for folder in sorted(missing):
        folder.mkdir()
    try:
        yield
    finally:
        for folder in sorted(missing, reverse=True):
            folder.rmdir()


def test_prometheus_finds_the_meter_where_its_configuration_says_and_grafana_finds_both(tmp_path: Path) -> None:
    own = ["unshare", "--mount", "--net"]
    if subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces can be made here")
    command = [*own, sys.executable, "-m", "tests.docker.services", str(tmp_path)]
    with places():
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sources"] == ["simulated"]
    assert found["up"]["etameter"] == "1"
    assert found["up"]["vllm"] == "0", "none runs here, and Prometheus says so"
    assert found["recorded"] > 0
    assert found["failing"] == []
    assert found["ledger"], "in the volume"
