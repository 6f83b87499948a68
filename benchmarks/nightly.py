"""How often a verdict on a night is a false alarm, and how soon a regression is found, on histories whose truth is known.

    python -m benchmarks.nightly [--quick] [--jobs N] [--seed N]

Histories are drawn from the noise model that the product ships (`etameter.prompts.nightly.noise`), which is an assumption, and put through what judges real ones: errors from like
windows (`scatter.pooled`), the shift of the last nights (`shift.shift`), and all series of a job held together (`verdict.held`). A test holds them against `verdict.judge` itself, on
nights with all their rows. Young histories are judged night after night from their second one on, and old ones with all that verdicts look back on. Beside it stand two rules that
dashboards have: three standard deviations of the nights before, and 5 % off their mean.

What is drawn is windows: five a night, and a figure's error is the sum of theirs, of another size every night. Verdicts don't know these sizes. What they learn of them is from
differences between each night and the next, so that each night's windows are in two of them, as in real histories.

A false alarm is a night with an alarm after one without. Without `--quick`, false alarms are also counted in histories that scatter in ways that the model doesn't expect.
"""

import argparse
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Goal, finish
from etameter.prompts.nightly.noise import SHIPPED, Noise
from etameter.prompts.nightly.scatter import pooled
from etameter.prompts.nightly.shift import RECENT, WINDOW, interval, shift
from etameter.prompts.nightly.verdict import Change, held

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

ERROR: Final = 0.004
"""Of a figure in the median night: an interval of ±0.8 %."""
ERROR_FACTOR: Final = 1.35
"""What one standard deviation among nights multiplies it by; log-normal."""
WINDOWS: Final = 5
"""That it is from."""
SERIES: Final = 8
"""That verdicts hold together; as many as a night of six stages and two arms has."""
PLANTED: Final = 0.05
WITHIN: Final = 3
LOOKED_BACK: Final = WINDOW + max(RECENT)
TOGETHER, ALONE = "held together", "alone"
AT_ONCE: Final = 50
"""Jobs whose shifts are computed together: 64 spreads of each of their nights are in memory."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """Histories that are not what verdicts expect."""

    noise: Noise
    together: float = 0.0
    """Correlation of a job's series in what nights differ by beside their errors; the model has none."""


AS_SHIPPED: Final = Misfit(SHIPPED)
MISFITS: Final[Mapping[str, Misfit]] = {
    "twice the spread": Misfit(replace(SHIPPED, spread=2 * SHIPPED.spread)),
    "5 times the spread": Misfit(replace(SHIPPED, spread=5 * SHIPPED.spread)),
    "correlation 0.6": Misfit(replace(SHIPPED, correlation=0.6)),
    "5 % of nights far off": Misfit(replace(SHIPPED, outliers=0.05)),
    "series of a night alike by 0.7": Misfit(SHIPPED, together=0.7),
}


@dataclass(frozen=True, slots=True)
class Histories:
    """Of jobs, each with all of its series."""

    values: Array
    """(jobs, series, nights) logarithms of figures."""
    windows: Array
    """(jobs, series, nights, windows): by how much each moves that logarithm."""

    def until(self, night: int) -> "Histories":
        """As a verdict in that night sees them."""
        seen = slice(max(0, night - LOOKED_BACK), night + 1)
        return Histories(self.values[:, :, seen], self.windows[:, :, seen])

    def errors(self) -> Array:
        """(jobs, series) as a verdict in the last night takes them for every night."""
        apart = np.diff(self.windows, axis=2)
        return np.array([[pooled(list(series)) for series in job] for job in apart], np.float64)

    def changes(self) -> Iterator[list[Change]]:
        """Of each job's series in the last night, before they are held to how many there are."""
        for first in range(0, len(self.values), AT_ONCE):
            some = Histories(self.values[first : first + AT_ONCE], self.windows[first : first + AT_ONCE])
            found = shift(some.values, np.repeat(some.errors()[..., None], some.values.shape[-1], axis=-1))
            for logs, chances in zip(found.log, found.p, strict=True):
                yield [_change(f"batch-{each}", *told) for each, told in enumerate(zip(logs, chances, strict=True))]


