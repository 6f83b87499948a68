"""Recordings of real boards, as they came from them: what this version makes of them."""

import math
from pathlib import Path

import pytest

from etameter import playback

pytestmark = pytest.mark.unit

H100 = Path(__file__).parents[2] / "docs" / "measurements" / "h100"


@pytest.mark.parametrize(
    ("name", "requests", "measured_j"),
    [
        ("server.zip", 1360, 53_021.7),
        pytest.param("recording.zip", 1583, 61_328.4, marks=pytest.mark.slow),
    ],
)
def test_a_recording_of_an_h100_gives_the_figures_of_then(name: str, requests: int, measured_j: float) -> None:
    replayed = playback.replay(H100 / name)
    assert replayed.worst < playback.SAME
    assert len(replayed.rows) == requests
    assert {row.energy.source for row in replayed.rows} == {"measured"}
    assert all(row.energy.settled for row in replayed.rows)
    assert replayed.measured_j == pytest.approx(measured_j, abs=0.05)
    spent_j = math.fsum([replayed.requests_j, *replayed.unassigned_j.values()])
    assert spent_j == pytest.approx(replayed.measured_j, rel=1e-12)
    assert replayed.unassigned_j["model_residual"] < 2e-4 * replayed.measured_j
