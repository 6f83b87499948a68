"""What budgets have spent, by window: in the ledger from the transaction that settled it, and told by it alone after a restart."""

import sqlite3
from collections.abc import Iterable
from typing import Final

from etameter.budgets import Spent

SCHEMA: Final = """
CREATE TABLE spent (
    budget TEXT NOT NULL, window TEXT NOT NULL, start_s INTEGER NOT NULL, source TEXT NOT NULL,
    energy_j REAL NOT NULL, noise_j2 REAL NOT NULL, common_j REAL NOT NULL, PRIMARY KEY (budget, window, start_s, source)
) STRICT;
"""
"""Makes version 6. Windows that are over stay: a row each is little, and says who spent what."""
_ADD: Final = """
INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET energy_j = energy_j + excluded.energy_j, noise_j2 = noise_j2 + excluded.noise_j2,
    common_j = common_j + excluded.common_j
"""
_READ: Final = "SELECT budget, window, start_s, source, energy_j, noise_j2, common_j FROM spent WHERE start_s >= ?"


def add(db: sqlite3.Connection, spent: Iterable[Spent]) -> None:
    """Within the transaction that writes the intervals. Raises sqlite3.Error."""
    db.executemany(_ADD, [(*each.key, each.energy_j, each.noise_j2, each.common_j) for each in spent])


def read(db: sqlite3.Connection, since_s: float) -> list[Spent]:
    """Of windows that began at `since_s` or later (s since 1970). Raises sqlite3.Error."""
    return [Spent(*row) for row in db.execute(_READ, (since_s,))]
