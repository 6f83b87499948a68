"""Programs run together: what is started, watched, restarted and stopped."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etameter.errors import EngineError, EtameterError
from etameter.serving.supervisor import Service, Supervisor, reason_of_death
from tests.serving.processes import wait_until, with_environment

pytestmark = pytest.mark.unit

SLEEP = "import time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def mark(request: pytest.FixtureRequest) -> Iterator[str]:
    """An environment variable that all of a test's processes carry; none of them may be left."""
    text = f"ETAMETER_TEST_MARK={request.node.name}-{os.getpid()}-{time.monotonic_ns()}"
    yield text
    assert with_environment(text) == []


def _service(
    name: str, code: str, mark: str, *, vital: bool = False, ready: Callable[[], bool] = lambda: True
) -> Service:
    key, _, value = mark.partition("=")
    return Service(name, [sys.executable, "-c", code], os.environ | {key: value}, vital=vital, grace_s=1.0, ready=ready)


def test_leaving_stops_all_in_reverse_order(mark: str, tmp_path: Path) -> None:
    last_words = f"""
        import pathlib, signal, sys, time
        def end(*_):
            with open({str(tmp_path / "order")!r}, "a") as order: order.write(NAME)
            sys.exit()
        signal.signal(signal.SIGTERM, end)
        pathlib.Path({str(tmp_path)!r}, NAME).touch()
        time.sleep(60)
    """
    with Supervisor(pytest.fail) as supervisor:
        for name in "abc":
            supervisor.start(_service(name, f"NAME = {name!r}\n" + textwrap.dedent(last_words), mark))
        wait_until(lambda: all((tmp_path / name).exists() for name in "abc"))
        assert len(with_environment(mark)) == 3
    assert (tmp_path / "order").read_text() == "cba"


def test_a_service_that_dies_is_started_again_after_waits_that_double(mark: str, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    code = f"import time; open({str(starts)!r}, 'a').write(f'{{time.monotonic()}}\\n'); print('etameter: no room: make some'); raise SystemExit(3)"
    said: list[str] = []
    with Supervisor(said.append, backoff_s=0.2) as supervisor:
        supervisor.start(_service("the meter", code, mark))

        def four_starts() -> bool:
            supervisor.tend()
            return starts.exists() and len(starts.read_text().split()) == 4

        wait_until(four_starts)
    at_s = [float(line) for line in starts.read_text().split()]
    waits_s = [later - earlier for earlier, later in itertools.pairwise(at_s)]
    for wait_s, least_s in zip(waits_s, [0.2, 0.4, 0.8], strict=True):
        assert least_s <= wait_s < least_s + 0.4
    assert (
        said[0]
        == "the meter ended (exit code 3: etameter: no room: make some); serving goes on; it is started again in 0.2 s"
    )
    assert said[1] == "the meter started again"


def test_the_death_of_a_vital_service_names_its_cause(mark: str) -> None:
    code = "import sys; print('INFO starting'); print('ValueError: no such model'); print('RuntimeError: Engine core initialization failed.'); sys.exit(1)"
    with Supervisor(pytest.fail) as supervisor:
        supervisor.start(_service("a neighbour", SLEEP, mark))
        vital = _service("vLLM", code, mark, vital=True, ready=lambda: False)
        supervisor.start(vital)
        with pytest.raises(EngineError) as caught:
            supervisor.wait_ready(vital, timeout_s=10.0)
    assert str(caught.value) == "vLLM ended with exit code 1: ValueError: no such model"


def test_what_ends_with_a_line_of_ours_before_it_is_ready_ends_with_that_line(mark: str) -> None:
    code = "print('etameter: another meter runs (process 7): stop it'); raise SystemExit(2)"
    with Supervisor(pytest.fail) as supervisor:
        meter = _service("the meter", code, mark, ready=lambda: False)
        supervisor.start(meter)
        with pytest.raises(EtameterError) as caught:
            supervisor.wait_ready(meter, timeout_s=10.0)
    assert str(caught.value) == "another meter runs (process 7): stop it"


def test_what_never_gets_ready_is_given_up(mark: str) -> None:
    with Supervisor(pytest.fail) as supervisor:
        slow = _service("the meter", SLEEP, mark, ready=lambda: False)
        supervisor.start(slow)
        with pytest.raises(EngineError, match="the meter was not ready after 0 s"):
            supervisor.wait_ready(slow, timeout_s=0.3)


SUPERVISED = """
    import os, sys, time
    from etameter.serving.interrupts import interruptible
    from etameter.serving.supervisor import Service, Supervisor, reason_of_death
    stubborn = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);" \\
               "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    try:
        with interruptible(), Supervisor(print) as supervisor:
            for name in ("board", "meter", "engine"):
                supervisor.start(Service(name, [sys.executable, "-c", stubborn], os.environ, vital=True, grace_s=0.1))
            print("started", flush=True)
            while True:
                supervisor.tend()
                time.sleep(0.01)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize(
    ("number", "after_s"),
    [(signal.SIGINT, 0.1), (signal.SIGINT, 0.15), (signal.SIGINT, 0.2), (signal.SIGTERM, 0.25), (signal.SIGHUP, 0.3)],
)
def test_an_interrupt_at_any_moment_leaves_nothing(mark: str, number: signal.Signals, after_s: float) -> None:
    key, _, value = mark.partition("=")
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SUPERVISED)], env=os.environ | {key: value}, stderr=subprocess.DEVNULL
    )
    time.sleep(after_s)
    for _ in range(3):  # an impatient user
        parent.send_signal(number)
        time.sleep(0.05)
    parent.wait(10.0)


def test_ctrl_c_ends_with_130(mark: str) -> None:
    key, _, value = mark.partition("=")
    command = [sys.executable, "-c", textwrap.dedent(SUPERVISED)]
    parent = subprocess.Popen(command, env=os.environ | {key: value}, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "started\n"
    wait_until(lambda: len(with_environment(mark)) == 7)
    parent.send_signal(signal.SIGINT)
    parent.communicate(timeout=60.0)
    assert parent.returncode == 130


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (["(APIServer pid=3) ERROR 11-21 23:16:01 [core.py:100] ValueError: too long", "[rank0]: leaked semaphore"], "ValueError: too long"),
        (["OSError: no model 'x' on the hub", "If this is a private repository, log in"], "OSError: no model 'x' on the hub"),
        (["usage: api_server.py [-h]", "api_server.py: error: unrecognized arguments: --nonsense"], "api_server.py: error: unrecognized arguments: --nonsense"),
        (["pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", "  Value error, too long [type=value_error]"], "ValidationError: Value error, too long"),
        (["Killed", ""], "Killed"),
        ([], "it said nothing"),
    ],
)  # fmt: skip
def test_the_reason_is_the_last_line_that_names_an_error(log: list[str], reason: str) -> None:
    assert reason_of_death(log) == reason
