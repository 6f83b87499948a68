"""A real vLLM server: what its ring says of each request against what its clients are told, and the energy in responses.

Every assertion about tokens compares three parties: the client's usage, the ring's steps, and the meter's socket.
"""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from etameter import audit_key, config
from etameter.auditing import AUDIT
from etameter.prompts.auditor import Auditor
from etameter.prompts.endpoint import connect
from tests.serving.fake_meter import ENERGY, FakeMeter, until
from tests.serving.real_server import CHUNK_TOKENS, KV_BLOCK_TOKENS, MODEL_NAME, RealServer
from tests.serving.ring_log import Account

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def meter(server: RealServer) -> Iterator[FakeMeter]:
    with FakeMeter(server.run_dir / "meter.sock") as fake:
        until(lambda: bool(fake.connections))
        # A server's first answers can take longer than the meter is given.
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            until(lambda: bool(chat(client, "Hello.").energy))
        yield fake


@pytest.fixture
def client(server: RealServer, meter: FakeMeter) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, content: str, **more: Any) -> Any:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "extra_body": {"ignore_eos": True}} | more
    return client.chat.completions.create(model=MODEL_NAME, messages=[{"role": "user", "content": content}], **options)


def accounts(server: RealServer, answer: Any, count: int = 1) -> list[Account]:
    """The engine requests behind an answer, once they have finished."""
    # On a machine with more work than cores the figure may be late; then the response names its receipt.
    receipt_id = answer.energy["receipt_id"] if answer.energy else answer.energy_receipt_id
    until(lambda: sum(account.reason is not None for account in server.log.of(receipt_id)) == count)
    return server.log.of(receipt_id)


def check(account: Account, usage: Any, *, wasted: int = 0) -> None:
    """The rules: prefill = prompt - cached; decode steps = completion - 1, and up to `wasted` beyond the end."""
    assert account.prompt_tokens == usage.prompt_tokens
    assert sum(account.cached) == account.cached[0] == usage.prompt_tokens_details.cached_tokens
    assert account.new_prefill == usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens
    assert set(account.decode) <= {0, 1}
    assert usage.completion_tokens - 1 <= sum(account.decode) <= usage.completion_tokens - 1 + wasted
    # Each step takes up where the last one ended.
    computed = [sum(tokens) for tokens in zip(account.prefill, account.decode, strict=True)]
    assert account.context == [account.cached[0] + sum(computed[:i]) for i in range(len(computed))]


def test_chat(server: RealServer, client: openai.OpenAI, meter: FakeMeter) -> None:
    answer = chat(client, "Say something.")
    assert answer.energy == ENERGY | {"receipt_id": answer.energy["receipt_id"]}
    [account] = accounts(server, answer)
    check(account, answer.usage)
    assert (account.reason, account.output_tokens) == ("length", 6)
    assert account.request_id.startswith(answer.id + "-")
    [ask] = [ask for ask in meter.heard("ask") if ask["receipt_id"] == account.receipt_id]
    assert ask["public_id"] == answer.id


def test_completions(server: RealServer, client: openai.OpenAI) -> None:
    answer: Any = client.completions.create(model=MODEL_NAME, prompt=["The sky is", "Grass is very"], max_tokens=4)
    assert answer.energy["energy_joules"] == ENERGY["energy_joules"]
    first, second = accounts(server, answer, 2)
    assert first.prompt_tokens + second.prompt_tokens == answer.usage.prompt_tokens
    assert first.new_prefill + second.new_prefill == answer.usage.prompt_tokens
    assert sum(first.decode) + sum(second.decode) == answer.usage.completion_tokens - 2


@pytest.mark.parametrize("options", [None, {"include_usage": True}], ids=["without usage", "with usage"])
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_streams(server: RealServer, client: openai.OpenAI, endpoint: str, options: Any) -> None:
    arguments: dict[str, Any] = {
        "model": MODEL_NAME,
        "max_tokens": 5,
        "stream": True,
        "extra_body": {"ignore_eos": True},
    }
    if options:
        arguments["stream_options"] = options
    if endpoint == "chat":
        stream: Any = client.chat.completions.create(messages=[{"role": "user", "content": "Count."}], **arguments)
    else:
        stream = client.completions.create(prompt="One, two", **arguments)
    chunks = list(stream)
    assert [bool(getattr(chunk, "energy", None)) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1]
    if options:
        assert (last.choices, last.usage.completion_tokens) == ([], 5)
    else:
        assert last.choices[0].finish_reason == "length"
    [account] = accounts(server, last)
    assert sum(account.decode) == 4
    if options:
        assert sum(account.prefill) == last.usage.prompt_tokens - sum(account.cached)


def test_the_body_is_the_servers_own_but_for_the_field(server: RealServer, meter: FakeMeter) -> None:
    request = {"model": MODEL_NAME, "prompt": "The sky is", "max_tokens": 3, "temperature": 0}
    post = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(request).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(post) as response:
        body = response.read()
        assert int(response.headers["content-length"]) == len(body)
    own, _, ours = body.partition(b',"energy":')
    assert json.loads(own + b"}")["usage"]["completion_tokens"] == 3
    assert json.loads(b'{"energy":' + ours)["energy"]["source"] == "simulated"


