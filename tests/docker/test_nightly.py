"""The night's timer, CronJob and workflow: what systemd and Kubernetes take, and that they call what there is."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from etameter import cli, config
from etameter.prompts.nightly.guard import MODULE
from tests.docker.chart import ROOT, tool
from tests.docker.test_chart import OLDEST, accepts, needs_schemas

pytestmark = pytest.mark.unit

SYSTEMD = ROOT / "docker" / "systemd"
JOB = ROOT / "docker" / "nightly"


def test_the_job_is_a_configuration() -> None:
    section = config.load(JOB / "nightly.toml").nightly
    assert section.model == "Qwen/Qwen3-8B"
    assert config.load(ROOT / "benchmarks" / "nightly_smoke.toml").nightly.name == "smoke"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_timer_and_its_service(tmp_path: Path) -> None:
    for name in ("etameter-nightly.service", "etameter-nightly.timer"):
        text = (SYSTEMD / name).read_text()
        text = text.replace("/opt/vllm/bin/etameter", "/bin/true").replace("/opt/vllm/bin/python", "/bin/true")
        (tmp_path / name).write_text(text)
    verified = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            tmp_path / "etameter-nightly.timer",
            tmp_path / "etameter-nightly.service",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr
    assert "etameter-nightly" not in verified.stderr
    calendar = subprocess.run(
        ["systemd-analyze", "calendar", "*-*-* 02:00:00"], capture_output=True, text=True, check=False
    )
    assert calendar.returncode == 0


def test_every_schedule_calls_the_command() -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    assert "nightly" in group.commands
    assert f"ExecStopPost=/opt/vllm/bin/python -m {MODULE}\n" in (SYSTEMD / "etameter-nightly.service").read_text()
    assert (
        "/opt/vllm/bin/etameter nightly /etc/etameter/nightly.toml"
        in (SYSTEMD / "etameter-nightly.service").read_text()
    )
    assert "OnCalendar=*-*-* 02:00:00" in (SYSTEMD / "etameter-nightly.timer").read_text()
    assert 'ENTRYPOINT ["etameter", "nightly"]' in (ROOT / "docker" / "Dockerfile").read_text()


def test_under_systemd_a_home_can_be_written() -> None:
    """ProtectSystem=strict leaves nothing else of the disk to it, and vLLM compiles and fetches into its home."""
    told = (SYSTEMD / "etameter-nightly.service").read_text().splitlines()
    assert {"ProtectSystem=strict", "CacheDirectory=etameter", "Environment=HOME=/var/cache/etameter"} <= set(told)


def cronjob() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((JOB / "cronjob.yaml").read_text())
    return found


def test_two_nights_do_not_run_at_once_and_none_is_tried_again() -> None:
    spec = cronjob()["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {
        each["name"] for each in pod["volumes"]
    }
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] > config.load(JOB / "nightly.toml").nightly.budget_s


@needs_schemas
@pytest.mark.skipif(tool("kubectl") is None, reason="kubectl is not installed (`make docker-check` installs it)")
def test_kubernetes_takes_the_cronjob(tmp_path: Path) -> None:
    program = tool("kubectl")
    assert program is not None
    built = subprocess.run([program, "kustomize", JOB], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    accepts(built.stdout, tmp_path, OLDEST)
    kinds = {each["kind"]: each for each in yaml.safe_load_all(built.stdout)}
    assert kinds.keys() == {"ConfigMap", "CronJob", "PersistentVolumeClaim"}
    assert "nightly.toml" in kinds["ConfigMap"]["data"]


def test_the_workflow_waits_for_a_machine_of_ones_own() -> None:
    told = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())
    job = told["jobs"]["night"]
    assert "self-hosted" in job["runs-on"]
    assert job["if"] == "vars.ETAMETER_NIGHTLY == 'on'", "elsewhere it does nothing"
    assert told["concurrency"]["cancel-in-progress"] is False
    assert any("etameter nightly" in step.get("run", "") for step in job["steps"])
    assert all(step["if"].startswith("always()") for step in job["steps"][1:]), (
        "a regression is a failed step, and still told"
    )


def test_the_workflow_tells_of_no_night_before(tmp_path: Path) -> None:
    told = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())
    find = next(step["run"] for step in told["jobs"]["night"]["steps"] if step.get("id") == "run")
    find = find.replace("/var/lib/etameter/runs", str(tmp_path / "runs"))
    (tmp_path / "runs" / "20261101").mkdir(parents=True)
    os.utime(tmp_path / "runs" / "20261101", (1e9, 1e9))
    (tmp_path / "began").touch()
    os.utime(tmp_path / "began", (1.1e9, 1.1e9))
    out = tmp_path / "out"
    told_of = {**os.environ, "RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(out)}
    subprocess.run(["bash", "-ec", find], check=True, env=told_of)
    (tmp_path / "runs" / "20261102").mkdir()
    subprocess.run(["bash", "-ec", find], check=True, env=told_of)
    assert out.read_text().splitlines() == ["folder=", f"folder={tmp_path}/runs/20261102"]
