from pathlib import Path

import pytest

from etameter.archive.store import Store
from etameter.archive.tables import BALANCES, REQUESTS
from etameter.errors import ArchiveError

pytestmark = pytest.mark.unit


def stored(tmp_path: Path) -> Store:
    """Three days, of which the second has two files; 10 bytes each."""
    store = Store(str(tmp_path / "archive"))
    (tmp_path / "file").write_bytes(b"0123456789")
    for table, day in ((REQUESTS, "01"), (REQUESTS, "02"), (BALANCES, "02"), (BALANCES, "03")):
        store.publish(tmp_path / "file", table, f"2026-11-{day}")
    (tmp_path / "archive" / "requests" / "notes.txt").write_text("not ours")
    (tmp_path / "archive" / "requests" / "day=mine.parquet").write_text("not ours")
    return store


@pytest.mark.parametrize(
    ("oldest_day", "most_bytes", "gone"),
    [
        (None, None, ""),
        ("2026-11-01", 40, ""),
        ("2026-11-02", None, "1"),
        (None, 39, "1"),
        (None, 29, "12"),
        ("2026-11-02", 10, "12"),
        (None, 0, "123"),
    ],
)
def test_the_oldest_days_go_first_and_whole(
    tmp_path: Path, oldest_day: str | None, most_bytes: int | None, gone: str
) -> None:
    store = stored(tmp_path)
    assert store.retire(oldest_day, most_bytes) == [f"2026-11-0{day}" for day in gone]
    assert {file.day[-1] for file in store.files()} == set("123") - set(gone)
    assert (tmp_path / "archive" / "requests" / "notes.txt").exists()
    assert (tmp_path / "archive" / "requests" / "day=mine.parquet").exists()


def test_a_day_is_fetched_if_it_is_there(tmp_path: Path) -> None:
    store = stored(tmp_path)
    assert not store.fetch(REQUESTS, "2026-11-03", tmp_path / "out")
    assert store.fetch(BALANCES, "2026-11-03", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"0123456789"


def test_an_address_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ArchiveError, match="nowhere://x is no place"):
        Store("nowhere://x")
