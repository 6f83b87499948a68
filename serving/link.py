"""The middleware's line to the meter: one connection an API server process, newline-delimited JSON, no waiting for anybody.

What can't be sent is dropped and counted. Requests that are open when the connection comes back are announced again.
"""

import asyncio
import contextlib
import json
import json.encoder
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger("vllm.etameter")

FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 2.0
STANDING_FRESH_S = 5.0
"""What the meter says of budgets, every second, is not passed on when it is older."""
UNSENT_LIMIT_BYTES = 1 << 20
"""More than this waiting for a meter that does not read, and messages are dropped."""
ANSWER_LIMIT_BYTES = 1 << 20

_quoted = json.encoder.encode_basestring_ascii
"""A text as JSON has it."""
_parsed = json.JSONDecoder().decode

METER_AWAY = "meter_away"
METER_LATE = "meter_late"


class Answer(NamedTuple):
    """The meter's figure, or the reason why there is none."""

    energy: Mapping[str, Any] | None
    reason: str | None


class MeterLink:
    """Tells the meter of requests and asks it for their energy. Belongs to one event loop."""

    def __init__(self, socket_path: Path, *, budgets: bool = False) -> None:
        """With `budgets` the meter is asked to tell how they stand."""
        self.socket_path = socket_path
        self.follows_budgets = budgets
        self._standings: Mapping[str, tuple[str, int]] = {}
        """By budget: what is said of it, and when its window ends (s since 1970)."""
        self._standings_s = 0.0
        self.dropped = 0
        """Messages the meter will never get."""
        self._writer: asyncio.Transport | None = None
        self._unsent = bytearray()
        """Said in this turn of the event loop: sent at its end, after what clients and server wait for."""
        self._connection: asyncio.Task[None] | None = None
        self._open: dict[str, tuple[str, Iterable[str] | None]] = {}
        """Receipt id → arm, and on which budgets it draws; None where there are none."""
        self._waiting: dict[tuple[str, str], list[asyncio.Future[Answer]]] = {}
        """Of what was asked: forgotten when the meter answers, late or not, or is away."""

    def start(self) -> None:
        """Connect, and reconnect for as long as the event loop runs. Has no effect when already started."""
        if self._connection is None:
            self._connection = asyncio.get_running_loop().create_task(self._stay_connected())

    async def stop(self) -> None:
        if self._connection is not None:
            self._connection.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connection
            self._connection = None

    def opened(self, receipt_id: str, arm: str, budgets: Iterable[str] | None = None) -> None:
        """A request has come in, which draws on these budgets, where there are any at all."""
        self._open[receipt_id] = arm, budgets
        if self._writer is not None:  # else it is announced when the meter is there
            self._announce(receipt_id, arm, budgets)

    def closed(self, receipt_id: str) -> None:
        """The response is complete, or its client is gone: it is announced no more."""
        self._open.pop(receipt_id, None)

    def said(self, receipt_id: str, texts: Mapping[str, object]) -> None:
        """What a request and its response say: for the meter to classify, not to keep."""
        self._write(json.dumps({"type": "text", "receipt_id": receipt_id, **texts}) + "\n")

    def wasted(self, receipt_id: str, waste: str) -> None:
        """An answer was lost: `abandoned` by its client, or made anew (`retry`)."""
        self._write(f'{{"type":"waste","receipt_id":{_quoted(receipt_id)},"waste":"{waste}"}}\n')

    def _announce(self, receipt_id: str, arm: str, budgets: Iterable[str] | None) -> None:
        drawn_on = "" if budgets is None else f',"budgets":[{",".join(map(_quoted, budgets))}]'
        self._write(f'{{"type":"open","receipt_id":{_quoted(receipt_id)},"arm":{_quoted(arm)}{drawn_on}}}\n')

    def standings(self, budgets: Iterable[str]) -> list[str]:
        """What the meter says of these budgets, and in how many seconds their windows end. Nothing of one of which it has not told lately."""
        if time.monotonic() - self._standings_s > STANDING_FRESH_S:
            return []
        now_s = time.time()
        told = [self._standings[budget] for budget in budgets if budget in self._standings]
        return [f"{said};resets={int(end_s - now_s)}" for said, end_s in told if end_s > now_s]

    def ask(self, receipt_id: str, public_id: str | None) -> asyncio.Future[Answer]:
        """The energy of a request that has just ended. The answer may never come: wait for it with `answer_in`."""
        public = "null" if public_id is None else _quoted(public_id)
        return self._question(
            "energy", receipt_id, f'{{"type":"ask","receipt_id":{_quoted(receipt_id)},"public_id":{public}}}\n'
        )

    def receipt(self, receipt_id: str) -> asyncio.Future[Answer]:
        """The receipt of an earlier request."""
        return self._question("receipt", receipt_id, f'{{"type":"receipt","receipt_id":{_quoted(receipt_id)}}}\n')

    def _question(self, kind: str, receipt_id: str, line: str) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._writer is None:
            future.set_result(Answer(None, METER_AWAY))
        elif not self._write(line):
            future.set_result(Answer(None, METER_LATE))
        else:
            self._waiting.setdefault((kind, receipt_id), []).append(future)
        return future

    def _write(self, line: str) -> bool:
        writer = self._writer
        if writer is None or writer.get_write_buffer_size() + len(self._unsent) > UNSENT_LIMIT_BYTES:
            self.dropped += 1
            return False
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._send)
        self._unsent += line.encode()
        return True

    def _send(self) -> None:
        unsent, self._unsent = bytes(self._unsent), bytearray()
        if self._writer is not None:
            self._writer.write(unsent)
        else:
            self.dropped += unsent.count(b"\n")

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = FIRST_BACKOFF_S
        while True:
            closed: asyncio.Future[None] = loop.create_future()
            try:
                writer, _ = await loop.create_unix_connection(
                    partial(_Lines, self._take, closed), str(self.socket_path)
                )
            except OSError:
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
                continue
            backoff_s = FIRST_BACKOFF_S
            self._writer = writer
            if self.follows_budgets:
                self._write('{"type":"budgets"}\n')
            for receipt_id, (arm, budgets) in self._open.items():
                self._announce(receipt_id, arm, budgets)
            try:
                await closed
            except (OSError, ValueError) as failure:  # ValueError: a line that is no answer, or one too long
                logger.warning("etameter: the meter's socket: %s", failure)
            finally:
                self._writer = None
                self._standings = {}
                writer.abort()
                for future in [each for asked in self._waiting.values() for each in asked]:
                    _resolve(future, Answer(None, METER_AWAY))
                self._waiting.clear()
            await asyncio.sleep(backoff_s)

    def _take(self, line: bytes) -> None:
        """An answer. Raises ValueError for what is none."""
        try:
            message = _parsed(line.decode())
        except RecursionError:
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("energy"), dict | None):
            raise ValueError(f"a line of {len(line)} bytes is no answer")  # noqa: TRY004  # of the wire, not of a caller
        if message.get("type") == "budgets":
            self._standings = _standings(message.get("told"))
            self._standings_s = time.monotonic()
            return
        for future in self._waiting.pop((str(message.get("type")), str(message.get("receipt_id"))), ()):
            _resolve(future, Answer(message.get("energy"), message.get("reason")))


