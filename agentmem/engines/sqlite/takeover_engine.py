"""An SQLite engine that takes over the history of the Agents SDK's sessions; see ``takeover``.

On each pool, new rows of the SDK's are taken over before the first read, or in the transaction of the first write.
"""

from __future__ import annotations

import os
import sqlite3
import warnings
from dataclasses import dataclass
from typing import ClassVar, cast
from weakref import WeakSet

from .engine import SQLiteEngine
from .pool import Pool
from .schema import create_or_upgrade
from .sdk_tables import SDKTables
from .statements import Read, Write
from .takeover import Takeover, has_new_rows, import_from, take_over, take_over_and_count


class TakeoverEngine(SQLiteEngine):
    """Sessions in one SQLite file, together with the history that the Agents SDK wrote to the same file.

    Args:
        db: the path of the file; ":memory:" for a database that only this engine sees.
        tables: the SDK's tables whose history is taken over.

    Raises:
        TypeError: `db` is not a path.
        ValueError: `db` is empty or has a NUL.
    """

    accepts_sdk_file = True

    def __init__(self, db: str | os.PathLike[str], tables: SDKTables) -> None:
        super().__init__(db)
        self._tables = tables
        self._up_to_date: WeakSet[Pool] = WeakSet()

    async def open_pool(self, pool: Pool, deadline: float) -> None:
        await super().open_pool(pool, deadline)
        await self._bring_up_to_date(deadline)

    async def write(self, operation: Write, deadline: float | None = None) -> object:
        pool = self.pool()
        if isinstance(operation, ImportHistory) or pool in self._up_to_date:
            return await super().write(operation, deadline)
        return await self._take_over_and_write(pool, operation, deadline)

    async def query(self, operation: Read, deadline: float | None = None) -> object:
        deadline = self.deadline() if deadline is None else deadline
        await self._bring_up_to_date(deadline)
        return await super().query(operation, deadline)

    async def take_over(self) -> Takeover:
        """Take over the new rows of the SDK's tables in this file, and also report what was taken over before.

        The table of messages must exist; see :func:`~.takeover.check_source`.

        Raises:
            StorageError: the tables cannot be taken over; see :func:`~.takeover.take_over`. Nothing was.
            StorageError: the database failed, as in every method of an engine.
        """
        return cast(Takeover, await self.write(ImportHistory(self._tables)))

    async def _bring_up_to_date(self, deadline: float) -> None:
        """Take over the SDK's new rows, once on each pool. Used before reads; writes do it by themselves."""
        if (pool := self.pool()) not in self._up_to_date:
            if await super().query(HasNewRows(self._tables), deadline):
                await self._take_over(pool, deadline)
            self._up_to_date.add(pool)

    async def _take_over_and_write(self, pool: Pool, operation: Write, deadline: float | None) -> object:
        deadline = self.deadline() if deadline is None else deadline  # one for all that the call does
        try:
            result = await super().write(TakeOverAndWrite(self._tables, operation), deadline)
        except SessionsToWarnOf:
            pass
        else:
            self._up_to_date.add(pool)
            return result
        await self._take_over(pool, deadline)
        return await super().write(operation, deadline)

    async def _take_over(self, pool: Pool, deadline: float) -> None:
        done = cast(Takeover, await super().write(TakeOver(self._tables), deadline))
        self._up_to_date.add(pool)
        if done.skipped:
            warnings.warn(
                f"{self.name}: {len(done.skipped)} sessions of the Agents SDK's have ids that agentmem refuses, and "
                f"stay with the SDK: {', '.join(done.skipped[:10])}",
                stacklevel=2,
            )


async def import_into(engine: SQLiteEngine, path: str, tables: SDKTables) -> Takeover:
    """Take over the new rows of the SDK's tables in another file, which is only read.

    Args:
        engine: the database to take them over into.
        path: the absolute path of the other file, without symbolic links.
        tables: the names of the SDK's tables.

    Raises:
        StorageError: the file cannot be taken over; see :func:`~.takeover.import_from`. Nothing was.
        StorageError: the engine's database failed, as in every method of an engine.
    """
    return cast(Takeover, await engine.write(ImportHistory(tables, path)))


@dataclass(frozen=True, slots=True)
class ImportHistory:
    """Take over on the user's command: from the SDK's tables in this file, or from another file at `path`."""

    is_alone: ClassVar[bool] = True
    removes_sessions: ClassVar[bool] = False
    session_id: ClassVar[None] = None
    tables: SDKTables
    path: str | None = None

    def apply(self, raw: sqlite3.Connection, now: int) -> Takeover:
        create_or_upgrade(raw)
        if self.path is None:
            return take_over_and_count(raw, self.tables, now)
        return import_from(raw, self.path, self.tables, now)


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Take over the SDK's new rows."""

    is_alone: ClassVar[bool] = False
    removes_sessions: ClassVar[bool] = False
    session_id: ClassVar[None] = None
    tables: SDKTables

    def apply(self, raw: sqlite3.Connection, now: int) -> Takeover:
        create_or_upgrade(raw)
        return take_over(raw, self.tables, now)


class SessionsToWarnOf(Exception):  # noqa: N818  the engine catches it
    """There are sessions that cannot be taken over. Nothing was written."""


@dataclass(frozen=True, slots=True)
class TakeOverAndWrite:
    """Take over the SDK's new rows, then do a write in the same transaction.

    Where the takeover has something to warn of, nothing is done, because the warning may be raised as an error: after
    the commit the write's result would be lost with it.
    """

    tables: SDKTables
    write: Write

    @property
    def is_alone(self) -> bool:
        """Whether the write needs a transaction of its own."""
        return self.write.is_alone

    @property
    def removes_sessions(self) -> bool:
        """Whether the write may leave items of sessions that are gone."""
        return self.write.removes_sessions

    @property
    def session_id(self) -> str | None:
        """The session of the write."""
        return self.write.session_id

    def apply(self, raw: sqlite3.Connection, now: int) -> object:
        create_or_upgrade(raw)
        if take_over(raw, self.tables, now).skipped:
            raise SessionsToWarnOf
        return self.write.apply(raw, now)


@dataclass(frozen=True, slots=True)
class HasNewRows:
    """Ask whether a takeover has something to do."""

    session_id: ClassVar[None] = None
    tables: SDKTables

    def apply(self, raw: sqlite3.Connection) -> bool:
        return has_new_rows(raw, self.tables)
