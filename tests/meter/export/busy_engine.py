"""An engine that serves nobody: writes the steps of made-up requests in real time, and tells the meter of them as the middleware would.

`python -m tests.meter.export.busy_engine RING SOCKET [ENGINE]`, until it is ended.
"""

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etameter.serving.link import MeterLink
from etameter.serving.ring import RingWriter, Row

ARMS = ("unconstrained", "concise", "entrace")
STEP_S = 0.03
MOST_AT_ONCE = 4
LENGTH_LIMIT = 110
"""Output tokens: what would be longer is cut off, and wasted."""
WORDY = (
    "Sure! Great question. You are asking for the name of an island. {} I hope this helps! "
    "Let me know if you have any other questions."
)
PLAIN = "{}"
ANSWER = "Zanzibar lies in the Indian Ocean, off the coast of Tanzania, and its largest island is Unguja."


@dataclass
class Request:
    """One that is being answered."""

    number: int
    receipt_id: str
    public_id: str
    arm: str
    prompt_tokens: int
    left: int
    done: int = 0

    def row(self) -> Row:
        if self.done == 0:
            return (self.number, self.prompt_tokens, 0, 0, 0, 0, 0, 0, 0)
        return (self.number, 0, 1, 0, 0, 0, 0, self.prompt_tokens + self.done, 0)


async def serve(ring: RingWriter, link: MeterLink, seed: int = 7) -> None:
    """Until it is cancelled."""
    chance = random.Random(seed)
    link.start()
    open_requests: list[Request] = []
    step = 0
    while True:
        if len(open_requests) < MOST_AT_ONCE and chance.random() < 0.06:
            open_requests.append(_come(ring, link, chance))
        if open_requests:
            ring.dispatch(step, time.monotonic_ns(), [each.row() for each in open_requests])
            await asyncio.sleep(STEP_S)
            ring.done(step, time.monotonic_ns())
            step += 1
            open_requests = _advance(ring, link, open_requests)
        else:
            await asyncio.sleep(STEP_S)


def _come(ring: RingWriter, link: MeterLink, chance: random.Random) -> Request:
    receipt_id, public_id = f"{chance.getrandbits(128):032x}", f"chatcmpl-{chance.getrandbits(64):016x}"
    arm = chance.choice(ARMS)
    prompt_tokens, output_tokens = chance.randint(20, 400), chance.randint(20, 60 if arm == "concise" else 150)
    output_tokens = min(output_tokens, LENGTH_LIMIT)
    number = ring.open_request(f"{public_id}-{receipt_id}00000000", prompt_tokens, time.monotonic_ns())
    link.opened(receipt_id, arm)
    return Request(number, receipt_id, public_id, arm, prompt_tokens, output_tokens)


def _advance(ring: RingWriter, link: MeterLink, open_requests: Sequence[Request]) -> list[Request]:
    left = []
    for request in open_requests:
        request.done += 1
        request.left -= 1
        if request.left:
            left.append(request)
            continue
        ring.finish(
            request.number, time.monotonic_ns(), request.done, "length" if request.done == LENGTH_LIMIT else "stop"
        )
        text = (WORDY if request.arm == "unconstrained" else PLAIN).format(ANSWER)
        link.said(request.receipt_id, {"prompts": ["Name an island."], "responses": [text]})
        link.ask(request.receipt_id, request.public_id)
        link.closed(request.receipt_id)
    return left


def main(ring: str, socket: str, engine: str = "engine-0") -> None:
    writer = RingWriter(Path(ring), engine=engine, model="made-up-8B", dtype="bfloat16")
    asyncio.run(serve(writer, MeterLink(Path(socket))))


if __name__ == "__main__":
    main(*sys.argv[1:])
