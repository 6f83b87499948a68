import dataclasses
import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.costs import COMPUTING, READING, prior
from etameter.fit import MIN_INTERVALS, CostFit
from etameter.least_squares import ridge_nnls
from etameter.records import Interval
from etameter.work import TERMS, Step, Work
from tests.meter.laid_out import Scheduled, step_of

pytestmark = pytest.mark.unit

MS = 1_000_000
TRUE = np.array([120.0, 1.9, 0.014, 5e-7, 0.025, 3.4e-5, 0.0, 0.0, 0.0])
READING_S = [0.0, 0.005, 0.0, 0.0, 1e-4, 1e-8, 0.0, 0.0, 0.0]
COMPUTING_S = [0.0, 0.005, 2e-5, 0.0, 2e-5, 0.0, 0.0, 0.0, 0.0]
GUESS = prior((TRUE * [2.0, 0.5, 1.5, 1.0, 0.6, 2.0, 1.0, 1.0, 1.0]).tolist(), [READING_S, COMPUTING_S])


def load(
    seed: int, seconds: float, *, steady: bool = False, limit_w: float = math.inf, lag_ms: int = 0, idle: bool = True
) -> tuple[list[Step], list[Interval]]:
    """Steps of many kinds, and the joules that the true coefficients give each 100 ms, published `lag_ms` later."""
    rng = np.random.default_rng(seed)
    steps: list[Step] = []
    at_ns = 0
    while at_ns < seconds * 1e9:
        batch = 4 if steady else int(rng.integers(1, 12))
        context = 500 if steady else int(rng.integers(1, 4000))
        rows = [Scheduled(f"d{i}", 0, 1, context_tokens=context) for i in range(batch)]
        if not steady and rng.random() < 0.3:
            rows.append(Scheduled("p", int(rng.integers(1, 2000)), 0))
        if idle and not steady and rng.random() < 0.2:
            at_ns += int(rng.integers(1, 200)) * MS
        length_ns = int(10 * MS + sum(row.prefill_tokens for row in rows) * 20_000)
        steps.append(step_of(len(steps), at_ns, at_ns + length_ns, rows))
        at_ns += length_ns
    work = Work(steps)
    knots = np.stack([work.start_ns, work.end_ns], axis=1).reshape(-1)
    joules = np.zeros(len(knots))
    above_idle_j = np.minimum(work.step_features[:, 1:] @ TRUE[1:], (limit_w - TRUE[0]) * work.step_features[:, 0])
    joules[1::2] = np.cumsum(above_idle_j)
    joules[2::2] = joules[1:-1:2]
    edges = np.arange(0, at_ns, 100 * MS)
    spent = np.interp(edges, knots, joules) + TRUE[0] * edges * 1e-9
    lag_ns = lag_ms * MS
    intervals = [
        Interval("GPU-0", int(a) + lag_ns, int(b) + lag_ns, float(after - before), 2 * MS, 2 * MS)
        for a, b, before, after in zip(edges, edges[1:], spent, spent[1:], strict=False)
    ]
    return steps, intervals


def fitted(steps: list[Step], intervals: list[Interval], limit_w: float | None = None) -> CostFit:
    fit = CostFit(GUESS)
    fit.limit(limit_w)
    fit.add_steps(Work(steps))
    for interval in intervals:
        fit.add_interval(interval)
    fit.fit()
    return fit


def test_a_varied_load_identifies_the_costs() -> None:
    costs = fitted(*load(1, 60)).costs
    modelled = TRUE[[0, 1, 2, 5]]
    assert costs.energy[[0, 1, 2, 5]] == pytest.approx(modelled, rel=0.15)
    assert costs.lag_ns == pytest.approx(0, abs=MS)
    assert costs.time_s[READING, 1] == pytest.approx(0.010, rel=0.05)
    assert costs.time_s[COMPUTING, 1] == pytest.approx(0.010, rel=0.05)
    assert costs.time_s[COMPUTING, 2] == pytest.approx(20e-6, rel=0.05)
    assert not {"p0_w", "c_j", "a_j", "d_j"} & set(costs.unidentified)
    assert costs.residual is not None
    assert costs.residual < 0.01


