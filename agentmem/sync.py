"""The sync wrappers: sessions and stores without ``await``, for scripts, threads and notebooks.

They hold no logic: every method runs the async method on agentmem's background event loop and waits for it (see
``blocking``). Functions that the caller gave run in the thread of the call (see ``calling_thread``).

Rules for every call:

- Any number of threads can use one handle, and any number of handles can use one session. The items of one
  ``add_items`` call are never interleaved with those of another.
- Ctrl+C cancels the call: a write that has not begun is not written, one that has begun finishes. ``KeyboardInterrupt``
  is raised when the outcome is known; a second Ctrl+C raises it at once.
- ``RuntimeError`` says that the call came from an async tool on the background loop itself, or while the interpreter
  ends; ``BackgroundLoopError``, that code of the program has stopped that loop.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel

from .arguments import check_options, session_id_by_keyword
from .blocking import close_blocking, run_blocking
from .checking import CheckReport, Progress
from .copying import CopyReport
from .handle import refuse_copies
from .replay import SessionSettings
from .restoring import async_restore
from .session import AsyncPostgresSession, AsyncSession, AsyncSQLiteSession, plain_items
from .store import AsyncSessionStore
from .upgrading import async_upgrade


class Session:
    """One conversation, with the methods of :class:`~agentmem.AsyncSession` as plain calls.

    The Agents SDK's Runner accepts it (from 0.20 on; type checkers do not, because the SDK's protocol is async), at a
    cost. Each call blocks the Runner's event loop, with all other tasks on it, until the background loop has answered.
    Measured with SQLite on two busy cores: 0.25 ms for a read, one and a half times as long as an awaited one, and 1 to
    3 ms for a write, mostly for the flush. There is no group commit either: 64 sessions that write at once on one loop
    wait for 64 flushes, one after the other, which takes 5 to 45 times as long. Use the async class there, or the
    attribute ``async_session``.

    Args:
        async_session: the session that does the work. It can also be used by itself, on any event loop.
    """

    __slots__ = ("__weakref__", "async_session")

    __reduce_ex__ = refuse_copies

    session_settings: None = None

    def __init__(self, async_session: AsyncSession) -> None:
        self.async_session = async_session

    @property
    def session_id(self) -> str:
        """The conversation's id."""
        return self.async_session.session_id

    @property
    def settings(self) -> SessionSettings:
        """The caps of the replay window."""
        return self.async_session.settings

    @property
    def run_key(self) -> Hashable:
        """A key that is equal for all handles on the same session of the same database, in this process.

        A Runner allows one run at a time for each key.
        """
        return self.async_session.run_key

    def get_items(self, limit: int | None = None) -> list[Any]:
        """Return the newest items, oldest first.

        Args:
            limit: return exactly this many of the latest items, or all if there are fewer. No exchange is completed or
                left out for it. 0 returns ``[]``. None returns the replay window; without caps in ``settings``, that is
                every item.

        Returns:
            New dicts, equal to the items that were added, all from one state of the session.

        Raises:
            TypeError: ``limit`` is not an int.
            ValueError: ``limit`` is negative.
            SessionClosedError: the handle was closed.
            StorageError: the database failed; ``agentmem.errors`` lists the kinds.

        Warns:
            CorruptItemWarning: a stored row cannot be read. It is skipped and does not count.
        """
        return run_blocking(self.async_session.get_items, limit)

    def add_items(self, items: Iterable[Mapping[str, Any] | BaseModel]) -> None:
        """Append items: all of them or none. They are durable when this returns.

        Args:
            items: JSON objects (dicts), or pydantic models such as the ``openai`` client returns, oldest first. An
                iterable is read in this thread, before anything is written, so it may use sessions itself.

        Raises:
            InvalidItemError: an item has no faithful JSON form; the error has its index and the path in it.
            TypeError: ``items`` is one item instead of a list.
            SessionClosedError: the handle was closed.
            StorageError: the database failed; ``agentmem.errors`` lists the kinds. Nothing was stored, unless the error
                is ``in_doubt``: the connection to a server was lost before it answered, and the server did not come
                back in time; or an SQLite file was deleted or replaced at this moment.
        """
        run_blocking(self.async_session.add_items, plain_items(self.async_session, items))

    def pop_item(self) -> Any | None:
        """Remove and return the newest item; return None if there is none.

        Newer rows that cannot be read are removed together with the item. If no row can be read, none is removed. The
        warnings of such rows come before anything is removed: where they are errors, nothing is. After them, the newest
        item is looked for again, so what is called meanwhile on the same session may come first.

        Raises:
            SessionClosedError: the handle was closed.
            StorageError: the database failed; ``agentmem.errors`` lists the kinds. Nothing was removed, unless the
                error is ``in_doubt``.

        Warns:
            CorruptItemWarning: a row could not be read; one warning for each.
        """
        return run_blocking(self.async_session.pop_item)

    def clear_session(self) -> None:
        """Remove the session with all its items and everything that is derived from them.

        Raises:
            SessionClosedError: the handle was closed.
            StorageError: the database failed; ``agentmem.errors`` lists the kinds. Nothing was removed, unless the
                error is ``in_doubt``.
        """
        run_blocking(self.async_session.clear_session)

    def with_settings(self, settings: SessionSettings | None) -> Session:
        """Return another handle on this session, with other settings. No I/O.

        The new handle need not be closed: it uses the connections of this one.

        Args:
            settings: the caps of its replay window; None: none, so that everything is replayed.

        Raises:
            TypeError: ``settings`` is neither ``SessionSettings`` nor None.
            SessionClosedError: this handle was closed.
        """
        return Session(self.async_session.with_settings(settings))

    def close(self) -> None:
        """Close this handle. Stored items stay; calls under way finish; later calls raise SessionClosedError.

        The connections are closed together with the last handle on the database. A second call does nothing, nor does
        one while the interpreter ends, when everything is closed.
        """
        close_blocking(self.async_session.close)

    def __enter__(self) -> Self:
        """Connect now, so that an error of the database is raised here and not by the first call.

        Raises:
            SessionClosedError: the handle was closed.
            StorageError: the database cannot be used; ``agentmem.errors`` lists the kinds.
        """
        run_blocking(self.async_session.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self.async_session).replace("<Async", "<", 1)


