"""A lane: one connection at a time, which is opened when it is needed, and replaced where it is lost."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from ...errors import AgentMemError
from .. import deadlines
from ..callbacks import CallbackFailed
from .connection import BoundedConnection, Connection, close, connect, hang_up, in_own_task, is_closed, terminate
from .database import Database
from .errors import CLOSING_ERRORS, READ_ONLY, ROLLED_BACK_STATES, GaveUp, may_succeed_elsewhere, sqlstate_of
from .retry import Decision, Failure, Retries
from .url import rotate_hosts

T = TypeVar("T")

MAX_IDLE_S = 300.0
"""How long a connection may be idle before another one is opened instead, in seconds. Firewalls and load balancers
silently drop idle connections, mostly after 350 or more."""

AT_END_S = 1.0
"""How long the last statement before a lane is closed may take, in seconds."""

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

    def has_one_at_hand(self) -> bool:
        """Whether :meth:`connect` would return at once, without a new connection."""
        return False

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

    def has_one_at_hand(self) -> bool:
        return not self._pool.is_closing() and bool(self._pool.get_idle_size())

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
        explain: awaited where the server refused an attempt; returns what is to be raised.
        on_wait: called with the error for which a call waits for a connection, and with None when it does not any more.
    """

    def __init__(
        self,
        connector: Connector,
        loop: asyncio.AbstractEventLoop,
        prepare: Work[None] | None = None,
        explain: Callable[[BoundedConnection, Exception], Awaitable[Exception]] | None = None,
        on_wait: Callable[[Exception | None], None] = lambda error: None,
    ) -> None:
        self._connector = connector
        self._loop = loop
        self._prepare = prepare
        self._explain = explain
        self._on_wait = on_wait
        self._connection: Connection = None
        self._is_prepared = False  # whether any connection was
        self._used_at = 0.0
        self._hosts_tried = 0
        self.has_unanswered = False  # whether an attempt may still wait in the server, of which no answer came

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
        self.has_unanswered = self.has_unanswered or (connection is not None and failure.is_connection_lost)
        explained = await self._explained(error, connection, failure)
        await self._after_attempt(is_lost=failure.is_connection_lost)
        decision = retries.decide(failure, deadlines.now())
        if decision is Decision.RAISE:
            if explained is not error:
                raise explained from error
            raise error
        self._on_wait(error)  # also where it gives up: what waits behind would meet the same
        if decision is Decision.GIVE_UP:
            raise GaveUp(error, in_doubt=retries.in_doubt) from error
        if connection is None and isinstance(error, TimeoutError):
            self._hosts_tried += 1

    async def run_at_end(self, work: Work[None]) -> bool:
        """Do `work` once, before the lane is closed, where there is a connection that needs no waiting for.

        Returns:
            Whether there was one. The work may have failed all the same: nobody waits for it.
        """
        is_idle = self._loop.time() - self._used_at > MAX_IDLE_S
        if is_idle or (self._connection is None and not self._connector.has_one_at_hand()):
            return False
        is_lost = True

        async def run() -> None:
            if self._connection is None:
                await self._connect(AT_END_S)
            await work(BoundedConnection(self._connection, AT_END_S, wait_s=0.0))

        with suppress(*CLOSING_ERRORS):
            await in_own_task(run())
            is_lost = False
        await self._after_attempt(is_lost=is_lost)
        return True

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

    async def _explained(self, error: Exception, connection: BoundedConnection | None, failure: Failure) -> Exception:
        if self._explain is None or connection is None or failure.is_connection_lost:
            return error
        return await self._explain(connection, error)

    def _failure(self, error: Exception, connection: BoundedConnection | None) -> Failure:
        # An error of asyncpg's or Python's own in place of the server's answer to a commit says nothing about it.
        is_unanswered = connection is not None and connection.commit_sent and not _is_answer(error)
        is_lost = self._is_lost(error) or is_unanswered
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
        if isinstance(error, (AgentMemError, CallbackFailed)):
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


def _is_answer(error: Exception) -> bool:
    """Whether the server has answered, or was asked nothing."""
    return sqlstate_of(error) is not None or isinstance(error, (AgentMemError, CallbackFailed))
