"""The table of open sessions.

A session is the process that sshd started, which becomes mosh-client or ssh. The broker watches its end by
pidfd_open(2), which needs no process in the session. The table is on disk, so that it survives a reload and a killed
broker. A broker that is being replaced watches too: the one that removes a row reports the end.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from helpers.broker import client_traffic
from helpers.broker.client_traffic import Traffic
from helpers.broker.peer_credentials import end_of, start_of
from helpers.broker.tables import add_columns, open_table

CONNECTING, AUTHENTICATING, LOGGED_IN = "connecting", "authenticating", "logged_in"
"""A session's stages: its ssh connects to the remote; verified the host key, and begins to authenticate; the remote has
accepted the login."""

_STAGES = (CONNECTING, AUTHENTICATING, LOGGED_IN)

SETTLE_S = 2.0
"""Longest time, in seconds, that a broker that ends takes for the lines of sessions that have ended with it."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    pid INTEGER NOT NULL,
    start INTEGER NOT NULL,
    sid TEXT,
    user TEXT NOT NULL,
    client TEXT,
    key TEXT,
    transport TEXT NOT NULL,
    udp_port INTEGER,
    since REAL NOT NULL,
    PRIMARY KEY (pid, start)
)
"""
_ADDED = {
    "stage": f"TEXT NOT NULL DEFAULT '{LOGGED_IN}'",
    "connection": "TEXT NOT NULL DEFAULT ''",
    "details": "TEXT NOT NULL DEFAULT '{}'",
    "ended": "TEXT",
}
"""Columns that a table of an earlier version lacks, with values for its rows."""


@dataclass(frozen=True)
class OpenSession:
    """A session.

    Attributes:
        pid: Its process.
        start: The process's start time in clock ticks (proc(5), stat), which distinguishes it from a later process with
            the same pid.
        sid: The id of its connection in the log.
        user: The user's name.
        client: The client's address and port; None if sshd does not pass them on.
        key: The fingerprint of the accepted key; None for another authentication method.
        transport: ``mosh`` or ``ssh``.
        udp_port: mosh-server's port on the remote; None over ssh.
        since: The time at which it began, in seconds since the epoch.
        stage: How far its login on the remote has come: see `CONNECTING`.
        connection: SSH_CONNECTION (ssh(1)).
        details: More fields for the log.
        ended: ``kicked`` if an operator is ending it; None otherwise.
    """

    pid: int
    start: int
    sid: str | None
    user: str
    client: str | None
    key: str | None
    transport: str
    udp_port: int | None
    since: float
    stage: str = LOGGED_IN
    connection: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    ended: str | None = None


_COLUMNS = tuple(field.name for field in fields(OpenSession))


class SessionEndReporter(Protocol):
    """Reports the ends of sessions."""

    async def watch(self, session: OpenSession) -> None:
        """Prepare to report how a session ends."""

    async def report(self, session: OpenSession, traffic: Traffic | None) -> None:
        """Report the end of a session, with its client's bytes if the client has not left yet."""


class OpenSessions:
    """The table, and tasks that watch its sessions.

    Args:
        path: The table's file (SQLite), created if missing.
        reporter: Reports the ends of sessions.

    Raises:
        sqlite3.Error: The file cannot be used.
    """

    def __init__(self, path: Path | str, reporter: SessionEndReporter) -> None:
        self._reporter = reporter
        self._watched: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._db = open_table(path, _SCHEMA)
        add_columns(self._db, "sessions", _ADDED)

    def begin(self, session: OpenSession) -> None:
        """Add a session, or replace it, and watch it."""
        row = {**vars(session), "details": json.dumps(session.details)}
        # On a full disk only the line at its end is lost, not the session.
        with suppress(sqlite3.OperationalError):
            names, values = ", ".join(_COLUMNS), ", ".join(f":{name}" for name in _COLUMNS)
            self._db.execute(f"REPLACE INTO sessions ({names}) VALUES ({values})", row)  # noqa: S608 - our own names
        self._watch(session)

    def find(self, pid: int) -> OpenSession | None:
        """Return the session of a process; None if it is none, or has ended."""
        start = start_of(pid)
        found = self._rows("WHERE pid = ? AND start = ?", (pid, start))
        return found[0] if found else None

    def advance(self, pid: int, stage: str, *, udp_port: int | None = None) -> OpenSession | None:
        """Record that a session's login on the remote has reached a stage.

        Args:
            pid: The session's process.
            stage: The stage.
            udp_port: mosh-server's port, if it is known only now.

        Returns:
            The session; None if there is none, or it had reached the stage before.
        """
        session = self.find(pid)
        if session is None or _STAGES.index(stage) <= _STAGES.index(session.stage):
            return None
        session = replace(session, stage=stage, udp_port=udp_port or session.udp_port)
        self.begin(session)
        return session

    def note_kicked(self, pid: int, start: int) -> None:
        """Record that an operator is ending a session."""
        with suppress(sqlite3.OperationalError):
            self._db.execute("UPDATE sessions SET ended = 'kicked' WHERE pid = ? AND start = ?", (pid, start))

    def remove(self, session: OpenSession) -> bool:
        """Remove a session; returns whether it was in the table."""
        number = session.pid, session.start
        return self._db.execute("DELETE FROM sessions WHERE pid = ? AND start = ?", number).rowcount > 0

    def all(self) -> list[OpenSession]:
        """List the open sessions, the oldest first."""
        return [session for session in self._rows() if start_of(session.pid) == session.start]

    def tend(self) -> None:
        """Watch sessions of another broker, and those for which no file descriptor was left.

        Called at the start, and periodically.
        """
        for session in self._rows():
            self._watch(session)

    def _rows(self, where: str = "ORDER BY since", values: tuple[object, ...] = ()) -> list[OpenSession]:
        names = ", ".join(_COLUMNS)
        rows = self._db.execute(f"SELECT {names} FROM sessions {where}", values).fetchall()  # noqa: S608 - the same
        sessions = [OpenSession(**dict(zip(_COLUMNS, row, strict=True))) for row in rows]
        return [replace(session, details=json.loads(str(session.details))) for session in sessions]

    def _watch(self, session: OpenSession) -> None:
        number = session.pid, session.start
        if number not in self._watched:
            task = asyncio.ensure_future(self._until_its_end(session))
            self._watched[number] = task
            task.add_done_callback(lambda _: self._watched.pop(number, None))

    async def _until_its_end(self, session: OpenSession) -> None:
        try:
            async with end_of(session.pid) as ended:
                if start_of(session.pid) == session.start:
                    await self._reporter.watch(session)
                    await ended.wait()
        except ProcessLookupError:
            pass  # it has ended already
        except OSError:
            return  # no file descriptor is left: `tend` tries again
        traffic = client_traffic.read(session.connection)  # before the client, too, disconnects
        last = self._rows("WHERE pid = ? AND start = ?", (session.pid, session.start))
        if last and self.remove(session):
            await self._reporter.report(last[0], traffic)

    async def settle(self) -> None:
        """Wait until the ends of sessions that have ended are reported, but at most `SETTLE_S`."""
        ending = [task for (pid, start), task in self._watched.items() if start_of(pid) != start]
        if ending:
            await asyncio.wait(ending, timeout=SETTLE_S)

    def close(self) -> None:
        """Close the file."""
        self._db.close()
