"""Counters of servers, as each writes them, and what is said of tokens that never passed."""

import asyncio

import pytest

from etameter.serving import engine_counters
from etameter.serving.engine_counters import compare, generated_tokens, unseen
from tests.serving.scripted import Scripted, head, running

pytestmark = pytest.mark.unit

VLLM = """# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="a b"} 1200.0
vllm:generation_tokens_total{engine="1",model_name="a b"} 34.0
vllm:generation_tokens_created{engine="0",model_name="a b"} 1.7e+09
"""


@pytest.mark.parametrize(
    ("exposition", "tokens"),
    [
        (VLLM, 1234),
        ('sglang:generation_tokens_total{model_name="m"} 7557572.0\n', 7_557_572),
        ("llamacpp:tokens_predicted_total 47\n", 47),
        ("llamacpp:tokens_predicted_total_more 47\n", None),
        ("vllm:generation_tokens_total NaN\n", None),
        ("vllm:generation_tokens_total +Inf\n", None),
        ("vllm:generation_tokens_total{x\n", None),
        ("<html>no metrics</html>", None),
        ("", None),
    ],
)
def test_the_output_tokens_of_all_series(exposition: str, tokens: int | None) -> None:
    assert generated_tokens(exposition) == tokens


@pytest.mark.parametrize(
    ("generated", "seen", "is_said"),
    [(1000, 990, False), (90, 0, False), (1000, 0, True), (5000, 4700, True), (9, 99, False)],
)
def test_it_is_said_where_more_was_generated_than_passed(generated: int, seen: int, is_said: bool) -> None:
    assert (unseen(generated, seen) is not None) == is_said


def test_a_server_that_others_ask_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_counters, "PERIOD_S", 0.01)
    counts = [
        b"llamacpp:tokens_predicted_total 100\n",
        b"llamacpp:tokens_predicted_total 900\n",
        b"llamacpp:tokens_predicted_total 3\n",
    ]
    said: list[str] = []

    class Server(Scripted):
        async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            body = counts[min(len(self.requests), len(counts)) - 1]
            writer.write(head(Content_Type=b"text/plain", Content_Length=b"%d" % len(body)) + body)
            return True

    async def main() -> None:
        server = Server([])
        async with running(server) as port:
            comparing = asyncio.create_task(compare(f"http://127.0.0.1:{port}/metrics", lambda: 0, said.append))
            while len(server.requests) < 4:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
            comparing.cancel()
        await compared_once(f"http://somebody:Zanzibar@127.0.0.1:{port}/metrics")

    async def compared_once(gone: str) -> None:
        comparing = asyncio.create_task(compare(gone, lambda: 0, said.append))
        while len(said) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        comparing.cancel()

    asyncio.run(asyncio.wait_for(main(), 20))
    assert "generated 800 tokens in the last minute, of which 0 passed here" in said[0]
    assert "has no counter of output tokens that is known" in said[1]
    assert "Zanzibar" not in "".join(said)
