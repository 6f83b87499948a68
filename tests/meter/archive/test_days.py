import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etameter import archived
from etameter.archive import days
from etameter.archive.days import archive
from etameter.archive.query import asked
from etameter.archive.store import Store, part_of
from etameter.archive.tables import record_batches
from etameter.errors import ArchiveError, MeterBusy
from etameter.ledger import SCHEMA_VERSION, Ledger, Resume, Totals
from etameter.locks import hold_lock
from etameter.texts import Texts, stored_beside
from tests.meter.archive.laid_out import (
    BOOT,
    NOW_S,
    as_version_1,
    at,
    filled,
    in_archive,
    in_ledger,
    interval,
    reading,
    request,
    settle,
    together,
)
from tests.meter.test_ledger import written

pytestmark = pytest.mark.unit

PART = part_of(request(0).record.model)


class Killed(BaseException):
    """Not to be caught by anybody, as SIGKILL: what of the last transaction wasn't committed is not there."""


def told_apart(seconds: float) -> None:
    """No pause."""


def run(ledger: Path, store: Store, pause: Callable[[float], None] = told_apart) -> list[days.Moved]:
    return archive(ledger, store, NOW_S, 7, BOOT, pause)


def same(after: Totals, before: Totals) -> None:
    assert (after.requests, after.sources) == (before.requests, before.sources)
    for name in ("requests_j", "idle_j", "engine_overhead_j", "measured_j", "host_bubble_j", "residual_j"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-12, abs=1e-9), name
    assert after.unattributed_j_by_cause == pytest.approx(before.unattributed_j_by_cause, rel=1e-12)


