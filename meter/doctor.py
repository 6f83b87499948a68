"""`etameter doctor`: what this machine can measure, and how well.

Each finding is a `Check` with a verdict and, where it isn't good, a remedy. Nothing is changed on the machine.
"""

import json
import math
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Literal

from etameter import config
from etameter.bursts import Burst, Response, response
from etameter.counters import Counter, nvml, rapl
from etameter.counters.nvml_facts import Facts, Informant
from etameter.errors import CounterError, EngineError
from etameter.records import Edge
from etameter.sampler import EdgeFinder

Verdict = Literal["good", "note", "bad", "unknown"]
MARKS: Mapping[Verdict, str] = {"good": "ok", "note": "!", "bad": "X", "unknown": "?"}

POLL_NS = 5_000_000
FAST_POLL_NS = 1_000_000
POWER_POLL_NS = 10_000_000
EDGE_WAIT_S = 2.0
"""A counter that doesn't move for so long stands still, as far as a meter is concerned."""
ROUNDS = 3
BLOCKING_NS = 2_000_000
POLLING_MATTERS = 0.005
"""Relative; smaller changes of the total are not worth a word."""
SENSORS_DISAGREE = 0.05
GAIN = 0.05
"""What a board's own calibration may be off by, after arXiv 2312.02741; no software can see it."""
RING_BYTES = 32 << 20
HOST_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the first process id namespace: there NVML's process ids are those of /proc."""
BURSTS = ("-m", "etameter.serving.torch_load", "bursts")
REFERENCE_PHASES = 6
REFERENCE_PHASE_S = 20.0
LOAD_START_S = 180.0


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
        return _power_w(self.edges[0], self.edges[-1]) if len(self.edges) > 1 else None


def run(*, seconds: float, burst: bool, reference: str | None, as_json: bool) -> int:
    """Examine this machine and print what was found.

    Returns:
        0 where energy can be measured, 2 where not.

    Raises:
        EtameterError: the load or the reference can't be used.
    """
    load = [sys.executable, *BURSTS] if burst or reference else None
    diagnosis = examine(seconds=seconds, load=load, reference=reference)
    text = json.dumps(diagnosis.as_dict(), indent=2) if as_json else as_text(diagnosis)
    sys.stdout.write(text + "\n")
    return 0 if diagnosis.can_measure else 2


def examine(*, seconds: float, load: Sequence[str] | None = None, reference: str | None = None) -> Diagnosis:
    """Look at the machine and at every counter; about 14 times `seconds` in all.

    `load` is a command that keeps the GPUs busy in bursts and prints the instants of each as a line of JSON. `reference` is a command that
    prints watts of the whole machine, from its BMC or PDU.
    """
    machine = machine_checks()
    with ExitStack() as opened:
        try:
            counters: Sequence[Counter] = nvml.discover()
        except CounterError as error:
            machine.append(Check("nvml", "bad", error.message, error.remedy, {"cause": error.cause}))
            if error.cause != "library_missing":
                return _diagnosis(machine, [])
            try:
                counters = rapl.discover()
            except CounterError as absent:
                machine.append(Check("rapl", "bad", absent.message, absent.remedy, {"cause": absent.cause}))
                return _diagnosis(machine, [])
        for counter in counters:
            opened.callback(counter.close)
        informants = {
            counter.gpu_uuid: opened.enter_context(closing(Informant(counter.gpu_uuid)))
            for counter in counters
            if counter.kind != "rapl"
        }
        gpus = examine_counters(counters, informants, seconds, load, reference)
    return _diagnosis(machine, gpus)


def machine_checks() -> list[Check]:
    """What is not of any one GPU."""
    return [_another_meter(), _ring_room(), _clock(), _process_namespace()]


