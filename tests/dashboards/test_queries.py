"""Every panel has something to show of a meter that runs, or says why not."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from etameter.dashboards import files
from tests.dashboards import audited
from tests.dashboards.scraped import Prometheus
from tests.meter.export.stand import Stand
from tests.meter.test_daemon import until
from tests.metered import metering, warm_up

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed"),
]

LOAD_S = 90.0
FOOTPRINT = {
    "ETAMETER_FOOTPRINT__PRICE": "finland",
    "ETAMETER_FOOTPRINT__GRAMS_PER_KWH": "380",
    "ETAMETER_FOOTPRINT__PUE": "1.2",
}
EMPTY = {
    "Other processes on the GPU": "nobody runs on a board that isn't there",
    "Power of the hosts": "a virtual machine has no RAPL",
}
"""Panels that may have nothing to show here, and why."""
PANELS = [
    (f"{board['title']}: {panel['title'] or 'banner'}", panel)
    for board in map(json.loads, files.texts().values())
    for panel in board["panels"]
]


@pytest.fixture(
    scope="module",
    params=[pytest.param("a made-up engine", marks=pytest.mark.boot), pytest.param("vLLM", marks=pytest.mark.server)],
)
def prometheus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Has scraped the meter of an engine for a while, on a simulated board, and one that has seen audits."""
    with ExitStack() as stack:
        directory = tmp_path_factory.mktemp("scraped")
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in FOOTPRINT.items():
            patch.setenv(name, value)
        port = _of_vllm(request, directory, stack) if request.param == "vLLM" else _of_nobody(directory, stack)
        scraping = Prometheus(directory, (f"127.0.0.1:{port}", audited.served(stack)), stack)
        until(scraping.ready)
        time.sleep(LOAD_S)
        yield scraping


def _of_nobody(directory: Path, stack: ExitStack) -> int:
    """The port of a meter whose engine makes its requests up."""
    stand = Stand(directory, stack)
    stand.engine()
    return stand.port


def _of_vllm(request: pytest.FixtureRequest, directory: Path, stack: ExitStack) -> int:
    """The port of the meter of the one real server, which three clients ask until `stack` ends."""
    metered = stack.enter_context(metering(request.getfixturevalue("server"), directory))
    warm_up(metered)
    over = threading.Event()

    def ask(arm: str) -> None:
        while not over.is_set():
            for limit in (8, 40):
                metered.chat("Tell me about rivers.", max_tokens=limit, extra_headers={"X-Etameter-Arm": arm})

    clients = ThreadPoolExecutor()
    for arm in ("unconstrained", "concise", "entrace"):
        clients.submit(ask, arm)
    stack.callback(clients.shutdown)
    stack.callback(over.set)
    return metered.meter_port


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=[name for name, _ in PANELS])
def test_a_panel_shows_something_or_says_why_not(prometheus: Prometheus, name: str, panel: dict[str, Any]) -> None:
    shown = [prometheus.says(target["expr"]) for target in panel["targets"]]
    if any(shown):
        return
    assert panel["title"] in EMPTY, f"{name} has nothing to show"
    assert panel["fieldConfig"]["defaults"]["noValue"].endswith(".")


def test_requests_are_exemplars_by_their_public_ids(prometheus: Prometheus) -> None:
    now_s = time.time()
    asked = prometheus.asked(
        "query_exemplars", query="etameter_request_energy_joules_bucket", start=now_s - 120, end=now_s
    )
    ids = {each["labels"]["request_id"] for series in asked for each in series["exemplars"]}
    assert ids
    assert all(request_id.startswith("chatcmpl-") for request_id in ids)


def test_rules_are_evaluated_without_complaint_and_raise_nothing_over_a_demo(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.asked("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert not [rule["name"] for rule in rules if rule["health"] != "ok"]
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert not firing