def test_whole_days_that_are_due_move_and_the_rest_stays(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.db", [9.0, 8.5, 7.5, 7.0, 6.0, 0.0])
    before, totals = in_ledger(ledger), ledger.totals()
    store = Store(str(tmp_path / "archive"))
    moved = run(ledger.path, store)
    assert [(each.day, each.rows) for each in moved] == [
        ("2024-09-25", {"requests": 2, "balances": 2, "readings": 1}),
        ("2024-09-26", {"requests": 1, "balances": 1, "readings": 2}),
        ("2024-09-27", {"requests": 1, "balances": 1, "readings": 0}),
    ]
    assert sorted(str(path.relative_to(tmp_path / "archive")) for path in tmp_path.glob("archive/*/*/*")) == sorted(
        f"{table}/day=2024-09-{day}/{part}.000001.parquet"
        for table, part, days in (
            ("balances", "all", (25, 26, 27)),
            ("requests", PART, (25, 26, 27)),
            ("readings", PART, (25, 26)),
        )
        for day in days
    )
    left, gone = in_ledger(ledger), in_archive(store, tmp_path)
    assert [len(left[name]) + len(gone[name]) for name in before] == [len(before[name]) for name in before]
    assert together(left, gone) == before
    same(ledger.totals(), totals)
    assert run(ledger.path, store) == []
    ledger.close()


@st.composite
def times(draw: st.DrawFn) -> list[float]:
    """In any order, as a clock that was set back tells them."""
    return draw(st.lists(st.sampled_from([0.0, 6.0, 7.0, 7.5, 8.0]), min_size=1, max_size=7))


@settings(max_examples=8, deadline=None)
@given(times(), st.lists(st.integers(0, 12), min_size=1, max_size=2), st.integers(1, 3))
def test_killed_anywhere_no_row_is_lost_or_doubled_and_every_sum_stays(
    back: list[float], kills: list[int], at_once: int
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        patched.setattr(days, "DELETED_ROWS", at_once)
        folder = Path(name)
        ledger, store = filled(folder / "ledger.db", back), Store(str(folder / "archive"))
        before, totals = in_ledger(ledger), ledger.totals()
        for kill in kills:
            steps = count()

            def killed(seconds: float, kill: int = kill, steps: "count[int]" = steps) -> None:
                if next(steps) == kill:
                    raise Killed

            try:
                run(ledger.path, store, killed)
            except Killed:
                same(ledger.totals(), totals)
                assert together(in_ledger(ledger), in_archive(store, folder)) == before
        run(ledger.path, store)
        left, gone = in_ledger(ledger), in_archive(store, folder)
        assert not any(left[table].keys() & gone[table].keys() for table in left)
        assert together(left, gone) == before
        assert sum(len(rows) for rows in gone.values()) or all(days_back < 7 for days_back in back)
        same(ledger.totals(), totals)
        for slack in ("slack", "slack_deep", "wastes"):
            receipts = {values[5] for values in left["requests"].values()}
            assert {receipt for (receipt,) in ledger._db.execute(f"SELECT receipt_id FROM {slack}")} <= receipts
        ledger.close()


@pytest.mark.parametrize("step", range(3))
def test_killed_within_a_step_nothing_of_it_is_there(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [8.0, 8.0, 8.0]), Store(str(tmp_path / "archive"))
    before, totals = in_ledger(ledger), ledger.totals()

    def killed(*_: object) -> None:
        raise Killed

    where = [(days, "record_batches"), (os, "link"), (archived, "add")][step]
    with monkeypatch.context() as patched:
        patched.setattr(*where, killed)
        with pytest.raises(Killed):
            run(ledger.path, store)
    assert in_ledger(ledger) == before or step == 2
    assert together(in_ledger(ledger), in_archive(store, tmp_path)) == before
    same(ledger.totals(), totals)
    run(ledger.path, store)
    assert in_archive(store, tmp_path) == before
    same(ledger.totals(), totals)
    ledger.close()


VICTIM = """
import os, signal, sys
from pathlib import Path
from etameter.archive import days
from etameter.archive.store import Store, part_of
from tests.meter.archive.laid_out import BOOT, NOW_S
days.DELETED_ROWS = 2
steps = iter(range(100))
def killed(seconds):
    if next(steps) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
days.archive(Path(sys.argv[1], "ledger.db"), Store(sys.argv[1] + "/archive"), NOW_S, 7, BOOT, killed)
"""


def test_a_process_that_is_killed_has_lost_nothing(tmp_path: Path) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [8.0] * 6), Store(str(tmp_path / "archive"))
    before, totals = in_ledger(ledger), ledger.totals()
    victim = subprocess.run([sys.executable, "-c", VICTIM, tmp_path], cwd=Path(__file__).parents[3], check=False)
    assert victim.returncode == -signal.SIGKILL
    assert 0 < len(in_ledger(ledger)["requests"]) < 6, "in the middle of it"
    assert together(in_ledger(ledger), in_archive(store, tmp_path)) == before
    same(ledger.totals(), totals)
    run(ledger.path, store)
    assert in_archive(store, tmp_path) == before
    same(ledger.totals(), totals)
    ledger.close()


def test_the_meter_writes_whenever_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(days, "DELETED_ROWS", 2)
    ledger, store = filled(tmp_path / "ledger.db", [8.0] * 7), Store(str(tmp_path / "archive"))
    before = in_ledger(ledger)
    ledger._db.execute("PRAGMA busy_timeout = 0")  # whoever were held up would fail at once
    numbers = count(100)
    batches = record_batches

    def reading_and_writing(*arguments: Any) -> Any:
        settle(ledger, next(numbers), 0.0)
        yield from batches(*arguments)

    monkeypatch.setattr(days, "record_batches", reading_and_writing)
    left = []

    def writing(seconds: float) -> None:
        settle(ledger, next(numbers), 0.0)
        left.append(ledger._db.execute("SELECT count(*) FROM requests WHERE number < 100").fetchone()[0])

    run(ledger.path, store, writing)
    assert all(earlier - later <= 2 for earlier, later in pairwise(left)), "a few at a time"
    assert left[-1] == 0
    assert in_archive(store, tmp_path) == before
    assert len(in_ledger(ledger)["requests"]) == next(numbers) - 100
    ledger.close()


def test_what_comes_while_a_day_is_moved_waits_for_the_next_run(tmp_path: Path) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [8.0, 8.0]), Store(str(tmp_path / "archive"))
    late = iter([5])

    def writing(seconds: float) -> None:
        for number in late:
            settle(ledger, number, 8.0)  # a clock that was set back

    run(ledger.path, store, writing)
    assert [key[-1] for key in in_ledger(ledger)["requests"]] == [5]
    assert [each.rows["requests"] for each in run(ledger.path, store)] == [1]
    assert [key[-1] for key in in_archive(store, tmp_path)["requests"]] == [0, 1, 5]
    assert ledger.totals().requests == 3
    ledger.close()


def test_a_day_waits_for_its_open_requests_but_not_for_those_of_another_boot(tmp_path: Path) -> None:
    ledger, store = Ledger(tmp_path / "ledger.db"), Store(str(tmp_path / "archive"))
    settle(ledger, 0, 9.0, boot="before", settled=False)
    settle(ledger, 1, 8.0, settled=False)
    settle(ledger, 2, 8.0)
    first, second = run(ledger.path, store)
    assert (first.rows["requests"], first.unsettled) == (1, 0)
    assert (dict(second.rows), second.unsettled) == ({}, 1)
    assert len(in_ledger(ledger)["requests"]) == 2
    assert ledger.totals().requests == 3
    ledger.close()


