"""Edges of another machine hold the truth after they were placed on the clock here, and say in their width what the clocks leave open."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.nodes.node import _widened
from etameter.records import Edge
from etameter.timeline import Timeline

pytestmark = pytest.mark.unit

MS = 1_000_000
NS = st.integers(0, 10**10)
SHARES = st.floats(-1.0, 1.0)


@given(NS, NS, NS, NS, SHARES)
def test_an_edge_holds_every_instant_that_reads_and_clocks_allow(
    t_ns: int, half_width_ns: int, error_ns: int, placed_ns: int, share: float
) -> None:
    edge = _widened(Edge("GPU-0", 0, half_width_ns, 5, 300.0, half_width_ns // 2, 7), t_ns, error_ns, placed_ns)
    truth_ns = t_ns + round(share * (half_width_ns + error_ns))
    assert abs(truth_ns - edge.t_ns) <= edge.half_width_ns
    assert edge.t_ns == placed_ns
    assert (edge.energy_mj, edge.power_w, edge.unread_ns) == (5, 300.0, 7)
    assert edge.deviation_ns is not None
    assert edge.deviation_ns >= half_width_ns // 2


@pytest.mark.parametrize("deviation_ns", [None, MS // 10])
def test_what_the_clocks_leave_open_is_in_the_error(deviation_ns: int | None) -> None:
    errors_j = []
    for error_ns in (0, 5 * MS, 20 * MS):
        timeline = Timeline("GPU-0")
        for number in range(40):
            t_ns, energy_mj = 100 * MS * number, 20_000 * number
            edge = Edge("GPU-0", t_ns, MS, energy_mj, 200.0, deviation_ns)
            timeline.add(_widened(edge, t_ns, error_ns, t_ns))
        errors_j.append(timeline.energy_between(1_000 * MS, 3_000 * MS).error_j)
    assert errors_j[0] < errors_j[1] < errors_j[2]
