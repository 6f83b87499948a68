"""How fast the meter is, and how much memory and processor it takes.

    python -m benchmarks.speed [--quick]

Attribution is timed over the books' whole way, from the ring's bytes and edges to batches for the ledger, and apart from that for `attribute` alone.
Memory is that of a process of its own which keeps the books of a simulated hour with 1,024 requests running all the time. Reading
counters is timed on the stand-in NVML, whose own share of the time is in the figures; it needs a C compiler.
"""

import argparse
import gc
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.report import Goal, finish
from etameter.accounts import Accounts
from etameter.attribution import attribute
from etameter.devices import Device
from etameter.records import Edge, Interval
from etameter.roofline import H100, QWEN3_8B, roofline_prior
from etameter.serving.ring import RingReader, RingWriter
from etameter.timeline import Timeline
from etameter.work import COLUMNS, CONTEXT, DECODE, PREFILL, SLOT, Span, Work, steps_of

UUID = "GPU-synthetic-0"
CONCURRENT = 1024
PROMPT_TOKENS, OUTPUT_TOKENS = 400, 300
PERIOD_NS = 100_000_000
RING_BYTES = 2 << 20
WARM_UP_PERIODS, ROUND_PERIODS = 2000, 200
"""By then the costs are fitted every 20 s, as they are from then on: once in each round."""
WATTS = 500.0


class Load:
    """A steady load, written to a ring as an engine would. Requests end and are replaced in turn; the first ones are of all ages."""

    def __init__(self, ring: Path, requests: int) -> None:
        self.ring = RingWriter(
            ring, engine="engine-0", model="synthetic", dtype="bf16", gpu_uuids=[UUID], capacity_bytes=RING_BYTES
        )
        self._rows = np.zeros((requests, 9), dtype=np.int64)
        self._done = np.arange(requests) * OUTPUT_TOKENS // requests
        for line in range(requests):
            self._begin(line, 0)
        self._step_id = 0

    def step(self, start_ns: int, end_ns: int) -> None:
        rows = self._rows
        self.ring.dispatch(self._step_id, start_ns, rows.tolist())
        self.ring.done(self._step_id, end_ns - 1000)
        self._step_id += 1
        self._done += 1
        rows[:, CONTEXT] += rows[:, PREFILL] + rows[:, DECODE]
        rows[:, PREFILL], rows[:, DECODE] = 0, 1
        for line in np.flatnonzero(self._done >= OUTPUT_TOKENS).tolist():
            self.ring.finish(int(rows[line, 0]), end_ns - 500, OUTPUT_TOKENS, "length")
            self._done[line] = 0
            self._begin(line, end_ns)

    def _begin(self, line: int, now_ns: int) -> None:
        number = self.ring.open_request(f"request-{now_ns:d}-{line:d}", PROMPT_TOKENS, now_ns)
        self._rows[line] = 0
        self._rows[line, [0, PREFILL]] = number, PROMPT_TOKENS


def keep_books(requests: int, step_ns: int, steps: int) -> Iterator[tuple[int, int]]:
    """Feed the books as the daemon does, and yield (nanoseconds of processor time in them, pairs settled) once per counter period.

    What is timed begins with the bytes of the ring and ends with batches for the ledger.
    """
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="etameter-speed-") as directory:
        load = Load(Path(directory) / "ring", requests)
        reader = RingReader(load.ring.path)
        accounts = Accounts([Device(UUID, "nvml", "simulated", "NVIDIA H100 80GB HBM3")], "boot")
        accounts.open_engine(replace(reader.header, created_ns=0))
        energy_mj, next_edge_ns, pairs = 0, PERIOD_NS, 0
        for start_ns in range(0, steps * step_ns, step_ns):
            now_ns = start_ns + step_ns
            load.step(start_ns, now_ns)
            pairs += requests
            if now_ns < next_edge_ns:
                continue
            energy_mj += int(WATTS * PERIOD_NS * 1e-6 * (1 + 0.02 * random.standard_normal()))
            edge = Edge(UUID, next_edge_ns, 2_500_000, energy_mj)
            next_edge_ns += PERIOD_NS
            began_ns = time.process_time_ns()
            accounts.steps(reader.poll(), now_ns + 25_000_000)
            accounts.found([edge])
            accounts.settle()
            yield time.process_time_ns() - began_ns, pairs
            pairs = 0
        reader.close()
        load.ring.close()


