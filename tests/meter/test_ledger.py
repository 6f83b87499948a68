import json
import math
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.errors import EtameterError
from etameter.ledger import QUIET_ROW_NS, RUNNING, Ledger, RequestRow, RequestValues, Resume, row_values
from etameter.nodes.kept import Known
from etameter.nodes.wire import RemoteCounter
from etameter.records import Balance, Edge, RequestEnergy, RequestRecord, Source
from tests.meter.test_accounts import changed

pytestmark = pytest.mark.unit

RECEIPT = "ab" * 16


def resume(frontier_ns: int = 100, engine: str = "engine-0") -> Resume:
    edge = Edge("GPU-0", frontier_ns + 20, 2, 1234)
    return Resume("boot", 5, {"GPU-0": frontier_ns}, (edge,), {"GPU-0": ([1.0], [[2.0]])}, engine)


def row(number: int = 0, *, prompt_j: float = 1.0, output_j: float = 2.0, settled: bool = True) -> RequestRow:
    record = RequestRecord(f"r{number}", RECEIPT, "m", "entrace", number, 2, 3, 10, 0, 5, "stop")
    energy = RequestEnergy(f"r{number}", prompt_j, output_j, 0.5, 0.0, 0.0, 0.0, 0.1, settled, "step-cost", "measured")
    return RequestRow("engine-0", 5, number, record, energy, 10, 4)


def written(*rows: RequestRow) -> list[RequestValues]:
    return [row_values(each) for each in rows]


def balance(end_ns: int, measured_j: float = 10.0, attributed_j: float = 3.0) -> Balance:
    rest_j = measured_j - attributed_j
    return Balance("GPU-0", end_ns - 100, end_ns, measured_j, attributed_j, rest_j - 1.5, 0.5, {"stale": 1.0}, 0.25)


def test_what_is_settled_is_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "ledger.db")
    ledger.settle([(balance(100), "measured")], written(row(0), row(1, settled=False)), resume(), 1.5)
    assert ledger.requests() == [row(0), row(1, settled=False)]
    assert ledger.receipt(RECEIPT) == [row(0), row(1, settled=False)]
    assert ledger.receipt("cd" * 16) == []
    assert ledger.open_requests("boot", "engine-0") == [row(1, settled=False)]
    assert ledger.open_requests("boot", "engine-1") == []
    assert ledger.open_requests("another boot", "engine-0") == []
    assert ledger.resumes() == {"engine-0": resume()}


