"""Who makes audits, between a meter of a few lines and a server of a few lines."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from etameter.auditing import TASK_ANSWERS
from etameter.config import Config, EtaSection, MeterSection
from etameter.errors import ConfigError
from etameter.prompts import auditor
from etameter.prompts.audit_task import AS_UNLABELLED, UNLABELLED, askable, task_of
from etameter.prompts.auditor import Auditor, run
from etameter.prompts.endpoint import connect
from tests.prompts.upstream import Script, Upstream, running

pytestmark = pytest.mark.unit

PROMPT, RESPONSE = "Name the capital of France.", "Sure! It is Paris."
JUDGE_IT = {"type": "judge", "job": 3, "prompt": PROMPT, "response": RESPONSE}
SEED = 7


@pytest.fixture(autouse=True)
def _with_long_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.prompts.upstream.LONGEST_PROMPT", 10_000)


class Meter:
    """The meter's end: says what the test says, and hears what comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def say(self, message: Mapping[str, object]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(await self._reader.readline())
        return told

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


def audited(
    folder: Path, upstream: Upstream, work: Callable[[Meter], Awaitable[None]], judge: Upstream | None = None
) -> None:
    """Runs an auditor of `upstream`, judged by itself or by another one, and `work` at the meter's end."""

    async def main() -> None:
        met: asyncio.Future[Meter] = asyncio.get_running_loop().create_future()
        listening = await asyncio.start_unix_server(
            lambda reader, writer: met.set_result(Meter(reader, writer)), folder / "meter.sock"
        )
        async with (
            listening,
            running(upstream) as url,
            running(judge or upstream) as other,
            connect(url) as served,
            connect(other) as judging,
        ):
            auditor = Auditor(served, served if judge is None else judging)
            task = asyncio.ensure_future(auditor.work(*await asyncio.open_unix_connection(folder / "meter.sock")))
            meter = await met
            try:
                assert await meter.hear() == {"type": "audits"}
                await work(meter)
            finally:
                await meter.close()
                await task

    asyncio.run(asyncio.wait_for(main(), 30))


def labels(messages: list[dict[str, str]]) -> str:
    assert '<span n="2">It is Paris.</span>' in messages[1]["content"]
    return json.dumps({"spans": [{"n": 1, "label": "P"}, {"n": 2, "label": "R"}]})


def test_a_response_is_judged_twice_by_the_served_model_under_the_arm_of_audits(tmp_path: Path) -> None:
    upstream = Upstream(labels)

    async def work(meter: Meter) -> None:
        meter.say(JUDGE_IT)
        told = await meter.hear()
        assert told["job"] == 3
        assert told["labels"] == [[[1, "P"], [2, "R"]]] * 2
        assert told["receipts"] == [f"{number:032x}" for number in (1, 2)]
        assert "energy_j" not in told

    audited(tmp_path, upstream, work)
    assert upstream.arms == ["audit", "audit"]
    assert upstream.most_at_once == 1


@pytest.mark.parametrize(("metered", "took"), [(True, {"energy_j": 2 * 2.0 * 9, "source": "simulated"}), (False, {})])
def test_another_judge_tells_what_it_took_if_it_knows(tmp_path: Path, metered: bool, took: dict[str, object]) -> None:
    judge = Upstream(labels, metered=metered)
    upstream = Upstream(lambda _: "never asked")

    async def work(meter: Meter) -> None:
        meter.say(JUDGE_IT)
        told = await meter.hear()
        assert told["labels"][0] == [[1, "P"], [2, "R"]]
        assert "receipts" not in told, "of another meter"
        assert {name: told[name] for name in ("energy_j", "source") if name in told} == took

    audited(tmp_path, upstream, work, judge)
    assert (len(upstream.requests), len(judge.requests)) == (0, 2)


def test_a_judge_that_fails_or_says_nonsense_leaves_no_labels(tmp_path: Path) -> None:
    for script in (lambda _: "fail", lambda _: "I think that all of it is fine."):

        async def work(meter: Meter) -> None:
            meter.say(JUDGE_IT)
            assert (await meter.hear())["labels"] == [[], []]

        audited(tmp_path, Upstream(script), work)


