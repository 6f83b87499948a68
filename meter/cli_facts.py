"""`etameter facts` on the command line. What it does is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_ab import Json


def facts(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a run of `etameter ab` or `etameter nightly` that has ended."),
    ],
    arm: Annotated[str | None, typer.Option(help="Of a comparison: which arm. By default the control.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="Of a night: which stage. By default the comparison's control.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write facts.json, .svg, .html and .png here.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Print the "inference facts" of a model on a server: what its tokens and answers cost, how right they are, and how much was required.

    Money and CO2 are on it where [footprint] is configured. Needs etameter[facts].
    """
    from . import facts_command

    made = facts_command.found(run, arm, stage)
    typer.echo(facts_command.as_json(made) if as_json else facts_command.as_text(made))
    for path in [] if out is None else facts_command.write(made, out):
        typer.echo(f"wrote {path}", err=True)
    return 0