def examine_counters(
    counters: Sequence[Counter],
    informants: Mapping[str, Informant],
    seconds: float,
    load: Sequence[str] | None,
    reference: str | None,
) -> list[GpuChecks]:
    """Watch the counters at several rates, then under the load."""
    facts = {uuid: informant.facts() for uuid, informant in informants.items()}
    idle = watch(counters, POLL_NS, seconds)
    totals = [
        (quiet(counters, seconds), *(_powers(watch(counters, rate, seconds)) for rate in (POLL_NS, FAST_POLL_NS)))
        for _ in range(ROUNDS)
    ]
    powers = watch(counters, POWER_POLL_NS, 2 * seconds, informants)
    answers = _answers(counters, load) if load else {}
    gain = gain_check(counters, shlex.split(reference), load) if reference and load else None
    found = []
    for counter in counters:
        uuid = counter.gpu_uuid
        rates = [tuple(powers_w.get(uuid) for powers_w in totals_w) for totals_w in totals]
        checks = [
            Check("counter", "good", f"{counter.kind}, scope {counter.scope}", None, {"scope": counter.scope}),
            *(fact_checks(facts[uuid]) if uuid in facts else []),
            *timing_checks(idle[uuid]),
            polling_check(rates),
            idle_check(rates, facts.get(uuid)),
            *([power_check(powers[uuid])] if uuid in facts else []),
            lag_check(answers.get(uuid), asked=load is not None),
            *([gain] if gain else []),
        ]
        found.append(GpuChecks(uuid, counter.board_name, counter.source, checks))
    return found


# ---- looking ----


def watch(
    counters: Sequence[Counter],
    period_ns: int,
    seconds: float,
    informants: Mapping[str, Informant] | None = None,
    ended: Callable[[], bool] = lambda: False,
) -> dict[str, Seen]:
    """Poll every counter each `period_ns` for so many seconds, or until `ended`; with `informants`, power as well."""
    seen = {counter.gpu_uuid: Seen() for counter in counters}
    finders = {counter.gpu_uuid: EdgeFinder(counter.gpu_uuid) for counter in counters}
    due_ns = time.monotonic_ns()
    until_ns = due_ns + int(seconds * 1e9)
    while time.monotonic_ns() < until_ns and not ended():
        for counter in counters:
            _look(counter, finders[counter.gpu_uuid], seen[counter.gpu_uuid])
        for uuid, informant in (informants or {}).items():
            _look_at_power(informant, seen[uuid])
        due_ns = max(due_ns + period_ns, time.monotonic_ns())
        time.sleep(max(due_ns - time.monotonic_ns(), 0) * 1e-9)
    return seen


def _look(counter: Counter, finder: EdgeFinder, seen: Seen) -> None:
    before_ns = time.monotonic_ns()
    try:
        energy_mj = counter.read_mj()
    except CounterError as error:
        seen.failures[error.cause] += 1
        finder.forget()
        return
    after_ns = time.monotonic_ns()
    seen.latencies_ns.append(after_ns - before_ns)
    edge = finder.see(before_ns, energy_mj, after_ns)
    if edge is not None:
        seen.edges.append(edge)


def _look_at_power(informant: Informant, seen: Seen) -> None:
    try:
        instant_w, average_w = informant.instant_power_w(), informant.average_power_w()
    except CounterError as error:
        seen.failures[error.cause] += 1
        return
    if instant_w is not None:
        seen.instant_w.append(instant_w)
    if average_w is not None:
        seen.average_w.append(average_w)


def quiet(counters: Sequence[Counter], seconds: float) -> dict[str, float]:
    """Mean watts while nobody polls: from one edge, over so many seconds without a call, to the next edge."""
    first = _first_edges(counters)
    time.sleep(seconds)
    last = _first_edges(counters)
    found = {uuid: _power_w(first[uuid], last[uuid]) for uuid in first.keys() & last.keys()}
    return {uuid: power_w for uuid, power_w in found.items() if power_w is not None}


def _first_edges(counters: Sequence[Counter]) -> dict[str, Edge]:
    waiting = {counter.gpu_uuid: (counter, EdgeFinder(counter.gpu_uuid), Seen()) for counter in counters}
    found: dict[str, Edge] = {}
    until_s = time.monotonic() + EDGE_WAIT_S
    while waiting and time.monotonic() < until_s:
        for uuid, (counter, finder, seen) in list(waiting.items()):
            _look(counter, finder, seen)
            if seen.edges:
                found[uuid] = seen.edges[0]
                del waiting[uuid]
        time.sleep(FAST_POLL_NS * 1e-9)
    return found


