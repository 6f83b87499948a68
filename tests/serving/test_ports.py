"""A port is refused before anything is started on it, and belongs to one etameter at a time."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from etameter.errors import EngineError
from etameter.serving import ports

pytestmark = pytest.mark.unit


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_port_that_something_listens_on_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0", "localhost"):
            with pytest.raises(EngineError, match=f"port {port} is in use .*: stop what listens there, or choose"):
                ports.check(host, port, "choose another with --port")
    ports.check("127.0.0.1", port, "choose another with --port")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(EngineError, match=r"no\.such\.host\.invalid is no address to listen on"):
        ports.check("no.such.host.invalid", 8000, "choose another with --port")


def test_a_port_is_claimed_by_one_process_at_a_time_and_free_when_it_is_gone() -> None:
    port = _free()
    code = f"import sys; from etameter.serving import ports; held = ports.claim('127.0.0.1', {port}, ''); print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(EngineError, match=f"port {port} is in use .by another etameter"):
        ports.claim("127.0.0.1", port, "choose another")
    other.kill()
    other.communicate()
    ports.claim("127.0.0.1", port, "choose another").close()


def test_what_can_not_be_listened_on_stays_unclaimed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(EngineError, match="Address already in use"):
            ports.claim("127.0.0.1", port, "choose another")
    ports.claim("127.0.0.1", port, "choose another").close()


def test_a_preferred_port_that_is_taken_is_replaced() -> None:
    preferred = _free()
    port, first = ports.claim_free("127.0.0.1", preferred)
    with first:
        assert port == preferred
        other, second = ports.claim_free("127.0.0.1", preferred)
        with second:
            assert other != preferred


def test_a_ring_is_claimed_under_any_of_its_names_and_others_stay_free(tmp_path: Path) -> None:
    with ports.claim_ring(tmp_path / "etameter-a.ring", "name another"):
        with pytest.raises(
            EngineError, match=r"etameter-a\.ring is the ring of another .*: stop that one, or name another"
        ):
            ports.claim_ring(tmp_path / "x" / ".." / "etameter-a.ring", "name another")
        ports.claim_ring(tmp_path / "etameter-b.ring", "name another").close()
    ports.claim_ring(tmp_path / "etameter-a.ring", "name another").close()
