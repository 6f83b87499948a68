"""Ring records become steps and what is known of their requests.

On a GPU the steps of one engine never overlap: with asynchronous scheduling step k+1 is dispatched while k runs, so a step begins no earlier than
the one before it ended (`vllm` reports k done before k+1). In a pipeline of stages each stage has its own spans of a step (see `stages`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from etameter.requests import UNKNOWN_NS, Requests
from etameter.serving.ring import KEYFRAME_STEPS, Dispatch, Done, Finish, Lost, Record, RingHeader, Table
from etameter.stages import Pipeline
from etameter.work import (
    ACCEPTED,
    CACHED,
    COLUMNS,
    CONTEXT,
    DECODE,
    FIRST,
    PREFILL,
    RECOMPUTED,
    SLOT,
    Columns,
    IntArray,
    Span,
    Step,
    steps_of,
)

MOST_STAGES = 1024


@dataclass(frozen=True, slots=True)
class Missing:
    """From `start_ns` to `end_ns` the engine may have run steps that nobody recorded."""

    start_ns: int
    end_ns: int


class StepAssembler:
    """Follows one engine's ring. `requests` holds every request seen until it is forgotten there."""

    def __init__(self, header: RingHeader) -> None:
        self.header = header
        self.requests = Requests()
        stages = header.details.get("pipeline_parallel_size", 1)
        self.stages = stages if type(stages) is int and 0 < stages <= MOST_STAGES else 1
        self.steps: list[list[Step]] = [[] for _ in range(self.stages)]
        """Completed steps in order of time, as each stage worked on them; the owner takes them out."""
        self.missing: list[Missing] = []
        self._in_flight: dict[int, Dispatch] = {}
        self._ended: list[tuple[Span, list[tuple[int, int]], Table, Table]] = []
        """Steps that are not laid out yet, with their times on each stage, their rows and accepted drafts."""
        self._pipeline = Pipeline(self.stages, header.created_ns)
        self._last_seen_ns = header.created_ns
        self._lost_since_ns: int | None = None
        self._unsure: set[int] = set()
        self._dispatches_since_lost = 0

    @property
    def oldest_in_flight_ns(self) -> int | None:
        """When the oldest step that has not ended was dispatched."""
        return min((dispatch.t_ns for dispatch in self._in_flight.values()), default=None)

    def feed(self, records: Iterable[Record]) -> None:
        for record in records:
            if isinstance(record, Lost):
                self._lay_out()
                self._unsure = self.requests.numbers
                self._dispatches_since_lost = 0
                self._lost_since_ns = self._last_seen_ns if self._lost_since_ns is None else self._lost_since_ns
                self._in_flight.clear()
                continue
            if self._lost_since_ns is not None:
                self.missing.append(Missing(self._lost_since_ns, record.t_ns))
                self._lost_since_ns = None
                self._pipeline.idle_until(record.t_ns)
            self._last_seen_ns = record.t_ns
            match record:
                case Dispatch():
                    for each in record.introductions:
                        self.requests.introduce(*each)
                    self._in_flight[record.step_id] = record
                    if self._unsure:
                        self._seek_unsure(record)
                case Done():
                    self._end(record)
                case Finish():
                    self._finish(record)
        self._lay_out()

    def abandon(self, now_ns: int) -> None:
        """The engine is gone: what it had in flight will never be reported, and its requests are over."""
        oldest_ns = self.oldest_in_flight_ns
        if oldest_ns is not None:
            self.missing.append(Missing(oldest_ns, now_ns))
        self._in_flight.clear()
        self.requests.abandon(now_ns, "engine_lost")

    def give_up(self, before_ns: int, now_ns: int) -> None:
        """Wait no longer for the end of steps that were dispatched before an instant."""
        hung = [step_id for step_id, dispatch in self._in_flight.items() if dispatch.t_ns < before_ns]
        if hung:
            self.missing.append(Missing(min(self._in_flight[step_id].t_ns for step_id in hung), now_ns))
        for step_id in hung:
            del self._in_flight[step_id]

    def _seek_unsure(self, dispatch: Dispatch) -> None:
        """The end of a request may be among lost records: one that no step has named since then is over."""
        self._unsure.difference_update(dispatch.rows[:, 0].tolist())
        self._dispatches_since_lost += 1
        if self._dispatches_since_lost >= 2 * KEYFRAME_STEPS:
            self.requests.finish_lost(self._unsure, dispatch.t_ns, "records_lost")
            self._unsure.clear()

    def _end(self, done: Done) -> None:
        dispatch = self._in_flight.pop(done.step_id, None)
        if dispatch is None or not len(dispatch.rows):  # its dispatch was lost, or nothing ran
            return
        times = self._pipeline.passed(dispatch.t_ns, done.t_ns)
        span = Span(done.step_id, times[0][0], times[-1][1], dispatch.padded_tokens, len(dispatch.rows))
        self._ended.append((span, times, dispatch.rows, done.accepted))

    def _finish(self, finish: Finish) -> None:
        if finish.number not in self.requests:
            self._lay_out()  # a step may name it whose introduction was lost
        if finish.number in self.requests:
            self.requests.finish(finish.number, finish.t_ns, finish.output_tokens, finish.reason)

    def _lay_out(self) -> None:
        """Make columns of the steps that have ended, all at once, and book their tokens."""
        if not self._ended:
            return
        spans, times, tables, accepted = zip(*self._ended, strict=True)
        self._ended = []
        rows = np.concatenate(tables)
        columns = np.zeros((COLUMNS, len(rows)), dtype=np.uint32)
        columns[: rows.shape[1]] = rows.T
        done_ns = np.repeat(np.array([span.done_ns for span in spans]), np.array([span.rows for span in spans]))
        if any(len(pairs) for pairs in accepted):
            columns[ACCEPTED] = _accepted(spans, rows[:, 0], accepted)
        columns[SLOT] = slots = self._slots(columns, done_ns)
        self._book(slots, columns, done_ns)
        steps = steps_of(spans, columns, distinct=self.requests.are_single)
        for stage, of_stage in enumerate(self.steps):
            of_stage.extend(
                steps if self.stages == 1 else [step.at(*each[stage]) for step, each in zip(steps, times, strict=True)]
            )

    def _slots(self, columns: Columns, done_ns: IntArray) -> IntArray:
        """The rows' requests. One whose introduction was lost is metered under its number."""
        numbers = columns[0]
        slots, unknown = self.requests.find(numbers)
        if len(unknown):
            for at in unknown.tolist():
                number, prompt_tokens = int(numbers[at]), int(columns[CONTEXT, at]) + int(columns[PREFILL, at])
                self.requests.introduce(number, f"{self.header.engine}#{number}", prompt_tokens, int(done_ns[at]))
            slots, _ = self.requests.find(numbers)
        return slots

    def _book(self, slots: IntArray, columns: Columns, done_ns: IntArray) -> None:
        table = self.requests.table
        for name, column in (("cached_tokens", CACHED), ("prefill_tokens", PREFILL)):
            rows = np.flatnonzero(columns[column])  # few have any
            if len(rows):
                np.add.at(table[name], slots[rows], columns[column, rows])
        is_whole = (
            columns[CONTEXT, rows].astype(np.int64) + columns[PREFILL, rows] >= table["prompt_tokens"][slots[rows]]
        )
        is_new = columns[RECOMPUTED, rows] < columns[PREFILL, rows]  # what was computed before brings no token again
        columns[FIRST, rows] = is_whole & is_new & (columns[DECODE, rows] == 0)
        table["decode_tokens"] += _summed(slots, columns[DECODE] + columns[ACCEPTED], len(table))
        table["last_done_ns"][slots] = done_ns  # where a slot comes several times, the last counts
        is_waiting = table["first_token_ns"] == UNKNOWN_NS
        waiting = np.flatnonzero(is_waiting[slots])[::-1]  # backwards: here the first counts
        waiting_slots, computed = slots[waiting], columns[CONTEXT, waiting].astype(np.int64) + columns[PREFILL, waiting]
        came = (columns[DECODE, waiting] > 0) | (computed >= table["prompt_tokens"][waiting_slots])
        table["first_token_ns"][waiting_slots[came]] = done_ns[waiting[came]]


def _summed(slots: IntArray, tokens: Columns, lines: int) -> IntArray:
    """Tokens by slot."""
    return np.bincount(slots, weights=tokens, minlength=lines).astype(np.int64)


def _accepted(spans: Sequence[Span], numbers: Columns, accepted: Sequence[Table]) -> IntArray:
    """The accepted draft tokens of each row, which are told by step and number."""
    steps = np.arange(len(spans)) << 32
    keys = np.repeat(steps, np.array([span.rows for span in spans])) + numbers
    told = np.concatenate(accepted).astype(np.int64)
    told_keys = np.repeat(steps, np.array([len(pairs) for pairs in accepted])) + told[:, 0]
    order = np.argsort(told_keys, kind="stable")
    at = order[np.minimum(np.searchsorted(told_keys, keys, sorter=order), len(order) - 1)]
    tokens: IntArray = np.where(told_keys[at] == keys, told[at, 1], 0)
    return tokens
