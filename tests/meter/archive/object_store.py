"""An object store in a process of its own: moto's S3, which can be killed, and stopped as one that hangs."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec

_SERVE = "import sys; from moto.server import main; main(['-p', sys.argv[1]])"
BUCKET = "receipts"


class ObjectStore:
    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
        }

    def start(self) -> None:
        """Empty, but for a bucket."""
        self._process = subprocess.Popen([sys.executable, "-c", _SERVE, str(self._port)], stderr=subprocess.DEVNULL)
        until_s = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    break
            assert time.monotonic() < until_s, "moto has not begun"
            assert self._process.poll() is None, "moto has ended"
            time.sleep(0.05)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(BUCKET)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def hang(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


ROOT = Path(__file__).parents[3]


def started(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs this text."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
