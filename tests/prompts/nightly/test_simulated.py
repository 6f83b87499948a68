"""What `benchmarks.nightly` counts is what a verdict says: of the same histories, written out as nights with all of their rows."""

import math

import numpy as np
import pytest

from benchmarks.nightly import AS_SHIPPED, SERIES, TOGETHER, Histories, drawn, judged
from etameter.prompts.nightly.night import Night
from etameter.prompts.nightly.verdict import judge

from .laid_out import figure, run, stage_row

pytestmark = pytest.mark.unit


def night(histories: Histories, job: int, number: int) -> Night:
    """Windows of a thousand tokens each, whose joules move the figure as they are drawn to."""
    rows, figures = [], []
    for series in range(SERIES):
        moves, stage = histories.windows[job, series, number], f"batch-{series}"
        joules = 9000.0 * (1 / len(moves) + moves - moves.mean())
        rows += [
            stage_row(stage=stage, window=window, energy_j=each, output_tokens=1000)
            for window, each in enumerate(joules)
        ]
        figures.append(figure(stage=stage, value=math.exp(histories.values[job, series, number])))
    return Night(run(run_id=f"2026{number:04}T020000Z-0a1b2c3d"), tuple(rows), tuple(figures))


@pytest.mark.parametrize(
    ("nights", "factor", "stepped"), [(2, 1.0, 0), (4, 1.15, 1), (12, 1.05, 3), (40, 1.05, SERIES)]
)
def test_it_counts_what_a_verdict_says(nights: int, factor: float, stepped: int) -> None:
    jobs = 2
    histories = drawn(AS_SHIPPED, np.random.default_rng(nights), jobs, nights)
    histories.values[0, :stepped, -2:] += math.log(factor)
    histories.values[1, :stepped, -2:] -= math.log(factor)
    worse, better = judged(histories.until(nights - 1))[TOGETHER]
    before = list(histories.until(nights - 1).changes())
    for job in range(jobs):
        *earlier, tonight = [night(histories, job, number) for number in range(nights)]
        verdict = judge(earlier, tonight)
        words = {change.stage: change.word for change in verdict.changes}
        assert [words[f"batch-{each}"] == "worse" for each in range(SERIES)] == worse[job].tolist()
        assert [words[f"batch-{each}"] == "better" for each in range(SERIES)] == better[job].tolist()
        told = {change.stage: change for change in verdict.changes}
        for change in before[job]:
            assert told[change.stage].p == pytest.approx(change.p, rel=1e-6)
            assert told[change.stage].change == pytest.approx(change.change, rel=1e-6)
    assert (worse[0].any(), better[1].any()) == (stepped > 0, stepped > 0)


def test_the_error_that_a_verdict_takes_is_that_of_the_figures() -> None:
    """Each night's windows are in two differences: what is learned of them is no surer for it."""
    histories = drawn(AS_SHIPPED, np.random.default_rng(1), 40, 20)
    true = np.sqrt((histories.windows**2).sum(axis=-1).mean())
    assert np.sqrt((histories.errors() ** 2).mean()) == pytest.approx(true, rel=0.1)
