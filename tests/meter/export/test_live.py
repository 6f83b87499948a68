"""What the live page is told."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from etameter.export.live import (
    KEPT_REQUESTS,
    MAX_GROUPS,
    OTHER,
    WINDOW_S,
    Board,
    Live,
    Running,
    Sampling,
    Sensor,
    Serving,
)
from etameter.records import Balance, Edge, Source
from etameter.slack.reading import Part, Reading
from etameter.slack.reliability import Reliability
from tests.meter.test_ledger import RECEIPT, row

pytestmark = pytest.mark.unit

SECOND = 1_000_000_000
SIMULATED = Board("GPU-0", "h100", "simulated", "simulated")


@dataclass(frozen=True)
class Charged:
    """What an interval charged an arm."""

    arm: str
    prompt_j: float
    output_j: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    first_tokens: int
    source: Source = "simulated"


def live(boards: Sequence[Board] = (SIMULATED,)) -> Live:
    return Live(boards, ("entrace", "concise", "unlabelled"), "0.1.0", 10 * SECOND, 1e9)


def told(of: Live, now_ns: int = 20 * SECOND, since_ns: int = 0, **parts: Any) -> Any:
    """As a listener gets it."""
    return json.loads(json.dumps(of.snapshot(now_ns, 1e9 + 10.0, since_ns=since_ns, **parts)))


def reading(preamble: float = 0.25) -> Reading:
    return Reading(RECEIPT, 1.0 - preamble, (0.5, 1.0 - preamble), 0.1, "fast", None, {"preamble": preamble})


def test_before_anything_is_known_nothing_is_zero_and_every_gap_has_its_reason() -> None:
    snapshot = told(live())
    (gpu,) = snapshot["gpus"]
    assert (gpu["power_w"], gpu["power_reason"]) == (None, "not_read_yet")
    assert gpu["sensor"] is None
    assert gpu["sensor_reason"] == "not_looked_at_yet"
    now = snapshot["now"]
    figures = ("prompt_j_per_token", "output_j_per_token", "prompt_wh_per_token", "output_wh_per_token", "eta")
    assert [now[name] for name in figures] == [None] * 5
    assert (now["prompt_reason"], now["output_reason"], now["eta_reason"]) == (
        "no_tokens",
        "no_tokens",
        "none_classified",
    )
    assert snapshot["balance"]["source"] is None
    assert snapshot["source"] == "simulated"


def test_joules_per_token_are_a_ratio_of_sums_and_first_tokens_carry_no_output_energy() -> None:
    of = live()
    of.charged("m", Charged("entrace", 10.0, 30.0, 100, 0, 11, 1), 19 * SECOND)
    of.charged("m", Charged("concise", 0.0, 6.0, 0, 0, 2, 0), 20 * SECOND)
    now = told(of)["now"]
    assert now["prompt_j_per_token"] == pytest.approx(0.1)
    assert now["output_j_per_token"] == pytest.approx(36 / 12)
    assert now["output_wh_per_token"] == pytest.approx(36 / 12 / 3600)
    arms = {arm["arm"]: arm for arm in told(of)["arms"]}
    assert arms["entrace"]["output_j_per_token"] == pytest.approx(3.0)
    assert arms["concise"]["prompt_j_per_token"] is None
    assert {arm["source"] for arm in arms.values()} == {"simulated"}


def test_figures_of_now_are_of_the_last_minute_and_those_of_arms_are_not() -> None:
    of = live()
    of.charged("m", Charged("entrace", 10.0, 30.0, 100, 0, 11, 1), 20 * SECOND)
    later = told(of, (20 + WINDOW_S) * SECOND)
    assert later["now"]["output_j_per_token"] is None
    assert later["arms"][0]["output_j_per_token"] == pytest.approx(3.0)


def test_names_of_arms_are_from_a_closed_set_and_groups_are_bounded() -> None:
    of = live()
    for number in range(3 * MAX_GROUPS):
        of.charged(f"m{number}", Charged("<script>", 1.0, 1.0, 1, 0, 1, 0), 20 * SECOND)
    arms = told(of)["arms"]
    assert {arm["arm"] for arm in arms} == {OTHER}
    assert len(arms) <= MAX_GROUPS + 1
    assert sum(arm["prompt_j"] for arm in arms) == pytest.approx(3 * MAX_GROUPS)


def test_the_balance_adds_up_to_the_counter() -> None:
    of = live()
    of.settle(Balance("GPU-0", 0, 1, 10.0, 6.0, 2.5, 0.5, {"stale": 1.0}), "simulated")
    of.settle(Balance("GPU-0", 1, 2, 5.0, 5.0, 0.0, 0.0, {}), "simulated")
    balance = told(of)["balance"]
    assert (balance["measured_j"], balance["requests_j"], balance["idle_j"]) == (15.0, 11.0, 2.5)
    assert balance["unattributed_j"] == {"stale": 1.0}
    assert balance["residual_j"] == pytest.approx(0.0, abs=1e-12)
    of.settle(Balance("GPU-0", 2, 3, 5.0, 4.0, 0.0, 0.0, {}), "measured")
    assert told(of)["balance"]["residual_j"] == pytest.approx(1.0)
    assert told(of)["balance"]["source"] == "simulated"


def test_a_request_is_told_with_its_public_id_and_never_with_its_receipt() -> None:
    of = live()
    of.finished(row(1), "chatcmpl-1", "text_not_told", 20 * SECOND)
    snapshot = told(of)
    (request,) = snapshot["requests"]
    assert request["id"] == "chatcmpl-1"
    assert (request["prompt_j"], request["output_j"], request["source"]) == (1.0, 2.0, "measured")
    assert request["output_wh_per_token"] == pytest.approx(2.0 / 4 / 3600)
    assert (request["eta"], request["eta_reason"]) == (None, "text_not_told")
    assert RECEIPT not in json.dumps(snapshot)
    assert snapshot["arms"][0]["requests"] == 1


def test_wasted_joules_are_told_by_what_became_of_the_answer_whenever_that_is_known() -> None:
    of = live()
    of.wasted(row(1), "truncated", 1.5, 19 * SECOND)
    of.wasted(row(1), "retry", 0.0, 19 * SECOND)
    of.finished(row(1), "chatcmpl-1", "text_not_told", 20 * SECOND)
    of.finished(row(2), "chatcmpl-2", "text_not_told", 20 * SECOND)
    assert [request["waste_j"] for request in told(of)["requests"]] == [{"truncated": 1.5}, {}]
    of.wasted(row(1), "draft", 0.25, 21 * SECOND)
    of.wasted(row(2), "retry", 2.0, 30 * SECOND)
    assert [request["waste_j"] for request in told(of)["requests"]] == [
        {"truncated": 1.5, "draft": 0.25},
        {"retry": 2.0},
    ]
    assert [request["id"] for request in told(of, since_ns=25 * SECOND)["requests"]] == ["chatcmpl-2"]
    [arm] = told(of)["arms"]
    assert arm["wasted_j"] == {"truncated": 1.5, "retry": 2.0, "draft": 0.25}


def test_what_is_known_early_stays_beside_what_is_known_earlier() -> None:
    of = live()
    of.wasted(row(1), "truncated", 1.5, 19 * SECOND)
    of.classified(row(1), reading(), 19 * SECOND)
    of.finished(row(1), "chatcmpl-1", "not_classified_yet", 20 * SECOND)
    [request] = told(of)["requests"]
    assert request["waste_j"] == {"truncated": 1.5}
    assert request["eta"]["slack"] == {"preamble": 0.25}


@pytest.mark.parametrize("name", ["<b>", "a b", "", "-x", "x" * 200, "Zoë", 'a"b'])
def test_an_id_that_a_client_made_up_of_anything_is_not_told(name: str) -> None:
    of = live()
    of.finished(row(1), name, "text_not_told", 20 * SECOND)
    assert told(of)["requests"][0]["id"] is None


def test_energy_that_nobody_could_measure_is_missing_with_its_reason() -> None:
    of = live()
    of.finished(row(1, prompt_j=0.0, output_j=0.0), None, "text_not_told", 20 * SECOND)
    (request,) = told(of)["requests"]
    assert [request[name] for name in ("prompt_j", "output_j", "error_j", "output_wh_per_token")] == [None] * 4
    assert request["energy_reason"] == "not_measured"


def test_slack_is_weighted_by_tokens_whichever_comes_first() -> None:
    one, other = row(1, output_j=2.0), row(2, output_j=6.0)
    other = replace(other, record=replace(other.record, output_tokens=15))
    of = live()
    of.finished(one, "a", "not_classified_yet", 20 * SECOND)
    of.classified(one, reading(0.2), 20 * SECOND, Reliability(0.5, (0.3, 0.7), reliable=True))
    of.classified(other, reading(0.4), 20 * SECOND)
    of.finished(other, "b", reading(0.4), 20 * SECOND)
    snapshot = told(of)
    eta = snapshot["now"]["eta"]
    assert eta["lenient_at_most"] == pytest.approx((5 * 0.8 + 15 * 0.6) / 20)
    assert eta["slack"] == {"preamble": pytest.approx((5 * 0.2 + 15 * 0.4) / 20)}
    assert eta["slack_j"] == {"preamble": pytest.approx(2 * 0.2 + 6 * 0.4)}
    assert (eta["reliability"], eta["reliability_interval"]) == (None, None), "that of one response is not known"
    assert [request["eta"]["reliability"] for request in snapshot["requests"]] == [0.5, None]
    assert [request["eta"]["lenient_at_most"] for request in snapshot["requests"]] == [0.8, 0.6]
    assert snapshot["arms"][0]["eta"]["responses"] == 2


def test_reliability_is_weighted_by_tokens_with_its_interval() -> None:
    one, other = row(1), row(2)
    other = replace(other, record=replace(other.record, output_tokens=15))
    of = live()
    of.classified(one, reading(), 20 * SECOND, Reliability(0.5, (0.3, 0.7), reliable=True))
    of.classified(other, reading(), 20 * SECOND, Reliability(0.7, (0.5, 0.9), reliable=True))
    eta = told(of)["now"]["eta"]
    assert eta["reliability"] == pytest.approx((5 * 0.5 + 15 * 0.7) / 20)
    assert eta["reliability_interval"] == [
        pytest.approx((5 * 0.3 + 15 * 0.5) / 20),
        pytest.approx((5 * 0.7 + 15 * 0.9) / 20),
    ]


@pytest.mark.parametrize(
    ("verdicts", "whole"), [([True, True], True), ([True, None], None), ([True, False], False), ([None, False], False)]
)
def test_one_arm_that_audits_found_unreliable_makes_the_whole_so(
    verdicts: list[bool | None], whole: bool | None
) -> None:
    of = live()
    for number, reliable in enumerate(verdicts):
        of.classified(row(number), reading(), 20 * SECOND, Reliability(reliable=reliable))
    assert told(of)["now"]["eta"]["reliable"] is whole


@pytest.mark.parametrize("first", ["classified", "finished"])
def test_spans_are_told_by_their_place_and_not_of_several_answers(first: str) -> None:
    parts = (Part("preamble", 0.0, 0.25, 1.0), Part("closing", 0.75, 1.0, 1.0))
    found = replace(reading(), shares={"preamble": 0.25, "closing": 0.25}, parts=parts)
    of = live()
    if first == "finished":
        of.finished(row(1), None, "not_classified_yet", 20 * SECOND)
    of.classified(row(1), found, 20 * SECOND)
    if first == "classified":
        of.finished(row(1), None, replace(found, parts=()), 20 * SECOND)
    assert told(of)["requests"][0]["eta"]["spans"] == [[0.0, 0.25, "preamble"], [0.75, 1.0, "closing"]]
    of.classified(row(1), replace(found, parts=tuple(replace(part, weight=0.5) for part in parts)), 21 * SECOND)
    assert told(of)["requests"][0]["eta"]["spans"] is None


def test_requests_are_told_when_they_change_and_only_the_last_are_kept() -> None:
    of = live()
    for number in range(KEPT_REQUESTS + 5):
        of.finished(row(number), None, "not_classified_yet", 20 * SECOND)
    assert len(told(of)["requests"]) == KEPT_REQUESTS
    assert told(of, 30 * SECOND, since_ns=25 * SECOND)["requests"] == []
    of.classified(row(KEPT_REQUESTS), reading(), 26 * SECOND)
    (changed,) = told(of, 30 * SECOND, since_ns=25 * SECOND)["requests"]
    assert changed["eta"]["slack"] == {"preamble": 0.25}


def test_power_of_boards_is_told_with_what_is_new() -> None:
    of = live((SIMULATED, replace(SIMULATED, gpu_uuid="GPU-1", source="measured")))
    of.found([Edge("GPU-0", t_ns, 1_000, t_ns // 10_000) for t_ns in range(10 * SECOND, 20 * SECOND, SECOND // 10)])
    of.found([Edge("GPU-elsewhere", 1, 1, 1)])
    first, second = told(of)["gpus"]
    assert first["power_w"] == pytest.approx(100.0)
    assert set(first["trace"]["watts"]) == {100.0}
    assert first["trace"]["start_s"] == pytest.approx(10.25)
    assert second["power_w"] is None
    assert second["source"] == "measured"
    news = told(of, since_ns=19 * SECOND)["gpus"][0]["trace"]
    assert (news["start_s"], len(news["watts"])) == (19.0, 3)


def test_an_implausible_power_is_not_told() -> None:
    of = live()
    of.limited("GPU-0", 50.0)
    of.limited("GPU-elsewhere", 50.0)
    of.found([Edge("GPU-0", t_ns, 1_000, t_ns // 10_000) for t_ns in range(10 * SECOND, 20 * SECOND, SECOND // 10)])
    assert (told(of)["gpus"][0]["power_w"], told(of)["gpus"][0]["power_reason"]) == (None, "implausible")


def test_sensors_engines_and_running_requests_are_passed_on() -> None:
    of = live()
    of.looked_after({"GPU-0": Sensor(0.1, 3, 1, None, 0)}, Sampling(polls=7, mean_lateness_s=0.001))
    serving = Serving("engine-0", "m", ("GPU-0",), 1, 19.5, 0, 0)
    running = Running("engine-0:1:2", "entrace", "m", 18.0, None, None, 30, 0)
    snapshot = told(of, serving=[serving], running=[running])
    assert snapshot["gpus"][0]["sensor"]["missed_edges"] == 3
    assert snapshot["gpus"][0]["sensor"]["lag_s"] is None
    assert snapshot["gpus"][0]["sensor_reason"] == "no_fit_yet"
    assert snapshot["sampler"]["polls"] == 7
    assert snapshot["engines"][0]["running"] == 1
    assert snapshot["running"][0]["first_token_s"] is None


def test_every_field_is_documented() -> None:
    of = live()
    of.looked_after({"GPU-0": Sensor(0.1, 3, 1, None, 0)}, Sampling())
    of.finished(row(1), "a", reading(), 20 * SECOND)
    of.classified(row(1), reading(), 20 * SECOND)
    of.settle(Balance("GPU-0", 0, 1, 10.0, 6.0, 2.5, 0.5, {"stale": 1.0}), "simulated")
    serving = Serving("engine-0", "m", ("GPU-0",), 1, 19.5, 0, 0)
    running = Running("engine-0:1:2", "entrace", "m", 18.0, None, None, 30, 0)
    document = (Path(__file__).parents[3] / "docs" / "live-page.md").read_text()
    undocumented = {
        name for name in names(told(of, serving=[serving], running=[running])) if f"`{name}" not in document
    }
    assert undocumented == {"prompt_reason", "output_reason", "preamble", "stale"}, "the first two by their ending"


def names(told: Any) -> set[str]:
    """Of all fields, however deep."""
    if isinstance(told, list):
        return set().union(*map(names, told))
    return set(told) | set().union(*map(names, told.values())) if isinstance(told, dict) else set()
