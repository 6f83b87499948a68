"""A real vLLM server, the simulated board, the meter, the openai client and Prometheus, each a process of its own.

The server's clients and the ledger are two witnesses of the same requests; the ledger and Prometheus of the same joules.
"""

import asyncio
import http.client
import json
import shutil
import sqlite3
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from etameter.books import METHOD, PARTIAL_METHOD
from etameter.ledger import Ledger, RequestRow, Totals
from etameter.prompts.arms import Sampling, find
from etameter.prompts.dialogue import Dialogue, Wanted, hold
from etameter.prompts.endpoint import connect
from etameter.prompts.tasks import load_suite
from tests.forms import FORMS, Told, ask
from tests.meter.test_daemon import free_port
from tests.metered import Metered, check_sum, metering, receipt_of, settled, stopped, until, warm_up, written
from tests.serving.real_server import CHUNK_TOKENS, MODEL_NAME, RealServer

pytestmark = pytest.mark.server

PROMETHEUS = shutil.which("prometheus")
LONG_TOKENS = 900
"""So many that no engine is through with them before its client goes."""


@pytest.fixture(scope="module")
def metered(server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metered]:
    with metering(server, tmp_path_factory.mktemp("meter")) as found:
        warm_up(found)
        yield found


def test_every_request_of_a_mixed_load(metered: Metered) -> None:
    """Chunked prefill, eight at once, a stop string, a disconnect, n=3, one X-Request-Id twice, a prefix-cache hit."""
    together = threading.Barrier(2)

    def same_id(content: str) -> Any:
        together.wait()
        return metered.chat(content, max_tokens=20, extra_headers={"X-Request-Id": "same"})

    def disconnect() -> None:
        stream = metered.chat("Tell me a long story.", max_tokens=LONG_TOKENS, stream=True)
        for _, _ in zip(range(4), stream, strict=False):
            pass
        stream.response.close()

    long = "all work and no play makes a dull day " * 40
    with ThreadPoolExecutor(8) as pool:
        arms = ("unconstrained", "entrace")
        answers = [
            pool.submit(
                metered.chat,
                f"{number}: {long if number % 2 else 'Hello.'}",
                extra_headers={"X-Etameter-Arm": arms[number % 2]},
            )
            for number in range(8)
        ]
        others = [
            pool.submit(metered.chat, "Invent a name.", n=3, temperature=1.0, max_tokens=7),
            pool.submit(metered.chat, "Name three colours.", max_tokens=24, stop=["e"]),
            pool.submit(disconnect),
        ]
        others += [pool.submit(same_id, content) for content in ("Hi.", "Hello, " * 40)]
        for future in (*answers, *others):
            future.result()
    assert any(answer.result().usage.prompt_tokens > CHUNK_TOKENS for answer in answers)
    cached = metered.chat(f"1: {long}")
    assert cached.usage.prompt_tokens_details.cached_tokens > 0
    rows: dict[str, list[RequestRow]] = {}
    for row in written(metered, metered.usages):
        rows.setdefault(row.record.receipt_id or "", []).append(row)
    for receipt_id, usage in metered.usages.items():
        check(rows[receipt_id], usage)

    def aborted() -> list[RequestRow]:
        return [row for row in metered.rows() if row.record.finish_reason == "abort" and row.energy.settled]

    lost = until(aborted, lambda rows: len(rows) >= 2)
    assert len(lost) == 2  # the disconnect, and the stop string, which the API server finds
    for row in lost:
        assert row.record.output_tokens - 1 <= row.decode_tokens <= row.record.output_tokens + 1
        assert row.energy.output_j > 0


def check(rows: list[RequestRow], usage: Any) -> None:
    """Prefill = prompt - cached; decode = completion - 1 for each sequence, and up to two wasted steps after a stop."""
    (row,) = rows
    samples = row.prefill_tokens // (usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens)
    assert row.record.prompt_tokens == usage.prompt_tokens
    assert row.prefill_tokens == samples * usage.prompt_tokens - row.record.cached_tokens
    wasted = 2 if row.record.finish_reason == "abort" else 0
    assert usage.completion_tokens - samples <= row.decode_tokens <= usage.completion_tokens - samples + wasted
    assert row.energy.source == "simulated"
    if row.energy.method != PARTIAL_METHOD:  # the machine let no reading be made, or nothing be published, for so long
        assert row.energy.method == METHOD
        assert row.energy.prompt_j > 0
        assert row.energy.output_j > 0


