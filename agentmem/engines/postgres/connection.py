"""One connection to PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Coroutine, Hashable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

import asyncpg

from ...cancellation import despite_cancellation
from ...lifecycle import around_fork
from .errors import ENDED

T = TypeVar("T")

Connection = Any
"""An ``asyncpg.Connection``; asyncpg has no type annotations."""


@dataclass(frozen=True)
class Database:
    """What a pool connects to, and how.

    Args:
        name: as messages name it.
        key: equal for two databases that share a pool.
        dsn: for asyncpg; "" where `given` is there.
        given: a pool of the caller's, whose connections are used and which is never closed.
        schema: that holds the tables.
        busy_timeout_s: how long to wait for a lock, a connection, or a server that starts again.
        statement_cache_size: asyncpg's.
    """

    name: str
    key: Hashable = field(repr=False)
    dsn: str = field(repr=False)  # with its password
    given: Any
    schema: str
    busy_timeout_s: float
    statement_cache_size: int

    @property
    def quoted_schema(self) -> str:
        """The schema's name in SQL."""
        return '"' + self.schema.replace('"', '""') + '"'

    def sql(self, text: str) -> str:
        """`text` on this database's tables."""
        return text.replace("agentmem.", f"{self.quoted_schema}.")


class Bounded:
    """A connection, each statement of which is answered within `limit_s` or ends in a TimeoutError.

    Transactions, too: asyncpg's own have no time limit but what the connection was made with.
    """

    def __init__(self, connection: Connection, limit_s: float) -> None:
        self._connection = connection
        self._limit_s = limit_s

    async def execute(self, sql: str, *values: object) -> None:
        await self._answered(self._connection.execute(sql, *values, timeout=self._limit_s))

    async def fetch(self, sql: str, *values: object) -> Sequence[Any]:
        rows: Sequence[Any] = await self._answered(self._connection.fetch(sql, *values, timeout=self._limit_s))
        return rows

    async def fetchrow(self, sql: str, *values: object) -> Any:
        return await self._answered(self._connection.fetchrow(sql, *values, timeout=self._limit_s))

    async def fetchval(self, sql: str, *values: object) -> Any:
        return await self._answered(self._connection.fetchval(sql, *values, timeout=self._limit_s))

    async def _answered(self, asking: Awaitable[T]) -> T:
        try:
            return await asking
        except asyncpg.PostgresWarning as warning:
            # It lets nothing be set on it, so that no ``with`` could pass it on.
            error = asyncpg.PostgresError(str(warning))
            error.sqlstate = warning.sqlstate
            raise error from warning

    @asynccontextmanager
    async def transaction(self, mode: str) -> AsyncIterator[None]:
        try:
            await self.execute(f"BEGIN ISOLATION LEVEL {mode}")
            yield
            await self.execute("COMMIT")
        except TimeoutError:
            raise  # what does not answer would not answer this either
        except BaseException:
            with suppress(*ENDED):  # where it fails the connection is lost, and the transaction with it
                await self.execute("ROLLBACK")
            raise


async def in_plain_task(work: Coroutine[Any, Any, T], *, ends_early: bool = False) -> T:
    """Await what sets itself a time limit: that cancels the task it runs in, which a lane's must not be.

    Where the wait is cancelled, as a check's may be, the work is waited for all the same. If it `ends_early`, it is
    cancelled itself, but once: an anyio scope would cancel it at every await, also where it ends its transaction.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        if ends_early:
            task.cancel()
        await despite_cancellation(asyncio.wait([task]))
        if not task.cancelled():
            task.exception()  # nobody is left to be told of it
        raise
    if task.cancelled():  # as asyncio.run does last with every task: what waits for it here is to be done nevertheless
        raise ConnectionAbortedError("the event loop ended it")
    return task.result()


async def end(connection: Connection) -> None:
    """Close a connection of our own, whether it is lost or not."""
    try:
        await connection.close(timeout=1)
    except ENDED:
        connection.terminate()  # what was to be closed is gone


made: WeakSet[Any] = WeakSet()
"""The connections that this process has made, for as long as there are such objects."""


def _leave_to_parent() -> None:
    """Cut a forked child off from its parent's connections, and leave those as they are.

    With a copy of their sockets, the child would keep them open when the parent is killed, with the locks that they
    hold at the server, and could say goodbye over them. A socket whose other end is closed takes the place of each.
    """
    ours, other_end = socket.socketpair()
    other_end.close()
    with ours:
        for connection in list(made):
            if not connection.is_closed() and not connection._loop.is_closed():
                theirs: int = socket_of(connection).fileno()
                if theirs >= 0:  # it is closed where its end was just noticed
                    os.dup2(ours.fileno(), theirs, inheritable=False)
    made.clear()


def socket_of(connection: Connection) -> Any:
    """The socket that a connection speaks through."""
    return connection._transport.get_extra_info("socket")


around_fork(before=lambda: None, in_parent=lambda: None, in_child=_leave_to_parent)
