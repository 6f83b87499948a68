"""Looks at the process table, as a user with `ps` would."""

import time
from pathlib import Path


def session_of(pid: int) -> list[int]:
    """Every process, dead ones that nobody reaped left out, whose session leader is `pid`."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:  # it ended meanwhile
            continue
        state, _, _, session = rest.split()[:4]
        if int(session) == pid and state not in "ZX":
            members.append(int(name.split()[0]))
    return members


def with_environment(mark: str) -> list[int]:
    """Every process that has `mark` in its environment: all that a test started, whatever its parent or session."""
    members = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environ.read_bytes():
                members.append(int(environ.parent.name))
        except OSError:
            continue
    return members


def wait_until(true: object, timeout_s: float = 10.0) -> None:
    """Waits until `true()` holds; fails the test if it never does."""
    assert callable(true)
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.02)
