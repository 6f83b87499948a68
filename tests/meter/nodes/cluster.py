"""Machines of an engine, each a process with GPUs, a clock and a boot of its own, and the cables between them."""

import json
import os
import re
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from etameter.serving.ring import RingWriter
from tests.meter.test_daemon import Meter, running, until
from tests.meter.test_faults import metric
from tests.simnvml.board import Board, Sensor

TOKEN = "a-token-of-the-test"
ROOT = Path(__file__).parents[3]
PERIOD_NS = 20_000_000


class Machine:
    """Another machine: a stand-in GPU under steady power, and a sampler. Each start of it is a boot."""

    base_mj = 1_000_000

    def __init__(self, directory: Path, number: int, *, power_w: float, port: int = 0, ppm: int = 0) -> None:
        directory.mkdir()
        self.number = number
        self.board = Board(directory / "board", energy=Sensor(period_ns=PERIOD_NS), base_mj=self.base_mj)
        self.board.gpus[0].uuid = f"GPU-51351351-0000-4000-80{number:02d}-000000000000".encode()
        self.board.set_power_w(0, [(0, power_w)])
        self.power_w = power_w
        self.port = port
        self.ppm = ppm
        self.boots = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "log"

    @property
    def uuid(self) -> str:
        return self.board.uuid()

    def start(self) -> None:
        self.boot()
        self.wait()

    def boot(self) -> None:
        """Another boot: another clock, too."""
        self.boots += 1
        offset_ns = 10**12 * (100 * self.number + self.boots)
        command = [sys.executable, "-m", "tests.meter.nodes.elsewhere", str(offset_ns), str(self.ppm)]
        command += [f"boot-{self.number}-{self.boots}", "sampler", "--listen", f"127.0.0.1:{self.port}"]
        environment = {**os.environ, **self.board.environment(), "ETAMETER_METER__NODE_TOKEN": TOKEN}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log, cwd=ROOT)

    def wait(self) -> None:
        """Until it listens."""

        def listening() -> re.Match[str] | None:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            return re.search(r"at 127\.0\.0\.1:(\d+)\n", self.log.read_text())

        self.port = int(until(listening)[1])

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.kill()


class Cable:
    """Forwards connections to a port, after a delay, until it is cut: then everything that is sent stays where it is."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._cut = threading.Event()
        self._ended = threading.Event()
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut.set()

    def heal(self) -> None:
        self._cut.clear()

    def close(self) -> None:
        self._ended.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                one, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(one,), daemon=True).start()

    def _forward(self, near: socket.socket) -> None:
        while self._cut.is_set():
            time.sleep(0.01)
        with suppress(OSError), near, socket.create_connection(("127.0.0.1", self._to)) as far:
            selector = selectors.DefaultSelector()
            selector.register(near, selectors.EVENT_READ, far)
            selector.register(far, selectors.EVENT_READ, near)
            while not self._ended.is_set():
                for key, _ in selector.select(0.05):
                    while self._cut.is_set() and not self._ended.is_set():
                        time.sleep(0.01)
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not data:
                        return
                    key.data.sendall(data)


@contextmanager
def machines(directory: Path, count: int, power_w: float = 200.0, ppm: int = 0) -> Iterator[list[Machine]]:
    """`count` other machines, started."""
    with ExitStack() as stack:
        made = []
        for number in range(1, count + 1):
            machine = Machine(directory / f"node-{number}", number, power_w=power_w * number, ppm=ppm)
            stack.callback(machine.close)
            machine.boot()
            made.append(machine)
        for machine in made:
            machine.wait()
        yield made


@contextmanager
def metering(directory: Path, board: Board | None, ports: Sequence[int], heard: int | None = None) -> Iterator[Meter]:
    """The meter beside the scheduler, which reads its own board, if it has one, and these nodes; from when it says that it hears so many of them, or all."""
    named = json.dumps([f"127.0.0.1:{port}" for port in ports])
    own = {} if board is None else board.environment()
    with running(directory, own | {"ETAMETER_METER__NODES": named, "ETAMETER_METER__NODE_TOKEN": TOKEN}) as meter:
        until(lambda: metric(meter, "etameter_node_up") == (len(ports) if heard is None else heard))
        yield meter


@contextmanager
def spread_engine(directory: Path, gpu_uuids: Sequence[str], workers: int) -> Iterator[RingWriter]:
    """An engine of so many workers, which names the GPUs of these."""
    details = {"tensor_parallel_size": workers}
    ring = RingWriter(
        directory / "ring", engine="engine-0", model="m", dtype="bfloat16", gpu_uuids=gpu_uuids, details=details
    )
    yield ring
    ring.close()


def knows_its_engine(meter: Meter, gpus: int) -> None:
    """The meter has found the ring, and gives the engine all GPUs."""

    def devices() -> int:
        engines = json.loads(meter.get("/health")[1])["engines"]
        return len(engines[0]["devices"])

    until(lambda: devices() == gpus)
