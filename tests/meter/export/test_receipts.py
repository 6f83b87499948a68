from dataclasses import replace

import pytest

from etameter.export.receipts import (
    NOT_MEASURED,
    UNKNOWN_REQUEST,
    energy_object,
    is_measured,
    is_receipt_id,
    transfer_fields,
)
from etameter.ledger import RequestRow
from etameter.records import RequestEnergy, RequestRecord, Source

pytestmark = pytest.mark.unit

RECEIPT = "0123456789abcdef" * 2
S = 1_000_000_000


def row(
    number: int, *, decode_tokens: int = 10, source: Source = "measured", finished_ns: int | None = 3 * S
) -> RequestRow:
    record = RequestRecord(
        f"r{number}", RECEIPT, "m", "entrace", S, 2 * S, finished_ns, 8, 0, decode_tokens + 1, "stop"
    )
    energy = RequestEnergy(
        f"r{number}", 4.0, 36.0, 5.0, 0.0, 0.0, 1.0, 2.0, finished_ns is not None, "step-cost", source
    )
    return RequestRow("engine-0", 5, number, record, energy, 8, decode_tokens)


def test_one_request() -> None:
    assert energy_object([row(0)], "nvml") == {
        "energy_joules": 40.0,
        "energy_kwh": 40.0 / 3.6e6,
        "prompt_joules": 4.0,
        "output_joules": 36.0,
        "marginal_joules": 5.0,
        "recomputed_joules": 0.0,
        "draft_waste_joules": 0.0,
        "avoided_joules": 1.0,
        "error_joules": 2.0,
        "prompt_tokens": 8,
        "cached_tokens": 0,
        "output_tokens": 11,
        "settled": True,
        "attribution_method": "step-cost",
        "source": "measured",
        "counter": "nvml",
        "receipt_id": RECEIPT,
        "wh_per_output_token": 36.0 / 10 / 3600,
        "duration_seconds": 2.0,
        "avg_power_watts": 20.0,
    }


def test_several_prompts_of_one_response_are_summed_and_claim_no_more_than_their_weakest() -> None:
    both = energy_object([row(0), row(1, source="simulated", finished_ns=None)], "nvml")
    assert (both["energy_joules"], both["output_tokens"], both["source"]) == (80.0, 22, "simulated")
    assert both["settled"] is False
    assert "duration_seconds" not in both


def test_one_output_token_has_no_energy_per_output_token() -> None:
    assert "wh_per_output_token" not in energy_object([row(0, decode_tokens=0)], "nvml")


def test_what_ran_and_has_no_joule_was_not_measured() -> None:
    unmetered = replace(row(0), energy=replace(row(0).energy, prompt_j=0.0, output_j=0.0))
    assert not is_measured(unmetered)
    assert is_measured(row(0))
    assert is_measured(replace(unmetered, energy=replace(unmetered.energy, settled=False))), "it may still be"
    assert is_measured(replace(unmetered, prefill_tokens=0, decode_tokens=0)), "it never ran, and took nothing"


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "../../" + "0" * 26, "0" * 32 + "\n"])
def test_nothing_else_is_a_receipt_id(text: str) -> None:
    assert is_receipt_id(RECEIPT)
    assert not is_receipt_id(text)


def test_accepted_drafts_are_tokens_and_what_ran_beyond_a_stop_is_none() -> None:
    speculated = replace(row(0), decode_tokens=40, record=replace(row(0).record, output_tokens=41))
    assert energy_object([speculated], "nvml")["wh_per_output_token"] == pytest.approx(36.0 / 40 / 3600)
    stopped = replace(row(0), decode_tokens=12, record=replace(row(0).record, output_tokens=11))
    assert energy_object([stopped], "nvml")["wh_per_output_token"] == pytest.approx(36.0 / 10 / 3600)


def test_a_response_is_known_no_better_than_the_worst_known_of_its_requests() -> None:
    partial = replace(row(1), energy=replace(row(1).energy, method="step-cost-partial"))
    assert energy_object([row(0), partial], "nvml")["attribution_method"] == "step-cost-partial"


PREFILLED = "e" * 32


def test_a_response_of_one_engine_says_nothing_of_another() -> None:
    assert transfer_fields([row(0)], None, []) == {}


def test_two_engines_shares_stand_beside_each_other_with_their_sum() -> None:
    decoded, prefilled = row(0), replace(row(1), engine="prefill")
    prefilled = replace(prefilled, energy=replace(prefilled.energy, prompt_j=8.0, output_j=0.0))
    told = transfer_fields([decoded], PREFILLED, [prefilled])
    assert told["prefill_receipt_id"] == PREFILLED
    both = told["disaggregated"]
    assert isinstance(both, dict)
    assert (both["prefill"]["prompt_joules"], both["prefill"]["output_joules"]) == (8.0, 0.0)
    assert (both["decode"]["prompt_joules"], both["decode"]["output_joules"]) == (4.0, 36.0)
    assert (both["prefill"]["engine"], both["decode"]["engine"]) == ("prefill", "engine-0")
    assert both["energy_joules"] == 48.0
    assert both["error_joules"] == 4.0
    assert energy_object([decoded], "nvml")["energy_joules"] == 40.0, "whoever adds receipts up counts no joule twice"


def test_a_share_that_is_not_known_makes_no_sum() -> None:
    unmeasured = replace(row(1), energy=replace(row(1).energy, prompt_j=0.0, output_j=0.0))
    for prefilled, reason in ([], UNKNOWN_REQUEST), ([unmeasured], NOT_MEASURED):
        both = transfer_fields([row(0)], PREFILLED, prefilled)["disaggregated"]
        assert isinstance(both, dict)
        assert (both["prefill"], both["prefill_reason"]) == (None, reason)
        assert "energy_joules" not in both
