"""How far off joules are where steps are guessed from when tokens arrive, as the proxy does: on the synthetic engine, whose true shares are known.

    python -m benchmarks.guessed [--quick]

The engine of benchmarks/engine.py serves a chat-length load. One meter gets its ring, as from the scheduler's hook. Another gets what `TokenSteps` writes when it is told of
each token when that has come through a socket, 0.1 to 0.6 ms after its step ended: no step's begin, chunk of a prompt, or prefix from the cache. Both read the same
counter. Their receipts are compared with the Shapley values of the engine's energy, and their stated 95 % errors with what they are off by. What is to be added to the errors of
guessed ones is a share of the energy: told is the least one, as a standard error, with which 95 % are covered.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import attribution, engine
from benchmarks.engine import Array, Run, Truth
from benchmarks.report import Goal, finish
from etameter.books import GUESS_ERROR
from etameter.serving.frames import Lost
from etameter.serving.ring import Dispatch, Done, Finish, RingReader, RingWriter
from etameter.serving.streamed import TokenSteps
from etameter.timeline import NORMAL_95

SHARE, SECONDS, QUICK_SECONDS = 0.6, 60.0, 45.0
DELAY_S = (1e-4, 6e-4)
LAG_S, PERIOD_S = 0.03, 0.1
CAP_W = 540.0
PERMUTATIONS = 8
SEEDS, QUICK_SEEDS = (1, 2, 3), (1,)
COVERAGE = 0.95


def guessed(run: Run, seed: int, path: Path) -> tuple[Run, list[int]]:
    """The run as a proxy would tell it, and which request each of its numbers is."""
    random = np.random.default_rng(seed)
    tokens: list[tuple[int, int, bool]] = []  # when, whose, whether it is the last
    produced: dict[int, int] = defaultdict(int)
    for (_, done_s), rows in zip(run.reported, run.rows, strict=True):
        for number, prefill, decode, _, _, _, _, context, _ in rows:
            arrival = run.arrivals[number]
            if decode or context + prefill == arrival.prompt_tokens:
                produced[number] += 1
                delay_s = float(random.uniform(*DELAY_S))
                tokens.append((round((done_s + delay_s) * 1e9), number, produced[number] == arrival.output_tokens))
    ring = RingWriter(path, engine="e", model="m", dtype="unknown")
    reader, records = RingReader(path), list[Dispatch | Done | Finish]()
    steps = TokenSteps(ring)
    for t_ns, number, is_last in sorted(tokens):
        arrival = run.arrivals[number]
        steps.arrived(f"request-{number}", round(arrival.t_s * 1e9), arrival.prompt_tokens, 1, t_ns)
        if is_last:
            steps.finished(f"request-{number}", t_ns, "length")
        records += [record for record in reader.poll() if not isinstance(record, Lost)]
    introduced = {
        each.number: int(each.request_id.removeprefix("request-"))
        for record in records
        if isinstance(record, Dispatch)
        for each in record.introductions
    }
    reader.close()
    ring.close()
    return replace(run, records=records), [introduced[each] for each in range(len(introduced))]


def judged(run: Run, truth: Truth, seed: int, of: Sequence[int]) -> tuple[Array, Array, Array]:
    """By request: true joules, those of the receipt, and its stated error."""
    edges = engine.published_edges(run, PERIOD_S, LAG_S, seed)
    found = attribution.metered(run, edges)
    assert found.error_j is not None
    total_j, error_j = np.full(len(run.arrivals), np.nan), np.full(len(run.arrivals), np.nan)
    given_j = found.prompt_j + found.output_j
    total_j[list(of)], error_j[list(of)] = given_j[: len(of)], found.error_j[: len(of)]
    true_j = truth.prompt_j + truth.output_j
    arrived_s = np.array([arrival.t_s for arrival in run.arrivals])
    which = np.isfinite(total_j) & (arrived_s >= attribution.WARM_UP_S)
    return true_j[which], total_j[which], error_j[which]


def added_error(true_j: Array, given_j: Array, error_j: Array) -> float:
    """The least relative standard error beside the stated one with which `COVERAGE` of the errors are covered."""
    needed_j2 = np.maximum((given_j - true_j) ** 2 - error_j**2, 0.0)
    return float(np.quantile(np.sqrt(needed_j2) / given_j, COVERAGE)) / NORMAL_95


def figures(name: str, found: Sequence[tuple[Array, Array, Array]], guess_error: float) -> list[Goal]:
    """Of all seeds together; `guess_error` is what the meter adds."""
    true_j, given_j, plain_j = (np.concatenate(column) for column in zip(*found, strict=True))
    error_j = np.hypot(plain_j, NORMAL_95 * guess_error * given_j)
    off_j = given_j - true_j
    return [
        Goal(f"{name}, requests", float(len(true_j)), "", None, "higher"),
        Goal(f"{name}, mean error, weighted with energy", float(np.abs(off_j).sum() / true_j.sum()), "", None, "lower"),
        Goal(f"{name}, stated error", float(error_j.sum() / true_j.sum()), "", None, "lower"),
        Goal(f"{name}, covered by it", float(np.mean(np.abs(off_j) <= error_j)), "", COVERAGE - 0.02, "higher"),
        Goal(f"{name}, covered without what is added", float(np.mean(np.abs(off_j) <= plain_j)), "", None, "higher"),
        Goal(f"{name}, to be added", added_error(true_j, given_j, plain_j), "", None, "lower"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, and half the time")
    options = parser.parse_args()
    seconds, seeds = (QUICK_SECONDS, QUICK_SEEDS) if options.quick else (SECONDS, SEEDS)
    by_hook, by_guess = [], []
    for seed in seeds:
        random = np.random.default_rng(seed)
        run = engine.serve(attribution.chat_arrivals(SHARE, seconds, random), seconds, seed, ((0.0, CAP_W),))
        truth = engine.shapley(run, PERMUTATIONS, seed)
        with tempfile.TemporaryDirectory() as name:
            told, of = guessed(run, seed, Path(name) / "ring")
        by_hook.append(judged(run, truth, seed, range(len(run.arrivals))))
        by_guess.append(judged(told, truth, seed, of))
    goals = [*figures("hook", by_hook, 0.0), *figures("guessed", by_guess, GUESS_ERROR)]
    finish("guessed", "simulated", goals, {"seconds": seconds, "seeds": list(seeds), "share": SHARE})


if __name__ == "__main__":
    main()
