"""The meter's socket, with the middleware's own line at the other end."""

import asyncio
import contextlib
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from etameter.errors import MeterBusy
from etameter.export.socket import LINE_LIMIT_BYTES, MiddlewareSocket, Send
from etameter.serving.link import Answer, MeterLink, answer_in

pytestmark = pytest.mark.unit

RECEIPT = "0123456789abcdef" * 2


class Meter(MiddlewareSocket):
    """Knows one receipt, and remembers what it is told."""

    def __init__(self, path: Path) -> None:
        self.told: list[tuple[str, str]] = []
        self.waiting: asyncio.Future[None] | None = None
        super().__init__(
            path,
            announce=lambda receipt_id, arm, budgets: self._tell(receipt_id, f"{arm} {budgets}" if budgets else arm),
            publish=self._tell,
            told=lambda receipt_id, message: self._tell(receipt_id, str(message["responses"])),
            wasted=self._tell,
            ready=lambda _: self.waiting,
            answer=self._look_up,
            audits=self._audit,
            gone=lambda _: self._tell("", "gone"),
        )

    def _tell(self, receipt_id: str, what: str) -> None:
        self.told.append((receipt_id, what))

    def _audit(self, message: Mapping[str, Any], send: Send) -> None:
        self._tell("", str(message.get("job")))
        send({"type": "go"})

    def _look_up(self, receipt_id: str) -> Answer:
        return Answer({"energy_joules": 2.5}, None) if receipt_id == RECEIPT else Answer(None, "unknown_request")


def test_a_request_is_announced_published_and_answered(tmp_path: Path) -> None:
    async def main() -> None:
        meter, link = Meter(tmp_path / "meter.sock"), MeterLink(tmp_path / "meter.sock")
        await meter.start()
        assert stat.S_IMODE((tmp_path / "meter.sock").stat().st_mode) == 0o600
        link.opened(RECEIPT, "entrace")  # before there is a connection
        link.start()
        while (answer := await answer_in(5, link.ask(RECEIPT, "chatcmpl-1"))).reason == "meter_away":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert answer == Answer({"energy_joules": 2.5}, None)
        assert await answer_in(5, link.receipt("f" * 32)) == Answer(None, "unknown_request")
        link.wasted(RECEIPT, "no such waste")
        link.wasted(RECEIPT, "abandoned")
        await answer_in(5, link.ask(RECEIPT, None))
        assert meter.told == [(RECEIPT, "entrace"), (RECEIPT, "chatcmpl-1"), (RECEIPT, "abandoned")]
        await link.stop()
        await meter.stop()

    asyncio.run(main())


def test_a_batch_that_ends_in_one_turn_of_the_loop_is_not_the_meters_lateness(tmp_path: Path) -> None:
    async def main() -> None:
        meter, link = Meter(tmp_path / "meter.sock"), MeterLink(tmp_path / "meter.sock")
        await meter.start()
        link.start()
        while (await answer_in(5, link.ask(RECEIPT, None))).reason == "meter_away":  # noqa: ASYNC110
            await asyncio.sleep(0.001)

        async def end() -> Answer:
            time.sleep(0.004)  # noqa: ASYNC251  # the server's own work at the end of each answer
            return await answer_in(0.1, link.ask(RECEIPT, None))

        answers = await asyncio.gather(*(end() for _ in range(64)))
        assert {answer.reason for answer in answers} == {None}
        await link.stop()
        await meter.stop()

    asyncio.run(main())


def test_servers_that_ask_are_told_how_budgets_stand_until_they_go(tmp_path: Path) -> None:
    async def main() -> None:
        meter = Meter(tmp_path / "meter.sock")
        await meter.start()
        meter.tell({"team": ("said", 1)})  # nobody has asked
        links = [MeterLink(tmp_path / "meter.sock", budgets=asks) for asks in (True, False)]
        for link in links:
            link.start()
        links[0].opened(RECEIPT, "entrace", ["team"])
        while not links[0]._standings:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert links[0]._standings == {"team": ("said", 1.0)}  # at once, though it was told before
        meter.tell({"team": ("again", 2)})
        while links[0]._standings["team"][0] == "said":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert (links[1]._standings, meter.told) == ({}, [(RECEIPT, "entrace ('team',)")])
        assert len(meter._followers) == 1
        await links[0].stop()
        while meter._followers:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await links[1].stop()
        await meter.stop()

    asyncio.run(main())


