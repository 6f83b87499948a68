"""Of which nights `benchmarks.nightly_proof` tells, where some are there already."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import nightly_proof
from etameter.prompts.nightly import night

from .laid_out import night as laid_out

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _nobody_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nightly_proof, "night", lambda *_: pytest.fail("a night was run"))


def left(runs: Path, *times_energy: float, **told: Any) -> list[str]:
    """Run ids of nights whose boards took so many times the model's energy."""
    ids = []
    for took in times_energy:
        number = len(list(runs.iterdir()))
        board = {"board": "simulated H100"} | ({} if took == 1 else {"times_energy": took})
        details = {"sessions": [{"boards": [board]}]}
        whole = laid_out(**{"name": "smoke", "details": details, **told})
        ids.append(f"202611{number + 1:02}T020000Z-0a1b2c3d")
        (runs / ids[-1]).mkdir()
        night.write(runs / ids[-1], replace(whole, run=replace(whole.run, run_id=ids[-1])))
    return ids


def test_of_more_than_three_the_first_three_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = left(tmp_path, 1.0, 1.0, 1.1, 1.0, 1.0)
    assert [each.run.run_id for each in nightly_proof.nights(tmp_path)] == ids[:3]
    assert f"holds 2 more: what follows is of {', '.join(ids[:3])}" in capsys.readouterr().out


def test_three_are_told_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left(tmp_path, 1.0, status="failed", exit_code=2)
    left(tmp_path, 1.2, name="another")
    ids = left(tmp_path, 1.0, 1.0, 1.1)
    assert [each.run.run_id for each in nightly_proof.nights(tmp_path)] == ids
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("times_energy", "said"),
    [((1.1,), "took 1.1 times"), ((1.0, 1.0, 1.0), "took 1, 1, 1 times"), ((1.0, 1.1, 1.0), "took 1, 1.1, 1 times")],
)
def test_nights_of_another_kind_are_refused(times_energy: tuple[float, ...], said: str, tmp_path: Path) -> None:
    left(tmp_path, *times_energy)
    with pytest.raises(SystemExit, match=said):
        nightly_proof.nights(tmp_path)


def test_measured_nights_are_refused(tmp_path: Path) -> None:
    left(tmp_path, 1.0, 1.0, 1.1, source="measured")
    with pytest.raises(SystemExit, match="energy is measured"):
        nightly_proof.nights(tmp_path)
