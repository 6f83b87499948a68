import re

import pytest

from etameter.prompts.nightly.foretold import foretold
from etameter.prompts.nightly.night import Night

from .laid_out import figure, run

pytestmark = pytest.mark.unit


def _night(run_id: str, eta: float | None, source: str = "measured") -> Night:
    stage = "ab-fixed/unconstrained"
    told = (
        figure(stage=stage, metric="eta_task", value=eta, low=None, high=None, source=source),
        figure(stage="batch-8", metric="eta_task", value=0.99, source=source),
    )
    return Night(run(run_id=run_id, config={"arms": ["unconstrained", "entrace"]}), (), told)


def test_a_line_a_night_of_the_stage_that_stands_for_it() -> None:
    made = foretold([_night("n1", 0.4), _night("n2", None), _night("n3", 0.5, "simulated")])
    assert made is not None
    rows = re.findall(r'<th scope="row">(n\d)</th><td>([^<]*)</td><td>[^<]*</td><td>([^<]*)</td>', made)
    assert rows == [
        ("n1", "ab-fixed/unconstrained", "0.4"),
        ("n2", "ab-fixed/unconstrained", "–"),
        ("n3", "ab-fixed/unconstrained", "0.5 simulated"),
    ]


def test_nothing_where_no_night_knows_any() -> None:
    assert foretold([_night("n1", None)]) is None
    assert foretold([]) is None
