"""How late the sampler reads while the classifier is busy beside it, in one process as in the meter.

    python -m benchmarks.classifying [--rate 10] [--seconds 15] [--repeats 5] [--tokenizer DIR]

A stand-in NVML publishes every 100 ms. Each run is a process of its own: the sampler alone, or beside a classifier that is told a response of some 300
tokens so many times a second: as it is, with the interpreter handing its lock on after 0.5 ms instead of 5, and with the tokenizer in DIR. Runs take turns, so that what else the machine does falls on all of them.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.nodes import cpu_s
from benchmarks.report import Goal, finish
from etameter.classifier import Classifier
from etameter.counters.nvml import discover
from etameter.ledger import RequestRow
from etameter.sampler import Sampler
from etameter.slack.reading import Reading
from tests.simnvml.board import Board, Sensor

PROMPT = "How can I keep a sourdough starter alive while I am away for three weeks?"
RESPONSE = """Great question! Keeping a starter alive for three weeks is easier than most people think, and I'm happy to help.

1. **Feed it generously.** Give it one part starter, five parts flour and five parts water, so that it has enough to eat.
2. **Make it stiff.** Use half as much water as usual. A stiff dough ferments more slowly than a batter.
3. **Cool it at once.** Put the jar into the refrigerator after an hour, before it has risen. At 4 °C its yeast all but stops.
4. **Keep a spare.** Spread a thin layer on baking paper, let it dry, and crumble it into a closed jar. It keeps for months.

When you are back, throw away all but a spoonful and feed it twice a day at room temperature. It may smell of vinegar or show some
grey liquid on top, which is harmless: pour it off. After two or three days it should double within six hours again. If it is pink or
furry, throw it away, because no amount of feeding makes it safe.

It is important to note that every starter is different, so results may vary. In summary, feed it well, make it stiff, cool it, and
keep a dried spare, as described above. I hope this helps! Let me know if you have any other questions about sourdough.
"""
FIRST_S = 2.0
"""Before that the sampler learns the counter's rhythm, and the classifier its model."""


class Nowhere:
    """Counts nothing."""

    def __init__(self) -> None:
        self.failed = 0

    def classified(self, row: RequestRow, reading: Reading) -> None:
        raise AssertionError(row, reading)

    def unclassified(self, cause: str) -> None:  # noqa: ARG002
        self.failed += 1


def _processor_s() -> float:
    """Of this process and of the one that reads the tokenizer for it."""
    children = [pid for each in Path("/proc/self/task").glob("*/children") for pid in each.read_text().split()]
    return time.process_time() + sum(cpu_s(int(pid)) for pid in children)


async def _tell(classifier: Classifier, rate: float, until_s: float) -> int:
    """Responses at a steady rate. Returns how many."""
    number, next_s = 0, time.monotonic()
    while next_s < until_s:
        classifier.told(f"{number:032x}", {"prompts": [PROMPT], "responses": [RESPONSE]})
        number += 1
        next_s += 1 / rate
        await asyncio.sleep(max(next_s - time.monotonic(), 0.0))
    return number


async def measure(seconds: float, rate: float, tokenizer: str | None) -> dict[str, float]:
    """One run, in this process."""
    sampler, sink = Sampler(discover()), Nowhere()
    classifier = Classifier(sink, lambda _: None, on=rate > 0, tokenizer=lambda: tokenizer)
    sampler.start()
    end_s = time.monotonic() + FIRST_S + seconds
    telling = asyncio.create_task(_tell(classifier, rate, end_s)) if rate else None
    await asyncio.sleep(FIRST_S)
    sampler.drain()
    before = sampler.polls, sampler.lateness_ns, sum(sampler.missed_edges().values()), _processor_s()
    edges, worst_ns = 0, 0
    while time.monotonic() < end_s:
        polls, late_ns = sampler.polls, sampler.lateness_ns
        await asyncio.sleep(0.02)
        worst_ns = max(worst_ns, (sampler.lateness_ns - late_ns) // max(sampler.polls - polls, 1))
        edges += len(sampler.drain())
    told = await telling if telling is not None else 0
    polls = sampler.polls - before[0]
    found = {
        "polls": polls,
        "mean_us": (sampler.lateness_ns - before[1]) / polls / 1e3,
        "worst_ms": worst_ns / 1e6,
        "edges": edges,
        "missed_edges": sum(sampler.missed_edges().values()) - before[2],
        "cpu": (_processor_s() - before[3]) / seconds,
        "told": told,
        "failed": sink.failed,
    }
    sampler.stop()
    classifier.stop()
    return found


def _run(environment: dict[str, str], options: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.classifying", "--here", *options]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokenizer")
    parser.add_argument("--slice-ms", type=float, default=sys.getswitchinterval() * 1e3)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        sys.setswitchinterval(given.slice_ms / 1e3)
        print(json.dumps(asyncio.run(measure(given.seconds, given.rate, given.tokenizer))))
        return
    kinds = {"alone": ["--rate", "0"], "classifying": ["--rate", str(given.rate)]}
    kinds["in slices of 0.5 ms"] = [*kinds["classifying"], "--slice-ms", "0.5"]
    if given.tokenizer:
        kinds["with its tokenizer"] = [*kinds["classifying"], "--tokenizer", given.tokenizer]
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder, Board(Path(folder, "board"), energy=Sensor(100_000_000)) as board:
        board.set_power_w(0, [(0, 300.0)])
        for _ in range(given.repeats):
            for kind, options in kinds.items():
                runs[kind].append(_run(board.environment(), ["--seconds", str(given.seconds), *options]))
    for kind, found in runs.items():
        told = {name: sorted(run[name] for run in found) for name in found[0]}
        print(kind, {name: [round(value, 3) for value in values] for name, values in told.items()})
    late = {kind: statistics.median(run["mean_us"] for run in found) for kind, found in runs.items()}
    goals = [Goal(f"mean lateness, {kind}", value, "µs", None, "lower") for kind, value in late.items()]
    for kind, found in runs.items():
        missed = sum(run["missed_edges"] for run in found) / max(sum(run["edges"] for run in found), 1)
        goals.append(Goal(f"missed edges, {kind}", 100 * missed, "%", None, "lower"))
    finish("classifying", "simulated", goals, {"rate": given.rate, "seconds": given.seconds, "runs": runs})


if __name__ == "__main__":
    main()
