"""`etameter archive`, `etameter query` and `etameter rescore` on the command line. What they do is imported when they run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .errors import ArchiveError

Ledger = Annotated[Path | None, typer.Option(metavar="FILE", help="File of the durable ledger.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Read this file instead of ./etameter.toml.")
]
Archive = Annotated[
    str | None, typer.Option(metavar="DIR|URL", help="Where the archive is. By default that of [meter] archive.")
]
Archives = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|URL",
        help="Where the archive is, or with a * where several are. By default that of [meter] archive.",
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Where: in this process, or on Ray, which needs the extra `ray` (RAY_ADDRESS names a cluster)."),
]
_NEEDS = {"duckdb": "nightly", "fsspec": "nightly", "pyarrow": "nightly", "ray": "nightly,ray"}
"""Library → extras that bring it."""


def archive(
    ledger: Ledger = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL",
            help="Folder, or an object store's address such as s3://bucket/etameter. By default that of [meter] archive.",
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
    archive: Archives = None,
    engine: Engine = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    config_file: ConfigFile = None,
) -> int:
    """Ask about every request, archived or in the ledger still; nothing is written.

    The tables are requests, balances, readings, texts, rereadings and reattributions. Needs the extra `nightly`.
    With --engine ray, a SELECT of sums, counts, means and extremes of one table, or of its rows.
    """
    from . import config

    loaded = config.load(config_file)
    try:
        from .archive import command

        if engine == "ray":
            from .archive import on_ray  # noqa: F401  # whether it is there
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return command.queried(loaded, ledger, archive, sql, engine, as_json=as_json)


def rescore(
    archive: Archive = None,
    recordings: Annotated[
        str | None,
        typer.Option(metavar="DIR|URL", help="Recordings (`etameter record`), in any folder there, to attribute anew."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Weights as `etameter eta train` makes them. By default those of this version."
        ),
    ] = None,
    engine: Engine = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    config_file: ConfigFile = None,
) -> int:
    """Classify archived texts anew, and attribute recordings anew, beside what the archive has of them.

    What is done already is left as it is: run it again after it was stopped, or on several machines. Texts are archived where [meter] store_text is set. Ends with
    2 where a partition can't be done. Needs the extra `nightly`.
    """
    from . import config

    loaded = config.load(config_file)
    try:
        from .archive import command

        if engine == "ray":
            from .archive import on_ray  # noqa: F401  # whether it is there
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return command.rescored(loaded, archive, recordings, weights, engine, as_json=as_json)


def _missing(error: ModuleNotFoundError) -> Exception:
    """What to say of a library that isn't installed; any other module that is missing is no user's to mend."""
    name = (error.name or "").partition(".")[0]
    if name not in _NEEDS:
        return error
    return ArchiveError(f"the archive needs {name}, which is not installed", f"pip install 'etameter[{_NEEDS[name]}]'")
