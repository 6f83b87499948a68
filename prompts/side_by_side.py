"""η of two arms by every method that a run has, beside each other, and what the seed's formula makes of the η that is measured by tasks.

A method's reliability is its squared correlation with η_task over prompts, *within* the arm: over both arms it would find the difference between them.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from etameter.errors import SampleError
from etameter.slack.reliability import Trust, compare
from etameter.slack.task import LEAST_PROMPTS, EtaTask, Pool, Reference, Sample, refer, score

from .analysis import EtaOf
from .plan import Plan
from .stats import t_quantile
from .tables import Outcome

_UNKNOWN_TOKENS: Final = "the tokens of some conversations are not known"
_Read = Callable[[Outcome], float | None]
_METHODS: Final[tuple[tuple[str, _Read, Literal["at most"] | None, str], ...]] = (
    ("fast", lambda one: one.eta_lenient_at_most, "at most", "an upper bound on lenient η, of last answers"),
    (
        "lexical",
        lambda one: None if one.lexical_slack is None else 1 - one.lexical_slack,
        "at most",
        "what word lists leave, by characters of last answers: hardly a bound, and no η",
    ),
    (
        "deletion",
        lambda one: one.eta_deletion,
        None,
        "of correct last answers: what can't go without the checker failing",
    ),
    (
        "minimal",
        lambda one: one.eta_minimal,
        "at most",
        "of correct code: what it is without prose, comments, docstrings and type hints",
    ),
)


@dataclass(frozen=True, slots=True)
class Scored:
    """η_task of each arm; without a reference, why there is none."""

    reference: Reference | None
    by_arm: dict[str, EtaTask]
    by_prompt: dict[str, dict[str, float]]
    """Arm → prompt → η."""
    why_not: str


def score_tasks(plan: Plan, outcomes: Sequence[Outcome]) -> Scored:
    """By the conversations that count of one part, T* pooled over its arms."""
    if any(one.output_tokens is None for one in outcomes):
        return Scored(None, {}, {}, _UNKNOWN_TOKENS)
    samples = [
        Sample(
            prompt=one.task,
            arm=one.arm,
            output_tokens=one.output_tokens or 0,
            correct=one.correct,
            energy_j=one.energy_j,
            truncated=one.finish_reason == "length",
        )
        for one in outcomes
    ]
    try:
        reference = refer(samples, Pool(plan.suite, plan.suite_version, plan.suite_hash, plan.model))
    except SampleError as error:
        return Scored(None, {}, {}, str(error))
    return Scored(reference, score(samples, reference), _by_prompt(samples, reference), "")


def etas(scored: Scored, outcomes: Sequence[Outcome], control: str, arm: str) -> tuple[EtaOf, ...]:
    """η_task first; a method that found nothing under this arm is left out."""
    found = [_task(scored, control, arm)]
    for method, read, bound, note in _METHODS:
        sides = [[(one, read(one)) for one in outcomes if one.arm == name] for name in (control, arm)]
        known = [[(one, value) for one, value in side if value is not None] for side in sides]
        if not known[1]:
            continue
        values = [_by_tokens(side) for side in known]
        half = _half_width(known[1])
        told = _reliability(known[1], scored.by_prompt.get(arm, {}))
        eta = values[1]
        found.append(
            EtaOf(
                method=method,
                control=values[0],
                arm=eta,
                low=None if half is None or eta is None else max(eta - half, 0.0),
                high=None if half is None or eta is None else min(eta + half, 1.0),
                bound=bound,
                conversations=len(known[1]),
                reliability=told.agreement,
                bias=told.bias,
                note=note,
                reliability_low=told.agreement_low,
                reliability_high=told.agreement_high,
            )
        )
    return tuple(found)


def predict(scored: Scored, control: str, arm: str) -> tuple[float, ...] | None:
    """1 − η_before/η_after: with all arms in the pool of T*, and then without each in turn. None without η."""
    before, after = scored.by_arm.get(control), scored.by_arm.get(arm)
    if before is None or after is None:
        return None
    pairs = [(before.eta, after.eta), *((before.without[out], after.without[out]) for out in before.without)]
    told = [1 - low / high for low, high in pairs if low is not None and high]
    return tuple(told) if len(told) == len(pairs) else None


def _task(scored: Scored, control: str, arm: str) -> EtaOf:
    before, after = scored.by_arm.get(control), scored.by_arm.get(arm)
    if before is None or after is None:
        return EtaOf("task", None, None, None, None, None, 0, None, None, f"none: {scored.why_not}")
    half, eta = after.half_width, after.eta
    return EtaOf(
        method="task",
        control=before.eta,
        arm=eta,
        low=None if half is None or eta is None else max(eta - half, 0.0),
        high=None if half is None or eta is None else min(eta + half, 1.0),
        bound=None,
        conversations=after.samples,
        reliability=None,
        bias=None,
        note=str(scored.reference),
    )


def _by_prompt(samples: Sequence[Sample], reference: Reference) -> dict[str, dict[str, float]]:
    cells: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.prompt not in reference.not_run:
            cells[sample.arm, sample.prompt].append(sample)
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for (arm, prompt), held in cells.items():
        limit = reference.t_star[prompt]
        total = sum(sample.output_tokens for sample in held)
        required = sum(min(sample.output_tokens, limit or 0) for sample in held if sample.correct)
        if total:
            found[arm][prompt] = required / total
    return dict(found)


def _by_tokens(known: Sequence[tuple[Outcome, float]]) -> float | None:
    """Mean, weighted by output tokens; None where there are none."""
    tokens = sum(one.output_tokens or 0 for one, _ in known)
    return sum(value * (one.output_tokens or 0) for one, value in known) / tokens if tokens else None


def _of_prompts(known: Sequence[tuple[Outcome, float]]) -> dict[str, list[tuple[Outcome, float]]]:
    prompts: defaultdict[str, list[tuple[Outcome, float]]] = defaultdict(list)
    for one, value in known:
        prompts[one.task].append((one, value))
    return prompts


def _half_width(known: Sequence[tuple[Outcome, float]]) -> float | None:
    """Of the 95 % interval of the weighted mean, by linearisation: a prompt is one draw."""
    prompts = _of_prompts(known)
    mean = _by_tokens(known)
    if len(prompts) < LEAST_PROMPTS or mean is None:
        return None
    tokens = sum(one.output_tokens or 0 for one, _ in known)
    squares = sum(
        sum((value - mean) * (one.output_tokens or 0) for one, value in held) ** 2 for held in prompts.values()
    )
    return (
        float(t_quantile(0.975, len(prompts) - 1.0)) * math.sqrt(squares * len(prompts) / (len(prompts) - 1)) / tokens
    )


def _reliability(known: Sequence[tuple[Outcome, float]], truth: dict[str, float]) -> Trust:
    """Of this method, against η_task over prompts; nothing with too few of them."""
    told = {prompt: _by_tokens(held) for prompt, held in _of_prompts(known).items()}
    both = [(value, truth[prompt]) for prompt, value in told.items() if value is not None and prompt in truth]
    return compare(both) if len(both) >= LEAST_PROMPTS else Trust(len(both), None, None, None)
