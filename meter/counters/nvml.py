"""GPU energy counters through NVML. The only module that imports pynvml (the nvidia-ml-py distribution)."""

import ctypes
import re
import struct
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any, TypeVar

import pynvml

from etameter.counters import Kind, Scope
from etameter.counters.power import AVERAGED_1_S, INSTANT, PowerIntegral
from etameter.errors import CounterError
from etameter.records import Source, weakest

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

GA100 = re.compile(r"\b(A100|A30|A800)\b")
"""Boards of this chip tell their power as it is, not as a mean."""

WIDE = frozenset({pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG})

UNSUPPORTED = frozenset(
    {pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT}
)
REFUSALS = UNSUPPORTED | {pynvml.NVML_ERROR_NO_PERMISSION}
"""Answers of a driver that is well."""

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
        "this GPU tells neither energy nor power",
        "use a GPU of the Volta generation or newer that isn't virtual",
    ),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: (
        "not_supported",
        "this NVIDIA driver tells neither energy nor power",
        "update the driver",
    ),
    pynvml.NVML_ERROR_UNINITIALIZED: (
        "nvml_gone",
        "NVML has gone",
        "it is started again; if that doesn't help, see what nvidia-smi says",
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


class NvmlDevice:
    """One GPU through NVML, which stays initialised until `close`.

    Calls raise CounterError: `no_permission`, `not_supported`, `gpu_lost`, `driver_not_loaded`, `driver_mismatch`,
    `nvml_gone`, `no_gpu` or `nvml_error`. After any failure but the first two, NVML is given back and the next call starts
    it and looks the GPU up again: so a GPU that returns is found, and so is one whose driver was reloaded, as soon as
    every device of this process has failed once.
    """

    def __init__(self, gpu_uuid: str, *, allow_shared: bool = False) -> None:
        """Open the GPU with this UUID; refuse one that is split by MIG unless `allow_shared`. Raises CounterError, also `mig`."""
        self.gpu_uuid = gpu_uuid
        self._handle: ctypes.c_void_p | None = None
        self._open = False
        try:
            self._start()
            simulated = _driver_version().endswith(SIMULATED_DRIVER)
            shared = self._is_split(allow_shared=allow_shared)
            self.source: Source = "simulated" if simulated else "shared" if shared else "measured"
            self.scope: Scope = "module" if self._has_cpu() else "gpu"
            self.parts = self._mig_uuids() if shared else ()
            self.board_name = str(self._ask_if_supported(pynvml.nvmlDeviceGetName) or "unknown")
        except CounterError:
            self.close()
            raise

    def conditions(self) -> tuple[Hashable, ...]:
        """The enforced power limit in milliwatts and the lasting throttle reasons. Raises CounterError."""
        return self._ask_if_supported(pynvml.nvmlDeviceGetEnforcedPowerLimit), self._lasting_throttles()

    def throttled(self) -> bool | None:
        """Whether a lasting throttle reason holds, None where the GPU doesn't tell. Raises CounterError."""
        throttles = self._lasting_throttles()
        return None if throttles is None else throttles != 0

    def power_limit_w(self) -> float | None:
        """The enforced power limit in watts, None where the GPU doesn't tell. Raises CounterError."""
        limit_mw = self._ask_if_supported(pynvml.nvmlDeviceGetEnforcedPowerLimit)
        return None if limit_mw is None else limit_mw / 1000

    def processes(self) -> tuple[int, ...] | None:
        """Numbers, in the namespace of the driver, of the processes that compute on the GPU. Raises CounterError."""
        try:
            found = self._ask_if_supported(pynvml.nvmlDeviceGetComputeRunningProcesses)
        except CounterError as error:
            if error.cause == "no_permission":
                return None
            raise
        return None if found is None else tuple(int(process.pid) for process in found)

    def close(self) -> None:
        """Give NVML back. Another call would start it again."""
        self._handle = None
        if self._open:
            self._open = False
            _shut_down()

    def _start(self) -> None:
        if not self._open:
            _initialise()
            self._open = True

    def _lasting_throttles(self) -> int | None:
        throttles = self._ask_if_supported(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return None if throttles is None else throttles & LASTING_THROTTLES

    def _is_split(self, *, allow_shared: bool) -> bool:
        modes = self._ask_if_supported(pynvml.nvmlDeviceGetMigMode)
        if modes is None or modes[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return False
        if not allow_shared:
            raise CounterError(
                "mig",
                f"{self.gpu_uuid} is split by MIG, and its counter is that of the whole GPU",
                f"switch MIG off (nvidia-smi -i {self.gpu_uuid} -mig 0), meter another GPU, or meter the whole of it as "
                "source=shared: --allow-shared-gpu",
            )
        return True

    def _mig_uuids(self) -> tuple[str, ...]:
        """What programs on a split GPU call the part that they run on."""

        def uuids(handle: ctypes.c_void_p) -> tuple[str, ...]:
            found = []
            for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                try:
                    found.append(
                        str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)))
                    )
                except pynvml.NVMLError as error:
                    if error.value != pynvml.NVML_ERROR_NOT_FOUND:  # there may be fewer than there is room for
                        raise
            return tuple(found)

        return self._ask_if_supported(uuids) or ()

    def _has_cpu(self) -> bool:
        """On a chip with a CPU (Grace-Hopper) NVML's energy and power are those of both."""
        info = self._ask_if_supported(pynvml.nvmlDeviceGetC2cModeInfoV)
        return info is not None and bool(info.isC2cEnabled)

    def _averages_power(self) -> bool:
        """Whether power usage is a mean over the last second: on Ampere and newer, GA100 apart."""
        architecture = self._ask_if_supported(pynvml.nvmlDeviceGetArchitecture)
        old = architecture is not None and architecture < pynvml.NVML_DEVICE_ARCH_AMPERE
        return not old and GA100.search(self.board_name) is None

    @property
    def _instant_field(self) -> tuple[int, int]:
        """Instantaneous power of what the energy counter covers."""
        module = self.scope == "module"
        scope = pynvml.NVML_POWER_SCOPE_MODULE if module else pynvml.NVML_POWER_SCOPE_GPU
        return pynvml.NVML_FI_DEV_POWER_INSTANT, scope

    def _fields(self, *fields: int | tuple[int, int]) -> list[int | None]:
        """Values of several fields in one call, None where one is not supported."""
        return self._ask(lambda handle: [_value(field) for field in pynvml.nvmlDeviceGetFieldValues(handle, fields)])

    def _ask(self, function: Callable[[ctypes.c_void_p], T]) -> T:
        try:
            if self._handle is None:
                self._start()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.gpu_uuid)
            return function(self._handle)
        except pynvml.NVMLError as error:
            if error.value not in REFUSALS:
                self.close()
            raise _counter_error(error, self.gpu_uuid) from error

    def _ask_if_supported(self, function: Callable[[ctypes.c_void_p], T]) -> T | None:
        try:
            return self._ask(function)
        except CounterError as error:
            if error.cause == "not_supported":
                return None
            raise


