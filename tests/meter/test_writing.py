"""What is settled, written: in its order, once, and by the time that the meter ends."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from etameter import writing
from etameter.accounts import Batch
from etameter.backlog import Backlog
from etameter.budget_section import BudgetSection
from etameter.budgets import Budgets, Draw
from etameter.errors import EtameterError
from etameter.ledger import Ledger
from etameter.readings import Found
from etameter.slack.labels import Waste
from etameter.writing import Writing
from tests.meter.test_unwritten import RECEIPT, batches

pytestmark = pytest.mark.unit


class Desk:
    """A ledger, and who writes into it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.budgets = Budgets({"team": BudgetSection(arms=frozenset({"entrace"}), joules=1.0)}, "measured")
        self.found: Backlog[Found] = Backlog()
        self.wastes: Backlog[tuple[str, Waste]] = Backlog()
        self.counted: list[Batch] = []
        self.writing = Writing(ledger, self.budgets, [self.found], self.wastes, self.counted.append)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        yield Desk(ledger)


def drawing() -> Batch:
    """One that a budget draws a joule in."""
    batch = next(each for each in batches() if each.balances)
    return replace(batch, draws=[[Draw(("team",), 1.0, 0.0, 0.0)], *([] for _ in batch.balances[1:])])


def spent_j(desk: Desk) -> float:
    return sum(each.energy_j for each in desk.ledger.spent(0.0))


def test_all_is_written_and_counted_in_its_order_before_the_end(desk: Desk) -> None:
    for batch in batches():
        desk.writing.add(batch)
    desk.wastes.add((RECEIPT, "abandoned"))
    desk.writing.end()
    asyncio.run(desk.writing.run())
    assert len(desk.writing) == 0
    assert [each.resume for each in desk.counted] == [each.resume for each in batches()]
    assert desk.ledger.totals().measured_j == pytest.approx(
        sum(balance.measured_j for batch in batches() for balance, _ in batch.balances)
    )
    assert (desk.ledger.waste(RECEIPT), desk.wastes.waiting()) == ("abandoned", [])


def test_what_came_after_the_last_batch_is_written_too(desk: Desk) -> None:
    desk.wastes.add((RECEIPT, "abandoned"))
    desk.writing.end()
    asyncio.run(desk.writing.run())
    assert desk.ledger.waste(RECEIPT) == "abandoned"


def test_what_cannot_be_written_is_tried_again_and_counted_once(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writing, "RETRY_S", 0.01)
    desk.ledger._db.execute("PRAGMA busy_timeout = 0")

    async def main() -> None:
        desk.writing.add(drawing())
        running = asyncio.create_task(desk.writing.run())
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            while caplog.text.count("can't be written") < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert (len(desk.writing), desk.counted, spent_j(desk)) == (1, [], 0.0)
            other.execute("ROLLBACK")
        desk.writing.end()
        await running

    asyncio.run(main())
    assert (len(desk.writing), len(desk.counted), spent_j(desk)) == (0, 1, 1.0)
    assert list(desk.budgets._spent.values()) == desk.ledger.spent(0.0)


def test_an_end_at_which_nothing_can_be_written_is_an_error(desk: Desk) -> None:
    desk.ledger._db.execute("PRAGMA query_only = ON")
    desk.writing.add(drawing())
    desk.writing.end()
    with pytest.raises(EtameterError, match="can't be written"):
        asyncio.run(desk.writing.run())
    assert desk.counted == []


def test_it_is_full_when_as_much_waits_as_may(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writing, "UNWRITTEN_LIMIT", 2)
    full = []
    for batch in batches()[:2]:
        desk.writing.add(batch)
        full.append(desk.writing.is_full)
    assert full == [False, True]
    assert caplog.text.count("no more is metered until it does") == 1
