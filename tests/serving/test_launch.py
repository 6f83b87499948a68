"""`etameter serve`: where the server will listen, by the options that are vLLM's."""

import pytest

from etameter.errors import ConfigError
from etameter.serving import launch

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ([], ("0.0.0.0", 8000)),
        (["--port", "81"], ("0.0.0.0", 81)),
        (["--port=81", "--host=::1", "--port", "82"], ("::1", 82)),
        (["--dtype", "auto", "--host", "localhost"], ("localhost", 8000)),
    ],
)
def test_the_address_is_what_vllm_will_take(options: list[str], where: tuple[str, int]) -> None:
    assert launch.address(options) == where


@pytest.mark.parametrize("port", ["x", "0", "65536", "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(ConfigError, match="is no port"):
        launch.address(["--port", port])
