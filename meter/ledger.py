"""The durable record of requests and balances: SQLite in WAL mode, one transaction per settled batch.

A transaction adds to the requests what the settled intervals charged them, writes the intervals' balances, and moves the place from where a
restarted meter reads on. So nothing is settled twice and nothing half, wherever the process dies.

An idle board, or a counter that stands still, would fill a disk with rows: intervals that follow each other, that nobody is charged for and that
are unattributed for the same reason, if any, share one, of a minute at most. A `model_residual` is no reason to stand apart: idle boards flicker.
"""

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from etameter import archived, readings, spent
from etameter.budgets import Spent
from etameter.curves import Curve
from etameter.errors import EtameterError
from etameter.nodes import kept
from etameter.records import Balance, Edge, RequestEnergy, RequestRecord, Source
from etameter.slack.labels import Waste
from etameter.slack.reading import Reading

SCHEMA_VERSION = 7
"""Version 1 had no readings, version 2 no joules by time and no wastes, version 3 no audits, version 4 no archive, version 5 no budgets, version 6 no
nodes; each becomes one of this version when it is opened to be written."""
_SCHEMA = """
CREATE TABLE requests (
    boot_id TEXT NOT NULL, engine TEXT NOT NULL, engine_started_ns INTEGER NOT NULL, number INTEGER NOT NULL,
    request_id TEXT NOT NULL, receipt_id TEXT, model TEXT NOT NULL, arm TEXT NOT NULL,
    arrival_ns INTEGER NOT NULL, first_token_ns INTEGER, finished_ns INTEGER,
    prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, prefill_tokens INTEGER NOT NULL,
    decode_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, finish_reason TEXT,
    prompt_j REAL NOT NULL, output_j REAL NOT NULL, marginal_j REAL NOT NULL, recomputed_j REAL NOT NULL,
    draft_waste_j REAL NOT NULL, avoided_j REAL NOT NULL, error_j REAL NOT NULL,
    settled INTEGER NOT NULL, method TEXT NOT NULL, source TEXT NOT NULL, wall_time REAL NOT NULL,
    PRIMARY KEY (boot_id, engine, engine_started_ns, number)
) STRICT;
CREATE INDEX requests_by_receipt ON requests (receipt_id);
CREATE TABLE balances (
    gpu_uuid TEXT NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, measured_j REAL NOT NULL,
    attributed_j REAL NOT NULL, idle_j REAL NOT NULL, engine_overhead_j REAL NOT NULL, host_bubble_j REAL NOT NULL,
    unattributed TEXT NOT NULL, source TEXT NOT NULL, boot_id TEXT NOT NULL,
    PRIMARY KEY (boot_id, gpu_uuid, end_ns)
) STRICT;
CREATE TABLE resume (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
_TRANSFERS = """
CREATE INDEX requests_by_transfer ON requests (substr(request_id, -41, 33)) WHERE substr(request_id, -41, 1) = 'p';
"""
"""Version 7 finds requests that prefilled for another engine by the transfer that their ids name; see `records.transfer_of`."""
_SCHEMAS = (
    _SCHEMA,
    readings.SCHEMA,
    readings.UPGRADE,
    readings.AUDITS,
    archived.SCHEMA,
    spent.SCHEMA,
    kept.SCHEMA + _TRANSFERS,
)
"""What makes each version of the one before."""
QUIET_ROW_NS = 60_000_000_000
"""Intervals without requests become one row of at most this length."""
_LAST_BALANCE = "SELECT max(end_ns) FROM balances WHERE boot_id = ? AND gpu_uuid = ?"
_INSERT_BALANCE = "INSERT INTO balances VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_QUIET_BALANCE = f"""
SELECT unattributed FROM balances
WHERE boot_id = :boot_id AND gpu_uuid = :gpu_uuid AND end_ns = :start_ns AND source = :source
    AND attributed_j = 0 AND :end_ns - start_ns <= {QUIET_ROW_NS}
"""  # noqa: S608  # a number of our own
_EXTEND_BALANCE = """
UPDATE balances SET end_ns = :end_ns, measured_j = measured_j + :measured_j, idle_j = idle_j + :idle_j,
    engine_overhead_j = engine_overhead_j + :engine_overhead_j, unattributed = :unattributed, wall_time = :wall_time
