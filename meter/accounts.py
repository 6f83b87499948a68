"""The books of one engine: edges and steps come in, settled batches go out. Reads no clock and does no I/O, so a recording replays exactly.

An interval between two edges is settled as soon as every step that touches it has ended. What is settled never changes.
"""

import math
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from etameter.attribution import BUBBLE_NS, Settlement, Share, attribute, foresee
from etameter.costs import TERMS, CostFit, Costs, work_of
from etameter.errors import EngineError
from etameter.ledger import RequestRow, Resume
from etameter.records import (
    Balance,
    Conditions,
    Edge,
    Finding,
    Interval,
    RequestEnergy,
    RequestRecord,
    Source,
    Step,
    weakest,
)
from etameter.roofline import QWEN3_8B, board_of, roofline_prior, shape_of
from etameter.serving.ring import Record, RingHeader
from etameter.steps import Missing, RequestProgress, StepAssembler
from etameter.timeline import Timeline

METHOD = "step-cost"
"""Unless the ring's writer names another in its details: one that only guesses the steps does."""
PARTIAL_METHOD = "step-cost-partial"
"""Of a request that ran in part while nobody could meter it: its energy is a lower bound."""
FORESEEN_METHOD = "step-cost-foreseen"
"""Of a figure that no counter stands behind yet, only the model."""
FORESIGHT_NS = 2_000_000_000
"""The counter may be behind by so much without the figure being called foreseen: an interval, the lag, and a long step."""
START_UP_NS, START_UP_PART_NS = 600_000_000_000, 10_000_000_000
"""Of the energy before an engine appears, so much is taken to be its start-up."""
STUCK_NS = 60_000_000_000
"""When nothing could be settled for so long, requests are closed without the missing part."""
READ_MARGIN_NS = 20_000_000
"""A record is visible so soon after the instant it carries."""
FIT_EVERY_INTERVALS = 20
NO_COVARIANCE = np.zeros((len(TERMS), len(TERMS)))
KEPT_FITS = 64
FIT_DETAILS = (
    "quantization",
    "kv_cache_dtype",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "vllm_version",
)
MAX_ANNOUNCED = 65_536
UNLABELLED = "unlabelled"
"""The arm of a request of which no middleware spoke."""


@dataclass(frozen=True, slots=True)
class Device:
    """A board, and how its counter is read."""

    gpu_uuid: str
    kind: str
    source: Source
    board_name: str


@dataclass(frozen=True, slots=True)
class Increment:
    """What one settled interval charged a request, and the tokens it paid for."""

    request_id: str
    arm: str
    prompt_j: float
    output_j: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    first_tokens: int
    source: Source


@dataclass(frozen=True, slots=True)
class Batch:
    """What is to be persisted at once."""

    balances: list[tuple[Balance, Source]]
    increments: list[list[Increment]]
    """For each balance."""
    rows: list[RequestRow]
    resume: Resume
    model: str


@dataclass(slots=True)
class _Account:
    arm: str
    partial: bool = False
    shares: dict[str, Share] = field(default_factory=dict)
    """By GPU, whose coefficients are fitted apart; what an earlier meter settled stands under ""."""


