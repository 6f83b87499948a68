"""What a night leaves behind, in long form: a row a stage and window, a row a figure, and what is said of the run as a whole.

None is "not known" and never zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from etameter.counters import Kind
from etameter.records import Source

Stage = Literal["idle", "warm-up", "concurrency", "saturation", "rate", "recorded", "ab", "external", "sweep"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)

Status = Literal["complete", "unstable", "incomplete", "failed"]
"""complete: every stage was measured. unstable: so it was, but what was measured wandered, or a clock jumped. incomplete: it was ended before its last stage, by a
budget, by Ctrl-C or by a kill. failed: something that it needs was away: a server, a GPU, room on the disk."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """A window of a stage: what the counters say between two instants under one load."""

    stage: str
    """Its name in the run, the same every night, such as `batch-8`, `rate-2` or, of an arm, `ab-fixed/concise`."""
    kind: Stage
    window: int
    """From 0, in order of time."""
    attempt: int
    """0 for the first time that the stage was run; a stage that was cut off is run again whole, and only its last attempt is in the table."""
    session: int
    """0 until the run was first resumed: in another session it may be another boot, with another clock."""
    start_ns: int
    """CLOCK_MONOTONIC."""
    end_ns: int
    started_wall: str
    """ISO 8601, UTC."""
    energy_j: float | None
    """What the counters grew by, idle power and all. No attribution is in it."""
    energy_error_j: float | None
    """Half the 95 % interval: when within its period the counter was published. The board's own gain is apart from it."""
    requests: int | None
    """That ended in the window, well or not; None in a stage that asks nothing."""
    failures: int | None
    correct: int | None
    """Of those that ended; None where nothing is checked."""
    prompt_tokens: int | None
    output_tokens: int | None
    """That came in the window, whichever request they are of."""
    power_w: float | None
    temperature_c: float | None
    """Highest of all boards."""
    clock_mhz: float | None
    """Of the streaming multiprocessors, lowest of all boards and looks."""
    throttled: bool | None
    neighbours: int | None
    """Processes of others that computed on the boards."""
    excluded: str | None
    """By which rule the window does not count."""
    source: Source
    counter: Kind


@dataclass(frozen=True, slots=True)
class Figure:
    """What came of a stage. A series over nights is a stage and a metric."""

    stage: str
    metric: str
    """One of `metrics.METRICS`."""
    unit: str
    value: float | None
    low: float | None
    """Ends of the 95 % interval."""
    high: float | None
    n: int
    """Windows that count, from whose differences the interval is; of the comparison of arms repeats; 0 where nothing is known."""
    source: Source
    reason: str = ""
    """Why the value is not known, or what has to be known of it."""


@dataclass(frozen=True, slots=True)
class Run:
    """A night as a whole: `run.json`."""

    run_id: str
    """Sorts by the time of its beginning."""
    name: str
    """Of the job, from its configuration: runs of another name are another history."""
    began: str
    """ISO 8601, UTC."""
    ended: str
    status: Status
    reason: str
    """Why it is not complete; empty where it is."""
    remedy: str
    exit_code: int
    config_hash: str
    """Of everything in the configuration that decides what is measured."""
    config: Mapping[str, Any]
    seed: int
    source: Source | None
    """None, as much of what follows, where the run ended before it could be told."""
    counter: Kind | None
    hardware: Mapping[str, Any]
    """What stays the same from night to night: `boards`, of each its name and its counter; `cpu`, `cores`, `memory_bytes`, `host`, `kernel`, `python`."""
    driver: str | None
    clock_mhz: float | None
    """Highest that the boards allow, as set when the run began."""
    power_cap_w: float | None
    """Of all boards together, as set when the run began."""
    vllm: str | None
    model: str | None
    model_hash: str | None
    """Of the model's files; None where they can't be read from here."""
    etameter: str
    tasks_hash: str | None
    """Of the suite that the fixed stages ask."""
    sessions: int
    energy_j: float | None
    """What the whole run took by the counters."""
    details: Mapping[str, Any]
    """More of it, for readers: what doctor found, warm-ups, codecarbon beside us, the sweep's front, …"""
