"""A small engine of known physics feeds the books: everything in them must add up, and come out where it was spent."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etameter.accounts import (
    FORESEEN_METHOD,
    STUCK_NS,
    Accounts,
    Batch,
)
from etameter.books import GUESS_ERROR, METHOD, PARTIAL_METHOD
from etameter.devices import Device, fit_key
from etameter.errors import EngineError
from etameter.gpu import START_UP_NS, START_UP_PART_NS
from etameter.ledger import RUNNING, RequestRow
from etameter.records import Conditions, Edge, Finding
from etameter.serving.ring import Dispatch, Done, Finish, Introduction, Lost, Record, RingHeader, Row, row_table
from etameter.timeline import NORMAL_95

pytestmark = pytest.mark.unit

MS = 1_000_000
PERIOD_NS = 100 * MS
IDLE_W, PASS_J, PREFILL_J, DECODE_J, ATTEND_J = 120.0, 1.9, 0.014, 0.025, 3.4e-5


def header(created_ns: int = 0, *gpu_uuids: str) -> RingHeader:
    return RingHeader("boot", "engine-0", gpu_uuids, "m", "bfloat16", 1, created_ns, {})


@dataclass
class Engine:
    """Runs requests through steps; `spent` is the board's true energy over time, `by_request` who caused its dynamic part."""

    seed: int
    now_ns: int = 0
    records: list[Record] = field(default_factory=list)
    knots: list[tuple[int, float]] = field(default_factory=lambda: [(0, 0.0)])
    dynamic_j: dict[str, float] = field(default_factory=dict)
    usage: dict[str, tuple[int, int]] = field(default_factory=dict)
    step_id: int = 0
    pauses: float = 0.05
    """Share of the steps after which nothing runs for up to `pause_ms`."""
    pause_ms: int = 20

    def idle(self, duration_ns: int) -> None:
        self.now_ns += duration_ns
        self.knots.append((self.now_ns, self.knots[-1][1] + IDLE_W * duration_ns * 1e-9))

    def run(self, prompts: list[int], outputs: list[int], concurrency: int) -> None:
        rng = random.Random(self.seed)
        waiting = [
            (f"r{number}", number, prompt, output)
            for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
        ]
        running: dict[int, list[int]] = {}
        about = {number: (name, prompt, output) for name, number, prompt, output in waiting}
        while waiting or running:
            rows: list[Row] = []
            introduced = []
            for number, state in running.items():
                rows.append((number, 0, 1, 0, 0, 0, 0, state[0], 0))
            while waiting and len(rows) < concurrency:
                name, number, prompt, _ = waiting.pop(0)
                introduced.append(Introduction(number, name, prompt, self.now_ns))
                rows.append((number, prompt, 0, 0, 0, 0, 0, 0, 0))
                running[number] = [0, 0]
            self.step(rows, introduced, about, rng)
            for number, prefill, decode, *_ in rows:
                state = running[number]
                state[0] += prefill + decode
                state[1] += 1
                if state[1] >= about[number][2]:
                    self.records.append(Finish(number, self.now_ns, state[1], "length"))
                    self.usage[about[number][0]] = (about[number][1], state[1])
                    del running[number]
            if rng.random() < self.pauses:
                self.idle(rng.randrange(1, self.pause_ms) * MS)

    def step(
        self,
        rows: list[Row],
        introduced: list[Introduction],
        about: dict[int, tuple[str, int, int]],
        rng: random.Random,
    ) -> None:
        prefill = sum(row[1] for row in rows)
        duration_ns = int((7 + 0.03 * prefill) * MS)
        noise = 1 + rng.gauss(0, 0.03)
        energy_j = IDLE_W * duration_ns * 1e-9 + PASS_J * noise
        for row in rows:
            own_j = (PREFILL_J * row[1] + (DECODE_J + ATTEND_J * (row[7] + 1)) * row[2]) * noise
            energy_j += own_j
            name = about[row[0]][0]
            self.dynamic_j[name] = self.dynamic_j.get(name, 0.0) + own_j
        self.records.append(Dispatch(self.step_id, self.now_ns, 0, row_table(rows), tuple(introduced)))
        self.now_ns += duration_ns
        self.records.append(Done(self.step_id, self.now_ns))
        self.knots.append((self.now_ns, self.knots[-1][1] + energy_j))
        self.step_id += 1

    def edges(self, gpu_uuid: str, lag_ns: int = 0, start_mj: int = 5_000_000) -> list[Edge]:
        """What a perfect counter with this lag would show."""
        found, index = [], 0
        for t_ns in range(PERIOD_NS, self.now_ns + PERIOD_NS, PERIOD_NS):
            at_ns = max(t_ns - lag_ns, 0)
            while index + 1 < len(self.knots) and self.knots[index + 1][0] <= at_ns:
                index += 1
            (left_ns, left_j), (right_ns, right_j) = self.knots[index], self.knots[min(index + 1, len(self.knots) - 1)]
            share = (at_ns - left_ns) / (right_ns - left_ns) if right_ns > left_ns else 0.0
            found.append(Edge(gpu_uuid, t_ns, 2 * MS, start_mj + int((left_j + share * (right_j - left_j)) * 1000)))
        return found


