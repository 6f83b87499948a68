"""The command line. Each command imports what it needs when it runs, so that `etameter --help` stays fast."""

import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from .cli_ab import NOT_COMPARABLE, Json, Profile, ab
from .cli_archive import archive, query, rescore
from .cli_arithmetic import arithmetic
from .cli_eta import audits, eta
from .cli_facts import facts
from .cli_history import history
from .cli_nightly import nightly
from .cli_proxy import proxy
from .cli_sampler import sampler
from .errors import ConfigError, CounterError, EngineError, EtameterError

REGRESSION = 3
INTERRUPTED = 130

app = typer.Typer(
    name="etameter",
    help="The live energy meter for LLM inference: joules per request, split into prompt and output tokens.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_CONFIG_HELP = "Read this file instead of ./etameter.toml."
SimulateGpu = Annotated[
    Profile | None,
    typer.Option(help="Meter a simulated board instead of a real counter. Every figure then says source=simulated."),
]
AllowSharedGpu = Annotated[
    bool | None,
    typer.Option(
        "--allow-shared-gpu", help="Meter GPUs split by MIG as a whole. Every figure then says source=shared."
    ),
]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave: 0 done, 2 wrong use or environment (one line says what to do), 130 interrupted."""
    try:
        code = app(args=arguments, prog_name="etameter", standalone_mode=False)
    except EtameterError as error:
        _leave(str(error), error.exit_code)
    except typer.TyperException as error:  # an unknown option, command or value
        message = " ".join(error.format_message().split()).removesuffix(".")
        _leave(f"{message}: `etameter --help` and `etameter COMMAND --help` say what there is", EtameterError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    sys.exit(code)


def _leave(message: str, code: int) -> NoReturn:
    print(f"etameter: {message}", file=sys.stderr)
    sys.exit(code)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"etameter {version('etameter')}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(EtameterError.exit_code)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model, as `vllm serve` takes it.")],
    engine: Annotated[str | None, typer.Option(help="Name of the engine; it names the ring.")] = None,
    meter_port: Annotated[int | None, typer.Option(help="Port of the meter's own HTTP server.")] = None,
    ledger: Annotated[Path | None, typer.Option(metavar="FILE", help="File of the durable ledger.")] = None,
    own_meter: Annotated[
        bool | None,
        typer.Option("--meter/--no-meter", help="Start a meter, or leave this engine to one that runs by itself."),
    ] = None,
    settle_responses: Annotated[
        bool | None,
        typer.Option("--settle-responses", help="Let the end of a response wait for its settled figure, up to 300 ms."),
    ] = None,
    simulate_gpu: SimulateGpu = None,
    allow_shared_gpu: AllowSharedGpu = None,
    config_file: Annotated[  # plain --config is vLLM's
        Path | None, typer.Option("--meter-config", metavar="FILE", help=_CONFIG_HELP)
    ] = None,
) -> int:
    """Serve MODEL with vLLM and meter every request.

    Any option not named here goes to vLLM as it is, and so does everything after `--`.
    """
    from . import config
    from .serving import launch

    if model.startswith("-"):
        raise ConfigError(f"{model} stands where the model should", "name the model first, vLLM's options after it")

    loaded = config.load(
        config_file,
        {
            "meter": {
                "port": meter_port,
                "ledger": ledger,
                "simulate_gpu": simulate_gpu,
                "allow_shared_gpu": allow_shared_gpu,
            },
            "serve": {"engine": engine, "meter": own_meter, "settle_responses": settle_responses},
        },
    )
    if loaded.serve.meter and loaded.meter.simulate_gpu is None:
        _refuse_idle_gpu()
    return launch.serve(model, context.args, loaded, config_file)


def _refuse_idle_gpu() -> None:
    """Raises EngineError where the meter would read a GPU that vLLM does not use: its idle energy is no request's."""
    from .counters import nvml
    from .serving import cpu_engine

    built = cpu_engine.installed_version() or ""
    if not built.endswith("cpu"):
        return
    try:
        for counter in nvml.discover(allow_shared=True):
            counter.close()
    except CounterError:
        return  # there is no NVML, or one that fails: then the meter says so itself
    raise EngineError(
        f"there is a GPU, but the vLLM here ({built}) is built for CPUs",
        "install vLLM for NVIDIA GPUs into an environment of its own, or meter a simulated board (--simulate-gpu h100)",
    )


def _compute_on_one_core() -> None:
    """Let numpy have no threads, which would wait for each other by spinning on cores that are the server's. It asks when it is imported."""
    for library in ("OPENBLAS", "MKL", "OMP"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


@app.command()
def meter(
    ring: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Ring of an engine; give one for each. By default that of [serve] engine alone."
        ),
    ] = None,
    ledger: Annotated[Path | None, typer.Option(metavar="FILE", help="File of the durable ledger.")] = None,
    board: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="What a simulated board publishes, one for each --ring; needs --simulate-gpu."
        ),
    ] = None,
    simulate_gpu: SimulateGpu = None,
    allow_shared_gpu: AllowSharedGpu = None,
    host: Annotated[str | None, typer.Option(help="Address of the meter's HTTP server.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the meter's HTTP server.")] = None,
    socket: Annotated[Path | None, typer.Option(metavar="FILE", help="Socket that the middleware talks to.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", metavar="FILE", help=_CONFIG_HELP)] = None,
) -> int:
    """Run the meter alone, for engines that are started otherwise."""
    _compute_on_one_core()
    from . import config, daemon

    if board and simulate_gpu is None:
        raise ConfigError("--board needs --simulate-gpu", "name the board's profile, h100 or a100")
    loaded = config.load(
        config_file,
        {
            "meter": {
                "host": host,
                "port": port,
                "ledger": ledger,
                "simulate_gpu": simulate_gpu,
                "allow_shared_gpu": allow_shared_gpu,
            }
        },
    )
    rings = list(dict.fromkeys(ring or [config.ring_path(loaded.serve.engine)]))
    boards = board or []
    if loaded.meter.simulate_gpu is not None:
        boards = boards or [config.board_of(each) for each in rings]
        if len(boards) != len(rings):
            raise ConfigError(
                f"there are {len(boards)} boards for {len(rings)} rings", "give a --board for each --ring"
            )
    came = daemon.run(loaded, rings, boards, socket or config.socket_path())
    return INTERRUPTED if came == signal.SIGINT else 0


