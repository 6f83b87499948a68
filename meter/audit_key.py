"""What an audit's request bears, so that no client's is taken for one: a random word in the run directory, which only its user can read."""

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from etameter import config
from etameter.errors import ConfigError

HEADER: Final = "X-Etameter-Audit"
LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def made(path: Path) -> str:
    """The key, which whoever comes first draws. Raises ConfigError where none can be kept there."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)  # whole, or not at all
        fresh.unlink()
        return path.read_text()
    except OSError as error:
        remedy = "set ETAMETER_RUN to a directory that you own"
        raise ConfigError(f"the key of audits, {path}, can't be kept ({error.strerror})", remedy) from error


def of_server(url: str) -> str | None:
    """The key, for a server of this machine; others are not told. None, too, where there is none."""
    if urlsplit(url).hostname not in LOCAL:
        return None
    try:
        return config.audit_key_path().read_text()
    except OSError:
        return None
