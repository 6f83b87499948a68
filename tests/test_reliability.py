"""Reliability as a user gets it: traffic through the real middleware, the real meter, the real auditor, a judge that labels; server and judge are scripted."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from etameter import audit_key, config
from etameter.prompts import audit_task
from etameter.prompts.auditor import LINE_LIMIT_BYTES, Auditor
from etameter.prompts.endpoint import Endpoint, connect
from etameter.serving.arrivals import Arrivals
from etameter.serving.proxy import Proxy
from etameter.serving.ring import RingWriter
from etameter.serving.streamed import TokenSteps
from etameter.slack.reliability import LEAST_PAIRS, TRUSTED
from tests.meter.test_daemon import Meter, free_port
from tests.prompts import upstream
from tests.prompts.upstream import Upstream, running

PATIENCE_S = 120.0
PACED = """
import sys
from etameter import auditing
auditing.IDLE_S, auditing.REST_S, auditing.TASK_EVERY_S, auditing.ALONE, auditing._TASK_TOKENS = 0.3, 0.01, 0.05, 1.0, 20
from etameter.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The meter as it is, but for how long it waits between two audits."""
ARM = "unconstrained"
FACTS = (
    "The river rises in the northern hills near the border.",
    "Seven stone bridges cross it between the castle and the port.",
    "Its water drove forty mills until the railway came in 1871.",
    "Salmon return every autumn since the weir was taken down.",
    "The harbour silted up, so that ships now unload downstream.",
    "Floods in 1953 destroyed the lower market and two churches.",
)
OPENING = "Sure! I'd be happy to help with that.\n\n"
CLOSING = "\n\nI hope this helps! Let me know if you have any other questions."
SLACK = re.compile(r"Sure!|happy to help|I hope this helps|Let me know if")


class Served:
    """A model that knows the answer to every task, and says it with more or less around it."""

    def __init__(self) -> None:
        self.references: dict[str, str] = {}
        self._asked: dict[str, int] = {}

    def __call__(self, messages: list[dict[str, str]]) -> str:
        prompt = messages[-1]["content"]
        number = self._asked[prompt] = self._asked.get(prompt, 0) + 1
        if prompt in self.references:
            place = list(self.references).index(prompt)
            times = place % 5 if number == 1 else 0 if number == 2 else 2
            return OPENING * times + self.references[prompt]
        place = int(prompt.split()[-1])
        said = " ".join(FACTS[: 1 + place % len(FACTS)])
        return (OPENING if place % 3 else "") + said + (CLOSING if place % 2 else "")


def judge(messages: list[dict[str, str]]) -> str:
    spans = re.findall(r'<span n="(\d+)">(.*?)</span>', messages[1]["content"], re.DOTALL)
    return str([{"n": int(n), "label": "P" if SLACK.search(text) else "R"} for n, text in spans]).replace("'", '"')


@contextlib.contextmanager
def metered(folder: Path) -> Iterator[Meter]:
    """A meter with a simulated board; the ring is there."""
    port, ring, board = free_port(), folder / "ring", folder / "board"
    simulating = ["-m", "etameter.counters.simulated", "--profile", "h100", "--ring", str(ring), "--board", str(board)]
    metering = ["-c", PACED, "meter", "--ring", str(ring), "--ledger", str(folder / "ledger.db"), "--port", str(port)]
    metering += ["--simulate-gpu", "h100", "--board", str(board)]
    own = {"ETAMETER_METER__CLASSIFY": "true", "ETAMETER_ETA__SHARE": "1", "ETAMETER_ETA__DEEP": "http://judge"}
    processes = [
        subprocess.Popen([sys.executable, *command], env=os.environ | own, stderr=subprocess.PIPE, text=True)
        for command in (simulating, metering)
    ]
    try:
        meter = Meter(processes[1], folder, port)
        deadline_s = time.monotonic() + PATIENCE_S
        while not meter.ready():
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        yield meter
    finally:
        for process in reversed(processes):
            process.kill()
            process.communicate()


@contextlib.asynccontextmanager
async def proxied(url: str, folder: Path) -> AsyncIterator[str]:
    ring = RingWriter(folder / "ring", engine="engine-0", model="small", dtype="unknown")
    async with Proxy(url, Arrivals(TokenSteps(ring))) as proxy:
        runner = web.ServerRunner(proxy.server(), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        await runner.cleanup()
    ring.close()


async def traffic(endpoint: Endpoint, requests: int) -> None:
    for number in range(requests):
        messages = [{"role": "user", "content": f"What is known of river {number}"}]
        await endpoint.chat({"model": "small", "messages": messages}, ARM)


async def receipt(endpoint: Endpoint, deadline_s: float) -> dict[str, Any]:
    """Of one more answer, once it has an η."""
    messages = [{"role": "user", "content": "What is known of river 0"}]
    answer = await endpoint.chat({"model": "small", "messages": messages}, ARM)
    assert answer.receipt_id is not None
    while True:
        energy, _ = await endpoint.settled(answer.receipt_id, deadline_s)
        if energy is not None and energy.get("eta") is not None:
            return dict(energy)
        assert time.monotonic() < deadline_s, energy
        await asyncio.sleep(0.2)


def told(samples: dict[str, float], statistic: str, tier: str) -> float | None:
    of = f'arm="{ARM}"', f'statistic="{statistic}"', f'tier="{tier}"'
    return next(
        (
            value
            for name, value in samples.items()
            if name.startswith("etameter_eta_reliability{") and all(label in name for label in of)
        ),
        None,
    )


@pytest.mark.unit
@pytest.mark.slow
def test_audits_of_live_traffic_tell_how_far_eta_is_to_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, place in (("RUN", tmp_path), ("STATE", tmp_path), ("RING_DIR", tmp_path)):
        monkeypatch.setenv(f"ETAMETER_{name}", str(place))
    monkeypatch.setenv("ETAMETER_CLASSIFY", "1")
    monkeypatch.setattr(upstream, "LONGEST_PROMPT", 10_000)
    served, task_of = Served(), audit_task.task_of

    def noted(seed: int) -> Any:
        task = task_of(seed)
        assert task.reference is not None
        served.references[task.turns[0]] = task.reference
        return task

    monkeypatch.setattr(audit_task, "task_of", noted)

    async def main() -> tuple[dict[str, float], dict[str, Any]]:
        async with contextlib.AsyncExitStack() as held:
            url = await held.enter_async_context(running(Upstream(served, metered=False)))
            judging = await held.enter_async_context(running(Upstream(judge, metered=False)))
            before = await held.enter_async_context(proxied(url, tmp_path))
            meter = await asyncio.to_thread(held.enter_context, metered(tmp_path))
            key = audit_key.made(config.audit_key_path())
            asking = await held.enter_async_context(connect(before, run="audit", audit_key=key))
            auditor = Auditor(asking, await held.enter_async_context(connect(judging)))
            lines = await asyncio.open_unix_connection(config.socket_path(), limit=LINE_LIMIT_BYTES)
            work = asyncio.ensure_future(auditor.work(*lines))
            user = await held.enter_async_context(connect(before))
            await asyncio.sleep(2.5)  # the middleware has found the meter
            try:
                deadline_s = time.monotonic() + PATIENCE_S
                while True:
                    await traffic(user, 40)
                    await asyncio.sleep(2.0)
                    samples = await asyncio.to_thread(meter.samples)
                    if all(told(samples, "agreement", tier) is not None for tier in ("fast", "deep", "fast_task")):
                        return samples, await receipt(user, deadline_s)
                    assert time.monotonic() < deadline_s, {n: v for n, v in samples.items() if "audit" in n and v}
            finally:
                work.cancel()
                await asyncio.wait({work})

    samples, energy = asyncio.run(main())
    for tier in ("fast", "deep", "fast_task"):
        agreement, low, high = (told(samples, name, tier) for name in ("agreement", "agreement_low", "agreement_high"))
        assert agreement is not None
        assert low is not None
        assert high is not None
        assert 0 <= low <= agreement <= high <= 1
        assert tier == "fast_task" or agreement >= TRUSTED, (tier, agreement)
        if tier == "fast":  # which is what a response's own η is of
            assert energy["eta"]["reliability"] >= TRUSTED
            assert len(energy["eta"]["reliability_interval"]) == 2
            assert energy["eta"]["reliable"] is True
    assert [value for name, value in samples.items() if name.startswith("etameter_eta_reliable{")] == [1.0]
    judged = sum(
        value for name, value in samples.items() if name.startswith("etameter_audits_total{") and "deep" in name
    )
    assert judged >= LEAST_PAIRS