WHERE boot_id = :boot_id AND gpu_uuid = :gpu_uuid AND end_ns = :start_ns
"""
_INSERT_REQUEST = (
    "INSERT OR REPLACE INTO requests VALUES "
    "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SELECT_ALL = "SELECT * FROM requests ORDER BY arrival_ns"
_SELECT_OPEN = "SELECT * FROM requests WHERE settled = 0 AND boot_id = ? AND engine = ? ORDER BY arrival_ns"
_SELECT_PREFILLED = """
SELECT DISTINCT receipt_id FROM requests
WHERE substr(request_id, -41, 33) = 'p' || ? AND substr(request_id, -41, 1) = 'p' AND receipt_id IS NOT NULL
"""
_SELECT_RECEIPT = "SELECT * FROM requests WHERE receipt_id = ? ORDER BY arrival_ns"


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A request as the ledger keeps it: `energy` is the running total, which replaces the earlier one."""

    engine: str
    engine_started_ns: int
    number: int
    """Of its first sample in the engine's ring: with engine and boot it names the request for good."""
    record: RequestRecord
    energy: RequestEnergy
    prefill_tokens: int
    decode_tokens: int
    curve: Curve | None = field(default=None, compare=False)
    """How the output joules are spread over the tokens; kept by no ledger, and unknown to a meter that came later than the request."""


RequestValues = tuple[Any, ...]
"""The same as the table has it, but for boot and wall time. See `request_row`."""
KEY_VALUES, RECEIPT_ID_VALUE = 3, 4
"""Of its values, and of those of `RunningValues`, so many at the head name the request; at that place `RequestValues` have the receipt's id."""
RunningValues = tuple[Any, ...]
"""What has changed in a row that the table has: engine, engine_started_ns, number, then values for `RUNNING`."""
RUNNING = (
    *("first_token_ns", "cached_tokens", "prefill_tokens", "decode_tokens"),
    *("prompt_j", "output_j", "marginal_j", "recomputed_j", "draft_waste_j", "avoided_j", "error_j", "method"),
)
_UPDATE_REQUEST = (
    f"UPDATE requests SET {', '.join(f'{name} = ?{place}' for place, name in enumerate(RUNNING, 4))}, "  # noqa: S608  # our own words
    f"wall_time = ?{len(RUNNING) + 5} WHERE engine = ?1 AND engine_started_ns = ?2 AND number = ?3 "
    f"AND boot_id = ?{len(RUNNING) + 4}"
)


@dataclass(frozen=True, slots=True)
class Resume:
    """From where a restarted meter goes on.

    It reads again what is left of the ring created at `ring_created_ns`, and settles what lies behind each GPU's `frontier_ns`.
    """

    boot_id: str
    ring_created_ns: int
    frontier_ns: Mapping[str, int]
    last_edges: tuple[Edge, ...]
    coefficients: Mapping[str, tuple[list[float], list[list[float]]]]
    """Fitted energy and time coefficients by `devices.fit_key`: the prior of an engine that agrees in it."""
    engine: str = ""
    """Empty in ledgers from when a meter had one engine."""


SettledValues = tuple[Iterable[tuple[Balance, Source]], Iterable[RequestValues], Resume, Iterable[RunningValues]]
"""A batch: its balances, whole rows, place, and changes of rows that were written before."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the whole ledger, or one GPU of it. `requests_j` is summed from the receipts, not from the balances."""

    requests_j: float
    idle_j: float
    engine_overhead_j: float
    unattributed_j_by_cause: Mapping[str, float]
    measured_j: float
    host_bubble_j: float
    requests: int
    sources: frozenset[Source]

    @property
    def residual_j(self) -> float:
        spent_j = self.requests_j + self.idle_j + self.engine_overhead_j
        return self.measured_j - spent_j - sum(self.unattributed_j_by_cause.values())


