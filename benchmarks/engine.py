"""A synthetic serving engine on a synthetic board, whose physics is not the form that the meter fits.

The scheduler is vLLM's in outline: continuous batching with chunked prefill, one step scheduled ahead while the GPU works. The board
takes the longer of computing and reading (a roofline), throttles its clocks above a power cap, leaks more when it is warm, and attends
quadratically. A step's energy scatters by 4 %. What the scheduler writes into the ring is skewed: a step's end is reported 0.2 to 0.8 ms
late. The counter is an exact integral of power, published every T with a lag that nobody tells.

The truth is each request's Shapley value: for each step the game whose value is what the board would spend on a subset of its
requests, at the step's temperature and cap, scaled to what the step did spend. A gap under 50 ms is paid alike by the requests that run on
both sides of it.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from etameter.records import Edge
from etameter.serving.ring import Dispatch, Done, Finish, Introduction, Row, row_table

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

GPU_UUID = "GPU-synthetic-0"
MAX_BATCH = 256
STEP_TOKENS = 1024
"""Budget of a step: long prompts are prefilled in chunks."""
STEP_NOISE = 0.04
SKEW_MS = (0.2, 0.8)
STALL_SHARE, STALL_MS = 0.004, (5.0, 40.0)
"""So often the host keeps the GPU waiting for so long."""
BUBBLE_S = 0.05
POLL_NS = 5_000_000

PREFILL, PAIRS, DECODE, ATTENDED, SEQUENCES = range(5)
"""Columns of a load: what a step, or one request in it, asks of the board."""


@dataclass(frozen=True, slots=True)
class SyntheticBoard:
    """Physics of one board with one 8-billion-parameter model in 8-bit weights. None of the numbers is the meter's prior."""

    parameters: float = 8.0e9
    weight_bytes: float = 8.0e9
    kv_token_bytes: float = 147_456.0
    pair_flop: float = 589_824.0
    bytes_per_s: float = 2.4e12
    flop_per_s: float = 5.0e14
    launch_s: float = 6e-4
    sequence_s: float = 4e-6
    idle_w: float = 90.0
    leak_w: float = 14.0
    leak_per_kelvin: float = 0.03
    dynamic_per_kelvin: float = 0.0012
    joules_per_byte: float = 1.1e-10
    joules_per_flop: float = 8.5e-13
    decode_j: float = 0.002
    kelvin_per_watt: float = 0.06
    ambient_c: float = 32.0
    thermal_s: float = 35.0

    def standing_w(self, temperature_c: float | Array) -> float | Array:
        """What the board draws with nothing running."""
        return self.idle_w + self.leak_w * np.exp(self.leak_per_kelvin * (np.asarray(temperature_c) - 50.0))

    def spend(self, load: Array, temperature_c: float | Array, cap_w: float | Array) -> tuple[Array, Array]:
        """Joules and seconds of running `load` (… × 5) as one step."""
        flop = 2 * self.parameters * (load[..., PREFILL] + load[..., DECODE])
        flop = flop + self.pair_flop * (load[..., PAIRS] + load[..., ATTENDED])
        read = self.weight_bytes + self.kv_token_bytes * load[..., ATTENDED]
        compute_s, memory_s = flop / self.flop_per_s, read / self.bytes_per_s
        launch_s = self.launch_s + self.sequence_s * load[..., SEQUENCES]
        dynamic_j = read * self.joules_per_byte + flop * self.joules_per_flop + self.decode_j * load[..., DECODE]
        dynamic_j = dynamic_j * (1 + self.dynamic_per_kelvin * (np.asarray(temperature_c) - 50.0))
        standing_w = self.standing_w(temperature_c)
        clock = np.ones_like(flop)
        seconds = np.maximum(compute_s, memory_s) + launch_s
        joules = dynamic_j
        for _ in range(6):  # above the cap clocks fall: everything takes longer, computing most, and costs less
            over = joules / seconds / (np.asarray(cap_w) - standing_w)
            clock = np.minimum(clock * over**-0.5, 1.0)
            seconds = np.maximum(compute_s / clock, memory_s / clock**0.3) + launch_s
            joules = dynamic_j * (0.4 + 0.6 * clock**2)
        return joules + standing_w * seconds, seconds


@dataclass(frozen=True, slots=True)
class Arrival:
    t_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(slots=True)
class _Request:
    number: int
    arrival: Arrival
    computed: int
    decoded: int = 0


@dataclass(slots=True)
class _Plan:
    """A step that was scheduled: rows in the ring's own form, and the requests whose last step it is."""

    rows: list[Row]
    introductions: list[Introduction]
    finishing: list[_Request]


