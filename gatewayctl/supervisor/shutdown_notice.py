"""The notice on users' terminals when the gateway shuts down."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gatewayctl.runtime import terminals

if TYPE_CHECKING:
    from collections.abc import Iterable

SHUTDOWN = "shutting down, and your session with it; log in again in a moment"

_PLAIN = "\x1b[0m"
"""Resets the text attributes, since mosh may have stopped anywhere in its output."""

_MAIN_SCREEN, _OTHER_SCREEN = "\x1b[?1049l", "\x1b[?1049h"
"""xterm's screens (ctlseqs, DEC private mode 1049). mosh-client draws on the other one, which vanishes when it ends."""


def write(sshd: int, pids: Iterable[int], sentence: str = SHUTDOWN) -> None:
    """Write a sentence to the terminals of processes, where it stays when they end; skip a terminal that would block.

    Args:
        sshd: A process in the terminals' mount namespace, which on a host is not ours.
        pids: The processes.
        sentence: The sentence; characters that are not printable are replaced.
    """
    text = "".join(character if character.isprintable() else "?" for character in sentence)
    line = f"{_PLAIN}\r\ngateway: {text}\r\n"
    seen: dict[int, bool] = {}
    for pid in pids:
        if (number := terminals.number_of(pid)) is not None:
            seen[number] = seen.get(number, False) or _is_mosh_client(pid)
    for number, is_mosh in seen.items():
        with suppress(OSError):
            fd = os.open(terminals.path_of(sshd, number), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                os.write(fd, (f"{_MAIN_SCREEN}{line}{_OTHER_SCREEN}" if is_mosh else line).encode())
            finally:
                os.close(fd)


def _is_mosh_client(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").rstrip("\n") == "mosh-client"
    except OSError:
        return False