class Slow(Upstream):
    """Answers when the test lets it."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.asked = asyncio.Event()
        self.let = asyncio.Event()
        self.given_up = 0

    async def chat(self, request: Any) -> Any:
        self.asked.set()
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return await super().chat(request)


def test_a_pause_gives_the_request_up_at_once_and_it_is_made_anew_when_there_is_time(tmp_path: Path) -> None:
    upstream = Slow(labels)

    async def work(meter: Meter) -> None:
        meter.say(JUDGE_IT)
        await upstream.asked.wait()
        upstream.asked.clear()
        meter.say({"type": "pause"})
        await asyncio.sleep(0.05)
        assert not upstream.asked.is_set(), "nothing is asked meanwhile"
        upstream.let.set()
        meter.say({"type": "go"})
        assert (await meter.hear())["labels"] == [[[1, "P"], [2, "R"]]] * 2

    audited(tmp_path, upstream, work)


def test_a_job_that_is_dropped_comes_to_nothing(tmp_path: Path) -> None:
    upstream = Slow(labels)

    async def work(meter: Meter) -> None:
        meter.say(JUDGE_IT)
        await upstream.asked.wait()
        meter.say({"type": "pause"})
        meter.say({"type": "drop"})
        assert await meter.hear() == {"type": "audits", "job": 3}
        upstream.let.set()
        meter.say({**JUDGE_IT, "job": 4})
        assert (await meter.hear())["labels"][0] == [[1, "P"], [2, "R"]]

    audited(tmp_path, upstream, work)


def test_a_request_that_is_interrupted_each_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etameter.prompts.auditor.MOST_INTERRUPTIONS", 1)
    upstream = Slow(labels)

    async def work(meter: Meter) -> None:
        meter.say(JUDGE_IT)
        for _ in range(2):  # each of its two questions
            await upstream.asked.wait()
            upstream.asked.clear()
            meter.say({"type": "pause"})
            meter.say({"type": "go"})
        assert (await meter.hear())["labels"] == [[], []]
        upstream.let.set()

    audited(tmp_path, upstream, work)


def test_a_task_is_asked_eight_times_under_each_arm_and_one_right_answer_of_each_is_judged(tmp_path: Path) -> None:
    task = task_of(SEED)
    assert task.reference is not None
    right, wrong = f"{task.reference}", "No."  # shorter than any that is right
    turns: dict[str, int] = {}

    def script(messages: list[dict[str, str]]) -> str:
        if "You judge" in messages[0]["content"]:
            numbers = [int(part.partition('"')[0]) for part in messages[1]["content"].split('<span n="')[1:]]
            return json.dumps({str(number): "R" if number == max(numbers) else "O" for number in numbers})
        arm = "concise" if messages[0]["role"] == "system" else UNLABELLED
        turns[arm] = turns.get(arm, 0) + 1
        if arm == "concise":
            return right
        return wrong if turns[arm] <= 2 else f"Let us see how that may be done.\n\n{right}"

    async def work(meter: Meter) -> None:
        meter.say({"type": "task", "job": 0, "seed": SEED, "arms": [UNLABELLED, "my-own", "concise"]})
        answers = (await meter.hear())["answers"]
        assert [each["arm"] for each in answers] == [UNLABELLED] * 8 + ["concise"] * 8
        assert [each["correct"] for each in answers] == [False] * 2 + [True] * 14
        assert {each["task"] for each in answers} == {task.id}
        shortest = len(right.split())
        for each in answers:
            assert each["eta_task"] == pytest.approx(shortest / each["tokens"] if each["correct"] else 0.0)
        judged = [place for place, each in enumerate(answers) if each["deep_lenient"] is not None]
        assert judged == [2, 8]
        assert answers[2]["deep_strict"] < answers[8]["deep_strict"] == 1.0
        assert [len(each["receipts"]) for each in answers[:4]] == [1, 1, 3, 1]

    upstream = Upstream(script)
    audited(tmp_path, upstream, work)
    assert set(upstream.arms) == {"audit"}
    assert upstream.most_at_once == 1


def test_a_server_that_fails_leaves_a_task_without_answers(tmp_path: Path) -> None:
    async def work(meter: Meter) -> None:
        meter.say({"type": "task", "job": 0, "seed": SEED, "arms": [UNLABELLED]})
        assert await meter.hear() == {"type": "audits", "job": 0}

    audited(tmp_path, Upstream(lambda _: "fail"), work)


def test_tasks_differ_by_their_seeds() -> None:
    assert len({task_of(seed).turns for seed in range(50)}) == 50
    assert task_of(SEED) == task_of(SEED)


def test_arms_whose_way_of_asking_nobody_knows_are_left_out() -> None:
    assert {name: arm.name for name, arm in askable(["x", UNLABELLED, "entrace"]).items()} == {
        UNLABELLED: AS_UNLABELLED,
        "entrace": "entrace",
    }
    assert TASK_ANSWERS == 8


@pytest.mark.parametrize(("classify", "deep"), [(False, "served"), (True, "off")])
def test_audits_that_are_off_are_not_made(tmp_path: Path, classify: bool, deep: str) -> None:
    settings = Config(meter=MeterSection(classify=classify), eta=EtaSection(deep=deep))
    with pytest.raises(ConfigError, match="audits are off"):
        run(settings, "http://127.0.0.1:9", tmp_path / "meter.sock")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_served_model_knows_audits_by_their_key_and_another_judge_is_not_told_it(
    tmp_path: Path, elsewhere: bool
) -> None:
    upstream = Upstream(labels)

    async def main() -> None:
        met: asyncio.Future[Meter] = asyncio.get_running_loop().create_future()
        socket = tmp_path / "meter.sock"
        listening = await asyncio.start_unix_server(lambda *ends: met.set_result(Meter(*ends)), socket)
        async with listening, running(upstream) as url:
            eta = EtaSection(deep=f"{url}/v1") if elsewhere else EtaSection()
            served = "http://127.0.0.1:1" if elsewhere else url
            settings = Config(meter=MeterSection(classify=True), eta=eta)
            auditing = asyncio.ensure_future(auditor._run(settings, served, socket))
            meter = await met
            await meter.hear()
            meter.say(JUDGE_IT)
            await meter.hear()
            auditing.cancel()
            await meter.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    key = (tmp_path / "audit.key").read_text()
    assert upstream.audit_keys == [None if elsewhere else key] * 2
