"""What the live page shows: a snapshot of the meter, to be sent several times a second. docs/live-page.md describes it.

Power is drawn from the counter's own edges, so that it is there before an engine is; all sums are of settled intervals, as in the metrics.
Nothing here is a receipt id, which opens a receipt, and nothing is of a text. What isn't known is None with a reason, never 0.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final, NamedTuple, Protocol

from etameter.export.figures import NOT_AUDITED, SUMS, bound, eta_told, per_token, weighted
from etameter.export.receipts import NOT_MEASURED, is_measured
from etameter.export.traces import STEP_NS, Trace, Window, add_to
from etameter.footprint import JOULES_PER_WH
from etameter.ledger import RequestRow
from etameter.records import Balance, Finding, Source, weakest
from etameter.slack.reading import Reading
from etameter.slack.reliability import Reliability

SCHEMA_VERSION: Final = 1
WINDOW_S: Final = 60
"""Figures "now" are over so many seconds, as the metrics' gauges are."""
KEPT_REQUESTS: Final = 120
MAX_GROUPS: Final = 64
"""Of arm and model."""
OTHER: Final = "other"
NO_TOKENS: Final = "no_tokens"
"""Reason: none in the window."""
NONE_CLASSIFIED: Final = "none_classified"
"""Reason: no response in the window was looked at for slack."""
NO_FIT: Final = "no_fit_yet"
NO_DEVICE: Final = "not_looked_at_yet"


