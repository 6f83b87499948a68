"""Whole commands as a user runs them: what must fail fails in one line with exit code 2, and nothing is ever left running.

The faults are those of `etameter serve`'s surroundings, so that a vLLM of a few lines stands in for the real one there. The last two
tests start the real one.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from etameter.serving import launch, ports
from tests.forms import FORMS, ask
from tests.metered import PATIENCE_S
from tests.serving.processes import wait_until, with_environment
from tests.simnvml.board import Board, Call

pytestmark = pytest.mark.boot

NO_PERMISSION = 4  # NVML's number
LONG_TOKENS = 300
"""So many that the meter tells of their request while it goes on, and a slow machine is through with them while vLLM waits for it to end."""
STAND_IN_VLLM = """
import http.server, os, sys
if os.environ.get("STAND_IN_FATE") == "dies":
    print("INFO 11-21 23:16:01 [core.py:1] loading")
    print("(EngineCore pid=7) ERROR 11-21 23:16:02 [core.py:2] ValueError: the model is too large")
    sys.exit(1)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
def main():
    port = int(sys.argv[sys.argv.index("--port") + 1])
    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Place:
    """Where a command runs: its own directories, ports, and a mark by which all of its processes are found."""

    path: Path
    port: int = field(default_factory=_free_port)
    meter_port: int = field(default_factory=_free_port)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mark = f"{self.path.name}-{os.getpid()}-{time.monotonic_ns()}"
        (self.path / "model").mkdir()
        (self.path / "model" / "config.json").write_text("{}")
        self.environment |= {
            **os.environ,
            "ETAMETER_TEST_MARK": self.mark,
            "ETAMETER_RUN": str(self.path / "run"),
            "ETAMETER_STATE": str(self.path / "state"),
            "ETAMETER_RING_DIR": str(self.path),
        }

    def stand_in(self, version: str | None = "0.32.0") -> None:
        """Puts a stand-in in place of vLLM, or hides vLLM where `version` is None."""
        package = self.path / "stand-in"
        program = package / "vllm" / "entrypoints" / "cli"
        program.mkdir(parents=True)
        (program / "main.py").write_text(STAND_IN_VLLM)
        (package / f"vllm-{version}.dist-info").mkdir()
        (package / f"vllm-{version}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        )
        if version is None:
            shutil.rmtree(package / "vllm")
            (package / "sitecustomize.py").write_text("import sys; sys.modules['vllm'] = None\n")
        else:
            (package / "vllm" / "__init__.py").touch()
        self.environment["PYTHONPATH"] = str(package)

    def serve(self, *options: str) -> list[str]:
        return [
            "serve",
            str(self.path / "model"),
            "--port",
            str(self.port),
            "--meter-port",
            str(self.meter_port),
            *options,
        ]

    def start(self, *arguments: str, output: Any = subprocess.PIPE) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "etameter", *arguments]
        return subprocess.Popen(
            command, env=self.environment, cwd=self.path, stdout=output, stderr=subprocess.PIPE, text=True
        )

    def left(self) -> list[int]:
        return with_environment(f"ETAMETER_TEST_MARK={self.mark}")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    here = Place(tmp_path)
    here.stand_in()
    yield here
    left = here.left()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


Prepare = Callable[[Place, ExitStack], list[str]]


def _unknown_model(place: Place, _: ExitStack) -> list[str]:
    shutil.rmtree(place.path / "model")
    return place.serve("--simulate-gpu", "h100")


def _empty_model(place: Place, _: ExitStack) -> list[str]:
    (place.path / "model" / "config.json").unlink()
    return place.serve("--simulate-gpu", "h100")


def _port_in_use(place: Place, stack: ExitStack) -> list[str]:
    stack.enter_context(socket.create_server(("127.0.0.1", place.port)))
    return place.serve("--simulate-gpu", "h100")


def _meter_port_in_use(place: Place, stack: ExitStack) -> list[str]:
    stack.enter_context(socket.create_server(("127.0.0.1", place.meter_port)))
    return place.serve("--simulate-gpu", "h100")


def _second_engine_of_the_name(place: Place, stack: ExitStack) -> list[str]:
    stack.enter_context(ports.claim_ring(place.path / "etameter-engine-0.ring", ""))
    return place.serve("--simulate-gpu", "h100")


def _second_meter(place: Place, stack: ExitStack) -> list[str]:
    (place.path / "run").mkdir()
    lock = stack.enter_context((place.path / "run" / "meter.lock").open("w"))
    fcntl.flock(lock, fcntl.LOCK_EX)
    return place.serve("--simulate-gpu", "h100")


def _no_vllm(place: Place, _: ExitStack) -> list[str]:
    shutil.rmtree(place.path / "stand-in")
    place.stand_in(version=None)
    return place.serve("--simulate-gpu", "h100")


