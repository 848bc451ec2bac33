"""The sync wrappers: sessions and stores without ``await``, for scripts, threads and notebooks.

They hold no logic: every method runs the async method on agentmem's background event loop and waits for it (see
``blocking``). The docstrings of the async methods say what each returns, raises and promises.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel

from .arguments import session_id_by_keyword
from .blocking import close_blocking, run_blocking
from .checking import CheckReport, Progress
from .copying import CopyReport
from .replay import SessionSettings
from .session import AsyncPostgresSession, AsyncSession, AsyncSQLiteSession, plain_items
from .store import AsyncSessionStore


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

    __slots__ = ("async_session",)

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
        """A key that is equal for all handles on the same session. See :attr:`agentmem.AsyncSession.run_key`."""
        return self.async_session.run_key

    def get_items(self, limit: int | None = None) -> list[Any]:
        """Return the newest items, oldest first. See :meth:`agentmem.AsyncSession.get_items`."""
        return run_blocking(self.async_session.get_items, limit)

    def add_items(self, items: Iterable[Mapping[str, Any] | BaseModel]) -> None:
        """Append items: all of them or none. They are durable when this returns.

        See :meth:`agentmem.AsyncSession.add_items`.
        """
        run_blocking(self.async_session.add_items, plain_items(self.async_session, items))

    def pop_item(self) -> Any | None:
        """Remove and return the newest item; return None if there is none.

        See :meth:`agentmem.AsyncSession.pop_item`.
        """
        return run_blocking(self.async_session.pop_item)

    def clear_session(self) -> None:
        """Remove the session with all its items and everything that is derived from them.

        See :meth:`agentmem.AsyncSession.clear_session`.
        """
        run_blocking(self.async_session.clear_session)

    def with_settings(self, settings: SessionSettings | None) -> Session:
        """Return another handle on this session, with other settings. No I/O.

        See :meth:`agentmem.AsyncSession.with_settings`.
        """
        return Session(self.async_session.with_settings(settings))

    def close(self) -> None:
        """Close this handle. Stored items stay; calls under way finish; later calls raise SessionClosedError.

        See :meth:`agentmem.AsyncSession.close`.
        """
        close_blocking(self.async_session.close)

    def __enter__(self) -> Self:
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

    :class:`agentmem.AsyncSQLiteSession` describes the arguments and the errors.
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

    :class:`agentmem.AsyncPostgresSession` describes the arguments and the errors.
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

    :class:`agentmem.AsyncSessionStore` describes the arguments and the errors.

    Attributes:
        async_store: the store that does the work. It can also be used by itself, on any event loop.
    """

    __slots__ = ("async_store",)

    def __init__(self, db: str | os.PathLike[str] | Any, **options: Any) -> None:
        self.async_store = AsyncSessionStore(db, **options)

    @property
    def name(self) -> str:
        """The database's name in messages: an absolute path, or a URL without its password."""
        return self.async_store.name

    def session(self, session_id: str, *, settings: SessionSettings | None = None) -> Session:
        """Return a handle on one conversation. No I/O. See :meth:`agentmem.AsyncSessionStore.session`."""
        return Session(self.async_store.session(session_id, settings=settings))

    def open(self) -> None:
        """Connect now, so that an error of the database is raised here and not by the first call.

        See :meth:`agentmem.AsyncSessionStore.open`.
        """
        run_blocking(self.async_store.open)

    def check(self, *, progress: Progress | None = None) -> CheckReport:
        """Check one state of the database, and report every problem. Reads and writes go on meanwhile.

        See :meth:`agentmem.AsyncSessionStore.check`.
        """
        return run_blocking(self.async_store.check, progress=progress)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the database to a new file. Reads and writes go on meanwhile.

        See :meth:`agentmem.AsyncSessionStore.backup`.
        """
        run_blocking(self.async_store.backup, os.fspath(path))

    def copy_to(self, other: SessionStore, *, progress: Progress | None = None) -> CopyReport:
        """Copy every session to another store, on any kind of database. Reads and writes of this store go on meanwhile.

        See :meth:`agentmem.AsyncSessionStore.copy_to`.
        """
        target: Any = getattr(other, "async_store", other)  # the async method refuses what is not a store
        return run_blocking(self.async_store.copy_to, target, progress=progress)

    def close(self) -> None:
        """Finish the calls under way, and close the store. Later calls on its sessions raise SessionClosedError.

        See :meth:`agentmem.AsyncSessionStore.close`.
        """
        close_blocking(self.async_store.close)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self.async_store).replace("<Async", "<", 1)