class _Scheduler:
    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self.ahead = deque(enumerate(arrivals))
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []
        self.introduced: set[int] = set()

    def next_arrival_s(self) -> float:
        return self.ahead[0][1].t_s if self.ahead else math.inf

    def admit(self, now_s: float) -> None:
        while self.ahead and self.ahead[0][1].t_s <= now_s:
            number, arrival = self.ahead.popleft()
            self.waiting.append(_Request(number, arrival, arrival.cached_tokens))

    def plan(self) -> _Plan:
        """Decodes first, then prefills in order of arrival, until the step is full."""
        plan = _Plan([], [], [])
        budget = STEP_TOKENS
        for request in self.running:
            decodes = request.computed >= request.arrival.prompt_tokens
            if decodes and request.decoded < request.arrival.output_tokens - 1:
                budget -= 1
        for request in self.running:
            budget = self._schedule(plan, request, budget)
        while self.waiting and len(self.running) < MAX_BATCH and budget > 0:
            self.running.append(self.waiting.popleft())
            budget = self._schedule(plan, self.running[-1], budget)
        for request in plan.finishing:
            self.running.remove(request)
        return plan

    def _schedule(self, plan: _Plan, request: _Request, budget: int) -> int:
        arrival = request.arrival
        if request.computed < arrival.prompt_tokens:
            tokens = min(arrival.prompt_tokens - request.computed, budget)
            if tokens <= 0:
                return budget
            cached = 0
            if request.number not in self.introduced:
                self.introduced.add(request.number)
                cached = arrival.cached_tokens
                name = f"request-{request.number}"
                plan.introductions.append(
                    Introduction(request.number, name, arrival.prompt_tokens, round(arrival.t_s * 1e9))
                )
            plan.rows.append((request.number, tokens, 0, cached, 0, 0, 0, request.computed, 0))
            request.computed += tokens
            if request.computed >= arrival.prompt_tokens and arrival.output_tokens <= 1:
                plan.finishing.append(request)
            return budget - tokens
        plan.rows.append((request.number, 0, 1, 0, 0, 0, 0, request.computed, 0))
        request.computed += 1
        request.decoded += 1
        if request.decoded >= arrival.output_tokens - 1:
            plan.finishing.append(request)
        return budget


