"""What one meter or run at a time may have: a run directory, a ledger, a GPU."""

import fcntl
import os
from pathlib import Path
from typing import IO

from etameter.errors import MeterBusy


def hold_lock(path: Path, use: str, remedy: str, *, who: str = "meter") -> IO[str]:
    """Hold a lock while the returned file is open; `use` says what it is held for, `who` what holds it.

    Raises:
        MeterBusy: another one has it, or the file can't be made; `remedy` is what else could be used.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise MeterBusy(f"{path} can't be made ({error.strerror})", f"{remedy}, one that you may write") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise MeterBusy(f"another {who} (pid {holder}) {use}", f"stop it, or {remedy}") from None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file
