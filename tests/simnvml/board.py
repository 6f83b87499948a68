"""Boards for the stand-in NVML: builds the library, lays a board out in shared memory, knows the exact truth.

A test in this process::

    with Board(tmp_path / "board", gpus=2, energy=Sensor(period_ns=20_000_000)) as board:
        board.set_power_w(0, [(0, 100.0), (5_000_000_000, 400.0)])
        pynvml.nvmlInit()

nvidia-ml-py asks the loader for ``libnvidia-ml.so.1`` by name. The loader answers with a library of that soname that is
loaded already, so `load` before the first nvmlInit is enough in this process, and ``LD_LIBRARY_PATH`` (`environment`)
is in a new one. Once loaded the stand-in stays for the life of the process; without a board it answers as NVML does
without a driver. What a machine without NVML does must therefore be tested in a process of its own.
"""

import ctypes
import hashlib
import mmap
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import pynvml

SONAME = "libnvidia-ml.so.1"
SOURCES = Path(__file__).parent
BOARD_VARIABLE = "SIMNVML_BOARD"
FOREVER_NS = 2**63

_MAX_GPUS, _MAX_SEGMENTS, _MAX_FAULTS, _MAX_PROCESSES, _MAX_PARTS, _TEXT = 16, 16384, 64, 8, 8, 96
_MAGIC = int.from_bytes(b"SIMNVML1", "little")


class Call(IntFlag):
    """What faults may be aimed at."""

    INIT = 1 << 0
    SYSTEM = 1 << 1
    HANDLE = 1 << 2
    ENERGY = 1 << 3
    POWER = 1 << 4
    INSTANT = 1 << 5
    LIMITS = 1 << 6
    CLOCKS = 1 << 7
    TEMPERATURE = 1 << 8
    MODES = 1 << 9
    PROCESSES = 1 << 10
    MEMORY = 1 << 11
    SET = 1 << 12
    DEVICE = HANDLE | ENERGY | POWER | INSTANT | LIMITS | CLOCKS | TEMPERATURE | MODES | PROCESSES | MEMORY | SET


class _Kind(IntEnum):
    ERROR = 1
    STALL = 2
    RESET = 3
    FREEZE = 4


@dataclass(frozen=True)
class Sensor:
    """How a sensor shows the truth: at phase + k·period ± jitter it publishes what held `delay_ns` before."""

    period_ns: int = 100_000_000
    window_ns: int = 0
    """Power: the mean over this long, 0 is the instant. Part-time counter: what it sees at the end of each period."""
    phase_ns: int = 0
    delay_ns: int = 0
    jitter_ns: int = 0
    """Uniform, ±; less than half a period."""
    latency_ns: int = 0
    """Each call takes so long."""
    gain: float = 1.0
    noise: int = 0
    """± mJ or mW, uniform and drawn for each update. A counter with more noise than a period's energy can go down."""
    quantum: int = 1
    """mJ or mW."""
    part_time: bool = False
    seed: int = 0


INTEGRAL = Sensor()
PART_TIME = Sensor(window_ns=25_000_000, part_time=True)
AVERAGE_POWER = Sensor(window_ns=1_000_000_000)
INSTANT_POWER = Sensor()


class _Fault(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("calls", ctypes.c_uint32),
        ("gpu", ctypes.c_int32),
        ("code", ctypes.c_uint32),
        ("from_ns", ctypes.c_uint64),
        ("until_ns", ctypes.c_uint64),
        ("stall_ns", ctypes.c_uint64),
    ]


class _Sensor(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("period_ns", "window_ns", "phase_ns")),
        *((name, ctypes.c_uint64) for name in ("delay_ns", "jitter_ns", "latency_ns")),
        ("gain", ctypes.c_double),
        ("noise", ctypes.c_uint64),
        ("quantum", ctypes.c_uint64),
        ("part_time", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
    ]


class _Segment(ctypes.Structure):
    _fields_ = [("start_ns", ctypes.c_uint64), ("_spent_pj", ctypes.c_uint64 * 2), ("power_mw", ctypes.c_uint64)]

    def __init__(self, start_ns: int, spent_pj: int, power_mw: int) -> None:
        super().__init__(start_ns, divmod(spent_pj, 1 << 64)[::-1], power_mw)

    @property
    def spent_pj(self) -> int:
        """64 bits are too few once a machine has been up for some hours: powers are often told from the boot on."""
        low, high = map(int, self._spent_pj)
        return low + (high << 64)


