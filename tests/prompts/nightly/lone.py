"""`etameter nightly` in a hurry that starts its servers itself, all of them processes that a test may kill.

    python -m tests.prompts.nightly.lone night CONFIG --sweep
    python -m tests.prompts.nightly.lone serve MODEL --port N …       in place of vLLM's program

A server that is started with another --max-num-seqs gets no further than to write its process id into `starting`, while there is a file `hold`.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

from aiohttp import web

from etameter import cli, own_server
from etameter.own_server import Metering
from etameter.prompts.nightly import load
from etameter.serving import launch
from tests.prompts.nightly import bench, victim
from tests.prompts.upstream import application

MODULE = "tests.prompts.nightly.lone"
OURS: tuple[tuple[ModuleType, str, object], ...] = (
    (own_server, "find_counter", lambda _: Metering("nvml", "")),
    (own_server, "install_engine", lambda *_: None),
    (launch, "check", lambda *_: None),
    (launch, "vllm_program", SimpleNamespace(__name__=MODULE)),
    (load, "SETTLE_S", 0.0),  # the meter has not seen the engine that is none
)


def serve(words: list[str]) -> None:
    if "--max-num-seqs" in words and Path("hold").exists():
        Path("starting.part").write_text(str(os.getpid()))
        Path("starting.part").rename("starting")
        while Path("hold").exists():
            time.sleep(0.02)
    Path("serving").write_text(str(os.getpid()))
    port = int(words[words.index("--port") + 1])
    web.run_app(application(bench.Night()), host="127.0.0.1", port=port, loop=asyncio.new_event_loop(), print=None)


def night(words: list[str]) -> None:
    victim.hurry(OURS)
    cli.main(["nightly", *words])


if __name__ == "__main__":
    {"serve": serve, "night": night}[sys.argv[1]](sys.argv[2:])
