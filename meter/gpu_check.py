"""`make gpu-check`: doctor, then a load of known work, metered and recorded; a report says whether the figures hold together.

    python -m etameter.gpu_check [--out DIRECTORY] [--seconds 240] [--server]

Needs a GPU and torch, and neither vLLM nor a network. The recording holds no text, and `etameter replay` gives its figures again anywhere.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from etameter import config, doctor, findings, recording
from etameter.accounts import Device
from etameter.costs import TERMS
from etameter.errors import EngineError, EtameterError
from etameter.findings import Check, Diagnosis
from etameter.inline import Window
from etameter.ledger import RequestRow
from etameter.recording import Recorder
from etameter.records import Balance

LOAD = ("-m", "etameter.serving.torch_load")
SECONDS = 240.0
START_S = 180.0
UNATTRIBUTED = 0.005
"""Share of the energy that a run without faults may leave unattributed."""
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """What one kind of load took. None where the counter can't say."""

    name: str
    seconds: float
    requests: int
    prompt_tokens: int
    output_tokens: int
    energy_j: float | None
    error_j: float | None

    @property
    def power_w(self) -> float | None:
        return None if self.energy_j is None else self.energy_j / self.seconds

    @property
    def output_token_j(self) -> float | None:
        """All of the phase's energy, prompts and gaps included, over its output tokens."""
        return None if self.energy_j is None or not self.output_tokens else self.energy_j / self.output_tokens


@dataclass(frozen=True, slots=True)
class Report:
    """All that the check found."""

    etameter: str
    made_at: str
    source: str
    load: Mapping[str, Any]
    checks: list[Check]
    phases: list[PhaseFigures]
    balance_j: Mapping[str, float]
    coefficients: Mapping[str, Mapping[str, float]]
    """What a step costs, by device: see docs/method.md."""
    sampler: Mapping[str, float]
    doctor: Diagnosis
    server: Any = field(default=None)
    """What the demo on a vLLM server found, with VLLM=1."""

    @property
    def sound(self) -> bool:
        return self.doctor.can_measure and all(check.verdict != "bad" for check in self.checks)


def run(
    out: Path,
    seconds: float,
    *,
    device: str = "cuda",
    shape: str = "8b",
    look_s: float = 1.5,
    bursts: int = 60,
    server: bool = False,
) -> Report:
    """Examine, load, meter, record, and write report.json, report.txt and recording.zip into `out`.

    The load's `shape` and torch's `device` are others only where there is no GPU to check.

    Raises:
        EtameterError: no counter, no torch, or no place for the files.
    """
    with _fresh(out):
        return _run(out, seconds, device, shape, look_s, bursts, server=server)


@contextmanager
def _fresh(out: Path) -> Iterator[None]:
    """A directory that is gone again if the block fails."""
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise EtameterError(f"{out} can't be made ({error.strerror})", "name another with --out") from error
    with ExitStack() as undoing:
        undoing.callback(shutil.rmtree, out)
        yield
        undoing.pop_all()


