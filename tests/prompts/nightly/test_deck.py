"""What is asked: the same tasks in the same order every night, each prompt new to the cache, recorded arrivals as they came."""

from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.errors import NightError
from etameter.prompts.arms import find
from etameter.prompts.checkers import Code, CodeTest
from etameter.prompts.nightly import deck
from etameter.prompts.nightly.deck import Arrival
from etameter.prompts.tasks import load_suite

pytestmark = pytest.mark.unit

TASKS = load_suite("core").tasks
TOLD = {"stage": "batch-8", "run_id": "r", "seed": 0, "max_tokens": 9, "salted": True}


def of_tasks(**told: object) -> deck.Deck:
    return deck.of_tasks(TASKS, find("unconstrained"), "small", **{**TOLD, **told})  # type: ignore[arg-type]


def test_every_night_asks_the_same_and_never_the_same_prompt_of_the_cache() -> None:
    tonight, tomorrow = of_tasks(), of_tasks(run_id="s")
    pairs = [(tonight(number), tomorrow(number)) for number in range(300)]
    assert all(one.task == other.task for one, other in pairs)
    salts = [question.body.pop("cache_salt") for pair in pairs for question in pair]
    assert len(set(salts)) == 600
    assert all(one.body == other.body for one, other in pairs)
    assert pairs[0][0].body["temperature"] == 0.0
    assert pairs[0][0].body["max_tokens"] == 9


def test_another_seed_has_another_order_of_the_same_tasks() -> None:
    count = len({of_tasks()(number).task for number in range(500)})
    tonight, other = ([each(number).task for number in range(count)] for each in (of_tasks(), of_tasks(seed=1)))
    assert tonight != other
    assert {task and task.id for task in tonight} == {task and task.id for task in other}
    assert of_tasks()(count).task == tonight[0]


def test_nothing_is_asked_that_takes_turns_or_a_sandbox() -> None:
    asked = {question.task for question in map(of_tasks(), range(500))}
    assert all(task and len(task.turns) == 1 and not isinstance(task.checker, Code | CodeTest) for task in asked)
    code = [task for task in TASKS if isinstance(task.checker, Code)]
    with pytest.raises(NightError, match="no task of one turn"):
        deck.of_tasks(code, find("unconstrained"), "small", **TOLD)  # type: ignore[arg-type]


def test_no_salt_is_sent_where_the_server_refuses_it() -> None:
    assert "cache_salt" not in of_tasks(salted=False)(0).body


def test_arrivals_are_as_long_as_recorded() -> None:
    told = deck.of_arrivals([Arrival(0, 100, 7), Arrival(1, 20, 9)], "small", stage="s", run_id="r", salted=False)
    bodies = [told(number).body for number in range(3)]
    assert [body["max_tokens"] for body in bodies] == [7, 9, 7]
    assert all(body["ignore_eos"] for body in bodies)
    assert [len(body["messages"][0]["content"].split()) for body in bodies] == [97, 17, 97]
    assert told(0).task is None


def test_a_recording_begins_anew_a_mean_interval_after_its_end() -> None:
    due = list(islice(deck.arrivals_s([Arrival(0, 1, 1), Arrival(1, 1, 1), Arrival(4, 1, 1)]), 7))
    assert due == [0, 1, 4, 6, 7, 10, 12]


@given(st.floats(0.01, 1000))
def test_a_rate_is_even(rate_per_s: float) -> None:
    due = list(islice(deck.evenly_s(rate_per_s), 20))
    assert due[0] == 0
    assert all(after - before == pytest.approx(1 / rate_per_s) for before, after in pairwise(due))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("arrival_s,prompt_tokens\n0,1\n", "has no column output_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,1\n", "has 1 arrivals"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,1\n0,1,1\n", "2 arrivals over 0 s"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,1\nx,1,1\n", "a.csv:3: .*'x'"),
        ("arrival_s,prompt_tokens,output_tokens\n5,1,1\n4,1,1\n", "a.csv:3: it comes before"),
        ("arrival_s,prompt_tokens,output_tokens\n0,0,1\n4,1,1\n", "a.csv:2: 0 s, 0 and 1 tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,1\nnan,1,1\n", "a.csv:3: nan s"),
    ],
)
def test_what_is_no_recording_is_refused(rows: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(rows)
    with pytest.raises(NightError, match=said):
        deck.read_arrivals(path)


def test_a_recording_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt_tokens,arrival_s,output_tokens,model\n10,0,3,x\n20,1.5,4,y\n")
    assert deck.read_arrivals(path) == (Arrival(0.0, 10, 3), Arrival(1.5, 20, 4))
    with pytest.raises(NightError, match="can't be read"):
        deck.read_arrivals(tmp_path / "none.csv")


def test_the_smoke_jobs_recording_is_one() -> None:
    assert len(deck.read_arrivals(Path("benchmarks/nightly_smoke_arrivals.csv"))) == 60
