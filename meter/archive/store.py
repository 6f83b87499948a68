"""Where the days lie: TABLE/day=YYYY-MM-DD.parquet in a folder or an object store."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from etameter.errors import ArchiveError

from .tables import TABLES, Table

_NAME: Final = re.compile(r"day=(\d{4}-\d{2}-\d{2})\.parquet")


@dataclass(frozen=True, slots=True)
class File:
    """A table of a day."""

    table: str
    day: str
    path: str
    size_bytes: int


class Store:
    """A folder, or an object store's address such as s3://bucket/etameter. One ledger's alone: two that write the same day's file would lose rows.

    Its methods raise OSError where the store refuses.

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

    def files(self) -> list[File]:
        """Oldest day first; what else lies there is passed over."""
        found = []
        for table in TABLES:
            folder = self._folder(table)
            self.system.invalidate_cache(folder)
            with suppress(FileNotFoundError):
                for told in self.system.ls(folder, detail=True):
                    path = str(told["name"])
                    if named := _NAME.fullmatch(path.rsplit("/", 1)[-1]):
                        found += [File(table.name, named[1], path, int(told["size"]))]
        return sorted(found, key=lambda file: (file.day, file.table))

    def fetch(self, table: Table, day: str, target: Path) -> bool:
        """Copies a day's file, if it is there."""
        path = f"{self._folder(table)}/{_name(day)}"
        if not self.system.exists(path):
            return False
        self.system.get_file(path, str(target))
        return True

    def publish(self, source: Path, table: Table, day: str) -> None:
        """Puts a day's file in its place, in place of the one that may be there: whole or not at all."""
        folder = self._folder(table)
        building, path = f"{folder}/.{_name(day)}", f"{folder}/{_name(day)}"
        self.system.makedirs(folder, exist_ok=True)
        try:
            self.system.put_file(str(source), building)
            self.system.invalidate_cache(folder)
            self._check(building, source.stat().st_size)
            self._keep(building)
            self.system.mv(building, path)
            self._keep(folder)
        except OSError:
            with suppress(OSError):
                self.system.rm_file(building)
            raise

    def retire(self, oldest_day: str | None, most_bytes: int | None) -> list[str]:
        """Removes the days before `oldest_day`, and then the oldest until no more than `most_bytes` are left. Says which."""
        files = self.files()
        size_bytes = sum(file.size_bytes for file in files)
        gone = []
        for day in sorted({file.day for file in files}):
            too_old = oldest_day is not None and day < oldest_day
            too_many = most_bytes is not None and size_bytes > most_bytes
            if not (too_old or too_many):
                break
            for file in files:
                if file.day == day:
                    self.system.rm_file(file.path)
                    size_bytes -= file.size_bytes
            gone.append(day)
        return gone

    def addresses(self, files: Sequence[File]) -> list[str]:
        """As DuckDB takes them."""
        local = isinstance(self.system, LocalFileSystem)
        return [file.path if local else str(self.system.unstrip_protocol(file.path)) for file in files]

    def _folder(self, table: Table) -> str:
        return f"{self._root}/{table.name}"

    def _check(self, path: str, wanted_bytes: int) -> None:
        size_bytes = self.system.info(path)["size"]
        if size_bytes != wanted_bytes:
            raise OSError(f"{size_bytes} of {wanted_bytes} bytes of {path} arrived")

    def _keep(self, path: str) -> None:
        """On the disk, before the ledger forgets it; an object store does so itself."""
        if not isinstance(self.system, LocalFileSystem):
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _name(day: str) -> str:
    return f"day={day}.parquet"
