"""A lane: one connection at a time, which is opened when it is needed, and replaced where it is lost."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from ...errors import AgentMemError
from .. import deadlines
from ..readings import ReadingFailed
from .connection import BoundedConnection, Connection, close, connect, hang_up, in_own_task, is_closed, terminate
from .database import Database
from .errors import READ_ONLY, ROLLED_BACK_STATES, GaveUp, may_succeed_elsewhere, sqlstate_of
from .retry import Decision, Failure, Retries
from .url import rotate_hosts

T = TypeVar("T")

MAX_IDLE_S = 300.0
"""How long a connection may be idle before another one is opened instead, in seconds. Firewalls and load balancers
silently drop idle connections, mostly after 350 or more."""

ATTEMPT_S = 1.0
"""How long an attempt to connect may take even where the call's time is over, in seconds; what takes longer counts as
waiting."""

Work = Callable[[BoundedConnection], Awaitable[T]]
"""What a lane is to do on its connection. Where the connection is lost, it is done again on a new one."""


class Connector(ABC):
    """Where the lanes of a pool get their connections from.

    Attributes:
        has_connected: whether there ever was a connection.
        are_kept: whether a lane keeps its connection for the next call.
    """

    are_kept: bool

    def __init__(self) -> None:
        self.has_connected = False

    @abstractmethod
    async def connect(self, timeout_s: float, hosts_tried: int) -> Connection:
        """A connection.

        Args:
            timeout_s: how long that may take; at least ``ATTEMPT_S`` is allowed for it.
            hosts_tried: how many of the URL's hosts have not answered in time.
        """

    @abstractmethod
    async def give_back(self, connection: Connection) -> None:
        """Take a connection that a lane does not need any more; a lost one was terminated before."""


class OwnConnections(Connector):
    """Connections of agentmem's own, which a lane keeps."""

    are_kept = True

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    async def connect(self, timeout_s: float, hosts_tried: int) -> Connection:
        url, hosts = rotate_hosts(self._database.url, hosts_tried)
        # asyncpg's time limit is for all hosts together; a silent one must leave time for the others.
        limit_s = max(timeout_s / hosts, ATTEMPT_S)
        return await connect(url, timeout_s=limit_s, statement_cache_size=self._database.statement_cache_size)

    async def give_back(self, connection: Connection) -> None:
        await close(connection)


class CallersConnections(Connector):
    """Connections of a caller's ``asyncpg.Pool``, which a lane gives back after each call."""

    are_kept = False

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._pool = database.callers_pool

    async def connect(self, timeout_s: float, hosts_tried: int) -> Connection:
        return await self._pool.acquire(timeout=max(timeout_s, ATTEMPT_S))

    async def give_back(self, connection: Connection) -> None:
        try:
            await self._pool.release(connection)
        except Exception:  # noqa: S110  the pool has closed a connection that it could not take back
            pass


def connector_for(database: Database) -> Connector:
    """Where the connections to this database come from."""
    return OwnConnections(database) if database.callers_pool is None else CallersConnections(database)


