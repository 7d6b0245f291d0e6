"""How much room the runtime directory has: strangers' names are written there, and it is in memory."""

from __future__ import annotations

import os
from pathlib import Path

RESERVE_BYTES = 256 * 1024
"""Free bytes below which the table of users takes no more room: new names then have the uids of forgotten ones."""

FULL_BYTES, FULL_FILES = 64 * 1024, 64
"""Free bytes, or inodes, below which the directory counts as full: what is left is for users who had a session."""


def is_short(directory: Path | str) -> bool:
    """Tell whether less than `RESERVE_BYTES` is free."""
    return _free(directory)[0] < RESERVE_BYTES


def is_full(directory: Path | str) -> bool:
    """Tell whether less than `FULL_BYTES` or `FULL_FILES` is free."""
    free_bytes, free_files = _free(directory)
    return free_bytes < FULL_BYTES or free_files < FULL_FILES


def _free(directory: Path | str) -> tuple[float, float]:
    """Ask the file system (statvfs(3)) for free bytes and inodes; one that does not tell has both without end."""
    unlimited = float("inf")
    try:
        status = os.statvfs(directory)
    except OSError:
        return unlimited, unlimited
    return (
        status.f_bavail * status.f_frsize if status.f_blocks else unlimited,
        status.f_favail if status.f_files else unlimited,
    )
