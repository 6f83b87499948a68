"""What must hold of every division of measured joules, whatever the load and whatever a step costs."""

import math
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etameter.accounts import Accounts
from etameter.attribution import Settlement, attribute, foresee
from etameter.costs import Costs
from etameter.curves import Curves
from etameter.records import Interval
from etameter.serving.ring import Dispatch, Introduction
from etameter.work import Step, Work
from tests.meter.laid_out import Scheduled, Share, by_name, slot_of, step_of
from tests.meter.test_accounts import Books, Engine, device, feed, header
from tests.meter.test_division import EXPERTS, LIMITED, LINEAR, ROOFLINE

pytestmark = pytest.mark.unit

MS = 1_000_000
ROUTED = 0.0625
unhurried = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

names = st.sampled_from("abcdef")
decoding = st.builds(
    lambda name, context, drafts, accepted, lora: Scheduled(
        name, 0, 1, context_tokens=context, draft_tokens=drafts, accepted_tokens=min(drafts, accepted), lora_id=lora
    ),
    names,
    st.integers(0, 8000),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 2),
)
prefilling = st.builds(
    lambda name, tokens, context, encoder, again: Scheduled(
        name, tokens, 0, context_tokens=context, encoder_tokens=encoder, recomputed_tokens=min(again, tokens)
    ),
    names,
    st.integers(1, 1024),
    st.integers(0, 4000),
    st.integers(0, 500),
    st.integers(0, 64),
)
rows = st.lists(decoding | prefilling, min_size=1, max_size=6)
runs = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40), rows), min_size=1, max_size=6)
engines = st.sampled_from([(LINEAR, 0.0), (ROOFLINE, 0.0), (LIMITED, 0.0), (EXPERTS, ROUTED)])


def laid_out(run: list[tuple[int, int, list[Scheduled]]]) -> list[Step]:
    at_ms, steps = 0, []
    for index, (gap_ms, length_ms, scheduled) in enumerate(run):
        at_ms += gap_ms + length_ms
        steps.append(step_of(index, (at_ms - length_ms) * MS, at_ms * MS, scheduled))
    return steps


def paid(
    steps: list[Step], engine: tuple[Costs, float], energy_j: float, start_ms: float, end_ms: float
) -> tuple[Settlement, dict[str, Share]]:
    costs, routed = engine
    span = int(start_ms * MS), int(end_ms * MS)
    interval = Interval("GPU-0", *span, energy_j, 0, 0)
    settled = attribute(interval, *span, Work(steps, routed), costs, engine_started_ns=-1)
    return settled, by_name(settled.shares)


def modelled_j(steps: list[Step], engine: tuple[Costs, float], start_ms: float, end_ms: float) -> float:
    """What the model expects of a window: what is paid of any energy that is within its tolerance."""
    settled, _ = paid(steps, engine, 1e9, start_ms, end_ms)
    costs, routed = engine
    work = Work(steps, routed)
    starts, ends = work.start_ns / MS, work.end_ns / MS
    inside_ms = np.clip(np.minimum(ends, end_ms) - np.maximum(starts, start_ms), 0, None)
    busy_ms = float(inside_ms.sum())
    step_j = float(costs.step_energy(work.step_features) @ (inside_ms / (ends - starts)))
    assert settled.balance.measured_j == 1e9
    return step_j + float(costs.energy[0]) * (end_ms - start_ms - busy_ms) * 1e-3


@given(runs, engines, st.floats(0, 1e4), st.integers(1, 400))
@unhurried
def test_every_joule_is_somebodys_or_nobodys_and_no_joule_is_both(
    run: list[tuple[int, int, list[Scheduled]]], engine: tuple[Costs, float], energy_j: float, end_ms: int
) -> None:
    settled, shares = paid(laid_out(run), engine, energy_j, 0, end_ms)
    balance = settled.balance
    nobodys_j = [balance.idle_j, balance.engine_overhead_j, *balance.unattributed_j_by_cause.values()]
    whole_j = math.fsum([*(share.energy_j for share in shares.values()), *nobodys_j])
    assert whole_j == pytest.approx(energy_j, rel=1e-9, abs=1e-9)
    assert min([*nobodys_j, *(min(share.prompt_j, share.output_j) for share in shares.values())]) >= 0


@given(runs, engines, st.floats(0.01, 0.99))
@unhurried
def test_two_adjacent_intervals_charge_what_one_would(
    run: list[tuple[int, int, list[Scheduled]]], engine: tuple[Costs, float], cut: float
) -> None:
    """Where the counter says what the model expects: what it says beyond that goes to where it says so."""
    steps = laid_out(run)
    end_ms = steps[-1].done_ns / MS
    cut_ms = math.ceil(cut * end_ms * MS) / MS
    spans = [(0.0, end_ms), (0.0, cut_ms), (cut_ms, end_ms)]
    whole, left, right = (paid(steps, engine, modelled_j(steps, engine, *span), *span)[1] for span in spans)
    for name, share in whole.items():
        parts_j = sum(half[name].energy_j for half in (left, right) if name in half)
        assert parts_j == pytest.approx(share.energy_j, rel=1e-6, abs=1e-9)


