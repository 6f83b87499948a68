"""`etameter serve`: vLLM, the meter and, where asked for, a simulated board, started and stopped together.

The board starts first and the meter second, because both must be there before the first step; a meter that can't run (no counter, a
second meter, a port in use) ends the command with the meter's own line before vLLM is loaded. While vLLM serves, a meter or
board that dies is started again, and vLLM goes on; when vLLM ends, everything ends.
"""

import http.client
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from os import environ
from pathlib import Path
from types import TracebackType
from typing import Self

from etameter import config
from etameter.errors import ConfigError, EngineError, EtameterError

from . import cpu_engine
from . import model as model_source
from .child import Child, interruptible, interrupts_held

INTERRUPTED = 130
DEFAULT_PORT = 8000

_HOOKS = ("--scheduler-cls", "etameter.serving.scheduler.metered_scheduler")
_MIDDLEWARE = ("--middleware", "etameter.serving.middleware.EnergyMiddleware")
_CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""1 GiB for keys and values instead of half of the memory, and no compiling: the first request would wait half a minute."""

_POLL_S = 0.1
_READY_POLL_S = 0.5
_BOARD_START_S = 30.0
_METER_START_S = 30.0
_START_GRACE_S = 2.0
"""A program that is still loading has nothing to finish."""
_ENGINE_GRACE_S = 15.0
_METER_GRACE_S = 10.0
_BACKOFF_LIMIT_S = 30.0
_STEADY_S = 60.0
"""A service that ran this long is restarted as if it had never died."""


@dataclass(frozen=True, slots=True)
class Service:
    """A program that `Supervisor` runs. When a `vital` one ends everything ends, any other is started again."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    vital: bool
    grace_s: float
    ready: Callable[[], bool] = lambda: True
    sink: Callable[[str], None] | None = None


@dataclass(slots=True)
class _Running:
    service: Service
    child: Child
    started_s: float
    was_ready: bool = False
    deaths: int = 0
    restart_at_s: float | None = None


class Supervisor:
    """Runs services; on leaving its `with` block it stops them in the reverse order of their start.

    Args:
        say: prints one line for the user.
        backoff_s: the wait before the first restart of a service; doubles with every death, up to 30 s.
    """

    def __init__(self, say: Callable[[str], None], backoff_s: float = 1.0) -> None:
        self._say = say
        self._backoff_s = backoff_s
        self._running: list[_Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        while self._running:
            running = self._running[-1]
            running.child.stop(
                running.service.grace_s if running.was_ready else min(_START_GRACE_S, running.service.grace_s)
            )
            self._running.pop()

    def start(self, service: Service) -> None:
        """Starts a service and returns at once."""
        with interrupts_held():
            self._running.append(_Running(service, _child(service), time.monotonic()))

    def wait_ready(self, service: Service, timeout_s: float, tick: Callable[[], None] = lambda: None) -> None:
        """Waits until a started service is ready, looking after the others; calls `tick` ten times a second.

        Raises:
            EtameterError: it died, or is not ready in time.
        """
        running = next(each for each in self._running if each.service is service)
        deadline_s = time.monotonic() + timeout_s
        next_look_s = 0.0
        while time.monotonic() < deadline_s:
            if running.child.exit_code is not None:
                raise _death(service, running.child)
            self.tend()
            if time.monotonic() >= next_look_s:
                if service.ready():
                    running.was_ready = True
                    return
                next_look_s = time.monotonic() + _READY_POLL_S
            tick()
            time.sleep(_POLL_S)
        raise EngineError(
            f"{service.name} was not ready after {timeout_s:.0f} s", "see its output above, or give it more memory"
        )

    def tend(self) -> None:
        """Starts again what died, when its wait is over.

        Raises:
            EtameterError: a vital service died.
        """
        now_s = time.monotonic()
        for running in self._running:
            if running.restart_at_s is None:
                self._note_death(running, now_s)
            elif now_s >= running.restart_at_s:
                with interrupts_held():
                    running.child = _child(running.service)
                running.started_s, running.restart_at_s = now_s, None
                self._say(f"{running.service.name} started again")

    def _note_death(self, running: _Running, now_s: float) -> None:
        if running.child.exit_code is None:
            return
        if running.service.vital:
            raise _death(running.service, running.child)
        running.child.stop(0.0)  # what it left behind
        running.deaths = 1 if now_s - running.started_s > _STEADY_S else running.deaths + 1
        wait_s = min(self._backoff_s * 2 ** (running.deaths - 1), _BACKOFF_LIMIT_S)
        running.restart_at_s = now_s + wait_s
        ended = _exit(running.child.exit_code)
        if running.child.exit_code > 0:
            ended += f": {reason_of_death(running.child.last_words())}"
        self._say(f"{running.service.name} ended ({ended}); serving goes on; it is started again in {wait_s:g} s")


def _child(service: Service) -> Child:
    return Child(service.name, service.argv, service.environment, service.sink)


def _death(service: Service, child: Child) -> EtameterError:
    """The error that a child's end means: its own line, if it is one of ours, else the last relevant one."""
    lines, code = child.last_words(), child.exit_code
    assert code is not None
    if code == EtameterError.exit_code:
        own = next((line for line in reversed(lines) if line.startswith("etameter: ")), None)
        if own is not None:
            message, _, remedy = own.removeprefix("etameter: ").rpartition(": ")
            return EtameterError(message, remedy)
    return EngineError(f"{service.name} ended with {_exit(code)}", reason_of_death(lines))


def _exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


_LOG_PREFIX = re.compile(
    r"^(\([^)]*\) )*((DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d )?(\[[^\]]*\] ?)*"
)
_CAUSE = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|NotFound|Interrupt)\b: .|^[\w./-]+: error: .")
_INVALID = re.compile(r"\S*ValidationError: \d+ validation error")  # the next line says which
_CONSEQUENCE = re.compile(r"Engine core initialization failed|Engine process failed to start|EngineDeadError|leaked ")


