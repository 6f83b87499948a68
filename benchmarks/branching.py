"""Asks a suite under some arms with log-probabilities, for `etameter eta branching`.

    python -m benchmarks.branching --url http://127.0.0.1:8000 --out answers.jsonl [--suite small] [--arms unconstrained,concise,entrace]

Each prompt is asked once under each arm. A correct answer is labelled by deletion: what its checker can do without is `O`,
the rest `R`. With `--labelled FILE` those go to a file of their own, for a report with those labels.
"""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp

from etameter.prompts import arms
from etameter.prompts.arms import Arm, Sampling
from etameter.prompts.checkers import Code, CodeTest
from etameter.prompts.tasks import Task, check, load_suite
from etameter.slack.deletion import delete
from etameter.slack.segment import segment

AT_ONCE = 8
MOST_TOKENS = 256


async def ask(
    session: aiohttp.ClientSession, url: str, model: str, task: Task, arm: Arm, sampling: Sampling
) -> dict[str, Any]:
    """One answer, with what the server tells of its tokens."""
    turns = [{"role": "user", "content": task.turns[0]}]
    body = arm.request(task, turns, model, sampling) | {"logprobs": True, "top_logprobs": 20}
    headers = {"X-Etameter-Arm": arm.name, "X-Etameter-Run": "branching"}
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        choice = (await response.json())["choices"][0]
    text = choice["message"]["content"] or ""
    correct = await asyncio.to_thread(lambda: check(task, text).correct)
    row = {"id": f"{task.id} {arm.name}", "arm": arm.name, "prompt": task.turns[0], "response": text}
    row |= {"correct": correct, "finish_reason": choice["finish_reason"], "logprobs": choice["logprobs"]}
    if correct and not isinstance(task.checker, Code | CodeTest):
        row["spans"] = await asyncio.to_thread(by_deletion, task, text)
    return row


def by_deletion(task: Task, text: str) -> list[tuple[int, int, str]] | None:
    """None where the checker is content with nothing."""
    spans = segment(text)
    left = delete(text, spans, lambda shortened: check(task, shortened).correct is True)
    if left.vacuous:
        return None
    return [(span.start, span.end, "R" if place in left.kept else "O") for place, span in enumerate(spans)]


async def collect(url: str, suite: str, named: list[str], temperature: float | None) -> list[dict[str, Any]]:
    sampling = Sampling(max_tokens=MOST_TOKENS, temperature=temperature)
    gate = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=900)) as session:
        async with session.get(f"{url}/v1/models") as response:
            model = (await response.json())["data"][0]["id"]

        async def one(task: Task, arm: Arm) -> dict[str, Any]:
            async with gate:
                return await ask(session, url, model, task, arm, sampling)

        tasks = [task for task in load_suite(suite).tasks if len(task.turns) == 1]
        return await asyncio.gather(*(one(task, arms.find(name)) for task in tasks for name in named))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--suite", default="small")
    parser.add_argument("--arms", default="unconstrained,concise,entrace")
    parser.add_argument("--temperature", type=float, help="By default what the server takes.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labelled", type=Path)
    given = parser.parse_args()
    rows = asyncio.run(collect(given.url, given.suite, given.arms.split(","), given.temperature))
    labelled = [row for row in rows if row.get("spans")]
    for path, lines in ((given.out, [{**row, "spans": None} for row in rows]), (given.labelled, labelled)):
        if path is not None:
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(
        f"{len(rows)} answers, {sum(bool(row['correct']) for row in rows)} correct, {len(labelled)} labelled by deletion"
    )


if __name__ == "__main__":
    main()