class Ledger:
    """Opens or creates the ledger at `path`. May be used from any thread, by one at a time.

    Raises:
        EtameterError: the file is no ledger, of another version, or can't be written.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        try:
            if read_only:
                self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if 0 <= version < SCHEMA_VERSION and not read_only:
                self._make("".join(_SCHEMAS[version:]))
            elif not 1 <= version <= SCHEMA_VERSION:
                raise EtameterError(f"{path} is a ledger of version {version}", f"name one of version {SCHEMA_VERSION}")
            self._version: int = version if read_only else SCHEMA_VERSION
        except (sqlite3.Error, OSError) as error:
            raise EtameterError(
                f"the ledger {path} can't be opened ({error})", "name a writable file with --ledger"
            ) from error

    def _make(self, schema: str) -> None:
        self._db.executescript(f"BEGIN; {schema} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def close(self) -> None:
        self._db.close()

    def reading(self, receipt_id: str) -> Reading | None:
        """What was found in a response; None too in a ledger of version 1 that is only read."""
        return readings.find(self._db, self._version, receipt_id)

    def judged(self, receipt_id: str) -> Reading | None:
        """What a judge found in a response; None too in a ledger of a version under 4 that is only read."""
        return readings.find(self._db, self._version, receipt_id, deep=True)

    def audits(self, most: int) -> tuple[list[readings.Judged], list[readings.Checked]]:
        """The latest answers that were judged, and that were given to an audit's tasks; newest first."""
        return readings.judged(self._db, self._version, most), readings.checked(self._db, self._version, most)

    def spent(self, since_s: float) -> list[Spent]:
        """What budgets spent in windows that began at `since_s` or later (s since 1970)."""
        return spent.read(self._db, since_s)

    def nodes(self, boot_id: str) -> dict[str, kept.Known]:
        """The other machines that were heard, by name; `boot_id` is of this one."""
        return kept.read(self._db, boot_id)

    def waste(self, receipt_id: str) -> Waste | None:
        """What the server said became of a response."""
        return readings.waste_of(self._db, self._version, receipt_id)

    def settle(
        self,
        balances: Iterable[tuple[Balance, Source]],
        requests: Iterable[RequestValues],
        resume: Resume,
        wall_time: float,
        running: Iterable[RunningValues] = (),
        found: Iterable[readings.Found] = (),
        wastes: Iterable[tuple[str, Waste]] = (),
    ) -> None:
        """Write one settled batch, whole or not at all. `wall_time` (s since 1970) is metadata of its rows.

        `requests` are whole rows, `running` changes of rows that were written before; `found` is what was found in responses since,
        and `wastes` what the server said became of some.

        Raises:
            sqlite3.Error: nothing was written; the same batch may be given again.
            sqlite3.IntegrityError: an interval of it was settled before.
        """
        self.settle_together([(balances, requests, resume, running)], wall_time, found, wastes)

    def settle_together(
        self,
        batches: Iterable[SettledValues],
        wall_time: float,
        found: Iterable[readings.Found] = (),
        wastes: Iterable[tuple[str, Waste]] = (),
        drawn: Iterable[Spent] = (),
        nodes: Mapping[str, kept.Known] | None = None,
    ) -> None:
        """Write some settled batches, in their order, all of them or none, with what budgets spent in them and other machines have become. See `settle`."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for balances, requests, resume, running in batches:
                for balance, source in balances:
                    self._add_balance(balance, source, resume.boot_id, wall_time)
                self._db.executemany(_UPDATE_REQUEST, [(*each, resume.boot_id, wall_time) for each in running])
                self._db.executemany(_INSERT_REQUEST, [(resume.boot_id, *each, wall_time) for each in requests])
                self._db.execute(
                    "INSERT OR REPLACE INTO resume VALUES (?, ?)", (resume.engine or "resume", resume_text(resume))
                )
                kept.add(self._db, nodes or {}, resume.boot_id)
            readings.write(self._db, found, wastes)
            spent.add(self._db, drawn)

    def note(self, found: Iterable[readings.Found], wastes: Iterable[tuple[str, Waste]]) -> None:
        """Write what came to be known after the last batch. Raises sqlite3.Error."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            readings.write(self._db, found, wastes)

    def _add_balance(self, balance: Balance, source: Source, boot_id: str, wall_time: float) -> None:
        (settled_ns,) = self._db.execute(_LAST_BALANCE, (boot_id, balance.gpu_uuid)).fetchone()
        if (
            settled_ns is not None and balance.end_ns <= settled_ns
        ):  # the key alone doesn't know what a longer row took in
            raise sqlite3.IntegrityError(f"{balance.gpu_uuid} is settled until {settled_ns} ns, {balance} came again")
        if balance.attributed_j != 0.0 or not self._extend_quiet_row(balance, source, boot_id, wall_time):
            self._db.execute(_INSERT_BALANCE, (*_balance_row(balance, source, boot_id), wall_time))

    def _extend_quiet_row(self, balance: Balance, source: Source, boot_id: str, wall_time: float) -> bool:
        """Add an interval without requests to the row before it; False where that is of another kind, or full."""
        about: dict[str, object] = {
            "gpu_uuid": balance.gpu_uuid,
            "start_ns": balance.start_ns,
            "end_ns": balance.end_ns,
            "measured_j": balance.measured_j,
            "idle_j": balance.idle_j,
            "engine_overhead_j": balance.engine_overhead_j,
            "source": source,
            "boot_id": boot_id,
            "wall_time": wall_time,
        }
        before = self._db.execute(_QUIET_BALANCE, about).fetchone()
        if before is None:
            return False
        causes: dict[str, float] = json.loads(before[0])
        if _faults(causes) != _faults(balance.unattributed_j_by_cause):
            return False
        for cause, joules in balance.unattributed_j_by_cause.items():
            causes[cause] = causes.get(cause, 0.0) + joules
        self._db.execute(_EXTEND_BALANCE, about | {"unattributed": json.dumps(causes)})
        return True

    def resumes(self) -> dict[str, Resume]:
        """Where an earlier meter left off, by engine, the latest last; under "" where it didn't name its engine."""
        rows = self._db.execute("SELECT value FROM resume ORDER BY rowid")
        resumes = [resume_from(json.loads(text)) for (text,) in rows]
        return {resume.engine: resume for resume in resumes}

    def open_requests(self, boot_id: str, engine: str) -> list[RequestRow]:
        """An engine's requests of this boot that were not settled."""
        return self._select(_SELECT_OPEN, (boot_id, engine))

    def receipt(self, receipt_id: str) -> list[RequestRow]:
        """The engine requests behind one response: several where it had several prompts."""
        return self._select(_SELECT_RECEIPT, (receipt_id,))

    def prefilled(self, transfer: str) -> set[str]:
        """Receipts of the requests that prefilled a prompt for this transfer."""
        return {receipt_id for (receipt_id,) in self._db.execute(_SELECT_PREFILLED, (transfer,))}

    def requests(self) -> list[RequestRow]:
        """Every request, oldest first."""
        return self._select(_SELECT_ALL, ())

    def totals(self) -> Totals:
        """Both sides of the balance, each summed from what was persisted, be it here or in the archive by now."""
        self._db.execute("BEGIN")  # one moment for all of them, though a meter may be writing
        try:
            moved = archived.read(self._db, self._version)
            (requests,) = self._db.execute("SELECT count(*) FROM requests").fetchone()
            causes: dict[str, list[float]] = {}
            texts = self._db.execute("SELECT unattributed FROM balances WHERE unattributed != '{}'")
            here = (json.loads(text) for (text,) in texts)
            for lost in (*(sums.unattributed_j_by_cause for sums in moved), *here):
                for cause, joules in lost.items():
                    causes.setdefault(cause, []).append(joules)
            sources = [source for (source,) in self._db.execute("SELECT DISTINCT source FROM balances")]
            return Totals(
                requests_j=self._sum("prompt_j + output_j", "requests", (sums.requests_j for sums in moved)),
                idle_j=self._sum("idle_j", "balances", (sums.idle_j for sums in moved)),
                engine_overhead_j=self._sum(
                    "engine_overhead_j", "balances", (sums.engine_overhead_j for sums in moved)
                ),
                unattributed_j_by_cause={cause: math.fsum(joules) for cause, joules in causes.items()},
                measured_j=self._sum("measured_j", "balances", (sums.measured_j for sums in moved)),
                host_bubble_j=self._sum("host_bubble_j", "balances", (sums.host_bubble_j for sums in moved)),
                requests=requests + sum(sums.requests for sums in moved),
                sources=frozenset([*sources, *(sums.source for sums in moved if sums.balances)]),
            )
        finally:
            self._db.execute("ROLLBACK")

    def _sum(self, what: str, table: str, moved: Iterable[float]) -> float:
        """Exactly rounded, which SQLite's own sum is not, and without holding the rows."""
        here = self._db.execute(f"SELECT {what} FROM {table}")  # noqa: S608  # our own words
        return math.fsum(chain((joules for (joules,) in here), moved))

    def _select(self, statement: str, values: tuple[str, ...]) -> list[RequestRow]:
        return [request_row(row[1:-1]) for row in self._db.execute(statement, values)]


