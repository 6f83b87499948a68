"""`etameter nightly` from its file to its directory, on a server of a few lines and the stand-in's board; and every way in which a night may end."""

import errno
import gc
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from aiohttp import web

from etameter import cli, doctor
from etameter.findings import Diagnosis
from etameter.footprint import Footprint
from etameter.nightly_section import NightlySection
from etameter.prompts import endpoint
from etameter.prompts.experiment import Patience
from etameter.prompts.nightly import (
    beside,
    command,
    conditions,
    guard,
    journal,
    keeping,
    load,
    night,
    runner,
    steady,
    switchback,
)
from etameter.prompts.nightly.journal import Journal
from etameter.prompts.nightly.night import Night
from tests.prompts import ab_bench
from tests.prompts.nightly import bench
from tests.simnvml.board import Board, Call, Sensor

pytestmark = pytest.mark.unit

MS = 1_000_000
QUICK: dict[str, Any] = {"batches": [2], "rates_per_s": [], "arms": [], "window_s": 0.1, "idle_s": 0.1}


EXAMINED = command._examined
GOOD = Diagnosis("0.1.0", can_measure=True, verdict="good", machine=[], gpus=[])
"""Doctor looks fourteen times; most tests take its word."""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETAMETER_RING_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(endpoint, "_POLL_S", 0.01)
    monkeypatch.setattr(command, "DOCTOR_S", 0.15)
    monkeypatch.setattr(command, "_examined", lambda counters, _: GOOD if counters else None)
    monkeypatch.setattr(runner, "REST_S", 0.0)
    monkeypatch.setattr(
        steady, "LEVEL_CV", 0.15
    )  # a tenth of a second is known to some percent, on a busy machine to less
    monkeypatch.setattr(runner, "TOLD_NS", 20 * MS)
    monkeypatch.setattr(load, "BREATH_S", 0.0)
    monkeypatch.setattr(command, "conclude", lambda *_: None)  # it draws for seconds, and has tests of its own
    monkeypatch.setattr(beside, "installed", lambda: False)  # it looks for cloud hardware for seconds


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path / "board", energy=Sensor(period_ns=5 * MS))
    made.set_power_w(0, [(0, 300.0)])
    with made:
        yield made


@contextmanager
def served() -> Iterator[str]:
    with ab_bench.served(bench.Night()) as url:
        yield url


def nightly(config: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["nightly", str(config), *words])
    assert isinstance(left.value.code, int)
    return left.value.code


