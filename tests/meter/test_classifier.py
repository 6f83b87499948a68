"""Texts that a server tells, classified beside the event loop, and joined with what the requests took."""

import asyncio
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter import classifier as module
from etameter.classifier import NOT_READ, NOT_TOLD, OFF, Classifier
from etameter.curves import Curve
from etameter.export.receipts import eta_fields
from etameter.ledger import SCHEMA_VERSION, Ledger, RequestRow
from etameter.slack.fast import Labelled
from etameter.slack.reading import BUSY, FAILED, NO_TEXT, TOO_LONG, Reading, read
from etameter.slack.reliability import Reliability
from etameter.slack.tokens import Counted, by_length
from tests.meter.test_ledger import RECEIPT, resume, row, written

pytestmark = pytest.mark.unit

Work = Callable[[Classifier], Any]
TEXTS = {"prompts": ["Name a colour."], "responses": ["Sure! Blue."]}


def classify(_prompt: str, response: str) -> Sequence[Labelled]:
    """The first quarter is preamble, for sure; the rest isn't shown to be slack."""
    cut = len(response) // 4
    spans = [Labelled(0, cut, "sentence", "P", 1.0), Labelled(cut, len(response), "sentence", None, 0.0)]
    return spans if response else []


def by_characters(_place: int, response: str, spans: Sequence[Labelled]) -> Counted:
    return by_length(spans, len(response))


class Sink:
    def __init__(self) -> None:
        self.counted: list[tuple[str, float]] = []
        self.causes: list[str] = []

    def classified(self, row: RequestRow, reading: Reading) -> None:
        self.counted.append((row.record.request_id, reading.slack["preamble"]))

    def unclassified(self, cause: str) -> None:
        self.causes.append(cause)


def run(work: Callable[[Classifier], Any], *, on: bool = True, classify: Any = classify) -> Sink:
    sink = Sink()

    async def main() -> None:
        classifier = Classifier(sink, lambda _: None, on=on, classify=classify)
        await work(classifier)
        classifier.stop()

    asyncio.run(main())
    return sink


async def ready(classifier: Classifier, receipt_id: str = RECEIPT) -> None:
    async with asyncio.timeout(60):
        while (waiting := classifier.ready(receipt_id)) is not None:
            await waiting


def test_choices_are_weighed_by_their_characters_and_go_with_their_prompts() -> None:
    asked: list[str] = []

    def spy(prompt: str, response: str) -> Sequence[Labelled]:
        asked.append(prompt)
        return classify(prompt, response)

    reading = read(RECEIPT, ["a", "b"], ["x" * 8, "y" * 4, "", "z" * 4], spy, by_characters)
    assert asked == ["a", "a", "b", "b"]
    assert reading is not None
    assert (reading.lenient_at_most, reading.slack) == (0.75, {"preamble": 0.25})
    assert (reading.method, reading.unit, reading.parts) == ("fast", "characters", ())
    assert read(RECEIPT, ["a"], [""], spy, by_characters) is None


def test_what_a_call_has_beyond_its_schema_is_slack_in_a_live_answer() -> None:
    response = 'I look.\n<tool_call>{"city":"Paris","unit":"C"}</tool_call>'
    schema = {"properties": {"city": {}, "unit": {"default": "C"}}, "required": ["city"]}
    texts = {"prompts": ["Weather?"], "responses": [response]}
    calls = {"calls": [["weather"]], "tools": {"weather": schema}}
    shares = []

    class Quiet(Sink):
        def classified(self, row: RequestRow, reading: Reading) -> None:
            shares.append(reading.slack)

    async def main(told: dict[str, Any]) -> None:
        classifier = Classifier(Quiet(), lambda _: None, on=True)
        classifier.told(RECEIPT, told)
        await ready(classifier)
        classifier.settled([row(0)])
        classifier.stop()

    for told in (texts | calls, texts, texts | {**calls, "calls": [["other"]]}, texts | {**calls, "calls": "none"}):
        asyncio.run(main(told))
    assert shares == [{"unspecified": pytest.approx(11 / len(response))}, {}, {}, {}]


def test_a_request_is_counted_once_whether_it_is_settled_or_classified_first() -> None:
    async def settled_first(classifier: Classifier) -> None:
        classifier.settled([row(0), row(1)])
        assert classifier.of(RECEIPT) == NOT_TOLD
        classifier.told(RECEIPT, TEXTS)
        assert classifier.of(RECEIPT) == NOT_READ
        await ready(classifier)
        classifier.told(RECEIPT, TEXTS)  # again
        await ready(classifier)

    async def classified_first(classifier: Classifier) -> None:
        classifier.told(RECEIPT, TEXTS)
        await ready(classifier)
        classifier.settled([row(0), row(1)])

    for counted in (run(settled_first).counted, run(classified_first).counted):
        assert [name for name, _ in counted] == ["r0", "r1"]
        assert [share for _, share in counted] == pytest.approx([2 / 11, 2 / 11])


