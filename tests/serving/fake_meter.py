"""A meter's socket, without the meter: it writes down what it hears and answers every question with the same figure."""

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ENERGY = {"energy_joules": 12.5, "prompt_joules": 4.5, "output_joules": 8.0, "settled": False, "source": "simulated"}


class FakeMeter:
    """Used as a context manager. `delay_s` makes it slow, `deaf` makes it read nothing at all."""

    def __init__(self, path: Path, *, delay_s: float = 0.0, deaf: bool = False, reason: str | None = None) -> None:
        self.path = path
        self.delay_s = delay_s
        self.deaf = deaf
        self.reason = reason
        self.messages: list[dict[str, Any]] = []
        self._heard = threading.Condition()

    def __enter__(self) -> Self:
        meter = self
        self.path.unlink(missing_ok=True)
        self.connections: list[socket.socket] = []
        self._gone = threading.Event()

        class Connection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                meter.connections.append(self.connection)
                if meter.deaf:
                    meter._gone.wait()
                    return
                for line in self.rfile:
                    message = json.loads(line)
                    with meter._heard:
                        meter.messages.append(message)
                        meter._heard.notify_all()
                    if message["type"] in {"ask", "receipt"}:
                        time.sleep(meter.delay_s)
                        self.wfile.write(json.dumps(meter.answer(message)).encode() + b"\n")

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that is gone is part of the tests."""

        self._server = Server(str(self.path), Connection)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gone.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # its client was quicker
                connection.shutdown(socket.SHUT_RDWR)
        self.path.unlink(missing_ok=True)

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        kind = "energy" if message["type"] == "ask" else "receipt"
        energy = None if self.reason else {**ENERGY, "receipt_id": message["receipt_id"]}
        return {"type": kind, "receipt_id": message["receipt_id"], "energy": energy, "reason": self.reason}

    def heard(self, kind: str, count: int = 1, *, timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """The messages of that kind, once there are `count`."""

        def enough() -> bool:
            return len([message for message in self.messages if message["type"] == kind]) >= count

        with self._heard:
            assert self._heard.wait_for(enough, timeout_s), f"{count} × {kind} expected, heard {self.messages}"
            return [message for message in self.messages if message["type"] == kind]


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for something that happens in another thread or process."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)