class _Request:
    """Two fields that are asked for dozens of times a second. pynvml lays out their structure anew for each call, which takes longer than the call."""

    _ANSWERS = struct.Struct("24xIIQ24xIIQ")
    """Of two c_nvmlFieldValue_t: type, return code and value of each."""

    def __init__(self, first: int, second: tuple[int, int]) -> None:
        self._values = (pynvml.c_nvmlFieldValue_t * 2)()
        self._values[0].fieldId = first
        self._values[1].fieldId, self._values[1].scopeId = second
        self._function = ctypes.CDLL(LIBRARY).nvmlDeviceGetFieldValues  # the library that pynvml has loaded
        self._count = ctypes.c_int(2)

    def ask(self, handle: ctypes.c_void_p) -> tuple[int | None, int | None]:
        """Their values, None where one is not supported. Raises NVMLError."""
        code = self._function(handle, self._count, self._values)
        if code != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(code)
        kind, code, value, second_kind, second_code, second_value = self._ANSWERS.unpack_from(self._values)
        return _told(kind, code, value), _told(second_kind, second_code, second_value)


class NvmlCounter(NvmlDevice):
    """The energy counter of one GPU: millijoules since the driver was loaded, published 10 to 50 times a second."""

    kind: Kind = "nvml"
    blur_ns = 0

    def __init__(self, gpu_uuid: str, *, allow_shared: bool = False) -> None:
        """As NvmlDevice. Raises CounterError: `not_supported` where the GPU has no counter."""
        super().__init__(gpu_uuid, allow_shared=allow_shared)
        self.power_w: float | None = None
        """Instantaneous power as of the last read, None where the GPU doesn't tell it."""
        try:
            energy = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
            by_fields = self._fields(energy)[0] is not None
            self._request = _Request(energy, self._instant_field) if by_fields else None
            self.read_mj()
        except CounterError:
            self.close()
            raise

    def read_mj(self) -> int:
        """Cumulative millijoules since the driver was loaded. Raises CounterError."""
        if self._request is None:
            return int(self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption))
        energy_mj, power_mw = self._ask(self._request.ask)
        if energy_mj is None:
            raise _counter_error(pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), self.gpu_uuid)
        self.power_w = None if power_mw is None else power_mw / 1000
        return energy_mj


