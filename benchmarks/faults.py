"""What meters print when the sensor fails: the same faults for Zeus, codecarbon, landauer-gap and us.

    python -m benchmarks.faults [--quick]

Each meter runs in a process of its own, on a stand-in NVML whose one GPU draws 300 W. It meters a window of some seconds in which a fault
happens, and tells the joules that it gives its user. A figure is `right` within 5 % or within its own stated error, `none` where the meter
gave no figure but an error or a blank, and `wrong` otherwise. Peers that aren't installed are left out; --quick leaves all of them out.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import pynvml

from benchmarks.report import Goal, finish
from tests.simnvml.board import Board, Call, library

WATTS = 300.0
WINDOW_S = 5.0
TOLERANCE = 0.05
START_S, ANSWER_S = 90.0, 60.0
METERS = "etameter", "zeus", "codecarbon", "landauer-gap"
"""By their distributions' names."""
PEER = ("-m", "benchmarks.faults_peers")

Verdict = Literal["right", "none", "wrong"]


@dataclass(frozen=True, slots=True)
class Fault:
    """`before` is done to the board before any meter starts, `within` as soon as the windows begin (with the instant)."""

    name: str
    before: Callable[[Board], None] = lambda _: None
    within: Callable[[Board, int], None] = lambda *_: None
    library: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """What a meter gave: joules or None, the error that it states, what it said, and what was true."""

    joules: float | None
    error_j: float
    said: str
    true_j: float

    @property
    def verdict(self) -> Verdict:
        if self.joules is None:
            return "none"
        off_j = abs(self.joules - self.true_j)
        return "right" if off_j <= max(TOLERANCE * self.true_j, self.error_j) else "wrong"


def _second(t_ns: int, after: float) -> int:
    return t_ns + int(after * 1e9)


ENERGY_AND_POWER = Call.ENERGY | Call.POWER | Call.INSTANT
FAULTS = (
    Fault("none"),
    Fault("counter reset", within=lambda board, t_ns: board.reset_counter(_second(t_ns, 2.0))),
    Fault("counter frozen", within=lambda board, t_ns: board.freeze(Call.ENERGY, _second(t_ns, 2.0))),
    Fault("GPU lost for 1 s", within=lambda board, t_ns: board.lose(0, _second(t_ns, 2.0), _second(t_ns, 3.0))),
    Fault(
        "calls stall 2 s",
        within=lambda board, t_ns: board.stall(Call.ENERGY, 2_000_000_000, 0, _second(t_ns, 1.5), _second(t_ns, 1.6)),
    ),
    Fault("energy not supported", before=lambda board: board.fail(Call.ENERGY, pynvml.NVML_ERROR_NOT_SUPPORTED)),
    Fault("no permission", before=lambda board: board.fail(ENERGY_AND_POWER, pynvml.NVML_ERROR_NO_PERMISSION)),
    Fault("driver not loaded", before=lambda board: board.fail(Call.INIT, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)),
)


class Meter:
    """One meter's process: it says that it is ready, waits for a line, meters a window and answers."""

    def __init__(self, name: str, board: Board, directory: Path) -> None:
        tools = directory / "bin"  # codecarbon asks whether there is an nvidia-smi before it looks for GPUs
        tools.mkdir(exist_ok=True)
        if not (tools / "nvidia-smi").exists():
            (tools / "nvidia-smi").symlink_to("/bin/true")
        own = {"PATH": f"{tools}:/usr/bin:/bin", "ETAMETER_RUN": str(directory), "HOME": str(directory)}
        environment = {**os.environ, **board.environment(), **own}
        self.process = subprocess.Popen(
            [sys.executable, *PEER, name, str(WINDOW_S)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self, seconds: float) -> dict[str, Any]:
        """The next line of JSON that it prints, whatever else it prints; an empty object where it dies or takes longer."""
        assert self.process.stdout is not None
        patience = threading.Timer(seconds, self.process.kill)
        patience.start()
        text = next((text for text in iter(self.process.stdout.readline, "") if text.startswith("{")), "{}")
        patience.cancel()
        return dict(json.loads(text))

    def begin(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def end(self) -> str:
        """Its last line of complaint."""
        self.process.kill()
        _, complaint = self.process.communicate()
        lines = [line.strip() for line in complaint.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def suffer(fault: Fault, names: list[str]) -> dict[str, Answer]:
    """What each meter answers, all of them on the same board at the same time."""
    with tempfile.TemporaryDirectory(prefix="etameter-faults-") as place:
        directory = Path(place)
        board = Board(directory / "board")
        board.set_power_w(0, [(time.monotonic_ns() - 3_600_000_000_000, WATTS)])
        fault.before(board)
        meters = {name: Meter(name, board, directory) for name in names}
        for meter in meters.values():
            meter.line(START_S)
        fault.within(board, time.monotonic_ns())
        for meter in meters.values():
            meter.begin()
        answers = {}
        for name, meter in meters.items():
            told = meter.line(ANSWER_S)
            complaint = meter.end()
            seconds = told.get("seconds") or WINDOW_S
            joules = told.get("joules")
            answers[name] = Answer(
                None if joules is None or not math.isfinite(joules) else float(joules),
                float(told.get("error_j") or 0.0),
                str(told.get("said") or complaint),
                WATTS * seconds,
            )
    return answers


def installed() -> Iterator[tuple[str, str]]:
    for name in METERS:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute: etameter alone, four faults")
    options = parser.parse_args()
    versions = dict(installed())
    names = ["etameter"] if options.quick else list(versions)
    faults = [
        fault
        for fault in FAULTS
        if not options.quick or fault.name in {"none", "counter reset", "counter frozen", "no permission"}
    ]
    answers: dict[str, dict[str, Answer]] = {}
    try:
        library()
    except OSError as error:
        print(f"the stand-in NVML needs a C compiler: {error}")
    else:
        for fault in faults:
            answers[fault.name] = suffer(fault, names)
            for name, answer in answers[fault.name].items():
                figure = "–" if answer.joules is None else f"{answer.joules:.0f} J"
                stated = f" ± {answer.error_j:.0f}" if answer.error_j else ""
                print(
                    f"{fault.name:22} {name:13} {answer.verdict:6} {figure}{stated} of {answer.true_j:.0f} J  {answer.said[:150]}",
                    flush=True,
                )

    def wrong(name: str) -> float | None:
        if not answers or name not in names:
            return None
        return float(sum(each[name].verdict == "wrong" for each in answers.values()))

    goals = [
        Goal(
            f"wrong_figures_{name.replace('-', '_')}",
            wrong(name),
            "faults",
            0.0 if name == "etameter" else None,
            "lower",
        )
        for name in METERS
    ]
    context = {
        "quick": options.quick,
        "versions": {name: versions[name] for name in names if name in versions},
        "faults": len(answers),
        "window_s": WINDOW_S,
        "watts": WATTS,
        "answers": {
            fault: {
                name: {
                    "verdict": answer.verdict,
                    "joules": None if answer.joules is None else round(answer.joules, 1),
                    "error_j": round(answer.error_j, 1),
                    "true_j": round(answer.true_j, 1),
                    "said": answer.said[:200],
                }
                for name, answer in each.items()
            }
            for fault, each in answers.items()
        },
    }
    finish("faults", "simulated", goals, context)


if __name__ == "__main__":
    main()
