"""Metering inside the process that is metered: `etameter.window`, around any code.

    with etameter.window() as w:
        model.generate(prompts)
    print(w.energy_j, w.error_j, w.source)

Around vLLM's offline `LLM`, whose scheduler writes a ring, the window also says what each request cost:

    llm = LLM(model, scheduler_cls="etameter.serving.scheduler.metered_scheduler")
    with etameter.window() as w:
        llm.generate(prompts)
    for row in w.requests:
        print(row.record.request_id, row.energy.energy_j, row.energy.error_j)

No server and no meter process is needed; one that runs isn't disturbed.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from etameter import config
from etameter.accounts import Accounts, Device
from etameter.costs import Costs
from etameter.counters import Counter, nvml, rapl
from etameter.errors import CounterError, EngineError
from etameter.ledger import RequestRow
from etameter.records import Balance, Edge, Source, weakest
from etameter.sampler import Sampler
from etameter.serving.ring import RingReader, boot_id
from etameter.timeline import Timeline

TICK_S = 0.05
FIRST_EDGE_S = 3.0
SETTLE_S = 3.0
"""So long is waited at the end for the counter's next publication, and for the last steps to be settled."""
KEPT_EDGES = 1 << 22
SHIFTS = (0.5, 1.0)
"""Parts of an update period by which the counter may lag: what they would change is part of the error."""
DEFAULT_PERIOD_NS = 100_000_000


@dataclass(frozen=True, slots=True)
class DeviceEnergy:
    """What one device spent in a window. None where its counter can't say: it was reset, stood still or was lost."""

    gpu_uuid: str
    scope: str
    source: Source
    energy_j: float | None
    error_j: float
    """A bound, for an unknown publishing lag of up to one update period too; the board's own gain (± 5 %) is apart from it."""


