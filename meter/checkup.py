"""What is looked at every second and not with each step: whether sampler, rings, fits and queues are well, and how budgets stand."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from etameter.backlog import Backlog
from etameter.budgets import Budgets
from etameter.engine import Engine
from etameter.export import standings
from etameter.export.events import Events
from etameter.export.prometheus import Metrics
from etameter.export.socket import MiddlewareSocket
from etameter.host import HostMeter
from etameter.neighbours import foreign
from etameter.nodes.samplers import Samplers
from etameter.writing import Writing

LATE_BATCHES = 60
"""When more of an engine wait for the ledger, which is some seconds of work, it isn't known how budgets stand."""
LATE_NS = 10_000_000_000
"""Nor when what an engine took has been unsettled for so long: its counter doesn't answer, or a step doesn't end."""


class Checkup:
    """Tells metrics of parts that count for themselves."""

    def __init__(
        self,
        metrics: Metrics,
        samplers: Samplers,
        engines: Sequence[Engine],
        host: HostMeter,
        writing: Writing,
        backlogs: Sequence[Backlog[Any]],
        socket: MiddlewareSocket,
        events: Events,
    ) -> None:
        """`backlogs` wait for the ledger as `writing` does."""
        self._metrics = metrics
        self._samplers = samplers
        self._engines = engines
        self._host = host
        self._writing = writing
        self._backlogs = backlogs
        self._socket = socket
        self._events = events

    def look(self) -> None:
        for stay in self._host.read(time.monotonic_ns()):
            self._metrics.host(stay.energy_j, paid=bool(stay.request_ids))
        of_gpu = {uuid: engine for engine in self._engines for uuid in engine.gpus}
        self._look_at_sampler(of_gpu)
        self._metrics.socket(dropped=self._socket.dropped)
        self._metrics.listeners(dropped=self._events.dropped)
        self._metrics.backlog(waiting=len(self._writing), dropped=sum(each.dropped for each in self._backlogs))
        for engine in self._engines:
            self._look_at(engine, of_gpu)

    def budgets(self, budgets: Budgets) -> dict[str, Any]:
        """How budgets stand, for the server's middleware; nothing while more may have been spent than they know."""
        now_ns = time.monotonic_ns()
        is_late = len(self._writing) > LATE_BATCHES * len(self._engines) or any(
            engine.is_behind(now_ns, LATE_NS) for engine in self._engines
        )
        standing = {} if is_late else budgets.standings(time.time())
        self._metrics.budgets(standing)
        return {name: standings.told(name, each) for name, each in standing.items()}

    def _look_at_sampler(self, of_gpu: Mapping[str, Engine]) -> None:
        sampler = self._samplers.own
        self._metrics.sampler(
            polls=sampler.polls,
            missed_polls=sampler.missed_polls,
            lateness_ns=sampler.lateness_ns,
            cost_ns=sampler.cost_ns,
            dropped=sampler.dropped,
        )
        for node in self._samplers.nodes:
            self._metrics.node(node.name, error_ns=node.error_ns)
        # First, for other machines may tell of more counters meanwhile, and never of fewer.
        missed = self._samplers.missed_edges()
        processes, throttled = self._samplers.processes(), self._samplers.throttled()
        for uuid, missed_edges in missed.items():
            header = of_gpu[uuid].header if uuid in of_gpu else None
            pids = processes[uuid]
            neighbours = foreign(pids, header.pid) if pids is not None and header is not None else None
            self._metrics.watched(uuid, missed_edges=missed_edges, throttled=throttled[uuid], neighbours=neighbours)

    def _look_at(self, engine: Engine, of_gpu: Mapping[str, Engine]) -> None:
        costs = engine.accounts.costs()
        for uuid, timeline in engine.accounts.timelines().items():
            if of_gpu.get(uuid, engine) is not engine:
                continue
            self._metrics.counter(uuid, resets=timeline.resets, period_ns=timeline.period_ns)
            if costs[uuid].intervals:
                self._metrics.fitted(uuid, costs[uuid])
        if engine.header is not None:
            self._metrics.ring(engine.header.engine, lost_records=engine.lost_records, torn_records=engine.torn_records)
