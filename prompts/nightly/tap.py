"""A listener before a server that passes everything on, and notes when: so the load of any tool is known by its time, whatever the tool says."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_CHUNK_BYTES: Final = 1 << 16
_QUESTION: Final = b"POST "
_LOOK: Final = b"GET "
_FAULT: Final = b"4"
"""And 5: how the status of a question begins that got no answer."""


@dataclass(slots=True)
class Tap:
    """What has passed through. Instants are of CLOCK_MONOTONIC; None before the first."""

    url: str = ""
    first_ns: int | None = None
    """When the first question came; asking for the server's health or models is none."""
    last_ns: int | None = None
    """When the last of an answer to a question passed."""
    questions: int = 0
    refused: int = 0
    """Questions that were answered with a status of 400 or more."""


@asynccontextmanager
async def tapped(server_url: str) -> AsyncIterator[Tap]:
    """A tap before a server under http, for as long as the block runs."""
    address = urlsplit(server_url)
    tap = Tap()
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            with suppress(OSError):
                up_reader, up_writer = await asyncio.open_connection(address.hostname, address.port or 80)
                talk_of = _Talk(tap)
                await asyncio.gather(talk_of.questions(reader, up_writer), talk_of.answers(up_reader, writer))
        finally:
            writer.close()
            talks.discard(task)

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    tap.url = f"http://{host}:{port}{address.path}"
    try:
        yield tap
    finally:
        server.close()
        for task in list(talks):
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


@dataclass(slots=True)
class _Talk:
    """One connection: what it was asked last decides whose answer passes."""

    tap: Tap
    asked: bool = False
    begins: bool = False
    """What comes next begins an answer."""

    async def questions(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if chunk.startswith(_QUESTION):
                self.tap.questions += 1
                self.tap.first_ns = self.tap.first_ns or time.monotonic_ns()
                self.asked = self.begins = True
            elif chunk.startswith(_LOOK):
                self.asked = False
            writer.write(chunk)
            await writer.drain()
        writer.close()

    async def answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if self.asked:
                self.tap.last_ns = time.monotonic_ns()
                self.tap.refused += self.begins and chunk.partition(b" ")[2][:1] >= _FAULT
                self.begins = False
            writer.write(chunk)
            await writer.drain()
        writer.close()
