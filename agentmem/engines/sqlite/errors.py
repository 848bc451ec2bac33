"""The meaning of SQLite's result codes for agentmem's callers."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from ...errors import StorageBusyError, StorageCorruptError, StorageError, StorageFullError


class _Meaning(NamedTuple):
    """What an error becomes, and what a caller can do about it."""

    error: type[StorageError]
    advice: str


BUSY = sqlite3.SQLITE_BUSY
"""Another connection holds the lock."""

_AGENTMEM_DEFECT = _Meaning(StorageError, "a defect in agentmem; please report it")
_SQLITE_DEFECT = _Meaning(StorageError, "a defect in SQLite; upgrade it")
_TRY_AGAIN = _Meaning(StorageBusyError, "nothing was written; try again")

ERRORS = {
    sqlite3.SQLITE_ERROR: _Meaning(StorageError, "its tables are not as agentmem made them; restore a backup"),
    sqlite3.SQLITE_INTERNAL: _SQLITE_DEFECT,
    sqlite3.SQLITE_PERM: _Meaning(StorageError, "check the file's permissions"),
    sqlite3.SQLITE_ABORT: _Meaning(StorageError, "nothing was written; try again"),
    BUSY: _Meaning(
        StorageBusyError,
        "another process is writing; nothing was written here, try again or raise busy_timeout_s",
    ),
    sqlite3.SQLITE_LOCKED: _TRY_AGAIN,
    sqlite3.SQLITE_NOMEM: _Meaning(StorageError, "nothing was written; free memory and try again"),
    sqlite3.SQLITE_READONLY: _Meaning(StorageError, "make the file and its folder writable for this user"),
    sqlite3.SQLITE_INTERRUPT: _Meaning(StorageError, "nothing was written; try again"),
    sqlite3.SQLITE_IOERR: _Meaning(StorageError, "check the disk and its free space; nothing was written"),
    sqlite3.SQLITE_CORRUPT: _Meaning(
        StorageCorruptError,
        "copy the file away as it is, then restore a backup or try the sqlite3 shell's .recover",
    ),
    sqlite3.SQLITE_NOTFOUND: _AGENTMEM_DEFECT,
    sqlite3.SQLITE_FULL: _Meaning(StorageFullError, "nothing was written; make room and try again"),
    sqlite3.SQLITE_CANTOPEN: _Meaning(
        StorageError,
        "check that it is a file, its and its folder's permissions, and that the disk may be written, as WAL needs",
    ),
    sqlite3.SQLITE_PROTOCOL: _Meaning(StorageBusyError, "too many processes open the file at once; try again"),
    sqlite3.SQLITE_EMPTY: _SQLITE_DEFECT,
    sqlite3.SQLITE_SCHEMA: _TRY_AGAIN,
    sqlite3.SQLITE_TOOBIG: _Meaning(StorageError, "SQLite stores up to 1,000,000,000 bytes; split the item"),
    sqlite3.SQLITE_CONSTRAINT: _Meaning(
        StorageCorruptError,
        "positions and rows do not fit together; copy the file away and restore a backup",
    ),
    sqlite3.SQLITE_MISMATCH: _Meaning(StorageCorruptError, "its tables are not as agentmem made them"),
    sqlite3.SQLITE_MISUSE: _AGENTMEM_DEFECT,
    sqlite3.SQLITE_NOLFS: _Meaning(StorageError, "the file has outgrown this system"),
    sqlite3.SQLITE_AUTH: _AGENTMEM_DEFECT,
    sqlite3.SQLITE_FORMAT: _Meaning(StorageCorruptError, "restore a backup"),
    sqlite3.SQLITE_RANGE: _AGENTMEM_DEFECT,
    sqlite3.SQLITE_NOTADB: _Meaning(StorageCorruptError, "check the path: agentmem leaves the file as it is"),
}
"""By SQLite's primary result code. These are all that are errors (sqlite.org/rescode.html)."""


def map_error(error: sqlite3.Error, path: str, session_id: str | None = None) -> StorageError:
    """Return agentmem's error for one of sqlite3's.

    Args:
        error: the error.
        path: the path of the database, for the message.
        session_id: the session that the call was for, for the message; None if it was for the whole database.
    """
    meaning = ERRORS.get(primary_code(error), _Meaning(StorageError, "see the cause above"))
    subject = f"{path}: " if session_id is None else f"session {session_id[:80]!r} in {path}: "
    return meaning.error(f"{subject}{error}; {meaning.advice}")


def is_lock(error: BaseException) -> bool:
    """Whether an error says that others hold a lock. What meets it has stored nothing, and may be tried again."""
    return isinstance(error, StorageBusyError) or (isinstance(error, sqlite3.Error) and primary_code(error) == BUSY)


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code for an error.

    An error that Python's sqlite3 raised by itself, without SQLite, has no code and counts as ``SQLITE_ERROR``.
    """
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF
