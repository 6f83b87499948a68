"""`etameter proxy`: what it refuses, and the whole command before a server of a few lines."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from etameter.errors import EngineError
from etameter.serving.launch_proxy import address_of, model_of
from tests.serving.processes import wait_until, with_environment
from tests.serving.scripted import Scripted, chunked, fetch, head, post, running
from tests.serving.test_proxy import ASKED, DONE, LAST, USAGE, WORDS, json_head

MODELS = b'{"data":[{"id":"small"},{"id":"adapter"}]}'


@pytest.mark.unit
@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:30000", "http://127.0.0.1:30000"),
        ("http://localhost:30000/v1/", "http://localhost:30000"),
        ("https://[::1]/engine/", "https://[::1]/engine"),
    ],
)
def test_an_address_is_taken_as_people_write_it(url: str, address: str) -> None:
    assert address_of(url) == address


@pytest.mark.unit
@pytest.mark.parametrize(
    "url", ["", "nonsense", "localhost:8000", "ftp://x", "http://", "http://x:99999", "http://x?y"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(EngineError, match="is no address of a server: give one such as --upstream http://"):
        address_of(url)


@pytest.mark.unit
@pytest.mark.parametrize("url", ["http://somebody:Zanzibar@x:30000", "http://:Zanzibar@x/v1"])
def test_an_address_with_a_password_is_refused_without_saying_it(url: str) -> None:
    with pytest.raises(EngineError, match="names a user") as refused:
        address_of(url)
    assert "Zanzibar" not in str(refused.value)


@pytest.mark.unit
def test_the_model_is_the_servers_first_and_a_server_without_one_is_refused() -> None:
    async def found(*pieces: bytes) -> str:
        async with running(Scripted(list(pieces))) as port:
            return await model_of(f"http://127.0.0.1:{port}")

    assert asyncio.run(found(json_head(MODELS), MODELS)) == "small"
    with pytest.raises(EngineError, match=r"/v1/models names no model \(status 404\)"):
        asyncio.run(found(head(b"404 Not Found", Content_Length=b"0")))
    with pytest.raises(EngineError, match="can't be reached"):
        asyncio.run(found(b"no HTTP\r\n\r\n"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `etameter proxy`; nothing may be left of it at the end."""
    mark = f"{tmp_path.name}-{os.getpid()}-{time.monotonic_ns()}"
    places = {"ETAMETER_RUN": tmp_path / "run", "ETAMETER_STATE": tmp_path, "ETAMETER_RING_DIR": tmp_path}
    environment = {**os.environ, "ETAMETER_TEST_MARK": mark} | {name: str(path) for name, path in places.items()}

    def start(*options: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "etameter", "proxy", *options]
        return subprocess.Popen(argv, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    yield start
    wait_until(lambda: not with_environment(f"ETAMETER_TEST_MARK={mark}"))
    assert not list(tmp_path.glob("*.ring"))


@pytest.mark.boot
def test_what_it_cant_do_is_one_line_and_exit_code_2(command: Callable[..., subprocess.Popen[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, said in (
            (["--upstream", "nonsense"], "nonsense is no address"),
            (["--upstream", "http://127.0.0.1:1", "--port", str(_free_port())], "http://127.0.0.1:1 can't be reached"),
            (["--upstream", "http://127.0.0.1:1", "--port", port], f"port {port} is in use"),
        ):
            process = command(*options)
            _, told = process.communicate(timeout=60)
            assert process.returncode == 2
            assert said in told
            assert told.count("\n") == 1


@pytest.mark.boot
def test_a_server_is_metered_until_a_signal_comes(command: Callable[..., subprocess.Popen[str]]) -> None:
    answers = {
        True: (json_head(MODELS), MODELS),
        False: (head(Content_Type=b"text/event-stream", Transfer_Encoding=b"chunked"), b""),
    }

    class Server(Scripted):
        async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            asked_for_models = self.requests[-1].startswith(b"GET /v1/models")
            events = [] if asked_for_models else [chunked(each, end=b"") for each in (*WORDS, LAST, USAGE, DONE)]
            for piece in (*answers[asked_for_models], *events, *([] if asked_for_models else [b"0\r\n\r\n"])):
                writer.write(piece)
                await asyncio.sleep(0.05)
            return True

    async def main() -> dict[str, Any]:
        port, meter_port = _free_port(), _free_port()
        async with running(Server([])) as upstream:
            options = [
                "--upstream",
                f"http://127.0.0.1:{upstream}",
                "--port",
                str(port),
                "--meter-port",
                str(meter_port),
            ]
            process = command(*options, "--simulate-gpu", "h100")
            try:
                energy: dict[str, Any] = {}
                deadline_s = time.monotonic() + 60
                while not energy.get("energy_joules"):
                    assert time.monotonic() < deadline_s
                    try:
                        got = await fetch(port, post(ASKED))
                    except OSError:
                        await asyncio.sleep(0.2)
                        continue
                    energy = json.loads(got.body.split(b"\n\n")[-3][6:])["energy"] or {}
                process.send_signal(signal.SIGTERM)
                while process.poll() is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            finally:
                process.kill()
                process.communicate()
        assert process.returncode == 130
        return energy

    energy = asyncio.run(main())
    assert energy["attribution_method"] == "proxy"
    assert energy["source"] == "simulated"
    assert energy["output_tokens"] == 6
