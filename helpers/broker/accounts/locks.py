"""Bars set by the operator: on a name (``gatewayctl kick --lock``), or on all new sessions (``gatewayctl drain``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from helpers.broker.tables import open_table

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS locks (user TEXT PRIMARY KEY, until REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS drain (message TEXT NOT NULL)",
)


class Locks:
    """The locked names. The table is on disk, so that a lock survives a reload and a killed broker.

    Args:
        path: The table's file (SQLite), created if missing.
        clock: Seconds since the epoch.

    Raises:
        sqlite3.Error: The file cannot be used.
    """

    def __init__(self, path: Path | str, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._db = open_table(path, *_SCHEMA)

    def lock(self, user: str, seconds: float) -> None:
        """Lock a name, or with 0 seconds lift its lock.

        Raises:
            sqlite3.Error: It cannot be written.
        """
        self._db.execute("DELETE FROM locks WHERE user = ? OR until <= ?", (user, self._clock()))
        if seconds > 0:
            self._db.execute("INSERT INTO locks VALUES (?, ?)", (user, self._clock() + seconds))

    def until(self, user: str) -> float | None:
        """Return the time, in seconds since the epoch, at which a name's lock ends; None for a name without a lock."""
        row = self._db.execute("SELECT until FROM locks WHERE user = ? AND until > ?", (user, self._clock())).fetchone()
        return None if row is None else float(row[0])

    def drain(self, message: str | None) -> None:
        """Bar new sessions with a message, or with None permit them again.

        Raises:
            sqlite3.Error: It cannot be written.
        """
        self._db.execute("DELETE FROM drain")
        if message is not None:
            self._db.execute("INSERT INTO drain VALUES (?)", (message,))

    def drained(self) -> str | None:
        """Return the message with which new sessions are barred; None if they are not."""
        row = self._db.execute("SELECT message FROM drain").fetchone()
        return None if row is None else str(row[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
