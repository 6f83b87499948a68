"""Runs of small plans: what is asked and kept, and that nothing is lost or asked twice whenever a run is killed."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from etameter.errors import EngineError, ExperimentError
from etameter.joules import Joules
from etameter.prompts import asking, endpoint, experiment, journal, results
from etameter.prompts.boards import Seen
from etameter.prompts.experiment import State
from etameter.prompts.journal import INTERRUPTED, Journal, Told
from etameter.prompts.plan import Load, Plan
from etameter.prompts.tables import BlockRow, Outcome, kept
from tests.prompts import ab_bench as bench
from tests.prompts.upstream import J_PER_TOKEN, Upstream

pytestmark = pytest.mark.unit

ONE_LOAD = (Load("concurrency", concurrency=4),)
FEW = (Load("concurrency", concurrency=2, tasks=4), Load("closed-loop", concurrency=1, tasks=1))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_POLL_S", 0.01)
    monkeypatch.setattr(experiment, "TICK_S", 0.005)


def rows(plan: Plan, told: Told) -> tuple[list[BlockRow], list[Outcome]]:
    """What counts, without what no two runs have alike: times, joules, and how often something was tried."""
    blocks, outcomes = kept(told.rows(), told.conversations(plan))
    times: dict[str, Any] = {"start_ns": 0, "end_ns": 0, "attempt": 0}
    block_times: dict[str, Any] = {**times, "started_wall": "", "energy_j": 0.0, "power_w": 0.0, "idle_w": 0.0}
    return [replace(row, **block_times) for row in blocks], [replace(one, **times) for one in outcomes]


def test_a_plan_is_run_to_its_end(tmp_path: Path) -> None:
    plan, upstream = bench.plan(), Upstream(bench.says)
    states: list[State] = []
    told = bench.done(tmp_path, plan, upstream, tell=states.append)
    blocks, outcomes = told.rows(), told.conversations(plan)
    assert [row.block for row in blocks] == [block.number for block in plan.blocks]
    assert all(row.excluded is None and row.attempt == 0 for row in blocks)
    assert [(one.block, one.task, one.arm) for one in outcomes] == [
        (block.number, asking.task, asking.arm) for block in plan.blocks for asking in block.askings
    ]
    for row in blocks:
        of_block = [one for one in outcomes if one.block == row.block]
        assert row.energy_j == pytest.approx(bench.WATTS * (row.end_ns - row.start_ns) * 1e-9)
        assert row.power_w == pytest.approx(bench.WATTS)
        assert all(row.start_ns <= one.start_ns < one.end_ns <= row.end_ns for one in of_block)
        assert (row.requests, row.correct) == (len(of_block), sum(one.correct is True for one in of_block))
        assert row.output_tokens == sum(one.output_tokens or 0 for one in of_block)
        assert row.prompt_tokens == sum(one.prompt_tokens or 0 for one in of_block)
    for before, after in pairwise(blocks):
        assert before.end_ns <= after.start_ns, "a block is drained before the next one begins"
    assert all(one.energy_j == J_PER_TOKEN * (one.output_tokens or 0) and one.settled for one in outcomes)
    assert {one.task: one.correct for one in outcomes}["t3"] is False
    assert all(one.source == "simulated" for one in outcomes)
    assert results.is_complete(plan, told)
    assert states[-1].done == states[-1].of == plan.conversations
    assert told.warm_ups[0]["level"] is True


def test_what_the_server_is_sent(tmp_path: Path) -> None:
    runs: set[str | None] = set()

    class Attentive(Upstream):
        async def chat(self, request: web.Request) -> web.StreamResponse:
            runs.add(request.headers.get("X-Etameter-Run"))
            return await super().chat(request)

    plan, upstream = bench.plan(samples=2, max_tokens=9), Attentive(bench.says)
    bench.done(tmp_path, plan, upstream)
    assert runs == {"r"}
    assert {body["max_tokens"] for body in upstream.requests} == {9}
    assert {body["temperature"] for body in upstream.requests} == {0.7}
    by_prompt: dict[str, set[int]] = {}
    for body in upstream.requests:
        by_prompt.setdefault(body["messages"][-1]["content"], set()).add(body["seed"])
    assert {len(seeds) for seeds in by_prompt.values()} == {2}, "a sample has its seed, under every arm the same"
    assert len(set.union(*by_prompt.values())) == 2 * len(by_prompt)
    assert set(upstream.arms) == set(plan.arms)


@pytest.mark.parametrize(("cache", "salts"), [("on", 4 + 1), ("off", 16 + 1), ("as-served", 0)])
def test_prefixes_are_shared_within_blocks_or_not_at_all(cache: str, salts: int, tmp_path: Path) -> None:
    plan, upstream = bench.plan(loads=ONE_LOAD, prefix_cache=cache), Upstream(bench.says)
    assert len(plan.blocks) == 4
    bench.done(tmp_path, plan, upstream)
    found = {body.get("cache_salt") for body in upstream.requests} - {None}
    warm = len({body.get("cache_salt") for body in upstream.requests[: -plan.conversations]})
    assert len(found) == salts - 1 + warm if salts else not found


def test_load_is_as_planned(tmp_path: Path) -> None:
    upstream = Upstream(bench.says)
    told = bench.done(tmp_path / "alone", bench.plan(loads=(Load("closed-loop", concurrency=1, blocks=1),)), upstream)
    assert upstream.most_at_once == 1
    assert len(told.rows()) == 2
    plan = bench.plan(loads=(Load("rate", rate_per_s=50.0, blocks=1),))
    told = bench.done(tmp_path / "rate", plan, Upstream(bench.says))
    starts = [one.start_ns for one in told.conversations(plan) if one.block == 0]
    begun_ns = told.rows()[0].start_ns
    assert all(start_ns >= begun_ns + place * 20_000_000 for place, start_ns in enumerate(starts))
    mixed = bench.plan(loads=(Load("mixed", concurrency=4),))
    told = bench.done(tmp_path / "mixed", mixed, Upstream(bench.says))
    assert {row.arm for row in told.rows()} == {"mixed"}
    assert {one.arm for one in told.conversations(mixed) if one.block == 0} == set(mixed.arms)


def test_texts_are_kept_only_where_they_may_be(tmp_path: Path) -> None:
    plan = bench.plan(loads=ONE_LOAD)
    bench.done(tmp_path / "without", plan, Upstream(bench.says))
    assert {one.reason for one in journal.load(tmp_path / "without")[1].outcomes.values()} == {""}
    told = bench.done(tmp_path / "with", plan, Upstream(bench.says), texts=True)
    assert all(one.reason for one in told.conversations(plan))
    assert b"It is 42" not in (tmp_path / "without" / journal.JOURNAL_FILE).read_bytes()
    assert b"What is" not in (tmp_path / "without" / journal.JOURNAL_FILE).read_bytes()
    wordy = next(one for one in told.conversations(plan) if one.arm == "unconstrained" and one.task == "t1")
    said = bench.WORDY.format("It is 42.")
    assert (wordy.prompt_text, wordy.answer_text) == ("What is 1 and 41?", said)
    assert [(said[span.start : span.end].strip(), span.label) for span in wordy.spans] == [
        ("Sure!", "P"),
        ("I hope this helps!", "C"),
        ("Let me know if you have any other questions.", "C"),
    ]
    named = sum(span.end - span.start for span in wordy.spans) / len(said)
    assert sum(wordy.slack.values()) == pytest.approx(named * (wordy.output_tokens or 0))
    assert wordy.eta_deletion == pytest.approx(len("It is 42.") / len(said), abs=0.05)
    assert (wordy.lexical_slack or 0) > 0.5


class Killed(BaseException):
    """The process ends here."""


def lines(folder: Path) -> int:
    return len((folder / journal.JOURNAL_FILE).read_bytes().splitlines())


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From so many more lines on nothing is written any more."""
    write = Journal._write

    def kill(count: int) -> None:
        left = count

        def write_or_die(self: Journal, told: dict[str, Any]) -> None:
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            write(self, told)

        monkeypatch.setattr(Journal, "_write", write_or_die)

    return kill