@app.command()
def record(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The recording, a zip file; it must not exist yet.")],
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after so long; by default at Ctrl-C.")] = None,
    ring: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ring of the engine. By default that of [serve] engine.")
    ] = None,
    board: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What a simulated board publishes; needs --simulate-gpu.")
    ] = None,
    simulate_gpu: SimulateGpu = None,
    config_file: Annotated[Path | None, typer.Option("--config", metavar="FILE", help=_CONFIG_HELP)] = None,
) -> int:
    """Record what an engine does and what the counters say, for a bug report or a test.

    Runs beside the meter that is there, if one is. No text of prompts or answers is in a recording, and no id that a client chose.
    """
    _compute_on_one_core()
    from . import config, daemon, playback

    if board is not None and simulate_gpu is None:
        raise ConfigError("--board needs --simulate-gpu", "name the board's profile, h100 or a100")
    loaded = config.load(config_file, {"meter": {"simulate_gpu": simulate_gpu}})
    print(f"recording to {out}: Ctrl-C ends it", file=sys.stderr)
    ring = ring or config.ring_path(loaded.serve.engine)
    if loaded.meter.simulate_gpu is not None:
        board = board or config.board_of(ring)
    daemon.record(loaded, ring, board, out, seconds)
    print(playback.report(playback.replay(out)))
    return 0


@app.command()
def replay(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="What `etameter record` has written. Without it, a recording of the demo, which is simulated."
        ),
    ] = None,
    receipt: Annotated[str | None, typer.Option(metavar="ID", help="Show only the receipt of this id.")] = None,
    as_json: Json = False,
) -> int:
    """Compute every receipt of a recording again, and compare it with the recorded one.

    Ends with 3 where this version gives other figures than the one that recorded, beyond rounding.
    """
    from . import playback

    replayed = playback.replay(playback.OF_DEMO if file is None else file)
    print(playback.as_json(replayed, receipt) if as_json else playback.report(replayed, receipt))
    return 0 if replayed.worst <= playback.SAME else REGRESSION


