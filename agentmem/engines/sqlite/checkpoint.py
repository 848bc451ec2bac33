"""When and how the WAL is copied into the database.

Rules kept here:

- Only the connection that writes does it, and holds the lock for writing meanwhile: SQLite before 3.51.3 (3.50.7,
  3.44.6) can lose pages when a checkpoint runs while another connection, of this process or another, commits and
  starts the WAL anew (sqlite.org/wal.html#walresetbug). SQLite's own automatic checkpoints do not hold that lock; and
  it goes on without it where it waited for it in vain, which is what remains.
- Afterwards the next write starts the WAL anew, as soon as the readers of the moment are done. SQLite's automatic
  checkpoints wait for nobody, and under steady readers the WAL grows without end.
- What was committed is reported first: it is safe in the WAL.
"""

from __future__ import annotations

import os
import sqlite3

LIMIT_BYTES = 16 * 1024 * 1024
"""About how long the WAL gets: as many pages as one table of its index holds, so that readers search no second one
(sqlite.org/walformat.html). With a quarter of it, SQLite's default, and flushes of 300 µs, 64 sessions that added at
once made 26,000 adds a second instead of 30,000."""

RETRY_BYTES = LIMIT_BYTES // 4
"""How much more is written before trying again where a reader did not end in time; twice as much each time, up to
``LONGEST_RETRY_BYTES``, so that a backup of many seconds is waited for a few times only."""

LONGEST_RETRY_BYTES = 4 * LIMIT_BYTES

WAIT_MS = 30
"""How long a checkpoint waits for the readers of the moment, or for another process that writes: a short read takes
less than a millisecond, one of 20,000 items 30."""

PAGES_A_SESSION = 3
"""Pages that an append writes for each session beside the items' bytes: measured were 2.6."""

_PAGE_BYTES = 4096


class Checkpoints:
    """Knows when a checkpoint is due for one connection that writes, and runs it.

    How much was written is estimated, because Python's sqlite3 does not tell; what others write shows in the size of
    the file, which SQLite does not shrink when it starts the WAL anew.

    Args:
        path: of the database.
    """

    def __init__(self, path: str) -> None:
        self._wal = path + "-wal"
        self._written_bytes = 0
        self._due_bytes = LIMIT_BYTES
        self._retry_bytes = RETRY_BYTES
        self._longest_bytes = LIMIT_BYTES + RETRY_BYTES

    def wrote(self, sessions: int, size_bytes: int) -> None:
        """Count a transaction that changed so many sessions, and stored items of so many bytes."""
        self._written_bytes += sessions * PAGES_A_SESSION * _PAGE_BYTES + size_bytes

    def is_due(self) -> bool:
        """Whether :meth:`run` should be called now."""
        return self._written_bytes >= self._due_bytes or self._size_bytes() > self._longest_bytes

    def run(self, raw: sqlite3.Connection) -> None:
        """Copy the WAL into the database, in the connection's thread and outside any transaction."""
        # Room that one large transaction took is given back; a file of the usual size is kept, because to write into
        # it costs half of what it costs to extend one.
        mode = "TRUNCATE" if self._size_bytes() > 4 * LIMIT_BYTES else "RESTART"
        try:
            ((timeout_ms,),) = raw.execute("PRAGMA busy_timeout")
            raw.execute(f"PRAGMA busy_timeout = {WAIT_MS}")
            try:
                ((is_busy, _, _),) = raw.execute(f"PRAGMA wal_checkpoint({mode})")
            finally:
                raw.execute(f"PRAGMA busy_timeout = {timeout_ms}")
        except sqlite3.Error:
            is_busy = True  # nothing is lost, and nobody waits for it: a lasting fault meets the next write, too
        if is_busy:
            self._due_bytes = self._written_bytes + self._retry_bytes
            self._longest_bytes = max(LIMIT_BYTES, self._size_bytes()) + self._retry_bytes
            self._retry_bytes = min(2 * self._retry_bytes, LONGEST_RETRY_BYTES)
        else:
            self._written_bytes, self._due_bytes, self._retry_bytes = 0, LIMIT_BYTES, RETRY_BYTES
            self._longest_bytes = max(LIMIT_BYTES, self._size_bytes()) + RETRY_BYTES

    def _size_bytes(self) -> int:
        try:
            return os.stat(self._wal).st_size
        except OSError:
            return 0  # there is none yet; that it was deleted is found elsewhere
