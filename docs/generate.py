"""Writes the documents that are made from code: arithmetic.md, commands.md, config.md, metrics.md.

`python -m docs.generate` writes them; with `--check` it only says which are stale and exits 1.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from etameter.arithmetic import INPUTS, WHAT_IF, recompute, report
from etameter.arithmetic.rows import TITLES, Result, figure, tornado
from etameter.budget_section import BudgetSection
from etameter.cli import app
from etameter.config import (
    CONFIG_FILE,
    ENV_PREFIX,
    PRICES,
    ArmSection,
    Config,
    EtaSection,
    FootprintSection,
    MeterSection,
    OtlpSection,
    ServeSection,
)
from etameter.export.bounded import MAX_GROUPS
from etameter.export.catalogue import CATALOGUE
from etameter.export.catalogue.labels import LABELS
from etameter.nightly_section import NightlySection

HERE = Path(__file__).parent
NOTE = "<!-- Made by `make docs` from the code. Change it there. -->\n\n"
WIDTH = 100


def commands() -> str:
    """Every command with its own help."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="etameter", terminal_width=WIDTH, max_content_width=WIDTH)
    assert isinstance(group, typer.core.TyperGroup)
    parts = [
        "# Commands\n",
        "Exit codes: 0 done; 2 wrong use or environment, and one line on stderr says what to do; 3 figures are not as they should be (a regression, a sum that is off); 4 not comparable; 5 unstable; 130 interrupted.\n",
        _block(group.get_help(context)),
    ]
    return "\n".join([*parts, *_helps(group, context)])


