"""What the meter beside a server says of itself: joules that are nobody's, coefficients, how far η is to be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from etameter.records import Source
from etameter.timeline import NORMAL_95

from .estimates import Estimate
from .figures import known, unknown
from .rows import Figure

STAGE: Final = "meter"
_LOOK_S: Final = 5.0
_COEFFICIENTS: Final[Mapping[str, str]] = {
    "p0_w": "coefficient_idle_w",
    "c_j": "coefficient_pass_j",
    "a_j": "coefficient_prefill_j",
    "b_j": "coefficient_decode_j",
    "d_j": "coefficient_context_j",
}
_NOBODYS: Final = frozenset({"idle", "engine_overhead"})
"""Causes of joules that are accounted for, though no request pays them."""


@dataclass(frozen=True, slots=True)
class Page:
    """The metrics of one scrape: name → rows of labels and value."""

    rows: Mapping[str, list[tuple[Mapping[str, str], float]]]

    def total(self, name: str) -> float:
        return sum(value for _, value in self.rows.get(name, ()))


def parse(text: str) -> Page:
    """Raises ValueError where the text is no exposition."""
    rows: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            rows.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Page(rows)


async def scrape(meter_url: str) -> Page | None:
    """None where no meter answers."""
    timeout = aiohttp.ClientTimeout(total=_LOOK_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{meter_url}/metrics") as response:
            return parse(await response.text()) if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None


def unattributed(stage: str, before: Page | None, after: Page | None, source: Source) -> Figure:
    """Of a stage, what the meter could not account for, as a share of all."""
    metric = "unattributed_share"
    if before is None or after is None:
        return unknown(stage, metric, source, "no meter is beside the server")
    whole_j = after.total("etameter_gpu_energy_joules_total") - before.total("etameter_gpu_energy_joules_total")
    if whole_j <= 0:
        return unknown(stage, metric, source, "the meter settled nothing meanwhile")
    lost_j = _lost_j(after) - _lost_j(before)
    return known(stage, metric, source, Estimate(lost_j / whole_j, None, None, 1))


def of_meter(page: Page | None, source: Source) -> list[Figure]:
    """Coefficients with their intervals, and η's reliability: as the meter has them at the end."""
    if page is None:
        metrics = (*_COEFFICIENTS.values(), "eta_reliability")
        return [unknown(STAGE, metric, source, "no meter is beside the server") for metric in metrics]
    found = [_coefficient(page, name, metric, source) for name, metric in _COEFFICIENTS.items()]
    agreed = [
        value for labels, value in page.rows.get("etameter_eta_reliability", ()) if labels["statistic"] == "agreement"
    ]
    if not agreed:
        return [*found, unknown(STAGE, "eta_reliability", source, "no audit of η has told it")]
    return [*found, known(STAGE, "eta_reliability", source, Estimate(min(agreed), None, None, len(agreed)))]


def _coefficient(page: Page, name: str, metric: str, source: Source) -> Figure:
    """Mean of the GPUs."""
    fitted, errors, loose = (
        [
            value
            for labels, value in page.rows.get(f"etameter_cost_coefficient{what}", ())
            if labels["coefficient"] == name
        ]
        for what in ("", "_standard_error", "_unidentified")
    )
    if not fitted:
        return unknown(STAGE, metric, source, "the meter has fitted nothing yet")
    mean = sum(fitted) / len(fitted)
    note = "the load could not tell it: mostly the first guess" if any(loose) else ""
    if len(errors) < len(fitted):
        return known(STAGE, metric, source, Estimate(mean, None, None, len(fitted)), note)
    half = NORMAL_95 * sum(error**2 for error in errors) ** 0.5 / len(errors)
    return known(STAGE, metric, source, Estimate(mean, mean - half, mean + half, len(fitted)), note)


def _lost_j(page: Page) -> float:
    rows = page.rows.get("etameter_unassigned_joules_total", ())
    return sum(value for labels, value in rows if labels["cause"] not in _NOBODYS)
