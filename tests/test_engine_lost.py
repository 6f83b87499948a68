"""A real vLLM whose engine is killed and that is started again as another, under one meter that goes on.

The first server knows arms by all that they can be known by, and gives reasoning apart; the second one embeds.
"""

import hashlib
import http.client
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from etameter.ledger import Ledger, Totals
from etameter.serving import arms
from tests.forms import EMBEDDINGS, Told, ask
from tests.metered import Metered, check_sum, metering, receipt_of, stopped, until, warm_up
from tests.serving.real_server import MODEL_NAME, RealServer

pytestmark = pytest.mark.boot

ALIAS = "also-small"
CONCISE = "Be brief."
KEY = "a key of somebody"
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

    def booked() -> Any:
        found = {row.record.receipt_id: row.record.arm for row in metered.rows() if row.energy.settled}
        return found.keys() >= set(receipts.values()) and {arm: found[one] for arm, one in receipts.items()}

    assert until(booked) == {arm: arm for arm in asked} | {"nothing known": "other"}
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


def test_an_engine_that_is_killed_in_mid_stream_is_lost_and_paid_once(metered: Metered) -> None:
    server = metered.server
    until(lambda: all(row.energy.settled for row in metered.rows()))
    before = {row.record.receipt_id: row.energy for row in metered.rows()}
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60.0)
    messages = [{"role": "user", "content": "Tell me a long story."}]
    question: dict[str, Any] = {"model": MODEL_NAME, "messages": messages}
    question |= {"max_tokens": 800, "ignore_eos": True}
    headers = {"Content-Type": "application/json"}
    with ThreadPoolExecutor(1) as pool:
        connection.request("POST", "/v1/chat/completions", json.dumps(question | {"stream": True}), headers)
        response = connection.getresponse()
        began = [response.readline() for _ in range(12)]
        whole: Future[Any] = pool.submit(metered.chat, "Tell me another long story.", max_tokens=800)
        until(lambda: [sum(one.decode) > 50 for one in server.log.accounts() if one.reason is None] == [True, True])
        os.kill(server.log.reader.header.pid, signal.SIGKILL)
        ended = response.read()
        with pytest.raises(openai.InternalServerError) as failed:
            whole.result()
    connection.close()
    # vLLM's own words, whole and in the stream, and nothing of ours.
    assert failed.value.response.json().keys() == {"error"}
    events = [line for line in (*began, *ended.splitlines()) if line.strip()]
    assert all(line.startswith(b"data: ") for line in events)
    error = json.loads(events[-2].removeprefix(b"data: "))
    assert error.keys() == {"error"}
    assert events[-1] == b"data: [DONE]"
    assert not any(b'"energy' in line for line in events)
    server.process.wait(60.0)

    server.start("--runner", "pooling", "--convert", "embed")
    server.wait_until_ready()

    def lost() -> Any:
        found = [row for row in metered.rows() if row.record.finish_reason == "engine_lost"]
        return len(found) == 2 and all(row.energy.settled for row in found) and found

    for row in until(lost):
        assert row.energy.output_j > 0
        # Where the board's counter stood still meanwhile, what the prompt cost is nobody's, and the receipt says that it is of a part.
        assert row.energy.prompt_j > 0 or row.energy.method.endswith("-partial")
        assert row.record.receipt_id not in before
    assert {row.record.receipt_id: row.energy for row in metered.rows() if row.record.receipt_id in before} == before
    assert check_books(metered).unattributed_j_by_cause["steps_missing"] > 0  # that nobody has ended


@pytest.mark.parametrize("asked_for_a_stream", [False, True])
@pytest.mark.parametrize("form", EMBEDDINGS)
def test_embeddings_have_their_energy_or_say_why_not(metered: Metered, form: str, asked_for_a_stream: bool) -> None:
    path, question = EMBEDDINGS[form]
    question = question | ({"stream": True} if asked_for_a_stream else {})  # it comes whole

    def present() -> Told | None:
        told = ask(metered.server.url, (path, question), stream=False)
        return told if told.energy else None

    told = until(present)
    assert len(told.objects[0]["data"][0]["embedding"]) == 576
    check_sum(metered, told)
    with stopped(metered.meter):
        untold = ask(metered.server.url, (path, question), stream=False)
    assert (untold.energy, untold.objects[0]["energy_reason"]) == (None, "meter_late")
    assert untold.own == told.own


def test_the_books_of_both_servers_balance(metered: Metered) -> None:
    until(lambda: all(row.energy.settled for row in metered.rows()))
    check_books(metered)


def check_books(metered: Metered) -> Totals:
    ledger = Ledger(metered.ledger, read_only=True)
    totals = ledger.totals()
    ledger.close()
    assert abs(totals.residual_j) <= 1e-9 * totals.measured_j
    receipts = [(row.record.receipt_id, row.record.request_id) for row in metered.rows()]
    assert len(receipts) == len(set(receipts))
    return totals
