"""What a scrape costs after 100,000 requests, among them many whose clients invent models, arms and ids: `python -m benchmarks.scrape`.

Every configured arm of two served models has run at many sizes of batches and ended in every way, slack of every kind was found, audits of every
kind were made, money and CO2 are counted, and of each board two coefficients are unidentified.
The last line is JSON; exit code 3 where a goal is missed.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import get_args

from benchmarks.report import Goal, finish
from etameter.config import ARMS
from etameter.costs import Costs
from etameter.export.catalogue.labels import AUDITS, BATCHES, CATEGORIES, FINISH_REASONS, Tier, View
from etameter.export.prometheus import Metrics
from etameter.fit import CostFit
from etameter.footprint import Factor, Footprint
from etameter.ledger import RequestRow
from etameter.records import Balance, RequestEnergy, RequestRecord
from etameter.roofline import QWEN3_8B, board_of, roofline_prior
from etameter.slack.labels import WASTES
from etameter.slack.reading import NEEDS, Reading
from etameter.slack.reliability import Mean, Trust

SCRAPE_MS, SCRAPE_BYTES = 5.0, 200_000
GPUS = 8
MODELS = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B")
OPENMETRICS = "application/openmetrics-text;version=1.0.0,*/*;q=0.1"
SCRAPES = 200
FOOTPRINT = Footprint(
    pue=Factor(1.2, "J/J", "a guess", None),
    price=Factor(0.3, "EUR/kWh", "a guess", None),
    intensity=Factor(400.0, "g/kWh", "a guess", None),
)


def filled(requests: int, seed: int) -> Metrics:
    """Metrics that have seen so many requests on a machine of `GPUS` boards."""
    random = Random(seed)  # noqa: S311
    metrics = Metrics(MODELS, ARMS, footprint=FOOTPRINT)
    for gpu in range(GPUS):
        _watch(metrics, f"GPU-{gpu:08x}-5e1f-6a0c-9d3e-000000000000")
    for number in range(requests):
        model, arm = random.choice(MODELS), random.choice(list(ARMS))
        if number % 10 == 0:
            model, arm = f"model-{number}", f'arm-{number}"}} 1\n'
        row = _row(model, arm, random.choice(sorted(FINISH_REASONS)), random)
        _charge(metrics, row, random)
        metrics.finished(row, f"chatcmpl-{random.getrandbits(128):032x}")
        if number % 10 == 1:
            _judge(metrics, row, random)
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started_s = time.perf_counter()
    metrics = filled(options.requests, options.seed)
    filled_s = time.perf_counter() - started_s
    random = Random(options.seed)  # noqa: S311
    goals: list[Goal] = []
    context: dict[str, object] = {"requests": options.requests, "seed": options.seed, "scrapes": SCRAPES}
    context["us_per_request_counted"] = round(filled_s / options.requests * 1e6, 1)
    for name, accept in (("text", None), ("OpenMetrics", OPENMETRICS)):
        cost_ms, body = _scrapes(
            metrics, accept, lambda: _charge(metrics, _row(MODELS[0], "entrace", "stop", random), random)
        )
        goals.append(Goal(f"scrape as {name}, median", cost_ms[len(cost_ms) // 2], "ms", SCRAPE_MS, "lower"))
        goals.append(Goal(f"scrape as {name}, 99th percentile", cost_ms[-len(cost_ms) // 100], "ms", None, "lower"))
        goals.append(Goal(f"scrape as {name}, size", len(body), "bytes", SCRAPE_BYTES, "lower"))
        context[f"series_{name.lower()}"] = sum(not line.startswith(b"#") for line in body.splitlines())
    finish("scrape", "simulated", goals, context)


def _scrapes(metrics: Metrics, accept: str | None, between: Callable[[], None]) -> tuple[list[float], bytes]:
    """Milliseconds of scrapes, sorted, with something new before each; and the last exposition."""
    cost_ms, body = [], b""
    for _ in range(SCRAPES):
        between()
        started_s = time.perf_counter()
        body, _ = metrics.render(accept)
        cost_ms.append((time.perf_counter() - started_s) * 1e3)
    return sorted(cost_ms), body


def _judge(metrics: Metrics, row: RequestRow, random: Random) -> None:
    """By both methods, and audited."""
    metrics.classified(row, Reading("", 0.5, (0.4, 0.5), 0.0, "fast", None, {}))
    shares = dict.fromkeys(NEEDS, 0.25)
    metrics.classified(row, Reading("", 0.5, (0.4, 0.5), 0.0, "deep", None, shares, strict=0.25, lenient=0.5))
    for category in (*CATEGORIES, *WASTES):
        metrics.slack(row, category, random.random(), random.random(), random.random())
    of = row.record.model, row.record.arm
    for kind, outcomes in AUDITS.items():
        for outcome in outcomes:
            metrics.audited(*of, kind=kind, outcome=outcome, energy_j=random.random(), source=row.energy.source)
    for tier in get_args(Tier):
        metrics.reliability(*of, tier, Trust(100, random.random(), random.random(), random.random()))
    for view in get_args(View):
        metrics.sampled(*of, view, Mean(random.random(), random.random(), 100))
    metrics.trusted(*of, reliable=True)


def _watch(metrics: Metrics, gpu_uuid: str) -> None:
    causes = {"stale": 0.1, "reset": 0.0, "readings_missing": 0.1, "model_residual": 0.2, "steps_missing": 0.1}
    metrics.settle(Balance(gpu_uuid, 0, 100_000_000, 30.0, 25.0, 4.0, 0.5, causes, 0.1), "measured")
    metrics.counter(gpu_uuid, resets=0, period_ns=100_000_000)
    metrics.watched(gpu_uuid, missed_edges=0, throttled=False, neighbours=0)
    metrics.fitted(gpu_uuid, _costs())


def _costs() -> Costs:
    costs = CostFit(roofline_prior(board_of("NVIDIA H100 80GB HBM3"), QWEN3_8B)).costs
    return replace(costs, unidentified=("a2_j", "d_j"))


def _charge(metrics: Metrics, row: RequestRow, random: Random) -> None:
    record, energy = row.record, row.energy
    metrics.increment(
        record.model,
        record.arm,
        prompt_j=energy.prompt_j,
        output_j=energy.output_j,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
        first_tokens=1,
        batch=random.choice(BATCHES),
        source=energy.source,
    )


def _row(model: str, arm: str, reason: str, random: Random) -> RequestRow:
    tokens = random.randrange(2, 2000)
    output_j, prompt_j = tokens * random.lognormvariate(-1.0, 1.0), random.lognormvariate(2.0, 2.0)
    first_ns = int(random.lognormvariate(-1.5, 1.5) * 1e9)
    end_ns = first_ns + int(tokens * random.lognormvariate(-4.0, 1.0) * 1e9)
    record = RequestRecord("id", None, model, arm, 0, first_ns, end_ns, 500, 100, tokens, reason)
    error_j = (output_j + prompt_j) * random.lognormvariate(-3.0, 1.0)
    spent_j = (prompt_j, output_j, output_j / 2, 0.0, 0.0, 0.0, error_j)
    energy = RequestEnergy("id", *spent_j, settled=True, method="step-cost", source="measured")
    return RequestRow("engine-0", 0, 0, record, energy, 500, tokens - 1)


if __name__ == "__main__":
    main()
