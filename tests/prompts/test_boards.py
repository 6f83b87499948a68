"""What is known of boards: each board's own, also where another can't be asked."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from etameter.counters import nvml, simulated
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


def test_boards_live_by_the_machines_clock_and_modelled_ones_by_their_steps(board: Board, tmp_path: Path) -> None:
    with closing(Boards(nvml.discover(), tmp_path / "no.ring")) as boards:
        before_s = time.monotonic()
        assert before_s <= boards.clock_s() <= time.monotonic()
    words = simulated._create(tmp_path / "board.board", {"gpu_uuid": "GPU-sim", "profile": "h100", "seed": 1})
    with closing(Boards([simulated.SimulatedCounter(tmp_path / "board.board")], tmp_path / "no.ring")) as boards:
        assert boards.describe() == [{"board": "h100", "counter": "simulated", "source": "simulated"}]
        assert boards.clock_s() == 0.0
        words[simulated._GPU_US] = 1_500_000
        assert boards.clock_s() == 1.5
    words.release()


def test_a_board_that_is_told_to_take_more_says_so(tmp_path: Path) -> None:
    about: dict[str, str | float] = {"gpu_uuid": "GPU-sim", "profile": "h100", "seed": 1, "times_energy": 1.1}
    simulated._create(tmp_path / "board.board", about).release()
    with closing(Boards([simulated.SimulatedCounter(tmp_path / "board.board")], tmp_path / "no.ring")) as boards:
        assert boards.describe() == [
            {"board": "h100", "counter": "simulated", "source": "simulated", "times_energy": 1.1}
        ]