def _powers(seen: Mapping[str, Seen]) -> dict[str, float]:
    return {uuid: one.mean_w for uuid, one in seen.items() if one.mean_w is not None}


def _power_w(first: Edge, last: Edge) -> float | None:
    if last.t_ns <= first.t_ns or last.energy_mj < first.energy_mj:
        return None
    return (last.energy_mj - first.energy_mj) * 1e6 / (last.t_ns - first.t_ns)


@contextmanager
def running(command: Sequence[str], *arguments: str) -> Iterator[tuple[list[Burst], "subprocess.Popen[str]"]]:
    """The load, from its first burst on; its bursts are added to the list as it tells of them.

    Raises EngineError where it doesn't start.
    """
    bursts: list[Burst] = []
    begun = threading.Event()

    def listen(lines: Iterable[str]) -> None:
        for line in lines:
            told = json.loads(line)
            begun.set()
            if "end_ns" in told:
                bursts.append(Burst(told["start_ns"], told["end_ns"]))

    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=complaints, text=True) as process,
    ):
        assert process.stdout is not None
        listener = threading.Thread(target=listen, args=(process.stdout,), daemon=True)
        listener.start()
        try:
            deadline_s = time.monotonic() + LOAD_START_S
            while not begun.wait(0.1) and process.poll() is None and time.monotonic() < deadline_s:
                pass
            listener.join(0.0 if process.poll() is None else 5.0)
            if not begun.is_set():
                complaints.seek(0)
                said = (complaints.read().strip().splitlines() or ["it said nothing"])[-1]
                raise EngineError(
                    f"the load that makes bursts doesn't start ({said})",
                    "install torch for this GPU, or leave out --burst",
                )
            yield bursts, process
            process.wait()
            listener.join()
        finally:
            process.terminate()


def _answers(counters: Sequence[Counter], load: Sequence[str]) -> dict[str, Response]:
    """How each counter answers to the load's bursts."""
    with running(load) as (bursts, process):
        seen = watch(counters, FAST_POLL_NS, LOAD_START_S, ended=lambda: process.poll() is not None)
    found = {uuid: response(one.edges, bursts) for uuid, one in seen.items()}
    return {uuid: answer for uuid, answer in found.items() if answer is not None}


