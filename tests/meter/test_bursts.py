"""Lag and blindness from bursts, against counters that are computed here from the definition."""

import random
from collections.abc import Callable

import pytest

from etameter.bursts import Burst, response
from etameter.records import Edge

pytestmark = pytest.mark.unit

MS = 1_000_000
PERIOD_NS = 100 * MS
IDLE_W, BURST_W = 90.0, 300.0


def bursts(count: int = 40) -> list[Burst]:
    """40 ms of work every 270 to 430 ms: all phases of the counter's period."""
    dice = random.Random(3)
    found, t_ns = [], 1_000 * MS
    for _ in range(count):
        found.append(Burst(t_ns, t_ns + 40 * MS))
        t_ns += dice.randrange(270, 430) * MS
    return found


def spent_j(work: list[Burst], start_ns: float, end_ns: float) -> float:
    busy_ns = sum(max(0.0, min(end_ns, burst.end_ns) - max(start_ns, burst.start_ns)) for burst in work)
    return (IDLE_W * (end_ns - start_ns) + BURST_W * busy_ns) * 1e-9


def edges(period_j: Callable[[float, float], float], jitter_ns: int = 2 * MS) -> list[Edge]:
    """A counter published every 100 ms; `period_j` says what it adds between two publications."""
    dice = random.Random(4)
    found, energy_j = [], 1_000.0
    for update in range(1, 170):
        t_ns = update * PERIOD_NS
        energy_j += period_j(t_ns - PERIOD_NS, t_ns)
        found.append(Edge("GPU-0", t_ns + dice.randrange(-jitter_ns, jitter_ns + 1), 2 * MS, round(energy_j * 1e3)))
    return found


@pytest.mark.parametrize("lag_ms", [0, 20, 73])
def test_the_lag_of_a_counter_that_integrates(lag_ms: int) -> None:
    work = bursts()
    found = response(edges(lambda a, b: spent_j(work, a - lag_ms * MS, b - lag_ms * MS)), work)
    assert found is not None
    assert found.seen == 1.0
    assert abs(found.lag_ns - lag_ms * MS) <= max(found.lag_error_ns, 2 * MS)
    assert found.lag_error_ns < 10 * MS
    assert found.idle_w == pytest.approx(IDLE_W, rel=0.05)
    assert found.burst_w == pytest.approx(BURST_W, rel=0.05)


def test_a_counter_that_looks_a_quarter_of_the_time() -> None:
    work = bursts()
    found = response(edges(lambda _, b: 4 * spent_j(work, b - PERIOD_NS / 4, b)), work)
    assert found is not None
    assert found.seen == 0.25
    assert abs(found.lag_ns) <= 5 * MS


def test_bursts_that_another_gpu_ran_do_not_show() -> None:
    found = response(edges(lambda a, b: spent_j([], a, b)), bursts())
    assert found is None or found.burst_w < 0.1 * BURST_W


def test_too_few_edges_say_nothing() -> None:
    work = bursts()
    assert response(edges(lambda a, b: spent_j(work, a, b))[:20], work) is None
    assert response(edges(lambda a, b: spent_j(work, a, b)), []) is None
