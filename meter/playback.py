"""Replaying recordings: what went into the books of a meter goes into them again, and what comes of it is held against what came then."""

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from etameter.accounts import Accounts
from etameter.devices import Device
from etameter.export.receipts import energy_object
from etameter.ledger import RequestRow, resume_from
from etameter.recorded_rows import RecordedRows
from etameter.recording import (
    EVENTS,
    FORMAT,
    MANIFEST,
    VERSION,
    RecordingError,
    bare_row,
    outcome,
    receipt_name,
)
from etameter.records import SENSED, Balance, Conditions, RequestEnergy, RequestRecord
from etameter.serving.ring import Dispatch, Done, Finish, Introduction, Lost, Record, RingHeader, pair_table

OF_DEMO = Path(__file__).parent / "recordings" / "demo.zip"
"""Of the demo, on a simulated board: to be replayed where there is no GPU and no server."""
SAME = 1e-9
"""Figures that differ by less than this, relatively, differ by the rounding of another machine or version."""

_STREAMED: Mapping[str, Callable[..., Record]] = {"done": Done, "finish": Finish, "lost": Lost}


@dataclass(slots=True)
class Replay:
    """What a recording says, and what these versions make of it."""

    manifest: Mapping[str, Any]
    rows: list[RequestRow] = field(default_factory=list)
    """The requests' last rows; names of requests and receipts are those of the recording."""
    balances: list[Balance] = field(default_factory=list)
    headers: list[RingHeader] = field(default_factory=list)
    health: Mapping[str, object] = field(default_factory=dict)
    outcomes: int = 0
    differing: int = 0
    """Of `outcomes`, those that are not the recorded ones, bit for bit."""
    worst: float = 0.0
    """Largest relative difference of a figure; infinite where other things were settled at all."""

    @property
    def identical(self) -> bool:
        return not self.differing

    @property
    def measured_j(self) -> float:
        return math.fsum(balance.measured_j for balance in self.balances)

    @property
    def requests_j(self) -> float:
        return math.fsum(row.energy.energy_j for row in self.rows)

    @property
    def unassigned_j(self) -> dict[str, float]:
        """Joules by cause, idle and overhead of the engine among them."""
        causes: dict[str, list[float]] = {"idle": [], "engine_overhead": []}
        for balance in self.balances:
            causes["idle"].append(balance.idle_j)
            causes["engine_overhead"].append(balance.engine_overhead_j)
            for cause, joules in balance.unattributed_j_by_cause.items():
                causes.setdefault(cause, []).append(joules)
        return {cause: math.fsum(joules) for cause, joules in causes.items()}


