"""A matplotlib figure as a picture in a page, whose colours the page chooses, and as a PNG.

Drawn once, in the colours of the light page; in the SVG each of these becomes the name of a colour, which the page's style sheet
fills in for light and dark.
"""

import importlib.util
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from etameter.errors import ExperimentError

from .markup import Html, tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

INK: Final = "#1c2126"
FAINT: Final = "#5b6570"
GRID: Final = "#dfe3e8"
PAPER: Final = "#fefefe"
# Okabe and Ito's colours, which people with any colour vision tell apart; the yellow and the lighter ones darkened until they show on white.
SERIES: Final = ("#c04a00", "#0072b2", "#00805d", "#a8477f", "#7d6a00", "#2a86bd", "#59616b")
"""The first is the control's."""
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "p")
"""One more than there are colours, so that an eighth arm is not taken for the first."""
HATCHES: Final = ("", "////", "xxxx", "----", "||||", "++++", "\\\\\\\\", "//")

_DARK: Final = ("#ff9a4d", "#56b4e9", "#3fd0a4", "#e59cc6", "#f0e442", "#a5d8f5", "#b6bec8")
_NAMED: Final = {INK: "ink", FAINT: "faint", GRID: "grid", PAPER: "paper"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}
LIGHT_COLOURS: Final = {name: colour for colour, name in _NAMED.items()}
DARK_COLOURS: Final = {"ink": "#e8ebee", "faint": "#a3adb8", "grid": "#353c44", "paper": "#14181c"} | {
    f"series-{number}": colour for number, colour in enumerate(_DARK)
}

WIDTH_IN: Final = 4.6
_FONT: Final = "DejaVu Sans"
_PNG_DPI: Final = 200
_STYLE: Final[dict[Any, Any]] = {
    "font.family": _FONT,
    "font.size": 9.5,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.0,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.5,
    "figure.facecolor": "none",
    "path.simplify": True,
}


def drawable() -> None:
    """Raises ExperimentError where matplotlib isn't installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ExperimentError("the report's figures need matplotlib", "pip install 'etameter[ab]'")


@contextmanager
def drawing(height_in: float) -> Iterator["Drawing"]:
    """An empty figure of the page's width, in the page's style.

    Raises:
        ExperimentError: matplotlib isn't installed.
    """
    drawable()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def inline(figure: "Drawing", name: str, title: str, says: str) -> Html:
    """The figure for a page: it scales, takes the page's colours, and says to a screen reader what it shows. Ids begin with `name`."""
    import matplotlib as mpl

    sink = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = sink.getvalue()[sink.getvalue().index("<svg") :]
    drawn = re.sub(r"<(metadata|style).*?</\1>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' d="[^"]*"', lambda found: _shortened(found[0]), drawn)
    drawn = _numbered(drawn)
    drawn = re.sub(r'\sid="([^"]*)"', rf' id="{name}-\1"', drawn)
    drawn = re.sub(r'xlink:href="#|url\(#', lambda found: found[0].replace("xlink:", "") + f"{name}-", drawn)
    drawn = re.sub(r"#[0-9a-f]{6}\b", lambda found: _colour(found[0]), drawn)
    drawn = drawn.replace(f"'{_FONT}'", f"'{_FONT}', Verdana, sans-serif")
    view = re.search(r'viewBox="[^"]*"', drawn)
    assert view is not None
    labels = tag("title", title, id=f"{name}-title") + tag("desc", says, id=f"{name}-desc")
    opening = f'<svg {view[0]} role="img" aria-labelledby="{name}-title {name}-desc">'
    return Html(opening + labels + drawn[drawn.index(">", drawn.index("<svg")) + 1 :])


def png(figure: "Drawing", path: Path, title: str) -> None:
    """The figure under its title, on white, 920 pixels wide."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figure.suptitle(title, fontsize=10.5)
        figure.savefig(path, dpi=_PNG_DPI, facecolor=PAPER, metadata={"Software": None})


def _numbered(drawn: str) -> str:
    """Markers and clips by number: matplotlib calls them by a hash that is another one where memory was laid out in another way."""
    numbers: dict[str, str] = {}
    return re.sub(
        r"\b[mp][0-9a-f]{10}\b", lambda found: numbers.setdefault(found[0], f"{found[0][0]}{len(numbers)}"), drawn
    )


def _shortened(path: str) -> str:
    """To hundredths of a point, in one line."""
    return " " + re.sub(r"(\.\d\d)\d+", r"\1", " ".join(path.split()))


def _colour(found: str) -> str:
    return f"var(--{_NAMED[found]})" if found in _NAMED else found
