"""Draws the pictures of the live page in docs/images: `python -m docs.live_pictures`. It needs Debian's chromium, and three minutes.

A simulated board follows a made-up engine meanwhile, so every figure in them is simulated, and says so.

`--check` needs none of that: it says which pictures are of another state of the page, and exits 1.
"""

import hashlib
import io
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
PAGE = HERE.parent / "meter" / "export" / "page"
IMAGES = HERE / "images"
MANIFEST = IMAGES / "live-page.json"
CHROMIUM = "/usr/bin/chromium"
FILLED_MS = 125_000
"""By then the two minutes of power are full."""
FOLD = 740
"""So much of a page is seen before one scrolls."""
PICTURES: dict[str, tuple[int, int, Literal["light", "dark"]]] = {
    "live-page": (1280, FOLD, "light"),
    "live-page-light": (1280, 1000, "light"),
    "live-page-dark": (1280, 1000, "dark"),
    "live-page-phone": (390, 1400, "light"),
}


WHOLE = ("live-page-light", "live-page-dark")
"""Those that are drawn to the page's end."""


def hashes() -> dict[str, str]:
    """Of the page's files as they are, by their names."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(PAGE.iterdir())}


def stale() -> list[str]:
    """Files of the page that have changed since the pictures were drawn, and pictures that are missing."""
    drawn = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    now = hashes()
    changed = [name for name in sorted(drawn.keys() | now.keys()) if drawn.get(name) != now.get(name)]
    return changed + [f"{name}.png" for name in PICTURES if not (IMAGES / f"{name}.png").exists()]


def draw() -> None:
    """Draw all of them, and write down what they are of."""
    from playwright.sync_api import sync_playwright

    from tests.meter.export.stand import Stand

    drawn_of = hashes()
    options = ["--no-sandbox"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        stand = Stand(Path(directory), stack)
        stand.engine()
        playwright = stack.enter_context(sync_playwright())
        browser = stack.enter_context(playwright.chromium.launch(executable_path=CHROMIUM, args=options))
        pages = {}
        for name, (width, height, scheme) in PICTURES.items():
            pages[name] = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            pages[name].goto(stand.url)
        next(iter(pages.values())).wait_for_timeout(FILLED_MS)
        for name, page in pages.items():
            page.bring_to_front()
            page.wait_for_timeout(2000)
            _keep(page.screenshot(full_page=name in WHOLE), IMAGES / f"{name}.png")
            page.close()
    MANIFEST.write_text(json.dumps(drawn_of, indent=1) + "\n")


def _keep(png: bytes, path: Path) -> None:
    """With 256 colours, chosen so that small patches of one keep it: a third of the size."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def main(arguments: list[str]) -> int:
    """Draw, or with `--check` only look; returns the exit code."""
    if arguments == ["--check"]:
        old = stale()
        if old:
            sys.stderr.write(
                f"stale: the pictures of the live page ({', '.join(old)}); run `python -m docs.live_pictures`\n"
            )
        return 1 if old else 0
    if arguments:
        sys.stderr.write(f"docs.live_pictures: {' '.join(arguments)}: only --check is known\n")
        return 2
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
