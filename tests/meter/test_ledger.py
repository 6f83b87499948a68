import math
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etameter.errors import EtameterError
from etameter.ledger import Ledger, RequestRow, Resume
from etameter.records import Balance, Edge, RequestEnergy, RequestRecord

pytestmark = pytest.mark.unit

RECEIPT = "ab" * 16


def resume(frontier_ns: int = 100) -> Resume:
    edge = Edge("GPU-0", frontier_ns + 20, 2, 1234)
    return Resume("boot", 5, {"GPU-0": frontier_ns}, (edge,), {"GPU-0": ([1.0], [2.0])})


def row(number: int = 0, *, prompt_j: float = 1.0, output_j: float = 2.0, settled: bool = True) -> RequestRow:
    record = RequestRecord(f"r{number}", RECEIPT, "m", "entrace", number, 2, 3, 10, 0, 5, "stop")
    energy = RequestEnergy(f"r{number}", prompt_j, output_j, 0.5, 0.0, 0.0, 0.0, 0.1, settled, "step-cost", "measured")
    return RequestRow("engine-0", 5, number, record, energy, 10, 4)


def balance(end_ns: int, measured_j: float = 10.0, attributed_j: float = 3.0) -> Balance:
    rest_j = measured_j - attributed_j
    return Balance("GPU-0", end_ns - 100, end_ns, measured_j, attributed_j, rest_j - 1.5, 0.5, {"stale": 1.0}, 0.25)


def test_what_is_settled_is_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "ledger.db")
    ledger.settle([(balance(100), "measured")], [row(0), row(1, settled=False)], resume(), 1.5)
    assert ledger.requests() == [row(0), row(1, settled=False)]
    assert ledger.receipt(RECEIPT) == [row(0), row(1, settled=False)]
    assert ledger.receipt("cd" * 16) == []
    assert ledger.open_requests("boot", "engine-0") == [row(1, settled=False)]
    assert ledger.open_requests("boot", "engine-1") == []
    assert ledger.open_requests("another boot", "engine-0") == []
    assert ledger.resume() == resume()


def test_a_later_row_replaces_the_earlier_and_balances_add_up(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.resume() is None
    ledger.settle([(balance(100), "measured")], [row(0, settled=False)], resume(100), 1.0)
    ledger.settle([(balance(200), "simulated")], [row(0, output_j=5.0)], resume(200), 2.0)
    totals = Ledger(tmp_path / "ledger.db", read_only=True).totals()
    assert (totals.requests_j, totals.measured_j, totals.requests) == (6.0, 20.0, 1)
    assert (totals.idle_j, totals.engine_overhead_j, totals.host_bubble_j) == (11.0, 1.0, 0.5)
    assert totals.unattributed_j_by_cause == {"stale": 2.0}
    assert totals.residual_j == pytest.approx(0.0)
    assert totals.sources == {"measured", "simulated"}
    assert ledger.resume() == resume(200)


def test_an_interval_is_never_settled_twice(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.settle([(balance(100), "measured")], [row(0)], resume(100), 1.0)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.settle([(balance(100), "measured")], [row(0, output_j=99.0)], resume(300), 1.0)
    assert ledger.requests() == [row(0)]
    assert ledger.resume() == resume(100)


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
from tests.meter.test_ledger import balance, resume, row
from etameter.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
print("ready", flush=True)
n = len(list(ledger.requests()))
while True:
    n += 1
    ledger.settle([(balance(100 * n), "measured")], [row(n)], resume(100 * n), 1.0)
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
        totals, rows, at = ledger.totals(), ledger.requests(), ledger.resume()
        assert at is None or at.frontier_ns["GPU-0"] == 100 * len(rows)
        assert totals.requests_j == math.fsum(each.energy.energy_j for each in rows)
        assert totals.residual_j == pytest.approx(0.0, abs=1e-9)
        ledger.close()
    assert len(rows) > 5
