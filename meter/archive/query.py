"""DuckDB's answer to a question about the archive and what is in the ledger still, as one table each: see `tables`."""

import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from etameter.errors import ArchiveError

from .days import opened
from .store import File, Store
from .tables import ALL_TABLES, READ, Table, record_batches

_CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_DAY: Final = "CAST(make_timestamp(CAST(wall_time * 1000000 AS BIGINT)) AS DATE)"
_TABLES: Final = "the tables are requests, balances, readings, texts, rereadings and reattributions: try `SELECT * FROM requests LIMIT 5`"


Answer = tuple[tuple[str, ...], list[tuple[Any, ...]]]
"""Columns and rows."""


def asked(store: Store, ledger: Path | None, query: str) -> Answer:
    """Without a ledger, of the archive alone. The query can read nothing else, and write nothing. A row that the ledger has counts once, though a file may have it, too.

    Raises:
        ArchiveError: the archive or the ledger can't be read, or the query is wrong.
    """
    try:
        with closing(connected(store)) as connection:
            _attach(connection, store, ledger)
            connection.execute(only_read(connection, query))
            return tuple(str(column[0]) for column in connection.description or ()), connection.fetchall()
    except duckdb.Error as error:
        raise unanswered(store, error) from error
    except sqlite3.Error as error:
        raise ArchiveError(f"{ledger} can't be read ({error})", "name a ledger with --ledger") from error
    except OSError as error:
        raise unread(store, error) from error


def unanswered(store: Store, error: duckdb.Error) -> ArchiveError:
    """What DuckDB's error means: the store's fault, or the query's."""
    if store.stall is not None:
        return unread(store, store.stall)
    said = str(error).partition("\n")[0]
    return ArchiveError(f"the query can't be answered ({said})", _TABLES)


def unread(store: Store, error: Exception) -> ArchiveError:
    """It refuses, or stalls."""
    said = str(error).strip().partition("\n")[0]
    return ArchiveError(
        f"{store.location} can't be read ({said})", "see that it answers, or name the place of the archive"
    )


def connected(store: Store) -> duckdb.DuckDBPyConnection:
    """DuckDB, which can read the archive. What went wrong with that before is past."""
    store.begin_to_read()
    connection = duckdb.connect(":memory:", config=_CONFIG)
    connection.register_filesystem(store.read_by)
    return connection


def locked(connection: duckdb.DuckDBPyConnection, addresses: Sequence[str]) -> None:
    """It reads no more than these."""
    connection.execute(f"SET allowed_paths = {_texts(addresses)}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _attach(connection: duckdb.DuckDBPyConnection, store: Store, ledger: Path | None) -> None:
    """The ledger first: a day that is moved meanwhile is in its copy, and at worst in a file, too."""
    copy_live(connection, ledger)
    files = store.files()
    if ledger is None and not files:
        raise ArchiveError(f"{store.location} holds no day", "name the place of the archive, or a ledger")
    for table in ALL_TABLES:
        own = [file for file in files if file.table == table.name]
        connection.execute(f"CREATE VIEW {table.name} AS {all_of(connection, table, store, own)}")
    locked(connection, store.addresses(files))


def copy_live(connection: duckdb.DuckDBPyConnection, ledger: Path | None) -> None:
    """Into tables `live_…`, those of what the ledger never has among them."""
    with closing(sqlite3.connect(":memory:") if ledger is None else opened(ledger, "ro")) as db:
        db.execute("BEGIN")  # one moment for all tables
        for table in ALL_TABLES:
            here = READ[table.name](db, -math.inf, math.inf) if ledger and table.there else ()
            _keep(connection, f"CREATE TABLE live_{table.name} AS", table.schema.empty_table())
            for batch in record_batches(table, (read.values for read in here)):
                _keep(connection, f"INSERT INTO live_{table.name}", pa.Table.from_batches([batch]))


def _keep(connection: duckdb.DuckDBPyConnection, where: str, rows: pa.Table) -> None:
    connection.register("rows_here", rows)
    connection.execute(f"{where} SELECT * FROM rows_here")  # noqa: S608  # our own words
    connection.unregister("rows_here")


def all_of(connection: duckdb.DuckDBPyConnection, table: Table, store: Store, files: Sequence[File]) -> str:
    """A SELECT of a table's rows, live ones and those of its files; each with its `day`, by which files are left unread."""
    here = days_here(connection, table)
    selects = [f"SELECT *, {_DAY if table.there else 'CAST(NULL AS DATE)'} AS day FROM live_{table.name}"]  # noqa: S608  # our own words
    same = " AND ".join(f"live.{column} = archived.{column}" for column in table.key)
    for old in (True, False):  # apart, since their columns differ
        for both in (True, False):
            own = [file for file in files if (file.part is None) is old and (file.day in here) is both]
            if not own:
                continue
            missing = f" WHERE NOT EXISTS (SELECT 1 FROM live_{table.name} AS live WHERE {same})" if both else ""  # noqa: S608
            selects.append(f"SELECT * FROM ({rows_of(store.addresses(own))}) AS archived{missing}")  # noqa: S608
    return " UNION ALL BY NAME ".join(selects)


def days_here(connection: duckdb.DuckDBPyConnection, table: Table) -> frozenset[str]:
    """Of which days there are live rows: one of them may be in a file of that day, too."""
    if not table.there:
        return frozenset()
    found = connection.execute(f"SELECT DISTINCT strftime({_DAY}, '%Y-%m-%d') FROM live_{table.name}").fetchall()  # noqa: S608  # our own words
    return frozenset(day for (day,) in found)


def rows_of(addresses: Sequence[str]) -> str:
    """A SELECT of files of one version."""
    return (
        f"SELECT * EXCLUDE (filename), CAST(regexp_extract(filename, '.*/day=([0-9-]+)', 1) AS DATE) AS day "  # noqa: S608  # our own words
        f"FROM read_parquet({_texts(addresses)}, filename = true, hive_partitioning = false)"
    )


def only_read(connection: duckdb.DuckDBPyConnection, query: str) -> str:
    """The query as part of another: at the top, DuckDB's WITH may hold a COPY that writes to the files which it may read."""
    inner = query.strip().rstrip(";")
    within = f"SELECT * FROM (\n{inner}\n)"  # noqa: S608  # checked: it is one whole SELECT
    for text in (inner, within):
        if [statement.type for statement in connection.extract_statements(text)] != [duckdb.StatementType.SELECT]:
            raise ArchiveError("the query is no SELECT, or more than one", _TABLES)
    return within


def _texts(texts: Sequence[str]) -> str:
    """As a list of SQL."""
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"
