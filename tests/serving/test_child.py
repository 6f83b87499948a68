"""A child process is stopped with everything it started, whatever happens to its parent."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from etameter.serving.child import Child
from tests.serving.processes import session_of, wait_until

pytestmark = pytest.mark.unit

WITH_GRANDCHILD = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("up", flush=True)
time.sleep(60)
"""


def _python(code: str, **options: object) -> Child:
    return Child("a child", [sys.executable, "-c", code], os.environ, **options)  # type: ignore[arg-type]


def test_output_of_both_streams_is_handed_on_line_by_line() -> None:
    heard: list[str] = []
    child = _python("import sys; print('out', flush=True); print('err', file=sys.stderr)", sink=heard.append)
    assert child.wait() == 0
    assert heard == ["out\n", "err\n"]
    assert child.last_words() == ["out", "err"]


def test_a_sink_that_fails_does_not_block_the_child() -> None:
    def closed(_line: str) -> None:
        raise BrokenPipeError

    child = _python("print('x' * 70 + '\\n' * 1, end='') or [print('x' * 99) for _ in range(5000)]", sink=closed)
    assert child.wait() == 0


def test_stop_kills_a_child_that_will_not_end_and_its_own_children() -> None:
    child = _python(WITH_GRANDCHILD)
    wait_until(lambda: child.last_words(0.0) == ["up"])
    assert len(session_of(child.pid)) == 2
    child.stop(grace_s=0.2)
    assert child.exit_code == -signal.SIGKILL
    wait_until(lambda: session_of(child.pid) == [])  # killed, but the kernel takes its time


def test_stop_after_the_child_died_kills_what_it_left() -> None:
    child = _python("import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])")
    wait_until(lambda: child.exit_code == 0)
    assert len(session_of(child.pid)) == 1
    child.stop(grace_s=5.0)
    wait_until(lambda: session_of(child.pid) == [])  # killed, but the kernel takes its time


def test_a_program_that_does_not_exist_says_so() -> None:
    child = Child("nothing", ["/nonexistent/program"], os.environ)
    assert child.wait() == 1
    assert child.last_words() == ["/nonexistent/program: No such file or directory"]


def test_the_child_takes_signals_though_its_parent_held_them_back() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        child = _python("import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    child.wait()
    assert child.last_words() == ["set()"]


def test_children_of_a_parent_that_was_killed_get_a_sigterm() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
                import os, sys, time
                from etameter.serving.child import Child
                code = "import time; print('up', flush=True); time.sleep(60)"
                child = Child("sleeper", [sys.executable, "-c", code], os.environ)
                while not child.lines:
                    time.sleep(0.01)
                print(child.pid, flush=True)
                time.sleep(60)
            """),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert session_of(pid) == [pid]
    parent.kill()
    parent.communicate()
    wait_until(lambda: session_of(pid) == [])
