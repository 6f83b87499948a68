"""The step stream: what an engine's scheduler did, written to a memory-mapped file that any number of readers follow.

One writer, that never waits and that no reader can delay; readers keep their own cursors and count what they lost. The file
outlives a SIGKILL of either side; a lock that the writer holds on it does not, and tells readers in any container whether it lives. Any engine may feed the meter through `RingWriter`:

    ring = RingWriter(Path("/dev/shm/etameter-engine-0.ring"), engine="engine-0", model="my-model", dtype="bfloat16")
    number = ring.open_request("request-1", prompt_tokens=128, arrival_ns=time.monotonic_ns())
    ring.dispatch(1, time.monotonic_ns(), [(number, 128, 0, 0, 0, 0, 0, 0, 0)])   # prefill of 128 tokens
    ...                                                                         # the GPU works
    ring.done(1, time.monotonic_ns())
    ring.finish(number, time.monotonic_ns(), output_tokens=1, reason="length")

Format, version 2, little-endian, described in ``docs/ring.md``: a header page, then a circular area of records, each aligned to 16
bytes and framed by length, CRC-32, sequence number and kind. `reserved` is raised before a record's bytes are written and `committed`
after, so that a reader knows whether what it copied had been overwritten meanwhile, and never sees half a record. A step may be told by
what it does not share with the one before it; every 256 steps one is told whole, and the header names the last of those, from which a
reader that comes late can start. Readers know version 1 too, in which every step is whole.
"""

import json
import mmap
import os
import struct
import time
import weakref
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

from etameter.errors import EngineError

from .frames import (
    ADVANCE,
    ADVANCE_HEAD,
    DISPATCH,
    DONE,
    DONE_HEAD,
    FINISH,
    FINISH_HEAD,
    INTRODUCTION,
    NONE_ACCEPTED,
    PADDING,
    ROW_FIELDS,
    Advance,
    Dispatch,
    Done,
    Finish,
    Introduction,
    Lost,
    Record,
    Row,
    Table,
    decode,
    pair_table,
    row_table,
)

__all__ = [
    "KEYFRAME_STEPS",
    "NONE_ACCEPTED",
    "Dispatch",
    "Done",
    "Finish",
    "Introduction",
    "Lost",
    "Record",
    "RingHeader",
    "RingReader",
    "RingWriter",
    "Row",
    "Table",
    "boot_id",
    "pair_table",
    "row_table",
]

MAGIC = b"ETARING\0"
VERSION = 2
HEADER_BYTES = 4096
KEYFRAME_STEPS = 256
"""Every so many steps one is told whole and its requests are introduced again, for readers that came late or were overrun."""

_FIXED = struct.Struct("<8sIIQQQ")  # magic, version, header bytes, capacity, reserved, committed
_RESERVED_WORD, _COMMITTED_WORD = 3, 4  # of the 64-bit words of the header
_STARTS = {1: range(5, 13), 2: range(496, 512)}
"""Words by version, each of which names a position where a reader may start, +1; 0 while it is unused."""
_JSON_LENGTH = struct.Struct("<I")
_JSON_OFFSET = 128
_FRAME = struct.Struct("<IIIB3x")  # length with frame and padding, CRC-32 of what follows it, sequence, kind
_ALIGNMENT = 16
_ZEROS = bytes(_ALIGNMENT)
_LAST_SEQUENCE = 0xFFFFFFFF
_LONGEST_ID_BYTES = 4096


@dataclass(frozen=True, slots=True)
class RingHeader:
    """What the writer says of itself. `details` are numbers and words of the model's configuration."""

    boot_id: str
    engine: str
    gpu_uuids: tuple[str, ...]
    model: str
    dtype: str
    pid: int
    created_ns: int
    details: Mapping[str, int | float | str]