@given(runs, engines, st.floats(0.1, 1e3), st.randoms(use_true_random=False))
@unhurried
def test_neither_the_order_of_rows_nor_the_names_of_requests_matter(
    run: list[tuple[int, int, list[Scheduled]]], engine: tuple[Costs, float], energy_j: float, dice: random.Random
) -> None:
    other = dict(zip("abcdef", dice.sample("abcdef", 6), strict=True))
    mixed = [
        (gap, length, dice.sample([replace(row, request_id=other[row.request_id]) for row in of_step], len(of_step)))
        for gap, length, of_step in run
    ]
    (_, here), (_, there) = (paid(laid_out(each), engine, energy_j, 0, 300) for each in (run, mixed))
    assert {other[name]: pytest.approx(share.energy_j, rel=1e-6, abs=1e-9) for name, share in here.items()} == {
        name: share.energy_j for name, share in there.items()
    }


more = st.sampled_from(
    [
        {"prefill_tokens": 1},
        {"prefill_tokens": 300},
        {"context_tokens": 2000},
        {"encoder_tokens": 100},
        {"draft_tokens": 2},
    ]
)


@given(rows, engines, more)
@unhurried
def test_who_does_more_in_a_step_does_not_pay_less(
    of_step: list[Scheduled], engine: tuple[Costs, float], added: dict[str, int]
) -> None:
    of_step = [replace(row, request_id=f"{row.request_id}{index}") for index, row in enumerate(of_step)]
    mine = of_step[0]
    kinds = {"draft_tokens"} if mine.prefill_tokens else {"prefill_tokens", "encoder_tokens"}
    if kinds & added.keys():
        return
    busier = replace(mine, **{name: getattr(mine, name) + count for name, count in added.items()})
    costs, routed = engine
    little_j, much_j = (
        by_name(foresee(Work([step_of(0, 0, 50 * MS, [row, *of_step[1:]])], routed), costs, 0))[
            mine.request_id
        ].energy_j
        for row in (mine, busier)
    )
    # The integral over orders is taken at four points: where the row becomes one of the largest prefills it is divided otherwise.
    assert much_j >= little_j * (1 - 1e-9)


@given(runs, engines, st.floats(0.1, 1e4), st.integers(1, 300), st.integers(1, 300))
@unhurried
def test_who_did_nothing_in_an_interval_pays_nothing_for_it(
    run: list[tuple[int, int, list[Scheduled]]], engine: tuple[Costs, float], energy_j: float, start_ms: int, ms: int
) -> None:
    steps = laid_out(run)
    _, shares = paid(steps, engine, energy_j, start_ms, start_ms + ms)
    span = start_ms * MS, (start_ms + ms) * MS
    near = [step for step in steps if step.dispatch_ns < span[1] + 50 * MS and step.done_ns > span[0] - 50 * MS]
    ran = {name for step in near for name in of_step(step)}
    assert {name for name, share in shares.items() if share.energy_j > 0} <= ran


def of_step(step: Step) -> set[str]:
    return {name for name in "abcdef" if slot_of(name) in step.columns[0].tolist()}


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 100))
def test_who_waits_in_the_queue_pays_nothing(outputs: list[int], seed: int) -> None:
    engine = Engine(seed)
    engine.idle(500 * MS)
    engine.run([50] * len(outputs), outputs, concurrency=2)
    engine.idle(500 * MS)
    place = next(i for i, record in enumerate(engine.records) if isinstance(record, Dispatch))
    first = engine.records[place]
    assert isinstance(first, Dispatch)
    waiting = Introduction(999, "waits", 4000, 0)
    engine.records[place] = first._replace(introductions=(*first.introductions, waiting))
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header())
    feed(accounts, books, engine, list(engine.edges("GPU-0")))
    assert len(books.rows) == len(outputs)
    assert "waits" not in {row.record.request_id for row in books.rows.values()}
    (row,) = (row for row in accounts.running(99) if row.prompt_tokens == 4000)
    assert row.output_tokens == 0


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 10), st.floats(0, 5)), min_size=1, max_size=200),
    st.lists(st.floats(0, 1), max_size=8),
)
@unhurried
def test_the_joules_of_tokens_sum_to_those_of_the_output(
    intervals: list[tuple[int, float, float]], cuts: list[float]
) -> None:
    """Σ over any tiling of the output, and over its single tokens."""
    slot = slot_of("a")
    curves, own = Curves(), np.array([slot])
    curves.grow(slot + 1)
    output_j = tokens = 0.0
    for number, (decoded, joules, prompt_j) in enumerate(intervals):
        amounts = np.array([[prompt_j, joules, prompt_j + joules, 0.0, 0.0, 0.0, 0.0]])
        step = step_of(number, number, number + 1, [Scheduled("a", 0, decoded, context_tokens=9)])
        curves.add(own, amounts, Work([step]))
        output_j, tokens = output_j + joules, tokens + decoded
    curve = curves.of(slot)
    assert curve.knots[-1].tolist() == [tokens, pytest.approx(output_j), pytest.approx(curve.knots[-1, 2])]
    if tokens and output_j > 1e-9:
        marks = sorted({0.0, tokens, *(cut * tokens for cut in cuts)})
        single = list(range(int(tokens) + 1))
        for borders in (marks, single):
            shares = [curve.part(a, b)[0] for a, b in pairwise(borders)]
            assert min(shares) >= -1e-12
            assert math.fsum(shares) * output_j == pytest.approx(output_j, rel=1e-9)