def test_a_steady_load_leaves_the_sum_right_and_the_covariance_wide() -> None:
    steps, intervals = load(1, 60, steady=True)
    costs = fitted(steps, intervals).costs
    features = Work(steps[5:15]).step_features
    true_j = features @ TRUE
    assert costs.step_energy(features) == pytest.approx(true_j, rel=0.02)
    assert {"c_j", "b_j", "d_j"} <= set(costs.unidentified)  # always together
    assert not {"a_j", "a2_j", "adapter_j", "experts_j"} & set(costs.unidentified)  # not there
    relative = costs.standard_errors[:6] / GUESS.energy[:6]
    assert relative[2] > 0.5  # no prefill was seen: as unsure as the prior
    varied = fitted(*load(1, 60)).costs
    assert np.sqrt(np.diag(varied.covariance))[2] < 0.1 * np.sqrt(np.diag(costs.covariance))[2]


def test_the_prior_stands_until_there_is_enough() -> None:
    steps, intervals = load(2, 10)
    few = fitted(steps, intervals[: MIN_INTERVALS - 1])
    assert few.costs.intervals == 0
    assert few.costs.energy is GUESS.energy
    assert fitted([], intervals).costs.energy is GUESS.energy


def test_a_new_epoch_begins_with_what_was_learned() -> None:
    fit = fitted(*load(3, 30))
    learned = fit.costs
    fit.restart()
    assert fit.fit() is learned
    for interval in load(3, 30)[1]:
        fit.add_interval(interval)
    assert fit.fit().energy == pytest.approx(learned.energy, rel=0.2, abs=1e-9)


def test_steps_at_the_power_limit_do_not_spoil_the_costs() -> None:
    """Most prefills run at the limit; a linear fit would take them for cheap."""
    steps, intervals = load(1, 60, limit_w=600.0)
    assert np.mean(Work(steps).step_features @ TRUE > 600.0 * Work(steps).step_features[:, 0]) > 0.2
    modelled = TRUE[[0, 1, 2, 5]]
    known = fitted(steps, intervals, 600.0).costs
    assert known.energy[[0, 1, 2, 5]] == pytest.approx(modelled, rel=0.15)
    assert known.residual is not None
    assert known.residual < 0.01
    unaware = fitted(steps, intervals).costs
    assert unaware.residual is not None
    assert unaware.residual > 2 * known.residual


