"""The demo's report, and how it chooses what to meter. The demo itself is run by tests/test_boot.py."""

import asyncio
import json
import sys
from dataclasses import replace

import pytest
from aiohttp import web

from etameter import demo, demo_report, own_server
from etameter.counters import nvml, rapl
from etameter.demo_report import Exchange, Report, arm_sums, balance_line
from etameter.errors import CounterError, EngineError, EtameterError
from etameter.ledger import Totals
from etameter.prompts import demo as asked
from etameter.prompts.arms import find
from etameter.prompts.checkers import Verdict
from etameter.prompts.deletion import Remainder
from etameter.prompts.dialogue import Attempt, Dialogue
from etameter.prompts.endpoint import Answer
from etameter.serving.retries import client_of
from tests.prompts.upstream import Upstream, running

pytestmark = pytest.mark.unit


def _energy(prompt_j: float, output_j: float) -> dict[str, object]:
    return {
        "energy_joules": prompt_j + output_j,
        "prompt_joules": prompt_j,
        "output_joules": output_j,
        "error_joules": 0.5,
        "wh_per_output_token": 0.001,
        "settled": True,
        "source": "simulated",
        "counter": "simulated",
        "eta": {
            "lenient_at_most": 0.875,
            "interval": [0.5, 0.875],
            "method": "fast",
            "slack": {"preamble": {"tokens": 1.0, "joules": 3.25}, "closing": {"tokens": 1.0, "joules": 1.25}},
        },
    }


RIGHT, WRONG = Verdict(correct=True, reason="says so"), Verdict(correct=False, reason="says otherwise")
UNCHECKED = Verdict(correct=None, reason="not run: no namespaces")
LESS = Remainder(0.375, None, 9, minimal=True)
NONE = Remainder(None, "wrong_answer", 0, minimal=True)
UNTOLD = Remainder(None, "checker_not_run", 0, minimal=True)

#              prompt J  output J  tokens  paid decode steps  correct
# a/plain           1.0      36.0      11                 10      yes
# b/plain           2.0      72.0      21                 20       no
# a/terse           3.0       0.0       1                  0      yes
# b/terse       no receipt              5                         yes
EXCHANGES = [
    Exchange("a", "plain", 7, 11, RIGHT, LESS, _energy(1.0, 36.0)),
    Exchange("a", "terse", 9, 1, RIGHT, replace(LESS, minimal=False), _energy(3.0, 0.0)),
    Exchange("b", "plain", 8, 21, WRONG, NONE, _energy(2.0, 72.0)),
    Exchange("b", "terse", 9, 5, RIGHT, LESS, None, "meter_away"),
]
TOTALS = Totals(
    requests_j=120.0,
    idle_j=10.0,
    engine_overhead_j=5.0,
    unattributed_j_by_cause={"stale": 1.0, "reset": 0.0},
    measured_j=136.5,
    host_bubble_j=0.0,
    requests=5,
    sources=frozenset({"simulated"}),
)


def test_an_arms_sum_leaves_out_first_tokens_and_requests_without_a_receipt() -> None:
    plain, terse = arm_sums([*EXCHANGES, Exchange("a", "other", 9, 5, RIGHT, LESS, None, "meter_away")])
    assert (plain.arm, plain.requests, plain.energy_j, plain.output_tokens) == ("plain", 2, 111.0, 32)
    assert (plain.unmetered, terse.unmetered) == (0, 1)
    assert plain.wh_per_output_token == pytest.approx(108.0 / 3600 / 30)
    assert (terse.arm, terse.requests, terse.energy_j, terse.output_tokens) == ("terse", 1, 3.0, 1)
    assert terse.wh_per_output_token is None


