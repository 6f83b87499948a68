"""A connection to the sampler of another machine, and the attempt to make one."""

import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from etameter.errors import NodeError
from etameter.nodes.wire import LINE_LIMIT_BYTES, VERSION, counter_of, is_proof, line, message_of, proof
from etameter.records import Conditions, Finding

SILENT_S = 1.0
"""A sampler that answers nothing for so long is lost."""

State = Mapping[str, Any]


class Link:
    """A connection to a sampler whose token is the meter's. Reads and writes from one thread.

    Raises:
        OSError: nobody answers there in time.
        NodeError: who answers is no sampler of this version, or has another token.
    """

    def __init__(self, host: str, port: int, token: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=SILENT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pending = b""
        self.read_ns = 0
        """When the line that was read last had come, at the latest."""
        with ExitStack() as undoing:
            undoing.callback(self.close)
            self._greet(f"{host}:{port}", token)
            undoing.pop_all()

    def _greet(self, name: str, token: str) -> None:
        hello = self._expect(name)
        if hello.get("etameter") != "sampler" or hello.get("version") != VERSION:
            raise NodeError(f"who listens at {name} is no sampler of this version", "install the same etameter on both")
        challenges = str(hello.get("challenge")), secrets.token_hex(16)
        self.send({"challenge": challenges[1], "proof": proof(token, "meter", challenges)})
        about = self._expect(name)
        if not is_proof(about.get("proof"), token, "sampler", challenges):
            raise NodeError(
                f"the sampler at {name} has another token than this meter", "give both the same [meter] node_token"
            )
        try:
            self.boot_id = str(about["boot_id"])
            self.counters = [counter_of(each) for each in about["counters"]]
        except (KeyError, TypeError, ValueError) as error:
            raise NodeError(f"the sampler at {name} describes no counters ({error})", "update it") from error

    def _expect(self, name: str) -> State:
        deadline_s = time.monotonic() + SILENT_S
        while (wait_s := deadline_s - time.monotonic()) > 0:
            told = self.receive(wait_s)
            if isinstance(told, dict):
                return told
        raise TimeoutError(f"the sampler at {name} does not answer")

    def send(self, message: State) -> None:
        """Raises OSError."""
        self._socket.settimeout(SILENT_S)
        self._socket.sendall(line(message))

    def receive(self, timeout_s: float) -> State | Finding | Conditions | None:
        """The next message; None where none comes in time. Raises OSError, and NodeError for what is no message."""
        while b"\n" not in self._pending:
            self._socket.settimeout(max(timeout_s, 1e-3))
            try:
                new = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            self.read_ns = time.monotonic_ns()
            if not new or len(self._pending) > LINE_LIMIT_BYTES:
                raise ConnectionResetError("the sampler has hung up")
            self._pending += new
        text, _, self._pending = self._pending.partition(b"\n")
        try:
            return message_of(text)
        except ValueError as error:
            raise NodeError(str(error), "install the same etameter on both") from error

    def close(self) -> None:
        self._socket.close()


class Attempt(threading.Thread):
    """To connect: a name that nobody resolves may take minutes."""

    def __init__(self, host: str, port: int, token: str) -> None:
        super().__init__(name=f"etameter-connect-{host}", daemon=True)
        self._to = host, port, token
        self._given_up = False
        self._link: Link | None = None
        self._failure: OSError | NodeError | None = None

    def run(self) -> None:
        try:
            self._link = Link(*self._to)
        except (OSError, NodeError) as failure:
            self._failure = failure
        if self._given_up and self._link is not None:
            self._link.close()

    def link(self) -> Link:
        """When it has ended. Raises OSError, and NodeError for one that can't be trusted."""
        if self._failure is not None:
            raise self._failure
        assert self._link is not None
        return self._link

    def give_up(self) -> None:
        """Nobody wants the connection any more."""
        self._given_up = True
        if not self.is_alive() and self._link is not None:
            self._link.close()
