"""How often a verdict on a night is a false alarm, and how soon a regression is found, on histories whose truth is known.

    python -m benchmarks.nightly [--quick] [--series N] [--seed N]

Histories are drawn from the noise model that the product ships (`etameter.prompts.nightly.noise`), which is an assumption, and put through what judges real ones. Young
histories are judged night after night from their second one on, and old ones with all that verdicts look back on. Beside it stand two rules that dashboards have: three
standard deviations of the nights before, and 5 % off their mean.

Figures have errors of their own, of another size every night, and verdicts don't know them: they learn them from five windows a night, as of real ones (`scatter`).

A false alarm is a night with an alarm after one without. Without `--quick`, false alarms are also counted in histories that scatter in ways that the model doesn't expect: twice and five times its spread, and nights that
resemble each other more.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Goal, finish
from etameter.prompts.nightly.noise import SHIPPED, Noise
from etameter.prompts.nightly.shift import RECENT, WINDOW, interval, shift
from etameter.prompts.nightly.verdict import MATTERS, NIGHTS_PER_FALSE_ALARM
from etameter.prompts.stats import t_quantile

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

ERROR: Final = 0.004
"""Of a figure in the median night: an interval of ±0.8 %."""
ERROR_FACTOR: Final = 1.35
"""What one standard deviation among nights multiplies it by; log-normal."""
WINDOWS: Final = 5
"""That it is from."""
STEP: Final = 0.05
"""Histories whose errors are told to be alike by so much are judged together."""
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


@dataclass(frozen=True, slots=True)
class Histories:
    """Both (histories, nights)."""

    values: Array
    """Logarithms of figures."""
    told: Array
    """Standard errors as a verdict in that night takes them, of all nights that it looks at; none in the first."""


def drawn(noise: Noise, generator: np.random.Generator, series: int, nights: int) -> Histories:
    """Differences of like windows scatter by the errors of both their nights; half of their variance is each night's."""
    errors = ERROR * ERROR_FACTOR ** generator.standard_normal((series, nights))
    squares = (errors[:, 1:] ** 2 + errors[:, :-1] ** 2) / 2 * generator.chisquare(WINDOWS - 1, (series, nights - 1))
    told = np.full((series, nights), np.nan)
    for night in range(1, nights):
        known = squares[:, max(0, night - LOOKED_BACK) : night]
        free = known.shape[1] * (WINDOWS - 1)
        told[:, night] = np.sqrt(known.sum(1) / free) * float(t_quantile(0.975, float(free))) / 1.959964
    return Histories(noise.draw(generator, series, nights, errors), told)


def ours(past: Histories, series: int) -> Mask:
    """(histories,) whether the last night raises an alarm, of a change for the worse or the better, held to so many series (at its strictest bound)."""
    alarm = np.zeros(len(past.values), bool)
    places = np.round(np.log(past.told[:, -1]) / STEP)
    for place in np.unique(places):
        alike = places == place
        found = shift(past.values[alike], np.full(past.values.shape[1], math.exp(STEP * place)))
        alarm[alike] = (found.p <= 1 / NIGHTS_PER_FALSE_ALARM / series) & (np.abs(np.expm1(found.log)) >= MATTERS)
    return alarm


def three_deviations(past: Histories) -> Mask:
    before = past.values[:, -1 - WINDOW : -1]
    if before.shape[1] < 3:
        return np.zeros(len(before), bool)
    return np.asarray(np.abs(past.values[:, -1] - before.mean(1)) > 3 * before.std(1, ddof=1))


def five_percent(past: Histories) -> Mask:
    return np.asarray(np.abs(past.values[:, -1] - past.values[:, -1 - WINDOW : -1].mean(1)) > math.log1p(0.05))


def until(histories: Histories, night: int) -> Histories:
    """As a verdict in that night sees them."""
    seen = slice(max(0, night - LOOKED_BACK), night + 1)
    return Histories(histories.values[:, seen], histories.told[:, seen])


def false_alarms(
    alarm: Callable[[Histories], Mask], noise: Noise, generator: np.random.Generator, series: int, nights: range
) -> float:
    """A year and series: nights with an alarm after one without, judged at each of `nights`."""
    histories = drawn(noise, generator, series, nights.stop)
    before = np.zeros(series, bool)
    count = 0
    for night in nights:
        now = alarm(until(histories, night))
        count += int((now & ~before).sum())
        before = now
    return count / (series * len(nights)) * 365


def found(
    alarm: Callable[[Histories], Mask], generator: np.random.Generator, series: int, before: int, factor: float
) -> list[float]:
    """Share of histories in which a step was found in its first night, its first two, …, `WITHIN`."""
    histories = drawn(SHIPPED, generator, series, before + WITHIN)
    histories.values[:, before:] += math.log(factor)
    seen = np.zeros(series, bool)
    shares = []
    for night in range(before, before + WITHIN):
        seen |= alarm(until(histories, night))
        shares.append(float(seen.mean()))
    return shares


def coverage(generator: np.random.Generator, series: int) -> float:
    histories = drawn(SHIPPED, generator, series, WINDOW + WITHIN)
    histories.values[:, WINDOW:] += math.log1p(PLANTED)
    places = np.round(np.log(histories.told[:, -1]) / STEP)
    held = 0
    for place in np.unique(places):
        errors = np.full(WINDOW + WITHIN, math.exp(STEP * place))
        low, high = interval(histories.values[places == place], errors, WITHIN)
        held += int(((low <= math.log1p(PLANTED)) & (math.log1p(PLANTED) <= high)).sum())
    return held / series


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

    def alone(past: Histories) -> Mask:
        return ours(past, 1)

    def among(past: Histories) -> Mask:
        return ours(past, HEADLINES)

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
