"""`etameter archive` and `etameter query` on the command line. What they do is imported when they run."""

from pathlib import Path
from typing import Annotated

import typer

from .errors import ArchiveError

Ledger = Annotated[Path | None, typer.Option(metavar="FILE", help="File of the durable ledger.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Read this file instead of ./etameter.toml.")
]
_NEEDS = frozenset({"duckdb", "fsspec", "pyarrow"})


def archive(
    ledger: Ledger = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL",
            help="Folder, or an object store's address such as s3://bucket/etameter: of this ledger alone. By default that of [meter] archive.",
        ),
    ] = None,
    config_file: ConfigFile = None,
) -> int:
    """Move whole days out of the ledger into Parquet files, and remove the oldest files beyond the limits.

    The meter may run meanwhile; sums of the ledger stay as they are. A timer runs this daily. Needs the extra `nightly`.
    """
    from . import config

    loaded = config.load(config_file, {"meter": {"ledger": ledger}})
    try:
        from .archive import command
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return command.archived(loaded, loaded.ledger, to)


def query(
    sql: Annotated[str, typer.Argument(metavar="SELECT", help="What to ask DuckDB.")],
    ledger: Ledger = None,
    archive: Annotated[
        str | None,
        typer.Option(metavar="DIR|URL", help="Where the archive is. By default that of [meter] archive."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    config_file: ConfigFile = None,
) -> int:
    """Ask about every request, archived or in the ledger still; nothing is written.

    The tables are requests, balances and readings. Needs the extra `nightly`.
    """
    from . import config

    loaded = config.load(config_file)
    try:
        from .archive import command
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return command.queried(loaded, ledger, archive, sql, as_json=as_json)


def _missing(error: ModuleNotFoundError) -> Exception:
    """What to say of a library that isn't installed; any other module that is missing is no user's to mend."""
    name = (error.name or "").partition(".")[0]
    if name not in _NEEDS:
        return error
    return ArchiveError(f"the archive needs {name}, which is not installed", "pip install 'etameter[nightly]'")