def test_who_makes_audits_is_spoken_to_and_missed(tmp_path: Path) -> None:
    async def main() -> None:
        meter = Meter(tmp_path / "meter.sock")
        await meter.start()
        reader, writer = await asyncio.open_unix_connection(tmp_path / "meter.sock")
        writer.write(b'{"type":"audits","job":7}\n')
        assert await reader.readline() == b'{"type":"go"}\n'
        writer.close()
        while len(meter.told) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert meter.told == [("", "7"), ("", "gone")]
        await meter.stop()

    asyncio.run(main())


def test_a_meter_that_stops_hangs_up_and_complains_of_nothing(tmp_path: Path) -> None:
    complaints: list[dict[str, Any]] = []
    with socket.socket(socket.AF_UNIX) as client:

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            meter = Meter(tmp_path / "meter.sock")
            await meter.start()
            client.connect(str(tmp_path / "meter.sock"))
            client.sendall(b'{"type":"ask","receipt_id":"%s"}\n' % RECEIPT.encode())
            await asyncio.to_thread(client.recv, 1000)
            await meter.stop()  # with the connection open, and nothing after it

        asyncio.run(main())
        assert client.recv(1) == b""
    assert complaints == []
    assert not (tmp_path / "meter.sock").exists()


def test_what_is_no_message_is_counted_and_the_next_one_read(tmp_path: Path) -> None:
    bad = [
        b"{",
        b"[1]",
        b'"x"',
        b"\xff",
        b"{}",
        b'{"type":"ask","receipt_id":"../x"}',
        b'{"type":"open","receipt_id":7}',
    ]

    async def main() -> None:
        meter = Meter(tmp_path / "meter.sock")
        await meter.start()
        reader, writer = await asyncio.open_unix_connection(tmp_path / "meter.sock")
        writer.write(b"\n".join([*bad, b'{"type":"ask","receipt_id":"%s"}' % RECEIPT.encode(), b""]))
        assert b'"energy_joules":2.5' in await reader.readline()
        assert meter.dropped == len(bad)
        writer.write(b"x" * 2 * LINE_LIMIT_BYTES + b"x")  # a line without an end
        with contextlib.suppress(ConnectionResetError):  # it hangs up on what it has not read
            assert await reader.read() == b""
        assert meter.dropped == len(bad) + 1
        writer.close()
        await meter.stop()

    asyncio.run(main())


def test_a_place_where_no_socket_can_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(MeterBusy, match="ETAMETER_RUN"):
        asyncio.run(Meter(tmp_path / "missing" / "meter.sock").start())


def test_the_socket_of_a_meter_that_was_killed_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "meter.sock"))

    async def main() -> None:
        meter = Meter(tmp_path / "meter.sock")
        await meter.start()
        await meter.stop()

    asyncio.run(main())


def test_a_question_whose_client_has_gone_waits_for_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        meter, link = Meter(tmp_path / "meter.sock"), MeterLink(tmp_path / "meter.sock")
        await meter.start()
        link.start()
        while (await answer_in(5, link.ask(RECEIPT, None))).reason == "meter_away":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        question = link.ask(RECEIPT, None)
        waiting = asyncio.ensure_future(answer_in(5, question))
        await asyncio.sleep(0)  # it has begun to wait, and nothing has been asked yet
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert question.cancelled()
        await link.stop()
        await meter.stop()

    asyncio.run(main())


def test_texts_are_told_and_an_answer_waits_for_what_is_nearly_known(tmp_path: Path) -> None:
    async def main() -> None:
        meter, link = Meter(tmp_path / "meter.sock"), MeterLink(tmp_path / "meter.sock")
        await meter.start()
        link.start()
        while (await answer_in(5, link.ask(RECEIPT, None))).reason == "meter_away":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        meter.waiting = asyncio.get_running_loop().create_future()
        link.said(RECEIPT, {"prompts": [], "responses": ["a\x00\n" * 70_000]})
        question = link.ask(RECEIPT, None)
        await asyncio.wait((question,), timeout=0.05)
        assert not question.done()
        assert meter.told == [(RECEIPT, str(["a\x00\n" * 70_000]))]
        meter.waiting.set_result(None)
        assert (await answer_in(5, question)).energy == {"energy_joules": 2.5}
        await link.stop()
        await meter.stop()

    asyncio.run(main())
