"""The series of all metrics. Whoever counts and whoever scrapes may be different threads."""

import math
import threading
from collections.abc import Iterable, Mapping

from etameter.export.catalogue import CATALOGUE
from etameter.export.catalogue.declaration import Declaration
from etameter.export.exposition import Histograms, Values


class Registry:
    """A value, or a histogram, for each declaration and each combination of its labels' values."""

    def __init__(self) -> None:
        self.together = threading.RLock()
        """Hold it while what belongs together is counted."""
        self._values = {each: Values(each) for each in CATALOGUE if each.type != "histogram"}
        self._histograms = {each: Histograms(each) for each in CATALOGUE if each.type == "histogram"}
        self._totals: dict[tuple[Declaration, tuple[str, ...]], float] = {}

    def add(self, declaration: Declaration, amount: float, *labels: str) -> None:
        """A series exists from its first zero on, so that a rate sees its first step."""
        with self.together:  # a rounding error below zero is no reason to lose the interval
            self._values[declaration].add(max(amount, 0.0), *labels)

    def advance(self, declaration: Declaration, total: float, *labels: str) -> None:
        """Bring a counter to `total`, which whoever counts keeps; a lower total than before means that it began anew."""
        with self.together:
            before = self._totals.get((declaration, labels), 0.0)
            self._totals[declaration, labels] = total
            self.add(declaration, total - before if total >= before else total, *labels)

    def set(self, declaration: Declaration, value: float | None, *labels: str) -> None:
        """A gauge whose value isn't known is absent."""
        with self.together:
            if value is None or not math.isfinite(value):
                self._values[declaration].remove(*labels)
            else:
                self._values[declaration].set(float(value), *labels)

    def clear(self, declaration: Declaration) -> None:
        """Forget all values of a gauge."""
        with self.together:
            self._values[declaration].clear()

    def observe(self, declaration: Declaration, amount: float, *labels: str, exemplar: str = "") -> None:
        """`exemplar` is what `exposition.exemplar_of` makes."""
        with self.together:
            self._histograms[declaration].observe(max(amount, 0.0), *labels, exemplar=exemplar)

    def values(self, declarations: Iterable[Declaration]) -> dict[Declaration, dict[tuple[str, ...], float]]:
        """Of counters and gauges, by their labels' values, all of one instant."""
        with self.together:
            return {each: self._values[each].by_labels() for each in declarations}

    def text(self, *, openmetrics: bool) -> str:
        families: Mapping[Declaration, Values | Histograms] = {**self._values, **self._histograms}
        with self.together:
            return "".join(line for each in CATALOGUE for line in families[each].text(openmetrics=openmetrics))
