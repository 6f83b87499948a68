"""What is settled goes to the ledger, in order and in a thread of its own, because a disk may make it wait. What can't be written is tried again."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from etameter.accounts import Batch
from etameter.backlog import Backlog
from etameter.budgets import Budgets, Spent
from etameter.errors import EtameterError
from etameter.ledger import Ledger, RequestRow
from etameter.nodes.kept import Known
from etameter.readings import Found
from etameter.slack.labels import Waste
from etameter.unwritten import Unwritten

logger = logging.getLogger("etameter")

UNWRITTEN_LIMIT = 10_000
"""Batches that wait for the ledger. Then nothing more is taken in until some are written: ring and sampler keep what they have room for, and count what they drop."""
RETRY_S = 1.0


class Writing:
    """Belongs to one event loop. `found`, `wastes` and what `nodes` have become are written with the batches; `count` is told of each batch that the ledger has."""

    def __init__(
        self,
        ledger: Ledger,
        budgets: Budgets,
        found: Sequence[Backlog[Found]],
        wastes: Backlog[tuple[str, Waste]],
        count: Callable[[Batch], None],
        nodes: Callable[[], Mapping[str, Known]] = dict,
    ) -> None:
        self._ledger = ledger
        self._nodes = nodes
        self._written: Mapping[str, Known] = {}
        self._budgets = budgets
        self._found = found
        self._wastes = wastes
        self._count = count
        self._unwritten = Unwritten()
        self._work = asyncio.Event()
        self._ending = False

    def __len__(self) -> int:
        """Batches that wait."""
        return len(self._unwritten)

    @property
    def is_full(self) -> bool:
        """As much waits as may."""
        return len(self._unwritten) >= UNWRITTEN_LIMIT

    def add(self, batch: Batch) -> None:
        self._unwritten.add(batch)
        self._work.set()
        if len(self._unwritten) == UNWRITTEN_LIMIT:
            logger.warning(
                "the ledger %s takes nothing, %d batches wait: no more is metered until it does",
                *(self._ledger.path, UNWRITTEN_LIMIT),
            )

    def rows_of(self, receipt_id: str) -> list[RequestRow]:
        """What waits of a response."""
        return self._unwritten.rows_of(receipt_id)

    def end(self) -> None:
        """Let `run` come to its end when all is written."""
        self._ending = True
        self._work.set()

    async def run(self) -> None:
        """Until `end`.

        Raises:
            EtameterError: it can't be written in the end, either.
        """
        while self._unwritten or not self._ending:
            if not self._unwritten:
                self._work.clear()
                await self._work.wait()
                continue
            batches = self._unwritten.together()
            found, wastes = [each.waiting() for each in self._found], self._wastes.waiting()
            try:
                drawn = await asyncio.to_thread(self._write, batches, list(chain(*found)), wastes)
            except sqlite3.Error as error:
                if self._ending:
                    raise EtameterError(
                        f"the ledger {self._ledger.path} can't be written ({error})", "make room on its disk"
                    ) from error
                logger.warning("the ledger can't be written, %d batches wait: %s", len(batches), error)
                await asyncio.sleep(RETRY_S)
                continue
            for backlog, items in zip(self._found, found, strict=True):
                backlog.written(items)
            self._wastes.written(wastes)
            self._budgets.add(drawn)
            for batch in batches:
                self._count(batch)
            self._unwritten.written(len(batches))
        self._ledger.note(list(chain(*(each.waiting() for each in self._found))), self._wastes.waiting())

    def _write(
        self, batches: Sequence[Batch], found: Sequence[Found], wastes: Sequence[tuple[str, Waste]]
    ) -> list[Spent]:
        """In the thread: what changes is written, and nothing else changed. Returns what budgets spent. Raises sqlite3.Error."""
        settled = [(each.balances, each.requests, each.resume, each.running) for each in batches]
        now_s = time.time()
        drawn = self._budgets.drawn([one for each in batches for one in each.drawn], now_s - time.monotonic())
        nodes = self._nodes()
        changed = {name: known for name, known in nodes.items() if self._written.get(name) != known}
        self._ledger.settle_together(settled, now_s, found, wastes, drawn, changed)
        self._written = nodes
        return drawn
