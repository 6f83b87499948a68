"""The facts of a model on a server: what its tokens and answers cost, how right they are, and how much of them was required.

Of a comparison, joules of tokens are attributed and joules of answers are what the counters grew by, idle power and all. Intervals are 95 %: Student's on the ratio of sums over
blocks, its variance linearised (Cochran, Sampling Techniques, 1977, section 6.3). They are of chance; a board's gain error is apart from them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from etameter.errors import InputError
from etameter.footprint import JOULES_PER_WH, Footprint
from etameter.prompts.nightly.night import Night
from etameter.prompts.nightly.rows import Figure
from etameter.prompts.stats import t_quantile
from etameter.prompts.tables import BlockRow, Outcome, kept
from etameter.records import Source
from etameter.slack.labels import NAMES

THOUSAND: Final = 1000.0
_DAY: Final = len("2026-11-01")


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    value: float | None
    """None: not known, for the reason that `remark` gives."""
    unit: str
    source: Source | None
    """Of the joules in it; None where there are none."""
    low: float | None = None
    high: float | None = None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is on the label."""

    model: str
    hardware: str
    server: str
    date: str
    """Of the run, ISO 8601."""
    asked: str
    """Which tasks, in which way, under which load."""
    source: Source
    facts: tuple[Fact, ...]
    slack: tuple[tuple[str, float], ...]
    """Share of output tokens that are slack, by category, largest first: an estimate, where η "at most" is a bound."""
    factors: tuple[str, ...]
    """Where money and CO2 come from."""
    run: str


def of_comparison(
    analysis: Mapping[str, Any],
    about: Mapping[str, Any],
    blocks: Sequence[BlockRow],
    outcomes: Sequence[Outcome],
    arm: str | None,
    footprint: Footprint,
) -> Facts:
    """Of one arm of a run of `etameter ab`, the control by default; of its first headline part.

    Raises:
        InputError: the run has no such arm, or nothing whose joules are a result.
    """
    parts = [part for part in analysis["parts"] if part["headline"]]
    if not parts or analysis["source"] is None:
        raise InputError("the run has no measured headline part", "name one whose arms were asked by themselves")
    part, wanted = parts[0], arm or analysis["control"]
    good, counted = kept(blocks, outcomes)
    ran = [row for row in good if (row.part, row.arm) == (part["part"], wanted)]
    held = [one for one in counted if (one.part, one.arm) == (part["part"], wanted)]
    if not ran:
        there = ", ".join(each["arm"] for each in part["arms"])
        raise InputError(f"the run has no arm {wanted}", f"it has {there}")
    source: Source = analysis["source"]
    answers = [*_of_tokens(ran, held, source), *_of_answers(ran, held, source)]
    return Facts(
        model=analysis["model"],
        hardware=", ".join(sorted({str(board["board"]) for board in about.get("boards", [])})) or "not known",
        server=f"vLLM {about.get('server', {}).get('version') or 'of unknown version'}",
        date=str(about.get("began", ""))[:_DAY],
        asked=f"{analysis['suite']}, arm {wanted}, {part['part']}, {len(held)} conversations",
        source=source,
        facts=(*answers, *_of_quality(held), *_of_world(answers, footprint)),
        slack=_slack(held),
        factors=_factors(footprint),
        run=str(about.get("run", "")),
    )


