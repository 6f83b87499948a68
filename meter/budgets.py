"""What each budget has left in its window. Nothing here refuses a request: whoever asks is told, and decides.

A window is one of the calendar's, in UTC, so that it begins at the same instant whenever the meter was started; sums are kept by window, and a
restarted meter reads them again from its ledger, which has them from the transaction that settled the joules. Joules count in the window in which
their interval ended, however late they are settled.

Two errors stand beside a sum: that of the shares of single intervals, which are independent and add as squares, and that of the fitted coefficients
and of their form, which is common to all intervals and adds as it is. What may have been anybody's is kept apart: joules that were attributed to
nobody for want of readings or steps, and those of requests of which no server has said on which budgets they draw. What is too much to be any
request's (`model_residual`) is in neither.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from etameter.budget_section import BudgetSection, Window
from etameter.records import Balance, Source, weakest
from etameter.timeline import NORMAL_95

ANYBODY: Final = ""
"""In place of a budget: what may have been any of them."""
NOBODYS: Final = frozenset({"model_residual"})

_EVEN: Final[Mapping[Window, tuple[int, int]]] = {
    "hour": (3600, 0),
    "day": (86_400, 0),
    "week": (7 * 86_400, 4 * 86_400),
}
"""Length (s) of windows that all have the same, and when one began (s since 1970): a Monday."""
LONGEST_S: Final = 31 * 86_400
"""No window is longer."""

Level = Literal["within", "maybe", "exceeded"]
_Key = tuple[str, Window, int, Source]
"""Of a sum: its budget, window, when that began (s since 1970), and where the joules come from."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What an interval of a GPU cost the requests that draw on the same budgets."""

    budgets: tuple[str, ...] | None
    """None: nobody has said on which."""
    energy_j: float
    noise_j2: float
    """Variance of what is independent between intervals."""
    common_j: float
    """Standard error of what isn't."""


Draws = Iterable[tuple[Balance, Source, Sequence[Draw]]]
"""Settled intervals, and who drew on what in them."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Joules of a budget in the window that began at `start_s` (s since 1970), of one source."""

    budget: str
    window: Window
    start_s: int
    source: Source
    energy_j: float = 0.0
    noise_j2: float = 0.0
    common_j: float = 0.0

    @property
    def key(self) -> _Key:
        return self.budget, self.window, self.start_s, self.source


@dataclass(frozen=True, slots=True)
class Standing:
    """Of a budget in its present window, which ends at `end_s` (s since 1970)."""

    window: Window
    end_s: int
    limit_j: float
    used_j: float
    error_j: float
    """Half-width of the 95 % interval of `used_j`, but for the counter's own gain."""
    unknown_j: float
    """What may have been drawn beside it."""
    source: Source

    @property
    def least_j(self) -> float:
        return max(self.used_j - self.error_j, 0.0)

    @property
    def most_j(self) -> float:
        return self.used_j + self.error_j + self.unknown_j

    @property
    def level(self) -> Level:
        """Exceeded beyond doubt, maybe, or not."""
        if self.least_j > self.limit_j:
            return "exceeded"
        return "maybe" if self.most_j > self.limit_j else "within"


class Budgets:
    """Sums by budget and window. Reads no clock."""

    def __init__(self, budgets: Mapping[str, BudgetSection], source: Source, spent: Iterable[Spent] = ()) -> None:
        """`source` is what the counters can claim; `spent` what an earlier meter wrote down."""
        self._budgets = dict(budgets)
        self._source: Source = source
        self._spent: dict[_Key, Spent] = {}
        self.add(spent)

    def __bool__(self) -> bool:
        return bool(self._budgets)

    def drawn(self, settled: Draws, epoch_s: float) -> list[Spent]:
        """What these intervals add, a row for each budget, window and source. `epoch_s` is when the monotonic clock began (s since 1970)."""
        found: dict[_Key, list[float]] = {}
        windows = {section.window for section in self._budgets.values()}
        for balance, source, draws in settled if windows else ():
            start_s, end_s = (epoch_s + ns * 1e-9 for ns in (balance.start_ns, balance.end_ns))
            began_s = {window: bounds(window, end_s)[0] for window in windows}
            for draw in draws:
                for budget in draw.budgets or ():
                    if section := self._budgets.get(budget):
                        key = budget, section.window, began_s[section.window], source
                        _increase(found, key, draw.energy_j, draw.noise_j2, draw.common_j)
            unknown = [draw.energy_j for draw in draws if draw.budgets is None]
            lost = (j for cause, j in balance.unattributed_j_by_cause.items() if cause not in NOBODYS)
            unknown_j = math.fsum([*unknown, *lost])
            if unknown_j > 0.0:
                for window, last_s in began_s.items():
                    # A gap may be long, and its joules of either end.
                    for each_s in (last_s,) if start_s >= last_s else (bounds(window, start_s)[0], last_s):
                        _increase(found, (ANYBODY, window, each_s, source), unknown_j, 0.0, 0.0)
        return [Spent(*key, *sums) for key, sums in found.items()]

    def add(self, spent: Iterable[Spent]) -> None:
        """These rows are in the ledger."""
        for each in spent:
            _add(self._spent, each)

    def standings(self, now_s: float) -> dict[str, Standing]:
        """Of every budget at `now_s` (s since 1970); windows that are over are forgotten."""
        self._spent = {key: each for key, each in self._spent.items() if bounds(each.window, each.start_s)[1] > now_s}
        return {name: self._standing(name, section, now_s) for name, section in self._budgets.items()}

    def _standing(self, name: str, section: BudgetSection, now_s: float) -> Standing:
        start_s, end_s = bounds(section.window, now_s)
        here = [each for each in self._spent.values() if each.window == section.window and each.start_s == start_s]
        own, anybodys = ([each for each in here if each.budget == of] for of in (name, ANYBODY))
        noise_j2 = math.fsum(each.noise_j2 for each in own)
        common_j = math.fsum(each.common_j for each in own)
        return Standing(
            window=section.window,
            end_s=end_s,
            limit_j=section.limit_j,
            used_j=math.fsum(each.energy_j for each in own),
            error_j=NORMAL_95 * math.sqrt(noise_j2 + common_j**2),
            unknown_j=math.fsum(each.energy_j for each in anybodys),
            source=weakest(frozenset({self._source, *(each.source for each in (*own, *anybodys))})),
        )


def bounds(window: Window, t_s: float) -> tuple[int, int]:
    """When the window began that holds `t_s`, and when the next one begins (s since 1970)."""
    if window in _EVEN:
        length_s, first_s = _EVEN[window]
        start_s = int((t_s - first_s) // length_s) * length_s + first_s
        return start_s, start_s + length_s
    first = datetime.fromtimestamp(t_s, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return _seconds(first), _seconds((first + timedelta(days=31)).replace(day=1))


def _seconds(instant: datetime) -> int:
    return int(instant.timestamp())


def _increase(sums: dict[_Key, list[float]], key: _Key, *more: float) -> None:
    was = sums.get(key)
    sums[key] = list(more) if was is None else [one + other for one, other in zip(was, more, strict=True)]


def _add(sums: dict[_Key, Spent], more: Spent) -> None:
    was = sums.get(more.key)
    sums[more.key] = more if was is None else _sum(was, more)


def _sum(one: Spent, other: Spent) -> Spent:
    return replace(
        one,
        energy_j=one.energy_j + other.energy_j,
        noise_j2=one.noise_j2 + other.noise_j2,
        common_j=one.common_j + other.common_j,
    )
