"""Takes what sshd says to syslog and writes it to our own stream, a line each.

sshd's ``-e`` would be simpler, and would let anybody forge lines: written to standard error, a newline in a user name
stays a newline (OpenSSH 9.2, log.c: LOG_STDERR_VIS has no VIS_NL), while for syslog it is escaped. A message to syslog
also comes whole, as one datagram, and says which process it is from, which is what the broker's ``sid`` begins with.
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
"""Sessions after which those that have ended are forgotten: more than there are messages in a socket's queue
(net.unix.max_dgram_qlen), in which what a process said last may still be."""

_PROGRAMS = frozenset({"sshd", "sshd-session", "sshd-auth"})
# sshd's monitor, which is root, says which process of a user's is its own (OpenSSH, sshd.c, LogLevel VERBOSE).
_CHILD = re.compile(r"User child is on pid ([0-9]{1,10})")
_UCRED = struct.Struct("3i")
_LEVELS = ("error", "error", "error", "error", "warning", "info", "info", "debug")
# RFC 3164 as glibc's syslog(3) writes it: priority, local time, tag with process id.
_MESSAGE = re.compile(
    rb"<([0-9]{1,3})>(?:[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8} )?([A-Za-z0-9._-]{1,32})\[[0-9]+\]: (.*)", re.DOTALL
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class SyslogRelay:
    """Relays syslog messages.

    Args:
        sock: The datagram socket that our sshd knows as /dev/log.
        write: Writes one line: level, program, process id, text.
    """

    def __init__(self, sock: socket.socket, write: Callable[[str, str, int, str], None]) -> None:
        """Ask the kernel to say who sends."""
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
                    # A session's process speaks as its user, as whom others may run: only root's word makes it sshd.
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
        """Remember a session's process, and forget those that had ended by the last look already."""
        self._children.add(pid)
        if len(self._children) >= self._look_at:
            ended = {child for child in self._children if not Path(f"/proc/{child}").exists()}
            self._children -= ended & self._ended
            self._ended = ended
            self._look_at = len(self._children) + LOOK_AFTER
