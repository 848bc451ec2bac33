"""Notices a WAL that belongs to another file than the one beside it.

Nothing in a WAL says which database it belongs to: its header has a salt and checksums of its own, and SQLite applies
every frame whose salt and checksum fit the WAL (sqlite.org/walformat.html, "Recovery"). So where a crash left a WAL and
the file is replaced by a copy, as ``cp backup.db app.db`` does, SQLite mixes the pages of two files.

Rules kept here:

- Each file that agentmem makes, and each copy, has a random number: SQLite's schema cookie, which any value suits
  (sqlite.org/fileformat2.html#schema_cookie) and every change of the schema raises by one.
- The cookie is on the first page, and a writer has that page in the WAL with its first transaction and with the first
  after each of its checkpoints (see ``checkpoint``).
- So the cookie of the file alone and the one that SQLite sees with the WAL are close together, or the WAL is another
  file's. Such a file is refused before it is opened for writing, because closing it would copy the WAL into it.

What is not noticed: an old copy of the same file that was made by other means than agentmem's backup, since it has
the file's own number.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

from ...errors import StorageCorruptError
from .errors import BUSY, primary_code

_MAX_CHANGES = 10_000
"""How many changes of the schema there may be in one WAL; far fewer than random numbers are apart."""


def begin_lineage(raw: sqlite3.Connection) -> None:
    """Give a file a random number. Nobody else may have it open, unless the transaction also makes its tables."""
    raw.execute(f"PRAGMA schema_version = {_MAX_CHANGES + secrets.randbelow(2**31 - 3 * _MAX_CHANGES)}")


def refuse_foreign_wal(path: str, busy_timeout_s: float) -> None:
    """Check that the WAL beside a file, if there is one, is the file's own. Writes nothing to either.

    Args:
        path: the absolute path of the file, without symbolic links.
        busy_timeout_s: how long to wait for another process that has the file locked, in seconds.

    Raises:
        StorageCorruptError: the WAL is another file's.
        sqlite3.OperationalError: another connection has the file locked.
    """
    if not _has_wal(path):
        return
    try:
        alone = _schema_cookie(path, "immutable=1", busy_timeout_s)
        with_wal = _schema_cookie(path, "mode=ro", busy_timeout_s)
    except sqlite3.Error as error:
        if primary_code(error) == BUSY:
            raise
        return  # what is wrong with the file meets whoever opens it next
    # A file without tables has 0: they are in the WAL until its first checkpoint.
    if alone and abs(alone - with_wal) > _MAX_CHANGES:
        raise StorageCorruptError(
            f"{path}-wal belongs to another file: a crash left it here, and then {path} was replaced by a copy; both "
            f"are as they were. agentmem restore BACKUP {path} puts a backup in its place. To go on with the file "
            f"as it was copied, remove {path}-wal and {path}-shm"
        )


def _has_wal(path: str) -> bool:
    try:
        return os.path.getsize(path + "-wal") > 0 and os.path.getsize(path) > 0
    except OSError:
        return False


def _schema_cookie(path: str, option: str, busy_timeout_s: float) -> int:
    # Read-only: a connection that may write would copy the WAL into the file when it closes.
    uri = f"{Path(path).as_uri()}?mode=ro&{option}"
    with closing(sqlite3.connect(uri, uri=True, timeout=busy_timeout_s, isolation_level=None)) as connection:
        cookie: int = connection.execute("PRAGMA schema_version").fetchone()[0]
        return cookie
