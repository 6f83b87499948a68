"""Sets what a GPU may draw and how fast it may run, and sets it back. The only module that changes anything on a board."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import pynvml

from etameter.counters.nvml import REMEDIES
from etameter.errors import CounterError

T = TypeVar("T")
_MAY_NOT = ("no_permission", "this user may not set limits of the GPU", "run as root, or leave power and clocks out")


@dataclass(frozen=True, slots=True)
class PowerLimit:
    """Of a board, in milliwatts, as NVML has it."""

    gpu_uuid: str
    limit_mw: int
    least_mw: int
    most_mw: int


class Limiter:
    """Asks NVML, which stays initialised until `close`. Every failure is a CounterError."""

    def __init__(self) -> None:
        """Raises CounterError."""
        self._call("NVML", pynvml.nvmlInit)

    def power_limit(self, gpu_uuid: str) -> PowerLimit:
        handle = self._handle(gpu_uuid)
        least_mw, most_mw = self._call(gpu_uuid, pynvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
        return PowerLimit(
            gpu_uuid, self._call(gpu_uuid, pynvml.nvmlDeviceGetPowerManagementLimit, handle), least_mw, most_mw
        )

    def set_power_limit(self, gpu_uuid: str, limit_mw: int) -> None:
        """`limit_mw` lies between those that `power_limit` gives."""
        self._call(gpu_uuid, pynvml.nvmlDeviceSetPowerManagementLimit, self._handle(gpu_uuid), limit_mw)

    def lock_clocks(self, gpu_uuid: str, mhz: int) -> None:
        """The streaming multiprocessors run at this clock, or at the next one that the board has."""
        self._call(gpu_uuid, pynvml.nvmlDeviceSetGpuLockedClocks, self._handle(gpu_uuid), mhz, mhz)

    def free_clocks(self, gpu_uuid: str) -> None:
        """Whoever locked them: NVML doesn't tell whether somebody had, and to what."""
        self._call(gpu_uuid, pynvml.nvmlDeviceResetGpuLockedClocks, self._handle(gpu_uuid))

    def close(self) -> None:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def _handle(self, gpu_uuid: str) -> object:
        return self._call(gpu_uuid, pynvml.nvmlDeviceGetHandleByUUID, gpu_uuid)

    def _call(self, what: str, function: Callable[..., T], *arguments: object) -> T:
        try:
            return function(*arguments)
        except pynvml.NVMLError as error:
            if error.value in {pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_NOT_SUPPORTED}:
                cause, message, remedy = _MAY_NOT
            else:
                unknown = ("nvml_error", f"NVML fails ({error})", "see what nvidia-smi says")
                cause, message, remedy = REMEDIES.get(error.value, unknown)
            raise CounterError(cause, f"{what}: {message}", remedy) from error
