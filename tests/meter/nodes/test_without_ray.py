"""What is said where there is no Ray: it is an extra, and nothing else needs it."""

import subprocess
import sys

import pytest

from etameter.errors import ConfigError, NodeError
from etameter.nodes.on_ray import Order, run

pytestmark = pytest.mark.unit

TOKEN = "a-token-of-the-test"


def test_without_ray_it_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NodeError, match=r"Ray is not installed: pip install 'etameter\[ray\]'"):
        run("auto", Order(9431, TOKEN, 5_000_000, (), allow_shared_gpu=False))


def test_without_a_token_nothing_is_started() -> None:
    with pytest.raises(ConfigError, match="there is no token"):
        run("auto", Order(9431, "", 5_000_000, (), allow_shared_gpu=False))


def test_nothing_else_imports_it() -> None:
    program = "import etameter.cli, etameter.daemon, etameter.nodes.on_ray, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
