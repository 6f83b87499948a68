"""`etameter serve`: vLLM, the meter and, where asked for, simulated boards, started and stopped together.

The board starts first and the meter second, because both must be there before the first step; a meter that can't run (no counter, a
second meter, a port in use) ends the command with the meter's own line before vLLM is loaded. While vLLM serves, a meter or
board that dies is started again, and vLLM goes on; when vLLM ends, everything ends.
"""

import http.client
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from itertools import zip_longest
from os import environ
from pathlib import Path

from etameter import config
from etameter.errors import ConfigError, EngineError

from . import arms, brakes, budgets, cpu_engine, outside, ports, vllm_program
from . import model as model_source
from .interrupts import interruptible
from .supervisor import Service, Supervisor

INTERRUPTED = 130
DEFAULT_PORT = 8000

_HOOKS = ("--scheduler-cls", "etameter.serving.scheduler.metered_scheduler")
_MIDDLEWARE = ("--middleware", "etameter.serving.middleware.EnergyMiddleware")
_CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""1 GiB for keys and values instead of half of the memory."""
_EAGER_ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1"}
"""With `--enforce-eager` parts of the sampler would be compiled still: the first request with logprobs waits half a minute. Without, vLLM does not start so."""

_OTHER_PORT = "choose another with --port"
_POLL_S = 0.1
_BOARD_START_S = 30.0
_METER_START_S = 30.0
_ENGINE_GRACE_S = 15.0
_METER_GRACE_S = 10.0


def serve(model: str, options: Sequence[str], settings: config.Config, config_file: Path | None = None) -> int:
    """Serves `model` until interrupted or until vLLM ends; vLLM's output goes to stderr as it comes.

    `options` are vLLM's, as the user gave them; `config_file` is handed on to the meter.

    Returns:
        130 after Ctrl-C or SIGTERM.

    Raises:
        EtameterError: nothing could be started, or vLLM ended; nothing is left running.
    """
    try:
        with interruptible():
            _serve(model, options, settings, config_file)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _serve(model: str, options: Sequence[str], settings: config.Config, config_file: Path | None) -> None:
    warning = check(model, options)
    check_metering(settings)
    for line in (warning, front_end_warning()):
        if line:
            say(line)
    server = engine_service(model, options, settings, sink=_pass_on)
    host, port = address(options)
    engines = [config.rank_name(settings.serve.engine, rank) for rank in local_ranks(options)]
    rings = [config.ring_path(engine) for engine in engines]
    with ExitStack() as held:
        for ring in rings:
            held.enter_context(closing(ports.claim_ring(ring, "name this engine with --engine")))
        held.enter_context(closing(ports.claim(host, port, _OTHER_PORT)))
        left = held.enter_context(ExitStack())
        supervisor = held.enter_context(Supervisor(say, settings.serve.restart_backoff_s))
        if settings.serve.meter:
            start_metering(supervisor, settings, config_file, engines=engines)
        for ring in rings:
            left.callback(ring.unlink, missing_ok=True)  # from here on it is ours, and in the end nobody's
        if _is_for_cpus() and not _is_eager(options):
            say(
                "vLLM compiles the model for this CPU, which takes a C++ compiler and minutes: --enforce-eager starts without"
            )
        supervisor.start(server)
        supervisor.wait_ready(server, timeout_s=float("inf"))
        meter = f"the meter is on http://{settings.meter.host}:{settings.meter.port}"
        if not settings.serve.meter:
            meter = f"for a meter of {' '.join(f'--ring {ring}' for ring in rings)}"
        say(f"serving {model} on http://{host}:{port}, {meter}")
        start_audits(supervisor, settings, (host, port), config_file, api_key=_value_of("--api-key", options))
        while True:
            supervisor.tend()
            time.sleep(_POLL_S)


def start_metering(
    supervisor: Supervisor,
    settings: config.Config,
    config_file: Path | None = None,
    sink: Callable[[str], None] | None = None,
    engines: Sequence[str] = (),
) -> None:
    """Starts the simulated boards, if one is configured, and the meter, and waits until the meter answers.

    `engines` are all that it shall meter, by default the configured one. Output goes to `sink`, to stderr where there is none.

    Raises:
        EtameterError: the meter can't run here.
    """
    ports.check(settings.meter.host, settings.meter.port, "choose another with --meter-port")
    said = _HeldBack(sink or _pass_on)
    engines = engines or [settings.serve.engine]
    if settings.meter.simulate_gpu is not None:
        for engine in engines:
            board = board_service(engine, settings.meter.simulate_gpu, said)
            supervisor.start(board)
            supervisor.wait_ready(board, _BOARD_START_S)
    metering = meter_service(engines, settings, config_file, said)
    supervisor.start(metering)
    supervisor.wait_ready(metering, _METER_START_S)
    said.release()


def start_audits(
    supervisor: Supervisor,
    settings: config.Config,
    at: tuple[str, int],
    config_file: Path | None,
    api_key: str | None = None,
) -> None:
    """Starts what audits η beside the meter, where the configuration wants that. `at`: where the server listens that wants `api_key`."""
    if settings.serve.meter and settings.meter.classify and settings.eta.deep != "off":
        supervisor.start(audit_service(at, config_file, api_key))


def audit_service(at: tuple[str, int], config_file: Path | None, api_key: str | None) -> Service:
    """What audits η."""
    host, port = local(at[0]), at[1]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    argv = [sys.executable, "-m", "etameter", "audits", "--url", url]
    if config_file is not None:
        argv += ["--config", str(config_file)]
    environment = dict(environ) | ({} if api_key is None else {"VLLM_API_KEY": api_key})
    return Service("audits", argv, environment, vital=False, grace_s=_METER_GRACE_S, sink=_pass_on)


class _HeldBack:
    """Keeps what is said until the start has succeeded: when it fails, the error says it, and once is enough."""

    def __init__(self, sink: Callable[[str], None]) -> None:
        self._sink = sink
        self._lines: list[str] | None = []
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        with self._lock:
            if self._lines is not None:
                self._lines.append(line)
                return
        self._sink(line)

    def release(self) -> None:
        with self._lock:
            lines, self._lines = self._lines or [], None
            for line in lines:
                self._sink(line)


def check(model: str, options: Sequence[str]) -> str | None:
    """Looks, before anything is started, for what would make serving fail.

    Returns:
        A warning about vLLM's version, if one is due.

    Raises:
        ConfigError, EngineError: what to mend.
    """
    cpu_engine.check_system()
    for option, remedy in (
        ("--scheduler-cls", "leave it out: etameter needs its own, which subclasses the one vLLM would have chosen"),
        ("--model", "name the model once, first"),
    ):
        if any(_split(word)[0] == option for word in options):
            raise ConfigError(f"{option} can't be given to etameter serve", remedy)
    version = cpu_engine.installed_version()
    if version is None:
        raise EngineError(
            "vLLM is not installed here",
            "pip install 'etameter[vllm]' for NVIDIA GPUs; `etameter demo` installs the CPU build",
        )
    warning = cpu_engine.warning(version)
    model_source.check(model)
    ports.check(*address(options), _OTHER_PORT)
    return warning


def front_end_warning() -> str | None:
    """What to say where vLLM is told to answer by its front end in Rust, which loads nothing of ours."""
    if environ.get("VLLM_USE_RUST_FRONTEND", "0") in {"", "0"}:
        return None
    return (
        "VLLM_USE_RUST_FRONTEND is set: that front end has no middleware, so that responses carry no energy and no request has an arm. "
        "The engine is metered all the same"
    )


def check_metering(settings: config.Config) -> None:
    """Raises ConfigError where nobody could find the meter, or no meter would do what is asked of it."""
    if not settings.serve.meter and settings.meter.simulate_gpu is not None:
        raise ConfigError("--simulate-gpu is the meter's, and --no-meter starts none", "simulate where the meter is")
    if settings.serve.meter and settings.meter.port == 0:
        raise ConfigError("the meter's port is 0", "name one with --meter-port: `etameter meter` alone may take any")


def local_ranks(options: Sequence[str]) -> Sequence[int]:
    """The data-parallel ranks that vLLM will run on this host; the one rank 0 where it won't run several.

    Raises:
        ConfigError: they can't be told from its options.
    """
    own = _number(options, "--data-parallel-rank", "-dpn")
    if own is not None:
        return [own]
    size = _number(options, "--data-parallel-size", "-dp")
    here = _number(options, "--data-parallel-size-local", "-dpl")
    start = _number(options, "--data-parallel-start-rank", "-dpr") or 0
    return range(start, start + (1 if size is None else size if here is None else here))


def _number(options: Sequence[str], *names: str) -> int | None:
    """The value of an option of vLLM's that counts something. Raises ConfigError where it is no number."""
    for name in names:
        value = _value_of(name, options)
        if value is not None and not value.isdecimal():
            raise ConfigError(f"{name} {value} is no number", "give one, as vLLM wants it")
        if value is not None:
            return int(value)
    return None


