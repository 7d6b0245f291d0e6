"""The peer of a unix socket, as the kernel reports it (unix(7), SO_PEERCRED; proc(5))."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_UCRED = struct.Struct("3i")
_MAX_ANCESTORS = 16


@dataclass(frozen=True)
class Peer:
    """The process that connected.

    Attributes:
        pid: Its process id.
        uid: Its effective uid at the time of connect().
    """

    pid: int
    uid: int


def peer_of(sock: socket.socket) -> Peer:
    """Read the peer's credentials from the kernel.

    Raises:
        OSError: The socket is not a unix socket.
    """
    pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid)


def _parent_and_start(pid: int, proc: Path) -> tuple[int, int] | None:
    """Read a process's parent and its start time in clock ticks (proc(5), stat: fields 4 and 22)."""
    try:
        stat = (proc / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may contain any character, a parenthesis too: fields count from the last one.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return int(fields[1]), int(fields[19])


def start_of(pid: int) -> int | None:
    """Return a process's start time in clock ticks; None if it has ended."""
    found = _parent_and_start(pid, Path("/proc"))
    return None if found is None else found[1]


def session_id(pid: int, supervisor: int, proc: Path = Path("/proc")) -> str | None:
    """Identify the login that a helper works for: the same for all helpers of one connection.

    Args:
        pid: The helper.
        supervisor: The process that started sshd.
        proc: The mount point of proc(5).

    Returns:
        ``PID-START`` of sshd's process for that connection, whose PID is the one in sshd's own syslog lines; None
        if the helper does not descend from a connection of our sshd.
    """
    chain: list[str] = []
    for _ in range(_MAX_ANCESTORS):
        found = _parent_and_start(pid, proc)
        if found is None:
            return None
        parent, start = found
        chain.append(f"{pid}-{start}")
        if parent == supervisor:
            # chain: helper, ..., connection, listener.
            return chain[-2] if len(chain) > 1 else None
        pid = parent
    return None


@asynccontextmanager
async def end_of(pid: int) -> AsyncIterator[asyncio.Event]:
    """Watch for the end of a process (pidfd_open(2)).

    Raises:
        OSError: There is no such process, or no descriptor for it.
    """
    ended = asyncio.Event()
    descriptor = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        yield ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