class Gpu(ctypes.Structure):
    """One GPU's memory. Figures may be written at any time; energy and power follow from `Board.set_power_w`."""

    _fields_ = [
        ("uuid", ctypes.c_char * _TEXT),
        ("name", ctypes.c_char * _TEXT),
        *((name, ctypes.c_uint64) for name in ("base_mj", "memory_total", "memory_used", "throttle_reasons")),
        *((f"{name}_limit_mw", ctypes.c_uint32) for name in ("power", "enforced", "least", "most")),
        ("clocks_mhz", ctypes.c_uint32 * 4),
        ("max_clocks_mhz", ctypes.c_uint32 * 4),
        *((name, ctypes.c_uint32) for name in ("temperature_c", "persistence", "mig_current", "mig_pending")),
        *((name, ctypes.c_uint32) for name in ("architecture", "c2c", "cpu_mw", "part_count")),
        ("parts", (ctypes.c_char * _TEXT) * _MAX_PARTS),
        ("locked_mhz", ctypes.c_uint32),
        ("process_count", ctypes.c_uint32),
        ("process_pid", ctypes.c_uint32 * _MAX_PROCESSES),
        ("process_bytes", ctypes.c_uint64 * _MAX_PROCESSES),
        ("energy", _Sensor),
        ("power", _Sensor),
        ("instant", _Sensor),
        ("segment_count", ctypes.c_uint64),
        ("segments", _Segment * _MAX_SEGMENTS),
    ]


class _Header(ctypes.Structure):
    _fields_ = [
        ("magic", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("board_bytes", "gpu_bytes", "gpu_count", "fault_count")),
        ("driver", ctypes.c_char * _TEXT),
        ("faults", _Fault * _MAX_FAULTS),
    ]


