"""What a response and a receipt say of energy: the top-level `energy` object."""

import math
import re
from collections.abc import Sequence

from etameter.claims import draft_waste_of, fate_of, output_of
from etameter.footprint import JOULES_PER_KWH, JOULES_PER_WH, Footprint
from etameter.ledger import RequestRow
from etameter.records import weakest
from etameter.slack.labels import Waste
from etameter.slack.reading import NEEDS, Reading
from etameter.slack.reliability import Reliability

UNKNOWN_REQUEST = "unknown_request"
"""Reason: no step of this request has been seen (yet)."""
NOT_MEASURED = "not_measured"
"""Reason: while this request ran the counter was lost, frozen or not to be believed. What it took is unknown, not zero."""

RECEIPT_IDS = frozenset({"receipt_id", "prefill_receipt_id"})
"""Keys of figures whose values open receipts."""
_RECEIPT_ID = re.compile(r"[0-9a-f]{32}")


def is_receipt_id(text: str) -> bool:
    """Whether `text` has the form of a receipt id: 32 hexadecimal digits."""
    return _RECEIPT_ID.fullmatch(text) is not None


def is_measured(row: RequestRow) -> bool:
    """False where a request ran, and nobody could meter any of it."""
    return not row.energy.settled or row.energy.energy_j > 0.0 or row.prefill_tokens + row.decode_tokens == 0


def energy_object(rows: Sequence[RequestRow], counter: str) -> dict[str, object]:
    """The energy of one response, which several engine requests may stand behind (one for each prompt).

    `counter` names the kind of counter that was read. Figures are in joules but where the name says otherwise;
    `wh_per_output_token` leaves out each request's first output token, which falls out of prefill, and is absent where there is no other.
    """
    energies = [row.energy for row in rows]
    prompt_j = math.fsum(energy.prompt_j for energy in energies)
    output_j = math.fsum(energy.output_j for energy in energies)
    energy_j = prompt_j + output_j
    start_ns = min(row.record.arrival_ns for row in rows)
    ends = [row.record.finished_ns for row in rows if row.record.finished_ns is not None]
    figure: dict[str, object] = {
        "energy_joules": energy_j,
        "energy_kwh": energy_j / JOULES_PER_KWH,
        "prompt_joules": prompt_j,
        "output_joules": output_j,
        "marginal_joules": math.fsum(energy.marginal_j for energy in energies),
        "recomputed_joules": math.fsum(energy.recomputed_j for energy in energies),
        "draft_waste_joules": math.fsum(energy.draft_waste_j for energy in energies),
        "avoided_joules": math.fsum(energy.avoided_j for energy in energies),
        "error_joules": math.fsum(energy.error_j for energy in energies),
        "prompt_tokens": sum(row.record.prompt_tokens for row in rows),
        "cached_tokens": sum(row.record.cached_tokens for row in rows),
        "output_tokens": sum(row.record.output_tokens for row in rows),
        "settled": all(energy.settled for energy in energies),
        "attribution_method": max((energy.method for energy in energies), key=_weakness),
        "source": weakest(frozenset(energy.source for energy in energies)),
        "counter": counter,
        "receipt_id": rows[0].record.receipt_id,
    }
    decode_tokens = sum(kept_tokens(row) for row in rows)
    if decode_tokens > 0:
        figure["wh_per_output_token"] = output_j / decode_tokens / JOULES_PER_WH
    if len(ends) == len(rows):
        duration_s = (max(ends) - start_ns) * 1e-9
        figure["duration_seconds"] = duration_s
        if duration_s > 0:
            figure["avg_power_watts"] = energy_j / duration_s
    return figure


def eta_fields(rows: Sequence[RequestRow], found: Reading | str, reliability: Reliability) -> dict[str, object]:
    """`eta`: what of the response's output was required, or a bound on that, and its tokens and joules by category; null for the reason in `eta_reason`.

    `reliability` is that of its method in this arm. What the method doesn't tell has no key. Joules are those of `output_joules` less `draft_waste_joules`, so that none of these is counted twice.
    """
    if isinstance(found, str):
        return {"eta": None, "eta_reason": found}
    if len(rows) == 1 and rows[0].curve is not None:
        found = found.over(rows[0].curve, rows[0].record.output_tokens)
    told = {"strict": found.strict, "lenient": found.lenient}
    by_category = {category: _amounts(rows, found, category) for category in found.shares}
    needs = {category: each for category, each in by_category.items() if category in NEEDS}
    return {
        "eta": {
            **{name: value for name, value in told.items() if value is not None},
            "lenient_at_most": found.lenient_at_most,
            "interval": list(found.interval),
            "unclassified": found.unclassified,
            "method": found.method,
            "unit": found.unit,
            "joules_by": "tokens" if found.spent is None else "time",
            "reliability": reliability.agreement,
            "reliability_interval": None if reliability.interval is None else list(reliability.interval),
            "reliable": reliability.reliable,
            **needs,
            "slack": {category: each for category, each in by_category.items() if category not in NEEDS},
        }
    }


