"""A real Prometheus that scrapes a real meter, with the rules and exemplars of etameter. Debian's package prometheus has it."""

import json
import math
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from etameter.dashboards.expressions import RULES
from tests.meter.test_daemon import free_port

VARIABLES = {"$cluster": ".*", "$model": ".*", "$arm": ".*", "$gpu": ".*", "$source": ".*"}
SPANS = {"$__rate_interval": "15s", "$__range": "5m"}
"""As Grafana would set them for some minutes of scrapes that are a second apart."""


class Prometheus:
    """Scrapes `targets`, and whatever `static_configs` name one target each, every second, until `stack` ends."""

    def __init__(
        self,
        directory: Path,
        targets: Sequence[str],
        stack: ExitStack,
        static_configs: Sequence[Mapping[str, object]] = (),
    ) -> None:
        self._targets = len(targets) + len(static_configs)
        binary = shutil.which("prometheus")
        assert binary is not None
        static = [{"targets": list(targets), "labels": {"environment": "demo"}}, *static_configs]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in sorted(RULES.glob("*.yaml"))],
            "scrape_configs": [{"job_name": "etameter", "static_configs": static}],
        }
        (directory / "prometheus.json").write_text(json.dumps(config))  # JSON is YAML
        self.address = f"127.0.0.1:{free_port()}"
        command = [binary, f"--config.file={directory}/prometheus.json", f"--storage.tsdb.path={directory}/data"]
        command += [f"--web.listen-address={self.address}", "--enable-feature=exemplar-storage", "--log.level=error"]
        command += ["--web.cors.origin=.*"]
        process = subprocess.Popen(command)
        stack.callback(process.wait)
        stack.callback(process.terminate)

    def asked(self, path: str, **parameters: Any) -> Any:
        """`data` of an answer of the query API. Raises HTTPError where it refuses, URLError where it doesn't run yet."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=20) as response:
            return json.load(response)["data"]

    def says(self, expression: str, last_s: float = 120.0) -> list[dict[str, Any]]:
        """The series of a panel's expression that have a value, over the last seconds."""
        for name, value in (VARIABLES | SPANS).items():
            expression = expression.replace(name, value)
        now_s = time.time()
        asked = self.asked("query_range", query=expression, start=now_s - last_s, end=now_s, step=5)["result"]
        return [series for series in asked if any(math.isfinite(float(value)) for _, value in series["values"])]

    def ready(self) -> bool:
        try:
            return len(self.asked("query", query="up == 1")["result"]) == self._targets
        except OSError:
            return False
