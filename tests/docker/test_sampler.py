"""The unit of another machine's sampler: what systemd takes, and that it calls what there is."""

import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from etameter import cli, config
from tests.docker.test_archive import SYSTEMD

pytestmark = pytest.mark.unit

NAME = "etameter-sampler.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_it(tmp_path: Path) -> None:
    unit = tmp_path / NAME
    unit.write_text((SYSTEMD / NAME).read_text().replace("/opt/vllm/bin/etameter", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0, verified.stderr
    assert "etameter-sampler" not in verified.stderr


def test_it_calls_the_command_with_a_token_and_may_no_more_than_the_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    service, meter = ((SYSTEMD / name).read_text() for name in (NAME, "etameter-meter.service"))
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    (called,) = [line.split()[1:] for line in service.splitlines() if line.startswith("ExecStart=")]
    group.commands[called[0]].make_context("sampler", called[1:])
    assert "EnvironmentFile=/etc/etameter-node.env\n" in service
    monkeypatch.setenv("ETAMETER_METER__NODE_TOKEN", "a-token-of-the-test")
    assert config.load().meter.node_token == "a-token-of-the-test"
    held = [line for line in meter.splitlines() if line.startswith(("NoNew", "Cap", "Protect", "Private", "Device"))]
    assert held
    assert set(held) <= set(service.splitlines())
