"""From the windows of a stage to its figures, each with an interval, or with the reason why it is not known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from etameter.records import Source

from .estimates import Estimate, Statistic, estimate, quantile, ratio
from .metrics import METRICS
from .rows import Figure
from .windows import Reply, Window

WH_J: Final = 3600.0
LEAST_KNOWN: Final = 0.9
"""Of a stage's receipts; with fewer settled ones nothing is said of attributed joules."""

PEAK_FLOPS: Final[Mapping[str, float]] = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIE": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Dense bf16 operations per second by NVIDIA's data sheets; the first name that a board's has in it counts."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What model FLOPs per second are compared with."""

    parameters: int | None
    """That a token passes; None where the engine doesn't tell the model's shape."""
    peak_flops: float | None
    why_not: str = ""
    """Why there is no peak."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request has to keep to count as goodput."""

    ttft_s: float
    itl_s: float

    def kept(self, reply: Reply) -> bool:
        ttft_s, itl_s = reply.ttft_s, reply.itl_s
        return reply.failure is None and ttft_s is not None and ttft_s <= self.ttft_s and (itl_s or 0.0) <= self.itl_s


def machine_of(parameters: int | None, boards: Sequence[str], source: Source, kind: str) -> Machine:
    """`boards` are the names of all that compute; `kind` is that of their counters."""
    if kind == "rapl":
        return Machine(parameters, None, "a CPU computes here, whose peak no data sheet of a board gives")
    if source == "simulated":
        return Machine(parameters, None, "the board is simulated: what computes is something else")
    peaks = [next((peak for name, peak in PEAK_FLOPS.items() if name in board.upper()), None) for board in boards]
    known = [peak for peak in peaks if peak is not None]
    if not known or len(known) < len(peaks):
        return Machine(parameters, None, f"the peak of {', '.join(sorted(set(boards)))} is not known here")
    if parameters is None:
        return Machine(None, None, "the engine doesn't tell the shape of its model")
    return Machine(parameters, sum(known))


def of_load(
    stage: str, windows: Sequence[Window], source: Source, machine: Machine, limits: Limits, why_not: str = ""
) -> list[Figure]:
    """Every figure of a stage under load, from the windows that count; `why_not` says why there are none."""
    make = _Maker(stage, source, windows, why_not)
    joules, tokens = _joules, _tokens
    make("j_per_token", ratio(joules, tokens))
    make("wh_per_token", ratio(lambda one: _over(joules(one), WH_J), tokens))
    make("tokens_per_s_per_w", ratio(tokens, joules))
    make("j_per_question", ratio(joules, lambda one: len(one.answered)))
    make("j_per_correct_answer", ratio(joules, lambda one: one.correct), why=_unchecked(windows))
    make("goodput_per_w", ratio(lambda one: sum(limits.kept(reply) for reply in one.ended), joules))
    make("power_w", ratio(joules, _seconds))
    make("tokens_per_s", ratio(tokens, _seconds))
    make("requests_per_s", ratio(lambda one: len(one.answered), _seconds))
    _attributed(make, windows)
    for name, values in (("ttft", _ttfts), ("itl", _itls)):
        for part in (50, 99):
            make(f"{name}_p{part}_s", quantile(values, part / 100), why="no answer came in parts")
    make("accuracy", ratio(lambda one: one.correct, lambda one: len(one.ended)), share=True, why=_unchecked(windows))
    make("failures", ratio(lambda one: one.failures, lambda one: len(one.ended)), share=True)
    _etas(make)
    flops, why = _flops(machine)
    make("mfu", flops, why=why)
    return make.figures


def of_idle(stage: str, windows: Sequence[Window], source: Source) -> list[Figure]:
    make = _Maker(stage, source, windows, "")
    make("power_w", ratio(_joules, _seconds))
    return make.figures


def unknown(stage: str, metric: str, source: Source, reason: str) -> Figure:
    return Figure(stage, metric, METRICS[metric].unit, None, None, None, 0, source, reason)


def known(stage: str, metric: str, source: Source, found: Estimate, reason: str = "") -> Figure:
    return Figure(stage, metric, METRICS[metric].unit, found.value, found.low, found.high, found.n, source, reason)