def boot_id() -> str:
    """Names the boot of this host, for which CLOCK_MONOTONIC instants are comparable; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class RingWriter:
    """Writes the steps of one engine. Used from one thread. Creating it replaces the ring of an earlier engine of that path.

    Raises:
        OSError: the file can't be created or the file system has no room for `capacity_bytes`.
        ValueError: `capacity_bytes` is no multiple of 16, or header or record is larger than its place.
    """

    def __init__(
        self,
        path: Path,
        *,
        engine: str,
        model: str,
        dtype: str,
        gpu_uuids: Sequence[str] = (),
        details: Mapping[str, int | float | str] | None = None,
        capacity_bytes: int = 16 << 20,
    ) -> None:
        if capacity_bytes <= 0 or capacity_bytes % _ALIGNMENT:
            raise ValueError(f"capacity_bytes is {capacity_bytes}: it must be a positive multiple of {_ALIGNMENT}")
        about = {
            "boot_id": boot_id(),
            "engine": engine,
            "gpu_uuids": list(gpu_uuids),
            "model": model,
            "dtype": dtype,
            "pid": os.getpid(),
            "created_ns": time.monotonic_ns(),
            "details": dict(details or {}),
        }
        text = json.dumps(about).encode()
        if len(text) > 8 * _STARTS[VERSION].start - _JSON_OFFSET - _JSON_LENGTH.size:
            raise ValueError(f"the ring's header takes {len(text)} bytes: shorten `details`")
        self.path = path
        self._capacity = capacity_bytes
        self._map = _create(path, HEADER_BYTES + capacity_bytes, text, capacity_bytes)
        self._words = memoryview(self._map).cast("Q")
        self._committed = 0
        self._keyframes = 0
        self._sequence = 0
        self._next_number = 0
        self._since_keyframe: int | None = None
        self._known: dict[int, bytes] = {}
        self._new: dict[int, None] = {}
        self._dispatch_structs: dict[int, struct.Struct] = {}

    def open_request(self, request_id: str, prompt_tokens: int, arrival_ns: int) -> int:
        """Give a request the number that stands for it in rows. Its id is written with the next dispatch."""
        number = self._next_number
        self._next_number += 1
        # Its end is etameter's, and the client's its beginning.
        name = request_id.encode("utf-8", "replace")[-_LONGEST_ID_BYTES:]
        self._known[number] = INTRODUCTION.pack(number, prompt_tokens, arrival_ns, len(name)) + name
        self._new[number] = None
        return number

    @property
    def keyframe_due(self) -> bool:
        """The next step has to be told whole, with `dispatch`."""
        return self._since_keyframe is None or self._since_keyframe >= KEYFRAME_STEPS

    def dispatch(self, step_id: int, t_ns: int, rows: Sequence[Sequence[int]], padded_tokens: int = 0) -> None:
        """The step begins at `t_ns` with these requests, each a `Row`."""
        count = len(rows)
        packer = self._dispatch_structs.get(count)
        if packer is None:
            packer = self._dispatch_structs[count] = struct.Struct(f"<QqIHH{ROW_FIELDS * count}I")
        introduced = list(self._new)
        is_keyframe = self.keyframe_due
        if is_keyframe:
            again = dict.fromkeys(chain(self._new, (row[0] for row in rows)))
            introduced = [number for number in again if number in self._known]
        payload = packer.pack(step_id, t_ns, padded_tokens, count, len(introduced), *chain.from_iterable(rows))
        self._since_keyframe = 1 if is_keyframe else (self._since_keyframe or 0) + 1
        self._append(DISPATCH, payload + self._introduce(introduced), is_keyframe=is_keyframe)

    def advance(
        self,
        step_id: int,
        t_ns: int,
        rows: Sequence[Sequence[int]] = (),
        gone: Sequence[int] = (),
        padded_tokens: int = 0,
    ) -> None:
        """The step begins at `t_ns` and takes each request of the step before it one token further, by decoding.

        Those whose numbers are in `gone` have no part in it; `rows` are of those that are new, or do something else. Not for requests of which the
        step before verified draft tokens: where they stand isn't known.

        Raises:
            ValueError: no step was dispatched before.
        """
        if self._since_keyframe is None:
            raise ValueError("the first step has to be told whole: call dispatch")
        head = ADVANCE_HEAD.pack(step_id, t_ns, padded_tokens, len(rows), len(gone), len(self._new))
        if rows or gone:
            head += struct.pack(f"<{len(gone) + ROW_FIELDS * len(rows)}I", *gone, *chain.from_iterable(rows))
        self._since_keyframe += 1
        self._append(ADVANCE, head + self._introduce(self._new))

    def _introduce(self, numbers: Collection[int]) -> bytes:
        if not numbers:
            return b""
        names = b"".join([self._known[number] for number in numbers])
        self._new = {}
        return names

    def done(self, step_id: int, t_ns: int, accepted: Sequence[tuple[int, int]] = ()) -> None:
        """The step's output arrived at `t_ns`. `accepted` gives the draft tokens that were kept, by request number."""
        payload = DONE_HEAD.pack(step_id, t_ns, len(accepted))
        if accepted:
            payload += struct.pack(f"<{2 * len(accepted)}I", *chain.from_iterable(accepted))
        self._append(DONE, payload)

    def finish(self, number: int, t_ns: int, output_tokens: int, reason: str) -> None:
        """The request left the engine, having produced `output_tokens`."""
        self.finish_all(t_ns, [(number, output_tokens, reason)])

    def finish_all(self, t_ns: int, ends: Sequence[tuple[int, int, str]]) -> None:
        """These requests left the engine at once: number, output tokens and reason of each."""
        framed: list[bytes] = []
        sequence = self._sequence
        for number, output_tokens, reason in ends:
            self._known.pop(number, None)
            if number in self._new:  # it never ran: nobody has been told its id, and nobody needs it
                del self._new[number]
                continue
            text, length, padding = _reason_text(reason)
            payload = FINISH_HEAD.pack(number, output_tokens, t_ns, len(text)) + text
            framed += (_FRAME.pack(length, zlib.crc32(payload), sequence & _LAST_SEQUENCE, FINISH), payload, padding)
            sequence += 1
        if framed:
            self._write(b"".join(framed), sequence - self._sequence)

    def close(self) -> None:
        """Unmap the file and give up its lock; it stays for its readers."""
        self._words.release()
        self._map.close()

    def _append(self, kind: int, payload: bytes, *, is_keyframe: bool = False) -> None:
        size = _FRAME.size + len(payload)
        padding = -size % _ALIGNMENT
        frame = _FRAME.pack(size + padding, zlib.crc32(payload), self._sequence, kind)
        self._write(frame + payload + _ZEROS[:padding], 1, is_keyframe)

    def _write(self, framed: bytes, records: int, is_keyframe: bool = False) -> None:  # noqa: FBT001, FBT002  # called for every record
        """So many records, in one piece."""
        length = len(framed)
        at = self._committed % self._capacity
        if length * 2 > self._capacity:
            raise ValueError(
                f"a record of {length} bytes does not fit a ring of {self._capacity}: use a larger capacity_bytes"
            )
        if at + length > self._capacity:
            self._pad(self._capacity - at)
            at = 0
        if is_keyframe:
            starts = _STARTS[VERSION]
            self._words[starts[self._keyframes % len(starts)]] = self._committed + 1
            self._keyframes += 1
        end = self._committed + length
        self._words[_RESERVED_WORD] = end
        self._map[HEADER_BYTES + at : HEADER_BYTES + at + length] = framed
        self._sequence = (self._sequence + records) & _LAST_SEQUENCE
        self._committed = end
        self._words[_COMMITTED_WORD] = end

    def _pad(self, room: int) -> None:
        """Fill what is left before the end of the area."""
        at = HEADER_BYTES + self._committed % self._capacity
        self._words[_RESERVED_WORD] = self._committed + room
        self._map[at : at + _FRAME.size] = _FRAME.pack(room, zlib.crc32(b""), self._sequence, PADDING)
        self._committed += room
        self._words[_COMMITTED_WORD] = self._committed