class _Gpu:
    def __init__(self, device: Device, last_edge: Edge | None, frontier_ns: int | None) -> None:
        self.device = device
        self.timeline = Timeline(device.gpu_uuid, last_edge=last_edge)
        self.pending: deque[Interval] = deque()
        self.frontier_ns = frontier_ns
        self.settled_edge = last_edge
        self.fit = CostFit(roofline_prior(board_of(device.board_name), QWEN3_8B))
        self.unfitted = 0

    def await_engine(self) -> None:
        """Without an engine there is nothing to settle yet: keep what may turn out to be its start-up, in a few long intervals."""
        joined: deque[Interval] = deque(maxlen=START_UP_NS // START_UP_PART_NS)
        for interval in self.pending:
            if joined and joined[-1].end_ns - joined[-1].start_ns < START_UP_PART_NS:
                joined[-1] = _joined(joined[-1], interval)
            else:
                joined.append(interval)
        self.pending = deque(joined)

    def leave(self) -> None:
        """No engine of ours works here: its energy is nobody's, and metering begins anew when one does."""
        self.pending.clear()
        self.frontier_ns = self.settled_edge = None


class Accounts:
    """Settles the energy of `devices` on the requests of one engine."""

    def __init__(self, devices: Sequence[Device], boot_id: str, resume: Resume | None = None) -> None:
        """`resume` is of an earlier meter; after a reboot nothing of it is of use but its fits."""
        self._boot_id = boot_id
        self._resume = resume if resume is not None and resume.boot_id == boot_id else None
        self._fits = dict(resume.coefficients) if resume is not None else {}
        edges = {edge.gpu_uuid: edge for edge in self._resume.last_edges} if self._resume else {}
        frontiers = self._resume.frontier_ns if self._resume else {}
        self._all_gpus = {
            device.gpu_uuid: _Gpu(device, edges.get(device.gpu_uuid), frontiers.get(device.gpu_uuid))
            for device in devices
        }
        self._gpus = self._all_gpus
        self._assembler: StepAssembler | None = None
        self._steps: list[Step] = []
        self._read_ns = self._first_read_ns = 0
        self._accounts: dict[str, _Account] = {}
        self._arms: OrderedDict[str, str] = OrderedDict()
        self._settled_before_ns = min(frontiers.values(), default=0)
        self._inherited: dict[int, RequestRow] = {}
        self._lost_rows: list[RequestRow] = []

    @property
    def devices(self) -> list[Device]:
        return [gpu.device for gpu in self._gpus.values()]

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
        """Up to when all devices are settled; 0 before the first interval."""
        return min(gpu.frontier_ns or 0 for gpu in self._gpus.values())

    def inherit(self, rows: Iterable[RequestRow]) -> None:
        """Requests that an earlier meter left open: their energy goes on from there."""
        self._inherited = {row.number: row for row in rows}

    def open_engine(self, header: RingHeader) -> None:
        """A ring has appeared, or taken the place of an earlier one whose `close_engine` was called and whose steps are settled.

        Raises EngineError where it can't be told which of the GPUs the engine works on.
        """
        if self._assembler is not None:
            for request in self._assembler.requests.values():
                self._lost_rows.append(self._close_account(self._assembler, request))
        self._accounts.clear()
        self._steps.clear()
        self._assembler = StepAssembler(header)
        if self._resume is None or self._resume.ring_created_ns != header.created_ns:
            self._settled_before_ns = 0
            self._lost_rows += [_lost(row, header.created_ns) for row in self._inherited.values()]
            self._inherited.clear()
        self._gpus = self._chosen(header)
        for uuid, gpu in self._gpus.items():
            if gpu.fit.costs.intervals == 0:
                fitted = self._fits.get(fit_key(uuid, header))
                shape = shape_of({} if gpu.device.kind == "simulated" else header.details)
                gpu.fit = CostFit(roofline_prior(board_of(gpu.device.board_name), shape), fitted)

    def _chosen(self, header: RingHeader) -> dict[str, _Gpu]:
        """The GPUs that the engine works on. A simulated board, or the machine's CPU packages, stand for whatever it names."""
        named = {uuid: gpu for uuid, gpu in self._all_gpus.items() if uuid in header.gpu_uuids}
        boards = [uuid for uuid, gpu in self._all_gpus.items() if gpu.device.kind == "nvml"]
        if named or not boards:
            return named or self._all_gpus
        if header.gpu_uuids:
            raise EngineError(
                f"engine {header.engine} runs on {', '.join(header.gpu_uuids)}, this meter reads {', '.join(boards)}",
                "run the meter where those GPUs are",
            )
        if len(boards) > 1:
            raise EngineError(
                f"engine {header.engine} does not say on which of {len(boards)} GPUs it runs",
                "let the ring's writer name them in gpu_uuids",
            )
        return self._all_gpus

    def close_engine(self, now_ns: int) -> None:
        """The engine is gone: its requests are over."""
        if self._assembler is not None:
            self._assembler.abandon(now_ns)

    def announce(self, receipt_id: str, arm: str) -> None:
        """The middleware has seen a request. It may be refused before it reaches the engine: the oldest are forgotten."""
        self._arms[receipt_id] = arm
        if len(self._arms) > MAX_ANNOUNCED:
            self._arms.popitem(last=False)

    def found(self, items: Iterable[Finding]) -> None:
        """What the sampler found."""
        for item in items:
            if item.gpu_uuid in self._all_gpus:
                self._all_gpus[item.gpu_uuid].timeline.add(item)

    def changed(self, changes: Iterable[Conditions]) -> None:
        """Power cap or throttling are others now: a new epoch of the fit begins."""
        for change in changes:
            if change.gpu_uuid in self._gpus:
                self._gpus[change.gpu_uuid].fit.restart()

    def steps(self, records: Iterable[Record], read_ns: int) -> None:
        """What the ring held at `read_ns`."""
        if self._assembler is None:
            return
        self._assembler.feed(records)
        self._steps.extend(self._assembler.steps)
        self._assembler.steps.clear()
        self._read_ns = read_ns
        self._first_read_ns = self._first_read_ns or read_ns

    def settle(self) -> Batch | None:
        """Settle all that can be; None where there is nothing new."""
        for uuid, gpu in self._all_gpus.items():
            gpu.pending.extend(gpu.timeline.take())
            if self._assembler is None:
                gpu.await_engine()
            elif uuid not in self._gpus:
                gpu.leave()
        if self._assembler is None:
            return None
        balances: list[tuple[Balance, Source]] = []
        increments: list[list[Increment]] = []
        for index, gpu in enumerate(self._gpus.values()):
            for settlement in self._settle_gpu(self._assembler, gpu):
                balances.append((settlement.balance, gpu.device.source))
                increments.append(self._charge(self._assembler, gpu.device, settlement, counts_tokens=index == 0))
        charged = {increment.request_id for interval in increments for increment in interval}
        rows = [*self._lost_rows, *self._rows(self._assembler, charged)]
        self._prune(self._assembler)
        if not balances and not rows:
            return None
        self._lost_rows = []
        return Batch(balances, increments, rows, self._where(self._assembler), self._assembler.header.model)

    def rows_of(self, receipt_id: str) -> list[RequestRow]:
        """The open requests of a response, with what the model foresees for the steps that are not settled yet.

        Where the counter has been silent for longer than `FORESIGHT_NS`, their source is no better than `estimated`.
        """
        if self._assembler is None:
            return []
        requests = [request for request in self._assembler.requests.values() if request.receipt_id == receipt_id]
        foreseen: dict[str, dict[str, Share]] = {}
        for uuid, gpu in self._gpus.items():
            since_ns = gpu.frontier_ns or 0
            steps = self._steps[bisect_right(self._steps, since_ns, key=lambda step: step.done_ns) :]
            if requests and steps:
                foreseen[uuid] = foresee(work_of(steps), gpu.fit.costs, since_ns)
        rows = [self._row(self._assembler, request, settled=False, foreseen=foreseen) for request in requests]
        if self._read_ns - self.settled_until_ns <= FORESIGHT_NS:
            return rows
        source = weakest(frozenset({self.source, "estimated"}))
        return [replace(row, energy=replace(row.energy, method=FORESEEN_METHOD, source=source)) for row in rows]

    def _settle_gpu(self, assembler: StepAssembler, gpu: _Gpu) -> list[Settlement]:
        settled = []
        while gpu.pending:
            interval = gpu.pending[0]
            lag_ns = gpu.fit.costs.lag_ns
            start_ns = interval.start_ns - lag_ns if gpu.frontier_ns is None else gpu.frontier_ns
            end_ns = interval.end_ns - lag_ns
            if end_ns <= start_ns:  # another lag was learned: this interval is settled with the next one
                if len(gpu.pending) < 2:
                    break
                gpu.pending.popleft()
                gpu.pending[0] = _joined(interval, gpu.pending[0])
                continue
            if not self._all_known_until(assembler, end_ns + BUBBLE_NS):
                break
            if gpu.frontier_ns is None:
                self._begin(assembler, start_ns)
            gpu.pending.popleft()
            settled.append(self._attribute(assembler, gpu, interval, start_ns, end_ns))
            gpu.frontier_ns = end_ns
            gpu.settled_edge = Edge(interval.gpu_uuid, interval.end_ns, interval.end_half_width_ns, interval.end_mj)
        return settled

    def _begin(self, assembler: StepAssembler, start_ns: int) -> None:
        """Metering begins in the middle of things: what was over before is not metered, what runs is metered in part."""
        self._settled_before_ns = max(self._settled_before_ns, start_ns)
        for step in self._steps:
            if step.dispatch_ns < start_ns:
                self._mark_partial(assembler, step)

    def _all_known_until(self, assembler: StepAssembler, t_ns: int) -> bool:
        in_flight_ns = assembler.oldest_in_flight_ns
        return self._read_ns - READ_MARGIN_NS >= t_ns and (in_flight_ns is None or in_flight_ns > t_ns)

    def _attribute(
        self, assembler: StepAssembler, gpu: _Gpu, interval: Interval, start_ns: int, end_ns: int
    ) -> Settlement:
        first = bisect_right(self._steps, start_ns - BUBBLE_NS, key=lambda step: step.done_ns)
        last = bisect_left(self._steps, end_ns + BUBBLE_NS, key=lambda step: step.dispatch_ns)
        steps = self._steps[first:last]
        work = work_of(steps)
        started_ns = assembler.header.created_ns
        settlement = attribute(interval, start_ns, end_ns, work, gpu.fit.costs, started_ns, assembler.missing)
        if not settlement.shares:  # what ran then, if anything, is paid by nobody
            for step in steps:
                if step.dispatch_ns < end_ns and step.done_ns > start_ns:
                    self._mark_partial(assembler, step)
        ended = [step for step in steps if start_ns < step.done_ns <= end_ns]
        gpu.fit.add_steps(work_of(ended))
        if interval.cause is None and start_ns >= started_ns and not _touches(assembler.missing, start_ns, end_ns):
            gpu.fit.add_interval(interval)
            gpu.unfitted += 1
            if gpu.unfitted >= max(FIT_EVERY_INTERVALS, min(gpu.fit.costs.intervals // 10, 10 * FIT_EVERY_INTERVALS)):
                gpu.unfitted = 0
                gpu.fit.fit()
        return settlement

    def _mark_partial(self, assembler: StepAssembler, step: Step) -> None:
        for row in step.scheduled:
            request = assembler.requests.get(row.request_id)
            if request is not None:
                self._account(request).partial = True

    def _charge(
        self, assembler: StepAssembler, device: Device, settlement: Settlement, *, counts_tokens: bool
    ) -> list[Increment]:
        """Book the shares, and say what they paid for."""
        tokens: dict[str, list[int]] = {request_id: [0, 0, 0, 0] for request_id in settlement.shares}
        if counts_tokens and settlement.shares:  # tokens are counted with the joules that they cost, or not at all
            self._count_tokens(assembler, settlement.balance, tokens)
        increments = []
        for request_id, (prompt, cached, output, first) in tokens.items():
            account = self._account(assembler.requests[request_id])
            share = settlement.shares.get(request_id, Share())
            account.shares.setdefault(device.gpu_uuid, Share()).add(share)
            increments.append(
                Increment(
                    request_id,
                    account.arm,
                    share.prompt_j,
                    share.output_j,
                    prompt,
                    cached,
                    output,
                    first,
                    device.source,
                )
            )
        return increments

    def _count_tokens(self, assembler: StepAssembler, balance: Balance, tokens: dict[str, list[int]]) -> None:
        first = bisect_right(self._steps, balance.start_ns, key=lambda step: step.done_ns)
        for step in self._steps[first:]:
            if step.done_ns > balance.end_ns:
                break
            for row in step.scheduled:
                counts = tokens.setdefault(row.request_id, [0, 0, 0, 0])
                request = assembler.requests[row.request_id]
                computed = row.context_tokens + row.prefill_tokens
                ends_prefill = bool(row.prefill_tokens) and not row.decode_tokens and computed >= request.prompt_tokens
                counts[0] += row.prefill_tokens
                counts[1] += row.cached_tokens
                counts[2] += row.decode_tokens + row.accepted_tokens + ends_prefill
                counts[3] += ends_prefill

    def _account(self, request: RequestProgress) -> _Account:
        account = self._accounts.get(request.request_id)
        if account is not None:
            if account.arm == UNLABELLED:  # after a restart the middleware's word may come late
                account.arm = self._arms.get(request.receipt_id or "", UNLABELLED)
            return account
        account = _Account(self._arms.get(request.receipt_id or "", UNLABELLED))
        self._accounts[request.request_id] = account
        inherited = self._inherited.pop(request.number, None)
        if inherited is not None:
            energy = inherited.energy
            account.partial = energy.method == PARTIAL_METHOD
            account.arm = inherited.record.arm if account.arm == UNLABELLED else account.arm
            account.shares[""] = Share(
                energy.prompt_j,
                energy.output_j,
                energy.marginal_j,
                energy.recomputed_j,
                energy.draft_waste_j,
                energy.avoided_j,
                (energy.error_j / 1.96) ** 2,
            )
        return account

    def _rows(self, assembler: StepAssembler, charged: set[str]) -> list[RequestRow]:
        """Rows of requests that were charged or have come to their end, which are then forgotten."""
        settled_ns = self.settled_until_ns
        frontier_ns = max(settled_ns, self._read_ns - STUCK_NS)
        rows = []
        for request in list(assembler.requests.values()):
            end_ns = None if request.finished_ns is None else max(request.finished_ns, request.last_done_ns)
            if end_ns is not None and end_ns <= frontier_ns:
                if end_ns > settled_ns:  # given up waiting for the counter
                    self._account(request).partial = True
                before_ns = self._settled_before_ns if end_ns <= settled_ns else self._first_read_ns
                if end_ns > before_ns or request.number in self._inherited:
                    rows.append(self._close_account(assembler, request))
                self._accounts.pop(request.request_id, None)
                assembler.forget(request.request_id)
            elif request.request_id in charged:
                rows.append(self._row(assembler, request, settled=False))
        return rows

    def _close_account(self, assembler: StepAssembler, request: RequestProgress) -> RequestRow:
        row = self._row(assembler, request, settled=True)
        self._accounts.pop(request.request_id, None)
        self._arms.pop(request.receipt_id or "", None)
        return row

    def _row(
        self,
        assembler: StepAssembler,
        request: RequestProgress,
        *,
        settled: bool,
        foreseen: Mapping[str, Mapping[str, Share]] | None = None,
    ) -> RequestRow:
        header, account = assembler.header, self._account(request)
        coming = {uuid: shares.get(request.request_id) for uuid, shares in (foreseen or {}).items()}
        total, variance_j2 = Share(), 0.0
        for uuid in {*account.shares, *coming}:
            gpu_total = Share()
            for share in (account.shares.get(uuid), coming.get(uuid)):
                if share is not None:
                    gpu_total.add(share)
            total.add(gpu_total)
            gpu = self._gpus.get(uuid)
            covariance = NO_COVARIANCE if gpu is None else gpu.fit.costs.covariance
            variance_j2 += (gpu_total.error_j(covariance) / 1.96) ** 2
        energy = RequestEnergy(
            request.request_id,
            total.prompt_j,
            total.output_j,
            total.marginal_j,
            total.recomputed_j,
            total.draft_waste_j,
            total.avoided_j,
            1.96 * math.sqrt(variance_j2),
            settled,
            PARTIAL_METHOD if account.partial else str(header.details.get("method", METHOD)),
            self.source,
        )
        record = RequestRecord(
            request.request_id,
            request.receipt_id,
            header.model,
            account.arm,
            request.arrival_ns,
            request.first_token_ns,
            request.finished_ns,
            request.prompt_tokens,
            request.cached_tokens,
            request.output_tokens,
            request.finish_reason,
        )
        return RequestRow(
            header.engine,
            header.created_ns,
            request.number,
            record,
            energy,
            request.prefill_tokens,
            request.decode_tokens,
        )

    def _prune(self, assembler: StepAssembler) -> None:
        """Drop what every GPU has settled, or will never settle, but for the neighbours that a gap after it needs."""
        horizon_ns = max(self.settled_until_ns, self._read_ns - STUCK_NS) - 2 * BUBBLE_NS
        del self._steps[: bisect_right(self._steps, horizon_ns, key=lambda step: step.done_ns)]
        assembler.missing[:] = [span for span in assembler.missing if span.end_ns > horizon_ns]

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


def _touches(spans: Iterable[Missing], start_ns: int, end_ns: int) -> bool:
    return any(span.start_ns < end_ns and span.end_ns > start_ns for span in spans)


def fit_key(gpu_uuid: str, header: RingHeader) -> str:
    """What coefficients depend on beside the board's conditions: an engine that agrees in all of it may start with the last one's fit."""
    details = (str(header.details.get(name, "")) for name in FIT_DETAILS)
    return "|".join([gpu_uuid, header.model, header.dtype, *details])


def _lost(row: RequestRow, now_ns: int) -> RequestRow:
    record = replace(row.record, finished_ns=now_ns, finish_reason="engine_lost")
    return replace(row, record=record, energy=replace(row.energy, settled=True))


def _joined(first: Interval, second: Interval) -> Interval:
    return replace(
        second,
        start_ns=first.start_ns,
        start_half_width_ns=first.start_half_width_ns,
        energy_j=first.energy_j + second.energy_j,
        cause=first.cause or second.cause,
    )
