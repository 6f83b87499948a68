"""`etameter verify` against a small engine that writes a real ring, behind the endpoints that it asks, with a real meter beside it."""

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from aiohttp import web

from etameter import verify
from etameter.errors import EngineError
from etameter.serving.ring import RingWriter, Row
from etameter.verify import Phase, Verification, Work, judge
from tests.meter.test_daemon import lit_board, running, until

pytestmark = pytest.mark.unit

PASS_J, TOKEN_J = 2.0, 0.5
WORK = Work(requests=4, prompt_tokens=32, output_tokens=16)


def phase(passes_each: float, marginal_j: float, **changes: object) -> Phase:
    paid_j = PASS_J * passes_each + TOKEN_J * WORK.output_tokens
    made = Phase(4 * paid_j + 7.0, 4 * paid_j, 7.0, PASS_J, 0.01, 4, (paid_j,) * 4, (0.1,) * 4, (marginal_j,) * 4, 1.0)
    return replace(made, **changes)  # type: ignore[arg-type]


ALONE = phase(16, PASS_J * 16 + TOKEN_J * 16)
AT_ONCE = phase(4, TOKEN_J * 16)


def test_work_that_costs_the_same_alone_and_in_company_is_additive() -> None:
    verdict = judge(WORK, ALONE, AT_ONCE)
    assert (verdict.own_work_alone_j, verdict.own_work_at_once_j) == (8.0, 8.0)
    assert verdict.additivity_error == 0.0
    assert verdict.saving == pytest.approx(1 - (8 + 8) / (32 + 8))
    assert verdict.good
    twice = judge(WORK, ALONE, phase(4, 2 * TOKEN_J * 16))
    assert twice.additivity_error == pytest.approx(8 / 40)
    assert twice.own_work_alone_error_j == pytest.approx(1.96 * 16 * 0.01)
    assert twice.additivity_uncertainty == pytest.approx(1.96 * 16 * 0.01 / 40)
    assert judge(WORK, replace(ALONE, pass_j=None), AT_ONCE).additivity_error is None


def test_what_only_the_first_comer_runs_alone_is_not_taken_for_its_own_work() -> None:
    first_alone = (TOKEN_J * 16 + 2 * PASS_J, *(TOKEN_J * 16,) * 3)
    assert judge(WORK, ALONE, replace(AT_ONCE, marginal_j=first_alone)).additivity_error == 0.0


def test_a_fit_that_takes_off_too_much_shows() -> None:
    told = judge(WORK, replace(ALONE, pass_j=1.5 * PASS_J), AT_ONCE)
    assert told.own_work_alone_j == -8.0
    assert told.additivity_error == pytest.approx(16 / 40)


def test_receipts_that_do_not_add_up_and_neighbours_are_told() -> None:
    missing = judge(WORK, ALONE, replace(AT_ONCE, counter_j=AT_ONCE.counter_j * 1.1))
    assert not missing.good
    assert missing.gap_at_once == pytest.approx(0.1 / 1.1)
    assert missing.gap_alone == pytest.approx(0.0)
    disturbed = judge(WORK, ALONE, replace(AT_ONCE, finished=5))
    assert (disturbed.undisturbed, disturbed.good) == (False, False)
    unequal = judge(WORK, ALONE, replace(AT_ONCE, receipts_j=(1.0, 2.0, 3.0, 2.0)))
    assert unequal.spread_at_once == pytest.approx(0.408, abs=1e-3)


def test_an_engines_gpus_pass_together_and_ranks_each_for_itself() -> None:
    passes_j, errors_j = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 4.0}, {"a": 3.0, "b": 4.0, "c": 1.0, "d": 1.0}
    assert verify.pass_of("m", [("m", ["a", "b"]), ("other", ["c"])], passes_j, errors_j) == (4.0, 5.0)
    assert verify.pass_of("m", [("m", ["c"]), ("m", ["d"]), ("m", ["unfitted"])], passes_j, errors_j) == (3.0, 1.0)
    assert verify.pass_of("its name", [("/its/path", ["c"])], passes_j, errors_j) == (2.0, 1.0)
    assert verify.pass_of("m", [("m", ["unfitted"])], passes_j, errors_j) == (None, 0.0)
    assert verify.pass_of("m", [], passes_j, errors_j) == (None, 0.0)


