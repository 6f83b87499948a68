"""The books of one engine: edges and steps come in, settled batches go out. Reads no clock and does no I/O, so a recording replays exactly.

An interval between two edges is settled as soon as every step that touches it has ended. What is settled never changes.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from etameter.attribution import BUBBLE_NS, Shares, foresee
from etameter.books import UNLABELLED, Books, Increment, Owner
from etameter.budgets import Draw
from etameter.costs import Costs
from etameter.curves import Curve
from etameter.devices import Device, fit_key, gpus_of, in_order
from etameter.export.live import Running, key_of, seconds
from etameter.gpu import Gpu, Settled
from etameter.ledger import RequestRow, RequestValues, Resume, RunningValues, request_row, row_values
from etameter.ranks import READ_MARGIN_NS, Owed, Rank, elsewhere, share_out
from etameter.records import Balance, Conditions, Finding, Source, transfer_of, weakest
from etameter.requests import NEVER_NS, UNKNOWN_NS
from etameter.roofline import shape_of
from etameter.serving.ring import Record, RingHeader
from etameter.stages import stage_of
from etameter.steps import Missing, StepAssembler
from etameter.timeline import Timeline
from etameter.work import IntArray, Step, Work

FORESEEN_METHOD = "step-cost-foreseen"
"""Of a figure that no counter stands behind yet, only the model."""
FORESIGHT_NS = 2_000_000_000
"""The counter may be behind by so much without the figure being called foreseen: an interval, the lag, and a long step."""
STUCK_NS = 60_000_000_000
"""When nothing could be settled for so long, requests are closed without the missing part."""
HUNG_NS = 600_000_000_000
"""A step that has not ended after so long never will: the engine hangs, and what it does is not known."""
KEPT_FITS = 64
MAX_ANNOUNCED = 65_536


@dataclass(frozen=True, slots=True)
class Batch:
    """What is to be persisted at once."""

    balances: list[tuple[Balance, Source]]
    increments: list[list[Increment]]
    """For each balance."""
    request_ids: list[list[str]]
    """For each balance: the requests that had part in it."""
    requests: list[RequestValues]
    """Whole rows of requests: that have come to their end, or were charged for the first time."""
    running: list[RunningValues]
    """Running totals of the other requests that were charged."""
    resume: Resume
    model: str
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Of requests that have come to their end, by request id."""
    draws: list[list[Draw]] = field(default_factory=list)
    """For each balance: what budgets spent in it."""

    @property
    def drawn(self) -> list[tuple[Balance, Source, list[Draw]]]:
        """The settled intervals, and what budgets spent in each."""
        return [(*balance, draws) for balance, draws in zip(self.balances, self.draws, strict=True)]

    @property
    def rows(self) -> list[RequestRow]:
        """Of `requests`."""
        rows = [request_row(values) for values in self.requests]
        return [replace(row, curve=self.curves.get(row.record.request_id)) for row in rows]


