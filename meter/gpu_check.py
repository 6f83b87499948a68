"""`make gpu-check`: doctor, then a load of known work, metered and recorded; a report says whether the figures hold together.

    python -m etameter.gpu_check [--out DIRECTORY] [--seconds 240] [--server]

Needs a GPU and torch, and neither vLLM nor a network. The recording holds no text, and `etameter replay` gives its figures again anywhere.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from etameter import config, doctor, playback
from etameter.check_report import (
    PhaseFigures,
    Report,
    as_text,
    fit_check,
    fit_figures,
    judge,
    not_measured,
    server_check,
)
from etameter.counters import nvml
from etameter.devices import Device
from etameter.errors import EngineError, EtameterError
from etameter.inline import Window
from etameter.recording import Recorder

LOAD = ("-m", "etameter.serving.torch_load")
SECONDS = 240.0


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
    began = datetime.now(UTC).isoformat(timespec="seconds")

    def record(devices: Sequence[Device], boot: str) -> Recorder:
        kinds = "/".join(sorted({each.kind for each in devices}))
        about = {"made_by": "gpu-check", "started": began, "counter": kinds, "seconds": seconds}
        return Recorder(file, devices, boot, about=about | {"doctor": diagnosis.as_dict()})

    with told_by([*load, "where", "--device", device]) as told:
        uuids = told[0]["gpu_uuids"]
    counters = nvml.discover(uuids) if uuids else ()
    command = [*load, "engine", "--ring", str(ring), "--seconds", str(seconds), "--device", device, "--shape", shape]
    try:
        with Window(counters, ring, record) as window, told_by(command) as told:
            pass
    finally:
        ring.unlink(missing_ok=True)
    assert isinstance(window.accounts, Recorder)
    window.accounts.close(load=told, polls=window.sampler.polls, missed_polls=window.sampler.missed_polls)
    replayed = playback.replay(file)
    checks, balance_j = judge(window.balances, window.requests, told, replayed)
    checks.append(fit_check(window.costs))
    served = _server() if server else None
    if served is not None:
        checks.append(server_check(served))
    report = Report(
        etameter=version("etameter"),
        made_at=began,
        source=window.source,
        versions={**replayed.manifest["versions"], "torch": told[0]["torch"]},
        load=told[0],
        checks=checks,
        phases=[_phase(window, one) for one in told[1:]],
        balance_j=balance_j,
        fits={uuid: fit_figures(costs) for uuid, costs in window.costs.items()},
        sampler={
            "polls_per_s": window.sampler.polls / window.seconds,
            "mean_lateness_us": window.sampler.lateness_ns / max(window.sampler.polls, 1) / 1e3,
            "core": window.sampler.cost_ns * 1e-9 / window.seconds,
            "missed_polls": float(window.sampler.missed_polls),
        },
        not_measured=list(
            not_measured(diagnosis, window.costs, device, server=served is not None and "failed" not in served)
        ),
        doctor=diagnosis,
        server=served,
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
                if "torch" in told[-1] or "phase" in told[-1]:
                    sys.stderr.write(f"  {told[-1].get('phase') or 'weights are made'}\n")
            process.wait()
            listener.join()
            if process.returncode or not told:
                last = said[-1].strip() if said else "it said nothing"
                raise EngineError(f"the load fails ({last})", "install torch for this GPU: pip install torch")
            yield told
        finally:
            process.terminate()


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
    said: list[str] = []
    command = [sys.executable, "-m", "etameter", "demo", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        told: list[str] = []
        reader = threading.Thread(target=told.extend, args=(process.stdout,), daemon=True)
        reader.start()
        for line in process.stderr:
            said.append(line.strip())
            sys.stderr.write(f"  {line}")
        reader.join()
    if process.returncode:
        return {
            "failed": next(
                (line.removeprefix("etameter: ") for line in reversed(said) if line),
                f"it ended with {process.returncode}",
            )
        }
    return json.loads("".join(told))


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