class PowerCounter(NvmlDevice):
    """The integral of a GPU's power readings, where it has no energy counter: an estimate."""

    kind: Kind = "power"
    power_w = None

    def __init__(self, gpu_uuid: str, *, allow_shared: bool = False) -> None:
        """As NvmlDevice. Raises CounterError: `not_supported` where the GPU tells no power either."""
        super().__init__(gpu_uuid, allow_shared=allow_shared)
        self.source = weakest(frozenset({self.source, "estimated"}))
        try:
            self._instant = self._fields(self._instant_field)[0] is not None
            averages = not self._instant and self._averages_power()
            self._integral = PowerIntegral(AVERAGED_1_S if averages else INSTANT)
            self.read_mj()
        except CounterError:
            self.close()
            raise

    @property
    def blur_ns(self) -> int:
        return self._integral.reading.blur_ns

    def read_mj(self) -> int:
        """Cumulative millijoules since the first read. Raises CounterError."""
        try:
            power_mw = (
                self._fields(self._instant_field)[0] if self._instant else self._ask(pynvml.nvmlDeviceGetPowerUsage)
            )
            if power_mw is None:
                raise _counter_error(pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), self.gpu_uuid)
        except CounterError:
            self._integral.forget()
            raise
        return self._integral.add(time.monotonic_ns(), int(power_mw))


def open_counter(gpu_uuid: str, *, allow_shared: bool = False) -> NvmlCounter | PowerCounter:
    """The best counter of a GPU: its energy counter, else its instantaneous power, else its power usage. Raises CounterError."""
    try:
        return NvmlCounter(gpu_uuid, allow_shared=allow_shared)
    except CounterError as error:
        if error.cause != "not_supported":
            raise
    return PowerCounter(gpu_uuid, allow_shared=allow_shared)


def discover(gpu_uuids: Sequence[str] = (), *, allow_shared: bool = False) -> list[NvmlCounter | PowerCounter]:
    """The counters of the GPUs `gpu_uuids`, of all GPUs of the machine where none is named.

    Raises CounterError. `library_missing` says that this machine has no NVML at all; every other cause means that it
    has one that can't be used: `library_broken`, `driver_not_loaded`, `driver_mismatch`, `no_permission`, `no_gpu`,
    `mig`, `not_supported`, `gpu_lost`, `nvml_error`. None of those is a reason to go on with another counter unasked.
    """
    with ExitStack() as opened:
        counters = [
            opened.enter_context(closing(open_counter(gpu_uuid, allow_shared=allow_shared)))
            for gpu_uuid in gpu_uuids or _all_uuids()
        ]
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


def _value(field: Any) -> int | None:
    """The value of one field. Raises NVMLError, as a whole call that fails does."""
    return _told(field.valueType, field.nvmlReturn, field.value.ullVal)


def _told(kind: int, code: int, value: int) -> int | None:
    """What 8 bytes mean that came with this type and return code."""
    if code == pynvml.NVML_SUCCESS:
        return value if kind in WIDE else value & 0xFFFFFFFF
    if code in UNSUPPORTED:
        return None
    raise pynvml.NVMLError(code)


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
