import math
from dataclasses import replace

import numpy as np
import pytest

from etameter.costs import COMPUTING, READING
from etameter.durations import LEAST_LIMITED, coefficients_of_time, told_at_limit
from etameter.evidence import Steps
from etameter.roofline import H100, QWEN3_8B, roofline_prior
from etameter.work import TERMS, Array

pytestmark = pytest.mark.unit

LIMIT_W = 500.0
ROOFLINE = roofline_prior(H100, QWEN3_8B)
COSTS = replace(ROOFLINE, power_limit_w=LIMIT_W)
P0_W = float(COSTS.energy[0])
TOKEN_S, TOKEN_J, STEP_J = 3e-5, 0.014, 1.0
EXPECTED_J = np.array([0.01, 3e-5])


def run(features: Array, starts_late_s: Array | float = 0.0) -> Steps:
    """Steps one after the other, each of which begins so late after the one before it."""
    ends_s = np.cumsum(features[:, 0] + starts_late_s)
    begins_s = ends_s - features[:, 0]
    late = np.broadcast_to(np.asarray(starts_late_s), len(features)) > 0
    begins_s[1:][~late[1:]] = ends_s[:-1][~late[1:]]
    return Steps(np.stack([begins_s, ends_s], axis=1).reshape(-1) * 1e9, features)


def chunks(seed: int, count: int = 600) -> Array:
    """Full chunks of prompts beside some decodes, S × TERMS, without their durations."""
    random = np.random.default_rng(seed)
    features = np.zeros((count, len(TERMS)))
    decodes = random.integers(0, 24, count)
    features[:, 1], features[:, 2], features[:, 4] = 1.0, 1024 - decodes, decodes
    features[:, 3] = features[:, 2] * random.uniform(500, 3000, count)
    features[:, 5] = decodes * random.uniform(500, 3000, count)
    return features


def throttled(features: Array, read_j: float, read_s: float, exponent: float) -> Array:
    """The same with the durations of a board at its limit, whose energy for computing falls with that power of the clock."""
    features = features.copy()
    compute_s = 1024 * TOKEN_S
    own_j, own_s = read_j * features[:, 5], read_s * features[:, 5]
    slow = np.ones(len(features))  # how much longer computing takes
    for _ in range(200):
        seconds = compute_s * slow + own_s
        spent_j = (STEP_J + 1024 * TOKEN_J) * slow**-exponent + own_j
        slow *= (spent_j / seconds / (LIMIT_W - P0_W)) ** 0.3
    features[:, 0] = compute_s * slow + own_s
    return features


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("read_j", [0.8e-5, 1.7e-5, 3.4e-5])
@pytest.mark.parametrize("hidden", [True, False])
def test_at_the_limit_time_tells_what_a_decode_takes(exponent: float, read_j: float, hidden: bool) -> None:
    """On boards on which reading is hidden behind computing, and on ones on which it takes its own time at the limit's power."""
    features = throttled(chunks(1), read_j, 0.0 if hidden else read_j / (LIMIT_W - P0_W), exponent)
    told = told_at_limit(run(features), np.ones(len(features), dtype=np.bool_), COSTS, ROOFLINE, EXPECTED_J)
    assert told is not None
    decoded_j, deviation_j = told
    assert abs(decoded_j[1] - read_j) < 2 * deviation_j[1]
    assert decoded_j[1] == pytest.approx(read_j, rel=0.6)


def test_what_lengthens_no_step_is_not_taken_for_free_with_certainty() -> None:
    """The limit may be held over longer than a step."""
    features = chunks(2)
    features[:, 0] = 1024 * TOKEN_S
    told = told_at_limit(run(features), np.ones(len(features), dtype=np.bool_), COSTS, ROOFLINE, EXPECTED_J)
    assert told is not None
    assert told[0] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert np.all(told[1] >= 0.4 * EXPECTED_J)


def test_steps_that_the_host_held_up_do_not_count() -> None:
    features = throttled(chunks(3), 1.7e-5, 0.0, 1.0)
    every = np.ones(len(features), dtype=np.bool_)
    told = told_at_limit(run(features), every, COSTS, ROOFLINE, EXPECTED_J)
    features[::20, 0] += 0.04
    held_up = told_at_limit(run(features), every, COSTS, ROOFLINE, EXPECTED_J)
    assert told is not None
    assert held_up is not None
    assert held_up[0] == pytest.approx(told[0], rel=0.02, abs=1e-5)


def test_few_steps_at_the_limit_tell_nothing() -> None:
    features = throttled(chunks(4), 1.7e-5, 0.0, 1.0)
    capped = np.arange(len(features)) < LEAST_LIMITED - 1
    assert told_at_limit(run(features), capped, COSTS, ROOFLINE, EXPECTED_J) is None


def decodes(count: int) -> Array:
    features = np.zeros((count, len(TERMS)))
    features[:, 0], features[:, 1], features[:, 4] = 0.008, 1.0, 4.0
    return features


def time_of(steps: Steps) -> float:
    """What the coefficients say of a step of four decodes."""
    time_s, _ = coefficients_of_time(steps, ROOFLINE, ROOFLINE, ROOFLINE)
    expected: Array = decodes(1) @ time_s.T
    return float(expected[0, READING])


def test_a_step_on_an_idle_board_tells_no_time_where_most_follow_another() -> None:
    """The host's time to reach the board is in its span."""
    features = decodes(1000)
    idle = np.where(np.arange(1000) % 3 == 0, 0.01, 0.0)
    features[idle > 0, 0] += 0.004
    assert time_of(run(features, idle)) == pytest.approx(0.008, rel=0.01)


def test_where_the_host_starts_every_step_its_time_is_part_of_them() -> None:
    features = decodes(1000)
    features[:, 0] += 0.004
    assert time_of(run(features, 0.002)) == pytest.approx(0.012, rel=0.01)


def test_computing_and_reading_are_told_from_the_steps_that_they_hold_up() -> None:
    features = np.concatenate([decodes(500), chunks(5, 500)])
    features[500:, 0] = 1024 * TOKEN_S
    time_s, covariance = coefficients_of_time(run(features), ROOFLINE, ROOFLINE, ROOFLINE)
    expected_s = features @ time_s.T
    assert expected_s[0, READING] == pytest.approx(0.008, rel=0.02)
    assert expected_s[500:, COMPUTING] == pytest.approx(features[500:, 0], rel=0.05)
    assert math.isfinite(float(np.trace(covariance)))