def test_what_is_found_waits_for_the_ledger() -> None:
    async def work(classifier: Classifier) -> None:
        classifier.told(RECEIPT, TEXTS)
        await ready(classifier)
        found = classifier.backlog.waiting()
        assert [isinstance(each, Reading) and each.receipt_id for each in found] == [RECEIPT]
        classifier.told("cd" * 16, TEXTS)
        await ready(classifier, "cd" * 16)
        classifier.backlog.written(found)
        waiting = classifier.backlog.waiting()
        assert [isinstance(each, Reading) and each.receipt_id for each in waiting] == ["cd" * 16]

    run(work)


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ({"reason": TOO_LONG}, TOO_LONG),
        ({"reason": "anything"}, NO_TEXT),
        ({"prompts": "no list", "responses": [7]}, NO_TEXT),
        ({"prompts": ["a"], "responses": [""]}, NO_TEXT),
    ],
)
def test_what_cant_be_classified_is_counted_with_its_cause(message: dict[str, object], cause: str) -> None:
    async def work(classifier: Classifier) -> None:
        classifier.told(RECEIPT, message)
        await ready(classifier)
        assert classifier.of(RECEIPT) == cause
        assert eta_fields([row(0)], cause, Reliability()) == {"eta": None, "eta_reason": cause}

    assert run(work).causes == [cause]


def test_more_than_can_wait_is_dropped_and_a_failure_says_nothing_of_the_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WAITING_LIMIT_BYTES", 30)
    gate = threading.Event()

    def fail(_prompt: str, response: str) -> Sequence[Labelled]:
        gate.wait()
        raise ValueError(response)

    async def work(classifier: Classifier) -> None:
        classifier.told(RECEIPT, TEXTS)
        classifier.told("cd" * 16, TEXTS)
        assert classifier.of("cd" * 16) == BUSY
        gate.set()
        await ready(classifier)
        assert classifier.of(RECEIPT) == FAILED

    assert run(work, classify=fail).causes == [BUSY, FAILED]
    assert "Blue" not in caplog.text


def other_row() -> RequestRow:
    later = row(1)
    return replace(later, record=replace(later.record, receipt_id="cd" * 16))


def test_a_text_that_comes_when_its_request_is_forgotten_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNTOLD_LIMIT", 1)

    async def work(classifier: Classifier) -> None:
        classifier.settled([row(0), other_row()])
        assert classifier.of(RECEIPT) == NOT_TOLD
        classifier.told(RECEIPT, TEXTS)
        assert classifier.of(RECEIPT) == BUSY
        classifier.told(RECEIPT, TEXTS)
        classifier.told("cd" * 16, TEXTS)
        await ready(classifier, "cd" * 16)

    sink = run(work)
    assert [name for name, _ in sink.counted] == ["r1"]
    assert sink.causes == [BUSY]


def test_a_request_that_is_forgotten_while_its_text_waits_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNTOLD_LIMIT", 1)
    gate = threading.Event()

    def slow(prompt: str, response: str) -> Sequence[Labelled]:
        gate.wait()
        return classify(prompt, response)

    async def work(classifier: Classifier) -> None:
        classifier.told(RECEIPT, TEXTS)
        classifier.settled([row(0), other_row()])
        gate.set()
        await ready(classifier)
        assert isinstance(classifier.of(RECEIPT), Reading)

    sink = run(work, classify=slow)
    assert (sink.counted, sink.causes) == ([], [BUSY])


def test_a_meter_that_does_not_classify_takes_no_text() -> None:
    async def work(classifier: Classifier) -> None:
        classifier.told(RECEIPT, TEXTS)
        classifier.settled([row(0)])
        assert classifier.ready(RECEIPT) is None
        assert classifier.of(RECEIPT) == OFF

    sink = run(work, on=False)
    assert (sink.counted, sink.causes) == ([], [])


def test_pieces_of_a_stream_tell_tokens_and_nonsense_of_them_is_left_alone() -> None:
    async def work(classifier: Classifier) -> None:
        for number, pieces in enumerate(
            ([[2, 6, 9, 2]], [[2, 6]], [[2, 6, 9, "2"]], [[2, 6, 9, -2]], [[11, 0]], [], "x", [[2, 6, 9, 2], []])
        ):
            receipt_id = f"{number:032x}"
            classifier.told(receipt_id, {**TEXTS, "pieces": pieces})
            await ready(classifier, receipt_id)
            found = classifier.of(receipt_id)
            assert isinstance(found, Reading)
            told = (found.unit, found.slack["preamble"])
            assert told == (("pieces", 0.75) if number == 0 else ("characters", pytest.approx(2 / 11))), pieces

    run(work)