def replay(file: Path) -> Replay:
    """Feed a recording to `Accounts`, as the meter did that recorded it, and compare what comes of it.

    Raises:
        RecordingError: the file is no recording, is damaged, or of a later version.
    """
    try:
        with zipfile.ZipFile(file) as bundle:
            manifest = json.loads(bundle.read(MANIFEST))
            if manifest.get("format") != FORMAT:
                raise RecordingError(f"{file} is no recording", "name a file that `etameter record` has written")
            if not 1 <= manifest["version"] <= VERSION:
                raise RecordingError(
                    f"{file} is a recording of version {manifest['version']}",
                    f"replay it with a later etameter (this one knows up to {VERSION})",
                )
            with bundle.open(EVENTS) as events:
                return _Player(manifest).play(events)
    except OSError as error:
        raise RecordingError(f"{file} can't be read ({error.strerror})", "name a recording") from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError) as error:
        raise RecordingError(
            f"{file} is no recording ({error})", "it may not have been closed, or be damaged"
        ) from error
    except (ValueError, TypeError, LookupError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RecordingError(f"{file} can't be understood ({reason})", "it is damaged, or not ours") from error


def receipts(found: Replay, receipt_id: str | None = None) -> list[dict[str, object]]:
    """The receipts as the meter gives them, those of one response together; one alone where `receipt_id` is named, by its id or its name."""
    groups: dict[str, list[RequestRow]] = {}
    for row in found.rows:
        groups.setdefault(row.record.receipt_id or row.record.request_id, []).append(row)
    if receipt_id is not None:
        groups = {name: rows for name, rows in groups.items() if name in {receipt_id, receipt_name(receipt_id)}}
    return [energy_object(rows, str(found.manifest["about"].get("counter", ""))) for rows in groups.values()]


def as_json(found: Replay, receipt_id: str | None = None) -> str:
    """All of it, as one JSON object."""
    return json.dumps(
        {
            "recording": found.manifest,
            "health": found.health,
            "engines": [asdict(header) for header in found.headers],
            "measured_joules": found.measured_j,
            "requests_joules": found.requests_j,
            "unassigned_joules": found.unassigned_j,
            "identical": found.identical,
            "largest_relative_difference": found.worst if math.isfinite(found.worst) else None,
            "receipts": receipts(found, receipt_id),
        },
        indent=1,
    )


def report(found: Replay, receipt_id: str | None = None) -> str:
    """What a person wants to know of a recording, or of one receipt in it."""
    if receipt_id is not None:
        return "\n".join(json.dumps(each, indent=1) for each in receipts(found, receipt_id)) or "no such receipt"
    manifest = found.manifest
    versions, about = manifest["versions"], manifest["about"]
    seconds = (found.balances[-1].end_ns - found.balances[0].start_ns) * 1e-9 if found.balances else 0.0
    tokens = sum(row.record.output_tokens for row in found.rows)
    boards = ", ".join(f"{each['board_name']} ({each['gpu_uuid']})" for each in manifest["devices"])
    sources = ", ".join(sorted({each["source"] for each in manifest["devices"]}))
    lines = [
        f"recorded  {about.get('started', 'at an unknown time')} by etameter {versions['etameter']}, numpy {versions['numpy']}, {versions['machine']}",
        f"counter   {about.get('counter', 'unknown')}, source={sources}: {boards}",
        f"engine    {', '.join(f'{each.engine} serving {each.model}' for each in found.headers) or 'none was seen'}",
        f"energy    {found.measured_j:.1f} J in {seconds:.1f} s: {found.requests_j:.1f} J of {len(found.rows)} requests, {tokens} output tokens",
    ]
    lines += [f"          {joules:.1f} J {cause}" for cause, joules in found.unassigned_j.items() if joules]
    return "\n".join([*lines, f"replay    {_verdict(found)}"])


def _verdict(found: Replay) -> str:
    if found.identical:
        return f"all {found.outcomes} outcomes are the recorded ones, bit for bit"
    some = f"{found.differing} of {found.outcomes} outcomes differ from the recorded ones"
    if found.worst <= SAME:
        return f"{some}, by {found.worst:.1e} at most: the rounding of another machine or version"
    by = f"by {found.worst:.2%} at most" if math.isfinite(found.worst) else "in more than figures"
    return f"{some}, {by}: this is another method, or a bug"


class _Player:
    def __init__(self, manifest: Mapping[str, Any]) -> None:
        resume = manifest["resume"]
        devices = [Device(**device) for device in manifest["devices"]]
        self._accounts = Accounts(devices, manifest["boot_id"], None if resume is None else resume_from(resume))
        self._replay = Replay(manifest)
        self._rows = RecordedRows()
        self._last: dict[tuple[int, int], RequestRow] = {}

    def play(self, events: IO[bytes]) -> Replay:
        for line in events:
            tag, *fields = json.loads(line)
            self._take(tag, fields)
        self._replay.rows = list(self._last.values())
        return self._replay

    def _take(self, tag: str, fields: list[Any]) -> None:
        accounts = self._accounts
        match tag:
            case "edge" | "failure" | "standstill" | "reboot":
                accounts.found([SENSED[tag](*fields)])  # type: ignore[list-item]  # neither is Conditions
            case "conditions":
                uuid, t_ns, values, *limit_w = fields  # the limit is not in recordings of before
                accounts.changed([Conditions(uuid, t_ns, _tuples(values), *limit_w)])
            case "limit":
                accounts.timelines()[fields[0]].power_limit_w = fields[1]
            case "steps":
                accounts.steps([self._record(*record) for record in fields[1]], fields[0])
            case "settle":
                self._settle(fields[0])
            case "figure":
                accounts.rows_of(fields[0])
            case "arm":
                accounts.announce(*fields)
            case "engine":
                header = RingHeader(**{**fields[0], "gpu_uuids": tuple(fields[0]["gpu_uuids"])})
                self._replay.headers.append(header)
                accounts.open_engine(header)
            case "engine_lost":
                accounts.close_engine(*fields)
            case "inherit":
                accounts.inherit([_row(*row) for row in fields[0]])
            case "open":
                rows = self._accounts.open_rows()
                self._compare([bare_row(row) for row in rows], fields[0])
                self._last |= {(row.engine_started_ns, row.number): row for row in rows}
            case "end":
                self._replay.health = fields[0]
            case _:
                raise ValueError(f"unknown event {tag}")

    def _record(self, tag: str, *fields: Any) -> Record:
        if tag == "dispatch":
            step_id, t_ns, padded_tokens, rows, introductions = fields
            told = tuple(Introduction(*each) for each in introductions)
            return Dispatch(step_id, t_ns, padded_tokens, self._rows.decode(rows), told)
        if tag == "finish":
            self._rows.forget(fields[0])
        if tag == "done":
            return Done(fields[0], fields[1], pair_table(fields[2]))
        return _STREAMED[tag](*fields)

    def _settle(self, recorded: Any) -> None:
        batch = self._accounts.settle()
        self._compare(None if batch is None else outcome(batch, bare_row), recorded)
        if batch is not None:
            self._replay.balances += [balance for balance, _ in batch.balances]
            self._last |= {(row.engine_started_ns, row.number): row for row in batch.rows}

    def _compare(self, outcome: object, recorded: object) -> None:
        if outcome is None and recorded is None:
            return
        self._replay.outcomes += 1
        found = json.loads(json.dumps(outcome))
        if json.dumps(found) != json.dumps(recorded):
            self._replay.differing += 1
            self._replay.worst = max(self._replay.worst, _difference(found, recorded))


def _row(
    engine: str,
    engine_started_ns: int,
    number: int,
    record: list[Any],
    energy: list[Any],
    prefill_tokens: int,
    decode_tokens: int,
) -> RequestRow:
    told, cost = RequestRecord(*record), RequestEnergy(*energy)
    return RequestRow(engine, engine_started_ns, number, told, cost, prefill_tokens, decode_tokens)


def _tuples(values: Any) -> Any:
    """What was hashable before JSON made lists of its tuples."""
    return tuple(_tuples(value) for value in values) if isinstance(values, list) else values


def _difference(found: object, recorded: object) -> float:
    """Largest relative difference between two figures in the same place; infinite where anything else differs."""
    pairs = list(_figures(found, recorded))
    return max((_relative(mine, theirs) for mine, theirs in pairs), default=0.0)


def _figures(found: object, recorded: object) -> Iterator[tuple[object, object]]:
    if isinstance(found, list) and isinstance(recorded, list) and len(found) == len(recorded):
        for mine, theirs in zip(found, recorded, strict=True):
            yield from _figures(mine, theirs)
    elif isinstance(found, dict) and isinstance(recorded, dict) and found.keys() == recorded.keys():
        for key, mine in found.items():
            yield from _figures(mine, recorded[key])
    else:
        yield found, recorded


def _relative(mine: object, theirs: object) -> float:
    if mine == theirs:
        return 0.0
    if isinstance(mine, float) and isinstance(theirs, float):
        with suppress(ZeroDivisionError):
            return abs(mine - theirs) / max(abs(mine), abs(theirs), 1e-6)  # a microjoule is nothing
    return math.inf
