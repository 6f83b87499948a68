"""What the open requests of one engine were charged, by slot and GPU, and how that is told: rows for the ledger, sums for metrics."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from etameter.attribution import AMOUNTS, OUTPUT_J, PROMPT_J, VARIANCE_J2, Shares, form_variance_j2
from etameter.budgets import Draw
from etameter.costs import Costs
from etameter.curves import Curve, Curves
from etameter.ledger import RequestRow, RequestValues, RunningValues
from etameter.records import Source
from etameter.requests import NEVER_NS, UNKNOWN_NS, Requests
from etameter.serving.ring import RingHeader
from etameter.timeline import NORMAL_95
from etameter.work import TERMS, Array, BoolArray, IntArray, Work

METHOD = "step-cost"
"""Unless the ring's writer names another in its details: one that only guesses the steps does."""
GUESS_ERROR = 0.38
"""Relative standard error of a request's energy, beside the stated one, where its steps are guessed: from `python -m benchmarks.guessed`. Of a server
whose other clients are not seen it can be off by more."""
PARTIAL_METHOD = "step-cost-partial"
"""Of a request that ran in part while nobody could meter it: its energy is a lower bound."""
_Named = TypeVar("_Named")
UNLABELLED = "unlabelled"
"""The arm of a request of which no middleware spoke."""
INHERITED = ""
"""In place of a GPU: what an earlier meter settled."""


class Owner(NamedTuple):
    """Whose a request is, as the middleware says."""

    arm: str
    budgets: tuple[str, ...] | None = ()
    """That it draws on. None where nobody has said."""


@dataclass(frozen=True, slots=True)
class Increment:
    """What one settled interval charged the requests of an arm, and the tokens they paid for."""

    arm: str
    prompt_j: float
    output_j: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    first_tokens: int
    batch: float
    """Requests that ran together, on the mean over the interval's steps."""
    source: Source


@dataclass(frozen=True, slots=True)
class Totals:
    """What requests were charged: a line for each."""

    slots: IntArray
    amounts: Array  # n × 7: AMOUNTS
    variance_j2: Array  # of the energy; errors are independent between GPUs

    def of(self, lines: slice) -> "Totals":
        """Some of them."""
        return Totals(self.slots[lines], self.amounts[lines], self.variance_j2[lines])

    def figures(self) -> list[list[float]]:
        """Columns of the ledger, from prompt_j to error_j."""
        columns: list[list[float]] = self.amounts[:, :VARIANCE_J2].T.tolist()
        return [*columns, (NORMAL_95 * np.sqrt(self.variance_j2)).tolist()]