def _change(stage: str, log: float, p: float) -> Change:
    change = math.expm1(log)
    nights = (1, 1, "tonight")  # which nights they are changes neither what is told nor of what
    return Change(
        stage, "j_per_token", "J/token", "simulated", "unclear", None, change, change, change, float(p), *nights
    )


def drawn(misfit: Misfit, generator: np.random.Generator, jobs: int, nights: int) -> Histories:
    noise, together = misfit.noise, misfit.together
    one = replace(noise, spread=1.0, spread_factor=1.0)
    spreads = noise.spread * noise.spread_factor ** generator.standard_normal((jobs, SERIES, 1))
    own = one.draw(generator, jobs * SERIES, nights, 0.0).reshape(jobs, SERIES, nights)
    common = one.draw(generator, jobs, nights, 0.0)[:, None]
    sizes = ERROR * ERROR_FACTOR ** generator.standard_normal((jobs, SERIES, nights, 1))
    windows = sizes / math.sqrt(WINDOWS) * generator.standard_normal((jobs, SERIES, nights, WINDOWS))
    between = math.sqrt(together) * common + math.sqrt(1 - together) * own
    return Histories(spreads * between + windows.sum(axis=-1), windows)


Told = tuple[Mask, Mask]
"""(jobs, series): what is told as worse, and as better."""


def judged(past: Histories) -> dict[str, Told]:
    """Rule → what it tells of the last night: the verdict, the verdict on each series as if its job had no other, and those of dashboards."""
    changes = list(past.changes())
    return {
        TOGETHER: _told(changes),
        ALONE: _told([[change] for job in changes for change in job], past.values.shape[:2]),
        "3 deviations": three_deviations(past.values),
        "5 %": five_percent(past.values),
    }


def _told(jobs: Sequence[Sequence[Change]], shape: tuple[int, ...] | None = None) -> Told:
    words = [{change.stage: change.word for change in held(changes)} for changes in jobs]
    of_series = np.array(
        [[of_job[change.stage] for change in changes] for of_job, changes in zip(words, jobs, strict=True)]
    )
    if shape is not None:
        of_series = of_series.reshape(shape)
    return of_series == "worse", of_series == "better"


def three_deviations(values: Array) -> Told:
    before = values[..., -1 - WINDOW : -1]
    if before.shape[-1] < 3:
        return np.zeros(values.shape[:2], bool), np.zeros(values.shape[:2], bool)
    off = (values[..., -1] - before.mean(-1)) / before.std(-1, ddof=1)
    return off > 3, off < -3


def five_percent(values: Array) -> Told:
    off = values[..., -1] - values[..., -1 - WINDOW : -1].mean(-1)
    return off > math.log1p(0.05), off < -math.log1p(0.05)


def false_alarms(histories: Histories, nights: range) -> dict[str, tuple[float, float]]:
    """Rule → how many a year, of a series and of a job with all of its series; judged at each of `nights`."""
    jobs, series, _ = histories.values.shape
    before: dict[str, Mask] = defaultdict(lambda: np.zeros((jobs, series), bool))
    of_series: Counter[str] = Counter()
    of_jobs: Counter[str] = Counter()
    for night in nights:
        for rule, (worse, better) in judged(histories.until(night)).items():
            now, then = worse | better, before[rule]
            of_series[rule] += int((now & ~then).sum())
            of_jobs[rule] += int((now.any(axis=1) & ~then.any(axis=1)).sum())
            before[rule] = now
    years = jobs * len(nights) / 365
    return {rule: (of_series[rule] / (years * series), of_jobs[rule] / years) for rule in before}


