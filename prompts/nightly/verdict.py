"""Whether tonight's figures are worse than, better than, or the same as those of the nights before it. Pure: nights in, a verdict out.

Like is compared with like only: nights of the same job, work, model, boards and limits, with joules of the same source. What may have changed the figures, the driver or vLLM, does
not part nights; where it changed with them, the verdict names it.

Each series is a stage and a metric. Those of `HEADLINE` decide; the others explain. Both kinds are held to one false alarm in `NIGHTS_PER_FALSE_ALARM` nights for all their series
together (Hochberg 1988).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal

import numpy as np

from etameter.records import Source

from .metrics import METRICS, series
from .night import Night
from .noise import SHIPPED, Noise
from .rows import Figure, Run
from .scatter import error
from .shift import RECENT, WINDOW, Array, interval, shift

Word = Literal["worse", "better", "same", "unclear", "unknown"]
"""Of a series. unclear: no change is shown, nor that there is none. unknown: nothing to compare, or no figure."""
Overall = Literal["regression", "improvement", "same", "unclear", "first", "not comparable", "unstable", "incomplete"]

EXIT_CODES: Final[Mapping[Overall, int]] = {"regression": 3, "not comparable": 4, "unstable": 5}
"""0 for the rest; of a night that is incomplete its own exit code stands."""
HEADLINE: Final = ("j_per_token", "j_per_correct_answer")
"""Of each stage under load, and of each arm on the tasks that are the same every night."""
_AUDIT: Final = "ab-audit/"
NIGHTS_PER_FALSE_ALARM: Final = 365
MATTERS: Final = 0.02
"""A change that is surely there and smaller than this is told as none: boards of one kind differ by more."""
LEAST_NIGHTS: Final = 7
"""Before tonight, until the scatter between nights tells the errors of figures that have no interval."""
MOST_ERROR: Final = 10.0
"""Of a logarithm: such a figure says nothing, and a larger one would only leave the range of floating-point numbers."""
SAME_WITHIN: Final = 0.05
"""What "same" says of a series: the interval of the change lies within this. Of a night see `_are_same`."""

_LIKE: Final[Mapping[str, Callable[[Run], object]]] = {
    "source": lambda run: run.source,
    "counter": lambda run: run.counter,
    "model": lambda run: (run.model, run.model_hash),
    "configuration": lambda run: run.config_hash,
    "tasks": lambda run: run.tasks_hash,
    "seed": lambda run: run.seed,
    "hardware": lambda run: [run.hardware.get(each) for each in ("boards", "cpu", "cores")],
    "power cap": lambda run: run.power_cap_w,
    "highest clock": lambda run: run.clock_mhz,
}
_FIRST: Final[Mapping[str, Callable[[Run], object]]] = {
    "job": lambda run: run.name,
    "status": lambda run: run.status,
}
_MAY_DIFFER: Final[Mapping[str, Callable[[Run], object]]] = {
    "driver": lambda run: run.driver,
    "vLLM": lambda run: run.vllm,
    "etameter": lambda run: run.etameter,
}


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that two nights do not have in common."""

    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.what}: {self.before}, then {self.after}"


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a series."""

    stage: str
    metric: str
    unit: str
    source: Source
    word: Word
    value: float | None
    """Tonight's."""
    change: float | None
    """Of the last nights against those before: 0.05 is 5 % more."""
    low: float | None
    """Ends of its 95 % interval."""
    high: float | None
    p: float | None
    """Of so large a change where there is none, before it is held to the number of series."""
    nights_before: int
    nights_since: int
    """Last nights that the change is over, tonight among them."""
    since: str | None
    """The first of them."""
    reason: str = ""

    @property
    def series(self) -> str:
        return series(self.stage, self.metric)

    @property
    def headline(self) -> bool:
        return _decides(self.stage, self.metric)

    @property
    def lost(self) -> bool:
        """A night before knows it, and of tonight nothing can be said: it may be the worst of all, as where no answer is right any more."""
        return self.word == "unknown" and self.nights_before > 0


@dataclass(frozen=True, slots=True)
class Verdict:
    run_id: str
    word: Overall
    exit_code: int
    source: Source | None
    """Of its joules; None where the night knows none."""
    changes: tuple[Change, ...]
    """The headline's first, in each kind the surest first."""
    compared: tuple[str, ...]
    """Nights that tonight is compared with, oldest first."""
    unlike: tuple[Difference, ...]
    """From the last night of this job, where it is not comparable."""
    changed_too: tuple[Difference, ...]
    """What changed in the night in which a headline figure did, as far as that is known."""


