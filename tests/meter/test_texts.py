import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from etameter import texts
from etameter.errors import EtameterError
from etameter.texts import Texts, stored_beside

pytestmark = pytest.mark.unit


def rows(path: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as db:
        return db.execute("SELECT * FROM texts ORDER BY receipt_id").fetchall()


def test_texts_are_kept_once_for_their_user_alone(tmp_path: Path) -> None:
    path = stored_beside(tmp_path / "state" / "ledger.db")
    stored = Texts(path)
    told = {"prompts": ["Why?"], "responses": ["Because.", "So."], "pieces": [[8, 2], [3, 1]]}
    stored.add("a", told, 5.0)
    stored.add("a", {**told, "responses": ["Otherwise."]}, 6.0)
    stored.add("b", {"prompts": [], "responses": ["Yes."]}, 7.0)
    stored.close()
    assert path == tmp_path / "state" / "ledger-texts.db"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert rows(path) == [
        ("a", '["Why?"]', '["Because.", "So."]', "[[8, 2], [3, 1]]", 5.0),
        ("b", "[]", '["Yes."]', None, 7.0),
    ]
    Texts(path).close()
    assert len(rows(path)) == 2


@pytest.mark.parametrize(
    "told", [{"reason": "too_long"}, {"prompts": ["x"], "responses": []}, {"prompts": [1], "responses": ["x"]}]
)
def test_what_is_no_text_is_not_kept(tmp_path: Path, told: dict[str, object]) -> None:
    stored = Texts(tmp_path / "texts.db")
    stored.add("a", told, 5.0)
    stored.close()
    assert rows(tmp_path / "texts.db") == []


def test_a_disk_that_fails_or_is_slow_loses_texts_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Texts(tmp_path / "texts.db")
    with sqlite3.connect(tmp_path / "texts.db") as db:
        db.execute("DROP TABLE texts")
    told = {"prompts": [], "responses": ["secret"]}
    stored.add("a", told, 5.0)
    monkeypatch.setattr(texts, "WAITING_LIMIT_BYTES", 0)
    stored.add("b", told, 5.0)
    stored.close()
    assert stored.dropped == 2
    assert "can't be stored" in caplog.text
    assert "too slow" in caplog.text
    assert "secret" not in caplog.text


def test_what_waits_is_bounded_by_its_size_and_makes_room_once_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "WAITING_LIMIT_BYTES", 20_000)
    stored = Texts(tmp_path / "texts.db")
    told = {"prompts": ["Zoë?"], "responses": ["é" * 2_000]}  # as kept: six bytes each
    begun, goes_on = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        assert goes_on.wait(60)

    stored._thread.submit(hang)  # as a disk may
    assert begun.wait(60)
    for receipt_id in ("a", "b", "c"):
        stored.add(receipt_id, told, 5.0)
    assert stored.dropped == 2
    goes_on.set()
    stored._thread.submit(int).result(60)  # what was before it is written
    stored.add("d", told, 5.0)
    stored.close()
    assert [row[0] for row in rows(tmp_path / "texts.db")] == ["a", "d"]
    assert stored.dropped == 2


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EtameterError, match=r"can't be stored in .*: make room, or set store_text = false"):
        Texts(tmp_path / "file" / "texts.db")
