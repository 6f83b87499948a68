"""What the live page is told, gathered from the meter's parts. Clocks are read here."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version

from etameter.accounts import Batch
from etameter.counters import Described
from etameter.engine import Engine
from etameter.export.live import Board, Live, Sampling, Sensor, Serving
from etameter.ledger import RequestRow
from etameter.neighbours import foreign
from etameter.nodes.samplers import Samplers
from etameter.records import Conditions, Finding
from etameter.slack.reading import Reading
from etameter.slack.reliability import Reliability

SHOWN_RUNNING = 64
"""Of each engine."""
TOLD_AGAIN_NS = 3_000_000_000
"""A snapshot has what is new since some before it, so that one that was missed is no gap."""


class Display:
    """Belongs to the meter's event loop."""

    def __init__(
        self, counters: Sequence[Described], samplers: Samplers, engines: Sequence[Engine], arms: Iterable[str]
    ) -> None:
        """`engines` may grow."""
        self._samplers = samplers
        self._engines = engines
        self._live = Live((), arms, version("etameter"), time.monotonic_ns(), time.time())
        for each in counters:
            self.joined(each)

    def joined(self, counter: Described) -> None:
        """A device is metered from now on."""
        self._live.joined(Board(counter.gpu_uuid, counter.board_name, counter.kind, counter.source))
        self._live.limited(counter.gpu_uuid, counter.power_limit_w())

    def found(self, findings: Iterable[Finding], changes: Iterable[Conditions]) -> None:
        """What the sampler found."""
        for change in changes:
            if change.power_limit_w is not None:
                self._live.limited(change.gpu_uuid, change.power_limit_w)
        self._live.found(findings)

    def settled(self, batch: Batch) -> None:
        """Intervals, and what they charged."""
        now_ns = time.monotonic_ns()
        for (balance, source), increments in zip(batch.balances, batch.increments, strict=True):
            self._live.settle(balance, source)
            for each in increments:
                self._live.charged(batch.model, each, now_ns)

    def finished(self, row: RequestRow, public_id: str | None, found: Reading | str) -> None:
        """A request, and what was found in its response or the reason why nothing is known."""
        self._live.finished(row, public_id, found, time.monotonic_ns())

    def classified(self, row: RequestRow, reading: Reading, reliability: Reliability) -> None:
        """A settled request of which it is known how much was slack, and how far audits of its arm allow to rely on that."""
        self._live.classified(row, reading, time.monotonic_ns(), reliability)

    def wasted(self, row: RequestRow, waste: str, joules: float) -> None:
        """So much of a settled request's output was lost, or nothing."""
        self._live.wasted(row, waste, joules, time.monotonic_ns())

    def snapshot(self, *, whole: bool, dropped_messages: int) -> bytes:
        """A line of JSON: all that is kept, or what is new."""
        now_ns = time.monotonic_ns()
        self._live.looked_after(dict(self._sensors()), self._sampling(dropped_messages))
        told = self._live.snapshot(
            now_ns,
            time.time(),
            since_ns=0 if whole else now_ns - TOLD_AGAIN_NS,
            serving=list(self._serving()),
            running=[each for engine in self._engines for each in engine.accounts.running(SHOWN_RUNNING)],
        )
        return json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()

    def _serving(self) -> Iterator[Serving]:
        for engine in self._engines:
            header = engine.header
            if header is not None:
                settled_ns = engine.accounts.settled_until_ns
                yield Serving(
                    engine=header.engine,
                    model=header.model,
                    gpu_uuids=tuple(sorted(engine.gpus)),
                    running=engine.accounts.open_requests,
                    settled_until_s=round(settled_ns * 1e-9, 3) if settled_ns else None,
                    lost_records=engine.lost_records,
                    torn_records=engine.torn_records,
                )

    def _sensors(self) -> Iterator[tuple[str, Sensor]]:
        missed, processes = self._samplers.missed_edges(), self._samplers.processes()
        of_gpu = {uuid: engine for engine in self._engines for uuid in engine.gpus}
        for uuid, missed_edges in missed.items():
            engine = of_gpu.get(uuid, self._engines[0])
            timeline, costs = engine.accounts.timelines().get(uuid), engine.accounts.costs().get(uuid)
            if timeline is None or costs is None:
                continue
            pids, header, period_ns, fitted = processes[uuid], engine.header, timeline.period_ns, costs.intervals > 0
            yield (
                uuid,
                Sensor(
                    update_period_s=None if period_ns is None else period_ns * 1e-9,
                    missed_edges=missed_edges,
                    resets=timeline.resets,
                    neighbours=None if pids is None or header is None else foreign(pids, header.pid),
                    fitted_intervals=costs.intervals,
                    lag_s=costs.lag_ns * 1e-9 if fitted else None,
                    lag_error_s=costs.lag_error_ns * 1e-9 if fitted else None,
                    residual=costs.residual if fitted else None,
                    unidentified=costs.unidentified if fitted else None,
                ),
            )

    def _sampling(self, dropped_messages: int) -> Sampling:
        sampler = self._samplers.own
        return Sampling(
            polls=sampler.polls,
            missed_polls=sampler.missed_polls,
            mean_lateness_s=sampler.lateness_ns * 1e-9 / sampler.polls if sampler.polls else None,
            worst_lateness_s=sampler.worst_lateness_ns * 1e-9 if sampler.polls else None,
            dropped_edges=sampler.dropped,
            dropped_messages=dropped_messages,
        )
