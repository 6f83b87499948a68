"""What comes from outside, bent: rings, lines of the socket, responses, receipts. Nothing may fail, hang, or change an answer but for its field.

    python -m benchmarks.fuzz [--quick] [--seed N]

Each input is a valid one with some of its bytes changed, cut out, doubled or swapped, or noise; the seed makes them again. A finding is an exception that the
reader of such input isn't said to raise, or an answer that differs from the server's own in more than its energy.
"""

import argparse
import asyncio
import json
import os
import random
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.report import Goal, finish
from etameter.errors import EngineError
from etameter.export.socket import MiddlewareSocket
from etameter.serving import frames
from etameter.serving.link import Answer, MeterLink
from etameter.serving.middleware import EnergyMiddleware
from etameter.serving.ring import HEADER_BYTES, RingReader, RingWriter

INPUTS, QUICK_S = 1_000_000, 32.0
SHARES = {"records": 0.4, "rings": 0.1, "lines": 0.3, "responses": 0.15, "receipts": 0.05}
RECEIPT = "0123456789abcdef" * 2
ENERGY = {"energy_joules": 12.5}
FIELD = b'"energy":{"energy_joules":12.5}'
CAPACITY = 1 << 14

Target = Callable[[random.Random], None]


async def _nothing() -> dict[str, Any]:
    """What a client sends who has nothing more to say."""
    return {"type": "http.disconnect"}


def bent(valid: bytes, dice: random.Random) -> bytes:
    """`valid` with up to eight faults in it."""
    data = bytearray(valid)
    for _ in range(dice.randrange(9)):
        at = dice.randrange(len(data) + 1)
        size = dice.randrange(1, 9)
        match dice.randrange(5):
            case 0:
                data[at : at + size] = dice.randbytes(min(size, len(data) - at))
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size]
            case 3:
                data[at:at] = dice.randbytes(size)
            case _:
                data[at : at + size] = (
                    dice.choice((b"\0", b"\xff", b"\n\n", b"}", b"[", b'"', b"\r\n", b"data: ")) * size
                )
    return bytes(data)


class Records:
    """One record's payload, with the checksum that fits it."""

    def __init__(self, directory: Path) -> None:
        self._valid = [(kind, payload) for kind, payload in _payloads(directory / "records.ring")]

    def __call__(self, dice: random.Random) -> None:
        kind, payload = dice.choice(self._valid)
        data = bent(payload, dice)
        record = frames.decode(dice.choice((kind, dice.randrange(256))), data, zlib.crc32(data))
        if isinstance(record, frames.Advance):
            record.rows_after(frames.row_table([(1, 2, 3, 4, 5, 6, 7, 8, 9)]))


def _payloads(path: Path) -> list[tuple[int, bytes]]:
    ring = _ring(path)
    content, found, at = path.read_bytes()[HEADER_BYTES:], [], 0
    while at < ring._committed:  # noqa: SLF001  # as far as it is written
        length, _, _, kind = struct.unpack_from("<IIIB", content, at)
        found.append((kind, content[at + 16 : at + length]))
        at += length
    ring.close()
    return found


def _ring(path: Path) -> RingWriter:
    """With a record of every kind in it, and steps enough for a second whole one."""
    ring = RingWriter(path, engine="e", model="m", dtype="d", gpu_uuids=["GPU-a"], capacity_bytes=CAPACITY)
    first, second = (ring.open_request(f"chatcmpl-{i}-{RECEIPT}00000000", 9, i) for i in range(2))
    ring.dispatch(0, 1, [(first, 9, 0, 0, 0, 0, 0, 0, 0), (second, 5, 0, 4, 0, 3, 0, 0, 1)])
    ring.done(0, 2, [(second, 2)])
    ring.finish(second, 3, 4, "length")
    third = ring.open_request("third", 2, 4)
    ring.advance(1, 5, [(third, 2, 0, 0, 0, 0, 0, 0, 0)], [second])
    for step in range(2, 8):
        ring.advance(step, step)
        ring.done(step, step)
    return ring


