"""What comes of audits: joined with a ledger's receipts, and told."""

import asyncio
import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from etameter.auditing import Job, Sampled
from etameter.audits import SETTLE_S, Audits
from etameter.classifier import Classifier
from etameter.ledger import Ledger, RequestRow
from etameter.readings import Checked, Judged
from etameter.slack.reading import Reading
from etameter.slack.reliability import LEAST_PAIRS, Mean, Reliability, Trust
from tests.meter.test_ledger import RECEIPT, resume, row, written

pytestmark = pytest.mark.unit

JUDGES = ("cd" * 16, "ef" * 16)
MESSAGE = {"prompts": ["Name a colour."], "responses": ["Sure! Blue."]}
"""Two spans, of 6 and 5 characters."""
LABELS = [[[1, "P"], [2, "R"]]] * 2


class Told:
    """What the metrics are told."""

    def __init__(self) -> None:
        self.audits: list[tuple[Any, ...]] = []
        self.trust: dict[str, Trust] = {}
        self.verdict: bool | None = None
        self.means: dict[str, Mean] = {}
        self.readings: list[Reading] = []
        self.lost: list[str] = []

    def audited(self, model: str, arm: str, **about: object) -> None:
        self.audits.append((model, arm, *about.values()))

    def classified(self, row: RequestRow, reading: Reading) -> None:
        self.readings.append(reading)

    def unclassified(self, cause: str) -> None:
        raise AssertionError(cause)

    def reliability(self, model: str, arm: str, tier: str, trust: Trust) -> None:
        self.trust[tier] = trust

    def trusted(self, model: str, arm: str, *, reliable: bool | None) -> None:
        self.verdict = reliable

    def sampled(self, model: str, arm: str, view: str, eta: Mean) -> None:
        self.means[view] = eta

    def audit_dropped(self, cause: str) -> None:
        self.lost.append(cause)


def of_judge(receipt_id: str, number: int, *, settled: bool = True) -> RequestRow:
    made = row(number, settled=settled)
    return replace(made, record=replace(made.record, receipt_id=receipt_id, arm="audit", request_id=f"r{number}"))


def sampled(message: dict[str, Any] = MESSAGE) -> Job:
    return Job(0, Sampled(RECEIPT, 1, 0.0, message))


def audited(
    folder: Path,
    rows: Sequence[RequestRow],
    *jobs: tuple[Job, dict[str, Any]],
    found: Sequence[Reading | Checked] = (),
    wait_s: float = 0.0,
) -> tuple[Told, Audits]:
    """Audits with a ledger of `rows` and `found`, after these jobs came back."""
    ledger = Ledger(folder / "ledger.db")
    ledger.settle([], written(*rows), resume(), 1.0, found=found)
    told, now_s = Told(), [0.0]

    async def main() -> Audits:
        classifier = Classifier(told, lambda _: None, on=True)
        classifier.told(RECEIPT, MESSAGE)
        while (ready := classifier.ready(RECEIPT)) is not None:
            await ready
        audits = Audits(told, classifier, Ledger(folder / "ledger.db", read_only=True), lambda: now_s[0])
        for job, result in jobs:
            audits.came_back(job, result)
        await asyncio.gather(*audits._working, return_exceptions=True)
        now_s[0] = wait_s
        audits.look()
        classifier.stop()
        return audits

    return told, asyncio.run(main())


def test_a_judgement_stands_beside_what_was_found_before_with_what_it_took(tmp_path: Path) -> None:
    rows = [row(0), of_judge(JUDGES[0], 1), of_judge(JUDGES[1], 2)]
    told, audits = audited(tmp_path, rows, (sampled(), {"labels": LABELS, "receipts": list(JUDGES)}))
    reading = audits.of(RECEIPT)
    assert reading is not None
    assert (reading.method, reading.strict, reading.lenient) == ("deep", 5 / 11, 5 / 11)
    assert reading.shares == pytest.approx({"preamble": 6 / 11, "required": 5 / 11})
    assert told.audits == [("m", "entrace", "deep", "agreed", 6.0, "measured")]
    assert told.readings == [reading]
    assert audits.backlog.waiting() == [reading]
    strict = told.means["strict"]
    assert strict.eta == pytest.approx(5 / 11)
    assert strict == Mean(strict.eta, None, 1)
    assert (told.trust["fast"], told.verdict) == (Trust(1, None, None, None), None)


