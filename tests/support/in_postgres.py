"""What is in a PostgreSQL server and who waits there, seen from beside agentmem."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from postgres_database import PostgresDatabase
from postgres_server import PostgresServer
from waiting import WAIT_S

from agentmem import AsyncSession
from agentmem.errors import StorageBusyError
from agentmem.items import Item

if TYPE_CHECKING:
    from agentmem.engines.postgres.pool import Pool

T = TypeVar("T")

Connection = Any
"""An ``asyncpg.Connection``; asyncpg has no type annotations."""

HELD = "another connection holds the session; nothing was written, try again or raise busy_timeout_s"

WRITES: dict[str, Any] = {
    "append": lambda session: session.add_items(numbered(1)),
    "pop": AsyncSession.pop_item,
    "clear": AsyncSession.clear_session,
}
"""Each kind of write to a session."""


def numbered(*numbers: int) -> list[Item]:
    """Items that are told apart by their numbers."""
    return [{"number": number} for number in numbers]


def all_stored(server: PostgresServer) -> dict[str, list[Item]]:
    """The items of each session; fails where positions have gaps, or rows and ends do not fit together."""
    return PostgresDatabase(server, "test").sessions()


def stored(server: PostgresServer, session_id: str = "user_123") -> list[Item]:
    """The items of one session; likewise."""
    return all_stored(server).get(session_id, [])


async def wait_for_waiters(server: PostgresServer, count: int, kind: str = "Lock") -> None:
    """Until so many of agentmem's connections wait in the server, for a lock or for what else `kind` says."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'agentmem' AND state = 'active'"
    await until(lambda: server.sql(f"{waiting} AND wait_event_type = '{kind}'") == str(count))


async def served(call: Callable[[], Awaitable[T]]) -> T:
    """What a call returns that may wait for little time: it is made again while the machine is too busy for it."""
    while True:
        try:
            return await call()
        except StorageBusyError as error:
            if error.in_doubt:
                raise


async def until(condition: Callable[[], object]) -> None:
    """Until others have done something; the event loop goes on."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def own_pools() -> list[Pool]:
    """The pools of this event loop. Those of others are none of the test's: an earlier one may have left them."""
    from agentmem.engines.postgres.pool import pools  # where asyncpg is missing, tests that need a server are skipped

    return [pool for pool in pools.all() if pool.loop is asyncio.get_running_loop()]


def connections(server: PostgresServer) -> int:
    """How many agentmem has open now."""
    return int(server.sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'agentmem'"))


def left_open(server: PostgresServer) -> str:
    """The transactions, and so the locks, that agentmem's connections hold now."""
    return server.sql(
        "SELECT pid, state, query FROM pg_stat_activity WHERE usename = 'agentmem' AND xact_start IS NOT NULL"
    )


@contextlib.asynccontextmanager
async def connected(server: PostgresServer | PostgresDatabase) -> AsyncIterator[Connection]:
    """A connection of another program's, which goes past every proxy."""
    import asyncpg  # where it is missing, tests that need a server are skipped

    connection = await asyncpg.connect(server.url)
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def locked(server: PostgresServer, session_ids: Sequence[str] = ("user_123",)) -> AsyncIterator[Connection]:
    """Another program's transaction that holds the rows of these sessions."""
    async with connected(server) as connection, connection.transaction():
        held = await connection.fetch(
            "SELECT FROM agentmem.agentmem_sessions WHERE session_id = ANY($1) FOR UPDATE", session_ids
        )
        assert len(held) == len(session_ids), "there is none to lock"
        yield connection
