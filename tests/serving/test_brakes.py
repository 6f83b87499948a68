"""Which arms may be braked."""

import json
from pathlib import Path
from typing import Any

import pytest

from etameter.config import ArmSection, Config, EtaSection
from etameter.errors import ConfigError
from etameter.serving import launch
from etameter.serving.brakes import BRAKES, FORMAT, from_environment, permitted
from etameter.slack.brake import identity

pytestmark = pytest.mark.unit

ALLOWS = {"report": "brake", "format": FORMAT, "arm": "mine", "model": "m", "detectors": identity()}


def settings(path: Path, **limits: float) -> Config:
    return Config(arms={"mine": ArmSection(brake=path), "other": ArmSection()}, eta=EtaSection(**limits))  # type: ignore[arg-type]


def reported(folder: Path, **told: Any) -> Path:
    path = folder / "report.json"
    path.write_text(json.dumps({**ALLOWS, "damage_at_most": 0.015, **told}))
    return path


def test_a_report_that_bounds_the_damage_allows_its_arm_with_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = settings(reported(tmp_path))
    assert permitted(allowed) == {"mine": "m"}
    monkeypatch.setenv(BRAKES, launch.middleware_environment(allowed)[BRAKES])
    assert from_environment() == {"mine": "m"}


def test_without_any_nothing_is_braked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert permitted(Config()) == {}
    monkeypatch.delenv(BRAKES, raising=False)
    assert from_environment() == {}


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"damage_at_most": 0.03}, "bounds the damage at 3.0%, above"),
        ({"damage_at_most": None}, "bounds no damage"),
        ({"damage_at_most": float("nan")}, "bounds no damage"),
        ({"arm": "yours"}, "is of the arm yours"),
        ({"detectors": "0" * 16}, "is of other detectors"),
        ({"format": 2}, "is no report"),
        ({"report": "ab"}, "is no report"),
    ],
)
def test_any_other_is_refused(tmp_path: Path, told: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        permitted(settings(reported(tmp_path, **told)))


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none"
    with pytest.raises(ConfigError, match=r"can't be read \(No such file"):
        permitted(settings(path))
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="is no report of the slack brake"):
        permitted(settings(path))


def test_the_limit_is_the_users_within_reason(tmp_path: Path) -> None:
    path = reported(tmp_path, damage_at_most=0.03)
    assert permitted(settings(path, most_damage=0.04)) == {"mine": "m"}
    with pytest.raises(ValueError, match="less than or equal to"):
        EtaSection(most_damage=0.2)
