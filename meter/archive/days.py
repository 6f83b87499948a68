"""Moves whole days from the ledger into the archive, exactly once, beside a meter that writes the same ledger.

A day's files are complete in their place before the first of its rows is deleted. Whoever is killed in between leaves rows in both: the next run writes the files anew,
from the rows that are left and those of the file that the ledger doesn't have, and goes on deleting. Rows are deleted a few at a time, their
sums kept in the same transaction (`archived`), with a pause after each that is as long: the meter waits for no more than one of them.
"""

import json
import sqlite3
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from etameter import archived
from etameter.archived import Sums
from etameter.errors import ArchiveError
from etameter.ledger import SCHEMA_VERSION
from etameter.locks import hold_lock

from .store import Store
from .tables import BATCH_ROWS, FORMAT, KEY, READ, TABLES, Table, record_batches

DELETED_ROWS: Final = 500
"""At most so many in one transaction."""
_DAY_S: Final = 86_400
_FIND_DAYS: Final = """
SELECT day, sum(waiting) FROM (
    SELECT CAST(wall_time / 86400 AS INTEGER) AS day, settled = 0 AND boot_id = :boot_id AS waiting
    FROM requests WHERE wall_time < :high
    UNION ALL SELECT CAST(wall_time / 86400 AS INTEGER), 0 FROM balances WHERE wall_time < :high
) GROUP BY day ORDER BY day
"""
"""A request that an earlier boot has left will never be settled, and keeps no day waiting."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A day that was due: rows by table, or how many of its requests are not settled, because of which it waits."""

    day: str
    rows: Mapping[str, int]
    unsettled: int = 0


@dataclass(slots=True)
class _Written:
    """Where in the ledger the rows stand that a file has: the row, and what `tables.Read` has beside it, -1 for None."""

    rowids: "array[int]" = field(default_factory=lambda: array("q"))
    beside: "array[int]" = field(default_factory=lambda: array("q"))

    def batches(self) -> Iterator[tuple[list[int], list[int]]]:
        for start in range(0, len(self.rowids), DELETED_ROWS):
            rows = slice(start, start + DELETED_ROWS)
            yield self.rowids[rows].tolist(), self.beside[rows].tolist()


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
            due = db.execute(_FIND_DAYS, {"high": high, "boot_id": boot_id}).fetchall()
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
    return db


def _day(number: int) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(days=number)).date().isoformat()


def _move(db: sqlite3.Connection, store: Store, number: int, pause: Callable[[float], None]) -> Moved:
    day, low, high = _day(number), float(number * _DAY_S), float((number + 1) * _DAY_S)
    with TemporaryDirectory(prefix="etameter-archive-") as name:
        written: dict[str, _Written] = {}
        db.execute("BEGIN")  # one moment for all tables; in WAL mode nobody waits for who reads
        try:
            for table in TABLES:
                written[table.name] = _write(db, table, low, high, Path(name), store, day)
        finally:
            db.execute("ROLLBACK")
        for table in TABLES:
            if written[table.name].rowids:
                store.publish(Path(name, table.name), table, day)
                pause(0.0)
    for took_s in _forget(db, day, written):
        pause(took_s)
    return Moved(day, {name: len(rows.rowids) for name, rows in written.items()})


def _write(
    db: sqlite3.Connection, table: Table, low: float, high: float, folder: Path, store: Store, day: str
) -> _Written:
    """A file of the day's rows, and of those that an earlier run moved."""
    written = _Written()

    def rows() -> Iterator[tuple[Any, ...]]:
        for read in READ[table.name](db, low, high):
            written.rowids.append(read.rowid)
            written.beside.append(-1 if read.beside is None else read.beside)
            yield read.values

    before = folder / f"{table.name}.before"
    earlier = store.fetch(table, day, before)
    with pq.ParquetWriter(folder / table.name, table.schema, compression="zstd") as writer:
        if earlier:
            for batch in _moved_before(db, table, before, f"{table.name}/day={day}.parquet"):
                writer.write_batch(batch)
        for batch in record_batches(table, rows()):
            writer.write_batch(batch)
    return written


def _moved_before(db: sqlite3.Connection, table: Table, path: Path, name: str) -> Iterator[pa.RecordBatch]:
    """Rows of a day's file that the ledger has no longer."""
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ArchiveError(f"{name} in the archive is damaged ({error})", "move it away, and run this again") from error
    with file:
        told = json.loads((file.schema_arrow.metadata or {}).get(KEY, b"{}"))
        if told != {"table": table.name, "format": FORMAT}:
            raise ArchiveError(f"{name} is not as this version writes it", "archive to another place")
        for batch in file.iter_batches(BATCH_ROWS):
            keys = zip(*(batch.column(column).to_pylist() for column in table.key), strict=True)
            gone = [db.execute(table.there, key).fetchone() is None for key in keys]
            yield batch.filter(pa.array(gone, pa.bool_()))


def _forget(db: sqlite3.Connection, day: str, written: Mapping[str, _Written]) -> Iterator[float]:
    """Deletes what was written and no row that came meanwhile; the seconds that each transaction took."""
    for name, delete in (
        ("readings", _delete_readings),
        ("requests", _delete_requests),
        ("balances", _delete_balances),
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
