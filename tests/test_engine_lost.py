"""A real vLLM whose engine is killed and that is started again as another, under one meter that goes on.

The first server knows arms by all that they can be known by, and gives reasoning apart; the second one embeds.
"""

import hashlib
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from etameter.ledger import Ledger, RequestRow, Totals
from etameter.records import RequestEnergy
from etameter.serving import arms
from tests.forms import EMBEDDINGS, Told, ask
from tests.metered import PATIENCE_S, Metered, check_sum, metering, receipt_of, stopped, until, warm_up, written
from tests.serving.real_server import MODEL_NAME, RealServer

pytestmark = pytest.mark.boot

ALIAS = "also-small"
CONCISE = "Be brief."
KEY = "a key of somebody"
LONG_TOKENS = 800
"""So many that no engine is through with them before it is killed."""
PARSER = """
from vllm.reasoning import ReasoningParserManager
from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

@ReasoningParserManager.register_module("up_to_a_dot")
class UpToADot(DeepSeekR1ReasoningParser):
    start_token = "<|im_start|>"
    end_token = "."
"""
"""Tokens that any model has, for want of a small model that reasons."""


def sha256(text: str) -> frozenset[str]:
    return frozenset({hashlib.sha256(text.encode()).hexdigest()})


RULES = {
    "concise": arms.Rule(sha256(CONCISE), frozenset(), frozenset()),
    "seed": arms.Rule(frozenset(), sha256(KEY), frozenset()),
    "entrace": arms.Rule(frozenset(), frozenset(), frozenset({ALIAS})),
}


@pytest.fixture(scope="module")
def metered(model_dir: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metered]:
    directory = tmp_path_factory.mktemp("own")
    (directory / "parser.py").write_text(PARSER)
    options = ["--reasoning-parser-plugin", str(directory / "parser.py"), "--reasoning-parser", "up_to_a_dot"]
    known = arms.environment([*RULES, "placebo"], RULES)
    server = RealServer(model_dir, directory, "--served-model-name", MODEL_NAME, ALIAS, *options, environment=known)
    try:
        server.wait_until_ready()
        with metering(server, tmp_path_factory.mktemp("meter")) as found:
            warm_up(found)
            yield found
    finally:
        server.stop()


def test_an_arm_is_known_by_header_system_prompt_key_or_model(metered: Metered) -> None:
    user = {"role": "user", "content": "Hello."}
    asked: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
        "placebo": ({}, {"X-Etameter-Arm": "placebo"}),
        "concise": ({"messages": [{"role": "system", "content": CONCISE}, user]}, {}),
        "seed": ({}, {"Authorization": f"Bearer {KEY}"}),
        "entrace": ({"model": ALIAS}, {}),
        "other": ({}, {"X-Etameter-Arm": "x'; DROP TABLE requests; --"}),
    }
    receipts = {}
    for arm, (body, headers) in asked.items():
        plain = {"model": MODEL_NAME, "messages": [user], "max_tokens": 2}
        request: dict[str, Any] = plain | body
        receipts[arm] = receipt_of(metered.client.chat.completions.create(**request, extra_headers=headers))
    receipts["nothing known"] = receipt_of(metered.chat("Hello.", max_tokens=2))

    booked = {row.record.receipt_id: row.record.arm for row in written(metered, receipts.values())}
    told = {arm: booked[receipt_id] for arm, receipt_id in receipts.items()}
    assert told == {arm: arm for arm in asked} | {"nothing known": "other"}
    assert KEY.encode() not in metered.ledger.read_bytes()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_reasoning_is_among_what_the_energy_is_for(metered: Metered, stream: bool) -> None:
    question = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "What is the sea?"}]}
    form = ("/v1/chat/completions", question | {"max_tokens": 80, "ignore_eos": True, "temperature": 0})

    def present() -> Told | None:
        told = ask(metered.server.url, form, stream=stream)
        return told if told.energy else None

    told = until(present)
    check_sum(metered, told)
    with stopped(metered.meter):
        assert ask(metered.server.url, form, stream=stream).own == told.own
    said = [choice.get("delta", choice.get("message")) for each in told.objects for choice in each["choices"]]
    assert any(each.get("reasoning") for each in said)
    assert any(each.get("content") for each in said)


@dataclass(frozen=True)
class Killed:
    """What the clients of an engine that was killed heard of it, and what had been paid until then, by receipt id."""

    events: list[bytes]
    error: openai.InternalServerError
    paid: dict[str | None, RequestEnergy]