def test_a_run_that_is_killed_anywhere_and_resumed_gives_what_an_unbroken_run_gives(
    tmp_path: Path, kill_after: Callable[[int], None]
) -> None:
    plan = bench.plan(loads=FEW)
    kill_after(10**9)
    unbroken = bench.done(tmp_path / "unbroken", plan, Upstream(bench.says, settles_after=0))
    wanted = rows(plan, unbroken)
    for count in range(lines(tmp_path / "unbroken") - 1):
        folder = tmp_path / str(count)
        kill_after(count)
        with pytest.raises(Killed):
            bench.done(folder, plan, Upstream(bench.says, settles_after=0))
        if count % 2:  # the line that was being written when it ended
            with (folder / journal.JOURNAL_FILE).open("ab") as file:
                file.write(b'{"kind": "outcome", "part": "conc')
        begun = journal.load(folder)[1].begun
        kill_after(10**9)
        told = bench.go_on(folder, plan, Upstream(bench.says, settles_after=0))
        assert rows(plan, told) == wanted
        cut = [row for row in told.rows() if row.excluded is not None]
        assert len(cut) <= 1
        assert all((row.excluded, row.energy_j) == (INTERRUPTED, None) for row in cut)
        assert {(one.block, one.attempt) for one in begun} <= set(told.ended), "whatever was begun is told of"
        held = Counter((one.part, one.task, one.sample, one.arm) for one in rows(plan, told)[1])
        assert set(held.values()) == {1}