@dataclass(slots=True)
class Run:
    """What an engine did, what it wrote down, and what it truly cost. Seconds since the start, S steps, R rows."""

    board: SyntheticBoard
    arrivals: Sequence[Arrival]
    end_s: float = 0.0
    records: list[Dispatch | Done | Finish] = field(default_factory=list)
    begin_s: list[float] = field(default_factory=list)
    """S: when the GPU began, by nobody's clock but this one's."""
    finish_s: list[float] = field(default_factory=list)
    reported: list[tuple[float, float]] = field(default_factory=list)
    """S: dispatch and done as the ring tells them."""
    temperature_c: list[float] = field(default_factory=list)
    cap_w: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    expected_j: list[float] = field(default_factory=list)
    """S: what the physics says; `joules` scatters around it."""
    rows: list[list[Row]] = field(default_factory=list)
    knots: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, joules so far): linear in between."""
    bubbles: list[tuple[int, float, list[int]]] = field(default_factory=list)
    """(step after the gap, joules, numbers of those who pay)."""
    standing: list[tuple[float, float]] = field(default_factory=list)
    """S: seconds and watts of the gap before each step."""
    finished_s: dict[int, float] = field(default_factory=dict)
    cap_changes: list[tuple[float, float]] = field(default_factory=list)

    def loads(self) -> tuple[Array, IntArray, IntArray]:
        """Rows as loads (R × 5), with their steps and requests."""
        counts = [len(rows) for rows in self.rows]
        table = np.array([row for rows in self.rows for row in rows], dtype=np.float64).reshape(-1, 9)
        prefill, decode, context = table[:, 1], table[:, 2], table[:, 7]
        load = np.zeros((len(table), 5))
        load[:, PREFILL], load[:, DECODE], load[:, SEQUENCES] = prefill, decode, 1.0
        load[:, PAIRS] = prefill * (context + (prefill + 1) / 2)
        load[:, ATTENDED] = np.where(decode > 0, context + decode, 0.0)
        return load, np.repeat(np.arange(len(counts)), counts), table[:, 0].astype(np.int64)


def serve(
    arrivals: Sequence[Arrival], seconds: float, seed: int, caps_w: Sequence[tuple[float, float]] = ((0.0, 600.0),)
) -> Run:
    """Serve `arrivals` until `seconds` are over. `caps_w` are (from second, watts)."""
    random = np.random.default_rng(seed)
    board = SyntheticBoard()
    run = Run(board, arrivals, cap_changes=list(caps_w))
    scheduler = _Scheduler(arrivals)
    temperature_c, cap_w = 42.0, caps_w[0][1]
    gpu_free_s, spent_j = 0.0, 0.0
    before: set[int] = set()
    schedule_s, done_before_s, done_s = 0.0, 0.0, 0.0
    run.knots.append((0.0, 0.0))
    while True:
        scheduler.admit(schedule_s)
        plan = scheduler.plan()
        if not plan.rows:
            schedule_s = max(schedule_s, done_s, scheduler.next_arrival_s())
            if schedule_s >= seconds:
                break
            continue
        if schedule_s >= seconds:
            break
        if random.random() < STALL_SHARE:
            schedule_s += random.uniform(*STALL_MS) * 1e-3
        dispatch_s = schedule_s
        begin_s = max(gpu_free_s + random.uniform(2e-5, 8e-5), dispatch_s + random.uniform(*SKEW_MS) * 1e-3)
        cap_w = next(watts for since_s, watts in reversed(caps_w) if since_s <= begin_s)
        standing_w = float(board.standing_w(temperature_c))
        gap_s = begin_s - gpu_free_s
        temperature_c = _warm(board, temperature_c, standing_w, gap_s)
        load = _load(plan.rows)
        step_j, step_s = (float(figure) for figure in board.spend(load, temperature_c, cap_w))
        joules = step_j * (1 + STEP_NOISE * random.standard_normal())
        now = {row[0] for row in plan.rows}
        if gap_s < BUBBLE_S:
            run.bubbles.append((len(run.rows), standing_w * gap_s, sorted(now & before)))
        run.standing.append((gap_s, standing_w))
        finish_s = begin_s + step_s
        run.knots += [(begin_s, spent_j + standing_w * gap_s), (finish_s, spent_j + standing_w * gap_s + joules)]
        spent_j = run.knots[-1][1]
        done_before_s, done_s = done_s, max(finish_s + random.uniform(*SKEW_MS) * 1e-3, done_s + 1e-6)
        step_id = len(run.rows)
        run.records.append(
            Dispatch(step_id, round(dispatch_s * 1e9), 0, row_table(plan.rows), tuple(plan.introductions))
        )
        run.records.append(Done(step_id, round(done_s * 1e9)))
        for request in plan.finishing:
            run.records.append(Finish(request.number, round(done_s * 1e9) + 1, request.decoded + 1, "length"))
            run.finished_s[request.number] = done_s
        run.begin_s.append(begin_s)
        run.finish_s.append(finish_s)
        run.reported.append((dispatch_s, done_s))
        run.temperature_c.append(temperature_c)
        run.cap_w.append(cap_w)
        run.joules.append(joules)
        run.expected_j.append(step_j)
        run.rows.append(plan.rows)
        temperature_c = _warm(board, temperature_c, joules / step_s, step_s)
        before, gpu_free_s = now, finish_s
        schedule_s = max(begin_s + 3e-4, done_before_s)
    run.end_s = max(seconds, gpu_free_s)
    standing_w = float(board.standing_w(temperature_c))
    run.knots.append((run.end_s + 2.0, spent_j + standing_w * (run.end_s + 2.0 - gpu_free_s)))
    run.records.sort(key=lambda record: record.t_ns)
    return run


def _load(rows: Sequence[Row]) -> Array:
    load = [0.0] * 5
    for _, prefill, decode, _, _, _, _, context, _ in rows:
        load[PREFILL] += prefill
        load[PAIRS] += prefill * (context + (prefill + 1) / 2)
        load[DECODE] += decode
        load[ATTENDED] += context + decode if decode else 0
        load[SEQUENCES] += 1
    return np.array(load)


def _warm(board: SyntheticBoard, temperature_c: float, watts: float, seconds: float) -> float:
    settled_c = board.ambient_c + board.kelvin_per_watt * watts
    return settled_c + (temperature_c - settled_c) * math.exp(-seconds / board.thermal_s)


def summed(index: IntArray, values: Array, count: int) -> Array:
    """Σ of the values at each of `count` indices."""
    return np.bincount(index, weights=values, minlength=count).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Truth:
    """R rows' own joules in their steps, the standard errors of the sampling, and requests' sums."""

    row_j: Array
    row_error_j: Array
    prompt_j: Array
    """By request number."""
    output_j: Array
    error_j: Array
    """Standard error of prompt plus output: sampling, nothing else."""


def shapley(run: Run, permutations: int, seed: int) -> Truth:
    """Shapley values of every step's game, by antithetic permutations.

    What is sampled is only the game's nonlinear rest: its value for no work at all (1/n for each) and a linear part (whatever each adds, on
    its own and at last) are known exactly, and subtracting a game whose Shapley value is known leaves the estimate unbiased.
    """
    random = np.random.default_rng(seed)
    load, row_step, row_request = run.loads()
    temperature_c, cap_w = np.array(run.temperature_c), np.array(run.cap_w)
    scale = np.array(run.joules) / np.array(run.expected_j)
    players = np.bincount(row_step, minlength=len(run.rows))
    first = np.concatenate([[0], np.cumsum(players)[:-1]])
    value, variance = np.zeros(len(load)), np.zeros(len(load))
    for count in np.unique(players):
        of_size = np.flatnonzero(players == count)
        at_once = max(1, 400_000 // (int(count) * permutations))
        for begin in range(0, len(of_size), at_once):
            steps = of_size[begin : begin + at_once]
            rows = first[steps][:, None] + np.arange(count)
            figures = _shapley(run.board, load[rows], temperature_c[steps], cap_w[steps], permutations, random)
            value[rows], variance[rows] = (
                figures[0] * scale[steps][:, None],
                figures[1] * scale[steps][:, None] ** 2,
            )
    requests = len(run.arrivals)
    prefill = load[:, PREFILL] > 0
    prompt_j = summed(row_request, np.where(prefill, value, 0.0), requests)
    output_j = summed(row_request, np.where(prefill, 0.0, value), requests)
    for step, joules, numbers in run.bubbles:
        for number in numbers:
            in_prefill = prefill[first[step] + next(i for i, row in enumerate(run.rows[step]) if row[0] == number)]
            (prompt_j if in_prefill else output_j)[number] += joules / len(numbers)
    error_j = np.sqrt(summed(row_request, variance, requests))
    return Truth(value, np.sqrt(variance), prompt_j, output_j, error_j)


def _shapley(
    board: SyntheticBoard,
    load: Array,
    temperature_c: Array,
    cap_w: Array,
    permutations: int,
    random: np.random.Generator,
) -> tuple[Array, Array]:
    """Values and their variances (G × n) of G steps with n players each (`load` is G × n × 5)."""
    games, count, _ = load.shape

    def spend(loads: Array) -> Array:
        over = (games,) + (1,) * (loads.ndim - 2)
        return board.spend(loads, temperature_c.reshape(over), cap_w.reshape(over))[0]

    everybody = load.sum(axis=1)
    whole_j = spend(everybody)
    if count == 1:
        return whole_j[:, None], np.zeros((games, 1))
    pass_j = spend(np.zeros((games, 5)))
    alone_j = spend(load) - pass_j[:, None]
    last_j = whole_j[:, None] - spend(everybody[:, None] - load)
    linear_j = (alone_j + last_j) / 2
    exact_j = linear_j + pass_j[:, None] / count
    order = np.argsort(random.random((games, permutations // 2, count)), axis=-1)
    pairs = np.zeros((games, permutations // 2, count))
    for turn in (order, order[..., ::-1]):
        ordered = load[np.arange(games)[:, None, None], turn]
        reached_j = spend(np.cumsum(ordered, axis=2)) - pass_j[:, None, None]
        reached_j -= np.cumsum(np.take_along_axis(linear_j[:, None, :].repeat(turn.shape[1], 1), turn, 2), axis=2)
        added_j = np.diff(reached_j, axis=2, prepend=0.0)
        back = np.empty_like(added_j)
        np.put_along_axis(back, turn, added_j, 2)
        pairs += back / 2
    spread = pairs.var(axis=1, ddof=1) / pairs.shape[1] if pairs.shape[1] > 1 else np.full((games, count), np.nan)
    return exact_j + pairs.mean(axis=1), spread if count > 2 else np.zeros((games, count))


def published_edges(run: Run, period_s: float, lag_s: float, seed: int) -> list[Edge]:
    """Edges that a poll every `POLL_NS` (1 ms for a sensor of 20 ms) finds in the counter of `run`'s board.

    The counter is an exact integral, in whole millijoules, published every `period_s` ± 1 % as of `lag_s` earlier.
    """
    random = np.random.default_rng(seed)
    poll_ns = POLL_NS if period_s > 0.05 else 1_000_000
    count = int((run.end_s + 1.5 - lag_s) / period_s)
    t_s = lag_s + period_s * (np.arange(count) + random.uniform(0, 1)) + random.uniform(-0.01, 0.01, count) * period_s
    knots = np.array(run.knots)
    millijoules = (np.interp(t_s - lag_s, knots[:, 0], knots[:, 1]) * 1000).astype(np.int64)
    edges: list[Edge] = []
    for published_ns, value in zip((t_s * 1e9).astype(np.int64), millijoules, strict=True):
        before_ns = published_ns // poll_ns * poll_ns + int(random.uniform(0, 1e5)) - 50_000
        if before_ns > published_ns:
            before_ns -= poll_ns
        half_ns = (poll_ns + 30_000) // 2
        edges.append(Edge(GPU_UUID, int(before_ns + half_ns), int(half_ns), int(value)))
    return edges[1:]