class Lane:
    """One connection at a time, for one call at a time.

    Args:
        connector: where the connections come from.
        loop: the event loop on which all of it happens.
        prepare: awaited on the connection before each attempt.
        on_wait: called with the error for which a call waits for a connection, and with None when it does not any more.
    """

    def __init__(
        self,
        connector: Connector,
        loop: asyncio.AbstractEventLoop,
        prepare: Work[None] | None = None,
        on_wait: Callable[[Exception | None], None] = lambda error: None,
    ) -> None:
        self._connector = connector
        self._loop = loop
        self._prepare = prepare
        self._on_wait = on_wait
        self._connection: Connection = None
        self._is_prepared = False  # whether any connection was
        self._used_at = 0.0
        self._hosts_tried = 0

    @property
    def is_connected(self) -> bool:
        """Whether it has a connection, as far as it knows."""
        return self._connection is not None

    async def run(
        self,
        work: Work[T],
        deadline: float,
        *,
        settle_by: float | None = None,
        on_doubt: Callable[[GaveUp], None] = lambda error: None,
    ) -> T:
        """Do `work` on the connection; where that is lost, again on a new one, for as long as the call may wait.

        Args:
            deadline, settle_by: see ``Retries``.
            on_doubt: called before an attempt that is to find out whether an earlier one was committed, with the error
                of those who do not wait for it.

        Raises:
            GaveUp: no connection could do it in time, or none can be made.
        """
        retries = Retries(deadlines.now(), deadline, settle_by)
        try:
            while True:
                connection: BoundedConnection | None = None
                try:
                    connection = await self._connected(retries)
                    result = await work(connection)
                except Exception as error:
                    await self._after_failure(error, connection, retries)
                    if retries.in_doubt:
                        on_doubt(GaveUp(error, in_doubt=True))
                    await asyncio.sleep(retries.next_pause_s())
                else:
                    self._used_at = self._loop.time()
                    await self._after_attempt(is_lost=False)
                    return result
        finally:
            self._on_wait(None)

    async def _after_failure(self, error: Exception, connection: BoundedConnection | None, retries: Retries) -> None:
        """Return where the work is to be tried again.

        Raises:
            GaveUp: see :meth:`run`.
            Exception: `error`, where it is the outcome.
        """
        failure = self._failure(error, connection)
        await self._after_attempt(is_lost=failure.is_connection_lost)
        decision = retries.decide(failure, deadlines.now())
        if decision is Decision.RAISE:
            raise error
        self._on_wait(error)  # also where it gives up: what waits behind would meet the same
        if decision is Decision.GIVE_UP:
            raise GaveUp(error, in_doubt=retries.in_doubt) from error
        if connection is None and isinstance(error, TimeoutError):
            self._hosts_tried += 1

    async def close(self) -> None:
        """Close its connection, if it has one."""
        await self._give_back(is_lost=False)

    def abandon(self) -> None:
        """Hang up on the server, and forget the connection, whose event loop is closed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            hang_up(connection)

    async def _connected(self, retries: Retries) -> BoundedConnection:
        if self._connection is not None and self._loop.time() - self._used_at > MAX_IDLE_S:
            await self.close()
        if self._connection is not None and self._is_prepared:
            return await self._prepared(retries)
        waiting = self._loop.call_later(ATTEMPT_S, self._on_wait, TimeoutError("no connection in time"))
        try:
            if self._connection is None:
                await in_own_task(self._connect(retries.left_s(deadlines.now())))
                self._used_at = self._loop.time()
                self._connector.has_connected = True
            return await self._prepared(retries)
        finally:
            waiting.cancel()

    async def _prepared(self, retries: Retries) -> BoundedConnection:
        left_s = retries.left_s(deadlines.now())
        connection = BoundedConnection(self._connection, retries.statement_limit_s, left_s)
        if self._prepare is not None:
            await self._prepare(connection)
        self._is_prepared = True
        return connection

    async def _connect(self, timeout_s: float) -> None:
        # Stored by the task that connects: whoever waits for it may be cancelled meanwhile.
        self._connection = await self._connector.connect(timeout_s, self._hosts_tried)

    def _failure(self, error: Exception, connection: BoundedConnection | None) -> Failure:
        is_lost = self._is_lost(error)
        return Failure(
            # agentmem's own errors come from a look at the tables.
            had_connection=connection is not None or isinstance(error, AgentMemError),
            is_connection_lost=is_lost,
            is_rolled_back=sqlstate_of(error) in ROLLED_BACK_STATES,
            may_be_committed=connection is not None
            and connection.commit_sent
            and is_lost
            and sqlstate_of(error) != READ_ONLY,
            is_unreachable=self._is_unreachable(error),
        )

    def _is_lost(self, error: Exception) -> bool:
        if isinstance(error, (AgentMemError, ReadingFailed)):
            return False  # it is not about the connection
        return may_succeed_elsewhere(error) or (self._connection is not None and is_closed(self._connection))

    def _is_unreachable(self, error: Exception) -> bool:
        has_waited = isinstance(error, TimeoutError)
        is_ours = isinstance(error, ConnectionAbortedError)  # of in_own_task()
        return not self._connector.has_connected and isinstance(error, OSError) and not has_waited and not is_ours

    async def _after_attempt(self, *, is_lost: bool) -> None:
        if is_lost or not self._connector.are_kept:
            await self._give_back(is_lost=is_lost)

    async def _give_back(self, *, is_lost: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if is_lost:
            terminate(connection)  # here, because the end of the event loop may cancel the task before it begins
        with suppress(ConnectionAbortedError):  # the end of the event loop has ended the connection, too
            await in_own_task(self._connector.give_back(connection))