def _run(out: Path, seconds: float, device: str, shape: str, look_s: float, bursts: int, *, server: bool) -> Report:
    load = [sys.executable, *LOAD]
    diagnosis = doctor.examine(seconds=look_s, load=[*load, "bursts", "--device", device, "--count", str(bursts)])
    if not diagnosis.can_measure:
        found = [*diagnosis.machine, *(check for gpu in diagnosis.gpus for check in gpu.checks)]
        worst = next(check for check in found if check.verdict == "bad")
        raise EtameterError(f"nothing can be measured: {worst.finding}", worst.remedy or "see etameter doctor")
    file = out / "recording.zip"
    ring = config.ring_path(f"gpu-check-{os.getpid()}")

    def record(devices: Sequence[Device], boot: str) -> Recorder:
        return Recorder(file, devices, boot, about={"made_by": "gpu-check", "seconds": seconds})

    command = [*load, "engine", "--ring", str(ring), "--seconds", str(seconds), "--device", device, "--shape", shape]
    try:
        with Window((), ring, record) as window, told_by(command) as told:
            pass
    finally:
        ring.unlink(missing_ok=True)
    assert isinstance(window.accounts, Recorder)
    window.accounts.close()
    checks, balance_j = judge(window.balances, window.requests, told, recording.replay(file))
    report = Report(
        etameter=version("etameter"),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        source=window.source,
        load=told[0],
        checks=checks,
        phases=[_phase(window, one) for one in told[1:]],
        balance_j=balance_j,
        coefficients={
            uuid: dict(zip(TERMS, costs.energy.tolist(), strict=False)) for uuid, costs in window.costs.items()
        },
        sampler={
            "polls_per_s": window.sampler.polls / window.seconds,
            "mean_lateness_us": window.sampler.lateness_ns / max(window.sampler.polls, 1) / 1e3,
            "core": window.sampler.cost_ns * 1e-9 / window.seconds,
            "missed_polls": float(window.sampler.missed_polls),
        },
        doctor=diagnosis,
        server=_server() if server else None,
    )
    (out / "report.json").write_text(json.dumps(asdict(report) | {"sound": report.sound}, indent=1) + "\n")
    (out / "report.txt").write_text(as_text(report, file) + "\n")
    return report


