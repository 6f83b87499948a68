"""Steps as columns: what is computed with. A row is one request in one step; requests are named by their slots (see `requests`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Columns = npt.NDArray[np.uint32]

TERMS = ("p0_w", "c_j", "a_j", "a2_j", "b_j", "d_j", "encoder_j", "adapter_j", "experts_j")
"""Energy coefficients in order: per second, step, prefill token, prefill token pair, decode token, attended token, encoder token, adapter,
and for all experts."""
OWN = slice(2, 8)
"""Those whose features are sums over rows."""
ADAPTER, EXPERTS = 7, 8

COLUMNS = 11
SLOT, PREFILL, DECODE, CACHED, RECOMPUTED, DRAFT, ENCODER, CONTEXT, LORA, ACCEPTED, FIRST = range(COLUMNS)
"""Where a step's columns stand: as the fields of a row of the ring, with the request's slot for its number; then the accepted draft tokens, and
1 where the row ends a prefill, which brings the first output token."""


@dataclass(frozen=True, slots=True)
class Step:
    """One scheduler iteration that ran on the GPU from `dispatch_ns` to `done_ns` (disjoint from its neighbours)."""

    step_id: int
    dispatch_ns: int
    done_ns: int
    padded_tokens: int
    columns: Columns
    """COLUMNS × rows, of which there is at least one."""
    features: tuple[float, ...]
    """What the terms before EXPERTS multiply: seconds, the step itself, and sums over its rows."""
    players: int
    """Distinct requests."""
    lines: int
    """More than any slot in it."""

    def at(self, start_ns: int, end_ns: int) -> "Step":
        """The same step at another time: when one stage of a pipeline worked on it."""
        features = ((end_ns - start_ns) * 1e-9, *self.features[1:])
        return replace(self, dispatch_ns=start_ns, done_ns=end_ns, features=features)


def prefill_pairs(tokens: Array, context: Array) -> Array:
    """Query-key pairs of causal attention: n tokens on top of k attend n·(k + (n+1)/2) positions."""
    return tokens * (context + (tokens + 1) / 2)


def row_features(columns: Columns, counts: IntArray) -> Array:
    """R × TERMS: what the terms of OWN multiply; `counts` are the steps' rows. A term's column lies in one piece."""
    features = np.zeros((len(TERMS), columns.shape[1]))
    prefill, pairs, decode, attended, encoder, adapters = features[OWN]
    decode[:] = columns[DECODE]
    if columns[DRAFT].any():
        decode += columns[DRAFT]
    context = columns[CONTEXT].astype(np.float64)
    np.add(context, decode, out=attended)
    rows = np.flatnonzero(columns[PREFILL])  # few are
    if len(rows):
        prefill[rows] = tokens = columns[PREFILL, rows].astype(np.float64)
        pairs[rows] = prefill_pairs(tokens, context[rows])
    if not decode.all():
        attended[decode == 0] = 0.0
    if columns[ENCODER].any():
        encoder[:] = columns[ENCODER]
    if columns[LORA].any():
        adapters[:] = _adapters(columns[LORA], counts)
    return features.T


def _adapters(lora: Columns, counts: IntArray) -> Array:
    """Each row's part of the adapter that it uses: Σ over a step is the number of its adapters."""
    step = np.repeat(np.arange(len(counts)), counts)
    _, adapter, users = np.unique(step << 32 | lora.astype(np.int64), return_inverse=True, return_counts=True)
    part: Array = np.where(lora > 0, 1.0 / users[adapter], 0.0)
    return part


def experts(tokens: Array, routed: float) -> Array:
    """The share of its experts that a step with so many tokens wakes, if each token picks its `routed` share at random."""
    share: Array = 1.0 - (1.0 - routed) ** tokens
    return share


@dataclass(frozen=True, slots=True)
class Span:
    """When a step ran, and how many rows it has."""

    step_id: int
    dispatch_ns: int
    done_ns: int
    padded_tokens: int
    rows: int


def steps_of(spans: Sequence[Span], columns: Columns, *, distinct: bool) -> list[Step]:
    """Steps whose rows stand in `columns` one after the other. `distinct`: no request has two rows in a step."""
    counts = np.array([span.rows for span in spans])
    ends = np.cumsum(counts)
    starts = ends - counts
    sums = np.add.reduceat(row_features(columns, counts).T[OWN], starts, axis=1).T.tolist()
    lines = (np.maximum.reduceat(columns[SLOT], starts).astype(np.int64) + 1).tolist()
    steps = []
    for span, end, total, line in zip(spans, ends.tolist(), sums, lines, strict=True):
        rows = columns[:, end - span.rows : end]
        players = span.rows if distinct else len(np.unique(rows[SLOT]))
        seconds = (span.done_ns - span.dispatch_ns) * 1e-9
        steps.append(
            Step(
                span.step_id,
                span.dispatch_ns,
                span.done_ns,
                span.padded_tokens,
                rows,
                (seconds, 1.0, *total),
                players,
                line,
            )
        )
    return steps


