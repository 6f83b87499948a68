"""A disk that neither takes nor refuses what is written: what waits for it has a bound, and what comes meanwhile stays where it is."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etameter.serving.ring import RingWriter
from tests.meter.test_daemon import Meter, engine, lit_board, running, serve_one, until
from tests.meter.test_faults import OTHER, another, assert_sound, knows_its_engine, metric, settled, unassigned_j

pytestmark = pytest.mark.unit

LATER = "e" * 32
MOST = 4
WAITING = "etameter_ledger_waiting_batches"
HANGING = f"""
import pathlib, time
from etameter import ledger, writing
writing.UNWRITTEN_LIMIT = {MOST}
settle = ledger.Ledger.settle_together
def settle_together(*batches):
    while pathlib.Path("hangs").exists():
        time.sleep(0.01)
    settle(*batches)
ledger.Ledger.settle_together = settle_together
"""


@contextmanager
def metering(folder: Path) -> Iterator[Meter]:
    """A meter whose disk hangs for as long as there is a file of that name, and of which little may wait."""
    (folder / "sitecustomize.py").write_text(HANGING)
    ours = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    with lit_board(folder) as board, running(folder, {**board.environment(), "PYTHONPATH": ours}) as meter:
        yield meter


@contextmanager
def hanging(meter: Meter) -> Iterator[None]:
    """Begins when as much waits as may."""
    (meter.directory / "hangs").touch()
    until(lambda: metric(meter, WAITING) == MOST)
    yield
    time.sleep(1.2)  # the metric is looked at once a second
    assert metric(meter, WAITING) == MOST
    assert meter.get("/health")[0] == 200
    (meter.directory / "hangs").unlink()
    until(lambda: metric(meter, WAITING) == 0)


def test_a_disk_that_hangs_holds_the_meter_up_and_nothing_is_lost(tmp_path: Path) -> None:
    with metering(tmp_path) as meter, engine(tmp_path) as ring:
        knows_its_engine(meter)
        serve_one(ring)
        until(meter.settled)
        with hanging(meter):
            another(ring, 20)
        until(lambda: settled(meter, OTHER))
        assert (
            metric(meter, "etameter_ring_lost_records_total")
            == metric(meter, "etameter_sampler_dropped_edges_total")
            == 0
        )
        assert unassigned_j(meter, "readings_missing") == unassigned_j(meter, "steps_missing") == 0
        assert_sound(meter)


def test_what_the_ring_has_no_room_for_meanwhile_is_counted_and_its_joules_are_nobodys(tmp_path: Path) -> None:
    with metering(tmp_path) as meter:
        ring = RingWriter(tmp_path / "ring", engine="engine-0", model="m", dtype="bfloat16", capacity_bytes=1 << 12)
        knows_its_engine(meter)
        with hanging(meter):
            another(ring, 0)
            for step in range(100, 300):
                ring.dispatch(step, time.monotonic_ns(), [])
                ring.done(step, time.monotonic_ns())
        another(ring, 300, receipt=LATER)
        until(lambda: settled(meter, LATER))
        until(lambda: metric(meter, "etameter_ring_lost_records_total") > 0)
        until(lambda: unassigned_j(meter, "steps_missing") > 0)
        assert_sound(meter)
        ring.close()