def test_a_run_that_is_killed_again_and_again_comes_to_its_end(
    tmp_path: Path, kill_after: Callable[[int], None]
) -> None:
    plan = bench.plan()
    kill_after(10**9)
    wanted = rows(plan, bench.done(tmp_path / "unbroken", plan, Upstream(bench.says)))
    folder = tmp_path / "broken"
    journal.begin(folder, plan)
    kills = 0
    for _ in range(3):  # in the first block, each time
        kill_after(6)
        with pytest.raises(Killed):
            bench.go_on(folder, plan, Upstream(bench.says))
        kills += 1
    while not results.is_complete(plan, journal.load(folder)[1]):
        kill_after(16)  # enough for a session line, a warm-up, an idle time and one block
        try:
            bench.go_on(folder, plan, Upstream(bench.says))
        except Killed:
            kills += 1
    assert kills > 5
    told = journal.load(folder)[1]
    assert rows(plan, told) == wanted
    assert sum(row.excluded == INTERRUPTED for row in told.rows()) == kills, "it did not count as an attempt"


def test_a_run_that_is_done_asks_nobody(tmp_path: Path) -> None:
    plan = bench.plan(loads=ONE_LOAD)
    bench.done(tmp_path, plan, Upstream(bench.says))
    before, upstream = lines(tmp_path), Upstream(bench.says)
    bench.go_on(tmp_path, plan, upstream)
    assert (upstream.requests, lines(tmp_path)) == ([], before)


class Faulty(Upstream):
    """Answers the prompts that it is told to, so often, in another way."""

    def __init__(self, fault: Callable[[web.Request], Any], prompts: str, times: int) -> None:
        super().__init__(bench.says)
        self.fault, self.prompts, self.times = fault, prompts, times
        self.warm = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.warm += 1
        if self.warm > 8 and body["messages"][-1]["content"].split()[2] in self.prompts and self.times:
            self.times -= 1
            answer: web.StreamResponse = await self.fault(request)
            return answer
        return await super().chat(request)


async def _busy(_: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "slow down"}}, status=429)


async def _broken(_: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "the engine died"}}, status=500)


async def _forbidden(_: web.Request) -> web.Response:
    return web.json_response({}, status=403)


async def _full(_: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "the context is full"}}, status=400)


async def _no_json(_: web.Request) -> web.Response:
    return web.Response(text="<html>")


async def _no_tokens(_: web.Request) -> web.Response:
    usage = {"prompt_tokens": "many", "completion_tokens": 1}
    return web.json_response({"choices": [{"message": {"content": "42"}}], "usage": usage})


async def _hangs(_: web.Request) -> web.Response:
    await asyncio.sleep(1.0)
    return web.Response()