def _helps(group: typer.core.TyperGroup, context: typer.Context) -> Iterator[str]:
    """The heading and the help of every command of a group, and of those of its groups."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        own = typer.Context(command, info_name=name, parent=context, terminal_width=WIDTH, max_content_width=WIDTH)
        yield f"## {own.command_path}\n"
        yield _block(command.get_help(own))
        if isinstance(command, typer.core.TyperGroup):
            yield from _helps(command, own)


def config() -> str:
    """Every section and key, with its default and its environment variable."""
    parts = [
        "# Configuration\n",
        f"A setting comes from the command line, else from the environment, else from `{CONFIG_FILE}` in the working directory, else it is the default.\n",
        f"```toml\n# {CONFIG_FILE}\n[meter]\nclassify = true     # as {ENV_PREFIX}METER__CLASSIFY=true in the environment\n```\n",
        "An unknown section or key is an error, wherever it stands. `none`: not set.\n",
    ]
    sections: dict[str, type[BaseModel]] = {
        "meter": MeterSection,
        "serve": ServeSection,
        "eta": EtaSection,
        "nightly": NightlySection,
        "otlp": OtlpSection,
        "footprint": FootprintSection,
    }
    for name, section in sections.items():
        rows = (
            (
                f"`{key}`",
                f"`{_default(field)}`",
                f"`{ENV_PREFIX}{name.upper()}__{key.upper()}`",
                field.description or "",
            )
            for key, field in section.model_fields.items()
        )
        parts += [f"## [{name}]\n", _table(("key", "default", "environment", "meaning"), rows)]
    arms = Config.model_fields["arms"]
    parts += [
        "Where any of these is set, receipts have a `footprint`: Wh, money and CO2, each with unit and source, and the factors that made them; the pages of `etameter ab` and `etameter nightly` have a table of the same. Prices:\n",
        _table(
            ("price", "per kWh", "of", "source"),
            (
                (f"`{name}`", f"{row.per_kwh:g} {row.currency}", str(row.year), row.source)
                for name, row in PRICES.items()
            ),
        ),
        "## [arms.NAME]\n",
        f"{arms.description} Arms in the file replace the default ones.\n",
        "A request belongs to the arm that its header `X-Etameter-Arm` names; without the header, to that which is known by its system prompt, else by its API key, else by its model; where arms are known by such and none fits, to `other`; else it is `unlabelled`. `audit` is etameter's own arm: requests that name it belong to it if they bear the key in `audit.key`, which only its user can read, and else to `other`.\n",
        _table(
            ("key", "default", "meaning"),
            (
                (f"`{key}`", f"`{_default(field)}`", field.description or "")
                for key, field in ArmSection.model_fields.items()
            ),
        ),
        "By default:\n",
        _table(("arm", "description"), ((f"`{name}`", arm.description) for name, arm in Config().arms.items())),
        "## [budgets.NAME]\n",
        f"{Config.model_fields['budgets'].description} What responses say of them: [budgets](budgets.md).\n",
        _table(
            ("key", "default", "meaning"),
            (
                (f"`{key}`", f"`{_default(field)}`", field.description or "")
                for key, field in BudgetSection.model_fields.items()
            ),
        ),
        "## Where files live\n",
        _table(
            ("variable", "default", "holds"),
            (
                (
                    "`ETAMETER_RUN`",
                    "`$XDG_RUNTIME_DIR/etameter`, else `/run/etameter`",
                    "`meter.sock`, `meter.lock`, `audit.key`",
                ),
                ("`ETAMETER_STATE`", "`$XDG_STATE_HOME/etameter`, else `~/.local/state/etameter`", "`ledger.db`"),
                ("`ETAMETER_RING_DIR`", "`/dev/shm`", "`etameter-ENGINE.ring`, `etameter-ENGINE.board`"),
            ),
        ),
        "## In the engine's own process\n",
        "`etameter serve` sets these. Set them where vLLM is started otherwise.\n",
        _table(
            ("variable", "default", "meaning"),
            (
                ("`ETAMETER_ENGINE`", "`engine-N`, N the data-parallel rank", "name of the engine"),
                ("`ETAMETER_RING_DIR`", "`/dev/shm`", "where the ring is written"),
                (
                    "`ETAMETER_CLASSIFY`",
                    "`0`",
                    "`1`: tell the meter what is asked and answered, so that it can find slack; see `classify`",
                ),
                ("`ETAMETER_ARMS`", "the arms above", "the arms that requests may name, with commas between"),
                (
                    "`ETAMETER_ARM_RULES`",
                    "`{}`",
                    'JSON: by what else arms are known, `{"NAME": [[hashes of system prompts], [hashes of API keys], [models]]}`',
                ),
                (
                    "`ETAMETER_BUDGETS`",
                    "`{}`",
                    'JSON: who draws on which budget, `{"NAME": [[arms], [hashes of API keys]]}`',
                ),
                ("`ETAMETER_SETTLE_RESPONSES`", "`0`", "`1`: see `settle_responses`"),
                ("`ETAMETER_RECEIPT_TOKEN`", "", "see `receipt_token`"),
            ),
        ),
    ]
    return "\n".join(parts)


def metrics() -> str:
    """Every metric and label."""
    rows = (
        (
            f"`{metric.name}`",
            metric.type,
            metric.unit,
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.meaning,
        )
        for metric in CATALOGUE
    )
    buckets = (
        (f"`{metric.name}`", f"{', '.join(f'{bound:g}' for bound in metric.buckets)} {metric.unit}")
        for metric in CATALOGUE
        if metric.buckets
    )
    return "\n".join(
        [
            "# Metrics\n",
            "The meter serves them on `/metrics` of its own port, 9430 by default: Prometheus text, or OpenMetrics.\n",
            "Exemplars, which carry the public id of a request, exist in OpenMetrics only.\n",
            "Counters move by settled intervals only, joules and tokens together, so that at every scrape\n",
            _block(
                "etameter_gpu_energy_joules_total = Σ etameter_energy_joules_total + Σ etameter_unassigned_joules_total"
            ),
            "A gauge whose value isn't known is absent. `source` says what a joule is worth; never sum it away.\n",
            _table(("name", "type", "unit", "labels", "meaning"), rows),
            "## Labels\n",
            f"No client can enlarge these sets. Of pairs of model and arm {MAX_GROUPS} have series of their own, the rest are `other` in both.\n",
            _table(("label", "values"), ((f"`{label}`", meaning) for label, meaning in sorted(LABELS.items()))),
            "## Buckets\n",
            _table(("histogram", "upper bounds"), buckets),
        ]
    )


def arithmetic() -> str:
    """Every claim of the three documents, recomputed, and every input."""
    results = recompute()
    parts = [
        "# The documents' arithmetic, in the open\n",
        (
            "etameter was made from three documents that reckon with energy, tokens and money. `etameter arithmetic` recomputes what they claim from named inputs. "
            "On this page all inputs are as the documents give them. BUSD is a billion US dollars.\n\n"
            "- `--set NAME=VALUE` replaces an input by your own.\n"
            "- `--measured RUN` replaces what a run of `etameter ab` or `etameter nightly` has measured; a file with the JSON of `etameter demo` does, too. Simulated joules then say so in every cell that they reach.\n"
            "- `--measured FILE` with the JSON of `etameter eta branching` gives the bits of a token.\n"
            "- `--curve CSV`, with lines of hour,value, gives what moving load saves.\n"
            "- `--html FILE` writes a page with plots.\n"
        ),
        (
            "A claim is *consistent* where it is at most 0.5 % from what follows from its inputs, *rounded* to 5 %, *inconsistent* beyond that, and *impossible* where no value "
            "of its free inputs could give it. A range holds where the value lies in it, and any claim that a measured interval reaches. Verdicts are computed. A dash: nothing is printed, or nothing was measured.\n"
        ),
    ]
    parts.append(
        "![Plots of the page: what if, η by condition, shares of a token's joules](images/arithmetic.png)\n\n"
        "The top of that page, with a run of a small model on a simulated board as RUN: it is marked SIMULATED, and what rests on such joules says so.\n"
    )
    for document, title in TITLES.items():
        rows = [_claim(each) for each in results if each.row.document == document]
        parts += [
            f"## {title}\n",
            _table(("name", "claim", "printed", "recomputed", "unit", "verdict", "how, and why"), rows),
        ]
    parts += ["## What if\n", "One input at a time at the ends of the documents' own ranges, widest first.\n"]
    bars = (
        (
            f"{row.what}, {row.unit}",
            f"`{bar.name}`",
            " to ".join(map(figure, bar.span)),
            " to ".join(map(figure, bar.outcome)),
        )
        for row in WHAT_IF
        for bar in tornado(row, INPUTS)
    )
    inputs = (
        (
            f"`{name}`",
            report.DASH if each.value is None else figure(each.value),
            report.named(each.unit),
            each.meaning,
            report.came_from(each),
        )
        for name, each in INPUTS.items()
    )
    parts += [
        _table(("of", "input", "from", "outcome"), bars),
        "## Inputs\n",
        "From: a `document`; a `constant` of nature or a data sheet; `estimated` by fits of public recordings; an `example` where no document gives one; or `a run`, without which there is none.\n",
        _table(("input", "value", "unit", "what", "from"), inputs),
    ]
    return "\n".join(parts)


def _claim(each: Result) -> tuple[str, ...]:
    row = each.row
    return (
        f"`{row.name}`",
        row.what,
        report.figures(row.printed),
        report.recomputed(each),
        report.named(row.unit),
        each.verdict or report.DASH,
        f"{row.formula}; {each.reason}" if each.reason else row.formula,
    )


DOCUMENTS = {"arithmetic.md": arithmetic, "commands.md": commands, "config.md": config, "metrics.md": metrics}


def stale() -> list[str]:
    """Names of the documents that don't say what the code says."""
    return [name for name, make in DOCUMENTS.items() if not _is_current(HERE / name, NOTE + make())]


def _is_current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def _default(field: FieldInfo) -> str:
    """As TOML has it, without quotes."""
    if field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, tuple | frozenset):
        return f"[{', '.join(map(str, field.default))}]"
    return str(field.default) or "empty"


def _block(text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"```text\n{lines}\n```\n"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(header)]
    cells += [["---"] * len(cells[0]), *(list(row) for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in cells)


def main(arguments: list[str]) -> int:
    """Write the documents, or with `--check` only look; returns the exit code."""
    if arguments == ["--check"]:
        old = stale()
        if old:
            print(f"stale: {', '.join(f'docs/{name}' for name in old)}; run `make docs`", file=sys.stderr)
        return 1 if old else 0
    if arguments:
        print(f"docs.generate: {' '.join(arguments)}: only --check is known", file=sys.stderr)
        return 2
    for name, make in DOCUMENTS.items():
        (HERE / name).write_text(NOTE + make())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