@dataclass
class Books:
    """Keeps what batches say, as the ledger would: a later row of a request replaces the earlier one."""

    rows: dict[int, RequestRow] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)

    def write(self, batch: Batch | None) -> None:
        if batch is not None:
            self.batches.append(batch)
            self.rows.update({row.number: row for row in batch.rows})
            for _, _, number, *values in batch.running:
                self.rows[number] = changed(self.rows[number], dict(zip(RUNNING, values, strict=True)))

    @property
    def measured_j(self) -> float:
        return math.fsum(balance.measured_j for batch in self.batches for balance, _ in batch.balances)

    @property
    def requests_j(self) -> float:
        return math.fsum(row.energy.energy_j for row in self.rows.values())

    def unattributed_j(self, cause: str | None = None) -> float:
        return math.fsum(
            joules
            for batch in self.batches
            for balance, _ in batch.balances
            for name, joules in balance.unattributed_j_by_cause.items()
            if cause in (None, name)
        )

    @property
    def others_j(self) -> float:
        rest = (balance.idle_j + balance.engine_overhead_j for batch in self.batches for balance, _ in batch.balances)
        return math.fsum(rest) + self.unattributed_j()


def changed(row: RequestRow, values: dict[str, Any]) -> RequestRow:
    record = replace(row.record, **{name: values[name] for name in ("first_token_ns", "cached_tokens")})
    energy = replace(
        row.energy, **{name: value for name, value in values.items() if name.endswith("_j") or name == "method"}
    )
    tokens = {name: values[name] for name in ("prefill_tokens", "decode_tokens")}
    return replace(row, record=record, energy=energy, **tokens)


def device(name: str = "GPU-0") -> Device:
    return Device(name, "nvml", "measured", "NVIDIA H100 80GB HBM3")


def feed(accounts: Accounts, books: Books, engine: Engine, edges: Sequence[Finding], piece_ns: int = 250 * MS) -> None:
    """Edges and records as they come: piece by piece, settling after each."""
    records, at = list(engine.records), 0
    for now_ns in range(piece_ns, engine.now_ns + 2_000 * MS, piece_ns):
        until = at
        while until < len(records) and instant(records[until]) <= now_ns:
            until += 1
        accounts.found([edge for edge in edges if now_ns - piece_ns < edge.t_ns <= now_ns])
        accounts.steps(records[at:until], now_ns)
        at = until
        books.write(accounts.settle())


def instant(record: Record) -> int:
    assert isinstance(record, Dispatch | Done | Finish)
    return record.t_ns


def metered(engine: Engine, edges: Sequence[Finding]) -> Books:
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header())
    feed(accounts, books, engine, edges)
    return books


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 600), st.integers(1, 60)), min_size=1, max_size=12),
    st.integers(1, 8),
    st.integers(0, 2**16),
)
def test_every_joule_is_booked_once(requests: list[tuple[int, int]], concurrency: int, seed: int) -> None:
    engine = Engine(seed)
    engine.idle(500 * MS)
    engine.run([prompt for prompt, _ in requests], [output for _, output in requests], concurrency)
    engine.idle(1_000 * MS)
    edges = engine.edges("GPU-0")
    books = metered(engine, list(edges))
    settled = books.batches[-1].resume.last_edges[0]
    assert books.measured_j == pytest.approx((settled.energy_mj - edges[0].energy_mj) / 1000, rel=1e-12)
    assert books.requests_j + books.others_j == pytest.approx(books.measured_j, rel=1e-9)
    for batch in books.batches:
        for (balance, _), increments in zip(batch.balances, batch.increments, strict=True):
            charged_j = math.fsum(increment.prompt_j + increment.output_j for increment in increments)
            assert charged_j == pytest.approx(balance.attributed_j, rel=1e-9, abs=1e-12)
            assert abs(balance.residual_j) <= 1e-9 * max(balance.measured_j, 1)
            assert min(balance.idle_j, balance.engine_overhead_j, *balance.unattributed_j_by_cause.values(), 0) == 0
    assert all(row.energy.settled for row in books.rows.values())
    assert {
        row.record.request_id: (row.prefill_tokens, row.record.output_tokens) for row in books.rows.values()
    } == engine.usage
    assert all(row.decode_tokens == row.record.output_tokens - 1 for row in books.rows.values())
    assert all(min(row.energy.prompt_j, row.energy.output_j) >= 0 for row in books.rows.values())