def lay_tokenizer(folder: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"Sure": 0, "!": 1, "Blue": 2, ".": 3}, unk_token="!"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder.mkdir()
    words.save(str(folder / "tokenizer.json"))


def test_the_model_s_own_tokenizer_tells_tokens_if_it_lies_here_and_nothing_fails_if_not(tmp_path: Path) -> None:
    lay_tokenizer(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{")

    def five(_prompt: str, response: str) -> Sequence[Labelled]:
        return [Labelled(0, 5, "sentence", "P", 1.0), Labelled(5, len(response), "sentence", None, 0.0)]

    named = ""

    async def work(classifier: Classifier) -> None:
        nonlocal named
        for named, expected in (
            ("good", ("tokens", 0.5)),
            ("bad", ("characters", 5 / 11)),
            ("none", ("characters", 5 / 11)),
        ):
            receipt_id = named.encode().hex().rjust(32, "0")
            classifier.told(receipt_id, TEXTS)
            await ready(classifier, receipt_id)
            found = classifier.of(receipt_id)
            assert isinstance(found, Reading)
            assert (found.unit, found.slack["preamble"]) == expected

    async def main() -> None:
        classifier = Classifier(Sink(), lambda _: None, on=True, classify=five, tokenizer=lambda: str(tmp_path / named))
        await work(classifier)
        classifier.stop()

    asyncio.run(main())


def test_the_end_waits_for_no_tokenizer_that_hangs(tmp_path: Path) -> None:
    lay_tokenizer(tmp_path / "good")
    asked = threading.Semaphore(0)

    def spy(prompt: str, response: str) -> Sequence[Labelled]:
        asked.release()
        return classify(prompt, response)

    async def main() -> None:
        classifier = Classifier(Sink(), lambda _: None, on=True, classify=spy, tokenizer=lambda: str(tmp_path / "good"))
        classifier.told(RECEIPT, TEXTS)
        await ready(classifier)
        assert classifier._thread is not None
        reading = classifier._tokenizer[1]
        assert reading is not None
        tokenizer = reading.result()
        assert tokenizer is not None
        os.kill(tokenizer.process_id, signal.SIGSTOP)
        try:
            classifier.told("f" * 32, TEXTS)
            for _ in range(3):  # the first text of all, and these two
                assert await asyncio.to_thread(asked.acquire, timeout=60)
            classifier.stop()
            (thread,) = classifier._thread._threads
            await asyncio.to_thread(thread.join, 60)
            assert not thread.is_alive()
        finally:
            with suppress(ProcessLookupError):
                os.kill(tokenizer.process_id, signal.SIGCONT)

    asyncio.run(main())


STEEP = Curve(np.array([[1.0, 0.0, 0.0], [3.0, 1.0, 0.1], [5.0, 4.0, 0.5]]))


def test_joules_of_slack_are_those_that_its_tokens_took() -> None:
    """2 J of output: the curve says how they are divided, not how many there are."""
    found = read(RECEIPT, ["a"], ["x" * 8], classify, by_characters)
    assert found is not None
    spent = replace(row(0), curve=STEEP)  # 5 tokens: the first quarter is the first and a quarter of the second
    eta: Any = eta_fields([spent], found, Reliability())["eta"]
    share = 0.125 / 4.0
    assert eta["joules_by"] == "time"
    assert eta["slack"]["preamble"] == {
        "tokens": 1.25,
        "joules": pytest.approx(2.0 * share),
        "marginal_joules": pytest.approx(0.5 * 2 / 3 * 0.0125 / 0.5),
    }
    assert {"strict", "lenient", "required", "optional"}.isdisjoint(eta)


def test_choices_are_taken_to_be_written_side_by_side() -> None:
    found = read(RECEIPT, ["a"], ["x" * 8, "y" * 4], classify, by_characters)
    assert found is not None
    assert [(part.start, part.end, part.weight) for part in found.parts] == [(0.0, 0.25, 2 / 3), (0.0, 0.25, 1 / 3)]
    joules, _ = found.over(STEEP, 5).spent_on("preamble")
    assert joules == pytest.approx(0.125 / 4.0)


def test_what_is_found_is_written_again_with_its_joules() -> None:
    async def work(classifier: Classifier) -> None:
        classifier.told(RECEIPT, TEXTS)
        await ready(classifier)
        classifier.settled([replace(row(0), curve=STEEP)])
        before, after = classifier.backlog.waiting()
        assert isinstance(before, Reading)
        assert isinstance(after, Reading)
        assert (before.spent, before.parts == ()) == (None, False)
        assert after.spent is not None
        assert after.parts == ()
        assert classifier.of(RECEIPT) == after

    run(work)


labels = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from(["R", "O", "P", "S", "H", "M", "D", "C", "J", "X", None])),
    min_size=1,
    max_size=30,
)


