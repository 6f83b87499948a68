"""One engine over several machines, each a process with its own GPU, clock and boot; the meter is the real one, and so are the samplers."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from etameter.errors import NodeError
from etameter.ledger import Ledger
from etameter.nodes.node import Node, open_nodes
from etameter.playback import replay
from etameter.recording import receipt_name
from etameter.records import Edge, Finding
from etameter.serving.ring import RingWriter
from tests.meter.nodes.cluster import (
    PERIOD_NS,
    TOKEN,
    Cable,
    Machine,
    knows_its_engine,
    machines,
    metering,
    spread_engine,
)
from tests.meter.test_daemon import PATIENCE_S, Meter, lit_board, serve_one, until
from tests.meter.test_faults import OTHER, another, assert_sound, metric, more_intervals, settled, unassigned_j
from tests.meter.test_record_command import recording
from tests.simnvml.board import Board

pytestmark = pytest.mark.unit

OWN_W = 250.0


@contextmanager
def engine_of_three(
    directory: Path, cables: dict[int, Cable] | None = None, ppm: int = 0
) -> Iterator[tuple[Board, Meter, RingWriter, list[Machine]]]:
    """A meter with a GPU of its own and two other machines, that has settled a request."""
    with lit_board(directory, OWN_W) as board, machines(directory, 2, ppm=ppm) as nodes:
        ports = [nodes[0].port, nodes[1].port]
        for number, cable in (cables or {}).items():
            ports[number] = cable.port
        with metering(directory, board, ports) as meter, spread_engine(directory, [board.uuid()], 3) as ring:
            knows_its_engine(meter, 3)
            serve_one(ring)
            until(meter.settled)
            yield board, meter, ring, nodes


def balances(directory: Path, gpu_uuid: str) -> list[tuple[int, int, float, dict[str, float]]]:
    ledger = Ledger(directory / "ledger.db", read_only=True)
    try:
        rows = ledger._db.execute(
            "SELECT start_ns, end_ns, measured_j, unattributed FROM balances WHERE gpu_uuid = ? ORDER BY end_ns",
            (gpu_uuid,),
        ).fetchall()
    finally:
        ledger.close()
    return [(start_ns, end_ns, measured_j, json.loads(causes)) for start_ns, end_ns, measured_j, causes in rows]


def took(directory: Path, gpu_uuid: str, power_w: float) -> bool:
    """Whether its balance has that power for as long as it goes. Where it begins and ends moves with the lag that is learned meanwhile."""
    rows = balances(directory, gpu_uuid)
    seconds = (rows[-1][1] - rows[0][0]) * 1e-9
    measured_j = sum(measured_j for _, _, measured_j, _ in rows)
    return abs(measured_j - power_w * seconds) < power_w * (0.1 * seconds + 0.5)


def test_requests_pay_on_every_machine_and_each_balances(tmp_path: Path) -> None:
    with engine_of_three(tmp_path, ppm=300) as (board, meter, ring, nodes):
        seconds = another(ring, 20, steps=60)
        until(lambda: settled(meter, OTHER))
        whole_j = (OWN_W + nodes[0].power_w + nodes[1].power_w) * seconds
        told = meter.energy(OTHER)
        if told["attribution_method"].endswith("-partial"):  # a sampler had no processor for a second, and it is said
            assert not {"readings_missing", "stale"}.isdisjoint(meter.totals().unattributed_j_by_cause)
            assert told["energy_joules"] < 1.15 * whole_j
        else:
            assert told["energy_joules"] == pytest.approx(whole_j, rel=0.15)
        assert_sound(meter)
        for uuid, power_w in ((board.uuid(), OWN_W), *((node.uuid, node.power_w) for node in nodes)):
            assert took(tmp_path, uuid, power_w), "its own joules, by the clock here"
        until(lambda: metric(meter, "etameter_node_up") == 2)

        def errors_s() -> list[float]:
            named = meter.samples().items()
            return [value for name, value in named if name.startswith("etameter_node_clock_error_seconds")]

        until(lambda: [0 < error_s < 0.1 for error_s in errors_s()] == [True, True])


@pytest.mark.slow
def test_a_node_that_is_killed_leaves_a_gap_of_its_own_and_nothing_else_moves(tmp_path: Path) -> None:
    with engine_of_three(tmp_path) as (board, meter, ring, nodes):
        lost, other = nodes
        lost.kill()
        killed_ns = time.monotonic_ns()
        until(lambda: metric(meter, "etameter_node_up") == 1)
        another(ring, 20, steps=60)
        until(lambda: settled(meter, OTHER))
        told = meter.energy(OTHER)
        assert told["energy_joules"] > 0, "what the others measured is charged"
        assert told["attribution_method"].endswith("-partial"), "and it is said that it is not all"
        lost.start()
        until(lambda: metric(meter, "etameter_node_up") == 2)
        back_ns = time.monotonic_ns()
        until(lambda: balances(tmp_path, lost.uuid)[-1][1] > back_ns + 10**9)
        gap = [row for row in balances(tmp_path, lost.uuid) if killed_ns < row[1] < back_ns]
        assert gap
        assert all(set(causes) <= {"readings_missing", "reset"} for _, _, _, causes in gap)
        for uuid in (board.uuid(), other.uuid):
            assert unassigned_j(meter, "readings_missing", uuid) == unassigned_j(meter, "reset", uuid) == 0
        assert any('cause="node_lost"' in name for name in meter.samples())
        assert_sound(meter)


@pytest.mark.slow
def test_a_node_back_from_a_boot_counts_from_zero_though_its_counter_shows_more(tmp_path: Path) -> None:
    with engine_of_three(tmp_path) as (_, meter, _, nodes):
        lost = nodes[0]
        lost.kill()
        until(lambda: metric(meter, "etameter_node_up") == 1)
        measured_j = sum(row[2] for row in balances(tmp_path, lost.uuid))
        lost.board.gpus[0].base_mj += 1_000_000_000  # the counter of the new boot is ahead of the old one's
        lost.start()
        until(lambda: metric(meter, "etameter_gpu_energy_resets_total") == 1)
        more_intervals(meter)
        until(lambda: balances(tmp_path, lost.uuid)[-1][1] > time.monotonic_ns() - 10**9)
        assert sum(row[2] for row in balances(tmp_path, lost.uuid)) < measured_j + 10_000
        assert_sound(meter)


def test_a_partition_leaves_the_joules_of_the_gap_unattributed_and_heals(tmp_path: Path) -> None:
    with ExitStack() as stack:
        (node,) = stack.enter_context(machines(tmp_path, 1))
        cable = stack.enter_context(closing(Cable(node.port)))
        board = stack.enter_context(lit_board(tmp_path, OWN_W))
        meter = stack.enter_context(metering(tmp_path, board, [cable.port]))
        ring = stack.enter_context(spread_engine(tmp_path, [board.uuid()], 2))
        knows_its_engine(meter, 2)
        serve_one(ring)
        until(meter.settled)
        cut_ns = time.monotonic_ns()
        cable.cut()
        until(lambda: metric(meter, "etameter_node_up") == 0)
        another(ring, 20, steps=60)
        until(lambda: settled(meter, OTHER))
        assert meter.energy(OTHER)["attribution_method"].endswith("-partial"), "it is said that it is not all"
        mended_ns = time.monotonic_ns()
        cable.heal()
        until(lambda: metric(meter, "etameter_node_up") == 1)
        healed_ns = time.monotonic_ns()
        until(lambda: balances(tmp_path, node.uuid)[-1][1] > healed_ns + 10**9)
        least_j = node.power_w * (mended_ns - cut_ns) * 1e-9
        assert unassigned_j(meter, "readings_missing", node.uuid) > 0.9 * least_j
        assert took(tmp_path, node.uuid, node.power_w), "no joule is lost"
        meanwhile = [row for row in balances(tmp_path, board.uuid()) if cut_ns < row[1] < mended_ns]
        assert any("readings_missing" not in causes for _, _, _, causes in meanwhile), "nobody else waits"
        assert metric(meter, "etameter_gpu_energy_resets_total") == 0
        assert_sound(meter)


@pytest.mark.slow
def test_a_sampler_that_hangs_is_lost_until_it_goes_on(tmp_path: Path) -> None:
    with engine_of_three(tmp_path) as (_, meter, ring, nodes):
        process = nodes[0].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        until(lambda: metric(meter, "etameter_node_up") == 1)
        another(ring, 20)
        process.send_signal(signal.SIGCONT)
        until(lambda: metric(meter, "etameter_node_up") == 2)
        until(lambda: settled(meter, OTHER))
        until(lambda: unassigned_j(meter, "readings_missing", nodes[0].uuid) > 0)
        assert_sound(meter)


def test_a_meter_without_gpus_is_killed_and_goes_on_with_those_of_others(tmp_path: Path) -> None:
    with machines(tmp_path, 1) as (node,), spread_engine(tmp_path, [], 1) as ring:
        with metering(tmp_path, None, [node.port]) as meter:
            knows_its_engine(meter, 1)
            serve_one(ring)
            until(meter.settled)
            meter.process.kill()
            meter.process.wait()
        with metering(tmp_path, None, [node.port]) as meter:
            knows_its_engine(meter, 1)
            another(ring, 20)
            until(lambda: settled(meter, OTHER))
            assert settled(meter)
            assert meter.totals().requests == 2, "none is lost, none is doubled"
            assert_sound(meter)


def test_edges_are_where_they_were_by_the_clock_here(tmp_path: Path) -> None:
    with machines(tmp_path, 1, ppm=500) as (node,):
        heard = Node(f"127.0.0.1:{node.port}", TOKEN)
        heard.start()
        found: list[Finding] = []

        def edges() -> list[Edge]:
            found.extend(heard.drain())
            return [each for each in found if isinstance(each, Edge)]

        until(lambda: len(edges()) >= 60)
        heard.stop()
    for edge in edges():
        published_ns = (edge.energy_mj - node.base_mj) * 10**6 / node.power_w  # it counts from zero on the clock here
        assert abs(edge.t_ns - published_ns) <= edge.half_width_ns + 10**6 / node.power_w, (
            "a counter of whole millijoules"
        )
    assert sorted(edge.half_width_ns for edge in edges())[30] < PERIOD_NS


def test_who_has_another_token_is_refused_on_either_side(tmp_path: Path) -> None:
    with machines(tmp_path, 1) as (node,):
        with pytest.raises(NodeError, match="has another token than this meter: give both the same"):
            open_nodes([f"127.0.0.1:{node.port}"], "another-token-of-the-test", [])
        assert "somebody without the token was refused" in node.log.read_text()
        with suppress(ConnectionError), socket.create_connection(("127.0.0.1", node.port), 5) as stranger:
            stranger.sendall(b"[" * 100_000)
            stranger.makefile("rb").read()  # until it is hung up on
        until(lambda: "is gone" in node.log.read_text())
        assert "Traceback" not in node.log.read_text()
        (found,) = open_nodes([f"127.0.0.1:{node.port}"], TOKEN, [])
        assert [each.gpu_uuid for each in found.counters] == [node.uuid]
        assert found.counters[0].source == "simulated"
        found.stop()


@pytest.mark.slow
def test_a_machine_that_boots_while_the_meter_is_down_counts_from_zero_though_its_counter_shows_more(
    tmp_path: Path,
) -> None:
    with (
        lit_board(tmp_path, OWN_W) as board,
        machines(tmp_path, 1) as (node,),
        spread_engine(tmp_path, [board.uuid(), node.uuid], 2) as ring,
    ):
        with metering(tmp_path, board, [node.port]) as meter:
            knows_its_engine(meter, 2)
            serve_one(ring)
            until(meter.settled)
            until(lambda: "reset" not in meter.totals().unattributed_j_by_cause)
        before_j = sum(row[2] for row in balances(tmp_path, node.uuid))
        node.kill()
        node.board.gpus[0].base_mj += 1_000_000_000
        node.start()
        with metering(tmp_path, board, [node.port]) as meter:
            knows_its_engine(meter, 2)
            another(ring, 20)
            until(lambda: settled(meter, OTHER))
            until(lambda: metric(meter, "etameter_gpu_energy_resets_total") == 1)
            assert_sound(meter)
        assert sum(row[2] for row in balances(tmp_path, node.uuid)) < before_j + 100_000, "of a million"
        assert any("reset" in causes for _, _, _, causes in balances(tmp_path, node.uuid))
        with metering(tmp_path, board, [node.port]) as meter:
            knows_its_engine(meter, 2)
            another(ring, 40, receipt="e" * 32)
            until(lambda: settled(meter, "e" * 32))
            assert metric(meter, "etameter_gpu_energy_resets_total") == 0, "the same boot"
            assert unassigned_j(meter, "readings_missing", node.uuid) > 0
            assert_sound(meter)


@pytest.mark.slow
def test_a_meter_starts_without_a_machine_that_is_down_and_takes_it_in_when_it_is_there(tmp_path: Path) -> None:
    with lit_board(tmp_path, OWN_W) as board, machines(tmp_path, 2) as (node, late):
        late.kill()
        with spread_engine(tmp_path, [board.uuid(), late.uuid, node.uuid], 3) as ring:
            ports = [node.port, late.port]
            with metering(tmp_path, board, ports, heard=1) as meter:
                told = {name: value for name, value in meter.samples().items() if name.startswith("etameter_node_up")}
                assert [value for name, value in told.items() if str(late.port) in name] == [0]
                assert json.loads(meter.get("/health")[1])["engines"][0]["devices"] == [], (
                    "it works on what nobody reads"
                )
                late.start()
                knows_its_engine(meter, 3)
                until(lambda: metric(meter, "etameter_node_up") == 2)
                serve_one(ring)
                until(meter.settled)
                assert [name for name in meter.samples() if name.startswith("etameter_gpu_info") and late.uuid in name]
            late.kill()
            with metering(tmp_path, board, ports, heard=1) as meter:
                knows_its_engine(meter, 3)
                another(ring, 20, steps=60)
                until(lambda: settled(meter, OTHER))
                assert meter.energy(OTHER)["attribution_method"].endswith("-partial"), "what is missing is said"
                late.start()
                until(lambda: metric(meter, "etameter_node_up") == 2)
                until(
                    lambda: unassigned_j(meter, "reset", late.uuid) + metric(meter, "etameter_gpu_energy_resets_total")
                )
                another(ring, 200, receipt="e" * 32)
                until(lambda: settled(meter, "e" * 32))
                assert meter.totals().requests == 3, "none is lost, none is doubled"
                assert_sound(meter)


@pytest.mark.slow
def test_a_recording_of_several_machines_replays_bit_for_bit(tmp_path: Path) -> None:
    with engine_of_three(tmp_path) as (board, meter, ring, nodes):
        named = json.dumps([f"127.0.0.1:{node.port}" for node in nodes])
        told = {"ETAMETER_METER__NODES": named, "ETAMETER_METER__NODE_TOKEN": TOKEN}
        recorder = recording(tmp_path, {**board.environment(), **told})
        until((tmp_path / "r.zip.part").exists)
        nodes[0].kill()
        until(lambda: metric(meter, "etameter_node_up") == 1)
        nodes[0].start()
        until(lambda: metric(meter, "etameter_node_up") == 2)
        another(ring, 20, steps=40)
        until(lambda: settled(meter, OTHER))
        recorder.send_signal(signal.SIGINT)
        _, complaint = recorder.communicate(timeout=PATIENCE_S)
    assert recorder.returncode == 0, complaint
    again = replay(tmp_path / "r.zip")
    assert again.identical
    assert {row.record.receipt_id for row in again.rows} >= {receipt_name(OTHER)}
    assert {balance.gpu_uuid for balance in again.balances} == {board.uuid(), *(node.uuid for node in nodes)}