def the_night() -> Night:
    """The last of those that ended."""
    return night.read(max(Path("runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns).parent)


def test_a_night_leaves_its_stages_its_figures_and_how_it_went(
    board: Board, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_examined", EXAMINED)
    with served() as url:
        assert nightly(bench.configured(Path(), url, **QUICK, prefix_cache="as-served"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    whole = the_night()
    run = whole.run
    assert (run.status, run.exit_code, run.source, run.counter) == ("complete", 0, "simulated", "nvml")
    assert told["run_id"] == run.run_id
    assert [row.stage for row in whole.stages if row.window == 0] == ["idle-before", "warm-up", "batch-2", "idle-after"]
    assert {row.correct for row in whole.stages if row.stage == "warm-up"} == {None}, "what nobody checked is not 0"
    loaded = [row for row in whole.stages if row.stage == "batch-2"]
    assert [row.excluded for row in loaded] == ["ramp", None, None, None]
    assert all(row.power_w == pytest.approx(300.0, rel=0.5) for row in loaded)
    figures = {figure.metric: figure for figure in whole.figures if figure.stage == "batch-2"}
    joules, tokens = (sum(getattr(row, name) for row in loaded[1:]) for name in ("energy_j", "output_tokens"))
    assert figures["j_per_token"].value == pytest.approx(joules / tokens)
    assert figures["power_w"].low is not None
    assert run.power_cap_w == 700.0
    assert run.driver == "560.35.03-sim"
    passed_s = (whole.stages[-1].end_ns - whole.stages[0].start_ns) * 1e-9
    assert run.energy_j == pytest.approx(300.0 * passed_s, rel=0.5)
    assert run.details["doctor"][0]["can_measure"]
    assert {check["name"] for check in run.details["doctor"][0]["gpus"][0]["checks"]} >= {"counter", "update_period"}
    head = json.loads((Path("runs") / run.run_id / night.JOURNAL_FILE).read_text().splitlines()[0])
    assert (head["run_id"], head["config_hash"]) == (run.run_id, run.config_hash)


def test_the_arms_are_compared_twice_on_the_same_tasks_and_on_fresh_ones(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etameter.prompts.report.write", lambda *_: [])
    monkeypatch.setattr(switchback, "SHORT", Patience(0.1, 0.0, 0.1, 1.0))
    keys = {**QUICK, "arms": ["unconstrained", "concise"], "audit_tasks": 4, "batches": [4], "max_tokens": 16}
    with served() as url:
        assert nightly(bench.configured(Path(), url, **keys)) == 0
    whole = the_night()
    stages = {row.stage for row in whole.stages}
    assert stages >= {f"{stage}/{arm}" for stage in ("ab-fixed", "ab-audit") for arm in ("unconstrained", "concise")}
    figures = {(figure.stage, figure.metric): figure for figure in whole.figures}
    rows = [row for row in whole.stages if row.stage == "ab-fixed/concise"]
    spent, right = sum(row.energy_j or 0 for row in rows), sum(row.correct or 0 for row in rows)
    assert figures["ab-fixed/concise", "j_per_correct_answer"].value == pytest.approx(spent / right)
    assert figures["ab-fixed/concise", "accuracy"].value == 0.75
    assert "at least 10 are needed" in figures["ab-fixed/concise", "saving"].reason
    folder = Path("runs") / whole.run.run_id
    plans = [json.loads((folder / stage / "plan.json").read_text()) for stage in ("ab-fixed", "ab-audit")]
    assert [plan["suite"] for plan in plans] == ["mini", "audit"]
    assert plans[1]["seed"] != plans[0]["seed"] == 0


def test_recorded_arrivals_and_other_tools_are_stages(board: Board) -> None:
    Path("a.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,9,4\n0.05,9,6\n0.08,9,5\n")
    keys = {**QUICK, "batches": [], "arrivals": "a.csv", "external": ["guidellm"]}
    with served() as url:
        assert nightly(bench.configured(Path(), url, **keys)) == 0
    figures = {(figure.stage, figure.metric): figure for figure in the_night().figures}
    assert (figures["recorded", "j_per_token"].value or 0) > 0
    assert figures["recorded", "accuracy"].reason == "nothing is checked in this stage"
    assert figures["external-guidellm", "j_per_token"].reason == "guidellm is not installed"


def test_a_sweep_tries_caps_and_leaves_the_board_as_it_was(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in board.environment().items():
        monkeypatch.setenv(name, value)
    keys = {
        **QUICK,
        "batches": [1],
        "sweep_max_num_seqs": [],
        "sweep_power_w": [300.0, 900.0],
        "sweep_clock_mhz": [1200],
    }
    with served() as url:
        config = bench.configured(Path(), url, **keys)
        assert nightly(config, "--sweep") == 0
    whole = the_night()
    figures = {(figure.stage, figure.metric): figure for figure in whole.figures}
    assert (figures["sweep-cap-300", "j_per_token"].value or 0) > 0
    assert "takes 200 to 700 W" in figures["sweep-cap-900", "j_per_token"].reason
    assert {row.clock_mhz for row in whole.stages if row.stage == "sweep-clock-1200"} == {1200}
    assert {point["setting"] for point in whole.run.details["sweep"]} == {"sweep-cap-300", "sweep-clock-1200"}
    assert (board.gpus[0].power_limit_mw, board.gpus[0].locked_mhz) == (700_000, 0)


# ---- ends ----


def test_a_missing_gpu_ends_recorded(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    board.fail(Call.INIT, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    with served() as url:
        assert nightly(bench.configured(Path(), url, **QUICK)) == 2
    run = the_night().run
    assert (run.status, run.exit_code, run.source) == ("failed", 2, None)
    assert "driver isn't running" in run.reason
    assert "make nvidia-smi work first" in capsys.readouterr().out.lower()


def test_a_counter_that_stands_still_ends_recorded(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_examined", EXAMINED)
    monkeypatch.setattr(doctor, "EDGE_WAIT_S", 0.1)
    board.freeze(Call.ENERGY, 0)
    with served() as url:
        assert nightly(bench.configured(Path(), url, **QUICK)) == 2
    run = the_night().run
    assert (run.status, run.exit_code) == ("failed", 2)
    assert "stands still" in run.reason


def test_a_gpu_that_falls_off_the_bus_ends_recorded(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "LOST_NS", 200 * MS)
    begin = Journal.begin

    def lose(self: Journal, stage: str) -> int:
        if stage == "batch-2":
            board.lose(0)
        return begin(self, stage)

    monkeypatch.setattr(Journal, "begin", lose)
    with served() as url:
        assert nightly(bench.configured(Path(), url, **{**QUICK, "window_s": 0.4})) == 2
    run = the_night().run
    assert (run.status, run.exit_code) == ("failed", 2)
    assert "can't be read any more (gpu_lost)" in run.reason


def test_a_server_that_is_not_there_ends_recorded(board: Board) -> None:
    assert nightly(bench.configured(Path(), "http://127.0.0.1:9", **QUICK)) == 2
    run = the_night().run
    assert (run.status, run.exit_code) == ("failed", 2)
    assert "does not answer" in run.reason


def test_no_run_tells_the_password_of_an_address(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    assert nightly(bench.configured(Path(), "http://somebody:Zanzibar@127.0.0.1:9", **QUICK)) == 2
    run = the_night().run
    assert (run.status, run.config["url"]) == ("failed", "http://127.0.0.1:9")
    assert "names a user" in run.reason
    told = capsys.readouterr()
    left = [path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()]
    assert left
    assert not any(b"Zanzibar" in each for each in (told.out.encode(), told.err.encode(), *left))


def test_a_server_that_dies_ends_recorded(board: Board) -> None:
    class Dying(bench.Night):
        async def chat(self, request: web.Request) -> web.StreamResponse:
            if len(self.requests) > 60:
                assert request.transport is not None
                request.transport.close()
            return await super().chat(request)

    with ab_bench.served(Dying()) as url:
        assert nightly(bench.configured(Path(), url, **{**QUICK, "window_s": 0.3})) == 2
    run = the_night().run
    assert (run.status, run.exit_code, run.reason) == ("failed", 2, "the server went away")


def test_a_budget_ends_a_night_cleanly(board: Board) -> None:
    with served() as url:
        assert nightly(bench.configured(Path(), url, **QUICK, budget_s=0.5)) == 4
        run = the_night().run
        assert (run.status, run.exit_code) == ("incomplete", 4)
        assert "0.5 s" in run.reason
        assert nightly(bench.configured(Path(), url, **QUICK, budget_j=100.0)) == 4
    assert "100 J" in the_night().run.reason


def test_a_clock_that_jumps_makes_the_night_unstable(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    jumping = {**vars(time), "time": lambda: time.time() + (7200 if next(looks) > 20 else 0)}
    monkeypatch.setattr(conditions, "time", SimpleNamespace(**jumping))
    with served() as url:
        assert nightly(bench.configured(Path(), url, **QUICK)) == 5
    run = the_night().run
    assert run.status == "unstable"
    assert "a clock jumped" in run.reason


def test_a_full_disk_ends_recorded(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reserve is what the last lines are written into: until it is gone the disk is full."""
    write = Journal._write

    def full(self: Journal, told: dict[str, Any]) -> None:
        if told["kind"] == "window" and (self.folder / keeping.RESERVE_FILE).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, told)

    monkeypatch.setattr(Journal, "_write", full)
    with served() as url:
        assert nightly(bench.configured(Path(), url, **QUICK)) == 2
    run = the_night().run
    assert (run.status, run.exit_code, run.reason) == ("failed", 2, "No space left on device")


def test_a_night_before_that_can_not_be_closed_is_no_crash(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a disk that is full already: a folder stands where its tables would be written."""
    head = {
        **command._head(command.planned(NightlySection(arms=()), Footprint(), sweep=False)),
        "began": "2026-11-01T02:00:00+00:00",
    }
    journal.begin(Path("runs", "20261101T020000Z-0a1b2c3d"), head)
    Path("runs", "20261101T020000Z-0a1b2c3d", f".{night.STAGES_FILE}").mkdir()
    assert nightly(bench.configured(Path(), "http://127.0.0.1:9", **QUICK)) == 2
    assert "runs can't be written" in capsys.readouterr().err


def test_what_wanders_is_unstable_and_says_what_to_do(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "LEVEL_CV", 0.03)
    now_ns = time.monotonic_ns()
    board.set_power_w(0, [(now_ns + number * 100 * MS, 100.0 + 150.0 * (number % 3)) for number in range(200)])
    with served() as url:
        config = bench.configured(Path(), url, **{**QUICK, "warm_up_s": 0.6})
        assert nightly(config) == 5
    run = the_night().run
    assert "power by" in run.reason
    assert "nightly.window_s" in run.remedy


def test_throttled_windows_do_not_count(board: Board) -> None:
    board.gpus[0].throttle_reasons = pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    with served() as url:
        assert nightly(bench.configured(Path(), url, **QUICK)) == 5
    whole = the_night()
    loaded = [row for row in whole.stages if row.stage == "batch-2"]
    assert [row.excluded is None for row in loaded] == [False] * 7, "twice its windows were tried"
    assert {row.excluded for row in loaded} >= {"ramp", "throttled"}
    assert "throttled" in whole.run.reason
    assert {figure.value for figure in whole.figures if figure.stage == "batch-2"} == {None}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_recorded_and_silently(
    number: signal.Signals, board: Board, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Inside one of the many tasks that ask, too."""
    heard = itertools.count(1)
    take = load._Heard.take

    def interrupted(self: load._Heard, chunk: dict[str, Any], t_ns: int) -> None:
        if next(heard) == 60:
            os.kill(os.getpid(), number)
        take(self, chunk, t_ns)

    monkeypatch.setattr(load._Heard, "take", interrupted)
    with served() as url:
        assert nightly(bench.configured(Path(), url, **{**QUICK, "window_s": 60.0})) == 130
    gc.collect()
    run = the_night().run
    assert (run.status, run.exit_code, run.reason) == ("incomplete", 130, "it was interrupted")
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_an_interrupt_while_a_sweep_sets_limits_leaves_none(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are set back before the night says how it ended."""
    for name, value in board.environment().items():
        monkeypatch.setenv(name, value)
    limited, close = guard.limited, keeping.close
    left: list[int] = []

    @contextmanager
    def interrupted(*wanted: Any) -> Iterator[None]:
        with limited(*wanted):
            os.kill(os.getpid(), signal.SIGINT)
            left.append(board.gpus[0].power_limit_mw)
            yield

    def closing(*told: Any) -> Night:
        left.append(board.gpus[0].power_limit_mw)
        return close(*told)

    monkeypatch.setattr(command, "limited", interrupted)
    monkeypatch.setattr(keeping, "close", closing)
    keys = {**QUICK, "batches": [1], "sweep_max_num_seqs": [], "sweep_power_w": [300.0], "sweep_clock_mhz": []}
    with served() as url:
        assert nightly(bench.configured(Path(), url, **keys), "--sweep") == 130
    assert left == [300_000, 700_000]
    assert the_night().run.status == "incomplete"


def test_two_nights_do_not_measure_the_same_gpu(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    with served() as url, keeping.alone([board.uuid(0)]):
        assert nightly(bench.configured(Path(), url, **QUICK)) == 2
    assert "another run" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"suite": "none.jsonl"}, "none.jsonl can't be read"),
        ({"arms": ["nobody"]}, "there is no arm 'nobody'"),
        ({"arrivals": "none.csv"}, "none.csv can't be read"),
        ({"windows": 1}, "nightly.windows = 1"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_begun(
    keys: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nightly(bench.configured(Path(), "http://127.0.0.1:9", **keys)) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()
    assert nightly(Path("nowhere.toml")) == 2


def test_a_server_that_runs_is_not_started_anew(capsys: pytest.CaptureFixture[str]) -> None:
    config = bench.configured(Path(), "http://127.0.0.1:9", **QUICK, sweep_max_num_seqs=[8])
    assert nightly(config, "--sweep") == 2
    assert "another max_num_seqs" in capsys.readouterr().err


def test_a_night_that_was_cut_off_goes_on_where_it_was(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after its first stage: the rest is measured, warmed up anew, and nothing twice."""

    class Killed(BaseException):
        pass

    begin = Journal.begin

    def kill(self: Journal, stage: str) -> int:
        if stage == "batch-2":
            raise Killed
        return begin(self, stage)

    with served() as url:
        config = bench.configured(Path(), url, **QUICK)
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "begin", kill)
            with pytest.raises(Killed):
                cli.main(["nightly", str(config)])
        (folder,) = Path("runs").iterdir()
        assert journal.load(folder).ending is None
        assert nightly(config) == 0
    assert [path.name for path in Path("runs").iterdir()] == [folder.name]
    whole = the_night()
    assert whole.run.sessions == 2
    by_stage = {row.stage: (row.session, row.attempt) for row in whole.stages}
    assert by_stage == {"idle-before": (0, 0), "warm-up": (1, 1), "batch-2": (1, 0), "idle-after": (1, 0)}
