"""CPU package energy from the kernel's powercap interface (RAPL, on Intel and AMD)."""

from collections.abc import Hashable
from pathlib import Path

from etameter.counters import Kind, Scope
from etameter.errors import CounterError
from etameter.records import Source

POWERCAP = Path("/sys/class/powercap")

LONGEST_WRAP = 10
"""A decrease is a wrap where the way over the top is at most 1/10 of the range (over 10 s at any package's power);
otherwise the counter was reset, and reading it as a wrap would invent energy."""


class RaplCounter:
    """One CPU package. Its counter wraps every few minutes to hours; `read_mj` goes on over the wrap."""

    scope: Scope = "package"
    kind: Kind = "rapl"
    board_name = "RAPL"
    source: Source = "measured"
    parts: tuple[str, ...] = ()
    blur_ns = 0
    power_w = None

    def __init__(self, domain: Path) -> None:
        """`domain` is a directory such as ``/sys/class/powercap/intel-rapl:0``. Raises CounterError as `read_mj` does."""
        self._energy = domain / "energy_uj"
        self._limits = sorted(domain.glob("constraint_*_power_limit_uw"))
        self.gpu_uuid = f"RAPL-{_text(domain / 'name')}"
        self._range_uj = _number(domain / "max_energy_range_uj")
        self._last_uj = _number(self._energy)
        self._wrapped_uj = 0

    def read_mj(self) -> int:
        """Cumulative millijoules since the counter's own zero, wraps included.

        Raises CounterError (`no_permission`, `read_failed`).
        """
        now_uj = _number(self._energy)
        if now_uj < self._last_uj:
            over_the_top_uj = self._range_uj - self._last_uj + now_uj
            is_wrap = over_the_top_uj * LONGEST_WRAP <= self._range_uj
            self._wrapped_uj = self._wrapped_uj + self._range_uj if is_wrap else 0
        self._last_uj = now_uj
        return (self._wrapped_uj + now_uj) // 1000

    def conditions(self) -> tuple[Hashable, ...]:
        """The package's power limits in microwatts. Raises CounterError."""
        return tuple(_number(limit) for limit in self._limits)

    def throttled(self) -> None:
        """RAPL doesn't tell."""

    def power_limit_w(self) -> float | None:
        """The highest of the package's limits in watts, None where none is set. Raises CounterError."""
        return max((_number(limit) / 1e6 for limit in self._limits), default=0.0) or None

    def processes(self) -> None:
        """Everybody's work is in this counter."""

    def close(self) -> None:
        """Nothing is held open."""


def discover(powercap: Path = POWERCAP) -> list[RaplCounter]:
    """The packages of this machine.

    Raises CounterError: `absent` where the kernel shows no package (most virtual machines), `no_permission` where it
    does and this user may not read it, `read_failed` where reading fails.
    """
    packages = [domain for domain in sorted(powercap.glob("*-rapl:*")) if _text(domain / "name").startswith("package-")]
    if not packages:
        raise CounterError(
            "absent",
            f"no CPU package has an energy counter in {powercap}",
            "run on bare metal with the kernel module intel_rapl_msr, or meter a GPU",
        )
    return [RaplCounter(domain) for domain in packages]


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except PermissionError as error:
        raise CounterError(
            "no_permission", f"{file} may not be read by this user", f"run as root, or: chmod a+r {file}"
        ) from error
    except OSError as error:
        raise CounterError(
            "read_failed", f"reading {file} failed ({error.strerror})", "see the kernel's log: dmesg | grep -i rapl"
        ) from error


def _number(file: Path) -> int:
    return int(_text(file))