def gain_check(counters: Sequence[Counter], reference: Sequence[str], load: Sequence[str]) -> Check:
    """All GPUs' counters against the watts that `reference` prints, between phases with load and without.

    Raises EngineError where the reference tells no watts.
    """
    watts_of(reference)
    phase_ms = str(int(REFERENCE_PHASE_S * 1000))
    rows: list[tuple[int, float]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            before_ns = time.monotonic_ns()
            rows.append(((before_ns + time.monotonic_ns()) // 2, watts_of(reference)))
            stop.wait(1.0)

    asking = threading.Thread(target=ask, daemon=True)
    with running(load, "--busy-ms", phase_ms, "--idle-ms", phase_ms, "--count", str(REFERENCE_PHASES // 2)) as (
        bursts,
        process,
    ):
        asking.start()
        seen = watch(counters, POLL_NS, 600.0, ended=lambda: process.poll() is not None)
        stop.set()
        asking.join()
    return compare_gain([one.edges for one in seen.values()], bursts, rows)


def watts_of(command: Sequence[str]) -> float:
    """The first number of watts in what a command prints, else its first number. Raises EngineError."""
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"the reference `{shlex.join(command)}` fails ({error})", "run it by hand first") from error
    number = re.search(r"(\d+(?:\.\d+)?)\s*[Ww](?:atts?)?\b", text) or re.search(r"(\d+(?:\.\d+)?)", text)
    if number is None:
        raise EngineError(f"the reference `{shlex.join(command)}` prints no number", "name one that prints watts")
    return float(number.group(1))


# ---- judging (pure) ----


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
    edges_s = math.sqrt(2 / 3) * half_width_ms * 1e-3 * 1.96
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
            "energy of short bursts is wrong on this board: average over many of them",
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
        powers = [_power_w(one[0], one[-1]) for one in inside if len(one) > 1]
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
    checks.append(neighbours_check(facts.processes, host_ids=_host_process_ids()))
    return checks


def neighbours_check(processes: Sequence[int] | None, *, host_ids: bool) -> Check:
    """Who else is on the GPU: their energy can't be told from ours but by the model."""
    if processes is None:
        return Check("neighbours", "unknown", "this user isn't told of the GPU's processes", "run doctor as root")
    others = [pid for pid in processes if pid != os.getpid()]
    if not others:
        words = (
            "no process is on the GPU" if host_ids else "NVML names no process; in a container it may not see others"
        )
        return Check("neighbours", "good" if host_ids else "unknown", words)
    names = ", ".join(f"{pid} ({_command(pid) if host_ids else 'unknown'})" for pid in others)
    return Check(
        "neighbours", "note", f"on the GPU: {names}", "what isn't the metered engine's falls on its model_residual"
    )


def _diagnosis(machine: list[Check], gpus: list[GpuChecks]) -> Diagnosis:
    broken = [check for gpu in gpus for check in gpu.checks if check.name == "update_period" and check.verdict == "bad"]
    can_measure = bool(gpus) and len(broken) < len(gpus)
    troubles = sum(check.verdict == "bad" for check in [*machine, *(check for gpu in gpus for check in gpu.checks)])
    if not can_measure:
        words = "this machine can't measure energy; `etameter demo` simulates a board"
    else:
        sources = "/".join(sorted({gpu.source for gpu in gpus}))
        words = f"energy of {len(gpus)} device{'s' * (len(gpus) > 1)} can be metered, source={sources}"
        words += f"; {troubles} finding{'s' * (troubles > 1)} to mend" if troubles else ""
    return Diagnosis(version("etameter"), can_measure, words, machine, gpus)


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


# ---- the machine ----


def _another_meter() -> Check:
    lock = config.lock_path()
    try:
        pid = int(lock.read_text().strip() or 0)
    except (OSError, ValueError):
        pid = 0
    if pid and Path(f"/proc/{pid}").exists() and pid != os.getpid():
        return Check(
            "other_meter", "note", f"a meter runs (pid {pid}) and polls the same counters", "stop it, and look again"
        )
    return Check("other_meter", "good", "none runs")


def _ring_room() -> Check:
    folder = config.ring_dir()
    if not os.access(folder, os.W_OK):
        return Check("ring", "bad", f"{folder} can't be written", "set ETAMETER_RING_DIR to a directory in memory")
    free = shutil.disk_usage(folder).free
    if free < RING_BYTES:
        remedy = "enlarge it (docker run --shm-size 1g), or set ETAMETER_RING_DIR"
        return Check("ring", "bad", f"{folder} has {free >> 20} MiB free", remedy, {"free_bytes": free})
    return Check("ring", "good", f"{folder}, {free >> 20} MiB free", None, {"free_bytes": free})


def _clock() -> Check:
    ticks_ns = time.clock_getres(time.CLOCK_MONOTONIC) * 1e9
    source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    name = source.read_text().strip() if source.exists() else "unknown"
    return Check("clock", "good" if ticks_ns <= 1000 else "note", f"CLOCK_MONOTONIC by {name}, {ticks_ns:.0f} ns")


def _process_namespace() -> Check:
    if _host_process_ids():
        return Check("process_ids", "good", "those of the host: neighbours can be told by name")
    words = "this is a container: NVML's process ids are the host's, and neighbours stay unknown"
    return Check("process_ids", "note", words, "run doctor with --pid=host to see them")


def _host_process_ids() -> bool:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == HOST_PID_NAMESPACE
    except OSError:
        return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"
