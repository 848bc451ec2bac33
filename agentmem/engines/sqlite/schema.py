"""An SQLite file that holds sessions: its tables, and how a connection to it is set up.

Rules kept here:

- An item's rowid combines its session's key and its position in one number, so that a session's rows are stored
  together in the table itself. Reading the tail of one session among 200,000 took 13 µs; it took 41 µs with a separate
  index, and 227 µs with WITHOUT ROWID, whose inner pages hold whole rows.
- ``PRAGMA application_id`` marks agentmem's files, and ``user_version`` is their schema version. A database of another
  program or of a newer agentmem is not changed at all.
- A file that a newer agentmem upgrades while it is open is not read or written any more; see :func:`refuse_newer`.
- Each schema version has a step that upgrades a file from the version before. The missing steps run in one transaction.
- A file of the Agents SDK gets agentmem's tables in the transaction that takes over its history; see ``takeover``.
"""

from __future__ import annotations

import os
import sqlite3

from ...errors import SchemaVersionError, StorageError
from .checkpoint import Checkpoints
from .connection import Connection
from .lineage import begin_lineage
from .sdk_tables import BOOKMARKS, holds_sdk_tables, is_sdk_file

APPLICATION_ID = 0x61676D65  # "agme"

POSITION_BITS = 32
"""How many low bits of an item's key are its position. The higher bits are the session's key."""

_STEPS: tuple[tuple[str, ...], ...] = (
    # To version 1.
    (
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
        BOOKMARKS,
        # For users of the sqlite3 shell. agentmem itself reads the tables.
        """
        CREATE VIEW agentmem_history AS
            SELECT
                session_id, item_key & 0xFFFFFFFF AS position, datetime(i.created_at, 'unixepoch') AS created_at, item
            FROM agentmem_items AS i JOIN agentmem_sessions ON session_key = item_key >> 32
        """,
    ),
)
"""The statements of each upgrade step. Step ``n`` upgrades from version ``n``; a new file has version 0. SQLite stores
the comments in a CREATE statement in the file, so they are part of a version."""

SCHEMA_VERSION = len(_STEPS)


def prepare_writer(connection: Connection, name: str, *, durability: str, accepts_sdk_file: bool) -> None:
    """Set up the writing connection, and create or upgrade the tables. May be called again where it met a lock.

    Args:
        connection: the connection; this runs in its thread.
        name: the path of the database, for messages.
        durability: "full" flushes every commit to the disk; "normal" leaves that to the next checkpoint.
        accepts_sdk_file: whether a file of the Agents SDK is accepted. It stays unchanged here: the takeover creates
            agentmem's tables in it.

    Raises:
        StorageError: the file is another program's database, or a file of the Agents SDK that is not accepted.
        StorageError: the file cannot be used in WAL mode.
        SchemaVersionError: a newer agentmem wrote the file.
        sqlite3.Error: the file cannot be read or written, or another connection holds a lock.
    """
    raw = connection.raw
    connection.is_writer = True
    if not connection.in_memory:
        _require_own_file(raw, name, accepts_sdk_file)
        _switch_to_wal(raw, name)
    raw.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
    raw.execute("PRAGMA wal_autocheckpoint = 0")
    if not connection.in_memory:
        connection.checkpoints = Checkpoints(os.path.realpath(name))  # SQLite also follows symbolic links
    raw.execute("PRAGMA fullfsync = ON")  # on macOS, fsync() alone leaves data in the drive's cache
    if not (accepts_sdk_file and is_sdk_file(raw)):
        _create_or_upgrade(raw, name, accepts_sdk_file)


def prepare_reader(connection: Connection) -> None:
    """Set up a reading connection."""
    # Only the writing connection may checkpoint; see ``checkpoint``.
    connection.raw.execute("PRAGMA query_only = ON")
    connection.raw.execute("PRAGMA wal_autocheckpoint = 0")


def upgrade(raw: sqlite3.Connection) -> None:
    """Create the tables, or upgrade them to ``SCHEMA_VERSION``; inside the caller's transaction."""
    (version,) = raw.execute("PRAGMA user_version").fetchone()
    if version < SCHEMA_VERSION:
        for step in _STEPS[version:]:
            for statement in step:
                raw.execute(statement)
        raw.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def require_tables(raw: sqlite3.Connection, name: str) -> None:
    """Check that the database has agentmem's tables already.

    Raises:
        StorageError: the database is empty, another program's, or the Agents SDK's.
        SchemaVersionError: a newer agentmem wrote the database.
        sqlite3.Error: its header or schema cannot be read.
    """
    _require_own_file(raw, name, accepts_sdk_file=False)
    if raw.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise StorageError(f"{name} is empty, nothing was ever stored in it; check the path")


def refuse_newer(raw: sqlite3.Connection, name: str) -> None:
    """Check that no newer agentmem has upgraded the file since it was opened. Takes 3 to 5 µs.

    In a transaction that writes, what it says holds until the commit. After a read, it says so of that read too,
    because a file is never downgraded.

    Raises:
        SchemaVersionError: a newer agentmem has upgraded it.
        sqlite3.Error: its header cannot be read.
    """
    ((version,),) = raw.execute("PRAGMA user_version")
    if version > SCHEMA_VERSION:
        raise _newer(name, version)


def _newer(name: str, version: int) -> SchemaVersionError:
    return SchemaVersionError(
        f"{name} has schema version {version}, this agentmem knows up to {SCHEMA_VERSION}; upgrade agentmem"
    )


def _require_own_file(raw: sqlite3.Connection, name: str, accepts_sdk_file: bool) -> None:
    """Check that the database is agentmem's or empty, or is the SDK's and accepted. Changes nothing.

    Raises:
        StorageError: it is another program's, or the Agents SDK's and not accepted.
        SchemaVersionError: a newer agentmem wrote it.
    """
    application_id, version, tables = raw.execute(
        """
        SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
        FROM pragma_application_id, pragma_user_version
        """
    ).fetchone()
    if application_id == APPLICATION_ID:
        if version > SCHEMA_VERSION:
            raise _newer(name, version)
    elif is_sdk_file(raw):
        if not accepts_sdk_file:
            raise StorageError(
                f"{name} was written by the Agents SDK. To go on with its history, import SQLiteSession or "
                "AsyncSQLiteSession from agentmem.integrations.openai_agents, or run: agentmem import-sdk FILE"
            )
    elif tables or application_id or version:
        raise StorageError(
            f"{name} is another program's database; give agentmem a file of its own"
            + (" (agentmem import-sdk FILE --into NEW copies the Agents SDK's history)" * holds_sdk_tables(raw))
        )


def _switch_to_wal(raw: sqlite3.Connection, name: str) -> None:
    (mode,) = raw.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StorageError(f"{name} cannot be used in WAL mode ({mode} instead); put it on a local disk")


def _create_or_upgrade(raw: sqlite3.Connection, name: str, accepts_sdk_file: bool) -> None:
    (version,) = raw.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    raw.execute("BEGIN IMMEDIATE")
    try:
        # Checked again under the lock: another process may have created or upgraded the tables meanwhile.
        _require_own_file(raw, name, accepts_sdk_file)
        is_new = raw.execute("PRAGMA schema_version").fetchone() == (0,)
        upgrade(raw)
        if is_new:
            begin_lineage(raw)
        raw.execute("COMMIT")
    finally:
        if raw.in_transaction:  # not after the commit, and not if SQLite has rolled back by itself
            raw.execute("ROLLBACK")
