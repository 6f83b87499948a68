"""Every test says where it can run."""

from collections.abc import Sequence

import pytest

KINDS = {"unit", "engine", "server", "boot", "gpu"}


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """A test without a marker would be run by no target."""
    homeless = [item.nodeid for item in items if not KINDS & {marker.name for marker in item.iter_markers()}]
    if homeless:
        raise pytest.UsageError(f"mark as one of {', '.join(sorted(KINDS))}: {', '.join(homeless)}")
