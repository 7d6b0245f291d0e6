"""Checks of the free space in the runtime directory, which is in memory and contains strangers' names."""

from __future__ import annotations

import os
from pathlib import Path

RESERVE_BYTES = 256 * 1024
"""Free bytes below which the table of users must not grow: new names then reuse the uids of old ones."""

FULL_BYTES, FULL_FILES = 64 * 1024, 64
"""Free bytes, or inodes, below which the directory counts as full: the rest is for users who have had a session."""


def is_short(directory: Path | str) -> bool:
    """Check whether less than `RESERVE_BYTES` is free."""
    return _free(directory)[0] < RESERVE_BYTES


def is_full(directory: Path | str) -> bool:
    """Check whether less than `FULL_BYTES` or `FULL_FILES` is free."""
    free_bytes, free_files = _free(directory)
    return free_bytes < FULL_BYTES or free_files < FULL_FILES


def _free(directory: Path | str) -> tuple[float, float]:
    """Return the file system's free bytes and inodes (statvfs(3)); infinite if it reports none."""
    unlimited = float("inf")
    try:
        status = os.statvfs(directory)
    except OSError:
        return unlimited, unlimited
    return (
        status.f_bavail * status.f_frsize if status.f_blocks else unlimited,
        status.f_favail if status.f_files else unlimited,
    )