def test_eight_at_once_with_prompts_of_several_chunks(server: RealServer, client: openai.OpenAI) -> None:
    prompts = [f"{i}: " + "all work and no play " * (3 + 60 * (i % 2)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: chat(client, prompt, max_tokens=12), prompts))
    found = [accounts(server, answer)[0] for answer in answers]
    for account, answer in zip(found, answers, strict=True):
        check(account, answer.usage)
        if answer.usage.prompt_tokens > CHUNK_TOKENS:
            assert sum(tokens > 0 for tokens in account.prefill) >= 2
    assert sum(answer.usage.prompt_tokens > CHUNK_TOKENS for answer in answers) == 4
    assert len({account.receipt_id for account in found}) == 8
    shared = [set(account.steps) for account in found]
    assert any(len(shared[0] & other) > 5 for other in shared[1:]), "they ran together"


def test_a_stop_string(server: RealServer, client: openai.OpenAI) -> None:
    plain = chat(client, "Name three colours.", max_tokens=24).choices[0].message.content
    stop = plain.split()[3]
    answer = chat(client, "Name three colours.", max_tokens=24, stop=[stop])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 24
    [account] = accounts(server, answer)
    check(account, answer.usage, wasted=2)
    assert account.reason == "abort"  # the API server finds the string; the engine is told to stop


