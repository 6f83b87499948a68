"""What it costs to archive receipts, to ask them, and to score their texts, on one machine and on Ray: `python -m benchmarks.receipts`.

Ledgers of 10⁴ and more made-up receipts, of three models and four days, are archived, and archives of as many are asked, each in a process of its own,
whose processor time and largest memory are taken; Ray, with one and with two workers, is asked the same in the same run, after a first question that starts its workers.
Both end at 10⁷, with `--quick` at 10⁵. The last line is JSON; exit code 3 where a goal is missed.
"""

import argparse
import json
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.report import Goal, finish

DAYS: Final = 4
MODELS: Final = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "meta-llama/Llama-3.1-8B")
SEED: Final = 20261122
NOW_S: Final = 20_000 * 86_400.0
BEGAN_S: Final = NOW_S - (DAYS + 7) * 86_400
QUESTION: Final = (
    "SELECT model, arm, source, count(*) AS receipts, sum(prompt_j + output_j) / 3.6e6 AS kwh, "
    "sum(output_j) / sum(output_tokens) AS j_per_token FROM requests GROUP BY ALL ORDER BY ALL"
)
ANSWER: Final = (
    "Sure! I'd be happy to help with that. The train takes three hours, because it stops in Lyon. It leaves at nine. "
    "I hope this helps! Let me know if you have any other questions."
)
STEADY: Final = 1.5
"""Linear is: a receipt costs no more processor time than so many times what one of 10⁵ or fewer does."""
FLAT: Final = 1.25
_ROWS: Final = """
WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < :size)
INSERT INTO requests
SELECT 'boot', 'engine-0', 5, number, 'chatcmpl-' || lower(hex(randomblob(16))), lower(hex(randomblob(16))),
    CASE number % 3 WHEN 0 THEN :first WHEN 1 THEN :second ELSE :third END,
    CASE number % 2 WHEN 0 THEN 'unconstrained' ELSE 'entrace' END,
    number * 1000, number * 1000 + 500, number * 1000 + 9000, 100 + number % 900, number % 64, 100, 80, 20 + number % 400,
    'stop', number % 1000 / 100.0, number % 777 / 10.0, number % 500 / 10.0, 0, 0, 0, 0.1, 1, 'counter', 'simulated',
    :began_s + number * 86400.0 * :days / (:size + 1)
FROM numbers
"""
"""Ids are by chance, as those of receipts are: they are what takes most room."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 100,000 receipts, under a minute")
    parser.add_argument("--most", type=int, help="receipts of the largest archive that is asked")
    parser.add_argument("--most-archived", type=int, help="receipts of the largest ledger")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        about = json.loads(options.child)
        print(json.dumps(DO[about["do"]](about)))
        return
    most = options.most or (100_000 if options.quick else 10_000_000)
    most_archived = options.most_archived or most
    sizes = [size for size in (10_000, 100_000, 1_000_000, 10_000_000) if size <= max(most, most_archived)]
    texts, repeats = (300, 3) if options.quick else (3000, 7)
    with TemporaryDirectory(prefix="etameter-receipts-") as name:
        archived = {size: _archived(Path(name, f"ledger-{size}"), size) for size in sizes if size <= most_archived}
        asked = {size: _asked(Path(name, f"archive-{size}"), size, repeats) for size in sizes if size <= most}
        of_texts = Path(name, "texts")
        of_texts.mkdir()
        _child("store_texts", folder=of_texts, texts=texts)
        engines = _engines(Path(name, f"archive-{max(asked)}"), of_texts, repeats)
    assert all(told["scored"]["texts"] == texts for told in engines.values() if "scored" in told), "each once"
    _tell(archived, asked, engines)
    goals = _goals("archive", archived) + _goals("ask", asked) + _rates(engines, max(asked))
    finish("receipts", "simulated", goals, _context(archived, asked, engines, repeats))


def _archived(folder: Path, size: int) -> dict[str, Any]:
    """A ledger of so many receipts, moved whole."""
    folder.mkdir()
    _child("fill", folder=folder, size=size)
    ledger_bytes = (folder / "ledger.db").stat().st_size
    told = _child("archive", folder=folder)
    assert _child("ask", folder=folder, repeats=1, threads=1)["receipts"] == size, "every receipt is there once"
    archive_bytes = sum(path.stat().st_size for path in (folder / "archive").rglob("*.parquet"))
    shutil.rmtree(folder)
    return told | {"ledger_bytes": ledger_bytes, "archive_bytes": archive_bytes}


def _asked(folder: Path, size: int, repeats: int) -> dict[str, Any]:
    """An archive of so many receipts, and the question, by one thread."""
    folder.mkdir()
    _child("lay", folder=folder, size=size)
    told = _child("ask", folder=folder, repeats=repeats, threads=1)
    assert told["receipts"] == size
    return told


def _engines(folder: Path, of_texts: Path, repeats: int) -> dict[str, dict[str, Any]]:
    """The largest archive asked, and texts scored: by this process alone with one and with two threads, and by Ray with as many workers."""
    found = {}
    for cores in (1, 2):
        asked = _child("ask", folder=folder, repeats=repeats, threads=cores)
        found[f"local, {cores}"] = asked | ({"scored": _child("score", folder=of_texts)} if cores == 1 else {})
    for cores in (1, 2) if find_spec("ray") else ():
        found[f"ray, {cores}"] = _child("ray", folder=folder, of_texts=of_texts, repeats=repeats, workers=cores)
    return found


def _child(do: str, **about: object) -> dict[str, Any]:
    """What a process of its own says: nothing else is in its memory."""
    told = json.dumps({"do": do, **about}, default=str)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.receipts", "--child", told], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"benchmarks.receipts: {do} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _measured(work: Callable[[], object]) -> dict[str, Any]:
    began_s, cpu_s = time.perf_counter(), _processor_s()
    work()
    return {
        "wall_s": time.perf_counter() - began_s,
        "cpu_s": _processor_s() - cpu_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _processor_s() -> float:
    """Of this process and all that it has started: Ray's own processes and its workers among them."""
    parents, took_s = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid], took_s[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return time.process_time() + sum(took_s[pid] for pid in own - {os.getpid()})


def _fill(about: Mapping[str, Any]) -> dict[str, Any]:
    from etameter.ledger import Ledger

    path, size = Path(about["folder"], "ledger.db"), int(about["size"])
    Ledger(path).close()
    models = dict(zip(("first", "second", "third"), MODELS, strict=True))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -1000000")  # KiB
        (index,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'requests_by_receipt'").fetchone()
        db.execute("DROP INDEX requests_by_receipt")
        db.execute(_ROWS, {**models, "size": size, "days": DAYS, "began_s": BEGAN_S})
        db.execute(index)
    return {}


def _lay(about: Mapping[str, Any]) -> dict[str, Any]:
    """Files as `archive` makes them: a day and model each, of a million rows at a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from etameter.archive.store import Store, part_of
    from etameter.archive.tables import BATCH_ROWS, REQUESTS

    folder, random = Path(about["folder"]), np.random.default_rng(SEED)
    store, parts = Store(str(folder / "archive")), DAYS * len(MODELS)
    for place in range(parts):
        size, model = about["size"] // parts + (place < about["size"] % parts), MODELS[place % len(MODELS)]
        with pq.ParquetWriter(folder / "own", REQUESTS.schema, compression="zstd") as writer:
            for start in range(0, size, 1_000_000):
                rows = min(1_000_000, size - start)
                numbers = np.arange(start, start + rows)
                columns = _columns(numbers, place, random) | {"model": pa.repeat(model, rows)}
                table = pa.table([pa.array(columns[name]) for name in REQUESTS.schema.names], schema=REQUESTS.schema)
                writer.write_table(table, row_group_size=BATCH_ROWS)
        day = datetime.fromtimestamp(BEGAN_S + place // len(MODELS) * 86_400, UTC).date().isoformat()
        store.publish(folder / "own", REQUESTS, day, part_of(model), 1)
    return {}


def _columns(numbers: Any, place: int, random: Any) -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa

    rows = len(numbers)
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[random.integers(0, 16, (rows, 64))]
    ids = [
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), rows, [None, pa.py_buffer(np.ascontiguousarray(half))])
        for half in (digits[:, :32], digits[:, 32:])
    ]
    first, second = (each.cast(pa.binary()).cast(pa.string()) for each in ids)
    zeros, arms = np.zeros(rows), np.where(numbers % 2, "unconstrained", "entrace")
    same = {
        "boot_id": "boot",
        "engine": "engine-0",
        "finish_reason": "stop",
        "method": "counter",
        "source": "simulated",
    }
    return {name: pa.repeat(text, rows) for name, text in same.items()} | {
        "engine_started_ns": np.full(rows, place),
        "number": numbers,
        "request_id": first,
        "receipt_id": second,
        "arm": arms,
        "arrival_ns": numbers * 1000,
        "first_token_ns": numbers * 1000 + 500,
        "finished_ns": numbers * 1000 + 9000,
        "prompt_tokens": 100 + numbers % 900,
        "cached_tokens": numbers % 64,
        "prefill_tokens": np.full(rows, 100),
        "decode_tokens": np.full(rows, 80),
        "output_tokens": 20 + numbers % 400,
        "prompt_j": numbers % 1000 / 100.0,
        "output_j": numbers % 777 / 10.0,
        "marginal_j": numbers % 500 / 10.0,
        "recomputed_j": zeros,
        "draft_waste_j": zeros,
        "avoided_j": zeros,
        "error_j": zeros + 0.1,
        "settled": np.ones(rows, dtype=bool),
        "wall_time": BEGAN_S + place // len(MODELS) * 86_400.0 + numbers % 86_400,
        "waste": pa.nulls(rows, pa.string()),
    }


def _archive(about: Mapping[str, Any]) -> dict[str, Any]:
    from etameter.archive.days import archive
    from etameter.archive.store import Store

    folder = Path(about["folder"])
    return _measured(
        lambda: archive(folder / "ledger.db", Store(str(folder / "archive")), NOW_S, 7, "boot", lambda _: None)
    )


def _ask(about: Mapping[str, Any]) -> dict[str, Any]:
    import duckdb

    from etameter.archive import query
    from etameter.archive.store import Store

    store, threads = Store(str(Path(about["folder"], "archive"))), about["threads"]
    connected = query.connected

    def on_so_many(store: Store) -> duckdb.DuckDBPyConnection:
        connection = connected(store)
        connection.execute(f"SET threads = {threads}")
        return connection

    query.connected = on_so_many
    _, rows = query.asked(store, None, QUESTION)
    runs = [_measured(lambda: query.asked(store, None, QUESTION)) for _ in range(about["repeats"])]
    return {"receipts": sum(row[3] for row in rows), **_middle(runs)}


def _ray(about: Mapping[str, Any]) -> dict[str, Any]:
    """The first question and the first text start the workers, and aren't counted."""
    import ray

    from etameter.archive import on_ray
    from etameter.archive.rescoring import Scoring, partitions
    from etameter.archive.store import Store

    ray.init(num_cpus=about["workers"], include_dashboard=False, log_to_driver=False)
    store = Store(str(Path(about["folder"], "archive")))
    _, rows = on_ray.asked(store, None, QUESTION)
    runs = [_measured(lambda: on_ray.asked(store, None, QUESTION)) for _ in range(about["repeats"])]

    def score(store: Store) -> list[Any]:
        return list(on_ray.rescore(partitions(store, None), Scoring(store.address)))

    _scored(about["of_texts"], score)
    scored = _scored(about["of_texts"], score)
    return {"receipts": sum(row[3] for row in rows), **_middle(runs), "scored": scored}


def _store_texts(about: Mapping[str, Any]) -> dict[str, Any]:
    from etameter.archive.days import archive
    from etameter.archive.store import Store
    from etameter.ledger import Ledger
    from etameter.texts import Texts, stored_beside

    folder = Path(about["folder"])
    Ledger(folder / "ledger.db").close()
    stored = stored_beside(folder / "ledger.db")
    Texts(stored).close()
    prompt, answer = json.dumps(["How long does the train take?"]), json.dumps([ANSWER])
    rows = (
        (f"{number:032x}", prompt, answer, None, NOW_S - (8 + number % DAYS) * 86_400)
        for number in range(about["texts"])
    )
    with sqlite3.connect(stored) as db:
        db.executemany("INSERT INTO texts VALUES (?, ?, ?, ?, ?)", rows)
    archive(folder / "ledger.db", Store(str(folder / "archive")), NOW_S, 7, "boot", lambda _: None)
    return {}


def _score(about: Mapping[str, Any]) -> dict[str, Any]:
    from etameter.archive.rescoring import Scoring, partitions, rescore

    return _scored(about["folder"], lambda store: list(rescore(partitions(store, None), Scoring(store.address))))


def _scored(folder: str, score: Callable[[Any], list[Any]]) -> dict[str, Any]:
    """Of an archive that nobody has scored before."""
    from etameter.archive.store import Store

    place = Path(folder, "archive")
    shutil.rmtree(place / "rereadings", ignore_errors=True)
    store, outcomes = Store(str(place)), []
    measured = _measured(lambda: outcomes.extend(score(store)))
    return {"texts": sum(each.rows for each in outcomes), **measured}


DO: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "fill": _fill,
    "lay": _lay,
    "archive": _archive,
    "ask": _ask,
    "ray": _ray,
    "store_texts": _store_texts,
    "score": _score,
}


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    walls = sorted(run["wall_s"] for run in runs)
    return {
        "wall_s": statistics.median(walls),
        "wall_s_from": walls[0],
        "wall_s_to": walls[-1],
        "cpu_s": statistics.median(run["cpu_s"] for run in runs),
        "peak_bytes": runs[-1]["peak_bytes"],
    }


def _goals(do: str, figures: Mapping[int, Mapping[str, Any]]) -> list[Goal]:
    """Of the largest, held against that of 10⁵ receipts: of fewer the fixed part would be most."""
    small, large = sorted(figures)[min(1, len(figures) - 1)], max(figures)
    cost = memory = None
    if large > small:
        cost = (figures[large]["cpu_s"] / large) / (figures[small]["cpu_s"] / small)
        memory = figures[large]["peak_bytes"] / figures[small]["peak_bytes"]
    return [
        Goal(f"{do}: receipts a second of processor", large / figures[large]["cpu_s"], "1/s", None, "higher"),
        Goal(f"{do}: cost of one, of {large:,} against {small:,}", cost, "", STEADY, "lower"),
        Goal(f"{do}: memory, of {large:,} against {small:,}", memory, "", FLAT, "lower"),
    ]


def _rates(engines: Mapping[str, Mapping[str, Any]], size: int) -> list[Goal]:
    """Of a core that was there, and of one that was busy: on a machine that others use they are far from each other."""
    goals = []
    for name, told in engines.items():
        cores = int(name.rpartition(" ")[2])
        of = [("ask", "receipts", size, told)]
        if scored := told.get("scored"):
            of.append(("score", "texts", scored["texts"], scored))
        for do, rows, count, one in of:
            goals += [
                Goal(f"{do}, {name}: {rows}/s a core", count / one["wall_s"] / cores, "1/s", None, "higher"),
                Goal(f"{do}, {name}: {rows}/s of processor", count / one["cpu_s"], "1/s", None, "higher"),
            ]
    return goals


def _tell(archived: Mapping[int, Any], asked: Mapping[int, Any], engines: Mapping[str, Any]) -> None:
    for size, told in archived.items():
        print(
            f"archive {size:>10,}: {told['cpu_s']:.2f} s of processor in {told['wall_s']:.1f} s, {told['cpu_s'] / size * 1e6:.1f} µs each, "
            f"{told['peak_bytes'] / 2**20:.0f} MiB, {told['archive_bytes'] / size:.0f} bytes each for {told['ledger_bytes'] / size:.0f}"
        )
    for size, told in asked.items():
        print(
            f"ask     {size:>10,}: {told['wall_s'] * 1e3:.0f} ms ({told['wall_s_from'] * 1e3:.0f} to {told['wall_s_to'] * 1e3:.0f}), "
            f"{told['cpu_s'] * 1e3:.0f} ms of processor, {told['peak_bytes'] / 2**20:.0f} MiB"
        )
    for name, told in engines.items():
        spread = f"{told['wall_s_from']:.3f} to {told['wall_s_to']:.3f}"
        print(f"ask, {name}: {told['wall_s']:.3f} s ({spread}), {told['cpu_s']:.3f} s of processor")
        if scored := told.get("scored"):
            print(
                f"score, {name}: {scored['texts']:,} texts in {scored['wall_s']:.2f} s, {scored['cpu_s']:.2f} s of processor"
            )


def _context(
    archived: Mapping[int, Any], asked: Mapping[int, Any], engines: Mapping[str, Any], repeats: int
) -> dict[str, object]:
    libraries = ("duckdb", "pyarrow", *(["ray"] if find_spec("ray") else []))
    return {
        "question": QUESTION,
        "repeats": repeats,
        "days": DAYS,
        "models": len(MODELS),
        "versions": {name: version(name) for name in libraries},
        "load_1m_after": os.getloadavg()[0],
        "archived": {str(size): told for size, told in archived.items()},
        "asked": {str(size): told for size, told in asked.items()},
        "engines": engines,
    }


if __name__ == "__main__":
    main()
