"""The sections of the page, but for figures and answers."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from etameter.prompts.analysis import AccuracyOf, ArmFinding, PartFinding

from .figure import Cell
from .markup import Html, join, tag
from .record import Record, findings
from .wording import (
    ABOUT_PARTS,
    DEFINITIONS,
    METHODS,
    PARTS,
    UNKNOWN,
    Wording,
    exactly,
    interval,
    percent,
    plain,
    share_of_all,
)

NOTHING: Final = "There is nothing to say: no part of the plan was run."
TARGETS: Final = {
    "inside": "62.5 % is inside the interval",
    "below": "62.5 % is below the interval",
    "above": "62.5 % is above the interval",
}

_AGAINST: Final = (
    "arm",
    "joules saved per correct answer",
    "energy",
    "difference of accuracy",
    "accuracy",
    "62.5 %",
    "least detectable saving",
)
_CAME_TO: Final = (
    "arm",
    "joules per correct answer",
    "correct",
    "accuracy",
    "joules",
    "output tokens",
    "prompt tokens",
    "blocks",
)


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Html:
    """The first cell of a row names it. It scrolls by itself where the page is narrow."""
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell, class_=_kind(cell)) for cell in row[1:]))
        for row in rows
    ]
    head = tag("tr", *(tag("th", column, scope="col") for column in columns))
    made = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", made, class_="table", tabindex="0", role="region", aria_label=caption)


def _kind(cell: Cell) -> str | None:
    return "words" if not isinstance(cell, Html) and len(cell) > 40 else None


def verdict(record: Record, wording: Wording) -> Html:
    """What came out, in sentences."""
    sentences = record.analysis.sentences or (NOTHING,)
    return tag("div", *(tag("p", wording.sentence(sentence)) for sentence in sentences), class_="verdict")


def results(record: Record, wording: Wording) -> Html:
    """Each part: what every arm came to, and how it stands against the control."""
    return join(*(_result(record, part, wording) for part in record.analysis.parts))


def _result(record: Record, part: PartFinding, wording: Wording) -> Html:
    control, found = record.plan.control, list(findings(part, record))
    came_to = [
        (
            each.arm,
            wording.joules(each.joules_per_correct),
            f"{each.correct} of {each.conversations}",
            share_of_all(each.accuracy),
            wording.joules(each.energy_j),
            f"{each.output_tokens:,}",
            f"{each.prompt_tokens:,}",
            str(each.blocks),
        )
        for each in sorted(part.arms, key=lambda each: record.number(each.arm))
    ]
    words = [wording.sentence(sentence) for sentence in part.sentences]
    words += [wording.sentence(sentence) for finding in found for sentence in finding.sentences]
    return join(
        tag("h3", PARTS[part.part].capitalize()),
        tag("p", ABOUT_PARTS[part.part], class_="faint"),
        table(f"Against {control}", _AGAINST, [_standing(finding, wording) for finding in found]) if found else None,
        table("What each arm came to", _CAME_TO, came_to),
        tag("ul", *(tag("li", sentence) for sentence in words)) if words else None,
    )


def _standing(finding: ArmFinding, wording: Wording) -> tuple[Cell, ...]:
    saving = finding.saving
    energy = finding.why_not or finding.energy
    return (
        finding.arm,
        Html(UNKNOWN) if saving is None else wording.share(saving.saving, saving.low, saving.high),
        wording.sentence(energy),
        _difference(finding.accuracy),
        finding.accuracy_verdict,
        UNKNOWN if finding.target is None else wording.sentence(TARGETS[finding.target]),
        wording.share(finding.detectable),
    )


def _difference(accuracy: AccuracyOf | None) -> Html:
    if accuracy is None:
        return Html(UNKNOWN)
    ends = interval(accuracy.low, accuracy.high)
    return join(exactly(accuracy.difference, f"{percent(accuracy.difference)[:-2]} points"), ends)


def etas(record: Record) -> Html | None:
    """η by every method side by side."""
    if record.shown is None:
        return None
    rows = [
        (
            f"{finding.arm}: {METHODS.get(each.method, each.method)}",
            share_of_all(each.control),
            share_of_all(each.arm, each.low, each.high),
            each.bound or "",
            plain(each.reliability, ".2f", each.reliability_low, each.reliability_high),
            plain(each.bias, "+.3f"),
            str(each.conversations),
            each.note,
        )
        for finding in findings(record.shown, record)
        for each in finding.eta
    ]
    if not rows:
        return None
    columns = (
        "arm: way of finding it",
        record.plan.control,
        "arm [interval]",
        "bound",
        "reliability",
        "bias",
        "conversations",
        "note",
    )
    return table("η, reliability and bias by method", columns, rows)


def faults(record: Record) -> Html:
    """What was left out, and what went wrong."""
    excluded = [
        (f"{each.block}", PARTS[each.part], each.arm, each.reason)
        for part in record.analysis.parts
        for each in part.excluded
    ]
    failures = Counter((one.part, one.arm, one.failure) for one in record.outcomes if one.failure is not None)
    unchecked = sum(one.correct is None for one in record.outcomes)
    unmetered = sum(one.energy_j is None for one in record.outcomes)
    return join(
        table("Blocks that do not count", ("block", "part", "arm", "rule"), excluded)
        if excluded
        else tag("p", "No block was excluded."),
        table(
            "Conversations that failed, blocks that do not count with them",
            ("failure", "part", "arm", "conversations"),
            [(failure or "", PARTS[part], arm, str(count)) for (part, arm, failure), count in sorted(failures.items())],
        )
        if failures
        else tag("p", "No conversation failed."),
        tag(
            "p",
            f"{unchecked} of {len(record.outcomes)} conversations could not be checked; {unmetered} have no joules of their own.",
        ),
    )


def _idle(record: Record, wording: Wording) -> Html:
    """What the boards took while nobody asked, in each session of the run."""
    known = sorted({block.idle_w for block in record.blocks if block.idle_w is not None})
    told: list[str] = ["Idle power with the model loaded, by the same counters before and after the blocks: "]
    told += [wording.watts(known[0])] if known else ["not known"]
    told += [" to ", wording.watts(known[-1])] if len(known) > 1 else []
    return tag("p", *told)


def method(record: Record, wording: Wording) -> Html:
    """The plan, and what it was run with."""
    plan = record.plan
    load = [
        (
            PARTS[part.part],
            UNKNOWN if part.rate_per_s is None else f"{part.rate_per_s:.3g} per s",
            UNKNOWN if part.concurrency is None else str(part.concurrency),
            str(len(part.blocks)),
        )
        for part in plan.parts
    ]
    stated: dict[str, object] = {
        "plan (SHA-256)": plan.hash,
        "suite": f"{plan.suite} {plan.suite_version}, {plan.suite_hash}",
        "model": plan.model,
        "samples of each task": plan.samples,
        "max tokens": plan.max_tokens,
        "temperature": plan.temperature,
        "answers until correct": plan.until_correct,
        "prefix cache": plan.prefix_cache,
        "margin of accuracy": plan.margin,
        "confidence": plan.confidence,
        "seed": plan.seed,
        "a block is excluded": _rules(record),
        "source of joules": record.analysis.source or "none",
    }
    return join(
        tag("p", "The plan was written, and its hash taken, before the first request was sent."),
        listing(stated),
        table(
            "Arms",
            ("arm", "hash of what it sends"),
            [(arm, tag("code", plan.arm_hashes.get(arm, UNKNOWN))) for arm in record.arms],
        ),
        table("Parts", ("part", "arrivals", "at once", "blocks"), load),
        tag("h3", "Where and with what"),
        _idle(record, wording),
        listing(record.about) if record.about else tag("p", "Not recorded."),
    )


def _rules(record: Record) -> str:
    rules = record.plan.exclusion
    told = [f"more than {100 * rules.failures_above:.0f} % of its conversations failed"]
    told += ["the clocks were throttled"] if rules.throttled else []
    told += ["others computed on the boards"] if rules.neighbours else []
    return "if " + ", or ".join(told)


def listing(stated: Mapping[str, object]) -> Html:
    """Names and values; what is within a value stands under its name."""
    return tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in _flat(stated)))


def _flat(stated: Mapping[str, object], under: str = "") -> Iterator[tuple[str, str]]:
    for name, value in stated.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{under}{name} ")
        elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
            yield from _flat({str(number): each for number, each in enumerate(value, start=1)}, f"{under}{name} ")
        elif isinstance(value, list | tuple):
            yield f"{under}{name}", ", ".join(map(str, value))
        else:
            yield f"{under}{name}", UNKNOWN if value is None else str(value)


def definitions() -> Html:
    """What the words mean."""
    return tag("dl", *(join(tag("dt", word), tag("dd", meaning)) for word, meaning in DEFINITIONS.items()))
