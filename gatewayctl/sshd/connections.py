"""sshd's connections, as its log describes them: the client's address, and whether the client has left."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

LOOK_AFTER = 1024
"""Number of processes after which ended ones are removed: larger than a socket's queue (net.unix.max_dgram_qlen), which
may still contain a process's last message."""

# OpenSSH 9.2 and 10.0, LogLevel VERBOSE. The monitor, which is root, logs the first two.
_BEGIN = re.compile(r"Connection from (\S{1,64}) port ([0-9]{1,5}) on .*")
_CHILD = re.compile(r"User child is on pid ([0-9]{1,10})")

_PREAUTH = " [preauth]"
"""The end of each line that sshd logs before authentication (log.c)."""

_CLOSED = re.compile(r"Received disconnect from .*")
_LOST = re.compile(
    r"Connection (closed|reset) by .*|Timeout, client not responding from .*|Read error from remote host .*"
    r"|ssh_dispatch_run_fatal: .*|Corrupted MAC on input\..*|Bad packet length .*"
)

_DETAILS = (
    "Connection from ",
    "Accepted key ",
    "Postponed publickey ",
    "User child is on pid ",
    "Starting session: ",
    "Close session: ",
    "Transferred: sent ",
    "Closing connection to ",
)
"""Beginnings of lines whose content is also in another line: of sshd's verdict, of its last line about the connection,
or of the broker's lines with the same sid."""


@dataclass
class Connection:
    """A connection to sshd.

    Attributes:
        client: The client's address and port, as ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``; None if unknown.
        ended: ``closed`` if the client has said that it disconnects, ``lost`` if its connection has ended without
            that, or has timed out; None before.
    """

    client: str | None = None
    ended: str | None = None


@dataclass
class Connections:
    """The connections, by the process id of sshd's monitor, with which a ``sid`` begins.

    Used by the relay's thread; `find` may be called by others.
    """

    _by_monitor: dict[int, Connection] = field(default_factory=dict)
    _monitors: dict[int, int] = field(default_factory=dict)
    _ended: set[int] = field(default_factory=set)
    _look_at: int = LOOK_AFTER

    def __len__(self) -> int:
        """Count the processes that are remembered."""
        return len(self._by_monitor) + len(self._monitors)

    def monitor_of(self, pid: int) -> int:
        """Return the monitor of one of sshd's processes; the process itself if it is none of a monitor's children."""
        return self._monitors.get(pid, pid)

    def has_child(self, pid: int) -> bool:
        """Whether a monitor has said that this process, which runs as the user, is its child."""
        return pid in self._monitors

    def find(self, monitor: int) -> Connection | None:
        """Return the connection of a monitor; None if no line about it was seen."""
        return self._by_monitor.get(monitor)

    def note(self, pid: int, text: str, *, root: bool) -> bool:
        """Record what a line says.

        Args:
            pid: The process that logged the line.
            text: The line.
            root: Whether the process is root.

        Returns:
            Whether the line is only of interest for debugging.
        """
        if root and (begin := _BEGIN.fullmatch(text)):
            address, port = begin.groups()
            self._by_monitor[pid] = Connection(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")
            self._forget_ended()
        elif root and (child := _CHILD.fullmatch(text)):
            self._monitors[int(child[1])] = pid
            self._forget_ended()
        if text.endswith(_PREAUTH):
            return text.startswith(_DETAILS)
        closed = _CLOSED.fullmatch(text) is not None
        connection = self._by_monitor.get(self.monitor_of(pid))
        if connection is not None and connection.ended is None and (closed or _LOST.fullmatch(text)):
            connection.ended = "closed" if closed else "lost"
        # After a disconnect sshd logs another line, "Disconnected from user".
        return closed or text.startswith(_DETAILS)

    def _forget_ended(self) -> None:
        """Remove the processes that had ended before the last check."""
        if len(self) < self._look_at:
            return
        ended = {pid for pid in {*self._by_monitor, *self._monitors} if not Path(f"/proc/{pid}").exists()}
        for pid in ended & self._ended:
            self._by_monitor.pop(pid, None)
            self._monitors.pop(pid, None)
        self._ended = ended
        self._look_at = len(self) + LOOK_AFTER
