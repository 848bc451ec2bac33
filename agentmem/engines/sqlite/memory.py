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
    """

    def __init__(self, prepare: Callable[[Connection], None]) -> None:
        self._prepare = prepare
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._is_closed = False

    async def open(self) -> Connection:
        """Return the connection; the first call opens it.

        Raises:
            SessionClosedError: it was closed, also while this call opened it.
            StorageError: the program is ending.
        """
        self._refuse_closed()
        connection = self._connection
        if connection is None:
            connection = await self._open()
        elif connection.is_lost():
            raise StorageError("the session in memory was closed because the program is ending")
        return connection

    async def close(self) -> None:
        """Close the connection, and open no other."""
        with self._lock:
            self._is_closed = True
            connection, self._connection = self._connection, None
        if connection is not None and self._process == os.getpid():  # a fork has no thread that could close it
            await connection.close()

    def drop(self) -> None:
        """Have the connection closed in its own thread, soon, because nobody can use it any more.

        For a finalizer, which runs at any moment in any thread: it takes no lock and waits for nothing.
        """
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None and self._process == os.getpid():
            connection.end_soon()

    async def _open(self) -> Connection:
        opened = await Connection.open(MEMORY, self._prepare)
        with self._lock:
            if self._connection is None and not self._is_closed:
                self._connection = opened
            connection = self._connection
        if connection is not opened:  # another loop's thread was faster, or it was closed meanwhile
            await opened.close()
        if connection is None:
            self._refuse_closed()
        assert connection is not None
        return connection

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise SessionClosedError("the database in memory was closed; open a new one")
