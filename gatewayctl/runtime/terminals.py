"""The terminals of sessions, which are in sshd's mount namespace."""

from __future__ import annotations

import os
from pathlib import Path

_PTS_MAJORS = range(136, 144)
"""Device numbers of terminals on /dev/pts (Linux, admin-guide/devices.txt); each has 256 of them."""


def number_of(pid: int) -> int | None:
    """Return the N of a process's terminal /dev/pts/N, None if it has no such terminal (proc(5), stat, tty_nr)."""
    try:
        device = int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(") ")[2].split()[4])
    except OSError:
        return None
    major, minor = os.major(device), os.minor(device)
    return (major - _PTS_MAJORS.start) * 256 + minor if major in _PTS_MAJORS else None


def path_of(sshd: int, number: int) -> Path:
    """Return the path of a terminal, from outside of its mount namespace.

    Args:
        sshd: A process in that namespace.
        number: The N of /dev/pts/N.
    """
    return Path(f"/proc/{sshd}/root/dev/pts/{number}")


def last_input_s(sshd: int, pid: int) -> float | None:
    """Return when a process's terminal was last read from, as w(1) does; the kernel counts in steps of 8 s.

    Args:
        sshd: A process in the terminal's mount namespace.
        pid: The process.

    Returns:
        Seconds since the epoch; None if it has no terminal.
    """
    number = number_of(pid)
    try:
        return None if number is None else path_of(sshd, number).stat().st_atime
    except OSError:
        return None