def test_the_books_balance(metered: Metered) -> None:
    """What counter and sampler miss is the machine's doing, where it has more work than cores: sooner or later they miss nothing."""

    def totals() -> Totals:
        written(metered, [receipt_of(metered.chat("One more."))])
        ledger = Ledger(metered.ledger, read_only=True)
        found = ledger.totals()
        ledger.close()
        return found

    def missed_j(found: Totals) -> float:
        return sum(found.unattributed_j_by_cause.get(cause, 0.0) for cause in ("readings_missing", "stale"))

    before_j = missed_j(totals())

    def calm() -> Totals | None:
        nonlocal before_j
        last_j, found = before_j, totals()
        before_j = missed_j(found)
        return found if before_j == last_j else None

    found = until(calm)
    assert abs(found.residual_j) <= 1e-9 * found.measured_j
    assert sum(found.unattributed_j_by_cause.values()) - missed_j(found) <= 0.005 * found.measured_j
    assert found.sources == {"simulated"}


@pytest.mark.parametrize("include_usage", [False, True])
def test_the_openai_client_reads_energy_from_streamed_chat(metered: Metered, include_usage: bool) -> None:
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if include_usage else {}

    def last_chunk() -> Any:
        """Of a stream whose figure came in time: on a machine with more work than cores the meter may be late."""
        chunks = list(metered.chat("Count to three.", stream=True, **more))
        assert not any(hasattr(chunk, "energy") for chunk in chunks[:-1])
        assert chunks[-1].energy or chunks[-1].energy_reason == "meter_late"
        return chunks[-1].energy and chunks[-1]

    energy = until(last_chunk).energy
    assert energy["energy_joules"] == pytest.approx(energy["prompt_joules"] + energy["output_joules"])
    assert energy["source"] == "simulated"


def test_the_openai_client_reads_energy_from_chat_and_completions_and_the_settled_receipt(metered: Metered) -> None:
    prompts = ["The sky is", "Grass is very"]

    def complete() -> Any:
        return metered.client.completions.create(model=MODEL_NAME, prompt=prompts, max_tokens=8)

    def chat() -> Any:
        return metered.chat("Say something.", max_tokens=20)

    def answered(ask: Callable[[], Any]) -> Any:
        answer = ask()
        return answer.energy and answer

    for asking in (chat, complete):
        answer = until(partial(answered, asking))
        early = answer.energy
        assert early["energy_joules"] > 0
        late = until(partial(settled, metered, f"/energy/{early['receipt_id']}"))
        assert late["energy_joules"] == pytest.approx(early["energy_joules"], rel=0.35)
        assert late["output_tokens"] == answer.usage.completion_tokens
        assert late["counter"] == "simulated"
        eta = late["eta"]
        assert eta["interval"][0] <= eta["lenient_at_most"] == eta["interval"][1] <= 1.0
        assert sum(each["tokens"] for each in eta["slack"].values()) <= late["output_tokens"]


def test_spans_are_counted_by_the_models_own_tokenizer_and_joules_by_when_they_were_spent(metered: Metered) -> None:
    pytest.importorskip("tokenizers")
    receipt_id = receipt_of(metered.chat("Say something.", max_tokens=20))
    eta = until(partial(settled, metered, f"/energy/{receipt_id}"))["eta"]
    assert (eta["unit"], eta["joules_by"]) == ("tokens", "time")


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_whose_client_goes_is_abandoned(metered: Metered, stream: bool) -> None:
    known = {row.record.receipt_id for row in written(metered, metered.usages)}

    def new() -> list[RequestRow]:
        return [row for row in metered.rows() if row.record.receipt_id not in known]

    with opened(metered.server.url, "Tell me a long story.", stream=stream):
        until(new, lambda rows: any(row.record.finished_ns is None and row.decode_tokens > 4 for row in rows))
    (row,) = until(lambda: [row for row in new() if row.record.finish_reason == "abort" and row.energy.settled])
    energy = until(partial(settled, metered, f"/energy/{row.record.receipt_id}"))
    lost = until(lambda: json.loads(metered.get(f"/energy/{row.record.receipt_id}"))["energy"]["waste"])
    assert lost.keys() == {"abandoned"}
    assert lost["abandoned"]["tokens"] == row.record.output_tokens > 0
    assert lost["abandoned"]["joules"] == pytest.approx(energy["output_joules"])
    until(lambda: (row.record.receipt_id, "abandoned") in _wastes(metered))


@contextmanager
def opened(url: str, content: str, *, stream: bool) -> Iterator[None]:
    """A request whose client goes in the end, whatever it has been answered by then."""
    place = urllib.parse.urlsplit(url)
    question = {"model": MODEL_NAME, "messages": [{"role": "user", "content": content}], "stream": stream}
    question |= {"max_tokens": LONG_TOKENS, "ignore_eos": True}
    with closing(http.client.HTTPConnection(place.hostname or "", place.port)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(question), {"Content-Type": "application/json"})
        yield


