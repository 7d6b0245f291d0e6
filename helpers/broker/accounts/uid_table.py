"""The table of user names and uids. Every name gets a uid of its own, so that the kernel separates users.

A new entry is written to disk before the answer is sent. After a restart the broker gives the same answers, and the
uid of a login in progress never belongs to another name.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from helpers.broker.tables import open_table
from helpers.protocol.messages import is_user_name

RESERVED_NAMES = frozenset({"root", "nobody", "sshd"})
"""Names that a lookup never gives a uid: nss-systemd answers the first two itself (systemd 252), and sshd's own
unprivileged account must stay as in /etc/passwd."""

REUSE_AFTER_S = 600.0
"""Seconds since a name was last looked up after which its uid may be given to another name, if no process runs as it:
far above LoginGraceTime (45 s), within which a login may have a uid but no process yet."""

STRANGER_REUSE_AFTER_S = 180.0
"""The same for a name that never had a session, so that invented names do not use up the uids of users: still above
the sum of LoginGraceTime, `_SEEN_STEP_S` and the 70 s after which an unused home is removed. A home that is kept
longer, because sshd accepts the user's keys from its own file, is removed when the uid is reused
(`gatewayctl.supervisor.privileged_server`)."""

_SEEN_STEP_S = 60.0
"""Seconds after which a lookup updates the stored time of last use."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users (
    uid INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    seen REAL NOT NULL,
    sessions INTEGER NOT NULL DEFAULT 0
)
"""
# Without it each new name in a full table sorts all rows: 37 ms for 65,534 rows, on the broker's event loop.
_INDEX = "CREATE INDEX IF NOT EXISTS users_by_use ON users (sessions, seen)"


def uids_with_processes(proc: Path = Path("/proc")) -> set[int]:
    """List the uids that own a process, from the owners of the directories in /proc (proc(5)).

    Raises:
        PermissionError: The kernel hides processes of other uids.
    """
    if not (proc / "1").is_dir():
        msg = "/proc hides other users' processes (proc(5), hidepid)"
        raise PermissionError(msg)
    uids = set()
    for entry in os.scandir(proc):
        if entry.name.isdigit():
            try:
                uids.add(entry.stat().st_uid)
            except FileNotFoundError:
                continue
    return uids


class UidTable:
    """The names and their uids.

    Args:
        path: The table's file (SQLite), created if missing; only the broker can read it.
        uids: The uids that may be assigned.
        clock: Seconds since the epoch.
        busy: Lists the uids that must not be given to a new name.
        is_short: Returns whether space is short, so that the file must not grow.

    Raises:
        sqlite3.Error: The file cannot be used.
    """

    def __init__(
        self,
        path: Path | str,
        uids: range,
        clock: Callable[[], float] = time.time,
        busy: Callable[[], Iterable[int]] = uids_with_processes,
        is_short: Callable[[], bool] = lambda: False,
    ) -> None:
        self._uids, self._clock, self._busy, self._is_short = uids, clock, busy, is_short
        self._db = open_table(path, _SCHEMA, _INDEX)

    def uid_of(self, name: str, *, allocate: bool) -> int | None:
        """Look a name up.

        Args:
            name: Any string.
            allocate: Whether a name without a uid gets one.

        Returns:
            Its uid; None if the name is not valid, every uid is in use, or space is short.
        """
        if not is_user_name(name):
            return None
        found = self._find(name)
        if found is None:
            return self._allocate(name) if allocate and name not in RESERVED_NAMES else None
        uid, seen = found
        if allocate and abs(self._clock() - seen) > _SEEN_STEP_S:
            self._note("UPDATE users SET seen = ? WHERE uid = ?", (self._clock(), uid))
        return uid

    def name_of(self, uid: int) -> str | None:
        """Return the name that owns a uid, or None."""
        if uid not in self._uids:
            return None
        row = self._db.execute("SELECT name FROM users WHERE uid = ?", (uid,)).fetchone()
        return None if row is None else str(row[0])

    def uid_of_root(self) -> int | None:
        """Look up, or assign, the uid that root's own sessions run as: never 0.

        Root's logins make no lookup that marks the uid as used, so this does: no process has this uid yet.
        """
        uid = self._allocate("root")
        self._note("UPDATE users SET seen = ? WHERE uid = ? AND name = 'root'", (self._clock(), uid))
        return uid

    def note_session(self, uid: int) -> None:
        """Record that the owner of a uid has had a session, so that strangers' names are evicted first."""
        self._note("UPDATE users SET sessions = 1, seen = ? WHERE uid = ?", (self._clock(), uid))

    def had_session(self, name: str) -> bool:
        """Check whether a name has had a session since it got its uid."""
        row = self._db.execute("SELECT sessions FROM users WHERE name = ?", (name,)).fetchone()
        return row is not None and bool(row[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _note(self, statement: str, values: tuple[object, ...]) -> None:
        """Make an optional update. If it fails, as on a full disk, the name only seems to be used less."""
        with suppress(sqlite3.OperationalError):
            self._db.execute(statement, values)

    def _find(self, name: str) -> tuple[int, float] | None:
        """Find a name's uid and the time of its last use; a uid outside the configured range is ignored."""
        row = self._db.execute(
            "SELECT uid, seen FROM users WHERE name = ? AND uid >= ? AND uid < ?",
            (name, self._uids.start, self._uids.stop),
        ).fetchone()
        return None if row is None else (int(row[0]), float(row[1]))

    def _allocate(self, name: str) -> int | None:
        # While the broker is being replaced, two brokers use the table and may allocate the same name or uid.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            found = self._find(name)
            uid = self._take(name) if found is None else found[0]
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            return None
        return uid

    def _take(self, name: str) -> int | None:
        (last,) = self._db.execute(
            "SELECT max(uid) FROM users WHERE uid >= ? AND uid < ?", (self._uids.start, self._uids.stop)
        ).fetchone()
        uid = self._uids.start if last is None else last + 1
        if uid not in self._uids or self._is_short():
            reused = self._reusable()
            if reused is None:
                return None
            uid = reused
        self._db.execute("REPLACE INTO users (uid, name, seen) VALUES (?, ?, ?)", (uid, name, self._clock()))
        return uid

    def _reusable(self) -> int | None:
        """Find the least recently used uid, first among names that never had a session."""
        try:
            busy = set(self._busy())
        except PermissionError:
            return None
        for sessions, after_s in ((0, STRANGER_REUSE_AFTER_S), (1, REUSE_AFTER_S)):
            rows = self._db.execute(
                "SELECT uid FROM users WHERE sessions = ? AND seen < ? AND +uid >= ? AND +uid < ? ORDER BY seen",
                (sessions, self._clock() - after_s, self._uids.start, self._uids.stop),
            )
            for (uid,) in rows:
                if uid not in busy:
                    return int(uid)
        return None
