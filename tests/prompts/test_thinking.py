"""How much thinking was needed, by a server of a few lines that thinks."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from etameter.errors import EtameterError
from etameter.prompts.endpoint import Answer
from etameter.prompts.looking import Missed
from etameter.prompts.thinking import CLOSE, OPEN, Found, as_row, cases, look, parted, said_after, summary
from tests.prompts.upstream import Script, Upstream, running

pytestmark = pytest.mark.unit

THOUGHTS = [f"Step {number} is done. " for number in range(8)]
ROW = {"id": "sum", "prompt": "What is 40 and 2?", "checker": {"kind": "number", "value": 42}}


def thinker(needs: int) -> Script:
    """Is right once it has thought so many of its thoughts."""

    def script(messages: list[dict[str, str]]) -> str:
        if messages[-1]["role"] == "user":
            return f"{OPEN}\n{''.join(THOUGHTS)}\n{CLOSE}\n\nAnswer: 42"
        thought = messages[-1]["content"].count("Step")
        return f"Answer: {42 if thought >= needs else 41}"

    return script


def found(folder: Path, upstream: Upstream, row: dict[str, Any] = ROW) -> Found:
    path = folder / "prompts.jsonl"
    path.write_text(json.dumps(row) + "\n")

    async def within() -> None:
        async with running(upstream) as url:
            await look(path, url, None, told.append)

    told: list[Found | Missed] = []
    asyncio.run(within())
    (one,) = told
    assert isinstance(one, Found)
    return one


@pytest.mark.parametrize("needs", range(9))
def test_the_least_beginning_is_found_by_halves(tmp_path: Path, needs: int) -> None:
    upstream = Upstream(thinker(needs))
    one = found(tmp_path, upstream)
    assert (one.spans, one.needed, one.reason) == (8, needs, None)
    thought, answer = len("".join(THOUGHTS).strip()), len("\n\nAnswer: 42")
    kept = min(len("".join(THOUGHTS[:needs])), thought)
    assert one.eta_thinking == pytest.approx(kept / thought)
    assert one.eta_at_most == pytest.approx((kept + answer) / (thought + answer))
    assert one.thinking == pytest.approx(thought / (thought + answer))
    assert one.asked == len(upstream.requests) <= 1 + 4
    assert set(upstream.arms) == {"audit"}
    for request in upstream.requests[1:]:
        assert (request["continue_final_message"], request["add_generation_prompt"]) == (True, False)
        begun = request["messages"][-1]["content"]
        assert begun.startswith(f"{OPEN}\n")
        assert begun.endswith(f"\n{CLOSE}\n\n")
        assert request["temperature"] == 0.0


@pytest.mark.parametrize(
    ("text", "checker", "reason"),
    [
        ("Answer: 42", ROW["checker"], "no_thinking"),
        (f"{OPEN}Hm.{CLOSE}Answer: 41", ROW["checker"], "wrong_answer"),
    ],
)
def test_where_nothing_is_known_it_is_said_why(tmp_path: Path, text: str, checker: Any, reason: str) -> None:
    one = found(tmp_path, Upstream(lambda _: text), {**ROW, "checker": checker})
    assert (one.reason, one.eta_thinking, one.asked) == (reason, None, 1)
    assert summary([one]).splitlines() == [
        "of 0 of 1 answers it is known what of their thinking was needed",
        f"  1 not: {reason}",
    ]


def test_a_server_that_does_not_go_on_from_a_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.prompts.upstream.LONGEST_PROMPT", 10)
    one = found(tmp_path, Upstream(thinker(3)))
    assert one.reason == "server_cannot_continue"


def test_a_beginning_that_the_server_fails_upon_is_no_thinking_that_was_needed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({**ROW, "id": each}) + "\n" for each in "ab"))
    upstream = Upstream(lambda messages: "fail" if len(upstream.requests) == 2 else thinker(3)(messages))
    told: list[Found | Missed] = []

    async def within() -> None:
        async with running(upstream) as url:
            await look(path, url, None, told.append)

    asyncio.run(within())
    one, other = told
    assert isinstance(one, Missed)
    assert (one.id, one.reason) == ("a", "http_5xx")
    assert isinstance(other, Found)
    assert (other.id, other.needed) == ("b", 3)
    assert summary(told).splitlines()[:2] == [
        "of 1 of 2 answers it is known what of their thinking was needed",
        "  1 not: http_5xx",
    ]


def test_thinking_is_what_the_server_tells_apart_or_what_is_marked() -> None:
    def answer(text: str, reasoning: str = "") -> Answer:
        return Answer(text, reasoning, 1, 1, "stop", 0.1, None, None, None)

    assert parted(answer("So.", "Hm.")) == ("Hm.", "So.")
    assert parted(answer(f"{OPEN}Hm.{CLOSE}So.")) == ("Hm.", "So.")
    assert parted(answer(f"Hm.{CLOSE}So.")) == ("Hm.", "So."), "some templates open it in the prompt"
    assert parted(answer("So.")) == ("", "So.")
    assert (said_after(answer("So.", "Hm.")), said_after(answer(" ", "So."))) == ("So.", "So.")


def test_a_summary_is_of_means(tmp_path: Path) -> None:
    one, other = found(tmp_path, Upstream(thinker(0))), found(tmp_path, Upstream(thinker(8)))
    assert "η of the thinking: 0.50 on average" in summary([one, other])
    assert as_row(other)["eta_thinking"] == 1.0


@pytest.mark.parametrize("row", [{"prompt": 1}, {**ROW, "checker": {"kind": "taste"}}, {"prompt": "a"}])
def test_lines_that_are_none_are_named(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(EtameterError, match=r"prompts\.jsonl:1"):
        cases(path)
