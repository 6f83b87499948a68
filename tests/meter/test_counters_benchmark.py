"""The benchmark's own arithmetic: what it calls the truth, a load and an error."""

from pathlib import Path

import pytest

from benchmarks.counters import LOADS, ODD, bursts, by_load, light, llm_like, square, worst
from benchmarks.counters_peers import Window
from tests.simnvml.board import Board

pytestmark = pytest.mark.unit

SECOND = 1_000_000_000


def mean_w(steps: list[tuple[int, float]], until_ns: int) -> float:
    ends = [t_ns for t_ns, _ in steps[1:]] + [until_ns]
    return sum(power_w * (end_ns - t_ns) for (t_ns, power_w), end_ns in zip(steps, ends, strict=True)) / until_ns


def test_loads_are_what_they_are_called() -> None:
    assert mean_w(square(0, 10 * SECOND, 0), 10 * SECOND) == 350.0
    assert [power_w for _, power_w in square(0, SECOND // 5, 3)] == [600.0, 100.0, 600.0, 100.0]
    assert mean_w(bursts(0, 13 * SECOND), 13 * SECOND) == pytest.approx(90 + 560 * 20 / 130)
    assert llm_like(0, SECOND, seed=1) != llm_like(0, SECOND, seed=2)


def test_errors_are_relative_to_the_truth_of_the_very_window(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", gpus=LOADS)
    loads = light(board, 60 * SECOND, 90 * SECOND)
    constant = loads.index("constant")
    windows = [Window(constant, 61 * SECOND, 71 * SECOND, 4000.0), Window(constant, 61 * SECOND, 71 * SECOND, 3960.0)]
    assert by_load(board, loads, windows) == {"constant": [pytest.approx(0.0), pytest.approx(-0.01)]}
    assert worst([0.002, -0.01]) == 1.0


def test_windows_that_are_no_multiple_of_the_wave_stand_apart(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", gpus=LOADS)
    loads = light(board, 60 * SECOND, 90 * SECOND)
    even, odd = Window(0, 61 * SECOND, 71 * SECOND, 1.0), Window(0, 61 * SECOND, 71 * SECOND + SECOND // 43, 1.0)
    assert set(by_load(board, loads, [even, odd])) == {"square", ODD}
