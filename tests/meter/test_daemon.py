"""The meter as a process: a ring and a board are fed to it as an engine and a GPU would, through the same files and libraries."""

import asyncio
import errno
import fcntl
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from etameter import config, daemon
from etameter.counters.simulated import SimulatedCounter
from etameter.errors import EtameterError
from etameter.export.socket import LINE_LIMIT_BYTES
from etameter.ledger import Ledger, Totals
from etameter.serving.ring import RingWriter, Row
from tests.simnvml.board import Board, Call, Sensor

pytestmark = pytest.mark.unit

PATIENCE_S = 30.0
RECEIPT = "0123456789abcdef" * 2
ENGINE_ID = f"chatcmpl-1-{RECEIPT}00000000"


def until(holds: Callable[[], Any]) -> Any:
    """What `holds` returns once it is true."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if result := holds():
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE_S} s")


@dataclass
class Meter:
    """A meter process of a test."""

    process: subprocess.Popen[str]
    directory: Path
    port: int

    def get(self, path: str, accept: str = "*/*", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path, headers={"Accept": accept, **headers})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(self.process.communicate()[1])
        try:
            return self.get("/health")[0] == 200
        except OSError:
            return False

    def energy(self, receipt_id: str = RECEIPT) -> Any:
        return json.loads(self.get(f"/energy/{receipt_id}")[1])["energy"]

    def settled(self) -> Any:
        energy = self.energy()
        return energy if energy and energy["settled"] else None

    def samples(self) -> dict[str, float]:
        lines = [line for line in self.get("/metrics")[1].splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    def totals(self) -> Totals:
        ledger = Ledger(self.directory / "ledger.db", read_only=True)
        try:
            return ledger.totals()
        finally:
            ledger.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(directory: Path, environment: Mapping[str, str], *options: str, port: int | None = None) -> Meter:
    port = free_port() if port is None else port
    command = [sys.executable, "-m", "etameter", "meter", "--port", str(port), "--ring", str(directory / "ring")]
    command += ["--ledger", str(directory / "ledger.db"), *options]
    own = {"ETAMETER_RUN": str(directory / "run"), "ETAMETER_STATE": str(directory / "state")}
    process = subprocess.Popen(
        command, env={**os.environ, **own, **environment}, stderr=subprocess.PIPE, text=True, cwd=directory
    )
    return Meter(process, directory, port)


@contextmanager
def running(directory: Path, environment: Mapping[str, str], *options: str) -> Iterator[Meter]:
    meter = start(directory, environment, *options)
    try:
        until(meter.ready)
        yield meter
    finally:
        meter.process.kill()
        meter.process.communicate()


@contextmanager
def lit_board(directory: Path, power_w: float = 250.0, gpus: int = 1) -> Iterator[Board]:
    """A board of the stand-in NVML under steady power, publishing every 50 ms."""
    with Board(directory / "board", gpus=gpus, energy=Sensor(period_ns=50_000_000)) as board:
        for gpu in range(gpus):
            board.set_power_w(gpu, [(0, power_w)])
        yield board


@contextmanager
def engine(directory: Path, gpu_uuids: Sequence[str] = ()) -> Iterator[RingWriter]:
    ring = RingWriter(directory / "ring", engine="engine-0", model="m", dtype="bfloat16", gpu_uuids=gpu_uuids)
    yield ring
    ring.close()


def serve_one(
    ring: RingWriter, steps: int = 20, engine_id: str = ENGINE_ID, first_step: int = 0, reason: str = "length"
) -> float:
    """A request with a prompt of 30 tokens, in real time. Returns how many seconds it took: 20 ms a step and more, on a busy machine."""
    began_ns = time.monotonic_ns()
    number = ring.open_request(engine_id, 30, began_ns)
    for step in range(steps):
        row: Row = (number, 0, 1, 0, 0, 0, 0, 30 + step, 0) if step else (number, 30, 0, 0, 0, 0, 0, 0, 0)
        ring.dispatch(first_step + step, time.monotonic_ns(), [row])
        time.sleep(0.02)
        ring.done(first_step + step, time.monotonic_ns())
    ended_ns = time.monotonic_ns()
    ring.finish(number, ended_ns, steps, reason)
    return (ended_ns - began_ns) * 1e-9


def balanced(totals: Totals) -> bool:
    return abs(totals.residual_j) <= 1e-9 * totals.measured_j


def test_a_meter_is_ready_once_its_counter_has_moved(tmp_path: Path) -> None:
    with lit_board(tmp_path, power_w=0.0) as board, running(tmp_path, board.environment()) as meter:
        until(lambda: meter.samples().get("etameter_sampler_polls_total", 0.0) > 10)
        status, about = meter.get("/ready")
        assert (status, json.loads(about)["awaiting_first_edge"]) == (503, [board.uuid(0)])
        board.set_power_w(0, [(0, 250.0)])
        until(lambda: meter.get("/ready")[0] == 200)
        assert stat.S_IMODE((tmp_path / "run" / "audit.key").stat().st_mode) == 0o600
        assert json.loads(meter.get("/health")[1])["awaiting_first_edge"] == []


def test_a_request_is_metered_from_ring_and_counter_to_receipt_metrics_and_ledger(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter, engine(tmp_path) as ring:
        until(lambda: json.loads(meter.get("/health")[1])["engine"] == "engine-0")
        took_s = serve_one(ring)
        energy = until(meter.settled)
        assert energy["energy_joules"] == pytest.approx(energy["prompt_joules"] + energy["output_joules"])
        assert (energy["prompt_tokens"], energy["output_tokens"]) == (30, 20)
        assert (energy["source"], energy["counter"]) == ("simulated", "nvml")
        lower_j, upper_j = 0.5 * 250 * 0.4, 2 * 250 * took_s  # 250 W for the time of its steps, give or take the gaps
        assert lower_j < energy["energy_joules"] < upper_j
        samples = meter.samples()
        energy_j = sum(value for name, value in samples.items() if name.startswith("etameter_energy_joules_total"))
        rest_j = sum(value for name, value in samples.items() if name.startswith("etameter_unassigned_joules_total"))
        total_j = sum(value for name, value in samples.items() if name.startswith("etameter_gpu_energy_joules_total"))
        assert energy_j + rest_j == pytest.approx(total_j, rel=1e-9)
        assert energy_j == pytest.approx(energy["energy_joules"], rel=1e-9)
        assert all('source="simulated"' in name for name in samples if "joules" in name)
        assert balanced(meter.totals())
        status, exposition = meter.get("/metrics", "application/openmetrics-text")
        assert (status, exposition.endswith("# EOF\n")) == (200, True)
        assert RECEIPT not in exposition
        [info] = [name for name in samples if name.startswith("etameter_gpu_info")]
        assert re.fullmatch(r'etameter_gpu_info\{gpu_uuid="GPU-[^"]+",board="[^"]+",counter="nvml",machine=""\}', info)
        assert f'etameter_build_info{{version="{version("etameter")}"}}' in samples
        assert meter.get("/")[0] == 200


def test_unknown_receipts_and_other_paths_are_not_found(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter:
        for path in (f"/energy/{'0' * 32}", "/energy/x", "/energy/..%2f..%2fetc%2fpasswd", "/nothing"):
            assert meter.get(path)[0] == 404
        told = json.loads(meter.get(f"/energy/{'0' * 32}")[1])
        assert told == {"energy": None, "energy_reason": "unknown_request"}


def test_receipts_may_be_for_who_bears_a_token(tmp_path: Path) -> None:
    told = {"ETAMETER_METER__RECEIPT_TOKEN": "sesame-sesame-sesame"}
    path = f"/energy/{RECEIPT}"
    with (
        lit_board(tmp_path) as board,
        running(tmp_path, board.environment() | told) as meter,
        engine(tmp_path) as ring,
    ):
        until(lambda: json.loads(meter.get("/health")[1])["engine"])
        serve_one(ring)
        until(lambda: meter.get(path, Authorization="bearer sesame-sesame-sesame")[0] == 200)
        for borne in ({}, {"Authorization": "Bearer sesame-sesame-sesamf"}, {"Authorization": "sesame-sesame-sesame"}):
            status, said = meter.get(path, **borne)
            assert (status, json.loads(said)) == (401, {"energy": None, "energy_reason": "token_required"})
        for open_to_all in ("/metrics", "/health", "/ready", "/"):
            status, said = meter.get(open_to_all, "application/openmetrics-text")
            assert (status, RECEIPT in said) == (200, False)


def test_slack_is_found_where_texts_may_be_told_and_no_text_is_kept(tmp_path: Path) -> None:
    response = "Sure! Here is a list. Zanzibar. I hope this helps! Let me know if you have any other questions."
    with lit_board(tmp_path) as board, engine(tmp_path) as ring:
        environment = {**board.environment(), "ETAMETER_METER__CLASSIFY": "true"}
        with running(tmp_path, environment) as meter, socket.socket(socket.AF_UNIX) as peer:
            until(lambda: json.loads(meter.get("/health")[1])["engine"])
            assert meter.energy() is None
            peer.settimeout(PATIENCE_S)
            peer.connect(str(tmp_path / "run" / "meter.sock"))
            serve_one(ring, reason="stop")
            told = {"type": "text", "receipt_id": RECEIPT, "prompts": ["Name an island."], "responses": [response]}
            peer.sendall(json.dumps(told).encode() + b"\n")
            energy = until(lambda: (found := meter.settled()) and found["eta"] and found)
            eta = energy["eta"]
            assert 0.0 < eta["lenient_at_most"] < 1.0
            assert eta["interval"][1] == eta["lenient_at_most"]
            tokens = sum(each["tokens"] for each in eta["slack"].values())
            joules = sum(each["joules"] for each in eta["slack"].values())
            assert joules / energy["output_joules"] == pytest.approx(tokens / energy["output_tokens"], rel=0.5)
            # On a busy machine readings may go missing while the request runs, and then nobody knows when its joules were spent.
            known = "tokens" if energy["attribution_method"].endswith("-partial") else "time"
            assert (eta["unit"], eta["joules_by"], energy["waste"]) == ("characters", known, {})
            until(lambda: any("etameter_eta_ratio{" in name for name in meter.samples()))
            of_metrics = {name: value for name, value in meter.samples().items() if "slack_joules" in name}
            assert sum(of_metrics.values()) == pytest.approx(joules)
            lost = {"type": "waste", "receipt_id": RECEIPT, "waste": "retry"}
            peer.sendall(json.dumps(lost).encode() + b"\n")
            until(lambda: meter.energy()["waste"])
            of_metrics = {name: value for name, value in meter.samples().items() if "slack_joules" in name}
            assert sum(of_metrics.values()) == pytest.approx(energy["output_joules"]), "each joule once"
            meter.process.terminate()
            assert "Zanzibar" not in meter.process.communicate(timeout=PATIENCE_S)[1]
        with running(tmp_path, board.environment()) as later:  # which looks for none, but knows what was found
            assert later.energy()["eta"] == eta
            assert later.energy()["waste"]["retry"]["joules"] == energy["output_joules"]
            assert later.energy("f" * 32) is None
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("ledger*") if path.is_file())
    assert b"Zanzibar" not in kept


def test_what_a_judge_says_stands_in_the_receipt_beside_what_was_found_before(tmp_path: Path) -> None:
    judging = {"ETAMETER_METER__CLASSIFY": "true", "ETAMETER_ETA__DEEP": "http://judge:1", "ETAMETER_ETA__SHARE": "1"}
    with lit_board(tmp_path) as board, engine(tmp_path) as ring:
        with (
            running(tmp_path, {**board.environment(), **judging}) as meter,
            socket.socket(socket.AF_UNIX) as server,
            socket.socket(socket.AF_UNIX) as auditor,
        ):
            until(lambda: json.loads(meter.get("/health")[1])["engine"])
            for peer in (server, auditor):
                peer.settimeout(PATIENCE_S)
                peer.connect(str(tmp_path / "run" / "meter.sock"))
            auditor.sendall(
                b'{"type":"audits"}\n' + json.dumps({"type": "receipt", "receipt_id": "f" * 32}).encode() + b"\n"
            )
            told = auditor.makefile()
            assert json.loads(told.readline())["type"] == "receipt"  # so it has been heard: else no text would be kept
            texts = {"prompts": ["Name an island."], "responses": ["Sure! Zanzibar."]}
            server.sendall(json.dumps({"type": "text", "receipt_id": RECEIPT, **texts}).encode() + b"\n")
            job = json.loads(told.readline())
            assert (job["prompt"], job["response"]) == ("Name an island.", "Sure! Zanzibar.")
            serve_one(ring, reason="stop")
            labels = {"labels": [[[1, "P"], [2, "R"]]] * 2, "energy_j": 4.0, "source": "estimated"}
            auditor.sendall(json.dumps({"type": "audits", "job": job["job"], **labels}).encode() + b"\n")
            energy = until(lambda: (found := meter.settled()) and found.get("eta_deep") and found)
            deep = energy["eta_deep"]
            assert deep["strict"] == deep["lenient"] == pytest.approx(9 / 15)
            assert (deep["method"], energy["eta"]["method"]) == ("deep", "fast")
            assert deep["required"]["tokens"] == pytest.approx(9 / 15 * energy["output_tokens"])
            assert (deep["reliability"], deep["reliable"]) == (None, None)
            took = until(
                lambda: [joules for name, joules in meter.samples().items() if "etameter_audit_joules_total{" in name]
            )
            assert took == [4.0]
            meter.process.terminate()
            meter.process.communicate(timeout=PATIENCE_S)
        with running(tmp_path, board.environment()) as later:
            again = later.energy()["eta_deep"]
            assert (again["strict"], again["required"]["tokens"]) == (deep["strict"], deep["required"]["tokens"])
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("ledger*") if path.is_file())
    assert b"Zanzibar" not in kept


def test_the_socket_gives_figures_to_its_own_user_and_survives_nonsense(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter, engine(tmp_path) as ring:
        path = tmp_path / "run" / "meter.sock"
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(PATIENCE_S)
            peer.connect(str(path))
            answers = peer.makefile()
            peer.sendall(json.dumps({"type": "open", "receipt_id": RECEIPT, "arm": "entrace"}).encode() + b"\n")
            peer.sendall(b'not json\n[]\n{"type":"ask"}\n{"type":"ask","receipt_id":"../../x"}\n\xff\xfe\n')
            peer.sendall(json.dumps({"type": "ask", "receipt_id": "f" * 32}).encode() + b"\n")
            assert json.loads(answers.readline()) == {
                "type": "energy",
                "receipt_id": "f" * 32,
                "energy": None,
                "reason": "unknown_request",
            }
            until(lambda: json.loads(meter.get("/health")[1])["engine"])
            serve_one(ring)
            question = {"type": "ask", "receipt_id": RECEIPT, "public_id": "chatcmpl-1"}
            peer.sendall(json.dumps(question).encode() + b"\n")
            answer = json.loads(answers.readline())
            assert answer["energy"]["energy_joules"] > 0
            until(meter.settled)
            with suppress(ConnectionError):  # a line over the limit ends this connection only
                peer.sendall(b"x" * 2 * LINE_LIMIT_BYTES + b"\n")
                assert answers.readline() == ""
        until(lambda: meter.samples()["etameter_socket_dropped_messages_total"] == 6)
        samples = meter.samples()
        assert any('arm="entrace"' in name and value > 0 for name, value in samples.items() if "energy_joules" in name)
        assert 'request_id="chatcmpl-1"' in meter.get("/metrics", "application/openmetrics-text")[1]


def test_a_killed_meter_goes_on_when_it_is_back_and_the_gap_is_unattributed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        board = stack.enter_context(lit_board(tmp_path))
        ring = stack.enter_context(engine(tmp_path))
        with running(tmp_path, board.environment()) as meter:
            until(lambda: json.loads(meter.get("/health")[1])["engine"])
            serve_one(ring, steps=10)
            first = until(meter.settled)
            until(lambda: any("requests_total" in name and value == 1 for name, value in meter.samples().items()))
            meter.process.kill()  # not before it is written
        serve_one(ring, 10, ENGINE_ID.replace("chatcmpl-1", "chatcmpl-2"), first_step=10)
        time.sleep(1.5)
        with running(tmp_path, board.environment()) as meter:
            until(lambda: "readings_missing" in meter.totals().unattributed_j_by_cause)
            serve_one(ring, 10, "chatcmpl-3-" + "c" * 32 + "00000000", first_step=20)
            until(lambda: (meter.energy("c" * 32) or {}).get("settled"))
            assert meter.settled()["energy_joules"] >= first["energy_joules"]
            totals = meter.totals()
        assert balanced(totals)
        assert totals.requests == 3
        assert totals.unattributed_j_by_cause["readings_missing"] > 250 * 1.5


def test_a_second_engine_takes_the_ring_over(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter:
        with engine(tmp_path) as ring:
            until(lambda: json.loads(meter.get("/health")[1])["engine"])
            serve_one(ring, 5)
            ring.dispatch(99, time.monotonic_ns(), [(ring.open_request("never-done", 5, 0), 5, 0, 0, 0, 0, 0, 0, 0)])
        with engine(tmp_path) as ring:
            time.sleep(0.5)
            serve_one(ring, 5, "chatcmpl-9-" + "9" * 32 + "00000000")
            until(lambda: (meter.energy("9" * 32) or {}).get("settled"))
        ledger = Ledger(tmp_path / "ledger.db", read_only=True)
        reasons = {row.record.request_id: row.record.finish_reason for row in ledger.requests()}
        assert reasons["never-done"] == "engine_lost"
        assert balanced(ledger.totals())


def test_an_engine_on_gpus_that_this_meter_does_not_read_is_ignored_with_a_reason(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter:
        elsewhere = RingWriter(tmp_path / "ring", engine="e", model="m", dtype="d", gpu_uuids=["GPU-elsewhere"])
        with closing(elsewhere), engine(tmp_path) as ring:
            until(lambda: json.loads(meter.get("/health")[1])["engine"] == "engine-0")
            serve_one(ring, 5)
            assert until(meter.settled)["energy_joules"] > 0


def test_a_second_meter_is_told_who_has_the_socket(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter:
        second = start(tmp_path, board.environment())
        assert refusal(second) == (
            f"etameter: another meter (pid {meter.process.pid}) runs on {tmp_path}/run/meter.sock: "
            "stop it, or set ETAMETER_RUN to another directory"
        )
        assert meter.ready()


def test_a_second_meter_on_the_same_ledger_is_told_who_writes_it(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter:
        second = start(tmp_path, {**board.environment(), "ETAMETER_RUN": str(tmp_path / "another run")})
        assert refusal(second) == (
            f"etameter: another meter (pid {meter.process.pid}) writes the ledger {tmp_path}/ledger.db: "
            "stop it, or name another file with --ledger"
        )
        assert meter.ready()


def test_a_free_port_is_taken_and_named(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board:
        meter = start(tmp_path, board.environment(), port=0)
        try:
            assert meter.process.stderr is not None
            address = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", meter.process.stderr.readline())
            assert address is not None
            meter.port = int(address[1])
            assert meter.ready()
        finally:
            meter.process.kill()
            meter.process.communicate()


def test_a_servers_files_of_metrics_are_left_alone(tmp_path: Path) -> None:
    files = tmp_path / "prometheus"
    files.mkdir()
    with ExitStack() as stack:
        board = stack.enter_context(lit_board(tmp_path))
        environment = {**board.environment(), "PROMETHEUS_MULTIPROC_DIR": str(files)}
        meter = stack.enter_context(running(tmp_path, environment))
        assert meter.get("/metrics")[0] == 200
        assert list(files.iterdir()) == []


def test_what_can_never_be_a_ring_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ring").mkdir()
    with lit_board(tmp_path) as board:
        assert refusal(start(tmp_path, board.environment())) == (
            f"etameter: the ring {tmp_path}/ring is no file: name the file that the engine's scheduler writes with --ring"
        )


def test_of_a_file_that_is_no_ring_it_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "ring").write_bytes(b"x" * 8192)
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter:
        time.sleep(0.5)
        with engine(tmp_path):
            until(lambda: json.loads(meter.get("/health")[1])["engine"])
        meter.process.kill()
        assert meter.process.stderr is not None
        assert meter.process.stderr.read().count("is no ring of steps") == 1


def test_a_ring_whose_writer_has_ended_is_ignored_aloud_and_not_for_its_inode(tmp_path: Path) -> None:
    writer = f"from tests.meter.test_daemon import *; RingWriter(Path({str(tmp_path / 'ring')!r}), engine='gone', model='m', dtype='d')"
    process = subprocess.Popen([sys.executable, "-c", writer], cwd=Path(__file__).parents[2])
    assert process.wait(PATIENCE_S) == 0
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter:
        time.sleep(0.3)
        assert json.loads(meter.get("/health")[1])["engine"] is None
        other = tmp_path / "other"
        RingWriter(other, engine="engine-1", model="m", dtype="d")
        with (tmp_path / "ring").open("r+b") as ring:  # another ring in the same inode, written by one that lives
            fcntl.flock(ring, fcntl.LOCK_EX)
            ring.write(other.read_bytes())
            ring.flush()
            until(lambda: json.loads(meter.get("/health")[1])["engine"] == "engine-1")
        meter.process.kill()
        assert meter.process.stderr is not None
        said = meter.process.stderr.read()
    line = f"the ring {tmp_path}/ring is ignored: its engine (pid {process.pid}, as it counts) has ended"
    assert said.count(line) == said.count("is ignored") == 1


class Vanishing(SimulatedCounter):
    """A counter whose reading ends the thread that reads it."""

    def __init__(self) -> None:
        self.gpu_uuid, self.board_name = "GPU-0", "h100"

    def read_mj(self) -> int:
        raise SystemExit


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_meter_that_reads_its_counter_no_more_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETAMETER_STATE", str(tmp_path))
    settings = config.load(None, {"meter": {"port": 0}})
    meter = daemon.Meter(settings, [tmp_path / "ring"], tmp_path / "meter.sock", [Vanishing()])
    with pytest.raises(EtameterError, match="the thread that reads the counters has died"):
        asyncio.run(asyncio.wait_for(meter.run(asyncio.Event()), PATIENCE_S))


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refusal(start(tmp_path, board.environment(), port=port))
        assert line == f"etameter: port {port} of 127.0.0.1 is taken: stop what has it, or name another with --port"
        assert not (tmp_path / "run" / "meter.sock").exists()


@pytest.mark.parametrize("host", ["203.0.113.9", "no.such.host.invalid"])
def test_an_address_that_is_not_this_machines_is_named(tmp_path: Path, host: str) -> None:
    with lit_board(tmp_path) as board:
        line = refusal(start(tmp_path, {**board.environment(), "ETAMETER_METER__HOST": host}))
        assert line.startswith(f"etameter: this machine can't listen at {host} (")
        assert line.endswith(
            "set [meter] host to an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
        )
        assert not (tmp_path / "run" / "meter.sock").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EADDRINUSE, "port 80 of h is taken"),
        (errno.EACCES, "port 80 is for root alone: name one from 1024 on"),
        (errno.EPERM, "port 80 is for root alone"),
        (errno.EADDRNOTAVAIL, "can't listen at h \\(why\\)"),
    ],
)
def test_why_nobody_can_be_listened_to_is_said(code: int, words: str) -> None:
    with pytest.raises(EtameterError, match=words):
        raise daemon.deaf("h", 80, OSError(code, "why"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (4, "may not read the GPU"),
        (9, "driver isn't running"),
        (15, "fallen off the bus"),
        (3, "tells neither energy nor power"),
    ],
)
def test_an_nvml_that_fails_is_an_error_and_never_simulated(tmp_path: Path, code: int, words: str) -> None:
    with lit_board(tmp_path) as board:
        board.fail(Call.INIT if code == 9 else Call.ENERGY | Call.POWER | Call.INSTANT, code)
        line = refusal(start(tmp_path, board.environment()))
        assert words in line


def refusal(meter: Meter) -> str:
    """The one line with which a meter that can't run says so."""
    _, stderr = meter.process.communicate(timeout=PATIENCE_S)
    assert meter.process.returncode == 2, stderr
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    return lines[0]


def test_sigterm_writes_what_is_settled_and_leaves_no_socket(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter, engine(tmp_path) as ring:
        until(lambda: json.loads(meter.get("/health")[1])["engine"])
        serve_one(ring, 5)
        until(meter.settled)
        meter.process.send_signal(signal.SIGTERM)
        assert meter.process.wait(PATIENCE_S) == 0
        assert not (tmp_path / "run" / "meter.sock").exists()
        assert balanced(meter.totals())