def judge(nights: Sequence[Night], tonight: Night, noise: Noise = SHIPPED) -> Verdict:
    """Tonight beside the nights of the same job that came before it, whatever their order here."""
    run = tonight.run
    if run.status == "unstable":
        return _without(run, "unstable", EXIT_CODES["unstable"])
    if run.status != "complete":
        return _without(run, "incomplete", run.exit_code)
    earlier = sorted(
        (
            night
            for night in nights
            if night.run.name == run.name and night.run.run_id < run.run_id and night.run.status == "complete"
        ),
        key=lambda night: night.run.run_id,
    )
    if not earlier:
        return _without(run, "first", 0)
    like = [night for night in earlier if not differences(night.run, run, _LIKE)][-(WINDOW + max(RECENT)) :]
    unlike = () if like else differences(earlier[-1].run, run, _LIKE)
    if not like:
        return replace(_without(run, "not comparable", EXIT_CODES["not comparable"]), unlike=unlike)
    figures = [*tonight.figures, *_missing(like, tonight)]
    changes = [_change(like, tonight, figure, noise) for figure in figures if METRICS[figure.metric].better]
    changes = [
        *held([each for each in changes if each.headline]),
        *held([each for each in changes if not each.headline]),
    ]
    word = _overall([each for each in changes if each.headline])
    return Verdict(
        run_id=run.run_id,
        word=word,
        exit_code=EXIT_CODES.get(word, 0),
        source=run.source,
        changes=tuple(changes),
        compared=tuple(night.run.run_id for night in like),
        unlike=(),
        changed_too=_changed_too([*like, tonight], changes),
    )


def against(before: Night, tonight: Night, noise: Noise = SHIPPED) -> Verdict:
    """Tonight beside this one night, which has to be an earlier one."""
    verdict = judge([before], tonight, noise)
    if verdict.word != "first":
        return verdict
    unlike = differences(before.run, tonight.run, _FIRST)
    return replace(verdict, word="not comparable", exit_code=EXIT_CODES["not comparable"], unlike=unlike)


def differences(before: Run, after: Run, aspects: Mapping[str, Callable[[Run], object]]) -> tuple[Difference, ...]:
    """What the runs do not have in common."""
    pairs = {what: (of(before), of(after)) for what, of in aspects.items()}
    return tuple(Difference(what, str(old), str(new)) for what, (old, new) in pairs.items() if old != new)


def _without(run: Run, word: Overall, exit_code: int) -> Verdict:
    return Verdict(run.run_id, word, exit_code, run.source, (), (), (), ())


def _change(like: Sequence[Night], tonight: Night, figure: Figure, noise: Noise) -> Change:
    """Of one series, not yet held to how many there are."""
    told = [(night, found) for night in like if (found := _of(night, figure)) is not None]
    known = Change(
        figure.stage,
        figure.metric,
        figure.unit,
        figure.source,
        "unknown",
        figure.value,
        None,
        None,
        None,
        None,
        len(told),
        0,
        None,
    )
    if not _comparable(figure):
        return replace(known, reason=figure.reason or "there is no figure above zero, and so no ratio")
    if not told:
        return replace(known, reason="no night before has this figure")
    told.append((tonight, figure))
    values = np.log([found.value for _, found in told if found.value is not None])
    errors = _errors(told, figure)
    if errors is None:
        return replace(
            known, word="unclear", reason=f"without an interval it takes {LEAST_NIGHTS} nights to know how it scatters"
        )
    moved = shift(values, errors, noise)
    recent = int(moved.recent)
    low, high = interval(values, errors, recent, noise)
    return replace(
        known,
        word="unclear",
        change=math.expm1(moved.log),
        low=math.expm1(low),
        high=math.expm1(high),
        p=float(moved.p),
        nights_before=len(told) - recent,
        nights_since=recent,
        since=told[-recent][0].run.run_id,
    )


def _missing(like: Sequence[Night], tonight: Night) -> Iterator[Figure]:
    """What a night before has of the headline and tonight has no line of. A sweep is not made every night."""
    there = {_place(figure) for figure in tonight.figures}
    for figure in (figure for night in like for figure in night.figures if _comparable(figure)):
        if (
            _decides(figure.stage, figure.metric)
            and not figure.stage.startswith("sweep-")
            and _place(figure) not in there
        ):
            there.add(_place(figure))
            yield replace(figure, value=None, low=None, high=None, n=0, reason="the night has no such figure")


def _of(night: Night, like: Figure) -> Figure | None:
    for figure in night.figures:
        if _place(figure) == _place(like) and _comparable(figure):
            return figure
    return None


def _place(figure: Figure) -> tuple[str, str]:
    return figure.stage, figure.metric


