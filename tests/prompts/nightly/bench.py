"""A night in miniature: eight tasks, a server of a few lines, the stand-in's board, and windows of a few tenths of a second."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.prompts import ab_bench
from tests.prompts.upstream import Upstream

SHORT: dict[str, Any] = {
    "suite": "mini.jsonl",
    "arms": ["unconstrained", "concise"],
    "audit_tasks": 0,
    "batches": [1, 4],
    "saturation": 0,
    "rates_per_s": [20.0],
    "windows": 3,
    "window_s": 0.2,
    "idle_s": 0.3,
    "warm_up_s": 5.0,
    "max_tokens": 64,
}
STAGES = ["idle-before", "batch-1", "batch-4", "rate-20", "ab-fixed", "idle-after"]


def configured(folder: Path, url: str | None, **keys: Any) -> Path:
    """A job's file, and the suite that it names, in a folder."""
    rows: list[dict[str, Any]] = [{"suite": "mini", "version": "1"}]
    rows += [
        {
            "id": task.id,
            "category": task.category,
            "difficulty": task.difficulty,
            "prompt": task.turns[0],
            "checker": {"kind": "number", "value": 42},
        }
        for task in ab_bench.TASKS
    ]
    (folder / "mini.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    told = {**SHORT, "runs": str(folder / "runs"), **keys}
    if url is not None:
        told["url"] = url
    lines = [f"{key} = {json.dumps(value)}" for key, value in told.items() if value is not None]
    path = folder / "night.toml"
    path.write_text("[nightly]\n" + "\n".join(lines) + "\n")
    return path


def says(messages: Sequence[dict[str, str]]) -> str:
    """As in the comparison's bench; whatever else is asked is counted from."""
    asked = messages[-1]["content"]
    return ab_bench.says(list(messages)) if asked.startswith("What is") else "one two three four five six"


class Night(Upstream):
    """With what a meter's page and a vLLM's say beside it."""

    def __init__(self) -> None:
        super().__init__(says, settles_after=0)

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})