def _vllm_dies(place: Place, _: ExitStack) -> list[str]:
    place.environment["STAND_IN_FATE"] = "dies"
    return place.serve("--simulate-gpu", "h100")


def _bad_option(place: Place, _: ExitStack) -> list[str]:
    return place.serve("--simulate-gpu", "b200")


def _bad_port(place: Place, _: ExitStack) -> list[str]:
    return place.serve("--simulate-gpu", "h100", "--port", "http")


def _own_scheduler(place: Place, _: ExitStack) -> list[str]:
    return place.serve("--simulate-gpu", "h100", "--scheduler-cls", "mine")


def _bad_key(place: Place, _: ExitStack) -> list[str]:
    (place.path / "etameter.toml").write_text("[meter]\nprot = 9430\n")
    return place.serve("--simulate-gpu", "h100")


def _bad_ledger(place: Place, _: ExitStack) -> list[str]:
    (place.path / "not-a-ledger").write_text("nothing of the kind, and long enough to be looked at" * 100)
    return place.serve("--simulate-gpu", "h100", "--ledger", str(place.path / "not-a-ledger"))


def _board(place: Place, stack: ExitStack) -> Board:
    if shutil.which("gcc") is None:
        pytest.skip("the stand-in NVML needs gcc")
    board = stack.enter_context(Board(place.path / "board"))
    place.environment |= board.environment()
    return board


def _nvml_forbidden(place: Place, stack: ExitStack) -> list[str]:
    _board(place, stack).fail(Call.ENERGY, NO_PERMISSION)
    return place.serve()


def _no_driver(place: Place, stack: ExitStack) -> list[str]:
    _board(place, stack)
    place.environment["SIMNVML_BOARD"] = str(place.path / "none")
    return place.serve()


def _mig(place: Place, stack: ExitStack) -> list[str]:
    _board(place, stack).gpus[0].mig_current = 1
    return place.serve()


def _cpu_build_beside_a_gpu(place: Place, stack: ExitStack) -> list[str]:
    _board(place, stack)
    shutil.rmtree(place.path / "stand-in")
    place.stand_in(version="0.32.0+cpu")
    return place.serve()


def _meter_on_any_port(place: Place, _: ExitStack) -> list[str]:
    return place.serve("--simulate-gpu", "h100", "--meter-port", "0")


def _demo_with_failing_nvml(place: Place, stack: ExitStack) -> list[str]:
    _board(place, stack).fail(Call.ENERGY, NO_PERMISSION)
    return ["demo"]


def _demo_of_nobody(place: Place, _: ExitStack) -> list[str]:
    return ["demo", "--url", f"http://127.0.0.1:{place.port}"]


FAULTS: list[tuple[Prepare, str]] = [
    (_unknown_model, "no model at '.*/model': name a directory that exists"),
    (_empty_model, "model holds no model: name a directory"),
    (
        _port_in_use,
        r"port \d+ is in use \(Address already in use\): stop what listens there, or choose another with --port",
    ),
    (_meter_port_in_use, r"port \d+ is in use .*choose another with --meter-port"),
    (_second_engine_of_the_name, r"engine-0\.ring is the ring of another .*: stop that one, or name .* --engine"),
    (_second_meter, "another meter .*: stop it, or set ETAMETER_RUN"),
    (_no_vllm, "vLLM is not installed here: pip install"),
    (_vllm_dies, "vLLM ended with exit code 1: ValueError: the model is too large"),
    (_bad_option, "b200.*--help"),
    (_bad_port, "--port http is no port: give a number"),
    (_own_scheduler, "--scheduler-cls can't be given to etameter serve: leave it out"),
    (_bad_key, "unknown key meter.prot .*did you mean port"),
    (_bad_ledger, "not-a-ledger.*: name a"),
    (_nvml_forbidden, "this user may not read the GPU: run as"),
    (_no_driver, "the NVIDIA driver isn't running: make nvidia-smi work"),
    (_mig, "is split by MIG.*: switch MIG off"),
    (
        _cpu_build_beside_a_gpu,
        r"there is a GPU, but the vLLM here \(0\.32\.0\+cpu\) is built for CPUs: install vLLM for",
    ),
    (_meter_on_any_port, "the meter's port is 0: name one with --meter-port"),
    (_demo_with_failing_nvml, "this user may not read the GPU: run as"),
    (_demo_of_nobody, "the server does not answer .*: see that it runs"),
]