class _Maker:
    """Makes the figures of one stage."""

    def __init__(self, stage: str, source: Source, windows: Sequence[Window], why_not: str) -> None:
        self._stage, self._source, self._windows, self._why_not = stage, source, windows, why_not
        self.figures: list[Figure] = []

    def __call__(
        self, metric: str, statistic: Statistic[Window] | None, *, share: bool = False, why: str = "", note: str = ""
    ) -> None:
        """`why` says why it may not be known, `note` what has to be known of it."""
        found = estimate(self._windows, statistic, share=share) if statistic and self._windows else None
        if found is None:
            reason = self._why_not or why or "nothing of the kind came in the windows that count"
            self.figures.append(unknown(self._stage, metric, self._source, reason))
        else:
            self.figures.append(known(self._stage, metric, self._source, found, note))


def _attributed(make: _Maker, windows: Sequence[Window]) -> None:
    """By receipts, of requests that ended in a window."""
    answered = [reply for one in windows for reply in one.answered]
    settled = [reply for reply in answered if _settled(reply)]
    note = "" if len(settled) == len(answered) else f"of {len(settled)} of {len(answered)} receipts, that have settled"
    if not answered or len(settled) < LEAST_KNOWN * len(answered):
        why = f"{len(settled)} of {len(answered)} requests have a receipt that has settled"
        for metric in ("j_per_prompt_token", "j_per_output_token", "j_per_request"):
            make(metric, None, why=why)
        return

    def of(key: str) -> Callable[[Window], float | None]:
        return lambda one: _sum([_energy(reply, key) for reply in one.answered if _settled(reply)])

    def count(number: Callable[[Reply], int]) -> Callable[[Window], float]:
        return lambda one: sum(number(reply) for reply in one.answered if _settled(reply))

    prompt, later = count(lambda reply: reply.prompt_tokens or 0), count(lambda reply: max(reply.output_tokens - 1, 0))
    why = "the receipts don't tell prompt and output apart"
    make("j_per_prompt_token", ratio(of("prompt_joules"), prompt), why=why, note=note)
    make("j_per_output_token", ratio(of("output_joules"), later), why=why, note=note)
    make("j_per_request", ratio(of("energy_joules"), count(lambda _: 1)), note=note)


def _etas(make: _Maker) -> None:
    """Means over answers, weighted by their tokens where they are of tokens."""
    for metric in ("eta_lenient_at_most", "eta_deletion"):
        why = "no answer that counts was looked at by this method"
        make(metric, ratio(_weighted(metric), _weight(metric)), share=True, why=why)
    make("lexical_slack", ratio(_weighted("lexical_slack"), _weight("lexical_slack")), share=True)
    make("eta_task", None, why="a stage asks each task too seldom: it takes the comparison with 8 samples or more")


def _weighted(name: str) -> Callable[[Window], float]:
    return lambda one: sum(
        getattr(reply, name) * reply.output_tokens for reply in one.ended if getattr(reply, name) is not None
    )


def _weight(name: str) -> Callable[[Window], float]:
    return lambda one: sum(reply.output_tokens for reply in one.ended if getattr(reply, name) is not None)


def _flops(machine: Machine) -> tuple[Statistic[Window] | None, str]:
    """Two operations a parameter and token; attention's own, which grow with the context, are left out."""
    parameters, peak = machine.parameters, machine.peak_flops
    if peak is None or parameters is None:
        return None, machine.why_not
    return (
        ratio(lambda one: 2.0 * parameters * (one.prompt_tokens + one.output_tokens), lambda one: peak * one.seconds),
        "",
    )


def _unchecked(windows: Sequence[Window]) -> str:
    if any(one.correct is not None for one in windows):
        return "no answer was correct"
    return "nothing is checked in this stage"


def _joules(one: Window) -> float | None:
    return one.energy_j


def _tokens(one: Window) -> float:
    return one.output_tokens


def _seconds(one: Window) -> float:
    return one.seconds


def _ttfts(one: Window) -> list[float]:
    return [reply.ttft_s for reply in one.answered if reply.ttft_s is not None]


def _itls(one: Window) -> list[float]:
    return [reply.itl_s for reply in one.answered if reply.itl_s is not None]


def _over(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _settled(reply: Reply) -> bool:
    return bool(reply.energy and reply.energy.get("settled"))


def _energy(reply: Reply, key: str) -> float | None:
    value = None if reply.energy is None else reply.energy.get(key)
    return None if value is None else float(value)


def _sum(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) if len(given) == len(values) else None
