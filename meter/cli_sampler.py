"""`etameter sampler` on the command line. What it does is imported when it runs."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from .errors import ConfigError


def sampler(
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="Where meters find it. Another address than the loopback's needs a token."
        ),
    ] = "127.0.0.1:9431",
    gpu: Annotated[
        list[str] | None,
        typer.Option(metavar="UUID", help="A GPU to read, once for each; by default all of this machine."),
    ] = None,
    allow_shared_gpu: Annotated[
        bool | None,
        typer.Option(
            "--allow-shared-gpu", help="Meter GPUs split by MIG as a whole. Every figure then says source=shared."
        ),
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Read this file instead of ./etameter.toml.")
    ] = None,
) -> int:
    """Read the GPUs of this machine for a meter on another one, which names it in [meter] nodes.

    For an engine that spans machines: one sampler on each but the scheduler's, where the meter is. Both sides prove that they know [meter] node_token.
    """
    from . import config
    from .nodes import station

    loaded = config.load(config_file, {"meter": {"allow_shared_gpu": allow_shared_gpu}})
    section = loaded.meter
    if section.simulate_gpu is not None:
        raise ConfigError("a sampler has no simulated GPU", "leave out [meter] simulate_gpu")
    came = station.run(
        listen,
        section.node_token or "",
        section.poll_ms,
        gpu or (),
        allow_shared_gpu=section.allow_shared_gpu,
    )
    return 128 + signal.SIGINT if came == signal.SIGINT else 0