@pytest.mark.parametrize(("prepare", "line"), FAULTS, ids=[prepare.__name__.strip("_") for prepare, _ in FAULTS])
def test_what_must_fail_says_so_in_one_line(place: Place, prepare: Prepare, line: str) -> None:
    theirs = [place.path / "etameter-engine-0.ring", place.path / "etameter-engine-0.board"]
    for file in theirs:
        file.write_bytes(b"another's")
    with ExitStack() as stack:
        command = place.start(*prepare(place, stack))
        _, said = command.communicate(timeout=90.0)
    ours = [each for each in said.splitlines() if each.startswith("etameter: ")]
    assert command.returncode == 2, said
    assert re.search(line, said.splitlines()[-1]), said
    if prepare is not _vllm_dies:  # whose own output goes by
        assert said.splitlines() == [each for each in ours if each], said
        assert len([each for each in ours if "…" not in each]) == 1, said
        assert theirs[0].read_bytes() == b"another's"
    if prepare is _second_engine_of_the_name:  # a board that nobody has claimed is one that was killed
        assert theirs[1].read_bytes() == b"another's"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.3, 0.8, 1.4, 2.5])
def test_an_interrupt_at_any_moment_of_the_start_leaves_nothing(
    place: Place, number: signal.Signals, after_s: float
) -> None:
    command = place.start(*place.serve("--simulate-gpu", "h100"))
    time.sleep(after_s)
    command.send_signal(number)
    command.communicate(timeout=90.0)
    assert command.returncode in {130, -number}  # Python itself was not up yet
    wait_until(lambda: place.left() == [], 30.0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_meter_says_how_it_was_ended(place: Place, number: signal.Signals, code: int) -> None:
    board = place.path / "board"
    files = ["--profile", "h100", "--ring", str(place.path / "ring"), "--board", str(board)]
    publisher = subprocess.Popen(
        [sys.executable, "-m", "etameter.counters.simulated", *files], env=place.environment, cwd=place.path
    )
    try:
        wait_until(board.exists)
        meter = place.start("meter", "--simulate-gpu", "h100", "--board", str(board), "--port", str(place.meter_port))
        wait_until(lambda: launch.answers("127.0.0.1", place.meter_port))
        meter.send_signal(number)
        meter.communicate(timeout=90.0)
        assert meter.returncode == code
    finally:
        publisher.terminate()
        publisher.wait(90.0)


def _ask(port: int) -> dict[str, Any]:
    question = {"model": "small", "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 8}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(question).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60.0) as response:
        return dict(json.load(response))


def _running(meter_port: int) -> bool:
    """Whether the meter knows of a request that goes on."""
    with urllib.request.urlopen(f"http://127.0.0.1:{meter_port}/events", timeout=90.0) as events:
        told = next(line for line in events if line.startswith(b"data: "))
    return bool(json.loads(told.removeprefix(b"data: "))["running"])


def _said(path: Path, text: str) -> Callable[[], bool]:
    return lambda: text in path.read_text(errors="replace")


def _wait_until_serving(serve: subprocess.Popen[Any], log: Path) -> None:
    wait_until(lambda: _said(log, "etameter: serving ")() or serve.poll() is not None, 300.0)
    assert serve.poll() is None, log.read_text(errors="replace")[-4000:]


def test_serving_outlives_its_meter_and_ends_with_ctrl_c(place: Place, model_dir: Path) -> None:
    del place.environment["PYTHONPATH"]
    command = ["serve", str(model_dir), "--simulate-gpu", "h100", "--host", "127.0.0.1", "--port", str(place.port)]
    command += ["--meter-port", str(place.meter_port), "--served-model-name", "small", "--enforce-eager"]
    command += ["--shutdown-timeout", "30"]
    log = place.path / "log"
    with log.open("w") as output:
        serve = subprocess.Popen(
            [sys.executable, "-m", "etameter", *command, "--max-model-len", "2048", "--dtype", "bfloat16"],
            env=place.environment,
            cwd=place.path,
            stderr=output,
        )
    try:
        _wait_until_serving(serve, log)
        # on a busy machine a figure may come too late for its response
        wait_until(lambda: (_ask(place.port)["energy"] or {}).get("source") == "simulated", PATIENCE_S)

        url = f"http://127.0.0.1:{place.port}"
        before = ask(url, FORMS["chat"], stream=True)
        os.kill(int((place.path / "run" / "meter.lock").read_text()), signal.SIGKILL)
        away = ask(url, FORMS["chat"], stream=True)
        assert (away.energy, away.objects[-1]["energy_reason"]) == (None, "meter_away")
        assert away.own == before.own
        wait_until(_said(log, "the meter started again"), PATIENCE_S)
        wait_until(lambda: _ask(place.port)["energy"] is not None, PATIENCE_S)

        demo = place.start("demo", "--url", f"http://127.0.0.1:{place.port}/v1", "--json")
        told, _ = demo.communicate(timeout=120.0)
        report = json.loads(told)
        assert len(report["requests"]) == 16
        assert all(request["energy"]["settled"] for request in report["requests"])
        assert any(request["correct"] for request in report["requests"])
        with ThreadPoolExecutor(1) as pool:
            path, question = FORMS["chat"]
            long = pool.submit(
                ask, url, (path, question | {"max_tokens": LONG_TOKENS, "ignore_eos": True}), stream=True
            )
            wait_until(lambda: _running(place.meter_port), 30.0)
            serve.send_signal(signal.SIGINT)
            ended = long.result()
        assert ended.objects[-1]["usage"]["completion_tokens"] == LONG_TOKENS
        assert ended.energy or ended.objects[-1]["energy_reason"] == "meter_late"  # the meter was there still
    finally:
        serve.send_signal(signal.SIGINT)
        assert serve.wait(60.0) == 130
    assert place.left() == []
    assert not list(place.path.glob("*.ring"))


@pytest.mark.slow
def test_as_many_api_servers_are_started_as_are_asked_for(place: Place, model_dir: Path) -> None:
    del place.environment["PYTHONPATH"]
    command = ["serve", str(model_dir), *place.serve("--simulate-gpu", "h100", "--host", "127.0.0.1")[2:]]
    command += ["--served-model-name", "small", "--enforce-eager", "--api-server-count", "2"]
    log = place.path / "log"
    with log.open("w") as output:
        serve = subprocess.Popen(
            [sys.executable, "-m", "etameter", *command], env=place.environment, cwd=place.path, stderr=output
        )
    try:
        _wait_until_serving(serve, log)
        wait_until(lambda: len(set(re.findall(r"Started server process \[(\d+)\]", log.read_text()))) == 2, PATIENCE_S)
        for _ in range(16):  # the kernel gives each connection to either of them
            wait_until(lambda: (_ask(place.port)["energy"] or {}).get("source") == "simulated", PATIENCE_S)
    finally:
        serve.terminate()
        assert serve.wait(60.0) == 130
    assert place.left() == []


@pytest.mark.slow
def test_a_vllm_of_an_unknown_version_is_warned_of_once_and_metered_by_its_responses(
    place: Place, model_dir: Path
) -> None:
    """The real one, under a name of a version that is none yet."""
    shutil.rmtree(place.path / "stand-in")
    place.stand_in(version="0.99.0+cpu")
    shutil.rmtree(place.path / "stand-in" / "vllm")
    log = place.path / "log"
    command = ["serve", str(model_dir), *place.serve("--simulate-gpu", "h100", "--host", "127.0.0.1")[2:]]
    with log.open("w") as output:
        serve = subprocess.Popen(
            [sys.executable, "-m", "etameter", *command, "--served-model-name", "small", "--enforce-eager"],
            env=place.environment,
            cwd=place.path,
            stderr=output,
        )
    try:
        _wait_until_serving(serve, log)
        wait_until(lambda: (_ask(place.port)["energy"] or {}).get("attribution_method") == "proxy", PATIENCE_S)
    finally:
        serve.terminate()
        assert serve.wait(60.0) == 130
    said = log.read_text()
    assert said.count("vLLM 0.99.0+cpu is not known here") == 1
    assert said.count("etameter: metering responses into") == 1
    assert "metering Scheduler" not in said
    assert place.left() == []


def test_the_demo_meters_every_request_and_balances(place: Place, model_dir: Path) -> None:
    del place.environment["PYTHONPATH"]
    demo = place.start("demo", "--json")  # the model lies where the demo looks, or is converted once more
    told, _ = demo.communicate(timeout=600.0)
    assert demo.returncode == 0
    report = json.loads(told)
    assert [request["reason"] for request in report["requests"]] == [None] * 16
    receipts = [request["energy"] for request in report["requests"]]
    assert all(receipt["settled"] and receipt["energy_joules"] > 0 for receipt in receipts)
    for request, receipt in zip(report["requests"], receipts, strict=True):
        assert (receipt["prompt_tokens"], receipt["output_tokens"]) == (
            request["prompt_tokens"],
            request["output_tokens"],
        )
        assert receipt["eta"]["lenient_at_most"] <= 1
        assert (request["eta_deletion"] is None) == (request["eta_deletion_reason"] is not None)
    right = [request for request in report["requests"] if request["correct"]]
    assert right
    assert all(0 < request["eta_deletion"] <= 1 for request in right)
    assert report["arms"]["entrace"]["joules_per_correct"] > 0
    balance = report["balance"]
    assert abs(balance["residual_joules"]) <= 1e-9 * balance["counter_joules"]
    assert sum(balance["unattributed_joules"].values()) <= 0.005 * balance["counter_joules"]
    assert sum(receipt["energy_joules"] for receipt in receipts) < balance["requests_joules"]
    assert place.left() == []
