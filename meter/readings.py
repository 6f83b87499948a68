"""What the ledger keeps of slack: readings by receipt, and what became of answers; never a text.

The tables hold shares of a response's output. Views multiply them with what the requests took, so that tokens and joules of a category stand
in no second place that could disagree. `slack_by_request` tells what answers say, `waste_by_request` what became of them; an answer that was lost
is waste whole, so that what is wasted in all is the second, and of the first those whose `waste` is null.
"""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, get_args

from etameter.slack.labels import Waste
from etameter.slack.reading import DEEP, NEEDS, Reading
from etameter.slack.tokens import Unit

SCHEMA: Final = """
CREATE TABLE eta (
    receipt_id TEXT PRIMARY KEY, lenient_at_most REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL,
    unclassified REAL NOT NULL, method TEXT NOT NULL, reliability REAL
) STRICT;
CREATE TABLE slack (
    receipt_id TEXT NOT NULL, category TEXT NOT NULL, share REAL NOT NULL, PRIMARY KEY (receipt_id, category)
) STRICT;
"""
"""As version 2 had them, less a view."""
UPGRADE: Final = f"""
ALTER TABLE eta ADD COLUMN unit TEXT NOT NULL DEFAULT 'characters';
ALTER TABLE eta ADD COLUMN strict REAL;
ALTER TABLE eta ADD COLUMN lenient REAL;
ALTER TABLE slack ADD COLUMN joule_share REAL;
ALTER TABLE slack ADD COLUMN marginal_share REAL;
CREATE TABLE wastes (receipt_id TEXT PRIMARY KEY, waste TEXT NOT NULL) STRICT;
DROP VIEW IF EXISTS slack_by_request;
CREATE VIEW fate_by_request AS
SELECT requests.*, CASE
    WHEN finish_reason = 'length' THEN 'truncated'
    WHEN waste != 'abandoned' OR finish_reason = 'abort' THEN waste
END AS fate
FROM requests LEFT JOIN wastes USING (receipt_id);
CREATE VIEW categories_by_request AS
SELECT receipt_id, request_id, category, fate AS waste, model, arm, share, share * output_tokens AS tokens,
    coalesce(joule_share, share) * (output_j - min(draft_waste_j, output_j)) AS joules,
    CASE WHEN prompt_j + output_j > 0
        THEN coalesce(marginal_share, share) * marginal_j * output_j / (prompt_j + output_j) END AS marginal_joules,
    source, settled
FROM slack JOIN fate_by_request USING (receipt_id);
CREATE VIEW slack_by_request AS SELECT * FROM categories_by_request WHERE category NOT IN {NEEDS};
CREATE VIEW needed_by_request AS SELECT * FROM categories_by_request WHERE category IN {NEEDS};
CREATE VIEW waste_by_request AS
SELECT receipt_id, request_id, fate AS category, model, arm, output_tokens AS tokens, output_j AS joules,
    CASE WHEN prompt_j + output_j > 0 THEN marginal_j * output_j / (prompt_j + output_j) END AS marginal_joules,
    source, settled
FROM fate_by_request WHERE fate IS NOT NULL
UNION ALL
SELECT receipt_id, request_id, 'draft', model, arm, NULL, min(draft_waste_j, output_j), NULL, source, settled
FROM fate_by_request WHERE fate IS NULL AND draft_waste_j > 0;
"""  # noqa: S608  # our own words
"""Makes version 3 of it."""
AUDITS: Final = """
CREATE TABLE eta_deep (
    receipt_id TEXT PRIMARY KEY, lenient_at_most REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL,
    unclassified REAL NOT NULL, method TEXT NOT NULL, reliability REAL, unit TEXT NOT NULL, strict REAL, lenient REAL
) STRICT;
CREATE TABLE slack_deep (
    receipt_id TEXT NOT NULL, category TEXT NOT NULL, share REAL NOT NULL, joule_share REAL, marginal_share REAL,
    PRIMARY KEY (receipt_id, category)
) STRICT;
CREATE TABLE checked (
    task TEXT NOT NULL, model TEXT NOT NULL, arm TEXT NOT NULL, correct INTEGER, output_tokens INTEGER NOT NULL, eta_task REAL,
    fast REAL, deep_strict REAL, deep_lenient REAL
) STRICT;
"""
"""Makes version 4 of that: what a judge found, beside what was found before, and answers to tasks that audits asked."""
_INSERT_ETA: Final = "INSERT OR REPLACE INTO {} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_SLACK: Final = "INSERT OR REPLACE INTO {} VALUES (?, ?, ?, ?, ?)"
_INSERT_CHECKED: Final = "INSERT INTO checked VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_WASTE: Final = "INSERT OR REPLACE INTO wastes VALUES (?, ?)"
_SELECT_ETA: Final = (
    "SELECT lenient_at_most, low, high, unclassified, method, reliability, unit, strict, lenient FROM {} "
    "WHERE receipt_id = ?"
)
_SELECT_ETA_2: Final = (
    "SELECT lenient_at_most, low, high, unclassified, method, reliability, 'characters', NULL, NULL FROM eta "
    "WHERE receipt_id = ?"
)
_SELECT_SLACK: Final = "SELECT category, share, joule_share, marginal_share FROM {} WHERE receipt_id = ?"
_SELECT_SLACK_2: Final = "SELECT category, share, NULL, NULL FROM slack WHERE receipt_id = ?"
_SELECT_WASTE: Final = "SELECT waste FROM wastes WHERE receipt_id = ?"
_SELECT_JUDGED: Final = """
SELECT requests.model, requests.arm, requests.output_tokens, fast.lenient_at_most, deep.strict, deep.lenient
FROM eta_deep AS deep JOIN requests USING (receipt_id) LEFT JOIN eta AS fast USING (receipt_id)
ORDER BY deep.rowid DESC LIMIT ?
"""
_SELECT_CHECKED: Final = "SELECT * FROM checked WHERE substr(task, 1, 7) != 'judged:' ORDER BY rowid DESC LIMIT ?"
_SELECT_KEPT: Final = """
SELECT model, arm, output_tokens, fast, deep_strict, deep_lenient FROM checked WHERE substr(task, 1, 7) = 'judged:'
AND NOT EXISTS (SELECT 1 FROM eta_deep WHERE receipt_id = substr(task, 8)) ORDER BY rowid DESC LIMIT ?
"""
_KEEP: Final = """
INSERT INTO checked SELECT 'judged:' || receipt_id, model, arm, NULL, output_tokens, NULL, fast.lenient_at_most, deep.strict, deep.lenient
FROM eta_deep AS deep JOIN requests USING (receipt_id) LEFT JOIN eta AS fast USING (receipt_id)
WHERE receipt_id IN (SELECT value FROM json_each(?)) AND NOT EXISTS (SELECT 1 FROM checked WHERE task = 'judged:' || receipt_id)
"""
"""What reliability goes by outlasts the rows that it is of: as what was checked does, in whose table it is marked."""


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer of live traffic that a judge has read, with what the fast tier says of it; None where that is nothing."""

    model: str
    arm: str
    output_tokens: int
    fast: float | None
    """The bound on lenient η."""
    strict: float | None
    lenient: float | None


@dataclass(frozen=True, slots=True)
class Checked:
    """An answer to a task that an audit asked. What isn't known is None."""

    task: str
    model: str
    arm: str
    """That it was asked for; the request itself has the arm `audit`."""
    correct: bool | None
    output_tokens: int
    eta_task: float | None
    fast: float | None
    """The bound on lenient η."""
    deep_strict: float | None
    deep_lenient: float | None


