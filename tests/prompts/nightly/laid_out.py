"""Rows of nights that never were."""

from typing import Any

from etameter.prompts.nightly.metrics import METRICS
from etameter.prompts.nightly.night import Night
from etameter.prompts.nightly.rows import Figure, Run, StageRow

WINDOW_S = 30.0


def stage_row(**told: Any) -> StageRow:
    """A window of 30 s at 300 W in which 3,000 tokens came."""
    window = told.get("window", 0)
    usual: dict[str, Any] = {
        "stage": "batch-8",
        "kind": "concurrency",
        "window": 0,
        "attempt": 0,
        "session": 0,
        "start_ns": int(window * WINDOW_S * 1e9),
        "end_ns": int((window + 1) * WINDOW_S * 1e9),
        "started_wall": "2026-11-01T02:00:00.000+00:00",
        "energy_j": 9000.0,
        "energy_error_j": 3.0,
        "requests": 24,
        "failures": 0,
        "correct": 18,
        "prompt_tokens": 1200,
        "output_tokens": 3000,
        "power_w": 300.0,
        "temperature_c": 61.0,
        "clock_mhz": 1980.0,
        "throttled": False,
        "neighbours": None,
        "excluded": None,
        "source": "simulated",
        "counter": "simulated",
    }
    return StageRow(**{**usual, **told})


def figure(**told: Any) -> Figure:
    """3 J/token, to one part in a hundred."""
    metric = told.get("metric", "j_per_token")
    usual: dict[str, Any] = {
        "stage": "batch-8",
        "metric": metric,
        "unit": METRICS[metric].unit,
        "value": 3.0,
        "low": 2.97,
        "high": 3.03,
        "n": 5,
        "source": "simulated",
    }
    return Figure(**{**usual, **told})


def run(**told: Any) -> Run:
    """A night that went well."""
    usual: dict[str, Any] = {
        "run_id": "20261101T020000Z-0a1b2c3d",
        "name": "nightly",
        "began": "2026-11-01T02:00:00+00:00",
        "ended": "2026-11-01T02:40:00+00:00",
        "status": "complete",
        "reason": "",
        "remedy": "",
        "exit_code": 0,
        "config_hash": "c0ffee" * 10,
        "config": {"name": "nightly"},
        "seed": 1,
        "source": "simulated",
        "counter": "simulated",
        "hardware": {"boards": [{"board": "simulated H100"}], "cpu": "some", "cores": 2},
        "driver": None,
        "clock_mhz": None,
        "power_cap_w": None,
        "vllm": "0.32.0",
        "model": "small",
        "model_hash": "0123456789abcdef",
        "etameter": "0.1.0",
        "tasks_hash": "ab12",
        "sessions": 1,
        "energy_j": 700_000.0,
        "details": {},
    }
    return Run(**{**usual, **told})


def night(**told: Any) -> Night:
    """Of one stage."""
    return Night(run(**told), tuple(stage_row(window=number) for number in range(3)), (figure(),))
