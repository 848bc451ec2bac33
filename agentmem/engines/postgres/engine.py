"""Sessions in PostgreSQL, or in a database that speaks its protocol, through asyncpg.

The way of a call: this engine makes an operation of it (``writes``, ``reads``), which waits in the pool's queue
(``batching``); the pool has a batch carried out on a connection (``lane``), again on a new one where that is lost
(``retry``). A write that meets a session which another connection holds is set aside (``held``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar, cast

from ...checking import CheckReport, Progress
from ...errors import StorageError
from ..base import Engine, Reading, check_busy_timeout
from ..callbacks import CallbackFailed, guarded
from ..operations import Append, Clear, Pop
from ..pooled import PooledEngine
from ..readings import MAX_INLINE_BYTES, SLICE_BYTES, Joined, feed_joined
from .check import check
from .connection import BoundedConnection, loop_of
from .database import checked_database
from .errors import map_error
from .lane import Work
from .pool import Pool, leases
from .reads import Feeder, Query, ReadNewest
from .writes import Write

T = TypeVar("T")

MAX_APPEND_BYTES = 900_000_000
"""The largest number of bytes in one append: PostgreSQL takes no message of 1 GB (``MaxAllocSize``), and ends the
connection."""

ROW_OVERHEAD_BYTES = 32
"""What a row adds to the message of an append beside its text and its session's id, at most."""

_ON_ANOTHER_LOOP = (
    "an asyncpg pool is used on the event loop that made it, which the sync classes do not run on; give them a URL"
)


