"""Rows of a recording's steps: most say nothing that the ones before them did not."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from etameter.serving.ring import Table, row_table


class RecordedRows:
    """Rows of steps, short: one that goes on decoding where the request's last step left off is written as its number."""

    def __init__(self) -> None:
        self._next = row_table(())
        """In order of the numbers."""

    def encode(self, rows: Table) -> list[int | list[int]]:
        """Rows that are as expected become numbers."""
        at, known = self._find(rows[:, 0])
        same = known.copy()
        same[known] = (self._next[at[known]] == rows[known]).all(axis=1)
        coded: list[int | list[int]] = rows[:, 0].tolist()
        for index in np.flatnonzero(~same).tolist():
            coded[index] = rows[index].tolist()
        self._expect(rows)
        return coded

    def decode(self, coded: Sequence[int | Sequence[int]]) -> Table:
        """Raises KeyError where nothing is expected of a number."""
        told = [index for index, each in enumerate(coded) if not isinstance(each, int)]
        numbers = np.array([each if isinstance(each, int) else each[0] for each in coded], dtype=np.uint32)
        at, known = self._find(numbers)
        known[told] = True
        if not known.all():
            raise KeyError(int(numbers[np.argmin(known)]))
        rows = self._next[at] if len(self._next) else np.zeros_like(row_table(()), shape=(len(coded), 9))
        rows[told] = row_table([coded[index] for index in told])  # type: ignore[misc]  # those are no numbers
        self._expect(rows)
        return rows

    def forget(self, number: int) -> None:
        self._next = self._next[self._next[:, 0] != number]

    def _find(self, numbers: Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Where a number's row stands, if one is expected."""
        expected = self._next[:, 0]
        at = np.minimum(np.searchsorted(expected, numbers), max(len(expected) - 1, 0))
        return at, expected[at] == numbers if len(expected) else np.zeros(len(numbers), dtype=np.bool_)

    def _expect(self, rows: Table) -> None:
        expected = np.zeros_like(rows)
        expected[:, 0], expected[:, 2], expected[:, 8] = rows[:, 0], 1, rows[:, 8]
        expected[:, 7] = rows[:, 7] + rows[:, 1] + rows[:, 2]
        others = self._next[~np.isin(self._next[:, 0], rows[:, 0])]
        both = np.concatenate([others, expected])
        self._next = both[np.argsort(both[:, 0], kind="stable")]