def test_coefficients_that_are_too_high_come_down_though_they_explain_a_board_at_its_limit() -> None:
    high = prior((2.5 * TRUE).tolist(), [READING_S, COMPUTING_S])
    steps, intervals = load(1, 60, limit_w=600.0, idle=False)
    fit = CostFit(high)
    fit.limit(600.0)
    fit.add_steps(Work(steps))
    for interval in intervals:
        fit.add_interval(interval)
    features = Work(steps).step_features
    true_j = np.minimum(features @ TRUE, 600.0 * features[:, 0])
    assert fit.costs.step_energy(features).sum() > 1.1 * true_j.sum()
    assert fit.fit().step_energy(features).sum() == pytest.approx(true_j.sum(), rel=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_noise_at_the_limit_is_not_taken_for_costs(seed: int) -> None:
    """Few intervals, all at the limit: coefficients that follow their noise fit them better, and are less likely for it."""
    rng = np.random.default_rng(seed)
    steps, intervals, at_ns = [], [], 0
    for number in range(90):
        rows = [
            Scheduled(f"d{i}", 0, 1, context_tokens=int(rng.integers(500, 4000))) for i in range(rng.integers(1, 9))
        ]
        rows.append(Scheduled("p", 1024 - len(rows), 0))
        steps.append(step_of(number, at_ns, at_ns + 34 * MS, rows))
        at_ns += 34 * MS
        if number % 3 == 2:
            spent_j = 500.0 * 0.102 * (1 + 0.025 * rng.standard_normal())
            intervals.append(Interval("GPU-0", at_ns - 102 * MS, at_ns, spent_j, MS, MS))
    fit = CostFit(prior(TRUE.tolist(), [READING_S, COMPUTING_S]))
    fit.limit(500.0)
    features = Work(steps).step_features
    assert np.all(fit.costs.capped(features))
    fit.add_steps(Work(steps))
    for interval in intervals:
        fit.add_interval(interval)
    assert np.all(fit.fit().capped(features))


@pytest.mark.parametrize("lag_ms", [0, 37, 120])
def test_the_lag_is_learned_and_not_washed_away_by_a_steady_load(lag_ms: int) -> None:
    steps, intervals = load(4, 40, lag_ms=lag_ms)
    fit = fitted(steps, intervals)
    assert fit.costs.lag_ns == pytest.approx(lag_ms * MS, abs=3 * MS)
    assert fit.costs.lag_error_ns < 5 * MS
    later_ns = intervals[-1].end_ns - lag_ms * MS
    steady_steps, steady = load(5, 60, steady=True, lag_ms=lag_ms)
    fit.add_steps(
        Work(
            [
                dataclasses.replace(each, dispatch_ns=each.dispatch_ns + later_ns, done_ns=each.done_ns + later_ns)
                for each in steady_steps
            ]
        )
    )
    for index, interval in enumerate(steady):
        fit.add_interval(
            dataclasses.replace(interval, start_ns=interval.start_ns + later_ns, end_ns=interval.end_ns + later_ns)
        )
        if index % 100 == 99:
            fit.fit()
    assert fit.costs.lag_ns == pytest.approx(lag_ms * MS, abs=3 * MS)


def test_an_idle_board_tells_nothing_of_the_lag() -> None:
    steps, intervals = load(1, 30, lag_ms=37)
    fit = fitted(steps, intervals)
    known = fit.costs.lag_ns
    for index in range(500):
        at_ns = intervals[-1].end_ns + index * 100 * MS
        fit.add_interval(Interval("GPU-0", at_ns, at_ns + 100 * MS, 12.0, 2 * MS, 2 * MS))
    fit.fit()
    for index in range(500, 600):
        at_ns = intervals[-1].end_ns + index * 100 * MS
        fit.add_interval(Interval("GPU-0", at_ns, at_ns + 100 * MS, 12.0, 2 * MS, 2 * MS))
    assert fit.fit().lag_ns == pytest.approx(known, abs=2 * MS)


def test_a_steady_load_does_not_tell_the_lag() -> None:
    steps, intervals = load(1, 60, steady=True)
    assert fitted(steps, intervals[5:-5]).costs.lag_error_ns >= 50 * MS  # but its begin and its end do


def test_noise_of_steps_is_told_from_unevenness_within_them() -> None:
    """Steps of 130 ms: intervals of 100 ms hold parts of them."""
    found = {}
    for noise, unevenness in ((0.08, 0.0), (0.0, 0.08)):
        rng = np.random.default_rng(6)
        rows = [Scheduled("p", 4000, 0)]
        steps = [step_of(index, index * 130 * MS, (index + 1) * 130 * MS, rows) for index in range(900)]
        step_j = float(Work(steps[:1]).step_features[0] @ TRUE)
        whole = step_j * (1 + noise * rng.standard_normal(len(steps)))
        half = whole * (1 + unevenness * rng.standard_normal(len(steps))) / 2
        knots = np.arange(2 * len(steps) + 1) * 65 * MS
        spent = np.concatenate([[0.0], np.cumsum(np.stack([half, whole - half], axis=1).reshape(-1))])
        edges = np.arange(0, 900 * 130 * MS, 100 * MS)
        joules = np.interp(edges, knots, spent)
        intervals = [
            Interval("GPU-0", int(a), int(b), float(after - before), 0, 0)
            for a, b, before, after in zip(edges, edges[1:], joules, joules[1:], strict=False)
        ]
        costs = fitted(steps, intervals).costs
        found[noise] = costs.step_noise, costs.unevenness
    assert found[0.08][0] > 2 * found[0.08][1]
    assert found[0.0][1] > 2 * found[0.0][0]


@given(st.integers(0, 2**16))
def test_no_work_gives_energy_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    design = rng.random((30, 6)) * np.array([0.1, 10, 1000, 1e6, 100, 1e5])
    target = rng.normal(size=30) * 100
    energy, covariance = ridge_nnls(design, target, GUESS.energy[:6], GUESS.covariance[:6, :6])
    assert float(np.min(energy)) >= 0
    assert float(np.min(np.linalg.eigvalsh(covariance / np.outer(GUESS.energy[:6], GUESS.energy[:6])))) > 0


def test_ridge_nnls_finds_the_constrained_minimum() -> None:
    """Against a fine search over the one coefficient that stays free."""
    design = np.zeros((2, 6))
    design[:, 0], design[:, 1] = [1.0, 1.0], [1.0, 2.0]
    target = np.array([10.0, -50.0])
    energy, _ = ridge_nnls(design, target, GUESS.energy[:6], GUESS.covariance[:6, :6])
    assert energy[1] == 0.0

    def loss(power_w: float) -> float:
        sigma = float(np.sqrt(GUESS.covariance[0, 0]))
        return float(np.sum((power_w - target) ** 2) + ((power_w - GUESS.energy[0]) / sigma) ** 2)

    grid = np.linspace(0, 50, 5001)
    assert energy[0] == pytest.approx(grid[np.argmin([loss(value) for value in grid])], abs=0.011)


def test_a_fit_of_an_earlier_form_of_the_model_is_not_used() -> None:
    fit = CostFit(GUESS, ([1.0] * 6, [0.1] * 6))  # type: ignore[list-item]  # what a ledger of then holds
    assert fit.costs is GUESS


def test_a_fit_that_is_no_number_is_not_used() -> None:
    broken = [math.nan, *GUESS.energy.tolist()[1:]]
    assert CostFit(GUESS, (broken, GUESS.time_s.tolist())).costs is GUESS
    assert CostFit(GUESS, (GUESS.energy.tolist(), [broken, broken])).costs is GUESS


def test_a_coefficient_that_one_load_did_not_show_may_still_come() -> None:
    fit = CostFit(GUESS, (np.where(np.arange(len(TERMS)) == 5, 0.0, TRUE).tolist(), GUESS.time_s.tolist()))
    steps, intervals = load(5, 60)
    fit.add_steps(Work(steps))
    for interval in intervals:
        fit.add_interval(interval)
    assert fit.costs.energy[5] == 0.0
    assert fit.fit().energy[5] == pytest.approx(TRUE[5], rel=0.3)


def test_power_that_was_seen_idle_is_remembered_when_there_is_no_idle_time_any_more() -> None:
    steps, intervals = load(1, 120, steady=True)
    idle = [
        Interval("GPU-0", -index * 100 * MS, -(index - 1) * 100 * MS, 12.0, 2 * MS, 2 * MS)
        for index in range(30, 0, -1)
    ]
    forgetful, mindful = CostFit(GUESS), CostFit(GUESS)
    for fit, known in ((forgetful, []), (mindful, idle)):
        fit.add_steps(Work(steps))
        for interval in [*known, *intervals[:5]]:
            fit.add_interval(interval)
        fit.fit()
        for interval in intervals[5:]:
            fit.add_interval(interval)
        fit._intervals = deque(list(fit._intervals)[-500:])  # the idle ones have left the window
        fit.fit()
    assert mindful.costs.energy[0] == pytest.approx(120.0, rel=0.05)
    assert abs(forgetful.costs.energy[0] - 120.0) > abs(mindful.costs.energy[0] - 120.0)


@pytest.mark.parametrize("length_ns", [0, 50_000, MS])
def test_a_step_whose_predecessor_was_told_late_tells_little_of_time(length_ns: int) -> None:
    """One of two thousand that seems to take no time: with weights by its own time it alone would say what all of them take."""
    steps, intervals = load(6, 60)
    steps[400] = steps[400].at(steps[400].done_ns - length_ns, steps[400].done_ns)
    costs = fitted(steps, intervals).costs
    features = Work(steps[-1000:]).step_features
    expected_s = (features @ costs.time_s.T).max(axis=1)
    assert np.quantile(np.abs(expected_s / features[:, 0] - 1), 0.9) < 0.1
