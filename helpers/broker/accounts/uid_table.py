"""Which name has which uid: every user name gets a uid of its own, so that the kernel keeps users apart.

The table is on disk before any answer leaves, so a broker that is killed comes back with the same answers and a
login that is under way can never find its uid in another's hands.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from helpers.protocol.messages import is_user_name

RESERVED_NAMES = frozenset({"root", "nobody", "sshd"})
"""Names that are never given a uid by a lookup: nss-systemd answers the first two itself (systemd 252), and sshd's
own unprivileged account must stay what /etc/passwd says."""

REUSE_AFTER_S = 600.0
"""Seconds since a name was last looked up before its uid may go to another name, provided no process runs as it:
far above LoginGraceTime (45 s), within which a login may hold a uid and have no process yet."""

STRANGER_REUSE_AFTER_S = 180.0
"""The same for a name that never had a session, so that invented names do not use up the uids of users: still above
LoginGraceTime, `_SEEN_STEP_S` and what a home lives on (70 s) together. One kept for somebody whom sshd knows by itself
is taken away with the uid (`gatewayctl.supervisor.privileged_server`)."""

_SEEN_STEP_S = 60.0
"""Seconds that pass before a lookup is worth another write of the time of last use."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users (
    uid INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    seen REAL NOT NULL,
    sessions INTEGER NOT NULL DEFAULT 0
)
"""
# Without it each name that comes to a full table sorts all of it: 37 ms for 65,534 rows, on the broker's one thread.
_INDEX = "CREATE INDEX IF NOT EXISTS users_by_use ON users (sessions, seen)"


def uids_with_processes(proc: Path = Path("/proc")) -> set[int]:
    """List the uids that own a process now, by the owner of its directory in /proc (proc(5)).

    Raises:
        PermissionError: The kernel does not show them all.
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
        path: The table's file (SQLite), made when missing; readable by the broker alone.
        uids: The uids that may be given away.
        clock: Seconds since the epoch.
        busy: Lists the uids that must not be given to a new name.
        is_short: Tells whether the file is to grow no more.

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
        """Open the table."""
        self._uids, self._clock, self._busy, self._is_short = uids, clock, busy, is_short
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            # The runtime directory is a tmpfs: what matters is to outlive the process, not the machine.
            self._db.execute("PRAGMA synchronous = OFF")
            # The journal keeps its room, so that a row can be changed where the directory is full.
            self._db.execute("PRAGMA journal_mode = PERSIST")
            self._db.execute(_SCHEMA)
            self._db.execute(_INDEX)
        except sqlite3.Error:
            self._db.close()
            raise

    def uid_of(self, name: str, *, allocate: bool) -> int | None:
        """Look a name up.

        Args:
            name: Any string.
            allocate: Whether a name that has no uid yet gets one.

        Returns:
            Its uid; None for a name that cannot have one, when every uid is in use, or there is no room for the name.
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
        """Look a uid up: the name that owns it, or None."""
        if uid not in self._uids:
            return None
        row = self._db.execute("SELECT name FROM users WHERE uid = ?", (uid,)).fetchone()
        return None if row is None else str(row[0])

    def uid_of_root(self) -> int | None:
        """Look up, or give, the uid that root's own sessions run as: never 0.

        No lookup says that root is about to log in, so this does: who asks has no process by this uid yet.
        """
        uid = self._allocate("root")
        self._note("UPDATE users SET seen = ? WHERE uid = ? AND name = 'root'", (self._clock(), uid))
        return uid

    def note_session(self, uid: int) -> None:
        """Remember that the owner of a uid got a session, so that strangers' names are forgotten first."""
        self._note("UPDATE users SET sessions = 1, seen = ? WHERE uid = ?", (self._clock(), uid))

    def had_session(self, name: str) -> bool:
        """Tell whether a name that has a uid got a session since."""
        row = self._db.execute("SELECT sessions FROM users WHERE name = ?", (name,)).fetchone()
        return row is not None and bool(row[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _note(self, statement: str, values: tuple[object, ...]) -> None:
        """Write what may be missing, as where the disk is full: the name is then taken for one that is used less."""
        with suppress(sqlite3.OperationalError):
            self._db.execute(statement, values)

    def _find(self, name: str) -> tuple[int, float] | None:
        """Find a name's uid and when it was last used; a uid of a range that was given up counts for nothing."""
        row = self._db.execute(
            "SELECT uid, seen FROM users WHERE name = ? AND uid >= ? AND uid < ?",
            (name, self._uids.start, self._uids.stop),
        ).fetchone()
        return None if row is None else (int(row[0]), float(row[1]))

    def _allocate(self, name: str) -> int | None:
        # While the broker is being replaced two of them have the table, and may look for the same name or uid.
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
        """Find the uid that was unused for longest, names that never had a session first."""
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
