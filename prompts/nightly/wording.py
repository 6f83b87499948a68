"""What may be said of a night, in plain words. Where joules are simulated every sentence says so."""

from collections.abc import Iterator
from typing import Final

from etameter.prompts.sentences import marked

from .metrics import METRICS
from .rows import Run
from .shift import RECENT
from .verdict import NIGHTS_PER_FALSE_ALARM, SAME_WITHIN, Change, Verdict

SIMULATED: Final = "SIMULATED: no joule or watt here is a measurement of hardware."
UNKNOWN: Final = "–"
_SAID: Final = 5
"""Changes of a kind that are told one by one."""


def sentences(run: Run, verdict: Verdict) -> tuple[str, ...]:
    """The verdict, the most important first."""
    return marked(tuple(_sentences(run, verdict)), verdict.source)


def sentence(change: Change) -> str:
    """What became of a series."""
    if change.word == "unknown" or change.change is None or change.low is None or change.high is None:
        return f"{change.series}: not known, {change.reason}."
    ends = f"{percent(change.low)} to {percent(change.high)}"
    before = "night before" if change.nights_before == 1 else f"{_nights(change.nights_before)} before"
    if change.word == "same":
        return f"{change.series}: the same as in the {before}, within {100 * SAME_WITHIN:g} % ({ends})."
    if change.word == "unclear":
        return f"{change.series}: no change is shown against the {before}, nor that there is none ({ends})."
    return f"{change.series}: {change.word}, {percent(change.change)} against the {before} ({ends}), {_since(change)}."


def percent(share: float) -> str:
    """0.051 → +5.1 %."""
    return f"{100 * share:+.1f} %".replace("-", "−")


def number(value: float | None) -> str:
    """To four digits; a dash where it is not known."""
    return UNKNOWN if value is None else f"{value:.4g}"


def _sentences(run: Run, verdict: Verdict) -> Iterator[str]:
    if verdict.word == "first":
        yield f"This is the first night of {run.name} that came to its end: there is nothing to compare it with."
    elif verdict.word == "not comparable":
        yield "Not comparable with any night before: no night had the same work, model, boards and limits."
        yield from (f"{str(each)[0].upper()}{str(each)[1:]}." for each in verdict.unlike)
    elif verdict.word in ("unstable", "incomplete"):
        yield f"The night was {run.status} and is compared with nothing: {run.reason.rstrip('.')}."
        if run.remedy:
            yield f"{run.remedy[0].upper()}{run.remedy[1:].rstrip('.')}."
    else:
        yield from _compared(verdict)


def _compared(verdict: Verdict) -> Iterator[str]:
    headline = [change for change in verdict.changes if change.headline]
    others = [change for change in verdict.changes if not change.headline and change.word in ("worse", "better")]
    lost = [change for change in headline if change.lost]
    unclear = (
        "Unclear: the night lacks figures that nights before it have."
        if lost
        else "Unclear: no change is shown, nor that there is none; more nights will tell."
    )
    yield {
        "regression": "Regression: energy for the same work went up.",
        "improvement": "Improvement: energy for the same work went down.",
        "same": f"Same: energy for the same work lies within {100 * SAME_WITHIN:g} % of the nights before.",
    }.get(verdict.word, unclear)
    moved = [change for change in headline if change.word in ("worse", "better")]
    told = [*moved, *lost] or headline
    yield from (sentence(change) for change in told[:_SAID])
    if (more := len(told) - _SAID) > 0:
        yield f"{more} more of the headline {'stands' if more == 1 else 'stand'} in the table."
    if verdict.changed_too:
        when = "In the same night" if moved[0].nights_since <= 2 else "About then"
        yield f"{when}: {'; '.join(str(each) for each in verdict.changed_too)}."
    yield from (f"Beside it, {METRICS[change.metric].words}. {sentence(change)}" for change in others[:_SAID])
    yield (
        f"Compared with {_nights(len(verdict.compared))}; the {len(headline)} series of the headline are held together to one false alarm in "
        f"{NIGHTS_PER_FALSE_ALARM} nights."
    )


def _since(change: Change) -> str:
    if change.nights_since == max(RECENT):
        return f"for {_nights(change.nights_since)} or more"
    return "tonight" if change.nights_since == 1 else f"for {_nights(change.nights_since)}, since {change.since}"


def _nights(count: int) -> str:
    return "1 night" if count == 1 else f"{count} nights"
