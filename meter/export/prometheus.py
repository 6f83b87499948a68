"""The meter's metrics, as `catalogue` declares them.

Counters move by settled intervals only, joules and tokens together. Sums hold at every scrape::

    etameter_gpu_energy_joules_total = Σ etameter_energy_joules_total + Σ etameter_unassigned_joules_total

A label value comes from a set that no client can enlarge; anything else becomes ``other``. A gauge whose value isn't known is absent.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping

from etameter.budgets import Standing
from etameter.claims import draft_waste_of
from etameter.costs import Costs
from etameter.export.bounded import Bounded, Groups
from etameter.export.catalogue import budgets, devices, energy, health, requests, slack
from etameter.export.catalogue.declaration import Declaration
from etameter.export.catalogue.labels import (
    AUDITS,
    BATCHES,
    CATEGORIES,
    CAUSES,
    DROPPED,
    FINISH_REASONS,
    OTHER,
    SENSOR_CAUSES,
    AuditKind,
    Outcome,
    Tier,
    View,
)
from etameter.export.exposition import OPENMETRICS, TEXT, exemplar_of
from etameter.export.public_ids import printable
from etameter.export.receipts import is_measured, kept_tokens
from etameter.export.registry import Registry
from etameter.export.traces import Window
from etameter.footprint import JOULES_PER_WH, Footprint
from etameter.host import Domain
from etameter.ledger import RequestRow
from etameter.records import Balance, Edge, Finding, ReadFailure, Source
from etameter.slack.reading import CAUSES as UNREAD_CAUSES
from etameter.slack.reading import DEEP, NEEDS, Reading
from etameter.slack.reliability import Mean, Trust
from etameter.work import TERMS

POWER_EXPIRES_S = 10.0
"""Power that wasn't measured for longer is unknown."""
LENIENT_BOUND, STRICT, LENIENT = "lenient_bound", "strict", "lenient"
MAX_DEVICES = 64
NO_FOOTPRINT = Footprint()

