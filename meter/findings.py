"""What doctor's looks at a machine mean: verdicts, and what to do about them. Pure."""

import math
import statistics
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Literal

from etameter.bursts import Burst, Response
from etameter.counters import nvml
from etameter.counters.nvml_facts import Facts
from etameter.records import Edge
from etameter.timeline import NORMAL_95

Verdict = Literal["good", "note", "bad", "unknown"]
MARKS: Mapping[Verdict, str] = {"good": "ok", "note": "!", "bad": "X", "unknown": "?"}

POLL_NS = 5_000_000
FAST_POLL_NS = 1_000_000
BLOCKING_NS = 2_000_000
POLLING_MATTERS = 0.005
"""Relative; smaller changes of the total are not worth a word."""
SENSORS_DISAGREE = 0.05
GAIN = 0.05
"""What a board's own calibration may be off by, after arXiv 2312.02741; no software can see it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    verdict: Verdict
    finding: str
    remedy: str | None = None
    figures: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GpuChecks:
    """What was found of one counter."""

    gpu_uuid: str
    board_name: str
    source: str
    checks: list[Check]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found."""

    etameter: str
    can_measure: bool
    verdict: str
    machine: list[Check]
    gpus: list[GpuChecks]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(slots=True)
class Seen:
    """What polling one counter for a while showed."""

    edges: list[Edge] = field(default_factory=list)
    latencies_ns: list[int] = field(default_factory=list)
    failures: Tally[str] = field(default_factory=Tally)
    instant_w: list[float] = field(default_factory=list)
    average_w: list[float] = field(default_factory=list)

    @property
    def mean_w(self) -> float | None:
        """Between the first edge and the last; None without two, or over a reset."""
        return power_between(self.edges[0], self.edges[-1]) if len(self.edges) > 1 else None


def power_between(first: Edge, last: Edge) -> float | None:
    """Mean watts between two edges; None over a reset."""
    if last.t_ns <= first.t_ns or last.energy_mj < first.energy_mj:
        return None
    return (last.energy_mj - first.energy_mj) * 1e6 / (last.t_ns - first.t_ns)


def counter_check(kind: str, scope: str) -> Check:
    """What is read at all."""
    if kind == "power":
        words = f"no energy counter, scope {scope}: power readings are integrated, source=estimated"
        return Check("counter", "note", words, "use a GPU of the Volta generation or newer", {"scope": scope})
    if scope == "module":
        words, remedy = (
            f"{kind}, scope module",
            "the joules of the chip's CPU are in every figure: no counter tells them apart",
        )
        return Check("counter", "note", words, remedy, {"scope": scope})
    return Check("counter", "good", f"{kind}, scope {scope}", None, {"scope": scope})


def timing_checks(seen: Seen) -> list[Check]:
    """How often the counter is published, what a call takes, and what that leaves of a short window."""
    if seen.failures:
        causes = ", ".join(f"{cause} ({count})" for cause, count in sorted(seen.failures.items()))
        failing = [Check("reads", "bad", f"reads fail: {causes}", "see the cause in nvidia-smi and dmesg")]
    else:
        failing = []
    if len(seen.edges) < 3:
        message = f"the counter changed {len(seen.edges)} times only: it stands still"
        return [*failing, Check("update_period", "bad", message, "look longer (--seconds), then reload the driver")]
    distances_ms = [(after.t_ns - before.t_ns) / 1e6 for before, after in pairwise(seen.edges)]
    period_ms = statistics.median(distances_ms)
    spread_ms = statistics.median(abs(distance - period_ms) for distance in distances_ms)
    half_width_ms = statistics.median(edge.half_width_ns for edge in seen.edges) / 1e6
    latencies_us = sorted(latency / 1e3 for latency in seen.latencies_ns)
    median_us, worst_us = statistics.median(latencies_us), latencies_us[-1]
    high_us = latencies_us[int(0.99 * (len(latencies_us) - 1))]
    blocks = high_us * 1e3 > BLOCKING_NS
    edges_s = math.sqrt(2 / 3) * half_width_ms * 1e-3 * NORMAL_95
    return [
        *failing,
        Check(
            "update_period",
            "good" if period_ms < 120 else "note",
            f"published every {period_ms:.1f} ms (± {spread_ms:.1f}), {len(seen.edges)} times seen",
            None if period_ms < 120 else "requests shorter than this are told apart by the model alone",
            {"period_ms": period_ms, "spread_ms": spread_ms, "edges": len(seen.edges)},
        ),
        Check(
            "call_latency",
            "note" if blocks else "good",
            f"a read takes {median_us:.0f} µs (99 %: {high_us:.0f}, worst: {worst_us:.0f})",
            "calls wait in the driver: stop other programs that poll this GPU" if blocks else None,
            {"median_us": median_us, "p99_us": high_us, "worst_us": worst_us},
        ),
        Check(
            "resolution",
            "good" if edges_s < 0.01 else "note",
            f"edges are known to ± {half_width_ms:.1f} ms: 10 s windows to {edges_s / 10:.2%}, 1 s windows to {edges_s:.1%}"
            f" (95 %), beside lag and the board's gain (± {GAIN:.0%})",
            None,
            {"half_width_ms": half_width_ms, "error_10_s": edges_s / 10, "error_1_s": edges_s, "gain": GAIN},
        ),
    ]