@lru_cache(maxsize=64)
def _reason_text(reason: str) -> tuple[bytes, int, bytes]:
    """As bytes, with the length of its record and what fills that up."""
    text = reason.encode("utf-8", "replace")[:64]
    size = _FRAME.size + FINISH_HEAD.size + len(text)
    padding = -size % _ALIGNMENT
    return text, size + padding, bytes(padding)


def _create(path: Path, size: int, about: bytes, capacity: int) -> mmap.mmap:
    """A new file of `size` bytes with its header, locked and renamed into place so that no reader sees it unfinished.

    The lock is the mapping's, which keeps the file open: it ends with the process, however that ends.
    """
    import fcntl  # not at the top: recordings are replayed where there is none

    building = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(building, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)  # a full file system is an error here, not a SIGBUS in the engine later
        # Every page is there before the first step: a page fault would cost the engine more than the record.
        mapped = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
        mapped[: _FIXED.size] = _FIXED.pack(MAGIC, VERSION, HEADER_BYTES, capacity, 0, 0)
        mapped[_JSON_OFFSET : _JSON_OFFSET + _JSON_LENGTH.size] = _JSON_LENGTH.pack(len(about))
        mapped[_JSON_OFFSET + _JSON_LENGTH.size : _JSON_OFFSET + _JSON_LENGTH.size + len(about)] = about
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        building.rename(path)
    except OSError:
        building.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return mapped


