"""What an engine's requests draw on budgets: the same joules as in their receipts, interval by interval."""

import math

import pytest

from etameter.accounts import Accounts
from etameter.budgets import Draw
from etameter.serving.ring import Dispatch, Record
from tests.meter.test_accounts import MS, Books, Engine, device, header, instant

pytestmark = pytest.mark.unit

REQUESTS = 24


def receipt_of(number: int) -> str:
    return f"{number:032x}"


def run() -> tuple[Engine, list[Record]]:
    engine = Engine(5)
    engine.idle(1_000 * MS)
    engine.run([100 + 20 * n for n in range(REQUESTS)], [20 + 5 * n for n in range(REQUESTS)], 4)
    engine.idle(1_000 * MS)
    return engine, [_with_receipts(record) for record in engine.records]


def _with_receipts(record: Record) -> Record:
    if not isinstance(record, Dispatch):
        return record
    named = [
        each._replace(request_id=f"chatcmpl-{each.number}-{receipt_of(each.number)}00000000")
        for each in record.introductions
    ]
    return record._replace(introductions=tuple(named))


def draws_of(books: Books) -> list[Draw]:
    return [draw for batch in books.batches for draws in batch.draws for draw in draws]


def drawn_j(books: Books, budget: str | None) -> float:
    if budget is None:
        return math.fsum(draw.energy_j for draw in draws_of(books) if draw.budgets is None)
    return math.fsum(draw.energy_j for draw in draws_of(books) if draw.budgets and budget in draw.budgets)


def test_a_budget_takes_what_its_requests_receipts_say() -> None:
    engine, records = run()
    accounts, books = Accounts([device()], "boot"), Books()
    drawing = {0: ("team",), 1: ("team", "arm"), 2: (), 3: None}
    for number in range(REQUESTS):
        if number % 5 < 4:
            accounts.announce(receipt_of(number), "entrace", drawing[number % 5])
    accounts.open_engine(header())
    accounts.found(engine.edges("GPU-0"))
    accounts.steps(records, engine.now_ns + 1_000 * MS)
    books.write(accounts.settle())
    spent = {number: row.energy.energy_j for number, row in books.rows.items()}
    assert drawn_j(books, "team") == pytest.approx(math.fsum(spent[n] for n in spent if n % 5 in {0, 1}))
    assert drawn_j(books, "arm") == pytest.approx(math.fsum(spent[n] for n in spent if n % 5 == 1))
    assert drawn_j(books, None) == pytest.approx(math.fsum(spent[n] for n in spent if n % 5 in {3, 4}))
    assert all(len(batch.draws) == len(batch.balances) for batch in books.batches)
    assert {draw.budgets for draw in draws_of(books)} == {("team",), ("team", "arm"), None}


def test_a_budget_of_one_request_is_known_no_better_than_that_and_not_much_worse() -> None:
    engine, records = run()
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.announce(receipt_of(7), "entrace", ("one",))
    accounts.open_engine(header())
    accounts.found(engine.edges("GPU-0"))
    accounts.steps(records, engine.now_ns + 1_000 * MS)
    books.write(accounts.settle())
    ones = [draw for draw in draws_of(books) if draw.budgets == ("one",)]
    noise_j = math.sqrt(math.fsum(draw.noise_j2 for draw in ones))
    error_j = 1.96 * math.hypot(noise_j, math.fsum(draw.common_j for draw in ones))
    told_j = books.rows[7].energy.error_j
    assert told_j <= error_j * (1 + 1e-9)
    assert error_j < 1.2 * told_j


def test_who_draws_on_it_together_is_known_better_than_each_alone() -> None:
    engine, records = run()
    accounts, books = Accounts([device()], "boot"), Books()
    for number in range(REQUESTS):
        accounts.announce(receipt_of(number), "entrace", ("all", "even") if number % 2 == 0 else ("all",))
    accounts.open_engine(header())
    accounts.found(engine.edges("GPU-0"))
    accounts.steps(records, engine.now_ns + 1_000 * MS)
    books.write(accounts.settle())
    even = [draw for draw in draws_of(books) if draw.budgets == ("all", "even")]
    noise_j = math.sqrt(math.fsum(draw.noise_j2 for draw in even))
    error_j = 1.96 * math.hypot(noise_j, math.fsum(draw.common_j for draw in even))
    alone_j = math.fsum(row.energy.error_j for number, row in books.rows.items() if number % 2 == 0)
    assert 0.0 < error_j < alone_j
    assert all(min(draw.noise_j2, draw.common_j) >= 0.0 for draw in draws_of(books))


def test_a_word_that_comes_late_counts_from_then_on_and_what_was_before_is_anybodys() -> None:
    engine, records = run()
    half_ns = engine.now_ns // 2
    accounts, books = Accounts([device()], "boot"), Books()
    accounts.open_engine(header())
    accounts.found(engine.edges("GPU-0"))
    accounts.steps([each for each in records if instant(each) <= half_ns], half_ns)
    books.write(accounts.settle())
    before_j = drawn_j(books, None)
    for number in range(REQUESTS):
        accounts.announce(receipt_of(number), "entrace", ("team",))
    accounts.steps([each for each in records if instant(each) > half_ns], engine.now_ns + 1_000 * MS)
    books.write(accounts.settle())
    assert before_j > 0.0
    assert drawn_j(books, None) == before_j
    assert drawn_j(books, "team") == pytest.approx(books.requests_j - before_j)


def test_of_requests_that_an_earlier_meter_left_open_the_word_counts_again() -> None:
    engine, records = run()
    half_ns = engine.now_ns // 2
    first, books = Accounts([device()], "boot"), Books()
    for number in range(REQUESTS):
        first.announce(receipt_of(number), "entrace", ("team",))
    first.open_engine(header())
    first.found(engine.edges("GPU-0"))
    first.steps([each for each in records if instant(each) <= half_ns], half_ns)
    books.write(first.settle())
    before_j, resume = books.requests_j, books.batches[-1].resume
    second = Accounts([device()], "boot", resume)
    second.inherit([row for row in books.rows.values() if not row.energy.settled])
    for number in range(REQUESTS):
        second.announce(receipt_of(number), "entrace", ("team",))
    second.open_engine(header())
    second.found([edge for edge in engine.edges("GPU-0") if edge.t_ns > resume.last_edges[0].t_ns])
    second.steps(records, engine.now_ns + 1_000 * MS)
    books.write(second.settle())
    assert books.requests_j > before_j
    assert drawn_j(books, "team") == pytest.approx(books.requests_j)
