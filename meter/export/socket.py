"""The meter's end of the middleware's socket: newline-delimited JSON over a Unix socket, for processes of the same user (or root) only."""

import asyncio
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from etameter.claims import TELLABLE
from etameter.errors import MeterBusy
from etameter.export.receipts import is_receipt_id
from etameter.slack.labels import Waste

logger = logging.getLogger("etameter")

LINE_LIMIT_BYTES = 2 << 20
"""A message with the longest texts that a server tells, every character of them escaped."""
UNREAD_LIMIT_BYTES = 1 << 20
"""A peer that leaves more answers unread gets no further ones."""

AUDITS, BUDGETS = "audits", "budgets"
"""Types of messages that name no receipt."""
Send = Callable[[Mapping[str, object]], None]
Answer = tuple[Mapping[str, object] | None, str | None]
"""The figure, or the reason why there is none."""


class MiddlewareSocket:
    """Listens on `path`. `announce(receipt_id, arm, budgets)`, `publish(receipt_id, public_id)`, `told(receipt_id, texts)` and
    `wasted(receipt_id, waste)` are told of requests, `answer` is asked, once `ready`, which waits for what is known in a moment, lets it.
    `audits` is told what whoever makes audits says, and how to speak to it; `gone` that it left.
    """

    def __init__(
        self,
        path: Path,
        *,
        announce: Callable[[str, str, tuple[str, ...] | None], None],
        publish: Callable[[str, str], None],
        told: Callable[[str, Mapping[str, Any]], None],
        wasted: Callable[[str, Waste], None],
        ready: Callable[[str], Awaitable[None] | None],
        answer: Callable[[str], Answer],
        audits: Callable[[Mapping[str, Any], Send], None],
        gone: Callable[[Send], None],
    ) -> None:
        self._path = path
        self._announce = announce
        self._publish = publish
        self._told = told
        self._wasted = wasted
        self._ready = ready
        self._answer = answer
        self._audits = audits
        self._gone = gone
        self._auditors: dict[asyncio.StreamWriter, Send] = {}
        self._replies: set[asyncio.Task[None]] = set()
        self._followers: set[asyncio.StreamWriter] = set()
        """Servers that want to know how budgets stand."""
        self._standings: Mapping[str, object] | None = None
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self.dropped = 0
        """Messages that could not be read, and answers that nobody took."""

    async def start(self) -> None:
        """Raises MeterBusy where the socket can't be made. The caller holds the run directory's lock: what lies there is stale."""
        try:
            if self._path.exists() and stat.S_ISSOCK(self._path.stat().st_mode):
                self._path.unlink()
            mask = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(self._serve, self._path, limit=LINE_LIMIT_BYTES)
            finally:
                os.umask(mask)
        except OSError as error:
            raise MeterBusy(
                f"the socket {self._path} can't be made ({error.strerror or error})",
                "set ETAMETER_RUN to a directory that you own",
            ) from error

    def tell(self, standings: Mapping[str, tuple[str, int]]) -> None:
        """Have servers know what is said of each budget, and when its window ends (s since 1970)."""
        self._standings = {"type": BUDGETS, "told": standings}
        for writer in self._followers:
            self._send(writer, self._standings)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            served = [task for task in self._connections.values() if task is not None]
            for writer in self._connections:
                writer.transport.abort()
            await asyncio.gather(*served, *self._replies)
            await self._server.wait_closed()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not _same_user(writer.get_extra_info("socket")):
            writer.transport.abort()
            return
        self._connections[writer] = asyncio.current_task()
        try:
            while line := await reader.readline():
                self._take(line, writer)
        except (ConnectionError, ValueError) as error:  # ValueError: a line over the limit
            self.dropped += 1
            logger.warning("a server's connection ended: %s", error)
        finally:
            del self._connections[writer]
            self._followers.discard(writer)
            writer.transport.abort()
            if writer in self._auditors:
                self._gone(self._auditors.pop(writer))

    def _take(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        message = _parsed(line)
        if message is None:
            self.dropped += 1
            return
        kind = message["type"]
        if kind == AUDITS:
            self._audits(message, self._auditors.setdefault(writer, partial(self._send, writer)))
            return
        if kind == BUDGETS:
            self._followers.add(writer)
            if self._standings is not None:
                self._send(writer, self._standings)
            return
        receipt_id = message["receipt_id"]
        if kind == "open":
            self._announce(receipt_id, str(message.get("arm")), _names(message.get("budgets")))
        elif kind == "text":
            self._told(receipt_id, message)
        elif kind == "waste":
            if isinstance(message.get("waste"), str) and message["waste"] in TELLABLE:
                self._wasted(receipt_id, message["waste"])
        elif kind in {"ask", "receipt"}:
            if isinstance(message.get("public_id"), str):
                self._publish(receipt_id, message["public_id"])
            waiting = self._ready(receipt_id)
            if waiting is None:
                self._reply(receipt_id, kind, writer)
            else:
                reply = asyncio.ensure_future(self._reply_after(waiting, receipt_id, kind, writer))
                self._replies.add(reply)
                reply.add_done_callback(self._replies.discard)

    async def _reply_after(
        self, waiting: Awaitable[None], receipt_id: str, kind: str, writer: asyncio.StreamWriter
    ) -> None:
        await waiting
        self._reply(receipt_id, kind, writer)

    def _reply(self, receipt_id: str, kind: str, writer: asyncio.StreamWriter) -> None:
        energy, reason = self._answer(receipt_id)
        answer = {
            "type": "energy" if kind == "ask" else "receipt",
            "receipt_id": receipt_id,
            "energy": energy,
            "reason": reason,
        }
        self._send(writer, answer)

    def _send(self, writer: asyncio.StreamWriter, message: Mapping[str, object]) -> None:
        if writer.transport.is_closing() or writer.transport.get_write_buffer_size() > UNREAD_LIMIT_BYTES:
            self.dropped += 1
        else:
            writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The message of a line, if it is one that names a receipt, or need not."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        return None
    named = message.get("receipt_id")
    nameless = message["type"] in {AUDITS, BUDGETS}
    return message if nameless or (isinstance(named, str) and is_receipt_id(named)) else None


def _names(told: object) -> tuple[str, ...] | None:
    """None where nothing is told."""
    return tuple(name for name in told if isinstance(name, str)) if isinstance(told, list) else None


def _same_user(peer: socket.socket) -> bool:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in {0, os.getuid()}
