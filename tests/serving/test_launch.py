"""`etameter serve`: what it reads from the options that are vLLM's, and what it refuses."""

from itertools import pairwise
from pathlib import Path

import pytest

from etameter import config
from etameter.errors import ConfigError
from etameter.serving import cpu_engine, launch, vllm_program
from etameter.serving.supervisor import Service, Supervisor

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
        ([], [0]),
        (["--data-parallel-size", "2"], [0, 1]),
        (["--data_parallel_size=4", "--data-parallel-size-local", "2"], [0, 1]),
        (["-dp", "8", "-dpl=2", "--data-parallel-start-rank", "6"], [6, 7]),
        (["-dp", "2", "-dpl", "0"], []),
        (["-dp", "4", "--data-parallel-rank=3"], [3]),
        (["--data-parallel-backend", "2"], [0]),
    ],
)
def test_the_ranks_on_this_host_are_those_that_vllm_will_start(options: list[str], ranks: list[int]) -> None:
    assert list(launch.local_ranks(options)) == ranks


def test_ranks_that_cant_be_told_are_refused() -> None:
    with pytest.raises(ConfigError, match="--data-parallel-size many is no number"):
        launch.local_ranks(["--data-parallel-size", "many"])


@pytest.mark.parametrize("simulated", [None, "h100"])
def test_a_meter_is_given_the_ring_of_each_rank(monkeypatch: pytest.MonkeyPatch, simulated: str | None) -> None:
    monkeypatch.setenv("ETAMETER_RING_DIR", "/rings")
    settings = config.load(None, {"meter": {"simulate_gpu": simulated}})
    words = launch.meter_service(["blue", "blue-1"], settings, None, print).argv
    given = {option: [word for before, word in pairwise(words) if before == option] for option in ("--ring", "--board")}
    boards = ["/rings/etameter-blue.board", "/rings/etameter-blue-1.board"]
    assert given == {
        "--ring": ["/rings/etameter-blue.ring", "/rings/etameter-blue-1.ring"],
        "--board": boards if simulated else [],
    }


def test_a_board_cant_be_simulated_for_a_meter_that_is_not_started() -> None:
    with pytest.raises(ConfigError, match="--no-meter starts none: simulate where the meter is"):
        launch.check_metering(config.load(None, {"meter": {"simulate_gpu": "h100"}, "serve": {"meter": False}}))


def test_a_meter_that_nobody_could_find_is_refused() -> None:
    with pytest.raises(ConfigError, match="the meter's port is 0: name one with --meter-port"):
        launch.check_metering(config.load(None, {"meter": {"port": 0}}))


@pytest.mark.parametrize(
    ("version", "options", "compiles"),
    [("0.32.0+cpu", ["--enforce_eager"], False), ("0.32.0+cpu", ["--dtype", "auto"], True), ("0.32.0", [], True)],
)
def test_only_an_eager_engine_for_cpus_is_kept_from_compiling(
    monkeypatch: pytest.MonkeyPatch, version: str, options: list[str], *, compiles: bool
) -> None:
    monkeypatch.setattr(cpu_engine, "installed_version", lambda: version)
    for name in ("TORCHDYNAMO_DISABLE", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.delenv(name, raising=False)
    environment = launch.engine_service("m", options, config.load(None), None).environment
    assert ("TORCHDYNAMO_DISABLE" not in environment) == compiles
    assert ("VLLM_CPU_KVCACHE_SPACE" in environment) == version.endswith("cpu")


def test_vllm_is_started_by_its_own_command_which_knows_of_several_api_servers() -> None:
    argv = launch.engine_service("m", ["--api-server-count", "2"], config.load(None), None).argv
    assert argv[1:5] == ["-m", vllm_program.__name__, "serve", "m"]
    assert argv[-2:] == ["--api-server-count", "2"]


@pytest.mark.parametrize(("told", "warned"), [(None, False), ("0", False), ("1", True)])
def test_a_front_end_without_middleware_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, told: str | None, *, warned: bool
) -> None:
    monkeypatch.delenv("VLLM_USE_RUST_FRONTEND", raising=False)
    if told is not None:
        monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", told)
    assert ("responses carry no energy" in (launch.front_end_warning() or "")) == warned


def test_vllm_has_the_time_that_it_gives_its_requests_to_end() -> None:
    usual, longer = (
        launch.engine_service("m", options, config.load(None), None).grace_s
        for options in ([], ["--shutdown_timeout=60"])
    )
    assert longer == usual + 60


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1:81"), ("::", "http://[::1]:81"), ("h", "http://h:81")]
)
def test_audits_ask_the_server_where_it_listens_and_show_its_key(host: str, url: str) -> None:
    service = launch.audit_service((host, 81), Path("my.toml"), "secret")
    assert service.argv[2:] == ["etameter", "audits", "--url", url, "--config", "my.toml"]
    assert service.environment["VLLM_API_KEY"] == "secret", "and not in the list of processes"
    assert not service.vital


@pytest.mark.parametrize(
    ("settings", "started"),
    [
        ({"meter": {"classify": True}}, ["audits"]),
        ({}, []),
        ({"meter": {"classify": True}, "eta": {"deep": "off"}}, []),
        ({"meter": {"classify": True}, "serve": {"meter": False}}, []),
    ],
)
def test_audits_are_made_where_texts_are_told_to_a_meter_of_ones_own(
    settings: dict[str, dict[str, object]], started: list[str]
) -> None:
    class Supervising(Supervisor):
        def start(self, service: Service) -> None:
            names.append(service.name)

    names: list[str] = []
    launch.start_audits(Supervising(print), config.load(None, settings), ("h", 81), None)
    assert names == started


@pytest.mark.parametrize("port", ["x", "0", "65536", "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(ConfigError, match="is no port"):
        launch.address(["--port", port])


@pytest.mark.parametrize(
    ("version", "is_known"), [("0.32.0", True), ("0.33.1+cpu", True), ("0.34.0", False), ("dev", False)]
)
def test_a_vllm_that_is_not_known_is_started_without_our_scheduler(
    monkeypatch: pytest.MonkeyPatch, version: str, *, is_known: bool
) -> None:
    monkeypatch.setattr(cpu_engine, "installed_version", lambda: version)
    service = launch.engine_service("m", ["--dtype", "auto"], config.load(None), None)
    assert ("--scheduler-cls" in service.argv) == is_known
    assert "--middleware" in service.argv
    assert (service.environment.get("ETAMETER_OUTSIDE") == "1") != is_known