@pytest.fixture(scope="module")
def killed(metered: Metered) -> Killed:
    """The engine is killed while it works on a stream and on a whole answer."""
    server = metered.server
    paid = {row.record.receipt_id: row.energy for row in written(metered, metered.usages)}
    earlier = {account.request_id for account in server.log.accounts()}
    with ThreadPoolExecutor(2) as pool:
        streamed = pool.submit(listen, server.url, "Tell me a long story.", LONG_TOKENS)
        whole: Future[Any] = pool.submit(metered.chat, "Tell me another long story.", max_tokens=LONG_TOKENS)

        def under_way() -> list[int]:
            """Tokens of both, of which neither may end before the engine does."""
            ended = [answer for answer in (streamed, whole) if answer.done()]
            assert not ended, [answer.result() for answer in ended]
            assert "goes on unmetered" not in server.output.read_text()
            own = [account for account in server.log.accounts() if account.request_id not in earlier]
            return [sum(account.decode) for account in own if account.reason is None]

        until(under_way, lambda tokens: len(tokens) == 2 and min(tokens) > 50)
        os.kill(server.log.reader.header.pid, signal.SIGKILL)
        events = streamed.result()
        with pytest.raises(openai.InternalServerError) as failed:
            whole.result()
    server.process.wait(60.0)
    return Killed(events, failed.value, paid)


@pytest.fixture(scope="module")
def embedding(metered: Metered) -> Metered:
    """The server started again as one that embeds, whatever has become of it."""
    metered.server.stop()
    metered.server.start("--runner", "pooling", "--convert", "embed")
    metered.server.wait_until_ready()
    return metered


def listen(url: str, content: str, max_tokens: int) -> list[bytes]:
    """The lines of a streamed answer."""
    question = {"model": MODEL_NAME, "messages": [{"role": "user", "content": content}], "stream": True}
    question |= {"max_tokens": max_tokens, "ignore_eos": True}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(question).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return [line for line in response.read().splitlines() if line.strip()]


def test_clients_of_a_killed_engine_hear_vllms_own_words_whole_and_in_the_stream(killed: Killed) -> None:
    assert killed.error.response.json().keys() == {"error"}
    assert all(line.startswith(b"data: ") for line in killed.events)
    *begun, error, done = killed.events
    assert len(begun) > 6
    assert json.loads(error.removeprefix(b"data: ")).keys() == {"error"}
    assert done == b"data: [DONE]"
    assert not any(b'"energy' in line for line in killed.events)


def test_the_requests_of_a_killed_engine_are_lost_and_paid_once(killed: Killed, embedding: Metered) -> None:
    def lost() -> list[RequestRow]:
        return [row for row in embedding.rows() if row.record.finish_reason == "engine_lost"]

    for row in until(lost, lambda rows: len(rows) == 2 and all(row.energy.settled for row in rows)):
        assert row.energy.output_j > 0
        # Where the board's counter stood still meanwhile, what the prompt cost is nobody's, and the receipt says that it is of a part.
        assert row.energy.prompt_j > 0 or row.energy.method.endswith("-partial")
        assert row.record.receipt_id not in killed.paid
    paid = {row.record.receipt_id: row.energy for row in embedding.rows() if row.record.receipt_id in killed.paid}
    assert paid == killed.paid
    assert check_books(embedding).unattributed_j_by_cause["steps_missing"] > 0  # that nobody has ended


@pytest.mark.parametrize("asked_for_a_stream", [False, True])
@pytest.mark.parametrize("form", EMBEDDINGS)
def test_embeddings_have_their_energy_or_say_why_not(embedding: Metered, form: str, asked_for_a_stream: bool) -> None:
    path, question = EMBEDDINGS[form]
    question = question | ({"stream": True} if asked_for_a_stream else {})  # it comes whole

    def present() -> Told | None:
        told = ask(embedding.server.url, (path, question), stream=False)
        return told if told.energy else None

    told = until(present)
    assert len(told.objects[0]["data"][0]["embedding"]) == 576
    check_sum(embedding, told)
    with stopped(embedding.meter):
        untold = ask(embedding.server.url, (path, question), stream=False)
    assert (untold.energy, untold.objects[0]["energy_reason"]) == (None, "meter_late")
    assert untold.own == told.own


def test_the_books_of_both_servers_balance(metered: Metered) -> None:
    written(metered)
    check_books(metered)


def check_books(metered: Metered) -> Totals:
    ledger = Ledger(metered.ledger, read_only=True)
    totals = ledger.totals()
    ledger.close()
    assert abs(totals.residual_j) <= 1e-9 * totals.measured_j
    receipts = [(row.record.receipt_id, row.record.request_id) for row in metered.rows()]
    assert len(receipts) == len(set(receipts))
    return totals
