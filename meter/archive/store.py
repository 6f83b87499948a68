"""Where the archive lies: TABLE/day=YYYY-MM-DD/PART.GENERATION.parquet in a folder or an object store.

A part is what a day has of one model, whose name is in the file and only a hash of it in the file's name, because others choose it; or all that has no model.
A file appears whole under a name that nobody has taken, and never changes: a writer that comes second finds the name taken, reads what the first one
wrote, and writes the next generation. The latest generation of a part is what counts. The earlier ones stay until the next run, for whoever reads them.

Version 1 had TABLE/day=YYYY-MM-DD.parquet, of all models together. It is read, and never written to.
"""

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import fsspec
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from etameter.errors import ArchiveError

from .tables import ALL_TABLES, Table, told_of
from .waiting import Waiting, bounded

ALL: Final = "all"
"""The part of what has no model."""
TRIES: Final = 3
PAUSE_S: Final = 1.0
"""Before the second try; twice as long before each that follows."""
WAIT_S: Final = 30.0
SLOWEST_BYTES_S: Final = 1 << 20
"""A store that takes longer than `WAIT_S`, and a second for so many bytes, stalls."""
_DAY_S: Final = 86_400
_NAME: Final = re.compile(r"day=(\d{4}-\d{2}-\d{2})/(all|model-[0-9a-f]{16}|recording-[0-9a-f]{16})\.(\d{6})\.parquet")
_OLD_NAME: Final = re.compile(r"day=(\d{4}-\d{2}-\d{2})\.parquet")

_Answer = TypeVar("_Answer")


def part_of(model: str | None) -> str:
    """The part of a model. Two that had the same hash would share one, and still be told apart by what is in it."""
    return ALL if model is None else f"model-{hashlib.sha256(model.encode()).hexdigest()[:16]}"


def recording_part(sha256: str) -> str:
    """The part of what comes of a recording, by the hash of its file."""
    return f"recording-{sha256[:16]}"


@dataclass(frozen=True, slots=True)
class File:
    """A table's part of a day; `part` is None, and the generation 0, where version 1 wrote it."""

    table: str
    day: str
    part: str | None
    generation: int
    path: str
    size_bytes: int

    @property
    def name(self) -> str:
        """What tells it apart from every other, wherever the archive lies."""
        return f"{self.table}/day={self.day}/{self.part}.{self.generation:06}"


