"""Two runs beside each other, and when they can't be."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.experiments import Tables, Way, World, simulate, tables
from etameter.prompts.across import Taken, _savings, compare
from etameter.prompts.stats import Ratio
from etameter.prompts.tables import Outcome

pytestmark = pytest.mark.unit

ABOUT = {
    "plan": "1234",
    "suite": "small",
    "suite_hash": "aa",
    "model": "m",
    "samples": 1,
    "max_tokens": 128,
    "temperature": 0.0,
    "until_correct": 1,
    "prefix_cache": "on",
    "loads": {"concurrency": 8},
    "boards": [{"board": "H100", "power_limit_w": 700.0, "clock_mhz": 1980}],
    "source": "simulated",
    "counter": "simulated",
    "server": {"vllm": "0.32"},
    "kernel": "Linux 6",
    "began": "2026-01-01",
}


@cache
def run_of(length: float, seed: int) -> Tables:
    world = World(10, 20, (Way(length), Way(0.5 * length)), accuracy=0.9, hard_accuracy=0.05)
    return tables(simulate(world, 1, np.random.default_rng(seed)), 0, ("unconstrained", "entrace"))


def taken(name: str, run: Tables, **changes: object) -> Taken:
    return Taken(name, {**ABOUT, **changes}, run.blocks, run.outcomes)


def test_runs_alike_are_comparable_and_their_ratio_is_that_of_their_sums() -> None:
    first, second = taken("monday", run_of(1.0, 1)), taken("friday", run_of(0.4, 2), began="2026-01-05")
    across = compare(first, second)
    assert across.comparable
    assert across.warnings == ()
    assert across.notes == ()
    assert [each.arm for each in across.arms] == ["unconstrained", "entrace"]
    for each in across.arms:
        alone = []
        for run in (run_of(1.0, 1), run_of(0.4, 2)):
            rows = [row for row in run.blocks if row.arm == each.arm]
            alone.append(sum(row.energy_j or 0.0 for row in rows) / sum(row.correct for row in rows))
        assert each.joules_per_correct == pytest.approx(tuple(alone))
        assert each.saving == pytest.approx(1 - alone[1] / alone[0])
        assert each.low is not None
        assert each.high is not None
        assert each.saving is not None
        assert 0.2 < each.low < each.saving < each.high
    assert all(sentence.startswith("Simulated: ") for sentence in across.sentences)
    assert "less joules per correct answer in friday than in monday" in across.sentences[0]


def test_the_interval_adds_two_variances() -> None:
    """Of a run against itself nothing differs, and the interval is √2 as wide on the logarithm as the run's own."""
    (unconstrained, _) = compare(taken("a", run_of(1.0, 1)), taken("b", run_of(1.0, 1))).arms
    assert unconstrained.saving == pytest.approx(0.0, abs=1e-12)
    assert unconstrained.low is not None
    assert unconstrained.high is not None
    assert math.log(1 - unconstrained.low) == pytest.approx(-math.log(1 - unconstrained.high))
    rows = [row for row in run_of(1.0, 1).blocks if row.arm == "unconstrained"]
    joules, right = np.array([row.energy_j for row in rows]), np.array([row.correct for row in rows])
    without = np.log((joules.sum() - joules) / (right.sum() - right))
    error = math.sqrt(9 * without.var() * 2)
    assert math.log(1 - unconstrained.low) == pytest.approx(2.100922 * error, rel=1e-4)  # 18 degrees of freedom


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model", "another", "the model: m in a, another in b"),
        ("server", {"vllm": "0.32", "model_fingerprint": "f00d"}, "the model: m in a, m (f00d) in b"),
        ("suite_hash", "bb", "the suite: aa in a, bb in b"),
        ("max_tokens", 256, "128 in a, 256 in b"),
        ("temperature", 0.7, "the temperature"),
        ("source", "measured", "where joules come from"),
        ("loads", {"concurrency": 1}, "the load"),
        ("boards", [{"board": "A100", "power_limit_w": 400.0}], "the boards"),
        ("boards", [{"board": "H100", "power_limit_w": 700.0, "times_energy": 1.1}], "'times_energy': 1.1}] in b"),
    ],
)
def test_what_differs_is_warned_of_first(key: str, value: object, told: str) -> None:
    across = compare(taken("a", run_of(1.0, 1)), taken("b", run_of(1.0, 2), **{key: value}))
    assert not across.comparable
    assert len(across.warnings) == 1
    assert told in across.warnings[0]
    assert "not comparable" in across.sentences[0]


def test_what_a_table_does_not_tell_is_not_taken_for_equal() -> None:
    silent = replace(taken("a", run_of(1.0, 1)), about={})
    across = compare(silent, taken("b", run_of(1.0, 2)))
    assert "the model: not told by a" in across.warnings


def test_clocks_of_the_moment_and_versions_are_no_reason_but_are_noted() -> None:
    boards = [{"board": "H100", "power_limit_w": 700.0, "clock_mhz": 345}]
    second = taken("b", run_of(1.0, 2), boards=boards, kernel="Linux 7", server={"vllm": "0.33"})
    across = compare(taken("a", run_of(1.0, 1)), second)
    assert across.comparable
    assert across.notes == ("kernel: Linux 6, Linux 7", "server vllm: 0.32, 0.33")


def test_an_arm_whose_text_changed_is_another_arm() -> None:
    def other(one: Outcome) -> Outcome:
        return replace(one, arm_hash="beef") if one.arm == "entrace" else one

    run = run_of(1.0, 2)
    across = compare(
        taken("a", run_of(1.0, 1)), taken("b", run._replace(outcomes=[other(one) for one in run.outcomes]))
    )
    assert not across.comparable
    assert "the arm entrace" in across.warnings[0]


def test_too_little_in_one_of_them_gives_no_interval() -> None:
    run = run_of(1.0, 2)
    short = run._replace(blocks=[row for row in run.blocks if row.repeat < 2])
    across = compare(taken("a", run_of(1.0, 1)), taken("b", short))
    assert all(each.saving is None for each in across.arms)
    assert across.arms[0].why_not == "too few repeats or correct answers in b"
    assert "too few" in across.sentences[0]


def test_runs_of_one_name_are_told_apart() -> None:
    across = compare(taken("run", run_of(1.0, 1)), taken("run", run_of(1.0, 2), model="other"))
    assert across.names == ("run (first)", "run (second)")
    assert across.warnings == ("the model: m in run (first), other in run (second)",)


def test_where_nothing_scatters_there_is_no_interval() -> None:
    even = Ratio(np.asarray(0.0), np.asarray(0.0), np.asarray(9.0))
    assert _savings(even, even, 0.95) == (None, None, None)
