"""`etameter ab` on the command line: its many options. What it does is imported when it runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .errors import ConfigError

NOT_COMPARABLE = 4

Profile = Literal["h100", "a100"]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]


def ab(
    model: Annotated[
        str | None, typer.Argument(help="Model to serve meanwhile; by default the small one that is bundled.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask this running server, on this machine, instead of starting one.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Tasks: the name of a suite, or a file. By default `core`.")] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Ways of asking, with commas between: names, files or NAME=FILE. By default unconstrained,entrace,concise."
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Samples of each task under each arm; by default 1.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="A part with so many conversations at once; by default 8.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="PER_SECOND", help="A part with so many arrivals a second.")
    ] = None,
    closed_loop: Annotated[
        int | None, typer.Option(metavar="TASKS", help="A part at batch 1, with so many of the tasks.")
    ] = None,
    mixed: Annotated[
        bool | None, typer.Option("--mixed", help="A part with all arms at once, by attributed joules.")
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(help="Of each arm; by default as many as leave each block enough to do.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of each answer; by default 1024.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="By default 0, and 0.7 where a task is sampled more than once.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a request may take; by default 600.")] = None,
    until_correct: Annotated[
        int | None, typer.Option(metavar="K", help="Ask up to so often until the answer is correct; by default once.")
    ] = None,
    prefix_cache: Annotated[
        Literal["on", "off", "as-served"] | None,
        typer.Option(help="Whether conversations of a block share it (on, the default). Blocks never do."),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Accuracy is kept if it is no more than this lower; by default 0.05.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every order and every sample; by default 0.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the run is kept; it must hold none.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with the run that is kept there.")] = None,
    texts: Annotated[bool, typer.Option("--texts", help="Keep prompts and answers, and show them.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and how much would find --saving.")
    ] = False,
    saving: Annotated[float, typer.Option(help="For --dry-run: a share of joules per correct answer.")] = 0.1,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="RUN RUN", help="Ask nobody: set two runs that have ended beside each other."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="With --url: the name of the server's engine, by default that of [serve].")
    ] = None,
    profile: Annotated[Profile, typer.Option(help="Board to simulate where there is no counter.")] = "h100",
    as_json: Json = False,
) -> int:
    """Ask the same tasks under several arms, and say what each correct answer cost and whether accuracy was kept.

    The plan is written before the first request. A run that was cut off goes on with --resume. With --compare it ends with 4 where the two runs are not comparable.
    """
    from .prompts import ab_command
    from .prompts.station import Server

    if compare is not None:
        return 0 if ab_command.compare(compare, as_json=as_json) else NOT_COMPARABLE

    if out is not None and resume is not None:
        raise ConfigError("--out and --resume name two runs", "give one of them")
    named = None if arms is None else tuple(name.strip() for name in arms.split(","))
    wishes = ab_command.Wishes(
        suite=suite,
        arms=named,
        samples=samples,
        concurrency=concurrency,
        rate_per_s=rate,
        closed_loop=closed_loop,
        mixed=mixed,
        blocks=blocks,
        max_tokens=max_tokens,
        temperature=temperature,
        timeout_s=timeout,
        until_correct=until_correct,
        prefix_cache=prefix_cache,
        margin=margin,
        seed=seed,
    )
    server = Server(url, model, engine, profile)
    if dry_run:
        return ab_command.dry_run(wishes, server, saving=saving)
    return ab_command.run(wishes, server, out=out, resume=resume, texts=texts, as_json=as_json)
