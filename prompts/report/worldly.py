"""Joules of a report as watt hours, money and CO2, where factors for these are configured."""

from collections.abc import Iterable
from typing import NamedTuple

from etameter.footprint import JOULES_PER_WH, Footprint
from etameter.records import Source

from .markup import Html, join, tag
from .sections import table
from .wording import UNKNOWN


class Spent(NamedTuple):
    what: str
    joules: float | None
    """None: not known."""
    source: Source


def worldly(spent: Iterable[Spent], footprint: Footprint) -> Html | None:
    """A row for each, with the factors that made it; None where no factor is configured. What was simulated says so in every cell."""
    if not footprint:
        return None
    units = ("Wh", "Wh of the building", footprint.currency or "money", "g CO2e")
    factors = [
        f"{name} {factor.value:g} {factor.unit}, {factor.source}{f', {factor.year}' if factor.year else ''}"
        for name, factor in footprint.factors()
    ]
    return join(
        table("Energy, money and CO2", ("", *units), [(each.what, *_cells(each, footprint)) for each in spent]),
        tag("ul", *(tag("li", factor) for factor in factors), class_="faint"),
    )


def _cells(spent: Spent, footprint: Footprint) -> Iterable[str]:
    joules = spent.joules
    word = "" if spent.source == "measured" else f" {spent.source}"
    if joules is None:
        amounts: tuple[float | None, ...] = (None,) * 4
    else:
        building = None if footprint.pue is None else footprint.facility_j(joules) / JOULES_PER_WH
        amounts = (joules / JOULES_PER_WH, building, footprint.cost(joules), footprint.co2e_g(joules))
    for amount in amounts:
        yield UNKNOWN if amount is None else f"{amount:.4g}{word}"
