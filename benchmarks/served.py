"""What metering costs a real server: two vLLM servers on the CPU, up together, one metered and one not.

    python -m benchmarks.served [--quick]
    python -m benchmarks.served --urls http://METERED http://PLAIN [--clients 64] [--tokens 256]

Both serve the bundled small model, or are servers that run already, on a GPU say. In a block 8 clients ask the same questions of the one and of the
other, in the order ABBA, each answer 32 tokens long; while one answers, the other waits. A block's figure is the ratio of both metered turns' tokens
a second to both plain ones'. Told is the mean over 12 blocks, and the lower end of its 95 % interval by Student's t. The metered one that is started
here has hook, middleware and a meter of its own on a simulated board, on the same cores.
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway import free_port
from benchmarks.report import Goal, finish
from etameter.prompts.endpoint import UNCONSTRAINED, connect
from etameter.prompts.stats import t_quantile
from etameter.serving import cpu_engine, small_model

BLOCKS, QUICK_BLOCKS = 12, 2
CLIENTS, TOKENS = 8, 32
READY_S = 400.0
OPTIONS = ("--dtype", "bfloat16", "--max-model-len", "512", "--enforce-eager", "--served-model-name", "small")
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[str]:
    """Its address, once it answers."""
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, **ENVIRONMENT, "ETAMETER_RUN": str(folder), "ETAMETER_RING_DIR": str(folder)}
    environment["ETAMETER_STATE"] = str(folder)
    with (folder / f"{port}.log").open("wb") as log:
        server = subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=log, stderr=log)
        try:
            end_s = time.monotonic() + READY_S
            while not answers(port):
                if server.poll() is not None or time.monotonic() > end_s:
                    raise RuntimeError((folder / f"{port}.log").read_text()[-3000:])
                time.sleep(0.5)
            yield url
        finally:
            server.terminate()
            server.wait(60)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False


@dataclass(frozen=True, slots=True)
class Turn:
    """What one server is asked at a time."""

    clients: int
    tokens: int

    async def tokens_per_s(self, url: str, number: int) -> float:
        """Of all clients' questions at once."""
        async with connect(url) as endpoint:
            (model, *_) = await endpoint.models()
            body: dict[str, Any] = {"model": model, "temperature": 0.0}
            body |= {"max_tokens": self.tokens, "ignore_eos": True}

            async def ask(client: int) -> int:
                question = {"role": "user", "content": f"{number} {client}: tell me of the sea and its ships."}
                last: dict[str, Any] = {}
                async for chunk in endpoint.chunks({**body, "messages": [question]}, UNCONSTRAINED):
                    last = chunk
                return int(last["usage"]["completion_tokens"])

            began_s = time.perf_counter()
            tokens = sum(await asyncio.gather(*map(ask, range(self.clients))))
            return tokens / (time.perf_counter() - began_s)


async def ratios(metered: str, plain: str, blocks: int, turn: Turn) -> list[float]:
    """Metered to plain, a figure a block; one more before them warms up."""
    found = []
    for block in range(blocks + 1):
        order = (metered, plain, plain, metered) if block % 2 else (plain, metered, metered, plain)
        speeds: dict[str, list[float]] = {metered: [], plain: []}
        for number, url in enumerate(order):
            speeds[url].append(await turn.tokens_per_s(url, 4 * block + number // 2))
        found.append(statistics.harmonic_mean(speeds[metered]) / statistics.harmonic_mean(speeds[plain]))
        told = {"block": block, "ratio": round(found[-1], 4), "metered_tokens_per_s": round(max(speeds[metered]), 1)}
        print(json.dumps(told | {"load_1m": os.getloadavg()[0]}), flush=True)
    return found[1:]


@contextmanager
def two_servers() -> Iterator[tuple[str, str]]:
    """Both on the CPU: the metered one's address, the plain one's."""
    model = str(small_model.convert())
    with tempfile.TemporaryDirectory(prefix="etameter-served-") as name, ExitStack() as held:
        folders = [Path(name) / kind for kind in ("metered", "plain")]
        for folder in folders:
            folder.mkdir()
        ports = [free_port(), free_port()]
        own = ["--meter-port", str(free_port()), "--simulate-gpu", "h100"]
        commands = [
            ["etameter", "serve", *own, model, "--port", str(ports[0]), *OPTIONS],
            ["etameter.serving.vllm_program", "serve", model, "--port", str(ports[1]), *OPTIONS],
        ]
        metered, plain = [held.enter_context(running(*each)) for each in zip(commands, folders, ports, strict=True)]
        yield metered, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_BLOCKS} blocks")
    parser.add_argument("--urls", nargs=2, metavar=("METERED", "PLAIN"), help="servers that run already")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    options = parser.parse_args()
    blocks = QUICK_BLOCKS if options.quick else BLOCKS
    turn = Turn(options.clients, options.tokens)
    with nullcontext(options.urls) if options.urls else two_servers() as (metered, plain):
        found = asyncio.run(ratios(metered, plain, blocks, turn))
    mean = statistics.mean(found)
    spread = statistics.stdev(found) / math.sqrt(len(found))
    low = mean - float(t_quantile(0.975, len(found) - 1)) * spread
    goals = [
        Goal("metered to plain, tokens a second", mean, "", 0.97, "higher"),
        Goal("its lower bound", low, "", 0.95, "higher"),
    ]
    context = {"vllm": cpu_engine.installed_version(), "blocks": [round(each, 4) for each in found], **asdict(turn)}
    finish("served", "measured", goals, context)


if __name__ == "__main__":
    main()
