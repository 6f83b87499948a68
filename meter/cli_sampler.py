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
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Keep a sampler on every other node with GPUs of the Ray cluster there (auto: the one that runs here), each at its node's address and the port of --listen. Needs the extra ray.",
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
    """Read the GPUs of this machine for a meter on another one, which names it in [meter] nodes.

    For an engine that spans machines: one sampler on each but the scheduler's, where the meter is. Both sides prove that they know [meter] node_token.
    """
    from . import config
    from .nodes import address, on_ray, station

    loaded = config.load(config_file, {"meter": {"allow_shared_gpu": allow_shared_gpu}})
    section = loaded.meter
    if section.simulate_gpu is not None:
        raise ConfigError("a sampler has no simulated GPU", "leave out [meter] simulate_gpu")
    token, shared = section.node_token or "", section.allow_shared_gpu
    if ray is None:
        came = station.run(listen, token, section.poll_ms, gpu or (), allow_shared_gpu=shared)
    else:
        _, port = address.address_of(listen)
        order = on_ray.Order(port, token, int(section.poll_ms * 1e6), tuple(gpu or ()), shared)
        came = on_ray.run(ray, order)
    return 128 + signal.SIGINT if came == signal.SIGINT else 0
