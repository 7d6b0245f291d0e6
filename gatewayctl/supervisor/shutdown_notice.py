"""The notice on users' terminals when the gateway shuts down."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SENTENCE = b"\x1b[0m\r\ngateway: shutting down, and your session with it; log in again in a moment\r\n"
"""Resets the text attributes first, since mosh may have stopped anywhere in its output."""

_PTS_MAJORS = range(136, 144)
"""Device numbers of terminals on /dev/pts (Linux, admin-guide/devices.txt); each has 256 of them."""


def write(sshd: int, pids: Iterable[int], sentence: bytes = SENTENCE) -> None:
    """Write a sentence to the terminals of processes; skip a terminal that would block.

    Args:
        sshd: A process in the terminals' mount namespace, which on a host is not ours.
        pids: The processes.
        sentence: The sentence.
    """
    for number in {number for pid in pids if (number := _terminal(pid)) is not None}:
        with suppress(OSError):
            fd = os.open(f"/proc/{sshd}/root/dev/pts/{number}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                os.write(fd, sentence)
            finally:
                os.close(fd)


def _terminal(pid: int) -> int | None:
    """Return the N of a process's terminal /dev/pts/N, None if it has no such terminal (proc(5), stat, tty_nr)."""
    try:
        device = int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(") ")[2].split()[4])
    except OSError:
        return None
    major, minor = os.major(device), os.minor(device)
    return (major - _PTS_MAJORS.start) * 256 + minor if major in _PTS_MAJORS else None
