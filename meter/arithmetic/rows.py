"""A claim of a document: what is printed, what follows from its inputs, and whether the two agree. Verdicts are computed.

    consistent     at most 0.5 % apart
    rounded        at most 5 % apart: the printed figure is the other one, rounded
    inconsistent   further apart
    impossible     printed beyond a bound that holds whatever the inputs

A claim that is a range holds where the recomputed value lies in it, and any claim that a measured interval reaches. All formulas are in base units (`etameter.units`), so that they hold no
conversions.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from etameter.errors import InputError
from etameter.records import Source
from etameter.units import unit

Document = Literal["E", "P", "I"]
TITLES: Final[Mapping[Document, str]] = {
    "E": "The Economics of Constraint (Foy, April 2026)",
    "P": "Photons = Tokens: The Physics of AI and the Economics of Knowledge",
    "I": "The inference economy (Slone Sterling, 2026)",
}
Verdict = Literal["consistent", "rounded", "inconsistent", "impossible"]
Origin = Literal["document", "constant", "example", "yours"] | Source
"""Where a value comes from. example: a document gives none; it is there to be replaced."""

SOURCES: Final = frozenset({"measured", "estimated", "shared", "simulated"})
CONSISTENT: Final = 0.005
ROUNDED: Final = 0.05
Values = Mapping[str, float]
"""Name of an input → its value in base units."""


@dataclass(frozen=True, slots=True)
class Input:
    """A number that claims are recomputed from. `value` None: no document gives it; a run does, or the user."""

    name: str
    value: float | None
    unit: str
    meaning: str
    low: float = 0.0
    """Least value that makes sense; what is below is refused."""
    high: float = math.inf
    span: tuple[float, float] | None = None
    """The documents' own range, for the what-if."""
    origin: Origin = "document"


@dataclass(frozen=True, slots=True)
class Row:
    """`of` gives as many values as are printed; None stands for nothing printed, and then there is no verdict."""

    name: str
    document: Document
    what: str
    printed: tuple[float, ...] | None
    unit: str
    formula: str
    inputs: tuple[str, ...]
    of: Callable[[Values], tuple[float, ...]]
    note: str = ""
    bound: Callable[[Values], tuple[float, float]] | None = None
    """Least and most that the formula can give, whatever its free inputs."""


@dataclass(frozen=True, slots=True)
class Result:
    """A row, worked out. `recomputed` None: an input is missing, and `reason` names it."""

    row: Row
    recomputed: tuple[float, ...] | None
    verdict: Verdict | None
    reason: str
    origin: Origin
    """The least certain of its inputs."""
    interval: tuple[float, float] | None = None
    """Of a row that is a measured figure itself, in the row's unit."""


Inputs = Mapping[str, Input]
WEAKEST_FIRST: Final[Sequence[Origin]] = (
    *("simulated", "shared", "estimated", "example", "yours", "measured", "document", "constant"),
)


def work_out(row: Row, inputs: Inputs) -> Result:
    """Recompute a row. Its own inputs only are seen by its formula."""
    used = [inputs[name] for name in row.inputs]
    origins: list[Origin] = [each.origin for each in used]
    origin = min(origins, key=WEAKEST_FIRST.index) if origins else "constant"
    missing = [each.name for each in used if each.value is None]
    if missing:
        return Result(row, None, None, f"needs {', '.join(missing)}: give a run, or set it", origin)
    values = in_base_units(used)
    scale = unit(row.unit).scale
    try:
        recomputed = tuple(value / scale for value in row.of(values))
    except ZeroDivisionError:
        return Result(row, None, None, "an input is zero that the formula divides by", origin)
    if not recomputed:
        return Result(row, None, None, "there is no such value at these inputs", origin)
    bound = None
    if row.bound is not None:
        least, most = row.bound(values)
        bound = least / scale, most / scale
    interval = _interval(row, used)
    verdict, reason = judge(row.printed, recomputed, bound, interval)
    said = f"{reason}; {row.note}" if reason and row.note else reason or row.note
    return Result(row, recomputed, verdict, said, origin, interval)


def _interval(row: Row, used: Sequence[Input]) -> tuple[float, float] | None:
    if len(used) != 1 or used[0].span is None or used[0].origin not in SOURCES:
        return None
    low, high = row.of({used[0].name: used[0].span[0]})[0], row.of({used[0].name: used[0].span[1]})[0]
    own, scale = unit(used[0].unit).scale, unit(row.unit).scale
    return low * own / scale, high * own / scale


