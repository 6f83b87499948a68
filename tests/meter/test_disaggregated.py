"""One request on two engines: what prefilled its prompt and what decoded it, in a whole meter and after its restart."""

import json
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from etameter.ledger import Ledger
from etameter.records import prefill_receipt_id_of
from etameter.serving.ring import RingWriter, Row
from tests.meter.test_daemon import Meter, lit_board, running, serve_one, until
from tests.meter.test_faults import assert_sound, settled

pytestmark = pytest.mark.unit

PREFILLED, DECODED, ELSEWHERE = "1" * 32, "2" * 32, "3" * 32


def prefill(
    ring: RingWriter, engine_id: str = f"cmpl-1-{PREFILLED}00000000", first_step: int = 0, steps: int = 5
) -> None:
    """A prompt of 50 tokens, of which comes one token."""
    number = ring.open_request(engine_id, 50, time.monotonic_ns())
    for step in range(first_step, first_step + steps):
        row: Row = (number, 10, 0, 0, 0, 0, 0, 10 * (step - first_step), 0)
        ring.dispatch(step, time.monotonic_ns(), [row])
        time.sleep(0.02)
        ring.done(step, time.monotonic_ns())
    ring.finish(number, time.monotonic_ns(), 1, "length")


def both_of(meter: Meter) -> dict[str, dict[str, float]]:
    told: dict[str, dict[str, float]] = meter.energy(DECODED)["disaggregated"]
    return told


def test_a_receipt_has_both_engines_shares_and_their_sum(tmp_path: Path) -> None:
    with ExitStack() as stack:
        board = stack.enter_context(lit_board(tmp_path, gpus=2))
        rings = {}
        for place, engine in enumerate(("prefill", "decode")):
            path = tmp_path / ("ring" if place else "other")
            ring = RingWriter(path, engine=engine, model="m", dtype="bfloat16", gpu_uuids=[board.uuid(place)])
            rings[engine] = stack.enter_context(closing(ring))
        options = "--ring", str(tmp_path / "other")
        with running(tmp_path, board.environment(), *options) as meter:
            time.sleep(0.5)  # the counters begin
            prefill(rings["prefill"])
            serve_one(rings["decode"], 10, f"cmpl-2-{DECODED}{PREFILLED}00000000")
            serve_one(rings["decode"], 10, f"cmpl-3-{ELSEWHERE}{'4' * 32}00000000", first_step=10)
            until(lambda: all(settled(meter, receipt) for receipt in (PREFILLED, DECODED, ELSEWHERE)))
            told, both = meter.energy(DECODED), both_of(meter)
            first = meter.energy(PREFILLED)
            assert told["prefill_receipt_id"] == PREFILLED
            assert both["prefill"]["prompt_joules"] == pytest.approx(first["prompt_joules"])
            assert both["prefill"]["prefill_tokens"] == 50
            assert both["decode"]["output_joules"] == pytest.approx(told["output_joules"])
            assert both["energy_joules"] == pytest.approx(first["energy_joules"] + told["energy_joules"])
            assert "disaggregated" not in first
            elsewhere = meter.energy(ELSEWHERE)
            assert elsewhere["prefill_receipt_id"] == "4" * 32, "where another meter may know it"
            assert elsewhere["disaggregated"]["prefill_reason"] == "unknown_request"
            assert_sound(meter)
        with running(tmp_path, board.environment(), *options) as meter:
            until(lambda: meter.energy(DECODED))
            assert both_of(meter)["energy_joules"] == pytest.approx(both["energy_joules"]), "the ledger names both"
    with closing(Ledger(tmp_path / "ledger.db", read_only=True)) as ledger:
        (row,) = ledger.receipt(DECODED)
        assert prefill_receipt_id_of(row.record.request_id) == PREFILLED


def test_engines_that_name_the_transfer_alone_are_joined_by_it_unless_two_do(tmp_path: Path) -> None:
    key, other, twice = "a" * 32, "b" * 32, "5" * 32
    with ExitStack() as stack:
        board = stack.enter_context(lit_board(tmp_path, gpus=2))
        rings = []
        for place, name in enumerate(("other", "ring")):
            path = tmp_path / name
            ring = RingWriter(path, engine=name, model="m", dtype="bfloat16", gpu_uuids=[board.uuid(place)])
            rings.append(stack.enter_context(closing(ring)))
        with running(tmp_path, board.environment(), "--ring", str(tmp_path / "other")) as meter:
            until(lambda: all(each["engine"] for each in json.loads(meter.get("/health")[1])["engines"]))
            prefill(rings[0], f"cmpl-1-{PREFILLED}p{key}00000000")
            serve_one(rings[1], 10, f"cmpl-2-{DECODED}d{key}00000000")
            serve_one(rings[1], 10, f"cmpl-3-{ELSEWHERE}d{other}00000000", first_step=10)
            until(lambda: all(settled(meter, receipt) for receipt in (PREFILLED, DECODED, ELSEWHERE)))
            first, told, both = meter.energy(PREFILLED), meter.energy(DECODED), both_of(meter)
            assert told["prefill_receipt_id"] == PREFILLED
            assert both["energy_joules"] == pytest.approx(first["energy_joules"] + told["energy_joules"])
            assert "disaggregated" not in first
            assert "disaggregated" not in meter.energy(ELSEWHERE), "nobody here has prefilled for it"
            prefill(rings[0], f"cmpl-4-{twice}p{key}00000000", first_step=5)
            until(lambda: settled(meter, twice))
            assert "disaggregated" not in meter.energy(DECODED)
            assert_sound(meter)