Found = Reading | Checked
"""What comes of looking at an answer. A reading by the method `deep` stands beside any other of its response."""


def write(db: sqlite3.Connection, found: Iterable[Found], wastes: Iterable[tuple[str, Waste]]) -> None:
    """Within the caller's transaction. Raises sqlite3.Error."""
    for each in found:
        if isinstance(each, Checked):
            told = each.task, each.model, each.arm, each.correct, each.output_tokens, each.eta_task
            db.execute(_INSERT_CHECKED, (*told, each.fast, each.deep_strict, each.deep_lenient))
            continue
        etas, slack = ("eta_deep", "slack_deep") if each.method == DEEP else ("eta", "slack")
        eta = (each.receipt_id, each.lenient_at_most, *each.interval, each.unclassified, each.method, each.reliability)
        db.execute(_INSERT_ETA.format(etas), (*eta, each.unit, each.strict, each.lenient))
        spent = dict.fromkeys(each.shares, (None, None)) if each.spent is None else each.spent
        rows = [(each.receipt_id, category, share, *spent[category]) for category, share in each.shares.items()]
        db.executemany(_INSERT_SLACK.format(slack), rows)
    db.executemany(_INSERT_WASTE, wastes)


def find(db: sqlite3.Connection, version: int, receipt_id: str, *, deep: bool = False) -> Reading | None:
    """The reading of a response, or a judge's, if a ledger of this version has one. Raises sqlite3.Error."""
    if version < (4 if deep else 2):
        return None
    etas, slack = ("eta_deep", "slack_deep") if deep else ("eta", "slack")
    eta = db.execute(_SELECT_ETA.format(etas) if version > 2 else _SELECT_ETA_2, (receipt_id,)).fetchone()
    if eta is None:
        return None
    lenient_at_most, low, high, unclassified, method, reliability, unit, strict, lenient = eta
    if method == "fast-by-characters":  # as version 2 had it
        method = "fast"
    assert unit in get_args(Unit)
    found = db.execute(_SELECT_SLACK.format(slack) if version > 2 else _SELECT_SLACK_2, (receipt_id,)).fetchall()
    shares = {category: share for category, share, _, _ in found}
    known = all(joules is not None for _, _, joules, _ in found)
    spent = {category: (joules, marginal) for category, _, joules, marginal in found} if found and known else None
    interval = low, high
    return Reading(
        receipt_id, lenient_at_most, interval, unclassified, method, reliability, shares, unit, strict, lenient, spent
    )


def waste_of(db: sqlite3.Connection, version: int, receipt_id: str) -> Waste | None:
    """What the server said became of an answer. Raises sqlite3.Error."""
    found = db.execute(_SELECT_WASTE, (receipt_id,)).fetchone() if version > 2 else None
    return None if found is None else found[0]


def judged(db: sqlite3.Connection, version: int, most: int) -> list[Judged]:
    """The latest answers that a judge has read, newest first, those whose rows were archived at last. Raises sqlite3.Error."""
    if version < 4:
        return []
    rows = [*db.execute(_SELECT_JUDGED, (most,)), *db.execute(_SELECT_KEPT, (most,))]
    return [Judged(*row) for row in rows[:most]]


def keep_judged(db: sqlite3.Connection, receipt_ids: Iterable[str]) -> None:
    """Before the rows of these receipts are deleted, and in the same transaction. Raises sqlite3.Error."""
    db.execute(_KEEP, (json.dumps(list(receipt_ids)),))


def checked(db: sqlite3.Connection, version: int, most: int) -> list[Checked]:
    """The latest answers to tasks that audits asked, newest first. Raises sqlite3.Error."""
    rows = db.execute(_SELECT_CHECKED, (most,)) if version > 3 else ()
    return [
        Checked(task, model, arm, None if correct is None else bool(correct), *rest)
        for task, model, arm, correct, *rest in rows
    ]