class SQLiteSession(Session):
    """One conversation in an SQLite file. All handles on a file share one pool of connections.

    Nothing is opened yet: an error of the file is raised by ``with`` or the first call.

    Args:
        db: path of the file, which is created (readable by its owner alone) if there is none. ":memory:" for a database
            that only this handle sees and that is gone when the handle is closed.
        session_id: the conversation's id; 1 to 1,024 bytes in UTF-8, without NUL.
        settings: the caps of the replay window; default: none, so that everything is replayed.
        busy_timeout_s: how long a call waits while another process writes, in seconds; then it raises StorageBusyError.
        durability: "full": a write is on the disk when its call returns. "normal": a write survives a crash of the
            process, but a power cut can lose the newest writes.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or ``db`` is the URL of another kind of database, or cannot be the path
            of a file.
        StorageError: ``db`` is relative, and the working directory was deleted.

    Warns:
        HardLinkWarning: the file has another name, under which writes can be lost; by what opens the file.
    """

    __slots__ = ()

    @session_id_by_keyword
    def __init__(
        self,
        db: str | os.PathLike[str],
        *,
        session_id: str,
        settings: SessionSettings | None = None,
        busy_timeout_s: float = 5.0,
        durability: Literal["full", "normal"] = "full",
    ) -> None:
        super().__init__(
            AsyncSQLiteSession(
                db, session_id=session_id, settings=settings, busy_timeout_s=busy_timeout_s, durability=durability
            )
        )


class PostgresSession(Session):
    """One conversation in PostgreSQL. All handles on a database share one pool of connections.

    Needs asyncpg, which the extra ``postgres`` brings: ``pip install asyncpg``.

    Nothing is connected yet: an error of the server or the URL's options is raised by ``with`` or the first call.

    Args:
        dsn: a URL, ``postgresql://user:password@host:port/database?option=value``, with every option that asyncpg knows
            (``sslmode``, several hosts with ``target_session_attrs``, settings of the server). An ``asyncpg.Pool`` is
            for the async class, because it works on its own event loop alone.
        session_id: the conversation's id; 1 to 1,024 bytes in UTF-8, without NUL.
        settings: the caps of the replay window; default: none, so that everything is replayed.
        schema: the schema of the tables, created if there is none; also ``?schema=`` in the URL. Default: "agentmem".
        busy_timeout_s: how long a call waits, in seconds: for a session that another connection has locked, for a free
            connection, and for a lost server to come back. Then it raises StorageBusyError or StorageError.
        statement_cache_size: asyncpg's option of this name; also in the URL. It must be 0 behind PgBouncer in
            transaction mode, unless ``max_prepared_statements`` is set there (PgBouncer 1.21 or newer). Default:
            asyncpg's 100.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or ``dsn`` is not a PostgreSQL URL.
        MissingDependencyError: asyncpg is not installed; the message is the pip command.
    """

    __slots__ = ()

    def __init__(
        self,
        dsn: str | Any,
        *,
        session_id: str,
        settings: SessionSettings | None = None,
        schema: str | None = None,
        busy_timeout_s: float = 5.0,
        statement_cache_size: int | None = None,
    ) -> None:
        super().__init__(
            AsyncPostgresSession(
                dsn,
                session_id=session_id,
                settings=settings,
                schema=schema,
                busy_timeout_s=busy_timeout_s,
                statement_cache_size=statement_cache_size,
            )
        )


