"""What a day's files hold, and how it is read out of the ledger.

    requests  a row a request, with what the server said became of it (`waste`)
    balances  a row an interval of a board; joules that nobody was charged for by cause
    readings  a row a response and tier that was classified, with its categories; `deep` where a judge read it

    texts     a row a response of which the texts were stored, with what was asked; only where `[meter] store_text` wants it

A receipt may have requests of several days: what was found in it goes with the last of them that the ledger has. Rows come by model,
so that each model's make one file. What `etameter rescore` computes anew stands beside that, and never in its place:

    rereadings      as readings, of the stored texts; `scorer` says by which version and weights
    reattributions  figures of requests as this version attributes them, from a recording
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any, Final

import pyarrow as pa

FORMAT: Final = 2
"""1 had no model in `readings`, and no texts."""
KEY: Final = b"etameter"
BATCH_ROWS: Final = 10_000

Row = tuple[Any, ...]
_KINDS: Final[Mapping[str, pa.DataType]] = {
    "text": pa.string(),
    "int": pa.int64(),
    "real": pa.float64(),
    "bool": pa.bool_(),
    "texts": pa.list_(pa.string()),
    "causes": pa.map_(pa.string(), pa.float64()),
    "categories": pa.list_(
        pa.struct(
            [
                pa.field("category", pa.string(), nullable=False),
                pa.field("share", pa.float64(), nullable=False),
                pa.field("joule_share", pa.float64()),
                pa.field("marginal_share", pa.float64()),
            ]
        )
    ),
}
_REQUESTS: Final = (
    "boot_id:text engine:text engine_started_ns:int number:int request_id:text receipt_id:text? model:text arm:text "
    "arrival_ns:int first_token_ns:int? finished_ns:int? prompt_tokens:int cached_tokens:int prefill_tokens:int "
    "decode_tokens:int output_tokens:int finish_reason:text? prompt_j:real output_j:real marginal_j:real "
    "recomputed_j:real draft_waste_j:real avoided_j:real error_j:real settled:bool method:text source:text "
    "wall_time:real waste:text?"
)
_BALANCES: Final = (
    "gpu_uuid:text start_ns:int end_ns:int measured_j:real attributed_j:real idle_j:real engine_overhead_j:real "
    "host_bubble_j:real unattributed_j_by_cause:causes source:text boot_id:text wall_time:real"
)
_READINGS: Final = (
    "receipt_id:text deep:bool lenient_at_most:real low:real high:real unclassified:real method:text reliability:real? "
    "unit:text strict:real? lenient:real? categories:categories source:text wall_time:real model:text?"
)
_TEXTS: Final = "receipt_id:text prompts:texts responses:texts pieces:text? wall_time:real model:text?"
_REREADINGS: Final = (
    "receipt_id:text lenient_at_most:real low:real high:real unclassified:real method:text reliability:real? "
    "unit:text strict:real? lenient:real? categories:categories wall_time:real model:text? scorer:text"
)
_REATTRIBUTIONS: Final = (
    "boot_id:text engine:text engine_started_ns:int number:int model:text arm:text prompt_tokens:int output_tokens:int "
    "prompt_j:real output_j:real marginal_j:real recomputed_j:real draft_waste_j:real avoided_j:real error_j:real "
    "method:text source:text recording:text scorer:text"
)


def _schema(table: str, told: str) -> pa.Schema:
    columns = (column.split(":") for column in told.split())
    about = {KEY: json.dumps({"table": table, "format": FORMAT})}
    return pa.schema(
        [pa.field(name, _KINDS[kind.rstrip("?")], nullable=kind.endswith("?")) for name, kind in columns]
    ).with_metadata(about)


@dataclass(frozen=True, slots=True)
class Read:
    """A row of a table, and where in the ledger it stands."""

    rowid: int
    beside: int | None
    """Of a request: the row of its waste, if it has one. Of a reading: 1 where it is a judge's."""
    values: Row


def requests(db: sqlite3.Connection, low: float, high: float) -> Iterator[Read]:
    """Those settled from `low` to before `high`, in s since 1970; so are the others. Raises sqlite3.Error."""
    columns = ", ".join(f"requests.{name}" for name in REQUESTS.schema.names[:-1])
    found = db.execute(
        f"SELECT requests.rowid, wastes.rowid, {columns}, waste FROM requests LEFT JOIN wastes USING (receipt_id) "  # noqa: S608  # our own words
        "WHERE wall_time >= ? AND wall_time < ? ORDER BY model",
        (low, high),
    )
    settled = REQUESTS.schema.names.index("settled")
    for rowid, beside, *values in found:
        values[settled] = bool(values[settled])
        yield Read(rowid, beside, tuple(values))


def balances(db: sqlite3.Connection, low: float, high: float) -> Iterator[Read]:
    causes = BALANCES.schema.names.index("unattributed_j_by_cause")
    found = db.execute("SELECT rowid, * FROM balances WHERE wall_time >= ? AND wall_time < ?", (low, high))
    for rowid, *values in found:
        values[causes] = list(json.loads(values[causes]).items())
        yield Read(rowid, None, tuple(values))


