"""For which arms the slack brake is on: those whose configuration names a report of it that shows little enough damage.

`etameter eta brake` writes such a report of a comparison of an arm with itself braked. It holds for that arm, that model and those detectors alone.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from etameter.config import Config
from etameter.errors import ConfigError
from etameter.slack.brake import identity

BRAKES: Final = "ETAMETER_BRAKES"
"""Environment variable: a JSON object, arm → the model that it was measured with."""
FORMAT: Final = 1
_REMEDY: Final = "make one: etameter ab with --arms NAME,NAME-braked --texts, then etameter eta brake"


def permitted(settings: Config) -> dict[str, str]:
    """Arm → model, of the arms that are to be braked.

    Raises:
        ConfigError: one of them has no report, or one that does not allow it.
    """
    return {
        name: _model(name, arm.brake, settings.eta.most_damage)
        for name, arm in settings.arms.items()
        if arm.brake is not None
    }


def environment(settings: Config) -> dict[str, str]:
    """What the server's processes are told of brakes. Raises ConfigError as `permitted`."""
    return {BRAKES: json.dumps(permitted(settings))}


def from_environment() -> Mapping[str, str]:
    """As `etameter serve` has set it. Raises ValueError where somebody else has."""
    told = json.loads(os.environ.get(BRAKES, "{}"))
    return {str(arm): str(model) for arm, model in told.items()}


def _model(arm: str, path: Path, most_damage: float) -> str:
    """The model of a report that allows to brake the arm."""
    key = f"arms.{arm}.brake = {str(path)!r}"
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        report, named, model = (told["report"], told["format"]), told["arm"], str(told["model"])
        damage, detectors = told["damage_at_most"], told["detectors"]
    except OSError as error:
        raise ConfigError(f"{key} can't be read ({error.strerror})", _REMEDY) from None
    except (ValueError, LookupError, TypeError):
        raise ConfigError(f"{key} is no report of the slack brake", _REMEDY) from None
    if report != ("brake", FORMAT):
        raise ConfigError(f"{key} is no report of the slack brake", _REMEDY)
    if named != arm:
        raise ConfigError(f"{key} is of the arm {named}", "measure this arm, too")
    if detectors != identity():
        raise ConfigError(f"{key} is of other detectors than this version's", "measure it anew")
    if not isinstance(damage, float) or not 0 <= damage <= 1:
        raise ConfigError(f"{key} bounds no damage", "it takes more answers, checked and judged")
    if damage > most_damage:
        raise ConfigError(
            f"{key} bounds the damage at {damage:.1%}, above [eta] most_damage = {most_damage:.1%}",
            "leave the brake off, or measure more answers",
        )
    return model
