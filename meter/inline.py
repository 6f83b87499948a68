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
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from etameter import config
from etameter.accounts import Accounts
from etameter.costs import Costs
from etameter.counters import Counter, nvml, rapl
from etameter.devices import Device
from etameter.errors import CounterError, EngineError
from etameter.joules import FIRST_EDGE_S, SETTLE_S, TICK_S, Joules
from etameter.ledger import RequestRow
from etameter.records import Balance, Source
from etameter.sampler import Sampler
from etameter.serving.ring import RingReader, boot_id


@dataclass(frozen=True, slots=True)
class DeviceEnergy:
    """What one device spent in a window. None where its counter can't say: it was reset, stood still or was lost."""

    gpu_uuid: str
    scope: str
    source: Source
    energy_j: float | None
    error_j: float
    """Half-width of the 95 % interval, for an unknown publishing lag of up to one update period too; the board's own gain
    (± 5 %) is apart from it."""
    bound_j: float
    """How far off it can be at most, whatever the board did within its counter's periods."""


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
        seen: float = 1.0,
    ) -> None:
        """Meter `counters` (those of this machine where none is given), which are closed at the end, and follow the engine that writes `ring`.

        `seen` is the part of each update period that the counters look at.
        """
        self._counters = counters or _counters()
        self._ring = ring
        self.accounts = open_accounts([Device.of(each) for each in self._counters], boot_id())
        self._joules = Joules(self._counters, seen)
        self._reader: RingReader | None = None
        self._rows: dict[tuple[int, int], RequestRow] = {}
        self._balances: list[Balance] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="etameter-window", daemon=True)
        for counter in self._counters:
            self.accounts.timelines()[counter.gpu_uuid].power_limit_w = counter.power_limit_w()

    def __enter__(self) -> Self:
        """Wait until every counter has surely moved, which takes an update period; the window begins then."""
        self._joules.start()
        deadline_s = time.monotonic() + FIRST_EDGE_S
        while still := self._joules.standing_still():
            self._advance()
            if time.monotonic() > deadline_s:
                self._give_back()
                raise CounterError(
                    "stale", f"the counter of {', '.join(still)} stands still", "etameter doctor says more"
                )
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
        self._rows |= {(row.engine_started_ns, row.number): row for row in self.accounts.open_rows()}
        self.requests = tuple(self._rows.values())

    @property
    def energy_j(self) -> float | None:
        """Over all devices; None where one of them can't say."""
        known = [device.energy_j for device in self.devices if device.energy_j is not None]
        return sum(known) if len(known) == len(self.devices) else None

    @property
    def error_j(self) -> float:
        """Of all devices together: they share their load and, if they are of one kind, their lag, so that errors add up."""
        return sum(device.error_j for device in self.devices)

    @property
    def bound_j(self) -> float:
        return sum(device.bound_j for device in self.devices)

    @property
    def average_w(self) -> float | None:
        return None if self.energy_j is None else self.energy_j / self.seconds

    @property
    def source(self) -> Source:
        return self._joules.source

    @property
    def sampler(self) -> Sampler:
        return self._joules.sampler

    @property
    def costs(self) -> dict[str, Costs]:
        """What a step costs, as fitted in the window, by device."""
        return self.accounts.costs()

    def energy_between(self, start_ns: int, end_ns: int) -> tuple[float, float] | None:
        """Joules of all devices in a part of the window, and half their 95 % interval; None where a counter can't say."""
        return self._joules.energy_between(start_ns, end_ns)

    def _device(self, counter: Counter) -> DeviceEnergy:
        about = counter.gpu_uuid, counter.scope, counter.source
        found = self._joules.of(counter.gpu_uuid, self.start_ns, self.end_ns)
        return (
            DeviceEnergy(*about, None, math.inf, math.inf) if found is None else DeviceEnergy(*about, *astuple(found))
        )

    def _is_complete(self) -> bool:
        if not self._joules.reach(self.end_ns):
            return False
        return self._reader is None or self.accounts.settled_until_ns >= self.end_ns

    def _run(self) -> None:
        while not self._stopping.wait(TICK_S):
            self._advance()

    def _advance(self) -> None:
        self._follow_ring()
        found = self._joules.advance()
        self.accounts.found(found)
        self.accounts.changed(self._joules.sampler.changes())
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
            if reader.abandoned():  # what a dead engine left
                reader.close()
                return
            try:
                self.accounts.open_engine(reader.header)
            except EngineError:  # it works on GPUs that this window doesn't read
                reader.close()
                self._ring = None
                return
            self._reader = reader
        if self._reader is not None:
            self.accounts.steps(self._reader.poll(), now_ns)

    def _give_back(self) -> None:
        self._joules.stop()
        if self._reader is not None:
            self._reader.close()


def window(
    gpu_uuids: Sequence[str] = (), engine: str = "engine-0", *, allow_shared: bool = False, seen: float = 1.0
) -> Window:
    """Meter what runs in a `with` block on these GPUs (all, where none is named; the CPU packages, where there is no NVML).

    A GPU that is split by MIG is refused unless `allow_shared`: its counter is that of all its parts, ``source=shared``.
    `seen` is the part of each update period that the counter looks at, where `etameter doctor --burst` found less than all of it:
    errors then cover what the rest may have been. Where an engine of this name runs with etameter's scheduler, in this process or another, its requests are metered too.

    Raises:
        CounterError: no counter can be read.
    """
    return Window(_counters(gpu_uuids, allow_shared=allow_shared), config.ring_path(engine), seen=seen)


def _counters(gpu_uuids: Sequence[str] = (), *, allow_shared: bool = False) -> Sequence[Counter]:
    """NVML's; RAPL's where there is no NVML library and no GPU was named. One that fails is an error."""
    try:
        return nvml.discover(gpu_uuids, allow_shared=allow_shared)
    except CounterError as error:
        if error.cause != "library_missing" or gpu_uuids:
            raise
    return rapl.discover()