def long_run(seed: int = 1) -> Engine:
    engine = Engine(seed)
    rng = random.Random(seed)
    engine.idle(1_000 * MS)
    engine.run([rng.randrange(20, 800) for _ in range(150)], [rng.randrange(5, 200) for _ in range(150)], 8)
    engine.idle(2_000 * MS)
    return engine


def test_a_fault_free_run_leaves_hardly_anything_unattributed() -> None:
    engine = long_run()
    books = metered(engine, list(engine.edges("GPU-0")))
    assert books.unattributed_j() <= 0.005 * books.measured_j


def test_a_request_pays_what_it_caused() -> None:
    engine = long_run()
    books = metered(engine, list(engine.edges("GPU-0")))
    late = [row for row in books.rows.values() if row.number >= 50]
    caused_j = sum(engine.dynamic_j[row.record.request_id] for row in late)
    alone_j = sum(row.energy.marginal_j for row in late)
    assert alone_j == pytest.approx(caused_j, rel=0.1)
    errors = [abs(row.energy.marginal_j - engine.dynamic_j[row.record.request_id]) for row in late]
    assert sum(errors) <= 0.15 * caused_j


def test_the_lag_of_the_counter_is_found() -> None:
    engine = Engine(3)
    for burst in range(30):
        engine.seed = burst
        engine.run([700, 300, 50], [20, 30, 10], 2)
        engine.idle(400 * MS)
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header())
    feed(accounts, books, engine, list(engine.edges("GPU-0", lag_ns=60 * MS)))
    costs = accounts.costs()["GPU-0"]
    assert costs.lag_ns == pytest.approx(60 * MS, abs=2 * MS)
    assert costs.lag_error_ns <= 5 * MS
    assert costs.energy[0] == pytest.approx(IDLE_W, rel=0.05)


def test_what_came_before_the_engine_is_its_start_up() -> None:
    engine = long_run()
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header(created_ns=700 * MS))
    feed(accounts, books, engine, list(engine.edges("GPU-0")))
    overhead_j = sum(balance.engine_overhead_j for batch in books.batches for balance, _ in batch.balances)
    assert overhead_j == pytest.approx(IDLE_W * 0.6, rel=0.02)  # from the first edge, at 100 ms, to 700 ms


def test_a_neighbour_is_not_paid_by_requests() -> None:
    engine = long_run()
    honest = metered(engine, list(engine.edges("GPU-0")))
    half_ns = engine.now_ns // 2
    stolen_mj, edges = 0, []
    for edge in engine.edges("GPU-0"):
        stolen_mj += 20_000 if half_ns < edge.t_ns <= half_ns + 3_000 * MS else 0  # 200 W for three seconds
        edges.append(Edge(edge.gpu_uuid, edge.t_ns, edge.half_width_ns, edge.energy_mj + stolen_mj))
    books = metered(engine, list(edges))
    taken_j = books.unattributed_j("model_residual") - honest.unattributed_j("model_residual")
    assert all(row.energy.method == METHOD for row in books.rows.values())
    assert taken_j >= 0.5 * stolen_mj / 1000
    assert books.requests_j + books.others_j == pytest.approx(books.measured_j, rel=1e-9)


