"""Computes anew what newer versions or weights would say: readings of stored texts, and figures of requests from recordings.

The unit is a partition: a file of texts in the archive, or a recording. What comes of one is one file, which says of what it was made and by what. So
a run that is begun again, or elsewhere at the same time, finds what is done; and of two that make the same file, the second finds its name taken,
sees that the same is there, and leaves it. A partition that fails is told, and keeps no other waiting.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from etameter.classifier import Counting, pieces_of
from etameter.errors import ArchiveError, EtameterError
from etameter.playback import replay
from etameter.slack import fast
from etameter.slack.reading import Classify, Reading, read

from .store import File, Store, recording_part
from .tables import (
    BATCH_ROWS,
    FORMAT,
    KEY,
    REATTRIBUTIONS,
    REREADINGS,
    TEXTS,
    Row,
    Table,
    record_batches,
)

WRITTEN: Final = "written"
STANDS: Final = "stands already"
_WRITERS: Final = 10
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_MADE_OF: Final = "made"


@dataclass(frozen=True, slots=True)
class Scoring:
    """By what is scored, and where what comes of it goes. Other processes are given it."""

    archive: str
    weights: str | None = None
    """The text of a file of weights; None for those that come with this version."""

    @property
    def scorer(self) -> str:
        text = self.weights or resources.files("etameter.slack").joinpath("fast.json").read_text()
        return f"etameter {version('etameter')}, weights {hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Partition:
    """A file of texts, or a recording."""

    kind: Literal["texts", "recording"]
    place: str
    """Of a recording, its address."""
    file: File | None = None
    """Of texts."""

    @property
    def name(self) -> str:
        return self.place.rsplit("/", 1)[-1] if self.file is None else self.file.name


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a partition: `rows` were written by this run, or an error says why none could be."""

    name: str
    rows: int = 0
    seconds: float = 0.0
    how: str = WRITTEN
    error: str | None = None


@dataclass(slots=True)
class _Made:
    """A file that is being made, and of what it is."""

    table: Table
    day: str
    part: str
    made: Mapping[str, str]
    rows: int = field(default=0)


def partitions(store: Store, recordings: str | None) -> list[Partition]:
    """All that there are, oldest texts first; which of them are done is seen when they are looked at.

    Raises:
        ArchiveError: the archive or the folder of recordings can't be read.
    """
    try:
        found = [
            Partition("texts", file.path, file) for file in store.files() if file.table == TEXTS.name and file.part
        ]
        if recordings is not None:
            theirs = Store(recordings)
            found += [Partition("recording", place) for place in theirs.zips()]
    except OSError as error:
        raise ArchiveError(f"{recordings or store.location} can't be read ({error})", "name another place") from error
    return found


def rescore(works: Iterable[Partition], scoring: Scoring) -> Iterator[Outcome]:
    """One after the other, in this process."""
    for work in works:
        yield done(work, scoring)


def done(work: Partition, scoring: Scoring) -> Outcome:
    """A partition, unless it is done already."""
    began_s = time.monotonic()
    try:
        with TemporaryDirectory(prefix="etameter-rescore-") as name:
            how, rows = (_reread if work.kind == "texts" else _reattribute)(work, scoring, Path(name))
    except (EtameterError, OSError, pa.ArrowException) as error:
        return Outcome(work.name, seconds=time.monotonic() - began_s, how="failed", error=str(error))
    return Outcome(work.name, rows, time.monotonic() - began_s, how)


def _reread(work: Partition, scoring: Scoring, folder: Path) -> tuple[str, int]:
    file, store = work.file, Store(scoring.archive)
    assert file is not None
    assert file.part is not None
    made = _Made(REREADINGS, file.day, file.part, {"of": file.name, "by": scoring.scorer})
    if _stands(store, made):
        return STANDS, 0
    store.fetch(file, folder / "texts")
    model = None if scoring.weights is None else fast.parse(scoring.weights)
    with pq.ParquetFile(folder / "texts") as texts:
        told = (row for batch in texts.iter_batches(BATCH_ROWS // 10) for row in batch.to_pylist())
        rows = _read_all(told, partial(fast.classify, model=model), scoring.scorer)
        return _published(store, made, rows, folder / "own")


def _read_all(told: Iterable[Mapping[str, Any]], classify: Classify, scorer: str) -> Iterator[Row]:
    for text in told:
        pieces = None if text["pieces"] is None else json.loads(text["pieces"])
        count = Counting(None, pieces_of(pieces, text["responses"]))
        found = read(text["receipt_id"], text["prompts"], text["responses"], classify, count)
        if found is not None:
            yield (*_values(found), text["wall_time"], text["model"], scorer)


def _values(found: Reading) -> Row:
    categories = [
        {"category": category, "share": share, "joule_share": None, "marginal_share": None}
        for category, share in found.shares.items()
    ]
    eta = found.receipt_id, found.lenient_at_most, *found.interval, found.unclassified, found.method, found.reliability
    return *eta, found.unit, found.strict, found.lenient, categories


def _reattribute(work: Partition, scoring: Scoring, folder: Path) -> tuple[str, int]:
    """By what is in it, not by what it is called: a recording that lies there twice is done once."""
    store, bundle = Store(scoring.archive), folder / "recording.zip"
    Store(work.place).take(work.place, bundle)
    with bundle.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    found = replay(bundle)
    day = str(found.manifest["about"].get("started"))[:10]
    if not _DAY.fullmatch(day):
        raise ArchiveError(f"{work.name} doesn't say when it was begun", "record with this version")
    scorer = f"etameter {version('etameter')}"
    made = _Made(REATTRIBUTIONS, day, recording_part(digest), {"of": digest, "by": scorer})
    if _stands(store, made):
        return STANDS, 0
    rows = (
        (
            *(found.manifest["boot_id"], row.engine, row.engine_started_ns, row.number, row.record.model),
            *(row.record.arm, row.record.prompt_tokens, row.record.output_tokens),
            *(row.energy.prompt_j, row.energy.output_j, row.energy.marginal_j, row.energy.recomputed_j),
            *(row.energy.draft_waste_j, row.energy.avoided_j, row.energy.error_j, row.energy.method),
            *(row.energy.source, digest, scorer),
        )
        for row in found.rows
        # one that had begun before the recording is known by its number alone, and only a part of it was seen
        if row.energy.settled and row.record.request_id != f"{row.engine}#{row.number}"
    )
    return _published(store, made, rows, folder / "own")


def _stands(store: Store, made: _Made) -> bool:
    there = store.parts(made.table, made.day).get(made.part)
    return there is not None and store.told(there).get(_MADE_OF) == made.made


def _published(store: Store, made: _Made, rows: Iterator[Row], own: Path) -> tuple[str, int]:
    about = {KEY: json.dumps({"table": made.table.name, "format": FORMAT, _MADE_OF: made.made})}
    with pq.ParquetWriter(own, made.table.schema.with_metadata(about), compression="zstd") as writer:
        for batch in record_batches(made.table, rows):
            writer.write_batch(batch)
            made.rows += batch.num_rows
    for _ in range(_WRITERS):
        there = store.parts(made.table, made.day).get(made.part)
        if there is not None and store.told(there).get(_MADE_OF) == made.made:
            return STANDS, 0  # another one was sooner
        try:
            store.publish(own, made.table, made.day, made.part, 1 if there is None else there.generation + 1)
        except FileExistsError:
            continue
        return WRITTEN, made.rows
    raise ArchiveError(f"others keep writing {made.table.name} of {made.day}", "let one at a time rescore this archive")
