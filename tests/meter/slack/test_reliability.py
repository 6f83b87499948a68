"""How far an η is to be trusted."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.slack.reliability import LEAST_PAIRS, Mean, both, mean, trust

pytestmark = pytest.mark.unit

shares = st.floats(0.0, 1.0)
pairs = st.lists(st.tuples(shares, shares), min_size=LEAST_PAIRS, max_size=60)


def test_with_few_pairs_nothing_is_told() -> None:
    few = trust([(0.1 * place, 0.1 * place) for place in range(LEAST_PAIRS - 1)])
    assert (few.pairs, few.agreement, few.bias, few.slope, few.reliable) == (LEAST_PAIRS - 1, None, None, None, None)


@given(pairs)
def test_it_is_what_a_regression_says(found: list[tuple[float, float]]) -> None:
    said, true = np.array(found).T
    told = trust(found)
    assert told.bias == pytest.approx(said.mean() - true.mean(), abs=1e-9)
    if said.std() > 1e-3 and true.std() > 1e-3:
        correlation = np.corrcoef(said, true)[0, 1]
        assert told.agreement == pytest.approx(max(correlation, 0.0) ** 2, abs=1e-6)
        assert told.slope == pytest.approx(np.polyfit(said, true, 1)[0], abs=1e-6)


@given(pairs, st.randoms())
def test_the_order_of_pairs_tells_nothing(found: list[tuple[float, float]], random: Random) -> None:
    shuffled = random.sample(found, len(found))
    one, other = trust(found), trust(shuffled)
    assert one.agreement == (None if other.agreement is None else pytest.approx(other.agreement, abs=1e-6))


def test_what_rises_as_the_truth_falls_agrees_in_nothing() -> None:
    told = trust([(1 - place / 30, place / 30) for place in range(30)])
    assert (told.agreement, told.reliable) == (0.0, False)
    assert told.slope == pytest.approx(-1.0)


def test_what_never_varies_tells_no_answers_apart() -> None:
    told = trust([(0.9, place / 30) for place in range(30)])
    assert (told.agreement, told.slope, told.reliable) == (None, None, False)
    assert told.bias == pytest.approx(0.9 - 29 / 60)


def test_half_of_the_variance_is_enough() -> None:
    random = Random(1)
    true = [random.random() for _ in range(400)]
    sure = trust([(each + random.gauss(0, 0.1), each) for each in true])
    unsure = trust([(each + random.gauss(0, 0.6), each) for each in true])
    assert (sure.reliable, unsure.reliable) == (True, False)
    assert sure.agreement == pytest.approx((1 / 12) / (1 / 12 + 0.01), abs=0.06), "var V / (var V + σ²)"


@given(pairs)
def test_the_interval_holds_the_agreement(found: list[tuple[float, float]]) -> None:
    told = trust(found)
    assert (told.agreement is None) == (told.agreement_low is None) == (told.agreement_high is None)
    if told.agreement is not None and told.agreement_low is not None and told.agreement_high is not None:
        assert 0.0 <= told.agreement_low <= told.agreement + 1e-6
        assert told.agreement - 1e-6 <= told.agreement_high <= 1.0


def test_of_normal_pairs_the_interval_is_fishers_or_wider() -> None:
    random = Random(2)
    true = [random.gauss(0, 1) for _ in range(103)]
    told = trust([(each + random.gauss(0, 1), each) for each in true])
    assert told.agreement is not None
    assert told.agreement_low is not None
    assert told.agreement_high is not None
    z = math.atanh(math.sqrt(told.agreement))
    low, high = (math.tanh(z + sign * 1.959964 / 10) ** 2 for sign in (-1, 1))
    assert told.agreement_low == pytest.approx(low, abs=0.06)
    assert told.agreement_high == pytest.approx(high, abs=0.06)
    assert told.agreement_low <= low + 1e-9
    assert told.agreement_high >= high - 1e-9


def test_pairs_on_a_line_leave_no_doubt() -> None:
    told = trust([(place / 30, place / 60) for place in range(30)])
    assert (told.agreement_low, told.agreement_high) == (1.0, 1.0)
    falling = trust([(1 - place / 30, place / 60) for place in range(30)])
    assert (falling.agreement_low, falling.agreement_high) == (0.0, 0.0)


def test_the_interval_of_shares_holds_what_all_pairs_have_about_as_often_as_it_says() -> None:
    random = Random(4)

    def pair() -> tuple[float, float]:
        true = random.betavariate(3, 1)
        return min(max(true + random.gauss(0, 0.2), 0.0), 1.0), true

    truth = np.corrcoef(np.array([pair() for _ in range(20_000)]).T)[0, 1] ** 2
    told = [trust([pair() for _ in range(30)]) for _ in range(300)]
    held = sum((each.agreement_low or 0) <= truth <= (each.agreement_high or 0) for each in told)
    assert 0.91 <= held / 300 <= 0.99


def test_three_valued() -> None:
    assert [both(one, other) for one in (True, None, False) for other in (True, None, False)] == [
        *(True, None, False),
        *(None, None, False),
        *(False, False, False),
    ]


def test_a_mean_is_by_token_and_has_its_interval_from_ten_answers_on() -> None:
    assert mean([]) is None
    assert mean([(0.5, 0.0)]) is None
    assert mean([(1.0, 30.0), (0.5, 10.0)]) == Mean(35 / 40, None, 2)
    assert mean([(0.5, 10.0)] * 20) == Mean(0.5, None, 20) or mean([(0.5, 10.0)] * 20).half_width == 0.0  # type: ignore[union-attr]


def test_the_interval_holds_what_all_answers_have_about_as_often_as_it_says() -> None:
    random = Random(3)
    everyone = [(random.betavariate(3, 1), random.randint(20, 600)) for _ in range(5000)]
    truth = math.fsum(eta * tokens for eta, tokens in everyone) / sum(tokens for _, tokens in everyone)
    held = 0
    for _ in range(200):
        found = mean(random.sample(everyone, 40))
        assert found is not None
        assert found.half_width is not None
        held += abs(found.eta - truth) <= found.half_width
    assert 178 <= held <= 200
