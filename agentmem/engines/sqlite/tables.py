"""The tables of an SQLite file, and the statements that bring those of an older version to this one.

Rules kept here:

- Items are stored in the order in which they arrived, whatever their session, and found by an index on session and
  position. So a commit of many sessions writes the end of one table, and in the index a few neighbouring entries of
  each; with rows that lie together by session it wrote a page of each.
- ``AUTOINCREMENT`` issues no sequence and no session key twice, also after the newest were removed
  (sqlite.org/autoinc.html). What a cleared session has left keeps its key until it is gone; see ``removal``.
- Times are whole microseconds since 1970, UTC.
- Nothing is formatted into SQL here but the names of tables that are written in this file.
"""

from __future__ import annotations

import sqlite3

from .sdk_tables import BOOKMARKS

APPLICATION_ID = 0x61676D65  # "agme"

SCHEMA_VERSION = 2

_TABLES = (
    # What each append changes or reads stands first, because SQLite skips what is before a column that it reads.
    """
    CREATE TABLE agentmem_sessions (
        session_key INTEGER PRIMARY KEY AUTOINCREMENT,
        session_id TEXT NOT NULL UNIQUE,
        length INTEGER NOT NULL,  -- the position that is issued next
        updated_at INTEGER NOT NULL,  -- when an item was last added or removed, in microseconds since 1970, UTC
        stored_at INTEGER NOT NULL,  -- the latest append, edit, or arrival in this database
        created_at INTEGER NOT NULL,
        first_position INTEGER NOT NULL DEFAULT 0,  -- above 0 where turns were pruned
        edits INTEGER NOT NULL DEFAULT 0,  -- changes other than by appending
        expires_at INTEGER,
        owner TEXT,
        forked_from TEXT,  -- session_id of the origin
        forked_length INTEGER,
        title TEXT,
        metadata TEXT  -- a JSON object
    )
    """,
    """
    CREATE TABLE agentmem_items (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of arrival
        session_key INTEGER NOT NULL,
        position INTEGER NOT NULL,  -- in the session, from 0
        created_at INTEGER NOT NULL,
        item TEXT NOT NULL  -- JSON; '' where the item was erased
    )
    """,
    # Its rows, too, are in the order of arrival: where 64 sessions noted a key with each append, a note took 4.3 kB of
    # WAL, and 6.0 kB WITHOUT ROWID.
    """
    CREATE TABLE agentmem_notes (  -- what is derived from a session or said about it
        session_key INTEGER NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        position INTEGER,  -- of what it speaks; it goes with that
        value TEXT NOT NULL,  -- JSON
        PRIMARY KEY (session_key, kind, name)
    )
    """,
    """
    CREATE TABLE agentmem_locks (  -- of runs; a session need not exist
        session_id TEXT NOT NULL PRIMARY KEY,
        token TEXT NOT NULL,
        holder TEXT NOT NULL,  -- for messages
        since INTEGER NOT NULL,
        renewed_at INTEGER NOT NULL,
        until INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    # Keys of sessions that are gone, and whose items and notes are still to be removed.
    "CREATE TABLE agentmem_removed (session_key INTEGER PRIMARY KEY)",
)

_INDEXES = (
    "CREATE UNIQUE INDEX agentmem_items_by_position ON agentmem_items (session_key, position)",
    "CREATE INDEX agentmem_sessions_by_owner ON agentmem_sessions (owner, updated_at, session_id)",
    "CREATE INDEX agentmem_sessions_by_origin ON agentmem_sessions (forked_from) WHERE forked_from IS NOT NULL",
    # For users of the sqlite3 shell. agentmem itself reads the tables.
    """
    CREATE VIEW agentmem_history AS
        SELECT session_id, position, datetime(i.created_at / 1000000, 'unixepoch') AS created_at, item
        FROM agentmem_items AS i JOIN agentmem_sessions USING (session_key) WHERE item <> ''
    """,
)

# Version 1: sessions (session_key, session_id, next_position, created_at, updated_at) and items (item_key, created_at,
# item), where item_key is session_key << 32 | position, and times are seconds.

_ARRIVAL = (
    "CREATE TEMP TABLE agentmem_arrival (sequence INTEGER PRIMARY KEY, item_key INTEGER NOT NULL)",
    # By the time at which an item was stored; within a session always by its position, because the clock may have
    # jumped back. Only keys and times are sorted, not the items.
    """
    INSERT INTO temp.agentmem_arrival (sequence, item_key)
    SELECT row_number() OVER (ORDER BY arrived_at, item_key), item_key
    FROM (
        SELECT
            item_key,
            max(created_at) OVER (PARTITION BY item_key >> 32 ORDER BY item_key ROWS UNBOUNDED PRECEDING) AS arrived_at
        FROM {old}agentmem_items{suffix}
    )
    """,
)

_COPY_SESSIONS = """
    INSERT INTO {new}agentmem_sessions (session_key, session_id, length, created_at, updated_at, stored_at)
    SELECT
        session_key, session_id, next_position, CAST(round(created_at * 1000000) AS INTEGER),
        CAST(round(updated_at * 1000000) AS INTEGER), CAST(round(updated_at * 1000000) AS INTEGER)
    FROM {old}agentmem_sessions{suffix} ORDER BY session_key
"""

# CROSS JOIN fixes the order of the loops, so that the table grows at its end.
_COPY_ITEMS = """
    INSERT INTO {new}agentmem_items (sequence, session_key, position, created_at, item)
    SELECT
        sequence, o.item_key >> 32, o.item_key & 0xFFFFFFFF, CAST(round(created_at * 1000000) AS INTEGER), item
    FROM temp.agentmem_arrival AS a CROSS JOIN {old}agentmem_items{suffix} AS o ON o.item_key = a.item_key
    WHERE sequence BETWEEN ? AND ? ORDER BY sequence
"""

_LAST_SEQUENCE = 2**63 - 1


def create_tables(raw: sqlite3.Connection) -> None:
    """Create the tables of this version; inside the caller's transaction."""
    for statement in (*_TABLES, BOOKMARKS, *_INDEXES):
        raw.execute(statement)
    mark(raw)


def create_empty_tables(raw: sqlite3.Connection) -> None:
    """Create the tables without their indexes, which :func:`create_indexes` makes faster once there are rows."""
    for statement in _TABLES:
        raw.execute(statement)


def create_indexes(raw: sqlite3.Connection) -> None:
    """Create the indexes and the view."""
    for statement in _INDEXES:
        raw.execute(statement)


def mark(raw: sqlite3.Connection) -> None:
    """Mark the file as agentmem's, and as of this version."""
    raw.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def upgrade_from_1(raw: sqlite3.Connection) -> None:
    """Bring the tables of version 1 to this version; inside the caller's transaction.

    Rows are copied by SQL alone, so that what is corrupt in them stays as it is, byte for byte.
    """
    # Else a view or trigger of somebody else's would follow the tables that are renamed, and be lost with them.
    raw.execute("PRAGMA legacy_alter_table = ON")
    try:
        raw.execute("DROP VIEW IF EXISTS agentmem_history")
        raw.execute("ALTER TABLE agentmem_items RENAME TO agentmem_items_1")
        raw.execute("ALTER TABLE agentmem_sessions RENAME TO agentmem_sessions_1")
    finally:
        raw.execute("PRAGMA legacy_alter_table = OFF")
    create_empty_tables(raw)
    old = Version1(suffix="_1")
    old.sort(raw)
    old.copy_sessions(raw)
    old.copy_items(raw, 1, _LAST_SEQUENCE)
    old.end(raw)
    raw.execute("DROP TABLE agentmem_items_1")
    raw.execute("DROP TABLE agentmem_sessions_1")
    create_indexes(raw)
    mark(raw)


class Version1:
    """The tables of version 1, and how their rows get into those of this version.

    Args:
        old: the database that has them, as SQLite's name for it and a dot; empty for the main one.
        new: likewise, the database that they are copied to.
        suffix: what follows the names of the old tables.
    """

    def __init__(self, old: str = "", new: str = "", suffix: str = "") -> None:
        self._names = {"old": old, "new": new, "suffix": suffix}

    def sort(self, raw: sqlite3.Connection) -> int:
        """Find the order in which the items arrived; returns how many there are."""
        create, fill = _ARRIVAL
        raw.execute(create)
        return raw.execute(fill.format(**self._names)).rowcount

    def copy_sessions(self, raw: sqlite3.Connection) -> None:
        """Copy all sessions; they keep their keys."""
        raw.execute(_COPY_SESSIONS.format(**self._names))

    def copy_items(self, raw: sqlite3.Connection, first: int, last: int) -> None:
        """Copy the items of these places in the order of arrival."""
        raw.execute(_COPY_ITEMS.format(**self._names), (first, last))

    def end(self, raw: sqlite3.Connection) -> None:
        """Forget the order."""
        raw.execute("DROP TABLE temp.agentmem_arrival")