def _faults(causes: Iterable[str]) -> set[str]:
    """Why the energy of an interval isn't known well enough, if it isn't."""
    return set(causes) - {"model_residual"}


def _balance_row(balance: Balance, source: Source, boot_id: str) -> tuple[object, ...]:
    return (
        balance.gpu_uuid,
        balance.start_ns,
        balance.end_ns,
        balance.measured_j,
        balance.attributed_j,
        balance.idle_j,
        balance.engine_overhead_j,
        balance.host_bubble_j,
        json.dumps(dict(balance.unattributed_j_by_cause)),
        source,
        boot_id,
    )


def row_values(row: RequestRow) -> RequestValues:
    """What the table has of it, but for boot and wall time."""
    record, energy = row.record, row.energy
    return (
        row.engine,
        row.engine_started_ns,
        row.number,
        record.request_id,
        record.receipt_id,
        record.model,
        record.arm,
        record.arrival_ns,
        record.first_token_ns,
        record.finished_ns,
        record.prompt_tokens,
        record.cached_tokens,
        row.prefill_tokens,
        row.decode_tokens,
        record.output_tokens,
        record.finish_reason,
        energy.prompt_j,
        energy.output_j,
        energy.marginal_j,
        energy.recomputed_j,
        energy.draft_waste_j,
        energy.avoided_j,
        energy.error_j,
        int(energy.settled),
        energy.method,
        energy.source,
    )


