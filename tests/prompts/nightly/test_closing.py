"""How a night is said to have ended, the sweep's front, and run.json from a journal."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.prompts.nightly import closing, journal
from etameter.prompts.nightly.journal import Ending, Journal, Told
from etameter.prompts.nightly.rows import Figure
from tests.prompts.nightly.laid_out import figure, stage_row

pytestmark = pytest.mark.unit

LEVEL = {"level": True, "seconds": 24.0}
HEAD = {
    "run_id": "r",
    "name": "nightly",
    "began": "2026-11-02T02:00:00+00:00",
    "config_hash": "c0ffee",
    "config": {"name": "nightly"},
    "seed": 3,
    "etameter": "0.1.0",
    "tasks_hash": "t",
    "model": None,
    "host": {"cpu": "some", "cores": 2},
}


def told(**parts: Any) -> Told:
    return Told(dict(HEAD), **{"warm_ups": [LEVEL], **parts})


def test_a_night_in_which_nothing_wandered_is_complete() -> None:
    assert closing.verdict_of(told()) == Ending("complete", "", "", 0)


def test_what_wandered_makes_it_unstable_with_a_remedy() -> None:
    wandering = {"level": False, "reason": "power by 9%", "remedy": "longer windows"}
    ending = closing.verdict_of(told(warm_ups=[wandering, LEVEL]))
    assert ending == Ending("unstable", "power by 9%", "longer windows", 5)


def test_windows_that_do_not_count_make_it_unstable_by_their_rule() -> None:
    spoiled = {"about": "spoiled", "stage": "batch-8", "rules": ["throttled"], "reason": "1 of 10 windows count"}
    ending = closing.verdict_of(told(notes=[spoiled]))
    assert (ending.status, ending.exit_code) == ("unstable", 5)
    assert ending.reason == "batch-8: 1 of 10 windows count"
    assert "cool the boards" in ending.remedy


def test_a_clock_that_jumped_makes_it_unstable() -> None:
    jump = {"about": "clock", "t_ns": 1, "wall_s": -3600.0, "asleep_s": 0.0}
    ending = closing.verdict_of(told(notes=[jump]))
    assert (ending.status, ending.exit_code) == ("unstable", 5)
    assert "-3600.0 s" in ending.reason


def of_setting(joules: float | None, itl_s: float | None) -> tuple[Figure, ...]:
    return figure(value=joules), figure(metric="itl_p50_s", value=itl_s)


def test_the_front_has_what_nothing_beats() -> None:
    points = closing.front(
        {
            "batch-8": of_setting(0.1, 0.1),
            "sweep-seqs-8": of_setting(3.0, 0.010),
            "sweep-seqs-32": of_setting(2.0, 0.020),
            "sweep-seqs-128": of_setting(2.0, 0.050),
            "sweep-cap-300": of_setting(2.5, 0.021),
            "sweep-cap-900": of_setting(None, None),
        }
    )
    assert [(point.setting, point.best) for point in points] == [
        ("sweep-seqs-32", True),
        ("sweep-seqs-128", False),
        ("sweep-cap-300", False),
        ("sweep-seqs-8", True),
    ]


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=1, max_size=12))
def test_there_is_always_a_best_and_no_two_of_the_front_beat_each_other(settings: list[tuple[float, float]]) -> None:
    points = closing.front({f"sweep-{place}": of_setting(*setting) for place, setting in enumerate(settings)})
    best = [(point.j_per_token, point.itl_s) for point in points if point.best]
    assert best
    assert len(points) == len(settings)
    for one in best:
        assert not any(other[0] <= one[0] and other[1] <= one[1] and other != one for other in best)


def test_a_run_is_told_from_its_journal(tmp_path: Path) -> None:
    journal.begin(tmp_path / "r", HEAD)
    boards = [
        {
            "board": "H100",
            "counter": "nvml",
            "gpu_uuid": "GPU-1",
            "driver": "560",
            "power_limit_w": 700.0,
            "max_clock_mhz": 1980,
        },
        {"board": "H100", "counter": "nvml", "driver": "560", "power_limit_w": 600.0, "max_clock_mhz": 1980},
    ]
    session = {
        "source": "measured",
        "counter": "nvml",
        "boards": boards,
        "model": "m",
        "server": {"version": "0.32.0", "model_fingerprint": "f"},
    }
    with Journal(tmp_path / "r" / "journal.jsonl") as kept:
        for number in range(2):
            kept.session(session)
            kept.note("spent", {"session": number, "seconds": 5.0, "energy_j": 50.0, "known_j": 50.0})
            kept.note("spent", {"session": number, "seconds": 10.0, "energy_j": 100.0, "known_j": 100.0})
        kept.begin("batch-8")
        kept.window(stage_row(session=1))
        kept.window(stage_row(stage="idle-before", session=0, start_ns=9))
        kept.end("batch-8", [figure()])
        kept.close_with(Ending("complete", "", "", 0), "2026-11-02T03:00:00+00:00")
        whole = closing.conclude(tmp_path / "r", kept.told)
        assert closing.spent(kept.told) == (20.0, 200.0)
    run = whole.run
    assert (run.driver, run.power_cap_w, run.clock_mhz, run.energy_j) == ("560", 1300.0, 1980, 200.0)
    assert (run.source, run.vllm, run.model, run.model_hash, run.sessions) == ("measured", "0.32.0", "m", "f", 2)
    same = {"board": "H100", "counter": "nvml"}
    assert run.hardware == {"boards": [{**same, "gpu_uuid": "GPU-1"}, same], "cpu": "some", "cores": 2}, (
        "and no clock of the moment"
    )
    assert [row.stage for row in whole.stages] == ["idle-before", "batch-8"], "in order of time, over sessions"


def test_a_reset_leaves_unknown_what_was_spent_but_not_that_it_was_so_much(tmp_path: Path) -> None:
    lost = {"about": "spent", "session": 1, "seconds": 5.0, "energy_j": None, "known_j": 70.0}
    known = {**lost, "session": 0, "energy_j": 30.0, "known_j": 30.0}
    both = told(notes=[known, lost], ending=Ending("complete", "", "", 0))
    both.head["ended"] = "2026-11-02T03:00:00+00:00"
    assert closing.spent(both) == (10.0, 100.0)
    assert closing.conclude(tmp_path, both).run.energy_j is None


def test_a_night_that_never_had_a_server_says_what_it_can(tmp_path: Path) -> None:
    journal.begin(tmp_path / "r", HEAD)
    with Journal(tmp_path / "r" / "journal.jsonl") as kept:
        kept.close_with(Ending("failed", "no GPU", "load the driver", 2), "2026-11-02T03:00:00+00:00")
        run = closing.conclude(tmp_path / "r", kept.told).run
    assert (run.source, run.driver, run.energy_j, run.power_cap_w, run.sessions) == (None, None, None, None, 0)
