"""An SQLite engine that goes on with the history that the Agents SDK's sessions wrote; see ``takeover``.

What is new of the SDK's is taken over before the first read and inside the first write on each pool.
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
from .schema import upgrade
from .sdk_tables import SDKTables
from .statements import Read, Write
from .takeover import Takeover, import_from, is_behind, take_over, take_over_and_count


class TakeoverEngine(SQLiteEngine):
    """Sessions in one SQLite file, with the history of the Agents SDK's that is in it.

    Args:
        db: path of the file; ":memory:" for a database that this engine alone sees.
        tables: the SDK's tables whose history the file goes on with.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    accepts_sdk_file = True

    def __init__(self, db: str | os.PathLike[str], tables: SDKTables) -> None:
        super().__init__(db)
        self._tables = tables
        self._caught_up: WeakSet[Pool] = WeakSet()

    async def open_pool(self, pool: Pool) -> None:
        await super().open_pool(pool)
        await self._catch_up()

    async def write(self, operation: Write) -> object:
        pool = self.pool()
        if isinstance(operation, Import) or pool in self._caught_up:
            return await super().write(operation)
        return await self._take_over_and_write(pool, operation)

    async def query(self, operation: Read) -> object:
        await self._catch_up()
        return await super().query(operation)

    async def take_over(self) -> Takeover:
        """Take over what is new in the SDK's tables in this file, and say what was taken before.

        Raises:
            StorageError: nothing was taken over.
        """
        return cast(Takeover, await self.write(Import(self._tables)))

    async def _catch_up(self) -> None:
        """Have what is new of the SDK's taken over, once on each pool; writes do it by themselves."""
        if (pool := self.pool()) not in self._caught_up:
            if await super().query(IsBehind(self._tables)):
                await self._take_over_and_write(pool)
            self._caught_up.add(pool)

    async def _take_over_and_write(self, pool: Pool, operation: Write | None = None) -> object:
        both = TakeOverAndWrite(self._tables, operation)
        done, result = cast("tuple[Takeover, object]", await super().write(both))
        self._caught_up.add(pool)
        if done.skipped:
            warnings.warn(
                f"{self.name}: {len(done.skipped)} sessions of the Agents SDK's have ids that agentmem refuses, and "
                f"stay with the SDK: {', '.join(done.skipped[:10])}",
                stacklevel=2,
            )
        return result


async def import_into(engine: SQLiteEngine, path: str, tables: SDKTables) -> Takeover:
    """Take over what is new in another file, which is only read. `path` is absolute and without links.

    Raises:
        StorageError: nothing was taken over.
    """
    return cast(Takeover, await engine.write(Import(tables, path)))


@dataclass(frozen=True, slots=True)
class Import:
    """Take over by hand: from this file's SDK tables, or from another file's."""

    is_alone: ClassVar[bool] = True
    session_id: ClassVar[None] = None
    tables: SDKTables
    path: str | None = None

    def apply(self, raw: sqlite3.Connection, now: float) -> Takeover:
        upgrade(raw)
        if self.path is None:
            return take_over_and_count(raw, self.tables, now)
        return import_from(raw, self.path, self.tables, now)


@dataclass(frozen=True, slots=True)
class TakeOverAndWrite:
    """Take over what is new in the SDK's tables, then do a write that waits for it; both or none."""

    tables: SDKTables
    write: Write | None = None

    @property
    def is_alone(self) -> bool:
        """As the write that it does."""
        return self.write is not None and self.write.is_alone

    @property
    def session_id(self) -> str | None:
        """Of the write that it does."""
        return None if self.write is None else self.write.session_id

    def apply(self, raw: sqlite3.Connection, now: float) -> tuple[Takeover, object]:
        upgrade(raw)
        done = take_over(raw, self.tables, now)
        return done, None if self.write is None else self.write.apply(raw, now)


@dataclass(frozen=True, slots=True)
class IsBehind:
    """Ask whether a takeover has something to do."""

    session_id: ClassVar[None] = None
    tables: SDKTables

    def apply(self, raw: sqlite3.Connection) -> bool:
        return is_behind(raw, self.tables)