def test_a_reset_and_missing_readings_are_unattributed_and_nothing_is_negative() -> None:
    engine = long_run()
    edges: list[Finding] = []
    for edge in engine.edges("GPU-0"):
        if 10_000 * MS < edge.t_ns < 13_000 * MS:
            continue
        reset_mj = 0 if edge.t_ns < 8_000 * MS else 6_000_000
        edges.append(Edge(edge.gpu_uuid, edge.t_ns, edge.half_width_ns, edge.energy_mj - min(reset_mj, edge.energy_mj)))
    books = metered(engine, edges)
    methods = {row.energy.method for row in books.rows.values()}
    assert methods == {METHOD, PARTIAL_METHOD}
    gap_j = books.unattributed_j("readings_missing") + books.unattributed_j("stale")
    assert gap_j > 0
    assert books.requests_j + books.others_j == pytest.approx(books.measured_j, rel=1e-9)
    assert all(balance.measured_j >= 0 for batch in books.batches for balance, _ in batch.balances)


def test_lost_records_make_their_intervals_unattributed() -> None:
    engine = long_run()
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header())
    cut = next(i for i, record in enumerate(engine.records) if instant(record) > 6_000 * MS)
    accounts.found(engine.edges("GPU-0"))
    accounts.steps([*engine.records[:cut], Lost(40), *engine.records[cut + 40 :]], engine.now_ns + 1_000 * MS)
    books.write(accounts.settle())
    assert books.unattributed_j("steps_missing") > 0
    assert books.requests_j + books.others_j == pytest.approx(books.measured_j, rel=1e-9)


def test_a_writer_that_guesses_its_steps_names_the_method_and_has_wider_errors() -> None:
    engine = long_run()
    told, guessed = Books(), Books()
    for books, details in ((told, {}), (guessed, {"method": "proxy"})):
        accounts = Accounts([device()], "boot")
        accounts.open_engine(replace(header(), details=details))
        feed(accounts, books, engine, list(engine.edges("GPU-0")))
    assert {row.energy.method for row in guessed.rows.values()} == {"proxy"}
    for number, row in guessed.rows.items():
        plain = told.rows[number].energy
        added_j = NORMAL_95 * GUESS_ERROR * plain.energy_j
        assert row.energy.energy_j == plain.energy_j
        assert row.energy.error_j == pytest.approx(math.hypot(plain.error_j, added_j))
    assert GUESS_ERROR > 0


def test_two_gpus_are_settled_alone_and_summed() -> None:
    engine = long_run()
    accounts, books = Accounts([device("GPU-a"), device("GPU-b"), device("GPU-other")], "boot"), Books()
    accounts.open_engine(header(0, "GPU-b", "GPU-a"))
    edges = [*engine.edges("GPU-a"), *engine.edges("GPU-b", lag_ns=30 * MS), *engine.edges("GPU-other")]
    feed(accounts, books, engine, list(edges))
    assert {balance.gpu_uuid for batch in books.batches for balance, _ in batch.balances} == {"GPU-a", "GPU-b"}
    assert books.requests_j + books.others_j == pytest.approx(books.measured_j, rel=1e-9)
    tokens = sum(each.output_tokens for batch in books.batches for incs in batch.increments for each in incs)
    assert tokens == sum(output for _, output in engine.usage.values())


def test_a_restarted_meter_goes_on_where_the_first_one_stopped() -> None:
    engine = long_run()
    edges, books = engine.edges("GPU-0"), Books()
    first = Accounts([device()], "boot")
    first.open_engine(header())
    killed_ns, back_ns = 6_040 * MS, 9_510 * MS
    first.found([edge for edge in edges if edge.t_ns <= killed_ns])
    first.steps([record for record in engine.records if instant(record) <= killed_ns], killed_ns)
    books.write(first.settle())
    resume = books.batches[-1].resume
    second = Accounts([device()], "boot", resume)
    second.inherit([row for row in books.rows.values() if not row.energy.settled])
    second.open_engine(header())
    second.found([edge for edge in edges if edge.t_ns > back_ns])
    second.steps(engine.records, engine.now_ns + 1_000 * MS)
    books.write(second.settle())
    gap_j = next(e for e in edges if e.t_ns > back_ns).energy_mj / 1000 - resume.last_edges[0].energy_mj / 1000
    assert books.unattributed_j("readings_missing") == pytest.approx(gap_j, rel=1e-9)
    last = books.batches[-1].resume.last_edges[0]
    assert books.measured_j == pytest.approx((last.energy_mj - edges[0].energy_mj) / 1000, rel=1e-12)
    assert books.requests_j + books.others_j == pytest.approx(books.measured_j, rel=1e-9)
    assert {row.record.request_id for row in books.rows.values()} == set(engine.usage)
    assert all(row.energy.settled for row in books.rows.values())


