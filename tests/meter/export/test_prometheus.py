"""The exposition, byte by byte; its sums; and what hostile labels can't do to it."""

import math
import shutil
import subprocess
import threading
import tracemalloc
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from etameter.budgets import Standing
from etameter.costs import Costs
from etameter.export.bounded import MAX_GROUPS
from etameter.export.catalogue import CATALOGUE
from etameter.export.catalogue.labels import AUDITS, BATCHES, CAUSES, LABELS, Outcome
from etameter.export.prometheus import Metrics
from etameter.footprint import Factor, Footprint
from etameter.ledger import RequestRow
from etameter.records import Balance, Edge, ReadFailure, RequestEnergy, RequestRecord, Source
from etameter.slack.reading import Reading
from etameter.slack.reliability import Mean, Trust
from etameter.work import TERMS

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).with_name("exposition.txt")
OPENMETRICS = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"
GPU = "GPU-5e1f6a0c-0000-0000-0000-000000000001"


class _Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def _balance(measured_j: float = 10.0, **changes: object) -> Balance:
    fields: dict[str, object] = {
        "gpu_uuid": GPU,
        "start_ns": 0,
        "end_ns": 100_000_000,
        "measured_j": measured_j,
        "attributed_j": 7.0,
        "idle_j": 2.0,
        "engine_overhead_j": 0.5,
        "unattributed_j_by_cause": {"model_residual": measured_j - 9.5},
        "host_bubble_j": 0.25,
    }
    return Balance(**{**fields, **changes})  # type: ignore[arg-type]


def _record(model: str = "m", arm: str = "entrace", reason: str | None = "stop") -> RequestRecord:
    return RequestRecord("id", "0" * 32, model, arm, 0, 200_000_000, 260_000_000, 10, 5, 3, reason)


def _energy(joules: float = 7.0, source: Source = "simulated") -> RequestEnergy:
    return RequestEnergy("id", joules - 1.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.1, True, "method", source)


def _row(record: RequestRecord | None = None, energy: RequestEnergy | None = None) -> RequestRow:
    return RequestRow("engine-0", 5, 0, record or _record(), energy or _energy(), 10, 2)


def _charge(
    metrics: Metrics, model: str = "m", arm: str = "entrace", source: Source = "simulated", batch: float = 5.6
) -> None:
    metrics.increment(
        model,
        arm,
        prompt_j=3.0,
        output_j=4.0,
        prompt_tokens=10,
        cached_tokens=5,
        output_tokens=3,
        first_tokens=1,
        batch=batch,
        source=source,
    )


FOOTPRINT = Footprint(
    pue=Factor(1.25, "J/J", "a test", None),
    price=Factor(0.36, "EUR/kWh", "a test", 2024),
    intensity=Factor(720.0, "g/kWh", "a test", 2024),
)
"""A joule costs 0.125 µEUR and takes 0.25 mg."""


