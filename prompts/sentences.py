"""What may be said of a comparison, in plain words. Where joules are simulated every sentence says so."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from etameter.records import Source

from .analysis import Against, ArmFinding, EtaOf, PartFinding, Saving
from .plan import Plan
from .tables import Part

LOADS: Final[Mapping[Part, str]] = {
    "rate": "at a fixed arrival rate",
    "concurrency": "at fixed concurrency",
    "closed-loop": "one conversation at a time",
    "mixed": "with arms mixed and joules attributed",
}


def marked(sentences: Sequence[str], source: Source | None) -> tuple[str, ...]:
    """With what their joules are, unless they were measured on boards of one's own."""
    if source is None or source == "measured":
        return tuple(sentences)
    return tuple(f"{source.capitalize()}: {sentence}" for sentence in sentences)


def of_run(plan: Plan, parts: Sequence[PartFinding]) -> tuple[str, ...]:
    """The verdict: of the headline parts alone."""
    headline = [part for part in parts if part.headline]
    if not headline:
        return ("No part was run whose joules per correct answer are a result: nothing is claimed.",)
    said = []
    for part in headline:
        said += [f"{LOADS[part.part].capitalize()}: {_verdict(plan, found)}" for found in part.findings]
        said += _troubles(part)
    return tuple(said)


def of_part(plan: Plan, part: PartFinding) -> tuple[str, ...]:
    """What holds for the part whatever the arm."""
    said = [] if part.headline else [f"Secondary: this part, {LOADS[part.part]}, explains the result and is none."]
    said += _troubles(part)
    if len(part.findings) > 1:
        said.append(
            f"Intervals are {100 * plan.confidence:g} % each; what is claimed of {len(part.findings)} arms is held to {100 * (1 - plan.confidence):.3g} % "
            "for all of them together (Holm)."
        )
    return tuple(said)


def of_arm(plan: Plan, found: ArmFinding) -> tuple[str, ...]:
    return tuple(_of_arm(plan, found))


def _of_arm(plan: Plan, found: ArmFinding) -> Iterator[str]:
    yield _verdict(plan, found)
    if found.accuracy is not None:
        yield _accuracy(plan, found)
    saving = found.saving
    if saving is None:
        return
    none = ", and so does 0" if found.target == "inside" and saving.low <= 0 else ""
    yield f"62.5 % lies {found.target} the interval of what {found.arm} saves, {_interval(saving)}{none}."
    if found.detectable is not None:
        yield (
            f"With this scatter and size a saving of {percent(found.detectable)} is found four times in five; "
            "a smaller one may be there unseen."
        )
    if found.against_concise is not None:
        yield _concise(found.arm, found.against_concise)
    if (prediction := found.prediction) is not None:
        yield (
            f"From the measured η_task the seed's formula 1 − η_before/η_after predicts {percent(prediction.saving)}; measured were "
            f"{percent(prediction.token_saving)} of output tokens and {percent(prediction.measured)} of joules per correct answer. "
            f"The prediction lies {prediction.place} the measured interval."
        )
    yield from (_unreliable(found.arm, eta) for eta in found.eta if eta.method == "fast" and eta.arm is not None)
    if found.rebound is not None:
        half = found.rebound.elasticity.get("0.5")
        yield (
            f"{found.rebound.demand_factor:.2f} times as many correct answers use up what was saved"
            + (f"; if half of the price is energy, demand with an elasticity of {half:.2f} does that." if half else ".")
        )