class Books:
    """Accounts are opened when something is first to be booked."""

    def __init__(
        self,
        header: RingHeader,
        requests: Requests,
        owners: Mapping[str, Owner],
        inherited: MutableMapping[int, RequestRow],
    ) -> None:
        """`owners` by receipt id; `inherited` by the request's number, taken out as they are booked."""
        self._header = header
        self._method = str(header.details.get("method", METHOD))
        self._requests = requests
        self._owners = owners
        self._inherited = inherited
        self._open = np.zeros(0, dtype=np.bool_)
        self._written = np.zeros(0, dtype=np.bool_)
        self._partial = np.zeros(0, dtype=np.bool_)
        self._resumed = np.zeros(0, dtype=np.bool_)
        """An earlier meter knows how their output began."""
        self._owned = np.zeros(0, dtype=np.bool_)
        """The middleware has said whose they are."""
        self._arm = np.zeros(0, dtype=np.int64)
        self._arm_names = [UNLABELLED]
        self._budgets = np.zeros(0, dtype=np.int64)
        self._drawn_on: list[tuple[str, ...] | None] = [None]
        self._totals: dict[str, Shares] = {}
        self._curves = Curves()

    def open(self, slots: IntArray) -> None:
        """Have accounts for these requests, with what is known of them by now."""
        self._grow()
        for slot in slots[~self._open[slots]].tolist():
            self._begin(slot)
        if self._owners:
            nameless = slots[~self._owned[slots]]  # after a restart the middleware's word may come late
            receipts = self._requests.table["receipt_id"][nameless].tolist()
            for slot, receipt_id in zip(nameless.tolist(), receipts, strict=True):
                if receipt_id in self._owners:
                    owner = self._owners[receipt_id]
                    self._owned[slot] = True
                    self._arm[slot] = _number(owner.arm, self._arm_names)
                    self._budgets[slot] = _number(owner.budgets, self._drawn_on)
                    self._written[slot] = False

    def charge(
        self, gpu_uuid: str, shares: Shares, ended: Work | None, batch: float, source: Source
    ) -> list[Increment]:
        """Book what an interval of a GPU costs its requests, and sum it up by arm, with the tokens of the steps that `ended` in it."""
        slots = shares.slots
        self.open(slots)
        total = self._total(gpu_uuid)
        total.add(slots, shares)
        self._curves.add(slots, shares.amounts, ended)
        of, arms = self._arm[slots], len(self._arm_names)
        by_arm = [_summed(of, shares.amounts[:, amount], arms) for amount in (PROMPT_J, OUTPUT_J)]
        if ended is not None:
            counts = (ended.prefill_tokens, ended.cached_tokens, ended.output_tokens, ended.first_tokens)
            rows_of = self._arm[ended.row_request]
            by_arm += [_summed(rows_of, tokens, arms) for tokens in counts]
        increments = []
        for arm in np.flatnonzero(np.bincount(of, minlength=arms)).tolist():
            prompt_j, output_j, *tokens = (sums[arm] for sums in by_arm)
            prompt, cached, output, first = (round(each) for each in tokens or [0.0] * 4)
            name = self._arm_names[arm]
            increments.append(Increment(name, prompt_j, output_j, prompt, cached, output, first, batch, source))
        return increments

    def draws(self, shares: Shares, costs: Costs | None) -> list[Draw]:
        """What an interval of a GPU, charged before, costs those that draw on the same budgets, and how well that is known."""
        of = self._budgets[shares.slots]
        found = []
        for number in np.flatnonzero(np.bincount(of)).tolist():
            budgets = self._drawn_on[number]
            if budgets == ():
                continue
            if budgets is None:
                found.append(Draw(None, float(np.sum(shares.energy_j[of == number])), 0.0, 0.0))
                continue
            whole = shares.of(np.flatnonzero(of == number)).sum()
            noise_j2, energy_j = float(whole.amounts[0, VARIANCE_J2]), float(whole.energy_j[0])
            common_j2 = whole.variance_j2(costs)[0] - noise_j2 + form_variance_j2(whole.form_j(costs))[0]
            if self._method != METHOD:
                common_j2 += (GUESS_ERROR * energy_j) ** 2
            found.append(Draw(budgets, energy_j, noise_j2, float(np.sqrt(max(common_j2, 0.0)))))
        return found

    def mark_partial(self, slots: IntArray) -> None:
        """They ran while nobody could meter them."""
        self.open(slots)
        self._partial[slots] = True

    def close(self, slots: IntArray) -> None:
        """Nothing more will be booked on these requests."""
        self._grow()
        for column in (self._open, self._written, self._partial, self._resumed, self._owned):
            column[slots] = False
        self._arm[slots] = self._budgets[slots] = 0
        self._curves.close(slots)
        for total in self._totals.values():
            total.amounts[slots] = total.sensitivity[slots] = total.limited[slots] = 0.0

    def totals(
        self, slots: IntArray, costs: Mapping[str, Costs], foreseen: Mapping[str, Shares] | None = None
    ) -> Totals:
        """What these requests were charged until now, by all GPUs, with what is `foreseen` of some besides."""
        self.open(slots)
        coming = foreseen or {}
        amounts, variance_j2 = np.zeros((len(slots), len(AMOUNTS))), np.zeros(len(slots))
        form_j = np.zeros((len(slots), len(TERMS)))
        for gpu_uuid in {**self._totals, **coming}:
            of_gpu = self._total(gpu_uuid).of(slots)
            if gpu_uuid in coming:
                shares = coming[gpu_uuid]
                _, here, there = np.intersect1d(slots, shares.slots, return_indices=True)
                of_gpu.add(here, shares.of(there))
            amounts += of_gpu.amounts
            variance_j2 += of_gpu.variance_j2(costs.get(gpu_uuid))
            form_j += of_gpu.form_j(costs.get(gpu_uuid))
        variance_j2 += form_variance_j2(form_j)
        if self._method != METHOD:
            variance_j2 += (GUESS_ERROR * (amounts[:, PROMPT_J] + amounts[:, OUTPUT_J])) ** 2
        return Totals(slots, amounts, variance_j2)

    def rows(self, totals: Totals, settled: BoolArray, source: Source) -> list[RequestValues]:
        """Rows of the ledger for these requests."""
        slots = totals.slots
        header, table = self._header, self._requests.table[slots]
        lines = len(slots)
        return list(
            zip(
                *([each] * lines for each in (header.engine, header.created_ns)),
                table["number"].tolist(),
                table["request_id"].tolist(),
                table["receipt_id"].tolist(),
                [header.model] * lines,
                np.array(self._arm_names, dtype=object)[self._arm[slots]].tolist(),
                table["arrival_ns"].tolist(),
                _but(table["first_token_ns"].tolist(), table["first_token_ns"] == UNKNOWN_NS, None),
                _but(table["finished_ns"].tolist(), table["finished_ns"] == NEVER_NS, None),
                *(
                    table[name].tolist()
                    for name in ("prompt_tokens", "cached_tokens", "prefill_tokens", "decode_tokens", "output_tokens")
                ),
                table["finish_reason"].tolist(),
                *totals.figures(),
                settled.astype(np.int64).tolist(),
                self._methods(slots),
                [source] * lines,
                strict=True,
            )
        )

    def curves(self, slots: IntArray) -> dict[str, Curve]:
        """By request id, of those that have a receipt and were metered here from their beginning."""
        self.open(slots)
        table = self._requests.table
        known = slots[~(self._partial[slots] | self._resumed[slots])]
        return {
            str(table["request_id"][slot]): self._curves.of(slot)
            for slot in known.tolist()
            if table["receipt_id"][slot] is not None
        }

    def is_written(self, slots: IntArray) -> BoolArray:
        """Whose rows the ledger has, so that `changes` will do; from the next call on, those of all of these."""
        written = self._written[slots]
        self._written[slots] = True
        return written

    def has_row(self, slots: IntArray) -> BoolArray:
        """Whose rows the ledger has, from this meter or an earlier one, and that it waits to be told the end of."""
        self._grow()
        known: BoolArray = self._written[slots] | self._resumed[slots]
        return known

    def changes(self, totals: Totals) -> list[RunningValues]:
        """What has changed in the rows of requests that the ledger has."""
        slots = totals.slots
        table = self._requests.table
        first_token_ns = table["first_token_ns"][slots]
        return list(
            zip(
                *([each] * len(slots) for each in (self._header.engine, self._header.created_ns)),
                table["number"][slots].tolist(),
                _but(first_token_ns.tolist(), first_token_ns == UNKNOWN_NS, None),
                *(table[name][slots].tolist() for name in ("cached_tokens", "prefill_tokens", "decode_tokens")),
                *totals.figures(),
                self._methods(slots),
                strict=True,
            )
        )

    @property
    def slots(self) -> IntArray:
        """All requests that have an account."""
        return np.flatnonzero(self._open)

    def _methods(self, slots: IntArray) -> list[object]:
        return _but([self._method] * len(slots), self._partial[slots], PARTIAL_METHOD)

    def _grow(self) -> None:
        size, more = len(self._open), len(self._requests.table) - len(self._open)
        if more:
            self._open, self._written, self._partial, self._resumed, self._owned = (
                np.concatenate([column, np.zeros(more, dtype=column.dtype)])
                for column in (self._open, self._written, self._partial, self._resumed, self._owned)
            )
            self._arm, self._budgets = (
                np.concatenate([column, np.zeros(more, dtype=column.dtype)]) for column in (self._arm, self._budgets)
            )
            self._curves.grow(size + more)
            for gpu_uuid, total in self._totals.items():
                new = self._totals[gpu_uuid] = Shares.of_nobody(size + more)
                new.add(np.arange(size), total)

    def _total(self, gpu_uuid: str) -> Shares:
        if gpu_uuid not in self._totals:
            self._totals[gpu_uuid] = Shares.of_nobody(len(self._open))
        return self._totals[gpu_uuid]

    def _begin(self, slot: int) -> None:
        self._open[slot] = True
        inherited = self._inherited.pop(int(self._requests.table["number"][slot]), None)
        if inherited is not None:
            energy = inherited.energy
            self._resumed[slot] = True
            self._partial[slot] = energy.method == PARTIAL_METHOD
            self._arm[slot] = _number(inherited.record.arm, self._arm_names)
            amounts = self._total(INHERITED).amounts[slot]
            amounts[:VARIANCE_J2] = [getattr(energy, name) for name in AMOUNTS[:VARIANCE_J2]]
            amounts[VARIANCE_J2] = (energy.error_j / NORMAL_95) ** 2


def _number(name: _Named, known: list[_Named]) -> int:
    """Its place among those that are known, from now on."""
    if name not in known:
        known.append(name)
    return known.index(name)


def _summed(arms: IntArray, amounts: Array, size: int) -> list[float]:
    """By arm; most kinds of tokens are few in most steps."""
    some = np.flatnonzero(amounts)
    if len(some) < len(amounts):
        arms, amounts = arms[some], amounts[some]
    sums: list[float] = np.bincount(arms, weights=amounts, minlength=size).tolist()
    return sums


def _but(values: list[object], where: BoolArray, other: object) -> list[object]:
    """The values, with another in some places."""
    places = np.flatnonzero(where)
    if len(places) == len(values):
        return [other] * len(values)
    for place in places.tolist():
        values[place] = other
    return values
