"""The table of open sessions, which logs a line when one ends.

A session is the process that sshd started, which becomes mosh-client or ssh. The broker watches its end by
pidfd_open(2), which needs no process in the session. The table is on disk, so that it survives a reload and a killed
broker. A broker that is being replaced watches too: the one that removes a row logs the line.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from helpers.broker.peer_credentials import end_of, start_of
from helpers.broker.tables import open_table
from helpers.protocol.event_log import EventLog

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


_COLUMNS = tuple(field.name for field in fields(OpenSession))


class OpenSessions:
    """The table, and tasks that watch its sessions.

    Args:
        path: The table's file (SQLite), created if missing.
        log: Receives the end of each session.
        clock: Seconds since the epoch.

    Raises:
        sqlite3.Error: The file cannot be used.
    """

    def __init__(self, path: Path | str, log: EventLog, clock: Callable[[], float] = time.time) -> None:
        self._log, self._clock = log, clock
        self._watched: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._db = open_table(path, _SCHEMA)

    def begin(self, session: OpenSession) -> None:
        """Add a session, and watch it."""
        row = tuple(getattr(session, name) for name in _COLUMNS)
        # On a full disk only the line at its end is lost, not the session.
        with suppress(sqlite3.OperationalError):
            self._db.execute("REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._watch(session)

    def all(self) -> list[OpenSession]:
        """List the open sessions, the oldest first."""
        return [session for session in self._rows() if start_of(session.pid) == session.start]

    def adopt(self) -> None:
        """Watch sessions of another broker, and those for which no file descriptor was left."""
        for session in self._rows():
            self._watch(session)

    def _rows(self) -> list[OpenSession]:
        rows = self._db.execute("SELECT * FROM sessions ORDER BY since").fetchall()
        return [OpenSession(**dict(zip(_COLUMNS, row, strict=True))) for row in rows]

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
                    await ended.wait()
        except ProcessLookupError:
            pass  # it has ended already
        except OSError:
            return  # no file descriptor is left: `adopt` tries again
        removed = self._db.execute("DELETE FROM sessions WHERE pid = ? AND start = ?", (session.pid, session.start))
        if removed.rowcount:
            self._log.info(
                "session_ended",
                sid=session.sid,
                user=session.user,
                client=session.client,
                transport=session.transport,
                seconds=round(self._clock() - session.since, 1),
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()
