"""One run a GPU, nights that were cut off go on or are closed, and a full disk leaves room to say so."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from etameter.errors import MeterBusy, NightError
from etameter.prompts.nightly import journal, keeping, night
from etameter.prompts.nightly.journal import Ending, Journal
from etameter.prompts.nightly.keeping import Job
from tests.prompts.nightly.laid_out import figure, stage_row
from tests.simnvml.board import Board

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 2, 3, 0, tzinfo=UTC)
JOB = Job("nightly", "c0ffee", sweep=False)


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETAMETER_RING_DIR", str(tmp_path))


def begun(runs: Path, run_id: str, *, hours_ago: float = 1.0, **told: object) -> Path:
    head = {
        "run_id": run_id,
        "name": "nightly",
        "began": (NOW - timedelta(hours=hours_ago)).isoformat(),
        "config_hash": "c0ffee",
        "config": {},
        "seed": 0,
        "sweep": False,
        "etameter": "0.1.0",
        "tasks_hash": "t",
        "model": None,
        "host": {"cpu": "some"},
        **told,
    }
    journal.begin(runs / run_id, head)
    return runs / run_id


def test_runs_of_the_same_gpu_exclude_each_other_and_others_do_not(tmp_path: Path) -> None:
    with keeping.alone(["GPU-a", "GPU-b"]):
        with (
            pytest.raises(MeterBusy, match=rf"another run \(pid {os.getpid()}\) measures GPU-b"),
            keeping.alone(["GPU-b", "GPU-c"]),
        ):
            pass
        with keeping.alone(["GPU-c"]):
            pass
    with keeping.alone(["GPU-b", "GPU-c"]):
        pass


def test_a_night_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    folder = begun(tmp_path, "20261102T020000Z-a")
    assert keeping.clear_up(tmp_path, JOB, NOW) == folder
    assert not (folder / night.RUN_FILE).exists()


@pytest.mark.parametrize(
    ("hours_ago", "told"),
    [
        (7.0, {}),
        (-1.0, {}),
        (1.0, {"config_hash": "other"}),
        (1.0, {"sweep": True}),
    ],
)
def test_one_that_can_not_go_on_is_closed_as_incomplete(
    hours_ago: float, told: dict[str, object], tmp_path: Path
) -> None:
    folder = begun(tmp_path, "20261102T020000Z-a", hours_ago=hours_ago, **told)
    with Journal(folder / night.JOURNAL_FILE) as kept:
        kept.begin("batch-8")
        kept.window(stage_row())
        kept.end("batch-8", [figure()])
        kept.begin("batch-32")
    keeping.reserve(folder)
    assert keeping.clear_up(tmp_path, JOB, NOW) is None
    closed = night.read(folder)
    assert (closed.run.status, closed.run.exit_code, closed.run.reason) == ("incomplete", 130, "it was killed")
    assert (closed.stages, closed.figures) == ((stage_row(),), (figure(),))
    assert not (folder / keeping.RESERVE_FILE).exists()
    assert keeping.clear_up(tmp_path, JOB, NOW) is None


def test_only_the_last_goes_on_and_other_jobs_are_left_alone(tmp_path: Path) -> None:
    first, second = begun(tmp_path, "20261102T010000Z-a", hours_ago=2), begun(tmp_path, "20261102T020000Z-b")
    other = begun(tmp_path, "20261102T000000Z-c", name="weekly")
    assert keeping.clear_up(tmp_path, JOB, NOW) == second
    assert night.read_run(first).status == "incomplete"
    assert not (other / night.RUN_FILE).exists()


def test_one_that_is_going_on_or_damaged_is_left_alone(tmp_path: Path) -> None:
    going, damaged = begun(tmp_path, "20261102T010000Z-a"), begun(tmp_path, "20261102T020000Z-b")
    (damaged / night.JOURNAL_FILE).write_text("nonsense\n")
    with Journal(going / night.JOURNAL_FILE):
        assert keeping.clear_up(tmp_path, JOB, NOW) is None
    assert not (going / night.RUN_FILE).exists()


def test_a_night_that_was_killed_while_it_closed_is_concluded_as_it_said(tmp_path: Path) -> None:
    folder = begun(tmp_path, "20261102T020000Z-a")
    with Journal(folder / night.JOURNAL_FILE) as kept:
        kept.close_with(Ending("complete", "", "", 0), NOW.isoformat())
    assert keeping.clear_up(tmp_path, JOB, NOW) is None
    assert night.read_run(folder).status == "complete"


def test_room_for_the_end_is_taken_at_the_beginning(tmp_path: Path) -> None:
    folder = begun(tmp_path, "20261102T020000Z-a")
    keeping.reserve(folder)
    assert (folder / keeping.RESERVE_FILE).stat().st_blocks * 512 >= keeping.RESERVE_BYTES
    with Journal(folder / night.JOURNAL_FILE) as kept:
        closed = keeping.close(kept, Ending("failed", "no room", "make some", 2), NOW)
    assert (closed.run.status, closed.run.ended) == ("failed", "2026-11-02T03:00:00+00:00")
    assert not (folder / keeping.RESERVE_FILE).exists()


def test_a_run_is_not_begun_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "LEAST_FREE_BYTES", 1 << 60)
    with pytest.raises(NightError, match="MiB free"):
        keeping.begin(tmp_path / "runs", {"run_id": "a"})
    (tmp_path / "file").write_text("")
    with pytest.raises(NightError, match="set nightly"):
        keeping.begin(tmp_path / "file" / "runs", {"run_id": "a"})


def test_runs_sort_by_time() -> None:
    ids = [keeping.new_run_id(NOW + timedelta(hours=hours)) for hours in (0, 5, 30)]
    assert ids == sorted(ids)
    assert ids[0].startswith("20261102T030000Z-")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Board(tmp_path / "board", gpus=3) as made:
        yield made


@pytest.mark.parametrize(
    ("told", "numbers"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2,0", [0, 2]),
        ("GPU-51351351-0000-4000-8000-000000000001", [1]),
        ("-1", [0, 1, 2]),
    ],
)
def test_a_run_has_the_gpus_that_cuda_may_see(
    told: str | None, numbers: list[int], board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    assert keeping.measured_here() == tuple(board.uuid(number) for number in numbers)


BOARD = {"board": "H100", "counter": "nvml", "gpu_uuid": "GPU-a", "clock_mhz": 1980, "driver": "580"}
MACHINE = {
    "cpu": "some",
    "cores": 2,
    "source": "measured",
    "model": "small",
    "server": {"version": "0.32.0", "model_fingerprint": "0a"},
    "boards": [BOARD],
}


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"boards": [{**BOARD, "gpu_uuid": "GPU-b"}]}, "another board .*GPU-a.*GPU-b"),
        ({"boards": []}, "another board"),
        ({"cpu": "other"}, "another host"),
        ({"source": "simulated"}, "another source of joules"),
        ({"server": {"model_fingerprint": "0b"}}, "another model"),
        ({"boards": [{**BOARD, "times_energy": 1.1}]}, "another energy of a simulated board"),
    ],
)
def test_a_night_does_not_go_on_elsewhere(here: dict[str, object], said: str) -> None:
    with pytest.raises(NightError, match=said):
        keeping.refuse_another_machine(MACHINE, {**MACHINE, **here})


def test_a_night_goes_on_with_another_clock_driver_or_version() -> None:
    board = {**BOARD, "clock_mhz": 300, "driver": "590"}
    keeping.refuse_another_machine(MACHINE, {**MACHINE, "boards": [board], "server": {"model_fingerprint": "0a"}})
