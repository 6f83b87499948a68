"""The real meter, on a simulated board, beside a real vLLM server."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest

from etameter.ledger import Ledger, RequestRow
from tests.forms import Told
from tests.meter.test_daemon import free_port
from tests.serving.real_server import MODEL_NAME, RealServer

PATIENCE_S = 90.0

Seen = TypeVar("Seen")


def until(look: Callable[[], Seen | None], suffices: Callable[[Seen], object] = bool) -> Seen:
    """What `look` returns once it is something, and suffices."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (seen := look()) is None or not suffices(seen):
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S} s, and at last {seen!r:.2000}"
        time.sleep(0.05)
    return seen


@dataclass
class Metered:
    """The server with its meter."""

    server: RealServer
    client: openai.OpenAI
    meter: subprocess.Popen[bytes]
    meter_port: int
    ledger: Path
    usages: dict[str, Any]
    """By receipt id, what the server told its client."""

    def chat(self, content: str, **more: Any) -> Any:
        options: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}} | more
        messages: Any = [{"role": "user", "content": content}]
        answer = self.client.chat.completions.create(model=MODEL_NAME, messages=messages, **options)
        if not options.get("stream"):
            self.note(answer)
        return answer

    def note(self, answer: Any) -> None:
        """On a machine with more work than cores the figure may be late; then the response names its receipt."""
        assert answer.energy or answer.energy_reason == "meter_late"
        self.usages[receipt_of(answer)] = answer.usage

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.meter_port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def rows(self) -> list[RequestRow]:
        ledger = Ledger(self.ledger, read_only=True)
        try:
            return ledger.requests()
        finally:
            ledger.close()


@contextmanager
def metering(server: RealServer, directory: Path) -> Iterator[Metered]:
    """A meter that reads its counter. It finds the engine's ring when that is there."""
    board, port = directory / "board", free_port()
    environment = os.environ | {"ETAMETER_RUN": str(server.run_dir), "ETAMETER_STATE": str(directory)}
    environment |= {"ETAMETER_METER__CLASSIFY": "true"}
    ring = ["--ring", str(server.ring_path)]
    modelled = [sys.executable, "-m", "etameter.counters.simulated", "--profile", "h100", *ring, "--board", str(board)]
    meter = [sys.executable, "-m", "etameter", "meter", *ring, "--ledger", str(directory / "ledger.db")]
    meter += ["--port", str(port), "--simulate-gpu", "h100", "--board", str(board)]
    with (directory / "log").open("w") as log:
        processes = [subprocess.Popen(command, env=environment, stderr=log) for command in (modelled, meter)]
        try:
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
                found = Metered(server, client, processes[1], port, directory / "ledger.db", {})
                until(lambda: _measures(found, directory / "log"))
                yield found
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(PATIENCE_S)


def _measures(metered: Metered, log: Path) -> bool:
    assert metered.meter.poll() is None, log.read_text()
    try:
        return b"etameter_gpu_energy_joules_total{" in metered.get("/metrics")
    except OSError:
        return False


def warm_up(metered: Metered) -> None:
    """Waits until the middleware has found the socket, and the costs have been fitted once."""
    messages: Any = [{"role": "user", "content": "Warm up."}]

    def warm() -> bool:
        answer: Any = metered.client.chat.completions.create(model=MODEL_NAME, messages=messages, max_tokens=24)
        return answer.energy is not None and b"etameter_cost_coefficient{" in metered.get("/metrics")

    until(warm)


def settled(metered: Metered, path: str) -> Any:
    """The energy at a receipt's path, once it is settled."""
    energy = json.loads(metered.get(path))["energy"]
    return energy if energy and energy["settled"] else None


def written(metered: Metered, receipt_ids: Iterable[str] = ()) -> list[RequestRow]:
    """All rows, once these receipts are among them and nothing is unsettled: what is told is told from memory, and written a moment later."""
    expected = set(receipt_ids)

    def suffices(rows: list[RequestRow]) -> bool:
        return all(row.energy.settled for row in rows) and expected <= {row.record.receipt_id for row in rows}

    return until(metered.rows, suffices)


def receipt_of(answer: Any) -> str:
    return str(answer.energy["receipt_id"] if answer.energy else answer.energy_receipt_id)


def check_sum(metered: Metered, told: Told) -> None:
    """The parts of an answer's energy add up to it, and so do those of the engine's requests behind it to what it settles at."""
    energy, usage = told.energy, told.objects[-1]["usage"]
    assert energy is not None
    assert energy["source"] == "simulated"
    assert energy["energy_joules"] == pytest.approx(energy["prompt_joules"] + energy["output_joules"])
    assert energy["energy_joules"] > 0
    late = until(lambda: settled(metered, f"/energy/{energy['receipt_id']}"))
    rows = [row for row in written(metered, [energy["receipt_id"]]) if row.record.receipt_id == energy["receipt_id"]]
    assert late["energy_joules"] == pytest.approx(sum(row.energy.energy_j for row in rows))
    assert late["energy_joules"] == pytest.approx(late["prompt_joules"] + late["output_joules"])
    assert late["output_tokens"] == usage.get("completion_tokens", 0)
    assert sum(row.prefill_tokens + row.record.cached_tokens for row in rows) % usage["prompt_tokens"] == 0


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
