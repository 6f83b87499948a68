"""`etameter ab` from its options to its files, on a server of a few lines and the stand-in's boards."""

import asyncio
import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from etameter import cli
from etameter.counters import nvml
from etameter.errors import EtameterError
from etameter.prompts import ab_command, endpoint, journal, report, results, station
from etameter.prompts.ab_command import Wishes
from etameter.prompts.experiment import Experiment, Patience
from etameter.prompts.station import Server
from etameter.prompts.tables import BlockRow, Outcome, read_parquet
from tests.prompts import ab_bench as bench
from tests.prompts import recomputed
from tests.prompts.upstream import Upstream
from tests.simnvml.board import Board, Sensor

pytestmark = pytest.mark.unit

MS = 1_000_000


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETAMETER_RING_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(endpoint, "_POLL_S", 0.01)
    monkeypatch.setattr(ab_command, "PATIENCE", Patience(0.2, 0.0, 0.2, 2.0))
    rows: list[dict[str, Any]] = [{"suite": "mini", "version": "1"}]
    rows += [
        {
            "id": task.id,
            "category": task.category,
            "difficulty": task.difficulty,
            "prompt": task.turns[0],
            "checker": {"kind": "number", "value": 42},
        }
        for task in bench.TASKS
    ]
    Path("mini.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path / "board", energy=Sensor(period_ns=20 * MS))
    made.set_power_w(0, [(0, 300.0)])
    with made:
        yield made


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds, and other tests look at them."""
    monkeypatch.setattr(report, "write", lambda *_: [])


MINI = ("--suite", "mini.jsonl", "--arms", "unconstrained,concise", "--concurrency", "4", "--closed-loop", "2")


def etameter(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["ab", *words])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_a_run_leaves_tables_a_report_and_a_verdict_that_claims_nothing(
    board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    with bench.served(Upstream(bench.says)) as url:
        assert etameter(*MINI, "--url", url, "--out", "run") == 0
    out = capsys.readouterr().out
    assert "SIMULATED" in out
    assert "report: run/report.html" in out
    folder = Path("run")
    blocks, about = read_parquet(folder / "blocks.parquet", BlockRow)
    outcomes, _ = read_parquet(folder / "requests.parquet", Outcome)
    assert {row.source for row in blocks} == {one.source for one in outcomes} == {"simulated"}
    assert {row.counter for row in blocks} == {"nvml"}
    assert all(row.excluded is None and (row.energy_j or 0) > 0 for row in blocks)
    for row in blocks:
        assert row.energy_j == pytest.approx(300.0 * (row.end_ns - row.start_ns) * 1e-9, rel=0.5)
        assert row.idle_w == pytest.approx(300.0, rel=0.1)
        assert row.throttled is False
    assert about["plan"] == journal.planned(folder).hash
    recomputed.check(folder)
    told = json.loads((folder / results.RUN_FILE).read_text())
    assert told["complete"]
    for part in told["analysis"]["parts"]:
        for finding in part["findings"]:
            assert finding["energy"] in {"too few", "not shown", "not claimed"}
    head = json.loads((folder / journal.JOURNAL_FILE).read_text().splitlines()[0])
    assert head["hash"] == told["plan_hash"]


@pytest.mark.usefixtures("_no_pictures")
def test_the_plan_is_on_the_disk_before_the_first_prompt_is_sent(board: Board) -> None:
    seen: list[bool] = []

    class Looking(Upstream):
        async def chat(self, request: web.Request) -> web.StreamResponse:
            seen.append((Path("run") / journal.JOURNAL_FILE).read_text().startswith('{"kind": "plan", "hash": "'))
            return await super().chat(request)

    with bench.served(Looking(bench.says)) as url:
        assert etameter(*MINI, "--url", url, "--out", "run") == 0
    assert all(seen)
    assert seen


def test_ctrl_c_ends_with_130_and_the_run_goes_on(
    board: Board,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Inside one of the tasks that ask."""

    def interrupt(_: Experiment) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with bench.served(Upstream(bench.says)) as url:
        with monkeypatch.context() as patched:
            patched.setattr(Experiment, "_left_s", interrupt)
            assert etameter(*MINI, "--url", url, "--out", "run") == 130
        gc.collect()
        assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
        assert "`etameter ab --resume run` goes on" in capsys.readouterr().err
        assert etameter("--resume", "run", "--suite", "mini.jsonl", "--url", url, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["complete"]
    recomputed.check(Path("run"))
    assert etameter("--resume", "run", "--suite", "mini.jsonl") == 0  # nothing is left, and nobody is asked


@pytest.mark.usefixtures("_no_pictures")
def test_two_runs_are_set_beside_each_other(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    with bench.served(Upstream(bench.says)) as url:
        assert etameter(*MINI, "--url", url, "--out", "one") == 0
        assert etameter(*MINI, "--url", url, "--out", "other", "--max-tokens", "99") == 0
    capsys.readouterr()
    assert etameter("--compare", "one", "one") == 0
    assert "Not comparable" not in capsys.readouterr().out
    assert etameter("--compare", "one", "other/blocks.parquet") == 4
    assert "Not comparable: the most tokens of an answer: 1024 in one, 99 in other" in capsys.readouterr().out
    assert etameter("--compare", "one", "other", "--json") == 4
    assert json.loads(capsys.readouterr().out)["comparable"] is False
    assert etameter("--compare", "one", "nowhere") == 2
    Path("one/monday.parquet").write_bytes(Path("one/blocks.parquet").read_bytes())
    assert etameter("--compare", "one/monday.parquet", "other") == 2
    assert "monday.parquet is no table of a run" in capsys.readouterr().err


def test_a_dry_run_asks_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert etameter(*MINI, "--dry-run", "--saving", "0.2") == 0
    out = capsys.readouterr().out
    assert "To find a saving of 20%" in out
    wishes = Wishes("mini.jsonl", ("unconstrained", "concise"), concurrency=4, closed_loop=2)
    suite, arms = ab_command._suite("mini.jsonl"), ab_command._arms(wishes.arms)
    assert out.startswith(f"plan {wishes.plan(suite, arms, station.model_of(Server())).hash}")
    assert list(Path().glob("etameter-ab-*")) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--suite", "nope", "--dry-run"), "nope can't be read"),
        (("--arms", "unconstrained", "--dry-run"), "1 arms can't be compared"),
        (("--arms", "unconstrained,nope", "--dry-run"), "there is no arm 'nope'"),
        (("--samples", "0", "--dry-run"), "0 samples"),
        (("--closed-loop", "0", "--dry-run"), "0 tasks in the part closed-loop"),
        (("--suite", "", "--dry-run"), "can't be read"),
        (("--url", f"http://{'a' * 70}", "--dry-run"), "is no address"),
        (("--rate", "-1", "--dry-run"), "a rate of -1"),
        (("--margin", "5", "--dry-run"), "a margin of 5"),
        (("--saving", "1.5", "--dry-run"), "a saving of 1.5 can't be planned for"),
        (("--out", "a", "--resume", "b"), "--out and --resume name two runs"),
        (("--resume", "nowhere"), "nowhere has no plan"),
        (("--url", "http://192.0.2.1:1", "--dry-run", "--prefix-cache", "maybe"), "--prefix-cache"),
        (("--url", "localhost", "--dry-run"), "localhost is no address of a server"),
    ],
)
def test_wrong_use_is_refused_in_one_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert etameter(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("etameter: ")
    assert said in line


@pytest.mark.usefixtures("_no_pictures")
def test_a_run_that_goes_on_keeps_its_plan(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    with bench.served(Upstream(bench.says)) as url:
        assert etameter(*MINI, "--url", url, "--out", "run") == 0
        assert etameter(*MINI, "--url", url, "--out", "run") == 2
        assert "run holds a run" in capsys.readouterr().err
    assert etameter("--resume", "run", "--samples", "2") == 2
    assert "keeps its plan" in capsys.readouterr().err
    assert etameter("--resume", "run", "--suite", "small") == 2
    assert "is not the one of the plan" in capsys.readouterr().err
    assert etameter("--resume", "run", "--suite", "mini.jsonl", "--arms", "unconstrained,seed") == 2
    assert "the arms are not those of the plan" in capsys.readouterr().err
    plan = Path("run") / journal.PLAN_FILE
    plan.write_text(plan.read_text().replace('"margin": 0.05', '"margin": 0.5'))
    assert etameter("--resume", "run", "--suite", "mini.jsonl") == 2
    assert "begun with another plan" in capsys.readouterr().err


def test_another_model_is_refused(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    with bench.served(Upstream(bench.says)) as url:
        assert etameter("nope", *MINI, "--url", url) == 2
        assert "the server has no model nope: it has small, adapter" in capsys.readouterr().err
        Path("run").mkdir()
        journal.begin(
            Path("run"),
            Wishes("mini.jsonl", ("unconstrained", "concise")).plan(
                ab_command._suite("mini.jsonl"), ab_command._arms(("unconstrained", "concise")), "other"
            ),
        )
        assert etameter("--resume", "run", "--suite", "mini.jsonl", "--url", url) == 2
        assert "the plan is for other, and this is small" in capsys.readouterr().err


def test_a_server_elsewhere_is_not_metered_here(board: Board) -> None:
    with (
        pytest.raises(EtameterError, match="on another machine"),
        station.asked(Server("http://192.0.2.1:8000"), None, name="ab"),  # type: ignore[arg-type]
    ):
        pass


def test_a_machine_without_a_counter_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etameter.counters.rapl.discover", nvml.discover)
    with bench.served(Upstream(bench.says)) as url:
        assert etameter(*MINI, "--url", url) == 2
    assert "NVML" in capsys.readouterr().err


def test_what_is_said_of_a_models_folder_is_not_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    told = station.described({"root": str(tmp_path), "version": "0.32.0"})
    assert (told["root"], told["version"]) == (tmp_path.name, "0.32.0")
    (tmp_path / "model.safetensors").write_bytes(b"weights!")
    assert station.described({"root": str(tmp_path)})["model_fingerprint"] != told["model_fingerprint"]
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    assert station.described({"root": str(tmp_path)})["model_fingerprint"] != told["model_fingerprint"]


@pytest.mark.parametrize("root", ["Org/model", "/nowhere/model", __file__])
def test_a_model_whose_files_can_not_be_read_is_known_by_its_name(root: str) -> None:
    told = station.described({"root": root})
    assert told["root"] in {"Org/model", Path(root).name}
    assert "its name" in told["model_known_by"]
    assert "model_fingerprint" not in told


def test_without_matplotlib_nobody_is_asked(
    board: Board, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = Upstream(bench.says)
    with bench.served(upstream) as url, monkeypatch.context() as patched:
        patched.setattr("importlib.util.find_spec", lambda _: None)
        assert etameter(*MINI, "--url", url, "--out", "run") == 2
    assert "matplotlib" in capsys.readouterr().err
    assert upstream.requests == []
    assert not Path("run").exists()


def test_what_a_server_says_of_itself_is_kept() -> None:
    class Open(Upstream):
        async def models(self, _: web.Request) -> web.Response:
            return web.json_response({"data": [{"id": "small", "root": "Org/small", "max_model_len": 2048}]})

    async def main(url: str) -> dict[str, Any]:
        async with endpoint.connect(url) as server:
            return await server.about("small")

    with bench.served(Open(bench.says)) as url:
        assert asyncio.run(main(url)) == {"root": "Org/small", "max_model_len": 2048}
