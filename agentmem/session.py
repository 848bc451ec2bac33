"""Sessions: the ordered items of one conversation, in any database.

:class:`AsyncSession` has the logic; the classes below it only choose the engine. ``items`` converts between items and
JSON text, ``reading`` decides how many rows are read, and ``engines`` talk to the databases.

Concurrency: any number of tasks can use one handle, and any number of handles can use one session. The items of one
``add_items`` call are never interleaved with those of another. Calls from one event loop are stored in the order in
which they were made; calls from several loops or processes, in the order in which their transactions began.

Event loops: every async method needs a running event loop of asyncio. Without one, such as under trio, it raises
RuntimeError.

Cancellation: a write that has not begun is not written. A write that has begun finishes; ``CancelledError`` is raised
when its outcome is known.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel

from .arguments import (
    check_limit,
    check_postgres_database,
    check_session_id,
    check_settings,
    check_sqlite_database,
    session_id_by_keyword,
)
from .calling_thread import call_back
from .engines import open_engine
from .engines.base import Engine
from .errors import CorruptItemWarning, SessionClosedError
from .handle import refuse_copies
from .items import Item, decode_item, encode_items
from .reading import HistoryReading, PopReading, RowsToWarnOf, TailReading, WindowReading
from .replay import SessionSettings


class AsyncSession:
    """One conversation. Created by ``AsyncSQLiteSession``, ``AsyncPostgresSession`` or ``AsyncSessionStore.session``.

    Creating it does no I/O. It meets the Agents SDK's ``Session`` protocol. The protocol's attribute
    ``session_settings`` is always None: so the SDK asks for items without a limit and gets the replay window, which is
    always valid.

    Args:
        engine: the database.
        session_id: the conversation's id; 1 to 1,024 bytes in UTF-8, without NUL.
        settings: the caps of the replay window; default: none, so that everything is replayed.
        owns_engine: whether closing this handle closes the engine too.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the session id is empty, too long, or has a character that a database cannot store.
    """

    __slots__ = ("__weakref__", "_closed", "_engine", "_owns_engine", "session_id", "settings")

    __reduce_ex__ = refuse_copies

    # Any, here and below, is for type checkers. The SDK's protocol names types of the SDK, which agentmem does not
    # import, and a mutable attribute or a list matches a protocol only with exactly the named type, or with Any.
    session_settings: Any = None

    def __init__(
        self, engine: Engine, session_id: str, settings: SessionSettings | None = None, *, owns_engine: bool = False
    ) -> None:
        self.session_id = check_session_id(session_id)
        self.settings = check_settings(settings)
        self._engine = engine
        self._owns_engine = owns_engine
        self._closed = False

    async def get_items(self, limit: int | None = None) -> list[Any]:
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
        engine = self._require_open_engine()
        if limit is None and self.settings.max_tokens is not None and self.settings.count_tokens is not None:
            reading, items = await self._read_counted_window(engine)
        else:
            reading = self._new_reading(limit)
            items = await engine.read(self.session_id, reading)
        self._warn_of_corrupt_rows(reading.corrupt)
        return items

    async def add_items(self, items: Iterable[Mapping[str, Any] | BaseModel]) -> None:
        """Append items: all of them or none. They are durable when this returns.

        Args:
            items: JSON objects (dicts, or mappings of another kind), or pydantic models such as the ``openai`` client
                returns, oldest first. They are encoded before the first await, so a later change of an object does not
                change what is stored.

        Raises:
            InvalidItemError: an item has no faithful JSON form; the error has its index and the path in it.
            TypeError: ``items`` is one item instead of a list.
            SessionClosedError: the handle was closed.
            StorageError: the database failed; ``agentmem.errors`` lists the kinds. Nothing was stored, unless the error
                is ``in_doubt``: the connection to a server was lost before it answered, and the server did not come
                back in time; or an SQLite file was deleted or replaced at this moment.
        """
        engine = self._require_open_engine()
        await engine.append(self.session_id, encode_items(items))

    async def pop_item(self) -> Any | None:
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
        engine = self._require_open_engine()
        warned_of: set[int] = set()
        while True:
            try:
                items = await engine.pop(self.session_id, PopReading(warned_of))
            except RowsToWarnOf as unknown:
                positions = unknown.positions
            else:
                return items[0] if items else None
            self._warn_of_corrupt_rows(positions)
            warned_of.update(positions)

    async def clear_session(self) -> None:
        """Remove the session with all its items and everything that is derived from them.

        Raises:
            SessionClosedError: the handle was closed.
            StorageError: the database failed; ``agentmem.errors`` lists the kinds. Nothing was removed, unless the
                error is ``in_doubt``.
        """
        await self._require_open_engine().clear(self.session_id)

    def with_settings(self, settings: SessionSettings | None) -> AsyncSession:
        """Return another handle on this session, with other settings. No I/O.

        The new handle need not be closed: it uses the connections of this one.

        Args:
            settings: the caps of its replay window; None: none, so that everything is replayed.

        Raises:
            TypeError: ``settings`` is neither ``SessionSettings`` nor None.
            SessionClosedError: this handle was closed.
        """
        return AsyncSession(self._require_open_engine(), self.session_id, settings)

    async def close(self) -> None:
        """Close this handle. Stored items stay; calls under way finish; later calls raise SessionClosedError.

        The connections are closed together with the last handle on the database. A second call does nothing.
        """
        self._closed = True
        if self._owns_engine:
            await self._engine.close()

    async def __aenter__(self) -> Self:
        """Connect now, so that an error of the database is raised here and not by the first call.

        Raises:
            SessionClosedError: the handle was closed.
            StorageError: the database cannot be used; ``agentmem.errors`` lists the kinds.
        """
        await self._require_open_engine().open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def run_key(self) -> Hashable:
        """A key that is equal for all handles on the same session of the same database, in this process.

        A Runner allows one run at a time for each key.
        """
        return (self._engine.key, self.session_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.session_id!r} in {self._engine.name}>"

    def _require_open_engine(self) -> Engine:
        if self._closed:
            raise SessionClosedError(f"session {self.session_id!r} in {self._engine.name} is closed; open a new one")
        return self._engine

    def _new_reading(self, limit: int | None) -> TailReading:
        if limit is not None:
            return TailReading(check_limit(limit))
        return WindowReading(self.settings) if self.settings.has_caps else HistoryReading()

    async def _read_counted_window(self, engine: Engine) -> tuple[TailReading, list[Item]]:
        """Read the replay window as the caller's ``count_tokens`` says, which is called when the rows have been read.

        In an engine's thread it would hold a connection, and wait for ever where its own calls wait for one. So where
        the window needs older rows, all are read again, from one state: twice as many.
        """
        count = WindowReading(self.settings).first
        while True:
            reading = TailReading(count)
            items = await engine.read(self.session_id, reading)
            if not count:
                return reading, items  # a cap is 0
            window = await call_back(_find_window, items, self.settings, at_start=len(items) < count)
            if window is not None:
                return reading, window
            count *= 2

    def _warn_of_corrupt_rows(self, positions: Iterable[int]) -> None:
        for position in positions:
            warnings.warn(
                f"session {self.session_id!r} in {self._engine.name}: the row at position {position} "
                "is not a JSON object and was skipped",
                CorruptItemWarning,
                stacklevel=3,
            )


def _find_window(items: list[Item], settings: SessionSettings, *, at_start: bool) -> list[Item] | None:
    """The replay window; None where it needs items before these."""
    reading = WindowReading(settings)
    return None if reading.feed_items(items[::-1], at_start=at_start) else reading.result()


def plain_items(session: AsyncSession, items: Iterable[Mapping[str, Any] | BaseModel]) -> list[Item]:
    """The items of an ``add_items`` call of a sync wrapper, read in the thread that makes it.

    The caller's code runs here: its iterable, and the serializers of its models.

    Raises:
        InvalidItemError, TypeError, SessionClosedError: as in :meth:`AsyncSession.add_items`.
    """
    session._require_open_engine()  # as there, before the items are looked at: a generator could not be read again
    return [decode_item(text) for text in encode_items(items)]


class AsyncSQLiteSession(AsyncSession):
    """One conversation in an SQLite file. All handles on a file share one pool of connections.

    Nothing is opened yet: an error of the file is raised by ``async with`` or the first call.

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
        engine = open_engine(check_sqlite_database(db), busy_timeout_s=busy_timeout_s, durability=durability)
        super().__init__(engine, session_id, settings, owns_engine=True)


class AsyncPostgresSession(AsyncSession):
    """One conversation in PostgreSQL. All handles on a database share one pool of connections.

    Needs asyncpg, which the extra ``postgres`` brings: ``pip install asyncpg``.

    Nothing is connected yet: an error of the server or the URL's options is raised by ``async with`` or the first call.

    Args:
        dsn: a URL, ``postgresql://user:password@host:port/database?option=value``, with every option that asyncpg knows
            (``sslmode``, several hosts with ``target_session_attrs``, settings of the server). Or an ``asyncpg.Pool``,
            which is used on its own event loop and is not closed by agentmem.
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
        engine = open_engine(
            check_postgres_database(dsn),
            schema=schema,
            busy_timeout_s=busy_timeout_s,
            statement_cache_size=statement_cache_size,
        )
        super().__init__(engine, session_id, settings, owns_engine=True)
