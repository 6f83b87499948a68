import io
import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from etameter.cli import app
from etameter.errors import NightError
from etameter.footprint import Footprint
from etameter.nightly_section import NightlySection
from etameter.prompts.nightly import command, conclusion, history, history_command, night
from etameter.prompts.nightly.night import Night
from etameter.prompts.nightly.verdict import judge

from .laid_out import figure, run

pytestmark = pytest.mark.unit

BATCH = "batch-8 j_per_token"


def kept(folder: Path, *values: float, first: int = 1, **told: Any) -> list[Night]:
    """A folder of nights, each judged by those before it."""
    made: list[Night] = []
    for day, value in enumerate(values, start=first):
        one = Night(
            run(run_id=f"202611{day:02}T020000Z-0a1b2c3d", **told),
            (),
            (figure(value=value, low=0.997 * value, high=1.003 * value),),
        )
        where = folder / one.run.run_id
        where.mkdir(parents=True)
        night.write(where, one)
        conclusion.conclude(one, judge(made, one), made, where, Footprint())
        made.append(one)
    return made


def said(*arguments: str) -> Any:
    answer = CliRunner().invoke(app, ["history", *arguments, "--json"], catch_exceptions=False, standalone_mode=False)
    return json.loads(answer.stdout)


def test_nights_are_listed_with_what_was_said_of_them(tmp_path: Path) -> None:
    kept(tmp_path, 3.0, 3.01, 3.3)
    (tmp_path / "20261104T020000Z-killed").mkdir()
    (tmp_path / "20261104T020000Z-killed" / "journal.jsonl").touch()
    assert [(row["run_id"][:8], row["status"], row.get("verdict")) for row in said(str(tmp_path))] == [
        ("20261101", "complete", "first"),
        ("20261102", "complete", "same"),
        ("20261103", "complete", "regression"),
        ("20261104", "not ended", None),
    ]


def test_a_table_says_that_it_is_simulated(tmp_path: Path) -> None:
    kept(tmp_path, 3.0)
    for arguments in ([], ["--series", BATCH]):
        shown = CliRunner().invoke(app, ["history", str(tmp_path), *arguments], standalone_mode=False).stdout
        assert "SIMULATED" in shown
        assert "20261101" in shown


def test_a_series_is_plotted(tmp_path: Path) -> None:
    kept(tmp_path, 3.0, 3.3)
    assert [(row["value"], row["source"]) for row in said(str(tmp_path), "--series", BATCH)] == [
        (3.0, "simulated"),
        (3.3, "simulated"),
    ]
    shown = (
        CliRunner()
        .invoke(app, ["history", str(tmp_path), "--series", BATCH], standalone_mode=False, env={"COLUMNS": "200"})
        .stdout
    )
    first, second = (line for line in shown.splitlines() if "●" in line)
    assert first.index("●") < second.index("●")


def test_series_of_two_jobs_are_two(tmp_path: Path) -> None:
    kept(tmp_path, 3.0, 3.3)
    kept(tmp_path, 300.0, first=3, name="weekly")
    rows = said(str(tmp_path), "--series", BATCH)
    assert [(row["name"], row["value"]) for row in rows] == [("nightly", 3.0), ("nightly", 3.3), ("weekly", 300.0)]
    answer = CliRunner().invoke(app, ["history", str(tmp_path), "--series", BATCH], env={"COLUMNS": "200"})
    lines = [line for line in answer.stdout.splitlines() if "●" in line or line.endswith("J/token")]
    assert [line.partition(":")[0] for line in lines if "●" not in line] == ["nightly", "weekly"]
    first, second = (line.index("●") for line in lines if "202611" in line and "20261103" not in line)
    assert first < second, "the other job's values don't move its own"


def test_two_nights_are_compared(tmp_path: Path) -> None:
    kept(tmp_path, 3.0, 3.01, 3.3)
    answer = CliRunner().invoke(
        app, ["history", str(tmp_path), "--compare", "20261101", "20261103", "--json"], standalone_mode=False
    )
    assert answer.return_value == 3
    assert json.loads(answer.stdout)["word"] == "regression"
    assert json.loads(answer.stdout)["compared"] == ["20261101T020000Z-0a1b2c3d"]


@pytest.mark.parametrize(
    ("told", "what"), [({"name": "weekly"}, "job: weekly, then nightly"), ({"status": "unstable"}, "status: unstable")]
)
def test_a_night_is_not_compared_with_one_that_is_no_measure(tmp_path: Path, told: dict[str, Any], what: str) -> None:
    kept(tmp_path / "other", 9.0, **told)
    kept(tmp_path, 3.0, 3.0)
    earlier = next((tmp_path / "other").iterdir())
    shutil.rmtree(tmp_path / earlier.name)
    earlier.rename(tmp_path / earlier.name)
    answer = CliRunner().invoke(
        app, ["history", str(tmp_path), "--compare", "20261101", "20261102", "--json"], standalone_mode=False
    )
    assert answer.return_value == 4
    assert what in " ".join(json.loads(answer.stdout)["sentences"]).lower()