def test_what_was_found_in_a_response_goes_with_the_last_of_its_requests(tmp_path: Path) -> None:
    ledger, store = Ledger(tmp_path / "ledger.db"), Store(str(tmp_path / "archive"))
    receipt = "ef" * 16
    for number, back in ((0, 7.0), (1, 6.0)):
        place = Resume(BOOT, 5, {}, (), {}, "engine-0")
        rows = written(request(number, receipt=receipt))
        ledger.settle(
            [(interval(number), "measured")],
            rows,
            place,
            at(back),
            found=[reading(receipt)],
            wastes=[(receipt, "retry")],
        )
    before = in_ledger(ledger)
    run(ledger.path, store)
    assert not in_archive(store, tmp_path)["readings"]
    assert (ledger.reading(receipt), ledger.waste(receipt)) == (reading(receipt), "retry")
    archive(ledger.path, store, NOW_S, 6, BOOT, told_apart)
    assert in_archive(store, tmp_path) == before
    assert (ledger.reading(receipt), ledger.waste(receipt)) == (None, None)
    ledger.close()


def test_an_object_store_holds_the_same(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.db", [8.0, 7.5, 7.0])
    before = in_ledger(ledger)
    store = Store("memory://test-days")
    run(ledger.path, store)
    try:
        assert in_archive(store, tmp_path) == before
        listed = fsspec.filesystem("memory").find("/test-days")
        assert all(".000001.parquet" in path for path in listed), "nothing half is left"
    finally:
        fsspec.filesystem("memory").rm("/test-days", recursive=True)
    ledger.close()


def test_a_disk_that_is_full_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [8.0, 8.0]), Store(str(tmp_path / "archive"))
    before, totals = in_ledger(ledger), ledger.totals()

    def copied(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", copied)
        with pytest.raises(ArchiveError, match="No space left"):
            run(ledger.path, store)
    assert (in_ledger(ledger), ledger.totals()) == (before, totals)
    assert not [path for path in (tmp_path / "archive").rglob("*") if path.is_file()], "what was begun takes no room"
    ledger.close()


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("was", [b"no parquet", None])
def test_a_damaged_file_of_the_day_is_left_as_it_is(tmp_path: Path, was: bytes | None, old: bool) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [8.0, 8.0]), Store(str(tmp_path / "archive"))
    name = "day=2024-09-26.parquet" if old else f"day=2024-09-26/{PART}.000007.parquet"
    file = tmp_path / "archive" / "requests" / name
    file.parent.mkdir(parents=True)
    if was is None:  # another's
        pq.write_table(pa.table({"x": [1]}), file)
        was = file.read_bytes()
    file.write_bytes(was)
    before = in_ledger(ledger)
    with pytest.raises(ArchiveError, match="day=2024-09-26"):
        run(ledger.path, store)
    assert in_ledger(ledger) == before
    assert file.read_bytes() == was
    ledger.close()


@pytest.mark.parametrize("killed", [False, True])
def test_days_that_version_1_archived_stay_where_they_are(tmp_path: Path, killed: bool) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [8.0] * 4), Store(str(tmp_path / "archive"))
    before = in_ledger(ledger)
    shutil.copy(tmp_path / "ledger.db", tmp_path / "killed.db")
    shutil.copy(tmp_path / "ledger.db-wal", tmp_path / "killed.db-wal")
    run(ledger.path, store)
    as_version_1(store, tmp_path)
    if killed:  # before any row was out of the ledger
        ledger.close()
        ledger = Ledger(tmp_path / "killed.db")
    settle(ledger, 7, 8.0)
    late = {
        name: {key: row for key, row in rows.items() if key not in before[name]}
        for name, rows in in_ledger(ledger).items()
    }
    query = "SELECT count(*), count(DISTINCT number) FROM requests WHERE day = DATE '2024-09-26'"
    assert asked(store, ledger.path, query)[1] == [(5, 5)]
    run(ledger.path, store)
    assert not in_ledger(ledger)["requests"]
    assert in_archive(store, tmp_path) == together(late, before)
    assert asked(store, None, query)[1] == [(5, 5)]
    assert {file.generation for file in store.files()} == {0, 1}
    ledger.close()


def test_whoever_writes_a_part_second_takes_in_what_the_first_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "archive"))
    first, second = Ledger(tmp_path / "a.db"), Ledger(tmp_path / "b.db")
    for number in range(4):
        settle(first if number % 2 else second, number, 8.0)
    before = together(in_ledger(first), in_ledger(second))
    publish, calls = store.publish, count()

    def later(*arguments: Any) -> None:
        if not next(calls):
            run(second.path, Store(str(tmp_path / "archive")))
        publish(*arguments)

    monkeypatch.setattr(store, "publish", later)
    run(first.path, store)
    assert in_archive(store, tmp_path) == before
    assert {file.generation for file in store.files()} == {2}
    for ledger in (first, second):
        assert not any(in_ledger(ledger).values())
        ledger.close()