def reason_of_death(lines: Sequence[str]) -> str:
    """The line of a log that best says why its program ended: the last that names an error, but not a mere consequence."""
    bare = [_LOG_PREFIX.sub("", line).strip() for line in lines]
    for here, line in enumerate(bare[:-1]):
        if _INVALID.match(line):
            bare[here] = f"ValidationError: {bare[here + 1].partition(' [type=')[0]}"
    causes = [line for line in bare if _CAUSE.match(line) and not _CONSEQUENCE.search(line)]
    said = causes or [line for line in bare if line]
    return said[-1][:400] if said else "it said nothing"


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
    if warning:
        _say(warning)
    server = engine_service(model, options, settings, sink=_pass_on)
    try:
        with Supervisor(_say, settings.serve.restart_backoff_s) as supervisor:
            start_metering(supervisor, settings, config_file)
            supervisor.start(server)
            supervisor.wait_ready(server, timeout_s=float("inf"))
            host, port = address(options)
            meter = f"http://{settings.meter.host}:{settings.meter.port}"
            _say(f"serving {model} on http://{host}:{port}, the meter is on {meter}")
            while True:
                supervisor.tend()
                time.sleep(_POLL_S)
    finally:
        config.ring_path(settings.serve.engine).unlink(missing_ok=True)  # nobody writes or reads it any more


def start_metering(
    supervisor: Supervisor,
    settings: config.Config,
    config_file: Path | None = None,
    sink: Callable[[str], None] | None = None,
) -> None:
    """Starts the simulated board, if one is configured, and the meter, and waits until the meter answers.

    Their output goes to `sink`, to stderr where there is none.

    Raises:
        EtameterError: the meter can't run here.
    """
    check_port(settings.meter.host, settings.meter.port, "choose another with --meter-port")
    said = _HeldBack(sink or _pass_on)
    if settings.meter.simulate_gpu is not None:
        board = board_service(settings, said)
        supervisor.start(board)
        supervisor.wait_ready(board, _BOARD_START_S)
    metering = meter_service(settings, config_file, said)
    supervisor.start(metering)
    supervisor.wait_ready(metering, _METER_START_S)
    said.release()


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
        if any(given == option or given.startswith(option + "=") for given in options):
            raise ConfigError(f"{option} can't be given to etameter serve", remedy)
    version = cpu_engine.installed_version()
    if version is None:
        raise EngineError(
            "vLLM is not installed here",
            "pip install 'etameter[vllm]' for NVIDIA GPUs; `etameter demo` installs the CPU build",
        )
    warning = cpu_engine.check_version(version)
    model_source.check(model)
    check_port(*address(options), "choose another with --port")
    return warning


