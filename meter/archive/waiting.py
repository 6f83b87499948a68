"""Calls to an object store that are waited for no longer than one says."""

import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from fsspec import AbstractFileSystem

_Answer = TypeVar("_Answer")


class _Asked(threading.Thread, Generic[_Answer]):
    """A call that nobody has to wait for: one that stalls ends with the process."""

    def __init__(self, call: Callable[[], _Answer]) -> None:
        super().__init__(name="etameter-store", daemon=True)
        self._call = call
        self.failure: Exception | None = None
        self.answers: list[_Answer] = []

    def run(self) -> None:
        try:
            self.answers.append(self._call())
        except _refusals() as failure:
            self.failure = failure


def bounded(call: Callable[[], _Answer], seconds: float) -> _Answer:
    """Raises OSError, and TimeoutError where the answer takes longer."""
    asked = _Asked(call)
    asked.start()
    asked.join(seconds)
    if asked.is_alive():
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    if isinstance(asked.failure, OSError):
        raise asked.failure
    if asked.failure is not None:
        raise OSError(str(asked.failure)) from asked.failure
    (answer,) = asked.answers
    return answer


def _refusals() -> tuple[type[Exception], ...]:
    """What a store's refusals come as; those of S3 are no OSError where it can't be reached."""
    amazon = sys.modules.get("botocore.exceptions")
    return (OSError,) if amazon is None else (OSError, amazon.BotoCoreError)


class Waiting(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system as DuckDB reads it: no call takes longer than `patience_s` says of so many bytes. What it raises DuckDB tells in words of its own."""

    cachable = False

    def __init__(self, system: Any, patience_s: Callable[[int], float]) -> None:
        super().__init__()
        self.protocol = system.protocol
        self.stall: OSError | None = None
        """Why a call was given up, or refused."""
        self._system = system
        self._patience_s = patience_s

    def ask(self, call: Callable[[], _Answer], size_bytes: int = 0) -> _Answer:
        """Raises OSError."""
        try:
            return bounded(call, self._patience_s(size_bytes))
        except OSError as error:
            self.stall = error
            raise

    def open(self, path: str, mode: str = "rb", **options: Any) -> "_File":
        return _File(self, self.ask(partial(self._system.open, path, mode, **options)))

    def exists(self, path: str, **options: Any) -> bool:
        return bool(self.ask(partial(self._system.exists, path, **options)))

    def info(self, path: str, **options: Any) -> Any:
        return self.ask(partial(self._system.info, path, **options))

    def glob(self, path: str, **options: Any) -> Any:
        return self.ask(partial(self._system.glob, path, **options))

    def modified(self, path: str) -> Any:
        return self.ask(partial(self._system.modified, path))


class _File:
    """One of its files."""

    def __init__(self, waiting: Waiting, file: Any) -> None:
        self._waiting = waiting
        self._file = file

    def read(self, size: int = -1) -> bytes:
        read: bytes = self._waiting.ask(partial(self._file.read, size), max(size, 0))
        return read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
