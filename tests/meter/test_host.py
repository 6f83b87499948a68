"""The host's joules: read from a recorded powercap tree, split by residency, and never mixed with a GPU's."""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter import config, daemon, doctor
from etameter.counters.nvml import discover
from etameter.host import KEPT_SPANS, HostCounters, HostMeter, Residency
from tests.meter.counters.test_rapl import RANGE_UJ, as_other_user, powercap
from tests.meter.test_daemon import RECEIPT, engine, lit_board, serve_one

__all__ = ["powercap"]

pytestmark = pytest.mark.unit

SECOND = 1_000_000_000


def add_uj(powercap: Path, domain: str, energy_uj: int) -> None:
    file = powercap / domain / "energy_uj"
    file.write_text(f"{int(file.read_text()) + energy_uj}\n")


def test_packages_and_dram_of_all_sockets_are_summed_by_domain(powercap: Path) -> None:
    host = HostCounters(powercap)
    assert len(host) == 4
    add_uj(powercap, "intel-rapl:0", 90_000_000)
    add_uj(powercap, "intel-rapl:1", 70_000_000)
    add_uj(powercap, "intel-rapl:0:0", 5_000_000)
    assert host.read() == pytest.approx({"package": 160.0, "dram": 5.0}, abs=0.003)
    assert host.read() == {"package": 0.0, "dram": 0.0}


def test_packages_that_are_metered_themselves_are_left_out(powercap: Path) -> None:
    host = HostCounters(powercap, packages=False)
    add_uj(powercap, "intel-rapl:0", 90_000_000)
    add_uj(powercap, "intel-rapl:1:0", 3_000_000)
    assert host.read() == pytest.approx({"dram": 3.0}, abs=0.002)


def test_a_wrap_goes_on_and_a_reset_adds_nothing(powercap: Path) -> None:
    file = powercap / "intel-rapl:0" / "energy_uj"
    file.write_text(f"{RANGE_UJ - 1_000_000}\n")
    host = HostCounters(powercap)
    file.write_text("2000000\n")
    assert host.read()["package"] == pytest.approx(3.0, abs=0.003)
    file.write_text("1000000\n")
    assert host.read()["package"] == 0.0


def test_a_host_without_rapl_or_without_permission_has_no_figure(tmp_path: Path, powercap: Path) -> None:
    assert len(HostCounters(tmp_path)) == 0
    assert doctor.host_check(HostCounters(tmp_path)).finding.startswith("no RAPL counter")
    told = doctor.host_check(HostCounters(powercap))
    assert (told.verdict, told.finding) == ("good", "RAPL: package, dram")
    for file in powercap.glob("*/energy_uj"):
        file.chmod(0o400)
    with as_other_user():
        host = HostCounters(powercap)
    assert len(host) == 0
    assert host.absent_because is not None
    assert "may not be read" in host.absent_because
    refused = doctor.host_check(host)
    assert refused.verdict == "note"
    assert "chmod a+r" in refused.finding


def test_who_is_there_pays_alike_and_nobody_pays_for_an_empty_moment() -> None:
    residency = Residency()
    residency.resided(1 * SECOND, 2 * SECOND, ["a"])
    residency.resided(2 * SECOND, 3 * SECOND, ["a", "b"])
    residency.resided(3 * SECOND, 4 * SECOND, [])
    assert residency.take() == []  # the host was not read yet
    residency.spent(0, 2 * SECOND, {"package": 200.0, "dram": 20.0})
    residency.spent(2 * SECOND, int(3.5 * SECOND), {"package": 300.0})
    stays = residency.take()
    assert [(stay.request_ids, stay.energy_j) for stay in stays] == [
        ((), {"package": 100.0, "dram": 10.0}),
        (("a",), {"package": 100.0, "dram": 10.0}),
        (("a", "b"), {"package": pytest.approx(200.0)}),
    ]
    residency.spent(int(3.5 * SECOND), 5 * SECOND, {"package": 60.0})
    (stay,) = residency.take()
    assert stay.request_ids == ()
    assert stay.energy_j == pytest.approx({"package": 120.0})


def taken(residency: Residency) -> list[object]:
    return [(stay.request_ids, stay.energy_j) for stay in residency.take()]


def test_what_two_engines_worked_on_at_once_shares_the_host() -> None:
    residency = Residency()
    residency.resided(0, 2 * SECOND, ["a", "b"], "engine-0")
    residency.resided(1 * SECOND, 3 * SECOND, ["c"], "engine-1")
    residency.spent(0, 11 * SECOND, {"package": 110.0})
    assert taken(residency) == [
        (("a", "b"), {"package": pytest.approx(10.0)}),
        (("a", "b", "c"), {"package": pytest.approx(10.0)}),  # engine-0 may have more to say of what comes then
    ]
    residency.resided(2 * SECOND, 12 * SECOND, [], "engine-0")
    assert taken(residency) == [
        (("c",), {"package": pytest.approx(10.0)}),
    ]
    residency.spent(11 * SECOND, 20 * SECOND, {"package": 90.0})  # and engine-1 has been silent for long
    assert taken(residency) == [
        ((), {"package": pytest.approx(90.0)}),
    ]


