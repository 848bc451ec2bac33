"""Stores: a database with many sessions, which an application opens once."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

from .arguments import check_options
from .checking import CheckReport, Progress
from .copying import CopyReport, copy_sessions
from .engines import open_engine
from .handle import refuse_copies
from .replay import SessionSettings
from .session import AsyncSession


class AsyncSessionStore:
    """A database with many sessions, which share one pool of connections.

    Nothing is opened yet: an error of the database is raised by ``async with``, :meth:`open` or the first call.

    Args:
        db: path of an SQLite file, or a URL: ``sqlite:///relative.db``, ``sqlite:////absolute.db``,
            ``postgresql://user@host/database``. ":memory:" for a database that only this store and its sessions see.
            Or an ``asyncpg.Pool``.
        options: options of the engine: ``busy_timeout_s``; for SQLite also ``durability``, as in
            :class:`~agentmem.AsyncSQLiteSession`; for PostgreSQL also ``schema`` and ``statement_cache_size``, as in
            :class:`~agentmem.AsyncPostgresSession`.

    Raises:
        TypeError: an option is unknown, or an argument has the wrong type.
        ValueError: the URL's scheme is unknown, the URL or path leads to no database, or an option is out of range.
        StorageError: the path is relative, and the working directory was deleted.
        MissingDependencyError: the database's driver is not installed; the message is the pip command.
    """

    __slots__ = ("__weakref__", "_engine")

    __reduce_ex__ = refuse_copies

    def __init__(self, db: str | os.PathLike[str] | Any, **options: Any) -> None:
        self._engine = open_engine(db, **check_options(self, db, options))

    @property
    def name(self) -> str:
        """The database's name in messages: an absolute path, or a URL without its password."""
        return self._engine.name

    def session(self, session_id: str, *, settings: SessionSettings | None = None) -> AsyncSession:
        """Return a handle on one conversation. No I/O.

        A handle costs next to nothing and need not be closed: it uses the connections of the store.

        Args:
            session_id: the conversation's id; 1 to 1,024 bytes in UTF-8, without NUL.
            settings: the caps of its replay window; default: none, so that everything is replayed.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: the session id is empty, too long, or has a character that a database cannot store.
        """
        return AsyncSession(self._engine, session_id, settings)

    async def open(self) -> None:
        """Connect now, so that an error of the database is raised here and not by the first call.

        ``async with`` calls this method.

        Raises:
            SessionClosedError: the store was closed.
            StorageError: the database cannot be used; ``agentmem.errors`` lists the kinds.
        """
        await self._engine.open()

    async def check(self, *, progress: Progress | None = None) -> CheckReport:
        """Check one state of the database, and report every problem. Reads and writes go on meanwhile.

        Reported are: damage that the database itself finds; sessions whose positions do not go from 0 to their length
        without a gap; items without a session; items that cannot be read. Damage does not end the check: it reports
        what cannot be read and continues behind it.

        The check does not open the store, and creates and writes nothing. It needs little memory for any number of
        items, and about as long as reading everything. In the meantime an SQLite database's WAL file grows by all that
        is written. A database in memory is copied first.

        Args:
            progress: called from time to time, in another thread, with the number of items that were checked and about
                how many there are. It may use sessions itself.

        Raises:
            SessionClosedError: the store was closed.
            StorageError: the database does not exist, is not an agentmem database, or cannot be read;
                ``agentmem.errors`` lists the kinds.
        """
        return await self._engine.check(progress)

    async def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the database to a new file. Reads and writes go on meanwhile.

        The copy is one state of the database: it has only whole batches, and all that were acknowledged before the
        call. It is a complete agentmem database, readable by its owner alone. It appears under its name when it is
        complete and on the disk. A crash leaves no file of that name; an error or a cancellation leaves no file at all.
        A backup that is complete when its cancellation arrives stays.

        The copy is written and flushed 1 MB at a time, because a commit waits for what is being flushed. With 1 GB, and
        tasks that wrote all the time, the longest commit took 3 to 30 ms. It took 220 to 510 ms where the copy was
        flushed at once, and 360 to 430 ms with ``VACUUM INTO`` (``engines/sqlite/backup.py`` has more). Calls on a
        database in memory wait until it is copied.

        Args:
            path: path of the new file. An existing file is not overwritten.

        Raises:
            SessionClosedError: the store was closed.
            StorageError: there is a file at ``path``, it cannot be written, or there is no agentmem database to copy;
                or the database is in PostgreSQL, which ``pg_dump`` backs up.
            StorageFullError: there is no space for the copy.
        """
        await self._engine.backup(path)

    async def copy_to(self, other: AsyncSessionStore, *, progress: Progress | None = None) -> CopyReport:
        """Copy every session to another store, on any kind of database. Reads and writes of this store go on meanwhile.

        For each session there are three cases. If the other store has no such session, or a beginning of it, item for
        item, the rest is appended. If it has an equal session, nothing is done. If it has a different session, that is
        left as it is, and the report names it. So the next call copies what is new, and completes a copy that was
        cancelled or killed.

        Items are copied as the text that is stored, byte for byte, corrupt ones too, which the report names. Afterwards
        they are read from both stores, and their number and a digest are compared. A session is copied up to the length
        that it had when it was listed; items that are appended later are left to the next call. If a session changes in
        another way, or an item's text is not UTF-8 or has a NUL character, which not every database can store, the
        report says so, and the other sessions are copied.

        Not copied are: the times at which items were stored (in the copy, they are the times of the copy); sessions
        without items; data outside of sessions. This store is only read, but an SQLite file must be writable; copy a
        backup of one that is not. Nothing else, and no other copy, may write to the same sessions of ``other``
        meanwhile. Such writes are found and reported, but not undone.

        Args:
            other: the store to copy to. It is opened, and its database is created if it does not exist.
            progress: called from time to time, on the event loop of this call, with the number of items that are done
                and about how many there are. (In a call of the sync store: in the thread of that call.) What it raises
                ends the copy, and is raised as it is.

        Raises:
            TypeError: ``other`` is not an ``AsyncSessionStore``.
            ValueError: both stores are on the same database.
            SessionClosedError: one of the stores was closed.
            StorageError: this store's database does not exist or is not an agentmem database, and the other was not
                created; or one of the two cannot be used any more. ``agentmem.errors`` lists the kinds.
        """
        if not isinstance(other, AsyncSessionStore):
            raise TypeError(f"other is a store of the same class as this one, got {type(other).__name__}")
        return await copy_sessions(self._engine, other._engine, progress=progress)

    async def close(self) -> None:
        """Finish the calls under way, and close the store. Later calls on its sessions raise SessionClosedError.

        A second call does nothing.
        """
        await self._engine.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._engine.name}>"
