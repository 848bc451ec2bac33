"""A whole database of sessions: what a web app opens once."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, TypeVar

from .checking import CheckReport, Progress
from .copying import CopyReport, copy_sessions
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

    @property
    def name(self) -> str:
        """The database as messages name it: an absolute path, or a URL without its password."""
        return self._engine.name

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
            StorageError: there is a file at `path`, or it cannot be written, or there is no database of agentmem's; or
                it is in PostgreSQL, which ``pg_dump`` backs up.
            StorageFullError: there is no room for the copy.
            SessionClosedError: the store was closed.
        """
        await self._engine.backup(path)

    async def copy_to(self, other: AsyncSessionStore, *, progress: Progress | None = None) -> CopyReport:
        """Copy every session to another store, of this or another kind of database, while others go on to use this one.

        Run again, it copies what is new. A session of which the other store holds a beginning, item for item, gets the
        rest; one that is equal is left alone; one that differs is left as it is, and named in the report. So a copy
        that was cancelled or killed is completed by the next one: what it copied of each session is a beginning of it.

        Items go over as they are stored, byte for byte, corrupt ones too. After that they are read from both stores,
        and their number and a digest compared. A session is copied up to the length that it had when it was listed;
        items that are appended meanwhile are left to the next run. If it changes otherwise, or an item's text is no
        UTF-8 or holds NUL, which not every database stores, the report says so, and the other sessions are copied.

        Not copied: the times at which items were stored, which in the copy are those of the copy; sessions without
        items; what is not in sessions. This store is only read, but an SQLite file must be one that may be written (or
        be copied from a backup). Nobody else may write to the same sessions in `other` meanwhile, another copy
        included: what came between is found and reported, but not undone.

        Args:
            other: the store that gets the sessions; opened, and its database made if there is none.
            progress: called from time to time with how many items were dealt with and about how many there are, on
                the event loop that copies.

        Raises:
            ValueError: both stores are on the same database.
            TypeError: `other` is no store of this class.
            StorageError: there is no database of agentmem's to copy from, and none was made to copy to; or one of the
                two cannot be used (any more). The kinds are in ``agentmem.errors``.
            SessionClosedError: one of the stores was closed.
        """
        if not isinstance(other, AsyncSessionStore):
            raise TypeError(f"copy_to() takes a store of the same kind of class, got {type(other).__name__}")
        return await copy_sessions(self._engine, other._engine, progress=progress)

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