@contextmanager
def told_by(command: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Runs the load to its end, which is when the block begins; what it told is then in the list.

    Raises EngineError where it fails.
    """
    told: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        listener = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
        listener.start()
        try:
            for line in process.stdout:
                told.append(json.loads(line))
                sys.stderr.write(f"  {told[-1].get('phase') or 'weights are made'}\n")
            process.wait()
            listener.join()
            if process.returncode or not told:
                last = said[-1].strip() if said else "it said nothing"
                raise EngineError(f"the load fails ({last})", "install torch for this GPU: pip install torch")
            yield told
        finally:
            process.terminate()


def judge(
    balances: Sequence[Balance],
    requests: Sequence[RequestRow],
    told: Sequence[Mapping[str, Any]],
    replayed: recording.Replay,
) -> tuple[list[Check], dict[str, float]]:
    """Whether the figures hold together, and the balance in joules."""
    measured_j = sum(one.measured_j for one in balances)
    attributed_j = sum(one.attributed_j for one in balances)
    idle_j = sum(one.idle_j for one in balances)
    overhead_j = sum(one.engine_overhead_j for one in balances)
    causes: dict[str, float] = {}
    for one in balances:
        for cause, joules in one.unattributed_j_by_cause.items():
            causes[cause] = causes.get(cause, 0.0) + joules
    lost_j = sum(causes.values())
    receipts_j = math.fsum(row.energy.energy_j for row in requests)
    balance_j = {
        "measured": measured_j,
        "receipts": receipts_j,
        "idle": idle_j,
        "engine_overhead": overhead_j,
        **{f"unattributed_{cause}": joules for cause, joules in sorted(causes.items())},
    }
    off_j = measured_j - receipts_j - idle_j - overhead_j - lost_j
    ran = sum(int(one.get("requests", 0)) for one in told)
    settled = [row for row in requests if row.energy.settled]
    checks = [
        _verdict("metered", measured_j > 0, f"{measured_j:.1f} J", "see the findings of doctor"),
        _verdict(
            "balance",
            abs(off_j) <= ROUNDING * max(measured_j, 1.0),
            f"receipts, idle, overhead and unattributed are {off_j:+.2e} J off the counter",
            "a bug: please report it with the recording",
        ),
        _verdict(
            "attributed",
            lost_j <= UNATTRIBUTED * measured_j,
            f"{lost_j / max(measured_j, 1e-9):.2%} unattributed ({', '.join(causes) or 'no cause'})",
            "look at its causes in the report; other programs on the GPU are one",
        ),
        _verdict(
            "requests",
            len(settled) == ran and attributed_j > 0,
            f"{len(settled)} of {ran} requests have a settled receipt",
            "the load was stopped early, or the meter could not follow",
        ),
        _verdict(
            "replay",
            replayed.identical,
            f"{replayed.outcomes} outcomes recorded, {replayed.differing} differ when replayed",
            "a bug: please report it with the recording",
        ),
    ]
    return checks, balance_j


def _verdict(name: str, holds: bool, finding: str, remedy: str) -> Check:  # noqa: FBT001  # reads as a sentence
    return Check(name, "good" if holds else "bad", finding, None if holds else remedy)


def _phase(window: Window, told: Mapping[str, Any]) -> PhaseFigures:
    energy_j, error_j = window.energy_between(told["start_ns"], told["end_ns"]) or (None, None)
    return PhaseFigures(
        name=told["phase"],
        seconds=(told["end_ns"] - told["start_ns"]) * 1e-9,
        requests=told["requests"],
        prompt_tokens=told["prompt_tokens"],
        output_tokens=told["output_tokens"],
        energy_j=energy_j,
        error_j=error_j,
    )


def _server() -> Any:
    """The demo's figures, on a vLLM that it installs where there is none; its own complaint where it fails."""
    ended = subprocess.run(
        [sys.executable, "-m", "etameter", "demo", "--json"], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        return {"failed": ended.stderr.strip()}
    return json.loads(ended.stdout)


def as_text(report: Report, file: Path) -> str:
    """The report for a reader."""
    lines = [
        f"etameter {report.etameter} gpu-check, {report.made_at}, source={report.source}",
        "load: {shape} on {device}, {layers} layers, torch {torch}".format(**report.load),
        "",
        *findings.check_lines(report.checks),
        "",
        f"  {'phase':<16}{'s':>7}{'requests':>10}{'prompt tok':>12}{'output tok':>12}{'J':>11}{'± J':>8}{'W':>8}{'J/out tok':>11}",
    ]
    for one in report.phases:
        figures = (one.energy_j, one.error_j, one.power_w, one.output_token_j)
        energy, error, power, token = ("-" if figure is None else f"{figure:.5g}" for figure in figures)
        lines.append(
            f"  {one.name:<16}{one.seconds:>7.1f}{one.requests:>10}{one.prompt_tokens:>12}{one.output_tokens:>12}"
            f"{energy:>11}{error:>8}{power:>8}{token:>11}"
        )
    lines += ["", "  balance: " + ", ".join(f"{name} {joules:.1f} J" for name, joules in report.balance_j.items())]
    for uuid, terms in report.coefficients.items():
        lines.append(f"  {uuid}: " + ", ".join(f"{name} {value:.4g}" for name, value in terms.items()))
    lines.append("  sampler: " + ", ".join(f"{name} {value:.3g}" for name, value in report.sampler.items()))
    if report.server is not None:
        lines += ["", "server: " + (report.server.get("failed") or "the demo ran; its figures are in report.json")]
    verdict = "the figures hold together" if report.sound else "the figures don't hold together: see what is marked X"
    return "\n".join([*lines, "", findings.as_text(report.doctor), "", f"{verdict}; recording: {file}"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Check the meter on this machine's GPU; about 6 minutes.")
    parser.add_argument("--out", type=Path, default=Path(time.strftime("gpu-check-%Y%m%d-%H%M%S")))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long the load runs")
    parser.add_argument("--server", action="store_true", help="then run the demo on a vLLM server, too")
    options = parser.parse_args()
    try:
        report = run(options.out, options.seconds, server=options.server)
    except EtameterError as error:
        sys.stderr.write(f"etameter: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.stdout.write((options.out / "report.txt").read_text())
    sys.exit(0 if report.sound else EtameterError.exit_code)


if __name__ == "__main__":
    main()
