"""What the slack brake saved in a comparison of an arm with itself braked, and what it spoiled: the report without which no arm is braked.

Damage is bounded twice. By the tasks' checkers: how much lower the accuracy of the braked arm may be, by the interval of the comparison. And by a judge of
the answers that were not braked: on each of them the brake is tried as if it were being written; it is spoiled where something came after the
end that the judge takes for required, or could not decide on.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from etameter.answers import rows, write
from etameter.errors import ExperimentError
from etameter.serving.brakes import FORMAT
from etameter.slack.brake import Brake, identity

from . import journal, results
from .analysis import AccuracyOf, Saving
from .arms import BRAKED
from .comparison import compare
from .pairing import shares_of_blocks
from .plan import Plan
from .tables import HEADLINE, Outcome, kept

CONFIDENCE: Final = 0.95
JUDGED: Final = '{"id", "spans": [[start, end, label, p_required, p_slack], …]}, of etameter eta audit'
_EXACT: Final = 60


@dataclass(frozen=True, slots=True)
class Ended:
    """What the brake would have made of answers that were not braked."""

    answers: int
    ended: int
    spoiled: int
    prompts: int
    at_most: float
    """The share of prompts of which an answer is spoiled, by its upper bound (Clopper and Pearson, 95 %). Of prompts, because answers to the same one are alike."""


@dataclass(frozen=True, slots=True)
class Report:
    """Of one arm with one model."""

    report: str
    format: int
    arm: str
    model: str
    detectors: str
    plan_hash: str
    suite: str
    part: str
    conversations: int
    """Under the brake."""
    braked: Mapping[str, int]
    """Cause → answers that it ended."""
    saving: Saving | None
    """Of joules per correct answer."""
    accuracy: AccuracyOf | None
    judged: Ended | None
    damage_at_most: float | None
    """The larger of both bounds; None where either isn't known."""
    why_not: str | None
    """Why there is no saving."""


def measure(run: Path, judged: Path | None) -> Report:
    """Of a run of `etameter ab` with an arm and the same braked, in its first part whose blocks have one arm each.

    Raises:
        EtameterError: there is no such run, it was braked by other detectors than this version's, or what is judged is not of its answers.
    """
    plan, arm = _planned(run)
    told = results.taken(run)
    part = next((part for part in HEADLINE if any(block.part == part for block in told.blocks)), None)
    if part is None:
        raise ExperimentError(f"{run} has no part at a rate or a concurrency", "run one: it is what the joules are of")
    blocks, outcomes = kept(
        [block for block in told.blocks if block.part == part], [one for one in told.outcomes if one.part == part]
    )
    found = compare(plan, blocks, outcomes, ("fully loaded", shares_of_blocks(blocks, outcomes)), arm, arm + BRAKED)
    under = [one for one in outcomes if one.arm == arm + BRAKED]
    _refuse_other_detectors(run, under)
    seen = None if judged is None else _judged([one for one in outcomes if one.arm == arm], judged)
    bounds = [
        None if found.accuracy is None else max(-found.accuracy.low, 0.0),
        None if seen is None else seen.at_most,
    ]
    known = [bound for bound in bounds if bound is not None]
    return Report(
        report="brake",
        format=FORMAT,
        arm=arm,
        model=plan.model,
        detectors=identity(),
        plan_hash=plan.hash,
        suite=plan.suite,
        part=part,
        conversations=len(under),
        braked={cause: sum(one.braked == cause for one in under) for cause in ("closing", "repetition")},
        saving=found.saving,
        accuracy=found.accuracy,
        judged=seen,
        damage_at_most=max(known) if len(known) == len(bounds) else None,
        why_not=found.why_not,
    )


def _refuse_other_detectors(run: Path, under: Sequence[Outcome]) -> None:
    """What this version's would have done, which the judge's bound is of, says nothing of what was run with others."""
    ran = {one.detectors for one in under if one.turns} - {identity()}
    if ran:
        told = ", ".join(sorted(each or "unknown" for each in ran))
        raise ExperimentError(
            f"{run} was braked by other detectors than this version's {identity()}: {told}",
            "use the version that the server ran for all of it, or run it anew",
        )


def _planned(run: Path) -> tuple[Plan, str]:
    """The plan, and its arm that is there braked, too."""
    plan = journal.planned(run)
    pairs = [arm for arm in plan.arms if arm + BRAKED in plan.arms]
    if len(pairs) != 1:
        raise ExperimentError(
            f"{run} has {len(pairs)} arms that are there with the brake, too", f"run --arms NAME,NAME{BRAKED} --texts"
        )
    return plan, pairs[0]