def test_it_waits_until_all_joules_are_settled_but_not_for_ever(tmp_path: Path) -> None:
    rows = [row(0), of_judge(JUDGES[0], 1), of_judge(JUDGES[1], 2, settled=False)]
    job = sampled(), {"labels": LABELS, "receipts": list(JUDGES)}
    assert audited(tmp_path / "a", rows, job)[0].audits == []
    assert audited(tmp_path / "b", rows[:2], job)[0].audits == [], "of one nothing is known yet"
    assert [each[4] for each in audited(tmp_path / "c", rows[:2], job, wait_s=SETTLE_S + 1)[0].audits] == [3.0]


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        ({}, "failed"),
        ({"labels": "none"}, "failed"),
        ({"labels": [[], []]}, "failed"),
        ({"labels": [[[1, "P"], [2, "R"]], [[1, "R"], [2, "P"]]]}, "failed"),
        ({"labels": [[[1, "Z"], ["2", "R"], 3], [[9, "R"]]]}, "failed"),
        ({"labels": [[[1, "C"], [2, "C"]]] * 2}, "judged"),
    ],
)
def test_what_a_judge_cant_tell_is_no_eta(tmp_path: Path, result: dict[str, Any], outcome: str) -> None:
    told, audits = audited(tmp_path, [row(0)], (sampled(), result))
    assert told.audits == [("m", "entrace", "deep", outcome, None, "measured")]
    assert (audits.of(RECEIPT) is None) == (outcome == "failed")
    assert ("lenient" in told.means) == (outcome == "judged")


@pytest.mark.parametrize(
    ("about", "took"),
    [
        ({"energy_j": 7.0, "source": "simulated"}, (7.0, "simulated")),
        ({"energy_j": 7.0, "source": "guessed"}, (None, "measured")),
        ({"energy_j": -7.0, "source": "measured"}, (None, "measured")),
        ({}, (None, "measured")),
    ],
)
def test_another_judge_says_itself_what_it_took(tmp_path: Path, about: dict[str, Any], took: object) -> None:
    told, _ = audited(tmp_path, [row(0)], (sampled(), {"labels": LABELS, **about}))
    assert [each[4:] for each in told.audits] == [took]


def test_what_fails_in_a_judgement_quotes_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Reading:
        raise RuntimeError(MESSAGE["responses"][0])

    monkeypatch.setattr("etameter.classifier.deep", fail)
    told, audits = audited(tmp_path, [row(0)], (sampled(), {"labels": LABELS}))
    gc.collect()  # what nobody asked a task for is said when it goes
    assert (told.audits, audits.of(RECEIPT)) == ([], None)
    assert "RuntimeError" in caplog.text
    assert "Blue" not in caplog.text


def test_tokens_of_spans_are_those_that_the_stream_brought(tmp_path: Path) -> None:
    message = {**MESSAGE, "pieces": [[6, 1, 5, 3]]}
    _, audits = audited(tmp_path, [row(0)], (sampled(message), {"labels": LABELS}))
    reading = audits.of(RECEIPT)
    assert reading is not None
    assert (reading.lenient, reading.unit) == (0.75, "pieces")


def answer(**about: object) -> dict[str, object]:
    return {
        "task": "t",
        "model": "m",
        "arm": "entrace",
        "correct": True,
        "tokens": 5,
        "eta_task": 0.5,
        "fast": 1.0,
    } | about


def test_answers_to_tasks_count_under_the_arm_that_they_were_asked_for(tmp_path: Path) -> None:
    receipts = [[each] for each in JUDGES]
    rows = [of_judge(JUDGES[0], 1), of_judge(JUDGES[1], 2)]
    answers = [
        answer(receipts=receipts[0], deep_strict=0.25),
        answer(receipts=receipts[1], correct=False, eta_task=0.0, model="as the server calls it"),
        answer(receipts=receipts[1], correct=None, eta_task=None, deep_strict=1.5, deep_lenient="much"),
        "no answer",
        answer(tokens="many"),
    ]
    told, audits = audited(tmp_path, rows, (Job(0, None), {"answers": answers}))
    assert told.audits == [
        ("m", "entrace", "task", outcome, 3.0, "measured") for outcome in ("correct", "wrong", "failed")
    ]
    assert audits.backlog.waiting() == [
        Checked("t", "m", "entrace", True, 5, 0.5, 1.0, 0.25, None),
        Checked("t", "m", "entrace", False, 5, 0.0, 1.0, None, None),
        Checked("t", "m", "entrace", None, 5, None, 1.0, None, None),
    ]