class Rings:
    """A whole ring, read from wherever it says that one may start."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "rings.ring"
        _ring(self._path).close()
        self._valid = self._path.read_bytes()

    def __call__(self, dice: random.Random) -> None:
        data = bytearray(self._valid)
        for _ in range(dice.randrange(1, 9)):
            at = dice.choice((dice.randrange(48), dice.randrange(3968, HEADER_BYTES), dice.randrange(len(data))))
            data[at] = dice.choice((0, 255, dice.randrange(256)))
        self._path.write_bytes(data)
        try:
            reader = RingReader(self._path)
        except EngineError:
            return
        for _ in range(2):
            reader.poll()
        reader.close()


class Lines:
    """A line at either end of the socket."""

    def __init__(self, directory: Path) -> None:
        self.answered = 0
        told = {"prompts": ["a"], "responses": ["b"], "pieces": [[1, 1]]}
        asked = {"type": "ask", "receipt_id": RECEIPT, "public_id": "chatcmpl-1"}
        messages: list[Mapping[str, object]] = [asked, {"type": "open", "receipt_id": RECEIPT, "arm": "a"}]
        messages += [
            {"type": "text", "receipt_id": RECEIPT, **told},
            {"type": "waste", "receipt_id": RECEIPT, "waste": "retry"},
        ]
        messages += [{"type": "energy", "receipt_id": RECEIPT, "energy": ENERGY, "reason": None}]
        self._valid = [json.dumps(message).encode() for message in messages]
        nobody: Any = lambda *_: None  # noqa: E731
        self._meter = MiddlewareSocket(
            directory / "none.sock",
            announce=nobody,
            publish=nobody,
            told=nobody,
            wasted=nobody,
            ready=nobody,
            answer=lambda _: (ENERGY, None),
            audits=nobody,
            gone=nobody,
        )
        transport = SimpleNamespace(is_closing=lambda: False, get_write_buffer_size=lambda: 0)
        self._writer: Any = SimpleNamespace(transport=transport, write=self._count)
        self._link = MeterLink(directory / "none.sock")

    def _count(self, _: bytes) -> None:
        self.answered += 1

    def __call__(self, dice: random.Random) -> None:
        message = dice.choice(self._valid)
        if dice.random() < 0.3:  # whole JSON, of another shape
            fields = json.loads(message)
            fields[dice.choice(list(fields))] = dice.choice((None, [], {}, 1, -1.5, True, "\ud800", [[]], {"a": []}))
            line = json.dumps(fields).encode()
        else:
            line = bent(message, dice)
        line = line.replace(b"\n", b" ") + b"\n"
        self._meter._take(line, self._writer)  # noqa: SLF001
        try:
            self._link._take(line)  # noqa: SLF001
        except ValueError:
            return  # hung up on


class Responses:
    """A response, cut anywhere: the client gets it byte for byte, but for one field."""

    def __init__(self) -> None:
        choice: dict[str, object] = {"index": 0, "delta": {"content": "a}\n"}, "finish_reason": None}
        parts = [{"id": "chatcmpl-1", "choices": [choice]}] * 2
        parts += [{"id": "chatcmpl-1", "choices": [{**choice, "finish_reason": "stop"}]}]
        usage: dict[str, object] = {"id": "chatcmpl-1", "choices": [], "usage": {"total_tokens": 3}}
        events = [b"data: " + json.dumps(part).encode() + b"\n\n" for part in (*parts, usage)]
        self._streams = [
            b"".join([*events, b"data: [DONE]\n\n"]),
            b"".join(events[:3]),
            b"".join([b": ping\n\n", *events]),
        ]
        self._whole = json.dumps({"id": "chatcmpl-1", "choices": [{"message": choice}], "usage": {}}).encode()
        os.environ["ETAMETER_CLASSIFY"] = "1"
        self._middleware = EnergyMiddleware(self._application)
        self._middleware.in_band = True
        link: Any = self._middleware.link
        link.ask = lambda *_: self._figure()
        link.start = lambda: None
        self._pieces: list[bytes] = []
        self._content = b""
        self._sent: list[bytes] = []

    @staticmethod
    def _figure() -> "asyncio.Future[Answer]":
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.set_result(Answer(ENERGY, None))
        return future

    async def _application(self, _: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", self._content)]})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def __call__(self, dice: random.Random) -> None:
        streamed = dice.random() < 0.8
        data = bent(dice.choice(self._streams) if streamed else self._whole, dice)
        self._content = b"text/event-stream" if streamed else b"application/json"
        cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randrange(6)))
        self._pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        if dice.random() < 0.3:  # as servers send them
            self._pieces = data.replace(b"\n\n", b"\n\n\0").split(b"\0")
            data = b"".join(self._pieces)
        self._sent = []
        choices = dice.choice((b"1", b"2"))
        request = bent(b'{"model":"m","n":' + choices + b',"messages":[{"role":"user","content":"x"}]}', dice)

        async def receive() -> Any:
            return {"type": "http.request", "body": request}

        async def send(message: Any) -> None:
            self._sent.append(message.get("body", b""))

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [(b"x-etameter-arm", request[:9])],
        }
        asyncio.get_event_loop().run_until_complete(self._middleware(scope, receive, send))
        got = b"".join(self._sent)
        assert got.count(FIELD) <= 1, got
        without = got.replace(b"," + FIELD, b"").replace(FIELD, b"")
        if without != data:  # a comment may overtake an event that is held
            assert b"\n:" in data or data.startswith(b":"), (data, got)
            assert sorted(without) == sorted(data), (data, got)


class Receipts:
    """A path under `/energy/`: only a receipt's id is ever asked for."""

    def __init__(self, responses: Responses) -> None:
        self._middleware = responses._middleware  # noqa: SLF001
        link: Any = self._middleware.link
        link.receipt = self._asked
        self._ids: list[str] = []

    def _asked(self, receipt_id: str) -> "asyncio.Future[Answer]":
        self._ids.append(receipt_id)
        return Responses._figure()  # noqa: SLF001

    def __call__(self, dice: random.Random) -> None:
        self._ids.clear()
        name = bent(RECEIPT.encode(), dice).decode("latin-1") if dice.random() < 0.9 else RECEIPT
        statuses: list[int] = []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {"type": "http", "method": "GET", "path": f"/energy/{name}", "headers": []}
        asyncio.get_event_loop().run_until_complete(self._middleware(scope, _nothing, send))
        is_one = len(name) == len(RECEIPT) and all(each in "0123456789abcdef" for each in name)
        assert (statuses, self._ids) == (([200], [name]) if is_one else ([404], [])), (name, statuses)