def _filled(clock: _Clock) -> Metrics:
    metrics = Metrics(["m"], ["entrace"], clock, FOOTPRINT)
    metrics.built("0.1.0")
    metrics.device(GPU, "NVIDIA H100 80GB HBM3", "simulated")
    with metrics.together:
        metrics.settle(_balance(), "simulated")
        _charge(metrics)
    metrics.finished(_row(), "chatcmpl-7f")
    metrics.host({"package": 80.0, "dram": 8.0}, paid=True)
    metrics.host({"package": 3.0}, paid=False)
    metrics.sampler(polls=2000, missed_polls=3, lateness_ns=40_000_000, cost_ns=7_000_000, dropped=0)
    metrics.watched(GPU, missed_edges=6, throttled=True, neighbours=1)
    metrics.counter(GPU, resets=1, period_ns=100_000_000)
    metrics.found([Edge(GPU, 5, 1, 10), Edge(GPU, 9, 1, 20), ReadFailure(GPU, 11, "no_permission")])
    energy = np.array([122.8, 1.94, 0.0137, 0.0, 0.0251, 3.4e-05, 0.0, 0.0, 0.0])
    covariance = np.diag(np.array([2.5, 0.0625, 0.001, 1e-08, 0.002, 1e-06, 0.0, 0.0, 0.0]) ** 2)
    fit = Costs(energy, covariance, np.zeros((2, 9)), 0.04, 300, 21_000_000, 2_000_000, ("a2_j", "d_j"), 0.0185)
    metrics.fitted(GPU, fit)
    metrics.node("10.0.0.2:9431", error_ns=250_000)
    metrics.ring("engine-0", lost_records=4, torn_records=1)
    metrics.socket(dropped=2)
    metrics.backlog(waiting=2, dropped=1)
    metrics.texts(dropped=3)
    reading = Reading("0" * 32, 0.75, (0.5, 0.75), 0.0, "fast", None, {"preamble": 0.25, "unspecified": 0.5})
    metrics.classified(_row(), reading)
    needed = {"required": 0.5, "optional": 0.25}
    spent = {"required": (0.4, 0.4), "optional": (0.3, 0.3)}
    judged = Reading("0" * 32, 0.75, (0.6, 0.8), 0.0, "deep", None, needed, "tokens", 0.5, 0.75, spent)
    metrics.classified(_row(), judged)
    metrics.slack(_row(), "preamble", 1.25, 0.5, 0.125)
    metrics.slack(_row(), "truncated", 2.5, 1.0, 0.25)
    metrics.unclassified("too_long")
    metrics.audited("m", "entrace", kind="deep", outcome="agreed", energy_j=2.0, source="simulated")
    metrics.audited("m", "entrace", kind="task", outcome="correct", energy_j=1.5, source="simulated")
    metrics.reliability("m", "entrace", "fast", Trust(30, 0.75, -0.125, None))
    metrics.sampled("m", "entrace", "strict", Mean(0.5, 0.25, 12))
    metrics.audit_dropped("full")
    metrics.trusted("m", "entrace", reliable=True)
    metrics.budgets({"team": Standing("day", 0, 100.0, 90.0, 10.0, 20.0, "simulated")})
    metrics.exports({"taken": 9, "lost": 2, "skipped": 1})
    return metrics


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


def _openmetrics(body: bytes) -> list[Metric]:
    return list(openmetrics_families(body.decode()))  # type: ignore[no-untyped-call]


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, _ = metrics.render(None)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(body.decode())
        for sample in family.samples
    }


def _value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return _samples(metrics).get((name, tuple(sorted(labels.items()))))


def test_exposition_is_as_recorded(clock: _Clock) -> None:
    body, content_type = _filled(clock).render(None)
    assert body.decode() == GOLDEN.read_text()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"


def test_every_declared_metric_is_exposed_with_its_declared_labels(clock: _Clock) -> None:
    body, _ = _filled(clock).render(None)
    labels_by_name: dict[str, set[str]] = defaultdict(set)
    for family in parse_text(body.decode()):
        for sample in family.samples:
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels_by_name[name] |= set(sample.labels) - {"le"}
    assert labels_by_name == {declaration.name: set(declaration.labels) for declaration in CATALOGUE}
    assert {label for declaration in CATALOGUE for label in declaration.labels} == set(LABELS)
    assert [term for term in TERMS if f"`{term}`" not in LABELS["coefficient"]] == []


