"""Experts and adapters on the books: an engine of known physics says what it serves, and requests pay for what they woke."""

import random
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from etameter.accounts import Accounts
from etameter.costs import Costs
from etameter.devices import Device
from etameter.division import divide
from etameter.records import Edge
from etameter.roofline import shape_of
from etameter.serving.ring import RingReader, RingWriter, Row
from etameter.work import ADAPTER, EXPERTS, TERMS, Work
from tests.meter.laid_out import Scheduled, step_of

pytestmark = pytest.mark.unit

MS = 1_000_000
PERIOD_NS = 100 * MS
UUID = "GPU-0"
DETAILS = {"num_layers": 32, "hidden_size": 2048, "num_experts": 64, "experts_per_token": 4, "expert_size": 1024}
#                  p0 W   c J  a J/tok a2 J  b J/tok d J/tok encoder, adapter, experts
ENERGY = np.array([110.0, 0.4, 0.006, 2e-7, 0.008, 1e-5, 0.0, 0.35, 2.4])
TIME = np.zeros((2, len(TERMS)))
TIME[:, [1, 2, 4, 8]] = 3e-3, 2e-5, 1e-5, 6e-3
TRUE = Costs(ENERGY, np.zeros((len(TERMS), len(TERMS))), TIME, 0.0, 0)


@dataclass
class Request:
    """One that is served; what it should pay by Shapley, and what it does pay."""

    number: int
    lora_id: int
    prompt: int
    output: int
    done: int = 0
    true_j: float = 0.0
    paid_j: float = 0.0


def serve(file: Path, seconds: float) -> tuple[list[Request], Accounts]:
    """Requests of 0 to 2 adapters come and go, now few and now many at once."""
    dice = random.Random(4)
    ring = RingWriter(file, engine="e", model="m", dtype="d", gpu_uuids=[UUID], details=DETAILS)
    reader = RingReader(file)
    start_ns = reader.header.created_ns
    accounts = Accounts([Device(UUID, "nvml", "measured", "NVIDIA H100 80GB HBM3")], "boot")
    accounts.open_engine(reader.header)
    routed = shape_of(DETAILS).routed
    running: list[Request] = []
    served: list[Request] = []
    spent = [(0, 0.0)]
    t_ns, edge_ns, step = 0, PERIOD_NS, 0
    while t_ns < seconds * 1e9:
        crowd = (0, 1, 4, 16)[int(t_ns / 0.7e9) % 4]
        while len(running) < crowd and dice.random() < 0.7:
            prompt, output = dice.randrange(8, 400), dice.randrange(5, 60)
            number = ring.open_request(f"r{len(served)}", prompt, start_ns + t_ns)
            running.append(Request(number, int(t_ns / 2.8e9) % 3, prompt, output))
            served.append(running[-1])
        if not running:
            t_ns += 10 * MS
            spent.append((t_ns, spent[-1][1] + float(ENERGY[0]) * 0.01))
            continue
        rows: list[Row] = [
            (one.number, 0, 1, 0, 0, 0, 0, one.prompt + one.done - 1, one.lora_id)
            if one.done
            else (one.number, one.prompt, 0, 0, 0, 0, 0, 0, one.lora_id)
            for one in running
        ]
        drawn = [
            Scheduled(f"m{index}", row[1], row[2], context_tokens=row[7], lora_id=row[8])
            for index, row in enumerate(rows)
        ]
        work = Work([step_of(step, 0, 1, drawn)], routed)
        seconds_of_step = float(np.max(TIME @ np.concatenate([[0.0], work.step_features[0][1:]])))
        duration_ns = int(seconds_of_step * 1e9)
        work = Work([step_of(step, 0, duration_ns, drawn)], routed)
        step_j = float(TRUE.step_energy(work.step_features)[0]) * (1 + dice.gauss(0, 0.02))
        shares = divide(work, TRUE, work.step_features).joules
        ring.dispatch(step, start_ns + t_ns, rows)
        ring.done(step, start_ns + t_ns + duration_ns)
        t_ns, step = t_ns + duration_ns, step + 1
        spent.append((t_ns, spent[-1][1] + step_j))
        for one, share in zip(running, (shares / shares.sum() * step_j).tolist(), strict=True):
            one.true_j += share
            one.done += 1
        while edge_ns <= t_ns:
            times_ns, joules = (np.array(column, dtype=np.float64) for column in zip(*spent, strict=True))
            energy_j = float(np.interp(edge_ns, times_ns, joules))
            accounts.found([Edge(UUID, start_ns + edge_ns, 100_000, int(energy_j * 1e3))])
            accounts.steps(reader.poll(), start_ns + t_ns)
            batch = accounts.settle()
            for row in batch.rows if batch else ():
                served[int(row.record.request_id[1:])].paid_j = row.energy.energy_j
            edge_ns += PERIOD_NS
            spent = spent[bisect_left(spent, (edge_ns - PERIOD_NS,)) - 1 :]
        for one in [each for each in running if each.done == each.output]:
            ring.finish(one.number, start_ns + t_ns, one.output, "length")
            running.remove(one)
    ring.close()
    return [one for one in served if one.done == one.output and one.paid_j], accounts


def test_requests_pay_for_the_experts_that_they_woke_and_for_their_adapters(tmp_path: Path) -> None:
    served, accounts = serve(tmp_path / "ring", 24.0)
    costs = accounts.costs()[UUID]
    for term in (ADAPTER, EXPERTS):
        assert costs.energy[term] == pytest.approx(ENERGY[term], rel=0.1), TERMS[term]
    late = served[len(served) // 3 :]
    assert sum(abs(one.paid_j - one.true_j) for one in late) < 0.02 * sum(one.true_j for one in late)
    for lora_id in range(3):
        users = [one for one in late if one.lora_id == lora_id]
        assert sum(one.paid_j for one in users) == pytest.approx(sum(one.true_j for one in users), rel=0.02)
