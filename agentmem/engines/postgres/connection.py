"""One asyncpg connection: statements with a time limit, opening and closing, and what a fork does to it.

All use of asyncpg's private attributes is here. Where a release of asyncpg lacks one, the work is done without it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import asyncpg

from ...cancellation import despite_cancellation
from ...lifecycle import around_fork
from .errors import CLOSING_ERRORS
from .url import has_option

T = TypeVar("T")

Connection = Any
"""An ``asyncpg.Connection``; asyncpg has no type annotations."""


class BoundedConnection:
    """A connection for one attempt at some work: each statement is answered within `limit_s`, or raises TimeoutError.

    That includes BEGIN, COMMIT and ROLLBACK: asyncpg's own transactions have only the connection's time limit.

    Args:
        wait_s: how long the work may wait for locks; negative where its time is over.

    Attributes:
        wait_s: as given.
        commit_sent: set by the work just before it sends what commits a write. From then on the write may be
            committed, whatever happens to the connection.
    """

    def __init__(self, connection: Connection, limit_s: float, wait_s: float) -> None:
        self._connection = connection
        self._limit_s = limit_s
        self.wait_s = wait_s
        self.commit_sent = False

    def with_limit(self, limit_s: float) -> BoundedConnection:
        """The same for statements that may take longer, or less long."""
        return BoundedConnection(self._connection, limit_s, self.wait_s)

    async def execute(self, sql: str, *values: object) -> None:
        """Run a statement that returns no rows; without values, also several statements."""
        await _warnings_as_errors(self._connection.execute(sql, *values, timeout=self._limit_s))

    async def fetch(self, sql: str, *values: object) -> Sequence[Any]:
        """The rows of a query."""
        rows: Sequence[Any] = await _warnings_as_errors(self._connection.fetch(sql, *values, timeout=self._limit_s))
        return rows

    async def fetchrow(self, sql: str, *values: object) -> Any:
        """The first row of a query, None where there is none."""
        return await _warnings_as_errors(self._connection.fetchrow(sql, *values, timeout=self._limit_s))

    async def fetchval(self, sql: str, *values: object) -> Any:
        """The first value of the first row, None where there is none."""
        return await _warnings_as_errors(self._connection.fetchval(sql, *values, timeout=self._limit_s))

    @asynccontextmanager
    async def transaction(self, mode: str) -> AsyncIterator[None]:
        """A transaction, which an error in the ``with`` rolls back.

        Args:
            mode: its isolation level, and whether it only reads.
        """
        try:
            await self.execute(f"BEGIN ISOLATION LEVEL {mode}")
            yield
            await self.execute("COMMIT")
        except TimeoutError:
            raise  # a server that does not answer would not answer a ROLLBACK either
        except BaseException:
            with suppress(*CLOSING_ERRORS):  # then the connection is lost, and the transaction with it
                await self.execute("ROLLBACK")
            raise


async def _warnings_as_errors(statement: Awaitable[T]) -> T:
    """Raise as a PostgresError what a trigger raised with the SQLSTATE of a warning.

    asyncpg raises it as a PostgresWarning, whose attributes cannot be set, so that no ``with`` could pass it on.
    """
    try:
        return await statement
    except asyncpg.PostgresWarning as warning:
        error = asyncpg.PostgresError(str(warning))
        error.sqlstate = warning.sqlstate
        raise error from warning


async def in_own_task(work: Coroutine[Any, Any, T], *, is_cancelled_with_caller: bool = False) -> T:
    """Await `work` in a task of its own.

    asyncpg's time limits cancel the task in which they run. The tasks of a pool ignore that, because a batch that has
    begun must finish.

    Where the caller is cancelled meanwhile, `work` still runs to its end, and the cancellation is raised then.

    Args:
        is_cancelled_with_caller: `work` is cancelled, too, but only once. An anyio scope would cancel it at every
            await, also where it ends its transaction.

    Raises:
        ConnectionAbortedError: the event loop's shutdown cancelled `work`.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        if is_cancelled_with_caller:
            task.cancel()
        await despite_cancellation(asyncio.wait([task]))
        if not task.cancelled():
            task.exception()  # marks it as retrieved: nobody is left to be told of it
        raise
    if task.cancelled():  # asyncio.run() cancels every task at the end; the batch that waits for this one goes on
        raise ConnectionAbortedError("the event loop ended it")
    return task.result()


async def connect(url: str, *, timeout_s: float, statement_cache_size: int) -> Connection:
    """Open a connection of our own. A fork's child will leave it to this process.

    The server lists it under the URL's ``application_name``, else under that of the environment, as libpq does
    (https://www.postgresql.org/docs/current/libpq-envars.html), else as agentmem's.
    """
    name = os.environ.get("PGAPPNAME") or "agentmem"
    connection = await asyncpg.connect(
        url,
        timeout=timeout_s,
        statement_cache_size=statement_cache_size,
        server_settings=None if has_option(url, "application_name") else {"application_name": name},
    )
    _own[connection] = asyncio.get_running_loop()
    return connection


async def close(connection: Connection) -> None:
    """Close a connection of our own in an orderly way, unless it is closed."""
    try:
        await connection.close(timeout=1)
    except CLOSING_ERRORS:
        connection.terminate()


def terminate(connection: Connection) -> None:
    """Close a lost connection, without a word to the server."""
    with suppress(asyncpg.InterfaceError):  # the caller's pool has taken it back by itself
        connection.terminate()


def is_closed(connection: Connection) -> bool:
    """Whether a connection is closed; that of a caller's pool, also where the pool took it back because it was lost."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True


def hang_up(connection: Connection) -> None:
    """Have the server see the end of a connection whose event loop is closed.

    Python closes the socket when it collects the connection, which may be much later. Without asyncpg's private
    attribute, that is when the server sees it.
    """
    opened = _socket_of(connection)
    if opened is not None:
        with suppress(OSError, TypeError):  # uvloop has closed its sockets with the loop, and raises TypeError
            opened.shutdown(socket.SHUT_RDWR)


def loop_of(callers_pool: Any) -> asyncio.AbstractEventLoop | None:
    """The event loop of an ``asyncpg.Pool``; None where this release of asyncpg does not say."""
    loop: asyncio.AbstractEventLoop | None = getattr(callers_pool, "_loop", None)
    return loop


def _socket_of(connection: Connection) -> Any:
    """The socket under a connection; None where this release of asyncpg does not say."""
    transport = getattr(connection, "_transport", None)
    return None if transport is None else transport.get_extra_info("socket")


_own: WeakKeyDictionary[Connection, asyncio.AbstractEventLoop] = WeakKeyDictionary()
"""The connections that this process opened itself, with their event loops."""


def _leave_to_parent() -> None:
    """Cut a forked child off from its parent's connections, and leave these as they are.

    With a copy of their sockets, the child would keep the connections open when the parent is killed, with the locks
    that they hold at the server; and asyncpg could end them in the parent's name. So each socket is replaced in the
    child by one whose other end is closed. Without asyncpg's private attribute, the child keeps the copies, unused.
    """
    replacement, other_end = socket.socketpair()
    other_end.close()
    with replacement:
        for connection, loop in list(_own.items()):
            if not connection.is_closed() and not loop.is_closed():
                inherited = _socket_of(connection)
                if inherited is not None and inherited.fileno() >= 0:  # below 0: closed, because its end was noticed
                    os.dup2(replacement.fileno(), inherited.fileno(), inheritable=False)
    _own.clear()


around_fork(before=lambda: None, in_parent=lambda: None, in_child=_leave_to_parent)
