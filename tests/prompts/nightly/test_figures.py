"""A stage's figures, from windows whose sums are drawn as a table."""

from dataclasses import replace

import pytest

from etameter.prompts.nightly.figures import Limits, Machine, machine_of, of_idle, of_load
from etameter.prompts.nightly.metrics import METRICS
from etameter.prompts.nightly.rows import Figure
from etameter.prompts.nightly.windows import Reply, Window

pytestmark = pytest.mark.unit

S = 1_000_000_000
LIMITS = Limits(ttft_s=1.0, itl_s=0.1)
NO_PEAK = Machine(None, None, "nothing computes")
RECEIPT = {"settled": True, "prompt_joules": 10.0, "output_joules": 40.0, "energy_joules": 50.0}

#  window   seconds   joules   tokens   answers   correct
#     each     10       3000     1000       2         1


def answer(**told: object) -> Reply:
    """Five tokens a tenth of a second apart, the first after half a second."""
    usual = Reply(
        start_ns=0,
        end_ns=S,
        token_ns=tuple(int((0.5 + 0.1 * number) * S) for number in range(5)),
        prompt_tokens=20,
        task="a",
        correct=True,
        energy=RECEIPT,
        eta_lenient_at_most=0.8,
    )
    return replace(usual, **told)  # type: ignore[arg-type]


def windows() -> list[Window]:
    ended = [answer(), answer(correct=False, eta_lenient_at_most=0.6)]
    return [Window(number * 10 * S, (number + 1) * 10 * S, 3000.0, 1000, 40, list(ended)) for number in range(3)]


def found(told: list[Window], machine: Machine = NO_PEAK, why_not: str = "") -> dict[str, Figure]:
    figures = of_load("batch-8", told, "measured", machine, LIMITS, why_not)
    assert {figure.metric for figure in figures} <= METRICS.keys()
    return {figure.metric: figure for figure in figures}


def test_every_figure_by_hand() -> None:
    values = {metric: figure.value for metric, figure in found(windows()).items() if figure.value is not None}
    assert values == {
        "j_per_token": pytest.approx(3.0),
        "wh_per_token": pytest.approx(3.0 / 3600),
        "tokens_per_s_per_w": pytest.approx(1 / 3),
        "j_per_question": pytest.approx(1500.0),
        "j_per_correct_answer": pytest.approx(3000.0),
        "goodput_per_w": pytest.approx(2 / 3000),
        "power_w": pytest.approx(300.0),
        "tokens_per_s": pytest.approx(100.0),
        "requests_per_s": pytest.approx(0.2),
        "j_per_prompt_token": pytest.approx(0.5),
        "j_per_output_token": pytest.approx(10.0),
        "j_per_request": pytest.approx(50.0),
        "ttft_p50_s": pytest.approx(0.5),
        "ttft_p99_s": pytest.approx(0.5),
        "itl_p50_s": pytest.approx(0.1),
        "itl_p99_s": pytest.approx(0.1),
        "accuracy": pytest.approx(0.5),
        "failures": 0.0,
        "eta_lenient_at_most": pytest.approx(0.7),
    }


def test_each_has_its_unit_its_source_and_a_reason_where_it_is_not_known() -> None:
    for figure in found(windows()).values():
        assert figure.unit == METRICS[figure.metric].unit
        assert figure.source == "measured"
        assert (figure.value is None) == (figure.n == 0)
        assert (figure.value is None) == bool(figure.reason)


def test_slow_and_failed_requests_are_no_goodput() -> None:
    told = windows()
    for window in told:
        slowly = answer(token_ns=tuple(int((0.5 + 0.2 * number) * S) for number in range(5)))
        window.ended = [answer(start_ns=-S), answer(failure="timeout"), slowly]
    assert found(told)["goodput_per_w"].value == 0.0
    assert found(told)["failures"].value == pytest.approx(1 / 3)
    assert found(told)["j_per_question"].value == pytest.approx(1500.0)


def test_joules_that_are_not_known_are_not_none() -> None:
    told = windows()
    told[1].energy_j = None
    assert found(told)["j_per_token"].value is None
    assert found(told)["tokens_per_s"].value == pytest.approx(100.0)


def test_attributed_figures_take_receipts_that_have_settled() -> None:
    told = windows()
    for window in told:
        window.ended = [answer(energy={**RECEIPT, "settled": False}), answer()]
    half = found(told)["j_per_request"]
    assert half.value is None
    assert half.reason == "3 of 6 requests have a receipt that has settled"
    for window in told:
        window.ended = [answer()] * 20
    told[0].ended = [*told[0].ended, answer(energy=None)]
    most = found(told)["j_per_request"]
    assert most.value == pytest.approx(50.0)
    assert most.reason == "of 60 of 61 receipts, that have settled"
    no_parts = {key: value for key, value in RECEIPT.items() if key != "output_joules"}
    for window in told:
        window.ended = [answer(energy=no_parts)]
    assert "prompt and output apart" in found(told)["j_per_output_token"].reason


def test_why_there_are_no_windows_is_why_there_is_no_figure() -> None:
    figures = found([], why_not="throttled")
    assert {figure.reason for figure in figures.values()} == {"throttled"}
    assert {figure.value for figure in figures.values()} == {None}


def test_model_flops_are_two_a_parameter_and_token() -> None:
    machine = Machine(parameters=8_000_000_000, peak_flops=989e12)
    assert found(windows(), machine)["mfu"].value == pytest.approx(2 * 8e9 * 1040 / 10 / 989e12)
    assert found(windows())["mfu"].reason == "nothing computes"


@pytest.mark.parametrize(
    ("boards", "source", "kind", "peak", "why"),
    [
        (["NVIDIA H100 80GB HBM3"], "measured", "nvml", 989e12, ""),
        (["NVIDIA H100 PCIe", "NVIDIA H100 PCIe"], "measured", "nvml", 2 * 756e12, ""),
        (["NVIDIA A100-SXM4-80GB"], "measured", "nvml", 312e12, ""),
        (["RAPL"], "measured", "rapl", None, "a CPU computes"),
        (["Simulated H100"], "simulated", "nvml", None, "the board is simulated"),
        (["Tesla V100"], "measured", "nvml", None, "the peak of Tesla V100 is not known"),
        (["NVIDIA H100 PCIe", "Tesla V100"], "measured", "nvml", None, "is not known"),
    ],
)
def test_only_boards_with_a_data_sheet_have_a_peak(
    boards: list[str], source: str, kind: str, peak: float | None, why: str
) -> None:
    machine = machine_of(1, boards, source, kind)  # type: ignore[arg-type]
    assert machine.peak_flops == peak
    assert why in machine.why_not


def test_idle_power() -> None:
    (figure,) = of_idle("idle-before", [Window(0, 10 * S, 700.0), Window(10 * S, 20 * S, 720.0)], "measured")
    assert figure.value == pytest.approx(71.0)
    assert (figure.metric, figure.n) == ("power_w", 2)
