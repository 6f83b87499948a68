"""Figures of the live page: ratios of sums per token, and of what was found in responses."""

from collections.abc import Mapping, Sequence
from typing import Final

from etameter.claims import draft_waste_of
from etameter.footprint import JOULES_PER_WH
from etameter.ledger import RequestRow
from etameter.slack.reading import Part, Reading
from etameter.slack.reliability import Reliability

SUMS: Final = ("prompt_j", "output_j", "prompt_tokens", "cached_tokens", "output_tokens", "first_tokens")
"""Joules of requests, and the tokens that they paid for."""
MAX_SPANS: Final = 100
"""Of a response; more would not be told apart in a bar."""

NOT_AUDITED: Final = Reliability()

_SLACK, _SLACK_J = "slack ", "slack_j "
_NOTHING: Final = 0.0, 0.0


def per_token(sums: Mapping[str, float]) -> dict[str, float | None]:
    """Joules and Wh per computed prompt token, and per output token after the first, which falls out of a prefill."""
    prompt_tokens, output_tokens = sums["prompt_tokens"], sums["output_tokens"] - sums["first_tokens"]
    prompt_j = sums["prompt_j"] / prompt_tokens if prompt_tokens > 0 else None
    output_j = sums["output_j"] / output_tokens if output_tokens > 0 else None
    return {
        "prompt_j_per_token": prompt_j,
        "output_j_per_token": output_j,
        "prompt_wh_per_token": None if prompt_j is None else prompt_j / JOULES_PER_WH,
        "output_wh_per_token": None if output_j is None else output_j / JOULES_PER_WH,
    }


def weighted(row: RequestRow, reading: Reading, reliability: Reliability) -> dict[str, float]:
    """What was found in a response, weighted by its output tokens, so that it can be summed."""
    tokens, output_j = row.record.output_tokens, row.energy.output_j - draft_waste_of(row)
    return {
        "responses": 1,
        "tokens": tokens,
        "lenient_at_most": tokens * reading.lenient_at_most,
        "low": tokens * reading.interval[0],
        "unclassified": tokens * reading.unclassified,
        "audited_tokens": 0 if reliability.agreement is None else tokens,
        "reliability": tokens * (reliability.agreement or 0.0),
        "reliability_low": tokens * (reliability.interval or _NOTHING)[0],
        "reliability_high": tokens * (reliability.interval or _NOTHING)[1],
        "trusted": tokens if reliability.reliable else 0,
        "distrusted": tokens if reliability.reliable is False else 0,
        **{_SLACK + category: tokens * share for category, share in reading.slack.items()},
        **{_SLACK_J + category: output_j * reading.spent_on(category)[0] for category in reading.slack},
    }


def bound(sums: Mapping[str, float]) -> dict[str, object] | None:
    """A bound on lenient η over such sums; None without any token. The reliability is that of all responses, or nobody's.

    Its interval is the mean of theirs: as wide as if all arms erred alike. One response whose arm audits found unreliable makes the whole unreliable.
    """
    tokens = sums.get("tokens", 0)
    if not tokens:
        return None
    is_audited = sums["audited_tokens"] == tokens
    return {
        **{name: sums[name] / tokens for name in ("lenient_at_most", "low", "unclassified")},
        "reliability": sums["reliability"] / tokens if is_audited else None,
        "reliability_interval": [sums["reliability_low"] / tokens, sums["reliability_high"] / tokens]
        if is_audited
        else None,
        "reliable": False if sums["distrusted"] else True if sums["trusted"] == tokens else None,
        "responses": sums["responses"],
        "slack": {n.removeprefix(_SLACK): each / tokens for n, each in sums.items() if n.startswith(_SLACK)},
        "slack_j": {n.removeprefix(_SLACK_J): each for n, each in sums.items() if n.startswith(_SLACK_J)},
    }


def eta_told(found: Reading | str, reliability: Reliability = NOT_AUDITED) -> dict[str, object]:
    if isinstance(found, str):
        return {"eta": None, "eta_reason": found}
    eta = {
        "lenient_at_most": found.lenient_at_most,
        "low": found.interval[0],
        "unclassified": found.unclassified,
        "reliability": reliability.agreement,
        "reliability_interval": None if reliability.interval is None else list(reliability.interval),
        "slack": dict(found.slack),
        "spans": _spans(found.parts),
    }
    return {"eta": eta, "eta_reason": None}


def _spans(parts: Sequence[Part]) -> list[tuple[float, float, str]] | None:
    """Where in the answer its categories are, as shares of its tokens. None where that isn't known, or there are several answers."""
    if not parts or len(parts) > MAX_SPANS or any(part.weight < 1.0 for part in parts):
        return None
    return [(round(part.start, 4), round(part.end, 4), part.category) for part in parts]
