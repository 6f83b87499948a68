"""What `make gpu-check` reports: whether its figures hold together, what was not measured, and all of it as text. Pure."""

import math
from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etameter import findings, playback
from etameter.costs import Costs
from etameter.findings import Check, Diagnosis
from etameter.ledger import RequestRow
from etameter.records import Balance
from etameter.work import TERMS

UNATTRIBUTED = 0.005
"""Share of the energy that a run without faults may leave unattributed."""
ROUNDING = 1e-6
FIT_OFF = 0.05
"""Share of the energy by which the fitted costs may miss the counter before it is worth a word."""


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
    versions: Mapping[str, str]
    load: Mapping[str, Any]
    checks: list[Check]
    phases: list[PhaseFigures]
    balance_j: Mapping[str, float]
    fits: Mapping[str, Mapping[str, Any]]
    """What a step costs and how well that is known, by device: see docs/method.md."""
    sampler: Mapping[str, float]
    not_measured: list[str]
    doctor: Diagnosis
    server: Any = field(default=None)
    """What the demo on a vLLM server found, with VLLM=1."""

    @property
    def sound(self) -> bool:
        return self.doctor.can_measure and all(check.verdict != "bad" for check in self.checks)


def judge(
    balances: Sequence[Balance],
    requests: Sequence[RequestRow],
    told: Sequence[Mapping[str, Any]],
    replayed: playback.Replay,
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
        _sensor_check(balances),
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


def _sensor_check(balances: Sequence[Balance]) -> Check:
    """What was reset, stale or missing may be little by the counter's own joules, and more in truth."""
    faults = Tally(cause for one in balances for cause in one.unattributed_j_by_cause if cause != "model_residual")
    if not faults:
        return Check("sensor", "good", "no interval was reset, stale, missing or implausible")
    listed = ", ".join(f"{number} × {cause}" for cause, number in sorted(faults.items()))
    remedy = "their energy isn't known, and phases with them have no figure: look at the driver's log (dmesg)"
    return Check("sensor", "note", f"intervals that can't be trusted: {listed}", remedy, dict(faults))


def _verdict(name: str, holds: bool, finding: str, remedy: str) -> Check:  # noqa: FBT001  # reads as a sentence
    return Check(name, "good" if holds else "bad", finding, None if holds else remedy)


def fit_check(costs: Mapping[str, Costs]) -> Check:
    """Whether the form that is fitted describes this board under this load."""
    if not costs or any(not each.intervals for each in costs.values()):
        return Check("fit", "note", "too few intervals to fit what a step costs", "run longer: SECONDS=")
    off = max(each.residual or 0.0 for each in costs.values())
    untold = sorted({term for each in costs.values() for term in each.unidentified}, key=TERMS.index)
    words = f"fitted costs miss the counter by {off:.1%} of the energy of busy intervals"
    words += f"; this load doesn't tell {', '.join(untold)}" if untold else ""
    remedy = "the model of costs doesn't describe this board well: please send us the recording"
    good = off <= FIT_OFF
    return Check("fit", "good" if good else "note", words, None if good else remedy, {"residual": off})


def fit_figures(costs: Costs) -> dict[str, Any]:
    return {
        "intervals": costs.intervals,
        "residual": costs.residual,
        "lag_ms": costs.lag_ns / 1e6,
        "lag_error_ms": costs.lag_error_ns / 1e6,
        "unidentified": costs.unidentified,
        "coefficients": dict(zip(TERMS, costs.energy.tolist(), strict=True)),
        "standard_errors": dict(zip(TERMS, costs.standard_errors.tolist(), strict=True)),
    }


def not_measured(diagnosis: Diagnosis, costs: Mapping[str, Costs], device: str, *, server: bool) -> Iterator[str]:
    """What a reader might take for checked, and isn't."""
    yield f"the board's own gain (± {findings.GAIN:.0%}): only a meter outside of the board tells it (etameter doctor --reference)"
    for gpu in diagnosis.gpus:
        if gpu.gpu_uuid not in costs:
            yield f"{gpu.gpu_uuid} under load: the load runs on one GPU"
            continue
        yield from (
            f"{check.name.replace('_', ' ')} of {gpu.gpu_uuid}: {check.finding}"
            for check in gpu.checks
            if check.verdict == "unknown"
        )
    if device == "cpu":
        yield "work of a GPU: the load ran on the CPU"
    yield "several GPUs working together, experts, adapters, drafts, prefix caching: the load is a dense decoder"
    if not server:
        yield "a server: VLLM=1 runs vLLM as well"


def server_check(served: Mapping[str, Any]) -> Check:
    """What the demo on a vLLM server found."""
    if "failed" in served:
        return Check("server", "bad", served["failed"], "run `etameter demo` by itself")
    energies = [one["energy"] for one in served["requests"]]
    joules = math.fsum(energy["energy_joules"] for energy in energies)
    words = f"{len(energies)} requests to vLLM took {joules:.1f} J, source={served['source']}"
    return Check("server", "good", words, None, {"energy_j": joules})


def as_text(report: Report, file: Path) -> str:
    """The report for a reader."""
    boards = ", ".join(f"{gpu.board_name}" for gpu in report.doctor.gpus)
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    lines = [
        f"etameter gpu-check of {boards}, {report.made_at}, source={report.source}",
        f"versions: {versions}",
        "load: {shape} on {device}, {layers} layers".format(**report.load),
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
    for uuid, fit in report.fits.items():
        lines.append(f"  {uuid}: lag {fit['lag_ms']:.0f} ± {fit['lag_error_ms']:.0f} ms, {fit['intervals']} intervals")
        for name, value in fit["coefficients"].items():
            doubt = "  not told by this load" if name in fit["unidentified"] else ""
            lines.append(f"    {name:<10}{value:>12.4g} ± {fit['standard_errors'][name]:.2g}{doubt}")
    lines.append("  sampler: " + ", ".join(f"{name} {value:.3g}" for name, value in report.sampler.items()))
    lines += ["", "not measured", *(f"  - {what}" for what in report.not_measured)]
    verdict = "the figures hold together" if report.sound else "the figures don't hold together: see what is marked X"
    return "\n".join([*lines, "", findings.as_text(report.doctor), "", f"{verdict}; recording: {file}"])
