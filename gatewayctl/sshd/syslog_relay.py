"""Relays sshd's syslog messages to our own log, one line for each.

sshd's ``-e`` would be simpler, but would let clients forge lines: on standard error a newline in a user name stays a
newline (OpenSSH 9.2, log.c: LOG_STDERR_VIS has no VIS_NL), while for syslog it is escaped. A syslog message is also one
complete datagram.

All lines of a connection get the process id of its monitor, with which the broker's ``sid`` begins. Lines that repeat
what others say are written only at log level debug. The relay also watches sessions' processes, and so tells whether a
client had left before its session ended.
"""

from __future__ import annotations

import os
import re
import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from gatewayctl.sshd.connections import Connections

MAX_MESSAGE_BYTES = 8192
"""Longest message, in bytes; sshd's are 1 KiB at most (log.c, MSGBUFSIZ)."""

NOTED_S = 0.5
"""Longest time, in seconds, that the end of a session waits for the relay's thread."""

_PROGRAMS = frozenset({"sshd", "sshd-session", "sshd-auth"})
_UCRED = struct.Struct("3i")
_LEVELS = ("error", "error", "error", "error", "warning", "info", "info", "debug")
# RFC 3164 in the form of glibc's syslog(3): priority, local time, tag with pid.
_MESSAGE = re.compile(
    rb"<([0-9]{1,3})>(?:[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8} )?([A-Za-z0-9._-]{1,32})\[[0-9]+\]: (.*)", re.DOTALL
)
_UNKNOWN = re.compile(r"UNKNOWN port (?:-1|65535)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class SyslogRelay:
    """Relays syslog messages.

    Args:
        sock: The datagram socket that is /dev/log for our sshd.
        connections: Records what the messages say about connections.
        write: Writes one line: level, program, process id, text.

    Attributes:
        lock: Held while a message is between the socket and the log.
    """

    def __init__(
        self, sock: socket.socket, connections: Connections, write: Callable[[str, str, int, str], None]
    ) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock, self._connections, self._write = sock, connections, write
        self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLIN)
        self._sessions: dict[int, tuple[int, int, threading.Event]] = {}
        self.lock = threading.Lock()

    def watch_session(self, pid: int, monitor: int) -> None:
        """Note how a session ends: called by other threads.

        Args:
            pid: The session's process.
            monitor: The pid of sshd's process for its connection.
        """
        if any(watched == pid for watched, _, _ in tuple(self._sessions.values())):
            return
        with suppress(OSError):  # it has ended, or no file descriptor is left
            descriptor = os.pidfd_open(pid)
            self._sessions[descriptor] = pid, monitor, threading.Event()
            self._epoll.register(descriptor, select.EPOLLIN)

    def wait_for_session(self, pid: int) -> None:
        """Wait until the end of a session that has ended is noted, but at most `NOTED_S`: called by other threads."""
        for watched, _, noted in tuple(self._sessions.values()):
            if watched == pid:
                noted.wait(NOTED_S)

    def serve(self) -> None:
        """Relay until the socket is shut down.

        The kernel reports messages and sessions' ends in their order. sshd logs that a client has left before it ends
        the client's sessions, so one message is read at a time.
        """
        while True:
            for descriptor, _ in self._epoll.poll():
                with self.lock:
                    if descriptor in self._sessions:
                        self._note_session_end(descriptor)
                    elif not self._receive():
                        return

    def _note_session_end(self, descriptor: int) -> None:
        pid, monitor, noted = self._sessions[descriptor]
        self._connections.note_session_end(pid, monitor)
        del self._sessions[descriptor]
        os.close(descriptor)
        noted.set()

    def _receive(self) -> bool:
        """Relay one message; returns whether the socket is open."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(MAX_MESSAGE_BYTES, socket.CMSG_SPACE(_UCRED.size))
        except OSError:
            return False
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid, uid, _gid = _UCRED.unpack(value[: _UCRED.size])
                # A session's process logs as its user, as other processes may: only a message of root marks it.
                if uid == 0 or self._connections.has_child(pid):
                    self._relay(data, pid, root=uid == 0)
        return bool(data or ancillary)

    def _relay(self, data: bytes, pid: int, *, root: bool) -> None:
        match = _MESSAGE.fullmatch(data.rstrip(b"\0\r\n"))
        if match is None or match[2].decode("ascii") not in _PROGRAMS:
            return
        text = _CONTROL.sub(lambda char: f"\\{ord(char[0]):03o}", match[3].decode("utf-8", "backslashreplace"))
        level = _LEVELS[int(match[1]) & 7]
        if self._connections.note(pid, text, root=root) and level == "info":
            level = "debug"
        monitor = self._connections.monitor_of(pid)
        connection = self._connections.find(monitor)
        if connection is not None and connection.client is not None:
            # sshd asks the kernel for the address late, and a connection that was reset has none any more.
            address, _, port = connection.client.rpartition(":")
            text = _UNKNOWN.sub(f"{address.strip('[]')} port {port}", text)
        self._write(level, match[2].decode("ascii"), monitor, text)
