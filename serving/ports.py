"""What one server at a time may have: a TCP port, and the ring of an engine's name.

vLLM binds its port seconds after its start, and lets others bind it too (SO_REUSEPORT): two servers on one port share its connections
without a word. So a port is claimed first, by a name that only one process of this network can hold; the kernel drops
it with the process. A ring is claimed alike: a second engine of the name would put its own in the first one's place.
"""

import hashlib
import socket
from contextlib import closing
from pathlib import Path

from etameter.errors import EngineError


def check(host: str, port: int, remedy: str) -> None:
    """Raises EngineError where nothing could listen on host:port."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise EngineError(
            f"{host} is no address to listen on: {error.strerror}", "choose another with --host"
        ) from error
    family, kind, protocol, _, where = found[0]
    with closing(socket.socket(family, kind, protocol)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            raise EngineError(
                f"port {port} is in use ({error.strerror})", f"stop what listens there, or {remedy}"
            ) from error


def claim(host: str, port: int, remedy: str) -> socket.socket:
    """Keeps every other etameter from the port for as long as the returned socket is open.

    Raises:
        EngineError: another etameter has it, or nothing could listen there.
    """
    held = _hold(
        f"port-{port}", f"port {port} is in use (by another etameter)", f"stop what listens there, or {remedy}"
    )
    try:
        check(host, port, remedy)
    except EngineError:
        held.close()
        raise
    return held


def claim_ring(path: Path, remedy: str) -> socket.socket:
    """Keeps every other `etameter serve` from the ring for as long as the returned socket is open. Raises EngineError."""
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    return _hold(f"ring-{name}", f"{path} is the ring of another etameter serve", f"stop that one, or {remedy}")


def _hold(name: str, message: str, remedy: str) -> socket.socket:
    """Holds a name in the kernel; raises EngineError where another process has it."""
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(f"\0etameter-{name}")
    except OSError as error:
        held.close()
        raise EngineError(message, remedy) from error
    return held


def claim_free(host: str, preferred: int) -> tuple[int, socket.socket]:
    """Claims the preferred port, or any free one where it is taken.

    Raises:
        EngineError: no port is free.
    """
    try:
        return preferred, claim(host, preferred, "")
    except EngineError:
        with closing(socket.create_server((host, 0))) as probe:
            port = int(probe.getsockname()[1])
        return port, claim(host, port, "try again")
