"""What audits found: joined with what the answers and the audits themselves took, and how far η is to be trusted by that.

A judge's labels of a response become a reading that stands beside the one in the response. Both are a pair, of which there are soon some in
each arm; so are η_task and what was said of the answers to an audit's tasks, as far as they are correct: how an answer reads doesn't show that it is wrong.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

from etameter.auditing import Job, Kind, Sampled
from etameter.backlog import Backlog
from etameter.classifier import Classifier
from etameter.export.receipts import is_measured
from etameter.ledger import Ledger, RequestRow
from etameter.readings import Checked, Found, Judged
from etameter.records import Source, weakest
from etameter.slack.labels import LABELS, Label
from etameter.slack.reading import Reading
from etameter.slack.reliability import Mean, Pair, Reliability, Trust, both, mean, trust

logger = logging.getLogger("etameter")

Tier = Literal["fast", "deep", "fast_task"]
Outcome = Literal["agreed", "judged", "correct", "wrong", "failed"]

KEPT: Final = 512
"""The latest of each arm, by which reliability and η are told."""
REMEMBERED: Final = 4096
SETTLE_S: Final = 60.0
"""After that a request's energy is told without what isn't settled."""
MOST_RECEIPTS: Final = 1024

Group = tuple[str, str]
"""Model and arm."""
Labels = Mapping[int, Label]
"""By number of the span, from 1."""


class Sink(Protocol):
    """Who is told of audits: see `etameter.export.prometheus.Metrics`."""

    def audited(
        self, model: str, arm: str, *, kind: Kind, outcome: Outcome, energy_j: float | None, source: Source
    ) -> None: ...

    def classified(self, row: RequestRow, reading: Reading) -> None: ...

    def reliability(self, model: str, arm: str, tier: Tier, trust: Trust) -> None: ...

    def trusted(self, model: str, arm: str, *, reliable: bool | None) -> None: ...

    def sampled(self, model: str, arm: str, view: Literal["strict", "lenient"], eta: Mean) -> None: ...

    def audit_dropped(self, cause: str) -> None: ...


@dataclass(slots=True)
class _Seen:
    """What is known of an arm with a model."""

    judged: deque[Judged] = field(default_factory=lambda: deque(maxlen=KEPT))
    checked: deque[Checked] = field(default_factory=lambda: deque(maxlen=KEPT))
    trust: dict[Tier, Trust] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Open:
    """An audit whose joules, or those of the answer that it is of, aren't settled yet."""

    until_s: float
    receipt_id: str | None
    receipts: tuple[str, ...]
    """Of the requests that it took."""
    elsewhere: tuple[float, Source] | None
    """What another server says that its judging took."""
    reading: Reading | None
    checked: Checked | None

    @property
    def awaited(self) -> frozenset[str]:
        return frozenset(self.receipts) | ({self.receipt_id} if self.receipt_id is not None else frozenset())


