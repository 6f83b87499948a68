"""How often a verdict on a night is a false alarm, and how soon a regression is found, on histories whose truth is known.

    python -m benchmarks.nightly [--quick] [--series N] [--seed N]

Histories are drawn from the noise model that the product ships (`etameter.prompts.nightly.noise`), which is an assumption, and put through what judges real ones. Young
histories are judged night after night from their second one on, and old ones with all that verdicts look back on. Beside it stand two rules that dashboards have: three
standard deviations of the nights before, and 5 % off their mean.

A false alarm is a night with an alarm after one without. Without `--quick`, false alarms are also counted in histories that scatter in ways that the model doesn't expect: twice and five times its spread, and nights that
resemble each other more.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Goal, finish
from etameter.prompts.nightly.noise import SHIPPED, Noise
from etameter.prompts.nightly.shift import RECENT, WINDOW, interval, shift
from etameter.prompts.nightly.verdict import MATTERS, NIGHTS_PER_FALSE_ALARM

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

ERROR: Final = 0.004
"""Of a figure in its night: an interval of ±0.8 %."""
HEADLINES: Final = 8
"""Series that verdicts are held to together; as many as a night of six stages and two arms has."""
PLANTED: Final = 0.05
WITHIN: Final = 3
LOOKED_BACK: Final = WINDOW + max(RECENT)
MISFITS: Final[Mapping[str, Noise]] = {
    "twice the spread": replace(SHIPPED, spread=2 * SHIPPED.spread),
    "5 times the spread": replace(SHIPPED, spread=5 * SHIPPED.spread),
    "correlation 0.6": replace(SHIPPED, correlation=0.6),
    "5 % of nights far off": replace(SHIPPED, outliers=0.05),
}


def ours(values: Array, series: int) -> Mask:
    """(histories,) whether the last night raises an alarm, of a change for the worse or the better, held to so many series (at Holm's first step)."""
    found = shift(values, np.full(values.shape[-1], ERROR))
    return np.asarray((found.p <= 1 / NIGHTS_PER_FALSE_ALARM / series) & (np.abs(np.expm1(found.log)) >= MATTERS))


def three_deviations(values: Array) -> Mask:
    before = values[:, -1 - WINDOW : -1]
    if before.shape[1] < 3:
        return np.zeros(len(values), bool)
    return np.asarray(np.abs(values[:, -1] - before.mean(1)) > 3 * before.std(1, ddof=1))


def five_percent(values: Array) -> Mask:
    return np.asarray(np.abs(values[:, -1] - values[:, -1 - WINDOW : -1].mean(1)) > math.log1p(0.05))


def false_alarms(
    alarm: Callable[[Array], Mask], noise: Noise, generator: np.random.Generator, series: int, nights: range
) -> float:
    """A year and series: nights with an alarm after one without, judged at each of `nights`."""
    values = noise.draw(generator, series, nights.stop, ERROR)
    before = np.zeros(series, bool)
    count = 0
    for night in nights:
        now = alarm(values[:, max(0, night - LOOKED_BACK) : night + 1])
        count += int((now & ~before).sum())
        before = now
    return count / (series * len(nights)) * 365


def found(
    alarm: Callable[[Array], Mask], generator: np.random.Generator, series: int, before: int, factor: float
) -> list[float]:
    """Share of histories in which a step was found in its first night, its first two, …, `WITHIN`."""
    values = SHIPPED.draw(generator, series, before + WITHIN, ERROR)
    values[:, before:] += math.log(factor)
    seen = np.zeros(series, bool)
    shares = []
    for night in range(before, before + WITHIN):
        seen |= alarm(values[:, max(0, night - LOOKED_BACK) : night + 1])
        shares.append(float(seen.mean()))
    return shares


def coverage(generator: np.random.Generator, series: int) -> float:
    values = SHIPPED.draw(generator, series, WINDOW + WITHIN, ERROR)
    values[:, WINDOW:] += math.log1p(PLANTED)
    low, high = interval(values, np.full(WINDOW + WITHIN, ERROR), WITHIN)
    return float(((low <= math.log1p(PLANTED)) & (math.log1p(PLANTED) <= high)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nightly", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few histories, no misfits")
    parser.add_argument("--series", type=int, default=None, help="histories (4000, with --quick 300)")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    series = asked.series or (300 if asked.quick else 4000)
    generator = np.random.default_rng(asked.seed)
    began = time.monotonic()
    young, old = range(1, 15), range(LOOKED_BACK, LOOKED_BACK + (10 if asked.quick else 30))

    def alone(values: Array) -> Mask:
        return ours(values, 1)

    def among(values: Array) -> Mask:
        return ours(values, HEADLINES)

    alarms = {
        f"{age}, {name}": false_alarms(rule, SHIPPED, generator, series, nights)
        for age, nights in (("young", young), ("old", old))
        for name, rule in (
            ("one series", alone),
            (f"among {HEADLINES}", among),
            ("3 deviations", three_deviations),
            ("5 %", five_percent),
        )
    }
    steps = {
        f"{factor:g} after {before} nights, {name}": found(rule, generator, series, before, factor)
        for factor, before in ((1 + PLANTED, 2), (1 + PLANTED, 7), (1 + PLANTED, WINDOW), (1.1, 2), (1.1, WINDOW))
        for name, rule in (
            ("one series", alone),
            (f"among {HEADLINES}", among),
            ("3 deviations", three_deviations),
            ("5 %", five_percent),
        )
    }
    misfits = (
        {}
        if asked.quick
        else {name: false_alarms(alone, noise, generator, series // 4, old) for name, noise in MISFITS.items()}
    )
    goals = [
        Goal("false_alarms_young", alarms["young, one series"], "a year and series", 1.0, "lower"),
        Goal("false_alarms_old", alarms["old, one series"], "a year and series", 1.0, "lower"),
        Goal(
            f"false_alarms_among_{HEADLINES}",
            HEADLINES * alarms[f"old, among {HEADLINES}"],
            "a year for all",
            1.0,
            "lower",
        ),
        Goal(
            "found_within_3_nights",
            steps[f"{1 + PLANTED:g} after {WINDOW} nights, one series"][-1],
            "share",
            0.95,
            "higher",
        ),
        Goal(
            f"found_within_3_nights_among_{HEADLINES}",
            steps[f"{1 + PLANTED:g} after {WINDOW} nights, among {HEADLINES}"][-1],
            "share",
            0.95,
            "higher",
        ),
        Goal("coverage", coverage(generator, series), "share", 0.93, "higher"),
    ]
    context: dict[str, object] = {
        "series": series,
        "seed": asked.seed,
        "seconds": round(time.monotonic() - began, 1),
        "false_alarms": {name: round(value, 3) for name, value in alarms.items()},
        "found": {name: [round(share, 3) for share in shares] for name, shares in steps.items()},
        "false_alarms_misfit": {name: round(value, 3) for name, value in misfits.items()},
    }
    finish("nightly", "simulated", goals, context)


if __name__ == "__main__":
    main()
