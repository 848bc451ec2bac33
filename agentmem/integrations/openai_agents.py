"""Coming from the OpenAI Agents SDK: its own SQLite sessions by name and signature, on agentmem.

Change the import, and nothing else::

    from agents import SQLiteSession  # before
    from agents.extensions.memory import AsyncSQLiteSession  # before
    from agentmem.integrations.openai_agents import AsyncSQLiteSession, SQLiteSession

The SDK need not be installed. On a file that the SDK wrote, the first use of a session takes over the history of all
its sessions in one transaction: order, timestamps and text as they were, the SDK's own tables untouched, so that the
SDK can still read the file. From then on agentmem's tables hold the conversation:

- What the SDK appends later is appended to the sessions when the next handle is first used, after what agentmem has
  added meanwhile. A handle that is in use does not look again.
- What the SDK pops or clears later stays in agentmem: what is gone does not tell why. Nothing that was popped or
  cleared in agentmem comes back.
- Session ids that agentmem refuses (empty, longer than 1,024 bytes, with NUL) stay with the SDK; a warning names them.
- A file goes on with one pair of tables. Another pair in it is refused, because two conversations of the same id would
  become one: ``agentmem import-sdk FILE --into ANOTHER --messages-table NAME`` gives it a file of its own.
- A file with tables of other programs (also of the SDK's ``AdvancedSQLiteSession``) is refused and left as it is;
  ``agentmem import-sdk FILE --into NEW`` copies the history out of it.

What differs from the SDK's classes, on purpose:

- ``session_settings`` is given as there, but as an attribute it is always None: the SDK's Runner then asks for items
  without a limit and gets the replay window of at most that many items, made of whole exchanges. ``settings`` has it.
- Items that JSON cannot hold faithfully (NaN, keys that are no strings) raise ``InvalidItemError``; corrupt rows are
  skipped with a warning. Errors are those of ``agentmem.errors``, never sqlite3's.
- Nothing is opened or created before the first use.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import anyio.to_thread

from ..cancellation import UncancellableTask
from ..engines.sqlite.engine import SQLiteEngine
from ..engines.sqlite.sdk_tables import SDKTables
from ..engines.sqlite.takeover import Takeover, check_source
from ..engines.sqlite.takeover_engine import TakeoverEngine, import_into
from ..items import Item
from ..replay import SessionSettings
from ..session import AsyncSession

__all__ = ["AsyncSQLiteSession", "SQLiteSession", "Takeover", "import_history"]

_EVERY_ITEM = 2**63 - 1


class HasLimit(Protocol):
    """The SDK's ``SessionSettings``, or whatever has its one field."""

    limit: int | None


class AsyncSQLiteSession(AsyncSession):
    """One conversation in an SQLite file, constructed like the SDK's ``AsyncSQLiteSession``; see the module.

    Args:
        session_id: which conversation; 1 to 1,024 bytes in UTF-8, without NUL.
        db_path: path of the file, created (readable by its owner alone) if there is none; by default a database that
            only this handle sees.
        sessions_table, messages_table: the SDK's tables that are taken over, named as they were for the SDK.
        session_settings: the SDK's settings, a dict of them, or an ``agentmem.SessionSettings``: what ``get_items()``
            without a limit replays.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range. What is wrong with the file is raised as a
            StorageError by the first call.
    """

    __slots__ = ("db_path", "messages_table", "sessions_table")

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
        super().__init__(engine, session_id, _settings(session_settings), owns_engine=True)

    async def get_items(self, limit: int | None = None) -> list[Item]:
        """As :meth:`agentmem.AsyncSession.get_items`; a negative limit takes every item, as with the SDK."""
        if isinstance(limit, int) and limit < 0:
            limit = _EVERY_ITEM
        return await super().get_items(limit)


class SQLiteSession(AsyncSQLiteSession):
    """The same, constructed and closed like the SDK's ``SQLiteSession``: async methods, but a plain ``close()``."""

    __slots__ = ()

    def close(self) -> None:  # type: ignore[override]  # the SDK's is no coroutine here
        """End this handle; later calls raise SessionClosedError. Calls under way finish. Idempotent.

        Where no event loop runs, what the handle has open is closed when this returns. Under a running loop it is
        closed soon after, at the latest when ``asyncio.run`` returns; ``async with`` waits for it.
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
            _closing.add(task)
            task.add_done_callback(_closing.discard)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().close()


_closing: set[asyncio.Task[None]] = set()
"""Kept here, because an event loop does not keep its tasks."""


async def import_history(
    file: str | os.PathLike[str],
    *,
    into: str | os.PathLike[str] | None = None,
    sessions_table: str = "agent_sessions",
    messages_table: str = "agent_messages",
) -> Takeover:
    """Take over by hand what the SDK's SQLite sessions wrote, and say what was done. Again, it takes what is new.

    Args:
        file: what the SDK wrote.
        into: the agentmem database to take it into, created if there is none; sessions that it has already go on with
            what is taken. `file` is then opened to read only (SQLite may leave an empty ``-wal`` and a ``-shm`` beside
            it), and known again by its path and by the last row that was taken. Default: `file` itself, as with the
            sessions above.
        sessions_table, messages_table: the SDK's tables, named as they were for the SDK.

    Raises:
        StorageError: `file` is missing, no database or without the SDK's tables, or a database did not do its part;
            nothing was taken over.
    """
    tables = SDKTables(sessions_table, messages_table)
    source = _real_path(file)
    await anyio.to_thread.run_sync(check_source, source, tables)
    if into is None or _real_path(into) == source:
        own_file = TakeoverEngine(source, tables)
        try:
            return await own_file.take_over()
        finally:
            await own_file.close()
    engine = SQLiteEngine(into)
    try:
        return await import_into(engine, source, tables)
    finally:
        await engine.close()


def _real_path(path: str | os.PathLike[str]) -> str:
    return os.path.realpath(os.path.expanduser(os.fspath(path)))


def _settings(given: HasLimit | SessionSettings | Mapping[str, Any] | None) -> SessionSettings | None:
    """agentmem's settings for the SDK's; a negative limit is none, as with the SDK."""
    if given is None or isinstance(given, SessionSettings):
        return given
    if not isinstance(given, Mapping):
        if not hasattr(given, "limit"):
            raise TypeError(f"session_settings has a limit, or is a dict or None, got {type(given).__name__}")
        given = {"limit": given.limit}
    unknown = given.keys() - SessionSettings.model_fields.keys()
    if unknown:
        raise TypeError(f"unknown session_settings: {', '.join(sorted(unknown))}")
    limit = given.get("limit")
    return SessionSettings(**{**given, "limit": None if isinstance(limit, int) and limit < 0 else limit})