def test_a_budget_is_told_with_what_is_beyond_doubt_and_of_one_source(clock: _Clock) -> None:
    metrics = Metrics(models=("m",), arms=("entrace",), clock=clock)
    metrics.budgets({"team": Standing("day", 0, 100.0, 80.0, 10.0, 20.0, "measured")})
    metrics.budgets({"team": Standing("day", 0, 100.0, 90.0, 10.0, 20.0, "simulated")})
    told = {each for each in metrics.render(None)[0].decode().splitlines() if each.startswith("etameter_budget")}
    assert told == {
        'etameter_budget_limit_joules{budget="team",window="day"} 100',
        'etameter_budget_used_joules{budget="team",window="day",source="simulated"} 90',
        'etameter_budget_used_ratio{budget="team",window="day",bound="least",source="simulated"} 0.8',
        'etameter_budget_used_ratio{budget="team",window="day",bound="known",source="simulated"} 0.9',
        'etameter_budget_used_ratio{budget="team",window="day",bound="most",source="simulated"} 1.2',
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_it(clock: _Clock) -> None:
    body, _ = _filled(clock).render(None)
    checked = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_openmetrics_carries_the_public_id_as_exemplar(clock: _Clock) -> None:
    body, content_type = _filled(clock).render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    exemplars = [
        (sample.labels["le"], sample.exemplar.labels, sample.exemplar.value)
        for family in _openmetrics(body)
        for sample in family.samples
        if sample.exemplar is not None
    ]
    assert exemplars == [("10.0", {"request_id": "chatcmpl-7f"}, 7.0)]
    assert b"0" * 32 not in body, "a receipt id is a capability"


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=x", "APPLICATION/openmetrics-text", ",;,;=,", ""]
)
def test_any_accept_header_is_answered(clock: _Clock, accept: str) -> None:
    body, content_type = _filled(clock).render(accept)
    assert body.endswith(b"# EOF\n") == ("openmetrics" in content_type) == ("openmetrics" in accept)


