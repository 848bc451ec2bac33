"""The OpenAI Agents SDK's SQLite sessions, with the same names and signatures, on agentmem.

To move an application to agentmem, change only the import::

    from agents import SQLiteSession  # before
    from agents.extensions.memory import AsyncSQLiteSession  # before
    from agentmem.integrations.openai_agents import AsyncSQLiteSession, SQLiteSession

The SDK need not be installed. On a file that the SDK wrote, the first use of a session takes over the history of all
sessions in one transaction, with its order, times and texts. It does not change the SDK's tables, so the SDK can still
read the file. From then on, the conversations are in agentmem's tables:

- Items that the SDK appends later are appended to the sessions when the next handle is first used, after those that
  agentmem has added meanwhile. A handle that is in use does not look for them again.
- Items that the SDK pops or clears later stay in agentmem, because the file does not say why they are missing. Items
  that were popped or cleared in agentmem do not come back.
- Sessions whose ids agentmem refuses (empty, longer than 1,024 bytes, with NUL) stay with the SDK. A warning names
  them.
- Only one pair of the SDK's tables in a file is taken over. Another pair is refused, because two conversations with the
  same id would become one. ``agentmem import-sdk FILE --into ANOTHER --messages-table NAME`` copies it to another file.
- A file with tables of other programs (or of the SDK's ``AdvancedSQLiteSession``) is refused and not changed.
  ``agentmem import-sdk FILE --into NEW`` copies its history to another file, unless a session has branches: their rows
  would become a conversation that never was, so they are refused by name.

There are differences from the SDK's classes:

- ``session_settings`` is an argument as there, and the attribute of this name can be set. But it always reads as None:
  so the SDK's Runner asks for items without a limit, and gets the replay window, which is at most as many items as the
  settings say, in whole exchanges. The attribute ``settings`` has the settings.
- An item without a faithful JSON form (NaN, keys that are not strings) raises ``InvalidItemError``. A corrupt row is
  skipped with a warning. All errors are from ``agentmem.errors``; none is from sqlite3.
- Nothing is opened or created before the first use.

Type checkers know both classes for the SDK's ``SessionABC``, and so does ``isinstance`` where the SDK was imported
before the session was made. Their methods can be replaced on an object, as tests do.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import anyio.to_thread

from ..arguments import check_settings
from ..cancellation import UncancellableTask
from ..engines.base import Engine
from ..engines.sqlite.connection import MEMORY
from ..engines.sqlite.engine import SQLiteEngine
from ..engines.sqlite.path import database_path
from ..engines.sqlite.sdk_tables import SDKTables
from ..engines.sqlite.takeover import Takeover, check_source
from ..engines.sqlite.takeover_engine import TakeoverEngine, import_into
from ..errors import SessionClosedError
from ..replay import SessionSettings
from ..session import AsyncSession

if TYPE_CHECKING:
    # What the SDK's own wrappers ask for by name. When the program runs, the SDK need not be installed.
    from agents.memory import SessionABC
else:
    SessionABC = object

__all__ = ["AsyncSQLiteSession", "SQLiteSession", "Takeover", "import_history"]

_LIMIT_OF_ALL = 2**63 - 1


class HasLimit(Protocol):
    """The SDK's ``SessionSettings``, or any object with its one field."""

    limit: int | None


class _SessionSettingsAttribute:
    """The attribute ``session_settings``: what is assigned becomes ``settings``, and it reads as None; see the module.

    Not a property: pyright takes none for the attribute that the SDK's protocol declares.
    """

    def __get__(self, session: AsyncSession | None, owner: type | None = None) -> None:
        return None

    def __set__(self, session: AsyncSession, value: HasLimit | SessionSettings | Mapping[str, Any] | None) -> None:
        session.settings = check_settings(_convert_settings(value))


class AsyncSQLiteSession(AsyncSession, SessionABC):
    """One conversation in an SQLite file, with the constructor of the SDK's ``AsyncSQLiteSession``.

    The module says what happens to a file of the SDK's. Nothing is opened yet: an error of the file is raised by
    ``async with`` or the first call.

    Args:
        session_id: the conversation's id; 1 to 1,024 bytes in UTF-8, without NUL.
        db_path: path of the file, which is created (readable by its owner alone) if there is none. Default: a database
            in memory that only this handle sees.
        sessions_table, messages_table: the names of the SDK's tables to take over.
        session_settings: the caps of the replay window: the SDK's settings, a dict of them, or an
            ``agentmem.SessionSettings``.

    Raises:
        TypeError: an argument has the wrong type, or a setting is unknown.
        ValueError: an argument is out of range.
    """

    # No __slots__: as with the SDK's classes, a test may replace a method of one object.

    _sdk_name: ClassVar[str] = "AsyncSQLiteSession"
    """The SDK's name of the class, in the words of its errors."""

    session_settings: Any = _SessionSettingsAttribute()

    def __init__(
        self,
        session_id: str,
        db_path: str | Path = ":memory:",
        sessions_table: str = "agent_sessions",
        messages_table: str = "agent_messages",
        session_settings: HasLimit | SessionSettings | Mapping[str, Any] | None = None,
    ) -> None:
        self.db_path = db_path
        self.sessions_table = sessions_table
        self.messages_table = messages_table
        engine = TakeoverEngine(os.fspath(db_path), SDKTables(sessions_table, messages_table))
        super().__init__(engine, session_id, _convert_settings(session_settings), owns_engine=True)
        _register_with_the_sdk()

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """Return the newest items, oldest first; see :meth:`agentmem.AsyncSession.get_items`.

        A negative limit returns every item, as in the SDK.
        """
        if isinstance(limit, int) and limit < 0:
            limit = _LIMIT_OF_ALL
        return await super().get_items(limit)

    def _require_open_engine(self) -> Engine:
        if self._closed:
            # The first words are the SDK's: programs and their tests look for them.
            raise SessionClosedError(
                f"{self._sdk_name} is closed: session {self.session_id!r} in {self._engine.name}; make a new one"
            )
        return super()._require_open_engine()


