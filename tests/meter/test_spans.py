"""Spans of time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.spans import length_ns, union, within, without
from etameter.stages import Span

pytestmark = pytest.mark.unit

MOST_NS = 40
some = st.lists(st.tuples(st.integers(0, MOST_NS), st.integers(0, MOST_NS)), max_size=8)


def instants(spans: list[Span]) -> set[int]:
    return {t_ns for start_ns, end_ns in spans for t_ns in range(start_ns, end_ns)}


@given(some, some, st.integers(0, MOST_NS), st.integers(0, MOST_NS))
def test_spans_are_sets_of_instants(one: list[Span], other: list[Span], start_ns: int, end_ns: int) -> None:
    spans, holes = union(one), union(other)
    assert instants(spans) == instants(one)
    assert instants(without(spans, holes)) == instants(one) - instants(other)
    assert instants(within(spans, start_ns, end_ns)) == instants(one) & set(range(start_ns, end_ns))
    for found in (spans, without(spans, holes), within(spans, start_ns, end_ns)):
        assert length_ns(found) == len(instants(found))
        assert found == sorted(found)
