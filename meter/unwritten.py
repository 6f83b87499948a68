"""What is settled and waits for the ledger: many batches where a disk or a busy machine makes it wait.

Each batch tells again what every running request was charged. All that waits is written in one transaction, whole or not at all, so that of those
changes only the latest is kept: what waits grows by what came to its end, not by all that runs.
"""

from collections import deque
from dataclasses import replace

from etameter.accounts import Batch
from etameter.ledger import KEY_VALUES, RECEIPT_ID_VALUE, RequestRow


class Unwritten:
    """Batches in the order in which they were settled."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, batch: Batch) -> None:
        self._batches.append(batch)

    def together(self) -> list[Batch]:
        """All of them, to be written at once, without the changes that later ones replace."""
        replaced: set[tuple[object, ...]] = set()
        kept: deque[Batch] = deque()
        for batch in reversed(self._batches):
            running = [values for values in batch.running if values[:KEY_VALUES] not in replaced]
            kept.appendleft(replace(batch, running=running))
            replaced.update(values[:KEY_VALUES] for values in (*batch.running, *batch.requests))
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
