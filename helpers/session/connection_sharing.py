"""Chooses the connection that a session's ssh shares: a free and live one of the user's, or a new one.

Sessions use a connection one after the other, never two at once: if a channel request is refused, or cancelled before
the answer, the master ends with all its channels (OpenSSH 9.2, nchan.c: "no remote_id").

ssh's own ``ControlMaster=auto`` waits forever on a dead connection, and writes errors to the user's standard error if
sessions begin together or the remote refuses another channel (OpenSSH 9.2, mux.c). So each master has its own name, and
a channel is opened over it as a test before it is used.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PATIENCE_S = 1.0
"""Longest time, in seconds, that a session may spend on connections that do not answer."""

MAKING_S = 30.0
"""Seconds that ssh may take until its connection can be shared; longer than its ConnectTimeout."""

MAX_AGE_S = 3600.0
"""Seconds after which a connection takes no new session, so that the remote authenticates the gateway again."""

PERSIST_S = 60
"""Seconds for which a connection waits for another session after its last."""

SHARED = "ControlMaster=no"
"""The option of a session that uses another's connection."""

# Short: with the 17 characters that ssh adds temporarily it must fit into a socket's path, 107 bytes.
_MASTER = re.compile(r"m([0-9]+)")
_SESSION = re.compile(r"s([0-9]+)-([0-9]+)")

# OpenSSH, PROTOCOL.mux: hello of version 4, then request 1 for proxy mode, in which each message of the connection
# protocol is preceded by its length and a zero.
_HELLO = struct.pack(">III", 8, 1, 4)
_PROXY = struct.pack(">III", 8, 0x1000000F, 1)
# RFC 4254, section 5.1: SSH_MSG_CHANNEL_OPEN and its answers.
_OPEN = b"\0\x5a" + struct.pack(">I7sIII", 7, b"session", 0, 0x8000, 0x4000)
_CONFIRMATION, _FAILURE = b"\0\x5b", b"\0\x5c"
_MAX_FRAME_BYTES = 64 * 1024


def options(home: str, pid: int) -> list[str]:
    """Choose the connection of one session.

    Args:
        home: The user's private directory.
        pid: The process that becomes ssh.

    Returns:
        ssh's options; none if the session is to make a connection of its own.
    """
    deadline = time.monotonic() + PATIENCE_S
    try:
        while (master := _take_place(home, pid, deadline)) not in {None, pid}:
            path = f"{home}/m{master}"
            try:
                if _has_room(path, deadline):
                    return [SHARED, f"ControlPath={path}"]
            except TimeoutError:
                deadline = 0.0
            except OSError:
                pass
            # The master is dead, or is ending.
            _remove(path)
            _remove(f"{home}/s{master}-{pid}")
    except OSError:
        return []
    return [] if master is None else ["ControlMaster=yes", f"ControlPersist={PERSIST_S}", f"ControlPath={home}/m{pid}"]


def _take_place(home: str, pid: int, deadline: float) -> int | None:
    """Take a connection that no session uses.

    Returns:
        The master's number: ``pid`` for a new one; None if another session is making one.
    """
    with _locked(home, deadline):
        names = os.listdir(home)  # noqa: PTH208 - pathlib costs 4 ms
        free = {master for name in names if (master := _master(home, name))}
        making = False
        for match in filter(None, map(_SESSION.fullmatch, names)):
            master, session = int(match[1]), int(match[2])
            path = f"{home}/{match[0]}"
            if not _lives(session):
                _remove(path)
                continue
            free.discard(master)
            if master == session and f"m{master}" not in names and time.time() - os.lstat(path).st_mtime < MAKING_S:
                making = True
        if free and time.monotonic() < deadline:
            chosen = min(free)  # always the lowest, so that idle masters expire
        elif making:
            return None
        else:
            chosen = pid
            _remove(f"{home}/m{pid}")  # left by a process with the same pid
        with open(f"{home}/s{chosen}-{pid}", "wb"):  # noqa: PTH123 - the same
            return chosen


@contextmanager
def _locked(home: str, deadline: float) -> Iterator[None]:
    directory = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.005)
        yield
    finally:
        os.close(directory)


def _master(home: str, name: str) -> int | None:
    """Return the number of a master that may take sessions; None if the file is not one."""
    match = _MASTER.fullmatch(name)
    if match is None:
        return None
    status = os.lstat(f"{home}/{name}")
    usable = stat.S_ISSOCK(status.st_mode) and time.time() - status.st_mtime < MAX_AGE_S
    return int(match[1]) if usable else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - pathlib costs 4 ms


def _has_room(path: str, deadline: float) -> bool:
    """Open a channel over a master's connection, and close it: one round trip.

    Raises:
        OSError: The remote does not answer.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.connect(path)
        sock.sendall(_HELLO + _PROXY + struct.pack(">I", len(_OPEN)) + _OPEN)
        while True:
            (length,) = struct.unpack(">I", _read(sock, 4, deadline))
            if length > _MAX_FRAME_BYTES:
                raise ConnectionError
            frame = _read(sock, length, deadline)
            if frame[:2] in {_CONFIRMATION, _FAILURE}:
                return frame[:2] == _CONFIRMATION


def _read(sock: socket.socket, count: int, deadline: float) -> bytes:
    got = b""
    while len(got) < count:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = sock.recv(count - len(got))
        if not chunk:
            raise ConnectionError
        got += chunk
    return got
