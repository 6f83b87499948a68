import sqlite3
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from etameter import archived
from etameter.archived import Sums
from etameter.ledger import _INSERT_REQUEST, _SCHEMAS, SCHEMA_VERSION, Ledger, _balance_row, row_values
from tests.meter.test_ledger import RECEIPT, balance, quiet, resume, row

pytestmark = pytest.mark.unit

FILES = sorted((Path(__file__).parents[1] / "data").glob("ledger-v*.sql"))
WALL_S = 1_700_000_000.0


def made(path: Path, version: int) -> None:
    """A ledger as that version left it: a request, an interval of its boot, and one of a boot without requests."""
    db = sqlite3.connect(path)
    db.executescript(f"{''.join(_SCHEMAS[:version])} PRAGMA user_version = {version};")
    db.execute(_INSERT_REQUEST, ("boot", *row_values(row(0)), WALL_S))
    for boot_id in ("boot", "other"):
        values = _balance_row(balance(10_000_000_000), "measured", boot_id)
        if version >= 5:
            values += (WALL_S + 10.0,)
        db.execute(f"INSERT INTO balances VALUES ({', '.join('?' * len(values))})", values)
    db.commit()
    db.close()


def kept(path: Path, file: Path) -> None:
    """A ledger as the code of its time wrote it, of the same rows."""
    db = sqlite3.connect(path)
    db.executescript(file.read_text())
    db.close()


@pytest.mark.parametrize(
    "as_left",
    [
        *(partial(made, version=version) for version in range(1, SCHEMA_VERSION)),
        *(partial(kept, file=file) for file in FILES),
    ],
    ids=[*(f"version {version}" for version in range(1, SCHEMA_VERSION)), *(file.stem for file in FILES)],
)
def test_a_ledger_of_every_version_is_read_as_it_is_and_becomes_one_of_today(
    tmp_path: Path, as_left: Callable[[Path], None]
) -> None:
    as_left(tmp_path / "ledger.db")
    before = Ledger(tmp_path / "ledger.db", read_only=True)
    totals = before.totals()
    assert (totals.measured_j, totals.requests, before.reading(RECEIPT)) == (20.0, 1, None)
    before.close()
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.totals() == totals
    (known,), (unknown,) = ledger._db.execute("SELECT wall_time FROM balances ORDER BY boot_id").fetchall()
    assert known == pytest.approx(WALL_S + 10.0), "as long after its request as the boot's clock says"
    assert unknown > WALL_S, "some time before today"
    ledger.settle([(quiet(10_000_000_100), "measured")], [], resume(), WALL_S + 11.0)
    assert ledger.totals().measured_j == 30.0
    ledger.close()


def test_a_row_that_grows_is_of_the_time_of_its_end(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for end_ns, wall_s in ((100, 1.0), (200, 2.0)):
        ledger.settle([(quiet(end_ns), "measured")], [], resume(end_ns), wall_s)
    assert ledger._db.execute("SELECT end_ns, wall_time FROM balances").fetchall() == [(200, 2.0)]
    ledger.close()


def test_sums_are_kept_by_day_and_source(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    one = Sums("measured", 1, 2.0, 3, 4.0, 0.5, 6.0, 7.0, 8.0, {"stale": 9.0})
    for day, more in (
        ("2026-11-01", one),
        ("2026-11-01", one),
        ("2026-11-02", one),
        ("2026-11-02", Sums("simulated", 1)),
    ):
        archived.add(ledger._db, day, more)
    twice = Sums("measured", 2, 4.0, 6, 8.0, 1.0, 12.0, 14.0, 16.0, {"stale": 18.0})
    assert [asdict(sums) for sums in archived.read(ledger._db, SCHEMA_VERSION)] == [
        asdict(sums) for sums in (twice, one, Sums("simulated", 1))
    ]
    totals = ledger.totals()
    assert (totals.requests, totals.measured_j, totals.unattributed_j_by_cause) == (4, 12.0, {"stale": 27.0})
    assert totals.sources == {"measured"}, "of balances, as it is without an archive"
    ledger.close()
