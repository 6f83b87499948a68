"""The label: black on white, one column, readable without colour; as SVG, PNG and a page of HTML.

Where joules are simulated the word stands in a band across the top and in every cell that has joules in it.
"""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from .facts import Fact, Facts
from .prompts.visible import visible

WIDTH: Final = 460.0
"""Of the drawing, in its own unit; PNGs have two pixels for each."""
_MARGIN: Final = 16.0
_FONT: Final = "'DejaVu Sans', Verdana, Arial, sans-serif"
_INK: Final = "#000000"
_PAPER: Final = "#ffffff"
_CHARACTER: Final = 0.6
"""Mean width of a character, in sizes of the font; on the wide side."""


@dataclass(frozen=True, slots=True)
class _Line:
    """Something on the label, from top to bottom."""

    left: str = ""
    right: str = ""
    size: float = 12.0
    bold: bool = False
    kind: Literal["text", "rule", "band"] = "text"
    weight: float = 1.0
    """Of a rule, in its thickness."""


def written(fact: Fact) -> str:
    """Its value as it stands on the label, with unit and source."""
    if fact.value is None:
        return "not known"
    value = f"{100 * fact.value:.3g} %" if not fact.unit else f"{fact.value:.3g} {fact.unit}"
    return f"{value}{_word(fact)}"


def _word(fact: Fact) -> str:
    """Where its joules are from, unless they were measured."""
    return f" {fact.source}" if fact.source not in (None, "measured") else ""


def svg(facts: Facts) -> str:
    """The drawing, whole and by itself."""
    drawn, height = [], _MARGIN
    for line in _lines(facts):
        made, taken = _draw(line, height)
        drawn.append(made)
        height += taken
    height += _MARGIN
    told = html.escape(description(facts))
    title = html.escape(visible(f"Inference facts: {facts.model}"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" height="{height:g}" role="img" '
        f'aria-labelledby="facts-title facts-desc"><title id="facts-title">{title}</title><desc id="facts-desc">{told}</desc>'
        f'<rect x="1.5" y="1.5" width="{WIDTH - 3:g}" height="{height - 3:g}" fill="{_PAPER}" stroke="{_INK}" stroke-width="3"/>'
        f'<g font-family="{_FONT}" fill="{_INK}">{"".join(drawn)}</g></svg>\n'
    )


def page(facts: Facts) -> str:
    """The same in a page that needs nothing else."""
    title = html.escape(
        visible(f"Inference facts: {facts.model}{', SIMULATED' if facts.source == 'simulated' else ''}")
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>body{{margin:1rem;background:#fff}}svg{{max-width:100%;height:auto}}</style></head>"
        f"<body><main>{svg(facts)}</main></body></html>\n"
    )


def description(facts: Facts) -> str:
    """All that is on it in words, for those who can't see it."""
    told = [f"{fact.name}: {written(fact)}{_interval(fact, words=True)}" for fact in facts.facts]
    slack = [f"{name} {100 * share:.3g} %" for name, share in facts.slack]
    whole = [f"{facts.model} on {facts.hardware}, {facts.server}, {facts.date}, {facts.source}", *told]
    return visible(". ".join([*whole, f"Slack, estimated: {', '.join(slack)}"] if slack else whole) + ".")


def _lines(facts: Facts) -> Iterator[_Line]:
    if facts.source != "measured":
        meaning = (
            "no measurement of hardware" if facts.source == "simulated" else "no full measurement of this load alone"
        )
        yield _Line(f"{facts.source.upper()}: {meaning}", size=14, bold=True, kind="band")
    yield _Line("Inference facts", size=30, bold=True)
    yield _Line(facts.model, size=14, bold=True)
    yield _Line(f"{facts.hardware} · {facts.server}", size=11)
    yield _Line(facts.asked, size=11)
    yield _Line(kind="rule", weight=8)
    for fact in facts.facts:
        yield _Line(fact.name, written(fact), bold=True)
        under = " · ".join(each for each in (_interval(fact), fact.remark) if each)
        if under:
            yield _Line(under, size=10)
        yield _Line(kind="rule")
    if facts.slack:
        yield _Line(kind="rule", weight=5)
        yield _Line(
            "Slack in output tokens, estimated", f"{100 * sum(share for _, share in facts.slack):.3g} %", bold=True
        )
        for name, share in facts.slack:
            yield _Line(f"    {name}", f"{100 * share:.3g} %", size=11)
        yield _Line(kind="rule")
    for factor in facts.factors:
        yield _Line(factor, size=9)
    yield _Line(
        f"Of {facts.date}, run {facts.run}. 95 % intervals, of chance alone: the board's gain is apart.", size=9
    )
    yield _Line("Energy of tokens is attributed; that of answers is all that the boards took.", size=9)


def _interval(fact: Fact, *, words: bool = False) -> str:
    if fact.low is None or fact.high is None:
        return ""
    scale, unit = (1.0, fact.unit) if fact.unit else (100.0, "%")
    ends = f"{scale * fact.low:.3g} to {scale * fact.high:.3g} {unit}"
    return f", from {ends}" if words else f"{ends}{_word(fact)}"


def _draw(line: _Line, top: float) -> tuple[str, float]:
    """SVG, and the height that it takes."""
    inner = WIDTH - 2 * _MARGIN
    if line.kind == "rule":
        return f'<rect x="{_MARGIN:g}" y="{top + 3:g}" width="{inner:g}" height="{line.weight:g}"/>', line.weight + 6
    weight = ' font-weight="bold"' if line.bold else ""
    if line.kind == "band":
        text = f'<text x="{WIDTH / 2:g}" y="{top + 21:g}" text-anchor="middle" font-size="{line.size:g}" fill="{_PAPER}"{weight}>{_safe(line.left)}</text>'
        return f'<rect x="{_MARGIN:g}" y="{top:g}" width="{inner:g}" height="30"/>{text}', 40
    drawn, baseline = [], top
    room = inner - (len(line.right) + 2) * _CHARACTER * line.size if line.right else inner
    for part in _broken(line.left, int(room / (_CHARACTER * line.size))):
        baseline += 1.3 * line.size
        drawn.append(
            f'<text x="{_MARGIN:g}" y="{baseline:g}" font-size="{line.size:g}"{weight} xml:space="preserve">{_safe(part)}</text>'
        )
    if line.right:
        drawn.append(
            f'<text x="{WIDTH - _MARGIN:g}" y="{baseline:g}" text-anchor="end" font-size="{line.size:g}"{weight}>{_safe(line.right)}</text>'
        )
    return "".join(drawn), baseline - top + 0.2 * line.size


def _broken(text: str, most: int) -> Iterator[str]:
    """Lines of at most so many characters, broken at spaces where there are any."""
    shown = visible(text).replace("\n", " ")
    while len(shown) > most:
        at = shown.rfind(" ", 1, most + 1)
        at = at if at > most // 3 else most
        yield shown[:at]
        shown = shown[at:].lstrip()
    yield shown


def _safe(text: str) -> str:
    return html.escape(visible(text))
