"""Kills meters: children that read a ring and a counter and write a ledger are killed at random and started again, until all is read.

A process of its own, because it forks. Prints one JSON line: what each killed meter left, and the sums at the end.

    python -m tests.meter.kill_victim DIRECTORY KILLS SEED
"""

import json
import os
import random
import signal
import struct
import sys
import time
from dataclasses import replace
from itertools import pairwise
from mmap import mmap
from pathlib import Path

from etameter.accounts import Accounts
from etameter.ledger import Ledger
from etameter.records import Edge
from etameter.serving.ring import Dispatch, Done, Finish, RingReader, RingWriter
from tests.meter.test_accounts import MS, Engine, device

TICK_NS = 50 * MS
"""As the meter's own loop."""
BOOT = "boot"
LIFE_S = 0.04
"""A meter lives at most so long, in which it goes through one or two simulated seconds."""
EARLY = 0.2
"""Share of the kills that come while a meter starts."""


def lay_out(directory: Path, requests: int) -> tuple[Engine, list[Edge]]:
    """A ring with everything that an engine did, and the edges of its counter."""
    engine = Engine(11, pauses=0.4, pause_ms=300)  # who starts to read a ring goes back by 4,096 steps at most
    engine.idle(300 * MS)
    engine.run([30 + 7 * (n % 23) for n in range(requests)], [4 + n % 31 for n in range(requests)], 8)
    ring = RingWriter(directory / "ring", engine="engine-0", model="m", dtype="bfloat16", capacity_bytes=32 << 20)
    for record in engine.records:
        if isinstance(record, Dispatch):
            for each in record.introductions:
                assert ring.open_request(each.request_id, each.prompt_tokens, each.arrival_ns) == each.number
            ring.dispatch(record.step_id, record.t_ns, record.rows.tolist())
        elif isinstance(record, Done):
            ring.done(record.step_id, record.t_ns)
        else:
            assert isinstance(record, Finish)
            ring.finish(record.number, record.t_ns, record.output_tokens, record.reason)
    ring.close()
    return engine, engine.edges("GPU-0")


def meter(directory: Path, edges: list[Edge], end_ns: int, progress: mmap) -> None:
    """One life of a meter: it goes on where the ledger says, and tells the simulated instant that it has come to."""
    ledger = Ledger(directory / "ledger.db")
    resume = ledger.resumes().get("")
    accounts = Accounts([device()], BOOT, resume)
    accounts.inherit(ledger.open_requests(BOOT, "engine-0"))
    reader = RingReader(directory / "ring")
    accounts.open_engine(replace(reader.header, created_ns=0))  # simulated time, like all other instants here
    records = reader.poll()
    came_ns, fed, seen = read(progress)[0], 0, 0
    now_ns = came_ns
    write(progress, now_ns, came_ns)
    while now_ns < end_ns:
        now_ns += TICK_NS
        until = fed
        while until < len(records) and records[until].t_ns <= now_ns:  # type: ignore[union-attr]  # none is lost
            until += 1
        accounts.steps(records[fed:until], now_ns)
        fed = until
        while seen < len(edges) and edges[seen].t_ns <= now_ns:
            if edges[seen].t_ns > came_ns:  # the sampler of this life saw no earlier one
                accounts.found([edges[seen]])
            seen += 1
        batch = accounts.settle()
        if batch is not None:
            ledger.settle(batch.balances, batch.requests, batch.resume, time.time(), batch.running)
        write(progress, now_ns, came_ns)
        time.sleep(0.0005)  # a meter waits between ticks, and is as likely to be killed while it does
    ledger.close()


def write(progress: mmap, now_ns: int, came_ns: int) -> None:
    """To where in simulated time this life has come, and where it began."""
    progress[:16] = struct.pack("<qq", now_ns, came_ns)


def read(progress: mmap) -> tuple[int, int]:
    now_ns, came_ns = struct.unpack("<qq", progress[:16])
    return now_ns, came_ns


def main(directory: Path, kills: int, seed: int) -> None:
    engine, edges = lay_out(directory, 100 + 6 * kills)
    end_ns = engine.now_ns + 2_000 * MS
    dice = random.Random(seed)
    progress = mmap(-1, 16)
    write(progress, 0, -1)
    left = []
    finished = 0
    for attempt in range(kills + 1):
        child = os.fork()
        if child == 0:
            meter(directory, edges, end_ns, progress)
            os._exit(0)
        if attempt < kills:
            before = read(progress)
            if dice.random() > EARLY:
                while read(progress) == before:
                    time.sleep(0.0005)
            time.sleep(dice.random() * LIFE_S)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        finished += os.WIFEXITED(status)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        ledger = Ledger(directory / "ledger.db")
        resume, totals = ledger.resumes().get(""), ledger.totals()
        now_ns, came_ns = read(progress)
        if resume is not None and attempt < kills:
            frontier_ns = resume.frontier_ns["GPU-0"]
            left.append((now_ns - came_ns, now_ns - frontier_ns, totals.residual_j / totals.measured_j))
        ledger.close()
    ledger = Ledger(directory / "ledger.db")
    balances = ledger._db.execute("SELECT start_ns, end_ns FROM balances ORDER BY end_ns").fetchall()
    rows, totals, resume = ledger.requests(), ledger.totals(), ledger.resumes().get("")
    assert resume is not None
    introduced = [each for r in engine.records if isinstance(r, Dispatch) for each in r.introductions]
    names = {each.number: each.request_id for each in introduced}
    ended = {names[record.number]: record.t_ns for record in engine.records if isinstance(record, Finish)}
    first = next(edge for edge in edges if edge.t_ns == balances[0][0])
    told = {
        "left": left,
        "finished_early": finished - 1,
        "gaps": sum(later[0] != earlier[1] for earlier, later in pairwise(balances)),
        "requests": [row.record.request_id for row in rows],
        "settled": all(row.energy.settled for row in rows),
        "metered": sorted(request_id for request_id, end_ns in ended.items() if end_ns > first.t_ns),
        "measured_j": totals.measured_j,
        "counter_j": (resume.last_edges[0].energy_mj - first.energy_mj) / 1000,
        "requests_j": totals.requests_j,
        "dynamic_j": sum(engine.dynamic_j.values()),
        "residual_j": totals.residual_j,
        "unattributed": dict(totals.unattributed_j_by_cause),
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
