"""What is known of boards: each board's own, also where another can't be asked."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from etameter.counters import nvml
from etameter.counters.nvml_limits import Limiter
from etameter.prompts.boards import Boards
from tests.simnvml.board import Board

pytestmark = pytest.mark.unit


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path / "board", gpus=2)
    with made:
        yield made


def test_each_board_is_told_by_its_uuid_and_by_its_own_limits(board: Board, tmp_path: Path) -> None:
    with closing(Limiter()) as limiter:
        limiter.set_power_limit(board.uuid(1), 500_000)
    with closing(Boards(nvml.discover(), tmp_path / "no.ring")) as boards:
        told = boards.describe()
        assert [(one["gpu_uuid"], one["power_limit_w"]) for one in told] == [(board.uuid(0), 700), (board.uuid(1), 500)]
        board.lose(0)
        first, second = boards.describe()
        assert first == {"board": first["board"], "counter": "nvml", "source": "simulated", "gpu_uuid": board.uuid(0)}
        assert second["power_limit_w"] == 500.0, "and not the first one's in its place"
