"""The documents that are made from code say what the code says."""

from pathlib import Path

import pytest

from docs import generate

pytestmark = pytest.mark.unit


def test_no_document_is_stale() -> None:
    assert generate.stale() == []


def test_a_changed_document_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "HERE", tmp_path)
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    with (tmp_path / "metrics.md").open("a") as document:
        document.write("edited by hand\n")
    (tmp_path / "config.md").unlink()
    assert generate.stale() == ["config.md", "metrics.md"]
    assert generate.main(["--check"]) == 1
