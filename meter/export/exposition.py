"""Series of metrics as text: Prometheus 0.0.4, and OpenMetrics 1.0.

The name and labels of a series are written out once, when it first appears: a scrape of some thousand series costs little more than
printing their values (`python -m benchmarks.scrape`). Nothing here locks: whoever counts and whoever renders must not do it at once.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from etameter.export.catalogue.declaration import Declaration

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(slots=True)
class _Value:
    head: str
    """Name and labels, and the space before the value."""
    value: float = 0.0


class Values:
    """The series of a counter or a gauge, by their label values. One without labels exists from the beginning."""

    def __init__(self, declaration: Declaration) -> None:
        self._declaration = declaration
        self._series: dict[tuple[str, ...], _Value] = {}
        if declaration.type == "counter" and not declaration.labels:
            self.add(0.0)

    def add(self, amount: float, *labels: str) -> None:
        self._of(labels).value += amount

    def set(self, value: float, *labels: str) -> None:
        self._of(labels).value = value

    def remove(self, *labels: str) -> None:
        self._series.pop(labels, None)

    def clear(self) -> None:
        self._series.clear()

    def by_labels(self) -> dict[tuple[str, ...], float]:
        return {labels: series.value for labels, series in self._series.items()}

    def text(self, *, openmetrics: bool) -> Iterator[str]:
        yield _about(self._declaration, openmetrics=openmetrics)
        written = repr if self._declaration.type == "counter" else short
        for series in self._series.values():
            yield f"{series.head}{written(series.value)}\n"

    def _of(self, labels: tuple[str, ...]) -> _Value:
        series = self._series.get(labels)
        if series is None:
            head = f"{self._declaration.name}{_braced(self._declaration.labels, labels)} "
            series = self._series[labels] = _Value(head)
        return series


@dataclass(slots=True)
class _Bucketed:
    heads: list[str]
    """Of the buckets, +Inf last; then of the count and the sum."""
    counts: list[int]
    """By bucket, not cumulative."""
    exemplars: list[str]
    """By bucket: what OpenMetrics says after the value."""
    total: float = field(default=0.0)


class Histograms:
    """The series of a histogram, by their label values."""

    def __init__(self, declaration: Declaration) -> None:
        self._declaration = declaration
        self._bounds = declaration.buckets
        self._series: dict[tuple[str, ...], _Bucketed] = {}

    def observe(self, value: float, *labels: str, exemplar: str = "") -> None:
        """`exemplar` is what `exemplar_of` makes."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = self._begin(labels)
        bucket = bisect_left(self._bounds, value)
        series.counts[bucket] += 1
        series.total += value
        if exemplar:
            series.exemplars[bucket] = exemplar

    def text(self, *, openmetrics: bool) -> Iterator[str]:
        yield _about(self._declaration, openmetrics=openmetrics)
        for series in self._series.values():
            below = 0
            for head, count, exemplar in zip(series.heads, series.counts, series.exemplars, strict=False):
                below += count
                yield f"{head}{below}.0{exemplar}\n" if openmetrics else f"{head}{below}.0\n"
            yield f"{series.heads[-2]}{below}.0\n{series.heads[-1]}{series.total!r}\n"

    def _begin(self, labels: tuple[str, ...]) -> _Bucketed:
        name, names = self._declaration.name, self._declaration.labels
        bounds = [*map(repr, self._bounds), "+Inf"]
        heads = [f"{name}_bucket{_braced((*names, 'le'), (*labels, bound))} " for bound in bounds]
        heads += [f"{name}{suffix}{_braced(names, labels)} " for suffix in ("_count", "_sum")]
        return _Bucketed(heads, [0] * len(bounds), [""] * len(bounds))


def short(value: float) -> str:
    """Of a figure that is added to nothing: more digits than it is known to, and a scrape that is shorter by a fortieth."""
    return f"{value:.7g}"


def exemplar_of(label: str, name: str, value: float, unix_s: float) -> str:
    """What a bucket says of the last observation in it."""
    return f" # {_braced((label,), (name,))} {short(value)} {unix_s:.3f}"


def _about(declaration: Declaration, *, openmetrics: bool) -> str:
    base = declaration.name.removesuffix("_total")
    name = base if openmetrics else declaration.name
    meaning = declaration.meaning.replace("\\", r"\\").replace("\n", r"\n")
    if not openmetrics:
        return f"# HELP {name} {meaning}\n# TYPE {name} {declaration.type}\n"
    meaning = meaning.replace('"', r"\"")
    unit = f"# UNIT {name} {declaration.unit}\n" if base.endswith(f"_{declaration.unit}") else ""
    return f"# HELP {name} {meaning}\n# TYPE {name} {declaration.type}\n{unit}"


def _braced(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{','.join(pairs)}}}" if names else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