def write_answers(run: Path, out: Path) -> int:
    """The answers that were not braked, for `etameter eta audit`; how many.

    Raises:
        EtameterError: the run has none, or kept no texts.
    """
    _, arm = _planned(run)
    told = results.taken(run)
    _, outcomes = kept(told.blocks, told.outcomes)
    lines = [
        {"id": _name(one), "prompt": one.prompt_text, "response": one.answer_text}
        for one in outcomes
        if one.arm == arm and one.answer_text
    ]
    if not lines:
        raise ExperimentError(f"{run} kept no texts", "run it with --texts")
    return write(out, lines, run / results.RUN_FILE)


def _name(one: Outcome) -> str:
    return f"{one.part} {one.block} {one.attempt} {one.task} {one.sample}"


def _judged(outcomes: Sequence[Outcome], file: Path) -> Ended:
    said = {str(row.get("id")): (line, row) for line, row in rows(file, JUDGED)}
    told = [(one, *said[_name(one)]) for one in outcomes if _name(one) in said and one.answer_text]
    if not told:
        raise ExperimentError(f"{file} judges no answer of the run", "judge what --answers-out wrote")
    ended, spoiled = 0, []
    for one, line, row in told:
        text = one.answer_text or ""
        end = end_of(one.prompt_text or "", text)
        if end is not None:
            ended += 1
            after = [required for until, required in _spans(row, f"{file}:{line}") if until > end]
            if any(required != 0.0 for required in after) or (text[end:].strip() and not after):
                spoiled.append(one.task)
    prompts = {one.task for one, _, _ in told}
    return Ended(len(told), ended, len(spoiled), len(prompts), most(len(set(spoiled)), len(prompts)))


def end_of(prompt: str, text: str) -> int | None:
    """Where the brake would have ended an answer that came word by word, in characters."""
    brake = Brake(prompt)
    at = 0
    for word in text.split(" "):
        at = min(at + len(word) + 1, len(text))
        if brake.feed(word + " ") is not None:
            return at if at < len(text) else None
    return None


def _spans(row: Mapping[str, Any], place: str) -> Iterator[tuple[int, float | None]]:
    for span in row.get("spans") or ():
        match span:
            case [int(), int(end), _, int() | float() | None as required, *_]:
                yield end, required
            case _:
                raise ExperimentError(f"{place} has the span {span!r}", f"give {JUDGED}")


def most(hits: int, of: int) -> float:
    """The upper end of the two-sided 95 % interval of a share (Clopper and Pearson 1934)."""
    low, high = hits / of, 1.0
    for _ in range(_EXACT):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(hits, of, middle) > (1 - CONFIDENCE) / 2 else (low, middle)
    return high


def _at_most(hits: int, of: int, share: float) -> float:
    """The chance of so many hits or fewer."""
    if share >= 1.0:
        return float(hits >= of)
    logs = [
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
        + k * math.log(share or 1.0) + (of - k) * math.log1p(-share)
        for k in range(hits + 1)
        if share > 0 or k == 0
    ]  # fmt: skip
    return math.fsum(map(math.exp, logs))


def text_of(report: Report) -> str:
    """In a few lines."""
    braked = ", ".join(f"{count} {cause}" for cause, count in report.braked.items())
    lines = [f"{report.arm} with {report.model}: of {report.conversations} answers with the brake it ended {braked}"]
    saving, accuracy, judged = report.saving, report.accuracy, report.judged
    lines.append(
        f"no saving is known: {report.why_not}"
        if saving is None
        else f"joules per correct answer: {saving.saving:+.1%} saved [{saving.low:+.1%}, {saving.high:+.1%}]"
    )
    if accuracy is not None:
        lines.append(
            f"accuracy {accuracy.difference:+.1%} [{accuracy.low:+.1%}, {accuracy.high:+.1%}], of {accuracy.prompts} prompts"
        )
    if judged is not None:
        lines.append(
            f"by the judge {judged.spoiled} of {judged.answers} answers spoiled, {judged.ended} ended: at most {judged.at_most:.1%} of {judged.prompts} prompts"
        )
    damage = report.damage_at_most
    lines.append(
        "no bound on the damage: it takes a checked comparison and a judge (--answers-out, then --judged)"
        if damage is None
        else f"damage: at most {damage:.1%} of answers"
    )
    return "\n".join(lines)


def as_json(report: Report) -> str:
    return json.dumps(asdict(report), ensure_ascii=False)


def keep(report: Report, out: Path) -> None:
    """Raises ExperimentError where it can't be written."""
    try:
        out.write_text(as_json(report) + "\n", encoding="utf-8")
    except OSError as error:
        raise ExperimentError(f"{out} can't be written ({error.strerror})", "name another file") from error
