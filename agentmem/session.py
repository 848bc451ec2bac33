"""Sessions: the ordered items of one conversation, whatever database holds them.

:class:`AsyncSession` has all the logic; the constructors below it only choose the engine. What is stored and
read as JSON text happens in ``items`` and ``reading``, what goes to the disk in ``engines``.

Under concurrency: any number of tasks may use one handle, and any number of handles one session. A batch is
never interleaved with another; batches are stored in the order in which they were added on one event loop,
and in the order in which their transactions began across loops and processes.

Under cancellation: a cancelled write that has not begun is not written. One that has begun finishes, and
``CancelledError`` is raised once its outcome is known.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import wraps
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel

from .engines import open_engine, scheme_of
from .engines.base import MAX_SESSION_ID_BYTES, Engine
from .errors import CorruptItemWarning, SessionClosedError
from .items import encode_items
from .reading import TailReading, WindowReading
from .replay import SessionSettings

SelfT = TypeVar("SelfT", bound="AsyncSession")
InitT = TypeVar("InitT", bound=Callable[..., None])


class AsyncSession:
    """One conversation. Made by ``AsyncSQLiteSession`` or ``AsyncSessionStore.session``; costs no I/O.

    It meets the Agents SDK's ``Session`` protocol. ``session_settings``, which that protocol names, is always
    None: the SDK then asks for items without a limit and gets the replay window, which is always valid.

    Args:
        engine: the database.
        session_id: which conversation; 1 to 1,024 bytes in UTF-8, without NUL.
        settings: what ``get_items()`` without a limit replays; default: everything.
        owns_engine: whether closing this handle closes the engine too.

    Raises:
        TypeError, ValueError: a session id or settings that are none.
    """

    __slots__ = ("_closed", "_engine", "_owns_engine", "session_id", "settings")

    # Any here and below is for type checkers alone: the SDK's protocol names its own types, which agentmem must
    # not import. A mutable attribute and a list fit a protocol only with exactly the type that it names, or with Any.
    session_settings: Any = None

    def __init__(
        self, engine: Engine, session_id: str, settings: SessionSettings | None = None, *, owns_engine: bool = False
    ) -> None:
        self.session_id = _checked_id(session_id)
        self.settings = _checked_settings(settings)
        self._engine = engine
        self._owns_engine = owns_engine
        self._closed = False

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """The newest items, oldest first.

        Args:
            limit: exactly this many of the latest items (fewer if there are not so many), uncut by any other
                rule; 0 gives ``[]``. None: the replay window that ``settings`` describe, everything if they
                set nothing.

        Returns:
            Fresh dicts, equal to what was added. All are from one state of the session.

        Raises:
            ValueError: ``limit`` is negative.
            TypeError: ``limit`` is no int.
            SessionClosedError: the handle was closed.
            StorageError: the database did not do its part; the kinds are in ``agentmem.errors``.

        Warns:
            CorruptItemWarning: a stored row cannot be read; it is skipped and not counted.
        """
        engine = self._open_engine()
        reading = self._reading(limit)
        items = await engine.read(self.session_id, reading)
        self._warn_of_corrupt(reading)
        return items

    async def add_items(self, items: Iterable[Mapping[str, Any] | BaseModel]) -> None:
        """Append items, oldest first: all of them or none. They are durable when this returns.

        Args:
            items: JSON objects, or pydantic objects such as the ``openai`` client returns. They are encoded
                before anything is awaited, so changing them afterwards changes nothing.

        Raises:
            InvalidItemError: an item that JSON cannot hold faithfully; names its index and the path in it.
            TypeError: ``items`` is one item instead of a list.
            SessionClosedError: the handle was closed.
            StorageError: nothing was stored, unless the message says that it is in doubt, because a server was lost
                before it answered and did not come back; the kinds are in ``agentmem.errors``.
        """
        engine = self._open_engine()
        await engine.append(self.session_id, encode_items(items))

    async def pop_item(self) -> Any | None:
        """Remove and return the newest item; None if there is none.

        Rows above it that cannot be read are removed with it. Where no row can be read, none is removed.

        Raises:
            SessionClosedError: the handle was closed.
            StorageError: nothing was removed, unless the message says that it is in doubt; the kinds are in
                ``agentmem.errors``.

        Warns:
            CorruptItemWarning: for each row that could not be read.
        """
        engine = self._open_engine()
        reading = TailReading(1)
        items = await engine.pop(self.session_id, reading)
        self._warn_of_corrupt(reading)
        return items[0] if items else None

    async def clear_session(self) -> None:
        """Remove the session's items and all that is derived from them.

        Raises:
            SessionClosedError: the handle was closed.
            StorageError: nothing was removed, unless the message says that it is in doubt; the kinds are in
                ``agentmem.errors``.
        """
        await self._open_engine().clear(self.session_id)

    def with_settings(self, settings: SessionSettings | None) -> AsyncSession:
        """Another handle on this session that replays by other settings. No I/O.

        It need not be closed: what this one has open serves both.

        Args:
            settings: what ``get_items()`` without a limit replays; None: everything.

        Raises:
            TypeError: settings that are no ``SessionSettings``.
            SessionClosedError: this handle was closed.
        """
        return AsyncSession(self._open_engine(), self.session_id, settings)

    async def close(self) -> None:
        """End this handle; what it stored stays. Calls under way finish; later ones raise SessionClosedError.

        Idempotent. The connections close with the last handle on the database.
        """
        self._closed = True
        if self._owns_engine:
            await self._engine.close()

    async def __aenter__(self: SelfT) -> SelfT:
        """Connect now, so that a database that cannot be used says so here.

        Raises:
            SessionClosedError, StorageError: as above.
        """
        await self._open_engine().open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def run_key(self) -> Hashable:
        """Equal for two handles on the same session of the same database; runs on it take turns."""
        return (self._engine.key, self.session_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.session_id!r} in {self._engine.name}>"

    def _open_engine(self) -> Engine:
        if self._closed:
            raise SessionClosedError(f"session {self.session_id!r} in {self._engine.name} is closed; open a new one")
        return self._engine

    def _reading(self, limit: int | None) -> TailReading:
        if limit is None:
            return WindowReading(self.settings) if self.settings.has_caps else TailReading(None)
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"limit is an int or None, got {limit!r}")
        if limit < 0:
            raise ValueError(f"limit is 0 or more, got {limit}; None means no limit")
        return TailReading(limit)

    def _warn_of_corrupt(self, reading: TailReading) -> None:
        for position in reading.corrupt:
            warnings.warn(
                f"session {self.session_id!r} in {self._engine.name}: the row at position {position} "
                "is no JSON object and was skipped",
                CorruptItemWarning,
                stacklevel=3,
            )


def session_id_by_keyword(init: InitT) -> InitT:
    """Have a constructor say how it is called where it is called like the Agents SDK's, whose session id comes first.

    Two bare strings do not tell which of them is the file: guessing would make a file of a user's name.
    """

    @wraps(init)
    def checked(self: object, *args: Any, **kwargs: Any) -> None:
        if len(args) > 1 or "session_id" not in kwargs or "db_path" in kwargs:
            name = type(self).__name__
            raise TypeError(
                f'agentmem\'s {name} takes the database, and the session id by keyword: {name}("conversations.db", '
                f'session_id="user_123"). The Agents SDK\'s form, {name}("user_123", "conversations.db"), is that of '
                f"the class that this imports: from agentmem.integrations.openai_agents import {name}"
            )
        init(self, *args, **kwargs)

    return cast(InitT, checked)


class AsyncSQLiteSession(AsyncSession):
    """One conversation in an SQLite file. All handles on a file share one pool of connections.

    Args:
        db: path of the file, created (readable by its owner alone) if there is none; ":memory:" for a
            database that only this handle sees, and that stays until it is closed.
        session_id: which conversation; 1 to 1,024 bytes in UTF-8, without NUL.
        settings: what ``get_items()`` without a limit replays; default: everything.
        busy_timeout_s: how long to wait while another process writes, in seconds; then StorageBusyError.
        durability: "full": on the disk when a call returns. "normal": safe from crashes of the process; a
            power cut can take the newest writes.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range. Nothing is opened yet: what is
            wrong with the file is raised by ``async with`` and the first call.
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
        engine = open_engine(_sqlite_only(db), busy_timeout_s=busy_timeout_s, durability=durability)
        super().__init__(engine, session_id, settings, owns_engine=True)