def polling_check(rates: Sequence[Sequence[float | None]]) -> Check:
    """`rates` holds, for each round, the watts unpolled, polled, and polled fast."""
    whole = [[watts for watts in row if watts is not None] for row in rates]
    if len(whole) < 2 or any(len(row) != 3 for row in whole):
        return Check("polling", "unknown", "whether polling changes the total could not be seen", "look again, idle")
    quiet_w = statistics.fmean(row[0] for row in whole)
    worst, uncertain, rate_ms = 0.0, 0.0, 0.0
    for column, period_ns in ((1, POLL_NS), (2, FAST_POLL_NS)):
        changes = [(row[column] - row[0]) / max(quiet_w, 1e-9) for row in whole]
        change = statistics.fmean(changes)
        error = statistics.stdev(changes) / math.sqrt(len(changes))
        if abs(change) >= abs(worst):
            worst, uncertain, rate_ms = change, error, period_ns / 1e6
    matters = abs(worst) > max(POLLING_MATTERS, 3 * uncertain)
    return Check(
        "polling",
        "note" if matters else "good",
        f"polling every {rate_ms:g} ms changes the power by {worst:+.2%} (± {uncertain:.2%})",
        "poll less often: [meter] poll_ms" if matters else None,
        {"change": worst, "standard_error": uncertain, "poll_ms": rate_ms},
    )


def idle_check(rates: Sequence[Sequence[float | None]], facts: Facts | None) -> Check:
    """What it draws while nobody polls; idle only where nobody is known to use it."""
    watts = [row[0] for row in rates if row and row[0] is not None]
    if not watts:
        return Check("idle_power", "unknown", "no power could be taken from the counter", None)
    mean_w = statistics.fmean(watts)
    used = bool(facts and facts.processes)
    words = f"{mean_w:.1f} W" + (" now, with processes on the GPU" if used else ", nothing known to run")
    return Check("idle_power", "note" if used else "good", words, None, {"power_w": mean_w, "in_use": used})


def power_check(seen: Seen) -> Check:
    """The counter against the mean of the power sensor over the same time."""
    counter_w = seen.mean_w
    sensor = seen.instant_w or seen.average_w
    if counter_w is None or not sensor or statistics.fmean(sensor) <= 0:
        return Check("counter_against_power", "unknown", "there is no power reading to compare the counter with", None)
    power_w = statistics.fmean(sensor)
    ratio = counter_w / power_w
    disagree = abs(ratio - 1) > SENSORS_DISAGREE
    return Check(
        "counter_against_power",
        "bad" if disagree else "good",
        f"counter {counter_w:.1f} W, power readings {power_w:.1f} W: ratio {ratio:.3f}",
        "repeat it idle; if it stays, compare with a BMC or PDU: --reference" if disagree else None,
        {"counter_w": counter_w, "power_w": power_w, "ratio": ratio, "instant": bool(seen.instant_w)},
    )


def lag_check(answer: Response | None, *, asked: bool) -> Check:
    """How late the counter is, and whether it sees everything."""
    if answer is None:
        words = "the bursts don't show in the counter" if asked else "a steady load can't tell the publishing lag"
        return Check("lag", "unknown", words, None if asked else "run doctor --burst (needs torch), or make gpu-check")
    if answer.seen < 1:
        return Check(
            "lag",
            "bad",
            f"the counter sees the last {answer.seen:.0%} of each update period only",
            "energy of what keeps step with the counter is wrong on this board, and no reading tells: vary the timing and average; "
            f"etameter.window(seen={answer.seen:g}) states an error that covers it",
            asdict(answer),
        )
    return Check(
        "lag",
        "good",
        f"published {answer.lag_ns / 1e6:.0f} ms late (± {answer.lag_error_ns / 1e6:.0f}); sees the whole period",
        None,
        asdict(answer),
    )


def compare_gain(edges: Sequence[Sequence[Edge]], bursts: Sequence[Burst], rows: Sequence[tuple[int, float]]) -> Check:
    """ΔP of the counters over ΔP of the reference, from the second half of each phase: slow sensors have settled by then."""
    phases = [(burst.start_ns, burst.end_ns) for burst in bursts]
    phases += [(before.end_ns, after.start_ns) for before, after in pairwise(bursts)]
    points = []
    for start_ns, end_ns in phases:
        middle_ns = (start_ns + end_ns) // 2
        there = [watts for t_ns, watts in rows if middle_ns <= t_ns < end_ns]
        inside = [[edge for edge in one if middle_ns <= edge.t_ns < end_ns] for one in edges]
        powers = [power_between(one[0], one[-1]) for one in inside if len(one) > 1]
        if there and len(powers) == len(edges) and None not in powers:
            points.append((sum(power for power in powers if power is not None), statistics.fmean(there)))
    if len(points) < 3 or max(points)[0] - min(points)[0] < 1:
        return Check("gain", "unknown", "the reference and the counter have too little in common", "look again, longer")
    line = statistics.linear_regression([there for _, there in points], [here for here, _ in points])
    return Check(
        "gain",
        "note",
        f"a watt more at the reference is {line.slope:.3f} W more in the counters; the reference also sees CPUs, fans and "
        "the loss of the power supplies, so a sound counter lies below 1",
        "to be read as the board's gain only where the reference measures that board alone",
        {"slope": line.slope, "phases": len(points)},
    )