def test_joules_per_correct_answer_count_wrong_ones_and_are_absent_where_one_is_unknown() -> None:
    plain, terse = arm_sums(EXCHANGES)
    assert (plain.correct, plain.joules_per_correct) == (1, 111.0)
    assert (terse.correct, terse.joules_per_correct) == (2, None)  # the energy of one is unknown
    unchecked = Exchange("c", "plain", 9, 5, UNCHECKED, UNTOLD, _energy(1000.0, 0.0))
    (plain, _) = arm_sums([*EXCHANGES, unchecked])
    assert (plain.correct, plain.unchecked, plain.joules_per_correct) == (1, 1, 111.0)
    (wrong,) = arm_sums([EXCHANGES[2]])
    assert (wrong.correct, wrong.joules_per_correct) == (0, None)


def test_the_balance_line_adds_up_and_says_what_it_misses() -> None:
    assert balance_line(TOTALS, shown_j=114.0) == (
        "requests 120.000 (warm-up 6.000) + idle 10.000 + overhead 5.000 + unattributed 1.000 (stale 1.000) "
        "= counter 136.500 J (differs by 5.0e-01 J)  source=simulated"
    )


def test_every_line_with_a_figure_names_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(EXCHANGES, method="Metered: a test.", totals=TOTALS, counter="simulated", slow_motion=0.125)
    demo_report.show(report)
    lines = capsys.readouterr().out.splitlines()
    assert "SIMULATED" in next(line for line in lines if line)
    figures = [line for line in lines if " J" in line.replace("± J", "") or line.startswith(("a ", "b "))]
    assert len([line for line in figures if "simulated" in line]) == len(figures) - 2  # the head, and b/terse
    assert any("meter_away" in line for line in figures)
    assert any("0.125 modelled GPU seconds" in line for line in lines)
    assert any("3.00 J for 1 requests (1 more without energy), 2 correct, 1 output tokens" in line for line in lines)
    assert any("111.00 J for 2 requests, 1 correct, 111.00 J per correct answer" in line for line in lines)
    assert "too few for a verdict" in lines
    assert not any(line.startswith("next: ") for line in lines)


@pytest.mark.parametrize(
    ("started", "command"),
    [(".venv/bin/etameter", ".venv/bin/etameter"), ("/x/meter/__main__.py", f"{sys.executable} -m etameter")],
)
def test_a_metered_demo_ends_with_a_command_that_works_here(
    started: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started, "demo"])
    demo_report.show(Report(EXCHANGES[:3], method="Metered: a test.", counter="simulated"))
    assert capsys.readouterr().out.splitlines()[-1] == f"next: `{command} serve MODEL`"


def test_a_demo_in_which_a_request_has_no_energy_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = Report(list(EXCHANGES), method="Metered: a test.", addresses={"ledger and log": "the folder"})
    monkeypatch.setattr(demo, "_running", lambda *_: report)
    monkeypatch.setenv("ETAMETER_RUN", "")  # which the demo sets
    with pytest.raises(EtameterError) as raised:
        demo.run(url="http://127.0.0.1:8000", model=None, profile="h100", as_json=False)
    assert str(raised.value) == (
        "metering failed: 1 of 4 requests have no energy, b under terse (meter_away): see the folder"
    )
    assert raised.value.exit_code == 2
    report.exchanges.pop()
    assert demo.run(url="http://127.0.0.1:8000", model=None, profile="h100", as_json=False) == 0


def test_the_report_as_json_has_what_the_table_has() -> None:
    report = Report(EXCHANGES, method="Metered: a test.", totals=TOTALS, counter="simulated")
    read = json.loads(demo_report.as_json(report))
    assert read["source"] == "simulated"
    assert [request["energy"] and request["energy"]["energy_joules"] for request in read["requests"]] == [
        37,
        3,
        74,
        None,
    ]
    assert read["arms"]["plain"]["energy_joules"] == read["arms"]["plain"]["joules_per_correct"] == 111.0
    assert [request["correct"] for request in read["requests"]] == [True, True, False, True]
    assert [request["eta_deletion"] for request in read["requests"]] == [0.375, 0.375, None, 0.375]
    assert read["requests"][2]["eta_deletion_reason"] == "wrong_answer"
    assert read["arms"]["terse"]["requests_without_energy"] == 1
    assert read["balance"]["counter_joules"] == 136.5
    assert read["balance"]["residual_joules"] == 0.5


