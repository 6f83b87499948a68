"""Who else computes on a GPU. The driver numbers processes as the host does, and a container may number them otherwise."""

from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")


def foreign(pids: Iterable[int], engine_pid: int, proc: Path = PROC) -> int | None:
    """How many of the processes `pids`, as the driver numbers them, aren't the engine's or its children.

    None where it can't be told: no number leads to the engine, because the driver's numbers mean nothing here (inside of a
    container) or because the engine hasn't begun to compute. `engine_pid` is how the engine numbers itself.
    """
    ours = [_belongs(pid, engine_pid, proc) for pid in pids]
    return ours.count(False) if any(ours) else None


def _belongs(pid: int, engine_pid: int, proc: Path) -> bool:
    """Whether the process or one above it is the engine, by its number here or in its own container."""
    while pid > 0:
        try:
            status = (proc / str(pid) / "status").read_text()
        except OSError:
            return False
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if engine_pid in {pid, int(fields.get("NSpid", str(pid)).split()[-1])}:
            return True
        pid = int(fields["PPid"])
    return False
