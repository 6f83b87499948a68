"""Ranks of a mixture of experts that work in step, simulated: what empty passes take is paid by the requests that caused them, once."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etameter.accounts import Accounts, Batch
from etameter.devices import Device
from etameter.engine import Engine
from etameter.ledger import RUNNING, Ledger, RequestRow, Resume
from etameter.ranks import group_of
from etameter.records import Balance, Edge
from etameter.serving.ring import (
    Dispatch,
    Done,
    Finish,
    Introduction,
    Lost,
    Record,
    RingHeader,
    RingWriter,
    Row,
    row_table,
)
from tests.meter.test_accounts import changed

pytestmark = pytest.mark.unit

MS = 1_000_000
PERIOD_NS = 100 * MS
IDLE_W, PASS_J, EMPTY_W, PREFILL_J, DECODE_J = 100.0, 1.2, 80.0, 0.01, 0.08
GAP_NS = 300_000
DETAILS: dict[str, int | float | str] = {
    "num_layers": 16,
    "hidden_size": 2048,
    "num_experts": 32,
    "experts_per_token": 4,
    "data_parallel_size": 2,
    "data_parallel_group": "a1b2c",
}
DENSE = {name: value for name, value in DETAILS.items() if name != "num_experts"}

Arrival = tuple[int, int, int, int]
"""When (ms), to which rank, prompt and output tokens."""


def header(rank: int, details: dict[str, int | float | str]) -> RingHeader:
    return RingHeader("boot", f"e-{rank}", (f"GPU-{rank}",), "m", "bfloat16", 1, 1, details)


@dataclass
class Running:
    name: str
    number: int
    prompt: int
    output: int
    done: int = 0


@dataclass
class Group:
    """What ranks tell, and what their boards burn. `in_step` is of experts: who has nothing to do runs along."""

    ranks: int
    in_step: bool = True
    records: list[list[Record]] = field(init=False)
    knots: list[list[tuple[int, float]]] = field(init=False)
    true_j: dict[str, float] = field(default_factory=dict)
    """What each request's steps took, the gaps after them, and what others' empty passes did above idle."""
    idle_s: list[float] = field(init=False)
    """Of each rank, without steps of its own."""
    now_ns: int = 0

    def __post_init__(self) -> None:
        self.records = [[] for _ in range(self.ranks)]
        self.knots = [[(0, 0.0)] for _ in range(self.ranks)]
        self.idle_s = [0.0] * self.ranks

    def run(self, arrivals: list[Arrival], end_ms: int) -> "Group":
        waiting = sorted(arrivals)
        running: list[list[Running]] = [[] for _ in range(self.ranks)]
        numbers = [0] * self.ranks
        step = 0
        while self.now_ns < end_ms * MS or any(running) or waiting:
            introduced: list[list[Introduction]] = [[] for _ in range(self.ranks)]
            while waiting and waiting[0][0] * MS <= self.now_ns:
                _, rank, prompt, output = waiting.pop(0)
                one = Running(f"r{rank}.{numbers[rank]}", numbers[rank], prompt, output)
                numbers[rank] += 1
                running[rank].append(one)
                introduced[rank].append(Introduction(one.number, one.name, prompt, self.now_ns))
            if not any(running):
                self._rest(10 * MS)
                continue
            self._step(step, running, introduced)
            step += 1
        for _ in range(60):
            self._rest(10 * MS)
        return self

    def _step(self, step: int, running: list[list[Running]], introduced: list[list[Introduction]]) -> None:
        started_ns = self.now_ns
        prefill = max((one.prompt for each in running for one in each if not one.done), default=0)
        duration_ns = int((8 + 0.02 * prefill) * MS)
        idle_j, empty_j = IDLE_W * duration_ns * 1e-9, EMPTY_W * duration_ns * 1e-9
        own_j = []
        for rank, each in enumerate(running):
            rows: list[Row] = [
                (one.number, 0, 1, 0, 0, 0, 0, one.prompt + one.done - 1, 0)
                if one.done
                else (one.number, one.prompt, 0, 0, 0, 0, 0, 0, 0)
                for one in each
            ]
            if rows:
                self.records[rank].append(Dispatch(step, started_ns, 0, row_table(rows), tuple(introduced[rank])))
                self.records[rank].append(Done(step, started_ns + duration_ns))
            own_j.append(idle_j + PASS_J + sum(PREFILL_J * row[1] + DECODE_J * row[2] for row in rows) if rows else 0.0)
        empty = [not each and self.in_step for each in running]
        self._pass(
            duration_ns,
            [own or idle_j + empty_j * is_empty for own, is_empty in zip(own_j, empty, strict=True)],
        )
        for rank, each in enumerate(running):
            self.idle_s[rank] += 0.0 if each else (duration_ns + GAP_NS) * 1e-9
            of_others_j = sum(empty) * empty_j * own_j[rank] / sum(own_j)
            for one in each:
                mine = (own_j[rank] + IDLE_W * GAP_NS * 1e-9 + of_others_j) / len(each)
                self.true_j[one.name] = self.true_j.get(one.name, 0.0) + mine
                one.done += 1
                if one.done == one.output:
                    self.records[rank].append(Finish(one.number, self.now_ns, one.output, "length"))
            each[:] = [one for one in each if one.done < one.output]
        self._pass(GAP_NS, [IDLE_W * GAP_NS * 1e-9] * self.ranks)

    def _rest(self, duration_ns: int) -> None:
        """Nobody has anything to do."""
        self._pass(duration_ns, [IDLE_W * duration_ns * 1e-9] * self.ranks)
        self.idle_s = [each + duration_ns * 1e-9 for each in self.idle_s]

    def _pass(self, duration_ns: int, joules: list[float]) -> None:
        self.now_ns += duration_ns
        for knots, spent_j in zip(self.knots, joules, strict=True):
            knots.append((self.now_ns, knots[-1][1] + spent_j))

    def edges(self, rank: int) -> list[Edge]:
        """Counters are not in phase."""
        found, index, knots = [], 0, self.knots[rank]
        for t_ns in range(PERIOD_NS + 17 * MS * rank, self.now_ns, PERIOD_NS):
            while knots[index + 1][0] <= t_ns:
                index += 1
            (left_ns, left_j), (right_ns, right_j) = knots[index], knots[index + 1]
            spent_j = left_j + (right_j - left_j) * (t_ns - left_ns) / (right_ns - left_ns)
            found.append(Edge(f"GPU-{rank}", t_ns, MS, int(spent_j * 1000)))
        return found


@dataclass
class Written:
    """What a ledger has."""

    rows: dict[tuple[str, int], RequestRow] = field(default_factory=dict)
    balances: list[Balance] = field(default_factory=list)
    resumes: dict[int, Resume] = field(default_factory=dict)

    def write(self, rank: int, batch: Batch) -> None:
        self.rows |= {(row.engine, row.number): row for row in batch.rows}
        for engine, _, number, *values in batch.running:
            key = str(engine), int(str(number))
            self.rows[key] = changed(self.rows[key], dict(zip(RUNNING, values, strict=True)))
        self.balances += [balance for balance, _ in batch.balances]
        self.resumes[rank] = batch.resume
        for (balance, _), increments in zip(batch.balances, batch.increments, strict=True):
            told_j = math.fsum(each.prompt_j + each.output_j for each in increments)
            assert told_j == pytest.approx(balance.attributed_j, rel=1e-9, abs=1e-9)
            assert abs(balance.residual_j) <= 1e-9 * max(balance.measured_j, 1)
            others = balance.idle_j, balance.engine_overhead_j, *balance.unattributed_j_by_cause.values()
            assert min(others) >= 0

    def of_gpu(self, rank: int) -> list[Balance]:
        return [balance for balance in self.balances if balance.gpu_uuid == f"GPU-{rank}"]

    def paid_j(self) -> dict[str, float]:
        return {row.record.request_id: row.energy.energy_j for row in self.rows.values()}

    @property
    def others_j(self) -> float:
        return math.fsum(
            joules
            for balance in self.balances
            for joules in (balance.idle_j, balance.engine_overhead_j, *balance.unattributed_j_by_cause.values())
        )


class Meter:
    """Books of all ranks, begun anew or where those before have ended."""

    def __init__(self, group: Group, details: dict[str, int | float | str], written: Written) -> None:
        self.books = []
        for rank in range(group.ranks):
            device = Device(f"GPU-{rank}", "nvml", "measured", "NVIDIA H100 80GB HBM3")
            accounts = Accounts([device], "boot", written.resumes.get(rank))
            open_rows = [
                row for (engine, _), row in written.rows.items() if engine == f"e-{rank}" and not row.energy.settled
            ]
            accounts.inherit(open_rows)
            accounts.open_engine(header(rank, details))
            self.books.append(accounts)

    def settle(self) -> Iterator[tuple[int, Batch]]:
        for rank, accounts in enumerate(self.books):
            others = [each.rank for each in self.books if each is not accounts and each.rank]
            own = accounts.rank
            accounts.peers = [each for each in others if own and own.group and each.group == own.group]
            batch = accounts.settle()
            if batch is not None:
                yield rank, batch


@dataclass(frozen=True)
class Faults:
    killed: tuple[int, ...] = ()
    """The meter is, after so many batches."""
    ends_ms: Mapping[int, int] = field(default_factory=dict)
    """When ranks end."""
    loses_ms: Mapping[int, int] = field(default_factory=dict)
    """When ranks' records are overwritten."""