def test_metering_that_begins_in_the_middle_claims_nothing_of_what_came_before() -> None:
    engine = long_run()
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header())
    began_ns = 5_000 * MS
    first = next(edge.t_ns for edge in engine.edges("GPU-0") if edge.t_ns >= began_ns)
    accounts.found([edge for edge in engine.edges("GPU-0") if edge.t_ns >= began_ns])
    accounts.steps(engine.records, engine.now_ns + 1_000 * MS)
    books.write(accounts.settle())
    introduced = {
        each.number: each.arrival_ns for r in engine.records if isinstance(r, Dispatch) for each in r.introductions
    }
    ended = {record.number: record.t_ns for record in engine.records if isinstance(record, Finish)}
    assert set(books.rows) == {number for number, t_ns in ended.items() if t_ns > first}
    partial = {number for number, row in books.rows.items() if row.energy.method == PARTIAL_METHOD}
    assert partial == {number for number, t_ns in introduced.items() if t_ns < first < ended[number]}
    assert partial
    assert books.requests_j + books.others_j == pytest.approx(books.measured_j, rel=1e-9)


def test_another_power_cap_opens_a_new_epoch_of_the_fit() -> None:
    engine = long_run()
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header())
    feed(accounts, books, engine, list(engine.edges("GPU-0")))
    learned = accounts.costs()["GPU-0"]
    accounts.changed([Conditions("GPU-0", engine.now_ns, (350_000,)), Conditions("GPU-none", 0, ())])
    assert learned.intervals > 100
    assert accounts._gpus["GPU-0"].fit.fit() is learned  # too few intervals yet in the new epoch


def test_the_next_engine_of_the_same_kind_starts_with_the_last_ones_fit() -> None:
    engine = long_run()
    books = metered(engine, list(engine.edges("GPU-0")))
    resume = replace(books.batches[-1].resume, boot_id="an earlier boot")
    learned = resume.coefficients[fit_key("GPU-0", header())]
    same, other = Accounts([device()], "boot", resume), Accounts([device()], "boot", resume)
    same.open_engine(header(7))
    other.open_engine(replace(header(7), dtype="float16"))
    assert same.costs()["GPU-0"].energy.tolist() == learned[0]
    assert other.costs()["GPU-0"].energy.tolist() != learned[0]
    assert same.costs()["GPU-0"].intervals == 0
    same.found(engine.edges("GPU-0"))
    same.steps(engine.records, engine.now_ns + 1_000 * MS)
    batch = same.settle()
    assert batch is not None
    assert batch.balances[0][0].start_ns == PERIOD_NS  # nothing else of the earlier meter was believed


def test_requests_of_an_engine_that_died_are_closed() -> None:
    engine = long_run()
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header())
    died_ns = 5_000 * MS
    accounts.found([edge for edge in engine.edges("GPU-0") if edge.t_ns <= died_ns + 1_000 * MS])
    accounts.steps([record for record in engine.records if instant(record) <= died_ns], died_ns)
    accounts.close_engine(died_ns + 100 * MS)
    accounts.steps([], died_ns + 2_000 * MS)
    books.write(accounts.settle())
    assert all(row.energy.settled for row in books.rows.values())
    assert "engine_lost" in {row.record.finish_reason for row in books.rows.values()}
    assert books.unattributed_j("steps_missing") > 0
    assert books.requests_j + books.others_j == pytest.approx(books.measured_j, rel=1e-9)


def test_the_figure_of_an_open_request_is_near_its_settled_one() -> None:
    engine = long_run()
    receipt = "ab" * 16
    renamed = [
        record._replace(
            introductions=tuple(
                each._replace(request_id=f"chatcmpl-x-{receipt}00000000") if each.number == 100 else each
                for each in record.introductions
            )
        )
        if isinstance(record, Dispatch)
        else record
        for record in engine.records
    ]
    end_ns = next(r.t_ns for r in renamed if isinstance(r, Finish) and r.number == 100)
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.announce(receipt, "entrace")
    accounts.open_engine(header())
    accounts.found([edge for edge in engine.edges("GPU-0") if edge.t_ns <= end_ns])
    accounts.steps([record for record in renamed if instant(record) <= end_ns], end_ns)
    books.write(accounts.settle())
    (early,) = accounts.rows_of(receipt)
    accounts.found([edge for edge in engine.edges("GPU-0") if edge.t_ns > end_ns])
    accounts.steps([record for record in renamed if instant(record) > end_ns], engine.now_ns + 1_000 * MS)
    books.write(accounts.settle())
    late = books.rows[100]
    assert not early.energy.settled
    assert late.energy.settled
    assert (early.record.arm, late.record.arm) == ("entrace", "entrace")
    assert early.energy.energy_j == pytest.approx(late.energy.energy_j, rel=0.1)
    assert accounts.rows_of(receipt) == []