class Window:
    """Joules from the beginning of a `with` block to its end. The figures stand when the block has ended.

    Raises:
        CounterError: no counter can be read, or one stands still.
    """

    devices: tuple[DeviceEnergy, ...]
    seconds: float
    requests: tuple[RequestRow, ...]
    """Of the engine whose ring was followed: those that ran in the window."""
    balances: tuple[Balance, ...]
    """The settled intervals that touch the window, of that engine."""

    def __init__(
        self,
        counters: Sequence[Counter] = (),
        ring: Path | None = None,
        open_accounts: Callable[[Sequence[Device], str], Accounts] = Accounts,
    ) -> None:
        """Meter `counters` (those of this machine where none is given), which are closed at the end, and follow the engine that writes `ring`."""
        self._counters = counters or _counters()
        self._ring = ring
        self.accounts = open_accounts(
            [Device(each.gpu_uuid, each.kind, each.source, each.board_name) for each in self._counters], boot_id()
        )
        self.sampler = Sampler(self._counters)
        self._timelines = {each.gpu_uuid: Timeline(each.gpu_uuid, kept_edges=KEPT_EDGES) for each in self._counters}
        self._last_ns = dict.fromkeys(self._timelines, 0)
        self._reader: RingReader | None = None
        self._rows: dict[tuple[int, int], RequestRow] = {}
        self._balances: list[Balance] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="etameter-window", daemon=True)
        for counter in self._counters:
            limit_w = counter.power_limit_w()
            self._timelines[counter.gpu_uuid].power_limit_w = limit_w
            self.accounts.timelines()[counter.gpu_uuid].power_limit_w = limit_w

    def __enter__(self) -> Self:
        """Wait until every counter was seen to move, which takes an update period; the window begins then."""
        self.sampler.start()
        deadline_s = time.monotonic() + FIRST_EDGE_S
        while not all(self._last_ns.values()):
            self._advance()
            if time.monotonic() > deadline_s:
                self._give_back()
                still = ", ".join(uuid for uuid, t_ns in self._last_ns.items() if not t_ns)
                raise CounterError("stale", f"the counter of {still} stands still", "etameter doctor says more")
            time.sleep(0.005)
        self._thread.start()
        self.start_ns = time.monotonic_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the window, and wait up to three seconds for what is published late."""
        self.end_ns = time.monotonic_ns()
        self._stopping.set()
        self._thread.join()
        deadline_s = time.monotonic() + SETTLE_S
        while not self._is_complete() and time.monotonic() < deadline_s:
            time.sleep(0.01)
            self._advance()
        self._give_back()
        self.seconds = (self.end_ns - self.start_ns) * 1e-9
        self.devices = tuple(self._device(counter) for counter in self._counters)
        self.balances = tuple(
            one for one in self._balances if one.end_ns > self.start_ns and one.start_ns < self.end_ns
        )
        self.requests = tuple(self._rows.values())

    @property
    def energy_j(self) -> float | None:
        """Over all devices; None where one of them can't say."""
        known = [device.energy_j for device in self.devices if device.energy_j is not None]
        return sum(known) if len(known) == len(self.devices) else None

    @property
    def error_j(self) -> float:
        return sum(device.error_j for device in self.devices)

    @property
    def average_w(self) -> float | None:
        return None if self.energy_j is None else self.energy_j / self.seconds

    @property
    def source(self) -> Source:
        return weakest(frozenset(counter.source for counter in self._counters))

    @property
    def costs(self) -> dict[str, Costs]:
        """What a step costs, as fitted in the window, by device."""
        return self.accounts.costs()

    def energy_between(self, start_ns: int, end_ns: int) -> tuple[float, float] | None:
        """Joules of all devices in a part of the window, and a bound of their error; None where a counter can't say."""
        try:
            parts = [timeline.energy_between(start_ns, end_ns) for timeline in self._timelines.values()]
        except ValueError:
            return None
        energy_j, error_j = (sum(figures) for figures in zip(*parts, strict=True))
        return (energy_j, error_j) if math.isfinite(error_j) else None

    def _device(self, counter: Counter) -> DeviceEnergy:
        timeline = self._timelines[counter.gpu_uuid]
        unknown = DeviceEnergy(counter.gpu_uuid, counter.scope, counter.source, None, math.inf)
        try:
            energy_j, error_j = timeline.energy_between(self.start_ns, self.end_ns)
            lagging_j = [
                timeline.energy_between(self.start_ns + shift_ns, self.end_ns + shift_ns)[0]
                for shift_ns in (int(part * self._period_ns(counter.gpu_uuid)) for part in SHIFTS)
            ]
        except ValueError:
            return unknown
        if not math.isfinite(error_j):
            return unknown
        error_j += max(abs(other_j - energy_j) for other_j in lagging_j)
        return DeviceEnergy(counter.gpu_uuid, counter.scope, counter.source, energy_j, error_j)

    def _period_ns(self, gpu_uuid: str) -> int:
        return self._timelines[gpu_uuid].period_ns or DEFAULT_PERIOD_NS

    def _is_complete(self) -> bool:
        if any(t_ns < self.end_ns + self._period_ns(uuid) for uuid, t_ns in self._last_ns.items()):
            return False
        return self._reader is None or self.accounts.settled_until_ns >= self.end_ns

    def _run(self) -> None:
        while not self._stopping.wait(TICK_S):
            self._advance()

    def _advance(self) -> None:
        self._follow_ring()
        found = self.sampler.drain()
        for one in found:
            timeline = self._timelines[one.gpu_uuid]
            timeline.add(one)
            timeline.take()
            if isinstance(one, Edge):
                self._last_ns[one.gpu_uuid] = one.t_ns
        self.accounts.found(found)
        self.accounts.changed(self.sampler.changes())
        batch = self.accounts.settle()
        if batch is not None:
            self._balances += [balance for balance, _ in batch.balances]
            self._rows |= {(row.engine_started_ns, row.number): row for row in batch.rows}

    def _follow_ring(self) -> None:
        now_ns = time.monotonic_ns()
        if self._reader is not None and self._reader.replaced():
            self.accounts.close_engine(now_ns)
            self._reader.close()
            self._reader = None
        if self._reader is None and self._ring is not None:
            try:
                reader = RingReader(self._ring)
            except (FileNotFoundError, EngineError):
                return
            if not Path(f"/proc/{reader.header.pid}").exists():  # what a dead engine left
                reader.close()
                return
            self._reader = reader
            self.accounts.open_engine(reader.header)
        if self._reader is not None:
            self.accounts.steps(self._reader.poll(), now_ns)

    def _give_back(self) -> None:
        self.sampler.stop()
        if self._reader is not None:
            self._reader.close()
        for counter in self._counters:
            counter.close()


def window(gpu_uuids: Sequence[str] = (), engine: str = "engine-0") -> Window:
    """Meter what runs in a `with` block on these GPUs (all, where none is named; the CPU packages, where there is no NVML).

    Where an engine of this name runs with etameter's scheduler, in this process or another, its requests are metered too.

    Raises:
        CounterError: no counter can be read.
    """
    counters = nvml.discover(gpu_uuids) if gpu_uuids else ()
    return Window(counters, config.ring_path(engine))


def _counters() -> Sequence[Counter]:
    """NVML's; RAPL's where there is no NVML library. One that fails is an error."""
    try:
        return nvml.discover()
    except CounterError as error:
        if error.cause != "library_missing":
            raise
    return rapl.discover()
