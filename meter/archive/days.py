"""Moves whole days from the ledger into the archive, exactly once, beside a meter that writes the same ledger.

A day's files, one a table and model, are complete in their place before the first of its rows is deleted. Whoever is killed in between leaves rows in both: the next
run writes later generations of them, from the rows that are left and those of the file that the ledger doesn't have, and goes on deleting. Rows are deleted a few at a time, their
sums kept in the same transaction (`archived`), with a pause after each that is as long: the meter waits for no more than one of them.
"""

import json
import sqlite3
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from etameter import archived, readings
from etameter.archived import Sums
from etameter.errors import ArchiveError
from etameter.ledger import SCHEMA_VERSION
from etameter.locks import hold_lock
from etameter.texts import stored_beside

from .store import File, Store, part_of
from .tables import (
    BATCH_ROWS,
    FORMAT,
    READ,
    TABLES,
    TEXTS,
    Read,
    Row,
    Table,
    model_in,
    record_batches,
    texts_attached,
    told_of,
)

DELETED_ROWS: Final = 500
"""At most so many in one transaction."""
_DAY_S: Final = 86_400
_WRITERS: Final = 10
"""So often another one may have written a part sooner, until this one gives up."""
_DUE: Final = """
SELECT CAST(wall_time / 86400 AS INTEGER) AS day, settled = 0 AND boot_id = :boot_id AS waiting
FROM requests WHERE wall_time < :high
UNION ALL SELECT CAST(wall_time / 86400 AS INTEGER), 0 FROM balances WHERE wall_time < :high
"""
"""A request that an earlier boot has left will never be settled, and keeps no day waiting."""
_DUE_TEXTS: Final = "UNION ALL SELECT CAST(wall_time / 86400 AS INTEGER), 0 FROM stored.texts WHERE wall_time < :high"


@dataclass(frozen=True, slots=True)
class Moved:
    """A day that was due: rows by table, or how many of its requests are not settled, because of which it waits."""

    day: str
    rows: Mapping[str, int]
    unsettled: int = 0


