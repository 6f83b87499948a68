"""The rules say what they should of meters that were made up, and nothing of what isn't known."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from etameter.dashboards import expressions
from etameter.dashboards.expressions import RuleError

pytestmark = pytest.mark.unit

HERE = Path(__file__).parent
CASES = sorted((HERE / "rules").glob("*.test.yaml"))
PROMTOOL = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
KNOWN = expressions.labels_by_metric(expressions.rules())


def _promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


@PROMTOOL
def test_promtool_accepts_them() -> None:
    checked = _promtool("check", "rules", *sorted(expressions.RULES.glob("*.yaml")))
    assert checked.returncode == 0, checked.stderr


@PROMTOOL
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.name)
def test_they_say_what_the_cases_expect(cases: Path) -> None:
    tested = _promtool("test", "rules", cases)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def _expected() -> dict[str, list[Sequence[Any]]]:
    """By rule or alert: what each case that asks for it expects."""
    found: dict[str, list[Sequence[Any]]] = {}
    for path in CASES:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for asked in case.get("promql_expr_test", ()):
                [name] = re.findall(r"etameter:\w+:\w+", asked["expr"])
                found.setdefault(name, []).append(asked["exp_samples"])
            for asked in case.get("alert_rule_test", ()):
                found.setdefault(asked["alertname"], []).append(asked["exp_alerts"])
    return found


@pytest.mark.parametrize("name", expressions.rules())
def test_each_has_a_case_with_something_to_say_and_one_without(name: str) -> None:
    cases = _expected()[name]
    assert any(cases)
    assert not all(cases)


@pytest.mark.parametrize("name", expressions.rules())
def test_each_is_sound(name: str) -> None:
    expressions.check(name, expressions.rules()[name], KNOWN)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("sum(", "here can't be parsed (unclosed left parenthesis): write PromQL"),
        ("rate(etameter_requests_total[$__interval])", "here can't be parsed"),
        ("rate(etameter_joule_total[5m])", "here asks for etameter_joule_total, which neither the meter tells"),
        (
            'rate(etameter_energy_joules_total{model="m"}[5m])',
            "here selects etameter_energy_joules_total by model, which it doesn't have: it has arm, model_name, phase, s",
        ),
        ("sum by (arm) (etameter_energy_joules_total)", "here adds figures of several sources: sum by (arm) (etameter"),
        ("sum without (source) (etameter_energy_joules_total)", "here adds figures of several sources"),
        ("max(etameter:output_wh_per_token:rate5m)", "here adds figures of several sources"),
        ('sum(etameter_energy_joules_total{source=~"measured|simulated"})', "here adds figures of several sources"),
        (
            "-histogram_quantile(0.5, sum by (le) (rate(etameter_request_energy_joules_bucket[5m])))",
            "here adds figures",
        ),
    ],
)
def test_what_is_not_sound_is_named(expression: str, complaint: str) -> None:
    with pytest.raises(RuleError) as error:
        expressions.check("here", expression, KNOWN)
    assert str(error.value).startswith(complaint)


@pytest.mark.parametrize(
    "expression",
    [
        "sum by (arm, source) (etameter_energy_joules_total)",
        "sum without (phase) (etameter_energy_joules_total)",
        'sum(etameter_energy_joules_total{source="measured"})',
        "sum(etameter_requests_total)",
        'sum by (source) (rate(etameter_energy_joules_total{arm=~"$arm"}[$__rate_interval]))',
        'etameter_energy_joules_total{instance="a", environment="demo"}',
        'etameter:output_wh_per_token:rate5m{arm="entrace"}',
        "up == 0",
    ],
)
def test_what_is_sound_is_let_through(expression: str) -> None:
    expressions.check("here", expression, KNOWN)