class Work:
    """A run of steps in order of time: S steps, R rows. Columns of rows are made when they are first asked for."""

    def __init__(self, steps: Sequence[Step], routed: float = 0.0, about: tuple[IntArray, Array] | None = None) -> None:
        """`routed` is the share of its experts that a token wakes; 0 for a dense model. `about` is `about_steps(steps, routed)`, where it is known."""
        self.steps = steps
        self.routed = routed
        self._about, self.step_features = about_steps(steps, routed) if about is None else about
        """S × TERMS: Σ over a step's rows, with Δt in seconds first, the step itself second and the experts that it wakes last."""
        self.start_ns, self.end_ns, self.players, self._counts = self._about.T

    @cached_property
    def lines(self) -> int:
        """More than any slot in it."""
        return max((step.lines for step in self.steps), default=0)

    @property
    def mean_players(self) -> float:
        """Requests that ran together, on the mean over the steps; 0 where there was no step."""
        return float(self.players.sum()) / len(self.players) if len(self.players) else 0.0

    def part(self, first: int, last: int) -> "Work":
        """The steps from `first` to before `last`."""
        part = Work(self.steps[first:last], self.routed, (self._about[first:last], self.step_features[first:last]))
        if "_table" in self.__dict__:  # laid out already: seen through a part of it
            before, rows = int(self._counts[:first].sum()), int(part._counts.sum())  # its own kind
            part._table = self._table[:, before : before + rows]
            part.row_request = self.row_request[before : before + rows]
        return part

    def ended(self, start_ns: int, end_ns: int) -> "Work":
        """The steps that ended after `start_ns`, up to `end_ns`."""
        first, last = np.searchsorted(self.end_ns, [start_ns, end_ns], side="right").tolist()
        return self.part(first, last)

    def begun(self, start_ns: int, end_ns: int) -> "Work":
        """The steps that began from `start_ns` to before `end_ns`."""
        first, last = np.searchsorted(self.start_ns, [start_ns, end_ns], side="left").tolist()
        return self.part(first, last)

    @cached_property
    def _table(self) -> Columns:
        if not self.steps:
            return np.zeros((COLUMNS, 0), dtype=np.uint32)
        return np.concatenate([step.columns for step in self.steps], axis=1)

    def rows_with(self, column: int) -> IntArray:
        """Rows with anything in this column."""
        return np.flatnonzero(self._table[column])

    def _column(self, column: int) -> Array:
        values: Array = self._table[column].astype(np.float64)
        return values

    @cached_property
    def features(self) -> Array:
        """R × TERMS: what the terms of OWN multiply."""
        return row_features(self._table, self._counts)

    @cached_property
    def terms(self) -> list[int]:
        """Those of OWN that the steps have anything of."""
        terms: list[int] = (np.flatnonzero(self.step_features[:, OWN].any(axis=0)) + OWN.start).tolist()
        return terms

    @cached_property
    def row_step(self) -> IntArray:
        """R: index of the step."""
        return np.repeat(np.arange(len(self.steps)), self._counts)

    @cached_property
    def row_request(self) -> IntArray:
        """R: slot of the request."""
        slots: IntArray = self._table[SLOT].astype(np.int64)
        return slots

    @cached_property
    def row_place(self) -> IntArray:
        """R: where (step, slot) stands in S × `lines`."""
        return self.row_step * self.lines + self.row_request

    def placed(self, values: Array) -> Array:
        """S × `lines`: sums over the rows of each request in each step."""
        shape = len(self.steps), self.lines
        sums = np.bincount(self.row_place, weights=values, minlength=shape[0] * shape[1]).astype(np.float64, copy=False)
        return sums.reshape(shape)

    @cached_property
    def row_weight(self) -> Array:
        """R: sums to 1 over a step. Players pay alike, whatever the number of their rows."""
        if (self.players == self._counts).all():
            return np.repeat(1.0 / self.players, self._counts)
        pair = self.row_step << 32 | self.row_request
        _, inverse, rows_of_player = np.unique(pair, return_inverse=True, return_counts=True)
        weight: Array = 1.0 / (self.players[self.row_step] * rows_of_player[inverse])
        return weight

    @cached_property
    def is_prefill(self) -> BoolArray:
        """R: computes prompt tokens."""
        prefill: BoolArray = self._table[PREFILL] > 0
        return prefill

    @cached_property
    def prefill_rows(self) -> IntArray:
        """Those of `is_prefill`: few are."""
        return self.rows_with(PREFILL)

    @property
    def prefill_tokens(self) -> Array:
        return self._column(PREFILL)

    @property
    def recomputed_tokens(self) -> Array:
        """R: the part of `prefill_tokens` that had been computed before a preemption."""
        return self._column(RECOMPUTED)

    @property
    def decode_tokens(self) -> Array:
        """R: with the draft tokens that were verified."""
        tokens: Array = self.features[:, 4]
        return tokens

    @property
    def rejected_tokens(self) -> Array:
        """R: draft tokens that were not kept."""
        if not self._table[DRAFT].any():
            return np.zeros(self._table.shape[1])
        return np.maximum(self._column(DRAFT) - self._column(ACCEPTED), 0.0)

    @cached_property
    def output_tokens(self) -> Array:
        """R: accepted drafts among them, and first tokens."""
        brought: Array = (self._table[DECODE] + self._table[ACCEPTED] + self._table[FIRST]).astype(np.float64)
        return brought

    @property
    def first_tokens(self) -> Array:
        """R: 1 where a row ends a prefill, which brings the first output token."""
        return self._column(FIRST)

    @property
    def cached_tokens(self) -> Array:
        """R: prompt tokens from the prefix cache, in the step that first schedules the request."""
        return self._column(CACHED)


def about_steps(steps: Sequence[Step], routed: float) -> tuple[IntArray, Array]:
    """S × 4: start, end, players and rows of steps; and their `step_features`."""
    about = [(step.dispatch_ns, step.done_ns, step.players, step.columns.shape[1]) for step in steps]
    features = np.zeros((len(steps), len(TERMS)))
    if steps:
        features[:, :EXPERTS] = [step.features for step in steps]
    if routed:
        features[:, EXPERTS] = experts(features[:, 2] + features[:, 4], routed)
    return np.array(about, dtype=np.int64).reshape(-1, 4), features
