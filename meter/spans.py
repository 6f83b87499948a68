"""Spans of time in order, none of which overlap."""

from collections.abc import Iterable, Sequence

from etameter.stages import Span


def union(spans: Iterable[Span]) -> list[Span]:
    """What any of some spans covers, which may overlap and come in any order."""
    joined: list[Span] = []
    for start_ns, end_ns in sorted(spans):
        if joined and start_ns <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end_ns)
        elif end_ns > start_ns:
            joined.append((start_ns, end_ns))
    return joined


def within(spans: Iterable[Span], start_ns: int, end_ns: int) -> list[Span]:
    """What lies in a window."""
    cut = ((max(start, start_ns), min(end, end_ns)) for start, end in spans)
    return [(start, end) for start, end in cut if end > start]


def without(spans: Iterable[Span], holes: Sequence[Span]) -> list[Span]:
    """What lies outside of the holes."""
    rest = []
    for start_ns, end_ns in spans:
        at_ns = start_ns
        for hole_start_ns, hole_end_ns in within(holes, start_ns, end_ns):
            if hole_start_ns > at_ns:
                rest.append((at_ns, hole_start_ns))
            at_ns = hole_end_ns
        if end_ns > at_ns:
            rest.append((at_ns, end_ns))
    return rest


def length_ns(spans: Iterable[Span]) -> int:
    return sum(end_ns - start_ns for start_ns, end_ns in spans)
