"""The services of compose.yaml as plain processes, with the very files, names, ports, environment and commands that their images have.

`unshare --mount --net python -m tests.docker.services FOLDER`, as root: in a network and with mounts of its own, `meter` and `prometheus` are names of this
machine, and `/run/etameter` and `/data/state` are volumes. Nobody has a GPU or a vLLM here: a simulated board follows a made-up engine. Prints what
was found as a line of JSON.
"""

import fcntl
import json
import os
import re
import shlex
import socket
import struct
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker"
STAGE = (FOLDER / "Dockerfile").read_text().partition(" AS meter\n")[2].partition("\nFROM ")[0].replace("\\\n", "")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
RUN = Path("/run/etameter")
UP, SIOCSIFFLAGS = 1, 0x8914
PATIENCE_S = 60.0
VOLUMES = (RUN, Path("/data/state"), Path("/prometheus"))
PLACES = (*VOLUMES, Path("/etc/prometheus"))
"""Directories that have to be there for something to be mounted on them."""


def network() -> None:
    """The loopback interface, which a new network has, but off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", UP))


def mounts(folder: Path) -> None:
    """Seen by this process and its children alone."""
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {' '.join(SERVICES)}\n")
    configuration = folder / "prometheus"
    configuration.mkdir()
    for volume in SERVICES["prometheus"]["volumes"]:
        source, target = volume.split(":")[:2]
        if source.startswith("."):
            place = configuration / Path(target).relative_to("/etc/prometheus")
            subprocess.run(["cp", "-R", FOLDER / source, place], check=True)
    for source, target in ((hosts, "/etc/hosts"), (configuration, "/etc/prometheus")):
        subprocess.run(["mount", "--bind", source, target], check=True)
    for target in VOLUMES:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", target], check=True)


def environment() -> dict[str, str]:
    """As the image and the service set it."""
    set_by_image = dict(
        pair.split("=", 1) for words in re.findall(r"^ENV (.*)$", STAGE, re.MULTILINE) for pair in shlex.split(words)
    )
    return {"PATH": os.environ["PATH"], **set_by_image, **SERVICES["meter"]["environment"]}


def start(stack: ExitStack, command: Sequence[str], **options: Any) -> None:
    process = subprocess.Popen(command, stdout=sys.stderr, **options)
    stack.callback(process.wait)
    stack.callback(process.kill)


def healthy() -> bool:
    """What the image's own health check finds."""
    (check,) = re.findall(r"CMD (\[.*\])$", STAGE, re.MULTILINE)
    return subprocess.run(json.loads(check), capture_output=True, check=False).returncode == 0


def told(path: str, **parameters: str) -> Any:
    """By Prometheus, at the address where Grafana is told to find it."""
    [source] = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    with urllib.request.urlopen(f"{source['url']}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
        return json.load(answer)["data"]


def asked(expression: str) -> Any:
    try:
        return told("query", query=expression)["result"]
    except OSError:  # it isn't there yet
        return []


def until(holds: Any) -> Any:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if found := holds():
            return found
        time.sleep(0.2)
    raise SystemExit(f"not within {PATIENCE_S} s")


def main(folder: Path) -> None:
    network()
    mounts(folder)
    [entry] = re.findall(r"^ENTRYPOINT (\[.*\])$", STAGE, re.MULTILINE)
    board, ring, python = RUN / "board", RUN / "etameter-engine-0.ring", sys.executable
    with ExitStack() as stack:
        simulated = ["--profile", "h100", "--ring", str(ring), "--board", str(board)]
        start(stack, [python, "-m", "etameter.counters.simulated", *simulated])
        until(board.exists)
        # What the image has on its PATH lies beside this interpreter, whether or not that is on ours.
        command, *options = json.loads(entry)
        meter = [str(Path(python).parent / command), *options, "--simulate-gpu", "h100", "--board", str(board)]
        start(stack, meter, env=environment(), cwd="/")
        start(stack, [python, "-m", "tests.meter.export.busy_engine", str(ring), str(RUN / "meter.sock")])
        start(stack, ["prometheus", *SERVICES["prometheus"]["command"], "--log.level=error"], cwd="/")
        until(healthy)
        series = until(lambda: asked('increase(etameter_energy_joules_total{phase="output"}[30s]) > 0'))
        found = {
            "sources": sorted({each["metric"]["source"] for each in series}),
            "up": {each["metric"]["job"]: each["value"][1] for each in asked("up")},
            "recorded": len(until(lambda: asked('{__name__=~"etameter:.+"}'))),
            "failing": [
                rule["name"] for group in told("rules")["groups"] for rule in group["rules"] if rule["health"] == "err"
            ],
            "ledger": Path("/data/state/ledger.db").exists(),
        }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
