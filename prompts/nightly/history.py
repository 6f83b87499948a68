"""Nights in a folder or an object store, as they were and as tables that DuckDB can be asked about.

    LOCATION/RUN_ID/run.json, stages.parquet, figures.parquet, verdict.json

A location with a scheme (`s3://bucket/runs`) is read through fsspec: what has ended is copied to a temporary folder, once for each history.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Final

from etameter.errors import NightError

from .night import FIGURES_FILE, RUN_FILE, STAGES_FILE, Night, read

VERDICT_FILE: Final = "verdict.json"
_FILES: Final = (FIGURES_FILE, STAGES_FILE, VERDICT_FILE, RUN_FILE)
_TABLES: Final = {
    FIGURES_FILE: "CREATE TABLE figures AS SELECT * FROM read_parquet($files, union_by_name=true)",
    STAGES_FILE: "CREATE TABLE stages AS SELECT * FROM read_parquet($files, union_by_name=true)",
    RUN_FILE: "CREATE TABLE runs AS SELECT * FROM read_json($files, format='auto', union_by_name=true)",
}
_INSTALL: Final = "pip install 'etameter[nightly]'"


@contextmanager
def folder_of(location: str) -> Iterator[Path]:
    """The folder itself, or a copy of what lies in the object store, for as long as the context lasts.

    Raises:
        NightError: there is no such folder, or the store can't be read.
    """
    if "://" not in location:
        folder = Path(location)
        if not folder.is_dir():
            raise NightError(f"{folder} is no folder of runs", "name the one that `etameter nightly` writes to")
        yield folder
        return
    with TemporaryDirectory(prefix="etameter-history-") as copied:
        _fetch(location, Path(copied))
        yield Path(copied)


def nights(folder: Path, name: str | None = None, tell: Callable[[NightError], None] | None = None) -> list[Night]:
    """Those that ended, of one job or of all, oldest first. What is not a run is passed over, and what can't be read where somebody is told of it.

    Raises:
        NightError: a run is damaged, or of a later format, and there is no `tell`.
    """
    found = []
    for path in sorted(folder.glob(f"*/{RUN_FILE}")):
        try:
            found.append(read(path.parent))
        except NightError as error:
            if tell is None:
                raise
            tell(error)
    return sorted((night for night in found if name in (None, night.run.name)), key=lambda night: night.run.run_id)


def unended(folder: Path) -> list[str]:
    """Runs that have begun and neither ended nor been closed."""
    return sorted(path.parent.name for path in folder.glob("*/journal.jsonl") if not (path.parent / RUN_FILE).exists())


def asked(folder: Path, query: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows of a DuckDB query over the tables `figures`, `stages` and `runs`; it can read nothing else and write nothing.

    Raises:
        NightError: DuckDB isn't installed, there is no run yet, or the query is wrong.
    """
    duckdb = _duckdb()
    connection = duckdb.connect(":memory:")
    try:
        for file, statement in _TABLES.items():
            files = [str(path) for path in sorted(folder.glob(f"*/{file}"))]
            if not files:
                raise NightError(
                    f"{folder} holds no run that has ended", "name the one that `etameter nightly` writes to"
                )
            connection.execute(statement, {"files": files})
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        connection.execute(query)
        columns = tuple(str(column[0]) for column in connection.description or ())
        return columns, connection.fetchall()
    except duckdb.Error as error:
        raise NightError(
            f"the query can't be answered ({error})",
            "the tables are figures, stages and runs: try `SELECT * FROM figures LIMIT 5`",
        ) from error
    finally:
        connection.close()


def one(found: Sequence[Night], run_id: str) -> Night:
    """The night of that id, or of an id that begins so.

    Raises:
        NightError: none does, or several.
    """
    matching = [night for night in found if night.run.run_id.startswith(run_id)]
    if len(matching) != 1:
        raise NightError(f"{len(matching)} runs begin with {run_id}", "name one of those that `etameter history` lists")
    return matching[0]


def _fetch(location: str, target: Path) -> None:
    try:
        import fsspec
    except ModuleNotFoundError:
        raise NightError(f"{location} is in an object store, and fsspec is not installed", _INSTALL) from None
    try:
        store, root = fsspec.core.url_to_fs(location)
        for listed in store.glob(f"{root}/*/{RUN_FILE}"):
            run = target / str(listed).rsplit("/", 2)[-2]
            run.mkdir()
            for file in _FILES:
                if store.exists(path := f"{str(listed).rsplit('/', 1)[0]}/{file}"):
                    store.get_file(path, str(run / file))
    except (OSError, ValueError, ImportError) as error:
        raise NightError(
            f"{location} can't be read ({error})", "check the address, and what the store wants to know of you"
        ) from error


def _duckdb() -> ModuleType:
    try:
        import duckdb
    except ModuleNotFoundError:
        raise NightError("queries need duckdb, which is not installed", _INSTALL) from None
    return duckdb
