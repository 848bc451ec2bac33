"""Puts a backup in the place of a database's file.

Rules kept here:

- The file is replaced whole, by one rename of a complete and flushed copy, or stays as it was: before the rename, all
  that its WAL holds is copied into it, and the WAL is removed.
- Nobody else has the file open meanwhile: SQLite's exclusive lock on it is held from before the WAL is copied until
  after the rename. Every connection to a file in WAL mode holds a shared lock while it is open
  (sqlite.org/walformat.html#locks), so it is also noticed that somebody has it open.
- The new file keeps the mode and the owner of the old one.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from ...errors import StorageBusyError, StorageCorruptError, StorageError
from .backup import flush_folder, new_copy, remove, take_free_name, writing_a_copy
from .errors import BUSY, map_error, primary_code
from .schema import require_tables
from .snapshot import Halted, Snapshot
from .tables import APPLICATION_ID

_BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a file."""


def restore(snapshot: Snapshot, backup: str, target: str) -> None:
    """Copy the database, in the snapshot's state, to the place of the file at `target`, which need not exist.

    Args:
        snapshot: the state to copy.
        backup: the path of the database that is copied, for messages.
        target: the absolute path of the file that is replaced, without symbolic links.

    Raises:
        ValueError: both are the same file.
        StorageError: the backup is not a database of agentmem's, or `target` is a database of another program's, or
            cannot be written.
        StorageCorruptError: the backup is damaged, or `target` is no database.
        StorageBusyError: somebody has `target` open.
        StorageFullError: there is no space for the copy.
        SchemaVersionError: a newer agentmem wrote the backup.
        sqlite3.Error: the backup's header or schema cannot be read.
        Halted: the snapshot was halted, or its file changed.
    """
    if os.path.exists(target) and os.path.samefile(backup, target):
        raise ValueError(f"backup and target are the same file, {target}")
    require_tables(snapshot.connection, backup)
    require_no_damage(
        snapshot,
        backup,
        "was not restored; agentmem check names what is damaged, and agentmem copy takes what can be read into a new "
        "file",
    )
    folder = os.path.dirname(target)
    with writing_a_copy(snapshot, "restore to", target, f"a copy of {backup}"), new_copy(snapshot, folder) as copy:
        snapshot.require_valid()
        _put_in_place(copy, target)


def require_no_damage(snapshot: Snapshot, path: str, then: str) -> None:
    """Check a file's pages, because what is damaged takes no other file's place.

    Args:
        snapshot: the file.
        path: its path, for the message.
        then: what was not done, and what to do, for the message.

    Raises:
        StorageCorruptError: it is damaged.
    """
    try:
        (found,) = snapshot.connection.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if snapshot.halted:
            raise Halted from error
        found = str(error)
    if found != "ok":
        raise StorageCorruptError(f"{path} is damaged ({' '.join(found.split())}), and {then}")


def _put_in_place(copy: str, target: str) -> None:
    folder = os.path.dirname(target)
    if not os.path.lexists(target):
        _remove_beside(target, folder)
        take_free_name(copy, target)  # fails where somebody has made a file meanwhile
        flush_folder(folder)
        return
    if not os.path.isfile(target):
        raise StorageError(f"cannot restore to {target}: it is not a file; give the path of the database")
    with closing(connect_to_replace(target)) as connection:
        lock_exclusively(connection, target)
        _require_replaceable(connection, target)
        replace_file(connection, copy, target)
        # The file is not at its path any more, so closing leaves the new one's WAL alone (pager.c, databaseIsUnmoved).


def replace_file(connection: sqlite3.Connection, copy: str, target: str) -> None:
    """Give a complete and flushed file the name of another one, which is whole without its WAL before.

    Args:
        connection: has that one locked exclusively.
        copy: the path of the file that takes its place.
        target: the absolute path that it takes.
    """
    folder = os.path.dirname(target)
    _keep_mode_and_owner(copy, target)
    _copy_wal(connection, target)
    _remove_beside(target, folder)
    if os.name != "posix":
        connection.close()  # Windows replaces no file that is open
    os.replace(copy, target)
    flush_folder(folder)


def _copy_wal(connection: sqlite3.Connection, target: str) -> None:
    """Copy all that is in the file's WAL into the file, so that it is whole without it."""
    try:
        ((is_busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.DatabaseError as error:
        if primary_code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
            raise
        return  # the file is damaged, so that nothing whole is lost with its WAL
    if is_busy:
        raise _is_open(target)


def connect_to_replace(target: str) -> sqlite3.Connection:
    """Open a file that another one is to replace. Nothing is read or locked yet."""
    uri = f"{Path(target).as_uri()}?mode=rw"  # makes no file
    return sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)


def lock_exclusively(connection: sqlite3.Connection, target: str) -> None:
    """Take SQLite's exclusive lock on a file; it is held until the connection is closed.

    Raises:
        StorageBusyError: somebody has the file open.
        StorageCorruptError: it is no database.
    """
    # Without this, SQLite would open no file that is shorter than its header says.
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("PRAGMA fullfsync = ON")  # on macOS, fsync() alone leaves data in the drive's cache
    # In this mode the lock stays after the transaction (sqlite.org/pragma.html#pragma_locking_mode).
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    try:
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise _cannot_lock(error, target) from error


def _is_open(target: str) -> StorageBusyError:
    return StorageBusyError(
        f"{target} is open in this program or in another, and was not replaced; close every session and store on it "
        "(or end the programs that use it), then try again"
    )


def _cannot_lock(error: sqlite3.Error, target: str) -> StorageError:
    if primary_code(error) == BUSY:
        return _is_open(target)
    if primary_code(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StorageCorruptError(
            f"{target} is not a database ({error}), and was not replaced; if it is what is left of yours, move it and "
            f"{target}-wal away, then restore"
        )
    return map_error(error, target)


def _require_replaceable(connection: sqlite3.Connection, target: str) -> None:
    """Check that the file is agentmem's, of any version, or empty.

    Raises:
        StorageError: it is another program's.
    """
    ((application_id,),) = connection.execute("PRAGMA application_id")
    if application_id != APPLICATION_ID:
        ((pages,),) = connection.execute("PRAGMA page_count")
        if pages > 1 or application_id:
            raise StorageError(
                f"{target} is another program's database, and was not replaced; check the path, or move it away first"
            )


def _keep_mode_and_owner(copy: str, target: str) -> None:
    there, here = os.stat(target), os.stat(copy)
    os.chmod(copy, stat.S_IMODE(there.st_mode))
    if os.name == "posix" and (there.st_uid, there.st_gid) != (here.st_uid, here.st_gid):
        os.chown(copy, there.st_uid, there.st_gid)


def _remove_beside(target: str, folder: str) -> None:
    """Remove the WAL and what else SQLite keeps beside a file, before another file takes its place."""
    for suffix in _BESIDE:
        remove(target + suffix)
    flush_folder(folder)
