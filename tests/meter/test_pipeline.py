"""The books of a pipeline of four stages, each with its own counter, against what the requests of a simulated one burnt."""

from bisect import bisect_right
from itertools import pairwise
from pathlib import Path

import pytest

from etameter.accounts import Accounts
from etameter.devices import Device
from etameter.records import Edge
from etameter.serving.ring import RingReader, RingWriter, Row
from etameter.stages import Span
from tests.meter.test_stages import MS, STAGES, US, Truth, simulated

pytestmark = pytest.mark.unit

WORK_W, IDLE_W = 200.0, 100.0
STEPS, STEPS_A_REQUEST = 2000, 50
BUBBLE_NS = 50 * MS
GPUS = [f"GPU-{stage}" for stage in range(STAGES)]


class Counter:
    """What a stage's board has burnt."""

    def __init__(self, spans: list[Span]) -> None:
        self._starts_ns = [start_ns for start_ns, _ in spans]
        self._spans = spans
        self._before_j = [0.0]
        for start_ns, end_ns in spans:
            self._before_j.append(self._before_j[-1] + WORK_W * 1e-9 * (end_ns - start_ns))

    def mj(self, t_ns: int) -> int:
        place = bisect_right(self._starts_ns, t_ns)
        over_ns = max(0, self._spans[place - 1][1] - t_ns) if place else 0
        return round(1e3 * (self._before_j[place] - WORK_W * 1e-9 * over_ns + IDLE_W * 1e-9 * t_ns))


def row(number: int, span: Span) -> Row:
    """Long steps are those that prefill."""
    time_ns = span[1] - span[0]
    return (
        (number, time_ns // (100 * US), 0, 0, 0, 0, 0, 10, 0)
        if time_ns > 15 * MS
        else (number, 0, 1, 0, 0, 0, 0, 10, 0)
    )


def settled_j(file: Path, truth: Truth, stages: int) -> dict[str, float]:
    """What the books say of each request, whose engine says that it has so many stages."""
    ring = RingWriter(
        file, engine="e", model="m", dtype="d", gpu_uuids=GPUS, details={"pipeline_parallel_size": stages}
    )
    reader = RingReader(file)
    epoch_ns = reader.header.created_ns + 1000 * MS
    accounts = Accounts([Device(uuid, "nvml", "measured", "NVIDIA H100 80GB HBM3") for uuid in GPUS], "boot")
    accounts.open_engine(reader.header)
    counters = [Counter([spans[stage] for _, _, spans in truth]) for stage in range(STAGES)]
    events = sorted(
        [(dispatch_ns, 0, step) for step, (dispatch_ns, _, _) in enumerate(truth)]
        + [(done_ns, 1, step) for step, (_, done_ns, _) in enumerate(truth)]
    )
    numbers: dict[int, int] = {}
    found: dict[str, float] = {}
    at, t_ns = 0, 0
    while t_ns < truth[-1][1] + 1000 * MS:
        t_ns += 100 * MS
        while at < len(events) and events[at][0] <= t_ns:
            event_ns, ended, step = events[at]
            at += 1
            request = step // STEPS_A_REQUEST
            if not ended:
                if request not in numbers:
                    numbers[request] = ring.open_request(f"r{request}", 10, epoch_ns + event_ns)
                ring.dispatch(step, epoch_ns + event_ns, [row(numbers[request], truth[step][2][0])])
                continue
            ring.done(step, epoch_ns + event_ns)
            if step % STEPS_A_REQUEST == STEPS_A_REQUEST - 1:
                ring.finish(numbers[request], epoch_ns + event_ns, STEPS_A_REQUEST, "length")
        for stage, counter in enumerate(counters):
            edge_ns = t_ns - 50 * MS + 10 * MS * stage
            accounts.found([Edge(GPUS[stage], epoch_ns + edge_ns, 100 * US, counter.mj(edge_ns))])
        accounts.steps(reader.poll(), epoch_ns + t_ns)
        batch = accounts.settle()
        if batch is not None:
            found |= {each.record.request_id: each.energy.energy_j for each in batch.rows}
    ring.close()
    return found


def burnt_j(truth: Truth) -> dict[str, float]:
    """What each request's steps burnt on all stages, and half of the gaps beside them that are too short to be idle."""
    joules: dict[str, float] = {}
    for stage in range(STAGES):
        spans = [spans[stage] for _, _, spans in truth]
        for step, (start_ns, end_ns) in enumerate(spans):
            name = f"r{step // STEPS_A_REQUEST}"
            joules[name] = joules.get(name, 0.0) + (WORK_W + IDLE_W) * 1e-9 * (end_ns - start_ns)
        for step, ((_, end_ns), (start_ns, _)) in enumerate(pairwise(spans)):
            if start_ns - end_ns < BUBBLE_NS:
                for each in (step, step + 1):
                    joules[f"r{each // STEPS_A_REQUEST}"] += IDLE_W * 1e-9 * (start_ns - end_ns) / 2
    return joules


def error(found: dict[str, float], true: dict[str, float]) -> float:
    """Energy-weighted, relative."""
    return sum(abs(found.get(name, 0.0) - joules) for name, joules in true.items()) / sum(true.values())


def test_each_stage_pays_for_the_time_in_which_it_worked(tmp_path: Path) -> None:
    """Stages differ by up to 15 %, hops take 0.2 ms, ends are seen up to 0.8 ms late."""
    truth = simulated(1, STEPS, uneven=0.15, hop_ns=200 * US, skew_ns=800 * US)
    true_j = burnt_j(truth)
    assert error(settled_j(tmp_path / "pipeline.ring", truth, STAGES), true_j) < 0.02
    assert (
        error(settled_j(tmp_path / "cut.ring", truth, 1), true_j) > 0.1
    )  # as if all of them worked on a step all the time
