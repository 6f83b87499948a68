"""`etameter doctor`: what this machine can measure, and how well.

Each finding is a `Check` with a verdict and, where it isn't good, a remedy. Nothing is changed on the machine.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from etameter import config
from etameter.bursts import Burst, Response, response
from etameter.counters import Counter, nvml, rapl
from etameter.counters.nvml_facts import Facts, Informant
from etameter.errors import CounterError, EngineError
from etameter.findings import (
    FAST_POLL_NS,
    POLL_NS,
    Check,
    Diagnosis,
    GpuChecks,
    Seen,
    as_text,
    compare_gain,
    counter_check,
    diagnosis_of,
    fact_checks,
    idle_check,
    lag_check,
    neighbours_check,
    polling_check,
    power_between,
    power_check,
    timing_checks,
)
from etameter.host import HostCounters
from etameter.records import Edge
from etameter.sampler import EdgeFinder

POWER_POLL_NS = 10_000_000
EDGE_WAIT_S = 2.0
"""A counter that doesn't move for so long stands still, as far as a meter is concerned."""
ROUNDS = 3
RING_BYTES = 32 << 20
HOST_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the first process id namespace: there NVML's process ids are those of /proc."""
BURSTS = ("-m", "etameter.serving.torch_load", "bursts")
REFERENCE_PHASES = 6
REFERENCE_PHASE_S = 20.0
REFERENCE_EVERY_S = 1.0
LOAD_START_S = 180.0


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
            counters: Sequence[Counter] = nvml.discover(allow_shared=True)
        except CounterError as error:
            machine.append(Check("nvml", "bad", error.message, error.remedy, {"cause": error.cause}))
            if error.cause != "library_missing":
                return diagnosis_of(version("etameter"), machine, [])
            try:
                counters = rapl.discover()
            except CounterError as absent:
                machine.append(Check("rapl", "bad", absent.message, absent.remedy, {"cause": absent.cause}))
                return diagnosis_of(version("etameter"), machine, [])
        for counter in counters:
            opened.callback(counter.close)
        informants = {
            counter.gpu_uuid: opened.enter_context(closing(Informant(counter.gpu_uuid, counter.scope)))
            for counter in counters
            if counter.kind != "rapl"
        }
        gpus = examine_counters(counters, informants, seconds, load, reference)
    return diagnosis_of(version("etameter"), machine, gpus)


def machine_checks() -> list[Check]:
    """What is not of any one GPU."""
    return [_another_meter(), _ring_room(), _clock(), _process_namespace(), host_check(HostCounters())]


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
            counter_check(counter.kind, counter.scope),
            *([*fact_checks(facts[uuid]), _neighbours(facts[uuid])] if uuid in facts else []),
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
    found = {uuid: power_between(first[uuid], last[uuid]) for uuid in first.keys() & last.keys()}
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
            with suppress(EngineError):  # it answered once, and may again
                watts = watts_of(reference)
                rows.append(((before_ns + time.monotonic_ns()) // 2, watts))
            stop.wait(REFERENCE_EVERY_S)

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


def host_check(host: HostCounters) -> Check:
    """What of the host's energy can be told beside that of the GPUs."""
    if host.domains:
        return Check("host_energy", "good", f"RAPL: {', '.join(host.domains)}", None, {"counters": len(host)})
    if host.absent_because:
        return Check(
            "host_energy", "note", f"not told: {host.absent_because}", "receipts lack the host's joules until then"
        )
    return Check(
        "host_energy", "note", "no RAPL counter: most virtual machines show none, receipts lack the host's joules"
    )


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


def _neighbours(facts: Facts) -> Check:
    others = None if facts.processes is None else [pid for pid in facts.processes if pid != os.getpid()]
    return neighbours_check(others, {pid: _command(pid) for pid in others or ()} if _host_process_ids() else None)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"