def fact_checks(facts: Facts) -> list[Check]:
    """What the board's settings mean for measuring."""
    checks = [Check("driver", "good", facts.driver, None, {"driver": facts.driver})]
    if facts.driver.endswith(nvml.SIMULATED_DRIVER):
        checks = [Check("driver", "note", f"{facts.driver}: a stand-in, every figure is simulated", None)]
    if facts.persistence is False:
        words = "persistence mode is off: the driver unloads when idle, and the counter starts again"
        checks.append(Check("persistence", "note", words, "nvidia-smi -pm 1, as root"))
    elif facts.persistence:
        checks.append(Check("persistence", "good", "on"))
    if facts.power_limit_w is not None:
        low_w, high_w = facts.power_limit_range_w or (math.nan, math.nan)
        lowered = facts.power_limit_range_w is not None and facts.power_limit_w < high_w
        words = f"{facts.power_limit_w:.0f} W" + (f" (of {low_w:.0f} to {high_w:.0f})" if lowered else "")
        checks.append(Check("power_limit", "good", words, None, {"power_limit_w": facts.power_limit_w}))
    scopes = ", ".join(f"{scope} {watts:.1f} W" for scope, watts in facts.instant_power_w.items())
    words = scopes or "no instantaneous power reading (field 186)"
    checks.append(Check("power_scopes", "good" if scopes else "note", words, None, dict(facts.instant_power_w)))
    if facts.throttles:
        words, remedy = ", ".join(facts.throttles), "costs differ from those of a cool, uncapped board: cool it"
        checks.append(Check("throttling", "note", words, remedy))
    else:
        checks.append(Check("throttling", "good", f"none; {facts.clock_mhz} of {facts.max_clock_mhz} MHz"))
    if facts.mig:
        remedy = "switch it off (nvidia-smi -mig 0), or meter the whole of it as source=shared: --allow-shared-gpu"
        checks.append(Check("mig", "bad", "split by MIG: its counter is that of the whole GPU", remedy))
    return checks


def neighbours_check(others: Sequence[int] | None, names: Mapping[int, str] | None) -> Check:
    """Who else is on the GPU: their energy can't be told from ours but by the model. `names` is None where ids aren't this namespace's."""
    if others is None:
        return Check("neighbours", "unknown", "this user isn't told of the GPU's processes", "run doctor as root")
    if not others:
        if names is None:
            return Check("neighbours", "unknown", "NVML names no process; in a container it may not see others")
        return Check("neighbours", "good", "no process is on the GPU")
    listed = ", ".join(f"{pid} ({'unknown' if names is None else names.get(pid, 'gone')})" for pid in others)
    remedy = "what isn't the metered engine's falls on its model_residual"
    return Check("neighbours", "note", f"on the GPU: {listed}", remedy)


def diagnosis_of(etameter: str, machine: list[Check], gpus: list[GpuChecks]) -> Diagnosis:
    """The findings, with what they mean together."""
    broken = [check for gpu in gpus for check in gpu.checks if check.name == "update_period" and check.verdict == "bad"]
    can_measure = bool(gpus) and len(broken) < len(gpus)
    troubles = sum(check.verdict == "bad" for check in [*machine, *(check for gpu in gpus for check in gpu.checks)])
    if not can_measure:
        words = "this machine can't measure energy; `etameter demo` simulates a board"
    else:
        sources = "/".join(sorted({gpu.source for gpu in gpus}))
        words = f"energy of {len(gpus)} device{'s' * (len(gpus) > 1)} can be metered, source={sources}"
        words += f"; {troubles} finding{'s' * (troubles > 1)} to mend" if troubles else ""
    return Diagnosis(etameter, can_measure, words, machine, gpus)


def as_text(diagnosis: Diagnosis) -> str:
    """For a terminal: a line a finding, with its remedy below it where there is one."""
    lines = [f"etameter {diagnosis.etameter}", "", "machine", *check_lines(diagnosis.machine)]
    for gpu in diagnosis.gpus:
        lines += ["", f"{gpu.board_name}  {gpu.gpu_uuid}  source={gpu.source}", *check_lines(gpu.checks)]
    return "\n".join([*lines, "", diagnosis.verdict])


def check_lines(checks: Iterable[Check]) -> Iterator[str]:
    """A line a finding, and one for its remedy."""
    for check in checks:
        yield f"  {MARKS[check.verdict]:<3}{check.name.replace('_', ' '):<23}{check.finding}"
        if check.remedy:
            yield f"{'':28}{check.remedy}"