EXEMPLAR_LABEL = "request_id"


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
        self._registry = Registry()
        self.together = self._registry.together
        """Hold it while one interval settles: `settle` and its `increment`s, so that no scrape sees half of them."""
        self._groups = Groups(models, arms)
        self._devices = Bounded(MAX_DEVICES)
        self._engines = Bounded(MAX_DEVICES)
        self._nodes = Bounded(MAX_DEVICES)
        self._failures = Bounded(MAX_DEVICES)
        self._clock = clock
        self._windows: dict[tuple[str, str, str, Source], Window] = {}
        """Watt hours as `amount`, and `tokens`, by the labels of WH_PER_TOKEN."""
        self._sampled: dict[tuple[str, str, str, str], Mean] = {}
        """η of the responses that were judged, by the same labels."""
        self._eta: dict[tuple[str, str, str, str], Window] = {}
        """Tokens that may have been required as `amount`, of `tokens`, by the labels of ETA."""
        self._power_w: dict[tuple[str, Source], tuple[float, float]] = {}
        self._footprint = footprint
        for name, factor in footprint.factors():
            self._registry.set(energy.FOOTPRINT_FACTOR, factor.value, name, factor.unit)

    def know_model(self, name: str) -> None:
        """Take `name` as a label value from now on, where there is room for one more."""
        with self.together:
            self._groups.know_model(name)

    def built(self, version: str) -> None:
        """Which etameter this is."""
        self._registry.set(health.BUILD_INFO, 1, version)

    def device(self, gpu_uuid: str, board: str, counter: str, machine: str = "") -> None:
        """What a device calls itself, what counts its joules, and in which other machine it is."""
        self._registry.set(devices.GPU_INFO, 1, self._devices.admit(gpu_uuid), board, counter, machine)

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
            self._registry.add(energy.GPU_ENERGY, balance.measured_j, device, source)
            for cause, joules in unassigned_j.items():
                self._registry.add(energy.UNASSIGNED, joules, device, cause if cause in CAUSES else OTHER, source)
            self._registry.add(energy.HOST_BUBBLE, balance.host_bubble_j, device, source)
            self._registry.add(energy.BALANCE_RESIDUAL, abs(balance.residual_j), device, source)
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
                self._registry.add(energy.ENERGY, joules, model, arm, phase, source)
                self._add_footprint(joules, model, arm, phase, source)
            self._registry.add(requests.TOKENS, prompt_tokens, "prompt", model, arm)
            self._registry.add(requests.TOKENS, cached_tokens, "cached", model, arm)
            self._registry.add(requests.TOKENS, output_tokens, "output", model, arm)
            self._registry.add(requests.FIRST_TOKENS, first_tokens, model, arm)
            self._registry.add(requests.BATCH_ENERGY, output_j, model, arm, alike, source)
            self._registry.add(requests.BATCH_TOKENS, output_tokens - first_tokens, model, arm, alike)
            now_ns = int(self._clock() * 1e9)
            for kind, joules, tokens in (
                ("prompt", prompt_j, prompt_tokens),
                ("output", output_j, output_tokens - first_tokens),
            ):
                window = self._windows.setdefault((kind, model, arm, source), Window(requests.WINDOW_S))
                window.add(now_ns, {"amount": joules / JOULES_PER_WH, "tokens": tokens})

    def finished(self, row: RequestRow, public_id: str | None) -> None:
        """A request has ended, and its energy is settled.

        `public_id` is the id that the client knows, never the receipt id, which opens the receipt.
        """
        record, spent, kept = row.record, row.energy, kept_tokens(row)
        model, arm = self._group(record.model, record.arm)
        reason = record.finish_reason if record.finish_reason in FINISH_REASONS else OTHER
        with self.together:
            self._registry.add(requests.REQUESTS, 1, model, arm, reason)
            if record.first_token_ns is not None:
                self._registry.observe(requests.FIRST_TOKEN, (record.first_token_ns - record.arrival_ns) / 1e9, model)
                if record.finished_ns is not None and kept:
                    between_s = (record.finished_ns - record.first_token_ns) / 1e9
                    self._registry.observe(requests.INTER_TOKEN, between_s / kept, model)
            if is_measured(row):
                exemplar = _exemplar(public_id, spent.energy_j)
                self._registry.observe(
                    requests.REQUEST_ENERGY, spent.energy_j, model, arm, spent.source, exemplar=exemplar
                )
                if kept:
                    wh_per_token = spent.output_j / kept / JOULES_PER_WH
                    self._registry.observe(requests.REQUEST_WH_PER_TOKEN, wh_per_token, model, spent.source)
                if spent.energy_j > 0:
                    self._registry.observe(requests.REQUEST_ERROR, spent.error_j / spent.energy_j, model, spent.source)

    def classified(self, row: RequestRow, reading: Reading) -> None:
        """A settled request of which it is known how much was slack. What a judge found stands beside what the fast method has, not in its sums."""
        model, arm = self._group(row.record.model, row.record.arm)
        tokens = row.record.output_tokens
        with self.together:
            if reading.method == DEEP:
                self._add_needs(row, reading, model, arm)
            else:
                self._registry.add(slack.CLASSIFIED_ENERGY, row.energy.output_j, model, arm, row.energy.source)
                self._registry.add(slack.CLASSIFIED_TOKENS, tokens, model, arm)
                self._registry.add(slack.ETA_BOUND_TOKENS, reading.lenient_at_most * tokens, model, arm)
                for category in CATEGORIES:
                    self._add_slack(category, model, arm, row.energy.source)
            told = {LENIENT_BOUND: reading.lenient_at_most, STRICT: reading.strict, LENIENT: reading.lenient}
            for view, eta in told.items():
                if eta is not None and reading.method != DEEP:  # of which too few are judged for a window
                    window = self._eta.setdefault((view, reading.method, model, arm), Window(requests.WINDOW_S))
                    window.add(int(self._clock() * 1e9), {"amount": eta * tokens, "tokens": tokens})

    def slack(self, row: RequestRow, category: str, tokens: float, joules: float, marginal_joules: float) -> None:
        """So much of a settled request's output was slack, and is counted in no other category."""
        model, arm = self._group(row.record.model, row.record.arm)
        with self.together:
            self._add_slack(category, model, arm, row.energy.source, tokens, joules, marginal_joules)

    def unclassified(self, cause: str) -> None:
        """A response could not be classified although its texts were told."""
        with self.together:
            self._registry.add(slack.UNCLASSIFIED, 1, cause if cause in UNREAD_CAUSES else OTHER)

    def audited(
        self,
        model: str,
        arm: str,
        *,
        kind: AuditKind,
        outcome: Outcome,
        energy_j: float | None,
        source: Source,
    ) -> None:
        """An audit of `arm` was made and took `energy_j`, which is settled, or isn't known: another server judged, or the counter told nothing.

        Answers count with their joules, or not at all.
        """
        assert outcome in AUDITS[kind], f"{outcome} can't come of {kind}"
        of = *self._group(model, arm), source
        with self.together:
            for each in AUDITS[kind]:
                self._registry.add(slack.AUDITS_DONE, each == outcome, kind, each, *of)
            if energy_j is None:
                return
            self._registry.add(slack.AUDIT_ENERGY, energy_j, kind, *of)
            if kind == "task":
                self._registry.add(slack.AUDIT_ANSWERS, outcome != "failed", *of)
                self._registry.add(slack.AUDIT_CORRECT, outcome == "correct", *of)

    def audit_dropped(self, cause: str) -> None:
        """A response that was sampled will not be judged."""
        self._registry.add(slack.AUDITS_DROPPED, 1, cause if cause in DROPPED else OTHER)

    def reliability(self, model: str, arm: str, tier: Tier, trust: Trust) -> None:
        """How far a tier's η of an arm agrees with what audits found."""
        of = self._group(model, arm)
        with self.together:
            for statistic in ("agreement", "agreement_low", "agreement_high", "bias", "slope"):
                self._registry.set(slack.RELIABILITY, getattr(trust, statistic), tier, statistic, *of)

    def sampled(self, model: str, arm: str, view: View, eta: Mean) -> None:
        """What judges found in sampled responses of an arm."""
        of = view, DEEP, *self._group(model, arm)
        with self.together:
            self._sampled[of] = eta
            self._registry.set(slack.ETA_HALF_WIDTH, eta.half_width, *of)

    def trusted(self, model: str, arm: str, *, reliable: bool | None) -> None:
        """Whether η of an arm may be published without a warning. None where it isn't known."""
        self._registry.set(slack.RELIABLE, reliable, *self._group(model, arm))

    def budgets(self, standings: Mapping[str, Standing]) -> None:
        """How all budgets stand in their present windows."""
        with self.together:
            for declaration in (budgets.USED, budgets.SHARE):
                self._registry.clear(declaration)  # of another source
            for name, each in standings.items():
                of = name, each.window
                self._registry.set(budgets.USED, each.used_j, *of, each.source)
                self._registry.set(budgets.LIMIT, each.limit_j, *of)
                for bound, joules in (("least", each.least_j), ("known", each.used_j), ("most", each.most_j)):
                    self._registry.set(budgets.SHARE, joules / each.limit_j, *of, bound, each.source)

    def host(self, energy_j: Mapping[Domain, float], *, paid: bool) -> None:
        """What the host spent while there were requests to pay it, or while there were none."""
        for domain, joules in energy_j.items():
            self._registry.add(energy.HOST_ENERGY, joules, domain, "requests" if paid else "nobody", "measured")

    def found(self, items: Iterable[Finding]) -> None:
        """What the sampler found."""
        with self.together:
            for item in items:
                device = self._devices.admit(item.gpu_uuid)
                if isinstance(item, Edge):
                    self._registry.add(devices.COUNTER_EDGES, 1, device)
                elif isinstance(item, ReadFailure):
                    self._registry.add(devices.READ_FAILURES, 1, device, self._failures.admit(item.cause))

    def sampler(self, *, polls: int, missed_polls: int, lateness_ns: int, cost_ns: int, dropped: int) -> None:
        """The sampler's own totals so far."""
        self._registry.advance(health.SAMPLER_POLLS, polls)
        self._registry.advance(health.SAMPLER_MISSED, missed_polls)
        self._registry.advance(health.SAMPLER_LATENESS, lateness_ns / 1e9)
        self._registry.advance(health.SAMPLER_CPU, cost_ns / 1e9)
        self._registry.advance(health.SAMPLER_DROPPED, dropped)

    def node(self, name: str, *, error_ns: float) -> None:
        """Another machine: how far its clock may be off, NaN while nothing is heard of it."""
        node = self._nodes.admit(name)
        self._registry.set(devices.NODE_UP, 0 if math.isnan(error_ns) else 1, node)
        self._registry.set(devices.NODE_CLOCK_ERROR, error_ns / 1e9, node)

    def counter(self, gpu_uuid: str, *, resets: int, period_ns: int | None) -> None:
        """What the timeline knows of a device's counter: resets so far, and its update period."""
        device = self._devices.admit(gpu_uuid)
        self._registry.advance(devices.COUNTER_RESETS, resets, device)
        self._registry.set(devices.UPDATE_PERIOD, None if period_ns is None else period_ns / 1e9, device)

    def watched(self, gpu_uuid: str, *, missed_edges: int, throttled: bool | None, neighbours: int | None) -> None:
        """What the sampler knows of a device: edges missed so far, if it is held back, and how many processes there aren't the engine's."""
        device = self._devices.admit(gpu_uuid)
        self._registry.add(devices.COUNTER_EDGES, 0, device)
        self._registry.advance(devices.MISSED_EDGES, missed_edges, device)
        self._registry.set(devices.THROTTLED, throttled, device)
        self._registry.set(devices.NEIGHBOURS, neighbours, device)

    def fitted(self, gpu_uuid: str, costs: Costs) -> None:
        """What a step costs on a device, and how well that is known."""
        device = self._devices.admit(gpu_uuid)
        for name, value, error in zip(TERMS, costs.energy.tolist(), costs.standard_errors.tolist(), strict=True):
            self._registry.set(devices.COST_COEFFICIENT, value, device, name)
            self._registry.set(devices.COST_STANDARD_ERROR, error, device, name)
            self._registry.set(devices.COST_UNIDENTIFIED, True if name in costs.unidentified else None, device, name)
        self._registry.set(devices.COST_RESIDUAL, costs.residual, device)
        self._registry.set(devices.LAG, costs.lag_ns / 1e9, device)
        self._registry.set(devices.LAG_ERROR, costs.lag_error_ns / 1e9, device)

    def ring(self, engine: str, *, lost_records: int, torn_records: int) -> None:
        """What the reader of an engine's ring has missed so far."""
        label = self._engines.admit(engine)
        self._registry.advance(health.RING_LOST, lost_records, label)
        self._registry.advance(health.RING_TORN, torn_records, label)

    def socket(self, *, dropped: int) -> None:
        """Messages dropped so far."""
        self._registry.advance(health.SOCKET_DROPPED, dropped)

    def listeners(self, *, dropped: int) -> None:
        """Listeners to `/events` that were hung up on so far."""
        self._registry.advance(health.LISTENERS_DROPPED, dropped)

    def backlog(self, *, waiting: int, dropped: int) -> None:
        """Batches that wait for the ledger, and findings so far that it never got."""
        self._registry.set(health.LEDGER_WAITING, waiting)
        self._registry.advance(health.LEDGER_DROPPED, dropped)

    def texts(self, *, dropped: int) -> None:
        """Responses so far whose texts should have been kept."""
        self._registry.advance(health.TEXTS_DROPPED, dropped)

    def exports(self, outcomes: Mapping[str, int]) -> None:
        """Pushes over OTLP so far, by what became of them."""
        for outcome, count in outcomes.items():
            self._registry.advance(health.OTLP_EXPORTS, count, outcome)

    def counters(self, declarations: Iterable[Declaration]) -> dict[Declaration, dict[tuple[str, ...], float]]:
        """Totals of counters by their labels' values, all of one instant."""
        return self._registry.values(declarations)

    def render(self, accept_header: str | None) -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics where it is accepted, else Prometheus text 0.0.4."""
        accepted = {part.partition(";")[0].strip().lower() for part in (accept_header or "").split(",")}
        with self.together:
            self._refresh()
            openmetrics = "application/openmetrics-text" in accepted
            body = self._registry.text(openmetrics=openmetrics).encode()
        return (body + b"# EOF\n", OPENMETRICS) if openmetrics else (body, TEXT)

    def _group(self, model: str, arm: str) -> tuple[str, str]:
        with self.together:
            return self._groups.labels(model, arm)

    def _add_footprint(self, joules: float, *labels: str) -> None:
        cost, grams, currency = self._footprint.cost(joules), self._footprint.co2e_g(joules), self._footprint.currency
        if cost is not None and currency is not None:
            self._registry.add(energy.COST, cost, currency, *labels)
        if grams is not None:
            self._registry.add(energy.CO2E, grams, *labels)

    def _add_needs(self, row: RequestRow, reading: Reading, model: str, arm: str) -> None:
        """What a judge found, so that it sums to the whole of the output, less rejected drafts."""
        tokens = {need: reading.shares.get(need, 0.0) for need in NEEDS}
        joules = {need: reading.spent_on(need)[0] if need in reading.shares else 0.0 for need in NEEDS}
        tokens["slack"] = math.fsum(reading.slack.values())
        joules["slack"] = math.fsum(reading.spent_on(category)[0] for category in reading.slack)
        for shares in (tokens, joules):
            shares["unclassified"] = 1.0 - math.fsum(shares.values())
        output_j = row.energy.output_j - draft_waste_of(row)
        for need, share in tokens.items():
            self._registry.add(slack.NEEDED_TOKENS, share * row.record.output_tokens, need, model, arm)
            self._registry.add(slack.NEEDED_ENERGY, joules[need] * output_j, need, model, arm, row.energy.source)

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
        self._registry.add(slack.SLACK_ENERGY, joules, category, model, arm, source)
        self._registry.add(slack.SLACK_MARGINAL_ENERGY, marginal_joules, model, arm, source)
        self._registry.add(slack.SLACK_TOKENS, tokens, model, arm)

    def _refresh(self) -> None:
        now = self._clock()
        self._registry.clear(energy.POWER)
        for (device, source), (measured_at, power_w) in self._power_w.items():
            if now - measured_at <= POWER_EXPIRES_S:
                self._registry.set(energy.POWER, power_w, device, source)
        self._registry.clear(requests.WH_PER_TOKEN)
        for labels, window in self._windows.items():
            self._registry.set(requests.WH_PER_TOKEN, _per_token(window, now), *labels)
        self._registry.clear(slack.ETA)
        for of, bounds in self._eta.items():
            self._registry.set(slack.ETA, _per_token(bounds, now), *of)
        for of, sampled in self._sampled.items():
            self._registry.set(slack.ETA, sampled.eta, *of)


def _per_token(window: Window, now_s: float) -> float | None:
    """None where there was no token."""
    sums = window.sums(int(now_s * 1e9))
    return sums["amount"] / sums["tokens"] if sums.get("tokens") else None


def _exemplar(public_id: str | None, value: float) -> str:
    name = printable(public_id)
    return "" if name is None else exemplar_of(EXEMPLAR_LABEL, name, value, time.time())
