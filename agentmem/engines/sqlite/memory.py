"""A database in memory: one connection, which all event loops of its handle or store share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ...errors import SessionClosedError, StorageError
from .connection import MEMORY, Connection


class MemoryDatabase:
    """The one connection of a database in memory. Closing it ends the data.

    Args:
        prepare: sets up the connection, in its thread.
        busy_timeout_s: for the connection, which never waits.
    """

    def __init__(self, prepare: Callable[[Connection], None], busy_timeout_s: float) -> None:
        self._prepare = prepare
        self._busy_timeout_s = busy_timeout_s
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._is_closed = False

    async def open(self) -> Connection:
        """The connection; opened by the first call.

        Raises:
            SessionClosedError: it was closed.
            StorageError: the program is ending.
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
            if self._connection is not opened:  # another loop's thread was faster
                await opened.close()
        return self._connection

    async def close(self) -> None:
        """Close the connection, and open no other."""
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None and self._process == os.getpid():  # a fork has no thread that could close it
            await connection.close()
