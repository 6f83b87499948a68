from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simnvml.board import Board, Sensor


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path / "board", energy=Sensor(period_ns=5_000_000))
    made.set_power_w(0, [(0, 300.0)])
    with made:
        yield made
