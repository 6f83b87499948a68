import json
import math
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from etameter.archive.query import asked
from etameter.archive.store import Store
from etameter.cli import app
from etameter.errors import ArchiveError
from etameter.ledger import Ledger
from tests.meter.archive.laid_out import filled, settle
from tests.meter.archive.test_days import Killed, run

pytestmark = pytest.mark.unit

SUMS = "SELECT count(*), sum(prompt_j + output_j) FROM requests"


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    yield Store(str(tmp_path / "it's an archive") if request.param == "folder" else "memory://test-query")
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        if memory.exists("/test-query"):
            memory.rm("/test-query", recursive=True)


def test_what_is_archived_and_what_is_not_are_one_table(tmp_path: Path, store: Store) -> None:
    ledger = filled(tmp_path / "ledger.db", [8.0, 8.0, 7.5, 0.0, 0.0, 0.0])
    totals = ledger.totals()
    for moved in (False, True):
        if moved:
            run(ledger.path, store)
        columns, ((requests, joules),) = asked(store, ledger.path, SUMS)
        assert (columns[0], requests) == ("count_star()", 6)
        assert math.isclose(joules, totals.requests_j, rel_tol=1e-12)
        _, ((stale_j,),) = asked(store, ledger.path, "SELECT sum(unattributed_j_by_cause['stale']) FROM balances")
        assert math.isclose(stale_j, totals.unattributed_j_by_cause["stale"], rel_tol=1e-12)
        _, found = asked(
            store,
            ledger.path,
            "SELECT number, deep, category.category FROM requests JOIN (SELECT *, unnest(categories) AS category "
            "FROM readings) USING (receipt_id) WHERE category.share > 0.2 ORDER BY ALL",
        )
        assert found == [(n, deep, "preamble") for n in (1, 2, 4, 5) for deep in (False, True)[: n % 3]]
    _, ((archived,),) = asked(store, None, "SELECT count(*) FROM requests")
    assert archived == 3
    ledger.close()


def test_a_row_in_both_counts_once(tmp_path: Path, store: Store) -> None:
    ledger = filled(tmp_path / "ledger.db", [8.0, 8.0, 8.0, 0.0])

    def killed(seconds: float) -> None:
        if len(store.files()) == 3:
            raise Killed

    with pytest.raises(Killed):
        run(ledger.path, store, killed)
    assert asked(store, None, "SELECT count(*) FROM requests")[1] == [(3,)]
    for table, rows in (("requests", 4), ("balances", 4), ("readings", 3)):
        assert asked(store, ledger.path, f"SELECT count(*) FROM {table}")[1] == [(rows,)]
    ledger.close()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM nothing",
        "SELEC",
        "COPY requests TO '{}/stolen'",
        "WITH a AS (COPY requests TO '{}/stolen') SELECT 1",
        "WITH a AS (COPY (SELECT 7 AS x) TO '{}/archive/requests/day=2024-09-26/all.000002.parquet' (USE_TMP_FILE false)) SELECT 1",
        "SELECT 1) UNION ALL (SELECT 2",
        "SELECT 1 --\n); SELECT (2",
        "SELECT 1; SELECT 2",
        "DELETE FROM live_requests",
        "SELECT * FROM read_text('{}/outside')",
        "SELECT * FROM glob('{}/*')",
        "SELECT * FROM sqlite_scan('{}/ledger.db', 'requests')",  # and fetches no extension
        "ATTACH '{}/stolen'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "",
    ],
)
def test_a_query_that_is_wrong_writes_or_reaches_outside_is_refused(tmp_path: Path, query: str) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [8.0, 0.0]), Store(str(tmp_path / "archive"))
    run(ledger.path, store)
    (tmp_path / "outside").write_text("secret")
    with pytest.raises(ArchiveError, match=r"^the query [^\n]*$"):
        asked(store, ledger.path, query.format(tmp_path))
    assert not (tmp_path / "stolen").exists()
    assert asked(store, ledger.path, "SELECT count(*) FROM requests;")[1] == [(2,)]
    ledger.close()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [8.0]), Store(str(tmp_path / "archive"))
    run(ledger.path, store)
    (tmp_path / "archive" / "requests" / "day=2024-09-26.parquet").write_bytes(b"no parquet, and long enough")
    with pytest.raises(ArchiveError, match=r"day=2024-09-26\.parquet"):
        asked(store, ledger.path, SUMS)
    ledger.close()


def test_the_command_prints_a_table_or_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    filled(tmp_path / "ledger.db", [0.0, 0.0]).close()
    arguments = ["query", "SELECT number, source, prompt_j FROM requests ORDER BY number", "--ledger", "ledger.db"]
    told = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False, standalone_mode=False)
    assert json.loads(told.stdout) == [
        {"number": 0, "source": "measured", "prompt_j": 0.0},
        {"number": 1, "source": "measured", "prompt_j": 0.1},
    ]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False).stdout
    assert shown.split()[:3] == ["number", "source", "prompt_j"]
    with pytest.raises(ArchiveError, match="name a ledger"):
        CliRunner().invoke(app, ["query", SUMS, "--ledger", "no.db"], catch_exceptions=False, standalone_mode=False)


def test_archives_of_several_ledgers_are_asked_as_one(tmp_path: Path) -> None:
    for name, times in (("a", [8.0, 8.0]), ("b", [8.0])):
        ledger = Ledger(tmp_path / f"{name}.db")
        for number, back in enumerate(times):
            settle(ledger, number, back, boot=name)
        run(ledger.path, Store(str(tmp_path / "archives" / name)))
        ledger.close()
    together = Store(str(tmp_path / "archives" / "*"))
    assert asked(together, None, "SELECT boot_id, count(*) FROM requests GROUP BY ALL ORDER BY ALL")[1] == [
        ("a", 2),
        ("b", 1),
    ]
    for command in ("archive", "rescore"):
        options = ["--to" if command == "archive" else "--archive", str(tmp_path / "archives" / "*")]
        with pytest.raises(ArchiveError, match="is more than one archive"):
            CliRunner().invoke(app, [command, *options], catch_exceptions=False, standalone_mode=False)


def test_only_the_files_of_the_days_asked_for_are_read(tmp_path: Path) -> None:
    ledger, store = filled(tmp_path / "ledger.db", [10.0, 9.0, 8.0]), Store(str(tmp_path / "archive"))
    run(ledger.path, store)
    ledger.close()
    for file in store.files():  # whoever reads it is told so
        if file.table == "requests" and file.day == "2024-09-25":
            Path(file.path).write_bytes(b"no parquet, and long enough")
    asked_for = "SELECT count(*) FROM requests WHERE day >= DATE '2024-09-26'"
    assert asked(store, None, asked_for)[1] == [(1,)]
    with pytest.raises(ArchiveError, match="2024-09-25"):
        asked(store, None, "SELECT sum(prompt_j) FROM requests")


def test_an_archive_that_is_not_there_is_told_where_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="holds no day"):
        asked(Store(str(tmp_path / "nowhere")), None, SUMS)
