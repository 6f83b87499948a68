"""Processes of others."""

from pathlib import Path


def runs(process_id: int) -> bool:
    """What has ended and nobody has waited for has no command line any more."""
    try:
        return bool(Path(f"/proc/{process_id}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False