def test_a_meter_that_waits_long_for_its_engine_takes_ten_minutes_for_start_up_and_no_more() -> None:
    accounts, books = Accounts([device()], "boot"), Books()
    hours_ns = 2 * 3600 * 1_000 * MS
    for t_ns in range(0, hours_ns, 1_000 * MS):
        accounts.found([Edge("GPU-0", t_ns, 2 * MS, t_ns // 10_000)])  # 100 W
        assert accounts.settle() is None
    accounts.open_engine(header(created_ns=hours_ns))
    accounts.steps([], hours_ns + 1_000 * MS)
    books.write(accounts.settle())
    overhead_j = sum(balance.engine_overhead_j for batch in books.batches for balance, _ in batch.balances)
    assert overhead_j == books.measured_j == pytest.approx(100 * START_UP_NS * 1e-9, rel=0.02)
    assert len(books.batches[0].balances) <= START_UP_NS // START_UP_PART_NS


def test_the_next_engine_may_work_on_another_gpu() -> None:
    engine = long_run()
    accounts, books = Accounts([device("GPU-a"), device("GPU-b")], "boot"), Books()
    accounts.open_engine(header(0, "GPU-a"))
    feed(accounts, books, engine, [*engine.edges("GPU-a"), *engine.edges("GPU-b")])
    accounts.close_engine(engine.now_ns)
    accounts.open_engine(header(engine.now_ns, "GPU-b"))
    accounts.settle()
    assert accounts.source == "measured"
    assert [each.gpu_uuid for each in accounts.devices] == ["GPU-b"]


@pytest.mark.parametrize(
    ("gpus", "named", "words"),
    [
        (["GPU-a"], ["GPU-z"], "works on GPU-z, which nobody reads: this meter reads GPU-a"),
        (["GPU-a", "GPU-b"], [], "does not say on which of 2 GPUs"),
    ],
)
def test_an_engine_on_gpus_that_are_not_read_is_refused(gpus: list[str], named: list[str], words: str) -> None:
    accounts = Accounts([device(name) for name in gpus], "boot")
    with pytest.raises(EngineError, match=words):
        accounts.open_engine(header(0, *named))


def test_a_simulated_board_stands_for_whatever_gpu_the_engine_names() -> None:
    accounts = Accounts([Device("GPU-sim-0", "simulated", "simulated", "h100")], "boot")
    accounts.open_engine(header(0, "GPU-real"))
    assert [each.gpu_uuid for each in accounts.devices] == ["GPU-sim-0"]


def test_tokens_of_intervals_that_nobody_pays_are_not_counted() -> None:
    engine = long_run()
    edges = [edge for edge in engine.edges("GPU-0") if not 6_000 * MS < edge.t_ns < 10_000 * MS]
    books = metered(engine, list(edges))
    for batch in books.batches:
        for (balance, _), increments in zip(batch.balances, batch.increments, strict=True):
            if balance.unattributed_j_by_cause.get("readings_missing"):
                assert increments == []


def receipted(engine: Engine, number: int, receipt: str) -> list[Record]:
    """The engine's records, with a receipt id in one request's name."""
    return [replace_name(record, number, f"chatcmpl-x-{receipt}00000000") for record in engine.records]


def replace_name(record: Record, number: int, name: str) -> Record:
    """The record, with another name for the request of this number."""
    if not isinstance(record, Dispatch):
        return record
    introduced = (each._replace(request_id=name) if each.number == number else each for each in record.introductions)
    return record._replace(introductions=tuple(introduced))


def test_a_figure_without_any_reading_is_called_foreseen_and_not_measured() -> None:
    engine, receipt = long_run(), "cd" * 16
    accounts = Accounts([device()], "boot")
    accounts.open_engine(header())
    records = [record for record in receipted(engine, 3, receipt) if instant(record) <= 3_000 * MS]
    accounts.steps(records, 3_000 * MS)
    (row,) = accounts.rows_of(receipt)
    assert (row.energy.method, row.energy.source, row.energy.settled) == (FORESEEN_METHOD, "estimated", False)


def test_a_figure_follows_what_is_known_since_the_last_question() -> None:
    engine, receipt = long_run(), "ef" * 16
    accounts = Accounts([device()], "boot")
    accounts.open_engine(header())
    records = receipted(engine, 3, receipt)
    end_ns = next(record.t_ns for record in records if isinstance(record, Finish) and record.number == 3)
    middle_ns = end_ns - 300 * MS
    accounts.steps([record for record in records if instant(record) <= middle_ns], middle_ns)
    early = accounts.rows_of(receipt)
    assert accounts.rows_of(receipt) == early
    accounts.steps([record for record in records if middle_ns < instant(record) <= end_ns], end_ns)
    foreseen = accounts.rows_of(receipt)
    assert foreseen[0].energy.energy_j > early[0].energy.energy_j > 0
    accounts.found([edge for edge in engine.edges("GPU-0") if edge.t_ns <= end_ns])
    accounts.settle()
    (metered,) = accounts.rows_of(receipt)
    charged_j = next(row.energy.energy_j for row in accounts.open_rows() if row.number == 3)
    # What was foreseen of settled steps is not in it twice.
    assert 0 < metered.energy.energy_j - charged_j < 0.5 * foreseen[0].energy.energy_j


def test_a_counter_that_never_speaks_holds_nothing_up() -> None:
    engine = long_run()
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header())
    half_ns = engine.now_ns // 2
    accounts.steps([record for record in engine.records if instant(record) <= half_ns], half_ns)
    books.write(accounts.settle())
    accounts.steps([record for record in engine.records if instant(record) > half_ns], engine.now_ns + 2 * STUCK_NS)
    books.write(accounts.settle())
    ended = {record.number: record.t_ns for record in engine.records if isinstance(record, Finish)}
    assert set(books.rows) == {
        number for number, t_ns in ended.items() if t_ns > half_ns
    }  # the others were over before
    assert {(row.energy.energy_j, row.energy.method) for row in books.rows.values()} == {(0.0, PARTIAL_METHOD)}
    assert not any(accounts._steps)


def test_an_arm_that_is_told_late_is_taken() -> None:
    engine, receipt = long_run(), "ef" * 16
    name = max(engine.usage, key=lambda each: engine.usage[each][1])  # the longest answer
    number = int(name[1:])
    records = receipted(engine, number, receipt)
    begun_ns = next(r.t_ns for r in records if isinstance(r, Dispatch) and number in r.rows[:, 0])
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header())
    accounts.found(engine.edges("GPU-0"))
    accounts.steps([record for record in records if instant(record) <= begun_ns + 500 * MS], begun_ns + 500 * MS)
    books.write(accounts.settle())
    assert books.rows[number].record.arm == "unlabelled"
    accounts.announce(receipt, "entrace")
    accounts.steps([r for r in records if instant(r) > begun_ns + 500 * MS], engine.now_ns + 1_000 * MS)
    books.write(accounts.settle())
    assert books.rows[number].record.arm == "entrace"


def test_prompts_of_one_response_have_its_arm_however_long_one_waits_for_the_other() -> None:
    engine, receipt = Engine(3), "ab" * 16
    engine.idle(1_000 * MS)
    engine.run([100, 100, 100], [40, 80, 40], 1)
    engine.idle(1_000 * MS)
    for number, place in ((0, "x"), (2, "y")):
        engine.records = [replace_name(record, number, f"cmpl-{place}-{receipt}00000000") for record in engine.records]
    begun_ns = next(r.t_ns for r in engine.records if isinstance(r, Dispatch) and 2 in r.rows[:, 0])
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.announce(receipt, "entrace")
    accounts.open_engine(header())
    accounts.found(engine.edges("GPU-0"))
    accounts.steps([r for r in engine.records if instant(r) < begun_ns], begun_ns)
    books.write(accounts.settle())
    assert books.rows[0].energy.settled
    accounts.steps([r for r in engine.records if instant(r) >= begun_ns], engine.now_ns + 1_000 * MS)
    books.write(accounts.settle())
    assert [books.rows[number].record.arm for number in (0, 2)] == ["entrace", "entrace"]
