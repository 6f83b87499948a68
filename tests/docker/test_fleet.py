"""The examples of docker/fleet/ are what they say: clusters that scrape and sum, and a store of all of them that has the sums alone."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.replicas import scraped
from benchmarks.stores import Server, Store, free_port, until
from etameter.dashboards import expressions, files
from tests.docker.chart import ROOT

FLEET = ROOT / "docker" / "fleet"
CLUSTERS = ("mimir.yml", "thanos.yml", "vmagent.yml")
UPWARDS = yaml.safe_load((FLEET / "upwards.yml").read_text())
REPLICAS = 4
SAID_OF_NOTHING = {"Money by model", "CO2 by model"}
"""Panels that have nothing to show of replicas without a price."""

DEBIANS = pytest.mark.skipif(
    any(shutil.which(each) is None for each in ("victoria-metrics", "vmagent", "vmalert", "promtool", "prometheus")),
    reason="needs Debian's packages victoria-metrics and prometheus",
)


def _example(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((FLEET / name).read_text())
    return config


@pytest.mark.unit
def test_all_scrape_alike_and_send_alike() -> None:
    first, *others = [_example(name)["scrape_configs"] for name in CLUSTERS]
    assert all(each == first for each in others)
    for name in ("mimir.yml", "thanos.yml"):
        [remote] = _example(name)["remote_write"]
        assert remote["write_relabel_configs"] == UPWARDS
    [selector] = _example("federation.yml")["scrape_configs"][0]["params"]["match[]"]
    kept, dropped = (each["regex"] for each in UPWARDS)
    assert selector == f'{{__name__=~"{kept}", __name__!~"{dropped}"}}'


@pytest.mark.unit
def test_the_charts_monitor_names_node_and_instance_alike() -> None:
    manifests = yaml.safe_load_all((ROOT / "tests" / "docker" / "rendered" / "all.yaml").read_text())
    [monitor] = [each for each in manifests if each["kind"] == "PodMonitor"]
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    pods = _example("vmagent.yml")["scrape_configs"][0]["relabel_configs"]
    named = [
        {"sourceLabels": each["source_labels"], "targetLabel": each["target_label"]}
        | ({"separator": each["separator"]} if "separator" in each else {})
        for each in pods
        if "target_label" in each
    ]
    assert endpoint["relabelings"] == named


@pytest.mark.unit
def test_what_is_sent_is_all_that_the_fleets_dashboard_asks() -> None:
    kept, dropped = (re.compile(each["regex"]) for each in UPWARDS)
    sent = {name for name in expressions.rules() if kept.fullmatch(name) and not dropped.fullmatch(name)}
    asked = set(re.findall(r"etameter:[a-z0-9_:]+", files.texts()["etameter-fleet.json"]))
    assert asked
    assert asked <= sent
    of_devices = {
        name for name, rule in expressions.rules().items() if re.match(r"sum by \([^)]*gpu_uuid", rule.strip())
    }
    assert of_devices
    assert not of_devices & sent, "of single devices nothing is sent"


@pytest.mark.unit
@pytest.mark.parametrize("name", CLUSTERS)
def test_no_label_is_named_as_stores_name_their_own_replicas(name: str) -> None:
    """Thanos merges what differs in such a label alone: replicas of a model would vanish."""
    labels = {
        each["target_label"]
        for job in _example(name)["scrape_configs"]
        for each in job.get("relabel_configs", ())
        if "target_label" in each
    }
    assert labels == {"node", "instance"}
    assert "replica" not in _example(name)["global"].get("external_labels", {})


@DEBIANS
@pytest.mark.unit
@pytest.mark.parametrize("name", ["mimir.yml", "thanos.yml", "federation.yml"])
def test_prometheus_takes_them(name: str, tmp_path: Path) -> None:
    """But for Kubernetes, which Debian's Prometheus is built without: VictoriaMetrics checks the same jobs."""
    config = _example(name)
    config["scrape_configs"] = [job for job in config["scrape_configs"] if "kubernetes_sd_configs" not in job]
    (tmp_path / "config.json").write_text(json.dumps(config))
    checked = subprocess.run(
        ["promtool", "check", "config", tmp_path / "config.json"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@DEBIANS
@pytest.mark.unit
def test_vmagent_and_vmalert_take_theirs() -> None:
    scraping = ["vmagent", f"-promscrape.config={FLEET}/vmagent.yml", "-remoteWrite.url=http://x", "-dryRun"]
    scraping.append(f"-remoteWrite.urlRelabelConfig={FLEET}/upwards.yml")
    ruling = ["vmalert", "-dryRun", *(f"-rule={path}" for path in sorted(expressions.RULES.glob("*.yaml")))]
    for command in (scraping, ruling):
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


class Fleet:
    """Real stores, whatever of docker/fleet/ they run by, until `stack` ends; everything happens each second."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory, self._stack = directory, stack
        (directory / "targets").mkdir()
        (directory / "rules").symlink_to(expressions.RULES)
        port = free_port()
        made = [sys.executable, "-m", "benchmarks.replicas", str(REPLICAS), "--audited", "--gpus", "2"]
        self._replicas = Server([*made, "--port", str(port)], port, stack)
        targets = scraped(REPLICAS, port)
        for each in targets:
            del each["labels"]["cluster"]  # nobody scrapes it: it is the scraper's own
        (directory / "targets" / "replicas.json").write_text(json.dumps(targets))

    def victoria(self) -> Store:
        port = free_port()
        command = ["victoria-metrics", f"-storageDataPath={self._directory / str(port)}", "-search.latencyOffset=1s"]
        command += [f"-httpListenAddr=127.0.0.1:{port}", "-loggerLevel=ERROR", "-search.disableCache"]
        store = Store(command, port, self._stack)
        until(store.answers)
        return store

    def vmagent(self, above: Store, below: Store) -> Server:
        port = free_port()
        command = ["vmagent", f"-promscrape.config={self._hurried('vmagent.yml')}", "-remoteWrite.flushInterval=200ms"]
        command += ["-remoteWrite.label=cluster=eu-1", f"-remoteWrite.tmpDataPath={self._directory / 'queue'}"]
        command += [f"-remoteWrite.url=http://127.0.0.1:{above.port}/api/v1/write"]
        command += [f"-remoteWrite.urlRelabelConfig={FLEET}/upwards.yml"]
        command += [f"-remoteWrite.url=http://127.0.0.1:{below.port}/api/v1/write"]
        return self._until_it_answers([*command, f"-httpListenAddr=127.0.0.1:{port}", "-loggerLevel=ERROR"], port)

    def vmalert(self, asked: Store, told: Server) -> Server:
        port = free_port()
        command = ["vmalert", *(f"-rule={path}" for path in sorted(expressions.RULES.glob("*.yaml")))]
        command += [f"-datasource.url=http://127.0.0.1:{asked.port}", f"-remoteWrite.url=http://127.0.0.1:{told.port}"]
        command += ["-notifier.url=http://127.0.0.1:9", "-evaluationInterval=1s", "-remoteWrite.flushInterval=200ms"]
        return self._until_it_answers([*command, f"-httpListenAddr=127.0.0.1:{port}", "-loggerLevel=ERROR"], port)

    def prometheus(self, example: str, changed: dict[str, Any]) -> Store:
        port = free_port()
        command = ["prometheus", f"--config.file={self._hurried(example, changed)}", "--log.level=error"]
        command += [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={self._directory / str(port)}"]
        store = Store(command, port, self._stack)
        until(store.answers)
        return store

    def _until_it_answers(self, command: Sequence[str], port: int) -> Server:
        server = Server(command, port, self._stack)
        until(server.answers)
        return server

    def _hurried(self, example: str, changed: dict[str, Any] | None = None) -> Path:
        """The example without Kubernetes, each second."""
        config = _example(example) | (changed or {})
        config["scrape_configs"] = [job for job in config["scrape_configs"] if "kubernetes_sd_configs" not in job]
        for interval in ("scrape_interval", "evaluation_interval"):
            if interval in config["global"]:
                config["global"][interval] = "1s"
        path = self._directory / example
        path.write_text(json.dumps(config))
        return path


@pytest.fixture
def fleet(tmp_path: Path) -> Any:
    with ExitStack() as stack:
        yield Fleet(tmp_path, stack)


def _told(store: Store, metric: str, series: int = 1) -> Callable[[], bool]:
    """Whether a store has so many. Each time it asks otherwise, because VictoriaMetrics keeps for ten seconds that there was none."""
    number = count()
    return lambda: len(store.asked(f'{metric}{{asked!="{next(number)}"}}')) >= series


def _sums_alone(above: Store) -> None:
    """Of all replicas, by which cluster, node and instance they are, and no more than that."""
    until(_told(above, "etameter:meter_watts:rate5m", REPLICAS))
    until(_told(above, "etameter:meter_output_tokens:rate5m", REPLICAS))
    until(_told(above, "etameter:board_watts:rate5m"))
    sent = {each["metric"]["__name__"] for each in above.asked('count by (__name__) ({__name__!=""})')}
    assert all(name.startswith("etameter:") for name in sent if name.startswith("etameter"))
    assert not sent & {"etameter:gpu_watts:rate5m", "etameter:idle_share:rate5m"}
    replicas = {
        (each["metric"]["cluster"], each["metric"]["node"], each["metric"]["instance"])
        for each in above.asked("etameter:meter_watts:rate5m")
    }
    assert replicas == {("eu-1", f"node-{number:04d}", f"replica-{number:04d}") for number in range(REPLICAS)}


def _dashboard_shows(above: Store) -> None:
    """Rules are evaluated and sent one after the other, so that panels fill one after the other."""
    with suppress(TimeoutError):
        until(lambda: _empty(above) <= SAID_OF_NOTHING)
    assert _empty(above) <= SAID_OF_NOTHING


def _empty(above: Store) -> set[str]:
    """Panels that have nothing to show."""
    panels = json.loads(files.texts()["etameter-fleet.json"])["panels"]
    return {
        panel["title"]
        for panel in panels
        for target in panel["targets"]
        if not above.asked(re.sub(r"\$(cluster|model|source)\b", ".*", target["expr"]).replace("$__range:60s", "5m:1s"))
    }


@DEBIANS
@pytest.mark.boot
def test_victoriametrics_of_all_clusters_has_the_sums_that_vmagent_sends_it(fleet: Fleet) -> None:
    above, below = fleet.victoria(), fleet.victoria()
    agent = fleet.vmagent(above, below)
    until(_told(below, "etameter_gpu_info", 2 * REPLICAS))
    ruler = fleet.vmalert(below, agent)
    _sums_alone(above)
    _dashboard_shows(above)
    assert below.asked("etameter_gpu_energy_joules_total"), "the cluster's own has everything"
    assert ruler.own("vmalert_execution_errors_total") == 0


@DEBIANS
@pytest.mark.boot
def test_prometheus_sends_the_same_and_is_federated_the_same(fleet: Fleet) -> None:
    """To a VictoriaMetrics, which takes what Mimir and Thanos Receive take."""
    above = fleet.victoria()
    [remote] = _example("mimir.yml")["remote_write"]
    remote["url"] = f"http://127.0.0.1:{above.port}/api/v1/write"
    below = fleet.prometheus("mimir.yml", {"remote_write": [remote]})
    [job] = _example("federation.yml")["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{below.port}"]}]
    federating = fleet.prometheus("federation.yml", {"scrape_configs": [job]})
    for store in (above, federating):
        _sums_alone(store)
        _dashboard_shows(store)
