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

WAITING_LIMIT: Final = 1024
"""So many texts wait for their disk."""
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
        self._waiting = 0

    def add(self, receipt_id: str, message: Mapping[str, Any], wall_time: float) -> None:
        """What the server told of a response, if it told texts. The same receipt is kept once; `wall_time` is in s since 1970."""
        prompts, responses = message.get("prompts"), message.get("responses")
        if not _are_texts(prompts) or not _are_texts(responses) or not responses:
            return
        if self._waiting >= WAITING_LIMIT:
            logger.warning("the disk is too slow to store texts: that of a response is lost")
            return
        pieces = message.get("pieces")
        told = None if pieces is None else json.dumps(pieces)
        self._waiting += 1
        row = receipt_id, json.dumps(prompts), json.dumps(responses), told, wall_time
        self._thread.submit(self._write, row)

    def close(self) -> None:
        """What waits is written first."""
        self._thread.shutdown()
        self._db.close()

    def _write(self, row: tuple[str, str, str, str | None, float]) -> None:
        try:
            self._db.execute(_INSERT, row)
        except sqlite3.Error as error:
            logger.warning("the texts of a response can't be stored: %s", error)
        finally:
            self._waiting -= 1


def _are_texts(told: object) -> bool:
    return isinstance(told, list) and all(isinstance(text, str) for text in told)
