"""Child processes that can't be left behind.

Each child leads a session of its own, so that a Ctrl-C in the terminal reaches only the parent, which then stops the
children in its own order, each with everything it started. Should the parent die without a word, the kernel sends its
children SIGTERM.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from etameter.errors import EngineError

from .interrupts import interrupts_held

LINES_KEPT = 400
"""Of a child's output, to tell why it died."""

_ERROR = re.compile(r"(ERROR|error|E|etameter): |\w+Error: ")

# Runs in the child before the program: asks for a SIGTERM at the parent's death (1 is PR_SET_PDEATHSIG), looks whether the
# parent died before that, and unblocks the signals that the parent held back. A shim instead of Popen's preexec_fn, which is
# not safe beside threads.
_SHIM = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


class Child:
    """A running program, its output merged and handed on line by line.

    Args:
        sink: gets every line, from a thread of the child's own; it should not block for long.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        sink: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._sink = sink
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), *argv],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip("\n"))
                if self._sink is not None:
                    try:
                        self._sink(line)
                    except (OSError, ValueError):  # nobody listens any more; the child must not block on a full pipe
                        self._sink = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative after a signal, as `subprocess` has it."""
        return self._process.poll()

    def wait(self) -> int:
        """Waits for the end of the program and of its output, and returns the exit code."""
        code = self._process.wait()
        self.last_words()
        return code

    def last_words(self, timeout_s: float = 2.0) -> list[str]:
        """What a child that ended has said at last; waits for the rest of its output, which its own children may hold open."""
        self._reader.join(timeout_s)
        return list(self.lines)

    def stop(self, grace_s: float) -> None:
        """Asks the child to end, waits `grace_s`, then kills it; in any case kills what it started and left."""
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):  # then it is killed with its group
                self._process.wait(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self.last_words()  # the output ends when the last of the group is gone


def complete(name: str, argv: Sequence[str]) -> None:
    """Runs a program to its end.

    Raises:
        EngineError: it failed; the message is the last error that it printed.
    """
    with interrupts_held():
        child = Child(name, argv, os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    try:
        code = child.wait()
    finally:
        child.stop(grace_s=2.0)
    if code != 0:
        said = [line.strip() for line in child.lines if line.strip()] or ["no output"]
        errors = [line for line in said if _ERROR.match(line)]
        remedy = f"mend that and try again, or run it by hand: {' '.join(argv)[:300]}"
        raise EngineError(f"{name} failed: {(errors or said)[-1]}", remedy)
