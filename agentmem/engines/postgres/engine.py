"""Sessions in PostgreSQL, or in a database that speaks its protocol, through asyncpg."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from ...cancellation import despite_cancellation
from ...checking import CheckReport, Progress
from ...errors import SessionClosedError, StorageError
from ..base import Engine, Reading
from ..batching import Job
from ..pools import close_unused
from .check import check
from .connection import BoundedConnection, loop_of
from .database import checked_database
from .errors import ReadingFailed, cause_of, map_error
from .lane import Work
from .pool import Pool, leases
from .reads import MAX_INLINE_BYTES, SLICE_BYTES, Joined, Query, ReadNewest
from .writes import Append, Clear, Pop

T = TypeVar("T")

MAX_APPEND_BYTES = 900_000_000
"""Most bytes in one append: PostgreSQL takes no message of 1 GB (``MaxAllocSize``), and ends the connection."""

ROW_OVERHEAD_BYTES = 32
"""What a row adds to the message of an append beside its text and its session's id, at most."""


_ON_ANOTHER_LOOP = (
    "an asyncpg pool is used on the event loop that made it, which the sync classes do not run on; give them a URL"
)


class PostgresEngine(Engine):
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
        self._database = checked_database(
            db, schema=schema, busy_timeout_s=busy_timeout_s, statement_cache_size=statement_cache_size
        )
        self.name, self.key = self._database.name, self._database.key
        self._leases = leases(self._database)
        self._closed = False

    async def open(self) -> None:
        pool = self._pool()
        try:
            await pool.open()
        except BaseException as error:
            await self._leases.let_go(pool)  # a later call leases again
            if isinstance(error, Exception):
                raise self._mapped(error) from cause_of(error)
            raise

    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        pool = self._pool()
        self._refuse_too_long(session_id, rows)
        if rows:
            self._outcome(await pool.writes.submit(Append(session_id, rows)))

    async def read(self, session_id: str, reading: Reading[T]) -> T:
        pool = self._pool()
        if reading.first:
            joined = self._outcome(await pool.newest.submit(ReadNewest(session_id, reading.first)))
            if joined is None or not await _feed_joined(pool, reading, joined):
                await self._read_slices(pool, session_id, reading)
        return reading.result()

    async def pop(self, session_id: str, reading: Reading[T]) -> T:
        return cast(T, self._outcome(await self._pool().writes.submit(Pop(session_id, reading))))

    async def clear(self, session_id: str) -> None:
        self._outcome(await self._pool().writes.submit(Clear(session_id)))

    async def sessions(self, after: str | None, most: int) -> list[tuple[str, int]]:
        pool = self._pool()
        if after is None:
            await self._on_own_connection(pool, pool.schema.require_tables)  # the pool's own would create the tables
        sql = pool.statements.sessions
        query = Query(None, lambda connection: connection.fetch(sql, after or "", most))
        return [(session_id, length) for session_id, length in self._outcome(await pool.queries.submit(query))]

    async def rows(self, session_id: str, start: int, most: int) -> list[tuple[int, bytes]]:
        pool = self._pool()
        sql = pool.statements.rows_from
        query = Query(session_id, lambda connection: connection.fetch(sql, session_id, start, most, SLICE_BYTES))
        return [(position, text) for position, text in self._outcome(await pool.queries.submit(query))]

    async def check(self, progress: Progress | None = None) -> CheckReport:
        pool = self._pool()

        async def work(connection: BoundedConnection) -> CheckReport:
            await pool.schema.require_tables(connection)
            return await check(connection, pool.statements, pool.feeder, progress)

        return await self._on_own_connection(pool, work)

    async def backup(self, path: str | os.PathLike[str]) -> None:
        self._refuse_closed()
        raise StorageError(
            f"{self.name}: back it up with pg_dump; agentmem copy SOURCE TARGET makes a file of its sessions"
        )

    async def close(self) -> None:
        self._closed = True
        if unused := self._leases.give_back():
            await despite_cancellation(_close_all(unused))

    def _pool(self) -> Pool:
        """This engine's pool on the running event loop."""
        self._refuse_closed()
        callers_pool = self._database.callers_pool
        if callers_pool is not None:
            if self._leases.are_inherited():
                raise StorageError("an asyncpg pool stays in the process that made it; make one in the child")
            if loop_of(callers_pool) not in (None, asyncio.get_running_loop()):
                raise StorageError(_ON_ANOTHER_LOOP)
        return self._leases.take()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise SessionClosedError(f"the store on {self.name} is closed; open a new one")

    def _refuse_too_long(self, session_id: str, rows: Sequence[str]) -> None:
        if sum(map(len, rows)) <= MAX_APPEND_BYTES // 8:  # whatever characters they have: not worth counting
            return
        size_bytes = sum(len(row.encode()) + len(session_id.encode()) + ROW_OVERHEAD_BYTES for row in rows)
        if size_bytes > MAX_APPEND_BYTES:
            raise StorageError(
                f"session {session_id[:80]!r} in {self.name}: PostgreSQL takes up to 1 GB at once, and these items "
                f"have {size_bytes} bytes; nothing was written, add fewer at a time"
            )

    async def _read_slices(self, pool: Pool, session_id: str, reading: Reading[Any]) -> None:
        async def feed(connection: BoundedConnection) -> None:
            async with connection.transaction("REPEATABLE READ READ ONLY"):
                await pool.feeder.feed(connection, session_id, reading)

        self._outcome(await pool.queries.submit(Query(session_id, feed)))

    async def _on_own_connection(self, pool: Pool, work: Work[T]) -> T:
        try:
            return await pool.on_own_connection(work)
        except Exception as error:
            raise self._mapped(error) from cause_of(error)

    def _outcome(self, job: Job[Any]) -> Any:
        if job.error is None:
            return job.result
        raise self._mapped(job.error, job.work.session_id) from cause_of(job.error)

    def _mapped(self, error: BaseException, session_id: str | None = None) -> BaseException:
        """agentmem's error for the driver's; any other is returned as it is."""
        mapped = map_error(error, self.name, session_id)
        is_asyncios = type(mapped) is RuntimeError and not isinstance(error, ReadingFailed)
        if is_asyncios and self._database.callers_pool is not None:  # and loop_of() has not told
            return StorageError(f"{self.name}: {_ON_ANOTHER_LOOP}")
        return mapped


async def _feed_joined(pool: Pool, reading: Reading[Any], joined: Joined) -> bool:
    if reading.is_short and len(joined[0]) <= MAX_INLINE_BYTES:
        return reading.feed_joined(*joined)
    return await pool.feeder.in_thread(lambda: reading.feed_joined(*joined))


async def _close_all(pools: Sequence[Pool]) -> None:
    for pool in pools:
        await close_unused(pool)