def check_port(host: str, port: int, remedy: str) -> None:
    """Raises EngineError where nothing could listen on host:port."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise EngineError(
            f"{host} is no address to listen on: {error.strerror}", "choose another with --host"
        ) from error
    with closing(socket.socket(family, kind, protocol)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            raise EngineError(
                f"port {port} is in use ({error.strerror})", f"stop what listens there, or {remedy}"
            ) from error


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
        if here == option:
            value = following
        elif here.startswith(option + "="):
            value = here.partition("=")[2]
    return value


def engine_service(
    model: str, options: Sequence[str], settings: config.Config, sink: Callable[[str], None] | None
) -> Service:
    """The vLLM server with the hooks in it."""
    environment = dict(environ)
    environment |= {
        "ETAMETER_ENGINE": settings.serve.engine,
        "ETAMETER_RING_DIR": str(config.ring_dir()),
        "ETAMETER_ARMS": ",".join(settings.arms),
    }
    if (cpu_engine.installed_version() or "").endswith("cpu"):
        environment = _CPU_ENVIRONMENT | environment
    if Path(model).is_dir():
        environment = {"HF_HUB_OFFLINE": "1"} | environment
    host, port = address(options)
    argv = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        *_HOOKS,
        *_MIDDLEWARE,
        *options,
    ]
    return Service(
        "vLLM", argv, environment, vital=True, grace_s=_ENGINE_GRACE_S, ready=lambda: answers(host, port), sink=sink
    )


def meter_service(settings: config.Config, config_file: Path | None, sink: Callable[[str], None]) -> Service:
    """The meter of one engine."""
    engine, section = settings.serve.engine, settings.meter
    options: dict[str, object] = {
        "--ring": config.ring_path(engine),
        "--ledger": settings.ledger,
        "--host": section.host,
        "--port": section.port,
    }
    if section.simulate_gpu is not None:
        options |= {"--simulate-gpu": section.simulate_gpu, "--board": config.board_path(engine)}
    if config_file is not None:
        options["--config"] = config_file
    argv = [sys.executable, "-m", "etameter", "meter", *(str(word) for pair in options.items() for word in pair)]

    def ready() -> bool:
        return answers(section.host, section.port)

    return Service("the meter", argv, environ, vital=False, grace_s=_METER_GRACE_S, ready=ready, sink=sink)


def board_service(settings: config.Config, sink: Callable[[str], None]) -> Service:
    """The simulated board; it outlives the meter, as a real one does."""
    engine, board = settings.serve.engine, config.board_path(settings.serve.engine)
    assert settings.meter.simulate_gpu is not None
    argv = [sys.executable, "-m", "etameter.counters.simulated", "--profile", settings.meter.simulate_gpu]
    argv += ["--ring", str(config.ring_path(engine)), "--board", str(board), "--engine", engine]
    board.unlink(missing_ok=True)  # of a board that was killed
    grace_s = _METER_GRACE_S
    return Service("the simulated board", argv, environ, vital=False, grace_s=grace_s, ready=board.exists, sink=sink)


def answers(host: str, port: int) -> bool:
    """Whether a server that listens on host:port answers GET /health with 200."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    connection = http.client.HTTPConnection(host, port, timeout=2.0)
    with closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False


def _pass_on(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


def _say(line: str) -> None:
    sys.stderr.write(f"etameter: {line}\n")
    sys.stderr.flush()