def metered(
    group: Group, details: dict[str, int | float | str] = DETAILS, faults: Faults = Faults(), piece_ns: int = 250 * MS
) -> Written:
    """What the ledger has at the end."""
    written, batches = Written(), 0
    edges = [group.edges(rank) for rank in range(group.ranks)]
    meter, read = Meter(group, details, written), [0] * group.ranks
    for now_ns in range(piece_ns, group.now_ns + 2_000 * MS, piece_ns):
        for rank, accounts in enumerate(meter.books):
            records, until = group.records[rank], read[rank]
            while until < len(records) and instant(records[until]) <= now_ns:
                until += 1
            told, read[rank] = records[read[rank] : until], until
            ends_ns, loses_ns = (each.get(rank, 10**6) * MS for each in (faults.ends_ms, faults.loses_ms))
            if loses_ns <= now_ns < loses_ns + piece_ns:
                told = [Lost(2), *told[len(told) // 2 :]]
            if ends_ns <= now_ns:
                told = []
                if accounts.rank is not None and accounts.rank.ended_ns is None:
                    accounts.close_engine(now_ns)
            accounts.steps(told, now_ns)
            after_ns = now_ns - piece_ns if batches not in faults.killed else since(written, rank)
            accounts.found([edge for edge in edges[rank] if after_ns < edge.t_ns <= now_ns])
        for rank, batch in meter.settle():
            written.write(rank, batch)
            batches += 1
            if batches in faults.killed:
                meter, read = Meter(group, details, written), [0] * group.ranks
                break
    return written


def since(written: Written, rank: int) -> int:
    """The last edge that was settled."""
    return written.resumes[rank].last_edges[0].t_ns if rank in written.resumes else -1


def instant(record: Record) -> int:
    assert isinstance(record, Dispatch | Done | Finish)
    return record.t_ns


def alternating(seconds: int) -> list[Arrival]:
    """One request at a time, now on this rank and now on that, with time in between in which all are idle."""
    return [
        (2500 * place + 400, place % 2, 50 + 37 * place % 400, 120 + 11 * place % 60)
        for place in range(seconds * 2 // 5)
    ]


def assert_balanced(written: Written, group: Group) -> None:
    """Each counter's joules are booked once, and all of them."""
    for rank in range(group.ranks):
        balances, edges = written.of_gpu(rank), group.edges(rank)
        for before, after in pairwise(balances):
            assert after.start_ns == before.end_ns
        last_mj = written.resumes[rank].last_edges[0].energy_mj
        assert math.fsum(each.measured_j for each in balances) == pytest.approx((last_mj - edges[0].energy_mj) / 1000)
    measured_j = math.fsum(each.measured_j for each in written.balances)
    requests_j = math.fsum(written.paid_j().values())
    assert requests_j + written.others_j == pytest.approx(measured_j, rel=1e-9)


def test_empty_passes_are_paid_by_the_requests_that_others_worked_on() -> None:
    group = Group(2).run(alternating(15), 16_000)
    written = metered(group)
    assert_balanced(written, group)
    paid_j = written.paid_j()
    for name in list(group.true_j)[2:]:  # what an idle board draws was learned by then
        assert paid_j[name] == pytest.approx(group.true_j[name], rel=0.01)
    apart_j = metered(group, DENSE).paid_j()
    assert all(apart_j[name] < 0.8 * group.true_j[name] for name in list(group.true_j)[2:])


def test_several_ranks_share_what_another_took_for_them() -> None:
    arrivals = [(200 + 900 * place, place % 3, 100, 60) for place in range(6)]
    group = Group(3).run([*arrivals, (6000, 0, 20, 200), (6000, 1, 600, 150)], 9_000)
    written = metered(group)
    assert_balanced(written, group)
    paid_j = written.paid_j()
    for name in ("r0.2", "r1.2"):
        assert paid_j[name] == pytest.approx(group.true_j[name], rel=0.02)
    late = [each for each in written.of_gpu(2) if each.start_ns > 6_500 * MS and each.end_ns < 7_200 * MS]
    assert late
    for each in late:
        assert each.idle_j == pytest.approx(IDLE_W * (each.end_ns - each.start_ns) * 1e-9, rel=0.03)


def test_a_step_of_another_rank_is_waited_for() -> None:
    group = Group(2).run([*alternating(5), (7000, 0, 30_000, 2)], 7_000)
    written = metered(group, piece_ns=100 * MS)
    assert_balanced(written, group)
    assert written.paid_j()["r0.1"] == pytest.approx(group.true_j["r0.1"], rel=0.02)


def test_ranks_of_a_dense_model_are_metered_as_if_the_others_were_not_there() -> None:
    group = Group(2, in_step=False).run(alternating(5), 5_000)
    assert metered(group, DENSE).paid_j() == metered(group, DENSE | {"data_parallel_group": ""}).paid_j()
    assert group_of(header(0, DENSE)) is None


arrivals = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 1), st.integers(1, 300), st.integers(1, 50)), min_size=1, max_size=5
)
instants = st.dictionaries(st.integers(0, 2), st.integers(100, 3000), max_size=2)
all_faults = st.builds(
    Faults, killed=st.lists(st.integers(1, 20), max_size=2).map(tuple), ends_ms=instants, loses_ms=instants
)


