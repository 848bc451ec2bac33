"""What a system must do to be measured; agentmem, and sqlite3 alone, which is the limit.

A rival is one more class (``rivals.py``) and one more row in ``rivals.SYSTEMS``.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, NamedTuple, TypeVar

from .databases import SQLITE, Database
from .material import MAIN, History, Item, in_chunks, items, turn
from .timing import Tally, at_once

SelfT = TypeVar("SelfT", bound="System")


class Unsupported(Exception):  # noqa: N818  an outcome, no error
    """The system has no such feature; the message says which."""


class Handle(NamedTuple):
    """An open session: the system's own methods where they fit, so that no call costs more than theirs."""

    add: Callable[[list[Item]], Awaitable[object]]
    tail: Callable[[int | None], Awaitable[Sequence[object]]]
    close: Callable[[], Awaitable[object]]


class SyncHandle(NamedTuple):
    """The same without ``await``."""

    add: Callable[[list[Item]], object]
    tail: Callable[[int | None], Sequence[object]]
    close: Callable[[], object]


class System(ABC):
    """One way to store sessions in an SQLite file, or in what stands for one.

    Attributes:
        title: as tables and the chart call it.
        database: what it stores them in.
        modules: what it imports; imported before anything is timed.
        packages: whose versions the report gives.
        note: what a reader must know to compare; "" for nothing.
        most_items: the longest history that it can be asked to hold; None for any.
    """

    title: ClassVar[str]
    database: ClassVar[Database] = SQLITE
    modules: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]]
    note: ClassVar[str] = ""
    most_items: ClassVar[int | None] = None

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    async def open(self) -> None:
        """Open the file, as a program that uses the system does once."""

    @abstractmethod
    async def close(self) -> None:
        """Close all that is open but the handles."""

    @abstractmethod
    async def session(self, session_id: str) -> Handle:
        """Open a session, as a web handler does for each request."""

    async def window(self, session_id: str, limit: int) -> Handle:
        """A handle whose ``tail(None)`` is a valid replay window of at most `limit` items."""
        raise Unsupported("no replay window: a limit may cut a call from its output")

    def sync_session(self, session_id: str) -> SyncHandle:
        """A handle for scripts."""
        raise Unsupported("no sync form")

    async def add_at_once(self, handles: Sequence[Handle], turns: Sequence[list[Item]], budget_s: float) -> Tally:
        """All handles add all turns, each handle one after the other, all handles at once."""

        def adding(handle: Handle) -> Callable[[int], Awaitable[object]]:
            return lambda number: handle.add(turns[number])

        return await at_once([adding(handle) for handle in handles], len(turns), budget_s)

    def build(self, history: History) -> None:
        """Make a new file that holds the history, checked by a read through the system's own call.

        Raises:
            Unsupported: the history is longer than the system can be asked to hold.
            RuntimeError: the system does not read back what was written.
        """
        if self.most_items is not None and history.longest() > self.most_items:
            raise Unsupported(f"not run beyond {self.most_items:,} items: {self.note}")
        asyncio.run(self.fill(history))
        asyncio.run(self.check(history))

    async def fill(self, history: History) -> None:
        """Write the history: into the system's own tables, which are made by the system's own first call."""
        async with self:
            handle = await self.session("first")
            await handle.add(turn(0))
            await handle.close()
        with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = OFF")
            db.execute("BEGIN IMMEDIATE")
            self.insert(db, history)
            db.execute("COMMIT")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def insert(self, db: sqlite3.Connection, history: History) -> None:
        """Put the history into the system's tables; not called where ``fill`` does it another way."""
        raise NotImplementedError

    async def check(self, history: History) -> None:
        """Read the end of the history by the system's own call."""
        async with self:
            handle = await self.session(MAIN)
            newest = await handle.tail(3)
            await handle.close()
        marks = [f"#{position}:" for position in range(history.items - min(3, history.items), history.items)]
        if len(newest) != len(marks) or not all(
            mark in repr(entry) or "function_call" in repr(entry) for mark, entry in zip(marks, newest, strict=True)
        ):
            raise RuntimeError(f"{self.title} does not read back the history that was built for it: {newest!r:.500}")

    @classmethod
    def load(cls) -> None:
        """Import it.

        Raises:
            ImportError: it is not installed.
        """
        for module in cls.modules:
            import_module(module)

    @classmethod
    def other_versions(cls) -> dict[str, str]:
        """Versions that no metadata of an installed package says; asked after ``load``."""
        return {}

    @classmethod  # noqa: B027  files go with their folder
    def clean(cls, folder: Path) -> None:
        """Remove what stands for the files in this folder, where they are not files."""

    async def __aenter__(self: SelfT) -> SelfT:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def nothing() -> None:
    """The ``close`` of handles that have nothing to close."""


async def add_history(store: Any, sessions: Iterable[tuple[str, int]], *, tools: bool = False) -> None:
    """Write these sessions, each with so many items, by the calls of an agentmem store, many at once."""
    waiting: list[Awaitable[None]] = []
    for session_id, count in sessions:
        for chunk in in_chunks(items(count, tools=tools), 10_000):
            waiting.append(store.session(session_id).add_items(chunk))
            if len(waiting) == 1_000 or count > 10_000:
                await asyncio.gather(*waiting)
                waiting.clear()
    await asyncio.gather(*waiting)