_PUBLIC_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}")


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine that is being metered."""

    engine: str
    model: str
    gpu_uuids: tuple[str, ...]
    running: int
    settled_until_s: float | None
    lost_records: int
    torn_records: int


class Running(NamedTuple):
    """A request whose energy isn't settled yet; instants in seconds of CLOCK_MONOTONIC."""

    key: str
    arm: str
    model: str
    arrival_s: float
    first_token_s: float | None
    finished_s: float | None
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Sensor:
    """How well a device's counter is read."""

    update_period_s: float | None
    missed_edges: int
    resets: int
    neighbours: int | None
    fitted_intervals: int
    """0: what a step costs is only guessed, and all that follows is None."""
    lag_s: float | None = None
    lag_error_s: float | None = None
    residual: float | None = None
    unidentified: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How well the meter reads all counters together."""

    polls: int = 0
    missed_polls: int = 0
    mean_lateness_s: float | None = None
    worst_lateness_s: float | None = None
    dropped_edges: int = 0
    dropped_messages: int = 0


@dataclass(frozen=True, slots=True)
class Board:
    """A device that is metered."""

    gpu_uuid: str
    board: str
    counter: str
    source: Source


class Charge(Protocol):
    """What an interval charged the requests of an arm: of its attributes, those of `SUMS` are read, too."""

    @property
    def arm(self) -> str: ...

    @property
    def source(self) -> Source: ...


@dataclass(slots=True)
class _Group:
    """An arm with a model, since the meter began."""

    requests: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0))
    found: dict[str, float] = field(default_factory=dict)
    wasted_j: dict[str, float] = field(default_factory=dict)
    sources: set[Source] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Line:
    """A request that is over, as it is told."""

    changed_ns: int
    told: Mapping[str, object]


class Live:
    """Takes in what the meter finds out; every instant is the caller's."""

    def __init__(
        self, boards: Sequence[Board], arms: Iterable[str], version: str, now_ns: int, now_unix_s: float
    ) -> None:
        """`arms` may be told by name; any other is `OTHER`."""
        self._boards = tuple(boards)
        self._arms = frozenset(arms)
        self._about = {"version": version, "started_s": seconds(now_ns), "started_unix_s": round(now_unix_s, 3)}
        self._traces = {board.gpu_uuid: Trace(board.gpu_uuid) for board in boards}
        self._sensors: dict[str, Sensor] = {}
        self._sampling = Sampling()
        self._groups: dict[tuple[str, str], _Group] = {}
        self._sums_now = Window(WINDOW_S)
        self._found_now = Window(WINDOW_S)
        self._balance: dict[str, float] = dict.fromkeys(
            ("measured_j", "requests_j", "idle_j", "engine_overhead_j"), 0.0
        )
        self._unattributed_j: dict[str, float] = {}
        self._settled_sources: set[Source] = set()
        self._requests: OrderedDict[str, _Line] = OrderedDict()
        self._early: OrderedDict[str, Mapping[str, object]] = OrderedDict()
        """What is known of requests before they are told to be finished, by key."""

    @property
    def source(self) -> Source:
        """What a sum over all devices may claim."""
        return weakest(frozenset(board.source for board in self._boards))

    def found(self, items: Iterable[Finding]) -> None:
        """What the sampler found."""
        for item in items:
            if item.gpu_uuid in self._traces:
                self._traces[item.gpu_uuid].add(item)

    def joined(self, board: Board) -> None:
        """A device is metered from now on."""
        self._boards += (board,)
        self._traces[board.gpu_uuid] = Trace(board.gpu_uuid)

    def limited(self, gpu_uuid: str, power_limit_w: float | None) -> None:
        """The most that a device may draw: more than that is no measurement."""
        if gpu_uuid in self._traces:
            self._traces[gpu_uuid].power_limit_w = power_limit_w

    def settle(self, balance: Balance, source: Source) -> None:
        """One settled interval of one device."""
        self._balance["measured_j"] += balance.measured_j
        self._balance["requests_j"] += balance.attributed_j
        self._balance["idle_j"] += balance.idle_j
        self._balance["engine_overhead_j"] += balance.engine_overhead_j
        for cause, joules in balance.unattributed_j_by_cause.items():
            self._unattributed_j[cause] = self._unattributed_j.get(cause, 0.0) + joules
        self._settled_sources.add(source)

    def charged(self, model: str, charge: Charge, now_ns: int) -> None:
        """What one settled interval charged the requests of an arm."""
        sums = {name: getattr(charge, name) for name in SUMS}
        group = self._group(model, charge.arm)
        add_to(group.sums, sums)
        group.sources.add(charge.source)
        self._sums_now.add(now_ns, sums)

    def finished(self, row: RequestRow, public_id: str | None, found: Reading | str, now_ns: int) -> None:
        """A request is settled; `found` is what was found in its response, or the reason why nothing is known."""
        record, energy = row.record, row.energy
        self._group(record.model, record.arm).requests += 1
        measured = is_measured(row)
        key = key_of(row.engine, row.engine_started_ns, row.number)
        kept_tokens = max(min(row.decode_tokens, record.output_tokens - 1), 0)
        told: dict[str, object] = {
            "key": key,
            "id": public_id if public_id is not None and _PUBLIC_ID.fullmatch(public_id) else None,
            "arm": self._arm(record.arm),
            "model": record.model,
            "arrival_s": seconds(record.arrival_ns),
            "first_token_s": None if record.first_token_ns is None else seconds(record.first_token_ns),
            "finished_s": None if record.finished_ns is None else seconds(record.finished_ns),
            "finish_reason": record.finish_reason,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "output_tokens": record.output_tokens,
            "prompt_j": energy.prompt_j if measured else None,
            "output_j": energy.output_j if measured else None,
            "error_j": energy.error_j if measured else None,
            "output_wh_per_token": energy.output_j / kept_tokens / JOULES_PER_WH if measured and kept_tokens else None,
            "energy_reason": None if measured else NOT_MEASURED,
            "method": energy.method,
            "source": energy.source,
            "waste_j": {},
            **eta_told(found),
            **self._early.pop(key, {}),
        }
        self._requests[key] = _Line(now_ns, told)
        if len(self._requests) > KEPT_REQUESTS:
            self._requests.popitem(last=False)

    def classified(
        self, row: RequestRow, reading: Reading, now_ns: int, reliability: Reliability = NOT_AUDITED
    ) -> None:
        """A settled request of which it is known how much was slack, perhaps before it is `finished`."""
        amounts = weighted(row, reading, reliability)
        add_to(self._group(row.record.model, row.record.arm).found, amounts)
        self._found_now.add(now_ns, amounts)
        self._tell(key_of(row.engine, row.engine_started_ns, row.number), eta_told(reading, reliability), now_ns)

    def wasted(self, row: RequestRow, waste: str, joules: float, now_ns: int) -> None:
        """So much of a settled request's output was lost, perhaps before it is `finished`; nothing, where it was not lost in this way."""
        add_to(self._group(row.record.model, row.record.arm).wasted_j, {waste: joules})
        if joules > 0:
            key = key_of(row.engine, row.engine_started_ns, row.number)
            known = self._requests[key].told if key in self._requests else self._early.get(key, {})
            lost = known.get("waste_j")
            self._tell(key, {"waste_j": {**(lost if isinstance(lost, dict) else {}), waste: joules}}, now_ns)

    def looked_after(self, sensors: Mapping[str, Sensor], sampling: Sampling) -> None:
        """How well the counters are read, now and then."""
        self._sensors |= sensors
        self._sampling = sampling

    def snapshot(
        self,
        now_ns: int,
        now_unix_s: float,
        *,
        since_ns: int,
        serving: Sequence[Serving] = (),
        running: Sequence[Running] = (),
    ) -> dict[str, object]:
        """All that the page shows, with the power and the requests of which something is newer than `since_ns`."""
        return {
            "version": SCHEMA_VERSION,
            "now_s": seconds(now_ns),
            "now_unix_s": round(now_unix_s, 3),
            "meter": self._about,
            "source": self.source,
            "counter": "+".join(sorted({board.counter for board in self._boards})),
            "engines": [asdict(each) for each in serving],
            "gpus": [self._gpu(board, now_ns, since_ns) for board in self._boards],
            "sampler": asdict(self._sampling),
            "window_s": WINDOW_S,
            "now": self._figures(now_ns),
            "arms": [self._told_group(model, arm, group) for (model, arm), group in self._groups.items()],
            "balance": self._told_balance(),
            "running": [each._asdict() for each in running],
            "requests": [line.told for line in self._requests.values() if line.changed_ns >= since_ns],
        }

    def _tell(self, key: str, news: Mapping[str, object], now_ns: int) -> None:
        line = self._requests.get(key)
        if line is not None:
            self._requests[key] = replace(line, changed_ns=now_ns, told={**line.told, **news})
            return
        self._early[key] = {**self._early.get(key, {}), **news}
        if len(self._early) > KEPT_REQUESTS:
            self._early.popitem(last=False)

    def _gpu(self, board: Board, now_ns: int, since_ns: int) -> dict[str, object]:
        trace = self._traces[board.gpu_uuid]
        power_w, reason = trace.now(now_ns)
        start_ns, watts = trace.since(since_ns)
        sensor = self._sensors.get(board.gpu_uuid)
        return {
            **asdict(board),
            "power_w": power_w,
            "power_reason": reason,
            "trace": {"start_s": seconds(start_ns), "step_s": STEP_NS * 1e-9, "watts": watts},
            "sensor": None if sensor is None else asdict(sensor),
            "sensor_reason": NO_DEVICE if sensor is None else None if sensor.fitted_intervals else NO_FIT,
        }

    def _figures(self, now_ns: int) -> dict[str, object]:
        sums = dict.fromkeys(SUMS, 0.0) | self._sums_now.sums(now_ns)
        figures = per_token(sums)
        eta = bound(self._found_now.sums(now_ns))
        return {
            **figures,
            "prompt_reason": NO_TOKENS if figures["prompt_j_per_token"] is None else None,
            "output_reason": NO_TOKENS if figures["output_j_per_token"] is None else None,
            "prompt_tokens": sums["prompt_tokens"],
            "output_tokens": sums["output_tokens"],
            "eta": eta,
            "eta_reason": NONE_CLASSIFIED if eta is None else None,
        }

    def _told_group(self, model: str, arm: str, group: _Group) -> dict[str, object]:
        return {
            "model": model,
            "arm": arm,
            "requests": group.requests,
            **group.sums,
            **per_token(group.sums),
            "eta": bound(group.found),
            "wasted_j": dict(group.wasted_j),
            "source": weakest(frozenset(group.sources)) if group.sources else None,
        }

    def _told_balance(self) -> dict[str, object]:
        """Since the meter began. `residual_j` is what the balance misses: rounding, or a bug."""
        spent_j = math.fsum(joules for name, joules in self._balance.items() if name != "measured_j")
        unattributed_j = math.fsum(self._unattributed_j.values())
        return {
            **self._balance,
            "unattributed_j": dict(self._unattributed_j),
            "residual_j": self._balance["measured_j"] - spent_j - unattributed_j,
            "source": weakest(frozenset(self._settled_sources)) if self._settled_sources else None,
        }

    def _group(self, model: str, arm: str) -> _Group:
        key = (model, self._arm(arm))
        if key not in self._groups and len(self._groups) >= MAX_GROUPS:
            key = (OTHER, OTHER)
        return self._groups.setdefault(key, _Group())

    def _arm(self, arm: str) -> str:
        return arm if arm in self._arms else OTHER


def key_of(engine: str, engine_started_ns: int, number: int) -> str:
    """Names a request for good, and opens nothing."""
    return f"{engine}:{engine_started_ns // 1_000_000}:{number}"


def seconds(t_ns: int) -> float:
    """To the millisecond."""
    return round(t_ns * 1e-9, 3)