class _Written:
    """Where in the ledger the rows stand that files have: the row, and what `tables.Read` has beside it, -1 for None. Kept in a file, since a day may have millions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: array[int] = array("q")
        self.rows = 0

    def add(self, rowid: int, beside: int | None) -> None:
        self._waiting.extend((rowid, -1 if beside is None else beside))
        self.rows += 1
        if len(self._waiting) >= 2 * BATCH_ROWS:
            self._put_down()

    def batches(self) -> Iterator[tuple[list[int], list[int]]]:
        self._put_down()
        with self._path.open("rb") as file:
            while told := file.read(2 * 8 * DELETED_ROWS):
                pairs = array("q", told)
                yield pairs[::2].tolist(), pairs[1::2].tolist()

    def _put_down(self) -> None:
        with self._path.open("ab") as file:
            self._waiting.tofile(file)
        del self._waiting[:]


def archive(
    ledger: Path, store: Store, now_s: float, days: int, boot_id: str, pause: Callable[[float], None] = time.sleep
) -> list[Moved]:
    """Moves the days (UTC) that lie at least `days` back at `now_s`, in s since 1970, and of which no request is open.

    `pause` is called with seconds after each file that is in its place and each transaction.

    Raises:
        ArchiveError: the ledger or the store can't be read or written; no row is lost, and none is in the ledger and summed as archived.
        MeterBusy: another one archives this ledger.
    """
    lock = ledger.with_name(f"{ledger.name}.archive.lock")
    try:
        with (
            closing(opened(ledger)) as db,
            hold_lock(lock, f"archives {ledger}", "wait for it", who="etameter archive"),
        ):
            high = (now_s // _DAY_S - days + 1) * _DAY_S
            store.tidy()
            rows = f"{_DUE} {_DUE_TEXTS if texts_attached(db) else ''}"
            due = db.execute(
                f"SELECT day, sum(waiting) FROM ({rows}) GROUP BY day ORDER BY day",  # noqa: S608
                {"high": high, "boot_id": boot_id},
            ).fetchall()
            return [
                Moved(_day(number), {}, waiting) if waiting else _move(db, store, number, pause)
                for number, waiting in due
            ]
    except sqlite3.Error as error:
        raise ArchiveError(f"{ledger} can't be archived ({error})", "see to its disk, and run this again") from error
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(
            f"{store.location} can't be written ({error})", "see to it, and run this again: no row is lost"
        ) from error


def opened(ledger: Path, mode: str = "rw") -> sqlite3.Connection:
    """The ledger, for another than its meter, who alone makes and upgrades it."""
    db = sqlite3.connect(f"{ledger.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=30.0)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        db.close()
        raise ArchiveError(
            f"{ledger} is a ledger of version {version}, not {SCHEMA_VERSION}", "start the meter of this version once"
        )
    # No transaction waits for the disk: one that a loss of power takes back had rows whose file was on the disk before.
    db.execute("PRAGMA synchronous = NORMAL")
    stored = stored_beside(ledger)
    if stored.exists():
        db.execute("ATTACH ? AS stored", (f"{stored.absolute().as_uri()}?mode={mode}",))
        db.execute("PRAGMA stored.synchronous = NORMAL")
        # Many builds of SQLite would leave in free pages what a text was.
        db.execute("PRAGMA stored.secure_delete = ON")
    return db


def _day(number: int) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(days=number)).date().isoformat()


def _move(db: sqlite3.Connection, store: Store, number: int, pause: Callable[[float], None]) -> Moved:
    day, low, high = _day(number), float(number * _DAY_S), float((number + 1) * _DAY_S)
    with TemporaryDirectory(prefix="etameter-archive-") as name:
        folder = Path(name)
        written = {table.name: _Written(folder / f"{table.name}.rows") for table in TABLES}
        db.execute("BEGIN")  # one moment for all tables; in WAL mode nobody waits for who reads
        try:
            for table in TABLES:
                rows = _noted(READ[table.name](db, low, high), written[table.name])
                for part, own in _by_part(table, rows, _of_version_1(db, store, table, day, folder)):
                    with pq.ParquetWriter(folder / "own", table.schema, compression="zstd") as writer:
                        for batch in record_batches(table, own):
                            writer.write_batch(batch)
                    _publish(db, store, table, day, part, folder)
                    pause(0.0)
        finally:
            db.execute("ROLLBACK")
        for took_s in _forget(db, day, written):
            pause(took_s)
    return Moved(day, {name: rows.rows for name, rows in written.items() if rows.rows or name != TEXTS.name})


def _noted(rows: Iterable[Read], written: _Written) -> Iterator[Row]:
    for read in rows:
        written.add(read.rowid, read.beside)
        yield read.values


def _by_part(table: Table, rows: Iterable[Row], there: frozenset[Row]) -> Iterator[tuple[str, Iterator[Row]]]:
    """Rows that no file of version 1 has, those of one model after those of another."""
    places = [table.schema.names.index(name) for name in table.key]
    new = (row for row in rows if not there or tuple(row[place] for place in places) not in there)
    for model, own in groupby(new, model_in(table)):
        yield part_of(model), own


def _of_version_1(db: sqlite3.Connection, store: Store, table: Table, day: str, folder: Path) -> frozenset[Row]:
    """Keys of rows that version 1 has put in a file, and then was killed before they were out of the ledger."""
    old = store.parts(table, day).get(None)
    if old is None:
        return frozenset()
    store.fetch(old, folder / "old")
    return frozenset(
        key
        for batch, there in _held_against(db, table, folder / "old", old)
        for key, is_there in zip(_keys(table, batch), there, strict=True)
        if is_there
    )


def _publish(db: sqlite3.Connection, store: Store, table: Table, day: str, part: str, folder: Path) -> None:
    """Puts the rows in `own` into the archive, with those of an earlier file that the ledger doesn't have."""
    for _ in range(_WRITERS):
        earlier = store.parts(table, day).get(part)
        source = folder / "own"
        if earlier is not None:
            store.fetch(earlier, folder / "earlier")
            source = _merged(db, table, folder, earlier)
        try:
            store.publish(source, table, day, part, 1 if earlier is None else earlier.generation + 1)
        except FileExistsError:
            continue  # another writer was sooner: what it wrote is taken in
        return
    raise ArchiveError(f"others keep writing {table.name} of {day} in {store.location}", "archive to another place")


def _merged(db: sqlite3.Connection, table: Table, folder: Path, earlier: File) -> Path:
    merged = folder / "merged"
    with pq.ParquetWriter(merged, table.schema, compression="zstd") as writer:
        for batch, there in _held_against(db, table, folder / "earlier", earlier):
            writer.write_batch(batch.filter(pa.array([not each for each in there], pa.bool_())))
        with pq.ParquetFile(folder / "own") as own:
            for batch in own.iter_batches(BATCH_ROWS):
                writer.write_batch(batch)
    return merged


