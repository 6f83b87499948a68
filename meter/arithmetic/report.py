"""The recomputed arithmetic, as text and as JSON. What rests on simulated joules says so in the same cell."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Final

from etameter.arithmetic import INPUTS, WHAT_IF
from etameter.arithmetic.rows import TITLES, Bar, Input, Inputs, Result, figure, tornado

WIDE: Final = 28
"""Characters of a bar of the what-if."""
DASH: Final = "–"


def figures(values: Sequence[float] | None) -> str:
    return " · ".join(figure(value) for value in values) if values else DASH


def recomputed(result: Result) -> str:
    told = figures(result.recomputed)
    if result.interval is not None:
        told += f" [{figure(result.interval[0])} to {figure(result.interval[1])}]"
    return told if told == DASH or result.origin != "simulated" else f"{told} (simulated)"


def named(unit: str) -> str:
    return {"1": "", "x": "×"}.get(unit, unit)


def came_from(given: Input) -> str:
    return "a run" if given.value is None else given.origin


def as_text(results: Iterable[Result], inputs: Inputs) -> str:
    """Two lines a row: figures and verdict, then why."""
    lines: list[str] = []
    document = None
    for each in results:
        row = each.row
        if row.document != document:
            document = row.document
            lines += ["", TITLES[document], ""]
        printed = figures(row.printed)
        lines.append(
            f"  {row.name:<21}{(each.verdict or DASH):<13} printed {printed}, recomputed {recomputed(each)} {named(row.unit)}".rstrip()
        )
        lines.append(f"      {row.what}: {row.formula}{f'; {each.reason}' if each.reason else ''}")
    lines += ["", *_replaced(inputs), *_what_if(inputs)]
    return "\n".join(lines).strip("\n")


def as_json(results: Iterable[Result], inputs: Inputs) -> str:
    """One object: rows, inputs, what-if."""
    rows = [
        {
            "name": each.row.name,
            "document": TITLES[each.row.document],
            "what": each.row.what,
            "printed": None if each.row.printed is None else list(each.row.printed),
            "recomputed": None if each.recomputed is None else list(each.recomputed),
            "unit": each.row.unit,
            "formula": each.row.formula,
            "inputs": list(each.row.inputs),
            "verdict": each.verdict,
            "reason": each.reason,
            "origin": each.origin,
            "interval": each.interval,
        }
        for each in results
    ]
    given = {name: {k: v for k, v in asdict(each).items() if k in _TOLD} for name, each in inputs.items()}
    what_if = {row.name: [asdict(bar) for bar in tornado(row, inputs)] for row in WHAT_IF}
    return json.dumps(
        {"rows": rows, "inputs": given, "what_if": what_if}, ensure_ascii=False, indent=1, allow_nan=False
    )


_TOLD: Final = frozenset({"value", "unit", "meaning", "span", "origin"})


def _replaced(inputs: Inputs) -> Iterator[str]:
    changed = [each for name, each in inputs.items() if each != INPUTS[name]]
    if changed:
        yield "Inputs that were replaced:"
    for each in changed:
        interval = (
            ""
            if each.span is None or each.span == INPUTS[each.name].span
            else f", {figure(each.span[0])} to {figure(each.span[1])}"
        )
        assert each.value is not None
        yield f"  {each.name} = {f'{figure(each.value)} {named(each.unit)}'.strip()}{interval} ({each.origin})"


def _what_if(inputs: Inputs) -> Iterator[str]:
    for row in WHAT_IF:
        bars = tornado(row, inputs)
        yield ""
        yield f"What if: {row.what}, {row.unit}, with one input at a time at the ends of its range"
        yield from (f"  {line}" for line in bar_lines(bars))


def bar_lines(bars: Sequence[Bar]) -> Iterator[str]:
    """All on one scale, widest first."""
    ends = [end for bar in bars for end in bar.outcome]
    if not ends:
        return
    least, most = min(ends), max(ends)
    per = (most - least) / WIDE or 1.0
    for bar in bars:
        low, high = sorted(bar.outcome)
        drawn = " " * round((low - least) / per) + "█" * max(round((high - low) / per), 1)
        span = f"{figure(bar.span[0])} to {figure(bar.span[1])}"
        yield f"{bar.name:<14}{span:<14}{drawn:<{WIDE + 1}} {figure(bar.outcome[0])} to {figure(bar.outcome[1])}"
