"""When an audit may be made, by a clock that the test moves."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter import auditing as module
from etameter.auditing import (
    ARM_S,
    AUDIT,
    IDLE_S,
    MOST_ARMS,
    OLDEST_S,
    REST_S,
    TASK_EVERY_S,
    WAITING_LIMIT,
    Auditing,
    Job,
)
from etameter.config import EtaSection

pytestmark = pytest.mark.unit

TEXTS = {"prompts": ["Name a colour."], "responses": ["Sure! Blue."]}
PLENTY_J = 1e9


class Meter:
    """What the meter does with an `Auditing`, and what came of it."""

    def __init__(self, *, deep: str = "served", share: float = 1.0, on: bool = True) -> None:
        self.now_s = 1000.0
        self.running = 0
        self.said: list[Mapping[str, object]] = []
        self.back: list[tuple[str, Mapping[str, Any]]] = []
        self.lost: list[str] = []
        self.send = self.said.append
        settings = EtaSection(deep=deep, share=share)
        self.auditing = Auditing(settings, self, on=on, clock=lambda: self.now_s)
        self.auditing.opened("first", "entrace")
        self.connect()

    def came_back(self, job: Job, told: Mapping[str, Any]) -> None:
        self.back.append((job.kind, told))

    def dropped(self, cause: str) -> None:
        self.lost.append(cause)

    def connect(self) -> None:
        self.auditing.take({"type": "audits"}, self.send)

    def wait(self, seconds: float) -> list[object]:
        """Types of what was said meanwhile."""
        before = len(self.said)
        self.now_s += seconds
        self.auditing.tick(self.running)
        return [each["type"] for each in self.said[before:]]

    def answer(self, **told: object) -> None:
        self.auditing.take({"type": "audits", "job": self.said[-1].get("job"), **told}, self.send)


def idle_with_one(**settings: Any) -> Meter:
    """A response waits, joules are there to be spent, and nobody has asked for a while."""
    meter = Meter(**settings)
    meter.auditing.told("ab", TEXTS)
    meter.auditing.spent("entrace", PLENTY_J, 1e6)
    return meter


def test_a_response_is_judged_once_the_server_has_been_idle_for_long_enough() -> None:
    meter = idle_with_one()
    assert meter.wait(IDLE_S - 1) == []
    assert meter.wait(1) == ["judge"]
    assert meter.said[-1] == {"type": "judge", "job": 0, "prompt": "Name a colour.", "response": "Sure! Blue."}
    assert meter.wait(100) == [], "one at a time"
    meter.answer(labels=[[], []])
    assert meter.back == [("deep", {"type": "audits", "job": 0, "labels": [[], []]})]
    assert meter.wait(100) == [], "none waits any more"


def test_what_one_took_is_known_before_the_next() -> None:
    meter = idle_with_one()
    meter.auditing.told("cd", TEXTS)
    assert meter.wait(IDLE_S) == ["judge"]
    meter.answer()
    assert meter.wait(REST_S - 0.5) == []
    assert meter.wait(0.5) == ["judge"]


@pytest.mark.parametrize("how", ["opened", "running"])
def test_other_work_pauses_it_at_once_until_there_is_none(how: str) -> None:
    meter = idle_with_one()
    assert meter.wait(IDLE_S) == ["judge"]
    meter.running = 1  # its own
    assert meter.wait(1) == []
    if how == "opened":
        meter.auditing.opened("cd", "entrace")
        assert meter.said[-1] == {"type": "pause"}
        meter.running = 1
    else:
        meter.running = 2
        assert meter.wait(1) == ["pause"]
    assert meter.wait(IDLE_S + 1) == [], "it still runs"
    meter.running = 0
    assert meter.wait(IDLE_S - 2) == []
    assert meter.wait(2) == ["go"]


def test_what_an_audit_asks_is_no_other_work_and_is_never_judged() -> None:
    meter = idle_with_one()
    meter.wait(IDLE_S)
    meter.auditing.opened("cd", AUDIT)
    meter.auditing.told("cd", TEXTS)
    assert meter.said[-1]["type"] == "judge"
    meter.answer()
    assert meter.wait(100) == []


def test_audits_never_take_more_than_their_share_of_joules() -> None:
    meter = Meter(share=0.01)
    for number in range(400):
        meter.auditing.told(f"{number}", TEXTS)
    meter.auditing.spent("entrace", 100_000.0, 100_000.0)  # 1,000 J for audits; to judge takes some 2,400 tokens, alone
    assert meter.wait(IDLE_S) == []
    meter.auditing.spent("entrace", 1_900_000.0, 1_900_000.0)
    assert meter.wait(1) == ["judge"]
    meter.answer()
    meter.auditing.spent(AUDIT, 16_000.0, 2_400.0)  # of 20,000 J
    assert meter.wait(REST_S) == []


def test_what_audits_took_tells_what_they_will_take() -> None:
    meter = Meter(share=0.01)
    for number in range(800):
        meter.auditing.told(f"{number}", TEXTS)
    meter.auditing.spent("entrace", 1_000_000.0, 1_000_000.0)
    assert meter.wait(IDLE_S) == [], "10,000 J, and 2,400 tokens at eight times the price of the traffic's"
    meter.auditing.spent(AUDIT, 2_000.0, 2_400.0)  # somebody judged by hand: not as dear as that
    assert meter.wait(1) == ["judge"]


def test_how_long_an_answer_is_does_not_decide_whether_it_is_judged() -> None:
    meter = Meter()
    meter.auditing.told("long", {**TEXTS, "responses": ["long " * 4_000]})
    waiting = meter.auditing._waiting
    while min(waiting.values(), key=lambda each: each.lot).receipt_id == "long":
        meter.auditing.told(f"{len(waiting)}", TEXTS)
    meter.auditing.spent("entrace", 25_000.0, 25_000.0)
    assert meter.wait(IDLE_S) == [], "enough for a short one, some 2,400 tokens at eight times the price"
    meter.auditing.spent("entrace", 100_000.0, 100_000.0)
    assert meter.wait(1) == ["judge"], "enough for some 15,400"
    assert "long" in waiting


def test_judging_and_tasks_get_alike_where_joules_are_scarce() -> None:
    meter = Meter()
    begun = []
    for number in range(4_000):
        meter.auditing.told(f"{number}", TEXTS)
        meter.auditing.spent("entrace", 100.0, 100.0)
        for kind in meter.wait(IDLE_S):
            begun.append(kind)
            meter.auditing.spent(AUDIT, *((2_400.0, 2_400.0) if kind == "judge" else (6_400.0, 6_400.0)))
            meter.answer(answers=[])
    assert 0.5 < begun.count("task") * 6_400 / (begun.count("judge") * 2_400) < 2


def test_nothing_is_spent_where_there_was_no_traffic() -> None:
    meter = Meter()
    meter.auditing.told("ab", TEXTS)
    assert meter.wait(10 * IDLE_S) == []


def test_another_judge_needs_no_idle_server_and_is_not_paused() -> None:
    meter = idle_with_one(deep="http://judge:1")
    meter.running = 9
    assert meter.wait(1) == ["judge"]
    assert meter.wait(1) == []


def test_tasks_are_asked_some_times_an_hour_under_the_arms_that_traffic_has() -> None:
    meter = Meter()
    meter.auditing.opened("b", "concise")
    meter.auditing.opened("c", AUDIT)
    meter.auditing.spent("entrace", PLENTY_J, 1e6)
    assert meter.wait(TASK_EVERY_S / 2) == ["task"]
    task = meter.said[-1]
    assert task["arms"] == ["entrace", "concise"]
    meter.answer(answers=[])
    assert meter.back[-1][0] == "task"
    assert meter.wait(TASK_EVERY_S - 1) == []
    assert meter.wait(1) == ["task"]
    assert meter.said[-1]["seed"] != task["seed"]


def test_however_many_arms_are_named_a_task_has_some_of_them() -> None:
    meter = Meter()
    for number in range(100):
        meter.auditing.opened("a", f"arm-{number}")
    meter.auditing.spent("entrace", PLENTY_J, 1e9)
    assert meter.wait(TASK_EVERY_S) == ["task"]
    arms = meter.said[-1]["arms"]
    assert arms == [f"arm-{number}" for number in range(100 - MOST_ARMS, 100)], "the latest"


def test_an_arm_that_traffic_has_no_more_is_asked_no_more() -> None:
    meter = Meter()
    meter.auditing.spent("entrace", PLENTY_J, 1e9)
    meter.now_s += ARM_S - TASK_EVERY_S
    meter.auditing.opened("b", "concise")
    meter.auditing.opened("c", "seed")
    meter.auditing.opened("d", "concise")
    assert meter.wait(IDLE_S) == ["task"]
    assert meter.said[-1]["arms"] == ["entrace", "seed", "concise"]
    meter.answer(answers=[])
    assert meter.wait(TASK_EVERY_S) == ["task"]
    assert meter.said[-1]["arms"] == ["seed", "concise"]


def test_tasks_wait_for_an_idle_server_though_another_judges() -> None:
    meter = Meter(deep="http://judge:1")
    meter.auditing.spent("entrace", PLENTY_J, 1e6)
    meter.running = 1
    assert meter.wait(TASK_EVERY_S) == []
    meter.running = 0
    assert meter.wait(IDLE_S) == ["task"]
    meter.running = 2
    assert meter.wait(1) == ["pause"]


@given(st.floats(0.05, 0.95), st.integers(0, 2**32))
def test_about_the_share_of_responses_is_sampled(share: float, run: int) -> None:
    meter = Meter(share=share)
    meter.auditing._waiting = waiting = dict[str, Any]()
    for number in range(WAITING_LIMIT):
        meter.auditing.told(f"{run} {number}", TEXTS)
    assert not meter.lost
    spread = 6 * (share * (1 - share) * WAITING_LIMIT) ** 0.5
    assert abs(len(waiting) - share * WAITING_LIMIT) <= spread


def test_of_more_than_can_wait_some_stay_by_lot_and_the_others_are_counted() -> None:
    meter = Meter()
    for number in range(3 * WAITING_LIMIT):
        meter.auditing.told(f"{number}", TEXTS)
    assert meter.lost == ["full"] * (2 * WAITING_LIMIT)
    kept = {int(receipt) for receipt in meter.auditing._waiting}
    assert len(kept) == WAITING_LIMIT
    assert min(kept) < WAITING_LIMIT < 2 * WAITING_LIMIT < max(kept), "neither the first nor the last alone"


def test_long_texts_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_LIMIT_BYTES", 50)
    meter = Meter()
    for number in range(3):
        meter.auditing.told(f"{number}", TEXTS)  # 25 characters each
    assert meter.lost == ["full"]


def test_texts_are_not_kept_for_long() -> None:
    meter = idle_with_one()
    meter.running = 1
    meter.wait(OLDEST_S)
    assert meter.lost == []
    meter.wait(1)
    assert meter.lost == ["old"]


def test_a_job_that_is_never_let_go_on_is_given_up() -> None:
    meter = idle_with_one()
    meter.wait(IDLE_S)
    meter.running = 2
    assert meter.wait(1) == ["pause"]
    assert meter.wait(OLDEST_S - 1) == []
    assert meter.wait(2) == ["drop"]
    assert meter.wait(1) == [], "once"


@pytest.mark.parametrize(
    "message",
    [
        {"reason": "too_long"},
        {"prompts": ["a"], "responses": ["b", "c"]},
        {"prompts": ["a", "b"], "responses": ["c"]},
        {"prompts": ["a"], "responses": ["  "]},
        {"prompts": [1], "responses": ["b"]},
        {"prompts": ["a"], "responses": "b"},
        {"prompts": ["a"], "responses": ["b" * 60_000]},
    ],
)
def test_what_is_not_one_answer_of_a_fit_length_is_left_alone(message: dict[str, Any]) -> None:
    meter = idle_with_one()
    meter.auditing._waiting.clear()
    meter.auditing.told("cd", message)
    assert meter.wait(IDLE_S) == []


def test_no_text_waits_for_nobody() -> None:
    meter = idle_with_one()
    meter.auditing._waiting.clear()
    meter.auditing.gone(meter.send)
    meter.auditing.told("cd", TEXTS)
    meter.connect()
    assert meter.wait(IDLE_S) == []


@pytest.mark.parametrize("settings", [{"deep": "off"}, {"on": False}])
def test_off_is_off(settings: dict[str, Any]) -> None:
    assert idle_with_one(**settings).wait(TASK_EVERY_S) == []


def test_who_leaves_takes_its_job_along_and_who_comes_is_given_the_next() -> None:
    meter = idle_with_one()
    meter.auditing.told("cd", TEXTS)
    meter.wait(IDLE_S)
    meter.auditing.gone(meter.send)
    assert meter.back == [("deep", {})]
    assert meter.wait(10) == []
    meter.connect()
    assert meter.wait(1) == ["judge"]
    said: list[Mapping[str, object]] = []
    meter.auditing.take({"type": "audits"}, said.append)  # another one, though the first is still there
    assert len(meter.back) == 2


def test_a_result_that_belongs_to_no_job_is_none() -> None:
    meter = idle_with_one()
    meter.auditing.take({"type": "audits", "job": 0}, meter.send)
    meter.auditing.take({"type": "audits", "job": [7]}, meter.send)
    assert meter.wait(IDLE_S) == ["judge"]
    meter.auditing.take({"type": "audits", "job": 8}, meter.send)
    assert meter.back == []
