"""Sums of what was moved out of the ledger, by day and source, so that its totals stay whole; and when its balances were settled."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from etameter.records import Source

SCHEMA: Final = """
ALTER TABLE balances ADD COLUMN wall_time REAL;
UPDATE balances SET wall_time = boots.began + balances.end_ns / 1e9
FROM (SELECT boot_id, min(wall_time - arrival_ns / 1e9) AS began FROM requests GROUP BY boot_id) AS boots
WHERE boots.boot_id = balances.boot_id;
UPDATE balances SET wall_time = CAST(strftime('%s', 'now') AS REAL) WHERE wall_time IS NULL;
CREATE TABLE archived (
    day TEXT NOT NULL, source TEXT NOT NULL, requests INTEGER NOT NULL, requests_j REAL NOT NULL,
    balances INTEGER NOT NULL, measured_j REAL NOT NULL, attributed_j REAL NOT NULL, idle_j REAL NOT NULL,
    engine_overhead_j REAL NOT NULL, host_bubble_j REAL NOT NULL, unattributed TEXT NOT NULL, PRIMARY KEY (day, source)
) STRICT;
"""
"""Makes version 5. When earlier balances were settled follows from the requests of their boot, to within the shortest of them; without any it was before now."""


@dataclass(slots=True)
class Sums:
    """Of rows of one source."""

    source: Source
    requests: int = 0
    requests_j: float = 0.0
    balances: int = 0
    measured_j: float = 0.0
    attributed_j: float = 0.0
    idle_j: float = 0.0
    engine_overhead_j: float = 0.0
    host_bubble_j: float = 0.0
    unattributed_j_by_cause: Mapping[str, float] = field(default_factory=dict)


_READ: Final = (
    "SELECT source, requests, requests_j, balances, measured_j, attributed_j, idle_j, engine_overhead_j, host_bubble_j, "
    "unattributed FROM archived"
)


def read(db: sqlite3.Connection, version: int) -> list[Sums]:
    """Of each day and source; nothing in a ledger of a version under 5. Raises sqlite3.Error."""
    rows = db.execute(_READ) if version > 4 else ()
    return [_sums(row) for row in rows]


def add(db: sqlite3.Connection, day: str, more: Sums) -> None:
    """Within the transaction that deletes the rows. Raises sqlite3.Error."""
    row = db.execute(f"{_READ} WHERE day = ? AND source = ?", (day, more.source)).fetchone()
    was = Sums(more.source) if row is None else _sums(row)
    causes = dict(was.unattributed_j_by_cause)
    for cause, joules in more.unattributed_j_by_cause.items():
        causes[cause] = causes.get(cause, 0.0) + joules
    db.execute(
        "INSERT OR REPLACE INTO archived VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            day,
            more.source,
            was.requests + more.requests,
            was.requests_j + more.requests_j,
            was.balances + more.balances,
            was.measured_j + more.measured_j,
            was.attributed_j + more.attributed_j,
            was.idle_j + more.idle_j,
            was.engine_overhead_j + more.engine_overhead_j,
            was.host_bubble_j + more.host_bubble_j,
            json.dumps(causes),
        ),
    )


def _sums(row: tuple[Any, ...]) -> Sums:
    *figures, causes = row
    return replace(Sums(*figures), unattributed_j_by_cause=json.loads(causes))
