"""What the ledger keeps of other machines: which counters they have, and since when which boot of theirs counts. SQL and JSON."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from etameter.nodes.wire import RemoteCounter, counter_of

SCHEMA: Final = """
CREATE TABLE nodes (
    name TEXT PRIMARY KEY, node_boot_id TEXT NOT NULL, since_ns INTEGER NOT NULL, boot_id TEXT NOT NULL, counters TEXT NOT NULL
) STRICT;
"""
"""Makes version 7."""


@dataclass(frozen=True, slots=True)
class Known:
    """A machine as it was last heard: by the clock here it has been in the boot `boot_id` since `since_ns`, if not for longer."""

    boot_id: str
    since_ns: int
    counters: tuple[RemoteCounter, ...]


def add(db: sqlite3.Connection, nodes: Mapping[str, Known], boot_id: str) -> None:
    """`boot_id` is this machine's, whose clock the instants are of. Raises sqlite3.Error."""
    rows = (
        (name, each.boot_id, each.since_ns, boot_id, json.dumps([asdict(counter) for counter in each.counters]))
        for name, each in nodes.items()
    )
    db.executemany("INSERT OR REPLACE INTO nodes VALUES (?, ?, ?, ?, ?)", rows)


def read(db: sqlite3.Connection, boot_id: str) -> dict[str, Known]:
    """By name. Of an earlier boot of this machine it isn't known in which boot they were: its instants mean nothing any more. Raises sqlite3.Error."""
    rows = db.execute(
        "SELECT name, iif(boot_id = ?, node_boot_id, ''), since_ns, counters FROM nodes ORDER BY name", (boot_id,)
    )
    return {
        name: Known(node_boot_id, since_ns, tuple(counter_of(each) for each in json.loads(counters)))
        for name, node_boot_id, since_ns, counters in rows
    }
