"""The meter's metrics, as `catalogue` declares them.

Counters move by settled intervals only, joules and tokens together. Sums hold at every scrape::

    etameter_gpu_energy_joules_total = Σ etameter_energy_joules_total + Σ etameter_unassigned_joules_total

A label value comes from a set that no client can enlarge; anything else becomes ``other``. A gauge whose value isn't known is absent.
"""

import math
import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from etameter.claims import draft_waste_of
from etameter.costs import Costs
from etameter.export.catalogue import (
    AUDIT_ANSWERS,
    AUDIT_CORRECT,
    AUDIT_ENERGY,
    AUDITS,
    AUDITS_DONE,
    BALANCE_RESIDUAL,
    BATCH_ENERGY,
    BATCH_TOKENS,
    BATCHES,
    CATALOGUE,
    CATEGORIES,
    CAUSES,
    CLASSIFIED_ENERGY,
    CLASSIFIED_TOKENS,
    CO2E,
    COST,
    COST_COEFFICIENT,
    COST_RESIDUAL,
    COST_STANDARD_ERROR,
    COST_UNIDENTIFIED,
    COUNTER_EDGES,
    COUNTER_RESETS,
    ENERGY,
    ETA,
    ETA_BOUND_TOKENS,
    FINISH_REASONS,
    FIRST_TOKEN,
    FIRST_TOKENS,
    FOOTPRINT_FACTOR,
    GPU_ENERGY,
    HOST_BUBBLE,
    HOST_ENERGY,
    INTER_TOKEN,
    LAG,
    LAG_ERROR,
    LEDGER_DROPPED,
    LISTENERS_DROPPED,
    MISSED_EDGES,
    NEEDED_ENERGY,
    NEEDED_TOKENS,
    NEIGHBOURS,
    OTHER,
    POWER,
    READ_FAILURES,
    RELIABILITY,
    RELIABLE,
    REQUEST_ENERGY,
    REQUEST_ERROR,
    REQUEST_WH_PER_TOKEN,
    REQUESTS,
    RING_LOST,
    RING_TORN,
    SAMPLER_CPU,
    SAMPLER_DROPPED,
    SAMPLER_LATENESS,
    SAMPLER_MISSED,
    SAMPLER_POLLS,
    SENSOR_CAUSES,
    SLACK_ENERGY,
    SLACK_MARGINAL_ENERGY,
    SLACK_TOKENS,
    SOCKET_DROPPED,
    THROTTLED,
    TOKENS,
    UNASSIGNED,
    UNCLASSIFIED,
    UNLABELLED,
    UPDATE_PERIOD,
    WH_PER_TOKEN,
    WINDOW_S,
    Declaration,
)
from etameter.export.exposition import OPENMETRICS, TEXT, Histograms, Values, exemplar_of
from etameter.export.receipts import is_measured, kept_tokens
from etameter.export.traces import Window
from etameter.footprint import JOULES_PER_WH, Footprint
from etameter.host import Domain
from etameter.ledger import RequestRow
from etameter.records import Balance, Edge, Finding, ReadFailure, Source
from etameter.slack.reading import CAUSES as UNREAD_CAUSES
from etameter.slack.reading import NEEDS, Reading
from etameter.work import TERMS

POWER_EXPIRES_S = 10.0
"""Power that wasn't measured for longer is unknown."""
LENIENT_BOUND, STRICT, LENIENT = "lenient_bound", "strict", "lenient"
MAX_MODELS = 16
MAX_DEVICES = 64
MAX_GROUPS = 10
"""Pairs of model and arm that have series of their own, `other` with `other` among them."""

NO_FOOTPRINT = Footprint()

_EXEMPLAR_LABEL = "request_id"
_EXEMPLAR_ROOM = 64
"""Characters of an id; of all that an exemplar says, OpenMetrics allows 128."""
_PUBLIC_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=-]*")
_WORD = re.compile(r"[A-Za-z0-9./~_][A-Za-z0-9._:/@+~-]{0,254}")
"""A device, an engine, or a model, which may be a path."""


class _Bounded:
    """Label values that the meter itself brings, of which there may be at most `most`."""

    def __init__(self, most: int, known: Iterable[str] = ()) -> None:
        self._most = most
        self._known: set[str] = set()
        for value in known:
            self.admit(value)

    def admit(self, value: str) -> str:
        if value not in self._known and len(self._known) < self._most and _WORD.fullmatch(value):
            self._known.add(value)
        return self.label(value)

    def label(self, value: str) -> str:
        return value if value in self._known else OTHER


