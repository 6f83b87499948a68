"""Money and CO2 in both reports: worked by hand, only where factors are, and never without the word where joules are simulated."""

import re
from dataclasses import replace

import pytest

from etameter.footprint import Factor, Footprint
from etameter.prompts.nightly.page import page as page_of_night
from etameter.prompts.nightly.verdict import judge
from etameter.prompts.report.page import page
from etameter.prompts.report.worldly import Spent, worldly
from etameter.records import Source
from tests.prompts.nightly.laid_out import figure, night, run

from .ab_run import record

pytestmark = pytest.mark.unit

GRID = Footprint(
    pue=Factor(1.5, "J/J", "own", None),
    price=Factor(0.2, "EUR/kWh", "a list", 2025),
    intensity=Factor(400.0, "g/kWh", "a table", 2024),
)


def test_worked_by_hand() -> None:
    made = worldly([Spent("a thing", 3.6e6, "measured"), Spent("another", None, "measured")], GRID)
    assert made is not None
    assert re.findall(r"<td>(.*?)</td>", made) == ["1000", "1500", "0.3", "600", "–", "–", "–", "–"]
    assert "<li>price 0.2 EUR/kWh, a list, 2025</li>" in made
    assert worldly([Spent("a thing", 3.6e6, "measured")], Footprint()) is None


def test_what_has_no_factor_is_not_known() -> None:
    made = worldly([Spent("a thing", 3.6e6, "measured")], Footprint(price=GRID.price))
    assert made is not None
    assert re.findall(r"<td>(.*?)</td>", made) == ["1000", "–", "0.2", "–"]


def test_a_comparison_has_it_where_it_is_configured() -> None:
    assert 'id="world"' not in page(record(), ())
    made = page(record(footprint=GRID), ())
    rows = re.findall(r'<th scope="row">(\w+): 1,000 correct answers</th>', made)
    assert rows[0] == record().plan.control
    assert len(rows) == len(record().arms)


@pytest.mark.parametrize("source", ["simulated", "measured"])
def test_simulated_amounts_say_so_in_every_cell(source: Source) -> None:
    ran = replace(run(), source=source)
    answers = figure(metric="j_per_question", value=3600.0, low=None, high=None, source=source)
    one = replace(night(), run=ran, figures=(answers,))
    pages = [page_of_night(one, judge([], one), [], GRID), page(record(source, footprint=GRID), ())]
    for made in pages:
        [section] = re.findall(r'<section id="world".*?</section>', made)
        cells = re.findall(r"<td>(.*?)</td>", section)
        assert len(cells) >= 8
        assert all(cell.endswith(" simulated") == (source == "simulated") for cell in cells)
