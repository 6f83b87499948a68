"""How right the joules of a request are, on an engine whose physics is not the fitted form.

    python -m benchmarks.attribution [--quick] [--data DIRECTORY] [--seeds N]

The synthetic engine (benchmarks/engine.py) serves scaled Azure arrivals and a chat-length load; in mid-run the load halves for a while and
later the power cap falls. The meter sees what it would see of a real one: the edges of an energy counter and the ring's records, in ticks of
50 ms. Its receipts are compared with the Shapley values of the engine's own energy, beside the peers' and two oracles' on the same run:

    physics  knows the engine's noise-free energy of every step, its shares, the standing power and the lag
    linear   knows the lag, and for each cap the coefficients of a form linear in work that come nearest to the true shares

The Azure trace is read from DIRECTORY/azure (default: the environment's ETAMETER_DATA); without it only the chat load is run.
"""

import argparse
import csv
import gzip
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import engine
from benchmarks.engine import DECODE, PREFILL, Array, Arrival, Run, Truth
from benchmarks.report import Goal, finish
from etameter.accounts import Accounts
from etameter.attribution import reconcile
from etameter.devices import Device
from etameter.ledger import RequestRow
from etameter.records import Conditions, Edge
from etameter.serving.ring import RingHeader

TRACE = Path("azure") / "AzureLLMInferenceTrace_code.csv.gz"
WARM_UP_S = 20.0
"""Requests that arrive earlier aren't judged: the fit has nothing yet."""
TICK_S = 0.05
CAPS_W = 540.0, 440.0
PERMUTATIONS = 16
PERIODS_S = {"100ms": 0.1, "20ms": 0.02}


@dataclass(slots=True)
class Estimate:
    """One method's figures by request number; NaN where it gives none."""

    prompt_j: Array
    output_j: Array
    error_j: Array | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """Energy-weighted, over the requests that are judged."""

    error: float
    prompt_bias: float
    output_bias: float
    coverage: float | None = None
    weighted_coverage: float | None = None
    interval_score: float | None = None
    """Of 95 % intervals, in mean joules of a request: width + 40 × what lies outside. Lower is better."""


# ------------------------------------------------------------------------------------------------------------------ loads


