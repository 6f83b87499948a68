"""`etameter history` on the command line. What it does is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .errors import ConfigError


def history(
    location: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUNS]",
            help="Folder of runs, or an object store's address such as s3://bucket/runs. By default that of [nightly].",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only this job's nights.")] = None,
    series: Annotated[
        str | None,
        typer.Option(metavar="'STAGE METRIC'", help="Plot a series over the nights, such as 'batch-8 j_per_token'."),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="RUN RUN",
            help="Judge the second by the first. Exits as a night does: 3 regression, 4 not comparable.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page of a night, the last one or that of --run.")
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN", help="With --html: which night.")] = None,
    sql: Annotated[
        str | None, typer.Option(metavar="QUERY", help="Ask DuckDB; the tables are figures, stages and runs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> int:
    """List the nights of `etameter nightly`, plot a series, compare two, or ask about all of them.

    A run id may be shortened to what no other begins with.
    """
    if sum(each is not None for each in (series, compare, html, sql)) > 1:
        raise ConfigError("--series, --compare, --html and --sql are asked for together", "one of them at a time")
    if run is not None and html is None:
        raise ConfigError("--run says which night --html shows", "give both")
    from etameter.prompts.nightly import history_command

    if location is None:
        location = str(history_command.usual())
    console = None if as_json else Console()
    if series is not None:
        return history_command.plotted(location, series, name, console)
    if compare is not None:
        return history_command.compared(location, *compare, console)
    if html is not None:
        return history_command.reported(location, run, name, html)
    if sql is not None:
        return history_command.queried(location, sql, console)
    return history_command.listed(location, name, console)
