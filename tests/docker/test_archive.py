"""The archive's timer: what systemd takes, and that it calls what there is."""

import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from etameter import cli
from tests.docker.chart import ROOT

pytestmark = pytest.mark.unit

SYSTEMD = ROOT / "docker" / "systemd"
NAMES = ("etameter-archive.service", "etameter-archive.timer")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_timer_and_its_service(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_text((SYSTEMD / name).read_text().replace("/opt/vllm/bin/etameter", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in NAMES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr
    assert "etameter-archive" not in verified.stderr


def test_the_service_calls_the_command_on_the_ledger_of_the_meter() -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    assert "archive" in group.commands
    service, meter = ((SYSTEMD / name).read_text() for name in (NAMES[0], "etameter-meter.service"))
    assert "ExecStart=/opt/vllm/bin/etameter archive\n" in service
    assert "ETAMETER_STATE=/var/lib/etameter\n" in service
    assert "ETAMETER_STATE=/var/lib/etameter\n" in meter