class Store:
    """A folder, or an object store's address such as s3://bucket/etameter. With a `*` in it, all that fit: those are read alone.

    Its methods raise OSError where the store refuses, or stalls (TimeoutError), and goes on doing so when it is tried again.

    Raises:
        ArchiveError: nobody knows this kind of address.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        try:
            self.system, self._root = fsspec.core.url_to_fs(location)
        except (ValueError, ImportError) as error:
            raise ArchiveError(
                f"{location} is no place that can be written ({error})", "name a folder, or install what reads it"
            ) from error
        self._local = isinstance(self.system, LocalFileSystem)
        self.begin_to_read()

    @property
    def address(self) -> str:
        """As any process may name it."""
        return str(self.system.unstrip_protocol(self._root))

    def begin_to_read(self) -> None:
        """Anew: nothing has stalled yet."""
        self.read_by: AbstractFileSystem = self.system if self._local else Waiting(self.system, _patience_s)
        """For who reads files in pieces: each is waited for no longer than its size allows, too."""

    @property
    def stall(self) -> OSError | None:
        """Why a piece of a file didn't come, if one didn't."""
        return self.read_by.stall if isinstance(self.read_by, Waiting) else None

    @property
    def is_one(self) -> bool:
        """Whether it can be written."""
        return "*" not in self._root

    def files(self) -> list[File]:
        """The latest of each part, oldest day first; what else lies there is passed over."""
        return _latest(self._all_files())

    def parts(self, table: Table, day: str) -> dict[str | None, File]:
        """What a table has of a day; under None what version 1 wrote."""
        return {file.part: file for file in _latest(self._in(table, day))}

    def fetch(self, file: File, target: Path) -> None:
        """Copies a file here."""
        self._ask(partial(self.system.get_file, file.path, str(target)), file.size_bytes)

    def take(self, path: str, target: Path) -> None:
        """Copies any file that lies at this address here."""
        size_bytes = int(self._ask(partial(self.system.info, path))["size"])
        self._ask(partial(self.system.get_file, path, str(target)), size_bytes)

    def told(self, file: File) -> Mapping[str, Any]:
        """What a file says of itself."""
        return self._ask(partial(self._told, file.path))

    def zips(self) -> list[str]:
        """Addresses of the recordings that lie here, in any folder."""
        found = self._ask(partial(self._under, self._root))
        return [str(self.system.unstrip_protocol(path)) for path in sorted(found) if path.endswith(".zip")]

    def publish(self, source: Path, table: Table, day: str, part: str, generation: int) -> None:
        """Puts a file in its place, whole or not at all.

        Raises:
            FileExistsError: somebody else has this generation, or a later one.
        """
        path = Path(self._root, table.name, f"day={day}", f"{part}.{generation:06}.parquet")
        if self._local:
            _link(source, path)
        else:  # the store itself sees to it that an object is there whole, and nobody else's
            size_bytes = source.stat().st_size
            self._ask(partial(self.system.put_file, str(source), str(path), mode="create"), size_bytes)
        latest = self.parts(table, day)[part]
        if latest.generation != generation:  # the name was free because somebody has tidied up after a later one
            raise FileExistsError(f"{latest.path} is later")

    def tidy(self) -> None:
        """Removes what later generations stand for, and what killed writers have left in a folder for more than a day."""
        found = self._all_files()
        for file in set(found) - set(_latest(found)):
            self._remove(file)
        for left in Path(self._root).glob("*/day=*/.*.parquet.*") if self._local else ():
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _DAY_S:
                    left.unlink()

    def retire(self, oldest_day: str | None, most_bytes: int | None) -> list[str]:
        """Removes the days before `oldest_day`, and then the oldest until no more than `most_bytes` are left. Says which."""
        files = self._all_files()
        size_bytes = sum(file.size_bytes for file in files)
        gone = []
        for day in sorted({file.day for file in files}):
            too_old = oldest_day is not None and day < oldest_day
            too_many = most_bytes is not None and size_bytes > most_bytes
            if not (too_old or too_many):
                break
            for file in files:
                if file.day == day:
                    self._remove(file)
                    size_bytes -= file.size_bytes
            gone.append(day)
        return gone

    def addresses(self, files: Sequence[File]) -> list[str]:
        """As DuckDB takes them."""
        return [file.path if self._local else str(self.system.unstrip_protocol(file.path)) for file in files]

    def _all_files(self) -> list[File]:
        return [file for table in ALL_TABLES for file in self._in(table)]

    def _in(self, table: Table, day: str | None = None) -> list[File]:
        self.system.invalidate_cache()
        roots = [self._root] if self.is_one else self._ask(partial(self.system.glob, self._root))
        return [file for root in roots for file in self._in_one(f"{root}/{table.name}", table, day)]

    def _in_one(self, folder: str, table: Table, day: str | None) -> list[File]:
        if day is None:
            told = self._ask(partial(self._under, folder))
        else:
            told = self._ask(partial(self._under, f"{folder}/day={day}"))
            told |= self._ask(partial(self._at, f"{folder}/day={day}.parquet"))
        named = (_file(table.name, path.removeprefix(f"{folder}/"), path, size) for path, size in told.items())
        return [file for file in named if file is not None]

    def _under(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of what lies there, by path. A folder that can't be read is an error: what isn't seen would be written anew."""
        if not self._local:
            return {path: int(told["size"] or 0) for path, told in self.system.find(folder, detail=True).items()}
        if not Path(folder).is_dir():
            return {}
        found: dict[str, int] = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a file that is being written, and has got its name
                    found |= self._under(entry.path) if entry.is_dir() else {entry.path: entry.stat().st_size}
        return found

    def _told(self, path: str) -> Mapping[str, Any]:
        with self.system.open(path, "rb") as file:
            return told_of(pq.read_schema(file))

    def _at(self, path: str) -> dict[str, int]:
        try:
            return {path: int(self.system.info(path)["size"])}
        except FileNotFoundError:
            return {}

    def _remove(self, file: File) -> None:
        with suppress(FileNotFoundError):
            self._ask(partial(self.system.rm_file, file.path))

    def _ask(self, call: Callable[[], _Answer], size_bytes: int = 0) -> _Answer:
        """Tries an object store a few times, and waits each time no longer than the size allows. A folder is asked once, and waited for."""
        if self._local:
            return call()
        tried = 1
        while True:
            try:
                return bounded(call, _patience_s(size_bytes))
            except (FileNotFoundError, FileExistsError, PermissionError):
                raise  # it has answered
            except OSError:
                if tried == TRIES:
                    raise
                time.sleep(PAUSE_S * 2 ** (tried - 1))
                tried += 1


def _patience_s(size_bytes: int) -> float:
    return WAIT_S + size_bytes / SLOWEST_BYTES_S


def _link(source: Path, path: Path) -> None:
    """To a name that nobody has, and on the disk before the ledger forgets it. Raises FileExistsError."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    building = folder / f".{path.name}.{secrets.token_hex(4)}"
    try:
        shutil.copyfile(source, building)
        _keep(building)
        os.link(building, path)
    finally:
        building.unlink(missing_ok=True)
    for kept in (folder, folder.parent, folder.parent.parent):
        _keep(kept)


def _keep(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file(table: str, name: str, path: str, size_bytes: int) -> File | None:
    if old := _OLD_NAME.fullmatch(name):
        return File(table, old[1], None, 0, path, size_bytes)
    if named := _NAME.fullmatch(name):
        return File(table, named[1], named[2], int(named[3]), path, size_bytes)
    return None


def _latest(files: Iterable[File]) -> list[File]:
    """Of each part, in order of days."""
    ordered = sorted(files, key=lambda file: (file.day, file.table, file.part or "", file.generation))
    return list({(file.path.rpartition("/")[0], file.day, file.part): file for file in ordered}.values())
