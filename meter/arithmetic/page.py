"""The recomputed arithmetic as a page: verdicts, plots of what hangs on what, and every row with its inputs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from etameter.arithmetic import INPUTS, WHAT_IF, report
from etameter.arithmetic.machine import ENERGY_SHARES, SHARES
from etameter.arithmetic.rows import TITLES, Bar, Inputs, Result, Row, figure, tornado, work_out
from etameter.prompts.report import svg
from etameter.prompts.report.figure import Figure
from etameter.prompts.report.markup import Html, join, tag
from etameter.prompts.report.page import document, pictured
from etameter.prompts.report.sections import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

TITLE: Final = "The documents' arithmetic"
SIMULATED: Final = (
    "SIMULATED: what rests on simulated joules says so in its cell; no joule behind it is a measurement of hardware."
)
ETAS: Final = ("eta-unconstrained", "eta-entrace", "eta-seed", "eta-deterministic")
_COLUMNS: Final = ("name", "claim", "verdict", "printed", "recomputed", "how, and why")


def page(results: Sequence[Result], inputs: Inputs) -> str:
    """The whole document.

    Raises:
        ExperimentError: matplotlib isn't installed.
    """
    simulated = any(each.origin == "simulated" for each in inputs.values())
    verdicts = Counter(each.verdict for each in results if each.verdict is not None)
    told = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    heading = join(
        tag("h1", TITLE),
        tag("p", f"Claims of three documents, recomputed from named inputs: {told}.", class_="faint"),
    )
    return document(f"etameter: {TITLE}", heading, SIMULATED if simulated else None, list(_sections(results, inputs)))


def _sections(results: Sequence[Result], inputs: Inputs) -> Iterator[tuple[str, str, Html]]:
    named = {each.row.name: each for each in results}
    pictures = [*(_what_if(row, inputs) for row in WHAT_IF), _etas(named), _shares(named["energy-shares"])]
    yield "pictures", "In pictures", tag("div", *(_drawn(each) for each in pictures), class_="figures")
    for letter, title in TITLES.items():
        rows = [_claim(each) for each in results if each.row.document == letter]
        yield f"document-{letter}", title, table(title, _COLUMNS, rows)
    yield "inputs", "Inputs", table("Inputs", ("input", "value", "unit", "what", "from"), _inputs(inputs))


def _drawn(made: Figure) -> Html:
    with svg.drawing(made.height_in) as drawing:
        made.draw(drawing)
        return pictured(made, svg.inline(drawing, made.name, made.title, made.says))


def _what_if(row: Row, inputs: Inputs) -> Figure:
    """A tornado: one input at a time at either end of its range."""
    bars = tornado(row, inputs)
    simulated = {name for name in row.inputs if inputs[name].origin == "simulated"}
    word = ", SIMULATED" if simulated else ""

    def draw(drawing: "Drawing") -> None:
        axes = drawing.add_subplot()
        for place, bar in enumerate(reversed(bars)):
            low, high = sorted(bar.outcome)
            axes.barh(place, high - low, left=low, color=svg.SERIES[1], height=0.5)
            axes.annotate(
                _span(bar), (low, place), xytext=(0, 12), textcoords="offset points", fontsize=7.5, color=svg.FAINT
            )
        now = work_out(row, inputs).recomputed
        if now is not None:
            axes.axvline(now[0], color=svg.SERIES[0], linewidth=1.2)
        axes.use_sticky_edges = False
        axes.margins(x=0.06)
        _named(axes, [bar.name for bar in reversed(bars)])
        axes.set_ylim(-0.6, len(bars) - 0.2)
        axes.set_xlabel(f"{report.named(row.unit)}{word}")

    cells = [(bar.name, _span(bar), f"{' to '.join(map(figure, bar.outcome))}{word.lower()}") for bar in bars]
    return Figure(
        f"what-if-{row.name}",
        f"What if: {row.what}",
        "One input at a time at the ends of its range, the others as they are, which gives the line; what matters most is on top.",
        ("input", "from", report.named(row.unit)),
        tuple(cells),
        0.9 + 0.45 * len(bars),
        draw,
    )


def _etas(named: Mapping[str, Result]) -> Figure:
    """What is claimed, as a band, beside what was measured with its interval."""
    results = [named[name] for name in ETAS]

    def draw(drawing: "Drawing") -> None:
        axes = drawing.add_subplot()
        for place, each in enumerate(reversed(results)):
            assert each.row.printed is not None
            low, high = each.row.printed
            axes.barh(place + 0.14, high - low, left=low, height=0.24, color=svg.SERIES[6])
            if each.recomputed is None:
                continue
            if each.interval is not None:
                axes.plot(each.interval, [place - 0.16] * 2, color=svg.SERIES[1], linewidth=1.6)
            axes.plot(each.recomputed, [place - 0.16], color=svg.SERIES[1], marker="o", markersize=5)
        _named(axes, [each.row.name.removeprefix("eta-") for each in reversed(results)])
        axes.set_xlim(0.0, 1.02)
        axes.set_ylim(-0.6, len(results) - 0.4)
        axes.set_xlabel("η")

    cells = [
        (each.row.what, report.figures(each.row.printed), report.recomputed(each), each.verdict or each.reason)
        for each in results
    ]
    return Figure(
        "eta",
        "η by condition: claimed and measured",
        "Grey: the range that is claimed. A mark: what was measured, its line the 95 % interval; none where no run tells.",
        ("condition", "claimed", "measured", "verdict"),
        tuple(cells),
        2.3,
        draw,
    )


def _shares(result: Result) -> Figure:
    """Of an output token's joules, by coefficient."""
    shares = result.recomputed or ()
    word = ", SIMULATED" if result.origin == "simulated" else ""

    def draw(drawing: "Drawing") -> None:
        axes = drawing.add_subplot()
        for place, share in enumerate(reversed(shares)):
            axes.barh(place, share, color=svg.SERIES[1], height=0.55)
        _named(axes, list(reversed(SHARES)))
        axes.set_xlabel(f"% of J/token{word}")

    cells = [(name, f"{share:.3g} %{word.lower()}") for name, share in zip(SHARES, shares, strict=False)]
    return Figure(
        "shares",
        "What an output token's joules go to",
        f"{ENERGY_SHARES.formula}. The least certain of what goes into it is {result.origin}; the table of inputs says more.",
        ("part", "share"),
        tuple(cells),
        2.0,
        draw,
    )


def _named(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False, axis="y")


def _span(bar: Bar) -> str:
    return " to ".join(map(figure, bar.span))


def _claim(each: Result) -> tuple[str | Html, ...]:
    row = each.row
    return (
        row.name,
        f"{row.what}, {unit}" if (unit := report.named(row.unit)) else row.what,
        each.verdict or report.DASH,
        report.figures(row.printed),
        report.recomputed(each),
        f"{row.formula}; {each.reason}" if each.reason else row.formula,
    )


def _inputs(inputs: Inputs) -> Iterator[tuple[str | Html, ...]]:
    """Those that were replaced first."""
    for name, each in sorted(inputs.items(), key=lambda item: item[1] == INPUTS[item[0]]):
        value = report.DASH if each.value is None else figure(each.value)
        word = " (simulated)" if each.origin == "simulated" else ""
        yield name, f"{value}{word}", report.named(each.unit), each.meaning, report.came_from(each)
