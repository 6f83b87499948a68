"""What waits for the ledger says the same as what was written at once."""

import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from etameter.accounts import Accounts, Batch
from etameter.ledger import Ledger, RunningValues, request_row
from etameter.unwritten import Unwritten
from tests.meter.test_accounts import Books, Engine, device, feed, header

pytestmark = pytest.mark.unit

RECEIPT = "a" * 32


@cache
def batches() -> list[Batch]:
    """Of requests that run through many of them."""
    engine = Engine(1)
    engine.run([50] * 8, [100] * 8, 4)
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header())
    feed(accounts, books, engine, list(engine.edges("GPU-0")))
    return books.batches


def write(ledger: Ledger, some: list[Batch]) -> None:
    settled = [(each.balances, each.requests, each.resume, each.running) for each in some]
    ledger.settle_together(settled, wall_time=0.0)


@pytest.mark.parametrize("waiting", [3, 10_000])
def test_a_ledger_that_was_waited_for_has_the_same_rows(tmp_path: Path, waiting: int) -> None:
    at_once, late = Ledger(tmp_path / "at-once.db"), Ledger(tmp_path / "late.db")
    unwritten = Unwritten()
    known = batches()
    for start in range(0, len(known), waiting):
        some = known[start : start + waiting]
        for batch in some:
            write(at_once, [batch])
            unwritten.add(batch)
        together = unwritten.together()
        write(late, together)
        unwritten.written(len(together))
        assert len(unwritten) == 0
        assert late.requests() == at_once.requests()
        assert late.resumes() == at_once.resumes()
    assert late.totals() == at_once.totals()
    at_once.close()
    late.close()


def test_of_what_runs_the_latest_change_waits_alone() -> None:
    unwritten = Unwritten()
    for batch in batches():
        unwritten.add(batch)
    told = sum(len(batch.running) for batch in batches())
    waiting = [values[:3] for batch in unwritten.together() for values in batch.running]
    assert len(waiting) == len(set(waiting)) < told / 5


class Told(list[RunningValues]):
    """Can be seen to be let go."""


def test_what_is_told_again_is_let_go_while_nothing_is_written() -> None:
    known = [batch for batch in batches() if batch.running][:2]
    again, last = (replace(batch, running=Told(known[0].running), requests=[]) for batch in known)
    of_another = replace(again, running=Told(last.running), resume=replace(again.resume, engine="another"))
    seen = [weakref.ref(each.running) for each in (again, of_another)]
    unwritten = Unwritten()
    unwritten.add(again)
    unwritten.add(of_another)
    del again
    assert all(each() is not None for each in seen)
    unwritten.add(last)
    assert [each() is None for each in seen] == [True, False]
    assert len(unwritten) == 3
    assert last.running


def test_what_comes_while_some_is_written_waits_on() -> None:
    first, second, *_ = batches()
    unwritten = Unwritten()
    unwritten.add(first)
    count = len(unwritten.together())
    unwritten.add(second)
    unwritten.written(count)
    assert [batch.resume for batch in unwritten.together()] == [second.resume]


def test_rows_of_a_response_are_found_in_all_that_waits() -> None:
    unwritten, known = Unwritten(), batches()
    named = [[(*values[:4], RECEIPT, *values[5:]) for values in batch.requests if values[2] == 3] for batch in known]
    for batch, own in zip(known, named, strict=True):
        others = [values for values in batch.requests if values[2] != 3]
        unwritten.add(Batch(batch.balances, batch.increments, [], [*others, *own], [], batch.resume, batch.model))
    found = unwritten.rows_of(RECEIPT)
    assert found == [request_row(values) for each in named for values in each]
    assert [row.energy.settled for row in found] == [False, True]
    assert unwritten.rows_of("b" * 32) == []