def request_row(values: RequestValues) -> RequestRow:
    """The row of which these are the values."""
    engine, engine_started_ns, number, request_id, receipt_id, model, arm, arrival, first, finished = values[:10]
    prompt, cached, prefill, decode, output, reason = values[10:16]
    prompt_j, output_j, marginal_j, recomputed_j, draft_waste_j, avoided_j, error_j, settled, method, source = values[
        16:
    ]
    return RequestRow(
        engine=engine,
        engine_started_ns=engine_started_ns,
        number=number,
        record=RequestRecord(
            request_id, receipt_id, model, arm, arrival, first, finished, prompt, cached, output, reason
        ),
        energy=RequestEnergy(
            request_id,
            prompt_j,
            output_j,
            marginal_j,
            recomputed_j,
            draft_waste_j,
            avoided_j,
            error_j,
            bool(settled),
            method,
            source,
        ),
        prefill_tokens=prefill,
        decode_tokens=decode,
    )


def resume_from(about: Mapping[str, Any]) -> Resume:
    """What `resume_text` has written, read as JSON."""
    return Resume(
        boot_id=about["boot_id"],
        ring_created_ns=about["ring_created_ns"],
        frontier_ns=about["frontier_ns"],
        last_edges=tuple(Edge(*edge) for edge in about["last_edges"]),
        coefficients={uuid: (energy, time_s) for uuid, (energy, time_s) in about["coefficients"].items()},
        engine=about.get("engine", ""),
    )


def resume_text(resume: Resume) -> str:
    """As JSON."""
    return json.dumps(
        {
            "boot_id": resume.boot_id,
            "engine": resume.engine,
            "ring_created_ns": resume.ring_created_ns,
            "frontier_ns": dict(resume.frontier_ns),
            "coefficients": dict(resume.coefficients),
            "last_edges": [
                (edge.gpu_uuid, edge.t_ns, edge.half_width_ns, edge.energy_mj) for edge in resume.last_edges
            ],
        }
    )
