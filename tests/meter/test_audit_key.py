"""The key of audits: one, whoever comes first, and for nobody else to read."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from etameter import audit_key
from etameter.errors import ConfigError

pytestmark = pytest.mark.unit


def test_all_who_come_have_the_same(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    with ThreadPoolExecutor(4) as several:
        keys = set(several.map(audit_key.made, [path] * 16))
    assert keys == {path.read_text()}
    assert len(path.read_text()) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_where_none_can_be_kept_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ETAMETER_RUN"):
        audit_key.made(tmp_path / "missing" / "audit.key")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:8000/v1", "http://[::1]:8000"])
def test_a_server_of_this_machine_is_told_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ETAMETER_RUN", str(tmp_path))
    assert audit_key.of_server(url) is None
    key = audit_key.made(tmp_path / "audit.key")
    assert audit_key.of_server(url) == key


@pytest.mark.parametrize("url", ["https://judge.example.com/v1", "http://10.0.0.5:8000", "x", ""])
def test_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ETAMETER_RUN", str(tmp_path))
    audit_key.made(tmp_path / "audit.key")
    assert audit_key.of_server(url) is None
