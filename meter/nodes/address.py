"""Where a sampler listens, and who may come."""

from etameter.errors import ConfigError

DEFAULT_PORT = 9431
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def address_of(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``. Raises ConfigError."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"{text!r} is no address", f"give it as HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    try:
        host.encode("idna")  # as whoever resolves it does, who raises no OSError
    except UnicodeError as error:
        raise ConfigError(
            f"{host!r} is no name of a machine", "give one of up to 63 characters between dots"
        ) from error
    return host, int(port)


def check_token(host: str, token: str) -> None:
    """Raises ConfigError where anybody could speak for the other side."""
    if host not in LOOPBACK and not token:
        raise ConfigError(
            f"{host} is reached by others than this machine, and there is no token",
            "set [meter] node_token, the same on all machines (ETAMETER_METER__NODE_TOKEN)",
        )
