"""`etameter eta …` on the command line. What it does is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_ab import Json
from .errors import EtameterError

eta = typer.Typer(help="η: which share of the output was required.")


@eta.command("classify")
def eta_classify(
    file: Annotated[Path, typer.Argument(help='Responses: JSON lines of {"id", "prompt", "response"}.')],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the labelled spans go, a line a response.")],
) -> int:
    """Name the slack in responses, as far as its wording and place show it.

    What is not named is not thereby required: `eta_lenient` is an upper bound, and `eta_strict` is null.

    A span's label is one of P, M, C, D, J; X for slack whose category is not sure; null for what is not shown to be slack. `p_slack` is null where nothing is known.
    """
    from . import eta_command

    print(eta_command.classify_file(file, out))
    return 0


@eta.command("audit")
def eta_audit(
    file: Annotated[Path, typer.Argument(help='Responses: JSON lines of {"id", "prompt", "response"}.')],
    batch_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the judge's questions go, as an OpenAI batch.")
    ] = None,
    batch_in: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The judge's replies, as that batch gave them; needs --out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the labelled spans go, a line a response.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="A server to ask at once, under the arm `audit`; needs --out.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The judge, as its server calls it. With --url by default its first model."),
    ] = None,
) -> int:
    """Let a model that you choose judge which spans of responses were required.

    Each span is asked for twice, in opposite orders; where the labels differ it is unclassified.
    """
    from . import audit_command

    match batch_out, batch_in, url, out:
        case Path(), None, None, None:
            print(audit_command.write_questions(file, batch_out, model or "judge"))
        case None, Path(), None, Path() if model is None:
            print(audit_command.read_replies(file, batch_in, out))
        case None, None, str(), Path():
            print(audit_command.ask(file, url, model, out))
        case _:
            remedy = "give --batch-out FILE, or --batch-in FILE --out FILE, or --url URL --out FILE"
            raise EtameterError("eta audit needs one of three forms", remedy)
    return 0


@eta.command("label")
def eta_label(
    file: Annotated[Path, typer.Argument(help='Responses: JSON lines of {"id", "prompt", "response"}.')],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where labelled responses go; what it has already is not asked again.")
    ],
) -> int:
    """Label the spans of responses yourself, by the rules that the judge has.

    A letter and Enter for each span; `?` shows the rules. Stop at any time: finished responses are kept, and the next call goes on with the others.
    """
    from rich.console import Console

    from . import label_command

    console = Console(highlight=False)
    print(label_command.label_file(file, out, console.input, console))
    return 0


@eta.command("train")
def eta_train(
    files: Annotated[list[Path], typer.Argument(help="Labelled responses, as of eta label.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the weights go, for [eta] weights.")],
    as_json: Json = False,
) -> int:
    """Train what names slack on labels of your own, starting from the weights that come with etameter.

    Says how both do on responses that were left out of the training.
    """
    import json

    from . import train_command

    found = train_command.train_files(files, out)
    print(json.dumps(found) if as_json else train_command.trained(found))
    return 0


@eta.command("agree")
def eta_agree(
    one: Annotated[Path, typer.Argument(help="Labelled responses.")],
    other: Annotated[Path, typer.Argument(help="The same responses, labelled by somebody else.")],
    as_json: Json = False,
) -> int:
    """Say how far two who labelled the same responses agree: no machine can be asked to do better."""
    import json

    from . import train_command

    found = train_command.agree_files(one, other)
    print(json.dumps(found) if as_json else train_command.agreed(found))
    return 0


@eta.command("branching")
def eta_branching(
    file: Annotated[
        Path,
        typer.Argument(
            help='Responses as for classify, with "logprobs" as a server gives them, and "arm" and labelled "spans" if known.'
        ),
    ],
    as_json: Json = False,
) -> int:
    """Say where in answers the model had many continuations to choose from: in slack or in what was required, and under which arm.

    Of each token |B| is taken for exp(H), by the log-probabilities of the likeliest tokens, with bounds for the rest. Without labels slack is what `classify` names.
    """
    import json

    from . import branching_command

    found = branching_command.report_of(file)
    print(json.dumps(found) if as_json else branching_command.text_of(found))
    return 0


@eta.command("context")
def eta_context(
    file: Annotated[
        Path, typer.Argument(help='Prompts: JSON lines of {"id", "context": [pieces], "prompt", "checker"}.')
    ],
    url: Annotated[
        str, typer.Option(help="The server that is asked, under the arm `audit`.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(metavar="NAME", help="By default the server's first model.")] = None,
    as_json: Json = False,
) -> int:
    """Find out which pieces of a context (retrieved passages, earlier turns) a correct answer needed, and what the rest took.

    The model is asked again without some of them, at most 48 times a prompt. Joules are those of the server's meter, without its prefix cache.

    A prompt upon which the server fails is told as not measured, the others are kept, and the exit code is 2.
    """
    from functools import partial

    from .prompts import context, looking

    return looking.show(partial(context.look, file, url, model), context.as_row, context.summary, as_json=as_json)


@eta.command("minimal")
def eta_minimal(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSON lines of {"id", "request", "answer", "checker"}: bodies as they went over the wire, a checker for code.'
        ),
    ],
    as_json: Json = False,
) -> int:
    """Say how much of answers in code, and of calls of tools, was beyond the least that does the same, in tokens and in joules.

    Code: what still passes the checker without prose, comments, docstrings, type hints and needless statements. Calls: the least JSON that the schema in `tools` asks for.
    """
    import json

    from .prompts import minimal

    found = minimal.look(file)
    print("\n".join(json.dumps(minimal.as_row(each)) for each in found) if as_json else minimal.summary(found))
    return 0


@eta.command("thinking")
def eta_thinking(
    file: Annotated[Path, typer.Argument(help='Prompts: JSON lines of {"id", "prompt", "checker"}.')],
    url: Annotated[
        str, typer.Option(help="The server that is asked, under the arm `audit`.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(metavar="NAME", help="By default the server's first model.")] = None,
    as_json: Json = False,
) -> int:
    """Find out how much of its thinking a model needed: cut short, does its answer still hold?

    The model goes on from a beginning of its thinking that is closed early. It takes a server that continues a message, as vLLM does, and a template that leaves thinking in it.

    A prompt upon which the server fails is told as not measured, the others are kept, and the exit code is 2.
    """
    from functools import partial

    from .prompts import looking, thinking

    return looking.show(partial(thinking.look, file, url, model), thinking.as_row, thinking.summary, as_json=as_json)


@eta.command("brake")
def eta_brake(
    run: Annotated[
        Path, typer.Argument(help="A run of etameter ab with --arms NAME,NAME-braked --texts, that has ended.")
    ],
    answers_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the answers without the brake go, for eta audit.")
    ] = None,
    judged: Annotated[Path | None, typer.Option(metavar="FILE", help="What eta audit found in these answers.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the report goes, for [arms.NAME] brake.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Say what ending streams at closings and circles saved, and how many answers it may have spoiled (experimental).

    Spoiled is what fails its checker for it, and what a judge finds something required in after the end. An arm is braked only by a report that bounds both.
    """
    from .prompts import brake

    if answers_out is not None:
        print(f"{brake.write_answers(run, answers_out)} answers, in {answers_out}: judge them with etameter eta audit")
        return 0
    found = brake.measure(run, judged)
    if out is not None:
        brake.keep(found, out)
    print(brake.as_json(found) if as_json else brake.text_of(found))
    return 0


def audits(
    url: Annotated[str, typer.Option(help="The served model, started with etameter.")] = "http://127.0.0.1:8000",
    socket: Annotated[Path | None, typer.Option(metavar="FILE", help="Socket of the meter.")] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Read this file instead of ./etameter.toml.")
    ] = None,
) -> int:
    """Make the audits that the meter wants: judge sampled responses, and ask fresh tasks, while the server has nothing else to do.

    `etameter serve` runs this by itself where `[meter] classify` is set. A server that wants a key is shown VLLM_API_KEY, another judge ETAMETER_JUDGE_API_KEY.
    """
    from . import config
    from .prompts import auditor

    auditor.run(config.load(config_file), url, socket or config.socket_path())
    return 130


@eta.command("evaluate")
def eta_evaluate(
    file: Annotated[
        Path, typer.Argument(help='Labelled responses: as for classify, with "spans": [[start, end, label], …].')
    ],
    judged: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score this, of eta audit or eta classify, by id.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Score against labels what is named as slack: by etameter now, or by a judge before."""
    import json

    from . import eta_command

    found = eta_command.evaluate_file(file, judged)
    print(json.dumps(found) if as_json else eta_command.report(found))
    return 0
