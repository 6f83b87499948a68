"""codecarbon beside us: both figures, their difference, and why."""

import time
from typing import Any

import pytest

from etameter.prompts.nightly import beside
from etameter.prompts.nightly.beside import Beside

pytestmark = pytest.mark.unit


def compared(kind: Any, energy_j: float | None = 9000.0, seconds: float = 30.0, **told_j: float) -> dict[str, Any]:
    return beside.compared(Beside({"cpu": 0.0, "gpu": 0.0, "ram": 0.0} | told_j, "3.3.2"), energy_j, seconds, kind, "s")


def test_gpus_are_compared_with_gpus_and_packages_with_packages() -> None:
    assert compared("nvml", gpu=9090.0, cpu=50.0)["difference"] == pytest.approx(0.01)
    assert compared("rapl", gpu=0.0, cpu=8100.0)["difference"] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("kind", "told", "why"),
    [
        ("nvml", {"gpu": 9000.0}, "Both read NVML's energy counter"),
        ("nvml", {}, "no counter here that it may read"),
        ("nvml", {"gpu": 9000.0, "seconds": 3.0}, "3.0 s are too few"),
        ("rapl", {"cpu": 9000.0}, "Both read RAPL"),
        ("simulated", {"cpu": 500.0}, "can't see a simulated board"),
    ],
)
def test_every_difference_has_a_reason(kind: str, told: dict[str, float], why: str) -> None:
    assert why in compared(kind, **told)["why"]


def test_what_is_not_known_is_no_difference() -> None:
    assert compared("nvml", None, gpu=9000.0)["difference"] is None
    assert compared("nvml")["difference"] is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # its own, of what it imports
def test_the_real_one_counts_this_machines_cpu() -> None:
    assert beside.installed()
    with beside.tracking() as told:
        time.sleep(3.0)
    assert told.told_j["cpu"] > 0
    assert told.version
