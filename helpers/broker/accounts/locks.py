"""Bars set by the operator: on a name (``gatewayctl kick --lock``), or on all new sessions (``gatewayctl drain``)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path


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
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self._db.execute("PRAGMA synchronous = OFF")  # as for the table of uids
            self._db.execute("CREATE TABLE IF NOT EXISTS locks (user TEXT PRIMARY KEY, until REAL NOT NULL)")
            self._db.execute("CREATE TABLE IF NOT EXISTS drain (message TEXT NOT NULL)")
        except sqlite3.Error:
            self._db.close()
            raise

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
