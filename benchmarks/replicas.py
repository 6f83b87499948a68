"""Simulated replicas of a fleet: `python -m benchmarks.replicas COUNT --port P` serves them until it is ended.

Each replica counts in a registry of its own, with the meter's own code, and is told at `/NUMBER/metrics` as a meter tells it. What it counts is made up and
advances with the time between scrapes: requests that come at a rate of their own, what they take of boards that idle in between, fits that wander.
All joules are simulated.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from aiohttp import web

from etameter.costs import Costs
from etameter.export.catalogue.labels import CATEGORIES
from etameter.export.prometheus import Metrics
from etameter.fit import CostFit
from etameter.ledger import RequestRow
from etameter.records import Balance, Edge, RequestEnergy, RequestRecord
from etameter.roofline import QWEN3_8B, board_of, roofline_prior
from etameter.slack.reading import Reading
from etameter.slack.reliability import LEAST_PAIRS, Trust

MODELS = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "meta-llama/Llama-3.3-70B-Instruct")
ARMS = ("unlabelled", "concise")
BOARD = "NVIDIA H100 80GB HBM3"
IDLE_W, BUSY_W = 75.0, 350.0
TOKEN_S = 0.02
"""Of an output token: how long it takes, however many requests run."""
PROMPT_TOKEN = 0.02
"""What a prompt token takes, of what an output token does."""
REQUESTS_PER_S, SPREAD = 0.5, 1.0
"""Median over replicas, and the standard deviation of its logarithm: some are twenty times as busy as others."""
NODES_PER_CLUSTER = 250
CONSIDERED_S = 15.0
"""Of simulated time, for what comes in steps."""


class Replica:
    """A meter of `gpus` boards, which serve one model. The same `number` always tells the same."""

    def __init__(self, number: int, gpus: int) -> None:
        self._random = np.random.default_rng(number)
        self._now_s = 1000.0
        self._gpus = [f"GPU-{number:08x}-5e1f-6a0c-9d3e-{gpu:012x}" for gpu in range(gpus)]
        self._model = MODELS[number % len(MODELS)]
        self._per_s = float(self._random.lognormal(math.log(REQUESTS_PER_S), SPREAD))
        self._lost = float(self._random.lognormal(-5.0, 1.0))
        """Share of the energy that stays unattributed."""
        self._costs = CostFit(roofline_prior(board_of(BOARD), QWEN3_8B)).costs
        self._polls = self._late = 0
        self.metrics = Metrics([self._model], ARMS, lambda: self._now_s)
        self.metrics.built("simulated")
        for uuid in self._gpus:
            self.metrics.device(uuid, BOARD, "simulated")
        self.advance(CONSIDERED_S)

    def audit(self) -> None:
        """As if audits had said just enough of what is classified."""
        for arm in ARMS:
            agreement = float(self._random.beta(8.0, 3.0))
            found = Trust(LEAST_PAIRS, agreement, bias=0.1, slope=1.0, agreement_low=0.0, agreement_high=1.0)
            self.metrics.reliability(self._model, arm, "fast", found)
            self.metrics.trusted(self._model, arm, reliable=found.reliable)

    def advance(self, seconds: float) -> None:
        """So much time goes by."""
        self._now_s += seconds
        drawn = {arm: self._drawn(arm, weight * seconds) for arm, weight in zip(ARMS, (0.8, 0.2), strict=True)}
        records = [each for of_arm in drawn.values() for each in of_arm]
        tokens = sum(each.output_tokens for each in records)
        at_once = tokens * TOKEN_S / seconds
        busy_s = seconds * -math.expm1(-at_once)
        shares = math.fsum(each.output_tokens + PROMPT_TOKEN * each.prompt_tokens for each in records)
        token_j = BUSY_W * busy_s * len(self._gpus) / shares if records else 0.0
        paid_j = 0.0
        for arm, of_arm in drawn.items():
            rows = [self._paid(each, token_j) for each in of_arm]
            for row in rows:
                self._finish(row)
            paid_j += self._charge(arm, rows, max(at_once, 1.0))
        self._settle(paid_j, seconds - busy_s, seconds)
        self._look_after(seconds)

    def _drawn(self, arm: str, seconds: float) -> list[RequestRecord]:
        """The requests that end in a time."""
        draw, records = self._random.lognormal, []
        for _ in range(self._random.poisson(self._per_s * seconds)):
            prompt, output = int(draw(6.0, 1.0)) + 1, int(draw(5.0, 0.8)) + 2
            first_ns = int(draw(-1.5, 0.7) * 1e9)
            end_ns = first_ns + int(output * TOKEN_S * draw(0.0, 0.1) * 1e9)
            reason = "length" if self._random.random() < 0.05 else "stop"
            tokens = (prompt, prompt // 4, output)
            records.append(RequestRecord("id", None, self._model, arm, 0, first_ns, end_ns, *tokens, reason))
        return records

    def _paid(self, record: RequestRecord, token_j: float) -> RequestRow:
        prompt_j, output_j = record.prompt_tokens * PROMPT_TOKEN * token_j, record.output_tokens * token_j
        error_j = (prompt_j + output_j) * self._random.lognormal(-3.5, 0.5)
        spent = (prompt_j, output_j, output_j / 2, 0.0, 0.0, 0.0, error_j)
        energy = RequestEnergy("id", *spent, settled=True, method="step-cost", source="simulated")
        return RequestRow("engine-0", 0, 0, record, energy, record.prompt_tokens, record.output_tokens - 1)

    def _finish(self, row: RequestRow) -> None:
        self.metrics.finished(row, f"chatcmpl-{self._random.integers(1 << 62):016x}")
        slack = float(self._random.random()) * 0.4
        self.metrics.classified(row, Reading("", 1 - slack, (1 - slack, 1.0), 0.0, "fast", None, {}))
        category = CATEGORIES[self._random.integers(len(CATEGORIES))]
        joules = slack * row.energy.output_j
        self.metrics.slack(row, category, slack * row.record.output_tokens, joules, joules / 2)

    def _charge(self, arm: str, rows: Sequence[RequestRow], batch: float) -> float:
        """What these requests paid, in joules."""
        prompt_j = math.fsum(row.energy.prompt_j for row in rows)
        output_j = math.fsum(row.energy.output_j for row in rows)
        self.metrics.increment(
            self._model,
            arm,
            prompt_j=prompt_j,
            output_j=output_j,
            prompt_tokens=sum(row.record.prompt_tokens for row in rows),
            cached_tokens=sum(row.record.cached_tokens for row in rows),
            output_tokens=sum(row.record.output_tokens for row in rows),
            first_tokens=len(rows),
            batch=batch,
            source="simulated",
        )
        return prompt_j + output_j

    def _settle(self, paid_j: float, idle_s: float, seconds: float) -> None:
        for uuid in self._gpus:
            attributed_j = paid_j / len(self._gpus)
            idle_j = IDLE_W * idle_s * float(self._random.lognormal(0.0, 0.02))
            lost_j = self._lost * attributed_j * float(self._random.lognormal(0.0, 0.5))
            now_ns, measured_j = int(self._now_s * 1e9), attributed_j + idle_j + lost_j
            start_ns = now_ns - int(seconds * 1e9)
            causes = {"model_residual": lost_j}
            self.metrics.settle(
                Balance(uuid, start_ns, now_ns, measured_j, attributed_j, idle_j, 0.0, causes, 0.02 * attributed_j),
                "simulated",
            )

    def _look_after(self, seconds: float) -> None:
        self._polls += int(seconds * 200)
        self._late += int(self._random.exponential(2e4) * seconds * 200)
        self.metrics.sampler(polls=self._polls, missed_polls=0, lateness_ns=self._late, cost_ns=self._late, dropped=0)
        now_ns = int(self._now_s * 1e9)
        for uuid in self._gpus:
            self.metrics.found([Edge(uuid, now_ns, 1, 0) for _ in range(int(seconds))])
            self.metrics.counter(uuid, resets=0, period_ns=100_000_000)
            self.metrics.watched(uuid, missed_edges=0, throttled=False, neighbours=0)
            self.metrics.fitted(uuid, self._fit())
        self.metrics.ring("engine-0", lost_records=0, torn_records=0)
        self.metrics.host({"package": 180.0 * seconds * float(self._random.lognormal(0.0, 0.1))}, paid=True)

    def _fit(self) -> Costs:
        """Another one each time, as a fit goes on while a meter runs."""
        wandered = self._costs.energy * self._random.lognormal(0.0, 0.01, self._costs.energy.size)
        return replace(self._costs, energy=wandered, lag_ns=int(2e7 * self._random.lognormal(0.0, 0.01)))


def scraped(count: int, port: int, in_a_cluster: int = NODES_PER_CLUSTER) -> list[dict[str, Any]]:
    """Prometheus's `static_configs` for so many replicas on a port of this machine, with the labels that service discovery would give them."""
    return [
        {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {
                "__metrics_path__": f"/{number}/metrics",
                "cluster": f"c{number // in_a_cluster}",
                "node": f"node-{number:04d}",
                "instance": f"replica-{number:04d}",
                "environment": "demo",
            },
        }
        for number in range(count)
    ]


def application(replicas: Sequence[Replica]) -> web.Application:
    """Tells each as a meter does, and lets the time go by that has since the last scrape."""
    last_s = [time.monotonic()] * len(replicas)

    async def metrics(request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        now_s = time.monotonic()
        replicas[number].advance(now_s - last_s[number])
        last_s[number] = now_s
        body, content_type = replicas[number].metrics.render(request.headers.get("Accept"))
        told = web.Response(body=body, headers={"Content-Type": content_type})
        told.enable_compression()
        return told

    served = web.Application()
    served.add_routes([web.get(r"/{number:\d+}/metrics", metrics)])
    return served


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--gpus", type=int, default=8, help="of each replica")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--audited", action="store_true", help="tell how far η is to be trusted, made up like the rest")
    options = parser.parse_args()
    replicas = [Replica(number, options.gpus) for number in range(options.count)]
    if options.audited:
        for replica in replicas:
            replica.audit()
    web.run_app(application(replicas), host="127.0.0.1", port=options.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