def _verdict(plan: Plan, found: ArmFinding) -> str:
    """The one sentence on an arm."""
    arm, control, saving = found.arm, plan.control, found.saving
    if saving is None:
        return f"{arm} against {control}: {found.why_not}. Nothing is claimed."
    if found.energy == "saves":
        return f"{arm} saved {percent(saving.saving)} {_interval(saving)} of the joules per correct answer of {control}, and accuracy was kept."
    if found.energy == "costs more":
        return (
            f"{arm} cost {percent(-saving.saving)} more [{percent(-saving.high)}, {percent(-saving.low)}] joules per correct answer than "
            f"{control}, and accuracy was kept."
        )
    if found.energy == "not shown":
        return f"{arm}: accuracy was kept, and no saving is shown: {_signed(saving)} joules per correct answer, which is not told apart from none."
    word = "lost" if found.accuracy_verdict == "lost" else "not shown to be kept"
    return f"{arm}: accuracy was {word}, so that no saving is claimed, whatever joules per correct answer came to ({_signed(saving)})."


def _accuracy(plan: Plan, found: ArmFinding) -> str:
    accuracy = found.accuracy
    assert accuracy is not None
    points = f"{_points(accuracy.difference)} points [{_points(accuracy.low)}, {_points(accuracy.high)}] against {plan.control}"
    margin = f"{100 * plan.margin:g} points"
    told = {
        "kept": f"Accuracy of {found.arm} was kept: {points}, with a margin of {margin}",
        "lost": f"Accuracy of {found.arm} was lost: {points}, with a margin of {margin}",
        "not shown": f"That accuracy of {found.arm} was kept is not shown: {points}, with a margin of {margin}",
        "too few": f"Of the accuracy of {found.arm} too little is known: {points}",
    }[found.accuracy_verdict]
    unknown = f"; {accuracy.unknown} conversations of unknown outcome count against it" if accuracy.unknown else ""
    return f"{told}, over {accuracy.prompts} prompts{unknown}."


def _concise(arm: str, against: Against) -> str:
    words = {
        "better": "costs less per correct answer than",
        "worse": "costs more per correct answer than",
        "equal": "costs, within 5 %, the same per correct answer as",
        "not told apart": "can't be told apart from",
        "too few": "can't be compared with",
    }[against.verdict]
    if against.saving is None:
        return f"{arm} {words} “{against.other}”: {against.why_not}."
    why = f": {against.why_not}" if against.why_not else ""
    return f"{arm} {words} “{against.other}” ({_signed(against.saving)}){why}."


def _unreliable(arm: str, eta: EtaOf) -> str:
    told = f"η_live of {arm} is at most {eta.arm:.2f}"
    if eta.control is not None:
        told += f" ({eta.control:.2f} under the control)"
    if eta.reliability is None:
        return f"{told}; how reliable that is here is not known."
    genuine = (
        ""
        if eta.arm is None or eta.control is None
        else f", so that of its change {(eta.arm - eta.control) * eta.reliability:+.3f} is genuine if its errors are noise"
    )
    ends = ""
    if eta.reliability_low is not None and eta.reliability_high is not None:
        ends = f" [{eta.reliability_low:.2f}, {eta.reliability_high:.2f}]"
    return f"{told}; its squared correlation with η_task within the arm is {eta.reliability:.2f}{ends}{genuine}."


def _troubles(part: PartFinding) -> list[str]:
    said = []
    if part.excluded:
        reasons = ", ".join(sorted({each.reason for each in part.excluded}))
        count = len(part.excluded)
        blocks = "1 block was" if count == 1 else f"{count} blocks were"
        said.append(f"{blocks} left out by rules stated beforehand ({reasons}), and what could then not be paired.")
    failed = {each.arm: sum(each.failures.values()) for each in part.arms if each.failures}
    if failed:
        told = ", ".join(f"{count} under {arm}" for arm, count in failed.items())
        said.append(
            f"Conversations failed in blocks that count: {told}. They are not correct, and their joules are in the sums."
        )
    return said


def percent(share: float) -> str:
    return f"{100 * share:.1f} %".replace("-", "−")


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _interval(saving: Saving) -> str:
    return f"[{percent(saving.low)}, {percent(saving.high)}]"


def _signed(saving: Saving) -> str:
    """Less or more, with the interval as savings."""
    way = "less" if saving.saving >= 0 else "more"
    return f"{percent(abs(saving.saving))} {way}, as a saving {_interval(saving)}"
