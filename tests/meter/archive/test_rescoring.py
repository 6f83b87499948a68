import json
import shutil
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from etameter.archive.query import asked
from etameter.archive.rescoring import STANDS, WRITTEN, Outcome, Scoring, done, partitions, rescore
from etameter.archive.store import Store
from etameter.archive.tables import ALL_TABLES
from etameter.classifier import Counting
from etameter.cli import app
from etameter.ledger import Ledger
from etameter.playback import OF_DEMO, replay
from etameter.slack import fast
from etameter.slack.reading import read
from etameter.texts import Texts, stored_beside
from tests.meter.archive.laid_out import at, settle
from tests.meter.archive.object_store import started
from tests.meter.archive.test_days import run

pytestmark = pytest.mark.unit

ANSWERS = (
    "Sure! I'd be happy to help. The capital is Paris. Let me know if you need anything else!",
    "Paris.",
    "I think it may be Paris, but I am not entirely sure. Great question!",
)
TEXTS = 12


def stored(folder: Path, texts: int = TEXTS, place: str | None = None) -> Store:
    """Two days of two models each, with the texts of every response, and the demo's recording under two names."""
    ledger = Ledger(folder / "ledger.db")
    told = Texts(stored_beside(ledger.path))
    for number in range(texts):
        back = 8.0 + number % 2
        settle(ledger, number, back, model=f"model {number // 2 % 2}")
        message = {"prompts": ["What is the capital of France?"], "responses": [ANSWERS[number % 3]]}
        told.add(f"{number:032x}", message, at(back))
    told.close()
    store = Store(place or str(folder / "archive"))
    run(ledger.path, store)
    ledger.close()
    (folder / "recordings" / "old").mkdir(parents=True, exist_ok=True)
    shutil.copy(OF_DEMO, folder / "recordings" / "demo.zip")
    shutil.copy(OF_DEMO, folder / "recordings" / "old" / "again.zip")
    return store


def all_done(folder: Path, store: Store, weights: str | None = None) -> list[Outcome]:
    return list(rescore(partitions(store, str(folder / "recordings")), Scoring(store.address, weights)))


def scored(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Every row that came of it, as it is asked for."""
    return {
        name: asked(store, None, f"SELECT * EXCLUDE (scorer) FROM {name} ORDER BY ALL")[1]
        for name in ("rereadings", "reattributions")
    }


def test_texts_and_recordings_are_scored_once(tmp_path: Path) -> None:
    store = stored(tmp_path)
    first = all_done(tmp_path, store)
    assert [(each.how, each.rows) for each in first[:4]] == [(WRITTEN, 3)] * 4
    assert [each.how for each in first[4:]] == [WRITTEN, STANDS], "one recording, though it lies there twice"
    found = asked(store, None, "SELECT receipt_id, lenient_at_most, categories, model FROM rereadings ORDER BY ALL")[1]
    assert [receipt for receipt, *_ in found] == [f"{number:032x}" for number in range(TEXTS)]
    for number, (receipt, lenient, categories, model) in enumerate(found):
        answer = ANSWERS[number % 3]
        reading = read(receipt, ["What is the capital of France?"], [answer], fast.classify, Counting(None, []))
        assert reading is not None
        assert lenient == reading.lenient_at_most
        assert {each["category"]: each["share"] for each in categories} == reading.shares
        assert model == f"model {number // 2 % 2}"
    assert any(categories for *_, categories, _ in found)
    of_demo = {row.number: row.energy.output_j for row in replay(OF_DEMO).rows if row.energy.settled}
    told: dict[int, float] = dict(asked(store, None, "SELECT number, output_j FROM reattributions")[1])
    assert told == {number: of_demo[number] for number in told}
    assert len(told) > 10

    files = {file.path: Path(file.path).stat().st_mtime_ns for file in store.files()}
    assert {each.how for each in all_done(tmp_path, store)} == {STANDS}
    assert {file.path: Path(file.path).stat().st_mtime_ns for file in store.files()} == files


def test_other_weights_and_late_texts_are_scored_anew(tmp_path: Path) -> None:
    store = stored(tmp_path)
    all_done(tmp_path, store)
    before = scored(store)
    weights = json.loads(Path(fast.__file__).with_name("fast.json").read_text())
    weights["thresholds"] = dict.fromkeys(weights["thresholds"], 2.0)
    weights["slack_threshold"] = 2.0
    again = all_done(tmp_path, store, json.dumps(weights))
    assert [each.how for each in again] == [WRITTEN] * 4 + [STANDS] * 2
    assert {file.generation for file in store.files() if file.table == "rereadings"} == {2}
    assert asked(store, None, "SELECT count(*), max(len(categories)) FROM rereadings")[1] == [(TEXTS, 0)]
    all_done(tmp_path, store)
    assert scored(store) == before

    ledger = Ledger(tmp_path / "ledger.db")
    texts = Texts(stored_beside(ledger.path))
    texts.add("f" * 32, {"prompts": [], "responses": ["Paris."]}, at(8.0))
    texts.close()
    settle(ledger, 99, 8.0)
    run(ledger.path, store)
    ledger.close()
    assert [each.how for each in all_done(tmp_path, store)].count(WRITTEN) == 1
    assert len(scored(store)["rereadings"]) == TEXTS + 1


def test_two_that_score_the_same_write_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(tmp_path)
    work, scoring = partitions(store, None)[0], Scoring(store.address)
    publish, calls, others = Store.publish, count(), []

    def later(self: Store, *arguments: Any) -> None:
        if not next(calls):
            others.append(done(work, scoring))
        publish(self, *arguments)

    monkeypatch.setattr(Store, "publish", later)
    assert done(work, scoring).how == STANDS
    assert others[0].how == WRITTEN
    assert [file.generation for file in store.files() if file.table == "rereadings"] == [1]


SCORES = """
import os, signal, sys
from etameter.archive import rescoring, store as stores
where, at = sys.argv[2], int(sys.argv[3])
calls = iter(range(1000))
def killing(of, name, after):
    was = getattr(of, name)
    def call(*arguments, **options):
        due = next(calls) == at
        if due and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = was(*arguments, **options)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(of, name, call)
if where != "nowhere":
    killing(*{"before": (os, "link", False), "after": (os, "link", True), "within": (stores, "_keep", False)}[where])
store = stores.Store(sys.argv[4] if len(sys.argv) > 4 else sys.argv[1] + "/archive")
works = rescoring.partitions(store, sys.argv[1] + "/recordings")
print([each.how for each in rescoring.rescore(works, rescoring.Scoring(store.address))], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[tuple[Any, ...]]]]:
    """One that isn't scored, and what comes of scoring it."""
    folder = tmp_path_factory.mktemp("archive")
    stored(folder)
    shutil.copytree(folder, folder / "scored")
    aside = Store(str(folder / "scored" / "archive"))
    all_done(folder / "scored", aside)
    return folder, scored(aside)


