"""Whether a night's alarm goes off, and for nothing else: nights of `make nightly-smoke` one after the other, real servers all, and one whose board takes more.

    make nightly-proof        or    python -m benchmarks.nightly_proof [--out DIR]

Two nights, of which the second has to be the same as the first; and a third in which the simulated board takes 10 % more energy for everything, which has to be a regression of that
size. Each takes up to 13 minutes. Nobody else should use the machine: the board's energy is a model's, and how many requests are answered at once is the CPU's.

With --out nights are kept, and those that are there already and are complete are not run again; of more than three the first three are told. Not for machines whose energy is measured: no counter can be told to tell more.
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
from etameter import config
from etameter.counters.simulated import GAIN_VARIABLE
from etameter.prompts.nightly import history
from etameter.prompts.nightly.night import Night
from etameter.prompts.nightly.verdict import Verdict, judge

CONFIG: Final = Path(__file__).parent / "nightly_smoke.toml"
MORE: Final = 0.10
TIMES_ENERGY: Final = (1.0, 1.0, 1 + MORE)
"""Of the three nights."""
SIZE: Final = 0.02
"""By so much the change may be told wrong."""


def night(runs: Path, times: float) -> None:
    """Runs one to its end. Exits where it could not be measured."""
    told = {**os.environ, "ETAMETER_NIGHTLY__RUNS": str(runs), GAIN_VARIABLE: f"{times:g}"}
    code = subprocess.run([sys.executable, "-m", "etameter", "nightly", str(CONFIG)], env=told, check=False).returncode
    if code not in (0, 3):
        sys.exit(code)


def nights(runs: Path) -> list[Night]:
    """Three of them, those that are missing run now. Exits where those that are there are no such nights."""
    for number, times in enumerate(TIMES_ENERGY):
        if len(found := complete(runs)) <= number:
            night(runs, times)
            found = complete(runs)
        if any(each.run.source != "simulated" for each in found):
            sys.exit("etameter: this machine's energy is measured, and can't be raised by 10 %")
        took = tuple(times_energy(each) for each in found)
        if took[: number + 1] != TIMES_ENERGY[: number + 1]:
            sys.exit(
                f"etameter: the nights in {runs} took {_listed(took)} times the model's energy, and the first should have taken {_listed(TIMES_ENERGY)} times: name an empty folder"
            )
    if more := found[len(TIMES_ENERGY) :]:
        print(f"{runs} holds {len(more)} more: what follows is of {', '.join(each.run.run_id for each in found[:3])}")
    return found[:3]


def complete(runs: Path) -> list[Night]:
    """Of this job, oldest first; one that ended in another way proves nothing."""
    told = history.nights(runs, config.load(CONFIG).nightly.name)
    return [each for each in told if each.run.status == "complete"]


def times_energy(told: Night) -> float:
    """What its board took of what the model says."""
    return float(told.run.details["sessions"][0]["boards"][0].get("times_energy", 1.0))


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


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
