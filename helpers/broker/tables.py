"""The broker's tables on disk (SQLite), which survive a reload and a killed broker."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def open_table(path: Path | str, *statements: str) -> sqlite3.Connection:
    """Open a file of tables, and execute the statements that create them.

    Args:
        path: The file, created if missing; the broker alone may read it.
        statements: SQL.

    Raises:
        sqlite3.Error: The file cannot be used.
    """
    database = sqlite3.connect(path, isolation_level=None)
    try:
        # The runtime directory is a tmpfs: the data must survive the process, not the machine.
        database.execute("PRAGMA synchronous = OFF")
        # The journal keeps its space, so that a row can be changed when the directory is full.
        database.execute("PRAGMA journal_mode = PERSIST")
        for statement in statements:
            database.execute(statement)
    except sqlite3.Error:
        database.close()
        raise
    return database