def _fail(cause: str) -> object:
    def discover() -> list[object]:
        raise CounterError(cause, f"because {cause}", "mend it")

    return discover


def test_without_nvml_and_rapl_a_board_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "discover", _fail("library_missing"))
    monkeypatch.setattr(rapl, "discover", _fail("no_permission"))
    metering = own_server.find_counter("a100")
    assert metering.counter == "simulated"
    assert "a simulated A100" in metering.why
    assert "because no_permission" in metering.why


def test_rapl_stands_in_only_where_no_nvml_library_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "discover", _fail("library_missing"))
    monkeypatch.setattr(rapl, "discover", list)
    assert own_server.find_counter("h100").counter == "rapl"


@pytest.mark.parametrize("cause", ["driver_not_loaded", "no_permission", "library_broken", "mig", "nvml_error"])
def test_an_nvml_that_fails_is_never_passed_over(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "discover", _fail(cause))
    monkeypatch.setattr(rapl, "discover", list)
    with pytest.raises(CounterError, match=f"because {cause}"):
        own_server.find_counter("h100")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "192.0.2.1", "no.such.host.invalid"])
def test_only_this_machines_counter_is_taken_for_a_server(host: str) -> None:
    assert own_server.is_here(host) == (host in {"127.0.0.1", "localhost", "::1"})


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http:///v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(EngineError, match="is no address of a server"):
        own_server.address_of(url)


def test_an_address_with_a_password_is_refused_without_saying_it() -> None:
    with pytest.raises(EngineError, match="names a user") as refused:
        own_server.address_of("http://somebody:Zanzibar@127.0.0.1:8000")
    assert "Zanzibar" not in str(refused.value)


def test_an_address_is_taken_with_and_without_its_tail() -> None:
    for url in ("http://host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/"):
        assert own_server.address_of(url) == "http://host:8000"


def test_what_could_be_metered_in_part_only_is_shown_as_a_floor(capsys: pytest.CaptureFixture[str]) -> None:
    half = replace(EXCHANGES[0], energy={**_energy(0.0, 36.0), "attribution_method": "step-cost-partial"})
    demo_report.show(Report([half, EXCHANGES[2]], method="Metered: a test.", counter="simulated"))
    lines = capsys.readouterr().out.splitlines()
    (shown,) = [line.split() for line in lines if line.startswith("a ")]
    assert {"≥0.00", "≥36.00", "≥1.00e-03", "≥4.50"} <= set(shown)
    (whole,) = [line for line in lines if line.startswith("b ")]
    assert "≥" not in whole
    assert any(line.startswith("plain: ≥110.00 J for 2 requests, 1 correct, ≥110.00 J per correct") for line in lines)
    assert any(line.startswith("≥: of 1 requests a part could not be metered") for line in lines)


def test_each_request_is_shown_with_the_bound_of_its_eta_or_why_there_is_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    silent = replace(EXCHANGES[0], request="c", energy={**_energy(1.0, 2.0), "eta": None, "eta_reason": "too_long"})
    demo_report.show(Report([*EXCHANGES, silent, silent], method="Metered: a test.", counter="simulated"))
    lines = capsys.readouterr().out.splitlines()
    (shown,) = [line.split() for line in lines if " 36.00 " in line]
    assert {"0.88", "4.50"} <= set(shown)
    assert any(line.startswith("η ≤ bounds lenient η from above (fast)") for line in lines)
    assert "No figure under η ≤: too_long (2)." in lines
    assert demo_report.unexplained([*EXCHANGES, silent]) is None


