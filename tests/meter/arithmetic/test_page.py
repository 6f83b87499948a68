"""The page of the arithmetic: every row on it, plots with their numbers, and the word in every cell that rests on simulated joules."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from etameter.arithmetic import INPUTS, ROWS, recompute
from etameter.arithmetic.page import page
from etameter.arithmetic.rows import with_value
from etameter.cli import app

pytestmark = pytest.mark.unit


def test_it_is_written_with_every_row_and_input_and_four_pictures(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["arithmetic", "--html", str(tmp_path / "a.html")])
    assert done.exit_code == 0, done.output
    made = (tmp_path / "a.html").read_text(encoding="utf-8")
    for name in [row.name for row in ROWS] + list(INPUTS):
        assert f">{name}</th>" in made
    assert made.count("<svg") == 4
    assert "simulated" not in made.lower()
    assert "http" not in re.sub(r"http-equiv|http://www\.w3\.org/\S*", "", made), "it loads nothing"


def test_simulated_joules_say_so_in_plots_and_cells() -> None:
    inputs = with_value(INPUTS, "eta_before", 0.25, origin="simulated")
    inputs = with_value(inputs, "eta_measured_control", 0.25, origin="simulated")
    made = page(recompute(inputs), with_value(inputs, "cost_b", 0.02, origin="simulated"))
    assert made.count("SIMULATED") >= 4, "banner, title, and axes of what rests on it"
    assert "0.25 (simulated)" in made
    rows = re.findall(r"<tr><th scope=\"row\">energy-saved</th>(.*?)</tr>", made)
    assert "68.75 (simulated)" in rows[0]


def test_a_measured_eta_stands_beside_its_claim() -> None:
    made = page(recompute(with_value(INPUTS, "eta_measured_entrace", 0.5)), INPUTS)
    assert re.search(r"η under ENTRACE</th><td>0\.6 · 0\.8</td><td>0\.5</td><td>inconsistent", made)
