"""A ledger over some days, and all its rows as they are wherever they lie."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from etameter.archive.store import Store
from etameter.archive.tables import KEY, READ, TABLES
from etameter.ledger import Ledger, RequestRow, Resume, row_values
from etameter.records import Balance, Source
from etameter.slack.reading import DEEP, Reading
from tests.meter.test_ledger import row

DAY_S = 86_400
TODAY = 20_000
"""Since 1970: the fourth of October 2024, at one o'clock."""
NOW_S = TODAY * DAY_S + 3600.0
BOOT = "boot"

Rows = dict[str, dict[tuple[Any, ...], tuple[Any, ...]]]


def at(days_back: float) -> float:
    return NOW_S - days_back * DAY_S


def request(
    number: int, *, receipt: str | None = None, source: Source = "measured", settled: bool = True
) -> RequestRow:
    one = row(number, prompt_j=0.1 * number, output_j=1.0 / (number + 3), settled=settled)
    receipt_id = f"{number:032x}" if receipt is None else receipt
    return replace(one, record=replace(one.record, receipt_id=receipt_id), energy=replace(one.energy, source=source))


def interval(number: int, gpu_uuid: str = "GPU-0") -> Balance:
    causes = ({}, {"stale": 0.7}, {"reset": 0.1, "model_residual": -0.3})[number % 3]
    return Balance(
        gpu_uuid, 100 * number, 100 * number + 100, 9.9 + number, 3.3, 5.0 / (number + 1), 0.5, causes, 0.1 * number
    )


def reading(receipt_id: str, method: str = "fast") -> Reading:
    spent = {"preamble": (0.3, 0.0), "hedging": (0.1, 0.2)}
    shares = {"preamble": 0.25, "hedging": 0.1}
    return Reading(receipt_id, 0.75, (0.5, 0.8), 0.1, method, None, shares, "tokens", 0.6, None, spent)


def settle(
    ledger: Ledger, number: int, days_back: float, *, boot: str = BOOT, settled: bool = True, model: str | None = None
) -> None:
    """A batch of that time: a request, an interval, and what was found in another tier each."""
    one = request(number, settled=settled, source=("measured", "simulated")[number % 5 == 4])
    if model is not None:
        one = replace(one, record=replace(one.record, model=model))
    receipt_id = one.record.receipt_id
    assert receipt_id is not None
    found = [reading(receipt_id, method) for method in ("fast", DEEP)[: number % 3]]
    wastes = [(receipt_id, "retry")] if number % 4 == 1 else []
    ledger.settle(
        [(interval(number), one.energy.source)],
        [row_values(one)],
        Resume(boot, 5, {"GPU-0": 100 * number}, (), {}, "engine-0"),
        at(days_back),
        found=found,
        wastes=wastes,  # type: ignore[arg-type]  # a list of a literal
    )


def filled(path: Path, days_back: Iterable[float]) -> Ledger:
    """A ledger with a batch at each of these times; keep it open, as a meter does."""
    ledger = Ledger(path)
    for number, days in enumerate(days_back):
        settle(ledger, number, days)
    return ledger


def in_ledger(ledger: Ledger) -> Rows:
    rows = {}
    for table in TABLES:
        names = table.schema.names
        read = [each.values for each in READ[table.name](ledger._db, float("-inf"), float("inf"))]
        rows[table.name] = {tuple(values[names.index(key)] for key in table.key): _plain(values) for values in read}
        assert len(rows[table.name]) == len(read)
    return rows


def in_archive(store: Store, folder: Path) -> Rows:
    """Every row of every file; none may be in two."""
    rows: Rows = {table.name: {} for table in TABLES}
    for file in store.files():
        (table,) = (each for each in TABLES if each.name == file.table)
        store.fetch(file, folder / "fetched")
        read = pq.read_table(folder / "fetched", partitioning=None)
        if file.part is None:  # which said less of readings
            if table.name == "readings":
                read = read.append_column("model", pa.array([request(0).record.model] * len(read)))
        else:
            assert read.schema.equals(table.schema)
            assert read.schema.metadata == table.schema.metadata
        for values in zip(*(column.to_pylist() for column in read.columns), strict=True):
            key = tuple(values[table.schema.names.index(each)] for each in table.key)
            assert key not in rows[table.name]
            rows[table.name][key] = _plain(values)
    return rows


def as_version_1(store: Store, folder: Path) -> None:
    """The same archive, as it was laid out before there were parts."""
    for file in store.files():
        (table,) = (each for each in TABLES if each.name == file.table)
        store.fetch(file, folder / "fetched")
        read = pq.read_table(folder / "fetched", partitioning=None)
        if table.name == "readings":
            read = read.drop_columns(["model"])
        about = {KEY: json.dumps({"table": table.name, "format": 1})}
        place = Path(file.path).parent
        shutil.rmtree(place)
        pq.write_table(read.replace_schema_metadata(about), f"{place}.parquet")


def together(ledger: Rows, archive: Rows) -> Rows:
    """What is in both, as after a kill, has to be the same in both."""
    for name, rows in ledger.items():
        for key in rows.keys() & archive[name].keys():
            assert rows[key] == archive[name][key]
    return {name: {**archive[name], **rows} for name, rows in ledger.items()}


def _plain(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(
        tuple(tuple(each.items()) if isinstance(each, dict) else each for each in value)
        if isinstance(value, list)
        else value
        for value in values
    )
