"""Another tool makes the load while we meter: by its time on the wire, by the server's own tokens, by its own report."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from etameter.prompts.endpoint import connect
from etameter.prompts.nightly import external
from etameter.prompts.nightly.external import CantMake, External, Served
from etameter.prompts.nightly.schedule import Stint
from etameter.prompts.nightly.tap import Tap, tapped
from etameter.prompts.nightly.windows import Window
from etameter.serving import cpu_engine
from tests.prompts import ab_bench
from tests.prompts.upstream import Upstream, running

pytestmark = pytest.mark.unit

STINT = Stint("external-vllm", "external", tool="vllm")
BODY = {"model": "small", "messages": [{"role": "user", "content": "What is 1 and 41?"}]}

# Asks as the real one does: for the models, once for a try, then for good; and leaves a report.
TOOL = """#!{python}
import json, pathlib, sys, time, urllib.request
told = dict(zip(sys.argv, sys.argv[1:]))
url, count = told["--base-url"], int(told["--num-prompts"])
urllib.request.urlopen(url + "/v1/models").read()
for _ in range(count):
    question = urllib.request.Request(url + told["--endpoint"], json.dumps({body}).encode(), {{"Content-Type": "application/json"}})
    urllib.request.urlopen(question).read()
report = {{"completed": count, "failed": 0, "total_output_tokens": 100, "p50_ttft_ms": 50.0, "p99_ttft_ms": 90.0, "p50_itl_ms": 5.0, "p99_itl_ms": 9.0}}
pathlib.Path(told["--result-dir"], told["--result-filename"]).write_text(json.dumps(report))
time.sleep(0.3)
"""


# Heeds no answer, and leaves nothing.
STUBBORN = """#!{python}
import json, sys, urllib.error, urllib.request
told = dict(zip(sys.argv, sys.argv[1:]))
for _ in range(3):
    question = urllib.request.Request(told["--base-url"] + told["--endpoint"], json.dumps({body}).encode())
    try:
        urllib.request.urlopen(question).read()
    except urllib.error.HTTPError:
        pass
