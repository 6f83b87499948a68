"""Every test says where it can run; those that need a real vLLM share its model and its server."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.serving.real_server import RealServer

# Properties are about what comes out, not about how soon: a busy machine takes its time.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

KINDS = {"unit", "engine", "server", "boot", "gpu"}


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """A test without a marker would be run by no target."""
    homeless = [item.nodeid for item in items if not KINDS & {marker.name for marker in item.iter_markers()}]
    if homeless:
        raise pytest.UsageError(f"mark as one of {', '.join(sorted(KINDS))}: {', '.join(homeless)}")


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The small model: ``$ETAMETER_TEST_MODEL``, else converted once and kept."""
    if given := os.environ.get("ETAMETER_TEST_MODEL"):
        return Path(given)
    from etameter.serving import small_model

    if not small_model.directory().is_dir():
        subprocess.run([sys.executable, "-m", small_model.__name__], check=True)
    return small_model.directory()


@pytest.fixture(scope="session")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """One real vLLM server for all tests. Its meter is what a test puts on the socket in `run_dir`."""
    real = RealServer(model_dir, tmp_path_factory.mktemp("server"))
    try:
        real.wait_until_ready()
        yield real
    finally:
        real.stop()