@pytest.mark.parametrize("where", ["before", "after", "within"])
def test_one_that_is_killed_goes_on_where_it_was(tmp_path: Path, archive: Any, where: str) -> None:
    folder, wanted = archive
    shutil.copytree(folder, tmp_path / "one")
    one, store = tmp_path / "one", Store(str(tmp_path / "one" / "archive"))
    victim = started(SCORES, one, where, 2)
    victim.communicate(timeout=120)
    assert victim.returncode == -signal.SIGKILL
    rows = scored(store)
    assert all(set(map(str, rows[name])) <= set(map(str, wanted[name])) for name in wanted)
    assert 0 < len(rows["rereadings"]) < TEXTS
    assert {each.error for each in all_done(one, store)} == {None}
    assert scored(store) == wanted
    assert {file.generation for file in store.files()} == {1}


def test_two_processes_score_an_archive_at_once(tmp_path: Path, archive: Any) -> None:
    folder, wanted = archive
    shutil.copytree(folder, tmp_path / "both")
    both = [started(SCORES, tmp_path / "both", "nowhere", 0) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert "failed" not in said
    store = Store(str(tmp_path / "both" / "archive"))
    assert scored(store) == wanted
    assert {file.generation for file in store.files()} == {1}


def test_the_command_tells_each_partition_and_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = stored(tmp_path, 2)
    (tmp_path / "recordings" / "bad.zip").write_bytes(b"no recording")
    arguments = ["rescore", "--archive", "archive", "--recordings", "recordings"]
    told = CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)
    assert told.return_value == 2
    lines = told.stdout.splitlines()
    assert lines[0].endswith(" written, 1 rows")
    assert lines[2].startswith("bad.zip can't be done: ")
    assert lines[4] == "again.zip stands already"
    (tmp_path / "recordings" / "bad.zip").unlink()
    told = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False, standalone_mode=False)
    assert told.return_value == 0
    assert {json.loads(line)["how"] for line in told.stdout.splitlines()} == {STANDS}
    for file in store.files():
        (table,) = (each for each in ALL_TABLES if each.name == file.table)
        assert pq.read_schema(file.path).equals(table.schema)
    nothing = CliRunner().invoke(app, ["rescore", "--archive", "none"], catch_exceptions=False, standalone_mode=False)
    assert nothing.stdout == "there are no stored texts\n"
