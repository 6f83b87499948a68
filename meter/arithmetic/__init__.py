"""The arithmetic of the three documents that etameter was made from, recomputed from named inputs that anybody may replace."""

from typing import Final

from etameter.arithmetic import constraint, economics, inference, machine, photons
from etameter.arithmetic.rows import TITLES, Input, Inputs, Result, Row, work_out

ROWS: Final[tuple[Row, ...]] = tuple(
    sorted(
        (*constraint.ROWS, *photons.ROWS, *inference.ROWS, *machine.ROWS, *economics.ROWS),
        key=lambda row: tuple(TITLES).index(row.document),
    )
)
"""By document."""
INPUTS: Final[Inputs] = {
    each.name: each for part in (constraint, photons, inference, machine, economics) for each in part.INPUTS
}
WHAT_IF: Final = constraint.WHAT_IF
"""Rows whose inputs have ranges that are worth a look each."""


def recompute(inputs: Inputs = INPUTS) -> list[Result]:
    return [work_out(row, inputs) for row in ROWS]


__all__ = ["INPUTS", "ROWS", "WHAT_IF", "Input", "Inputs", "Result", "Row", "recompute"]