def pairs_per_second(requests: int, rounds: int) -> list[float]:
    """(request, step) pairs that one core settles in a second: a figure for each 20 s of load, after `WARM_UP_PERIODS`."""
    step_ns = 10_000_000
    spent_ns, pairs, rates = 0, 0, []
    periods = WARM_UP_PERIODS + rounds * ROUND_PERIODS
    for index, (took_ns, settled) in enumerate(keep_books(requests, step_ns, periods * PERIOD_NS // step_ns), 1):
        if index > WARM_UP_PERIODS:
            spent_ns, pairs = spent_ns + took_ns, pairs + settled
            if (index - WARM_UP_PERIODS) % ROUND_PERIODS == 0:
                rates.append(pairs / (spent_ns * 1e-9))
                spent_ns = pairs = 0
    return rates


def pairs_per_second_alone(requests: int, rounds: int) -> list[float]:
    """The same for `attribute` alone: one interval with ten steps."""
    columns = np.zeros((COLUMNS, 10 * requests), dtype=np.uint32)
    columns[SLOT], columns[DECODE], columns[CONTEXT] = np.tile(np.arange(requests), 10), 1, 500
    spans = [Span(number, number * 10_000_000, (number + 1) * 10_000_000, 0, requests) for number in range(10)]
    steps, costs = steps_of(spans, columns, distinct=True), roofline_prior(H100, QWEN3_8B)
    interval = Interval(UUID, 0, PERIOD_NS, WATTS * 0.1, 2_500_000, 2_500_000)
    rates = []
    for _ in range(rounds):
        began_ns = time.process_time_ns()
        for _ in range(10):
            attribute(interval, 0, PERIOD_NS, Work(steps), costs, 0)
        rates.append(100 * requests / ((time.process_time_ns() - began_ns) * 1e-9))
    return rates


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _hour(seconds: int, answer: Connection) -> None:
    """Keep the books of so many seconds, a step each 100 ms; send the resident MB of each sixth of it, and the peak."""
    step_ns = 100_000_000
    steps = seconds * 1_000_000_000 // step_ns
    marks = {round(steps * part / 6) - 1 for part in range(1, 7)}
    resident = [resident_mb() for index, _ in enumerate(keep_books(CONCURRENT, step_ns, steps)) if index in marks]
    answer.send((resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3))


def memory_mb(seconds: int) -> tuple[list[float], float]:
    """Resident MB after each sixth of the time, and the peak, in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_hour, args=(seconds, sender))
    process.start()
    sender.close()
    figures: tuple[list[float], float] = receiver.recv()
    process.join()
    return figures


def edge_us(rounds: int) -> list[float]:
    """Microseconds that a timeline takes for an edge."""
    figures = []
    for _ in range(rounds):
        timeline = Timeline(UUID)
        edges = [Edge(UUID, number * PERIOD_NS, 2_500_000, number * 50_000) for number in range(2000)]
        began_ns = time.process_time_ns()
        for edge in edges:
            timeline.add(edge)
            timeline.take()
        figures.append((time.process_time_ns() - began_ns) / len(edges) / 1000)
    return figures


def sampling(gpus: int, seconds: float, rounds: int) -> list[tuple[float, float, float]]:
    """Of each round: microseconds a poll, polls per second and GPU, and the sampler's share of a core, in per cent.

    The counters are published every 100 ms, each in its own phase. The first five seconds, in which periods are learned, don't count.
    """
    from etameter.counters import nvml
    from etameter.sampler import Sampler
    from tests.simnvml.board import Board, Sensor

    figures = []
    with (
        tempfile.TemporaryDirectory(prefix="etameter-speed-") as directory,
        Board(Path(directory) / "board", gpus) as board,
    ):
        for gpu in range(gpus):
            board.set_sensor(gpu, "energy", Sensor(phase_ns=gpu * 11_000_000, jitter_ns=1_000_000))
            board.set_power_w(gpu, [(time.monotonic_ns(), 300.0)])
        counters = nvml.discover()
        sampler = Sampler(counters)
        sampler.start()
        time.sleep(5.0)
        for _ in range(rounds):
            before = sampler.cost_ns, sampler.polls, time.monotonic_ns()
            time.sleep(seconds)
            cost_ns, polls, wall_ns = (
                later - earlier
                for earlier, later in zip(before, (sampler.cost_ns, sampler.polls, time.monotonic_ns()), strict=True)
            )
            sampler.drain()
            figures.append((cost_ns / polls / 1000, polls / gpus / (wall_ns * 1e-9), 100 * cost_ns / wall_ns))
        sampler.stop()
        for counter in counters:
            counter.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two minutes: without the simulated hour")
    options = parser.parse_args()
    gc.collect()
    whole = pairs_per_second(256, 3 if options.quick else 10)
    whole_1024 = pairs_per_second(CONCURRENT, 1 if options.quick else 10)
    alone = pairs_per_second_alone(256, 10 if options.quick else 30)
    edges = edge_us(5 if options.quick else 20)
    try:
        of_one = sampling(1, 2.0, 1 if options.quick else 5)
        of_eight = sampling(8, 2.0, 1 if options.quick else 5)
    except (OSError, ImportError) as error:  # no compiler for the stand-in, or no tests beside the installed package
        print(f"the stand-in NVML can't be had: {error}")
        of_one = of_eight = []
    resident, peak = ([], None) if options.quick else memory_mb(3600)

    def middle(values: list[float]) -> float | None:
        return statistics.median(values) if values else None

    goals = [
        Goal("pairs_per_second_and_core", middle(whole), "pairs/s", 2e6, "higher"),
        Goal("pairs_per_second_and_core_at_1024", middle(whole_1024), "pairs/s", None, "higher"),
        Goal("pairs_per_second_in_attribute", middle(alone), "pairs/s", None, "higher"),
        Goal("memory_peak", peak, "MB", 200.0, "lower"),
        Goal("memory_growth", max(resident) - resident[0] if resident else None, "MB", None, "lower"),
        Goal("poll", middle([figure[0] for figure in of_one]), "us", None, "lower"),
        Goal("polls_per_second_and_gpu", middle([figure[1] for figure in of_one]), "1/s", None, "lower"),
        Goal("edge", middle(edges), "us", None, "lower"),
        Goal("eight_gpus", middle([figure[2] for figure in of_eight]), "% of a core", 3.0, "lower"),
    ]
    context = {
        "quick": options.quick,
        "statistic": "median",
        "spread": {
            name: [round(low, 3), round(high, 3)]
            for name, values in {
                "pairs_per_second_and_core": whole,
                "pairs_per_second_and_core_at_1024": whole_1024,
                "pairs_per_second_in_attribute": alone,
                "edge": edges,
                "poll": [figure[0] for figure in of_one],
                "eight_gpus": [figure[2] for figure in of_eight],
            }.items()
            if values
            for low, high in [(min(values), max(values))]
        },
        "resident_mb_each_sixth_of_the_hour": [round(each, 1) for each in resident],
    }
    finish("speed", "simulated", goals, context)


if __name__ == "__main__":
    main()
