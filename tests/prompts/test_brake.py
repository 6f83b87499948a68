"""An arm beside itself with the slack brake: asked of a small server through the real middleware, reported, and allowed or not."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from etameter.cli import main
from etameter.config import ArmSection, Config
from etameter.errors import ConfigError, EngineError, ExperimentError
from etameter.footprint import Footprint
from etameter.prompts import asking, brake, report, results
from etameter.prompts.arms import Arm, find
from etameter.prompts.endpoint import connect
from etameter.prompts.plan import Load
from etameter.prompts.tables import Outcome, write_parquet
from etameter.prompts.tasks import Suite, Task
from etameter.serving.arrivals import Arrivals
from etameter.serving.brakes import permitted
from etameter.serving.proxy import Proxy
from etameter.serving.ring import RingWriter
from etameter.serving.streamed import TokenSteps
from etameter.slack.brake import identity
from tests.prompts import ab_bench
from tests.prompts.upstream import Upstream, running

pytestmark = pytest.mark.unit

ARMS: tuple[Arm, ...] = (find("unconstrained"), find("unconstrained-braked"))
TASKS = tuple(
    Task(f"t{n}", "mini", "sums", "easy", (f"What is {n} and {42 - n}?",), ab_bench.CHECKER) for n in range(24)
)
LOADS = (Load("concurrency", concurrency=4),)


def says(messages: list[dict[str, str]]) -> str:
    """A right answer with a closing; one answer in three says its number only after that."""
    number = int(messages[-1]["content"].split()[2])
    answer = "It is 42.\n\nI hope this helps! Let me know if you have any other questions about it."
    late = "It is a sum.\n\nI hope this helps! Let me know if you have any other questions about it.\n\nIt is 42."
    return late if number % 3 == 2 else answer


@pytest.fixture
def behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is asked through a proxy with the real middleware in it."""
    monkeypatch.setenv("ETAMETER_RUN", str(tmp_path))
    monkeypatch.setattr(report, "write", lambda *_: None)
    monkeypatch.setattr(asking, "SETTLE_S", 0.0)  # there is no meter
    monkeypatch.setattr(ab_bench, "ARMS", ARMS)
    monkeypatch.setattr(ab_bench, "TASKS", TASKS)
    monkeypatch.setattr(ab_bench, "SUITE", Suite("mini", "1", TASKS, "h"))

    @asynccontextmanager
    async def proxied(upstream: Upstream) -> AsyncIterator[str]:
        ring = RingWriter(tmp_path / "ring", engine="e", model="small", dtype="unknown", capacity_bytes=1 << 20)
        async with running(upstream) as url, Proxy(url, Arrivals(TokenSteps(ring))) as proxy:
            runner = web.ServerRunner(proxy.server(), shutdown_timeout=0.05)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
            await runner.cleanup()
        ring.close()

    monkeypatch.setattr(ab_bench, "running", proxied)


@pytest.fixture
def run(tmp_path: Path, behind: None) -> Path:
    """A run that has ended."""
    folder = tmp_path / "run"
    ab_bench.done(folder, ab_bench.plan(loads=LOADS), Upstream(says, metered=False), texts=True)
    results.conclude(folder, Footprint())
    return folder


def judge(answers: Path, out: Path) -> Path:
    """One that knows which line of an answer is required."""
    with answers.open() as lines, out.open("w") as judged:
        for row in map(json.loads, lines):
            at = row["response"].index("It is 42.")
            end = len(row["response"])
            spans = [[0, at, "C", 0.0, 1.0]] * (at > 0) + [[at, at + 9, "R", 1.0, 0.0], [at + 9, end, "C", 0.0, 1.0]]
            judged.write(json.dumps({"id": row["id"], "spans": spans}) + "\n")
    return out


