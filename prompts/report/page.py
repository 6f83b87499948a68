"""The report as one page of HTML: no script, no font, no picture and no style from anywhere else."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import resources
from typing import Final

from . import sections, svg
from .answers import answers
from .figure import Figure
from .markup import Html, join, tag
from .reasons import reasons
from .record import Record
from .wording import Wording
from .worldly import Spent, worldly

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser that heeds it would run nothing and load nothing, whatever an answer had got onto the page."""
SIMULATED: Final = "SIMULATED: no joule, watt or saving on this page is a measurement of hardware."


def page(record: Record, drawn: Sequence[tuple[Figure, Html]]) -> str:
    """The page, with the figures that were drawn for it."""
    wording = Wording(record.simulated)
    title = f"etameter: {', '.join(record.arms)} on {record.plan.suite}"
    heading = join(
        tag("h1", f"{' against '.join((' and '.join(record.arms[1:]) or 'nothing', record.plan.control))}"),
        tag("p", f"Suite {record.plan.suite}, model {record.plan.model}, {_when(record)}.", class_="faint"),
    )
    return document(title, heading, SIMULATED if record.simulated else None, list(_sections(record, drawn, wording)))


def document(title: str, heading: Html, simulated: str | None, sections: Sequence[tuple[str, str, Html]]) -> str:
    """A whole page: its heading, a banner where its joules are simulated, and sections of name, heading and contents, which are linked to."""
    contents = tag(
        "nav",
        tag("ul", *(tag("li", tag("a", words, href=f"#{name}")) for name, words, _ in sections)),
        aria_label="Contents",
    )
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", f"{title}, SIMULATED" if simulated else title),
        Html(f"<style>{_style()}</style>"),
    )
    body = join(
        tag("header", heading, tag("p", simulated, class_="banner") if simulated else None, contents),
        tag("main", *(_section(*each) for each in sections)),
    )
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def _section(name: str, heading: str, made: Html) -> Html:
    return tag("section", tag("h2", heading, id=f"{name}-heading"), made, id=name, aria_labelledby=f"{name}-heading")


def _sections(
    record: Record, drawn: Sequence[tuple[Figure, Html]], wording: Wording
) -> Iterator[tuple[str, str, Html]]:
    """Name, heading and what is in it; those that have nothing in them are left out."""
    yield "verdict", "What came out", sections.verdict(record, wording)
    if drawn:
        yield "figures", "In pictures", tag("div", *(pictured(*each) for each in drawn), class_="figures")
    if record.analysis.parts:
        yield "results", "Arm by arm", sections.results(record, wording)
    if (made := _world(record)) is not None:
        yield "world", "Energy, money and CO2", made
    if (made := reasons(record, wording)) is not None:
        yield "reasons", "Where it comes from", made
    if (made := sections.etas(record)) is not None:
        yield "eta", "What was required: η", made
    if (made := answers(record, wording)) is not None:
        yield "answers", "The answers", made
    yield "faults", "What was left out, and what failed", sections.faults(record)
    yield "method", "How it was done", sections.method(record, wording)
    yield "words", "What the words mean", sections.definitions()


def pictured(figure: Figure, picture: Html) -> Html:
    """A picture under its title, with its words and its numbers."""
    numbers = sections.table(figure.title, figure.columns, figure.rows)
    return tag(
        "figure",
        tag("h3", figure.title),
        picture,
        tag("figcaption", figure.says),
        tag("details", tag("summary", "The same in numbers"), numbers),
        id=f"figure-{figure.name}",
    )


def _world(record: Record) -> Html | None:
    """Of the part that stands for the run, by the counters."""
    source = record.analysis.source
    if record.shown is None or source is None:
        return None
    spent = []
    for arm in record.shown.arms:
        per_correct = arm.joules_per_correct
        spent.append(Spent(f"{arm.arm}: 1,000 correct answers", per_correct and 1000 * per_correct, source))
        spent.append(Spent(f"{arm.arm}: all that was asked", arm.energy_j, source))
    return worldly(spent, record.footprint)


def _when(record: Record) -> str:
    began = [block.started_wall for block in record.blocks]
    if not began:
        return "no block was run"
    return f"{len(began)} blocks from {datetime.fromisoformat(min(began)):%Y-%m-%d %H:%M %Z}"


def _style() -> str:
    light, dark = (_colours(colours) for colours in (svg.LIGHT_COLOURS, svg.DARK_COLOURS))
    sheet = resources.files("etameter.prompts.report").joinpath("style.css").read_text(encoding="utf-8")
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{sheet}"


def _colours(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