async def _gone(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


FAULTS = [
    (_busy, "http_429"),
    (_broken, "http_5xx"),
    (_forbidden, "http_4xx"),
    (_no_json, "malformed"),
    (_no_tokens, "malformed"),
    (_hangs, "timeout"),
]


@pytest.mark.parametrize(("fault", "named"), FAULTS)
def test_a_request_that_fails_is_told_of_and_its_block_is_run_again(fault: Any, named: str, tmp_path: Path) -> None:
    plan = bench.plan(loads=ONE_LOAD, timeout_s=0.3)
    told = bench.done(tmp_path, plan, Faulty(fault, "1", 1))
    (left_out,) = [row for row in told.rows() if row.excluded is not None]
    assert (left_out.excluded, left_out.failures, left_out.attempt) == ("failures", 1, 0)
    (failed,) = [one for one in told.conversations(plan) if one.failure is not None]
    assert (failed.task, failed.failure, failed.correct, failed.turns) == ("t1", named, False, 0)
    assert (failed.output_tokens, failed.energy_j, failed.settled) == (None, None, False)
    blocks, outcomes = rows(plan, told)
    assert [row.block for row in blocks] == [0, 1, 2, 3]
    assert all(one.failure is None for one in outcomes)


def test_a_block_that_fails_as_often_as_it_may_is_left_out_for_good(tmp_path: Path) -> None:
    plan = bench.plan(loads=ONE_LOAD)
    told = bench.done(tmp_path, plan, Faulty(_busy, "1", 10**9))
    excluded = [(row.block, row.attempt) for row in told.rows() if row.excluded == "failures"]
    with_it = [block.number for block in plan.blocks if "t1" in {one.task for one in block.askings}]
    assert excluded == [(number, attempt) for number in with_it for attempt in range(2)]
    assert results.is_complete(plan, told)


def test_what_is_refused_for_its_content_counts_as_not_correct(tmp_path: Path) -> None:
    plan = bench.plan(loads=ONE_LOAD)
    told = bench.done(tmp_path, plan, Faulty(_full, "1", 10**9))
    assert all(row.excluded is None for row in told.rows())
    refused = [one for one in told.conversations(plan) if one.task == "t1"]
    assert [(one.failure, one.correct) for one in refused] == [("refused", False)] * 2


def test_a_server_that_dies_in_a_block_is_waited_for_and_the_block_run_again(tmp_path: Path) -> None:
    plan, upstream = bench.plan(loads=(Load("concurrency", concurrency=1, blocks=1),)), Faulty(_gone, "1", 1)
    upstream.warm = 6  # the warm-up asks twice
    told = bench.done(tmp_path, plan, upstream)
    (left_out,) = [row for row in told.rows() if row.excluded is not None]
    assert left_out.excluded == "server_gone"
    cut = [one for one in told.conversations(plan) if (one.block, one.attempt) == (left_out.block, 0)]
    order = [asking.task for asking in plan.blocks[left_out.block].askings]
    assert [one.task for one in cut] == order[: order.index("t1") + 1], "nothing is asked of a server that is gone"
    assert [one.failure for one in told.conversations(plan) if one.failure] == ["server_gone"]
    assert len(told.warm_ups) == 2, "a server that was started again is cold"
    assert len(rows(plan, told)[0]) == 2


def test_a_server_that_stays_away_ends_the_run_and_it_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead(Faulty):
        async def models(self, request: web.Request) -> web.Response:
            return await _gone(request)

    monkeypatch.setattr(experiment, "COMES_BACK_S", 0.05)
    plan = bench.plan(loads=ONE_LOAD)
    with pytest.raises(EngineError, match=r"went away in block \d and did not come back"):
        bench.done(tmp_path, plan, Dead(_gone, "1", 1))
    told = bench.go_on(tmp_path, plan, Upstream(bench.says))
    assert results.is_complete(plan, told)
    assert len(rows(plan, told)[1]) == plan.conversations


def test_a_server_that_answers_nothing_ends_the_run_before_its_first_block(tmp_path: Path) -> None:
    upstream = Faulty(_full, "01234567", 10**9)
    upstream.warm = 8
    with pytest.raises(EngineError, match=r"no request of the warm-up \(refused\).*as-served"):
        bench.done(tmp_path, bench.plan(), upstream)
    assert journal.load(tmp_path)[1].begun == []


def test_throttled_and_shared_boards_leave_a_block_out(tmp_path: Path) -> None:
    cool, hot, visited = Seen(60.0, False, 0), Seen(91.0, True, 0), Seen(60.0, False, 2)
    plan = bench.plan(loads=(Load("concurrency", concurrency=4, blocks=1),))
    # two glances while warming up, then one at each end of a block
    told = bench.done(
        tmp_path, plan, Upstream(bench.says), boards=bench.Looks(cool, cool, hot, cool, cool, visited, cool)
    )
    assert [(row.block, row.attempt, row.excluded) for row in told.rows()] == [
        (0, 0, "throttled"),
        (0, 1, "neighbours"),
        (1, 0, None),
    ]
    assert (told.rows()[0].temperature_c, told.rows()[0].throttled, told.rows()[1].neighbours) == (91.0, True, 2)


def test_a_counter_that_can_not_say_leaves_a_block_out(tmp_path: Path) -> None:
    class Forgetful(bench.Steady):
        def energy_between(self, start_ns: int, end_ns: int) -> tuple[float, float] | None:
            return None

    plan = bench.plan(loads=(Load("concurrency", concurrency=4, blocks=1),))
    patience = replace(bench.AT_ONCE, warm_up_s=0.05)
    told = bench.done(tmp_path, plan, Upstream(bench.says), joules=Forgetful(), patience=patience)
    assert [row.excluded for row in told.rows()] == ["counter"] * 4
    assert {row.idle_w for row in told.rows()} == {None}
    assert told.warm_ups[0]["level"] is False, "and the record says that it never was level"


def test_power_and_temperature_have_to_be_level_first(tmp_path: Path) -> None:
    plan = bench.plan(loads=(Load("concurrency", concurrency=4, blocks=1),))
    rising = [Seen(temperature) for temperature in (40.0, 48.0, 55.0, 58.0, 58.5)]
    told = bench.done(tmp_path, plan, Upstream(bench.says), boards=bench.Looks(*rising))
    assert len(told.warm_ups[0]["watts"]) == 5
    assert told.warm_ups[0]["level"] is True


def test_a_run_goes_on_only_where_it_was_begun(tmp_path: Path, kill_after: Callable[[int], None]) -> None:
    plan = bench.plan(loads=ONE_LOAD)
    kill_after(9)
    with pytest.raises(Killed):
        bench.done(tmp_path, plan, Upstream(bench.says))
    kill_after(10**9)
    with pytest.raises(ExperimentError, match=r"was begun on clock \(simulated\), and this is another board"):
        bench.go_on(tmp_path, plan, Upstream(bench.says), boards=bench.Looks(name="another board"))


def test_it_does_not_go_on_with_a_simulated_board_that_takes_more(tmp_path: Path) -> None:
    class Dearer(bench.Looks):
        def describe(self) -> list[dict[str, Any]]:
            return [{**board, "times_energy": 1.1} for board in super().describe()]

    plan = bench.plan()
    bench.done(tmp_path, plan, Upstream(bench.says), boards=Dearer())
    with pytest.raises(ExperimentError, match=r"was begun on clock at 1\.1 times its energy .*, and this is clock \("):
        bench.go_on(tmp_path, plan, Upstream(bench.says))


def test_with_a_real_sampler_the_joules_are_the_counters_own(tmp_path: Path) -> None:
    class Ticking(bench.Clock):
        def read_mj(self) -> int:
            return time.monotonic_ns() // 10_000_000 * int(bench.WATTS * 10)

    plan = bench.plan(loads=(Load("rate", rate_per_s=20.0, blocks=1),))
    joules = Joules([Ticking()])
    joules.start()
    try:
        told = bench.done(
            tmp_path, plan, Upstream(bench.says), joules=joules, patience=replace(bench.AT_ONCE, idle_s=0.2)
        )
    finally:
        joules.stop()
    for row in told.rows():
        assert row.energy_j == pytest.approx(bench.WATTS * (row.end_ns - row.start_ns) * 1e-9, rel=0.1)
        assert row.energy_error_j is not None
        assert 0 < row.energy_error_j < 0.2 * (row.energy_j or 0)
        assert row.idle_w == pytest.approx(bench.WATTS, rel=0.2)


def test_a_prompt_that_is_refused_does_not_end_a_warm_up(tmp_path: Path) -> None:
    """As when one after the other is asked, and the first prompt is too long for the server."""
    first: list[str] = []

    class Narrow(Upstream):
        async def chat(self, request: web.Request) -> web.StreamResponse:
            said = (await request.json())["messages"][-1]["content"]
            first.append(said)
            return await _full(request) if said == first[0] else await super().chat(request)

    plan = bench.plan(loads=(Load("closed-loop", concurrency=1, blocks=1),))
    told = bench.done(tmp_path, plan, Narrow(bench.says))
    assert {one.failure for one in told.conversations(plan)} == {None, "refused"}


def test_reasoning_beside_an_answer_leaves_its_slack_unknown(tmp_path: Path) -> None:
    class Thinking(Upstream):
        async def chat(self, request: web.Request) -> web.StreamResponse:
            response = await super().chat(request)
            assert isinstance(response, web.Response)
            told = json.loads(response.text or "")
            told["choices"][0]["message"]["reasoning"] = "Let me think."
            return web.json_response(told)

    plan = bench.plan(loads=ONE_LOAD)
    told = bench.done(tmp_path, plan, Thinking(bench.says))
    for one in told.conversations(plan):
        assert (one.eta_lenient_at_most, one.eta_deletion, one.lexical_slack, dict(one.slack)) == (None, None, None, {})


def test_a_receipt_that_takes_too_long_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Upstream):
        async def receipt(self, request: web.Request) -> web.Response:
            await asyncio.sleep(1.0)
            return await super().receipt(request)

    monkeypatch.setattr(asking, "SETTLE_S", 0.05)
    monkeypatch.setattr(asking, "LAST_LOOK_S", 0.05)
    plan = bench.plan(loads=ONE_LOAD)
    told = bench.done(tmp_path, plan, Slow(bench.says, settles_after=0))
    assert not any(one.settled for one in told.conversations(plan))
    assert all(row.excluded is None for row in told.rows())