def test_each_request_is_shown_with_its_verdict_and_what_its_checker_needs_or_why_that_is_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    unchecked = replace(EXCHANGES[0], request="c", verdict=UNCHECKED, left=UNTOLD)
    demo_report.show(Report([*EXCHANGES[:3], unchecked], method="Metered: a test.", counter="simulated"))
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[-3:-1] for line in lines if line.startswith(("a ", "b ", "c "))]
    assert shown == [["yes", "0.38"], ["yes", "0.38"], ["no", "–"], ["–", "–"]]
    (why,) = [line for line in lines if line.startswith("No figure under η del: ")]
    assert "η is 0 by definition (1)" in why
    assert "the checker could not run (1)" in why
    assert "No figure under correct: not run: no namespaces (1)." in lines
    assert any(line.startswith("η del may be too high for 1: ") for line in lines)
    assert any(" 1 correct (1 not checked), " in line for line in lines)


@pytest.mark.parametrize(
    ("bare", "said"),
    [
        (replace(EXCHANGES[0], energy={**_energy(1.0, 2.0), "eta": None}), "the bound of η and slack of a under plain"),
        (replace(EXCHANGES[0], verdict=Verdict(correct=None, reason="")), "the verdict of a under plain"),
        (replace(EXCHANGES[0], left=Remainder(None, None, 3, minimal=True)), "η by deletion of a under plain"),
    ],
)
def test_a_figure_that_is_absent_without_a_reason_is_a_failure(
    bare: Exchange, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo_report.unexplained([*EXCHANGES, bare]) == f"figures are absent without a reason: {said}"
    report = Report([*EXCHANGES[:3], bare], method="Metered: a test.")
    monkeypatch.setattr(demo, "_running", lambda *_: report)
    monkeypatch.setenv("ETAMETER_RUN", "")  # which the demo sets
    with pytest.raises(EtameterError, match=said):
        demo.run(url="http://127.0.0.1:8000", model=None, profile="h100", as_json=True)


def test_what_was_said_becomes_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def held(correct: bool, text: str) -> Dialogue:
        answer = Answer(text, "", 40, 20, "stop", 0.5, _energy(1.0, 2.0), None, "0" * 32)
        return Dialogue("t", "plain", "hash", "small", (Attempt(0, 0, answer, RIGHT if correct else WRONG),))

    spider = "Think of one. It has 8 legs. Do you like them?"
    dialogues = [held(number == 0, spider) for number in range(16)]
    with demo_report.Progress() as progress:
        first, *others = demo.exchanges_of(dialogues, progress)
    assert first.left.eta == pytest.approx(len("It has 8 legs. ") / len(spider))
    assert {other.left.reason for other in others} == {"wrong_answer"}
    assert (first.prompt_tokens, first.output_tokens, first.energy) == (40, 20, _energy(1.0, 2.0))
    assert "checkers don't miss: done in" in capsys.readouterr().err


def test_what_the_demo_asks_is_never_taken_for_a_users_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.prompts.upstream.LONGEST_PROMPT", 10_000)
    clients = []

    class Asked(Upstream):
        async def chat(self, request: web.Request) -> web.StreamResponse:
            headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
            clients.append(client_of({"headers": headers}))
            return await super().chat(request)

    async def main() -> None:
        async with running(Asked(lambda _: "8", settles_after=0)) as url:
            await demo._hold(url, "small", url, lambda _: None)

    asyncio.run(main())
    assert clients == [None] * 16


def test_the_demo_has_no_arms_of_its_own() -> None:
    assert {each.arm.hash for each in asked.wanted()} == {find(name).hash for name in asked.ARMS}


def test_work_ends_when_what_it_needs_dies() -> None:
    calls = 0

    def tend() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise EngineError("vLLM ended", "see above")

    async def main() -> None:
        await demo.while_tended(asyncio.sleep(60.0), tend)

    with pytest.raises(EngineError, match="vLLM ended"):
        asyncio.run(main())
