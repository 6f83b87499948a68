"""What the output of each open request had cost when it had so many tokens, so that a joule goes to the tokens that it was spent on.

Tokens of one response don't cost the same: those in a full batch share a step, late ones read more context. After each settled interval a
request's output tokens and output joules so far become a knot of its curve; between two knots tokens are taken to cost alike. A curve has at
most `KNOTS`: when they are full, every second one is dropped and knots are set half as often.

The first token falls out of the prefill and carries no output energy: there the curve begins. An interval may end inside of a step, whose joules
so far then stand before its token: an error of less than one step's energy for each interval's end, which moves joules between neighbours and
changes no sum. On several GPUs a knot is set when the first one's interval is settled; what the others publish later comes with the next knot.
"""

from dataclasses import dataclass

import numpy as np

from etameter.attribution import MARGINAL_J, OUTPUT_J, PROMPT_J
from etameter.work import Array, IntArray, Work

KNOTS = 32
TOKENS, JOULES, MARGINAL_JOULES = range(3)


@dataclass(frozen=True, slots=True)
class Curve:
    """Of one request's output. Its joules may be relative: it says how a total is divided."""

    knots: Array
    """n × 3, n ≥ 1: tokens, strictly rising; attributed and marginal joules of the output up to there, not falling."""

    def part(self, start: float, end: float) -> tuple[float, float]:
        """Shares of the attributed and marginal joules that went into the tokens from `start` to `end`, which need not be whole.

        Σ over ranges that tile the output is 1, less what was spent after the last token was out.
        """
        shares = []
        for column in (JOULES, MARGINAL_JOULES):
            total = float(self.knots[-1, column])
            before, after = np.interp([start, end], self.knots[:, TOKENS], self.knots[:, column]).tolist()
            shares.append((after - before) / total if total > 0 else 0.0)
        return shares[0], shares[1]

    def extended(self, tokens: float, joules: float) -> "Curve":
        """With what is foreseen: in all `tokens` and `joules`, never less than are known. The marginal joules follow the attributed ones."""
        last = self.knots[-1]
        more_tokens, more_j = max(tokens - last[TOKENS], 0.0), max(joules - last[JOULES], 0.0)
        ratio = last[MARGINAL_JOULES] / last[JOULES] if last[JOULES] > 0 else 1.0
        end = last + np.array([more_tokens, more_j, ratio * more_j])
        return Curve(np.vstack([self.knots if more_tokens else self.knots[:-1], end]))


class Curves:
    """Of the open requests, by slot."""

    def __init__(self) -> None:
        self._now = np.zeros((0, 3))
        self._first = np.zeros(0)
        """Output tokens that fell out of prefill."""
        self._knots = np.zeros((0, KNOTS, 3))
        self._set = np.zeros(0, dtype=np.int64)
        """How many knots there are."""
        self._intervals = np.zeros(0, dtype=np.int64)
        self._stride = np.ones(0, dtype=np.int64)
        """A knot is set in so many intervals."""

    def grow(self, slots: int) -> None:
        """Have room for so many slots."""
        more = slots - len(self._now)
        self._now, self._first, self._knots, self._set, self._intervals = (
            np.concatenate([each, np.zeros((more, *each.shape[1:]), dtype=each.dtype)])
            for each in (self._now, self._first, self._knots, self._set, self._intervals)
        )
        self._stride = np.concatenate([self._stride, np.ones(more, dtype=np.int64)])

    def add(self, slots: IntArray, amounts: Array, ended: Work | None) -> None:
        """What an interval charged these requests (n × AMOUNTS), and the steps that ended in it, if their tokens are to be counted."""
        output_j = amounts[:, OUTPUT_J]
        total_j = amounts[:, PROMPT_J] + output_j
        self._now[slots, JOULES] += output_j
        self._now[slots, MARGINAL_JOULES] += amounts[:, MARGINAL_J] * output_j / np.where(total_j > 0, total_j, 1.0)
        if ended is not None:
            rows, size = ended.row_request, len(self._now)
            self._now[:, TOKENS] += np.bincount(rows, weights=ended.output_tokens, minlength=size)
            if len(ended.prefill_rows):
                self._first += np.bincount(rows, weights=ended.first_tokens, minlength=size)
            self._tie(slots)

    def close(self, slots: IntArray) -> None:
        """Nothing more will be added to these."""
        self._now[slots] = self._first[slots] = self._set[slots] = self._intervals[slots] = 0
        self._stride[slots] = 1

    def of(self, slot: int) -> Curve:
        """Up to now."""
        first = self._first[slot]
        knots = self._knots[slot, : self._set[slot]]
        between = knots[(knots[:, TOKENS] > first) & (knots[:, TOKENS] < self._now[slot, TOKENS])]
        begin, end = np.array([[first, 0.0, 0.0]]), self._now[slot : slot + 1]
        return Curve(np.vstack([begin, between, end] if end[0, TOKENS] > first else [end]))

    def _tie(self, slots: IntArray) -> None:
        is_due = self._intervals[slots] % self._stride[slots] == 0
        self._intervals[slots] += 1
        due = slots[is_due]
        last = np.maximum(self._set[due] - 1, 0)
        due = due[(self._set[due] == 0) | (self._now[due, TOKENS] > self._knots[due, last, TOKENS])]
        full = due[self._set[due] == KNOTS]
        if len(full):
            self._knots[full, : KNOTS // 2] = self._knots[full, 1::2]
            self._set[full] = KNOTS // 2
            self._stride[full] *= 2
        self._knots[due, self._set[due]] = self._now[due]
        self._set[due] += 1