def transfer_fields(
    rows: Sequence[RequestRow], prefill_receipt_id: str | None, prefilled: Sequence[RequestRow]
) -> dict[str, object]:
    """`disaggregated`: what the engine that prefilled the prompt took, what the one that decoded it, and both; empty where one engine did all.

    All other figures are of the decoding engine alone, so that summing receipts counts no joule twice. `prefill` is null where
    that engine has another meter, or is not known any more; its own server answers for its receipt.
    """
    if prefill_receipt_id is None:
        return {}
    told: dict[str, object] = {"prefill": None, "decode": _share(rows)}
    if prefilled and all(map(is_measured, prefilled)):
        both = [row.energy for row in (*prefilled, *rows)]
        told["prefill"] = _share(prefilled)
        told["energy_joules"] = math.fsum(energy.energy_j for energy in both)
        told["error_joules"] = math.fsum(energy.error_j for energy in both)
        told["settled"] = all(energy.settled for energy in both)
        told["source"] = weakest(frozenset(energy.source for energy in both))
    else:
        told["prefill_reason"] = NOT_MEASURED if prefilled else UNKNOWN_REQUEST
    return {"prefill_receipt_id": prefill_receipt_id, "disaggregated": told}


def _share(rows: Sequence[RequestRow]) -> dict[str, object]:
    return {
        "engine": rows[0].engine,
        "prompt_joules": math.fsum(row.energy.prompt_j for row in rows),
        "output_joules": math.fsum(row.energy.output_j for row in rows),
        "error_joules": math.fsum(row.energy.error_j for row in rows),
        "prefill_tokens": sum(row.prefill_tokens for row in rows),
        "output_tokens": sum(row.record.output_tokens for row in rows),
    }


def footprint_fields(rows: Sequence[RequestRow], footprint: Footprint) -> dict[str, object]:
    """`footprint`: what the response's joules come to by the configured factors. Empty where none is."""
    if not footprint:
        return {}
    energy_j = math.fsum(row.energy.energy_j for row in rows)
    return {"footprint": footprint.of(energy_j, weakest(frozenset(row.energy.source for row in rows)))}


def waste_fields(rows: Sequence[RequestRow], told: Waste | None) -> dict[str, object]:
    """`waste`: the answer whole where it was lost, with what `eta` says of it; else the rejected drafts. Empty where nothing is known to be."""
    lost: dict[str, dict[str, float]] = {}
    for row in rows:
        fate = fate_of(row.record.finish_reason, told)
        output_j, marginal_j = output_of(row)
        if fate is not None:
            sums = lost.setdefault(fate, {"tokens": 0.0, "joules": 0.0, "marginal_joules": 0.0})
            for name, amount in zip(sums, (row.record.output_tokens, output_j, marginal_j), strict=True):
                sums[name] += amount
        elif drafts_j := draft_waste_of(row):
            sums = lost.setdefault("draft", {"joules": 0.0})
            sums["joules"] += drafts_j
    return {"waste": lost}


def _amounts(rows: Sequence[RequestRow], found: Reading, category: str) -> dict[str, float]:
    share, (spent, marginal) = found.shares[category], found.spent_on(category)
    return {
        "tokens": share * sum(row.record.output_tokens for row in rows),
        "joules": spent * math.fsum(output_of(row)[0] - draft_waste_of(row) for row in rows),
        "marginal_joules": marginal * math.fsum(output_of(row)[1] for row in rows),
    }


def kept_tokens(row: RequestRow) -> int:
    """Output tokens after the first of each sequence; what was computed beyond a stop is in the energy, not among the tokens."""
    if row.record.finished_ns is None:
        return row.decode_tokens
    return max(min(row.decode_tokens, row.record.output_tokens - 1), 0)


def _weakness(method: str) -> int:
    """How little a method claims: a response is known no better than the worst known of its requests."""
    return 2 if method.endswith("-foreseen") else 1 if method.endswith("-partial") else 0