@example([(250, 1, 5, 20)], Faults(killed=(6,)), 2, 100 * MS)  # when one rank had settled its end, and the other hadn't
@settings(max_examples=12, deadline=None)
@given(arrivals, all_faults, st.integers(2, 3), st.sampled_from([100 * MS, 250 * MS]))
def test_every_joule_is_booked_once_whatever_happens(
    arrivals: list[Arrival], faults: Faults, ranks: int, piece_ns: int
) -> None:
    group = Group(ranks).run(arrivals, 1_000)
    written = metered(group, DETAILS, faults, piece_ns)
    assert_balanced(written, group)
    # The end of a request may be among lost records, and a meter that comes after the end of a rank doesn't read its ring.
    if not faults.loses_ms and not (faults.killed and faults.ends_ms):
        assert all(row.energy.settled for row in written.rows.values())


@pytest.mark.parametrize("change", [{"num_experts": 0}, {"data_parallel_size": 1}, {"data_parallel_group": ""}])
def test_who_works_alone_has_no_group(change: dict[str, int | float | str]) -> None:
    assert group_of(header(0, DETAILS)) == group_of(header(1, DETAILS)) is not None
    assert group_of(header(0, DETAILS | change)) is None


def test_ranks_find_each_other_by_what_their_rings_say(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    devices = [Device(f"GPU-{gpu}", "nvml", "measured", "H100") for gpu in range(4)]
    engines: list[Engine] = []
    servers = (
        ("blue", DETAILS),
        ("blue-1", DETAILS),
        ("green", DETAILS | {"data_parallel_group": "d3e4f"}),
        ("dense", DENSE),
    )
    rings = []
    for gpu, (name, details) in enumerate(servers):
        path = tmp_path / name
        rings.append(RingWriter(path, engine=name, model="m", dtype="d", gpu_uuids=[f"GPU-{gpu}"], details=details))
        engines.append(Engine(path, lambda resume: Accounts(devices, "boot", resume), ledger, engines))
    for engine in engines:
        engine.read(time.monotonic_ns())
    for engine in engines:
        engine.settle()
    named = [[peer.header.engine for peer in engine.accounts.peers] for engine in engines]
    assert named == [["blue-1"], ["blue"], [], []]
    for ring in rings:
        ring.close()
    ledger.close()
