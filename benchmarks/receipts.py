"""What it costs to archive receipts, to ask them, and to score their texts, on one machine and on Ray: `python -m benchmarks.receipts`.

Ledgers of 10⁴ to 10⁷ made-up receipts, of three models and four days, are archived and then asked, each in a process of its own, whose processor time and
largest memory are taken; Ray, with one and with two workers, is asked the same in the same run, after a first question that starts its workers.
`--quick` ends at 10⁵. The last line is JSON; exit code 3 where a goal is missed.
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
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.report import Goal, finish

DAYS: Final = 4
MODELS: Final = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "meta-llama/Llama-3.1-8B")
NOW_S: Final = 20_000 * 86_400.0
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
    parser.add_argument("--most", type=int, help="receipts of the largest ledger")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        about = json.loads(options.child)
        print(json.dumps(DO[about["do"]](about)))
        return
    most = options.most or (100_000 if options.quick else 10_000_000)
    sizes = [size for size in (10_000, 100_000, 1_000_000, 10_000_000) if size <= most]
    texts, repeats = (300, 3) if options.quick else (3000, 7)
    with TemporaryDirectory(prefix="etameter-receipts-") as name:
        figures = {size: _of(Path(name), size, repeats) for size in sizes}
        of_texts = Path(name, "texts")
        of_texts.mkdir()
        _child("store_texts", folder=of_texts, texts=texts)
        engines = _engines(Path(name, str(sizes[-1])), of_texts, repeats)
    assert all(told["scored"]["texts"] == texts for told in engines.values() if "scored" in told), "each once"
    _tell(figures, engines)
    finish("receipts", "simulated", _goals(figures, engines), _context(figures, engines, repeats))


def _of(folder: Path, size: int, repeats: int) -> dict[str, dict[str, Any]]:
    """A ledger of so many receipts: archived, and asked."""
    own = folder / str(size)
    own.mkdir()
    _child("fill", folder=own, size=size)
    ledger_bytes = (own / "ledger.db").stat().st_size
    archived = _child("archive", folder=own)
    (own / "ledger.db").unlink()
    files = list((own / "archive").rglob("*.parquet"))
    archived |= {
        "ledger_bytes": ledger_bytes,
        "archive_bytes": sum(path.stat().st_size for path in files),
        "files": len(files),
    }
    asked = _child("ask", folder=own, repeats=repeats, threads=1)
    assert asked["receipts"] == size, "every receipt is there once"
    return {"archive": archived, "ask": asked}


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
    began_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return {
        "wall_s": time.perf_counter() - began_s,
        "cpu_s": time.process_time() - cpu_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _fill(about: Mapping[str, Any]) -> dict[str, Any]:
    from etameter.ledger import Ledger

    path, size = Path(about["folder"], "ledger.db"), int(about["size"])
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA synchronous = OFF")
        about_rows = dict(zip(("first", "second", "third"), MODELS, strict=True))
        began_s = NOW_S - (DAYS + 7) * 86_400
        db.execute(_ROWS, {**about_rows, "size": size, "days": DAYS, "began_s": began_s})
    return {}


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


def _goals(
    figures: Mapping[int, Mapping[str, Mapping[str, Any]]],
    engines: Mapping[str, Mapping[str, Any]],
) -> list[Goal]:
    """Of the largest ledger, held against that of 10⁵ receipts; with fewer, the fixed part would be most of it."""
    sizes = sorted(figures)
    small, large = sizes[min(1, len(sizes) - 1)], sizes[-1]
    goals = []
    for do in ("archive", "ask"):
        one, other = figures[small][do], figures[large][do]
        compared = large > small
        cost = (other["cpu_s"] / large) / (one["cpu_s"] / small) if compared else None
        memory = other["peak_bytes"] / one["peak_bytes"] if compared else None
        goals += [
            Goal(f"{do}: receipts a second of processor", large / other["cpu_s"], "1/s", None, "higher"),
            Goal(f"{do}: cost of a receipt, of {large:,} against {small:,}", cost, "", STEADY, "lower"),
            Goal(f"{do}: memory, of {large:,} against {small:,}", memory, "", FLAT, "lower"),
        ]
    for name, told in engines.items():
        cores = int(name.rpartition(" ")[2])
        goals.append(Goal(f"ask, {name}: receipts/s a core", large / told["wall_s"] / cores, "1/s", None, "higher"))
        if scored := told.get("scored"):
            rate = scored["texts"] / scored["wall_s"] / cores
            goals.append(Goal(f"score, {name}: texts/s a core", rate, "1/s", None, "higher"))
    return goals


def _tell(figures: Mapping[int, Any], engines: Mapping[str, Any]) -> None:
    print(
        f"{'receipts':>10}  {'archive':>9}  {'µs each':>8}  {'memory':>8}  {'bytes each':>10}  {'ask':>9}  {'memory':>8}"
    )
    for size, told in figures.items():
        archive, ask = told["archive"], told["ask"]
        print(
            f"{size:>10,}  {archive['cpu_s']:>7.2f} s  {archive['cpu_s'] / size * 1e6:>8.1f}  {archive['peak_bytes'] / 2**20:>4.0f} MiB"
            f"  {archive['archive_bytes'] / size:>10.1f}  {ask['wall_s'] * 1e3:>6.0f} ms  {ask['peak_bytes'] / 2**20:>4.0f} MiB"
        )
    for name, told in engines.items():
        print(f"ask, {name}: {told['wall_s']:.3f} s ({told['wall_s_from']:.3f} to {told['wall_s_to']:.3f})")
        if scored := told.get("scored"):
            print(f"score, {name}: {scored['texts']:,} texts in {scored['wall_s']:.2f} s")


def _context(figures: Mapping[int, Any], engines: Mapping[str, Any], repeats: int) -> dict[str, object]:
    versions = {name: version(name) for name in ("duckdb", "pyarrow", *(["ray"] if find_spec("ray") else []))}
    return {
        "question": QUESTION,
        "repeats": repeats,
        "days": DAYS,
        "models": len(MODELS),
        "versions": versions,
        "load_1m_after": os.getloadavg()[0],
        "by_size": {str(size): told for size, told in figures.items()},
        "engines": engines,
    }


if __name__ == "__main__":
    main()
