"""What is counted is there from its first zero, and what isn't known is not."""

import math

import pytest

from etameter.export.catalogue import devices, energy, health
from etameter.export.registry import Registry

pytestmark = pytest.mark.unit


def _told(registry: Registry, name: str) -> list[str]:
    lines = registry.text(openmetrics=False).splitlines()
    return [line.removeprefix(name) for line in lines if line.startswith(name)]


def test_a_counter_begins_at_zero_and_never_falls() -> None:
    registry, name = Registry(), energy.HOST_BUBBLE.name
    assert _told(registry, name) == []
    for amount in (0.0, 1.5, -1e-12, 1.0):
        registry.add(energy.HOST_BUBBLE, amount, "GPU-1", "measured")
    assert _told(registry, name) == ['{gpu_uuid="GPU-1",source="measured"} 2.5']


def test_one_without_labels_is_there_before_anything_was_counted() -> None:
    assert _told(Registry(), health.SAMPLER_POLLS.name) == [" 0.0"]


@pytest.mark.parametrize(("totals", "counted"), [((4, 4, 9), 9.0), ((9, 2), 11.0), ((0,), 0.0)])
def test_totals_of_who_began_anew_are_added(totals: tuple[int, ...], counted: float) -> None:
    registry = Registry()
    for total in totals:
        registry.advance(health.SAMPLER_POLLS, total)
    assert _told(registry, health.SAMPLER_POLLS.name) == [f" {counted}"]


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
def test_a_gauge_that_is_not_known_is_absent(unknown: float | None) -> None:
    registry, name = Registry(), devices.LAG.name
    registry.set(devices.LAG, 1 / 3, "GPU-1")
    assert _told(registry, name) == ['{gpu_uuid="GPU-1"} 0.3333333'], "in seven digits"
    registry.set(devices.LAG, unknown, "GPU-1")
    assert _told(registry, name) == []
    registry.set(devices.LAG, 0.0, "GPU-1")
    assert _told(registry, name) == ['{gpu_uuid="GPU-1"} 0']
    registry.clear(devices.LAG)
    assert _told(registry, name) == []