def of_night(night: Night, stage: str, footprint: Footprint) -> Facts:
    """Of one stage of a run of `etameter nightly`.

    Raises:
        InputError: the night has no such stage, or knows no joules.
    """
    run = night.run
    figures = {figure.metric: figure for figure in night.figures if figure.stage == stage}
    if not figures or run.source is None:
        there = ", ".join(dict.fromkeys(figure.stage for figure in night.figures))
        raise InputError(f"the night has no stage {stage}", f"it has {there or 'none'}")
    answers = [
        made
        for name, metric, factor, unit in _OF_NIGHT
        if (made := _from_figure(name, figures.get(metric), factor, unit)) is not None
    ]
    shares = [
        replace(made, source=None)
        for name, metric in _SHARES
        if (made := _from_figure(name, figures.get(metric), 1.0, "")) is not None
    ]
    return Facts(
        model=run.model or "not known",
        hardware=", ".join(sorted({str(board.get("board")) for board in run.hardware.get("boards", [])}))
        or "not known",
        server=f"vLLM {run.vllm or 'of unknown version'}",
        date=run.began[:_DAY],
        asked=f"{run.name}, stage {stage}",
        source=run.source,
        facts=(*answers, *shares, *_of_world(answers, footprint)),
        slack=(),
        factors=_factors(footprint),
        run=run.run_id,
    )


PROMPT: Final = "Energy per 1,000 prompt tokens"
OUTPUT: Final = "Energy per 1,000 output tokens"
ANSWER: Final = "Energy per answer"
CORRECT: Final = "Energy per correct answer"
_OF_NIGHT: Final = (
    (PROMPT, "j_per_prompt_token", THOUSAND / JOULES_PER_WH, "Wh"),
    (OUTPUT, "j_per_output_token", THOUSAND / JOULES_PER_WH, "Wh"),
    (ANSWER, "j_per_question", 1 / JOULES_PER_WH, "Wh"),
    (CORRECT, "j_per_correct_answer", 1 / JOULES_PER_WH, "Wh"),
)
_SHARES: Final = (
    ("Correct answers", "accuracy"),
    ("Required output tokens (η), at most", "eta_lenient_at_most"),
    ("Required output tokens (η), by deletion", "eta_deletion"),
    ("Required output tokens (η), by task", "eta_task"),
)


def _of_tokens(ran: Sequence[BlockRow], held: Sequence[Outcome], source: Source) -> Iterator[Fact]:
    """Attributed: the first token of each turn carries no output energy, and cached ones no prompt energy."""
    scale = THOUSAND / JOULES_PER_WH
    yield _ratio(PROMPT, ran, held, lambda one: one.prompt_j, _computed, scale, "Wh", source)
    yield _ratio(OUTPUT, ran, held, lambda one: one.output_j, _after_first, scale, "Wh", source)


def _of_answers(ran: Sequence[BlockRow], held: Sequence[Outcome], source: Source) -> Iterator[Fact]:
    """By the counters."""
    energies = [row.energy_j for row in ran]
    for name, counts, remark in (
        (ANSWER, [sum(_of(row, one) for one in held) for row in ran], _typical(held)),
        (CORRECT, [row.correct for row in ran], "wrong answers' energy included"),
    ):
        yield _fact(name, energies, [float(count) for count in counts], 1 / JOULES_PER_WH, "Wh", source, remark)


def _of_quality(held: Sequence[Outcome]) -> Iterator[Fact]:
    checked = [one.correct for one in held if one.correct is not None]
    yield Fact(
        "Correct answers", sum(checked) / len(checked) if checked else None, "", None, remark=f"of {len(checked)}"
    )
    for name, etas in (
        ("Required output tokens (η), at most", [(one.eta_lenient_at_most, one.output_tokens) for one in held]),
        ("Required output tokens (η), by deletion", [(one.eta_deletion, one.output_tokens) for one in held]),
    ):
        known = [(eta, tokens) for eta, tokens in etas if eta is not None and tokens]
        tokens = sum(count for _, count in known)
        value = math.fsum(eta * count for eta, count in known) / tokens if tokens else None
        yield Fact(name, value, "", None, remark=f"known of {len(known)} of {len(held)} answers")


def _of_world(answers: Sequence[Fact], footprint: Footprint) -> Iterator[Fact]:
    """CO2 and money of 1,000 answers, where factors are configured."""
    answer = next((fact for fact in answers if fact.name == ANSWER), None)
    if answer is None or answer.value is None:
        return
    ways: tuple[tuple[str, str, Callable[[float], float | None]], ...] = (
        ("CO2e per 1,000 answers", "g", footprint.co2e_g),
        ("Electricity per 1,000 answers", footprint.currency or "", footprint.cost),
    )
    for name, unit, of in ways:
        value, low, high = (
            None if wh is None else of(THOUSAND * JOULES_PER_WH * wh) for wh in (answer.value, answer.low, answer.high)
        )
        if value is not None:
            yield Fact(name, value, unit, answer.source, low, high)


