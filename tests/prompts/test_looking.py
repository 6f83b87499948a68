"""What is found is told as it comes, and what isn't with its cause."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from etameter.cli import main
from etameter.errors import EngineError
from etameter.prompts.endpoint import Endpoint
from etameter.prompts.looking import Missed, Tell, look, show
from tests.prompts.upstream import Upstream, running

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Case:
    id: str


def row(text: str) -> dict[str, object]:
    return {"text": text}


def summary(told: list[str | Missed]) -> str:
    return " ".join(each.reason if isinstance(each, Missed) else each for each in told)


def looking(upstream: Upstream, *cases: str, model: str | None = None) -> Any:
    """At each of these cases, by sending it."""

    async def look_at(endpoint: Endpoint, name: str, case: Case) -> str:
        body = {"model": name, "messages": [{"role": "user", "content": case.id}]}
        return (await endpoint.chat(body, "audit")).text

    async def within(tell: Tell[str]) -> None:
        async with running(upstream) as url:
            await look([Case(each) for each in cases], f"{url}/v1/", model, look_at, tell)

    return within


def echo(messages: list[dict[str, str]]) -> str:
    return messages[-1]["content"]


def refusing(upstream: Upstream, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Refuses all requests after so many, whatever is in them."""
    whole = upstream.chat

    async def chat(request: web.Request) -> web.StreamResponse:
        if len(upstream.requests) == after:
            raise web.HTTPUnauthorized
        return await whole(request)

    monkeypatch.setattr(upstream, "chat", chat)


def test_all_that_is_asked_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    upstream = Upstream(echo)
    assert show(looking(upstream, "a", "b"), row, summary, as_json=True) == 0
    said = capsys.readouterr()
    assert [json.loads(line) for line in said.out.splitlines()] == [{"text": "a"}, {"text": "b"}]
    assert said.err == ""
    assert upstream.arms == ["audit", "audit"]
    assert {request["model"] for request in upstream.requests} == {"small"}


@pytest.mark.parametrize("as_json", [True, False])
def test_a_case_that_fails_costs_no_other(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    assert show(looking(Upstream(echo), "a", "fail", "b"), row, summary, as_json=as_json) == 2
    said = capsys.readouterr()
    assert said.err.startswith('etameter: "fail" is not measured: the server refuses a request (500: ')
    assert len(said.err.splitlines()) == 1
    if as_json:
        first, second, third = (json.loads(line) for line in said.out.splitlines())
        assert (first, third) == ({"text": "a"}, {"text": "b"})
        assert (second["id"], second["reason"]) == ("fail", "http_5xx")
        assert "the engine died" in second["error"]
    else:
        assert said.out == "a http_5xx b\n"


def test_what_would_fail_for_all_is_told_once_and_ends_the_asking(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = Upstream(echo)
    refusing(upstream, monkeypatch, after=1)
    assert show(looking(upstream, "a", "b", "c", "d"), row, summary, as_json=False) == 2
    said = capsys.readouterr()
    assert said.out == "a http_4xx not_asked not_asked\n"
    assert len(said.err.splitlines()) == 1
    assert "(401: " in said.err


def test_a_server_that_can_not_be_used_ends_the_asking(capsys: pytest.CaptureFixture[str]) -> None:
    async def within(tell: Tell[str]) -> None:
        async def look_at(endpoint: Endpoint, name: str, case: Case) -> str:
            if case.id == "b":
                raise EngineError("receipts are only for who bears their token", "bear it")
            return case.id

        async with running(Upstream(echo)) as url:
            await look([Case(each) for each in "abc"], url, None, look_at, tell)

    assert show(within, row, summary, as_json=False) == 2
    assert capsys.readouterr().out == "a server_unusable not_asked\n"


def test_each_is_told_before_the_next_is_asked() -> None:
    upstream, asked = Upstream(echo), []
    asyncio.run(looking(upstream, "a", "fail", "b")(lambda _: asked.append(len(upstream.requests))))
    assert asked == [1, 2, 3]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_whoever_stops_keeps_what_was_found(capsys: pytest.CaptureFixture[str], stop: type[BaseException]) -> None:
    async def stopped(tell: Tell[str]) -> None:
        tell("a")
        raise stop

    with pytest.raises(stop):
        show(stopped, row, summary, as_json=False)
    assert capsys.readouterr().out == "a\n"


def test_where_nothing_was_looked_at_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    async def away(tell: Tell[str]) -> None:
        await look([Case("a")], "http://127.0.0.1:9", None, None, tell)  # type: ignore[arg-type]  # none is looked at

    with pytest.raises(EngineError, match="does not answer"):
        show(away, row, summary, as_json=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", ["thinking", "context"])
def test_commands_tell_each_prompt_and_leave_with_2_where_one_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    asked = {"context": ["Foxes."], "checker": {"kind": "exact", "answers": ["blue"]}}
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": each, "prompt": each, **asked}) + "\n" for each in ("a", "fail", "b")))

    def run(url: str) -> object:
        with pytest.raises(SystemExit) as left:
            main(["eta", command, str(path), "--url", url, "--json"])
        return left.value.code

    async def within() -> object:
        async with running(Upstream(lambda messages: messages[0]["content"].split()[-1])) as url:
            return await asyncio.to_thread(run, url)

    assert asyncio.run(within()) == 2
    said = capsys.readouterr()
    told = [json.loads(line) for line in said.out.splitlines()]
    assert [(each["id"], "error" in each) for each in told] == [("a", False), ("fail", True), ("b", False)]
    assert said.err.startswith('etameter: "fail" is not measured: ')
