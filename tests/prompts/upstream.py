"""A server of a few lines that answers as vLLM does with etameter in it: by a script, with receipts that settle late."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Script = Callable[[list[dict[str, str]]], str]
"""The messages of a request → what is answered."""

LONGEST_PROMPT = 200
J_PER_TOKEN = 2.0


class Upstream:
    """A token is a word. Energy is known with the answer, with the receipt, or never."""

    def __init__(self, script: Script, *, metered: bool = True, settles_after: int = 1) -> None:
        self.script, self.metered, self.settles_after = script, metered, settles_after
        self.requests: list[dict[str, Any]] = []
        self.arms: list[str | None] = []
        self.audit_keys: list[str | None] = []
        self.most_at_once = 0
        self.looks: dict[str, int] = {}
        self._at_once = 0
        self._tokens: dict[str, int] = {}

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "small"}, {"id": "adapter"}]})

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def version(self, _: web.Request) -> web.Response:
        raise web.HTTPNotFound

    async def metrics(self, _: web.Request) -> web.Response:
        raise web.HTTPNotFound

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        for message in body["messages"]:
            if not isinstance(message["content"], str):
                message["content"] = "".join(part["text"] for part in message["content"])
        number = len(self.requests)
        self.arms.append(request.headers.get("X-Etameter-Arm"))
        self.audit_keys.append(request.headers.get("X-Etameter-Audit"))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await asyncio.sleep(0.005)
        self._at_once -= 1
        prompt_tokens = sum(len(message["content"].split()) for message in body["messages"])
        if prompt_tokens > LONGEST_PROMPT:
            return web.json_response({"error": {"message": "the context\nis full"}}, status=400)
        text = self.script(body["messages"])
        if text == "fail":
            return web.json_response({"error": {"message": "the engine died"}}, status=500)
        most = body.get("max_tokens", 10**6)
        words = text.split()
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": min(len(words), most)}
        message = {"role": "assistant", "content": text if len(words) <= most else " ".join(words[:most])}
        choice = {"index": 0, "message": message, "finish_reason": "stop" if len(words) <= most else "length"}
        told: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}
        if self.metered:
            receipt_id = f"{number:032x}"
            self._tokens[receipt_id] = usage["completion_tokens"]
            if number % 2:
                told["energy"] = self._energy(receipt_id, settled=False)
            else:
                told |= {"energy": None, "energy_reason": "meter_late", "energy_receipt_id": receipt_id}
        if body.get("stream"):
            return await self._stream(request, told)
        return web.json_response(told)

    async def _stream(self, request: web.Request, told: dict[str, Any]) -> web.StreamResponse:
        """A word a chunk, with the usage so far; what is told of the whole comes in the last, as from vLLM with its usage."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        choice = told.pop("choices")[0]
        for said, word in enumerate(re.findall(r"\S+\s*", choice["message"]["content"]), start=1):
            usage = {**told["usage"], "completion_tokens": said}
            await self._event(response, {"choices": [{"index": 0, "delta": {"content": word}}], "usage": usage})
        last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
        await self._event(response, {"choices": [last], "usage": told["usage"]})
        await self._event(response, {**told, "choices": []})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _event(self, response: web.StreamResponse, told: dict[str, Any]) -> None:
        chunk = {**told, "object": "chat.completion.chunk"}
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())

    async def receipt(self, request: web.Request) -> web.Response:
        receipt_id = request.match_info["receipt_id"]
        looks = self.looks[receipt_id] = self.looks.get(receipt_id, 0) + 1
        return web.json_response({"energy": self._energy(receipt_id, settled=looks > self.settles_after)})

    def _energy(self, receipt_id: str, *, settled: bool) -> dict[str, Any]:
        joules = J_PER_TOKEN * self._tokens[receipt_id]
        known = {
            "energy_joules": joules,
            "prompt_joules": joules / 4,
            "error_joules": joules / 10,
            "source": "simulated",
        }
        return {"receipt_id": receipt_id, "settled": settled, **known}


def application(upstream: Upstream) -> web.Application:
    made = web.Application()
    made.add_routes(
        [
            web.get("/health", upstream.health),
            web.get("/version", upstream.version),
            web.get("/metrics", upstream.metrics),
            web.get("/v1/models", upstream.models),
            web.post("/v1/chat/completions", upstream.chat),
            web.get("/energy/{receipt_id}", upstream.receipt),
        ]
    )
    return made


@asynccontextmanager
async def running(upstream: Upstream) -> AsyncIterator[str]:
    """Its address."""
    runner = web.AppRunner(application(upstream))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
