"""When and how the WAL is copied into the database.

Rules kept here:

- Only the writing connection checkpoints, and it holds the write lock meanwhile. In SQLite before 3.51.3 (3.50.7,
  3.44.6) a checkpoint can lose pages if another connection, of this process or another, commits and restarts the WAL
  meanwhile (sqlite.org/wal.html#walresetbug). SQLite's own automatic checkpoints do not hold that lock. One gap
  remains: if SQLite cannot get the lock in time, it checkpoints without it.
- A checkpoint waits for the readers of the moment, at most ``WAIT_MS``, so that the next write restarts the WAL.
  SQLite's automatic checkpoints do not wait, so under steady reads the WAL grows without limit.
- Commits are acknowledged before a checkpoint: they are safe in the WAL.
"""

from __future__ import annotations

import os
import sqlite3

LIMIT_BYTES = 16 * 1024 * 1024
"""About how large the WAL becomes, in bytes. So many pages fit in one table of the WAL's index, so that readers search
only one (sqlite.org/walformat.html). With a quarter of it, which is SQLite's default, and flushes of 300 µs, 64
sessions that added at once made 26,000 adds a second instead of 30,000."""

RETRY_BYTES = LIMIT_BYTES // 4
"""How many bytes are written before a checkpoint that met a long read is tried again. The number doubles each time, up
to ``MAX_RETRY_BYTES``, so that writes wait only a few times for a backup of many seconds."""

MAX_RETRY_BYTES = 4 * LIMIT_BYTES

WAIT_MS = 30
"""How long a checkpoint waits for readers or for another process that writes, in milliseconds. A short read takes less
than 1 ms, a read of 20,000 items 30 ms."""

PAGES_PER_SESSION = 3
"""How many pages an append writes for each session in addition to the items' bytes: 3.3 were measured with sessions
picked at random among 150,000, and 0.7 with the same 64 again and again. Too many only checkpoint earlier."""

_PAGE_BYTES = 4096


class Checkpoints:
    """Decides when a checkpoint is due for one writing connection, and runs it.

    How much this connection wrote is estimated, because Python's sqlite3 cannot say it. What other processes write is
    seen in the size of the WAL file, which SQLite does not shrink when it restarts the WAL.

    Args:
        path: the path of the database.
    """

    def __init__(self, path: str) -> None:
        self._wal = path + "-wal"
        self._has_first_page = False
        self._written_bytes = 0
        self._due_bytes = LIMIT_BYTES
        self._retry_bytes = RETRY_BYTES
        self._max_wal_bytes = LIMIT_BYTES + RETRY_BYTES

    def begin(self, raw: sqlite3.Connection) -> None:
        """Have the first page in the WAL with this transaction, if it is the first one; see ``lineage``."""
        if not self._has_first_page:
            ((version,),) = raw.execute("PRAGMA user_version")
            raw.execute(f"PRAGMA user_version = {version}")  # writes the page, also where nothing changes

    def wrote(self, sessions: int, size_bytes: int) -> None:
        """Count a committed transaction.

        Args:
            sessions: how many sessions it changed.
            size_bytes: the size of the items that it stored.
        """
        self._has_first_page = True
        self._written_bytes += sessions * PAGES_PER_SESSION * _PAGE_BYTES + size_bytes

    def removed(self, rows: int) -> None:
        """Count a committed transaction that removed rows."""
        self._has_first_page = True
        self._written_bytes += rows * _PAGE_BYTES

    def is_due(self) -> bool:
        """Return whether :meth:`run` should be called now."""
        return self._written_bytes >= self._due_bytes or self._size_bytes() > self._max_wal_bytes

    def run(self, raw: sqlite3.Connection) -> None:
        """Copy the WAL into the database. Call it in the connection's thread, outside any transaction."""
        # TRUNCATE frees the space that one large transaction took. A file of the usual size is kept, because writing
        # into it costs half as much as extending a new one.
        mode = "TRUNCATE" if self._size_bytes() > 4 * LIMIT_BYTES else "RESTART"
        try:
            ((timeout_ms,),) = raw.execute("PRAGMA busy_timeout")
            raw.execute(f"PRAGMA busy_timeout = {WAIT_MS}")
            try:
                ((is_busy, _, _),) = raw.execute(f"PRAGMA wal_checkpoint({mode})")
            finally:
                raw.execute(f"PRAGMA busy_timeout = {timeout_ms}")
        except sqlite3.Error:
            is_busy = True  # Nothing is lost and no caller waits. If the fault lasts, the next write reports it.
        if is_busy:
            self._due_bytes = self._written_bytes + self._retry_bytes
            self._max_wal_bytes = max(LIMIT_BYTES, self._size_bytes()) + self._retry_bytes
            self._retry_bytes = min(2 * self._retry_bytes, MAX_RETRY_BYTES)
        else:
            self._has_first_page = False  # the next transaction begins the WAL anew
            self._written_bytes, self._due_bytes, self._retry_bytes = 0, LIMIT_BYTES, RETRY_BYTES
            self._max_wal_bytes = max(LIMIT_BYTES, self._size_bytes()) + RETRY_BYTES

    def _size_bytes(self) -> int:
        try:
            return os.stat(self._wal).st_size
        except OSError:
            return 0  # There is no WAL yet. FileIdentity.check_wal() notices one that was deleted.
