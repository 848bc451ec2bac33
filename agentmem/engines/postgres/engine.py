"""Sessions in PostgreSQL, or in a database that speaks its protocol, through asyncpg.

Rules kept here:

- What waits goes together, as in SQLite: a group of appends to any number of sessions is one statement and so one
  transaction and one round trip; a batch of reads of newest rows is one statement, too.
- Positions come from the session's row, which the append updates first: its lock is the session's turn. Every group
  takes these locks in the order of session ids, so no two wait for each other.
- Each connection that writes numbers its transactions, and each of these begins by storing its number
  (``agentmem_writers``). Where a connection is lost before the answer came, the same is sent again on a new one, with
  the same number: it waits for the first attempt, if that is still under way, and does nothing if that was committed.
- An item is stored as the text that it came as: ``jsonb`` would reorder keys and refuse ``\\u0000``.
- Every statement stands for itself or in an explicit transaction, and leaves nothing set on its connection, so that
  PgBouncer may give each transaction another one.
- Names and ids are bound as parameters; only the name of the schema, which cannot be, is quoted into the SQL.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, TypeVar, cast

import asyncpg

from ...cancellation import despite_cancellation
from ...checking import Checking, CheckReport, Progress
from ...errors import SessionClosedError, StorageError
from ..base import Engine, Reading, check_busy_timeout
from ..batching import Job
from ..pools import Leases, close_unused
from .check import walk_database
from .connection import Bounded, Database, in_plain_task
from .errors import cause, map_error
from .lane import Lane
from .pool import SLICE_BYTES, Ask, Clear, Newest, Pool, Pop, pools
from .statements import FROM, SESSIONS, Append
from .url import address, checked_schema, split, without_password

T = TypeVar("T")

MOST_BYTES = 900_000_000
"""Most bytes in one append: PostgreSQL takes no message of 1 GB (``MaxAllocSize``), and ends the connection."""

SHORT_BYTES = 128 * 1024
"""Most bytes of rows that are decoded on the event loop: a fraction of a millisecond's work."""


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
        TypeError, ValueError: an argument of the wrong type or out of range.
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
        dsn = ""
        given: Any = None
        options: dict[str, str] = {}
        if isinstance(db, str):
            dsn, options = split(db)
        elif isinstance(db, asyncpg.Pool):
            given = db
        else:
            raise TypeError(f"db is a URL or an asyncpg.Pool, got {type(db).__name__}")
        if given is not None and statement_cache_size is not None:
            raise ValueError("statement_cache_size is the pool's own; give it to asyncpg.create_pool()")
        schema = checked_schema(options.get("schema", "agentmem") if schema is None else schema)
        cache_size = (
            options.get("statement_cache_size", "100") if statement_cache_size is None else statement_cache_size
        )
        if not re.fullmatch("[0-9]{1,9}", str(cache_size)):
            raise ValueError(f"statement_cache_size is 0 or more, got {cache_size!r}")
        self.name = (without_password(dsn) if given is None else "the given asyncpg pool") + (
            "" if schema == "agentmem" else f" (schema {schema})"
        )
        self.key: Hashable = ("postgresql", address(dsn) if given is None else given, schema)
        self._database = Database(
            name=self.name,
            key=(dsn if given is None else given, schema, busy_timeout_s, int(cache_size)),
            dsn=dsn,
            given=given,
            schema=schema,
            busy_timeout_s=busy_timeout_s,
            statement_cache_size=int(cache_size),
        )
        database = self._database
        self._leases = Leases(pools, lambda: pools.lease(database.key, lambda loop: Pool(database, loop)))
        self._closed = False

    async def open(self) -> None:
        pool = self._pool()
        try:
            await pool.open()
        except BaseException as error:
            await self._leases.let_go(pool)  # a later call leases again
            if isinstance(error, Exception):
                raise self._mapped(error) from cause(error)
            raise

    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        pool = self._pool()
        if sum(map(len, rows)) > MOST_BYTES // 8:  # only then is it worth counting
            size_bytes = sum(len(row.encode()) + len(session_id.encode()) + 32 for row in rows)
            if size_bytes > MOST_BYTES:
                raise StorageError(
                    f"session {session_id[:80]!r} in {self.name}: PostgreSQL takes up to 1 GB at once, and these items "
                    f"have {size_bytes} bytes; nothing was written, add fewer at a time"
                )
        if rows:
            self._outcome(await pool.writes.submit(Append(session_id, rows)))

    async def read(self, session_id: str, reading: Reading[T]) -> T:
        pool = self._pool()
        if reading.first:
            joined = self._outcome(await pool.newest.submit(Newest(session_id, reading.first)))
            if joined is not None:
                if reading.is_short and len(joined[0]) <= SHORT_BYTES:
                    is_enough = reading.feed_joined(*joined)
                else:
                    is_enough = await pool.in_thread(lambda: reading.feed_joined(*joined))
                if is_enough:
                    return reading.result()

            async def feed(connection: Bounded) -> None:
                async with connection.transaction("REPEATABLE READ READ ONLY"):
                    await pool.feed(connection, session_id, reading)

            self._outcome(await pool.asks.submit(Ask(session_id, feed)))
        return reading.result()

    async def pop(self, session_id: str, reading: Reading[T]) -> T:
        return cast(T, self._outcome(await self._pool().writes.submit(Pop(session_id, reading))))

    async def clear(self, session_id: str) -> None:
        self._outcome(await self._pool().writes.submit(Clear(session_id)))

    async def sessions(self, after: str | None, most: int) -> list[tuple[str, int]]:
        pool = self._pool()
        if after is None:  # the pool would make the tables
            await self._apart(pool, _nothing)
        sql = self._database.sql(SESSIONS)
        found = await pool.asks.submit(Ask(None, lambda connection: connection.fetch(sql, after or "", most)))
        return [(session_id, length) for session_id, length in self._outcome(found)]

    async def rows(self, session_id: str, start: int, most: int) -> list[tuple[int, bytes]]:
        sql = self._database.sql(FROM)
        found = await self._pool().asks.submit(
            Ask(session_id, lambda connection: connection.fetch(sql, session_id, start, most, SLICE_BYTES))
        )
        return [(position, text) for position, text in self._outcome(found)]

    async def check(self, progress: Progress | None = None) -> CheckReport:
        pool = self._pool()

        async def walk(connection: Bounded) -> CheckReport:
            checking = Checking(progress)  # tells of its progress in the thread that feeds it
            async with connection.transaction("REPEATABLE READ READ ONLY"):
                await walk_database(connection, self._database, pool, checking)
            return await pool.in_thread(checking.report)

        return await self._apart(pool, walk)

    async def backup(self, path: str | os.PathLike[str]) -> None:
        self._pool()
        raise StorageError(
            f"{self.name}: back it up with pg_dump; agentmem copy SOURCE TARGET makes a file of its sessions"
        )

    async def close(self) -> None:
        self._closed = True
        if unused := self._leases.give_back():
            await despite_cancellation(_close_all(unused))

    def _pool(self) -> Pool:
        """This engine's pool on the running event loop."""
        if self._closed:
            raise SessionClosedError(f"the store on {self.name} is closed; open a new one")
        given = self._database.given
        if given is not None:
            if self._leases.are_inherited():
                raise StorageError("an asyncpg pool stays in the process that made it; make one in the child")
            if getattr(given, "_loop", None) is not asyncio.get_running_loop():
                raise StorageError(
                    "an asyncpg pool is used on the event loop that made it, which the sync classes do not run on; "
                    "give them a URL"
                )
        return self._leases.take()

    async def _apart(self, pool: Pool, work: Callable[[Bounded], Awaitable[T]]) -> T:
        """Do `work` on a connection apart from the pool's, to a database that has agentmem's tables."""

        async def with_tables(connection: Bounded) -> T:
            if not await pool.version(connection):
                raise StorageError(f"{self.name} holds no sessions of agentmem's; check the URL and the schema")
            return await work(connection)

        async def once() -> T:
            lane = Lane(pool, prepares=False)
            try:
                return await lane.run(with_tables)
            finally:
                await lane.close()

        try:
            return await in_plain_task(once(), ends_early=True)
        except Exception as error:
            raise self._mapped(error) from cause(error)

    def _outcome(self, job: Job[Any]) -> Any:
        if job.error is None:
            return job.result
        raise self._mapped(job.error, job.work.session_id) from cause(job.error)

    def _mapped(self, error: BaseException, session_id: str | None = None) -> BaseException:
        """agentmem's error for the driver's; any other is returned as it is."""
        return map_error(error, self.name, session_id)


async def _close_all(pools: Sequence[Pool]) -> None:
    for pool in pools:
        await close_unused(pool)


async def _nothing(connection: Bounded) -> None:
    pass
