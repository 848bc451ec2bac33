"""Files as an agentmem of schema version 1 has made them, and its way to write to them. Needs the standard library."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

TABLES = (
    """
    CREATE TABLE agentmem_sessions (
        session_key INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL UNIQUE,
        next_position INTEGER NOT NULL CHECK (next_position <= 0x100000000),  -- what item_key has room for
        created_at REAL NOT NULL,  -- seconds since 1970, UTC
        updated_at REAL NOT NULL
    )
    """,
    """
    CREATE TABLE agentmem_items (
        item_key INTEGER PRIMARY KEY,  -- session_key << 32 | position
        created_at REAL NOT NULL,
        item TEXT NOT NULL  -- JSON
    )
    """,
    """
    CREATE TABLE agentmem_takeovers (
        source TEXT NOT NULL,  -- path of the file that the rows came from; empty for this one
        messages_table TEXT NOT NULL COLLATE NOCASE,
        last_id INTEGER NOT NULL,  -- its rows up to this one were taken over
        last_row TEXT NOT NULL,  -- a digest of that row, by which a file that was moved or replaced is told
        PRIMARY KEY (source, messages_table)
    )
    """,
    """
    CREATE VIEW agentmem_history AS
        SELECT
            session_id, item_key & 0xFFFFFFFF AS position, datetime(i.created_at, 'unixepoch') AS created_at, item
        FROM agentmem_items AS i JOIN agentmem_sessions ON session_key = item_key >> 32
    """,
)


class NewerVersionError(Exception):
    """What that version says of a file that a newer one has upgraded."""


def make(path: Path, appends: Iterable[tuple[str, float, Sequence[object]]] = ()) -> None:
    """Make a file.

    Args:
        appends: session, time in seconds since 1970, and items as they are stored, in order.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN")
        for statement in TABLES:
            connection.execute(statement)
        connection.execute("PRAGMA application_id = 0x61676D65")
        connection.execute("PRAGMA user_version = 1")
        connection.execute("PRAGMA schema_version = 123456789")
        connection.execute("COMMIT")
        for session_id, now, items in appends:
            append(connection, session_id, now, items)


def append(connection: sqlite3.Connection, session_id: str, now: float, items: Sequence[object]) -> None:
    """Append as that version does.

    Raises:
        NewerVersionError: a newer version has upgraded the file.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("PRAGMA user_version").fetchone() != (1,):
            raise NewerVersionError
        connection.execute(
            "INSERT OR IGNORE INTO agentmem_sessions (session_id, next_position, created_at, updated_at) "
            "VALUES (?, 0, ?, ?)",
            (session_id, now, now),
        )
        key, position = connection.execute(
            "SELECT session_key, next_position FROM agentmem_sessions WHERE session_id = ?", (session_id,)
        ).fetchone()
        connection.executemany(
            "INSERT INTO agentmem_items (item_key, created_at, item) VALUES (?, ?, ?)",
            [((key << 32) + position + place, now, item) for place, item in enumerate(items)],
        )
        connection.execute(
            "UPDATE agentmem_sessions SET next_position = ?, updated_at = ? WHERE session_key = ?",
            (position + len(items), now, key),
        )
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def contents(path: Path) -> list[tuple[object, ...]]:
    """All that a file of that version holds."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        sessions = connection.execute("SELECT * FROM agentmem_sessions ORDER BY session_key").fetchall()
        return (
            sessions
            + connection.execute(
                "SELECT item_key, created_at, typeof(item), CAST(item AS BLOB) FROM agentmem_items ORDER BY item_key"
            ).fetchall()
        )