class AgentMem(System):
    title = "agentmem"
    modules = ("agentmem", "agentmem.store", "agentmem.sync")  # the first loads the others when they are used
    packages = ("aiosqlite", "anyio", "pydantic")

    async def open(self) -> None:
        from agentmem import AsyncSessionStore

        self._store = AsyncSessionStore(self.path)  # as a web app does: it keeps the pool open
        await self._store.open()

    async def close(self) -> None:
        await self._store.close()

    async def session(self, session_id: str) -> Handle:
        return await self._session(session_id, None)

    async def window(self, session_id: str, limit: int) -> Handle:
        return await self._session(session_id, limit)

    async def _session(self, session_id: str, limit: int | None) -> Handle:
        from agentmem import AsyncSQLiteSession, SessionSettings

        settings = None if limit is None else SessionSettings(limit=limit)
        session = await AsyncSQLiteSession(self.path, session_id=session_id, settings=settings).__aenter__()
        return Handle(session.add_items, session.get_items, session.close)

    def sync_session(self, session_id: str) -> SyncHandle:
        from agentmem import SQLiteSession

        session = SQLiteSession(self.path, session_id=session_id)
        return SyncHandle(session.add_items, session.get_items, session.close)

    async def fill(self, history: History) -> None:
        # By its own calls: they are fast enough, and know what the tables look like today.
        from agentmem import AsyncSessionStore

        async with AsyncSessionStore(self.path, durability="normal") as store:
            await add_history(store, history.sessions(), tools=history.tools)

    @classmethod
    def other_versions(cls) -> dict[str, str]:
        return {"agentmem": agentmem_version()}


def agentmem_version() -> str:
    """The version of the agentmem that is measured, which need not be installed."""
    return str(import_module("agentmem").__version__)


class BareSQLite(System):
    """What a program would do by hand: the same rows as agentmem's, JSON made and parsed, nothing else."""

    title = "sqlite3 alone"
    modules = ("sqlite3", "json")
    packages = ()
    note = "one thread, no event loop; where many sessions add at once, all rows go into one single transaction"

    async def open(self) -> None:
        self._db = sqlite3.connect(self.path, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE IF NOT EXISTS sessions (key INTEGER PRIMARY KEY, session_id TEXT NOT NULL UNIQUE, "
            "next INTEGER NOT NULL)",
            "CREATE TABLE IF NOT EXISTS items (key INTEGER PRIMARY KEY, item TEXT NOT NULL)",
        ):
            self._db.execute(statement)

    async def close(self) -> None:
        self._db.close()

    async def session(self, session_id: str) -> Handle:
        async def add(items: list[Item]) -> None:
            self._add(session_id, items)

        async def tail(limit: int | None) -> list[Item]:
            return self._tail(session_id, limit)

        return Handle(add, tail, nothing)

    def sync_session(self, session_id: str) -> SyncHandle:
        asyncio.run(self.open())
        return SyncHandle(partial(self._add, session_id), partial(self._tail, session_id), self._db.close)

    async def add_at_once(self, handles: Sequence[Handle], turns: Sequence[list[Item]], budget_s: float) -> Tally:
        tally = Tally()
        begun = perf_counter()
        self._db.execute("BEGIN IMMEDIATE")
        for added in turns:
            for handle in handles:
                await handle.add(added)
        self._db.execute("COMMIT")
        tally.seconds = perf_counter() - begun
        tally.done = len(handles) * len(turns)
        return tally

    def insert(self, db: sqlite3.Connection, history: History) -> None:
        keys: dict[str, int] = {}
        for session_id, count in history.sessions():
            keys[session_id] = len(keys) + 2  # after the first session's
            db.execute("INSERT INTO sessions VALUES (?, ?, ?)", (keys[session_id], session_id, count))
        rows = (
            ((keys[session_id] << 32) + position, json.dumps(item)) for session_id, position, item in history.rows()
        )
        db.executemany("INSERT INTO items VALUES (?, ?)", rows)

    def _add(self, session_id: str, items: list[Item]) -> None:
        if self._db.in_transaction:
            return self._insert(session_id, items)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._insert(session_id, items)
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _insert(self, session_id: str, items: list[Item]) -> None:
        ((key, end),) = self._db.execute(
            "INSERT INTO sessions (session_id, next) VALUES (?, ?) "
            "ON CONFLICT (session_id) DO UPDATE SET next = next + excluded.next RETURNING key, next",
            (session_id, len(items)),
        )
        first = (key << 32) + end - len(items)
        self._db.executemany(
            "INSERT INTO items VALUES (?, ?)", [(first + place, json.dumps(item)) for place, item in enumerate(items)]
        )

    def _tail(self, session_id: str, limit: int | None) -> list[Item]:
        found = self._db.execute("SELECT key FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
        if found is None:
            return []
        rows: list[tuple[Any]] = self._db.execute(
            "SELECT item FROM items WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?",
            (found[0] << 32, (found[0] + 1) << 32, -1 if limit is None else limit),
        ).fetchall()
        return [json.loads(item) for (item,) in reversed(rows)]
