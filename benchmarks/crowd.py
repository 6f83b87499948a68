"""256 clients at once for ten minutes: has every request exactly one settled receipt, and does memory stay as it is?

    python -m benchmarks.crowd [--quick] [--seconds S]

The gateway benchmark's server answers with 128 chunks at a token in 20 ms, or as fast as this machine lets it; before it stands `etameter proxy` with its meter on a
simulated board and a ledger. 256 clients ask again as soon as they are answered. Every answer names its receipt; when all are answered, the ledger is read. Memory is what
proxy and meter hold resident, told is how much more it is at the end than after the first fifth.
"""

import argparse
import asyncio
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks.gateway import END, free_port, listens, role
from benchmarks.overhead import BODY
from benchmarks.report import Goal, finish

CLIENTS, SECONDS, QUICK_SECONDS = 256, 600.0, 20.0
WATCH_S = 5.0
SETTLED_WITHIN_S = 120.0
GROWTH_MB = 20.0
_RECEIPT = re.compile(rb'receipt_id":"([0-9a-f]{32})"')
_REQUEST = b"POST /v1/chat/completions?paced HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


async def ask(port: int, end_s: float, receipts: list[str | None], with_energy: list[bool]) -> None:
    """Again and again; what each answer names as its receipt, and whether it had its energy."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = 0
    while time.monotonic() < end_s:
        body = BODY.replace(b"word ", b"%d " % (id(reader) + number), 1)  # nobody asks the same again
        writer.write(_REQUEST % (len(body), body))
        told = b""
        while not told.endswith(END):
            piece = await reader.read(1 << 16)
            if not piece:
                raise ConnectionError(f"hung up after {told!r}")
            told = told[-8192:] + piece
        found = _RECEIPT.search(told)
        receipts.append(found[1].decode() if found else None)
        with_energy.append(b'"energy_joules"' in told)
        number += 1
    writer.close()


async def watched(pids: dict[str, int], end_s: float) -> dict[str, list[float]]:
    """Resident MB, every `WATCH_S`."""
    held: dict[str, list[float]] = {name: [] for name in pids}
    while time.monotonic() < end_s:
        await asyncio.sleep(WATCH_S)
        for name, pid in pids.items():
            held[name].append(resident_mb(pid))
    return held


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


async def crowd(
    port: int, pids: dict[str, int], seconds: float
) -> tuple[list[str | None], list[bool], dict[str, list[float]]]:
    end_s = time.monotonic() + seconds
    receipts: list[str | None] = []
    with_energy: list[bool] = []
    asking = [ask(port, end_s, receipts, with_energy) for _ in range(CLIENTS)]
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watched(pids, end_s))
        for each in asking:
            group.create_task(each)
    return receipts, with_energy, watching.result()


def settled(ledger: Path) -> Counter[str]:
    """How many settled rows each receipt has."""
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
        return Counter(receipt for (receipt,) in database.execute("SELECT receipt_id FROM requests WHERE settled"))


def grown_mb(held: list[float]) -> float:
    """The mean of the last fifth less that of the second."""
    fifth = max(len(held) // 5, 1)
    return statistics.mean(held[-fifth:]) - statistics.mean(held[fifth : 2 * fifth] or held[-fifth:])


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def meter_of(pid: int) -> int:
    """The process of its meter."""
    for child in children_of(pid):
        if b"meter" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
            return child
    raise RuntimeError("the proxy has no meter")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS:g} seconds")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long they ask")
    options = parser.parse_args()
    seconds = QUICK_SECONDS if options.quick else options.seconds
    with tempfile.TemporaryDirectory(prefix="etameter-crowd-") as name, ExitStack() as held:
        os.environ |= {"ETAMETER_RUN": name, "ETAMETER_RING_DIR": name, "ETAMETER_STATE": name}
        upstream, port, ledger = role(held, "answering").port, free_port(), Path(name) / "ledger.db"
        command = ["proxy", "--upstream", f"http://127.0.0.1:{upstream}", "--port", str(port), "--simulate-gpu", "h100"]
        command += ["--meter-port", str(free_port()), "--ledger", str(ledger)]
        proxy = held.enter_context(subprocess.Popen([sys.executable, "-m", "etameter", *command]))
        held.callback(proxy.terminate)
        while not listens(port)():
            if proxy.poll() is not None:
                raise SystemExit(f"the proxy ended ({proxy.returncode})")
            time.sleep(0.1)
        pids = {"proxy": proxy.pid, "meter": meter_of(proxy.pid)}
        receipts, with_energy, memory = asyncio.run(crowd(port, pids, seconds))
        ended_s = time.monotonic()
        deadline_s = ended_s + SETTLED_WITHIN_S
        while len(rows := settled(ledger)) < len(receipts) and time.monotonic() < deadline_s:
            time.sleep(1.0)
        took_s = time.monotonic() - ended_s
    asked = Counter(receipts)
    wrong = sum(asked[receipt] != 1 or receipt is None or rows[receipt] != 1 for receipt in asked)
    goals = [
        Goal("answers", float(len(receipts)), "", None, "higher"),
        Goal("answers without exactly one settled receipt", float(wrong), "", 0.0, "lower"),
        Goal("settled receipts that nobody was told of", float(len(rows.keys() - asked.keys())), "", 0.0, "lower"),
        Goal("from the last answer until that was known", took_s, "s", None, "lower"),
        Goal("answers with their energy in them", sum(with_energy) / max(len(with_energy), 1), "", None, "higher"),
        *(
            Goal(f"memory of the {name}, more at the end", grown_mb(each), "MB", GROWTH_MB, "lower")
            for name, each in memory.items()
        ),
    ]
    context = {
        "clients": CLIENTS,
        "seconds": seconds,
        "resident_mb": {name: [round(mb, 1) for mb in each] for name, each in memory.items()},
    }
    finish("crowd", "measured", goals, context)


if __name__ == "__main__":
    main()
