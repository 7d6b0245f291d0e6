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


def add_columns(database: sqlite3.Connection, table: str, columns: dict[str, str]) -> None:
    """Add the columns that a table of an earlier version lacks: a reload after an upgrade keeps the tables.

    Args:
        database: The database.
        table: The table's name.
        columns: The columns' names, and their SQL definitions.

    Raises:
        sqlite3.Error: The file cannot be used.
    """
    present = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
    for name, definition in columns.items():
        if name not in present:
            database.execute(f"ALTER TABLE {table} ADD COLUMN {name} {definition}")