def found(
    generator: np.random.Generator, jobs: int, before: int, factor: float, stepped: int
) -> dict[str, list[float]]:
    """Rule → share of jobs in which a step of so many series was told as worse in its first night, its first two, …, `WITHIN`."""
    histories = drawn(AS_SHIPPED, generator, jobs, before + WITHIN)
    histories.values[:, :stepped, before:] += math.log(factor)
    seen: dict[str, Mask] = defaultdict(lambda: np.zeros(jobs, bool))
    shares: dict[str, list[float]] = defaultdict(list)
    for night in range(before, before + WITHIN):
        for rule, (worse, _) in judged(histories.until(night)).items():
            seen[rule] |= worse[:, :stepped].any(axis=1)
            shares[rule].append(float(seen[rule].mean()))
    return dict(shares)


def coverage(generator: np.random.Generator, jobs: int) -> float:
    """Share of intervals over three nights that hold the step that they are of."""
    histories = drawn(AS_SHIPPED, generator, jobs, WINDOW + WITHIN)
    values = histories.values + math.log1p(PLANTED) * (np.arange(WINDOW + WITHIN) >= WINDOW)
    errors = np.repeat(histories.errors()[..., None], WINDOW + WITHIN, axis=-1)
    low, high = interval(values, errors, WITHIN)
    return float(((low <= math.log1p(PLANTED)) & (math.log1p(PLANTED) <= high)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nightly", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few histories, no misfits")
    parser.add_argument("--jobs", type=int, default=None, help="histories of eight series each (600, with --quick 40)")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    jobs = asked.jobs or (40 if asked.quick else 600)
    generator = np.random.default_rng(asked.seed)
    began = time.monotonic()
    young, old = range(1, 15), range(LOOKED_BACK, LOOKED_BACK + (10 if asked.quick else 30))
    alarms = {
        age: false_alarms(drawn(AS_SHIPPED, generator, jobs, nights.stop), nights)
        for age, nights in (("young", young), ("old", old))
    }
    steps = {
        (factor, before, stepped): found(generator, jobs, before, factor, stepped)
        for factor, before in ((1 + PLANTED, 2), (1 + PLANTED, 7), (1 + PLANTED, WINDOW), (1.1, 2), (1.1, WINDOW))
        for stepped in (1, SERIES)
    }
    misfits = {} if asked.quick else MISFITS
    misfitting = {
        name: false_alarms(drawn(misfit, generator, jobs // 3, old.stop), old) for name, misfit in misfits.items()
    }
    late = steps[1 + PLANTED, WINDOW, 1]
    year, share = "a year and series", "share"
    goals = [
        Goal("false_alarms_young", alarms["young"][ALONE][0], year, 1.0, "lower"),
        Goal("false_alarms_old", alarms["old"][ALONE][0], year, 1.0, "lower"),
        Goal("false_alarms_young_of_all", alarms["young"][TOGETHER][1], "a year and job", 1.0, "lower"),
        Goal("false_alarms_old_of_all", alarms["old"][TOGETHER][1], "a year and job", 1.0, "lower"),
        Goal("found_within_3_nights", late[ALONE][-1], share, 0.95, "higher"),
        Goal("found_within_3_nights_together", late[TOGETHER][-1], share, 0.95, "higher"),
        Goal("coverage", coverage(generator, jobs), share, 0.93, "higher"),
    ]
    context: dict[str, object] = {
        "jobs": jobs,
        "series": SERIES,
        "seed": asked.seed,
        "seconds": round(time.monotonic() - began, 1),
        "false_alarms": {age: _rounded(of_rules) for age, of_rules in alarms.items()},
        "found": {
            f"{factor:g} after {before} nights, of {stepped}": _rounded(of_rules)
            for (factor, before, stepped), of_rules in steps.items()
        },
        "false_alarms_misfit": {name: _rounded(of_rules) for name, of_rules in misfitting.items()},
    }
    finish("nightly", "simulated", goals, context)


def _rounded(of_rules: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {rule: [round(value, 3) for value in values] for rule, values in of_rules.items()}


if __name__ == "__main__":
    main()