def test_a_host_without_an_engine_is_paid_by_nobody_in_the_end() -> None:
    residency = Residency()
    for second in range(KEPT_SPANS + 10):
        residency.spent(second * SECOND, (second + 1) * SECOND, {"package": 2.0})
    stays = residency.take()
    assert {stay.request_ids for stay in stays} == {()}
    assert math.fsum(stay.energy_j["package"] for stay in stays) == 20.0


@given(
    st.lists(st.tuples(st.integers(1, 10**10), st.floats(0, 1e4)), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 10**9), st.integers(0, 3)), max_size=20),
)
def test_every_joule_is_paid_once(spans: list[tuple[int, float]], gaps: list[tuple[int, int, int]]) -> None:
    residency, at_ns = Residency(), 0
    for gap_ns, length_ns, requests in gaps:
        start_ns = at_ns + gap_ns
        at_ns = start_ns + length_ns
        residency.resided(start_ns, at_ns, [f"r{n}" for n in range(requests)])
    last_ns, read_ns = at_ns, 0
    for length_ns, joules in spans:
        residency.spent(read_ns, read_ns + length_ns, {"package": joules})
        read_ns += length_ns
    residency.spent(read_ns, max(last_ns, read_ns + 1), {"package": 7.0})
    residency.resided(last_ns, max(last_ns, read_ns + 1), [])
    paid_j = math.fsum(stay.energy_j["package"] for stay in residency.take())
    assert paid_j == pytest.approx(math.fsum(joules for _, joules in spans) + 7.0, rel=1e-9)


def test_a_receipt_has_its_part_of_the_host_and_not_among_the_gpus_joules(
    tmp_path: Path, powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counters(*, packages: bool) -> HostCounters:
        return HostCounters(powercap, packages=packages)

    async def metered(meter: daemon.Meter) -> tuple[dict[str, Any], str]:
        stop = asyncio.Event()
        running = asyncio.create_task(meter.run(stop))
        with engine(tmp_path) as ring:
            await asyncio.sleep(1.2)
            serving = asyncio.create_task(asyncio.to_thread(serve_one, ring, 60))
            while not serving.done():
                await asyncio.sleep(0.1)
                add_uj(powercap, "intel-rapl:0", 10_000_000)
                add_uj(powercap, "intel-rapl:1:0", 1_000_000)
            while not (meter._figures.of(RECEIPT)[0] or {}).get("settled"):  # noqa: ASYNC110  # nothing tells
                await asyncio.sleep(0.1)
            await asyncio.sleep(1.5)
            figure, _ = meter._figures.of(RECEIPT)
            exposition = meter._metrics.render(None)[0].decode()
        stop.set()
        await running
        assert figure is not None
        return dict(figure), exposition

    monkeypatch.setattr(daemon, "HostCounters", counters)
    settings = config.load(overrides={"meter": {"port": 0, "ledger": tmp_path / "ledger.db"}})
    with lit_board(tmp_path, power_w=250.0):
        nvml = discover()
        meter = daemon.Meter(settings, [tmp_path / "ring"], tmp_path / "meter.sock", nvml)
        figure, exposition = asyncio.run(metered(meter))
        for counter in nvml:
            counter.close()
    assert figure["host_package_joules"] == pytest.approx(100.0, rel=0.6)  # 100 W for the 1.2 s of its steps
    assert figure["host_dram_joules"] == pytest.approx(figure["host_package_joules"] / 10, rel=0.05)
    assert figure["energy_joules"] == pytest.approx(figure["prompt_joules"] + figure["output_joules"])
    assert 'etameter_host_energy_joules_total{domain="package",paid_by="requests",source="measured"}' in exposition


def test_receipts_of_the_host_add_up_to_what_was_spent(powercap: Path) -> None:
    host = HostMeter(HostCounters(powercap), 0)
    ids = [f"chatcmpl-{digit}-{digit * 32}00000000" for digit in "ab"]
    host.resided(0, SECOND, ids)
    add_uj(powercap, "intel-rapl:0", 60_000_000)
    (stay,) = host.read(SECOND)
    assert stay.energy_j["package"] == pytest.approx(60.0, abs=0.002)
    assert host.of("a" * 32)["host_package_joules"] == pytest.approx(30.0, abs=0.001)
    assert host.of("a" * 32) == host.of("b" * 32)
    assert host.of("c" * 32) == {}
