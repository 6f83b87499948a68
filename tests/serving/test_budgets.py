"""On which budgets a request draws, and what its response says of them."""

import asyncio
import hashlib
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest

from etameter import config
from etameter.serving import launch, link
from etameter.serving.budgets import BUDGETS, HEADER, Budgets
from etameter.serving.link import MeterLink
from tests.serving.fake_meter import FakeMeter
from tests.serving.test_middleware import (  # the fixtures are used by their names
    CHAT,
    Client,
    application,
    call,
    client_of,
    event,
    meter,
    run_dir,
    vllm_internals,
)

__all__ = ["meter", "run_dir", "vllm_internals"]

pytestmark = pytest.mark.unit

KEYS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("sk-anna", "sk-bert", "sk-else")}
CONFIG = f"""
[budgets.research]
api_key_sha256 = ["{KEYS["sk-anna"]}", "{KEYS["sk-bert"]}"]
wh = 1.0
[budgets.trial]
arms = ["entrace", "unlabelled"]
joules = 5.0
[budgets.anna]
api_key_sha256 = ["{KEYS["sk-anna"]}"]
joules = 7.0
"""
SAID = '"trial";state=maybe;remaining=1.5;source=simulated'


class Teller(FakeMeter):
    """Says how budgets stand to whoever asks."""

    said: object = {"trial": [SAID, 4e9], "research": ['"research";state=within', 4e9]}

    def tell(self) -> None:
        """Once somebody has asked."""
        self.heard("budgets")
        line = json.dumps({"type": "budgets", "told": self.said}).encode() + b"\n"
        for connection in self.connections:
            connection.sendall(line)


@pytest.fixture
def budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Budgets:
    """As a server has them whose operator wrote this."""
    file = tmp_path / "budgets.toml"
    file.write_text(CONFIG)
    monkeypatch.setenv(BUDGETS, launch.middleware_environment(config.load(file))[BUDGETS])
    return Budgets.from_environment()


@pytest.mark.parametrize(
    ("headers", "arm", "drawn_on"),
    [
        ([(b"authorization", b"Bearer sk-anna")], "concise", ("research", "anna")),
        ([(b"x-api-key", b"sk-bert")], "entrace", ("research", "trial")),
        ([(b"authorization", b"Bearer sk-else")], "unlabelled", ("trial",)),
        ([(b"x-api-key", b"nobody's"), (b"authorization", b"Bearer sk-anna")], "concise", ("research", "anna")),
        ([], "other", ()),
    ],
)
def test_a_request_draws_on_those_of_its_key_and_of_its_arm(
    budgets: Budgets, headers: Any, arm: str, drawn_on: tuple[str, ...]
) -> None:
    assert budgets.of({"headers": headers}, arm) == drawn_on


def test_without_any_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for told in ("", "{}"):
        monkeypatch.setenv(BUDGETS, told)
        assert not Budgets.from_environment()
    monkeypatch.delenv(BUDGETS)
    assert not Budgets.from_environment()


async def standing(client: Client, teller: Teller) -> None:
    """Until the server has heard how budgets stand."""
    await asyncio.to_thread(teller.tell)
    while not client.app.link.standings(["trial"]):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def answered(run_dir: Path, app: Any, **arguments: Any) -> tuple[bytes | None, dict[str, Any]]:
    """The header of a response after the meter has told, and what the meter heard of the request."""

    async def main(teller: Teller) -> bytes | None:
        async with client_of(app) as client:
            await standing(client, teller)
            await client.call(**arguments)
            return client.header(HEADER)

    with Teller(run_dir / "meter.sock") as teller:
        return asyncio.run(main(teller)), teller.heard("open")[0]


@pytest.mark.parametrize(
    "app",
    [
        application(CHAT),
        application(event(choices=[{"finish_reason": "stop"}]), b"data: [DONE]\n\n", content=b"text/event-stream"),
    ],
    ids=["whole", "streamed"],
)
def test_a_response_says_how_its_budgets_stand(run_dir: Path, budgets: Budgets, app: Any) -> None:
    value, opened = answered(run_dir, app)
    assert value is not None
    assert re.fullmatch(re.escape(SAID) + r";resets=\d{10}", value.decode())
    assert opened["budgets"] == ["trial"]


def test_several_budgets_stand_in_one_header(run_dir: Path, budgets: Budgets) -> None:
    value, opened = answered(run_dir, application(CHAT), headers=[(b"authorization", b"Bearer sk-bert")])
    assert value is not None
    assert [item.split(";")[0] for item in value.decode().split(", ")] == ['"research"', '"trial"']
    assert opened["budgets"] == ["research", "trial"]


def test_a_refusal_and_a_request_without_budgets_say_nothing(run_dir: Path, budgets: Budgets) -> None:
    assert answered(run_dir, application(CHAT, status=404))[0] is None
    other = answered(run_dir, application(CHAT), headers=[(b"x-etameter-arm", b"concise")])
    assert (other[0], other[1]["budgets"]) == (None, [])


def test_where_the_meter_has_not_told_nothing_is_said(run_dir: Path, budgets: Budgets, meter: FakeMeter) -> None:
    assert call(application(CHAT)).header(HEADER) is None
    assert meter.heard("budgets") == [{"type": "budgets"}]


def test_without_budgets_the_meter_is_told_and_asked_nothing_of_them(run_dir: Path, meter: FakeMeter) -> None:
    call(application(CHAT))
    assert "budgets" not in meter.heard("open")[0]
    assert {message["type"] for message in meter.messages} == {"open", "ask"}


def test_nothing_is_said_once_the_meter_has_gone(run_dir: Path, budgets: Budgets) -> None:
    async def main(teller: Teller) -> None:
        async with client_of(application(CHAT)) as client:
            await standing(client, teller)
            teller.__exit__(None, None, None)
            while client.app.link._writer is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await client.call()
            assert client.header(HEADER) is None

    with Teller(run_dir / "meter.sock") as teller:
        asyncio.run(main(teller))


def standing_link(tmp_path: Path, end_s: int = 4_000_000_000) -> MeterLink:
    """One that was told of a window that ends then."""
    found = MeterLink(tmp_path / "none.sock", budgets=True)
    found._take(json.dumps({"type": "budgets", "told": {"trial": [SAID, end_s]}}).encode())
    return found


def test_of_a_window_that_is_over_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = standing_link(tmp_path, 1_000_090)
    monkeypatch.setattr("time.time", lambda: 1_000_000.5)
    assert found.standings(["trial", "unknown"]) == [f"{SAID};resets=89"]
    monkeypatch.setattr("time.time", lambda: 1_000_090.0)
    assert found.standings(["trial"]) == []


def test_what_was_told_too_long_ago_is_not_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = standing_link(tmp_path)
    assert found.standings(["trial"])
    late_s = time.monotonic() + link.STANDING_FRESH_S
    monkeypatch.setattr("time.monotonic", lambda: late_s)
    assert found.standings(["trial"]) == []


@pytest.mark.parametrize(
    "told", [None, 7, "x", [1], {"trial": 7}, {"trial": ["x", math.inf]}, {"trial": ["x"]}, {"trial": ["x", "y"]}]
)
def test_what_says_nothing_of_budgets_ends_the_connection(tmp_path: Path, told: object) -> None:
    with pytest.raises(ValueError, match="says nothing of budgets"):
        standing_link(tmp_path)._take(json.dumps({"type": "budgets", "told": told}).encode())
