"""What can be told of the images without a container engine: names that must agree, and what each service may do."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from etameter.cli import main
from etameter.export.prometheus import EXEMPLAR_LABEL

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OWN = ("server", "meter")
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_a_version(name: str) -> None:
    _, _, tag = SERVICES[name]["image"].partition(":")
    assert re.search(r"\d+\.\d+", tag)


def test_own_images_carry_the_version_of_the_code() -> None:
    assert VERSION is not None
    assert {SERVICES[name]["image"].partition(":")[2] for name in OWN} == {VERSION[1]}


def test_ports_are_open_to_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", [*OWN, "prometheus"])
def test_services_write_only_where_they_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("target", OWN)
def test_own_images_run_as_one_user_who_is_not_root(target: str) -> None:
    stage = DOCKERFILE.partition(f" AS {target}\n")[2].partition("\nFROM ")[0]
    [user] = re.findall(r"^USER (\d+)$", stage, re.MULTILINE)
    assert user == "2000"
    assert f"uid={user}," in COMPOSE["volumes"]["run"]["driver_opts"]["o"]
    assert "HEALTHCHECK" in stage
    assert "ETAMETER_RUN=/run/etameter" in stage
    assert "ETAMETER_RING_DIR=/run/etameter" in stage
    assert "run:/run/etameter" in SERVICES[target]["volumes"]


def test_meter_and_server_share_a_volume_and_no_fate() -> None:
    tied = {"pid", "ipc", "network_mode", "depends_on", "volumes_from", "links"}
    assert not tied & (SERVICES["meter"].keys() | SERVICES["server"].keys())


@pytest.mark.parametrize("command", [["serve", "--no-meter"], ["meter"]])
def test_entry_points_are_commands_that_exist(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert f"ENTRYPOINT {json.dumps(['etameter', *command])}" in DOCKERFILE
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    assert "Usage" in capsys.readouterr().out


def test_what_is_mounted_exists() -> None:
    sources = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    files = [source for source in sources if source.startswith(".")]
    assert len(files) == 4
    assert all((FOLDER / source).exists() for source in files)
    assert {source for source in sources if not source.startswith(".")} == COMPOSE["volumes"].keys()


def test_prometheus_scrapes_services_that_exist() -> None:
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    targets = [target for job in jobs for each in job.get("static_configs", ()) for target in each["targets"]]
    assert sorted(target.partition(":")[0] for target in targets) == ["meter", "server"]
    assert not any("profiles" in SERVICES[target.partition(":")[0]] for target in targets), "it would be down for ever"
    [looked_up] = [each for job in jobs for each in job.get("dns_sd_configs", ())]
    assert (looked_up["names"], SERVICES["dcgm-exporter"]["profiles"]) == (["dcgm-exporter"], ["dcgm"])
    for name, port in (("meter", "9430"), ("server", "8000")):
        assert f"{name}:{port}" in targets
        assert f"EXPOSE {port}" in DOCKERFILE


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_its_configuration_with_the_rules(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "prometheus.yml", tmp_path)
    shutil.copytree(ROOT / "dashboards" / "rules", tmp_path / "rules")
    checked = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "rule files found" in checked.stdout


def test_grafana_finds_its_source_and_its_dashboards() -> None:
    provisioning = FOLDER / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [exemplar] = source["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplar["name"] == EXEMPLAR_LABEL
    address, _, value = exemplar["url"].partition("/energy/")
    assert address.removeprefix("http://").replace("localhost", "127.0.0.1") + ":9430" in SERVICES["meter"]["ports"]
    assert value == "$${__value.raw}"  # Grafana takes a single $ for a variable of its environment
    [provider] = yaml.safe_load((provisioning / "dashboards" / "etameter.yaml").read_text())["providers"]
    folder = provider["options"]["path"]
    assert f"../dashboards/json:{folder}:ro" in SERVICES["grafana"]["volumes"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(f"{folder}/")
    assert (ROOT / "dashboards" / "json" / home.rpartition("/")[2]).exists()