def test_the_earlier_one_of_two_answers_to_the_same_is_a_retry(metered: Metered) -> None:
    choice = {"structured_outputs": {"choice": ["yes", "no"]}}  # it ends by itself, so that it isn't truncated

    def ask(temperature: float) -> str:
        question = "Is the sea salty? Say yes or no."
        return receipt_of(metered.chat(question, max_tokens=30, temperature=temperature, extra_body=choice))

    first, second = ask(0.0), ask(0.7)
    until(lambda: (first, "retry") in _wastes(metered))
    energy = until(partial(settled, metered, f"/energy/{first}"))
    assert energy["waste"].keys() == {"retry"}
    assert energy["waste"]["retry"]["joules"] == pytest.approx(energy["output_joules"])
    assert until(partial(settled, metered, f"/energy/{second}"))["waste"] == {}


def _wastes(metered: Metered) -> list[tuple[str, str]]:
    """What the ledger says became of answers."""
    with closing(sqlite3.connect(f"{metered.ledger.as_uri()}?mode=ro", uri=True)) as db:
        return db.execute("SELECT receipt_id, category FROM waste_by_request").fetchall()


@pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed")
def test_prometheus_sees_the_joules_of_the_ledger(metered: Metered, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=metered.get("/metrics"), capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, b"")
    target = f"127.0.0.1:{metered.meter_port}"
    config = {
        "scrape_configs": [{"job_name": "etameter", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}]
    }
    (tmp_path / "prometheus.json").write_text(json.dumps(config))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    command = [str(PROMETHEUS), f"--config.file={tmp_path}/prometheus.json", f"--storage.tsdb.path={tmp_path}/data"]
    command += [f"--web.listen-address={address}", "--enable-feature=exemplar-storage", "--log.level=error"]
    process = subprocess.Popen(command)
    try:
        before_j = until(lambda: _query(address, 'sum(etameter_energy_joules_total{source="simulated"})'))
        written(metered, [receipt_of(metered.chat("Tell me about rivers.", max_tokens=40))])
        ledger = Ledger(metered.ledger, read_only=True)
        requests_j = ledger.totals().requests_j
        ledger.close()
        assert requests_j > before_j + 1
        until(lambda: _query(address, "sum(etameter_energy_joules_total)") == pytest.approx(requests_j, rel=1e-6))
        whole = "sum(etameter_gpu_energy_joules_total)"
        parts = "sum(etameter_energy_joules_total) + sum(etameter_unassigned_joules_total)"
        assert _query(address, f"({parts}) / {whole}") == pytest.approx(1.0, abs=1e-9)
    finally:
        process.terminate()
        process.wait(90)


def _query(address: str, expression: str) -> float | None:
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            result = json.load(response)["data"]["result"]
    except OSError:
        return None
    return float(result[0]["value"][1]) if result else None


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_its_energy_or_says_why_not_and_is_the_servers_own_else(
    metered: Metered, form: str, stream: bool
) -> None:
    def present() -> Told | None:
        told = ask(metered.server.url, FORMS[form], stream=stream)
        return told if told.energy else None

    told = until(present)
    check_sum(metered, told)
    with stopped(metered.meter):
        untold = ask(metered.server.url, FORMS[form], stream=stream)
    assert untold.energy is None
    assert untold.objects[-1]["energy_reason"] == "meter_late"
    assert untold.own == told.own
    assert told.body.endswith(b"data: [DONE]\n\n" if stream else b"}")
    if form == "chat, a tool's call":
        said = [choice.get("delta", choice.get("message")) for each in told.objects for choice in each["choices"]]
        called = [call["function"].get("name") for each in said for call in each.get("tool_calls") or ()]
        assert "paint" in called, said


@pytest.mark.slow
def test_the_small_model_solves_part_of_the_suite_for_small_models(server: RealServer, metered: Metered) -> None:
    arm, sampling = find("unconstrained"), Sampling(temperature=0.0, max_tokens=160)
    wanted = [Wanted(task, arm, sampling) for task in load_suite("small").tasks]

    async def main() -> list[Dialogue]:
        async with connect(server.url, f"http://127.0.0.1:{metered.meter_port}") as endpoint:
            return await hold(endpoint, wanted, MODEL_NAME)

    dialogues = asyncio.run(main())
    assert len(dialogues) == 40
    assert 0 < sum(dialogue.correct is True for dialogue in dialogues) < 40
    answers = [attempt.answer for dialogue in dialogues for attempt in dialogue.attempts]
    assert all(answer.energy or answer.energy_reason for answer in answers)
    metered_answers = [answer for answer in answers if answer.energy]
    assert metered_answers
    for answer in metered_answers:
        assert answer.energy is not None
        assert answer.energy["settled"]
        assert answer.energy["source"] == "simulated"
        assert answer.energy["energy_joules"] > 0
        assert (answer.energy["prompt_tokens"], answer.energy["output_tokens"]) == (
            answer.prompt_tokens,
            answer.output_tokens,
        )
        assert answer.energy["eta"] is not None or answer.energy["eta_reason"]
