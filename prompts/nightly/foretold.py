"""What the documents foretell, night by night: energy per useful output, η, and the use of the machine."""

from collections.abc import Iterator, Sequence
from typing import Final

from etameter.prompts.report.figure import Cell
from etameter.prompts.report.markup import Html, join, tag
from etameter.prompts.report.sections import table

from .metrics import METRICS
from .night import Night
from .wording import number

FORETOLD: Final = (
    "j_per_correct_answer",
    "eta_task",
    "eta_deletion",
    "eta_lenient_at_most",
    "tokens_per_s_per_w",
    "mfu",
)
"""Metrics of which there is a prediction, and what bears on it."""


def foretold(nights: Sequence[Night]) -> Html | None:
    """A line a night, of the stage that stands for it; None where no night knows any of it."""
    rows = [(night.run.run_id, night.stands_for_it(), *_cells(night)) for night in nights]
    if not any(cell != number(None) for row in rows for cell in row[2:]):
        return None
    columns = ("run", "stage", *(f"{name}, {METRICS[name].unit}".removesuffix(", 1") for name in FORETOLD))
    return join(
        tag(
            "p",
            "They foretell that joules per correct answer fall and η rises; beside these, how well the machine is used.",
        ),
        table("Predictions over the nights", columns, rows),
    )


def _cells(night: Night) -> Iterator[Cell]:
    stage = night.stands_for_it()
    known = {figure.metric: figure for figure in night.figures if figure.stage == stage}
    for name in FORETOLD:
        figure = known.get(name)
        if figure is None or figure.value is None:
            yield number(None)
        else:
            ends = (
                "" if figure.low is None or figure.high is None else f" [{number(figure.low)}, {number(figure.high)}]"
            )
            word = "" if figure.source == "measured" else f" {figure.source}"
            yield f"{number(figure.value)}{ends}{word}"