class _Lines(asyncio.Protocol):
    """Hands each line on to `take` until it raises ValueError, there is one too long, or the connection ends; `closed` says why, if it was no proper end."""

    def __init__(self, take: Callable[[bytes], None], closed: asyncio.Future[None]) -> None:
        self._take = take
        self._closed = closed
        self._begun = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._begun = (self._begun + data).split(b"\n")
        try:
            for line in lines:
                self._take(line)
        except ValueError as failure:
            self.connection_lost(failure)
        if len(self._begun) > ANSWER_LIMIT_BYTES:
            self.connection_lost(ValueError(f"a line of more than {ANSWER_LIMIT_BYTES} bytes is no answer"))

    def connection_lost(self, failure: Exception | None) -> None:
        if self._closed.done():
            return
        if failure is None:
            self._closed.set_result(None)
        else:
            self._closed.set_exception(failure)


def _standings(told: object) -> dict[str, tuple[str, int]]:
    """Of each budget, and when its window ends. Raises ValueError for what is none."""
    try:
        return {name: (str(said), int(end_s)) for name, (said, end_s) in dict(told).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{str(told)[:100]!r} says nothing of budgets") from error


def _resolve(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


async def answer_in(timeout_s: float, question: asyncio.Future[Answer]) -> Answer:
    """The meter's answer, if it comes within `timeout_s` of its being asked.

    Questions go out at the end of a turn of the event loop. Where a batch of answers ends in one turn, that alone can take longer than the wait.
    """
    if not question.done():
        asyncio.get_running_loop().call_soon(_await_no_longer, timeout_s, question)
    try:
        return await question
    finally:
        question.cancel()  # whose client has gone before it was even asked, too


def _await_no_longer(timeout_s: float, question: asyncio.Future[Answer]) -> None:
    """Where nobody has answered by then, nobody does in time."""
    if not question.done():
        late = asyncio.get_running_loop().call_later(timeout_s, _resolve, question, Answer(None, METER_LATE))
        question.add_done_callback(lambda _: late.cancel())