class Audits:
    """Belongs to the meter's event loop."""

    def __init__(
        self, sink: Sink, classifier: Classifier, ledger: Ledger, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`ledger` is only read: what was audited before is known again."""
        self._sink = sink
        self._classifier = classifier
        self._ledger = ledger
        self._clock = clock
        self._seen: dict[Group, _Seen] = {}
        self._deep: OrderedDict[str, Reading] = OrderedDict()
        self._open: list[_Open] = []
        self._working: set[asyncio.Task[None]] = set()
        self.backlog: Backlog[Found] = Backlog()
        """What was found, that the ledger doesn't have yet."""
        judged, checked = ledger.audits(REMEMBERED)
        for old in reversed(judged):
            self._group((old.model, old.arm)).judged.append(old)
        for task in reversed(checked):
            self._group((task.model, task.arm)).checked.append(task)
        for group in self._seen:
            self._tell(group)

    def came_back(self, job: Job, told: Mapping[str, Any]) -> None:
        """As `auditing.Sink`."""
        receipts = _receipts(told.get("receipts"))
        if job.sampled is not None:
            work = asyncio.ensure_future(self._judged(job.sampled, told, receipts))
            self._working.add(work)
            work.add_done_callback(self._done)
            return
        for each in _list(told.get("answers")):
            if isinstance(each, dict) and (found := _checked(each)) is not None:
                self._wait(None, _receipts(each.get("receipts")), None, None, found)

    def dropped(self, cause: str) -> None:
        """As `auditing.Sink`."""
        self._sink.audit_dropped(cause)

    def look(self) -> None:
        """Now and then: take what has settled meanwhile."""
        waiting, self._open = self._open, []
        for each in waiting:
            rows = [] if each.receipt_id is None else self._ledger.receipt(each.receipt_id)
            took = [row for receipt_id in each.receipts for row in self._ledger.receipt(receipt_id)]
            if _settled(rows + took, each.awaited) or self._clock() > each.until_s:
                self._close(each, rows, took)
            else:
                self._open.append(each)

    def of(self, receipt_id: str) -> Reading | None:
        """What a judge found in a response."""
        return self._deep.get(receipt_id) or self._ledger.judged(receipt_id)

    def reliability(self, model: str, arm: str, tier: Literal["fast", "deep"]) -> Reliability:
        """How far a tier agrees with audits in an arm.

        The fast tier is held against the judge, and the judge against tasks: agreement with a judge who doesn't agree with them is worth nothing.
        """
        seen = self._seen.get((model, arm))
        if seen is None or tier not in seen.trust:
            return Reliability()
        found, deep = seen.trust[tier], seen.trust["deep"].reliable
        ends = None
        if found.agreement_low is not None and found.agreement_high is not None:
            ends = found.agreement_low, found.agreement_high
        return Reliability(found.agreement, ends, deep if tier == "deep" else both(found.reliable, deep))

    async def _judged(self, sampled: Sampled, told: Mapping[str, Any], receipts: tuple[str, ...]) -> None:
        labels = _labels(told.get("labels"))
        reading = (
            None if labels is None else await self._classifier.judged(sampled.receipt_id, sampled.message, *labels)
        )
        self._wait(sampled.receipt_id, receipts, _elsewhere(told), reading, None)

    def _done(self, work: asyncio.Task[None]) -> None:
        self._working.discard(work)
        failure = None if work.cancelled() else work.exception()
        if failure is not None:
            logger.warning("a judgement can't be read: %s", type(failure).__name__)  # what it says may quote the answer

    def _wait(
        self,
        receipt_id: str | None,
        receipts: tuple[str, ...],
        elsewhere: tuple[float, Source] | None,
        reading: Reading | None,
        checked: Checked | None,
    ) -> None:
        until_s = self._clock() + SETTLE_S
        self._open.append(_Open(until_s, receipt_id, receipts, elsewhere, reading, checked))
        if reading is not None:
            self._deep[reading.receipt_id] = reading
            if len(self._deep) > REMEMBERED:
                self._deep.popitem(last=False)
            self.backlog.add(reading)

    def _close(self, found: _Open, rows: Sequence[RequestRow], took: Sequence[RequestRow]) -> None:
        energy_j = sum(row.energy.energy_j for row in took) if took and all(map(is_measured, took)) else None
        sources = frozenset(row.energy.source for row in took) or frozenset(row.energy.source for row in rows)
        if not took and found.elsewhere is not None:
            energy_j, source = found.elsewhere
            sources = frozenset({source})
        if not sources:
            return  # nobody knows of what
        if found.checked is not None:
            self._close_task(found.checked, took, energy_j, weakest(sources))
        elif rows:
            self._close_deep(found.reading, rows, energy_j, weakest(sources))

    def _close_task(self, asked: Checked, took: Sequence[RequestRow], energy_j: float | None, source: Source) -> None:
        model = took[0].record.model if took else asked.model  # as the engine calls it
        checked = replace(asked, model=model)
        outcome: Outcome = "failed" if checked.correct is None else "correct" if checked.correct else "wrong"
        self._sink.audited(model, checked.arm, kind="task", outcome=outcome, energy_j=energy_j, source=source)
        self.backlog.add(checked)
        self._group((model, checked.arm)).checked.append(checked)
        self._tell((model, checked.arm))

    def _close_deep(
        self, deep: Reading | None, rows: Sequence[RequestRow], energy_j: float | None, source: Source
    ) -> None:
        record = rows[0].record
        model, arm = record.model, record.arm
        fast = self._classifier.of(rows[0].record.receipt_id or "")
        outcome: Outcome = "failed"
        if deep is not None and deep.lenient is not None:
            agreed = isinstance(fast, Reading) and fast.interval[0] <= deep.lenient <= fast.interval[1]
            outcome = "agreed" if agreed else "judged"
            bound = fast.lenient_at_most if isinstance(fast, Reading) else None
            for row in rows:
                self._sink.classified(row, deep)
            tokens = sum(row.record.output_tokens for row in rows)
            self._group((model, arm)).judged.append(Judged(model, arm, tokens, bound, deep.strict, deep.lenient))
        self._sink.audited(model, arm, kind="deep", outcome=outcome, energy_j=energy_j, source=source)
        self._tell((model, arm))

    def _group(self, group: Group) -> _Seen:
        return self._seen.setdefault(group, _Seen())

    def _tell(self, group: Group) -> None:
        model, arm = group
        seen = self._group(group)
        right = [each for each in seen.checked if each.correct]
        seen.trust = {
            "fast": trust(_pairs((each.fast, each.lenient) for each in seen.judged)),
            "deep": trust(_pairs((each.deep_strict, each.eta_task) for each in right)),
            "fast_task": trust(_pairs((each.fast, each.eta_task) for each in right)),
        }
        for tier, found in seen.trust.items():
            self._sink.reliability(model, arm, tier, found)
        self._sink.trusted(model, arm, reliable=self.reliability(model, arm, "fast").reliable)
        views: tuple[Literal["strict", "lenient"], ...] = ("strict", "lenient")
        for view in views:
            etas = [(eta, each.output_tokens) for each in seen.judged if (eta := getattr(each, view)) is not None]
            if (sampled := mean(etas)) is not None:
                self._sink.sampled(model, arm, view, sampled)


def _settled(rows: Sequence[RequestRow], receipts: AbstractSet[str]) -> bool:
    """Whether nothing more will become known of these receipts."""
    return all(row.energy.settled for row in rows) and receipts <= {row.record.receipt_id for row in rows}


def _pairs(told: Iterable[tuple[float | None, float | None]]) -> list[Pair]:
    return [(said, found) for said, found in told if said is not None and found is not None]


def _labels(told: object) -> tuple[Labels, Labels] | None:
    """Of both orders, by number of the span; None where there are none."""
    match told:
        case [list(one), list(other)]:
            return _order(one), _order(other)
        case _:
            return None


_BY_LETTER: Final[Mapping[str, Label]] = {label: label for label in LABELS}


def _order(told: Sequence[object]) -> Labels:
    found: dict[int, Label] = {}
    for each in told:
        match each:
            case [int(number), str(letter)] if (label := _BY_LETTER.get(letter)) is not None:
                found[number] = label
    return found


def _elsewhere(told: Mapping[str, Any]) -> tuple[float, Source] | None:
    match told.get("energy_j"), told.get("source"):
        case float(energy_j), ("measured" | "estimated" | "shared" | "simulated") as source if energy_j >= 0:
            return energy_j, source
        case _:
            return None


def _receipts(told: object) -> tuple[str, ...]:
    return tuple(each for each in _list(told) if isinstance(each, str))[:MOST_RECEIPTS]


def _list(told: object) -> list[Any]:
    return told if isinstance(told, list) else []


def _checked(told: Mapping[str, Any]) -> Checked | None:
    match told:
        case {
            "task": str(task),
            "model": str(model),
            "arm": str(arm),
            "correct": bool() | None as correct,
            "tokens": int(tokens),
        }:
            return Checked(task, model, arm, correct, tokens, *(_share(told.get(name)) for name in _SHARES))
        case _:
            return None


_SHARES: Final = ("eta_task", "fast", "deep_strict", "deep_lenient")


def _share(told: object) -> float | None:
    return float(told) if isinstance(told, int | float) and not isinstance(told, bool) and 0 <= told <= 1 else None
