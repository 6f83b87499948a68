"""Stages whose load another tool makes while we meter: `vllm bench serve`, guidellm, aiperf. Each is used where it is installed, and never needed.

Joules and tokens are taken by us, over the same seconds: from the first question that passes the tap to the last answer, by the counters and by the server's own metrics. Only
latencies come from the tool, where it is known how to read its report; the report is kept in the night's folder in any case.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from etameter.nightly_section import Tool
from etameter.prompts.endpoint import Endpoint
from etameter.records import Source
from etameter.serving import cpu_engine, vllm_program

from . import meter_page
from .estimates import Estimate
from .figures import WH_J, known, unknown
from .meter_page import Page
from .rows import Figure
from .schedule import Stint
from .tap import Tap, tapped
from .windows import Window

AT_ONCE: Final = 8
PROMPT_TOKENS: Final = 128
OUTPUT_TOKENS: Final = 128
MOST_S: Final = 3600.0
LOG_FILE: Final = "log.txt"
REPORT_FILE: Final = "report.json"
_LAST_WORDS: Final = 200
_PROGRAMS: Final[Mapping[Tool, str]] = {"vllm": "vllm", "guidellm": "guidellm", "aiperf": "aiperf"}


@dataclass(frozen=True, slots=True)
class Served:
    """What a tool has to know of the server."""

    model: str
    tokenizer: str
    """A folder or a name that the tool can load one from."""


class CantMake(Exception):
    """A tool made no load: why. The night goes on."""


def installed(tool: Tool) -> tuple[str, ...] | None:
    """How its program is called; None where there is none."""
    found = shutil.which(_PROGRAMS[tool])
    if found is None:
        return None
    beside_us = Path(found).parent == Path(sys.executable).parent
    if tool == "vllm" and beside_us and (cpu_engine.installed_version() or "").endswith("cpu"):
        return sys.executable, "-m", vllm_program.__name__
    return (found,)


def command(
    tool: Tool, program: Sequence[str], url: str, served: Served, requests: int, seed: int, folder: Path
) -> list[str]:
    """How it is called: so many requests, eight at once, prompts and answers of 128 tokens each."""
    match tool:
        case "vllm":
            return [
                *(*program, "bench", "serve", "--backend", "openai-chat", "--base-url", url),
                *("--endpoint", "/v1/chat/completions", "--model", served.model, "--tokenizer", served.tokenizer),
                *("--dataset-name", "random", "--random-input-len", str(PROMPT_TOKENS)),
                *("--random-output-len", str(OUTPUT_TOKENS), "--ignore-eos", "--seed", str(seed)),
                *("--num-prompts", str(requests), "--max-concurrency", str(AT_ONCE), "--disable-tqdm"),
                *("--save-result", "--result-dir", str(folder), "--result-filename", REPORT_FILE),
                *("--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,99"),
            ]
        case "guidellm":
            return [
                *(*program, "run", "--backend", f"kind=openai_http,target={url},model={served.model}"),
                *("--profile", f"kind=concurrent,streams={AT_ONCE}"),
                *("--constraint", f"kind=max_requests,count={requests}", "--seed", f"kind=static,value={seed}"),
                *("--tokenizer", f"kind=huggingface_auto,model={served.tokenizer}"),
                *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"),
                *("--output", f"kind=json,path={folder / REPORT_FILE}", "--disable-console"),
            ]
        case "aiperf":
            return [
                *(*program, "profile", "--model", served.model, "--tokenizer", served.tokenizer, "--url", url),
                *("--endpoint-type", "chat", "--streaming", "--concurrency", str(AT_ONCE)),
                *("--request-count", str(requests), "--isl", str(PROMPT_TOKENS), "--osl", str(OUTPUT_TOKENS)),
                *(
                    "--extra-inputs",
                    "ignore_eos:true",
                    "--random-seed",
                    str(seed),
                    "--ui",
                    "none",
                    "--output-artifact-dir",
                    str(folder),
                ),
            ]


@dataclass(frozen=True, slots=True)
class External:
    """The server, and where what tools say is kept."""

    endpoint: Endpoint
    served: Served
    requests: int
    seed: int
    folder: Path
    """Of the night."""

    async def make(self, stint: Stint) -> tuple[Window, dict[str, Any]]:
        """Runs the tool to its end. The window has tokens where the server tells them; beside it is what the tool's own report says, or else what passed.

        Raises:
            CantMake: it is not installed, it failed, or got no answer.
        """
        assert stint.tool is not None
        program = installed(stint.tool)
        if program is None:
            raise CantMake(f"{_PROGRAMS[stint.tool]} is not installed")
        folder = self.folder / stint.name
        folder.mkdir(exist_ok=True)
        before = await meter_page.scrape(self.endpoint.url)
        async with tapped(self.endpoint.url) as tap:
            argv = command(stint.tool, program, tap.url, self.served, self.requests, self.seed, folder)
            await _run(argv, folder / LOG_FILE)
        after = await meter_page.scrape(self.endpoint.url)
        window = _window(stint.tool, tap, before, after)
        return window, {"completed": tap.questions - tap.refused, "failed": tap.refused, **_report(folder)}


async def _run(argv: Sequence[str], log: Path) -> None:
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        try:
            async with asyncio.timeout(MOST_S):
                code = await process.wait()
        except TimeoutError:
            raise CantMake(f"{argv[0]} was not done after {MOST_S:.0f} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code != 0:
        raise CantMake(f"{Path(argv[0]).name} ended with {code} ({_last_words(log)})")


def _last_words(log: Path) -> str:
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return said[-1][:_LAST_WORDS] if said else "it said nothing"


def _window(tool: Tool, tap: Tap, before: Page | None, after: Page | None) -> Window:
    if tap.first_ns is None or tap.last_ns is None:
        raise CantMake(f"{_PROGRAMS[tool]} asked nothing")
    if tap.refused == tap.questions:
        raise CantMake(f"none of the {tap.questions} questions of {_PROGRAMS[tool]} was answered")
    window = Window(tap.first_ns, tap.last_ns)
    if before is not None and after is not None:
        window.output_tokens = int(_grown("vllm:generation_tokens_total", before, after))
        window.prompt_tokens = int(_grown("vllm:prompt_tokens_total", before, after))
    return window


def _grown(name: str, before: Page, after: Page) -> float:
    return after.total(name) - before.total(name)


def _report(folder: Path) -> dict[str, Any]:
    """What `vllm bench serve` left; nothing of another tool's."""
    try:
        told = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) and "total_output_tokens" in told else {}