class RingReader:
    """Follows a ring, read-only. `cursor` continues an earlier reader of the same file; None starts with the oldest record still there.

    Raises:
        FileNotFoundError: no engine has created the ring yet.
        EngineError: the file can't be read, is no ring, or of a version this reader does not know.
    """

    def __init__(self, path: Path, cursor: int | None = None) -> None:
        no_ring = EngineError(f"{path} is no ring of steps", "name the file that the engine's scheduler writes")
        try:
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_size < HEADER_BYTES:
                    raise no_ring
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                self._lock = os.dup(file.fileno())
                self._close_lock = weakref.finalize(self, os.close, self._lock)
        except FileNotFoundError:
            raise
        except OSError as error:
            remedy = "name the file that the engine's scheduler writes, and run the meter as that engine's user"
            raise EngineError(f"the ring {path} can't be read ({error.strerror})", remedy) from error
        magic, version, header_bytes, capacity, _, committed = _FIXED.unpack_from(self._map)
        if magic != MAGIC:
            raise no_ring
        if version not in _STARTS:
            raise EngineError(
                f"{path} has ring version {version}",
                f"run the server and the meter from one installation (version {VERSION})",
            )
        header = _header(self._map)
        whole = header_bytes == HEADER_BYTES and header_bytes + capacity == about.st_size
        if header is None or capacity == 0 or capacity % _ALIGNMENT or not whole:
            raise no_ring
        self.path = path
        self.inode = about.st_ino
        self.header = header
        self._base = header_bytes
        self._capacity = capacity
        self._words = memoryview(self._map).cast("Q")
        self._version, self._starts = version, _STARTS[version]
        self._rows: Table | None = None
        """Of the last step; None where that is not known."""
        self.lost_records = 0
        """Records overwritten before they were read, and steps told by one that was."""
        self.torn_records = 0
        """Records whose checksum is wrong: skipped."""
        begin = 0 if self._words[_RESERVED_WORD] <= capacity else committed
        self.cursor = self._oldest(begin) if cursor is None else cursor
        self._expected: int | None = 0 if self.cursor == 0 else None

    def poll(self) -> list[Record]:
        """Every record committed since the last call, and a `Lost` where some are missing.

        A reader that is older than every place where one may start goes on with the oldest of those.
        """
        records: list[Record] = []
        committed = self._words[_COMMITTED_WORD]
        if self._version > 1 and self.cursor + 1 < min(self._words[word] for word in self._starts):  # 0 where unused
            self.cursor = max(self.cursor, self._oldest(self.cursor))
        while self.cursor < committed:
            at = self._base + self.cursor % self._capacity
            length, checksum, sequence, kind = _FRAME.unpack_from(self._map, at)
            payload = self._map[at + _FRAME.size : at + length]
            if max(self._words[_RESERVED_WORD], committed) - self.cursor > self._capacity:  # the writer has come round
                self.cursor = self._oldest(committed)
                continue
            if length < _FRAME.size or length % _ALIGNMENT or length > self._capacity:
                self._tear(records)
                self.cursor = committed
                continue
            if kind != PADDING:
                self._note_gap(sequence, records)
                self._take(decode(kind, payload, checksum), records)
            self.cursor += length
        return records

    def _take(self, record: "Record | Advance | None", records: list[Record]) -> None:
        """Add a record to those that are told; None is a torn one."""
        if record is None:
            self._tear(records)
            return
        if isinstance(record, Advance):
            rows = None if self._rows is None else record.rows_after(self._rows)
            if rows is None:
                self.lost_records += 1
                records.append(Lost(1))
                return
            record = Dispatch(record.step_id, record.t_ns, record.padded_tokens, rows, record.introductions)
        if isinstance(record, Dispatch):
            self._rows = record.rows
        records.append(record)

    def replaced(self) -> bool:
        """True when another engine has put its own ring in this one's place."""
        try:
            return self.path.stat().st_ino != self.inode
        except FileNotFoundError:
            return False

    def abandoned(self) -> bool:
        """True when the writer's lock is nobody's any more: its process has closed the ring, or ended."""
        import fcntl

        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return True

    def close(self) -> None:
        self._words.release()
        self._map.close()
        self._close_lock()

    def _oldest(self, otherwise: int) -> int:
        """The oldest place where a reader may start that has not been overwritten, if there is one."""
        reserved, committed = self._words[_RESERVED_WORD], self._words[_COMMITTED_WORD]
        starts = [self._words[word] - 1 for word in self._starts]
        whole = [
            start for start in starts if 0 <= start <= committed and max(reserved, committed) - start <= self._capacity
        ]
        return min((start for start in whole if start % _ALIGNMENT == 0), default=otherwise)

    def _note_gap(self, sequence: int, records: list[Record]) -> None:
        if self._expected is not None and sequence != self._expected:
            lost = (sequence - self._expected) & 0xFFFFFFFF
            self.lost_records += lost
            self._rows = None
            records.append(Lost(lost))
        self._expected = (sequence + 1) & 0xFFFFFFFF

    def _tear(self, records: list[Record]) -> None:
        self.torn_records += 1
        self._rows = None
        records.append(Lost(1))


def _header(mapped: mmap.mmap) -> RingHeader | None:
    """What the writer says of itself; None where that is not what a writer says."""
    (length,) = _JSON_LENGTH.unpack_from(mapped, _JSON_OFFSET)
    start = _JSON_OFFSET + _JSON_LENGTH.size
    try:
        about = json.loads(mapped[start : start + length])
        header = RingHeader(**{**about, "gpu_uuids": tuple(about["gpu_uuids"])})
    except (ValueError, KeyError, TypeError):
        return None
    words = (header.boot_id, header.engine, header.model, header.dtype, *header.gpu_uuids)
    numbers = (header.pid, header.created_ns)
    typed = all(type(word) is str for word in words) and all(type(number) is int for number in numbers)
    return header if typed and type(header.details) is dict else None
