import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import etameter.archive
from etameter.cli import app
from etameter.errors import ArchiveError, ConfigError
from tests.meter.archive.laid_out import NOW_S, at, filled, settle

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "time", lambda: NOW_S)


def said(*arguments: str) -> list[str]:
    answer = CliRunner().invoke(app, ["archive", *arguments], catch_exceptions=False, standalone_mode=False)
    assert answer.return_value == 0
    return answer.stdout.splitlines()


def test_it_says_what_went_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert at(0.0) == NOW_S
    ledger = filled(tmp_path / "ledger.db", [12.0, 10.0, 9.0, 0.0])
    settle(ledger, 4, 8.0, boot="other", settled=False)
    assert said("--ledger", "ledger.db") == [
        "2024-09-22 archived: 1 requests, 1 balances, 0 readings",
        "2024-09-24 archived: 1 requests, 1 balances, 1 readings",
        "2024-09-25 archived: 1 requests, 1 balances, 2 readings",
        "2024-09-26 archived: 1 requests, 1 balances, 1 readings",
    ]
    assert len(list((tmp_path / "archive").glob("*/day=*/*.000001.parquet"))) == 11
    monkeypatch.setenv("ETAMETER_METER__ARCHIVE_DAYS", "9")
    limits = "the limits are archive_days and archive_bytes"
    assert said("--ledger", "ledger.db") == [
        f"removed 2 of the oldest days, 2024-09-22 to 2024-09-24: {limits}",
        "no day is due",
    ]
    monkeypatch.setenv("ETAMETER_METER__ARCHIVE_DAYS", "10")
    monkeypatch.setenv("ETAMETER_METER__ARCHIVE_BYTES", "0")
    assert said("--ledger", "ledger.db")[0] == f"removed 2 of the oldest days, 2024-09-25 to 2024-09-26: {limits}"
    assert ledger.totals().requests == 5
    ledger.close()


def test_limits_that_keep_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "ledger.db", [12.0]).close()
    monkeypatch.setenv("ETAMETER_METER__ARCHIVE_DAYS", "7")
    with pytest.raises(ConfigError, match=r"more than meter\.ledger_days, which is 7"):
        said("--ledger", "ledger.db")


@pytest.mark.parametrize("arguments", [["archive"], ["query", "SELECT 1"]])
def test_what_is_not_installed_is_named_with_its_extra(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("etameter.archive.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(etameter.archive, name.rpartition(".")[2], raising=False)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ArchiveError, match=r"needs fsspec, which is not installed: pip install 'etameter\[nightly\]'"):
        CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)