def in_base_units(used: Iterable[Input]) -> dict[str, float]:
    return {each.name: each.value * unit(each.unit).scale for each in used if each.value is not None}


def judge(
    printed: tuple[float, ...] | None,
    recomputed: tuple[float, ...],
    bound: tuple[float, float] | None = None,
    interval: tuple[float, float] | None = None,
) -> tuple[Verdict | None, str]:
    """The verdict, and the figures that it rests on; all in one unit. A measured interval contradicts only what lies outside of it."""
    if printed is None:
        return None, ""
    if bound is not None:
        if max(printed) > bound[1]:
            return "impossible", f"{figure(max(printed))} is above {figure(bound[1])}, the most there can be"
        if min(printed) < bound[0]:
            return "impossible", f"{figure(min(printed))} is below {figure(bound[0])}, the least there can be"
    if interval is not None and min(interval) <= max(printed) and min(printed) <= max(interval):
        return "consistent", "the measured interval reaches what is printed"
    if len(printed) == 2 and len(recomputed) == 1:
        inside = printed[0] <= recomputed[0] <= printed[1]
        return (
            ("consistent", "inside of the printed range")
            if inside
            else ("inconsistent", "outside of the printed range")
        )
    one, other = max(zip(printed, recomputed, strict=True), key=lambda pair: _apart(*pair))
    apart = _apart(one, other)
    if apart <= CONSISTENT:
        return "consistent", ""
    return ("rounded" if apart <= ROUNDED else "inconsistent"), _told_apart(one, other)


def _apart(printed: float, recomputed: float) -> float:
    """As a share of the recomputed value."""
    if printed == recomputed:
        return 0.0
    return abs(printed - recomputed) / abs(recomputed) if recomputed else math.inf


def _told_apart(printed: float, recomputed: float) -> str:
    if printed * recomputed > 0 and not 0.5 < (factor := recomputed / printed) < 2:
        return f"a factor of {max(factor, 1 / factor):.2g}"
    return f"{100 * _apart(printed, recomputed):.2g} % apart"


def with_value(
    inputs: Inputs, name: str, value: float, named_unit: str | None = None, origin: Origin = "yours"
) -> Inputs:
    """The inputs, one of them replaced; `named_unit` is what the value is in, if not in the input's own.

    Raises:
        InputError: no such input, a value out of its range, or a unit of another dimension, such as another currency.
    """
    known = inputs.get(name)
    if known is None:
        raise InputError(f"there is no input {name!r}", f"known are {', '.join(sorted(inputs))}")
    if named_unit is not None:
        given, own = unit(named_unit), unit(known.unit)
        if given.dimension != own.dimension:
            raise InputError(f"{name} is in {own}, which {given} can't be turned into", f"give it in {own}")
        value = value * given.scale / own.scale
    if not (math.isfinite(value) and known.low <= value <= known.high):
        most = "" if math.isinf(known.high) else f" to {known.high:g}"
        own_unit = "" if known.unit == "1" else f" {known.unit}"
        raise InputError(f"{name} = {value:g}{own_unit} makes no sense", f"it is {known.low:g}{most or ' or more'}")
    return {**inputs, name: replace(known, value=value, origin=origin)}


@dataclass(frozen=True, slots=True)
class Bar:
    """What an output comes to with one input at either end of its span, and the others as they are."""

    name: str
    span: tuple[float, float]
    outcome: tuple[float, float]

    @property
    def swing(self) -> float:
        return abs(self.outcome[1] - self.outcome[0])


def tornado(row: Row, inputs: Inputs) -> list[Bar]:
    """By the inputs of a row that have a span, widest first; the first of its values is looked at."""
    bars = []
    for name in row.inputs:
        span = inputs[name].span
        if span is None:
            continue
        ends = [work_out(row, {**inputs, name: replace(inputs[name], value=end)}).recomputed for end in span]
        if ends[0] is not None and ends[1] is not None:
            bars.append(Bar(name, span, (ends[0][0], ends[1][0])))
    return sorted(bars, key=lambda bar: -bar.swing)


def figure(value: float) -> str:
    """Four digits, without the noise of ten."""
    size = abs(value)
    if size and (size >= 1e7 or size < 1e-3):
        return f"{value:.3e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{value:,.4g}" if size < 1e4 else f"{value:,.0f}"
