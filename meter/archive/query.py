"""DuckDB's answer to a question about the archive and what is in the ledger still: tables `requests`, `balances`, `readings`."""

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
from .store import Store
from .tables import READ, TABLES, Table, record_batches

_CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_TABLES: Final = "the tables are requests, balances and readings: try `SELECT * FROM requests LIMIT 5`"


def asked(store: Store, ledger: Path | None, query: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows; without a ledger, of the archive alone. The query can read nothing else, and write nothing. A row that the ledger has counts once, though a file may have it, too.

    Raises:
        ArchiveError: the archive or the ledger can't be read, or the query is wrong.
    """
    try:
        with closing(duckdb.connect(":memory:", config=_CONFIG)) as connection:
            connection.register_filesystem(store.system)
            _attach(connection, store, ledger)
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            connection.execute(_only_read(connection, query))
            columns = tuple(str(column[0]) for column in connection.description or ())
            return columns, connection.fetchall()
    except duckdb.Error as error:
        said = str(error).partition("\n")[0]
        raise ArchiveError(f"the query can't be answered ({said})", _TABLES) from error
    except sqlite3.Error as error:
        raise ArchiveError(f"{ledger} can't be read ({error})", "name a ledger with --ledger") from error
    except OSError as error:
        raise ArchiveError(f"{store.location} can't be read ({error})", "name the place of the archive") from error


def _attach(connection: duckdb.DuckDBPyConnection, store: Store, ledger: Path | None) -> None:
    """The ledger first: a day that is moved meanwhile is in its copy, and at worst in a file, too."""
    with closing(sqlite3.connect(":memory:") if ledger is None else opened(ledger, "ro")) as db:
        db.execute("BEGIN")  # one moment for all tables
        for table in TABLES:
            here = READ[table.name](db, -math.inf, math.inf) if ledger else ()
            _keep(connection, f"CREATE TABLE live_{table.name} AS", table.schema.empty_table())
            for batch in record_batches(table, (read.values for read in here)):
                _keep(connection, f"INSERT INTO live_{table.name}", pa.Table.from_batches([batch]))
    files = store.files()
    if ledger is None and not files:
        raise ArchiveError(f"{store.location} holds no day", "name the place of the archive, or a ledger")
    for table in TABLES:
        own = store.addresses([file for file in files if file.table == table.name])
        connection.execute(f"CREATE VIEW {table.name} AS {_all_of(table, own)}")
    connection.execute(f"SET allowed_paths = {_texts(store.addresses(files))}")


def _keep(connection: duckdb.DuckDBPyConnection, where: str, rows: pa.Table) -> None:
    connection.register("rows_here", rows)
    connection.execute(f"{where} SELECT * FROM rows_here")  # noqa: S608  # our own words
    connection.unregister("rows_here")


def _all_of(table: Table, files: Sequence[str]) -> str:
    live = f"SELECT * FROM live_{table.name}"  # noqa: S608
    if not files:
        return live
    same = " AND ".join(f"live.{column} = archived.{column}" for column in table.key)
    return (
        f"{live} UNION ALL BY NAME SELECT * FROM read_parquet({_texts(files)}, union_by_name = true) AS archived "  # noqa: S608
        f"WHERE NOT EXISTS (SELECT 1 FROM live_{table.name} AS live WHERE {same})"
    )


def _only_read(connection: duckdb.DuckDBPyConnection, query: str) -> str:
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
