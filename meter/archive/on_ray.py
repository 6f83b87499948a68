"""The same on Ray Data: questions of the archive, and partitions to score, on as many machines as the cluster has.

Ray spreads the work, and does again what a worker that died was doing; what is done of a file is the same as on one machine. So a worker that
wrote a partition, and died before it said so, leaves one that stands. Nodes need the same etameter and libraries, and have to reach the archive:
an object store, or a folder that all of them have.
"""

import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import ray
import ray.data

from etameter.errors import ArchiveError

from .query import Answer, all_of, connected, copy_live, days_here, locked, only_read, rows_of, unanswered, unread
from .rescoring import Outcome, Partition, Scoring, done
from .split import Halves, halves
from .store import File, Store
from .tables import ALL_TABLES

CHUNKS_A_CORE: Final = 4
"""Files are read in so many pieces of work for each core that there is."""
FAILED: Final = "a part failed"
"""The one column of an answer that is none."""
BY_NAME: Final = {table.name: table for table in ALL_TABLES}


def start() -> None:
    """Joins the cluster that `RAY_ADDRESS` names or that runs here, else starts one on this machine alone."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def asked(store: Store, ledger: Path | None, query: str) -> Answer:
    """As `query.asked`, of one table, by what the parts' answers come to together.

    Raises:
        ArchiveError: the archive or the ledger can't be read, the query is wrong, or can't be asked of parts.
    """
    try:
        with closing(connected(store)) as connection:
            copy_live(connection, ledger)  # first: a day that is moved meanwhile is in both
            files = store.files()
            if ledger is None and not files:
                raise ArchiveError(f"{store.location} holds no day", "name the place of the archive, or a ledger")
            locked(connection, store.addresses(files))
            split = _split(connection, store, query)
            table = BY_NAME[split.table]
            files, here = [file for file in files if file.table == table.name], days_here(connection, table)
            mine = all_of(connection, table, store, [file for file in files if file.day in here])
            connection.execute(f"CREATE OR REPLACE VIEW {table.name} AS {mine}")
            answers = [connection.sql(split.each).to_arrow_table()]
            answers += _of_parts(store, [file for file in files if file.day not in here], split)
            connection.register("answers", pa.concat_tables(answers))
            connection.execute(split.all)
            return tuple(str(column[0]) for column in connection.description or ()), connection.fetchall()
    except duckdb.Error as error:
        raise unanswered(store, error) from error
    except sqlite3.Error as error:
        raise ArchiveError(f"{ledger} can't be read ({error})", "name a ledger with --ledger") from error
    except (OSError, ray.exceptions.RayError) as error:
        raise unread(store, error) from error


def _split(connection: duckdb.DuckDBPyConnection, store: Store, query: str) -> Halves:
    """With the tables as they are, but for rows of files."""
    for table in BY_NAME.values():
        connection.execute(f"CREATE VIEW {table.name} AS {all_of(connection, table, store, [])}")
    only_read(connection, query)
    split = halves(connection, query.strip().rstrip(";"))
    if split.table not in BY_NAME:
        raise ArchiveError(f"there is no table {split.table}", f"the tables are {', '.join(BY_NAME)}")
    return split


def rescore(works: Sequence[Partition], scoring: Scoring) -> Iterator[Outcome]:
    """As they are done."""
    if not works:
        return
    start()
    rows = [{"place": place} for place in range(len(works))]
    data = ray.data.from_items(rows, override_num_blocks=len(works)).map(partial(_score, list(works), scoring))
    for told in data.iter_rows():
        yield Outcome(**told)


def _score(works: Sequence[Partition], scoring: Scoring, row: Mapping[str, int]) -> dict[str, Any]:
    return asdict(done(works[row["place"]], scoring))


def _of_parts(store: Store, files: Sequence[File], split: Halves) -> list[pa.Table]:
    if not files:
        return []
    start()
    chunks = [
        chunk for old in (True, False) for chunk in _chunks([file for file in files if (file.part is None) is old])
    ]
    rows = [{"place": place} for place in range(len(chunks))]
    addresses = [store.addresses(chunk) for chunk in chunks]
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        partial(_answer, store.address, addresses, split), batch_size=None, batch_format="pyarrow"
    )
    answers = [ray.get(block) for block in data.to_arrow_refs()]
    for answer in answers:
        if FAILED in answer.column_names:
            raise ArchiveError(answer[FAILED][0].as_py(), "see to it, and ask again")
    return answers


def _answer(location: str, addresses: Sequence[Sequence[str]], split: Halves, batch: pa.Table) -> pa.Table:
    """Of some files, on whatever machine this runs."""
    store = Store(location)
    answers = []
    for place in batch["place"].to_pylist():
        with closing(connected(store)) as connection:
            connection.execute("SET threads = 1")  # a core is what Ray has given it
            try:
                connection.execute(f"CREATE VIEW {split.table} AS {rows_of(addresses[place])}")
                locked(connection, addresses[place])
                answers.append(connection.sql(split.each).to_arrow_table())
            except (duckdb.Error, OSError) as error:  # told in one line, which Ray's tracebacks are not
                said = str(store.stall or error).partition("\n")[0]
                return pa.table({FAILED: [f"{', '.join(addresses[place])} can't be read ({said})"]})
    return pa.concat_tables(answers)


def _chunks(files: Sequence[File]) -> list[list[File]]:
    """Of about the same size."""
    cores = int(ray.cluster_resources().get("CPU", 1))
    most = sum(file.size_bytes for file in files) / (CHUNKS_A_CORE * cores)
    chunks: list[list[File]] = []
    size_bytes = 0.0
    for file in files:
        if not chunks or size_bytes >= most:
            chunks.append([])
            size_bytes = 0.0
        chunks[-1].append(file)
        size_bytes += file.size_bytes
    return chunks
