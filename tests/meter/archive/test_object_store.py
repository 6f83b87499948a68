"""Faults of an object store, each with a store in a process of its own."""

import importlib.util
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from etameter.archive import store as stores
from etameter.archive.query import asked
from etameter.archive.rescoring import Scoring, partitions, rescore
from etameter.archive.store import Store
from etameter.errors import ArchiveError
from etameter.ledger import Ledger
from tests.meter.archive.laid_out import filled, in_archive, in_ledger, settle, together
from tests.meter.archive.object_store import BUCKET, ObjectStore, started
from tests.meter.archive.test_days import run, same
from tests.meter.archive.test_rescoring import SCORES, TEXTS, stored

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(
        not (importlib.util.find_spec("moto") and importlib.util.find_spec("s3fs")), reason="moto or s3fs is missing"
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    object_store = ObjectStore()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in object_store.environment.items():
            patched.setenv(name, value)
        object_store.start()
        try:
            yield object_store
        finally:
            object_store.kill()


@pytest.fixture
def address(server: ObjectStore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(stores, "PAUSE_S", 0.05)
    s3fs.S3FileSystem.clear_instance_cache()
    return f"s3://{BUCKET}/{request.node.name}"


def test_days_go_to_it_and_are_asked_of_it(tmp_path: Path, address: str) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [8.0, 7.5, 7.0, 0.0]), Store(address)
    before, totals = in_ledger(ledger), ledger.totals()
    run(ledger.path, store)
    assert together(in_ledger(ledger), in_archive(store, tmp_path)) == before
    assert not any(in_ledger(ledger)[name].keys() & in_archive(store, tmp_path)[name].keys() for name in before)
    same(ledger.totals(), totals)
    assert asked(store, ledger.path, "SELECT count(*), count(DISTINCT number) FROM requests")[1] == [(4, 4)]
    assert asked(store, None, "SELECT count(*) FROM requests WHERE day = DATE '2024-09-27'")[1] == [(1,)]
    settle(ledger, 9, 8.0)
    run(ledger.path, store)
    assert asked(store, None, "SELECT count(*), count(DISTINCT number) FROM requests")[1] == [(4, 4)]
    assert {file.generation for file in store.files()} == {1, 2}
    store.tidy()
    assert len(store.system.find(address)) == len(store.files())
    assert store.retire("2024-09-27", None) == ["2024-09-26"]
    ledger.close()


def test_one_that_refuses_loses_nothing(
    tmp_path: Path, server: ObjectStore, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "TRIES", 2)
    ledger, store = filled(tmp_path / "ledger.db", [8.0, 8.0]), Store(address)
    before, totals = in_ledger(ledger), ledger.totals()
    server.kill()
    try:
        with pytest.raises(ArchiveError, match=r"can't be written .*run this again: no row is lost"):
            run(ledger.path, store)
        assert (in_ledger(ledger), ledger.totals()) == (before, totals)
    finally:
        server.start()
    run(ledger.path, store)
    assert in_archive(store, tmp_path) == before
    ledger.close()


def test_one_that_hangs_is_waited_for_so_long_and_no_longer(
    tmp_path: Path, server: ObjectStore, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "TRIES", 2)
    monkeypatch.setattr(stores, "WAIT_S", 0.2)
    ledger, store = filled(tmp_path / "ledger.db", [8.0, 8.0]), Store(address)
    before, totals = in_ledger(ledger), ledger.totals()
    server.hang()
    try:
        with pytest.raises(ArchiveError, match="no answer in 0 s"):
            run(ledger.path, store)
        assert (in_ledger(ledger), ledger.totals()) == (before, totals)
    finally:
        server.go_on()
    monkeypatch.setattr(stores, "WAIT_S", 30.0)
    run(ledger.path, store)
    assert in_archive(store, tmp_path) == before
    same(ledger.totals(), totals)
    ledger.close()


@pytest.mark.parametrize("begins", ["before it is asked", "while it is read"])
def test_one_that_hangs_answers_a_query_with_its_name(
    tmp_path: Path, server: ObjectStore, address: str, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    monkeypatch.setattr(stores, "TRIES", 1)
    address = address.partition("[")[0]  # DuckDB takes brackets for a pattern
    ledger, store = filled(tmp_path / "ledger.db", [8.0, 8.0]), Store(address)
    run(ledger.path, store)
    ledger.close()
    files, found = store.files, store.files()
    monkeypatch.setattr(stores, "WAIT_S", 0.3)

    def hanging() -> list[stores.File]:
        server.hang()
        return found if begins == "while it is read" else files()

    monkeypatch.setattr(store, "files", hanging)
    try:
        with pytest.raises(
            ArchiveError, match=rf"{re.escape(address)} can't be read \(no answer in 0 s\): see that it"
        ):
            asked(store, None, "SELECT sum(prompt_j) FROM requests")
    finally:
        server.go_on()
    monkeypatch.setattr(stores, "WAIT_S", 30.0)
    monkeypatch.setattr(store, "files", files)
    assert asked(store, None, "SELECT count(*) FROM requests")[1] == [(2,)]
    with pytest.raises(ArchiveError, match=r"the query can't be answered .*: the tables are"):
        asked(Store(address), None, "SELECT nothing FROM requests")


def test_one_that_hangs_in_the_middle_of_a_write_has_it_once(
    tmp_path: Path, server: ObjectStore, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given up goes on behind our back, and may take the name that is tried again."""
    monkeypatch.setattr(stores, "WAIT_S", 1.0)
    ledger, store = filled(tmp_path / "ledger.db", [8.0, 8.0]), Store(address)
    before = in_ledger(ledger)
    put_file, puts = store.system.put_file, []

    def hanging(*arguments: object, **options: object) -> None:
        puts.append(arguments)
        if len(puts) == 1:
            server.hang()
            threading.Timer(1.2, server.go_on).start()
        put_file(*arguments, **options)

    monkeypatch.setattr(store.system, "put_file", hanging)
    run(ledger.path, store)
    assert len(puts) > len(store.files())
    assert in_archive(store, tmp_path) == before
    ledger.close()


ARCHIVES = """
import sys
from pathlib import Path
from etameter.archive import days
from etameter.archive.store import Store
from tests.meter.archive.laid_out import BOOT, NOW_S
days.archive(Path(sys.argv[1]), Store(sys.argv[2]), NOW_S, 7, BOOT)
"""


@pytest.mark.parametrize(("alike", "where"), [(True, "s3"), (False, "folder")])
def test_two_writers_of_a_part_lose_and_double_nothing(tmp_path: Path, address: str, alike: bool, where: str) -> None:
    """Of two ledgers, or of the same one on two machines: a duplicate upload."""
    place = address.replace("[", "-").replace("]", "") if where == "s3" else str(tmp_path / "archive")
    numbers = [range(40), range(40) if alike else range(40, 80)]
    paths = []
    for name, own in zip("ab", numbers, strict=True):
        ledger = Ledger(tmp_path / f"{name}.db")
        for number in own:
            settle(ledger, number, 8.0)
        paths.append(ledger.path)
        ledger.close()
    ledgers = [Ledger(path) for path in paths]
    before = together(in_ledger(ledgers[0]), in_ledger(ledgers[1]))
    for process in [started(ARCHIVES, path, place) for path in paths]:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert in_archive(Store(place), tmp_path) == before
    for ledger in ledgers:
        assert not any(in_ledger(ledger).values())
        ledger.close()


@pytest.mark.slow
def test_texts_are_scored_once_by_two_processes_after_it_hung(
    tmp_path: Path, server: ObjectStore, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path, place=address)
    works, scoring = partitions(store, None), Scoring(store.address)
    monkeypatch.setattr(stores, "TRIES", 1)
    monkeypatch.setattr(stores, "WAIT_S", 0.2)
    server.hang()
    try:
        assert [(each.how, each.rows) for each in rescore(works[:1], scoring)] == [("failed", 0)]
    finally:
        server.go_on()
    monkeypatch.setattr(stores, "WAIT_S", 30.0)
    both = [started(SCORES, tmp_path, "nowhere", 0, address) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert "failed" not in said
    assert asked(store, None, "SELECT count(*), count(DISTINCT receipt_id) FROM rereadings")[1] == [(TEXTS, TEXTS)]
    assert {file.generation for file in store.files()} == {1}
