"""Texts of prompts and responses, kept only where `[meter] store_text` asks for it: in a file of their own beside the ledger, which has none.

`etameter archive` moves them with their day, and `etameter rescore` classifies them anew.
"""

import json
import logging
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from etameter.errors import EtameterError

logger = logging.getLogger("etameter")

WAITING_LIMIT_BYTES: Final = 16 << 20
"""So much waits for the disk."""
_OF_A_ROW_BYTES: Final = 1024
"""What waiting takes beside the texts."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS texts (
    receipt_id TEXT PRIMARY KEY, prompts TEXT NOT NULL, responses TEXT NOT NULL, pieces TEXT, wall_time REAL NOT NULL
) STRICT
"""
_INSERT: Final = "INSERT OR IGNORE INTO texts VALUES (?, ?, ?, ?, ?)"


def stored_beside(ledger: Path) -> Path:
    """The file of texts that belongs to a ledger."""
    real = ledger.resolve()
    return real.with_name(f"{real.stem}-texts.db")


class Texts:
    """Opens or creates the file. A thread of its own writes it: nobody waits for its disk.

    Raises:
        EtameterError: it can't be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise EtameterError(
                f"texts can't be stored in {path} ({error})", "make room, or set store_text = false"
            ) from error
        self._thread = ThreadPoolExecutor(1, "etameter-texts")
        self._added_bytes = self._done_bytes = 0
        """Of all rows so far: the first is counted by who adds, the second by the thread that writes."""
        self._refused = self._unwritten = 0

    @property
    def dropped(self) -> int:
        """Responses so far whose texts are in no file, because the disk was too slow or failed."""
        return self._refused + self._unwritten

    def add(self, receipt_id: str, message: Mapping[str, Any], wall_time: float) -> None:
        """What the server told of a response, if it told texts. The same receipt is kept once; `wall_time` is in s since 1970."""
        prompts, responses = message.get("prompts"), message.get("responses")
        if not _are_texts(prompts) or not _are_texts(responses) or not responses:
            return
        pieces = message.get("pieces")
        told = None if pieces is None else json.dumps(pieces)
        row = receipt_id, json.dumps(prompts), json.dumps(responses), told, wall_time
        size_bytes = _OF_A_ROW_BYTES + sum(len(text) for text in row[1:4] if text is not None)  # all of it ASCII
        if self._added_bytes - self._done_bytes + size_bytes > WAITING_LIMIT_BYTES:
            self._refused += 1
            logger.warning("the disk is too slow to store texts: that of a response is lost")
            return
        self._added_bytes += size_bytes
        self._thread.submit(self._write, row, size_bytes)

    def close(self) -> None:
        """What waits is written first."""
        self._thread.shutdown()
        self._db.close()

    def _write(self, row: tuple[str, str, str, str | None, float], size_bytes: int) -> None:
        try:
            self._db.execute(_INSERT, row)
        except sqlite3.Error as error:
            self._unwritten += 1
            logger.warning("the texts of a response can't be stored: %s", error)
        finally:
            self._done_bytes += size_bytes


def _are_texts(told: object) -> bool:
    return isinstance(told, list) and all(isinstance(text, str) for text in told)
