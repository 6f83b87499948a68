"""`etameter facts`: the label of a model on a server, from what a run measured."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from . import config, facts, facts_label
from .carbon import footprint_of
from .errors import InputError
from .facts import Facts
from .prompts.nightly import night
from .prompts.results import RUN_FILE, taken

SCALE: Final = 2.0
"""Pixels of the PNG for each unit of the drawing."""
_REMEDY: Final = "name the folder of a run of `etameter ab` or `etameter nightly` that has ended"


def found(folder: Path, arm: str | None, stage: str | None) -> Facts:
    """The facts of a run.

    Raises:
        InputError: the folder holds no run that has ended, or the run has no such arm or stage.
        FootprintError: factors are configured that contradict each other.
    """
    footprint = footprint_of(config.load().footprint)
    try:
        told = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} tells no run ({error})", _REMEDY) from error
    if "analysis" in told:
        if stage is not None:
            raise InputError("--stage is of nights, and this is a comparison", "name an arm with --arm")
        run = taken(folder)
        return facts.of_comparison(told["analysis"], run.about, run.blocks, run.outcomes, arm, footprint)
    if arm is not None:
        raise InputError(
            "--arm is of comparisons, and this is a night", "name a stage with --stage, such as ab-fixed/ARM"
        )
    whole = night.read(folder)
    return facts.of_night(whole, stage or whole.stands_for_it(), footprint)


def write(made: Facts, folder: Path) -> list[Path]:
    """Writes `facts.json`, `facts.svg`, `facts.html` and, where the means are installed, `facts.png`. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = facts_label.svg(made)
    texts = {"facts.json": as_json(made) + "\n", "facts.svg": drawn, "facts.html": facts_label.page(made)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    files = [folder / name for name in texts]
    if drawable():
        files.append(folder / "facts.png")
        files[-1].write_bytes(_png(drawn))
    return files


def as_json(made: Facts) -> str:
    """The label for programs; `schema` changes whenever a key does."""
    return json.dumps({"schema": 1, **asdict(made)}, ensure_ascii=False, allow_nan=False)


def as_text(made: Facts) -> str:
    """The label's words, a line each."""
    rows = [f"{fact.name}: {facts_label.written(fact)}" for fact in made.facts]
    return "\n".join([f"{made.model} on {made.hardware} ({made.source}), {made.asked}", *rows])


def drawable() -> bool:
    """Whether a PNG can be made: resvg draws it, in the font that matplotlib brings."""
    return all(importlib.util.find_spec(name) is not None for name in ("resvg_py", "matplotlib"))


def _png(drawn: str) -> bytes:
    import matplotlib as mpl
    import resvg_py

    fonts = str(Path(mpl.get_data_path(), "fonts", "ttf"))
    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=drawn, zoom=SCALE, background="#ffffff", skip_system_fonts=True, font_dirs=[fonts]
        )
    )
