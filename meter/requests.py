"""What the steps have told of the open requests of one engine: a table with a line, a *slot*, for each request.

Steps name requests by their slots, so that a step's rows can be booked at once. A slot is used again when no step names it any more.
"""

import heapq
import re
from collections.abc import Iterable

import numpy as np

from etameter.records import receipt_id_of
from etameter.work import Columns, IntArray

_SIBLING = re.compile(r"^\d+_")  # vLLM names the n samples of one request 0_ID, 1_ID, …
NEVER_NS = int(np.iinfo(np.int64).max)
"""When something ends that has not ended yet."""
UNKNOWN_NS = -1
_FIRST_SLOTS = 64
_FIELDS = np.dtype(
    [
        ("number", "i8"),  # of its first sample
        ("request_id", "O"),
        ("receipt_id", "O"),
        ("arrival_ns", "i8"),
        ("prompt_tokens", "i8"),
        ("cached_tokens", "i8"),
        ("prefill_tokens", "i8"),
        (
            "decode_tokens",
            "i8",
        ),  # that decode steps yielded, accepted drafts too; the last prefill step yields one besides
        ("output_tokens", "i8"),  # known when it finishes
        ("first_token_ns", "i8"),  # UNKNOWN_NS before
        ("last_done_ns", "i8"),  # end of its last step; an asynchronous scheduler runs one more after it has finished
        ("finished_ns", "i8"),  # NEVER_NS before, and in slots that nobody has
        ("finish_reason", "O"),
    ]
)


class Requests:
    """The samples of one request (n > 1) are one request. `table` is replaced when it grows: don't keep a reference to it."""

    def __init__(self) -> None:
        self.table = np.zeros(0, dtype=_FIELDS)
        self._slot_of_id: dict[str, int] = {}
        self._slot_of_number: dict[int, int] = {}
        self._numbers: dict[int, list[int]] = {}
        self._open_numbers: dict[int, set[int]] = {}
        self._free: list[int] = []
        self._retired: list[int] = []
        self._sorted: tuple[Columns, IntArray] | None = None

    def __len__(self) -> int:
        return len(self._slot_of_id)

    def __contains__(self, number: int) -> bool:
        """Whether a request or sample of this number was introduced."""
        return number in self._slot_of_number

    @property
    def are_single(self) -> bool:
        """No request has several samples."""
        return len(self._slot_of_number) == len(self._slot_of_id)

    @property
    def numbers(self) -> set[int]:
        return set(self._slot_of_number)

    @property
    def slots(self) -> IntArray:
        """Of all requests, the oldest first."""
        return np.fromiter(self._slot_of_id.values(), dtype=np.int64, count=len(self._slot_of_id))

    def slot(self, request_id: str) -> int:
        return self._slot_of_id[request_id]

    def introduce(self, number: int, engine_request_id: str, prompt_tokens: int, arrival_ns: int) -> None:
        """Give a number its meaning; another sample opens a request again."""
        if number in self._slot_of_number:
            return
        request_id = _SIBLING.sub("", engine_request_id)
        slot = self._slot_of_id.get(request_id)
        if slot is None:
            slot = self._slot_of_id[request_id] = self._take()
            receipt_id = receipt_id_of(engine_request_id)
            told = (
                number,
                request_id,
                receipt_id,
                arrival_ns,
                prompt_tokens,
                0,
                0,
                0,
                0,
                UNKNOWN_NS,
                0,
                NEVER_NS,
                None,
            )
            self.table[slot] = told
            self._numbers[slot], self._open_numbers[slot] = [], set()
        self.table["finished_ns"][slot], self.table["finish_reason"][slot] = NEVER_NS, None
        self._slot_of_number[number] = slot
        self._numbers[slot].append(number)
        self._open_numbers[slot].add(number)
        self._sorted = None

    def find(self, numbers: Columns) -> tuple[IntArray, IntArray]:
        """The slots of these numbers, and the places of those that are not known (their slots mean nothing)."""
        if self._sorted is None:
            count = len(self._slot_of_number)
            known = np.fromiter(self._slot_of_number.keys(), dtype=np.int64, count=count).astype(np.uint32)
            slots = np.fromiter(self._slot_of_number.values(), dtype=np.int64, count=count)
            order = np.argsort(known, kind="stable")  # they come nearly sorted
            self._sorted = known[order], slots[order]
        known, slots = self._sorted
        if not len(known):
            return np.zeros(len(numbers), dtype=np.int64), np.arange(len(numbers))
        at = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
        return slots[at], np.flatnonzero(known[at] != numbers)

    def finish(self, number: int, t_ns: int, output_tokens: int, reason: str) -> None:
        """A sample has ended, and with the last the request."""
        slot = self._slot_of_number[number]
        still_open = self._open_numbers[slot]
        still_open.discard(number)
        self.table["output_tokens"][slot] += output_tokens
        if not still_open:
            self.table["finished_ns"][slot], self.table["finish_reason"][slot] = t_ns, reason

    def finish_lost(self, numbers: Iterable[int], t_ns: int, reason: str) -> None:
        """Samples of which nothing more will be heard."""
        for number in numbers:
            slot = self._slot_of_number.get(number)
            if slot is not None and number in self._open_numbers[slot]:
                self.finish(number, t_ns, 0, reason)

    def abandon(self, t_ns: int, reason: str) -> None:
        """All that is still open has ended."""
        slots = self.slots
        still_open = slots[self.table["finished_ns"][slots] == NEVER_NS]
        self.table["finished_ns"][still_open] = t_ns
        self.table["finish_reason"][still_open] = reason

    def forget(self, slot: int) -> None:
        """Nothing more is expected of a request. Steps may name its slot still."""
        del self._slot_of_id[self.table["request_id"][slot]]
        for number in self._numbers.pop(slot):
            del self._slot_of_number[number]
        del self._open_numbers[slot]
        self.table["finished_ns"][slot] = NEVER_NS
        self._retired.append(slot)
        self._sorted = None

    def free(self, horizon_ns: int) -> None:
        """Forgotten slots whose last step ended by then may be used again."""
        waiting = []
        for slot in self._retired:
            if self.table["last_done_ns"][slot] <= horizon_ns:
                self.table["request_id"][slot] = self.table["receipt_id"][slot] = None
                heapq.heappush(self._free, slot)
            else:
                waiting.append(slot)
        self._retired = waiting

    def _take(self) -> int:
        """The lowest slot that nobody has: the table stays dense."""
        if not self._free:
            size = len(self.table)
            more = np.zeros(max(size, _FIRST_SLOTS), dtype=_FIELDS)
            more["finished_ns"] = NEVER_NS
            self.table = np.concatenate([self.table, more])
            self._free = list(range(size, len(self.table)))
        return heapq.heappop(self._free)
