"""What the host spends beside its GPUs: CPU packages and DRAM by RAPL, shared by residency. A figure of its own, never added to a GPU's joules.

The kernel counts whole packages: whatever else runs on them is in this figure too. So it isn't measured work of a request but its part of the
machine's upkeep, split equally, moment by moment, among the requests that the engine worked on; a moment without any is paid by nobody.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from etameter.counters.rapl import POWERCAP, RaplCounter
from etameter.errors import CounterError
from etameter.records import receipt_id_of

Domain = Literal["package", "dram"]
DOMAINS: tuple[Domain, ...] = ("package", "dram")
MOST_RECEIPTS = 65_536
KEPT_SPANS = 600
"""Host energy waits so many readings for the GPU's intervals to be settled; then nobody pays it."""
SILENT_NS = 10_000_000_000
"""An engine of which nothing was settled for so long isn't waited for."""


@dataclass(frozen=True, slots=True)
class Stay:
    """What the requests of one settled interval pay of the host, alike; without `request_ids` nobody does."""

    request_ids: tuple[str, ...]
    energy_j: Mapping[Domain, float]
    """Of all of them together, by domain."""


class HostCounters:
    """The RAPL domains of this host. Where it has none, or this user may not read them, there are none: the figure is then absent."""

    def __init__(self, powercap: Path = POWERCAP, *, packages: bool = True) -> None:
        """Leave `packages` out where they are metered themselves, in place of a GPU."""
        self._counters: list[tuple[Domain, RaplCounter, int]] = []
        self.absent_because: str | None = None
        for domain, folder in _folders(powercap, packages=packages):
            try:
                counter = RaplCounter(folder)
                self._counters.append((domain, counter, counter.read_mj()))
            except CounterError as error:
                self.absent_because = str(error)

    def __len__(self) -> int:
        return len(self._counters)

    @property
    def domains(self) -> list[Domain]:
        """Those that are read of any socket."""
        read = {domain for domain, _, _ in self._counters}
        return [domain for domain in DOMAINS if domain in read]

    def read(self) -> dict[Domain, float]:
        """Joules since the last call, by domain. A counter that was reset or can't be read adds nothing to this call."""
        spent_j: dict[Domain, float] = {}
        for index, (domain, counter, last_mj) in enumerate(self._counters):
            try:
                now_mj = counter.read_mj()
            except CounterError:
                continue
            self._counters[index] = (domain, counter, now_mj)
            spent_j[domain] = spent_j.get(domain, 0.0) + max(now_mj - last_mj, 0) / 1000
        return spent_j


def _folders(powercap: Path, *, packages: bool) -> list[tuple[Domain, Path]]:
    found: list[tuple[Domain, Path]] = []
    for package in sorted(powercap.glob("*-rapl:*")):
        if not _name(package).startswith("package-"):
            continue
        found += [("package", package)] if packages else []
        beneath = {*powercap.glob(f"{package.name}:*"), *package.glob(f"{package.name}:*")}
        by_name = {each.name: each for each in sorted(beneath)}  # the kernel shows a domain in both places
        found += [("dram", each) for each in by_name.values() if _name(each) == "dram"]
    return found


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text().strip()
    except OSError:
        return ""


