"""What every benchmark prints: one line a figure, and at last one line of JSON."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from etameter.records import Source


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure, and what it should be. `value` is None where this run did not measure it, `goal` where nothing is asked."""

    name: str
    value: float | None
    unit: str
    goal: float | None
    better: Literal["lower", "higher"]

    @property
    def met(self) -> bool | None:
        if self.value is None or self.goal is None:
            return None
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal


def machine() -> dict[str, str | int | float | None]:
    """What the figures were taken on."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "commit": _commit(),
    }


def finish(benchmark: str, source: Source, goals: list[Goal], context: dict[str, object]) -> NoReturn:
    """Print everything and exit: 0, or 3 where a goal is missed."""
    width = max(len(goal.name) for goal in goals)
    for goal in goals:
        value = "not measured" if goal.value is None else f"{goal.value:.4g} {goal.unit}"
        bound = "" if goal.goal is None else f"   goal {'≤' if goal.better == 'lower' else '≥'} {goal.goal:g}"
        verdict = {None: "", True: ": met", False: ": MISSED"}[goal.met]
        print(f"{goal.name:{width}}  {value}{bound}{verdict}")
    rows = [{**asdict(goal), "value": _rounded(goal.value), "met": goal.met} for goal in goals]
    print(json.dumps({"benchmark": benchmark, "source": source, "goals": rows, "context": {**machine(), **context}}))
    sys.exit(3 if any(goal.met is False for goal in goals) else 0)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