class SQLiteSession(AsyncSQLiteSession):
    """The same as ``AsyncSQLiteSession``, but with a ``close()`` that is not async, as the SDK's ``SQLiteSession``."""

    _sdk_name = "SQLiteSession"

    def close(self) -> None:  # type: ignore[override]  # not a coroutine, as in the SDK
        """Close this handle. Stored items stay; calls under way finish; later calls raise SessionClosedError.

        Without a running event loop, the connections are closed when this method returns. With one, they are closed
        soon after, at the latest when ``asyncio.run`` returns; ``async with`` waits until they are. A second call does
        nothing.
        """
        if self._closed:
            return
        self._closed = True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(super().close())
        else:
            task = UncancellableTask(super().close(), loop=loop)
            _close_tasks.add(task)
            task.add_done_callback(_close_tasks.discard)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().close()


_close_tasks: set[asyncio.Task[None]] = set()
"""Kept here, because an event loop has only weak references to its tasks."""


async def import_history(
    file: str | os.PathLike[str],
    *,
    into: str | os.PathLike[str] | None = None,
    sessions_table: str = "agent_sessions",
    messages_table: str = "agent_messages",
) -> Takeover:
    """Take over the history that the SDK's SQLite sessions wrote. A second call takes over what is new.

    Args:
        file: the file that the SDK wrote.
        into: the SQLite file to write to, which is created if there is none. The items are appended to the sessions
            that it already has. ``file`` is then only read (SQLite may leave an empty ``-wal`` and a ``-shm`` file
            beside it); a later call recognizes it by its path and the last row that was taken over. Default: ``file``
            itself, as the sessions above do it.
        sessions_table, messages_table: the names of the SDK's tables.

    Returns:
        What was taken over.

    Raises:
        TypeError: ``file`` or ``into`` is not a path.
        ValueError: one of them cannot be the path of a file, or ``into`` is ":memory:", which would be gone when this
            returns.
        StorageError: ``file`` does not exist, is not a database, has no tables of the SDK's, or has sessions with
            branches (of the SDK's ``AdvancedSQLiteSession``); or one of the databases failed. Nothing was taken over.
    """
    tables = SDKTables(sessions_table, messages_table)
    if into == MEMORY:
        raise ValueError("into is a file; a database in memory would be gone when this returns")
    source = _real_path(file)
    await anyio.to_thread.run_sync(check_source, source, tables)
    if into is None or _real_path(into) == source:
        source_engine = TakeoverEngine(source, tables)
        try:
            return await source_engine.take_over()
        finally:
            await source_engine.close()
    target_engine = SQLiteEngine(into)
    try:
        return await import_into(target_engine, source, tables)
    finally:
        await target_engine.close()


def _register_with_the_sdk() -> None:
    """Have ``isinstance(session, agents.SessionABC)`` say what type checkers say, where the SDK is in use."""
    sdk_class = getattr(sys.modules.get("agents"), "SessionABC", None)
    if sdk_class is not None:
        sdk_class.register(AsyncSQLiteSession)


def _real_path(path: str | os.PathLike[str]) -> str:
    return os.path.realpath(database_path(path))


def _convert_settings(settings: HasLimit | SessionSettings | Mapping[str, Any] | None) -> SessionSettings | None:
    """Convert the SDK's settings to agentmem's. A negative limit becomes no limit, as in the SDK."""
    if settings is None or isinstance(settings, SessionSettings):
        return settings
    if not isinstance(settings, Mapping):
        if not hasattr(settings, "limit"):
            raise TypeError(f"session_settings has a limit, or is a dict or None, got {type(settings).__name__}")
        settings = {"limit": settings.limit}
    unknown = settings.keys() - SessionSettings.model_fields.keys()
    if unknown:
        # In the SDK's words, which its own tests look for.
        raise TypeError(f"Unknown session settings: {', '.join(sorted(map(str, unknown)))}")
    limit = settings.get("limit")
    return SessionSettings(**{**settings, "limit": None if isinstance(limit, int) and limit < 0 else limit})
