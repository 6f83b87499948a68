"""Which pieces of a context were needed, by a server of a few lines."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from etameter.cli import main
from etameter.errors import EtameterError
from etameter.prompts.context import BETWEEN, MOST_ASKED, as_row, cases, look, summary
from etameter.prompts.looking import Missed
from tests.prompts.upstream import J_PER_TOKEN, Script, Upstream, running

pytestmark = pytest.mark.unit

PIECES = ["Foxes are red.", "The key is under the third pot.", "It rains.", "The third pot is blue."]
ROW = {"id": "key", "context": PIECES, "prompt": "Which colour?", "checker": {"kind": "exact", "answers": ["blue"]}}


def reader(*needed: int) -> Script:
    """Answers rightly, in the more words the more it was told, where it was told these pieces."""

    def script(messages: list[dict[str, str]]) -> str:
        told = messages[-1]["content"]
        right = all(PIECES[place] in told for place in needed)
        return f"{'So. ' * told.count(BETWEEN)}\nAnswer: {'blue' if right else 'red'}"

    return script


def found(folder: Path, upstream: Upstream, *rows: dict[str, Any]) -> Any:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    async def within() -> None:
        async with running(upstream) as url:
            await look(path, f"{url}/v1", None, told.append)

    told: list[Any] = []
    asyncio.run(within())
    return told


def test_what_is_needed_is_found_and_what_the_rest_took_is_measured(tmp_path: Path) -> None:
    upstream = Upstream(reader(1, 3))
    (one,) = found(tmp_path, upstream, ROW)
    assert (one.correct, one.needed, one.minimal) == (True, (1, 3), True)
    words = [len(piece.split()) for piece in PIECES]
    assert one.whole.prompt_tokens == sum(words) + 2
    assert one.eta == pytest.approx((words[1] + words[3]) / sum(words))
    assert (one.whole.energy_j, one.less.energy_j) == (J_PER_TOKEN * 6, J_PER_TOKEN * 4)
    assert (one.whole.prompt_j, one.whole.source) == (J_PER_TOKEN * 6 / 4, "simulated")
    assert set(upstream.arms) == {"audit"}
    salts = [request["cache_salt"] for request in upstream.requests if "cache_salt" in request]
    assert len(set(salts)) == 2, "the two that are compared find nothing of each other in the cache"
    asked = [request["messages"][0]["content"] for request in upstream.requests if "cache_salt" not in request]
    assert len(asked) == len(set(asked)) == one.asked <= MOST_ASKED
    assert all(request["temperature"] == 0.0 for request in upstream.requests)


def test_a_context_that_nobody_needed(tmp_path: Path) -> None:
    (one,) = found(tmp_path, Upstream(reader()), ROW)
    assert (one.needed, one.eta, one.asked) == ((), 0.0, 2)


def test_of_a_wrong_answer_nothing_is_known(tmp_path: Path) -> None:
    upstream = Upstream(lambda _: "Answer: green")
    (one,) = found(tmp_path, upstream, ROW)
    assert (one.correct, one.needed, one.eta, one.less) == (False, None, None, None)
    assert len(upstream.requests) == 2


def test_a_server_without_a_meter_tells_tokens_alone(tmp_path: Path) -> None:
    (one,) = found(tmp_path, Upstream(reader(1), metered=False), ROW)
    assert one.eta == pytest.approx(7 / 17)
    assert (one.whole.energy_j, as_row(one)["source"]) == (None, None)
    assert " J" not in summary([one])


def test_prompts_are_summed(tmp_path: Path) -> None:
    upstream = Upstream(reader(1, 3))
    told = summary(found(tmp_path, upstream, ROW, {**ROW, "checker": {"kind": "exact", "answers": ["teal"]}}))
    assert told.splitlines() == [
        "1 of 2 prompts answered correctly with their whole context",
        "2 of 4 pieces needed; prompts of 19 tokens, of 14 with these alone",
        "12.0 J, 8.0 J with these alone, of 1 prompts (source=simulated)",
    ]


def test_a_piece_without_which_the_server_fails_is_not_thereby_needed(tmp_path: Path) -> None:
    upstream = Upstream(lambda messages: "fail" if len(upstream.requests) == 2 else reader(1, 3)(messages))
    told = found(tmp_path, upstream, {**ROW, "id": "a"}, {**ROW, "id": "b"})
    assert isinstance(told[0], Missed)
    assert (told[0].id, told[0].reason) == ("a", "http_5xx")
    assert (told[1].id, told[1].needed) == ("b", (1, 3))
    assert summary(told).splitlines()[:3] == [
        "1 of 1 prompts answered correctly with their whole context",
        "  1 more not measured: http_5xx",
        "2 of 4 pieces needed; prompts of 19 tokens, of 14 with these alone",
    ]


def test_a_receipt_that_never_comes_leaves_what_the_answer_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = Upstream(lambda _: "Answer: green")

    async def gone(_: web.Request) -> web.Response:
        return web.Response(text="<html>", status=502)

    monkeypatch.setattr(upstream, "receipt", gone)
    one, other = found(tmp_path, upstream, ROW, ROW)
    assert {one.whole.energy_j, other.whole.energy_j} <= {None, 2 * J_PER_TOKEN}
    assert one.whole.prompt_tokens == other.whole.prompt_tokens == 19


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"context": "one"}, "no prompt with a context"),
        ({"context": ["a", " "]}, "no prompt with a context"),
        ({"prompt": None}, "no prompt with a context"),
        ({"checker": {"kind": "taste"}}, "see docs/tasks.md"),
        ({"checker": None}, "no prompt with a context"),
    ],
)
def test_lines_that_are_none_are_named(tmp_path: Path, about: dict[str, Any], message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({**ROW, **about}) + "\n")
    with pytest.raises(EtameterError, match=message) as error:
        cases(path)
    assert "prompts.jsonl:1" in str(error.value)


def test_the_command_names_a_server_that_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    with pytest.raises(SystemExit) as left:
        main(["eta", "context", str(path), "--url", "http://127.0.0.1:9"])
    assert left.value.code == 2
    assert "does not answer" in capsys.readouterr().err
