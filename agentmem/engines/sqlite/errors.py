"""What SQLite's errors mean to agentmem's callers: one table, and the mapping that it makes."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from ...errors import StorageBusyError, StorageCorruptError, StorageError, StorageFullError


class _Meaning(NamedTuple):
    text: str
    error: type[StorageError]
    advice: str


BUSY = 5
"""SQLITE_BUSY: somebody else holds the lock."""

ERRORS = {
    1: _Meaning("SQL logic error", StorageError, "its tables are not as agentmem made them; restore a backup"),
    2: _Meaning("internal logic error", StorageError, "a defect in SQLite; upgrade it"),
    3: _Meaning("access permission denied", StorageError, "check the file's permissions"),
    4: _Meaning("query aborted", StorageError, "nothing was written; try again"),
    BUSY: _Meaning(
        "database is locked",
        StorageBusyError,
        "another process is writing; nothing was written here, try again or raise busy_timeout_s",
    ),
    6: _Meaning("database table is locked", StorageBusyError, "nothing was written; try again"),
    7: _Meaning("out of memory", StorageError, "nothing was written; free memory and try again"),
    8: _Meaning(
        "attempt to write a readonly database", StorageError, "make the file and its folder writable for this user"
    ),
    9: _Meaning("interrupted", StorageError, "nothing was written; try again"),
    10: _Meaning("disk I/O error", StorageError, "check the disk and its free space; nothing was written"),
    11: _Meaning(
        "database disk image is malformed",
        StorageCorruptError,
        "copy the file away as it is, then restore a backup or try the sqlite3 shell's .recover",
    ),
    12: _Meaning("unknown operation", StorageError, "a defect in agentmem; please report it"),
    13: _Meaning("database or disk is full", StorageFullError, "nothing was written; make room and try again"),
    14: _Meaning(
        "unable to open database file",
        StorageError,
        "check that it is a file, its and its folder's permissions, and that the disk may be written, as WAL needs",
    ),
    15: _Meaning("locking protocol", StorageBusyError, "too many processes open the file at once; try again"),
    16: _Meaning("table contains no data", StorageError, "a defect in SQLite; upgrade it"),
    17: _Meaning("database schema has changed", StorageBusyError, "nothing was written; try again"),
    18: _Meaning("string or blob too big", StorageError, "SQLite stores up to 1,000,000,000 bytes; split the item"),
    19: _Meaning(
        "constraint failed",
        StorageCorruptError,
        "positions and rows do not fit together; copy the file away and restore a backup",
    ),
    20: _Meaning("datatype mismatch", StorageCorruptError, "its tables are not as agentmem made them"),
    21: _Meaning("bad parameter or other API misuse", StorageError, "a defect in agentmem; please report it"),
    22: _Meaning("large file support is disabled", StorageError, "the file has outgrown this system"),
    23: _Meaning("authorization denied", StorageError, "a defect in agentmem; please report it"),
    24: _Meaning("auxiliary database format error", StorageCorruptError, "restore a backup"),
    25: _Meaning("column index out of range", StorageError, "a defect in agentmem; please report it"),
    26: _Meaning("file is not a database", StorageCorruptError, "check the path: agentmem leaves the file as it is"),
}
"""SQLite's primary result codes that are errors (sqlite.org/rescode.html), with the text that it gives them,
by which Python 3.10 tells them apart, and what they mean for a caller."""


def map_error(error: sqlite3.Error, path: str, session_id: str | None = None) -> StorageError:
    """agentmem's error for SQLite's."""
    meaning = ERRORS.get(primary_code(error), _Meaning("", StorageError, "see the cause above"))
    subject = f"{path}: " if session_id is None else f"session {session_id[:80]!r} in {path}: "
    return meaning.error(f"{subject}{error}; {meaning.advice}")


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, also under Python 3.10, which does not pass it on."""
    code: int | None = getattr(error, "sqlite_errorcode", None)  # from Python 3.11 on
    if code is not None:
        return code & 0xFF
    return next((code for code, meaning in ERRORS.items() if meaning.text in str(error)), 1)