def test_what_was_saved_and_spoiled_is_told_and_too_much_is_not_allowed(run: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    assert brake.write_answers(run, answers) == 24
    found = brake.measure(run, judge(answers, tmp_path / "judged.jsonl"))
    assert (found.arm, found.model, found.conversations) == ("unconstrained", "small", 24)
    assert found.braked == {"closing": 24, "repetition": 0}
    assert found.judged == brake.Ended(24, 24, 8, 24, brake.most(8, 24))
    assert found.accuracy is not None
    assert found.accuracy.difference == pytest.approx(-8 / 24)
    assert found.damage_at_most == pytest.approx(max(-found.accuracy.low, brake.most(8, 24)))
    assert "by the judge 8 of 24 answers spoiled" in brake.text_of(found)
    path = tmp_path / "report.json"
    brake.keep(found, path)
    with pytest.raises(ConfigError, match="bounds the damage at"):
        permitted(Config(arms={"unconstrained": ArmSection(brake=path)}))


def test_answers_to_one_prompt_count_once_and_what_was_not_judged_is_spoiled(run: Path, tmp_path: Path) -> None:
    first = results.taken(run).outcomes[0]
    text = "It is 42.\n\nI hope this helps! Let me know if you have any other questions about it."
    same = [replace(first, sample=n, prompt_text="What is 1 and 41?", answer_text=text) for n in range(30)]
    judged = tmp_path / "judged.jsonl"
    for spans, spoiled in (([[0, 9, "R", 1.0, 0.0], [11, len(text), "C", 0.0, 1.0]], 0), ([], 30), (None, 30)):
        judged.write_text("".join(json.dumps({"id": brake._name(one), "spans": spans}) + "\n" for one in same))
        found = brake._judged(same, judged)
        assert found == brake.Ended(30, 30, spoiled, 1, brake.most(min(spoiled, 1), 1))
        assert found.at_most > 0.9, "one prompt shows next to nothing"


def test_without_a_judge_there_is_no_bound(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = brake.measure(run, None)
    assert (found.judged, found.damage_at_most) == (None, None)
    for words, told in (
        ([], "no bound on the damage"),
        (["--answers-out", "a.jsonl"], "24 answers, in"),
        (["--json"], "{"),
    ):
        paths = [str(tmp_path / word) if word.endswith("jsonl") else word for word in words]
        with pytest.raises(SystemExit) as left:
            main(["eta", "brake", str(run), *paths])
        assert left.value.code == 0
        assert told in capsys.readouterr().out


def test_rows_say_what_was_braked_and_shorter_answers_were_paid(run: Path) -> None:
    outcomes = results.taken(run).outcomes
    tokens = {arm.name: sum(one.output_tokens or 0 for one in outcomes if one.arm == arm.name) for arm in ARMS}
    assert tokens["unconstrained-braked"] < tokens["unconstrained"]
    assert {(one.arm, one.braked) for one in outcomes} == {
        ("unconstrained", None),
        ("unconstrained-braked", "closing"),
    }


def test_what_other_detectors_did_is_not_reported_as_these(run: Path) -> None:
    under = [one for one in results.taken(run).outcomes if one.arm == "unconstrained-braked"]
    assert {one.detectors for one in under} == {identity()}
    others = [replace(under[0], detectors="0" * 16), replace(under[1], detectors=None), *under[2:]]
    rest = [one for one in results.taken(run).outcomes if one.arm == "unconstrained"]
    assert {one.detectors for one in rest} == {None}
    write_parquet(run / results.REQUESTS_FILE, Outcome, [*rest, *others], {})
    with pytest.raises(ExperimentError, match=f"other detectors than this version's {identity()}: {'0' * 16}, unknown"):
        brake.measure(run, None)
    failed = replace(under[0], turns=0, detectors=None, failure="timeout", correct=False)
    write_parquet(run / results.REQUESTS_FILE, Outcome, [*rest, failed, *under[1:]], {})
    assert brake.measure(run, None).detectors == identity()


def test_a_server_without_the_brake_is_refused() -> None:
    async def ask() -> None:
        async with running(Upstream(says)) as url, connect(url) as endpoint:
            body = {"model": "small", "messages": [{"role": "user", "content": "What is 1 and 41?"}]}
            whole = await endpoint.chat(body, "seed")
            streamed = await endpoint.chat_streamed(body, "seed", braked=False)
            assert (streamed.text.split(), streamed.output_tokens) == (whole.text.split(), whole.output_tokens)
            assert (streamed.finish_reason, streamed.braked) == ("stop", None)
            with pytest.raises(EngineError, match="has no slack brake"):
                await endpoint.chat_streamed(body, "seed", braked=True)

    asyncio.run(ask())


def test_a_run_of_other_arms_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ab_bench.done(folder, ab_bench.plan(), Upstream(ab_bench.says))
    with pytest.raises(ExperimentError, match="has 0 arms that are there with the brake, too"):
        brake.measure(folder, None)


@pytest.mark.parametrize(("hits", "of", "bound"), [(0, 100, 0.0362), (3, 100, 0.0852), (8, 24, 0.5532), (5, 5, 1.0)])
def test_the_bound_is_that_of_clopper_and_pearson(hits: int, of: int, bound: float) -> None:
    assert brake.most(hits, of) == pytest.approx(bound, abs=2e-4)


def test_the_brake_is_part_of_an_arm(tmp_path: Path) -> None:
    same, braked = find("concise"), find("concise-braked")
    assert (braked.name, braked.system, braked.braked) == ("concise-braked", same.system, True)
    assert braked.hash != same.hash
    (tmp_path / "house.md").write_text("Be kind.")
    own: Any = find(f"house-braked={tmp_path / 'house.md'}")
    assert (own.name, own.system, own.braked) == ("house-braked", "Be kind.", True)
