"""Draws the pictures of the dashboards in docs/images: `python -m docs.grafana_pictures`, or `make screenshots`.

It needs Debian's chromium and prometheus, and npm for Grafana's UI components (half a gigabyte), and takes five minutes. A simulated board
follows a made-up engine meanwhile, and audits are made up, so every figure in them is simulated, and says so. The fleet's is of made-up replicas, in two clusters.

`--check` needs none of that: it says which pictures are of dashboards that have changed since, and exits 1.
"""

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from etameter.dashboards.files import JSON
from etameter.errors import EtameterError

HERE = Path(__file__).parent
SOURCE = HERE / "grafana_page"
IMAGES = HERE / "images"
MANIFEST = IMAGES / "dashboards.json"
CHROMIUM = "/usr/bin/chromium"
LOAD_S = 200
FOOTPRINT = {"ETAMETER_FOOTPRINT__PRICE": "finland", "ETAMETER_FOOTPRINT__GRAMS_PER_KWH": "380"}
SHOWN_S = 180
REPLICAS = 24
"""Of the fleet's dashboard."""


def hashes() -> dict[str, str]:
    """Of the dashboards as they are, by the name of their picture."""
    return {f"{path.stem}.png": hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(JSON.glob("*.json"))}


def stale() -> list[str]:
    """Pictures that are missing, or of dashboards that have changed."""
    drawn = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    return [name for name, digest in hashes().items() if drawn.get(name) != digest or not (IMAGES / name).exists()]


def draw() -> None:
    """Draw all dashboards. Raises EtameterError where a tool is missing or fails."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        page = _built(Path(directory, "page"))
        shutil.copytree(JSON, page / "json")
        _shoot(Path(directory), _served(page, stack), stack)
    note()


def note() -> None:
    """Write down which dashboards the pictures are of."""
    MANIFEST.write_text(json.dumps(hashes(), indent=1) + "\n")


def _built(folder: Path) -> Path:
    """The page that draws, built in `folder`. Installed packages are kept in docs/grafana_page/node_modules."""
    for command in (
        ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"],
        ["npx", "vite", "build"],
    ):
        if shutil.which(command[0]) is None:
            raise EtameterError(f"there is no {command[0]}", "install Debian's npm")
        done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EtameterError(f"{' '.join(command)} fails ({done.stderr.strip()[-300:]})", "see what it says")
    shutil.move(SOURCE / "dist", folder)
    return folder


def _served(folder: Path, stack: ExitStack) -> str:
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.shutdown)
    return f"http://127.0.0.1:{server.server_port}"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the library's
        """Nobody reads it."""


def _shoot(directory: Path, address: str, stack: ExitStack) -> None:
    from playwright.sync_api import sync_playwright

    from tests.dashboards import audited
    from tests.dashboards.scraped import Prometheus
    from tests.meter.export.stand import Stand

    def complain(error: object) -> None:
        sys.stderr.write(f"{error}\n")

    stack.enter_context(mock.patch.dict(os.environ, FOOTPRINT))
    stand = Stand(directory, stack)
    stand.engine()
    prometheus = Prometheus(directory, (f"127.0.0.1:{stand.port}", audited.served(stack)), stack)
    of_fleet = Prometheus(_folder(directory, "fleet"), (), stack, _replicas(stack))
    time.sleep(LOAD_S)
    options = ["--no-sandbox"] if os.getuid() == 0 else []
    browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=CHROMIUM, args=options)
    stack.callback(browser.close)
    for name in hashes():
        tab = browser.new_page(viewport={"width": 1456, "height": 900})
        tab.on("pageerror", complain)
        asked = of_fleet if name == "etameter-fleet.png" else prometheus
        tab.goto(f"{address}/?board={Path(name).stem}&prometheus={asked.address}&seconds={SHOWN_S}")
        tab.wait_for_selector("body[data-filled]", timeout=60_000)
        tab.wait_for_timeout(3000)
        tab.screenshot(path=IMAGES / name, full_page=True)
        tab.close()


def _replicas(stack: ExitStack) -> list[dict[str, Any]]:
    """What Prometheus is told of simulated replicas, in two clusters."""
    from benchmarks.replicas import scraped
    from tests.meter.test_daemon import free_port

    port = free_port()
    made = [sys.executable, "-m", "benchmarks.replicas", str(REPLICAS), "--audited", "--port", str(port)]
    process = subprocess.Popen(made)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return scraped(REPLICAS, port, REPLICAS // 2)


def _folder(directory: Path, name: str) -> Path:
    folder = directory / name
    folder.mkdir()
    return folder


def main(arguments: list[str]) -> int:
    """Draw, or with `--check` only look; returns the exit code."""
    if arguments == ["--check"]:
        old = stale()
        if old:
            sys.stderr.write(f"stale: {', '.join(f'docs/images/{name}' for name in old)}; run `make screenshots`\n")
        return 1 if old else 0
    if arguments:
        sys.stderr.write(f"docs.grafana_pictures: {' '.join(arguments)}: only --check is known\n")
        return 2
    try:
        draw()
    except EtameterError as error:
        sys.stderr.write(f"etameter: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
