"""What metering another machine of an engine costs, and how well its clock is known: `python -m benchmarks.nodes`.

A sampler runs in a process whose clock began at another time, by as much as is known here: so it is known how far off an instant is that the meter's side has placed.
Messages pass a cable that makes one way longer than the other. Everything is on this machine; `--gpus` are those of the stand-in NVML.
"""

import argparse
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from etameter.nodes.node import Node
from tests.simnvml.board import Board, Sensor

ROOT = Path(__file__).parents[1]
OFFSET_NS = 10**15
WARM_UP_S = 2.0
LOOK_S = 0.05
BEHIND_MS = (0.0, 1.0, 10.0, 50.0)


@dataclass(frozen=True, slots=True)
class Found:
    """Of one cable. Errors in ms; bytes that the sampler sends, and CPU time of its process and of the meter's thread that listens, per second."""

    one_way_ms: float
    bound_ms: float
    bound_worst_ms: float
    error_ms: float
    error_worst_ms: float
    within: bool
    """The truth was within the bound at every look."""
    bytes_per_s: float
    sampler_cpu_percent: float
    listener_cpu_percent: float


class Cable:
    """Forwards one connection, and holds back what goes there (not what comes back) by `behind_s`."""

    def __init__(self, port: int, behind_s: float) -> None:
        self._to, self._behind_s = port, behind_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.bytes_back = 0
        threading.Thread(target=self._forward, daemon=True).start()

    def _forward(self) -> None:
        near, _ = self._listener.accept()
        held: list[tuple[float, bytes]] = []
        with suppress(OSError), near, socket.create_connection(("127.0.0.1", self._to)) as far:
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector = selectors.DefaultSelector()
            selector.register(near, selectors.EVENT_READ)
            selector.register(far, selectors.EVENT_READ)
            while True:
                wait_s = max(0.0, held[0][0] - time.monotonic()) if held else 1.0
                for key, _ in selector.select(wait_s):
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not data:
                        return
                    if key.fileobj is near:
                        held.append((time.monotonic() + self._behind_s, data))
                    else:
                        self.bytes_back += len(data)
                        near.sendall(data)
                while held and held[0][0] <= time.monotonic():
                    far.sendall(held.pop(0)[1])

    def close(self) -> None:
        self._listener.close()


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(directory: Path, gpus: int, period_ns: int, behind_ms: float, seconds: float) -> Found:
    with Board(directory / "board", gpus=gpus, energy=Sensor(period_ns=period_ns)) as board:
        for gpu in range(gpus):
            board.set_power_w(gpu, [(0, 300.0)])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        command = [sys.executable, "-m", "tests.meter.nodes.elsewhere", str(OFFSET_NS), "0", "boot"]
        command += ["sampler", "--listen", f"127.0.0.1:{port}"]
        with subprocess.Popen(
            command, env={**os.environ, **board.environment()}, cwd=ROOT, stderr=subprocess.DEVNULL
        ) as sampler:
            first = Node(f"127.0.0.1:{port}", "")
            first.start()
            first.met(20.0)  # until it is there
            first.stop()
            cable = Cable(port, behind_ms * 1e-3)
            node = Node(f"127.0.0.1:{cable.port}", "")
            try:
                node.start()
                node.met(5.0)
                time.sleep(WARM_UP_S)
                return _look(node, cable, sampler.pid, behind_ms, seconds)
            finally:
                node.stop()
                cable.close()
                sampler.kill()


def _look(node: Node, cable: Cable, pid: int, behind_ms: float, seconds: float) -> Found:
    errors_ns, bounds_ns = [], []
    thread = node._thread.ident  # noqa: SLF001
    assert thread is not None
    clock = time.pthread_getcpuclockid(thread)
    began_s, bytes_before, cpu_before_s = time.monotonic(), cable.bytes_back, (cpu_s(pid), time.clock_gettime(clock))
    while time.monotonic() < began_s + seconds:
        now_ns = time.monotonic_ns()
        t_ns, bound_ns = node._clock.here(now_ns + OFFSET_NS)  # noqa: SLF001  # what it would do with an edge of now
        errors_ns.append(abs(t_ns - now_ns))
        bounds_ns.append(bound_ns)
        node.drain()
        time.sleep(LOOK_S)
    passed_s = time.monotonic() - began_s
    return Found(
        one_way_ms=behind_ms,
        bound_ms=statistics.median(bounds_ns) * 1e-6,
        bound_worst_ms=max(bounds_ns) * 1e-6,
        error_ms=statistics.median(errors_ns) * 1e-6,
        error_worst_ms=max(errors_ns) * 1e-6,
        within=all(error <= bound for error, bound in zip(errors_ns, bounds_ns, strict=True)),
        bytes_per_s=(cable.bytes_back - bytes_before) / passed_s,
        sampler_cpu_percent=100 * (cpu_s(pid) - cpu_before_s[0]) / passed_s,
        listener_cpu_percent=100 * (time.clock_gettime(clock) - cpu_before_s[1]) / passed_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--period-ms", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for behind_ms in BEHIND_MS:
        with tempfile.TemporaryDirectory() as folder:
            period_ns = int(options.period_ms * 1e6)
            rows.append(measure(Path(folder), options.gpus, period_ns, behind_ms, options.seconds))
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print(
        "| longer one way, ms | bound, ms: median, worst | true error, ms: median, worst | within | bytes/s | CPU: sampler, listener |"
    )
    print("| ---: | ---: | ---: | --- | ---: | ---: |")
    for row in rows:
        print(
            f"| {row.one_way_ms:g} | {row.bound_ms:.2f}, {row.bound_worst_ms:.2f} | {row.error_ms:.2f}, {row.error_worst_ms:.2f} "
            f"| {'yes' if row.within else 'NO'} | {row.bytes_per_s:.0f} | {row.sampler_cpu_percent:.1f} %, {row.listener_cpu_percent:.1f} % |"
        )


if __name__ == "__main__":
    main()
