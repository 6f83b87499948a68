"""What NVML says of a GPU beside its energy: how it is set up, what it draws now, and who else uses it.

For a report, not for metering: each question is a call more, and some of them block.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import pynvml

from etameter.counters.nvml import REMEDIES
from etameter.errors import CounterError

T = TypeVar("T")

FIELD_AVERAGE, FIELD_INSTANT = 185, 186
SCOPES = {0: "gpu", 1: "module", 2: "memory"}
"""Of power: the board, the module with its CPU (Grace-Hopper), its memory alone."""

THROTTLES = {
    pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting: "clocks are set by a user",
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "at its power cap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "slowed down by the hardware",
    pynvml.nvmlClocksThrottleReasonSyncBoost: "held back by its sync group",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "too warm for the driver",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "too warm for the hardware",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "braked by the power supply",
}
"""Reasons that are worth a word. Being idle is none."""


@dataclass(frozen=True, slots=True)
class Facts:
    """How a GPU is set up now. None where it doesn't tell."""

    name: str | None
    driver: str
    persistence: bool | None
    mig: bool | None
    power_limit_w: float | None
    power_limit_range_w: tuple[float, float] | None
    clock_mhz: int | None
    max_clock_mhz: int | None
    temperature_c: int | None
    memory_used_bytes: int | None
    throttles: tuple[str, ...]
    processes: tuple[int, ...] | None
    """Process ids of the host, which in a container need not be those of /proc."""
    instant_power_w: dict[str, float]
    """By scope."""


class Informant:
    """Asks one GPU. What it doesn't support is None; every other failure is a CounterError."""

    def __init__(self, gpu_uuid: str, scope: str = "gpu") -> None:
        """Open the GPU, whose energy counter counts for `scope`. Raises CounterError."""
        self.gpu_uuid = gpu_uuid
        self._scope = next(number for number, name in SCOPES.items() if name == scope)
        self._call(pynvml.nvmlInit)
        try:
            self._handle = self._call(pynvml.nvmlDeviceGetHandleByUUID, gpu_uuid)
        except CounterError:
            self.close()
            raise

    def facts(self) -> Facts:
        """Everything but the energy. Raises CounterError."""
        limits_mw = self._ask(pynvml.nvmlDeviceGetPowerManagementLimitConstraints)
        limit_mw = self._ask(pynvml.nvmlDeviceGetEnforcedPowerLimit)
        reasons = self._ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
        persistence = self._ask(pynvml.nvmlDeviceGetPersistenceMode)
        mig = self._ask(pynvml.nvmlDeviceGetMigMode)
        memory = self._ask(pynvml.nvmlDeviceGetMemoryInfo)
        processes = self._ask(pynvml.nvmlDeviceGetComputeRunningProcesses)
        return Facts(
            name=self._ask(pynvml.nvmlDeviceGetName),
            driver=str(self._call(pynvml.nvmlSystemGetDriverVersion)),
            persistence=None if persistence is None else bool(persistence),
            mig=None if mig is None else mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
            power_limit_w=None if limit_mw is None else limit_mw / 1000,
            power_limit_range_w=None if limits_mw is None else (limits_mw[0] / 1000, limits_mw[1] / 1000),
            clock_mhz=self._ask(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
            max_clock_mhz=self._ask(pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_SM),
            temperature_c=self._ask(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
            memory_used_bytes=None if memory is None else int(memory.used),
            throttles=tuple(words for reason, words in THROTTLES.items() if reasons & reason),
            processes=None if processes is None else tuple(process.pid for process in processes),
            instant_power_w=self._power_by_scope(),
        )

    def average_power_w(self) -> float | None:
        """What nvidia-smi shows: on most boards since Ampere a mean over the last second. Raises CounterError."""
        power_mw = self._ask(pynvml.nvmlDeviceGetPowerUsage)
        return None if power_mw is None else power_mw / 1000

    def instant_power_w(self) -> float | None:
        """Power at the sensor's last update, of what the energy counter counts. Raises CounterError."""
        return self._power_w(FIELD_INSTANT, self._scope)

    def close(self) -> None:
        """Give NVML back."""
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def _power_by_scope(self) -> dict[str, float]:
        found = {name: self._power_w(FIELD_INSTANT, scope) for scope, name in SCOPES.items()}
        return {name: power_w for name, power_w in found.items() if power_w is not None}

    def _power_w(self, field: int, scope: int) -> float | None:
        values = self._ask(pynvml.nvmlDeviceGetFieldValues, [(field, scope)])
        if values is None or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
            return None
        return int(values[0].value.uiVal) / 1000

    def _ask(self, function: Callable[..., T], *arguments: object) -> T | None:
        try:
            return self._call(function, self._handle, *arguments)
        except CounterError as error:
            if error.cause in {"not_supported", "no_permission"}:
                return None
            raise

    def _call(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return function(*arguments)
        except pynvml.NVMLError as error:
            unknown = ("nvml_error", f"NVML fails ({error})", "see what nvidia-smi says")
            cause, message, remedy = REMEDIES.get(error.value, unknown)
            raise CounterError(cause, f"{self.gpu_uuid}: {message}", remedy) from error