def _decides(stage: str, metric: str) -> bool:
    kind = stage.partition("-")[0]
    if kind == "external" or stage.startswith(_AUDIT):  # one window, and other tasks every night
        return False
    return metric == HEADLINE[0] or (metric == HEADLINE[1] and kind == "ab")


def _comparable(figure: Figure) -> bool:
    return figure.value is not None and figure.value > 0


def _errors(told: Sequence[tuple[Night, Figure]], figure: Figure) -> Array | None:
    """Of each night's logarithm. None where nothing tells them yet.

    By like windows of nights one after the other, else by each figure's own interval. Then no night's is less than that of half of them: an interval from three to five windows is
    often too narrow by chance, and the night would be believed too much.
    """
    if (paired := error([night for night, _ in told], figure.stage, figure.metric)) is not None:
        return np.full(len(told), min(MOST_ERROR, paired))
    own = [_error(found) for _, found in told]
    known = [each for each in own if each is not None]
    if not known:
        return np.zeros(len(told)) if len(told) > LEAST_NIGHTS else None
    errors: Array = np.array([max(known) if each is None else each for each in own])
    floored: Array = np.maximum(errors, np.median(errors))
    return floored


def _error(figure: Figure) -> float | None:
    """From a 95 % interval."""
    if figure.value is None or figure.low is None or figure.high is None:
        return None
    return min(MOST_ERROR, (figure.high - figure.low) / figure.value / (2 * 1.96))


def held(changes: Sequence[Change]) -> Iterator[Change]:
    """The series of one kind, each with its word, held to one false alarm for all of them.

    Step-up (Hochberg 1988): of series that all move, each is held to less than one that moves alone. Series of a night depend on each other positively, for which it holds (Sarkar 1998).
    """
    compared = sorted((each for each in changes if each.p is not None), key=lambda each: each.p or 0.0)
    bounds = [1 / NIGHTS_PER_FALSE_ALARM / (len(compared) - place) for place in range(len(compared))]
    within = [(change.p or 0.0) <= bound for change, bound in zip(compared, bounds, strict=True)]
    shown = max((place for place, one in enumerate(within) if one), default=-1)
    for place, change in enumerate(compared):
        yield replace(change, word=_told(change) if place <= shown else _untold(change))
    yield from (each for each in changes if each.p is None)


def _told(change: Change) -> Word:
    """Of a change that is surely there."""
    if change.change is None or abs(change.change) < MATTERS:
        return _untold(change)
    less_is_better = METRICS[change.metric].better == "lower"
    return "better" if (change.change < 0) == less_is_better else "worse"


def _untold(change: Change) -> Word:
    if change.low is None or change.high is None:
        return "unknown"
    return "same" if _is_within(change.low, change.high, SAME_WITHIN) else "unclear"


def _overall(headline: Sequence[Change]) -> Overall:
    words = {change.word for change in headline}
    if "worse" in words:
        return "regression"
    if any(change.lost for change in headline):
        return "unclear"
    if "better" in words:
        return "improvement"
    told = [change for change in headline if change.word in ("same", "unclear")]
    return "same" if told and _are_same(told) else "unclear"


def _are_same(changes: Sequence[Change]) -> bool:
    """Whether together they lie within `SAME_WITHIN`, and each is found within that and lies within twice as much.

    The mean is weighed by precision, and its interval is as wide as where all series err alike: whatever they have in common, it is no wider.
    """
    ends = [(one.low, one.high) for one in changes if one.low is not None and one.high is not None]
    if len(ends) < len(changes) or not all(_is_within(low, high, 2 * SAME_WITHIN) for low, high in ends):
        return False
    if any(abs(one.change or 0.0) > SAME_WITHIN for one in changes):
        return False
    weights = np.array([(high - low) ** -2 for low, high in ends])
    low, high = weights @ np.array(ends) / weights.sum()
    return _is_within(float(low), float(high), SAME_WITHIN)


def _is_within(low: float, high: float, bound: float) -> bool:
    return low >= -bound and high <= bound


def _changed_too(nights: Sequence[Night], changes: Sequence[Change]) -> tuple[Difference, ...]:
    """Not every count of last nights is tried: a change that is older than two nights may have come a night earlier or later than it is said to have."""
    first = next((each for each in changes if each.headline and each.word in ("worse", "better")), None)
    if first is None:
        return ()
    place = next(at for at, night in enumerate(nights) if night.run.run_id == first.since)
    near = 1 if first.nights_since > 2 else 0
    about = nights[max(place - 1 - near, 0) : place + 1 + near]
    found = (differences(before.run, after.run, _MAY_DIFFER) for before, after in pairwise(about))
    return tuple(dict.fromkeys(each for some in found for each in some))
