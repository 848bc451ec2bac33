"""An SQLite file that holds sessions: how a connection to it is set up, and which files are agentmem's.

Rules kept here:

- ``PRAGMA application_id`` marks agentmem's files, and ``user_version`` is their schema version. A database of another
  program or of a newer agentmem is not changed at all.
- A file that a newer agentmem upgrades while it is open is not read or written any more; see :func:`refuse_newer`.
- A file of an older version is upgraded when it is opened, in one transaction, if that takes seconds; a larger one is
  left to the user's command, see ``upgrading``.
- A file of the Agents SDK gets agentmem's tables in the transaction that takes over its history; see ``takeover``.
"""

from __future__ import annotations

import os
import sqlite3

from ...errors import SchemaVersionError, StorageError
from .checkpoint import Checkpoints
from .connection import Connection
from .lineage import begin_lineage
from .sdk_tables import holds_sdk_tables, is_sdk_file
from .tables import APPLICATION_ID, SCHEMA_VERSION, create_tables, upgrade_from_1

MAX_UPGRADE_BYTES = 100_000_000
"""The largest file that is upgraded when it is opened. Others that want to write wait meanwhile: 100 MB took 3 s."""


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
        SchemaVersionError: a newer agentmem wrote the file, or an older one, and it is too large to be upgraded here.
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


def create_or_upgrade(raw: sqlite3.Connection) -> None:
    """Create the tables, or upgrade them to ``SCHEMA_VERSION``; inside the caller's transaction."""
    version = schema_version(raw)
    if version == 0:
        create_tables(raw)
    elif version < SCHEMA_VERSION:
        upgrade_from_1(raw)


def has_tables(raw: sqlite3.Connection) -> bool:
    """Whether the file has the tables of this version. A file of the Agents SDK's gets them with the takeover."""
    return schema_version(raw) == SCHEMA_VERSION


def schema_version(raw: sqlite3.Connection) -> int:
    """The file's schema version; 0 where it has no tables of agentmem's."""
    ((version,),) = raw.execute("PRAGMA user_version")
    return int(version)


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
    if (version := schema_version(raw)) > SCHEMA_VERSION:
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
    if has_tables(raw):
        return
    raw.execute("BEGIN IMMEDIATE")
    try:
        # Checked again under the lock: another process may have created or upgraded the tables meanwhile.
        _require_own_file(raw, name, accepts_sdk_file)
        _refuse_large(raw, name)
        is_new = raw.execute("PRAGMA schema_version").fetchone() == (0,)
        create_or_upgrade(raw)
        if is_new:
            begin_lineage(raw)
        raw.execute("COMMIT")
    finally:
        if raw.in_transaction:  # not after the commit, and not if SQLite has rolled back by itself
            raw.execute("ROLLBACK")


def _refuse_large(raw: sqlite3.Connection, name: str) -> None:
    """Check that an upgrade of the file would not keep others waiting for long.

    Raises:
        SchemaVersionError: it would.
    """
    version = schema_version(raw)
    if 0 < version < SCHEMA_VERSION:
        ((size_bytes,),) = raw.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        if size_bytes > MAX_UPGRADE_BYTES:
            raise SchemaVersionError(
                f"{name} has schema version {version}, this agentmem needs {SCHEMA_VERSION}, and with "
                f"{size_bytes // 1_000_000:,} MB the file is too large to be upgraded while it is opened; run "
                f"agentmem upgrade {name} while nobody has it open"
            )