def test_the_earlier_night_is_named_first(tmp_path: Path) -> None:
    kept(tmp_path, 3.0, 3.3)
    with pytest.raises(NightError, match="name the earlier night first"):
        history_command.compared(str(tmp_path), "20261102", "20261101", None)


def test_a_page_is_written_of_any_night(tmp_path: Path) -> None:
    kept(tmp_path, 3.0, 3.01, 3.3)
    CliRunner().invoke(
        app,
        ["history", str(tmp_path), "--html", str(tmp_path / "out.html"), "--run", "20261102"],
        standalone_mode=False,
    )
    assert "20261102T020000Z" in (tmp_path / "out.html").read_text()
    assert "SIMULATED" in (tmp_path / "out.html").read_text()


def test_duckdb_answers(tmp_path: Path) -> None:
    kept(tmp_path, 3.0, 3.3)
    query = "SELECT run_id, value, figures.source FROM figures JOIN runs USING (run_id) ORDER BY value"
    assert [(row["run_id"][:8], row["value"]) for row in said(str(tmp_path), "--sql", query)] == [
        ("20261101", 3.0),
        ("20261102", 3.3),
    ]


@pytest.mark.parametrize(
    "query",
    ["SELECT * FROM nothing", "COPY figures TO '{}/stolen.csv'", "SELECT * FROM read_text('{}/outside')", "SELEC"],
)
def test_a_query_that_is_wrong_or_reaches_outside_is_refused(tmp_path: Path, query: str) -> None:
    kept(tmp_path / "runs", 3.0)
    (tmp_path / "outside").write_text("secret")
    with pytest.raises(NightError, match="the query can't be answered"):
        history.asked(tmp_path / "runs", query.format(tmp_path))
    assert not (tmp_path / "stolen.csv").exists()


def test_a_night_that_is_damaged_keeps_no_other_from_its_verdict(tmp_path: Path) -> None:
    nights = kept(tmp_path, 3.0, 3.0, 3.3)
    (tmp_path / nights[0].run.run_id / night.FIGURES_FILE).write_bytes(b"")
    with pytest.raises(NightError, match=r"figures\.parquet can't be read"):
        history.nights(tmp_path)
    said = io.StringIO()
    console = Console(file=said, width=1000)
    folder = tmp_path / nights[2].run.run_id
    verdict = command._judged(nights[2], folder, NightlySection(), Footprint(), console)
    assert verdict.compared == (nights[1].run.run_id,)
    assert f"not compared with: {tmp_path / nights[0].run.run_id}" in said.getvalue()


def test_what_was_said_is_not_known_where_it_is_cut_off(tmp_path: Path) -> None:
    [one] = kept(tmp_path, 3.0)
    (tmp_path / one.run.run_id / history.VERDICT_FILE).write_text('{"wor')
    assert [(row["status"], row.get("verdict")) for row in said(str(tmp_path))] == [("complete", None)]


def test_an_object_store_is_read(tmp_path: Path) -> None:
    kept(tmp_path, 3.0, 3.3)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), "/bucket/runs", recursive=True)
    try:
        assert [row.get("verdict") for row in said("memory://bucket/runs")] == ["first", "regression"]
    finally:
        store.rm("/bucket", recursive=True)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    kept(tmp_path, 3.0, 3.1)
    with (
        pytest.raises(NightError, match="none is no folder of runs"),
        history.folder_of(str(tmp_path / "none")),
    ):
        pass
    with pytest.raises(NightError, match="nosuch://x can't be read"), history.folder_of("nosuch://x"):
        pass
    nights = history.nights(tmp_path)
    with pytest.raises(NightError, match="2 runs begin with 2026"):
        history.one(nights, "2026")
    with pytest.raises(NightError, match="no night has the series batch-9 j_per_token"):
        CliRunner().invoke(
            app,
            ["history", str(tmp_path), "--series", "batch-9 j_per_token"],
            standalone_mode=False,
            catch_exceptions=False,
        )
    assert history.nights(tmp_path, "another") == []


def test_a_damaged_night_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    kept(tmp_path, 3.0)
    (tmp_path / "20261101T020000Z-0a1b2c3d" / "figures.parquet").write_bytes(b"PAR1")
    with pytest.raises(NightError, match="can't be read"):
        history.nights(tmp_path)
