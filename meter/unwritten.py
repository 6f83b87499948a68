"""What is settled and waits for the ledger: many batches where a disk or a busy machine makes it wait.

Each batch tells again what every running request was charged. All that waits is written in one transaction, whole or not at all, so that of those
changes only the latest is kept, from when it comes on: what waits grows by what came to its end, not by all that runs.
"""

from collections import deque
from dataclasses import replace

from etameter.accounts import Batch
from etameter.ledger import KEY_VALUES, RECEIPT_ID_VALUE, RequestRow, RunningValues

Key = tuple[object, ...]
"""What tells a request from all others."""


class Unwritten:
    """Batches in the order in which they were settled."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, batch: Batch) -> None:
        for place in range(len(self._batches) - 1, -1, -1):
            before = self._batches[place]
            if before.resume.engine == batch.resume.engine:
                self._batches[place] = replace(before, running=_others(before, _told(batch)))
                break
        self._batches.append(batch)

    def together(self) -> list[Batch]:
        """All of them, to be written at once, without the changes that later ones replace."""
        replaced: set[Key] = set()
        kept: deque[Batch] = deque()
        for batch in reversed(self._batches):
            kept.appendleft(replace(batch, running=_others(batch, replaced)))
            replaced |= _told(batch)
        self._batches = kept
        return list(kept)

    def written(self, count: int) -> None:
        """The ledger has the first so many."""
        for _ in range(count):
            self._batches.popleft()

    def rows_of(self, receipt_id: str) -> list[RequestRow]:
        """Whole rows of a response, the latest last. Looked for among bare values: many may wait when many ask."""
        return [
            row
            for batch in self._batches
            if any(values[RECEIPT_ID_VALUE] == receipt_id for values in batch.requests)
            for row in batch.rows
            if row.record.receipt_id == receipt_id
        ]


def _told(batch: Batch) -> set[Key]:
    """The requests of which it tells what they were charged."""
    return {values[:KEY_VALUES] for values in (*batch.running, *batch.requests)}


def _others(batch: Batch, told: set[Key]) -> list[RunningValues]:
    """What it tells of running requests that are not `told` of later."""
    return [values for values in batch.running if values[:KEY_VALUES] not in told]
