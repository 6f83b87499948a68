"""The data-parallel ranks of a mixture of experts: several engines that work in step.

Each step passes over experts that are spread over all of them. A rank that has no requests of its own runs an empty pass for each step of
the others, and what its GPU takes for that above its idle power is owed by the requests of those steps. It stays in the balance of the GPU that took it,
and goes into the accounts of the requests where those are, with the other ranks: both are written in one batch, that of the GPU's own rank.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from etameter.attribution import BUBBLE_NS, Settlement, Shares, share_passes
from etameter.books import Books, Increment
from etameter.budgets import Draw
from etameter.costs import Costs
from etameter.gpu import Gpu, Settled
from etameter.ledger import RequestValues, RunningValues
from etameter.records import Source
from etameter.serving.ring import RingHeader
from etameter.spans import length_ns, union, within, without
from etameter.stages import Span
from etameter.steps import StepAssembler
from etameter.work import Array, IntArray, Step, Work

READ_MARGIN_NS = 20_000_000
"""A record is visible so soon after the instant it carries."""


def group_of(header: RingHeader) -> str | None:
    """Names the ranks that work in step with this engine, itself among them; None where it works alone, as ranks of a dense model do."""
    size, experts, group = (
        header.details.get(name) for name in ("data_parallel_size", "num_experts", "data_parallel_group")
    )
    if type(size) is not int or size < 2 or type(experts) is not int or experts < 2 or not group:
        return None
    stages = header.details.get("pipeline_parallel_size", 1)
    return f"{header.boot_id}|{header.model}|{size}|{stages}|{group}"


@dataclass(slots=True)
class Rank:
    """An engine, as the books of others of its group see it."""

    header: RingHeader
    assembler: StepAssembler
    books: Books
    steps: Sequence[list[Step]]
    """By stage of the pipeline."""
    gpus: dict[str, Gpu]
    stages: dict[str, int]
    """By GPU."""
    source: Source
    read_ns: int = 0
    """Its ring has been read up to here."""
    ended_ns: int | None = None
    group: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.group = group_of(self.header)

    @property
    def settled_until_ns(self) -> int:
        """Up to when all of its GPUs are settled; 0 before the first interval."""
        return min(gpu.frontier_ns or 0 for gpu in self.gpus.values())

    @property
    def costs(self) -> dict[str, Costs]:
        return {uuid: gpu.fit.costs for uuid, gpu in self.gpus.items()}

    @property
    def is_over(self) -> bool:
        """It has ended, and all that it burnt until then is settled: nobody has to wait for it."""
        return self.ended_ns is not None and self.settled_until_ns >= self.ended_ns

    def is_known_until(self, t_ns: int) -> bool:
        """Whether all of its steps that began before have ended."""
        if self.ended_ns is not None:
            return True
        in_flight_ns = self.assembler.oldest_in_flight_ns
        return self.read_ns - READ_MARGIN_NS >= t_ns and (in_flight_ns is None or in_flight_ns > t_ns)

    def worked(self, stage: int, start_ns: int, end_ns: int) -> list[Span]:
        """When one of its stages worked, or may have."""
        steps = ((step.dispatch_ns, step.done_ns) for step in self.steps[stage])
        return within([*steps, *self.unknown()], start_ns, end_ns)

    def unknown(self) -> list[Span]:
        """When it may have worked."""
        return [(each.start_ns, each.end_ns) for each in self.assembler.missing]

    def work(self, stage: int, spans: Sequence[Span]) -> tuple[Work, Array]:
        """The steps that one of its stages worked on in these spans, and the part of each that lies in them."""
        steps = [step for step in self.steps[stage] if step.done_ns > spans[0][0] and step.dispatch_ns < spans[-1][1]]
        there = [length_ns(within(spans, step.dispatch_ns, step.done_ns)) for step in steps]
        found = [(step, ns / (step.done_ns - step.dispatch_ns)) for step, ns in zip(steps, there, strict=True) if ns]
        gpu = self._gpu(stage)
        return gpu.work([step for step, _ in found]), np.array([part for _, part in found])

    def costs_of(self, stage: int) -> Costs:
        """What steps cost on a GPU of this stage."""
        return self._gpu(stage).fit.costs

    def _gpu(self, stage: int) -> Gpu:
        return next(gpu for uuid, gpu in self.gpus.items() if self.stages[uuid] == stage)

    def mark_partial(self, slots: IntArray) -> None:
        """Something that these requests cost nobody could meter. Those that are closed stay as they are."""
        self.books.mark_partial(np.intersect1d(slots, self.assembler.requests.slots))

    def rows(self, closed: IntArray, charged: Iterable[IntArray]) -> tuple[list[RequestValues], list[RunningValues]]:
        """Rows of requests that have come to their end, and of others that were charged for the first time; changes of the rest."""
        is_charged = np.zeros(len(self.assembler.requests.table), dtype=np.bool_)
        for each in charged:
            is_charged[each] = True
        is_charged[closed] = False
        running = np.flatnonzero(is_charged)
        is_written = self.books.is_written(running)
        whole = np.concatenate([closed, running[~is_written]])
        totals = self.books.totals(np.concatenate([whole, running[is_written]]), self.costs)
        settled = np.arange(len(whole)) < len(closed)
        rows = self.books.rows(totals.of(slice(len(whole))), settled, self.source) if len(whole) else []
        return rows, self.books.changes(totals.of(slice(len(whole), None)))


def elsewhere(peers: Sequence[Rank], stage: int, start_ns: int, end_ns: int, ended_ns: int | None) -> list[Span]:
    """When other ranks worked, or may have, before the one of this GPU `ended_ns`."""
    until_ns = end_ns + BUBBLE_NS if ended_ns is None else min(end_ns + BUBBLE_NS, ended_ns)
    return union(span for peer in peers for span in peer.worked(stage, start_ns - BUBBLE_NS, until_ns))


@dataclass(frozen=True, slots=True)
class Owed:
    """What requests of another rank owe for an interval of a GPU."""

    rank: Rank
    shares: Shares
    batch: float
    """Of its requests that ran together."""

    def charge(self, gpu_uuid: str, source: Source) -> list[Increment]:
        return self.rank.books.charge(gpu_uuid, self.shares, None, self.batch, source)

    def draws(self, gpu_uuid: str) -> list[Draw]:
        return self.rank.books.draws(self.shares, self.rank.costs.get(gpu_uuid))


def share_out(settled: Settled, peers: Sequence[Rank], stage: int) -> tuple[Settled, list[Owed]]:
    """Find who owes what the passes of an interval took. What nobody is known to owe stays `steps_missing`.

    Where several ranks worked at once, their steps pay in proportion to what the model says that they took themselves.
    """
    settlement, passes = settled.settlement, settled.passes
    doubted = passes  # an interval that isn't trusted
    if settled.is_trusted:
        doubted = [
            part for span in union(each for peer in peers for each in peer.unknown()) for part in within(passes, *span)
        ]
    for peer in peers if doubted else ():
        peer.mark_partial(np.unique(peer.work(stage, doubted)[0].row_request))
    known = without(passes, doubted)
    if not known or not settlement.passes_j:
        return settled, []
    working = [(peer, *peer.work(stage, known)) for peer in peers]
    weights = [peer.costs_of(stage).step_energy(work.step_features) * part for peer, work, part in working]
    known_j = settlement.passes_j * length_ns(known) / length_ns(passes)
    whole_j = sum(float(np.sum(each)) for each in weights)
    owed = [
        Owed(
            peer,
            share_passes(
                work,
                peer.costs_of(stage),
                part,
                weight * (known_j / whole_j),
                settlement.passes_variance_j2 * (float(np.sum(weight)) / whole_j) ** 2,
            ),
            work.mean_players,
        )
        for (peer, work, part), weight in zip(working, weights, strict=True)
        if len(part)
    ]
    return replace(settled, settlement=_paid(settlement, [each.shares for each in owed], known_j)), owed


def _paid(settlement: Settlement, shares: Sequence[Shares], known_j: float) -> Settlement:
    balance = settlement.balance
    paid_j = float(sum(np.sum(each.energy_j) for each in shares))
    causes = dict(balance.unattributed_j_by_cause)
    rest_j = causes.pop("steps_missing") - known_j
    if rest_j > 1e-12 * settlement.passes_j:  # no rounding
        causes["steps_missing"] = rest_j
    balance = replace(balance, attributed_j=balance.attributed_j + paid_j, unattributed_j_by_cause=causes)
    return replace(settlement, balance=balance)
