"""Takes the pictures of a page that the documents show: `python -m docs.pictures RUN/report.html`, or `arithmetic.html`, as `etameter arithmetic --html` writes it.

Needs Chromium (Debian's package chromium). What is in the pictures is what the run says; one of a simulated board says so on each.
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"
COLOURS = 128
"""Of a picture: text and lines need no more, and weigh less."""


@dataclass(frozen=True, slots=True)
class View:
    """How the page is looked at, and the part of it that is kept, in pixels from its top."""

    name: str
    width: int
    top: int
    bottom: int
    dark: bool = False


VIEWS = {
    "report.html": (
        View("report-light", 1100, 0, 1700),
        View("report-dark", 1100, 0, 1700, dark=True),
        View("report-narrow", 390, 0, 2400),
        View("report-wide", 1600, 0, 2300),
    ),
    "arithmetic.html": (View("arithmetic", 1100, 0, 1500),),
}
"""By the name of the page's file."""


def take(page: Path, view: View, folder: Path) -> Path:
    """One picture. Raises FileNotFoundError where there is no Chromium, CalledProcessError where it fails."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise FileNotFoundError("chromium")
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole.png"
        subprocess.run(
            [
                browser,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={scratch}",
                f"--blink-settings=preferredColorScheme={0 if view.dark else 1}",
                f"--window-size={view.width},{view.bottom}",
                f"--screenshot={whole}",
                page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        with Image.open(whole) as picture:
            kept = picture.convert("RGB").crop((0, view.top, view.width, view.bottom))
    taken = folder / f"{view.name}.png"
    kept.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(taken, optimize=True)
    return taken


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    if len(arguments) != 1 or not Path(arguments[0]).is_file() or Path(arguments[0]).name not in VIEWS:
        print(f"docs.pictures: name a page: python -m docs.pictures DIR/{'|'.join(VIEWS)}", file=sys.stderr)
        return 2
    IMAGES.mkdir(exist_ok=True)
    for view in VIEWS[Path(arguments[0]).name]:
        taken = take(Path(arguments[0]), view, IMAGES)
        print(f"{taken.relative_to(IMAGES.parent.parent)}: {taken.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
