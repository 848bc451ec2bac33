"""A database in memory: one connection that all event loops of its session or store share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ...errors import SessionClosedError, StorageError
from .connection import MEMORY, Connection


class MemoryDatabase:
    """The only connection to a database in memory. The data is gone when it closes.

    Args:
        prepare: sets up the connection, in the connection's thread.
        busy_timeout_s: passed to the connection, which never waits because it is the only one.
    """

    def __init__(self, prepare: Callable[[Connection], None], busy_timeout_s: float) -> None:
        self._prepare = prepare
        self._busy_timeout_s = busy_timeout_s
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._is_closed = False

    async def open(self) -> Connection:
        """Return the connection. The first call opens it.

        Raises:
            SessionClosedError: the database was closed.
            StorageError: the program is ending.
            sqlite3.Error: SQLite cannot open it.
            Exception: what `prepare` raises.
        """
        if self._is_closed:
            raise SessionClosedError("the database in memory was closed; open a new one")
        if self._connection is not None and self._connection.is_lost():
            raise StorageError("the session in memory was closed because the program is ending")
        if self._connection is None:
            opened = await Connection.open(MEMORY, self._busy_timeout_s, self._prepare)
            with self._lock:
                if self._connection is None:
                    self._connection = opened
            if self._connection is not opened:  # another event loop opened one meanwhile
                await opened.close()
        return self._connection

    async def close(self) -> None:
        """Close the connection. It is not opened again."""
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None and self._process == os.getpid():  # a forked process lacks the thread that closes it
            await connection.close()
