"""Budgets of a meter that runs: what it tells servers and metrics, and that a killed one goes on where it was."""

import json
import os
import re
import signal
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from etameter.budgets import bounds
from tests.meter.test_daemon import PATIENCE_S, RECEIPT, engine, lit_board, running, serve_one, until

pytestmark = pytest.mark.unit

CONFIGURED = {
    "ETAMETER_BUDGETS__TEAM__ARMS": '["entrace"]',
    "ETAMETER_BUDGETS__TEAM__JOULES": "1.0",
    "ETAMETER_BUDGETS__TEAM__WINDOW": "month",
    "ETAMETER_BUDGETS__OTHER__ARMS": '["concise"]',
    "ETAMETER_BUDGETS__OTHER__WH": "1.0",
    "ETAMETER_BUDGETS__OTHER__WINDOW": "month",
}
ITEM = re.compile(
    r'"(?P<name>[a-z]+)";state=(?P<state>within|maybe|exceeded);remaining=(?P<remaining>\d+\.\d+);used=(?P<used>\d+\.\d+);'
    r"error=\d+\.\d+;unknown=(?P<unknown>\d+\.\d+);limit=(?P<limit>\d+\.\d+);window=month;source=simulated"
)


def told(peer: socket.socket, budget: str) -> dict[str, str]:
    """What the meter says of a budget, within a second."""
    line = b""
    while not line.endswith(b"\n"):
        line += peer.recv(1 << 16)
    said, end_s = json.loads(line.splitlines()[-1])["told"][budget]
    assert end_s == bounds("month", time.time())[1]
    found = ITEM.fullmatch(said)
    assert found is not None, said
    return found.groupdict()


def send(peer: socket.socket, **message: Any) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def used_j(samples: dict[str, float], budget: str) -> float:
    return samples[f'etameter_budget_used_joules{{budget="{budget}",window="month",source="simulated"}}']


def test_a_budget_is_drawn_on_told_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    if bounds("month", time.time())[1] - time.time() < 120:
        pytest.skip("a month ends")
    with lit_board(tmp_path) as board, engine(tmp_path) as ring:
        environment = {**board.environment(), **CONFIGURED}
        with running(tmp_path, environment) as meter, socket.socket(socket.AF_UNIX) as peer:
            until(lambda: json.loads(meter.get("/health")[1])["engine"])
            peer.settimeout(PATIENCE_S)
            peer.connect(str(tmp_path / "run" / "meter.sock"))
            send(peer, type="open", receipt_id=RECEIPT, arm="entrace", budgets=["team", "team", "unheard of"])
            serve_one(ring)
            spent_j = until(meter.settled)["energy_joules"]
            assert spent_j > 1.0
            until(lambda: meter.samples().get('etameter_budget_limit_joules{budget="team",window="month"}') == 1.0)
            until(lambda: used_j(meter.samples(), "team") == pytest.approx(spent_j, rel=1e-6))
            send(peer, type="budgets")
            team = told(peer, "team")
            assert (team["state"], team["remaining"], team["limit"]) == ("exceeded", "0.0", "1.0")
            assert float(team["used"]) == pytest.approx(spent_j, abs=1e-3)
            samples = meter.samples()
            assert used_j(samples, "other") == 0.0
            shares = {name: value for name, value in samples.items() if "used_ratio" in name and '"team"' in name}
            assert len(shares) == 3
            assert min(shares.values()) > 1.0
            os.kill(meter.process.pid, signal.SIGKILL)
            meter.process.wait()
        with running(tmp_path, environment) as meter:
            until(lambda: used_j(meter.samples(), "team") == pytest.approx(spent_j, rel=1e-6))


def test_what_nobody_spoke_of_may_be_anybodys_and_without_budgets_nothing_is_said(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, engine(tmp_path) as ring:
        with running(tmp_path, {**board.environment(), **CONFIGURED}) as meter:
            until(lambda: json.loads(meter.get("/health")[1])["engine"])
            serve_one(ring)
            until(meter.settled)
            most = 'etameter_budget_used_ratio{budget="team",window="month",bound="most",source="simulated"}'
            until(lambda: meter.samples().get(most, 0.0) > 1.0)
            assert used_j(meter.samples(), "team") == 0.0
        with running(tmp_path, board.environment()) as meter:
            assert not [name for name in meter.samples() if "budget" in name]


def test_while_a_step_does_not_end_it_is_not_said_how_budgets_stand(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("from etameter import checkup\ncheckup.LATE_NS = 500_000_000\n")
    ours = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    known = 'etameter_budget_used_joules{budget="team",window="month",source="simulated"}'
    with lit_board(tmp_path) as board, engine(tmp_path) as ring:
        environment = {**board.environment(), **CONFIGURED, "PYTHONPATH": ours}
        with running(tmp_path, environment) as meter:
            until(lambda: known in meter.samples())
            serve_one(ring)
            until(meter.settled)
            ring.dispatch(100, time.monotonic_ns(), [])
            until(lambda: known not in meter.samples())
            ring.done(100, time.monotonic_ns())
            until(lambda: known in meter.samples())


def test_while_the_ledger_takes_nothing_it_is_not_said_how_budgets_stand(tmp_path: Path) -> None:
    known = 'etameter_budget_used_joules{budget="team",window="month",source="simulated"}'
    with (
        lit_board(tmp_path) as board,
        engine(tmp_path),
        running(tmp_path, {**board.environment(), **CONFIGURED}) as meter,
    ):
        until(lambda: known in meter.samples())
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            until(lambda: known not in meter.samples())
            other.execute("ROLLBACK")
        until(lambda: known in meter.samples())