def test_the_end_of_the_text(server: RealServer, client: openai.OpenAI) -> None:
    answer = chat(client, "Yes or no?", max_tokens=30, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert answer.choices[0].finish_reason == "stop"
    [account] = accounts(server, answer)
    check(account, answer.usage)
    assert account.reason == "stop"


def test_a_client_that_disconnects(server: RealServer, client: openai.OpenAI, meter: FakeMeter) -> None:
    known = {message["receipt_id"] for message in meter.heard("open", 0)}
    stream = chat(client, "Tell me a long story.", max_tokens=400, stream=True)
    for _, _ in zip(range(4), stream, strict=False):
        pass
    stream.response.close()
    [receipt_id] = {message["receipt_id"] for message in meter.heard("open")} - known
    until(lambda: any(account.reason for account in server.log.of(receipt_id)))
    [account] = server.log.of(receipt_id)
    assert account.reason == "abort"
    assert account.output_tokens is not None
    assert 3 <= account.output_tokens < 400
    assert account.new_prefill == account.prompt_tokens - sum(account.cached)
    assert account.output_tokens - 1 <= sum(account.decode) <= account.output_tokens + 1


def test_what_an_audit_asks_ends_in_the_engine_when_there_is_other_work(server: RealServer, meter: FakeMeter) -> None:
    known = [message["receipt_id"] for message in meter.heard("open", 0)]
    story = {"messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 500, "ignore_eos": True}
    body = {"model": MODEL_NAME, **story}

    def wait_for_tokens() -> dict[str, Any]:
        [opened] = [each for each in meter.heard("open", len(known) + 1) if each["receipt_id"] not in known]
        until(lambda: any(len(each.decode) > 3 for each in server.log.of(opened["receipt_id"])))
        return opened

    key = audit_key.made(server.run_dir / config.audit_key_path().name)

    async def main() -> dict[str, Any]:
        async with connect(server.url, run=AUDIT, audit_key=key) as served:
            auditor = Auditor(served, served)
            asked = asyncio.ensure_future(auditor.ask(served, body))
            opened = await asyncio.to_thread(wait_for_tokens)
            auditor.pause()
            await asyncio.sleep(0)
            asked.cancel()
            return opened

    opened = asyncio.run(main())
    assert opened["arm"] == AUDIT
    until(lambda: any(account.reason for account in server.log.of(opened["receipt_id"])))
    [account] = server.log.of(opened["receipt_id"])
    assert account.reason == "abort"
    assert account.output_tokens is not None
    assert account.output_tokens < 500


def test_three_answers_to_one_prompt(server: RealServer, client: openai.OpenAI) -> None:
    answer = chat(client, "Invent a name.", n=3, temperature=1, max_tokens=7)
    siblings = accounts(server, answer, 3)
    assert [account.request_id[:2] for account in siblings] == ["0_", "1_", "2_"]
    assert all(account.new_prefill == answer.usage.prompt_tokens for account in siblings)
    assert sum(sum(account.decode) for account in siblings) == answer.usage.completion_tokens - 3


def test_a_stream_of_three_has_its_energy_once_at_the_end(server: RealServer, client: openai.OpenAI) -> None:
    chunks = list(chat(client, "Invent a name.", n=3, temperature=1, max_tokens=4, stream=True))
    assert [bool(getattr(chunk, "energy", None)) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(accounts(server, chunks[-1], 3)) == 3


def test_two_requests_with_the_same_request_id(server: RealServer, client: openai.OpenAI) -> None:
    same: dict[str, Any] = {"extra_headers": {"X-Request-Id": "same"}}
    usage = {"include_usage": True}
    stream = chat(client, "Hello, " * 40, max_tokens=300, stream=True, stream_options=usage, **same)
    began = next(stream)
    short = chat(client, "Hi.", **same)
    *_, long = stream
    assert short.id == began.id == "chatcmpl-same"
    [of_short], [of_long] = accounts(server, short), accounts(server, long)
    assert set(of_short.steps) & set(of_long.steps), "they ran together"
    check(of_short, short.usage)
    check(of_long, long.usage)


def test_a_forged_receipt_in_the_request_id_is_not_believed(server: RealServer, client: openai.OpenAI) -> None:
    forged = "0123456789abcdef" * 2
    answer = chat(client, "Hi.", extra_headers={"X-Request-Id": f"x-{forged}00000000"})
    [account] = accounts(server, answer)
    assert forged in account.request_id
    assert account.receipt_id != forged


def test_a_prefix_cache_hit(server: RealServer, client: openai.OpenAI) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 20
    first, again = chat(client, prompt), chat(client, prompt)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert (
        again.usage.prompt_tokens_details.cached_tokens
        == again.usage.prompt_tokens // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS
        > 0
    )
    for answer in (first, again):
        [account] = accounts(server, answer)
        check(account, answer.usage)


def test_arms_reach_the_meter(client: openai.OpenAI, meter: FakeMeter) -> None:
    answers = [
        chat(client, "Hi.", max_tokens=1, extra_headers=headers)
        for headers in ({"X-Etameter-Arm": "entrace"}, {"X-Etameter-Arm": "made up"}, {})
    ]
    opened = {message["receipt_id"]: message for message in meter.heard("open")}
    about = [opened[answer.energy["receipt_id"]] for answer in answers]
    assert [message["arm"] for message in about] == ["entrace", "other", "unlabelled"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"model": "no such model", "prompt": "Hi."}', 404, {"error"}),
        (b'{"model": "small", "prompt": "Hi."', 400, {"error"}),
        (b'{"model": "small", "prompt": ' + b"[" * 10_000, 400, {"detail"}),
        (b'{"model": "small", "prompt": "' + b"word " * 2_000_000 + b'"}', 400, {"error"}),
    ],
    ids=["no such model", "half of a request", "nested deeply", "a prompt of 10 MB"],
)
def test_refusals_are_vllms_own(
    server: RealServer, client: openai.OpenAI, body: bytes, status: int, said: set[str]
) -> None:
    post = urllib.request.Request(f"{server.url}/v1/completions", body, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(post, timeout=60.0)
    with refused.value as answer:
        assert (answer.code, json.load(answer).keys()) == (status, said)
    assert chat(client, "Hi.", max_tokens=1).energy


def test_what_vllm_says_of_custom_schedulers_is_explained_once_and_at_once(server: RealServer) -> None:
    said = [line for line in server.output.read_text().splitlines() if "custom scheduler" in line]
    assert ["does not concern it" in line for line in said] == [False, True]
    assert "asynchronous scheduling stays as configured (off)" in said[1]  # vLLM's choice on CPUs


def test_receipts_on_the_servers_port(server: RealServer, client: openai.OpenAI) -> None:
    receipt_id = chat(client, "Hi.", max_tokens=1).energy["receipt_id"]
    with urllib.request.urlopen(f"{server.url}/energy/{receipt_id}") as response:
        assert json.load(response)["energy"]["receipt_id"] == receipt_id
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(f"{server.url}/energy/nothing")
    missing.value.close()
    assert missing.value.code == 404
    log = server.output.read_text()
    assert '"GET /energy/ HTTP/1.1" 200' in log
    assert receipt_id not in log


def test_without_a_meter_the_server_answers_on(
    server: RealServer, client: openai.OpenAI, meter: FakeMeter, request: pytest.FixtureRequest
) -> None:
    meter.__exit__(None, None, None)
    try:
        answer = chat(client, "Hi.", max_tokens=2)
        assert (answer.energy, answer.energy_reason) == (None, "meter_away")
        assert answer.usage.completion_tokens == 2
    finally:
        meter.__enter__()
        until(lambda: bool(meter.connections))
    assert chat(client, "Hi.", max_tokens=2).energy["source"] == "simulated"


def test_every_request_of_this_server_obeyed_the_rules(server: RealServer, client: openai.OpenAI) -> None:
    """Runs last: whatever the tests above asked for, aborted or repeated."""
    until(lambda: all(account.reason for account in server.log.accounts()) and not server.log.in_flight)
    found = server.log.accounts()
    assert len(found) > 20
    for account in found:
        assert account.new_prefill == account.prompt_tokens - sum(account.cached), account
        assert account.output_tokens is not None
        assert account.output_tokens - 1 <= sum(account.decode) <= account.output_tokens + 1, account
    assert server.log.reader.torn_records == server.log.reader.lost_records == 0
