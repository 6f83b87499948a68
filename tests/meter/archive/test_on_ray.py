"""The same on Ray as on one machine, on a cluster that is started for it: minutes, on a busy machine."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from etameter.archive.query import asked
from etameter.archive.rescoring import STANDS, WRITTEN, Outcome, Scoring, partitions
from etameter.archive.store import Store
from etameter.errors import ArchiveError
from etameter.ledger import Ledger
from tests.meter.archive.laid_out import as_version_1, filled, settle
from tests.meter.archive.test_days import Killed, run
from tests.meter.archive.test_rescoring import scored, stored

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.filterwarnings("default")]

ray = pytest.importorskip("ray")

QUESTIONS = (
    "SELECT model, source, count(*), sum(prompt_tokens + output_tokens) FROM requests GROUP BY ALL ORDER BY ALL",
    "SELECT day, min(number), max(number), avg(number) FROM requests GROUP BY day ORDER BY day",
    "SELECT count(*), sum(unattributed_j_by_cause['stale']) FROM balances",
    "SELECT method, deep, count(*) FROM readings GROUP BY ALL ORDER BY ALL",
    "SELECT number FROM requests WHERE number > 1 ORDER BY number DESC LIMIT 3",
)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_it_answers_as_duckdb_does(tmp_path: Path) -> None:
    from etameter.archive import on_ray

    ledger, store = filled(tmp_path / "ledger.db", [10.0, 9.0, 9.0, 8.0, 8.0, 0.0]), Store(str(tmp_path / "archive"))
    run(ledger.path, store)
    as_version_1(store, tmp_path)
    for number in range(6, 9):
        settle(ledger, number, 7.0, model=f"model {number}")
    published = len(store.files())

    def killed(seconds: float) -> None:
        if len(store.files()) > published + 2:
            raise Killed

    with pytest.raises(Killed):  # rows in both
        run(ledger.path, store, killed)
    for question in QUESTIONS:
        assert on_ray.asked(store, ledger.path, question) == asked(store, ledger.path, question), question
        assert on_ray.asked(store, None, question) == asked(store, None, question), question
    with pytest.raises(ArchiveError, match="leave out --engine ray"):
        on_ray.asked(store, None, "SELECT count(DISTINCT model) FROM requests")
    for wrong in ("SELECT nothing FROM requests", f"SELECT * FROM '{tmp_path}/ledger.db'", "DELETE FROM live_requests"):
        with pytest.raises(ArchiveError, match=r"^(the query|there is no table) [^\n]*$"):
            on_ray.asked(store, None, wrong)
    with pytest.raises(ArchiveError, match="holds no day"):
        on_ray.asked(Store(str(tmp_path / "nowhere")), None, "SELECT count(*) FROM requests")
    Path(store.files()[0].path).write_bytes(b"no parquet, and long enough")
    with pytest.raises(ArchiveError, match=r"^[^\n]*2024-09-[^\n]*$"):
        on_ray.asked(store, None, f"SELECT count(*) FROM {store.files()[0].table}")
    ledger.close()


def test_a_worker_that_is_killed_loses_and_doubles_nothing(tmp_path: Path) -> None:
    from etameter.archive import on_ray

    store = stored(tmp_path, 4000)
    works = partitions(store, str(tmp_path / "recordings"))
    outcomes: list[Outcome] = []
    scoring = threading.Thread(target=lambda: outcomes.extend(on_ray.rescore(works, Scoring(store.address))))
    scoring.start()
    until_s = time.monotonic() + 60
    while not (workers := [each for each in psutil.Process().children(recursive=True) if "_score" in _name(each)]):
        assert time.monotonic() < until_s, "nobody scores"
        time.sleep(0.02)
    os.kill(workers[0].pid, signal.SIGKILL)
    scoring.join()
    assert len(outcomes) == len(works)
    assert {each.error for each in outcomes} == {None}
    assert sum(each.how == WRITTEN for each in outcomes) >= 1
    rows = scored(store)
    assert len(rows["rereadings"]) == 4000
    assert len({receipt for receipt, *_ in rows["rereadings"]}) == 4000
    assert {file.generation for file in store.files()} == {1}
    again = list(on_ray.rescore(works, Scoring(store.address)))
    assert {each.how for each in again} == {STANDS}


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    from etameter.archive import on_ray

    Ledger(tmp_path / "ledger.db").close()
    assert list(on_ray.rescore([], Scoring(str(tmp_path)))) == []