@dataclass
class Batcher:
    """Runs what is asked of it in steps of 10 ms, all that is there in each."""

    ring: RingWriter
    running: dict[int, tuple[int, int, int, asyncio.Future[None]]] = field(default_factory=dict)
    step: int = 0

    async def run(self) -> None:
        while True:
            if not self.running:
                await asyncio.sleep(0.005)
                continue
            rows: list[Row] = []
            for number, (prompt, done, _, _) in self.running.items():
                rows.append((number, 0, 1, 0, 0, 0, 0, prompt + done - 1, 0) if done else (number, prompt, *[0] * 7))  # type: ignore[arg-type]
            self.ring.dispatch(self.step, time.monotonic_ns(), rows)
            await asyncio.sleep(0.01)
            self.ring.done(self.step, time.monotonic_ns())
            self.step += 1
            for number, *_ in rows:
                prompt, done, wanted, answer = self.running[number]
                self.running[number] = (prompt, done + 1, wanted, answer)
                if done + 1 == wanted:
                    self.ring.finish(number, time.monotonic_ns(), wanted, "length")
                    del self.running[number]
                    answer.set_result(None)

    async def answer(self, prompt_tokens: int, output_tokens: int) -> web.Response:
        receipt_id = uuid.uuid4().hex
        number = self.ring.open_request(f"cmpl-{receipt_id}00000000", prompt_tokens, time.monotonic_ns())
        ended = asyncio.get_running_loop().create_future()
        self.running[number] = (prompt_tokens, 0, output_tokens, ended)
        await ended
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens}
        choice = {"message": {"content": "hello"}, "finish_reason": "length"}
        return web.json_response(
            {"energy": {"receipt_id": receipt_id, "source": "simulated"}, "choices": [choice], "usage": usage}
        )

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def chat(self, _: web.Request) -> web.Response:
        return await self.answer(5, 4)

    async def complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body["ignore_eos"] is True
        assert body["min_tokens"] == body["max_tokens"]
        return await self.answer(len(body["prompt"]), body["max_tokens"])


@contextmanager
def serving(directory: Path) -> Iterator[RingWriter]:
    ring = RingWriter(directory / "ring", engine="engine-0", model="m", dtype="bfloat16")
    yield ring
    ring.close()


async def verified(ring: RingWriter, meter_url: str, *, disturbed: bool = False) -> Verification:
    batcher = Batcher(ring)
    application = web.Application()
    routes = [web.get("/v1/models", batcher.models), web.post("/v1/chat/completions", batcher.chat)]
    application.add_routes([*routes, web.post("/v1/completions", batcher.complete)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stepping = asyncio.create_task(batcher.run())
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        neighbours = [asyncio.create_task(disturb(batcher))] if disturbed else []
        found = await verify.measure(url, meter_url, WORK)
        await asyncio.gather(*neighbours)
    finally:
        stepping.cancel()
        await runner.cleanup()
    told = json.loads(verify.as_json(found))
    assert (told["good"], told["source"], told["model"]) == (found.verdict.good, "simulated", "m")
    assert f"m at {url}, source=simulated" in verify.report(found)
    return found


async def disturb(batcher: Batcher) -> None:
    """Somebody else asks something as the first phase goes on."""
    while batcher.step < 30:  # noqa: ASYNC110  # nothing tells
        await asyncio.sleep(0.01)
    await batcher.answer(10, 10)


@pytest.mark.parametrize("disturbed", [False, True], ids=["alone", "with a neighbour"])
def test_a_server_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturbed: bool) -> None:
    monkeypatch.setenv("ETAMETER_METER__RECEIPT_TOKEN", "sesame-sesame-sesame")  # of the meter, and of who verifies
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter, serving(tmp_path) as ring:
        until(lambda: json.loads(meter.get("/health")[1])["engine"])
        meter_url = f"http://127.0.0.1:{meter.port}"
        found = asyncio.run(verified(ring, meter_url, disturbed=disturbed))
    verdict = found.verdict
    assert verdict.undisturbed is not disturbed
    if not disturbed:
        assert verdict.good
        assert max(verdict.gap_alone, verdict.gap_at_once) < 1e-6
        assert 0.4 < verdict.saving < 0.95  # four requests in the steps of one
        assert found.alone.finished == found.at_once.finished == WORK.requests
        assert verdict.spread_at_once < 0.1


def test_a_server_without_a_meter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not answer"):
        asyncio.run(verify.measure("http://127.0.0.1:9", "http://127.0.0.1:9", WORK))


@pytest.mark.parametrize("url", ["127.0.0.1:9", "localhost", "http://"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(EngineError, match=r"is no address: write it as http://HOST:PORT"):
        asyncio.run(verify.measure(url, "http://127.0.0.1:9", WORK))


def test_an_address_of_something_else_is_no_meters(tmp_path: Path) -> None:
    async def ask() -> None:
        application = web.Application()
        batcher = Batcher(ring)
        chat, metrics = web.post("/v1/chat/completions", batcher.chat), web.get("/metrics", other)
        application.add_routes([web.get("/v1/models", batcher.models), chat, metrics])
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        stepping = asyncio.create_task(batcher.run())
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            await verify.measure(url, url, WORK)
        finally:
            stepping.cancel()
            await runner.cleanup()

    async def other(_: web.Request) -> web.Response:
        return web.Response(text="vllm:num_requests_running 1.0\n")

    with serving(tmp_path) as ring, pytest.raises(EngineError, match="/metrics is not a meter's"):
        asyncio.run(ask())
