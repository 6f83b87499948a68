"""Two runs of a comparison beside each other: other days, other machines, other models. Not paired, and often not comparable, which is said first.

What an arm costs in one run over what it costs in the other is a ratio like any other, its two variances added. What differs between two days as such, one run
of each can't tell.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from . import stats
from .pairing import Joules, shares_of_blocks
from .sample_size import LEAST_CORRECT, LEAST_REPEATS
from .sentences import marked, percent
from .stats import Cells, Ratio
from .tables import MIXED, PARTS, BlockRow, Outcome, Part, kept
from .verdict import source_of

WEIGHTY: Final[Mapping[str, str]] = {
    "model": "the model",
    "suite_hash": "the suite",
    "samples": "samples of a task",
    "max_tokens": "the most tokens of an answer",
    "temperature": "the temperature",
    "until_correct": "answers that a last turn may take",
    "prefix_cache": "the prefix cache",
    "loads": "the load",
    "boards": "the boards",
    "source": "where joules come from",
    "counter": "the counter",
}
"""What makes two runs not comparable if it differs, by its name in what a table is about."""
_OF_THE_MOMENT: Final = frozenset({"plan", "suite", "run", "began", "texts", "sessions"})
_OF_A_BOARD: Final = ("board", "power_limit_w", "times_energy")


@dataclass(frozen=True, slots=True)
class Taken:
    """A run: its tables, what they say they are about, and what to call it."""

    name: str
    about: Mapping[str, Any]
    blocks: Sequence[BlockRow]
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, slots=True)
class ArmAcross:
    """An arm in both runs, under the same load. Savings are of the second against the first."""

    part: Part
    arm: str
    joules_per_correct: tuple[float | None, float | None]
    accuracy: tuple[float | None, float | None]
    saving: float | None
    low: float | None
    high: float | None
    why_not: str | None


@dataclass(frozen=True, slots=True)
class Across:
    names: tuple[str, str]
    comparable: bool
    warnings: tuple[str, ...]
    """Why they aren't."""
    notes: tuple[str, ...]
    """What else differs."""
    arms: tuple[ArmAcross, ...]
    sentences: tuple[str, ...]


def compare(first: Taken, second: Taken, confidence: float = 0.95) -> Across:
    """Each part and arm that both have."""
    if first.name == second.name:
        first, second = replace(first, name=f"{first.name} (first)"), replace(second, name=f"{second.name} (second)")
    warnings = (*_differences(first, second), *_other_arms(first, second))
    notes = tuple(_notes(first, second))
    arms = tuple(_arms(first, second, confidence))
    source = source_of([*first.blocks, *second.blocks], [*first.outcomes, *second.outcomes])
    names = first.name, second.name
    return Across(names, not warnings, warnings, notes, arms, marked(_said(names, warnings, arms), source))


def _differences(first: Taken, second: Taken) -> Iterator[str]:
    for key, name in WEIGHTY.items():
        here, there = (_stated(taken, key) for taken in (first, second))
        if here is None or there is None:
            unknown = " nor ".join(taken.name for taken, told in ((first, here), (second, there)) if told is None)
            yield f"{name}: not told by {unknown}"
        elif here != there:
            yield f"{name}: {here} in {first.name}, {there} in {second.name}"


def _stated(taken: Taken, key: str) -> Any:
    told = taken.about.get(key)
    if key == "model" and told is not None:
        fingerprint = taken.about.get("server", {}).get("model_fingerprint")
        return told if fingerprint is None else f"{told} ({fingerprint})"
    if key == "boards" and told is not None:
        return [{name: board[name] for name in _OF_A_BOARD if name in board} for board in told]
    return told


def _other_arms(first: Taken, second: Taken) -> Iterator[str]:
    hashes = [{one.arm: one.arm_hash for one in taken.outcomes} for taken in (first, second)]
    for arm in sorted(hashes[0].keys() & hashes[1].keys()):
        if hashes[0][arm] != hashes[1][arm]:
            yield f"the arm {arm}: its text is {hashes[0][arm]} in {first.name}, {hashes[1][arm]} in {second.name}"
    if not hashes[0].keys() & hashes[1].keys():
        yield "they have no arm in common"


def _notes(first: Taken, second: Taken) -> Iterator[str]:
    for key in sorted((first.about.keys() & second.about.keys()) - WEIGHTY.keys() - _OF_THE_MOMENT):
        here, there = first.about[key], second.about[key]
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            for name in sorted(here.keys() | there.keys()):
                if here.get(name) != there.get(name):
                    yield f"{key} {name}: {here.get(name)}, {there.get(name)}"
        elif here != there:
            yield f"{key}: {here}, {there}"


