"""`etameter serve`: what it reads from the options that are vLLM's, and what it refuses."""

import pytest

from etameter import config
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


@pytest.mark.parametrize(
    "words", [["--scheduler-cls", "x"], ["--scheduler_cls", "x"], ["--scheduler_cls=x"], ["--model=x_y"]]
)
def test_what_etameter_says_itself_is_refused_however_it_is_spelt(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--(scheduler-cls|model) can't be given to etameter serve"):
        launch.check("model", ["--dtype", "auto", *words])


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        (["--data-parallel-size", "2"], "2"),
        (["--data_parallel_size=4"], "4"),
        (["-dp", "8"], "8"),
        (["--data-parallel-size", "1"], None),
        (["--data-parallel-size", "many"], None),
        (["--data-parallel-backend", "2"], None),
    ],
)
def test_ranks_that_are_not_metered_are_named(options: list[str], ranks: str | None) -> None:
    warning = launch.unmetered_ranks(options)
    assert warning is None if ranks is None else f"only rank 0 of {ranks} is metered" in (warning or "")


def test_a_meter_that_nobody_could_find_is_refused() -> None:
    with pytest.raises(ConfigError, match="the meter's port is 0: name one with --meter-port"):
        launch.check_metering(config.load(None, {"meter": {"port": 0}}))


@pytest.mark.parametrize("port", ["x", "0", "65536", "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(ConfigError, match="is no port"):
        launch.address(["--port", port])
