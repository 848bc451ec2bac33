"""What is in a PostgreSQL server and who waits there, seen from beside agentmem."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from postgres_server import PostgresServer
from waiting import WAIT_S

from agentmem.items import Item

Connection = Any
"""An ``asyncpg.Connection``; asyncpg has no type annotations."""


def all_stored(server: PostgresServer) -> dict[str, list[Item]]:
    """The items of each session; fails where positions have gaps, or rows and ends do not fit together."""
    if not server.sql("SELECT to_regclass('agentmem.agentmem_items')"):
        return {}
    found: dict[str, list[Item]] = {}
    ends: dict[str, int] = {}
    for line in server.sql(_ALL).splitlines():
        session_id, position, end, item = json.loads(line)
        items = found.setdefault(session_id, [])
        ends[session_id] = end
        if item is not None:
            assert position == len(items), f"a gap or a double in {session_id}"
            items.append(json.loads(item))
    assert {session_id: len(items) for session_id, items in found.items()} == ends
    return found


_ALL = """
    SELECT json_build_array(session_id, position, next_position, item)
    FROM agentmem.agentmem_sessions FULL JOIN agentmem.agentmem_items USING (session_id) ORDER BY session_id, position
"""


def stored(server: PostgresServer, session_id: str = "user_123") -> list[Item]:
    """The items of one session; likewise."""
    return all_stored(server).get(session_id, [])


async def wait_for_waiters(server: PostgresServer, count: int, kind: str = "Lock") -> None:
    """Until so many of agentmem's connections wait in the server, for a lock or for what else `kind` says."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'agentmem' AND state = 'active'"
    await until(lambda: server.sql(f"{waiting} AND wait_event_type = '{kind}'") == str(count))


async def until(condition: Callable[[], object]) -> None:
    """Until others have done something; the event loop goes on."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def connections(server: PostgresServer) -> int:
    """How many agentmem has open now."""
    return int(server.sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'agentmem'"))


def left_open(server: PostgresServer) -> str:
    """The transactions, and so the locks, that agentmem's connections hold now."""
    return server.sql(
        "SELECT pid, state, query FROM pg_stat_activity WHERE usename = 'agentmem' AND xact_start IS NOT NULL"
    )


@contextlib.asynccontextmanager
async def connected(server: PostgresServer) -> AsyncIterator[Connection]:
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