def targets(directory: Path) -> dict[str, Target]:
    responses = Responses()
    return {
        "records": Records(directory),
        "rings": Rings(directory),
        "lines": Lines(directory),
        "responses": responses,
        "receipts": Receipts(responses),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, and however many inputs that is")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    asyncio.set_event_loop(asyncio.new_event_loop())
    counts: dict[str, int] = {}
    findings = 0
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="etameter-fuzz-") as name:
        os.environ["ETAMETER_RUN"] = name
        for what, target in targets(Path(name)).items():
            dice = random.Random(f"{options.seed} {what}")  # noqa: S311  # inputs that can be made again
            end_s = time.monotonic() + (QUICK_S * SHARES[what] if options.quick else float("inf"))
            counts[what] = 0
            while counts[what] < INPUTS * SHARES[what] and time.monotonic() < end_s:
                try:
                    target(dice)
                except Exception:  # noqa: BLE001  # whatever it is, it is what is looked for
                    findings += 1
                    print(f"{what}, input {counts[what]} of seed {options.seed}:", file=sys.stderr)
                    traceback.print_exc()
                    if findings >= 20:
                        break
                counts[what] += 1
    inputs = float(sum(counts.values()))
    goals = [
        Goal("findings", float(findings), "inputs", 0.0, "lower"),
        Goal("inputs", inputs, "inputs", None if options.quick else float(INPUTS), "higher"),
        *(Goal(f"inputs_{what}", float(count), "inputs", None, "higher") for what, count in counts.items()),
        Goal("seconds", time.monotonic() - began_s, "s", None, "lower"),
    ]
    finish("fuzz", "measured", goals, {"quick": options.quick, "seed": options.seed})


if __name__ == "__main__":
    main()
