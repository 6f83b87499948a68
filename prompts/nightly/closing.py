"""From the journal of a night to its directory: how it ended, and what came of it. The same journal gives the same files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from . import night
from .journal import SPOILED, Ending, Told
from .night import Night
from .rows import Figure, Run, StageRow

REGRESSION: Final = 3
NOT_COMPARABLE: Final = 4
UNSTABLE: Final = 5
ENVIRONMENT: Final = 2
INTERRUPTED: Final = 130
"""The house's exit codes. What a budget ended is not comparable in what is missing: 4."""


@dataclass(frozen=True, slots=True)
class Point:
    """A setting of the sweep, in what it costs."""

    setting: str
    j_per_token: float
    itl_s: float
    """Median."""
    best: bool
    """No other setting is as good in both and better in one."""


def conclude(folder: Path, told: Told) -> Night:
    """Writes tables and `run.json`, and returns them. Raises OSError."""
    whole = Night(_run(told), tuple(_stages(told)), tuple(_figures(told)))
    night.write(folder, whole)
    return whole


def verdict_of(told: Told) -> Ending:
    """Of a night whose stages have all ended: whether what was measured wandered.

    Of warm-ups the last counts for what came after it, so that any that was not level makes the night unstable.
    """
    wandered = [warm_up for warm_up in told.warm_ups if not warm_up["level"]]
    spoiled, jumped = told.of(SPOILED), told.of("clock")
    if jumped:
        return Ending(
            "unstable",
            f"a clock jumped (wall {jumped[0]['wall_s']:+.1f} s, asleep {jumped[0]['asleep_s']:.1f} s)",
            "let the machine neither sleep nor set its clock in steps while it measures",
            UNSTABLE,
        )
    if spoiled:
        reason = f"{spoiled[0]['stage']}: {spoiled[0]['reason']}"
        remedy = "; ".join(_REMEDIES.get(rule, "see the journal") for rule in spoiled[0]["rules"]) or "see the journal"
        return Ending("unstable", reason, remedy, UNSTABLE)
    if wandered:
        return Ending("unstable", wandered[-1]["reason"], wandered[-1]["remedy"], UNSTABLE)
    return Ending("complete", "", "", 0)


_REMEDIES: Final[Mapping[str, str]] = {
    "throttled": "cool the boards, or lower their power cap until they hold it",
    "neighbours": "let nobody else compute on the boards meanwhile",
    "counter": "see what etameter doctor says of the counters",
    "failures": "see the server's log, and ask for less at once",
    "clock": "let the machine neither sleep nor set its clock in steps while it measures",
}


def front(figures: Mapping[str, Sequence[Figure]]) -> list[Point]:
    """Joules per token against the time between tokens, of all settings of the sweep, cheapest first."""
    known = []
    for stage, of_stage in figures.items():
        by_metric = {figure.metric: figure.value for figure in of_stage}
        joules, itl_s = by_metric.get("j_per_token"), by_metric.get("itl_p50_s")
        if stage.startswith("sweep-") and joules is not None and itl_s is not None:
            known.append((stage, joules, itl_s))
    return [
        Point(stage, joules, itl_s, not any(_beats(other, (joules, itl_s)) for _, *other in known))
        for stage, joules, itl_s in sorted(known, key=lambda one: one[1:])
    ]


def _beats(other: Sequence[float], one: Sequence[float]) -> bool:
    return all(left <= right for left, right in zip(other, one, strict=True)) and tuple(other) != tuple(one)


def _stages(told: Told) -> list[StageRow]:
    """In order of time."""
    rows = [row for of_stage in told.windows.values() for row in of_stage]
    return sorted(rows, key=lambda row: (row.session, row.start_ns, row.stage))


def _figures(told: Told) -> list[Figure]:
    return [figure for of_stage in told.figures.values() for figure in of_stage]


def _run(told: Told) -> Run:
    assert told.ending is not None
    head, sessions = told.head, told.sessions
    first: Mapping[str, Any] = sessions[0] if sessions else {}
    boards = first.get("boards", [])
    return Run(
        run_id=head["run_id"],
        name=head["name"],
        began=head["began"],
        ended=head["ended"],
        **asdict(told.ending),
        config_hash=head["config_hash"],
        config=head["config"],
        seed=head["seed"],
        source=first.get("source"),
        counter=first.get("counter"),
        hardware={"boards": [lasting(board) for board in boards], **head["host"]},
        driver=next((board["driver"] for board in boards if board.get("driver")), None),
        clock_mhz=max((board["max_clock_mhz"] for board in boards if board.get("max_clock_mhz")), default=None),
        power_cap_w=_sum([board.get("power_limit_w") for board in boards]),
        vllm=first.get("server", {}).get("version"),
        model=first.get("model", head["model"]),
        model_hash=first.get("server", {}).get("model_fingerprint"),
        etameter=head["etameter"],
        tasks_hash=head.get("tasks_hash"),
        sessions=len(sessions),
        energy_j=_spent_j(told),
        details={
            "sessions": sessions,
            "doctor": told.doctor,
            "warm_ups": told.warm_ups,
            "codecarbon": told.of("codecarbon"),
            "clock": told.of("clock"),
            "spoiled": told.of(SPOILED),
            "sweep": [asdict(point) for point in front(told.figures)],
            "limits": told.of("limits"),
        },
    )


def spent(told: Told) -> tuple[float, float]:
    """Seconds and known joules of all sessions so far, each up to the end of its last stage."""
    last = {note["session"]: note for note in told.of("spent")}
    return sum(note["seconds"] for note in last.values()), sum(note["known_j"] for note in last.values())


def lasting(board: Mapping[str, Any]) -> dict[str, Any]:
    """Of a board, what stays the same from night to night unless another is put in its place."""
    return {name: board[name] for name in ("board", "counter", "gpu_uuid") if name in board}


def _spent_j(told: Told) -> float | None:
    """Of all sessions, each up to the end of its last stage; None where one is not known."""
    last = {note["session"]: note["energy_j"] for note in told.of("spent")}
    return _sum(list(last.values()))


def _sum(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) if given and len(given) == len(values) else None
