"""`etameter proxy` on the command line. What it does is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_ab import Profile


def proxy(
    upstream: Annotated[str, typer.Option(metavar="URL", help="The server, for example http://127.0.0.1:30000.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8001,
    model: Annotated[str | None, typer.Option(help="Name of its model, where the server doesn't tell it.")] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="UUID", help="A GPU that the server runs on, once for each. Needed where there are several."
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="What the server counts for Prometheus, such as http://127.0.0.1:30000/metrics: said is where more was generated there than passed here.",
        ),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Name of the engine; it names the ring.")] = None,
    meter_port: Annotated[int | None, typer.Option(help="Port of the meter's own HTTP server.")] = None,
    ledger: Annotated[Path | None, typer.Option(metavar="FILE", help="File of the durable ledger.")] = None,
    own_meter: Annotated[
        bool | None,
        typer.Option("--meter/--no-meter", help="Start a meter, or leave this engine to one that runs by itself."),
    ] = None,
    simulate_gpu: Annotated[
        Profile | None,
        typer.Option(
            help="Meter a simulated board instead of a real counter. Every figure then says source=simulated."
        ),
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
    """Meter a server that can't be restarted: pass everything on to it, and add energy to its answers.

    For any server that speaks OpenAI's API on this machine. Its steps are guessed from when tokens arrive; figures say attribution_method=proxy.
    """
    from . import config
    from .serving import launch_proxy

    loaded = config.load(
        config_file,
        {
            "meter": {
                "port": meter_port,
                "ledger": ledger,
                "simulate_gpu": simulate_gpu,
                "allow_shared_gpu": allow_shared_gpu,
            },
            "serve": {"engine": engine, "meter": own_meter},
        },
    )
    return launch_proxy.proxy(launch_proxy.Place(upstream, host, port, model, gpu or (), metrics), loaded, config_file)
