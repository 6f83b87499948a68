"""What a meter's page says becomes figures; what it does not say is not known."""

import asyncio

import pytest
from aiohttp import web

from etameter.prompts.nightly import meter_page
from etameter.prompts.nightly.meter_page import Page, parse

pytestmark = pytest.mark.unit

EARLY = """# TYPE etameter_gpu_energy_joules_total counter
etameter_gpu_energy_joules_total{gpu_uuid="a",source="measured"} 1000
# TYPE etameter_unassigned_joules_total counter
etameter_unassigned_joules_total{gpu_uuid="a",cause="idle",source="measured"} 500
etameter_unassigned_joules_total{gpu_uuid="a",cause="model_residual",source="measured"} 10
"""
LATE = """# TYPE etameter_gpu_energy_joules_total counter
etameter_gpu_energy_joules_total{gpu_uuid="a",source="measured"} 3000
# TYPE etameter_unassigned_joules_total counter
etameter_unassigned_joules_total{gpu_uuid="a",cause="idle",source="measured"} 900
etameter_unassigned_joules_total{gpu_uuid="a",cause="model_residual",source="measured"} 20
etameter_unassigned_joules_total{gpu_uuid="a",cause="stale",source="measured"} 10
# TYPE etameter_cost_coefficient gauge
etameter_cost_coefficient{gpu_uuid="a",coefficient="p0_w"} 120
etameter_cost_coefficient{gpu_uuid="b",coefficient="p0_w"} 124
etameter_cost_coefficient{gpu_uuid="a",coefficient="c_j"} 2
# TYPE etameter_cost_coefficient_standard_error gauge
etameter_cost_coefficient_standard_error{gpu_uuid="a",coefficient="p0_w"} 3
etameter_cost_coefficient_standard_error{gpu_uuid="b",coefficient="p0_w"} 4
# TYPE etameter_cost_coefficient_unidentified gauge
etameter_cost_coefficient_unidentified{gpu_uuid="a",coefficient="c_j"} 1
# TYPE etameter_eta_reliability gauge
etameter_eta_reliability{tier="fast",statistic="agreement",model_name="m",arm="x"} 0.9
etameter_eta_reliability{tier="fast",statistic="agreement",model_name="m",arm="y"} 0.8
etameter_eta_reliability{tier="fast",statistic="bias",model_name="m",arm="y"} 0.1
"""


def test_joules_that_are_nobodys_are_a_share_of_what_was_settled_meanwhile() -> None:
    figure = meter_page.unattributed("batch-8", parse(EARLY), parse(LATE), "measured")
    assert figure.value == pytest.approx(20 / 2000)
    assert "settled nothing" in meter_page.unattributed("batch-8", parse(LATE), parse(LATE), "measured").reason
    assert "no meter" in meter_page.unattributed("batch-8", None, parse(LATE), "measured").reason


def test_coefficients_are_means_of_the_gpus_with_their_errors() -> None:
    figures = {figure.metric: figure for figure in meter_page.of_meter(parse(LATE), "measured")}
    idle = figures["coefficient_idle_w"]
    assert (idle.value, idle.n) == (122, 2)
    assert idle.high == pytest.approx(122 + 1.96 * 5 / 2)
    loose = figures["coefficient_pass_j"]
    assert (loose.value, loose.low) == (2, None)
    assert "first guess" in loose.reason
    assert figures["coefficient_decode_j"].value is None
    assert figures["eta_reliability"].value == pytest.approx(0.8)  # the meter has squared it


def test_without_a_meter_all_of_it_is_not_known() -> None:
    figures = meter_page.of_meter(None, "measured")
    assert {figure.value for figure in figures} == {None}
    assert len(figures) == len({figure.metric for figure in figures}) == 6
    assert "no audit" in meter_page.of_meter(parse(EARLY), "measured")[-1].reason


def test_a_page_is_looked_up_and_need_not_be_there() -> None:
    async def main(text: str, status: int) -> Page | None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(text=text, status=status)

        application = web.Application()
        application.add_routes([web.get("/metrics", answer)])
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            return await meter_page.scrape(f"http://127.0.0.1:{runner.addresses[0][1]}")
        finally:
            await runner.cleanup()

    page = asyncio.run(main(EARLY, 200))
    assert page is not None
    assert page.total("etameter_unassigned_joules_total") == 510
    assert asyncio.run(main(EARLY, 404)) is None
    assert asyncio.run(main("a{ 1\n", 200)) is None
    assert asyncio.run(meter_page.scrape("http://127.0.0.1:9")) is None