class SessionStore:
    """A database with many sessions, which share one pool of connections.

    Nothing is opened yet: an error of the database is raised by ``with``, :meth:`open` or the first call.

    Args:
        db: path of an SQLite file, or a URL: ``sqlite:///relative.db``, ``sqlite:////absolute.db``,
            ``postgresql://user@host/database``. ":memory:" for a database that only this store and its sessions see.
        options: options of the engine: ``busy_timeout_s``; for SQLite also ``durability``, as in
            :class:`~agentmem.SQLiteSession`; for PostgreSQL also ``schema`` and ``statement_cache_size``, as in
            :class:`~agentmem.PostgresSession`.

    Attributes:
        async_store: the store that does the work. It can also be used by itself, on any event loop.

    Raises:
        TypeError: an option is unknown, or an argument has the wrong type.
        ValueError: the URL's scheme is unknown, the URL or path leads to no database, or an option is out of range.
        StorageError: the path is relative, and the working directory was deleted.
        MissingDependencyError: the database's driver is not installed; the message is the pip command.
    """

    __slots__ = ("__weakref__", "async_store")

    __reduce_ex__ = refuse_copies

    def __init__(self, db: str | os.PathLike[str] | Any, **options: Any) -> None:
        self.async_store = AsyncSessionStore(db, **check_options(self, db, options))

    @property
    def name(self) -> str:
        """The database's name in messages: an absolute path, or a URL without its password."""
        return self.async_store.name

    def session(self, session_id: str, *, settings: SessionSettings | None = None) -> Session:
        """Return a handle on one conversation. No I/O.

        A handle costs next to nothing and need not be closed: it uses the connections of the store.

        Args:
            session_id: the conversation's id; 1 to 1,024 bytes in UTF-8, without NUL.
            settings: the caps of its replay window; default: none, so that everything is replayed.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: the session id is empty, too long, or has a character that a database cannot store.
        """
        return Session(self.async_store.session(session_id, settings=settings))

    def open(self) -> None:
        """Connect now, so that an error of the database is raised here and not by the first call.

        ``with`` calls this method.

        Raises:
            SessionClosedError: the store was closed.
            StorageError: the database cannot be used; ``agentmem.errors`` lists the kinds.
        """
        run_blocking(self.async_store.open)

    def check(self, *, progress: Progress | None = None) -> CheckReport:
        """Check one state of the database, and report every problem. Reads and writes go on meanwhile.

        Reported are: damage that the database itself finds; sessions whose positions do not go from 0 to their length
        without a gap; items without a session; items that cannot be read. Damage does not end the check: it reports
        what cannot be read and continues behind it.

        The check does not open the store, and creates and writes nothing. It needs little memory for any number of
        items, and about as long as reading everything. In the meantime an SQLite database's WAL file grows by all that
        is written. A database in memory is copied first.

        Args:
            progress: called from time to time, in this thread or another, with the number of items that were checked
                and about how many there are. It may use sessions itself.

        Raises:
            SessionClosedError: the store was closed.
            StorageError: the database does not exist, is not an agentmem database, or cannot be read;
                ``agentmem.errors`` lists the kinds.
        """
        return run_blocking(self.async_store.check, progress=progress)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the database to a new file. Reads and writes go on meanwhile.

        The copy is one state of the database: it has only whole batches, and all that were acknowledged before the
        call. It is a complete agentmem database, readable by its owner alone. It appears under its name when it is
        complete and on the disk. A crash leaves no file of that name; an error or Ctrl+C leaves no file at all. A
        backup that is complete when Ctrl+C arrives stays.

        The copy is written and flushed 1 MB at a time, because a commit waits for what is being flushed. A database in
        memory is copied first, and other calls on it wait until it is.

        Args:
            path: path of the new file. An existing file is not overwritten.

        Raises:
            SessionClosedError: the store was closed.
            StorageError: there is a file at ``path``, it cannot be written, or there is no agentmem database to copy;
                or the database is in PostgreSQL, which ``pg_dump`` backs up.
            StorageFullError: there is no space for the copy.
        """
        run_blocking(self.async_store.backup, os.fspath(path))

    def copy_to(self, other: SessionStore, *, progress: Progress | None = None) -> CopyReport:
        """Copy every session to another store, on any kind of database. Reads and writes of this store go on meanwhile.

        For each session there are three cases. If the other store has no such session, or a beginning of it, item for
        item, the rest is appended. If it has an equal session, nothing is done. If it has a different session, that is
        left as it is, and the report names it. So the next call copies what is new, and completes a copy that was
        interrupted or killed.

        Items are copied as the text that is stored, byte for byte, corrupt ones too. Afterwards they are read from both
        stores, and their number and a digest are compared. A session is copied up to the length that it had when it was
        listed; items that are appended later are left to the next call. If a session changes in another way, or an
        item's text is not UTF-8 or has a NUL character, which not every database can store, the report says so, and the
        other sessions are copied.

        Not copied are: the times at which items were stored (in the copy, they are the times of the copy); sessions
        without items; data outside of sessions. This store is only read, but an SQLite file must be writable; copy a
        backup of one that is not. Nothing else, and no other copy, may write to the same sessions of ``other``
        meanwhile. Such writes are found and reported, but not undone.

        Args:
            other: the store to copy to. It is opened, and its database is created if it does not exist.
            progress: called from time to time, in this thread, with the number of items that are done and about how
                many there are. It may use sessions itself.

        Raises:
            TypeError: ``other`` is not a ``SessionStore``.
            ValueError: both stores are on the same database.
            SessionClosedError: one of the stores was closed.
            StorageError: this store's database does not exist or is not an agentmem database, and the other was not
                created; or one of the two cannot be used any more. ``agentmem.errors`` lists the kinds.
        """
        target: Any = getattr(other, "async_store", other)  # the async method refuses what is not a store
        return run_blocking(self.async_store.copy_to, target, progress=progress)

    def close(self) -> None:
        """Finish the calls under way, and close the store. Later calls on its sessions raise SessionClosedError.

        A second call does nothing, nor does one while the interpreter ends, when everything is closed.
        """
        close_blocking(self.async_store.close)

    def __enter__(self) -> Self:
        """Connect now; see :meth:`open`."""
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self.async_store).replace("<Async", "<", 1)


def restore(backup: str | os.PathLike[str], target: str | os.PathLike[str] | Any) -> None:
    """Put a backup in a database's place: whole, or not at all. Nobody may have the database open.

    The backup is checked, copied beside the target and flushed, and then takes the target's name in one step. So a
    crash or an error at any moment leaves the target as it was, with all that was stored in it, or as the backup is.
    What a crash of the application had left beside the target, such as a WAL, is removed. (``cp`` would leave it, and
    SQLite would mix it with the backup.) The new file keeps the mode and the owner of the old one; where there was
    none, only its owner can read it. The backup stays as it is.

    The restored database is another one to whoever had the old one open before: open new handles.

    Args:
        backup: path or URL of the backup, as :meth:`SessionStore.backup` makes it, or of any other SQLite
            file of agentmem's. It may be in use.
        target: path or URL of the database. It need not exist, but its folder must.

    Ctrl+C: the target stays as it was; or it is replaced, if that has begun.

    Raises:
        TypeError: an argument is not a path.
        ValueError: an argument cannot be the path of a file; or both are the same file.
        StorageBusyError: somebody has the target open, in this program or in another. It was not replaced.
        StorageCorruptError: the backup is damaged, or the target is no database at all. It was not replaced.
        SchemaVersionError: a newer agentmem wrote the backup.
        StorageError: there is no backup, or it is not agentmem's; the target is another program's database, or cannot
            be written; or it is in PostgreSQL, which ``psql`` or ``pg_restore`` restores. It was not replaced.
        StorageFullError: there is no space for the copy. The target was not replaced.
    """
    run_blocking(async_restore, backup, target)


def upgrade(db: str | os.PathLike[str] | Any, *, progress: Progress | None = None) -> None:
    """Bring a database of an older version to this one: whole, or not at all. Nobody may have it open.

    Opening a database does this by itself, except for an SQLite file of more than 100 MB, which would keep others
    waiting for too long. Such a file is checked, and a new one is built beside it and flushed, and then takes its name
    in one step. So a crash or an error at any moment leaves the file as it was. The new one keeps its mode and its
    owner, and holds everything that is stored in it, also what cannot be read, and what other programs have stored in
    tables of their own. While it is built, the folder needs room for both, and SQLite some for temporary files.

    A database of this version is left as it is. One in PostgreSQL is opened, which upgrades it.

    Args:
        db: path or URL of the database.
        progress: called from time to time, in this thread, with the number of items that were copied and how many
            there are.

    Ctrl+C: the database stays as it was; or it is upgraded, if its replacement has begun.

    Raises:
        TypeError: ``db`` is not a path.
        ValueError: ``db`` cannot be the path of a file.
        StorageBusyError: somebody has the database open, in this program or in another. It was not upgraded.
        StorageCorruptError: it is damaged, or no database at all. It was not upgraded.
        SchemaVersionError: a newer agentmem wrote it.
        StorageError: there is no such file, or it is not agentmem's, or its folder cannot be written. It was not
            upgraded.
        StorageFullError: there is no space for the new file. It was not upgraded.
    """
    run_blocking(async_upgrade, db, progress=progress)