def _held_against(
    db: sqlite3.Connection, table: Table, path: Path, file: File
) -> Iterator[tuple[pa.RecordBatch, list[bool]]]:
    """Rows of a file in the archive, and which of them the ledger has, too."""
    try:
        opened_file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ArchiveError(
            f"{file.path} in the archive is damaged ({error})", "move it away, and run this again"
        ) from error
    with opened_file:
        told = told_of(opened_file.schema_arrow)
        if told.get("table") != table.name or told.get("format") != (1 if file.part is None else FORMAT):
            raise ArchiveError(f"{file.path} is not as this version writes it", "archive to another place")
        for batch in opened_file.iter_batches(BATCH_ROWS):
            yield batch, [db.execute(table.there, key).fetchone() is not None for key in _keys(table, batch)]


def _keys(table: Table, batch: pa.RecordBatch) -> Iterator[Row]:
    return zip(*(batch.column(name).to_pylist() for name in table.key), strict=True)


def _forget(db: sqlite3.Connection, day: str, written: Mapping[str, _Written]) -> Iterator[float]:
    """Deletes what was written and no row that came meanwhile; the seconds that each transaction took."""
    for name, delete in (
        ("readings", _delete_readings),
        ("requests", _delete_requests),
        ("balances", _delete_balances),
        ("texts", _delete_texts),
    ):
        for rowids, beside in written[name].batches():
            began_s = time.monotonic()
            with db:
                db.execute("BEGIN IMMEDIATE")
                for sums in delete(db, rowids, beside):
                    archived.add(db, day, sums)
            yield time.monotonic() - began_s


def _delete_readings(db: sqlite3.Connection, rowids: list[int], beside: list[int]) -> Iterable[Sums]:
    for deep, etas, slack in ((0, "eta", "slack"), (1, "eta_deep", "slack_deep")):
        own = [rowid for rowid, judged in zip(rowids, beside, strict=True) if judged == deep]
        found = db.execute(
            f"SELECT receipt_id FROM {etas} WHERE rowid IN (SELECT value FROM json_each(?))",  # noqa: S608  # our own words
            (json.dumps(own),),
        )
        readings.keep_judged(db, [receipt_id for (receipt_id,) in found])
        receipts = db.execute(
            f"DELETE FROM {etas} WHERE rowid IN (SELECT value FROM json_each(?)) RETURNING receipt_id",  # noqa: S608  # our own words
            (json.dumps(own),),
        ).fetchall()
        db.executemany(f"DELETE FROM {slack} WHERE receipt_id = ?", receipts)  # noqa: S608
    return ()


def _delete_requests(db: sqlite3.Connection, rowids: list[int], beside: list[int]) -> Iterable[Sums]:
    sums: dict[str, Sums] = {}
    for source, joules in db.execute(
        "DELETE FROM requests WHERE rowid IN (SELECT value FROM json_each(?)) RETURNING source, prompt_j + output_j",
        (json.dumps(rowids),),
    ).fetchall():
        own = sums.setdefault(source, Sums(source))
        own.requests += 1
        own.requests_j += joules
    db.execute(
        "DELETE FROM wastes WHERE rowid IN (SELECT value FROM json_each(?)) "
        "AND NOT EXISTS (SELECT 1 FROM requests WHERE requests.receipt_id = wastes.receipt_id)",
        (json.dumps([rowid for rowid in beside if rowid != -1]),),
    )
    return sums.values()


def _delete_balances(db: sqlite3.Connection, rowids: list[int], _beside: list[int]) -> Iterable[Sums]:
    sums: dict[str, Sums] = {}
    for source, measured_j, attributed_j, idle_j, overhead_j, bubble_j, text in db.execute(
        "DELETE FROM balances WHERE rowid IN (SELECT value FROM json_each(?)) RETURNING "
        "source, measured_j, attributed_j, idle_j, engine_overhead_j, host_bubble_j, unattributed",
        (json.dumps(rowids),),
    ).fetchall():
        own = sums.setdefault(source, Sums(source))
        own.balances += 1
        own.measured_j += measured_j
        own.attributed_j += attributed_j
        own.idle_j += idle_j
        own.engine_overhead_j += overhead_j
        own.host_bubble_j += bubble_j
        causes = dict(own.unattributed_j_by_cause)
        for cause, joules in json.loads(text).items():
            causes[cause] = causes.get(cause, 0.0) + joules
        own.unattributed_j_by_cause = causes
    return sums.values()


def _delete_texts(db: sqlite3.Connection, rowids: list[int], _beside: list[int]) -> Iterable[Sums]:
    db.execute("DELETE FROM stored.texts WHERE rowid IN (SELECT value FROM json_each(?))", (json.dumps(rowids),))
    return ()
