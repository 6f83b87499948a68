"""`etameter arithmetic` on the command line. What it does is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_ab import Json


def arithmetic(
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Replace an input, in its own unit or in one that is named: --set eta_before=0.5, --set 'price=90 USD/MWh'.",
        ),
    ] = None,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            "--measured",
            "--run",
            metavar="RUN",
            help="Replace what a run of `etameter ab` or `etameter nightly` tells, or the JSON of `etameter demo` or `etameter eta branching` in a file. Needs etameter[ab]; may be repeated.",
        ),
    ] = None,
    curve: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Lines of hour,value over a day, in money or grams of a kWh: what moving load saves."
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write it as a page with plots, too. Needs etameter[ab]."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Recompute what the three documents claim that etameter was made from: printed, recomputed, and whether the two agree.

    Inputs have names, and any of them may be replaced; docs/arithmetic.md lists them. What a measured input is made of, it stays: simulated joules say so.
    """
    from . import arithmetic_command

    inputs = arithmetic_command.inputs_of(settings or (), measured or (), curve)
    if page is not None:
        arithmetic_command.write(inputs, page)
        typer.echo(f"wrote {page}", err=True)
    typer.echo(arithmetic_command.run(inputs, as_json=as_json))
    return 0