def address(options: Sequence[str]) -> tuple[str, int]:
    """Where vLLM will listen, by its own options; raises ConfigError for a port that is none."""
    port = _value_of("--port", options) or str(DEFAULT_PORT)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--port {port} is no port", "give a number from 1 to 65535")
    return _value_of("--host", options) or "0.0.0.0", int(port)  # noqa: S104  # vLLM's default


def _value_of(option: str, options: Sequence[str]) -> str | None:
    """The value of `--option value` or `--option=value`, the last one given."""
    value = None
    for here, following in zip_longest(options, options[1:], fillvalue=""):
        name, own = _split(here)
        if name == option:
            value = following if own is None else own
    return value


def _split(word: str) -> tuple[str, str | None]:
    """The name of an option, with dashes where vLLM takes underscores too, and its value where that is in the same word."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") if name.startswith("--") else name, value if equals else None


def engine_service(
    model: str, options: Sequence[str], settings: config.Config, sink: Callable[[str], None] | None
) -> Service:
    """The vLLM server with the hooks in it."""
    environment = dict(environ) | middleware_environment(settings)
    environment |= {"ETAMETER_ENGINE": settings.serve.engine, "ETAMETER_RING_DIR": str(config.ring_dir())}
    version = cpu_engine.installed_version() or ""
    is_known = cpu_engine.is_known(version)
    if not is_known:
        environment |= {outside.OUTSIDE: "1", outside.MODEL: model}
    if _is_for_cpus():
        environment = _CPU_ENVIRONMENT | (_EAGER_ENVIRONMENT if _is_eager(options) else {}) | environment
    if Path(model).is_dir():
        environment = {"HF_HUB_OFFLINE": "1"} | environment
    host, port = address(options)
    # Its API server alone is a module too, which starts one of them whatever --api-server-count says.
    argv = [sys.executable, "-m", vllm_program.__name__, "serve", model]
    argv += [*(_HOOKS if is_known else ()), *_MIDDLEWARE, *options]
    grace_s = _ENGINE_GRACE_S + (_number(options, "--shutdown-timeout") or 0)  # within which vLLM lets requests end
    return Service("vLLM", argv, environment, vital=True, grace_s=grace_s, ready=lambda: answers(host, port), sink=sink)


def _is_for_cpus() -> bool:
    return (cpu_engine.installed_version() or "").endswith("cpu")


def _is_eager(options: Sequence[str]) -> bool:
    return any(_split(word)[0] == "--enforce-eager" for word in options)


def middleware_environment(settings: config.Config) -> dict[str, str]:
    """What the middleware goes by."""
    rules = {
        name: arms.Rule(arm.system_prompt_sha256, arm.api_key_sha256, arm.models) for name, arm in settings.arms.items()
    }
    return {
        **arms.environment(list(settings.arms), rules),
        **budgets.environment({name: (each.arms, each.api_key_sha256) for name, each in settings.budgets.items()}),
        "ETAMETER_CLASSIFY": "1" if settings.meter.classify else "0",
        "ETAMETER_SETTLE_RESPONSES": "1" if settings.serve.settle_responses else "0",
        "ETAMETER_RECEIPT_TOKEN": settings.meter.receipt_token or "",
        **brakes.environment(settings),
    }


def meter_service(
    engines: Sequence[str], settings: config.Config, config_file: Path | None, sink: Callable[[str], None]
) -> Service:
    """The meter of some engines."""
    section = settings.meter
    options: list[tuple[str, object]] = [("--ring", config.ring_path(engine)) for engine in engines]
    options += [("--ledger", settings.ledger), ("--host", section.host), ("--port", section.port)]
    if section.simulate_gpu is not None:
        options.append(("--simulate-gpu", section.simulate_gpu))
        options += [("--board", config.board_path(engine)) for engine in engines]
    if config_file is not None:
        options.append(("--config", config_file))
    argv = [sys.executable, "-m", "etameter", "meter", *(str(word) for option in options for word in option)]
    if section.allow_shared_gpu:
        argv.append("--allow-shared-gpu")

    environment = dict(environ) | {"ETAMETER_METER__CLASSIFY": str(section.classify).lower()}
    if section.receipt_token is not None:
        environment["ETAMETER_METER__RECEIPT_TOKEN"] = section.receipt_token

    def ready() -> bool:
        return answers(section.host, section.port)

    return Service("the meter", argv, environment, vital=False, grace_s=_METER_GRACE_S, ready=ready, sink=sink)


def board_service(engine: str, profile: str, sink: Callable[[str], None]) -> Service:
    """The simulated board of an engine; it outlives the meter, as a real one does."""
    board = config.board_path(engine)
    argv = [sys.executable, "-m", "etameter.counters.simulated", "--profile", profile]
    argv += ["--ring", str(config.ring_path(engine)), "--board", str(board), "--engine", engine]
    board.unlink(missing_ok=True)  # of a board that was killed
    grace_s = _METER_GRACE_S
    return Service("the simulated board", argv, environ, vital=False, grace_s=grace_s, ready=board.exists, sink=sink)


def answers(host: str, port: int) -> bool:
    """Whether a server that listens on host:port answers GET /health with 200."""
    connection = http.client.HTTPConnection(local(host), port, timeout=2.0)
    with closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False


def local(host: str) -> str:
    """Where a server that listens on `host` can be asked from here."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def _pass_on(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


def say(line: str) -> None:
    sys.stderr.write(f"etameter: {line}\n")
    sys.stderr.flush()