def figures_of(stage: str, window: Window, told: Mapping[str, Any], source: Source) -> list[Figure]:
    """Of one window, so that there are no intervals. What the server doesn't say of tokens is the tool's."""
    tokens = window.output_tokens or int(told.get("total_output_tokens", 0))
    answered = told.get("completed")
    energy_j = window.energy_j
    none = "neither the server nor the tool tells"
    values: dict[str, float | None] = {
        "j_per_token": _over(energy_j, tokens),
        "wh_per_token": _over(energy_j, tokens * WH_J),
        "tokens_per_s_per_w": _over(tokens or None, energy_j),
        "tokens_per_s": _over(tokens or None, window.seconds),
        "j_per_question": _over(energy_j, answered),
        "requests_per_s": _over(answered, window.seconds),
        "power_w": _over(energy_j, window.seconds),
        "failures": _over(told.get("failed"), (answered or 0) + told.get("failed", 0)),
        **{
            f"{name}_p{part}_s": _over(told.get(f"p{part}_{name}_ms"), 1000)
            for name in ("ttft", "itl")
            for part in (50, 99)
        },
    }
    return [
        unknown(stage, metric, source, none)
        if value is None
        else known(stage, metric, source, Estimate(value, None, None, 1))
        for metric, value in values.items()
    ]


def nothing(stage: str, why: str, source: Source) -> list[Figure]:
    return [unknown(stage, metric, source, why) for metric in ("j_per_token", "tokens_per_s", "power_w")]


def _over(value: float | None, divisor: float | None) -> float | None:
    return None if value is None or not divisor else value / divisor