class PostgresEngine(PooledEngine[Pool]):
    """Sessions in one schema of a PostgreSQL database, through the event loop's pool for it.

    Args:
        db: a URL for asyncpg (``postgresql://user:password@host:port/database?option=value``), which may also set
            `schema` and `statement_cache_size`; or an ``asyncpg.Pool``, which is used and left open, on its own
            event loop.
        schema: that holds the tables, created if there is none; default: "agentmem".
        busy_timeout_s: how long to wait for a session that another connection holds, for a connection, and for a server
            that was lost to come back, in seconds.
        statement_cache_size: asyncpg's; 0 for PgBouncer in transaction or statement mode before its version 1.21, or
            with ``max_prepared_statements`` 0. Default: asyncpg's.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument or an option of the URL is out of range.
    """

    def __init__(
        self,
        db: Any,
        *,
        schema: str | None = None,
        busy_timeout_s: float = 5.0,
        statement_cache_size: int | None = None,
    ) -> None:
        check_busy_timeout(busy_timeout_s)
        self._database = checked_database(db, schema=schema, statement_cache_size=statement_cache_size)
        super().__init__(self._database.name, self._database.key, leases(self._database), busy_timeout_s)

    async def open_pool(self, pool: Pool, deadline: float) -> None:
        await pool.open(deadline)

    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        self.refuse_closed()
        self._refuse_too_long(session_id, rows)
        if rows:
            await self._write(Append(session_id, rows))

    async def read(self, session_id: str, reading: Reading[T]) -> T:
        deadline = self.deadline()
        pool = self.pool()
        if reading.first:
            newest = ReadNewest(session_id, reading.first)
            joined = await self.submit(pool.newest, newest, session_id, deadline=deadline)
            if joined is None or not await self._feed_joined(pool, reading, joined):
                await self._read_slices(pool, session_id, reading, deadline)
        return reading.result()

    async def pop(self, session_id: str, reading: Reading[T]) -> T:
        return cast(T, await self._write(Pop(session_id, reading)))

    async def clear(self, session_id: str) -> None:
        await self._write(Clear(session_id))

    async def sessions(self, after: str | None, limit: int) -> list[tuple[str, int]]:
        deadline = self.deadline()
        pool = self.pool()
        if after is None:  # the pool's own connections would create the tables
            await self._on_own_connection(pool, pool.schema.require_tables, deadline)
        sql = pool.statements.sessions
        found = await self._query(pool, None, lambda connection: connection.fetch(sql, after or "", limit), deadline)
        return [(session_id, length) for session_id, length in pool.schema.without_version(found)]

    async def rows(self, session_id: str, start: int, limit: int) -> list[tuple[int, bytes]]:
        deadline = self.deadline()
        pool = self.pool()
        sql = pool.statements.rows_from
        found = await self._query(
            pool, session_id, lambda connection: connection.fetch(sql, session_id, start, limit, SLICE_BYTES), deadline
        )
        return [(position, text) for position, text in pool.schema.without_version(found)]

    async def check(self, progress: Progress | None = None) -> CheckReport:
        deadline = self.deadline()
        pool = self.pool()

        async def work(connection: BoundedConnection) -> CheckReport:
            feeder = Feeder(pool.schema, pool.statements, max_threads=1)  # its own: `progress` may read, too
            return await check(connection, pool.schema, pool.statements, feeder, progress and guarded(progress))

        return await self._on_own_connection(pool, work, deadline)

    async def backup(self, path: str | os.PathLike[str]) -> None:
        self.refuse_closed()
        raise StorageError(
            f"{self.name}: back it up with pg_dump; agentmem copy SOURCE TARGET makes a file of its sessions"
        )

    async def restore(self, backup: Engine) -> None:
        self.refuse_closed()
        raise StorageError(
            f"{self.name}: drop the schema, then restore what pg_dump made with psql or pg_restore; agentmem copy FILE "
            "URL copies the sessions of an SQLite file"
        )

    def refuse_other_process(self) -> None:
        """Raise StorageError where the caller's pool stayed in another process, or on another event loop."""
        callers_pool = self._database.callers_pool
        if callers_pool is None:
            return
        if self._leases.are_inherited():
            raise StorageError("an asyncpg pool stays in the process that made it; make one in the child")
        if loop_of(callers_pool) not in (None, asyncio.get_running_loop()):
            raise StorageError(_ON_ANOTHER_LOOP)

    def map_error(self, error: BaseException, session_id: str | None = None) -> BaseException:
        mapped = map_error(error, self.name, session_id)
        if type(mapped) is RuntimeError and self._database.callers_pool is not None:
            return StorageError(f"{self.name}: {_ON_ANOTHER_LOOP}")  # asyncio's error, where loop_of() has not told
        return mapped

    def _refuse_too_long(self, session_id: str, rows: Sequence[str]) -> None:
        if sum(map(len, rows)) <= MAX_APPEND_BYTES // 8:  # whatever characters they have: not worth counting
            return
        size_bytes = sum(len(row.encode()) + len(session_id.encode()) + ROW_OVERHEAD_BYTES for row in rows)
        if size_bytes > MAX_APPEND_BYTES:
            raise StorageError(
                f"session {session_id[:80]!r} in {self.name}: PostgreSQL takes up to 1 GB at once, and these items "
                f"have {size_bytes} bytes; nothing was written, add fewer at a time"
            )

    async def _write(self, operation: Write) -> object:
        return await self.submit(self.pool().writes, operation, operation.session_id)

    async def _query(self, pool: Pool, session_id: str | None, work: Work[Any], deadline: float) -> Any:
        return await self.submit(pool.queries, Query(work), session_id, deadline=deadline)

    async def _read_slices(self, pool: Pool, session_id: str, reading: Reading[Any], deadline: float) -> None:
        async def feed(connection: BoundedConnection) -> None:
            async with connection.transaction("REPEATABLE READ READ ONLY"):
                await pool.feeder.feed(connection, session_id, reading)

        await self._query(pool, session_id, feed, deadline)

    async def _on_own_connection(self, pool: Pool, work: Work[T], deadline: float) -> T:
        try:
            return await pool.on_own_connection(work, deadline)
        except Exception as error:
            failure = error
        self.raise_mapped(failure)

    async def _feed_joined(self, pool: Pool, reading: Reading[Any], joined: Joined) -> bool:
        if reading.is_short and len(joined[0]) <= MAX_INLINE_BYTES:
            return reading.feed_joined(*joined)
        try:
            return await pool.feeder.in_thread(partial(feed_joined, reading, joined))
        except CallbackFailed as error:
            failure = error
        self.raise_mapped(failure)