def test_joules_add_up_at_every_scrape(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    for measured_j in (10.0, 12.0, 9.5):
        metrics.settle(_balance(measured_j), "measured")
        _charge(metrics, source="measured")
        samples = _samples(metrics)
        spent: dict[str, list[float]] = defaultdict(list)
        for (name, labels), value in samples.items():
            assert ("source", "measured") in labels or "joules" not in name
            spent[name].append(value)
        paid = spent["etameter_energy_joules_total"] + spent["etameter_unassigned_joules_total"]
        assert math.fsum(spent["etameter_gpu_energy_joules_total"]) == pytest.approx(math.fsum(paid), rel=1e-12)


def test_money_and_co2_follow_the_joules_of_each_source(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock, FOOTPRINT)
    for source in ("measured", "simulated", "measured"):
        _charge(metrics, source=source)
    for phase in ("prompt", "output"):
        of = {"model_name": "m", "arm": "entrace", "phase": phase}
        for source in ("measured", "simulated"):
            joules = _value(metrics, "etameter_energy_joules_total", **of, source=source)
            assert joules
            cost = _value(metrics, "etameter_cost_total", currency="EUR", **of, source=source)
            assert cost == pytest.approx(1.25e-7 * joules)
            assert _value(metrics, "etameter_co2e_grams_total", **of, source=source) == pytest.approx(2.5e-4 * joules)
    assert _value(metrics, "etameter_footprint_factor", factor="pue", unit="J/J") == 1.25


def test_nothing_is_said_of_money_and_co2_where_no_factor_is_configured(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    _charge(metrics)
    named = {name for name, _ in _samples(metrics)}
    assert not {name for name in named if name.startswith(("etameter_cost_total", "etameter_co2e", "etameter_foot"))}


def test_an_unbalanced_interval_shows(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    metrics.settle(_balance(idle_j=1.0), "measured")
    metrics.settle(_balance(idle_j=3.0), "measured")
    residual_j = _value(metrics, "etameter_balance_residual_joules_total", gpu_uuid=GPU, source="measured")
    assert residual_j == pytest.approx(2.0), "opposite errors must not cancel"


def test_sources_stay_apart(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    _charge(metrics, source="measured")
    _charge(metrics, source="simulated")
    _charge(metrics, source="simulated")
    name = "etameter_energy_joules_total"
    labels = {"model_name": "m", "arm": "entrace", "phase": "output"}
    assert _value(metrics, name, source="measured", **labels) == 4.0
    assert _value(metrics, name, source="simulated", **labels) == 8.0


def test_wh_per_token_covers_the_last_minute_and_is_absent_without_tokens(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    labels = {"model_name": "m", "arm": "entrace", "source": "simulated"}

    def now(kind: str) -> float | None:
        return _value(metrics, "etameter_wh_per_token", kind=kind, **labels)

    assert now("output") is None
    _charge(metrics)
    assert now("prompt") == pytest.approx(3.0 / 10 / 3600)
    assert now("output") == pytest.approx(4.0 / 2 / 3600), "the first token carries no output energy"
    clock.now_s += 30
    metrics.increment(
        "m",
        "entrace",
        prompt_j=0.0,
        output_j=8.0,
        prompt_tokens=0,
        cached_tokens=0,
        output_tokens=1,
        first_tokens=0,
        batch=1.0,
        source="simulated",
    )
    assert now("output") == pytest.approx(12.0 / 3 / 3600)
    clock.now_s += 31
    assert now("output") == pytest.approx(8.0 / 1 / 3600)
    assert now("prompt") is None
    clock.now_s += 60
    assert now("output") is None


def test_power_is_absent_when_unknown(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)

    def power_w() -> float | None:
        return _value(metrics, "etameter_gpu_power_watts", gpu_uuid=GPU, source="measured")

    metrics.settle(_balance(), "measured")
    assert power_w() == pytest.approx(100.0)
    metrics.settle(_balance(attributed_j=0.0, idle_j=0.0, unattributed_j_by_cause={"stale": 10.0}), "measured")
    assert power_w() is None
    metrics.settle(_balance(), "measured")
    clock.now_s += 11
    assert power_w() is None


def test_an_update_period_that_is_forgotten_leaves_the_exposition(clock: _Clock) -> None:
    metrics = Metrics([], [], clock)
    metrics.counter(GPU, resets=0, period_ns=20_000_000)
    assert _value(metrics, "etameter_gpu_energy_update_period_seconds", gpu_uuid=GPU) == 0.02
    metrics.counter(GPU, resets=0, period_ns=None)
    assert _value(metrics, "etameter_gpu_energy_update_period_seconds", gpu_uuid=GPU) is None


def test_neighbours_that_are_not_known_are_absent_not_none(clock: _Clock) -> None:
    metrics = Metrics([], [], clock)
    metrics.watched(GPU, missed_edges=0, throttled=False, neighbours=2)
    assert _value(metrics, "etameter_gpu_neighbours", gpu_uuid=GPU) == 2
    metrics.watched(GPU, missed_edges=0, throttled=None, neighbours=None)
    assert _value(metrics, "etameter_gpu_neighbours", gpu_uuid=GPU) is None


def test_hostile_labels_become_other(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    for number in range(100_000):
        hostile = f'x{number}"}} 1\n# '
        _charge(metrics, model=hostile, arm=hostile)
        metrics.finished(_row(_record(hostile, hostile, hostile), _energy(number * 0.5)), f"chatcmpl-{number:0500}")
        if number % 100 == 0:
            metrics.know_model(hostile)
            metrics.know_model(f"model-{number}")
            metrics.settle(_balance(unattributed_j_by_cause={hostile: 0.5}), "simulated")
    _charge(metrics, arm="unlabelled")
    for model in ("m", *(f"model-{number}" for number in range(0, 100_000, 100))):
        for batch in BATCHES:
            _charge(metrics, model=model, arm="entrace", batch=batch)
    body, _ = metrics.render(OPENMETRICS)
    values: dict[str, set[str]] = defaultdict(set)
    for family in _openmetrics(body):
        for sample in family.samples:
            for label, value in sample.labels.items():
                values[label].add(value)
    assert values["arm"] == {"entrace", "unlabelled", "other"}
    assert values["finish_reason"] == {"other"}
    assert values["cause"] == {*CAUSES, "other"}
    # three groups are taken: all that is hostile, and the model "m" with two arms
    assert values["model_name"] == {"m", "other", *(f"model-{100 * number}" for number in range(MAX_GROUPS - 3))}
    assert len(body) < 200_000


@pytest.mark.parametrize(
    ("batch", "alike"), [(0.0, "1"), (1.0, "1"), (1.99, "1"), (5.6, "4"), (6.0, "6"), (1e4, "256")]
)
def test_output_energy_is_counted_by_how_many_requests_ran_together(clock: _Clock, batch: float, alike: str) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    _charge(metrics, batch=batch)
    group = {"model_name": "m", "arm": "entrace", "batch": alike}
    assert _value(metrics, "etameter_batch_output_joules_total", source="simulated", **group) == 4.0
    assert _value(metrics, "etameter_batch_output_tokens_total", **group) == 2.0


def test_a_finished_request_is_observed_in_every_histogram(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    metrics.finished(_row(), None)
    of_model = {"model_name": "m"}
    of_group = {**of_model, "arm": "entrace", "source": "simulated"}
    sums = {
        "etameter_request_energy_joules": (of_group, 7.0),
        "etameter_request_wh_per_output_token": ({**of_model, "source": "simulated"}, 1.0 / 2 / 3600),
        "etameter_request_energy_error_ratio": ({**of_model, "source": "simulated"}, 0.1 / 7.0),
        "etameter_time_to_first_token_seconds": (of_model, 0.2),
        "etameter_inter_token_latency_seconds": (of_model, 0.03),
    }
    assert set(sums) == {each.name for each in CATALOGUE if each.type == "histogram"}
    for name, (labels, total) in sums.items():
        assert _value(metrics, f"{name}_sum", **labels) == pytest.approx(total)
        assert _value(metrics, f"{name}_count", **labels) == 1.0


def test_one_output_token_has_no_time_to_another_and_no_output_energy(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    metrics.finished(replace(_row(replace(_record(), output_tokens=1)), decode_tokens=0), None)
    names = {name for name, _ in _samples(metrics)}
    assert "etameter_time_to_first_token_seconds_sum" in names
    assert not {"etameter_inter_token_latency_seconds_sum", "etameter_request_wh_per_output_token_sum"} & names


@pytest.mark.parametrize("model", ["org/model-7B", "/models/small", "./small", "m:adapter@2"])
def test_a_served_model_is_a_label(clock: _Clock, model: str) -> None:
    metrics = Metrics([], [], clock)
    metrics.know_model(model)
    metrics.finished(_row(_record(model=model, arm="unlabelled")), None)
    labels = {"model_name": model, "arm": "unlabelled", "finish_reason": "stop"}
    assert _value(metrics, "etameter_requests_total", **labels) == 1.0


@pytest.mark.parametrize(
    ("public_id", "exemplar"),
    [
        ("chatcmpl-1", {"request_id": "chatcmpl-1"}),
        ("a" * 500, {"request_id": "a" * 64}),
        ('evil"} 1\n', None),
        ("\ud800", None),
        ("", None),
        (None, None),
    ],
)
def test_exemplars_keep_to_the_limits_whatever_the_client_sent(
    clock: _Clock, public_id: str | None, exemplar: dict[str, str] | None
) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    metrics.finished(_row(), public_id)
    body, _ = metrics.render(OPENMETRICS)
    bucket = _only_exemplar(body)
    assert (None if bucket is None or bucket.exemplar is None else bucket.exemplar.labels) == exemplar


def _only_exemplar(body: bytes) -> Sample | None:
    samples = [sample for family in _openmetrics(body) for sample in family.samples]
    found = [sample for sample in samples if sample.exemplar is not None]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_request_without_settled_energy_is_counted_but_has_no_energy(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    metrics.finished(_row(_record(reason="abort"), replace(_energy(), prompt_j=0.0, output_j=0.0)), "chatcmpl-1")
    assert _value(metrics, "etameter_requests_total", model_name="m", arm="entrace", finish_reason="abort") == 1.0
    assert not any(name.startswith("etameter_request_energy") for name, _ in _samples(metrics))


def test_no_scrape_sees_half_an_interval(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    rendered = threading.Event()

    def scrape() -> None:
        metrics.render(None)
        rendered.set()

    scraper = threading.Thread(target=scrape)
    with metrics.together:
        metrics.settle(_balance(), "measured")
        scraper.start()
        assert not rendered.wait(0.1)
        _charge(metrics)
    assert rendered.wait(5.0)
    scraper.join()


def test_what_was_needed_and_eta_itself_are_told_where_the_method_tells_them(clock: _Clock) -> None:
    metrics = _filled(clock)
    labels = {"model_name": "m", "arm": "entrace"}
    row = _row()
    assert _value(metrics, "etameter_needed_tokens_total", need="required", **labels) == 0.5 * row.record.output_tokens
    joules = _value(metrics, "etameter_needed_joules_total", need="optional", source=row.energy.source, **labels)
    assert joules == pytest.approx(0.3 * row.energy.output_j)
    assert _value(metrics, "etameter_classified_tokens_total", **labels) == row.record.output_tokens, "once, not twice"
    gauges = [dict(of) for name, of in _samples(metrics) if name == "etameter_eta_ratio"]
    told = {(of["method"], of["view"]) for of in gauges}
    assert told == {("fast", "lenient_bound"), ("deep", "strict")}


@pytest.mark.parametrize("known", [True, False], ids=["by time", "by tokens"])
def test_what_a_judge_found_sums_to_the_output_less_rejected_drafts(clock: _Clock, *, known: bool) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    row = _row(energy=replace(_energy(), output_j=4.0, draft_waste_j=1.0))
    shares = {"required": 0.5, "closing": 0.25, "junk": 0.125}
    spent = {"required": (0.25, 0.25), "closing": (0.375, 0.375), "junk": (0.125, 0.125)} if known else None
    metrics.classified(row, Reading("0" * 32, 0.6, (0.5, 0.6), 0.125, "deep", None, shares, "tokens", 0.5, 0.6, spent))
    of = {"model_name": "m", "arm": "entrace"}
    needs = ("required", "optional", "slack", "unclassified")
    tokens = [_value(metrics, "etameter_needed_tokens_total", need=need, **of) for need in needs]
    assert tokens == [1.5, 0.0, 1.125, 0.375]
    joules = [_value(metrics, "etameter_needed_joules_total", need=need, source="simulated", **of) for need in needs]
    assert joules == ([0.75, 0.0, 1.5, 0.75] if known else [1.5, 0.0, 1.125, 0.375])


def test_a_rate_sees_the_first_joules_of_every_cause(clock: _Clock) -> None:
    metrics = Metrics([], [], clock)
    metrics.settle(_balance(9.5, unattributed_j_by_cause={}), "measured")
    told = {cause: _unassigned(metrics, cause) for cause in CAUSES}
    assert told == {**dict.fromkeys(CAUSES, 0.0), "idle": 2.0, "engine_overhead": 0.5}
    metrics.settle(_balance(9.5, unattributed_j_by_cause={"stale": 5.0}), "measured")
    assert _unassigned(metrics, "stale") == 5.0


def _unassigned(metrics: Metrics, cause: str) -> float | None:
    return _value(metrics, "etameter_unassigned_joules_total", gpu_uuid=GPU, cause=cause, source="measured")


def test_a_counter_that_never_changed_has_no_edges_rather_than_no_series(clock: _Clock) -> None:
    metrics = Metrics([], [], clock)
    metrics.watched(GPU, missed_edges=0, throttled=None, neighbours=None)
    assert _value(metrics, "etameter_gpu_energy_edges_total", gpu_uuid=GPU) == 0.0


def test_hours_without_a_scrape_take_no_memory(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    reading = Reading("0" * 32, 0.75, (0.5, 0.75), 0.0, "fast", None, {"preamble": 0.25})

    def work(seconds: int) -> None:
        for _ in range(seconds):
            clock.now_s += 1.0
            _charge(metrics)
            metrics.classified(_row(), reading)

    work(200)
    tracemalloc.start()
    try:
        work(3600)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 100_000


def test_audits_are_counted_by_what_came_of_them(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    outcomes: tuple[tuple[Outcome, float], ...] = (("correct", 1.5), ("wrong", 2.5), ("correct", 0.5), ("failed", 0.25))
    for outcome, energy_j in outcomes:
        metrics.audited("m", "entrace", kind="task", outcome=outcome, energy_j=energy_j, source="measured")
    metrics.audited("m", "entrace", kind="deep", outcome="judged", energy_j=4.0, source="measured")
    of = {"model_name": "m", "arm": "entrace", "source": "measured"}
    told = {
        (kind, outcome): _value(metrics, "etameter_audits_total", kind=kind, outcome=outcome, **of)
        for kind, of_kind in AUDITS.items()
        for outcome in of_kind
    }
    tasks = {("task", "correct"): 2.0, ("task", "wrong"): 1.0, ("task", "failed"): 1.0}
    assert told == {**tasks, ("deep", "agreed"): 0.0, ("deep", "judged"): 1.0, ("deep", "failed"): 0.0}
    assert _value(metrics, "etameter_audit_joules_total", kind="task", **of) == 4.75, "what failed took energy, too"
    assert _value(metrics, "etameter_audit_joules_total", kind="deep", **of) == 4.0
    assert _value(metrics, "etameter_audit_answers_total", **of) == 3.0
    assert _value(metrics, "etameter_audit_correct_answers_total", **of) == 2.0
    metrics.audited("m", "entrace", kind="task", outcome="correct", energy_j=None, source="measured")
    assert _value(metrics, "etameter_audits_total", kind="task", outcome="correct", **of) == 3.0
    assert _value(metrics, "etameter_audit_answers_total", **of) == 3.0, "with its joules, or not at all"
    assert _value(metrics, "etameter_audit_correct_answers_total", **of) == 2.0


def test_a_rate_sees_the_first_correct_answer(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    metrics.audited("m", "entrace", kind="task", outcome="wrong", energy_j=2.5, source="measured")
    of = {"model_name": "m", "arm": "entrace", "source": "measured"}
    assert _value(metrics, "etameter_audit_correct_answers_total", **of) == 0.0
    assert _value(metrics, "etameter_audits_total", kind="deep", outcome="agreed", **of) is None, "no judge has read"


def test_reliability_that_is_not_known_is_absent(clock: _Clock) -> None:
    metrics = Metrics(["m"], ["entrace"], clock)
    of = {"model_name": "m", "arm": "entrace"}

    def told() -> tuple[float | None, ...]:
        name = "etameter_eta_reliability"
        statistics = ("agreement", "bias", "slope")
        known = (_value(metrics, name, tier="fast", statistic=statistic, **of) for statistic in statistics)
        return (*known, _value(metrics, "etameter_eta_reliable", **of))

    metrics.reliability("m", "entrace", "fast", Trust(30, 0.4, -0.125, None))
    metrics.trusted("m", "entrace", reliable=False)
    assert told() == (0.4, -0.125, None, 0.0)
    metrics.reliability("m", "entrace", "fast", Trust(3, None, None, None))
    metrics.trusted("m", "entrace", reliable=None)
    assert told() == (None, None, None, None)


def test_a_node_that_is_not_heard_is_down_and_its_clock_unknown(clock: _Clock) -> None:
    metrics = Metrics(models=("m",), arms=("entrace",), clock=clock)
    metrics.node("10.0.0.2:9431", error_ns=250_000)
    assert _value(metrics, "etameter_node_up", machine="10.0.0.2:9431") == 1
    assert _value(metrics, "etameter_node_clock_error_seconds", machine="10.0.0.2:9431") == 0.00025
    metrics.node("10.0.0.2:9431", error_ns=math.nan)
    assert _value(metrics, "etameter_node_up", machine="10.0.0.2:9431") == 0
    assert _value(metrics, "etameter_node_clock_error_seconds", machine="10.0.0.2:9431") is None