@given(st.lists(labels, min_size=1, max_size=3), st.floats(0.0, 5.0), st.booleans())
def test_slack_and_the_rest_are_the_output_s_joules(
    choices: list[list[tuple[int, Any]]], draft_waste_j: float, by_time: bool
) -> None:
    """Where every span has a category, they sum to the output's tokens and joules, attributed and marginal, less rejected drafts."""

    def labelled(_prompt: str, response: str) -> Sequence[Labelled]:
        spans, at = [], 0
        for length, label in choices[int(response[0])]:
            spans.append(Labelled(at, at + length, "sentence", label, 0.0 if label is None else 0.5))
            at += length
        return spans

    texts = [str(place) * sum(length for length, _ in spans) for place, spans in enumerate(choices)]
    found = read(RECEIPT, ["a"], texts, labelled, by_characters)
    assert found is not None
    of = replace(row(0), curve=STEEP if by_time else None)
    of = replace(of, energy=replace(of.energy, draft_waste_j=draft_waste_j))
    eta: Any = eta_fields([of], found, Reliability())["eta"]
    parts = [*eta["slack"].values(), *(eta[need] for need in ("required", "optional") if need in eta)]
    whole = {"tokens": 5.0, "joules": 2.0 - min(draft_waste_j, 2.0), "marginal_joules": 0.5 * 2 / 3}
    everything = all(label is not None for spans in choices for _, label in spans)
    for name, total in whole.items():
        told = sum(part[name] for part in parts)
        assert min((part[name] for part in parts), default=0.0) >= 0.0
        assert told == pytest.approx(total) if everything else told <= total + 1e-9


def test_slack_has_its_share_of_output_tokens_and_joules() -> None:
    reading = Reading(RECEIPT, 0.75, (0.5, 0.75), 0.25, "fast", None, {"preamble": 0.25})
    of_arm = Reliability(0.74, (0.65, 0.81), reliable=True)
    eta: Any = eta_fields([row(0), row(1)], reading, of_arm)[
        "eta"
    ]  # each: 5 tokens, 1 J prompt, 2 J output, 0.5 J marginal
    assert eta["slack"] == {"preamble": {"tokens": 2.5, "joules": 1.0, "marginal_joules": pytest.approx(1 / 6)}}
    assert (eta["lenient_at_most"], eta["interval"], eta["unclassified"]) == (0.75, [0.5, 0.75], 0.25)
    assert (eta["reliability"], eta["reliability_interval"], eta["reliable"]) == (0.74, [0.65, 0.81], True)
    unknown: Any = eta_fields([row(0)], reading, Reliability())["eta"]
    assert (unknown["reliability"], unknown["reliability_interval"], unknown["reliable"]) == (None, None, None)


def test_the_ledger_keeps_readings_and_gives_them_tokens_and_joules(tmp_path: Path) -> None:
    reading = Reading(RECEIPT, 0.75, (0.5, 0.75), 0.25, "fast", None, {"preamble": 0.25})
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.settle([], written(row(0)), resume(), 1.0, found=[reading])
    assert Ledger(tmp_path / "ledger.db", read_only=True).reading(RECEIPT) == reading
    assert ledger.reading("cd" * 16) is None
    seen = ledger._db.execute("SELECT category, tokens, joules, marginal_joules FROM slack_by_request").fetchall()
    assert seen == [("preamble", 1.25, 0.5, pytest.approx(1 / 12))]