class Residency:
    """Splits the host's joules among those who were there. Pure: the caller brings the instants."""

    def __init__(self) -> None:
        self._spans: deque[tuple[int, int, Mapping[Domain, float]]] = deque()
        self._settled: dict[str, deque[tuple[int, int, tuple[str, ...]]]] = {}
        """By engine."""
        self._known_ns: dict[str, int] = {}
        self._split_ns = 0

    def spent(self, start_ns: int, end_ns: int, energy_j: Mapping[Domain, float]) -> None:
        """What the host took between two readings, the second of which comes with the next call's first."""
        if end_ns > start_ns:
            self._spans.append((start_ns, end_ns, energy_j))

    def resided(self, start_ns: int, end_ns: int, request_ids: Sequence[str], engine: str = "") -> None:
        """Who was worked on by an engine in a settled interval. An engine's intervals come in order of time."""
        if end_ns > start_ns:
            self._settled.setdefault(engine, deque()).append((start_ns, end_ns, tuple(request_ids)))
            self._known_ns[engine] = end_ns

    def take(self) -> list[Stay]:
        """What can be split: intervals over which the host was read, and of which every engine has spoken that goes on speaking."""
        stays = []
        read_ns = self._spans[-1][1] if self._spans else 0
        horizon_ns = min(
            [read_ns, *(known_ns for known_ns in self._known_ns.values() if known_ns > read_ns - SILENT_NS)]
        )
        while present := self._present():
            start_ns = max(self._split_ns, min(interval[0] for interval in present))
            end_ns = min(start if start > start_ns else end for start, end, _ in present)
            if end_ns > horizon_ns:
                break
            there = [request_ids for start, _, request_ids in present if start <= start_ns]
            stays += [self._until(start_ns, ()), self._until(end_ns, tuple(dict.fromkeys(chain.from_iterable(there))))]
            self._split_ns = end_ns
        while len(self._spans) > KEPT_SPANS:
            stays.append(self._until(self._spans[0][1], ()))
        return [stay for stay in stays if stay.energy_j]

    def _present(self) -> list[tuple[int, int, tuple[str, ...]]]:
        """Each engine's first interval that isn't over."""
        for intervals in self._settled.values():
            while intervals and intervals[0][1] <= self._split_ns:
                intervals.popleft()
        return [intervals[0] for intervals in self._settled.values() if intervals]

    def _until(self, t_ns: int, request_ids: tuple[str, ...]) -> Stay:
        """What was spent from where the last one ended to `t_ns`: even between two readings."""
        energy_j: dict[Domain, float] = {}
        while self._spans:
            start_ns, end_ns, spent_j = self._spans[0]
            if start_ns >= t_ns:
                break
            part = min(1.0, (t_ns - start_ns) / (end_ns - start_ns))
            for domain, joules in spent_j.items():
                energy_j[domain] = energy_j.get(domain, 0.0) + part * joules
            self._spans.popleft()
            if part < 1.0:
                rest_j = {domain: (1.0 - part) * joules for domain, joules in spent_j.items()}
                self._spans.appendleft((t_ns, end_ns, rest_j))
        return Stay(request_ids, energy_j)


class HostMeter:
    """Reads the host's counters when told to, and keeps what the last `MOST_RECEIPTS` receipts had of it."""

    def __init__(self, counters: HostCounters, now_ns: int) -> None:
        self._counters = counters
        self._residency = Residency()
        self._read_ns = now_ns
        self._of_receipt: OrderedDict[str, dict[Domain, float]] = OrderedDict()

    def resided(self, start_ns: int, end_ns: int, request_ids: Sequence[str], engine: str = "") -> None:
        """Who was worked on in a settled interval of an engine's GPU."""
        if len(self._counters):
            self._residency.resided(start_ns, end_ns, request_ids, engine)

    def read(self, now_ns: int) -> list[Stay]:
        """Read the counters, and split what can be."""
        if not len(self._counters):
            return []
        self._residency.spent(self._read_ns, now_ns, self._counters.read())
        self._read_ns = now_ns
        stays = self._residency.take()
        for stay in stays:
            for request_id in stay.request_ids:
                receipt_id = receipt_id_of(request_id)
                if receipt_id is not None:
                    self._book(receipt_id, stay)
        return stays

    def of(self, receipt_id: str) -> dict[str, float]:
        """The receipt's part of the host up to the last reading: `host_package_joules`, `host_dram_joules`; empty where it isn't known."""
        return {f"host_{domain}_joules": joules for domain, joules in self._of_receipt.get(receipt_id, {}).items()}

    def _book(self, receipt_id: str, stay: Stay) -> None:
        booked = self._of_receipt.setdefault(receipt_id, {})
        for domain, joules in stay.energy_j.items():
            booked[domain] = booked.get(domain, 0.0) + joules / len(stay.request_ids)
        if len(self._of_receipt) > MOST_RECEIPTS:
            self._of_receipt.popitem(last=False)
