"""One connection at a time, and what is done again on a new one where it is lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import asyncpg

from .connection import Bounded, Connection, end, in_plain_task, made, socket_of
from .errors import READ_ONLY, REPEATABLE, Lost, is_lost, sqlstate
from .url import rotated

if TYPE_CHECKING:
    from .pool import Pool

T = TypeVar("T")

ANSWER_S = 30.0
"""How long a statement may take beyond ``busy_timeout_s`` before its connection is taken for lost, in seconds: a server
or a network that died without a word gives no other sign. Locks on whole tables are waited for as long, too."""

IDLE_S = 300.0
"""How long a connection may be idle before another is opened instead, in seconds: firewalls and load balancers drop
those that say nothing, mostly after 350 or more, without a word."""

PAUSES_S = (0.01, 0.25)
"""How long to wait before connecting again, in seconds: at first, doubled each time, and at most."""


class Lane:
    """One connection at a time, opened when it is needed, and who writes through it.

    Args:
        pool: whose lane it is.
        prepares: whether it has the schema created or upgraded first.
    """

    def __init__(self, pool: Pool, *, prepares: bool = True) -> None:
        self.writer = uuid4()
        self.number = 0  # of its newest transaction
        self.is_sent = False  # whether the end of a transaction was sent: from then on it may be committed
        self._pool = pool
        self._prepares = prepares
        self._connection: Connection = None
        self._used_at = 0.0
        self._turn = 0  # which of several hosts is asked first

    async def run(self, work: Callable[[Bounded], Awaitable[T]]) -> T:
        """Do `work` on the connection; where that is lost, again on a new one, for as long as may be waited.

        Raises:
            Lost: no connection could do it in time, or none can be made.
        """
        now, wait_s = self._pool.loop.time, self._pool.database.busy_timeout_s
        deadline, limit_s = now() + wait_s, wait_s + ANSWER_S
        has_failed = in_doubt = False
        pause_s, longest_pause_s = PAUSES_S
        while True:
            self.is_sent = is_connected = False
            try:
                connection = await self._connected(deadline - now(), limit_s)
                is_connected = True
                result = await work(connection)
            except Exception as error:
                lost = is_lost(error, self._connection)
                in_doubt = in_doubt or (lost and self.is_sent and sqlstate(error) != READ_ONLY)
                await self._let_go(is_lost=lost)
                is_passing = lost or in_doubt or sqlstate(error) in REPEATABLE
                if is_connected and not is_passing:
                    raise
                if is_connected and not has_failed:
                    has_failed, deadline = True, now() + wait_s
                if now() >= deadline or not is_passing or self._is_nowhere(error):
                    raise Lost(error, in_doubt=in_doubt) from error
                if not is_connected and isinstance(error, asyncio.TimeoutError):
                    self._turn += 1
                if has_failed:
                    limit_s = min(limit_s, max(1.0, deadline - now()))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_pause_s)
            else:
                self._used_at = now()
                await self._let_go(is_lost=False)
                return result

    def _is_nowhere(self, error: Exception) -> bool:
        """Whether nothing has ever answered at the address, so that waiting is in vain."""
        passes = (asyncio.TimeoutError, ConnectionAbortedError)  # the first has waited, the second is our own
        return not self._pool.has_connected and isinstance(error, OSError) and not isinstance(error, passes)

    async def close(self) -> None:
        """Close its connection, if it has one, or give it back."""
        if self._pool.database.given is not None:
            await self._let_go(is_lost=False)
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(ConnectionAbortedError):  # the end of the event loop has ended the connection, too
                await in_plain_task(end(connection))

    def abandon(self) -> None:
        """Hang up on the server, and forget the connection, whose event loop is gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # Python closes the socket when it collects it, which may be much later.
            with suppress(OSError, TypeError):  # uvloop has closed its sockets with the loop, and says so by TypeError
                socket_of(connection).shutdown(socket.SHUT_RDWR)

    async def _connected(self, wait_s: float, limit_s: float) -> Bounded:
        pool, database = self._pool, self._pool.database
        if self._connection is not None and pool.loop.time() - self._used_at > IDLE_S:
            await self.close()
        if self._connection is None:
            if database.given is not None:
                connecting = database.given.acquire(timeout=max(wait_s, 1.0))
            else:
                dsn, hosts = rotated(database.dsn, self._turn)
                # asyncpg's limit is for all hosts together: one that is silent must leave time for the others.
                connecting = asyncpg.connect(
                    dsn, timeout=max(wait_s / hosts, 1.0), statement_cache_size=database.statement_cache_size
                )
            await in_plain_task(self._keep(connecting))
            if database.given is None:
                made.add(self._connection)
                await pool.close_with_loop()
            self._used_at = pool.loop.time()
            pool.has_connected = True
        connection = Bounded(self._connection, limit_s)
        if self._prepares:
            await pool.prepare(connection)
        return connection

    async def _keep(self, connecting: Awaitable[Connection]) -> None:
        self._connection = await connecting  # here, because who waits for it may be cancelled meanwhile

    async def _let_go(self, *, is_lost: bool) -> None:
        connection = self._connection
        if connection is None or not (is_lost or self._pool.database.given is not None):
            return
        self._connection = None
        try:
            if is_lost:
                connection.terminate()
            if self._pool.database.given is not None:
                await in_plain_task(self._pool.database.given.release(connection))
        except Exception:  # noqa: S110  the pool has ended what it could not take back; what was done is done
            pass
