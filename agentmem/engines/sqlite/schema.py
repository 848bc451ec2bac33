"""An SQLite file that holds sessions: its tables, and how a connection to it is set up.

Rules kept here:

- An item's rowid is its session's key and its position in one number, so that a session's rows lie together
  in the table itself: reading the tail of one session among 200,000 took 13 µs, against 41 µs with a
  separate index and 227 µs with WITHOUT ROWID, whose inner pages hold whole rows.
- ``PRAGMA application_id`` and ``user_version`` tell agentmem's files from others and older from newer ones. Another
  program's database, and a newer agentmem's, is left exactly as it is.
- A file of the Agents SDK's that is taken over gets agentmem's tables with that, in one transaction.
"""

from __future__ import annotations

import os
import sqlite3
import time

from ...errors import SchemaVersionError, StorageError
from . import takeover
from .checkpoint import Checkpoints
from .connection import WorkerConnection
from .errors import BUSY, primary_code
from .sdk_tables import SDKTables, holds_sdk_tables, is_sdk_file

APPLICATION_ID = 0x61676D65  # "agme"
SCHEMA_VERSION = 1

POSITION_BITS = 32
"""Of an item's key; the session's key stands above them."""

_TABLES = (
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
    takeover.SCHEMA,
    # For people with the sqlite3 shell; agentmem reads the tables.
    """
    CREATE VIEW agentmem_history AS
        SELECT session_id, item_key & 0xFFFFFFFF AS position, datetime(i.created_at, 'unixepoch') AS created_at, item
        FROM agentmem_items AS i JOIN agentmem_sessions ON session_key = item_key >> 32
    """,
)


def prepare_writer(
    raw: WorkerConnection, path: str, *, busy_timeout_s: float, durability: str, takes_over: SDKTables | None
) -> None:
    """Set up the connection that writes, and have the tables made or upgraded.

    Raises:
        StorageError, SchemaVersionError: it is not a file for this agentmem.
    """
    raw.is_writer = True
    if not raw.in_memory:
        refuse_foreign(raw, path, takes_over)
        _switch_to_wal(raw, path, time.monotonic() + busy_timeout_s)
    raw.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
    raw.execute("PRAGMA wal_autocheckpoint = 0")
    if not raw.in_memory:
        raw.checkpoints = Checkpoints(os.path.realpath(path))  # SQLite follows links, too
    raw.execute("PRAGMA fullfsync = ON")  # macOS: fsync() alone leaves the data in the drive's cache
    if takes_over is None or not is_sdk_file(raw):  # else with the takeover, in one transaction
        _create_or_upgrade(raw, path, takes_over)


def prepare_reader(raw: WorkerConnection) -> None:
    """Set up a connection that reads."""
    # Only the writer writes and checkpoints; see sqlite_checkpoint.
    raw.execute("PRAGMA query_only = ON")
    raw.execute("PRAGMA wal_autocheckpoint = 0")


def create_tables(raw: WorkerConnection) -> None:
    """Make agentmem's tables, if there are none; inside the caller's transaction."""
    if raw.execute("PRAGMA user_version").fetchone() == (0,):
        for statement in _TABLES:
            raw.execute(statement)
        raw.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def require_tables(raw: sqlite3.Connection, path: str) -> None:
    """Raises what opening the file would raise, and StorageError where opening would make agentmem's tables."""
    refuse_foreign(raw, path, takes_over=None)
    if raw.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise StorageError(f"{path} is empty, nothing was ever stored in it; check the path")


def refuse_foreign(raw: sqlite3.Connection, path: str, takes_over: SDKTables | None) -> None:
    """Leave other programs' databases and newer versions' files exactly as they are."""
    application_id, version, tables = raw.execute(
        """
        SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
        FROM pragma_application_id, pragma_user_version
        """
    ).fetchone()
    if application_id == APPLICATION_ID:
        if version > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"{path} has schema version {version}, this agentmem knows up to {SCHEMA_VERSION}; upgrade agentmem"
            )
    elif is_sdk_file(raw):
        if takes_over is None:
            raise StorageError(
                f"{path} was written by the Agents SDK. To go on with its history, import SQLiteSession or "
                "AsyncSQLiteSession from agentmem.integrations.openai_agents, or run: agentmem import-sdk FILE"
            )
    elif tables or application_id or version:
        raise StorageError(
            f"{path} is another program's database; give agentmem a file of its own"
            + (" (agentmem import-sdk FILE --into NEW copies the Agents SDK's history)" * holds_sdk_tables(raw))
        )


def _switch_to_wal(raw: WorkerConnection, path: str, deadline: float) -> None:
    while True:
        try:
            (mode,) = raw.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            # Processes that open a new file together get this at once, without SQLite's own waiting, because
            # two that wait for each other's lock would never go on.
            if primary_code(error) != BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        else:
            if mode != "wal":
                raise StorageError(f"{path} cannot be used in WAL mode ({mode} instead); put it on a local disk")
            return


def _create_or_upgrade(raw: WorkerConnection, path: str, takes_over: SDKTables | None) -> None:
    (version,) = raw.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    with Transaction(raw):
        # Looked at again under the lock: another process may have created it meanwhile.
        refuse_foreign(raw, path, takes_over)
        create_tables(raw)


class Transaction:
    """``BEGIN IMMEDIATE``, then ``COMMIT``, or ``ROLLBACK`` when something is raised.

    The hop before is reported as done just before this one's commit, so that the event loop answers its callers while
    this thread waits for the disk; else each would wait for the other. 256 sessions that added at once made 40,000
    adds a second by that instead of 32,000.
    """

    def __init__(self, raw: WorkerConnection) -> None:
        self._raw = raw

    def __enter__(self) -> None:
        if not self._raw.has_unreported():
            self._raw.execute("BEGIN IMMEDIATE")
            return
        ((timeout_ms,),) = self._raw.execute("PRAGMA busy_timeout")
        self._raw.execute("PRAGMA busy_timeout = 0")
        try:
            self._raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if primary_code(error) != BUSY:
                raise
            self._raw.report()  # it must not wait for another process's lock
        finally:
            self._raw.execute(f"PRAGMA busy_timeout = {timeout_ms}")
        if not self._raw.in_transaction:
            self._raw.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if kind is None:
                self._raw.report()
                self._raw.execute("COMMIT")
        finally:
            if self._raw.in_transaction:  # not after a commit, nor where SQLite has rolled back by itself
                self._raw.execute("ROLLBACK")
