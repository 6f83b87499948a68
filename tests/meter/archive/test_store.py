from pathlib import Path

import fsspec
import pytest

from etameter.archive.store import Store, part_of
from etameter.archive.tables import BALANCES, REQUESTS
from etameter.errors import ArchiveError

pytestmark = pytest.mark.unit


def stored(tmp_path: Path) -> Store:
    """Three days, of which the second has two files; 10 bytes each."""
    store = Store(str(tmp_path / "archive"))
    (tmp_path / "file").write_bytes(b"0123456789")
    for table, day in ((REQUESTS, "01"), (REQUESTS, "02"), (BALANCES, "02"), (BALANCES, "03")):
        store.publish(tmp_path / "file", table, f"2026-11-{day}", "all", 1)
    (tmp_path / "archive" / "requests" / "notes.txt").write_text("not ours")
    (tmp_path / "archive" / "requests" / "day=mine.parquet").write_text("not ours")
    (tmp_path / "archive" / "requests" / "day=2026-11-02" / "mine.parquet").write_text("not ours")
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
    kept = [path for path in (tmp_path / "archive").rglob("*") if path.is_file() and path.read_bytes() == b"not ours"]
    assert len(kept) == 3


@pytest.mark.parametrize("address", ["folder", "memory://test-store"])
def test_a_name_is_taken_once_and_the_latest_counts(tmp_path: Path, address: str) -> None:
    store = Store(str(tmp_path / address) if address == "folder" else address)
    (tmp_path / "file").write_bytes(b"first")
    store.publish(tmp_path / "file", REQUESTS, "2026-11-01", "all", 1)
    (tmp_path / "file").write_bytes(b"second")
    with pytest.raises(FileExistsError):
        store.publish(tmp_path / "file", REQUESTS, "2026-11-01", "all", 1)
    store.publish(tmp_path / "file", REQUESTS, "2026-11-01", "all", 2)
    (file,) = store.files()
    assert store.parts(REQUESTS, "2026-11-01") == {"all": file}
    store.fetch(file, tmp_path / "out")
    assert (file.generation, (tmp_path / "out").read_bytes()) == (2, b"second")
    store.tidy()
    assert store.files() == [file]
    with pytest.raises(FileExistsError, match="is later"):
        store.publish(tmp_path / "file", REQUESTS, "2026-11-01", "all", 1)  # free again, and too late
    assert store.files() == [file]
    if address != "folder":
        fsspec.filesystem("memory").rm("/test-store", recursive=True)


def test_a_file_of_version_1_is_one_of_all_models(tmp_path: Path) -> None:
    store = stored(tmp_path)
    (tmp_path / "archive" / "requests" / "day=2026-11-02.parquet").write_bytes(b"old")
    assert set(store.parts(REQUESTS, "2026-11-02")) == {None, "all"}
    assert [(file.part, file.generation) for file in store.files() if file.day == "2026-11-02"] == [
        ("all", 1),
        (None, 0),
        ("all", 1),
    ]


@pytest.mark.parametrize("model", ["../../etc/passwd", "a/b", "Qwen/Qwen3-8B", "", "\0", "ü" * 4000, "day=2026-01-01"])
def test_a_model_reaches_no_name(model: str) -> None:
    part = part_of(model)
    assert part.startswith("model-")
    assert len(part) == 22
    assert part != part_of(model + " ")


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(tmp_path)

    def refused(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(PermissionError):
        store.files()


def test_an_address_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ArchiveError, match="nowhere://x is no place"):
        Store("nowhere://x")
