"""Whether a night's alarm goes off, and for nothing else: nights of `make nightly-smoke` one after the other, real servers all, and one whose board takes more.

    make nightly-proof        or    python -m benchmarks.nightly_proof [--out DIR]

Two nights, of which the second has to be the same as the first; and a third in which the simulated board takes 10 % more energy for everything, which has to be a regression of that
size. Each takes up to 13 minutes. Nobody else should use the machine: the board's energy is a model's, and how many requests are answered at once is the CPU's.

With --out nights are kept, and those that are there already are not run again. Not for machines whose energy is measured: no counter can be told to tell more.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.report import Goal, finish
from etameter.counters.simulated import GAIN_VARIABLE
from etameter.prompts.nightly import history
from etameter.prompts.nightly.night import Night
from etameter.prompts.nightly.verdict import Verdict, judge

CONFIG: Final = Path(__file__).parent / "nightly_smoke.toml"
MORE: Final = 0.10
SIZE: Final = 0.02
"""By so much the change may be told wrong."""


def night(runs: Path, more: float) -> None:
    """Runs one to its end. Exits where it could not be measured."""
    told = {**os.environ, "ETAMETER_NIGHTLY__RUNS": str(runs), GAIN_VARIABLE: f"{1 + more:g}"}
    code = subprocess.run([sys.executable, "-m", "etameter", "nightly", str(CONFIG)], env=told, check=False).returncode
    if code not in (0, 3):
        sys.exit(code)


def nights(runs: Path) -> Sequence[Night]:
    for number, more in enumerate((0.0, 0.0, MORE)):
        found = history.nights(runs)
        if len(found) <= number:
            night(runs, more)
            found = history.nights(runs)
        if found[-1].run.source != "simulated":
            sys.exit("etameter: this machine's energy is measured, and can't be raised by 10 %")
    return found


def size(verdict: Verdict) -> float | None:
    """The change of the headline: the mean of all its series, each by its precision. Of those alone that are told as worse it would be too large."""
    told = [
        (change.change, (math.log1p(change.high) - math.log1p(change.low)) ** -2)
        for change in verdict.changes
        if change.headline and change.change is not None and change.low is not None and change.high is not None
    ]
    if not told:
        return None
    return sum(weight * change for change, weight in told) / sum(weight for _, weight in told)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nightly_proof", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="folder of the nights; by default they are not kept")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="etameter-proof-") as temporary:
        runs = asked.out or Path(temporary)
        runs.mkdir(parents=True, exist_ok=True)
        first, second, third = nights(runs)
        subprocess.run([sys.executable, "-m", "etameter", "history", str(runs)], check=False)
    like, unlike = judge([first], second), judge([first, second], third)
    told = size(unlike)
    held = [
        change.low <= MORE <= change.high
        for change in unlike.changes
        if change.headline and change.low is not None and change.high is not None
    ]
    goals = [
        Goal("second_night_same", float(like.word == "same"), "1", 1.0, "higher"),
        Goal("third_night_regression", float(unlike.word == "regression"), "1", 1.0, "higher"),
        Goal("size_off_by", None if told is None else abs(told - MORE), "1", SIZE, "lower"),
        Goal("size_told", told, "1", None, "higher"),
        Goal("intervals_that_hold_it", sum(held) / len(held) if held else None, "share", None, "higher"),
    ]
    context: dict[str, object] = {
        "words": [like.word, unlike.word],
        "changes": {
            name: {
                change.series: _rounded((change.change, change.low, change.high))
                for change in verdict.changes
                if change.headline
            }
            for name, verdict in (("second", like), ("third", unlike))
        },
    }
    finish("nightly_proof", "simulated", goals, context)


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in values]


if __name__ == "__main__":
    main()
