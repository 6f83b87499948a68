"""GPU energy counters through NVML. The only module that imports pynvml (the nvidia-ml-py distribution)."""

import ctypes
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack, closing, suppress
from typing import TypeVar

import pynvml

from etameter.counters import Kind, Scope
from etameter.errors import CounterError
from etameter.records import Source

LIBRARY = "libnvidia-ml.so.1"

SIMULATED_DRIVER = "-sim"
"""A stand-in NVML says so at the end of its driver version; what it tells is simulated, not measured."""

LASTING_THROTTLES = (
    pynvml.nvmlClocksThrottleReasonHwSlowdown
    | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
)
"""Throttle reasons that change what a step costs. Being idle or at the power cap comes and goes with the load itself."""

T = TypeVar("T")

REMEDIES: dict[int, tuple[str, str, str]] = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "driver_not_loaded",
        "the NVIDIA driver isn't running",
        "make nvidia-smi work first: load the driver, or start the container with --gpus all",
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "driver_mismatch",
        "the NVIDIA driver and its library are of different versions",
        "reboot, or reload the driver that was updated",
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "no_permission",
        "this user may not read the GPU",
        "run as a user that may open /dev/nvidia* (in a container: --gpus all), or as root",
    ),
    pynvml.NVML_ERROR_NOT_SUPPORTED: (
        "not_supported",
        "this GPU has no energy counter",
        "use a GPU of the Volta generation or newer that isn't virtual",
    ),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: (
        "not_supported",
        "this NVIDIA driver knows no energy counter",
        "update the driver",
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: (
        "gpu_lost",
        "the GPU has fallen off the bus",
        "reset it (nvidia-smi --gpu-reset) or reboot; dmesg | grep Xid says why",
    ),
    pynvml.NVML_ERROR_NOT_FOUND: (
        "no_gpu",
        "no such GPU",
        "choose one that nvidia-smi -L lists",
    ),
}


class NvmlCounter:
    """The energy counter of one GPU: millijoules since the driver was loaded, published 10 to 50 times a second."""

    scope: Scope = "gpu"
    kind: Kind = "nvml"

    def __init__(self, gpu_uuid: str) -> None:
        """Open the GPU with this UUID. NVML stays initialised until `close`.

        Raises CounterError: as `discover` does, and `mig`, `not_supported`, `gpu_lost` or `nvml_error` for this GPU.
        """
        self.gpu_uuid = gpu_uuid
        _initialise()
        self._handle = None
        try:
            self.source: Source = "simulated" if _driver_version().endswith(SIMULATED_DRIVER) else "measured"
            self._refuse_mig()
            self.board_name = str(self._ask_if_supported(pynvml.nvmlDeviceGetName) or "unknown")
            self.read_mj()
        except CounterError:
            self.close()
            raise

    def read_mj(self) -> int:
        """Cumulative millijoules since the driver was loaded.

        Raises CounterError (`no_permission`, `not_supported`, `gpu_lost`, `driver_not_loaded`, `nvml_error`); the next
        read looks the GPU up again, so that one that comes back is read again.
        """
        return int(self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption))

    def conditions(self) -> tuple[Hashable, ...]:
        """The enforced power limit in milliwatts and the lasting throttle reasons. Raises CounterError as `read_mj`."""
        throttles = self._ask_if_supported(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return (
            self._ask_if_supported(pynvml.nvmlDeviceGetEnforcedPowerLimit),
            None if throttles is None else throttles & LASTING_THROTTLES,
        )

    def power_limit_w(self) -> float | None:
        """The enforced power limit in watts, None where the GPU doesn't tell. Raises CounterError as `read_mj`."""
        limit_mw = self._ask_if_supported(pynvml.nvmlDeviceGetEnforcedPowerLimit)
        return None if limit_mw is None else limit_mw / 1000

    def close(self) -> None:
        """Give NVML back."""
        _shut_down()

    def _refuse_mig(self) -> None:
        modes = self._ask_if_supported(pynvml.nvmlDeviceGetMigMode)
        if modes is not None and modes[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
            raise CounterError(
                "mig",
                f"{self.gpu_uuid} is split by MIG, and its counter is that of the whole GPU",
                f"switch MIG off (nvidia-smi -i {self.gpu_uuid} -mig 0) or meter another GPU",
            )

    def _ask(self, function: Callable[..., T]) -> T:
        try:
            if self._handle is None:
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.gpu_uuid)
            return function(self._handle)
        except pynvml.NVMLError as error:
            self._handle = None
            raise _counter_error(error, self.gpu_uuid) from error

    def _ask_if_supported(self, function: Callable[..., T]) -> T | None:
        try:
            return self._ask(function)
        except CounterError as error:
            if error.cause == "not_supported":
                return None
            raise


def discover(gpu_uuids: Sequence[str] = ()) -> list[NvmlCounter]:
    """The counters of the GPUs `gpu_uuids`, of all GPUs of the machine where none is named.

    Raises CounterError. `library_missing` says that this machine has no NVML at all; every other cause means that it
    has one that can't be used: `library_broken`, `driver_not_loaded`, `driver_mismatch`, `no_permission`, `no_gpu`,
    `mig`, `not_supported`, `gpu_lost`, `nvml_error`. None of those is a reason to go on with another counter unasked.
    """
    with ExitStack() as opened:
        counters = [opened.enter_context(closing(NvmlCounter(gpu_uuid))) for gpu_uuid in gpu_uuids or _all_uuids()]
        opened.pop_all()
    return counters


def _all_uuids() -> list[str]:
    _initialise()
    try:
        count = pynvml.nvmlDeviceGetCount()
        uuids = [str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index))) for index in range(count)]
    except pynvml.NVMLError as error:
        raise _counter_error(error, "a GPU") from error
    finally:
        _shut_down()
    if not uuids:
        raise CounterError("no_gpu", "the NVIDIA driver sees no GPU", "in a container, start it with --gpus all")
    return uuids


def _driver_version() -> str:
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        raise _counter_error(error, "NVML") from error


def _initialise() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            raise _library_error() from error
        raise _counter_error(error, "NVML") from error


def _shut_down() -> None:
    """A library that fails at its end has nothing left to give back."""
    with suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()


def _library_error() -> CounterError:
    """Why the library can't be loaded: nvidia-ml-py says "not found" of one that is there and broken, too."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        if not str(error).startswith(f"{LIBRARY}: cannot open shared object file: No such file"):
            return CounterError("library_broken", f"NVML can't be loaded ({error})", "reinstall the NVIDIA driver")
    return CounterError(
        "library_missing",
        f"this machine has no NVML ({LIBRARY})",
        "install the NVIDIA driver, or simulate a GPU: --simulate-gpu h100",
    )


def _counter_error(error: pynvml.NVMLError, subject: str) -> CounterError:
    cause, message, remedy = REMEDIES.get(
        error.value, ("nvml_error", f"NVML fails ({error})", "see what nvidia-smi says")
    )
    return CounterError(cause, f"{subject}: {message}", remedy)
