"""`etameter archive`, `etameter query` and `etameter rescore`."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from etameter.config import Config
from etameter.errors import ArchiveError, ConfigError
from etameter.prompts.visible import visible
from etameter.serving.ring import boot_id
from etameter.slack import fast

from .days import Moved, archive
from .query import Answer, asked
from .rescoring import Outcome, Partition, Scoring, partitions, rescore
from .store import Store

Engine = Literal["local", "ray"]


def archived(config: Config, ledger: Path, location: str | None) -> int:
    """Moves what is due, then lets go what is too old or too much; says what, a line a day and one for the rest."""
    meter = config.meter
    if meter.archive_days is not None and meter.archive_days <= meter.ledger_days:
        raise ConfigError(
            f"meter.archive_days = {meter.archive_days} keeps nothing",
            f"more than meter.ledger_days, which is {meter.ledger_days}",
        )
    store, now_s = _one(location or _usual(config, ledger)), time.time()
    moved = archive(ledger, store, now_s, meter.ledger_days, boot_id())
    for each in moved:
        _say(_told(each))
    oldest = None
    if meter.archive_days is not None:
        oldest = (datetime.fromtimestamp(now_s, UTC) - timedelta(days=meter.archive_days)).date().isoformat()
    try:
        gone = store.retire(oldest, meter.archive_bytes)
    except OSError as error:
        raise ArchiveError(f"{store.location} can't be trimmed ({error})", "see to it, and run this again") from error
    if gone:
        span = gone[0] if len(gone) == 1 else f"{gone[0]} to {gone[-1]}"
        _say(f"removed {len(gone)} of the oldest days, {span}: the limits are archive_days and archive_bytes")
    if not moved:
        _say("no day is due")
    return 0


def queried(
    config: Config, ledger: Path | None, location: str | None, query: str, engine: Engine, *, as_json: bool
) -> int:
    """Prints what DuckDB answers. A ledger that nobody named need not be there, if an archive is."""
    store = Store(location or _usual(config, ledger or config.ledger))
    live = ledger or (config.ledger if config.ledger.exists() else None)
    columns, rows = _asked(engine)(store, live, query)
    if as_json:
        told = [dict(zip(columns, row, strict=True)) for row in rows]
        sys.stdout.write(json.dumps(told, ensure_ascii=False, default=str) + "\n")
        return 0
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(Text(visible(column)), no_wrap=True)
    for row in rows:
        table.add_row(*(Text(visible(f"{cell:.6g}" if isinstance(cell, float) else str(cell))) for cell in row))
    Console().print(table)
    return 0


def rescored(
    config: Config,
    location: str | None,
    recordings: str | None,
    weights: Path | None,
    engine: Engine,
    *,
    as_json: bool,
) -> int:
    """Says of each partition what became of it, as it does; 2 where one can't be done."""
    if weights is not None:
        fast.load(weights)  # before anything else is begun with them
    store = _one(location or _usual(config, config.ledger))
    scoring = Scoring(store.address, None if weights is None else weights.read_text())
    works, failed = partitions(store, recordings), False
    for outcome in _rescore(engine)(works, scoring):
        failed |= outcome.error is not None
        if as_json:
            _say(json.dumps(asdict(outcome), ensure_ascii=False))
        elif outcome.error is not None:
            _say(f"{visible(outcome.name)} can't be done: {visible(outcome.error)}")
        else:
            _say(f"{visible(outcome.name)} {outcome.how}" + (f", {outcome.rows:,} rows" if outcome.rows else ""))
    if not works and not as_json:
        _say("there are no stored texts" + ("" if recordings is None else ", and no recordings"))
    return ArchiveError.exit_code if failed else 0


def _asked(engine: Engine) -> Callable[[Store, Path | None, str], Answer]:
    if engine == "local":
        return asked
    from . import on_ray

    return on_ray.asked


def _rescore(engine: Engine) -> Callable[[Sequence[Partition], Scoring], Iterator[Outcome]]:
    if engine == "local":
        return rescore
    from . import on_ray

    return on_ray.rescore


def _one(location: str) -> Store:
    store = Store(location)
    if not store.is_one:
        raise ArchiveError(
            f"{location} is more than one archive", "name one: they are asked together, and written apart"
        )
    return store


def _usual(config: Config, ledger: Path) -> str:
    return config.meter.archive or str(ledger.parent / "archive")


def _told(moved: Moved) -> str:
    if moved.unsettled:
        return f"{moved.day} waits: {moved.unsettled} of its requests are not settled"
    return f"{moved.day} archived: " + ", ".join(f"{count:,} {name}" for name, count in moved.rows.items())


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