def azure_arrivals(trace: Path, share: float, seconds: float, random: np.random.Generator) -> list[Arrival]:
    """A stretch of the trace, compressed in time to `share` of what the engine can serve."""
    with gzip.open(trace, "rt") as file:
        table = [
            (datetime.fromisoformat(row["TIMESTAMP"][:26]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(file)
        ]
    begin = int(random.integers(0, len(table) // 2))
    table = table[begin:] + table[:begin]
    seconds_of = np.array([row[0].timestamp() for row in table])
    distances = np.clip(np.diff(seconds_of, prepend=seconds_of[0]), 0.0, 10.0)
    shapes = [Arrival(0.0, max(prompt, 1), max(output, 1)) for _, prompt, output in table]
    return _timed(shapes, distances, share, seconds)


def chat_arrivals(share: float, seconds: float, random: np.random.Generator) -> list[Arrival]:
    """Log-normal prompts and answers, Poisson arrivals; three requests in ten find half of their prompt in the prefix cache."""
    count = int(120 * seconds)
    prompts = np.clip(random.lognormal(5.2, 1.0, count), 8, 4000).astype(int)
    outputs = np.clip(random.lognormal(5.4, 0.8, count), 2, 2000).astype(int)
    cached = np.where(random.random(count) < 0.3, prompts // 2, 0)
    shapes = [Arrival(0.0, int(p), int(o), int(c)) for p, o, c in zip(prompts, outputs, cached, strict=True)]
    return _timed(shapes, random.exponential(1.0, count), share, seconds)


def _timed(shapes: Sequence[Arrival], distances: Array, share: float, seconds: float) -> list[Arrival]:
    """Arrivals at `share` of the engine's capacity for these shapes; half as many between 45 % and 60 % of the time."""
    sample = shapes[:1500]
    saturated = engine.serve(sample, 3600.0, 0, ((0.0, CAPS_W[0]),))
    per_second = len(sample) / max(saturated.finished_s.values())
    scaled = distances / distances.mean() / (share * per_second)
    arrivals, t_s = [], 0.0
    for shape, distance_s in zip(shapes, scaled, strict=True):
        t_s += float(distance_s) * (2.0 if 0.45 * seconds < t_s < 0.6 * seconds else 1.0)
        if t_s >= seconds:
            break
        arrivals.append(Arrival(t_s, shape.prompt_tokens, shape.output_tokens, shape.cached_tokens))
    return arrivals


# ------------------------------------------------------------------------------------------------------------------ methods


def metered(run: Run, edges: Sequence[Edge]) -> Estimate:
    """Ours: what the meter's daemon does with edges and records, in its ticks."""
    header = RingHeader("boot", "engine-0", (engine.GPU_UUID,), "synthetic-8b", "fp8", 1, 0, SHAPE)
    device = Device(engine.GPU_UUID, "nvml", "simulated", "NVIDIA H100 80GB HBM3")
    accounts = Accounts([device], "boot")
    accounts.timelines()[engine.GPU_UUID].power_limit_w = run.cap_changes[0][1]
    accounts.open_engine(header)
    rows: dict[int, RequestRow] = {}
    changes = [(t_s + 2.5, watts) for t_s, watts in run.cap_changes[1:]]  # asked for every 5 s
    next_record, next_edge, ticks = 0, 0, int((run.end_s + 1.5) / TICK_S)
    unattributed_j, measured_j = 0.0, 0.0
    began = time.process_time()
    for tick in range(1, ticks + 1):
        now_ns = round(tick * TICK_S * 1e9)
        records_end, edges_end = next_record, next_edge
        while records_end < len(run.records) and run.records[records_end].t_ns <= now_ns:
            records_end += 1
        while edges_end < len(edges) and edges[edges_end].t_ns + edges[edges_end].half_width_ns <= now_ns:
            edges_end += 1
        accounts.steps(run.records[next_record:records_end], now_ns)
        accounts.found(edges[next_edge:edges_end])
        next_record, next_edge = records_end, edges_end
        while changes and changes[0][0] * 1e9 <= now_ns:
            watts = changes.pop(0)[1]
            accounts.changed([Conditions(engine.GPU_UUID, now_ns, (watts,), watts)])
        batch = accounts.settle()
        if batch is None:
            continue
        for balance, _ in batch.balances:
            measured_j += balance.measured_j
            unattributed_j += sum(balance.unattributed_j_by_cause.values())
            if abs(balance.residual_j) > 1e-6 * max(balance.measured_j, 1.0):
                raise AssertionError(f"the balance misses {balance.residual_j} J")
        for row in batch.rows:
            if row.energy.settled and row.energy.method == "step-cost":
                rows[row.number] = row
    seconds = time.process_time() - began
    prompt_j, output_j, error_j = (np.full(len(run.arrivals), math.nan) for _ in range(3))
    for number, row in rows.items():
        prompt_j[number], output_j[number] = row.energy.prompt_j, row.energy.output_j
        error_j[number] = row.energy.error_j
    costs = accounts.costs()[engine.GPU_UUID]
    notes = {
        "lag_ms": costs.lag_ns * 1e-6,
        "step_noise": round(costs.step_noise, 4),
        "unattributed": unattributed_j / max(measured_j, 1e-9),
        "metering_s": round(seconds, 1),
    }
    return Estimate(prompt_j, output_j, error_j, notes)


SHAPE = {
    "num_layers": 36,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "weights_bytes": 8_000_000_000,
}
"""What the ring says of the model; the meter's first guess comes from it."""


def receipts(run: Run, step_j: Array, fraction: Array, bubble_j: Array | None = None) -> Estimate:
    """Sum up rows' joules by request, prompt and output apart."""
    load, row_step, row_request = run.loads()
    prefill = load[:, PREFILL] > 0
    joules = step_j[row_step] * fraction
    requests = len(run.arrivals)
    prompt_j = engine.summed(row_request, np.where(prefill, joules, 0.0), requests)
    output_j = engine.summed(row_request, np.where(prefill, 0.0, joules), requests)
    if bubble_j is not None:
        for (step, _, numbers), gap_j in zip(run.bubbles, bubble_j, strict=True):
            in_prefill = {row[0] for row in run.rows[step] if row[1]}
            for number in numbers:
                (prompt_j if number in in_prefill else output_j)[number] += gap_j / len(numbers)
    return Estimate(prompt_j, output_j)


def step_spans(run: Run) -> tuple[Array, Array]:
    """Seconds, as the meter sees them: reported, and cut to be disjoint."""
    dispatch_s, done_s = np.array(run.reported).T
    return np.maximum(dispatch_s, np.concatenate([[0.0], done_s[:-1]])), done_s


def reconciled(
    run: Run, edges: Sequence[Edge], lag_s: float, expected_j: Array, deviation: float, standing_w: Array
) -> Array:
    """Step energies that an oracle believes in, moved to sum to what was measured between edges."""
    begin_s, done_s = step_spans(run)
    length_s = done_s - begin_s
    edge_s = np.array([edge.t_ns for edge in edges]) * 1e-9 - lag_s
    measured_j = np.diff([edge.energy_mj for edge in edges]) / 1000
    half_s = edges[0].half_width_ns * 1e-9
    paid_j = np.zeros(len(expected_j))
    for index, energy_j in enumerate(measured_j):
        start_s, end_s = edge_s[index], edge_s[index + 1]
        first, last = np.searchsorted(done_s, start_s, "right"), np.searchsorted(begin_s, end_s, "left")
        if first >= last:
            continue
        steps = slice(int(first), int(last))
        part = (np.minimum(done_s[steps], end_s) - np.maximum(begin_s[steps], start_s)) / length_s[steps]
        modelled_j = expected_j[steps] * part
        idle_j = standing_w[steps].mean() * max(end_s - start_s - float(np.sum(part * length_s[steps])), 0.0)
        edge_j2 = (energy_j / (end_s - start_s)) ** 2 * 2 * half_s**2 / 3
        joules, _ = reconcile(modelled_j, (deviation * modelled_j) ** 2 + 1e-9, float(energy_j) - idle_j, edge_j2)
        paid_j[steps] += joules
    return paid_j


def physics_oracle(run: Run, truth: Truth, edges: Sequence[Edge], lag_s: float) -> Estimate:
    """The engine's own noise-free step energies and shares on the same edges and the same reported times."""
    _, row_step, _ = run.loads()
    begin_s, done_s = step_spans(run)
    gap_s, gap_w = np.array(run.standing).T
    gpu_s = np.array(run.finish_s) - np.array(run.begin_s)
    expected_j = np.array(run.expected_j)
    standing_w = np.array([run.board.standing_w(each) for each in run.temperature_c])
    around_j = standing_w * np.maximum(done_s - begin_s - gpu_s, 0.0)  # the reported span holds some waiting
    step_j = reconciled(run, edges, lag_s, expected_j + around_j, engine.STEP_NOISE, standing_w)
    step_j -= around_j
    fraction = truth.row_j / np.array(run.joules)[row_step]
    bubble_j = np.array([gap_s[step] * gap_w[step] for step, _, _ in run.bubbles])
    return receipts(run, step_j, fraction, bubble_j)


def linear_oracle(run: Run, truth: Truth, edges: Sequence[Edge], lag_s: float) -> Estimate:
    """Best linear coefficients, for each power cap: those whose division by linear time comes nearest to the true joules of the rows."""
    load, row_step, _ = run.loads()
    work = load[:, :4]  # prefill, pairs, decode, attended
    steps = len(run.rows)
    begin_s, done_s = step_spans(run)
    seconds = done_s - begin_s
    players = np.bincount(row_step, minlength=steps)[row_step]
    standing_w = float(np.mean(np.array(run.standing)[:, 1]))
    caps_w = np.array(run.cap_w)
    row_j = np.zeros(len(load))
    for cap_w in np.unique(caps_w):
        of_cap = np.flatnonzero(caps_w == cap_w)
        rows = np.flatnonzero((caps_w == cap_w)[row_step])
        total = np.stack(
            [np.bincount(row_step[rows], weights=column[rows], minlength=steps) for column in work.T], axis=1
        )
        duration = _least_squares(np.insert(total[of_cap], 0, 1.0, axis=1), seconds[of_cap], seconds[of_cap])
        marginal_s = (total @ duration[1:])[row_step[rows]]
        time_share = work[rows] @ duration[1:] / np.where(marginal_s != 0, marginal_s, 1.0)
        fixed_s = np.minimum(seconds, duration[0])
        board_j = fixed_s[row_step[rows]] / players[rows] + (seconds - fixed_s)[row_step[rows]] * time_share
        board_j *= standing_w
        design = np.insert(work[rows], 0, 1.0 / players[rows], axis=1)
        true_j = truth.row_j[rows]
        energy = _least_squares(design, true_j - board_j, np.sqrt(np.maximum(true_j, 1e-3)))
        row_j[rows] = board_j + design @ energy
    expected_j = engine.summed(row_step, row_j, steps)
    off = np.array(run.joules) / expected_j - 1
    step_j = reconciled(run, edges, lag_s, expected_j, float(np.std(off)), np.full(steps, standing_w))
    gap_s = np.maximum(begin_s[1:] - done_s[:-1], 0.0)
    bubble_j = np.array([standing_w * gap_s[step - 1] if step else 0.0 for step, _, _ in run.bubbles])
    return receipts(run, step_j, row_j / expected_j[row_step], bubble_j)


def _least_squares(design: Array, target: Array, size: Array) -> Array:
    """With errors in proportion to `size`."""
    unit = np.maximum(np.abs(design).mean(axis=0), 1e-12)
    solution: Array = np.linalg.lstsq(design / unit / size[:, None], target / size, rcond=None)[0] / unit
    return solution


def _even_steps(run: Run, edges: Sequence[Edge], lag_s: float) -> Array:
    """Step energies if power were constant between edges. The peers below are told the true lag."""
    begin_s, done_s = step_spans(run)
    edge_s = np.array([edge.t_ns for edge in edges]) * 1e-9 - lag_s
    spent_j = np.array([edge.energy_mj for edge in edges]) / 1000
    joules: Array = np.interp(done_s, edge_s, spent_j) - np.interp(begin_s, edge_s, spent_j)
    return joules


def by_tokens(run: Run, edges: Sequence[Edge], lag_s: float) -> Estimate:
    """Each step's energy by the tokens that it computes for each request."""
    load, row_step, _ = run.loads()
    tokens = load[:, PREFILL] + load[:, DECODE]
    return receipts(run, _even_steps(run, edges, lag_s), tokens / np.bincount(row_step, weights=tokens)[row_step])


def by_residency(run: Run, edges: Sequence[Edge], lag_s: float) -> Estimate:
    """Each step's energy in equal parts to the requests in its batch."""
    _, row_step, _ = run.loads()
    return receipts(run, _even_steps(run, edges, lag_s), 1.0 / np.bincount(row_step)[row_step])


def by_open_requests(run: Run, edges: Sequence[Edge], lag_s: float) -> Estimate:
    """Equal split among open requests every 0.1 s: landauer-gap's own ledger where it is installed, else the same rule.

    `lag_s` is not used: the rule has no notion of it. It doesn't tell prompt from output.
    """
    del lag_s
    published_ns = np.array([edge.t_ns for edge in edges])
    published_j = np.array([edge.energy_mj for edge in edges]) / 1000

    def counter_j(t_s: float) -> float:
        return float(published_j[max(int(np.searchsorted(published_ns, t_s * 1e9, "right")) - 1, 0)])

    opened = [(arrival.t_s, 0, number) for number, arrival in enumerate(run.arrivals)]
    closed = [(t_s, 1, number) for number, t_s in run.finished_s.items()]
    ticks = [(tick * 0.1, 2, 0) for tick in range(1, int(run.end_s / 0.1))]
    events = sorted([*opened, *closed, *ticks])
    total_j = np.full(len(run.arrivals), math.nan)
    now = SimpleNamespace(s=0.0)
    ledger = _landauer(lambda: counter_j(now.s), lambda: now.s) or OpenRequests(lambda: counter_j(now.s))
    for now.s, kind, number in events:
        if kind == 0:
            ledger.begin(str(number))
        elif kind == 1:
            total_j[number] = ledger.end(str(number))["energy_j"]
        else:
            ledger._tick()  # noqa: SLF001  # landauer-gap's own loop calls this every 0.1 s
    unknown = np.full(len(total_j), math.nan)
    return Estimate(total_j, unknown, notes={"ledger": type(ledger).__module__})


class OpenRequests:
    """The rule of landauer-gap's ledger, for where it isn't installed."""

    def __init__(self, read_j: Callable[[], float]) -> None:
        self._read_j = read_j
        self._last_j = read_j()
        self._open: dict[str, float] = {}

    def _tick(self) -> None:
        now_j = self._read_j()
        for name in self._open:
            self._open[name] += (now_j - self._last_j) / len(self._open)
        self._last_j = now_j

    def begin(self, name: str) -> None:
        self._tick()
        self._open[name] = 0.0

    def end(self, name: str) -> dict[str, float]:
        self._tick()
        return {"energy_j": self._open.pop(name)}


def _landauer(read_j: Callable[[], float], now_s: Callable[[], float]) -> Any:
    """landauer-gap's ledger on a counter and a clock of ours; None where it isn't installed."""
    try:
        meters, proxy = import_module("joules.meters"), import_module("joules.proxy")
    except ImportError:
        return None

    class Counter(meters.CounterMeter):  # type: ignore[name-defined, misc]  # it ships no types
        method = "counter"

        def read_j(self) -> float:
            return read_j()

    proxy.time = SimpleNamespace(monotonic=now_s)  # type: ignore[attr-defined]
    return proxy.Ledger([Counter("synthetic")])


# ------------------------------------------------------------------------------------------------------------------ scores


def judged(run: Run, truth: Truth, ours: Estimate) -> Array:
    """Requests that ran wholly in the metered time and after the warm-up."""
    late = np.array([arrival.t_s >= WARM_UP_S for arrival in run.arrivals])
    which: Array = late & np.isfinite(ours.prompt_j) & (truth.prompt_j + truth.output_j > 0)
    return which


def score(estimate: Estimate, truth: Truth, which: Array) -> Score:
    true_prompt, true_output = truth.prompt_j[which], truth.output_j[which]
    true_j = true_prompt + true_output
    prompt_j, output_j = estimate.prompt_j[which], estimate.output_j[which]
    known = np.isfinite(output_j)
    energy_j = prompt_j + np.where(known, output_j, 0.0)
    off_j = np.abs(energy_j - true_j)
    prompt_bias = output_bias = math.nan
    if np.all(known):
        prompt_bias = float(np.sum(prompt_j) / np.sum(true_prompt)) - 1
        output_bias = float(np.sum(output_j) / np.sum(true_output)) - 1
    error = float(np.sum(off_j) / np.sum(true_j))
    if estimate.error_j is None:
        return Score(error, prompt_bias, output_bias)
    half_j = estimate.error_j[which]
    inside = off_j <= half_j
    winkler_j = 2 * half_j + 2 / 0.05 * np.maximum(off_j - half_j, 0.0)
    return Score(
        error,
        prompt_bias,
        output_bias,
        coverage=float(np.mean(inside)),
        weighted_coverage=float(np.sum(true_j * inside) / np.sum(true_j)),
        interval_score=float(np.mean(winkler_j) / np.mean(true_j)),
    )


METHODS: dict[str, Callable[[Run, Sequence[Edge], float], Estimate]] = {
    "equal_split": by_open_requests,
    "tokens": by_tokens,
    "residency": by_residency,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One load on one engine, one sensor."""

    load: str
    period: str
    seed: int
    requests: int
    batch: float
    lag_ms: float
    truth_error: float
    scores: dict[str, Score]
    notes: dict[str, Any]
    points: list[list[float]]
    """Of each request that is judged: true joules, ours, our half-width, by equal split, by tokens."""


def play(load: str, share: float, seconds: float, seed: int, trace: Path | None) -> list[Case]:
    """Serve a load once; meter it with each sensor."""
    random = np.random.default_rng([seed, *load.encode()])
    if trace is None or load.startswith("chat"):
        arrivals = chat_arrivals(share, seconds, random)
    else:
        arrivals = azure_arrivals(trace, share, seconds, random)
    run = engine.serve(arrivals, seconds, seed, ((0.0, CAPS_W[0]), (0.75 * seconds, CAPS_W[1])))
    truth = engine.shapley(run, PERMUTATIONS, seed)
    cases = []
    for period, period_s in PERIODS_S.items():
        lag_s = float(random.uniform(0.0, 0.08))
        edges = engine.published_edges(run, period_s, lag_s, seed)
        ours = metered(run, edges)
        which = judged(run, truth, ours)
        scores = {"etameter": score(ours, truth, which)}
        joules = {"etameter": ours.prompt_j + ours.output_j}
        scores["physics"] = score(physics_oracle(run, truth, edges, lag_s), truth, which)
        scores["linear"] = score(linear_oracle(run, truth, edges, lag_s), truth, which)
        notes = dict(ours.notes)
        for name, method in METHODS.items():
            estimate = method(run, edges, lag_s)
            scores[name] = score(estimate, truth, which)
            joules[name] = estimate.prompt_j + np.nan_to_num(estimate.output_j)
            notes |= estimate.notes
        true_j = float(np.sum(truth.prompt_j[which] + truth.output_j[which]))
        truth_error = float(np.sum(truth.error_j[which]) / true_j)
        batch = float(np.mean([len(rows) for rows in run.rows]))
        assert ours.error_j is not None
        columns = (
            truth.prompt_j + truth.output_j,
            joules["etameter"],
            ours.error_j,
            joules["equal_split"],
            joules["tokens"],
        )
        points = np.stack(columns, axis=1)[which].round(3).tolist()
        cases.append(Case(load, period, seed, int(which.sum()), batch, lag_s * 1e3, truth_error, scores, notes, points))
    return cases


def show(case: Case) -> None:
    print(
        f"\n{case.load} T={case.period} seed {case.seed}: {case.requests} requests, mean batch {case.batch:.1f}, lag {case.lag_ms:.0f} ms "
        f"(learned {case.notes['lag_ms']:.0f}), truth ± {case.truth_error:.2%}, unattributed {case.notes['unattributed']:.2%}, "
        f"step noise {case.notes['step_noise']}, metered in {case.notes['metering_s']} s"
    )
    for name, each in case.scores.items():
        line = f"  {name:12} error {each.error:7.2%}  prompt bias {each.prompt_bias:+7.2%}  output bias {each.output_bias:+7.2%}"
        if each.coverage is not None:
            line += f"  coverage {each.coverage:.1%} (by energy {each.weighted_coverage:.1%})  interval score {each.interval_score:.3f}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: one seed, short runs, T = 100 ms and 20 ms"
    )
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("ETAMETER_DATA"), help="directory of the Azure trace"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", help="only the loads whose names begin so")
    parser.add_argument("--points", help="tell every request of this load, with the first seed at T = 100 ms, too")
    options = parser.parse_args()
    seconds = 60.0 if options.quick else 150.0
    seeds = 1 if options.quick else options.seeds
    trace = Path(options.data) / TRACE if options.data else None
    shares = (0.7,) if options.quick else (0.3, 0.7, 0.95)
    loads = {f"chat-{share * 100:.0f}": share for share in shares[-2:]}
    if trace is not None and trace.exists():
        loads |= {f"azure-{share * 100:.0f}": share for share in shares}
    tasks = [
        (load, share, seconds, seed, trace)
        for load, share in loads.items()
        if load.startswith(options.only or "")
        for seed in range(1, seeds + 1)
    ]
    cases = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for played in pool.map(play, *zip(*tasks, strict=True)):
            for case in played:
                show(case)
                cases.append(case)
    context = {"loads": table(cases), **about(cases, seconds, seeds)}
    if options.points:
        shown = next(case for case in cases if (case.load, case.seed, case.period) == (options.points, 1, "100ms"))
        context["points"] = {shown.load: shown.points}
    finish("attribution", "simulated", goals_of(cases), context)


def goals_of(cases: Sequence[Case]) -> list[Goal]:
    """The worst load decides; a load's figure is the mean over its seeds and sensors."""

    def worst(figure: Callable[[Case], float], load: str = "", *, least: bool = False) -> float | None:
        means = [
            float(np.mean([figure(case) for case in cases if case.load == name]))
            for name in sorted({case.load for case in cases if case.load.endswith(load)})
        ]
        return (min if least else max)(means) if means else None

    def gain(case: Case, *peers: str) -> float:
        return min(case.scores[peer].error for peer in peers) / case.scores["etameter"].error

    return [
        Goal(
            "error_to_oracle",
            worst(lambda c: c.scores["etameter"].error / c.scores["linear"].error),
            "ratio",
            1.25,
            "lower",
        ),
        Goal(
            "error_to_physics_oracle",
            worst(lambda c: c.scores["etameter"].error / c.scores["physics"].error),
            "ratio",
            None,
            "lower",
        ),
        Goal("error_at_70", worst(lambda c: 100 * c.scores["etameter"].error, "-70"), "%", 3.0, "lower"),
        Goal("prefill_bias", worst(lambda c: 100 * abs(c.scores["etameter"].prompt_bias)), "%", 1.0, "lower"),
        Goal("decode_bias", worst(lambda c: 100 * abs(c.scores["etameter"].output_bias)), "%", 1.0, "lower"),
        Goal("gain_over_equal_split", worst(lambda c: gain(c, "equal_split"), least=True), "×", 10.0, "higher"),
        Goal(
            "gain_over_tokens_and_residency",
            worst(lambda c: gain(c, "tokens", "residency"), least=True),
            "×",
            3.0,
            "higher",
        ),
        Goal(
            "coverage_least",
            worst(lambda c: 100 * (c.scores["etameter"].coverage or 0.0), least=True),
            "%",
            93.0,
            "higher",
        ),
        Goal("coverage_most", worst(lambda c: 100 * (c.scores["etameter"].coverage or 0.0)), "%", 99.0, "lower"),
        Goal(
            "interval_score",
            worst(lambda c: c.scores["etameter"].interval_score or 0.0),
            "request energies",
            None,
            "lower",
        ),
        Goal("unattributed", worst(lambda c: 100 * float(c.notes["unattributed"])), "%", 0.5, "lower"),
    ]


def table(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Per load and sensor: means over seeds, and the spread of our error."""
    rows = []
    for load, period in dict.fromkeys((case.load, case.period) for case in cases):
        mine = [case for case in cases if (case.load, case.period) == (load, period)]
        errors = [case.scores["etameter"].error for case in mine]
        row: dict[str, Any] = {
            "load": load,
            "period": period,
            "requests": sum(case.requests for case in mine),
            "error_spread": [round(min(errors), 5), round(max(errors), 5)],
            "truth_error": round(float(np.mean([case.truth_error for case in mine])), 6),
            "batch": round(float(np.mean([case.batch for case in mine])), 1),
        }
        for method in mine[0].scores:
            row[method] = round(float(np.mean([case.scores[method].error for case in mine])), 5)
        for figure in ("prompt_bias", "output_bias", "coverage", "weighted_coverage", "interval_score"):
            row[figure] = round(float(np.mean([getattr(case.scores["etameter"], figure) for case in mine])), 5)
        rows.append(row)
    return rows


def about(cases: Sequence[Case], seconds: float, seeds: int) -> dict[str, Any]:
    return {
        "run_s": seconds,
        "seeds": seeds,
        "warm_up_s": WARM_UP_S,
        "oracle": "best coefficients of a form linear in work at each cap, true lag, same edges and reported step times",
        "physics_oracle": "the engine's noise-free step energies and Shapley shares, true lag, same edges",
        "equal_split": sorted({str(case.notes["ledger"]) for case in cases}),
        "statistic": "mean over seeds and sensors, worst load",
    }


if __name__ == "__main__":
    main()
