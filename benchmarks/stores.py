"""Real stores of metrics, run for a benchmark: VictoriaMetrics with its ruler, and Prometheus. Debian's packages have them."""

import http.client
import json
import os
import re
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

PATIENCE_S = 120.0
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def until(holds: Callable[[], bool]) -> None:
    """Raises TimeoutError where it doesn't come true."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{holds} not within {PATIENCE_S:g} s")
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process that listens on `port`, until `stack` ends."""

    def __init__(self, command: Sequence[str], port: int, stack: ExitStack) -> None:
        self.port = port
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(self._process.wait)
        stack.callback(self._process.kill)

    def get(self, path: str, body: bytes | None = None) -> bytes:
        """What it answers. Raises OSError where it doesn't listen or refuses."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            told = response.read()
            if response.status >= 300:
                raise OSError(f"{path} is answered {response.status}: {told[:200]!r}")
            return told
        finally:
            connection.close()

    def answers(self, path: str = "/metrics") -> bool:
        if self._process.poll() is not None:
            raise OSError(f"{self._process.args!r} ended ({self._process.returncode})")
        try:
            self.get(path)
        except OSError:
            return False
        return True

    def own(self, name: str, containing: str = "") -> float:
        """The sum of its own metric over the series whose labels contain that."""
        told = self.get("/metrics").decode()
        return sum(
            float(value) for metric, labels, value in _SAMPLE.findall(told) if metric == name and containing in labels
        )

    @property
    def cpu_s(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_mb(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


class Store(Server):
    """One that answers PromQL."""

    def asked(self, expression: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """Series with their values, now or at an instant."""
        parameters = {"query": expression} | ({} if at_s is None else {"time": str(at_s)})
        answer = json.loads(self.get(f"/api/v1/query?{urllib.parse.urlencode(parameters)}"))
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, expression: str) -> float:
        """Of an expression that has one. NaN where it has none."""
        found = self.asked(expression)
        return float(found[0]["value"][1]) if found else float("nan")


class VictoriaMetrics(Store):
    """Scrapes `targets` every `interval_s`."""

    def __init__(
        self, directory: Path, stack: ExitStack, targets: Sequence[Mapping[str, Any]] = (), interval_s: float = 15.0
    ) -> None:
        port = free_port()
        command = ["victoria-metrics", f"-storageDataPath={directory / 'stored'}", f"-httpListenAddr=127.0.0.1:{port}"]
        command += ["-search.latencyOffset=1s", "-loggerLevel=ERROR", "-search.maxUniqueTimeseries=10000000"]
        if targets:
            command.append(f"-promscrape.config={_configured(directory, targets, interval_s)}")
        super().__init__(command, port, stack)
        until(self.answers)

    def settle(self) -> None:
        """Write what waits, and merge it as a store does in time."""
        self.get("/internal/force_flush")
        self.get("/internal/force_merge")
        time.sleep(1.0)
        until(lambda: self.own("vm_active_merges") + self.own("vm_active_force_merges") == 0)


class Prometheus(Store):
    """Scrapes `targets` every `interval_s`, and evaluates rules as often."""

    def __init__(
        self,
        directory: Path,
        stack: ExitStack,
        targets: Sequence[Mapping[str, Any]],
        interval_s: float,
        rules: Sequence[Path],
    ) -> None:
        port = free_port()
        config = _configured(directory, targets, interval_s, rules)
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'tsdb'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        super().__init__(command, port, stack)
        until(self.answers)


class Ruler(Server):
    """VictoriaMetrics' own: evaluates `rules` over a store every `interval_s`, and writes there what they record."""

    def __init__(self, store: Store, rules: Sequence[Path], interval_s: float, stack: ExitStack) -> None:
        port, address = free_port(), f"http://127.0.0.1:{store.port}"
        command = ["vmalert", *(f"-rule={path}" for path in rules), f"-evaluationInterval={interval_s:g}s"]
        command += [f"-datasource.url={address}", f"-remoteWrite.url={address}", f"-httpListenAddr=127.0.0.1:{port}"]
        command += ["-notifier.url=http://127.0.0.1:9", "-loggerLevel=ERROR", "-remoteWrite.flushInterval=1s"]
        super().__init__(command, port, stack)
        until(self.answers)

    def groups(self) -> dict[str, float]:
        """Mean seconds of an evaluation, by group of rules."""
        told = self.get("/metrics").decode()
        sums: dict[tuple[str, str], float] = {}
        for metric, labels, value in _SAMPLE.findall(told):
            if metric in {"vmalert_iteration_duration_seconds_sum", "vmalert_iteration_duration_seconds_count"}:
                group = re.search(r'group="([^"]*)"', labels)
                assert group is not None
                sums[group[1], metric.rpartition("_")[2]] = float(value)
        return {
            name: sums[name, "sum"] / count for (name, kind), count in sums.items() if kind == "count" and count > 0
        }


def _configured(
    directory: Path, targets: Sequence[Mapping[str, Any]], interval_s: float, rules: Sequence[Path] = ()
) -> Path:
    config: dict[str, Any] = {
        "global": {"scrape_interval": f"{interval_s:g}s", "scrape_timeout": f"{min(interval_s, 10.0):g}s"},
        "scrape_configs": [{"job_name": "etameter", "static_configs": list(targets)}],
    }
    if rules:
        config["global"]["evaluation_interval"] = f"{interval_s:g}s"
        config["rule_files"] = [str(path.resolve()) for path in rules]
    path = directory / "scraped.json"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path
