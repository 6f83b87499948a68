import os
from pathlib import Path

import pytest

from etameter.neighbours import foreign

pytestmark = pytest.mark.unit

#     4000 vllm ─ 4100 EngineCore ─ 4101, 4102 workers          5000 python (somebody else's)
#     9000 containerd ─ 9001 vllm (1 in its container) ─ 9050 EngineCore (77 in it) ─ 9051 worker (78 in it)
TREE = {
    4000: (1, "4000"),
    4100: (4000, "4100"),
    4101: (4100, "4101"),
    4102: (4100, "4102"),
    5000: (1, "5000"),
    9000: (1, "9000"),
    9001: (9000, "9001 1"),
    9050: (9001, "9050 77"),
    9051: (9050, "9051 78"),
}


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for pid, (parent, numbers) in TREE.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(f"Name:\tpython\nPid:\t{pid}\nPPid:\t{parent}\nNSpid:\t{numbers}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("pids", "engine_pid", "expected"),
    [
        ((4101, 4102), 4100, 0),
        ((4100,), 4100, 0),
        ((4101, 5000), 4100, 1),
        ((9051,), 77, 0),
        ((9051, 5000, 4101), 77, 2),
        ((5000,), 4100, None),
        ((31, 32), 4100, None),  # numbers of a host that is not this one
        ((), 4100, None),
    ],
)
def test_who_is_not_the_engine(proc: Path, pids: tuple[int, ...], engine_pid: int, expected: int | None) -> None:
    assert foreign(pids, engine_pid, proc) == expected


def test_a_process_that_has_ended_meanwhile_is_a_neighbour_no_more_than_any_other(proc: Path) -> None:
    assert foreign((4101, 6666), 4100, proc) == 1


def test_on_this_machine() -> None:
    assert foreign((os.getpid(),), os.getppid()) == 0
