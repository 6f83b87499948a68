"""Makes the audits that the meter wants: `etameter audits`.

It is told a job at a time over the meter's socket, and asks one request at a time. When the meter says that the server has other work, that
request is given up at once, which ends it in the engine, and made anew when there is none. The texts of a job are forgotten with it.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp

from etameter import audit_key, config
from etameter.auditing import AUDIT
from etameter.errors import ConfigError, EngineError
from etameter.records import weakest
from etameter.slack.judge import Question

from . import audit_task
from .endpoint import Answer, Endpoint, Failed, connect
from .judging import judge_of, replies_to

logger = logging.getLogger("etameter")

SERVED_KEY: Final = "VLLM_API_KEY"
"""Environment: what the served model wants to be shown, as vLLM itself takes it."""
JUDGE_KEY: Final = "ETAMETER_JUDGE_API_KEY"
"""Environment: what another judge wants."""
MOST_INTERRUPTIONS: Final = 8
"""Of one request; then the job is given up."""
LINE_LIMIT_BYTES: Final = 2 << 20
AWAY_S: Final = 2.0
SETTLE_S: Final = 10.0
"""Another server's receipts are waited for so long."""
_NICE: Final = 10


class Interrupted(Failed):
    """There was other work each time."""

    def __init__(self) -> None:
        super().__init__("timeout", "the server has other work each time", "name another judge as [eta] deep")


def run(settings: config.Config, url: str, socket: Path) -> None:
    """Make audits of the server at `url` for the meter at `socket` until interrupted. Both may come and go.

    Raises:
        ConfigError: audits are off.
    """
    if settings.eta.deep == "off" or not settings.meter.classify:
        raise ConfigError("audits are off", "set [meter] classify = true, and [eta] deep to served or an address")
    os.nice(_NICE)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(settings, url, socket))


async def _run(settings: config.Config, url: str, socket: Path) -> None:
    async with AsyncExitStack() as held:
        key = audit_key.made(socket.with_name(config.audit_key_path().name))
        served = await held.enter_async_context(_connected(url, SERVED_KEY, key))
        judge = served
        if settings.eta.deep != "served":
            judge = await held.enter_async_context(_connected(settings.eta.deep, JUDGE_KEY))
        auditor = Auditor(served, judge)
        while True:
            with contextlib.suppress(
                OSError, ValueError
            ):  # ValueError: a line that is none of the meter's, or too long
                await auditor.work(*await asyncio.open_unix_connection(socket, limit=LINE_LIMIT_BYTES))
            await asyncio.sleep(AWAY_S)


def _connected(url: str, api_key: str, key: str | None = None) -> contextlib.AbstractAsyncContextManager[Endpoint]:
    """`api_key` is the variable that holds the server's."""
    base = url.rstrip("/").removesuffix("/v1")
    return connect(base, api_key=os.environ.get(api_key) or None, run=AUDIT, audit_key=key)


class Auditor:
    """Does what it is told, one job at a time."""

    def __init__(self, served: Endpoint, judge: Endpoint) -> None:
        self._served = served
        self._judge = judge
        self._may = asyncio.Event()
        self._may.set()
        self._request: asyncio.Task[Answer] | None = None
        self._job: asyncio.Task[None] | None = None
        self._names: dict[Endpoint, str] = {}

    async def work(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the meter goes. Raises OSError, and ValueError for what is none of its messages."""
        _say(writer, {})
        try:
            while line := await reader.readline():
                self._take(json.loads(line), writer)
        finally:
            if self._job is not None:
                self._job.cancel()
            self._may.set()
            writer.transport.abort()

    def _take(self, message: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        match message["type"]:
            case "judge" | "task":
                self._may.set()
                self._job = asyncio.ensure_future(self._do(message, writer))
            case "pause":
                self.pause()
            case "go":
                self._may.set()
            case "drop" if self._job is not None:
                self._job.cancel()

    def pause(self) -> None:
        """Give up what is being asked, and ask nothing for now."""
        self._may.clear()
        if self._request is not None:
            self._request.cancel()

    async def _do(self, job: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        """What can't be done is told to have come to nothing."""
        told: dict[str, object] = {}
        try:
            if job["type"] == "judge":
                told = await self._judged(job["prompt"], job["response"])
            else:
                named = await self._name(self._served)
                told = {
                    "answers": await audit_task.audit(job["seed"], job["arms"], named, self._asked, self._questioned)
                }
        except (EngineError, aiohttp.ClientError, TimeoutError) as error:
            logger.info("an audit came to nothing: %s", type(error).__name__)
        finally:
            _say(writer, {"job": job["job"], **told})

    async def _judged(self, prompt: str, response: str) -> dict[str, object]:
        judgement = await judge_of(prompt, response, self._questioned)
        told: dict[str, object] = {"labels": [list(judgement.forwards.items()), list(judgement.backwards.items())]}
        answers = judgement.answers
        if self._judge is self._served:
            return {**told, "receipts": [each.receipt_id for each in answers if each.receipt_id is not None]}
        return {**told, **await self._took(answers)}

    async def _took(self, answers: Sequence[Answer]) -> dict[str, object]:
        """What another server says that its answers took; nothing where it doesn't of each of them."""
        deadline_s = time.monotonic() + SETTLE_S
        energies = []
        try:
            for each in answers:
                if each.receipt_id is None:
                    return {}
                energies.append((await self._judge.settled(each.receipt_id, deadline_s))[0])
        except (ValueError, EngineError, aiohttp.ClientError, TimeoutError):
            return {}
        known = [each for each in energies if each is not None]
        if not known or len(known) < len(energies):
            return {}
        joules = sum(float(each["energy_joules"]) for each in known)
        return {"energy_j": joules, "source": weakest(frozenset(each["source"] for each in known))}

    async def _asked(self, body: Mapping[str, Any]) -> Answer:
        return await self.ask(self._served, body)

    async def _questioned(self, question: Question) -> tuple[Answer, ...]:
        return await replies_to(question, await self._name(self._judge), partial(self.ask, self._judge))

    async def ask(self, endpoint: Endpoint, body: Mapping[str, Any]) -> Answer:
        """As soon as that may be, and anew whenever it had to be given up. Raises Failed."""
        for _ in range(MOST_INTERRUPTIONS):
            await self._may.wait()
            self._request = asyncio.ensure_future(endpoint.chat(body, AUDIT))
            try:
                return await self._request
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():  # it is the job that was given up
                    raise
            finally:
                self._request = None
        raise Interrupted

    async def _name(self, endpoint: Endpoint) -> str:
        """Of the model that the server calls its first."""
        if endpoint not in self._names:
            self._names[endpoint] = (await endpoint.models())[0]
        return self._names[endpoint]


def _say(writer: asyncio.StreamWriter, told: Mapping[str, object]) -> None:
    if not writer.transport.is_closing():
        writer.write(json.dumps({"type": AUDIT + "s", **told}).encode() + b"\n")
