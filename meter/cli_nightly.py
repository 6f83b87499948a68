"""The command line of `etameter nightly`."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_ab import Json


def nightly(
    config_file: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="The job: a file like etameter.toml, with a section [nightly].")
    ],
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Then try the settings of sweep_max_num_seqs, sweep_power_w and sweep_clock_mhz, one at a time.",
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Measure the same work as every night: idle power, loads, arms and other tools, to a folder of the run.

    A night that was cut off goes on when the same command is given within six hours. Ends with 0 where all was measured, 2 where something that it needs was away,
    3 where it finds a regression, 4 where a budget ended it or nothing can be compared, 5 where what was measured wandered: then it says what to mend.
    """
    from .prompts.nightly import command

    return command.run(config_file, sweep=sweep, as_json=as_json)