class AsyncPostgresSession(AsyncSession):
    """One conversation in PostgreSQL. All handles on a database share one pool of connections.

    Needs asyncpg, which the extra ``postgres`` brings: ``pip install asyncpg``.

    Args:
        dsn: a URL, ``postgresql://user:password@host:port/database?option=value``, with all options that asyncpg knows
            (``sslmode``, several hosts with ``target_session_attrs``, settings of the server). Or an ``asyncpg.Pool``,
            which is used on its own event loop and left open.
        session_id: which conversation; 1 to 1,024 bytes in UTF-8, without NUL.
        settings: what ``get_items()`` without a limit replays; default: everything.
        schema: that holds the tables, created if there is none; also as ``?schema=`` in the URL. Default: "agentmem".
        busy_timeout_s: how long to wait for a session that another connection holds, for a connection, and for a server
            that was lost to come back, in seconds; then StorageBusyError or StorageError.
        statement_cache_size: asyncpg's, also in the URL. Behind PgBouncer in transaction mode, 0 is needed unless its
            ``max_prepared_statements`` is set (from PgBouncer 1.21 on). Default: asyncpg's 100.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range. Nothing is connected yet: what is wrong
            with the server or the URL is raised by ``async with`` and the first call.
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
            _postgres_only(dsn),
            schema=schema,
            busy_timeout_s=busy_timeout_s,
            statement_cache_size=statement_cache_size,
        )
        super().__init__(engine, session_id, settings, owns_engine=True)


def _postgres_only(dsn: str | Any) -> str | Any:
    if scheme_of(dsn) != "postgresql":
        if not isinstance(dsn, (str, os.PathLike)):
            raise TypeError(f"dsn is a URL or an asyncpg.Pool, got {type(dsn).__name__}")
        raise ValueError(f"{os.fspath(dsn)!r} is no URL of PostgreSQL's (postgresql://user@host/database)")
    return dsn


def _sqlite_only(db: str | os.PathLike[str]) -> str | os.PathLike[str]:
    if scheme_of(db) != "sqlite":
        raise ValueError(f"{scheme_of(db)}:// is no SQLite database; AsyncSessionStore takes any URL")
    return db


def _checked_id(session_id: str) -> str:
    if not isinstance(session_id, str):
        raise TypeError(f"session_id is a str, got {type(session_id).__name__}")
    try:
        size_bytes = len(session_id.encode())
    except UnicodeEncodeError:
        raise ValueError(f"session_id {session_id[:80]!r} holds a lone surrogate, which has no UTF-8 form") from None
    if not 1 <= size_bytes <= MAX_SESSION_ID_BYTES:
        raise ValueError(f"session_id is 1 to {MAX_SESSION_ID_BYTES} bytes long in UTF-8, got {size_bytes}")
    if "\0" in session_id:
        raise ValueError(f"session_id {session_id[:80]!r} holds NUL, which not every database can store")
    return session_id


def _checked_settings(settings: SessionSettings | None) -> SessionSettings:
    if settings is None:
        return _EVERYTHING
    if not isinstance(settings, SessionSettings):
        raise TypeError(f"settings is an agentmem.SessionSettings, got {type(settings).__name__}")
    return settings


_EVERYTHING = SessionSettings()