def _arms(first: Taken, second: Taken, confidence: float) -> Iterator[ArmAcross]:
    for part in PARTS:
        sides = [_costs(taken, part) for taken in (first, second)]
        for arm in (name for name in sides[0] if name in sides[1]):
            before, after = sides[0][arm], sides[1][arm]
            saving = low = high = why_not = None
            if before.log is None or after.log is None:
                short = [taken.name for taken, cost in ((first, before), (second, after)) if cost.log is None]
                why_not = f"too few repeats or correct answers in {' and '.join(short)}"
            else:
                saving, low, high = _savings(before.log, after.log, confidence)
            yield ArmAcross(
                part,
                arm,
                (before.joules_per_correct, after.joules_per_correct),
                (before.accuracy, after.accuracy),
                saving,
                low,
                high,
                why_not,
            )


@dataclass(frozen=True, slots=True)
class _Cost:
    """An arm of one run by itself."""

    joules_per_correct: float | None
    accuracy: float
    log: Ratio | None
    """Of joules per correct answer; None with too few repeats or correct answers."""


def _costs(taken: Taken, part: Part) -> dict[str, _Cost]:
    there = [block for block in taken.blocks if block.part == part]
    blocks, outcomes = kept(there, [one for one in taken.outcomes if one.part == part])
    of_block = shares_of_blocks(blocks, outcomes)
    mixed = any(block.arm == MIXED for block in there)
    repeats = {(block.block, block.attempt): block.repeat for block in blocks}
    return {
        arm: _cost(
            [one for one in outcomes if one.arm == arm], lambda one: one.energy_j if mixed else of_block(one), repeats
        )
        for arm in dict.fromkeys(one.arm for one in outcomes)
    }


def _cost(held: Sequence[Outcome], joules: Joules, repeats: Mapping[tuple[int, int], int]) -> _Cost:
    spent = [each for one in held if (each := joules(one)) is not None]
    right = np.array([float(one.correct is True) for one in held])
    known = len(spent) == len(held)
    per_correct = math.fsum(spent) / right.sum() if known and right.any() else None
    labels = np.unique([repeats[one.block, one.attempt] for one in held], return_inverse=True)[1]
    log = None
    if known and labels.max() + 1 >= LEAST_REPEATS and right.sum() >= LEAST_CORRECT:
        # Beside a control that always costs 1 and is always right, the ratio is the arm's own.
        ones = np.ones(len(held))
        log = stats.ratio(Cells(labels, np.arange(len(held)), np.stack([ones, spent]), np.stack([ones, right])))
    return _Cost(per_correct, float(right.mean()), log)


def _savings(before: Ratio, after: Ratio, confidence: float) -> tuple[float, float, float] | tuple[None, None, None]:
    """Of the second, with its interval; the degrees of freedom are Satterthwaite's."""
    variances = [float(each.standard_error) ** 2 for each in (before, after)]
    if not sum(variances) > 0:
        return None, None, None
    degrees = sum(variances) ** 2 / sum(
        variance**2 / float(each.degrees) for variance, each in zip(variances, (before, after), strict=True)
    )
    change = Ratio(after.log - before.log, np.sqrt(sum(variances)), np.asarray(degrees))
    low, high = change.interval(confidence)
    if not (math.isfinite(low) and math.isfinite(high)):
        return None, None, None
    return 1 - math.exp(float(change.log)), 1 - math.exp(float(high)), 1 - math.exp(float(low))


def _said(names: tuple[str, str], warnings: Sequence[str], arms: Sequence[ArmAcross]) -> tuple[str, ...]:
    said = []
    if warnings:
        said.append(f"{names[0]} and {names[1]} are not comparable; what differs may be all that is seen below.")
    for each in arms:
        if each.saving is None or each.low is None or each.high is None:
            said.append(f"{each.arm}, {each.part}: {each.why_not or 'no interval follows from these runs'}.")
            continue
        way = "less" if each.saving >= 0 else "more"
        told = "" if each.low > 0 or each.high < 0 else ", which is not told apart from none"
        said.append(
            f"{each.arm}, {each.part}: {percent(abs(each.saving))} {way} joules per correct answer in {names[1]} than in {names[0]}, "
            f"as a saving [{percent(each.low)}, {percent(each.high)}]{told}."
        )
    return tuple(said)
