"""What a comparison of arms leaves behind: a row a block and a row a conversation, in Parquet and CSV.

None is "not known" and never zero. A block that is taken again, because the one before was cut off or had to be left out, has the same number and the next
`attempt`; `kept` gives those that count, each block at most once.
"""

import csv
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from etameter.counters import Kind
from etameter.errors import ExperimentError
from etameter.records import Source

Part = Literal["rate", "concurrency", "closed-loop", "mixed"]
PARTS: tuple[Part, ...] = get_args(Part)
HEADLINE: tuple[Part, ...] = ("rate", "concurrency")
"""The parts whose blocks have one arm each, under load: their joules per correct answer are the result."""
MIXED: Final = "mixed"
"""The arm of a block whose requests are of all arms."""

_VERSION = "1"
_ADDED: Final = frozenset({"braked", "eta_minimal", "detectors"})
"""Columns that tables of earlier versions don't have."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an answer's text, in characters, and its label."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class BlockRow:
    """A block: the time in which one arm (in `mixed`: every arm) was asked a set of tasks, until the last answer had come."""

    part: Part
    block: int
    """Its number in the plan, over all parts."""
    attempt: int
    """0 for the first time that the block was run."""
    repeat: int
    """Blocks of the same part and repeat ask the same tasks, each under another arm: they are a pair."""
    arm: str
    arm_hash: str
    position: int
    """Within the repeat, from 0."""
    start_ns: int
    """CLOCK_MONOTONIC: comparable within a boot."""
    end_ns: int
    started_wall: str
    """ISO 8601, UTC."""
    energy_j: float | None
    """What the counters grew by, idle power and all. No attribution is in it."""
    energy_error_j: float | None
    """Half the 95 % interval: when within its period the counter was published. The board's own gain is apart from it."""
    idle_w: float | None
    """Of the same counters with the model loaded and nobody asking, before and after."""
    requests: int
    """Sent, with turns and retries."""
    failures: int
    """Conversations that failed."""
    correct: int
    prompt_tokens: int
    output_tokens: int
    power_w: float | None
    """Mean over the block."""
    temperature_c: float | None
    """Highest of all boards in the block."""
    throttled: bool | None
    neighbours: int | None
    """Processes of others that computed on the boards."""
    excluded: str | None
    """By which rule of the plan it does not count."""
    source: Source
    counter: Kind


@dataclass(frozen=True, slots=True)
class Outcome:
    """A conversation: a task × sample × arm × part. Its joules are attributed, unlike those of its block."""

    part: Part
    block: int
    attempt: int
    arm: str
    arm_hash: str
    task: str
    category: str
    difficulty: str
    sample: int
    """From 0 to K − 1."""
    turns: int
    """Answers, with those that were asked for anew."""
    retries: int
    start_ns: int
    end_ns: int
    prompt_tokens: int | None
    """Of all requests: what was said before is sent again with each of them."""
    cached_tokens: int | None
    output_tokens: int | None
    """Of all answers."""
    finish_reason: str | None
    """Of the last answer."""
    correct: bool | None
    """None where the checker could not run; a conversation that failed is not correct."""
    reason: str
    """What the checker says."""
    failure: str | None
    """timeout, http_429, http_5xx, refused, malformed or server_gone; None where all answers came."""
    energy_j: float | None
    prompt_j: float | None
    output_j: float | None
    marginal_j: float | None
    error_j: float | None
    settled: bool
    source: Source | None
    """Of the attributed energy; None where there is none."""
    eta_lenient_at_most: float | None
    eta_deletion: float | None
    lexical_slack: float | None
    """Share of the last answer's text that word lists find."""
    slack: Mapping[str, float]
    """Category → output tokens of the last answer."""
    prompt_text: str | None
    """None, like the answer, unless the run may keep texts."""
    answer_text: str | None
    spans: tuple[Span, ...] = ()
    braked: str | None = None
    """Why the slack brake ended the last answer, if it did."""
    eta_minimal: float | None = None
    """Of code and calls of tools: see `minimal`."""
    detectors: str | None = None
    """Which the slack brake had, where it was on."""