def test_each_model_has_a_file_of_its_own(tmp_path: Path) -> None:
    ledger, store = Ledger(tmp_path / "ledger.db"), Store(str(tmp_path / "archive"))
    names = ["a", "../b", "c/d"]
    for number in range(6):
        settle(ledger, number, 8.0, model=names[number % 3])
    before = in_ledger(ledger)
    run(ledger.path, store)
    assert in_archive(store, tmp_path) == before
    parts = {file.part: file for file in store.files() if file.table == "requests"}
    assert set(parts) == {part_of(name) for name in names}
    for name in names:
        assert set(pq.read_table(parts[part_of(name)].path, partitioning=None)["model"].to_pylist()) == {name}
    assert {file.part for file in store.files() if file.table == "balances"} == {"all"}
    ledger.close()


def test_texts_move_with_their_day(tmp_path: Path) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [8.0, 8.0, 0.0]), Store(str(tmp_path / "archive"))
    texts = Texts(stored_beside(ledger.path))
    for number, back in ((0, 8.0), (1, 8.0), (2, 0.0)):
        told = {"prompts": ["Why?"], "responses": [f"Because of {number}."], "pieces": [[len("Because of 0."), 5]]}
        texts.add(f"{number:032x}", told, at(back))
    texts.add("ff" * 16, {"reason": "no_text"}, at(8.0))
    query = "SELECT receipt_id, responses[1], model FROM texts ORDER BY ALL"
    for _ in range(2):
        assert [moved.rows["texts"] for moved in run(ledger.path, store)] in ([2], [])
        model = request(0).record.model
        assert asked(store, ledger.path, query)[1] == [
            (f"{number:032x}", f"Because of {number}.", model) for number in range(3)
        ]
    assert [row[0] for row in asked(store, None, query)[1]] == [f"{number:032x}" for number in range(2)]
    texts.close()
    ledger.close()


def test_of_a_text_that_has_moved_nothing_stays_in_the_file(tmp_path: Path) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [8.0]), Store(str(tmp_path / "archive"))
    path = stored_beside(ledger.path)
    texts = Texts(path)
    texts.add(f"{0:032x}", {"prompts": ["Who am I?"], "responses": ["xyzzy" * 40]}, at(8.0))
    texts.close()
    assert b"xyzzy" in path.read_bytes()
    assert [moved.rows["texts"] for moved in run(ledger.path, store)] == [1]
    assert b"xyzzy" not in path.read_bytes()
    ledger.close()


def test_other_ledgers_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "archive"))
    with pytest.raises(ArchiveError, match="unable to open"):
        run(tmp_path / "absent.db", store)
    old = sqlite3.connect(tmp_path / "old.db")
    old.execute("PRAGMA user_version = 4")
    old.close()
    with pytest.raises(ArchiveError, match=f"of version 4, not {SCHEMA_VERSION}: start the meter"):
        run(tmp_path / "old.db", store)


def test_one_archives_at_a_time(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.db", [8.0])
    with hold_lock(tmp_path / "ledger.db.archive.lock", "", ""), pytest.raises(MeterBusy, match="etameter archive"):
        run(ledger.path, Store(str(tmp_path / "archive")))
    ledger.close()


def test_many_batches_sum_as_exactly_as_one(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.db", [8.0] * 40)
    totals = ledger.totals()
    run(ledger.path, Store(str(tmp_path / "archive")))
    assert math.isclose(ledger.totals().requests_j, totals.requests_j, rel_tol=1e-14)
    ledger.close()


def test_what_reliability_goes_by_outlasts_the_days_that_move(tmp_path: Path) -> None:
    """Also where a run was killed between any two of its transactions, one row each, and run again."""
    ledger, store = filled(tmp_path / "ledger.db", [20.0] * 6 + [0.1] * 3), Store(str(tmp_path / "archive"))
    before = ledger.audits(100)
    assert (len(before[0]), before[1]) == (3, [])

    def pauses(left: int) -> Callable[[float], None]:
        def pause(_: float) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        return pause

    for steps in count():
        try:
            run(ledger.path, store, pauses(steps))
        except Killed:
            assert sorted(map(repr, ledger.audits(100)[0])) == sorted(map(repr, before[0]))
            continue
        break
    assert steps > 2
    assert ledger.audits(100)[1] == []
    assert sorted(map(repr, ledger.audits(100)[0])) == sorted(map(repr, before[0]))
    assert ledger.judged(f"{2:032x}") is None, "the rows themselves have moved"
    ledger.close()