class Accounts:
    """Settles the energy of `devices` on the requests of one engine."""

    def __init__(self, devices: Sequence[Device], boot_id: str, resume: Resume | None = None) -> None:
        """`resume` is of an earlier meter; after a reboot nothing of it is of use but its fits."""
        self._boot_id = boot_id
        self._resume = resume if resume is not None and resume.boot_id == boot_id else None
        self._fits = dict(resume.coefficients) if resume is not None else {}
        self._devices: dict[str, Device] = {}
        self._all_gpus: dict[str, Gpu] = {}
        self._gpus = self._all_gpus
        self._assembler: StepAssembler | None = None
        self.rank: Rank | None = None
        """What other ranks of a group see of these books; None before the first engine."""
        self.peers: Sequence[Rank] = ()
        """Those of the group of this engine, but for itself."""
        self._books: Books | None = None
        self._steps: list[list[Step]] = [[]]
        """By stage of the pipeline."""
        self._read_ns = self._first_read_ns = 0
        self._owners: OrderedDict[str, Owner] = OrderedDict()
        self._stages: dict[str, int] = {}
        self._settled_before_ns = min(self._resume.frontier_ns.values(), default=0) if self._resume else 0
        self._inherited: dict[int, RequestRow] = {}
        self._lost_rows: list[RequestRow] = []
        self._curves: dict[str, Curve] = {}
        self._foreseen: dict[str, Shares] | None = None
        """None where it has to be computed anew."""
        self.know(devices)

    def know(self, devices: Sequence[Device]) -> None:
        """These can be read, in this order, of which some were known before. An engine that is open goes on with those that it has."""
        resume = self._resume
        edges = {edge.gpu_uuid: edge for edge in resume.last_edges} if resume else {}
        frontiers = resume.frontier_ns if resume else {}
        known = self._all_gpus
        self._devices = {device.gpu_uuid: device for device in devices}
        self._all_gpus = {
            uuid: known.get(uuid) or Gpu(uuid, device.board_name, edges.get(uuid), frontiers.get(uuid))
            for uuid, device in self._devices.items()
        }
        if self._gpus is known:
            self._gpus = self._all_gpus

    def limited(self, limits_w: Mapping[str, float | None]) -> None:
        """The most that each GPU may draw, as far as it is known."""
        for uuid, gpu in self._all_gpus.items():
            gpu.timeline.power_limit_w = limits_w[uuid]

    @property
    def devices(self) -> list[Device]:
        return [self._devices[uuid] for uuid in self._gpus]

    @property
    def source(self) -> Source:
        """What a sum over the devices may claim."""
        return weakest(frozenset(device.source for device in self.devices))

    def costs(self) -> dict[str, Costs]:
        """The fit in use, by GPU."""
        return {uuid: gpu.fit.costs for uuid, gpu in self._gpus.items()}

    def timelines(self) -> dict[str, Timeline]:
        return {uuid: gpu.timeline for uuid, gpu in self._gpus.items()}

    @property
    def settled_until_ns(self) -> int:
        """Up to when all devices are settled, those of the engine's group too; 0 before the first interval."""
        own_ns = min(gpu.frontier_ns or 0 for gpu in self._gpus.values())
        return min([own_ns, *(peer.settled_until_ns for peer in self.peers if not peer.is_over)])

    def inherit(self, rows: Iterable[RequestRow]) -> None:
        """Requests that an earlier meter left open: their energy goes on from there."""
        self._inherited.clear()
        self._inherited |= {row.number: row for row in rows}

    def open_engine(self, header: RingHeader) -> None:
        """A ring has appeared, or taken the place of an earlier one whose `close_engine` was called and whose steps are settled.

        Raises EngineError, and changes nothing, where it can't be told which of the GPUs the engine works on.
        """
        chosen = gpus_of(header, list(self._devices.values()))
        self._foreseen = None
        if self._assembler is not None and self._books is not None:
            slots = self._assembler.requests.slots
            settled = np.ones(len(slots), dtype=np.bool_)
            values = self._books.rows(self._books.totals(slots, self.costs()), settled, self.source)
            self._lost_rows += [request_row(each) for each in values]
            self._forget(self._assembler, self._books, slots)
        self._assembler = StepAssembler(header)
        self._steps = [[] for _ in self._assembler.steps]
        self._books = Books(header, self._assembler.requests, self._owners, self._inherited)
        if self._resume is None or self._resume.ring_created_ns != header.created_ns:
            self._settled_before_ns = 0
            # One of this engine may have been charged by a rank beside it before this one had settled anything.
            ended = [row for row in self._inherited.values() if row.engine_started_ns != header.created_ns]
            self._lost_rows += [_lost(row, header.created_ns) for row in ended]
            for row in ended:
                del self._inherited[row.number]
        self._gpus = {uuid: gpu for uuid, gpu in self._all_gpus.items() if uuid in chosen}
        self._stages = self._stage_of_each(header, len(self._steps))
        for uuid, gpu in self._gpus.items():
            shape = shape_of({} if self._devices[uuid].kind == "simulated" else header.details)
            gpu.expect(shape, self._fits.get(fit_key(uuid, header)))
        self.rank = Rank(header, self._assembler, self._books, self._steps, self._gpus, self._stages, self.source)

    def _stage_of_each(self, header: RingHeader, stages: int) -> dict[str, int]:
        """The pipeline stage that a GPU works for: the engine names its GPUs in the order of its workers. What stands for all of them is the last."""
        named = in_order(header, [self._devices[uuid] for uuid in self._gpus])
        places = {uuid: place for place, uuid in enumerate(named)}
        return {
            uuid: stage_of(places[uuid], len(named), stages) if uuid in places else stages - 1 for uuid in self._gpus
        }

    def close_engine(self, now_ns: int) -> None:
        """The engine is gone: its requests are over."""
        if self._assembler is not None:
            self._assembler.abandon(now_ns)
        if self.rank is not None:
            self.rank.ended_ns = now_ns

    def announce(self, receipt_id: str, arm: str, budgets: tuple[str, ...] | None = ()) -> None:
        """The middleware has seen a request, and says on which budgets it draws, None where it doesn't. One prompt of it may come to the engine long after
        another, or none: the oldest are forgotten.
        """
        self._owners[receipt_id] = Owner(arm, budgets)
        if len(self._owners) > MAX_ANNOUNCED:
            self._owners.popitem(last=False)

    def found(self, items: Iterable[Finding]) -> None:
        """What the sampler found."""
        for item in items:
            if item.gpu_uuid in self._all_gpus:
                self._all_gpus[item.gpu_uuid].timeline.add(item)

    def changed(self, changes: Iterable[Conditions]) -> None:
        """Power cap or throttling are others now: a new epoch of the fit begins."""
        self._foreseen = None
        for change in changes:
            if change.gpu_uuid in self._all_gpus:
                timeline = self._all_gpus[change.gpu_uuid].timeline
                timeline.power_limit_w = change.power_limit_w or timeline.power_limit_w
            if change.gpu_uuid in self._gpus:
                self._gpus[change.gpu_uuid].fit.restart()

    def steps(self, records: Iterable[Record], read_ns: int) -> None:
        """What the ring held at `read_ns`."""
        self._foreseen = None
        if self._assembler is None or self.rank is None:
            return
        self._assembler.feed(records)
        self._assembler.give_up(read_ns - HUNG_NS, read_ns)
        for known, new in zip(self._steps, self._assembler.steps, strict=True):
            known.extend(new)
            new.clear()
        self._read_ns = self.rank.read_ns = read_ns
        self._first_read_ns = self._first_read_ns or read_ns

    def settle(self) -> Batch | None:
        """Settle all that can be; None where there is nothing new."""
        self._foreseen = None
        for uuid, gpu in self._all_gpus.items():
            gpu.collect()
            if self._assembler is None:
                gpu.await_engine()
            elif uuid not in self._gpus:
                gpu.leave()
        if self._assembler is None or self._books is None or self.rank is None:
            return None
        assembler, books = self._assembler, self._books
        balances: list[tuple[Balance, Source]] = []
        increments: list[list[Increment]] = []
        draws: list[list[Draw]] = []
        charged: list[IntArray] = []
        owed: list[Owed] = []
        for index, gpu in enumerate(self._gpus.values()):
            source = self._devices[gpu.gpu_uuid].source
            for settled, of_others in self._settle_gpu(assembler, books, self.rank, gpu):
                shares = settled.settlement.shares
                # Tokens are counted with the joules that they cost, or not at all.
                ended = settled.ended if index == 0 and len(shares.slots) else None
                batch = settled.settlement.work.mean_players
                own = books.charge(gpu.gpu_uuid, shares, ended, batch, source)
                increments.append(own + [one for each in of_others for one in each.charge(gpu.gpu_uuid, source)])
                drawn = books.draws(shares, gpu.fit.costs)
                draws.append(drawn + [one for each in of_others for one in each.draws(gpu.gpu_uuid)])
                owed += of_others
                balances.append((settled.settlement.balance, source))
                charged.append(shares.slots)
        request_ids = [assembler.requests.table["request_id"][slots].tolist() for slots in charged]
        rows, running = self._rows(assembler, books, self.rank, charged)
        for peer in self.peers:
            slots = [each.shares.slots for each in owed if each.rank is peer]
            if slots:
                whole, changes = peer.rows(np.zeros(0, dtype=np.int64), slots)
                rows, running = rows + whole, running + changes
        self._prune(assembler)
        rows = [*map(row_values, self._lost_rows), *rows]
        if not balances and not rows:
            return None
        self._lost_rows = []
        curves, self._curves = self._curves, {}
        where, model = self._where(assembler), assembler.header.model
        return Batch(balances, increments, request_ids, rows, running, where, model, curves, draws)

    def rows_of(self, receipt_id: str) -> list[RequestRow]:
        """The open requests of a response, with what the model foresees for the steps that are not settled yet.

        Where the counter has been silent for longer than `FORESIGHT_NS`, their source is no better than `estimated`.
        """
        if self._assembler is None or self._books is None:
            return []
        slots = self._assembler.requests.slots
        slots = slots[self._assembler.requests.table["receipt_id"][slots] == receipt_id]
        foreseen = self._foresee() if len(slots) else {}
        settled = np.zeros(len(slots), dtype=np.bool_)
        values = self._books.rows(self._books.totals(slots, self.costs(), foreseen), settled, self.source)
        curves = self._books.curves(slots)
        rows = [_with_curve(request_row(each), curves) for each in values]
        if self._read_ns - self.settled_until_ns <= FORESIGHT_NS:
            return rows
        source = weakest(frozenset({self.source, "estimated"}))
        return [replace(row, energy=replace(row.energy, method=FORESEEN_METHOD, source=source)) for row in rows]

    def prefilled(self, transfer: str) -> set[str]:
        """Receipts of the open requests that prefill a prompt for this transfer."""
        if self._assembler is None:
            return set()
        table, slots = self._assembler.requests.table, self._assembler.requests.slots
        ids = zip(table["request_id"][slots].tolist(), table["receipt_id"][slots].tolist(), strict=True)
        return {receipt_id for request_id, receipt_id in ids if transfer_of(request_id) == ("p", transfer)}

    def _foresee(self) -> dict[str, Shares]:
        """What all requests are expected to be charged for the steps that are not settled yet, by GPU: the same for all who ask before more is known."""
        if self._foreseen is None:
            self._foreseen = {}
            for uuid, gpu in self._gpus.items():
                since_ns = gpu.frontier_ns or 0
                steps = self._steps[self._stages[uuid]]
                steps = steps[bisect_right(steps, since_ns, key=lambda step: step.done_ns) :]
                if steps:
                    self._foreseen[uuid] = foresee(gpu.work(steps), gpu.fit.costs, since_ns)
        return self._foreseen

    def open_rows(self) -> list[RequestRow]:
        """All requests that were charged and have not come to their end."""
        if self._books is None:
            return []
        slots = self._books.slots
        settled = np.zeros(len(slots), dtype=np.bool_)
        totals = self._books.totals(slots, self.costs())
        return [request_row(each) for each in self._books.rows(totals, settled, self.source)]

    def running(self, most: int) -> list[Running]:
        """The latest `most` of the requests that are not settled yet, as far as their steps have told."""
        if self._assembler is None:
            return []
        header, requests = self._assembler.header, self._assembler.requests
        lines = requests.table[requests.slots[-most:]]
        tokens = np.maximum(lines["output_tokens"], lines["decode_tokens"] + (lines["first_token_ns"] != UNKNOWN_NS))
        columns = (lines[name].tolist() for name in ("number", "receipt_id", "arrival_ns", "prompt_tokens"))
        ends = (lines[name].tolist() for name in ("first_token_ns", "finished_ns"))
        return [
            Running(
                key=key_of(header.engine, header.created_ns, number),
                arm=self._owners[receipt_id].arm if receipt_id in self._owners else UNLABELLED,
                model=header.model,
                arrival_s=seconds(arrival_ns),
                first_token_s=None if first_token_ns == UNKNOWN_NS else seconds(first_token_ns),
                finished_s=None if finished_ns == NEVER_NS else seconds(finished_ns),
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
            )
            for number, receipt_id, arrival_ns, prompt_tokens, first_token_ns, finished_ns, output_tokens in zip(
                *columns, *ends, tokens.tolist(), strict=True
            )
        ]

    @property
    def open_requests(self) -> int:
        """How many requests have not ended yet."""
        if self._assembler is None:
            return 0
        requests = self._assembler.requests
        return int((requests.table["finished_ns"][requests.slots] == NEVER_NS).sum())

    def _settle_gpu(
        self, assembler: StepAssembler, books: Books, rank: Rank, gpu: Gpu
    ) -> list[tuple[Settled, list[Owed]]]:
        found = []
        stage = self._stages[gpu.gpu_uuid]
        while (span := gpu.next_span()) is not None:
            start_ns, end_ns = span
            if not self._all_known_until(assembler, end_ns + BUBBLE_NS):
                break
            if gpu.frontier_ns is None:
                self._begin(books, start_ns)
            beside = elsewhere(self.peers, stage, start_ns, end_ns, rank.ended_ns)
            settled = gpu.settle(
                start_ns, end_ns, self._steps[stage], assembler.header.created_ns, assembler.missing, beside
            )
            _mark_partial(books, settled.unpaid)
            found.append(share_out(settled, self.peers, stage) if settled.passes else (settled, []))
        return found

    def _begin(self, books: Books, start_ns: int) -> None:
        """Metering begins in the middle of things: what was over before is not metered, what runs is metered in part."""
        self._settled_before_ns = max(self._settled_before_ns, start_ns)
        _mark_partial(books, [step for step in self._steps[0] if step.dispatch_ns < start_ns])

    def _all_known_until(self, assembler: StepAssembler, t_ns: int) -> bool:
        in_flight_ns = assembler.oldest_in_flight_ns
        own = self._read_ns - READ_MARGIN_NS >= t_ns and (in_flight_ns is None or in_flight_ns > t_ns)
        return own and all(peer.is_known_until(t_ns) for peer in self.peers)

    def _rows(
        self, assembler: StepAssembler, books: Books, rank: Rank, charged: Sequence[IntArray]
    ) -> tuple[list[RequestValues], list[RunningValues]]:
        """Rows of requests that have come to their end, which are then forgotten, and of others that were charged; changes of the rest."""
        requests, settled_ns = assembler.requests, self.settled_until_ns
        slots = requests.slots
        ends_ns = np.maximum(requests.table["finished_ns"], requests.table["last_done_ns"])
        over = slots[ends_ns[slots] <= max(settled_ns, self._read_ns - STUCK_NS)]
        given_up = over[ends_ns[over] > settled_ns]
        if len(given_up):  # given up waiting for the counter: what it may tell yet of that time is nobody's
            books.mark_partial(given_up)
            if assembler.missing and assembler.missing[-1].start_ns == settled_ns:
                assembler.missing.pop()
            assembler.missing.append(Missing(settled_ns, int(ends_ns[given_up].max())))
        before_ns = np.where(ends_ns[over] <= settled_ns, self._settled_before_ns, self._first_read_ns)
        is_ours = (ends_ns[over] > before_ns) | books.has_row(over)
        if self._inherited:
            is_ours |= np.isin(requests.table["number"][over], list(self._inherited))
        closed = over[is_ours]
        rows, changes = rank.rows(closed, charged)
        self._curves |= books.curves(closed)
        self._forget(assembler, books, over)
        return rows, changes

    def _forget(self, assembler: StepAssembler, books: Books, slots: IntArray) -> None:
        books.close(slots)
        for slot in slots.tolist():
            assembler.requests.forget(slot)

    def _prune(self, assembler: StepAssembler) -> None:
        """Drop what every GPU has settled, or will never settle, but for the neighbours that a gap after it needs."""
        horizon_ns = max(self.settled_until_ns, self._read_ns - STUCK_NS) - 2 * BUBBLE_NS
        for steps in self._steps:
            del steps[: bisect_right(steps, horizon_ns, key=lambda step: step.done_ns)]
        unsettled_ns = self.settled_until_ns - 2 * BUBBLE_NS
        assembler.missing[:] = [span for span in assembler.missing if span.end_ns > unsettled_ns]
        assembler.requests.free(min((steps[0].dispatch_ns for steps in self._steps if steps), default=self._read_ns))

    def _where(self, assembler: StepAssembler) -> Resume:
        for uuid, costs in self.costs().items():
            if costs.intervals:
                key = fit_key(uuid, assembler.header)
                self._fits.pop(key, None)  # the latest stands last
                self._fits[key] = costs.energy.tolist(), costs.time_s.tolist()
        return Resume(
            boot_id=self._boot_id,
            ring_created_ns=assembler.header.created_ns,
            frontier_ns={uuid: gpu.frontier_ns for uuid, gpu in self._gpus.items() if gpu.frontier_ns is not None},
            last_edges=tuple(gpu.settled_edge for gpu in self._gpus.values() if gpu.settled_edge is not None),
            coefficients=dict(list(self._fits.items())[-KEPT_FITS:]),
        )


def _lost(row: RequestRow, now_ns: int) -> RequestRow:
    record = replace(row.record, finished_ns=now_ns, finish_reason="engine_lost")
    return replace(row, record=record, energy=replace(row.energy, settled=True))


def _with_curve(row: RequestRow, curves: Mapping[str, Curve]) -> RequestRow:
    """A curve of what is settled goes on with what is foreseen."""
    curve = curves.get(row.record.request_id)
    tokens = max(row.record.output_tokens, row.decode_tokens)
    return row if curve is None else replace(row, curve=curve.extended(tokens, row.energy.output_j))


def _mark_partial(books: Books, steps: Iterable[Step]) -> None:
    for step in steps:
        books.mark_partial(Work([step]).row_request)
