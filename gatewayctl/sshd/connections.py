"""sshd's connections, as its log describes them: the client's address, and whether the client has left."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from helpers.broker import client_traffic

LOOK_AFTER = 1024
"""Number of processes after which ended ones are removed: larger than a socket's queue (net.unix.max_dgram_qlen), which
may still contain a process's last message."""

# OpenSSH 9.2 and 10.0, LogLevel VERBOSE. The monitor, which is root, logs the first two.
_BEGIN = re.compile(r"Connection from (\S{1,64}) port ([0-9]{1,5}) on (\S{1,64}) port ([0-9]{1,5})( .*)?")
_CHILD = re.compile(r"User child is on pid ([0-9]{1,10})")

_PREAUTH = " [preauth]"
"""The end of each line that sshd logs before authentication (log.c)."""

_CLOSED = re.compile(r"Received disconnect from .*")
_LOST = re.compile(
    r"Connection (closed|reset) by .*|Timeout, client not responding from .*|Read error from remote host .*"
    r"|ssh_dispatch_run_fatal: .*|Corrupted MAC on input\..*|Bad packet length .*"
)

_TRANSFERRED = re.compile(r"Transferred: sent ([0-9]{1,19}), received ([0-9]{1,19}) bytes")
"""sshd logs it for lost connections only."""

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
            that, or has timed out, ``stopped`` if the gateway ends it; None before.
        traffic: The bytes sent to the client and received from it, once it has left; None before, or if unknown.
        ends: Both ends of the connection, as SSH_CONNECTION has them (ssh(1)).
    """

    client: str | None = None
    ended: str | None = None
    traffic: tuple[int, int] | None = None
    ends: str = ""


@dataclass
class Connections:
    """The connections, by the process id of sshd's monitor, with which a ``sid`` begins.

    Used by the relay's thread; `find` may be called by others.
    """

    _by_monitor: dict[int, Connection] = field(default_factory=dict)
    _monitors: dict[int, int] = field(default_factory=dict)
    _ended: set[int] = field(default_factory=set)
    _look_at: int = LOOK_AFTER
    _sessions: dict[int, str | None] = field(default_factory=dict)
    _stopping: bool = False

    def to_json(self) -> dict[str, Any]:
        """Describe all of it in values that JSON has, for `from_json`."""
        return {
            "by_monitor": {str(pid): asdict(connection) for pid, connection in self._by_monitor.items()},
            "monitors": {str(pid): monitor for pid, monitor in self._monitors.items()},
        }

    @classmethod
    def from_json(cls, known: dict[str, Any]) -> Self:
        """Make the connections that `to_json` described."""
        found = {int(pid): Connection(**each) for pid, each in known["by_monitor"].items()}
        return cls(found, {int(pid): monitor for pid, monitor in known["monitors"].items()})

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
        found = self._by_monitor.get(monitor)
        if self._stopping and (found is None or found.ended is None):
            return replace(found or Connection(), ended="stopped")
        return found

    def stop(self) -> None:
        """Record that the gateway ends the connections that have not ended yet."""
        self._stopping = True

    def note_session_end(self, session: int, monitor: int) -> None:
        """Record that a session has ended, and whether its client had left before."""
        while len(self._sessions) >= LOOK_AFTER:
            del self._sessions[next(iter(self._sessions))]
        found = self.find(monitor)
        self._sessions[session] = None if found is None else found.ended

    def of_session(self, session: int, monitor: int) -> Connection | None:
        """Return a session's connection as it was when the session ended; as it is now if that is not known."""
        found = self.find(monitor)
        if session not in self._sessions:
            return found
        return replace(found or Connection(), ended=self._sessions.pop(session))

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
            address, port, *_ = begin.groups()
            client = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            self._by_monitor[pid] = Connection(client, ends=" ".join(begin.groups()[:4]))
            self._forget_ended()
        elif root and (child := _CHILD.fullmatch(text)):
            self._monitors[int(child[1])] = pid
            self._forget_ended()
        if text.endswith(_PREAUTH):
            return text.startswith(_DETAILS)
        closed = _CLOSED.fullmatch(text) is not None
        connection = self._by_monitor.get(self.monitor_of(pid))
        if connection is not None:
            if connection.ended is None and (closed or _LOST.fullmatch(text)):
                connection.ended = "closed" if closed else "lost"
                # sshd still has the socket, while it ends the sessions.
                if closed and (traffic := client_traffic.read(connection.ends)) is not None:
                    connection.traffic = traffic.sent, traffic.received
            elif counted := _TRANSFERRED.fullmatch(text):
                connection.traffic = int(counted[1]), int(counted[2])
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
