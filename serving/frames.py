"""The records of a ring: what they say, and how they lie in bytes (docs/ring.md). The file around them: `ring`."""

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Row = tuple[int, int, int, int, int, int, int, int, int]
"""number, prefill, decode, cached, recomputed, draft, encoder, context, lora: see docs/ring.md."""
Table = npt.NDArray[np.uint32]
"""Rows as a reader finds them, a line to each: read-only."""

PADDING, DISPATCH, DONE, FINISH, ADVANCE = range(5)
ROW_FIELDS = 9
_PREFILL, _DECODE, _CONTEXT = 1, 2, 7  # places in a row
_MOST_ROWS = 0xFFFF
DISPATCH_HEAD = struct.Struct("<QqIHH")  # step id, t_ns, padded tokens, rows, introductions
ADVANCE_HEAD = struct.Struct("<QqIHHH")  # step id, t_ns, padded tokens, rows, numbers that are gone, introductions
INTRODUCTION = struct.Struct("<IIqH")  # number, prompt tokens, arrival_ns, bytes of the id
DONE_HEAD = struct.Struct("<QqI")  # step id, t_ns, pairs of (number, accepted)
FINISH_HEAD = struct.Struct("<IIqH")  # number, output tokens, t_ns, bytes of the reason


class Introduction(NamedTuple):
    """Gives a request's number its meaning."""

    number: int
    request_id: str
    prompt_tokens: int
    arrival_ns: int


def row_table(rows: Sequence[Sequence[int]]) -> Table:
    """Rows as a reader would find them."""
    return np.array(rows, dtype=np.uint32).reshape(-1, ROW_FIELDS)


def pair_table(pairs: Sequence[Sequence[int]]) -> Table:
    """Pairs of (number, accepted draft tokens) as a reader would find them."""
    return np.array(pairs, dtype=np.uint32).reshape(-1, 2)


NONE_ACCEPTED = pair_table(())
_ONE_DECODED = np.array([0, 1, 0, 0, 0, 0], dtype=np.uint32)
"""What stands between a row's number and its context while it decodes."""


class Dispatch(NamedTuple):
    step_id: int
    t_ns: int
    padded_tokens: int
    rows: Table
    introductions: tuple[Introduction, ...]


class Done(NamedTuple):
    step_id: int
    t_ns: int
    accepted: Table = NONE_ACCEPTED


class Finish(NamedTuple):
    number: int
    t_ns: int
    output_tokens: int
    reason: str


class Lost(NamedTuple):
    """Here the reader missed records: overwritten before it came, or torn."""

    records: int


Record = Dispatch | Done | Finish | Lost


class Advance(NamedTuple):
    """A step told by what it does not share with the one before it."""

    step_id: int
    t_ns: int
    padded_tokens: int
    rows: Table
    gone: Table
    introductions: tuple[Introduction, ...]

    def rows_after(self, before: Table) -> Table | None:
        """All rows of the step; None where they are too many to be a writer's."""
        table: Table = before.copy()
        named = np.sort(np.concatenate([self.gone, self.rows[:, 0]]))
        if len(named):
            numbers = before[:, 0]
            nearest = named[np.minimum(np.searchsorted(named, numbers), len(named) - 1)]
            table = table[nearest != numbers]
        if len(table) + len(self.rows) > _MOST_ROWS:
            return None
        table[:, _CONTEXT] += table[:, _PREFILL] + table[:, _DECODE]
        table[:, _PREFILL:_CONTEXT] = _ONE_DECODED
        return np.concatenate([table, self.rows]) if len(self.rows) else table


def decode(kind: int, padded: bytes, checksum: int) -> Record | Advance | None:
    """The record in a payload that is followed by padding, or None where it is torn."""
    try:
        record, size = _DECODERS[kind](padded)
    except (KeyError, ValueError, struct.error):
        return None
    return record if zlib.crc32(padded[:size]) == checksum else None


def _decode_dispatch(payload: bytes) -> tuple[Record, int]:
    step_id, t_ns, padded_tokens, row_count, introduction_count = DISPATCH_HEAD.unpack_from(payload)
    rows = _table(payload, DISPATCH_HEAD.size, row_count, ROW_FIELDS)
    introductions, end = _introductions(payload, DISPATCH_HEAD.size + rows.nbytes, introduction_count)
    return Dispatch(step_id, t_ns, padded_tokens, rows, introductions), end


def _decode_advance(payload: bytes) -> tuple[Advance, int]:
    step_id, t_ns, padded_tokens, row_count, gone_count, introduction_count = ADVANCE_HEAD.unpack_from(payload)
    gone = _table(payload, ADVANCE_HEAD.size, gone_count, 1)[:, 0]
    rows = _table(payload, ADVANCE_HEAD.size + gone.nbytes, row_count, ROW_FIELDS)
    end = ADVANCE_HEAD.size + gone.nbytes + rows.nbytes
    introductions, end = _introductions(payload, end, introduction_count)
    return Advance(step_id, t_ns, padded_tokens, rows, gone, introductions), end


def _introductions(payload: bytes, at: int, count: int) -> tuple[tuple[Introduction, ...], int]:
    """So many that begin at `at`, and where they end."""
    introductions = []
    for _ in range(count):
        number, prompt_tokens, arrival_ns, length = INTRODUCTION.unpack_from(payload, at)
        at += INTRODUCTION.size + length
        introductions.append(Introduction(number, _text(payload[at - length : at]), prompt_tokens, arrival_ns))
    return tuple(introductions), at


def _decode_done(payload: bytes) -> tuple[Record, int]:
    step_id, t_ns, count = DONE_HEAD.unpack_from(payload)
    accepted = _table(payload, DONE_HEAD.size, count, 2) if count else NONE_ACCEPTED
    return Done(step_id, t_ns, accepted), DONE_HEAD.size + accepted.nbytes


def _decode_finish(payload: bytes) -> tuple[Record, int]:
    number, output_tokens, t_ns, length = FINISH_HEAD.unpack_from(payload)
    end = FINISH_HEAD.size + length
    return Finish(number, t_ns, output_tokens, _text(payload[FINISH_HEAD.size : end])), end


def _table(payload: bytes, at: int, lines: int, fields: int) -> Table:
    """The numbers as they lie in the payload, without a copy. Raises ValueError where it is too short."""
    return np.frombuffer(payload, dtype="<u4", count=lines * fields, offset=at).reshape(lines, fields)


def _text(data: bytes) -> str:
    """What was cut to its place may begin or end within a character."""
    return data.decode(errors="replace")


_DECODERS: dict[int, Callable[[bytes], tuple[Record | Advance, int]]] = {
    DISPATCH: _decode_dispatch,
    DONE: _decode_done,
    FINISH: _decode_finish,
    ADVANCE: _decode_advance,
}
