"""What every release has left behind is read by this one: `tests/data/nights/RELEASE/`, two nights each, as it wrote them."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from etameter.cli import app
from etameter.prompts.nightly import closing, history, journal, keeping
from etameter.prompts.nightly.night import JOURNAL_FILE, RUN_FILE, read
from etameter.prompts.nightly.verdict import judge

pytestmark = pytest.mark.unit

RELEASED = sorted((Path(__file__).parents[2] / "data" / "nights").iterdir())


@pytest.fixture(params=RELEASED, ids=lambda path: path.name)
def nights(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_is_one_of_each_format() -> None:
    assert [path.name for path in RELEASED] == ["0.1.0"]


def test_figures_windows_and_what_they_were_measured_with(nights: Path) -> None:
    first, second = history.nights(nights)
    assert (first.run.status, first.run.source, first.run.driver, first.run.power_cap_w) == (
        "complete",
        "measured",
        "580.1",
        700.0,
    )
    assert first.run.hardware["boards"][0]["gpu_uuid"] == "GPU-00000000-0000-4000-8000-000000000001"
    told = {(one.stage, one.metric): (one.value, one.low, one.high, one.n, one.reason) for one in first.figures}
    assert told["batch-8", "j_per_token"] == (3.06, 3.0, 3.12, 3, "")
    assert told["batch-8", "mfu"] == (None, None, None, 0, "the board's own peak is not known")
    loaded = [row for row in second.stages if row.stage == "batch-8"]
    assert [row.excluded for row in loaded] == ["ramp", None, None, None]
    assert loaded[1].energy_j == pytest.approx(9000 * 1.004 * 1.01)
    assert (loaded[1].output_tokens, loaded[1].temperature_c, loaded[1].neighbours) == (3000, 61.0, None)


def test_they_are_compared_and_listed(nights: Path) -> None:
    first, second = history.nights(nights)
    assert judge([first], second).word == "same"
    answer = CliRunner().invoke(app, ["history", str(nights), "--json"], standalone_mode=False)
    assert [(row["name"], row["status"], row["verdict"]) for row in json.loads(answer.stdout)] == [
        ("nightly", "complete", "first"),
        ("nightly", "complete", "same"),
    ]


def test_they_are_tables(nights: Path) -> None:
    query = "SELECT count(*), sum(energy_j) FROM stages WHERE stage = 'idle-before'"
    assert history.asked(nights, query)[1] == [(6, 7500.0)]
    assert history.asked(nights, "SELECT DISTINCT vllm, hardware.cpu FROM runs")[1] == [("0.32.0", "some")]


def test_a_journal_gives_the_same_night_again(nights: Path, tmp_path: Path) -> None:
    for path in nights.iterdir():
        (tmp_path / path.name).mkdir()
        assert closing.conclude(tmp_path / path.name, journal.load(path)) == read(path)


def test_a_night_that_a_release_left_unended_is_closed(nights: Path, tmp_path: Path) -> None:
    shutil.copytree(nights, tmp_path, dirs_exist_ok=True)
    folder = max(tmp_path.iterdir())
    (folder / RUN_FILE).unlink()
    lines = (folder / JOURNAL_FILE).read_text().splitlines(keepends=True)
    (folder / JOURNAL_FILE).write_text("".join(lines[:-1]))
    assert keeping.clear_up(tmp_path, keeping.Job("nightly", "another", False), keeping.now()) is None
    run = read(folder).run
    assert (run.status, run.exit_code, run.energy_j) == ("incomplete", 130, 45000.0)