@app.command()
def verify(
    url: Annotated[str, typer.Option(help="The server, started with etameter.")] = "http://127.0.0.1:8000",
    meter_url: Annotated[str, typer.Option(help="Its meter.")] = "http://127.0.0.1:9430",
    requests: Annotated[int, typer.Option(min=3, max=256, help="How many requests a phase has.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each request.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=8, help="Of each request.")] = 64,
    as_json: Json = False,
) -> int:
    """Send the same work alone and at once, and see whether the receipts add up.

    For a server that nobody else uses meanwhile. Ends with 4 where somebody does, with 3 where the receipts do not add up.
    """
    import asyncio

    from . import verify as verification

    work = verification.Work(requests, prompt_tokens, output_tokens)
    found = asyncio.run(verification.measure(url.rstrip("/"), meter_url.rstrip("/"), work))
    print(verification.as_json(found) if as_json else verification.report(found))
    if not found.verdict.undisturbed:
        return NOT_COMPARABLE
    return 0 if found.verdict.good else REGRESSION


@app.command()
def demo(
    url: Annotated[str | None, typer.Option(help="Meter this running server instead of starting one.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to serve; by default the small one that is bundled.")] = None,
    profile: Annotated[Profile, typer.Option(help="Board to simulate where there is no counter.")] = "h100",
    as_json: Json = False,
) -> int:
    """Ask eight tasks of a real vLLM server and print what each request cost."""
    from . import demo as demonstration

    return demonstration.run(url=url, model=model, profile=profile, as_json=as_json)


@app.command()
def doctor(
    seconds: Annotated[
        float, typer.Option(min=0.3, max=60.0, help="How long each of about 14 looks at the counters takes.")
    ] = 1.5,
    burst: Annotated[
        bool, typer.Option("--burst", help="Load the GPUs in bursts, to find the counter's lag. Needs torch.")
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND", help="Compare with the watts that this prints, e.g. of a BMC. Takes 2 minutes."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Say what this machine can measure, and how well.

    Exits 2 where nothing can be measured.
    """
    from . import doctor as examination

    return examination.run(seconds=seconds, burst=burst, reference=reference, as_json=as_json)


@app.command()
def top(
    url: Annotated[str, typer.Option(help="The meter.")] = "http://127.0.0.1:9430",
    once: Annotated[bool, typer.Option("--once", help="Print it once and leave.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one snapshot, as the meter tells it, and leave.")
    ] = False,
) -> int:
    """Watch the meter: power, joules per token, arms, the balance and the latest requests, until Ctrl-C.

    The same is on the meter's own page, at the same address.
    """
    from . import top as watching

    return watching.run(url=url, once=once, as_json=as_json)


@app.command()
def play(
    url: Annotated[str, typer.Option(help="The server, started with etameter.")] = "http://127.0.0.1:8000",
    arms: Annotated[str, typer.Option(help="Ways of asking, with commas between: names, files or NAME=FILE.")] = (
        "unconstrained,entrace"
    ),
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Ask this once and leave, instead of what is typed.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Where an answer is cut off.")] = 1024,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=2.0, help="By default what the server takes.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Type a prompt, and see it answered under two arms side by side: slack greyed, joules, tokens and a bound on η.

    The slack is found here, in English answers; joules are what the server's meter tells at the end of each.
    """
    from .prompts import play as playing

    return playing.run(
        url=url,
        named=[name.strip() for name in arms.split(",")],
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        as_json=as_json,
    )


app.command()(proxy)
app.command()(sampler)
app.command()(audits)
app.command()(ab)
app.command()(nightly)
app.command()(history)
app.command()(archive)
app.command()(query)
app.command()(rescore)
app.command()(arithmetic)
app.command()(facts)


prompts = typer.Typer(help="The tasks and the ways of asking that come with etameter, and your own.")
app.add_typer(prompts, name="prompts")


@prompts.command("check")
def check_prompts(
    named: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE|NAME=FILE|NAME...",
            help="Tasks (JSON lines; GSM8K, IFEval and HumanEval, too), arms (.toml, or a text that is the system prompt), or names "
            "of what is built in. By default all of that.",
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Check suites and arms, and ask nobody.

    Every reference has to pass its checker, and every wrong answer, the prompt itself and an empty answer have to fail. Exits 2 where something is wrong.
    """
    from .prompts import check

    reports = check.check_all(named or [])
    print(check.as_json(reports) if as_json else "\n".join(map(str, reports)))
    return EtameterError.exit_code if any(report.problems for report in reports) else 0


@prompts.command("list")
def list_prompts() -> int:
    """List the suites, generators and arms that are built in."""
    from .prompts import check

    print(check.listing())
    return 0


app.add_typer(eta, name="eta")
