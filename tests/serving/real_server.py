"""A real vLLM server on CPU, metered, as an operator starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from tests.serving.processes import session_of
from tests.serving.ring_log import RingLog

MODEL_NAME = "small"
_NOTHING: Mapping[str, str] = MappingProxyType({})
READY_WITHIN_S = 240
KV_BLOCK_TOKENS = 128
"""vLLM's on CPU: shorter prompts are never found in the prefix cache."""
CHUNK_TOKENS = 256
"""Longer prompts are prefilled in several steps."""

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


class RealServer:
    """Its last words are in `output`, those of each that is started in turn."""

    def __init__(self, model: Path, directory: Path, *options: str, environment: Mapping[str, str] = _NOTHING) -> None:
        self.model = model
        self.run_dir = directory
        self.ring_path = directory / "etameter-engine-0.ring"
        self.output = directory / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.start(*options, environment=environment)

    def start(self, *options: str, environment: Mapping[str, str] = _NOTHING) -> None:
        """Again too, once it has ended: at the same address, into the same ring."""
        command = [sys.executable, "-m", "etameter.serving.vllm_program", "serve", str(self.model)]
        command += ["--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", self.url.rpartition(":")[2]]
        command += [
            "--dtype",
            "bfloat16",
            "--max-model-len",
            "1024",
            "--enforce-eager",
            "--enable-prompt-tokens-details",
            "--enable-auto-tool-choice",
            "--tool-call-parser=hermes",
        ]
        command += ["--max-num-batched-tokens", str(CHUNK_TOKENS)]
        command += ["--scheduler-cls", "etameter.serving.scheduler.metered_scheduler"]
        command += ["--middleware", "tests.serving.patient.EnergyMiddleware"]
        command += options
        own = {"ETAMETER_RUN": str(self.run_dir), "ETAMETER_RING_DIR": str(self.run_dir), "ETAMETER_CLASSIFY": "1"}
        environment = {**os.environ, **ENVIRONMENT, **own, **environment}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        end = time.monotonic() + READY_WITHIN_S
        while self.process.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1):
                    self.log = RingLog(self.ring_path)
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"the server did not start:\n{self.output.read_text()[-4000:]}")

    def stop(self) -> None:
        """End the whole process group, the engine too."""
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self.process.pid, signal.SIGTERM)
        end = time.monotonic() + 20
        while session_of(self.process.pid) and time.monotonic() < end:
            self.process.poll()
            time.sleep(0.05)
        if session_of(self.process.pid):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
