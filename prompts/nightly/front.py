"""What the settings of a sweep cost: joules a token against the time between tokens, as a picture and a table."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from etameter.prompts.report import svg
from etameter.prompts.report.figure import Cell
from etameter.prompts.report.markup import Html, tag
from etameter.prompts.report.sections import table

from .wording import number

_HEIGHT_IN: Final = 2.6
_SAYS: Final = (
    "A mark a setting of the sweep, by its median time between tokens. No other setting beats a filled one in both."
)


def front(points: Sequence[Mapping[str, Any]], source: str | None) -> Html | None:
    """Of the `sweep` in a run's details, cheapest first; None where there was none.

    Raises:
        ExperimentError: matplotlib isn't installed.
    """
    if not points:
        return None
    with svg.drawing(_HEIGHT_IN) as drawing:
        axes = drawing.add_subplot()
        for point in points:
            at_ms = 1000 * point["itl_s"]
            face = svg.SERIES[1] if point["best"] else svg.PAPER
            axes.plot([at_ms], [point["j_per_token"]], "o", color=svg.SERIES[1], markerfacecolor=face)
            axes.annotate(
                _name(point), (at_ms, point["j_per_token"]), xytext=(4, 4), textcoords="offset points", fontsize=8
            )
        best = [point for point in points if point["best"]]
        axes.plot(
            [1000 * point["itl_s"] for point in best],
            [point["j_per_token"] for point in best],
            color=svg.SERIES[1],
            linewidth=0.8,
        )
        axes.margins(0.15)
        axes.set_xlabel("median time between tokens, ms")
        axes.set_ylabel(f"J/token{', SIMULATED' if source == 'simulated' else ''}")
        picture = svg.inline(drawing, "front", "The sweep", _SAYS)
    rows: list[tuple[Cell, ...]] = [
        (
            _name(point),
            number(point["j_per_token"]),
            number(1000 * point["itl_s"]),
            "yes" if point["best"] else "no",
            source or "–",
        )
        for point in points
    ]
    columns = ("setting", "J/token", "median time between tokens, ms", "beaten by none in both", "source")
    return tag("figure", picture, tag("figcaption", _SAYS), table("The sweep", columns, rows), id="figure-front")


def _name(point: Mapping[str, Any]) -> str:
    return str(point["setting"]).removeprefix("sweep-")