def test_the_ledger_keeps_joules_by_time_what_was_lost_and_what_was_needed(tmp_path: Path) -> None:
    shares, spent = {"preamble": 0.25, "required": 0.5}, {"preamble": (0.1, 0.2), "required": (0.6, 0.5)}
    reading = Reading(RECEIPT, 0.75, (0.5, 0.75), 0.25, "task", 0.8, shares, "tokens", 0.5, 0.6, spent)
    drafting = replace(row(1), energy=replace(row(1).energy, draft_waste_j=0.5))
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.settle([], written(row(0), drafting), resume(), 1.0, found=[reading])
    assert ledger.reading(RECEIPT) == reading
    assert ledger._db.execute("SELECT request_id, tokens, joules, waste FROM slack_by_request").fetchall() == [
        ("r0", 1.25, 0.2, None),
        ("r1", 1.25, pytest.approx(0.15), None),
    ]
    assert ledger._db.execute("SELECT category, joules FROM needed_by_request").fetchall() == [
        ("required", 1.2),
        ("required", pytest.approx(0.9)),
    ]
    told = "SELECT request_id, category, tokens, joules FROM waste_by_request ORDER BY request_id"
    assert ledger._db.execute(told).fetchall() == [("r1", "draft", None, 0.5)]
    ledger.note([], [(RECEIPT, "abandoned")])  # but they had come to their end before
    assert ledger._db.execute(told).fetchall() == [("r1", "draft", None, 0.5)]
    ledger.note([], [(RECEIPT, "retry")])
    assert ledger.waste(RECEIPT) == "retry"
    assert ledger._db.execute(told).fetchall() == [("r0", "retry", 5, 2.0), ("r1", "retry", 5, 2.0)]
    assert ledger._db.execute("SELECT DISTINCT waste FROM slack_by_request").fetchall() == [("retry",)]


VERSION_2 = """
DROP VIEW slack_by_request; DROP VIEW needed_by_request; DROP VIEW waste_by_request; DROP VIEW categories_by_request; DROP VIEW fate_by_request;
DROP TABLE slack; DROP TABLE eta; DROP TABLE wastes; DROP TABLE slack_deep; DROP TABLE eta_deep; DROP TABLE checked;
DROP TABLE archived; DROP TABLE spent; DROP TABLE nodes; DROP INDEX requests_by_transfer; ALTER TABLE balances DROP COLUMN wall_time;
CREATE TABLE eta (
    receipt_id TEXT PRIMARY KEY, lenient_at_most REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL,
    unclassified REAL NOT NULL, method TEXT NOT NULL, reliability REAL
) STRICT;
CREATE TABLE slack (
    receipt_id TEXT NOT NULL, category TEXT NOT NULL, share REAL NOT NULL, PRIMARY KEY (receipt_id, category)
) STRICT;
CREATE VIEW slack_by_request AS SELECT receipt_id, share * output_j AS joules FROM slack JOIN requests USING (receipt_id);
PRAGMA user_version = 2;
"""


def test_a_ledger_of_version_2_is_read_as_it_is_and_goes_on_as_one_of_today(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    ledger.settle([], written(row(0)), resume(), 1.0)
    ledger.close()
    old = sqlite3.connect(path)
    old.executescript(VERSION_2)
    old.execute("INSERT INTO eta VALUES (?, 0.75, 0.5, 0.75, 0.25, 'fast-by-characters', NULL)", (RECEIPT,))
    old.execute("INSERT INTO slack VALUES (?, 'preamble', 0.25)", (RECEIPT,))
    old.commit()
    old.close()
    was = Reading(RECEIPT, 0.75, (0.5, 0.75), 0.25, "fast", None, {"preamble": 0.25})
    reader = Ledger(path, read_only=True)
    assert (reader.reading(RECEIPT), reader.waste(RECEIPT)) == (was, None)
    reader.close()
    Ledger(path).close()
    today = Ledger(path)
    assert (today.reading(RECEIPT), today.requests()) == (was, [row(0)])
    assert today._db.execute("SELECT joules, waste FROM slack_by_request").fetchall() == [(0.5, None)]


def test_a_ledger_of_version_1_is_read_as_it_is_and_gets_the_tables_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    ledger.settle([], written(row(0)), resume(), 1.0)
    ledger.close()
    old = sqlite3.connect(path)
    views = "slack_by_request", "needed_by_request", "waste_by_request", "categories_by_request", "fate_by_request"
    tables = "slack", "eta", "wastes", "slack_deep", "eta_deep", "checked", "archived", "spent", "nodes"
    drops = [f"DROP VIEW {view};" for view in views] + [f"DROP TABLE {table};" for table in tables]
    drops.append("DROP INDEX requests_by_transfer;")
    old.executescript(f"{''.join(drops)} ALTER TABLE balances DROP COLUMN wall_time; PRAGMA user_version = 1;")
    old.close()
    reader = Ledger(path, read_only=True)
    assert (reader.requests(), reader.reading(RECEIPT)) == ([row(0)], None)
    reader.close()
    Ledger(path).close()
    migrated = sqlite3.connect(path)
    assert migrated.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert migrated.execute("SELECT count(*) FROM slack_by_request").fetchone() == (0,)
    assert Ledger(path).requests() == [row(0)]