class Board:
    """A machine with `gpus` GPUs, idle at 0 W until told otherwise, in the shared-memory file `path`."""

    def __init__(
        self,
        path: Path,
        gpus: int = 1,
        energy: Sensor = INTEGRAL,
        power: Sensor = AVERAGE_POWER,
        instant: Sensor = INSTANT_POWER,
        driver: str = "560.35.03-sim",
        base_mj: int = 1_000_000_000,
    ) -> None:
        assert 0 <= gpus <= _MAX_GPUS
        library()  # built before a schedule is laid out, which starts from now
        self.path = path
        size = ctypes.sizeof(_Header) + gpus * ctypes.sizeof(Gpu)
        with path.open("wb+") as file:
            file.truncate(size)
            self._memory = mmap.mmap(file.fileno(), size)
        self._header = _Header.from_buffer(self._memory)
        self.gpus = [
            Gpu.from_buffer(self._memory, ctypes.sizeof(_Header) + index * ctypes.sizeof(Gpu)) for index in range(gpus)
        ]
        for index, gpu in enumerate(self.gpus):
            gpu.uuid = f"GPU-51351351-0000-4000-8000-{index:012x}".encode()
            gpu.name = b"Simulated H100 80GB HBM3"
            gpu.base_mj = base_mj
            gpu.memory_total, gpu.memory_used = 80 << 30, 2 << 30
            gpu.power_limit_mw = gpu.enforced_limit_mw = gpu.most_limit_mw = 700_000
            gpu.least_limit_mw = 200_000
            gpu.clocks_mhz[:] = gpu.max_clocks_mhz[:] = (1980, 1980, 2619, 1545)
            gpu.temperature_c, gpu.persistence = 40, 1
            gpu.architecture = pynvml.NVML_DEVICE_ARCH_HOPPER
            for name, sensor in (("energy", energy), ("power", power), ("instant", instant)):
                self.set_sensor(index, name, sensor)
        self._header.driver = driver.encode()
        self._header.board_bytes, self._header.gpu_bytes = ctypes.sizeof(_Header), ctypes.sizeof(Gpu)
        self._header.gpu_count = gpus
        self._header.magic = _MAGIC

    def __enter__(self) -> Self:
        """Let NVML in this process be this board."""
        load()
        os.environ[BOARD_VARIABLE] = str(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.environ.pop(BOARD_VARIABLE, None)
        while True:  # NVML counts its users; a board that somebody still uses would be the next test's, too
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError:
                break

    def environment(self) -> dict[str, str]:
        """What a new process needs in its environment to see this board."""
        return {"LD_LIBRARY_PATH": str(library().parent), BOARD_VARIABLE: str(self.path)}

    def uuid(self, gpu: int = 0) -> str:
        return bytes(self.gpus[gpu].uuid).decode()

    def set_sensor(self, gpu: int, name: str, sensor: Sensor) -> None:
        """`name` is energy, power or instant."""
        assert 2 * sensor.jitter_ns < sensor.period_ns
        assert not sensor.part_time or 0 < sensor.window_ns <= sensor.period_ns
        figures = [getattr(sensor, field) for field, *_ in _Sensor._fields_]
        setattr(self.gpus[gpu], name, _Sensor(*figures))

    def set_power_w(self, gpu: int, steps: Iterable[tuple[int, float]]) -> None:
        """Append (CLOCK_MONOTONIC ns, W) steps; each holds until the next, the last for ever. Whole milliwatts."""
        memory = self.gpus[gpu]
        count = memory.segment_count
        for start_ns, power_w in steps:
            spent_pj = 0
            assert count < _MAX_SEGMENTS
            if count:
                last = memory.segments[count - 1]
                assert start_ns >= last.start_ns
                spent_pj = last.spent_pj + (start_ns - last.start_ns) * last.power_mw
            memory.segments[count] = _Segment(start_ns, spent_pj, round(power_w * 1000))
            count += 1
        memory.segment_count = count  # all at once: a reader that saw some of them would see the counter go back

    def truth_j(self, gpu: int, start_ns: int, end_ns: int) -> Fraction:
        """What the GPU really spent between two instants, exactly."""
        memory = self.gpus[gpu]
        segments = memory.segments[: memory.segment_count]
        spent_pj = 0
        for index, segment in enumerate(segments):
            until_ns = segments[index + 1].start_ns if index + 1 < len(segments) else end_ns
            spent_ns = max(0, min(end_ns, until_ns) - max(start_ns, segment.start_ns))
            spent_pj += spent_ns * segment.power_mw
        return Fraction(spent_pj, 10**12)

    def fail(self, calls: Call, code: int, gpu: int = -1, from_ns: int = 0, until_ns: int = FOREVER_NS) -> None:
        """Calls of these classes answer the NVML error `code`. `gpu` -1 is every GPU."""
        self._fault(_Kind.ERROR, calls, gpu, from_ns, until_ns, code=code)

    def stall(self, calls: Call, stall_ns: int, gpu: int = -1, from_ns: int = 0, until_ns: int = FOREVER_NS) -> None:
        """Calls that begin in the window block for `stall_ns` and then answer with the value of that moment."""
        self._fault(_Kind.STALL, calls, gpu, from_ns, until_ns, stall_ns=stall_ns)

    def reset_counter(self, at_ns: int, gpu: int = -1) -> None:
        """The energy counter starts again at zero."""
        self._fault(_Kind.RESET, Call.ENERGY, gpu, at_ns, FOREVER_NS)

    def freeze(self, calls: Call, from_ns: int, until_ns: int = FOREVER_NS, gpu: int = -1) -> None:
        """The sensors show in the window what they showed when it began."""
        self._fault(_Kind.FREEZE, calls, gpu, from_ns, until_ns)

    def lose(self, gpu: int, from_ns: int = 0, until_ns: int = FOREVER_NS) -> None:
        """The GPU falls off the bus, and comes back."""
        self.fail(Call.DEVICE, pynvml.NVML_ERROR_GPU_IS_LOST, gpu, from_ns, until_ns)

    def heal(self) -> None:
        """End all faults; a counter that was reset shows its old epoch again."""
        self._header.fault_count = 0

    def _fault(
        self, kind: _Kind, calls: Call, gpu: int, from_ns: int, until_ns: int, code: int = 0, stall_ns: int = 0
    ) -> None:
        count = self._header.fault_count
        assert count < _MAX_FAULTS
        self._header.faults[count] = _Fault(kind, calls, gpu, code, from_ns, until_ns, stall_ns)
        self._header.fault_count = count + 1


def library() -> Path:
    """The stand-in, built on first use and after a change of its sources; several processes may ask at once."""
    looked_up = sorted(set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', Path(pynvml.__file__).read_text())))
    stubs = "".join(f"__attribute__((weak)) int {name}(void) {{ return 3; }}\n" for name in looked_up)
    sources = [SOURCES / "simnvml.c", SOURCES / "board.h"]
    digest = hashlib.sha256(stubs.encode())
    for source in sources:
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "etameter" / "simnvml"
    built = cache / digest.hexdigest()[:16] / SONAME
    if built.exists():
        return built
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        place = Path(scratch) / "built"
        place.mkdir()
        (place / "stubs.c").write_text(stubs)
        subprocess.run(
            ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread",
             f"-Wl,-soname,{SONAME}", "-o", place / SONAME, sources[0], place / "stubs.c"],
            check=True,
        )  # fmt: skip
        built.parent.mkdir(exist_ok=True)
        (place / SONAME).replace(built)
    return built


def load() -> None:
    """Let nvidia-ml-py find the stand-in in this process. Fails where a real NVML was loaded before."""
    ctypes.CDLL(str(library()), mode=ctypes.RTLD_GLOBAL)
    loaded = Path("/proc/self/maps").read_text()
    others = {line.split()[-1] for line in loaded.splitlines() if SONAME in line} - {str(library())}
    assert not others, f"another NVML is loaded already: {others}"


def now_ns() -> int:
    """The clock that boards run by."""
    return time.monotonic_ns()
