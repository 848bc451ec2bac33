"""Removes what cleared sessions have left: their items and notes, a slice in each transaction.

Rules kept here:

- A session of many items loses its row, and its key is noted in ``agentmem_removed``, in one small transaction. Nobody
  sees its items from then on, because every read begins with the row; its id may begin anew at once, under another key.
- Nobody waits for the slices: the connection that writes runs one while no batch waits for it, and between two of them
  it leaves the file to the writers of other processes. Under writes that never pause, a slice comes after every
  ``MAX_BATCHES`` of them.
- Whoever closes the file waits for the slice under way. What is left then is removed by whoever opens the file next to
  write to it, also after a crash.
"""

from __future__ import annotations

import sqlite3
import time

from ...errors import StorageError
from .connection import Connection
from .errors import is_lock
from .schema import has_tables, refuse_newer
from .transaction import Transaction

SLICE_ROWS = 256
"""The most rows that a transaction removes. Of one among 64 sessions each lies on a page of its own: 1.1 MB of WAL, and
0.7 ms before the flush. Twice as many do not fit into SQLite's cache with their pages, and took 5 ms."""

MAX_BATCHES = 16
"""How many batches may come before a slice that is due."""

MIN_PAUSE_S = 0.002
"""How long the file is left to others after a slice, in seconds; longer where the slice took longer. Who waits for a
lock looks again after a few milliseconds (see ``waiting``), and must not always find it taken."""

LOCKED_PAUSE_S = 0.05
"""How long to wait where another process holds the lock, in seconds."""

_REMOVE_ITEMS = """
    DELETE FROM agentmem_items WHERE sequence IN (
        SELECT sequence FROM agentmem_items WHERE session_key = ? ORDER BY position LIMIT ?
    )
"""
_REMOVE_NOTES = """
    DELETE FROM agentmem_notes WHERE rowid IN (SELECT rowid FROM agentmem_notes WHERE session_key = ? LIMIT ?)
"""


class Removals:
    """What one writing connection removes between its batches.

    Args:
        name: the path of the database, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_due = True  # a crash, or whoever closed the file before, may have left something
        self._batches = 0

    def look(self) -> None:
        """There may be something to remove."""
        self._is_due = True

    def is_due(self) -> bool:
        """Whether :meth:`run` should be called when no batch waits."""
        return self._is_due

    def is_overdue(self) -> bool:
        """Whether it should be called now, although batches wait. Called at least once before each of these."""
        self._batches += 1
        return self._is_due and self._batches > MAX_BATCHES

    def run(self, connection: Connection) -> float:
        """Remove a slice, in the connection's thread, outside any transaction.

        Returns:
            How long to leave the file to others before the next slice, in seconds.
        """
        self._batches = 0
        begun = time.monotonic()
        try:
            if connection.file is not None:
                connection.file.check()
                connection.file.check_wal()
            self._is_due = has_tables(connection.raw) and self._remove_slice(connection)
        except (sqlite3.Error, StorageError) as error:
            if is_lock(error):
                return LOCKED_PAUSE_S
            # Nothing is lost, and no caller waits: what is wrong with the file meets the next call, too.
            self._is_due = False
        return max(MIN_PAUSE_S, time.monotonic() - begun)

    def _remove_slice(self, connection: Connection) -> bool:
        """Remove the next rows, if there are any; returns whether there may be more."""
        raw = connection.raw
        if _next_key(raw) is None:
            return False
        with Transaction(connection):
            refuse_newer(raw, self._name)
            key = _next_key(raw)  # another process may have been faster
            if key is None:
                return False
            if connection.checkpoints is not None:
                connection.checkpoints.begin(raw)
            removed = raw.execute(_REMOVE_ITEMS, (key, SLICE_ROWS)).rowcount
            if removed < SLICE_ROWS:
                removed += raw.execute(_REMOVE_NOTES, (key, SLICE_ROWS - removed)).rowcount
            if removed < SLICE_ROWS:
                raw.execute("DELETE FROM agentmem_removed WHERE session_key = ?", (key,))
            if connection.checkpoints is not None:
                connection.checkpoints.removed(removed)
        return True


def _next_key(raw: sqlite3.Connection) -> int | None:
    found = raw.execute("SELECT session_key FROM agentmem_removed LIMIT 1").fetchone()
    return None if found is None else int(found[0])