def _slack(held: Sequence[Outcome]) -> tuple[tuple[str, float], ...]:
    known = [one for one in held if one.eta_lenient_at_most is not None and one.output_tokens]
    tokens = sum(one.output_tokens or 0 for one in known)
    found: dict[str, float] = {}
    for one in known:
        for category, count in one.slack.items():
            found[category] = found.get(category, 0.0) + count
    names = {str(label): name for label, name in NAMES.items()}
    named = [(names.get(category, category), count / tokens) for category, count in found.items()]
    return tuple(sorted(named, key=lambda each: -each[1]))


def _factors(footprint: Footprint) -> tuple[str, ...]:
    return tuple(
        f"{name} {factor.value:g} {factor.unit} ({factor.source}{f', {factor.year}' if factor.year else ''})"
        for name, factor in footprint.factors()
    )


def _from_figure(name: str, figure: Figure | None, factor: float, unit: str) -> Fact | None:
    if figure is None:
        return None
    value, low, high = (None if each is None else factor * each for each in (figure.value, figure.low, figure.high))
    return Fact(name, value, unit, figure.source, low, high, figure.reason)


def _ratio(
    name: str,
    ran: Sequence[BlockRow],
    held: Sequence[Outcome],
    above: Callable[[Outcome], float | None],
    below: Callable[[Outcome], float | None],
    scale: float,
    unit: str,
    source: Source,
) -> Fact:
    """Sums over the conversations of each block."""
    known = [one for one in held if above(one) is not None and below(one) is not None]
    sums = [[math.fsum(of(one) or 0.0 for one in known if _of(row, one)) for row in ran] for of in (above, below)]
    remark = "" if len(known) == len(held) else f"known of {len(known)} of {len(held)} conversations"
    return _fact(name, sums[0], sums[1], scale, unit, source, remark)


def _fact(
    name: str,
    above: Sequence[float | None],
    below: Sequence[float],
    scale: float,
    unit: str,
    source: Source,
    remark: str,
) -> Fact:
    pairs = [(one, other) for one, other in zip(above, below, strict=True) if one is not None]
    total = math.fsum(other for _, other in pairs)
    if len(pairs) < len(above) or total <= 0:
        return Fact(
            name,
            None,
            unit,
            source,
            remark="not all blocks have joules" if len(pairs) < len(above) else "there is nothing to divide by",
        )
    value = math.fsum(one for one, _ in pairs) / total
    if len(pairs) == 1:
        return Fact(name, scale * value, unit, source, remark=f"{remark}; one block, no interval".removeprefix("; "))
    residuals = np.array([one - value * other for one, other in pairs])
    error = math.sqrt(len(pairs) / (len(pairs) - 1) * float((residuals**2).sum())) / total
    half = float(t_quantile(0.975, len(pairs) - 1)) * error
    return Fact(name, scale * value, unit, source, scale * max(value - half, 0.0), scale * (value + half), remark)


def _of(row: BlockRow, one: Outcome) -> bool:
    return (row.block, row.attempt) == (one.block, one.attempt)


def _computed(one: Outcome) -> float | None:
    return (
        None if one.prompt_tokens is None or one.cached_tokens is None else float(one.prompt_tokens - one.cached_tokens)
    )


def _after_first(one: Outcome) -> float | None:
    return None if one.output_tokens is None else float(max(one.output_tokens - one.turns, 0))


def _typical(held: Sequence[Outcome]) -> str:
    lengths = sorted(one.output_tokens for one in held if one.output_tokens is not None)
    return f"median {lengths[len(lengths) // 2]} output tokens" if lengths else ""