def readings(db: sqlite3.Connection, low: float, high: float) -> Iterator[Read]:
    return merge(
        _readings(db, low, high, deep=False), _readings(db, low, high, deep=True), key=lambda read: read.values[-1]
    )


def _readings(db: sqlite3.Connection, low: float, high: float, *, deep: bool) -> Iterator[Read]:
    etas, slack = ("eta_deep", "slack_deep") if deep else ("eta", "slack")
    columns = ", ".join(f"eta.{name}" for name in READINGS.schema.names[2:11])
    found = db.execute(
        f"SELECT eta.rowid, eta.receipt_id, {columns}, max(source), max(wall_time), max(model) AS model "  # noqa: S608  # our own words
        f"FROM requests JOIN {etas} AS eta USING (receipt_id) WHERE wall_time >= ?1 AND wall_time < ?2 "
        "AND NOT EXISTS (SELECT 1 FROM requests AS other WHERE other.receipt_id = requests.receipt_id "
        "AND NOT (other.wall_time >= ?1 AND other.wall_time < ?2)) GROUP BY eta.receipt_id ORDER BY model",
        (low, high),
    )
    for rowid, receipt_id, *values, source, wall_time, model in found:
        categories = [
            dict(zip(("category", "share", "joule_share", "marginal_share"), row, strict=True))
            for row in db.execute(
                f"SELECT category, share, joule_share, marginal_share FROM {slack} WHERE receipt_id = ?",  # noqa: S608
                (receipt_id,),
            )
        ]
        yield Read(rowid, int(deep), (receipt_id, deep, *values, categories, source, wall_time, model))


def texts(db: sqlite3.Connection, low: float, high: float) -> Iterator[Read]:
    """Those told from `low` to before `high`; of what model, its request in the ledger says."""
    if not texts_attached(db):
        return
    found = db.execute(
        "SELECT rowid, receipt_id, prompts, responses, pieces, wall_time, (SELECT max(model) FROM requests "
        "WHERE requests.receipt_id = texts.receipt_id) AS model FROM stored.texts "
        "WHERE wall_time >= ? AND wall_time < ? ORDER BY model",
        (low, high),
    )
    for rowid, receipt_id, prompts, responses, *values in found:
        yield Read(rowid, None, (receipt_id, json.loads(prompts), json.loads(responses), *values))


def texts_attached(db: sqlite3.Connection) -> bool:
    """As `stored`, to the ledger."""
    return "stored" in (name for _, name, _ in db.execute("PRAGMA database_list"))


@dataclass(frozen=True, slots=True)
class Table:
    """`key` names a row for good; `there` asks whether the ledger has it."""

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    there: str = ""
    """Empty where the ledger has no such table."""


REQUESTS: Final = Table(
    "requests",
    _schema("requests", _REQUESTS),
    ("boot_id", "engine", "engine_started_ns", "number"),
    "SELECT 1 FROM requests WHERE boot_id = ? AND engine = ? AND engine_started_ns = ? AND number = ?",
)
BALANCES: Final = Table(
    "balances",
    _schema("balances", _BALANCES),
    ("boot_id", "gpu_uuid", "end_ns"),
    "SELECT 1 FROM balances WHERE boot_id = ? AND gpu_uuid = ? AND end_ns = ?",
)
READINGS: Final = Table(
    "readings",
    _schema("readings", _READINGS),
    ("receipt_id", "deep"),
    "SELECT 1 FROM (SELECT receipt_id, 0 AS deep FROM eta UNION ALL SELECT receipt_id, 1 FROM eta_deep) "
    "WHERE receipt_id = ? AND deep = ?",
)
TEXTS: Final = Table(
    "texts", _schema("texts", _TEXTS), ("receipt_id",), "SELECT 1 FROM stored.texts WHERE receipt_id = ?"
)
REREADINGS: Final = Table("rereadings", _schema("rereadings", _REREADINGS), ("receipt_id",))
REATTRIBUTIONS: Final = Table(
    "reattributions",
    _schema("reattributions", _REATTRIBUTIONS),
    ("boot_id", "engine", "engine_started_ns", "number", "recording"),
)
TABLES: Final = (REQUESTS, BALANCES, READINGS, TEXTS)
"""What is moved out of the ledger."""
ALL_TABLES: Final = (*TABLES, REREADINGS, REATTRIBUTIONS)
READ: Final = {"requests": requests, "balances": balances, "readings": readings, "texts": texts}


def record_batches(table: Table, rows: Iterable[Row]) -> Iterator[pa.RecordBatch]:
    """The rows, so many at a time that memory doesn't grow with them."""
    rest = iter(rows)
    while some := list(islice(rest, BATCH_ROWS)):
        columns = zip(*some, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, table.schema, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def model_in(table: Table) -> Callable[[Row], str | None]:
    """What tells the model of a row; None where its table has none, or it isn't known."""
    if "model" not in table.schema.names:
        return lambda _: None
    model: Callable[[Row], str | None] = itemgetter(table.schema.names.index("model"))
    return model


def told_of(schema: pa.Schema) -> Mapping[str, Any]:
    """What a file says of itself; nothing where it isn't ours."""
    told: Mapping[str, Any] = json.loads((schema.metadata or {}).get(KEY, b"{}"))
    return told
