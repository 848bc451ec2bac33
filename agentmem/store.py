"""A whole database of sessions: what a web app opens once."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, TypeVar

from .checking import CheckReport, Progress
from .engines import open_engine
from .replay import SessionSettings
from .session import AsyncSession

SelfT = TypeVar("SelfT", bound="AsyncSessionStore")


class AsyncSessionStore:
    """One database that holds many sessions, and one pool for all of them.

    Args:
        db: path of an SQLite file, or a URL: ``sqlite:///relative.db``, ``sqlite:////absolute.db``,
            ``postgresql://user@host/database``. ":memory:" for a database that only this store and its sessions see.
            Or an ``asyncpg.Pool``.
        options: the engine's own: ``busy_timeout_s``; for SQLite also ``durability``, as in
            :class:`~agentmem.AsyncSQLiteSession`; for PostgreSQL also ``schema`` and ``statement_cache_size``, as in
            :class:`~agentmem.AsyncPostgresSession`.

    Raises:
        ValueError: an unknown URL scheme, or an option out of range.
        TypeError: an unknown option.
        MissingDependencyError: the database's driver is not installed; the message is the pip command.
    """

    __slots__ = ("_engine",)

    def __init__(self, db: str | os.PathLike[str] | Any, **options: Any) -> None:
        self._engine = open_engine(db, **options)

    def session(self, session_id: str, *, settings: SessionSettings | None = None) -> AsyncSession:
        """A handle on one conversation. No I/O; costs nothing to make or to drop, and need not be closed.

        Args:
            session_id: which conversation; 1 to 1,024 bytes in UTF-8, without NUL.
            settings: what its ``get_items()`` without a limit replays; default: everything.

        Raises:
            TypeError, ValueError: a session id or settings that are none.
        """
        return AsyncSession(self._engine, session_id, settings)

    async def open(self) -> None:
        """Connect now, so that a database that cannot be used says so here; ``async with`` does it.

        Raises:
            StorageError: the database cannot be used; the kinds are in ``agentmem.errors``.
            SessionClosedError: the store was closed.
        """
        await self._engine.open()

    async def check(self, *, progress: Progress | None = None) -> CheckReport:
        """Say what is wrong with the database, in one state of it, while others go on to read and write.

        What it looks for: damage that the database itself finds; sessions whose positions do not go from 0 to their
        end without a gap; items of no session; items that cannot be read. Damage does not end it: it says what cannot
        be read, and goes on where it can. It neither opens the store nor creates or writes anything, and needs little
        memory for any number of items. It takes about as long as reading everything; the WAL file grows by what is
        written meanwhile.

        Args:
            progress: called from time to time with how many items were checked and about how many there are, in
                another thread.

        Raises:
            StorageError: there is no database of agentmem's, or it cannot be read; the kinds are in
                ``agentmem.errors``.
            SessionClosedError: the store was closed.
        """
        return await self._engine.check(progress)

    async def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the database to a new file, while others go on to read and write.

        The copy is one state of the database: whole batches, and all that was acknowledged before the call. It is a
        complete file of agentmem's, readable by its owner alone, and comes to its name when it is complete and on the
        disk: a crash leaves nothing there, and an error or a cancellation nothing at all. A backup that is complete
        when its cancellation arrives stays.

        It is copied and flushed 1 MB at a time, because commits wait for what is being flushed: with 1 GB and tasks
        that wrote all the time, the longest commit took 3 to 30 ms, against 220 to 510 where the copy was flushed at
        once, and 360 to 430 with ``VACUUM INTO`` (more in ``engines/sqlite_backup.py``). A store in memory serves
        nobody while it is copied.

        Args:
            path: of the new file. Nothing is overwritten.

        Raises:
            StorageError: there is a file at `path`, or it cannot be written, or there is no database of agentmem's.
            StorageFullError: there is no room for the copy.
            SessionClosedError: the store was closed.
        """
        await self._engine.backup(path)

    async def close(self) -> None:
        """Finish the calls under way and close. Later calls on the store's sessions raise SessionClosedError.

        Idempotent.
        """
        await self._engine.close()

    async def __aenter__(self: SelfT) -> SelfT:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._engine.name}>"