"""


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program called vllm onto the path."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def program(text: str) -> None:
        path = tmp_path / "vllm"
        path.write_text(text)
        path.chmod(0o755)

    return program


class Counting(Upstream):
    """Says how many tokens it has made, as vLLM does."""

    def __init__(self) -> None:
        super().__init__(ab_bench.says)
        self.tells = True

    async def metrics(self, _: web.Request) -> web.Response:
        text = f'# TYPE vllm:generation_tokens counter\nvllm:generation_tokens_total{{engine="0"}} {1000 + 20 * len(self.requests)}\n'
        return web.Response(text=text, status=200 if self.tells else 404)


def made(tmp_path: Path, upstream: Upstream | None = None) -> tuple[Window, dict[str, Any]]:
    async def main() -> tuple[Window, dict[str, Any]]:
        async with running(upstream or Upstream(ab_bench.says)) as url, connect(url) as endpoint:
            return await External(endpoint, Served("small", "small"), 3, 0, tmp_path).make(STINT)

    return asyncio.run(main())


def test_the_window_is_from_the_first_question_to_the_last_answer(put: Callable[[str], None], tmp_path: Path) -> None:
    put(TOOL.format(python=sys.executable, body=json.dumps(BODY)))
    upstream = Upstream(ab_bench.says)
    window, told = made(tmp_path, upstream)
    assert len(upstream.requests) == 3
    assert 0.01 < window.seconds < 0.3, "neither the tool's start nor its end is in it"
    assert told["completed"] == 3
    figures = {figure.metric: figure for figure in external.figures_of("external-vllm", window, told, "simulated")}
    assert figures["ttft_p99_s"].value == pytest.approx(0.09)
    assert figures["tokens_per_s"].value == pytest.approx(100 / window.seconds)
    assert figures["j_per_token"].value is None, "no counter was read yet"
    window.energy_j = 200.0
    figures = {figure.metric: figure for figure in external.figures_of("external-vllm", window, told, "simulated")}
    assert figures["j_per_token"].value == pytest.approx(2.0)
    assert figures["j_per_question"].value == pytest.approx(200 / 3)
    assert figures["failures"].value == 0.0


def test_what_the_server_says_of_tokens_goes_before_what_the_tool_says() -> None:
    window = Window(0, 10_000_000_000, 100.0, output_tokens=50)
    figures = {
        figure.metric: figure.value
        for figure in external.figures_of("s", window, {"total_output_tokens": 100}, "simulated")
    }
    assert (figures["j_per_token"], figures["ttft_p50_s"], figures["j_per_question"]) == (2.0, None, None)


@pytest.mark.parametrize(("failing", "answered"), [({0}, 2), ({0, 1, 2}, 0)])
def test_questions_that_fail_are_counted_whatever_the_tool_says(
    failing: set[int], answered: int, put: Callable[[str], None], tmp_path: Path
) -> None:
    """A tool whose every question fails may well end with 0, as guidellm does."""
    asked = iter(range(3))
    put(STUBBORN.format(python=sys.executable, body=json.dumps(BODY)))
    upstream = Upstream(lambda messages: "fail" if next(asked) in failing else ab_bench.says(messages))
    if not answered:
        with pytest.raises(CantMake, match="none of the 3 questions of vllm was answered"):
            made(tmp_path, upstream)
        return
    window, told = made(tmp_path, upstream)
    window.energy_j = 10.0
    assert (told["completed"], told["failed"]) == (answered, 3 - answered)
    figures = {figure.metric: figure for figure in external.figures_of("external-vllm", window, told, "simulated")}
    assert figures["failures"].value == pytest.approx(1 / 3)
    assert figures["j_per_question"].value == 5.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/bin/sh\necho first\necho the last word >&2\nexit 3\n", r"vllm ended with 3 \(the last word\)"),
        ("#!/bin/sh\nexit 0\n", "vllm asked nothing"),
        ("#!/bin/sh\nexit 1\n", "it said nothing"),
    ],
)
def test_a_tool_that_fails_says_why(text: str, said: str, put: Callable[[str], None], tmp_path: Path) -> None:
    put(text)
    with pytest.raises(CantMake, match=said):
        made(tmp_path)


def test_a_tool_that_is_not_installed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CantMake, match="vllm is not installed"):
        made(tmp_path)
    assert {figure.reason for figure in external.nothing("s", "not installed", "simulated")} == {"not installed"}


def test_a_vllm_for_cpus_is_called_past_its_own_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert external.installed("vllm") == (str(program),)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(cpu_engine, "installed_version", lambda: "0.32.0+cpu")
    assert external.installed("vllm") == (str(tmp_path / "python"), "-m", "etameter.serving.vllm_program")
    monkeypatch.setattr(cpu_engine, "installed_version", lambda: "0.33.0")
    assert external.installed("vllm") == (str(program),)


@pytest.mark.parametrize("tool", ["vllm", "guidellm", "aiperf"])
def test_each_tool_is_told_whom_to_ask_and_how_much(tool: Any, tmp_path: Path) -> None:
    words = external.command(tool, [f"/bin/{tool}"], "http://127.0.0.1:1", Served("m", "/t"), 7, 5, tmp_path)
    line = " ".join(words)
    assert words[0] == f"/bin/{tool}"
    assert all(part in line for part in ("http://127.0.0.1:1", "7", "128", "8", "m", "/t", str(tmp_path)))
    assert "ignore" in line or tool == "guidellm", "which asks so of itself"


def test_a_tap_passes_everything_on_and_knows_questions_from_looks() -> None:
    async def main() -> tuple[Tap, int, Any]:
        async with running(Upstream(ab_bench.says)) as url, tapped(url) as tap, aiohttp.ClientSession() as session:
            async with session.get(f"{tap.url}/v1/models") as response:
                looked = await response.json()
            before = tap.questions
            assert tap.first_ns is None
            async with session.post(f"{tap.url}/v1/chat/completions", json=BODY) as response:
                await response.read()
            answered_ns = tap.last_ns
            async with session.get(f"{tap.url}/v1/models") as response:
                await response.read()
            assert tap.last_ns == answered_ns, "nor does a look afterwards make the load longer"
            return tap, before, looked

    tap, before, looked = asyncio.run(main())
    assert looked["data"][0]["id"] == "small"
    assert (before, tap.questions) == (0, 1)
    assert tap.first_ns is not None
    assert tap.last_ns is not None
    assert tap.first_ns < tap.last_ns


def test_a_tap_before_nobody_hangs_up() -> None:
    async def main() -> None:
        async with tapped("http://127.0.0.1:9") as tap, aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"{tap.url}/v1/models")

    asyncio.run(main())
