"""The files of the dashboards are those that the code makes, and Grafana's own types take them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard, DataSourceRef

from etameter.config import ARMS as CONFIGURED
from etameter.dashboards import __main__ as command
from etameter.dashboards import expressions, files, panels
from etameter.export.catalogue.labels import AUDITS, CATEGORIES, CAUSES
from etameter.slack.labels import WASTES
from etameter.slack.reading import NEEDS

pytestmark = pytest.mark.unit

FLEET = "etameter-fleet.json"
BOARDS: dict[str, dict[str, Any]] = {name: json.loads(text) for name, text in files.texts().items()}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['id']}") for name, board in BOARDS.items() for panel in board["panels"]
]
HEATMAPS = [panel for board in BOARDS.values() for panel in board["panels"] if panel["type"] == "heatmap"]


def test_none_is_stale() -> None:
    assert files.stale() == []


def test_a_changed_missing_or_foreign_file_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "JSON", tmp_path / "json")
    assert command.main([]) == 0
    assert command.main(["--check"]) == 0
    changed, missing, *_ = sorted(BOARDS)
    (tmp_path / "json" / changed).write_text("{}")
    (tmp_path / "json" / missing).unlink()
    (tmp_path / "json" / "mine.json").write_text("{}")
    assert files.stale() == sorted([changed, missing, "mine.json"])
    assert command.main(["--check"]) == 1


@pytest.mark.parametrize("panel", HEATMAPS)
def test_cells_of_a_heatmap_count_each_request_once(panel: dict[str, Any]) -> None:
    [target] = panel["targets"]
    assert target["interval"] == "$__rate_interval", "how wide a cell is"
    assert "[$__rate_interval]" in target["expr"], "what it counts"


def test_wrong_use_and_an_unknown_metric_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--chek"]) == 2
    (tmp_path / "wrong.yaml").write_text("groups: [{name: g, rules: [{record: 'a:b', expr: etameter_jouls_total}]}]")
    monkeypatch.setattr(expressions, "RULES", tmp_path)
    assert command.main(["--check"]) == 2
    assert capsys.readouterr().err == (
        "etameter.dashboards: --chek: only --check is known\n"
        "etameter: rule a:b asks for etameter_jouls_total, which neither the meter tells nor a rule records: "
        "see docs/metrics.md for what there is\n"
    )


def test_a_panel_that_asks_a_data_source_which_nobody_chose_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(panels, "DATASOURCE", DataSourceRef(type_val="prometheus", uid="mine"))
    assert command.main(["--check"]) == 2
    assert capsys.readouterr().err == (
        "etameter: panel banner of etameter / Overview asks the data source mine: "
        "ask ${datasource}, which its reader chooses\n"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("groups: [", "while parsing a flow node"),
        ("", "'NoneType' object is not subscriptable"),
        ("groups: [{name: g, rules: [{record: 'a:b'}]}]", "'expr'"),
        ("groups: [{name: g, rules: [{expr: up}]}]", "'alert'"),
    ],
)
def test_a_file_that_holds_no_rules_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setattr(expressions, "RULES", tmp_path)
    assert command.main(["--check"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"etameter: mine.yaml is no file of rules ({complaint}")
    assert said.endswith("): write groups of rules, each with record or alert, and expr\n")


@pytest.mark.parametrize("name", BOARDS)
def test_grafanas_types_give_back_what_they_are_given(name: str) -> None:
    there_and_back = json.loads(json.dumps(Dashboard.from_json(BOARDS[name]), cls=JSONEncoder))
    assert _known(there_and_back) == _known(BOARDS[name])


def _known(tree: Any) -> Any:
    """Without what is null or empty, which Grafana takes for left out."""
    if isinstance(tree, dict):
        return {name: kept for name, value in tree.items() if (kept := _known(value)) not in (None, {}, [])}
    return [_known(each) for each in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["title"] or panel["id"] == 1, "only the banner does without"
    assert panel["fieldConfig"]["defaults"]["noValue"].endswith("."), "where it is empty it says why"
    letters = [target["refId"] for target in panel["targets"]]
    assert letters
    assert len(letters) == len(set(letters))
    assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    units = [panel["fieldConfig"]["defaults"].get("unit")]
    units += [
        each["value"]
        for rule in panel["fieldConfig"]["overrides"]
        for each in rule["properties"]
        if each["id"] == "unit"
    ]
    units += [panel["options"].get("yAxis", {}).get("unit")]
    assert any(units) or panel["id"] == 1


@pytest.mark.parametrize("name", BOARDS)
def test_the_banner_stands_first_and_no_panel_on_another(name: str) -> None:
    board = BOARDS[name]
    assert (board["panels"][0]["gridPos"]["x"], board["panels"][0]["gridPos"]["y"]) == (0, 0)
    simulated = next(
        rule for rule in board["panels"][0]["fieldConfig"]["overrides"] if rule["matcher"]["options"] == "simulated"
    )
    said = {each["id"]: each["value"] for each in simulated["properties"]}
    assert said["displayName"].startswith("SIMULATED")
    assert said["color"]["fixedColor"] == panels.RED
    cells = [cell for panel in board["panels"] for cell in _cells(panel["gridPos"])]
    assert len(cells) == len(set(cells))
    assert all(x < 24 for x, _ in cells)


def _cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


@pytest.mark.parametrize("name", BOARDS)
def test_variables_choose_data_source_and_what_of_it(name: str) -> None:
    variables = [variable["name"] for variable in BOARDS[name]["templating"]["list"]]
    chosen = ["cluster", "model", "source"] if name == FLEET else ["model", "arm", "gpu", "source"]
    assert variables == ["datasource", *chosen]


def test_the_fleet_is_told_by_what_rules_record_alone_and_of_no_single_device() -> None:
    """A store of many clusters has nothing else."""
    board = BOARDS[FLEET]
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    recorded = expressions.rules().keys()
    for expression in asked:
        named = set(re.findall(r"\betameter[a-z0-9_:]*", expression))
        assert named
        assert named <= recorded
        assert not re.search(r"gpu_uuid|etameter:(gpu_watts|idle_share|unattributed_share):", expression)


def test_what_always_means_the_same_has_a_colour() -> None:
    assert panels.ARMS.keys() == CONFIGURED.keys() - {"audit"}  # which is no way of asking
    assert panels.CATEGORIES.keys() == set(CATEGORIES)
    assert panels.USES.keys() >= CAUSES
    assert panels.WASTES.keys() == set(WASTES)
    assert panels.NEEDS.keys() == {*NEEDS, "slack", "unclassified"}
    assert panels.OUTCOMES.keys() == {f"{kind}: {outcome}" for kind, found in AUDITS.items() for outcome in found}
    for colours in (panels.ARMS, panels.CATEGORIES, panels.USES, panels.WASTES, panels.NEEDS, panels.OUTCOMES):
        assert len(set(colours.values())) == len(colours), "colours must tell series of one panel apart"