RowT = TypeVar("RowT", BlockRow, Outcome)

_NAMES: Mapping[type, str] = {BlockRow: "blocks", Outcome: "requests"}
_ATOMS = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


def kept(blocks: Iterable[BlockRow], outcomes: Iterable[Outcome]) -> tuple[list[BlockRow], list[Outcome]]:
    """The blocks that are not excluded, and their conversations."""
    good = [block for block in blocks if block.excluded is None]
    numbers = {(block.block, block.attempt) for block in good}
    return good, [outcome for outcome in outcomes if (outcome.block, outcome.attempt) in numbers]


def write_parquet(path: Path, kind: type[RowT], rows: Sequence[RowT], about: Mapping[str, Any]) -> None:
    """Writes a table of rows of one kind; `about` says in JSON whose they are, and comes back from `read_parquet`."""
    columns = schema(kind).with_metadata({"etameter": json.dumps({**_head(kind), "about": about})})
    table = pa.Table.from_pylist([_plain(row) for row in rows], columns)
    building = path.with_name(f".{path.name}")
    pq.write_table(table, building, compression="zstd")
    building.rename(path)


def read_parquet(path: Path, kind: type[RowT]) -> tuple[list[RowT], dict[str, Any]]:
    """The rows of a table, and what it is about.

    Raises:
        ExperimentError: there is no such file, or it is no table of this kind and version.
    """
    remedy = f"name what `etameter ab` wrote, such as RUN/{_NAMES[kind]}.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ExperimentError(f"{path} can't be read ({error})", remedy) from error
    told = json.loads((table.schema.metadata or {}).get(b"etameter", b"{}"))
    there = pa.schema([each for each in schema(kind) if each.name in table.schema.names or each.name not in _ADDED])
    if any(told.get(key) != value for key, value in _head(kind).items()) or not table.schema.equals(there):
        raise ExperimentError(f"{path} is no table of {_NAMES[kind]} of version {_VERSION}", remedy)
    return [kind(**_lively(row)) for row in table.to_pylist()], told["about"]


def write_csv(path: Path, kind: type[RowT], rows: Iterable[RowT]) -> None:
    """The same rows for everybody else; an empty cell is what is not known, and slack and spans are JSON."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        for row in rows:
            plain = asdict(row)
            writer.writerow(
                {
                    name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | tuple) else value
                    for name, value in plain.items()
                }
            )


def _head(kind: type) -> dict[str, str]:
    return {"table": _NAMES[kind], "version": _VERSION}


def _plain(row: BlockRow | Outcome) -> dict[str, Any]:
    plain = asdict(row)
    if isinstance(row, Outcome):
        plain["slack"] = list(row.slack.items())
    return plain


def _lively(row: dict[str, Any]) -> dict[str, Any]:
    if "slack" in row:
        row["slack"] = dict(row["slack"])
        row["spans"] = tuple(Span(**span) for span in row["spans"])
    return row


def schema(kind: type) -> pa.Schema:
    """Columns of a dataclass's fields, in their order; those that may be None are nullable."""
    return pa.schema([_field(name, told) for name, told in get_type_hints(kind).items()])


def _field(name: str, told: Any) -> pa.Field:
    options = get_args(told) if get_origin(told) in {types.UnionType, Union} else (told,)
    known = [option for option in options if option is not types.NoneType]
    return pa.field(name, _arrow(known[0]), nullable=len(known) < len(options))


def _arrow(told: Any) -> pa.DataType:
    if get_origin(told) is Literal:
        return pa.string()
    if get_origin(told) is tuple:
        return pa.list_(pa.struct([_field(*each) for each in get_type_hints(Span).items()]))
    return _ATOMS.get(told) or pa.map_(pa.string(), pa.float64())
