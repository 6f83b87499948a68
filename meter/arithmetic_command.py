"""`etameter arithmetic`: the documents' claims recomputed, with any input replaced by one's own or by what a run measured."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from etameter.arithmetic import INPUTS, recompute, report
from etameter.arithmetic.rows import Inputs, with_value
from etameter.errors import InputError

_SETTING: Final = re.compile(r"\s*(?P<name>\w+)\s*=\s*(?P<value>[^\s]+)(\s+(?P<unit>\S+))?\s*")


def inputs_of(settings: Sequence[str], measured: Sequence[Path], curve: Path | None) -> Inputs:
    """The documents' inputs, those replaced that runs tell, then those that are set, then what a curve says of them.

    Raises:
        InputError: a setting is not one, or a file tells nothing.
        EtameterError: there is no such run.
    """
    inputs: Inputs = INPUTS
    for each in measured:
        inputs = of_report(inputs, each) if each.suffix == ".json" else of_run(inputs, each)
    for setting in settings:
        inputs = replaced(inputs, setting)
    return inputs if curve is None else of_curve(inputs, curve)


def run(inputs: Inputs, *, as_json: bool) -> str:
    """What is printed."""
    told = recompute(inputs)
    return report.as_json(told, inputs) if as_json else report.as_text(told, inputs)


def write(inputs: Inputs, file: Path) -> None:
    """The same as a page. Raises ExperimentError where matplotlib isn't installed, OSError as of a full disk."""
    from .arithmetic.page import page

    file.write_text(page(recompute(inputs), inputs), encoding="utf-8")


def of_run(inputs: Inputs, folder: Path) -> Inputs:
    """The inputs, those replaced that the run of a comparison or of a night tells."""
    from .arithmetic.measured import with_night, with_run  # tables are read by pyarrow, which nothing else here needs
    from .prompts.nightly import night
    from .prompts.results import RUN_FILE, taken

    home = folder.parent if folder.suffix == ".parquet" else folder
    if (home / night.FIGURES_FILE).exists():
        return with_night(inputs, night.read(home))
    run = taken(folder)
    boards = len(run.about.get("boards") or ()) or 1
    return with_run(inputs, analysis_of(home / RUN_FILE), run.blocks, run.outcomes, boards)


def of_report(inputs: Inputs, file: Path) -> Inputs:
    """The inputs with what `etameter demo --json` or `etameter eta branching --json` has found."""
    from .arithmetic.measured import with_branching, with_demo

    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} can't be read ({error})",
            "give what `etameter eta branching --json` or `etameter demo --json` prints",
        ) from error
    return with_demo(inputs, told) if "requests" in told else with_branching(inputs, told)


def of_curve(inputs: Inputs, file: Path) -> Inputs:
    """The inputs with what can be had by moving load: lines of hour,value, with or without a heading."""
    from .arithmetic.measured import with_curve

    try:
        rows = list(csv.reader(file.read_text(encoding="utf-8").splitlines()))
        start = 1 if rows and not _is_number(rows[0][-1]) else 0
        values = [float(value) for _, value in rows[start:]]
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{file} is no curve ({error})", "give lines of hour,value") from error
    return with_curve(inputs, values)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def replaced(inputs: Inputs, setting: str) -> Inputs:
    """`NAME=VALUE`, or `NAME=VALUE UNIT`."""
    found = _SETTING.fullmatch(setting)
    try:
        value = float(found["value"]) if found else None
    except ValueError:
        value = None
    if found is None or value is None:
        raise InputError(f"{setting!r} sets nothing", "write NAME=VALUE, or 'NAME=VALUE UNIT'")
    return with_value(inputs, found["name"], value, found["unit"])


def analysis_of(file: Path) -> dict[str, Any]:
    """Of a run that has ended."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["analysis"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{file} tells no analysis ({error})", "name the folder of a run that has ended") from error
    return found