def test_what_an_answer_took_while_nobody_could_meter_it_is_not_known(tmp_path: Path) -> None:
    unmetered = of_judge(JUDGES[0], 1)
    unmetered = replace(unmetered, energy=replace(unmetered.energy, prompt_j=0.0, output_j=0.0))
    asked = answer(receipts=list(JUDGES))
    told, _ = audited(tmp_path, [unmetered, of_judge(JUDGES[1], 2)], (Job(0, None), {"answers": [asked]}))
    assert told.audits == [("m", "entrace", "task", "correct", None, "measured")]


def test_what_was_audited_before_is_known_again(tmp_path: Path) -> None:
    deep = Reading(RECEIPT, 0.8, (0.6, 0.8), 0.1, "deep", None, {"required": 0.5}, "tokens", 0.5, 0.75)
    fast = Reading(RECEIPT, 0.9, (0.5, 0.9), 0.0, "fast", None, {"meta": 0.1})
    tasks = [
        Checked("t", "m", "entrace", True, 5, eta, fast=1 - eta, deep_strict=eta / 2, deep_lenient=None)
        for eta in (number / LEAST_PAIRS for number in range(LEAST_PAIRS))
    ]
    told, audits = audited(tmp_path, [row(0)], found=[fast, deep, *tasks])
    assert audits.of(RECEIPT) == deep
    assert audits._ledger.audits(1) == ([Judged("m", "entrace", 5, 0.9, 0.5, 0.75)], [tasks[-1]])
    assert told.means == {"strict": Mean(0.5, None, 1), "lenient": Mean(0.75, None, 1)}
    deep_trust, fast_task = told.trust["deep"], told.trust["fast_task"]
    assert deep_trust.agreement == pytest.approx(1.0)
    assert deep_trust.slope == pytest.approx(2.0)
    assert deep_trust.bias == pytest.approx(-(LEAST_PAIRS - 1) / LEAST_PAIRS / 4)
    assert fast_task.agreement == 0.0
    assert fast_task.slope == pytest.approx(-1.0)
    deep_says = audits.reliability("m", "entrace", "deep")
    assert deep_says.agreement == pytest.approx(1.0)
    assert deep_says.interval == (deep_trust.agreement_low, deep_trust.agreement_high) != (None, None)
    assert deep_says.reliable is True
    assert audits.reliability("m", "entrace", "fast") == Reliability()
    assert audits.reliability("m", "concise", "fast") == Reliability()


def test_wrong_answers_say_nothing_of_how_well_eta_is_told(tmp_path: Path) -> None:
    tasks = [Checked("t", "m", "entrace", False, 5, 0.0, 0.9, 0.5, 0.5)] * 2 * LEAST_PAIRS
    assert audited(tmp_path, [row(0)], found=tasks)[0].trust["deep"].pairs == 0


def test_a_judge_who_disagrees_with_tasks_makes_all_unreliable(tmp_path: Path) -> None:
    tasks = [
        Checked("t", "m", "entrace", True, 5, number / 40, 1.0, (number * 7 % 40) / 40, None) for number in range(40)
    ]
    told, audits = audited(tmp_path, [row(0)], found=tasks)
    assert told.verdict is False
    audits._seen["m", "entrace"].judged += [Judged("m", "entrace", 5, each / 40, None, each / 40) for each in range(40)]
    audits._tell(("m", "entrace"))
    assert told.trust["fast"].agreement == pytest.approx(1.0)
    assert told.verdict is False
    assert audits.reliability("m", "entrace", "fast").reliable is False


def test_samples_that_were_dropped_are_counted(tmp_path: Path) -> None:
    told, audits = audited(tmp_path, [row(0)])
    audits.dropped("full")
    assert told.lost == ["full"]
