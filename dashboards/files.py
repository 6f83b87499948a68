"""The dashboards as files, which Grafana reads."""

import json
from pathlib import Path
from typing import Any

from etameter.dashboards import expressions
from etameter.dashboards.expressions import RuleError
from etameter.dashboards.fleet import fleet
from etameter.dashboards.overview import overview
from etameter.dashboards.quality import quality
from etameter.dashboards.requests import requests
from etameter.dashboards.side_by_side import side_by_side

CHOSEN = {"type": "prometheus", "uid": "${datasource}"}
"""By the variable of this name at the top of each dashboard."""
JSON = Path(__file__).parent / "json"


def texts() -> dict[str, str]:
    """What each file is to say, by its name. Raises RuleError where an expression, of a rule or of a panel, is not sound, or asks elsewhere."""
    rules = expressions.rules()
    known = expressions.labels_by_metric(rules)
    for name, expression in rules.items():
        expressions.check(f"rule {name}", expression, known)
    boards = [overview(), side_by_side(), requests(), quality(), fleet()]
    for board in boards:
        for panel in board["panels"]:
            where = f"panel {panel['title'] or 'banner'} of {board['title']}"
            for target in panel["targets"]:
                expressions.check(where, target["expr"], known)
                if target["datasource"] != CHOSEN:
                    asked = target["datasource"]["uid"]
                    raise RuleError(
                        f"{where} asks the data source {asked}", f"ask {CHOSEN['uid']}, which its reader chooses"
                    )
    return {f"{board['uid']}.json": _text(board) for board in boards}


def stale() -> list[str]:
    """Names of files that don't say what the code says, and of those that nothing makes."""
    made = texts()
    found = {path.name: path.read_text() for path in JSON.glob("*")}
    return sorted(name for name in made.keys() | found.keys() if made.get(name) != found.get(name))


def write() -> None:
    """Write all files. Raises RuleError as `texts` does."""
    made = texts()
    JSON.mkdir(exist_ok=True)
    for name, text in made.items():
        (JSON / name).write_text(text)


def _text(board: dict[str, Any]) -> str:
    return json.dumps(board, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
