"""The directory of a run: what is written comes back, of this format and of ones that know less."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etameter.errors import NightError
from etameter.prompts.nightly import night
from etameter.prompts.nightly.metrics import METRICS
from etameter.prompts.nightly.rows import Figure, StageRow
from tests.prompts.nightly import laid_out

pytestmark = pytest.mark.unit


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    unknown = laid_out.stage_row(
        window=3, energy_j=None, energy_error_j=None, correct=None, throttled=None, excluded="x"
    )
    told = laid_out.night()
    told = replace(
        told,
        stages=(*told.stages, unknown),
        figures=(*told.figures, laid_out.figure(metric="mfu", value=None, low=None, high=None, n=0, reason="a CPU")),
    )
    night.write(tmp_path, told)
    assert night.read(tmp_path) == told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.parquet", "run.json", "stages.parquet"]


def test_the_files_of_many_nights_are_one_table(tmp_path: Path) -> None:
    for run_id in ("one", "two"):
        (tmp_path / run_id).mkdir()
        night.write(tmp_path / run_id, laid_out.night(run_id=run_id))
    table = pa.concat_tables(pq.read_table(tmp_path / run_id / night.STAGES_FILE) for run_id in ("one", "two"))
    assert table.column("run_id").to_pylist() == ["one"] * 3 + ["two"] * 3
    assert table.schema.field("energy_j").nullable
    assert not table.schema.field("start_ns").nullable


def test_a_night_of_no_stages_is_one(tmp_path: Path) -> None:
    told = replace(laid_out.night(status="failed", reason="no GPU", exit_code=2, energy_j=None), stages=(), figures=())
    night.write(tmp_path, told)
    assert night.read(tmp_path) == told


def test_columns_that_an_earlier_version_did_not_have_are_not_known(tmp_path: Path) -> None:
    night.write(tmp_path, laid_out.night())
    for name, gone in ((night.STAGES_FILE, "clock_mhz"), (night.FIGURES_FILE, "reason")):
        pq.write_table(pq.read_table(tmp_path / name).drop_columns([gone]), tmp_path / name)
    assert night.read_stages(tmp_path)[0].clock_mhz is None
    assert night.read_figures(tmp_path)[0].reason == ""
    pq.write_table(pq.read_table(tmp_path / night.STAGES_FILE).drop_columns(["start_ns"]), tmp_path / night.STAGES_FILE)
    with pytest.raises(NightError, match="has no start_ns"):
        night.read_stages(tmp_path)


def test_what_is_more_is_passed_over_and_what_is_of_a_later_format_refused(tmp_path: Path) -> None:
    night.write(tmp_path, laid_out.night())
    path = tmp_path / night.RUN_FILE
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "colour": "red"}))
    assert night.read_run(tmp_path) == laid_out.run()
    path.write_text(json.dumps({**told, "format": night.FORMAT + 1}))
    with pytest.raises(NightError, match="update etameter"):
        night.read_run(tmp_path)
    path.write_text(json.dumps({name: value for name, value in told.items() if name != "seed"}))
    with pytest.raises(NightError, match="is damaged"):
        night.read_run(tmp_path)
    path.write_text("{}")
    with pytest.raises(NightError, match="was not written by"):
        night.read_run(tmp_path)
    path.unlink()
    with pytest.raises(NightError, match="holds no run that has ended"):
        night.read_run(tmp_path)


def test_rows_say_what_their_numbers_are() -> None:
    assert {each.name for each in fields(StageRow)} >= {"start_ns", "energy_j", "excluded", "source"}
    assert [each.name for each in fields(Figure)][:8] == [
        "stage",
        "metric",
        "unit",
        "value",
        "low",
        "high",
        "n",
        "source",
    ]
    assert all(metric.words and metric.unit for metric in METRICS.values())
