"""Relays sshd's syslog messages to our own stream, one line for each.

sshd's ``-e`` would be simpler, but would let clients forge lines: on standard error a newline in a user name stays a
newline (OpenSSH 9.2, log.c: LOG_STDERR_VIS has no VIS_NL), while for syslog it is escaped. A syslog message is also one
complete datagram, and includes the sender's pid, with which the broker's ``sid`` begins.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path

MAX_MESSAGE_BYTES = 8192
"""Longest message, in bytes; sshd's are 1 KiB at most (log.c, MSGBUFSIZ)."""

LOOK_AFTER = 1024
"""Number of sessions after which ended ones are removed: larger than a socket's queue (net.unix.max_dgram_qlen), which
may still contain a process's last message."""

_PROGRAMS = frozenset({"sshd", "sshd-session", "sshd-auth"})
# sshd's monitor, which is root, logs the pid of its child that runs as the user (OpenSSH, sshd.c, LogLevel VERBOSE).
_CHILD = re.compile(r"User child is on pid ([0-9]{1,10})")
_UCRED = struct.Struct("3i")
_LEVELS = ("error", "error", "error", "error", "warning", "info", "info", "debug")
# RFC 3164 in the form of glibc's syslog(3): priority, local time, tag with pid.
_MESSAGE = re.compile(
    rb"<([0-9]{1,3})>(?:[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8} )?([A-Za-z0-9._-]{1,32})\[[0-9]+\]: (.*)", re.DOTALL
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class SyslogRelay:
    """Relays syslog messages.

    Args:
        sock: The datagram socket that is /dev/log for our sshd.
        write: Writes one line: level, program, process id, text.
    """

    def __init__(self, sock: socket.socket, write: Callable[[str, str, int, str], None]) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock, self._write = sock, write
        self._children: set[int] = set()
        self._ended: set[int] = set()
        self._look_at = LOOK_AFTER

    def serve(self) -> None:
        """Relay until the socket is shut down."""
        while True:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(MAX_MESSAGE_BYTES, socket.CMSG_SPACE(_UCRED.size))
            except OSError:
                return
            if not data and not ancillary:
                return
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    pid, uid, _gid = _UCRED.unpack(value[: _UCRED.size])
                    # A session's process logs as its user, as other processes may: only a message of root marks it.
                    if uid == 0 or pid in self._children:
                        self._relay(data, pid, root=uid == 0)

    def _relay(self, data: bytes, pid: int, *, root: bool) -> None:
        match = _MESSAGE.fullmatch(data.rstrip(b"\0\r\n"))
        if match is None or match[2].decode("ascii") not in _PROGRAMS:
            return
        text = _CONTROL.sub(lambda char: f"\\{ord(char[0]):03o}", match[3].decode("utf-8", "backslashreplace"))
        self._write(_LEVELS[int(match[1]) & 7], match[2].decode("ascii"), pid, text)
        child = _CHILD.fullmatch(text) if root else None
        if child is not None:
            self._remember(int(child[1]))

    def _remember(self, pid: int) -> None:
        """Remember a session's process, and remove those that had ended before the last check."""
        self._children.add(pid)
        if len(self._children) >= self._look_at:
            ended = {child for child in self._children if not Path(f"/proc/{child}").exists()}
            self._children -= ended & self._ended
            self._ended = ended
            self._look_at = len(self._children) + LOOK_AFTER