def test_a_later_row_replaces_the_earlier_and_balances_add_up(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.resumes() == {}
    ledger.settle([(balance(100), "measured")], written(row(0, settled=False)), resume(100), 1.0)
    ledger.settle([(balance(200), "simulated")], written(row(0, output_j=5.0)), resume(200), 2.0)
    totals = Ledger(tmp_path / "ledger.db", read_only=True).totals()
    assert (totals.requests_j, totals.measured_j, totals.requests) == (6.0, 20.0, 1)
    assert (totals.idle_j, totals.engine_overhead_j, totals.host_bubble_j) == (11.0, 1.0, 0.5)
    assert totals.unattributed_j_by_cause == {"stale": 2.0}
    assert totals.residual_j == pytest.approx(0.0)
    assert totals.sources == {"measured", "simulated"}
    assert ledger.resumes() == {"engine-0": resume(200)}


def test_each_engine_resumes_by_itself_and_an_old_ledger_is_understood(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.settle([], [], resume(100, ""), 1.0)
    (text,) = ledger._db.execute("SELECT value FROM resume WHERE key = 'resume'").fetchone()
    about = {
        key: value for key, value in json.loads(text).items() if key != "engine"
    }  # as it was before engines had names here
    ledger._db.execute("UPDATE resume SET value = ?", (json.dumps(about),))
    for frontier_ns, engine in ((200, "engine-0"), (300, "engine-1"), (400, "engine-0")):
        ledger.settle([], [], resume(frontier_ns, engine), 1.0)
    resumes = {"": resume(100, ""), "engine-1": resume(300, "engine-1"), "engine-0": resume(400, "engine-0")}
    assert list(ledger.resumes().items()) == list(resumes.items())


def test_changes_of_a_row_leave_the_rest_of_it_and_other_rows_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.settle([], written(row(0, settled=False), row(1, settled=False)), resume(), 1.0)
    changes: dict[str, Any] = {"first_token_ns": 77, "cached_tokens": 3, "prefill_tokens": 11, "decode_tokens": 12} | {
        name: 0.5 + place for place, name in enumerate(RUNNING[4:-1])
    }
    changes["method"] = "step-cost-partial"
    ledger.settle([], [], resume(), 2.0, [("engine-0", 5, 1, *changes.values())])
    before, after = ledger.requests()
    assert before == row(0, settled=False)
    assert after == changed(row(1, settled=False), changes)


def test_an_interval_is_never_settled_twice(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.settle([(balance(100), "measured")], written(row(0)), resume(100), 1.0)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.settle([(balance(100), "measured")], written(row(0, output_j=99.0)), resume(300), 1.0)
    assert ledger.requests() == [row(0)]
    assert ledger.resumes() == {"engine-0": resume(100)}


def test_what_a_longer_row_took_in_is_not_settled_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for end_ns in (100, 200):
        ledger.settle([(quiet(end_ns), "measured")], [], resume(end_ns), 1.0)
    with pytest.raises(sqlite3.IntegrityError, match="settled until 300 ns"):
        ledger.settle([(quiet(300), "measured"), (quiet(100), "measured")], [], resume(300), 1.0)
    assert ledger.totals().measured_j == 20.0
    assert rows_of(ledger) == [("GPU-0", 0, 200)]
    assert ledger.resumes() == {"engine-0": resume(200)}


def test_an_idle_hour_is_sixty_rows(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    step_ns = 100_000_000
    hour = [quiet(step_ns * n, start_ns=step_ns * (n - 1)) for n in range(1, 36_001)]
    ledger.settle([(each, "measured") for each in hour], [], resume(), 1.0)
    rows = rows_of(ledger)
    assert len(rows) == 60
    assert all(end_ns - start_ns == QUIET_ROW_NS for _, start_ns, end_ns in rows)


@pytest.mark.parametrize("cause", ["model_residual", "stale"])
def test_an_hour_of_flicker_or_of_standstill_is_few_rows_too(tmp_path: Path, cause: str) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    step_ns = 100_000_000
    for n in range(1, 36_001, 100):
        one = [quiet(step_ns * k, start_ns=step_ns * (k - 1)) for k in range(n, n + 100)]
        if cause == "stale" or n % 300 == 1:
            one = [replace(each, idle_j=each.idle_j - 0.5, unattributed_j_by_cause={cause: 0.5}) for each in one]
        ledger.settle([(each, "measured") for each in one], [], resume(step_ns * n), 1.0)
    assert len(rows_of(ledger)) == 60
    totals = ledger.totals()
    assert totals.unattributed_j_by_cause == {cause: 0.5 * (36_000 if cause == "stale" else 12_000)}
    assert totals.residual_j == pytest.approx(0.0, abs=1e-6)


def quiet(end_ns: int, gpu_uuid: str = "GPU-0", start_ns: int | None = None) -> Balance:
    """An interval in which no request ran."""
    return Balance(gpu_uuid, end_ns - 100 if start_ns is None else start_ns, end_ns, 10.0, 0.0, 8.5, 1.5, {})


def rows_of(ledger: Ledger) -> list[tuple[str, int, int]]:
    return ledger._db.execute("SELECT gpu_uuid, start_ns, end_ns FROM balances ORDER BY end_ns, gpu_uuid").fetchall()


def test_sources_do_not_share_a_row(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.settle([(quiet(100), "measured"), (quiet(200), "simulated")], [], resume(), 1.0)
    assert ledger.totals().sources == {"measured", "simulated"}


@st.composite
def histories(draw: st.DrawFn) -> list[list[tuple[Balance, Source]]]:
    """Batches of two GPUs' intervals, quiet or not, with gaps and changes of source."""
    joules = st.sampled_from([0.0, 0.1, 1e-9, 3.7, 1e5])
    now_ns = {"GPU-0": 0, "GPU-1": 0}
    batches = []
    for _ in range(draw(st.integers(1, 4))):
        batch: list[tuple[Balance, Source]] = []
        for _ in range(draw(st.integers(0, 8))):
            uuid = draw(st.sampled_from(sorted(now_ns)))
            start_ns = now_ns[uuid] + draw(st.sampled_from([0, 0, 0, 7]))
            now_ns[uuid] = end_ns = start_ns + draw(st.sampled_from([100, 25_000_000_000]))
            attributed_j = draw(st.sampled_from([0.0, 0.0, 0.0, 2.5]))
            causes = draw(st.sampled_from([{}, {}, {"model_residual": 0.3}, {"reset": 0.3}, {"reset": 0.0}]))
            idle_j, overhead_j = draw(joules), draw(joules)
            measured_j = attributed_j + sum(causes.values()) + idle_j + overhead_j
            one = Balance(uuid, start_ns, end_ns, measured_j, attributed_j, idle_j, overhead_j, causes)
            batch.append((one, draw(st.sampled_from(("measured", "measured", "simulated")))))
        batches.append(batch)
    return batches


@given(histories())
def test_shared_rows_keep_every_sum_and_every_instant(history: list[list[tuple[Balance, Source]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder, "ledger.db"))
        for batch in history:
            ledger.settle(batch, [], resume(), 1.0)
        totals, rows = ledger.totals(), rows_of(ledger)
        reset = ledger._db.execute(
            "SELECT end_ns - start_ns FROM balances WHERE unattributed LIKE '%reset%'"
        ).fetchall()
        ledger.close()
    settled = [each for batch in history for each in batch]
    balances = [balance for balance, _ in settled]
    assert totals.sources == {source for _, source in settled}
    assert totals.measured_j == pytest.approx(math.fsum(each.measured_j for each in balances), rel=1e-12)
    assert totals.idle_j == pytest.approx(math.fsum(each.idle_j for each in balances), rel=1e-12)
    assert totals.engine_overhead_j == pytest.approx(math.fsum(each.engine_overhead_j for each in balances), rel=1e-12)
    for cause in ("reset", "model_residual"):
        lost_j = [each.unattributed_j_by_cause[cause] for each in balances if cause in each.unattributed_j_by_cause]
        assert (cause in totals.unattributed_j_by_cause) is bool(lost_j)
        assert totals.unattributed_j_by_cause.get(cause, 0.0) == pytest.approx(math.fsum(lost_j), rel=1e-12)
    in_reset_ns = [each.end_ns - each.start_ns for each in balances if "reset" in each.unattributed_j_by_cause]
    assert sum(ns for (ns,) in reset) == sum(in_reset_ns), "an interval that is known shares no row with one that isn't"
    assert totals.residual_j == pytest.approx(
        sum(each.attributed_j for each in balances), abs=1e-6
    )  # no request has a row
    for uuid in ("GPU-0", "GPU-1"):
        spans = [(start_ns, end_ns) for gpu_uuid, start_ns, end_ns in rows if gpu_uuid == uuid]
        own = [each for each in balances if each.gpu_uuid == uuid]
        assert sum(end_ns - start_ns for start_ns, end_ns in spans) == sum(one.end_ns - one.start_ns for one in own)
        assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))
        assert {start_ns for start_ns, _ in spans} <= {one.start_ns for one in own}
        charged = {(one.start_ns, one.end_ns) for one in own if one.attributed_j}
        assert charged <= set(spans)


def test_other_files_and_versions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, and long enough to be taken for one" * 50)
    with pytest.raises(EtameterError, match="can't be opened"):
        Ledger(tmp_path / "text")
    with pytest.raises(EtameterError, match="can't be opened"):
        Ledger(tmp_path / "absent.db", read_only=True)
    sqlite3.connect(tmp_path / "newer.db").execute("PRAGMA user_version = 99")
    with pytest.raises(EtameterError, match="of version 99"):
        Ledger(tmp_path / "newer.db")


WRITER = """
import sys
from pathlib import Path
from tests.meter.test_ledger import balance, resume, row, written
from etameter.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
print("ready", flush=True)
n = len(list(ledger.requests()))
while True:
    n += 1
    ledger.settle([(balance(100 * n), "measured")], written(row(n)), resume(100 * n), 1.0)
"""


def killed_while_writing(path: Path, wait_s: float) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=root) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(wait_s)
        writer.send_signal(signal.SIGKILL)


def test_a_process_killed_between_any_two_writes_leaves_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    for attempt in range(5):
        killed_while_writing(path, 0.01 + 0.013 * attempt)
        ledger = Ledger(path)
        totals, rows, at = ledger.totals(), ledger.requests(), ledger.resumes().get("engine-0")
        assert at is None or at.frontier_ns["GPU-0"] == 100 * len(rows)
        assert totals.requests_j == math.fsum(each.energy.energy_j for each in rows)
        assert totals.residual_j == pytest.approx(0.0, abs=1e-9)
        ledger.close()
    assert len(rows) > 5


def test_in_which_boot_other_machines_were_is_kept_for_as_long_as_it_means_anything(tmp_path: Path) -> None:
    counter = RemoteCounter("GPU-0", ("MIG-a",), "H100", "gpu", "nvml", "simulated", None)
    ledger = Ledger(tmp_path / "ledger.db")
    first, second = Known("there-1", 7, (counter,)), Known("there-2", 9, (counter, replace(counter, gpu_uuid="GPU-1")))
    ledger.settle_together([([], [], resume(), [])], 1.0, nodes={"a:1": first, "b:1": first})
    ledger.settle_together([([], [], resume(), [])], 2.0, nodes={"a:1": second})
    ledger.close()
    again = Ledger(tmp_path / "ledger.db", read_only=True)
    assert again.nodes("boot") == {"a:1": second, "b:1": first}
    assert again.nodes("another") == {"a:1": replace(second, boot_id=""), "b:1": replace(first, boot_id="")}
    again.close()