class Metrics:
    """All metrics of one meter, in a registry of its own. Methods may be called from any thread."""

    def __init__(
        self,
        models: Iterable[str],
        arms: Iterable[str],
        clock: Callable[[], float] = time.monotonic,
        footprint: Footprint = NO_FOOTPRINT,
    ) -> None:
        """Know `models` (served names) and `arms` (configured names) as label values; `clock` gives seconds; money and CO2 are counted by `footprint`."""
        self.together = threading.RLock()
        """Hold it while one interval settles: `settle` and its `increment`s, so that no scrape sees half of them."""
        self._models = _Bounded(MAX_MODELS, models)
        self._arms = frozenset({*arms, UNLABELLED})
        self._groups = {(OTHER, OTHER)}
        self._devices = _Bounded(MAX_DEVICES)
        self._engines = _Bounded(MAX_DEVICES)
        self._failures = _Bounded(MAX_DEVICES)
        self._clock = clock
        self._values = {each: Values(each) for each in CATALOGUE if each.type != "histogram"}
        self._histograms = {each: Histograms(each) for each in CATALOGUE if each.type == "histogram"}
        self._totals: dict[tuple[Declaration, tuple[str, ...]], float] = {}
        self._windows: dict[tuple[str, str, str, Source], Window] = {}
        """Watt hours as `amount`, and `tokens`, by the labels of WH_PER_TOKEN."""
        self._eta: dict[tuple[str, str, str, str], Window] = {}
        """Tokens that may have been required as `amount`, of `tokens`, by the labels of ETA."""
        self._power_w: dict[tuple[str, Source], tuple[float, float]] = {}
        self._footprint = footprint
        for name, factor in footprint.factors():
            self._set(FOOTPRINT_FACTOR, factor.value, name, factor.unit)

    def know_model(self, name: str) -> None:
        """Take `name` as a label value from now on; at most MAX_MODELS names are ever taken."""
        self._models.admit(name)

    def settle(self, balance: Balance, source: Source) -> None:
        """One settled interval of one device."""
        device = self._devices.admit(balance.gpu_uuid)
        unassigned_j = {
            **dict.fromkeys(sorted(CAUSES), 0.0),
            "idle": balance.idle_j,
            "engine_overhead": balance.engine_overhead_j,
            **balance.unattributed_j_by_cause,
        }
        with self.together:
            self._add(GPU_ENERGY, balance.measured_j, device, source)
            for cause, joules in unassigned_j.items():
                self._add(UNASSIGNED, joules, device, cause if cause in CAUSES else OTHER, source)
            self._add(HOST_BUBBLE, balance.host_bubble_j, device, source)
            self._add(BALANCE_RESIDUAL, abs(balance.residual_j), device, source)
            if balance.end_ns > balance.start_ns and not balance.unattributed_j_by_cause.keys() & set(SENSOR_CAUSES):
                power_w = balance.measured_j / (balance.end_ns - balance.start_ns) * 1e9
                self._power_w[device, source] = (self._clock(), power_w)
            else:
                self._power_w.pop((device, source), None)

    def increment(
        self,
        model: str,
        arm: str,
        *,
        prompt_j: float,
        output_j: float,
        prompt_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        first_tokens: int,
        batch: float,
        source: Source,
    ) -> None:
        """What one settled interval charged the requests of an arm, and the tokens that they paid for.

        `prompt_tokens` were computed, `cached_tokens` taken from the prefix cache; of the `output_tokens` (all that the
        interval brought), `first_tokens` (0 or 1 per sequence) fell out of a prefill step. `batch` is how many requests
        ran together, on the mean over its steps.
        """
        model, arm = self._group(model, arm)
        alike = str(BATCHES[max(bisect_right(BATCHES, batch) - 1, 0)])
        with self.together:
            for phase, joules in (("prompt", prompt_j), ("output", output_j)):
                self._add(ENERGY, joules, model, arm, phase, source)
                self._add_footprint(joules, model, arm, phase, source)
            self._add(TOKENS, prompt_tokens, "prompt", model, arm)
            self._add(TOKENS, cached_tokens, "cached", model, arm)
            self._add(TOKENS, output_tokens, "output", model, arm)
            self._add(FIRST_TOKENS, first_tokens, model, arm)
            self._add(BATCH_ENERGY, output_j, model, arm, alike, source)
            self._add(BATCH_TOKENS, output_tokens - first_tokens, model, arm, alike)
            now_ns = int(self._clock() * 1e9)
            for kind, joules, tokens in (
                ("prompt", prompt_j, prompt_tokens),
                ("output", output_j, output_tokens - first_tokens),
            ):
                window = self._windows.setdefault((kind, model, arm, source), Window(WINDOW_S))
                window.add(now_ns, {"amount": joules / JOULES_PER_WH, "tokens": tokens})

    def finished(self, row: RequestRow, public_id: str | None) -> None:
        """A request has ended, and its energy is settled.

        `public_id` is the id that the client knows, never the receipt id, which opens the receipt.
        """
        record, energy, kept = row.record, row.energy, kept_tokens(row)
        model, arm = self._group(record.model, record.arm)
        reason = record.finish_reason if record.finish_reason in FINISH_REASONS else OTHER
        with self.together:
            self._add(REQUESTS, 1, model, arm, reason)
            if record.first_token_ns is not None:
                self._observe(FIRST_TOKEN, (record.first_token_ns - record.arrival_ns) / 1e9, model)
                if record.finished_ns is not None and kept:
                    spent_s = (record.finished_ns - record.first_token_ns) / 1e9
                    self._observe(INTER_TOKEN, spent_s / kept, model)
            if is_measured(row):
                exemplar = _exemplar(public_id, energy.energy_j)
                self._observe(REQUEST_ENERGY, energy.energy_j, model, arm, energy.source, exemplar=exemplar)
                if kept:
                    wh_per_token = energy.output_j / kept / JOULES_PER_WH
                    self._observe(REQUEST_WH_PER_TOKEN, wh_per_token, model, arm, energy.source)
                if energy.energy_j > 0:
                    self._observe(REQUEST_ERROR, energy.error_j / energy.energy_j, model, energy.source)

    def classified(self, row: RequestRow, reading: Reading) -> None:
        """A settled request of which it is known how much was slack."""
        model, arm = self._group(row.record.model, row.record.arm)
        tokens = row.record.output_tokens
        with self.together:
            self._add(CLASSIFIED_ENERGY, row.energy.output_j, model, arm, row.energy.source)
            self._add(CLASSIFIED_TOKENS, tokens, model, arm)
            self._add(ETA_BOUND_TOKENS, reading.lenient_at_most * tokens, model, arm)
            for category in CATEGORIES:
                self._add_slack(category, model, arm, row.energy.source)
            for need in (name for name in NEEDS if name in reading.shares):
                spent, _ = reading.spent_on(need)
                joules = spent * (row.energy.output_j - draft_waste_of(row))
                self._add(NEEDED_ENERGY, joules, need, model, arm, row.energy.source)
                self._add(NEEDED_TOKENS, reading.shares[need] * tokens, need, model, arm)
            told = {LENIENT_BOUND: reading.lenient_at_most, STRICT: reading.strict, LENIENT: reading.lenient}
            for view, eta in told.items():
                if eta is not None:
                    window = self._eta.setdefault((view, reading.method, model, arm), Window(WINDOW_S))
                    window.add(int(self._clock() * 1e9), {"amount": eta * tokens, "tokens": tokens})

    def slack(self, row: RequestRow, category: str, tokens: float, joules: float, marginal_joules: float) -> None:
        """So much of a settled request's output was slack, and is counted in no other category."""
        model, arm = self._group(row.record.model, row.record.arm)
        with self.together:
            self._add_slack(category, model, arm, row.energy.source, tokens, joules, marginal_joules)

    def unclassified(self, cause: str) -> None:
        """A response could not be classified although its texts were told."""
        with self.together:
            self._add(UNCLASSIFIED, 1, cause if cause in UNREAD_CAUSES else OTHER)

    def audited(
        self,
        model: str,
        arm: str,
        *,
        kind: Literal["deep", "task"],
        outcome: Literal["agreed", "judged", "correct", "wrong", "failed"],
        energy_j: float,
        source: Source,
    ) -> None:
        """An audit of `arm` was made and took `energy_j`, which is settled."""
        assert outcome in AUDITS[kind], f"{outcome} can't come of {kind}"
        of = *self._group(model, arm), source
        with self.together:
            for each in AUDITS[kind]:
                self._add(AUDITS_DONE, each == outcome, kind, each, *of)
            self._add(AUDIT_ENERGY, energy_j, kind, *of)
            if kind == "task":
                self._add(AUDIT_ANSWERS, outcome != "failed", *of)
                self._add(AUDIT_CORRECT, outcome == "correct", *of)

    def reliability(
        self,
        model: str,
        arm: str,
        tier: Literal["fast", "deep"],
        *,
        agreement: float | None,
        bias: float | None,
        slope: float | None,
    ) -> None:
        """How far a tier's η of an arm agrees with what audits found. None is what isn't known."""
        of = self._group(model, arm)
        with self.together:
            for statistic, value in (("agreement", agreement), ("bias", bias), ("slope", slope)):
                self._set(RELIABILITY, value, tier, statistic, *of)

    def trusted(self, model: str, arm: str, *, reliable: bool | None) -> None:
        """Whether η of an arm may be published without a warning. None where it isn't known."""
        self._set(RELIABLE, reliable, *self._group(model, arm))

    def host(self, energy_j: Mapping[Domain, float], *, paid: bool) -> None:
        """What the host spent while there were requests to pay it, or while there were none."""
        for domain, joules in energy_j.items():
            self._add(HOST_ENERGY, joules, domain, "requests" if paid else "nobody", "measured")

    def found(self, items: Iterable[Finding]) -> None:
        """What the sampler found."""
        with self.together:
            for item in items:
                device = self._devices.admit(item.gpu_uuid)
                if isinstance(item, Edge):
                    self._add(COUNTER_EDGES, 1, device)
                elif isinstance(item, ReadFailure):
                    self._add(READ_FAILURES, 1, device, self._failures.admit(item.cause))

    def sampler(self, *, polls: int, missed_polls: int, lateness_ns: int, cost_ns: int, dropped: int) -> None:
        """The sampler's own totals so far."""
        self._advance(SAMPLER_POLLS, polls)
        self._advance(SAMPLER_MISSED, missed_polls)
        self._advance(SAMPLER_LATENESS, lateness_ns / 1e9)
        self._advance(SAMPLER_CPU, cost_ns / 1e9)
        self._advance(SAMPLER_DROPPED, dropped)

    def counter(self, gpu_uuid: str, *, resets: int, period_ns: int | None) -> None:
        """What the timeline knows of a device's counter: resets so far, and its update period."""
        device = self._devices.admit(gpu_uuid)
        self._advance(COUNTER_RESETS, resets, device)
        self._set(UPDATE_PERIOD, None if period_ns is None else period_ns / 1e9, device)

    def watched(self, gpu_uuid: str, *, missed_edges: int, throttled: bool | None, neighbours: int | None) -> None:
        """What the sampler knows of a device: edges missed so far, if it is held back, and how many processes there aren't the engine's."""
        device = self._devices.admit(gpu_uuid)
        self._add(COUNTER_EDGES, 0, device)
        self._advance(MISSED_EDGES, missed_edges, device)
        self._set(THROTTLED, throttled, device)
        self._set(NEIGHBOURS, neighbours, device)

    def fitted(self, gpu_uuid: str, costs: Costs) -> None:
        """What a step costs on a device, and how well that is known."""
        device = self._devices.admit(gpu_uuid)
        for name, value, error in zip(TERMS, costs.energy.tolist(), costs.standard_errors.tolist(), strict=True):
            self._set(COST_COEFFICIENT, value, device, name)
            self._set(COST_STANDARD_ERROR, error, device, name)
            self._set(COST_UNIDENTIFIED, float(name in costs.unidentified), device, name)
        self._set(COST_RESIDUAL, costs.residual, device)
        self._set(LAG, costs.lag_ns / 1e9, device)
        self._set(LAG_ERROR, costs.lag_error_ns / 1e9, device)

    def ring(self, engine: str, *, lost_records: int, torn_records: int) -> None:
        """What the reader of an engine's ring has missed so far."""
        label = self._engines.admit(engine)
        self._advance(RING_LOST, lost_records, label)
        self._advance(RING_TORN, torn_records, label)

    def socket(self, *, dropped: int) -> None:
        """Messages dropped so far."""
        self._advance(SOCKET_DROPPED, dropped)

    def listeners(self, *, dropped: int) -> None:
        """Listeners to `/events` that were hung up on so far."""
        self._advance(LISTENERS_DROPPED, dropped)

    def backlog(self, *, dropped: int) -> None:
        """Findings so far that the ledger never got."""
        self._advance(LEDGER_DROPPED, dropped)

    def render(self, accept_header: str | None) -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics where it is accepted, else Prometheus text 0.0.4."""
        accepted = {part.partition(";")[0].strip().lower() for part in (accept_header or "").split(",")}
        with self.together:
            self._refresh()
            openmetrics = "application/openmetrics-text" in accepted
            families: Mapping[Declaration, Values | Histograms] = {**self._values, **self._histograms}
            lines = [line for each in CATALOGUE for line in families[each].text(openmetrics=openmetrics)]
        body = "".join(lines).encode()
        return (body + b"# EOF\n", OPENMETRICS) if openmetrics else (body, TEXT)

    def _group(self, model: str, arm: str) -> tuple[str, str]:
        """Label values. Served models and configured arms are few, but their pairs may be many: late ones are `other` in both."""
        group = self._models.label(model), arm if arm in self._arms else OTHER
        with self.together:
            if group not in self._groups and len(self._groups) == MAX_GROUPS:
                return OTHER, OTHER
            self._groups.add(group)
        return group

    def _add(self, declaration: Declaration, amount: float, *labels: str) -> None:
        """A series exists from its first zero on, so that a rate sees its first step."""
        with self.together:  # a rounding error below zero is no reason to lose the interval
            self._values[declaration].add(max(amount, 0.0), *labels)

    def _add_footprint(self, joules: float, *labels: str) -> None:
        cost, grams, currency = self._footprint.cost(joules), self._footprint.co2e_g(joules), self._footprint.currency
        if cost is not None and currency is not None:
            self._add(COST, cost, currency, *labels)
        if grams is not None:
            self._add(CO2E, grams, *labels)

    def _observe(self, declaration: Declaration, amount: float, *labels: str, exemplar: str = "") -> None:
        with self.together:
            self._histograms[declaration].observe(max(amount, 0.0), *labels, exemplar=exemplar)

    def _add_slack(
        self,
        category: str,
        model: str,
        arm: str,
        source: Source,
        tokens: float = 0.0,
        joules: float = 0.0,
        marginal_joules: float = 0.0,
    ) -> None:
        self._add(SLACK_ENERGY, joules, category, model, arm, source)
        self._add(SLACK_MARGINAL_ENERGY, marginal_joules, category, model, arm, source)
        self._add(SLACK_TOKENS, tokens, category, model, arm)

    def _advance(self, declaration: Declaration, total: float, *labels: str) -> None:
        """Bring a counter to `total`, which whoever counts keeps; a lower total than before means that it began anew."""
        with self.together:
            before = self._totals.get((declaration, labels), 0.0)
            self._totals[declaration, labels] = total
            self._add(declaration, total - before if total >= before else total, *labels)

    def _set(self, declaration: Declaration, value: float | None, *labels: str) -> None:
        with self.together:
            if value is None or not math.isfinite(value):
                self._values[declaration].remove(*labels)
            else:
                self._values[declaration].set(float(value), *labels)

    def _refresh(self) -> None:
        now = self._clock()
        self._values[POWER].clear()
        for (device, source), (measured_at, power_w) in self._power_w.items():
            if now - measured_at <= POWER_EXPIRES_S:
                self._set(POWER, power_w, device, source)
        self._values[WH_PER_TOKEN].clear()
        for labels, window in self._windows.items():
            self._set(WH_PER_TOKEN, _per_token(window, now), *labels)
        self._values[ETA].clear()
        for of, bounds in self._eta.items():
            self._set(ETA, _per_token(bounds, now), *of)


def _per_token(window: Window, now_s: float) -> float | None:
    """None where there was no token."""
    sums = window.sums(int(now_s * 1e9))
    return sums["amount"] / sums["tokens"] if sums.get("tokens") else None


def _exemplar(public_id: str | None, value: float) -> str:
    """Nothing where a client made the id up of characters that are not those of ids."""
    if public_id is None or not _PUBLIC_ID.fullmatch(public_id):
        return ""
    return exemplar_of(_EXEMPLAR_LABEL, public_id[:_EXEMPLAR_ROOM], value, time.time())
