"""Appends to one session are stored in the order in which they were asked for, whatever happens to connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from appending import Appending
from exhaustive import exhaustive
from postgres_database import PostgresDatabase
from stepping import CycleLoop, cycle_loops

from agentmem import AsyncSessionStore

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

FIRST, MORE = 3, 20


def end_all(database: PostgresDatabase) -> None:
    """What a server does to its connections when it is restarted."""
    database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")


def end_nothing(database: PostgresDatabase) -> None:
    """The connections stay; what comes is only more appends."""


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(end_all, id="ended before", marks=exhaustive),
        pytest.param(end_nothing, id="first open"),
    ],
)
def test_appends_keep_their_order_at_whatever_moment_more_come_while_connections_are_opened(
    database: PostgresDatabase, end: Callable[[PostgresDatabase], None]
) -> None:
    for number, loop in enumerate(cycle_loops()):

        async def main(loop: CycleLoop = loop, session_id: str = f"user_{number}") -> None:
            async with AsyncSessionStore(database.url) as store:
                session = store.session(session_id)
                appending = Appending(session)
                if end is end_all:
                    appending.begin(1)
                    await asyncio.gather(*appending.calls, session.get_items())
                    end(database)
                reading = asyncio.ensure_future(session.get_items())
                appending.begin(FIRST)
                loop.arm(lambda: appending.begin_unless_done(MORE))
                await asyncio.gather(reading, *appending.calls)
                loop.disarm()
                await asyncio.gather(*appending.calls)
            assert database.stored(session_id) == appending.in_order()

        loop.run(main())


def test_appends_keep_their_order_at_whatever_moment_the_server_ends_their_connections(
    database: PostgresDatabase,
) -> None:
    for number, loop in enumerate(cycle_loops()):

        async def main(loop: CycleLoop = loop, session_id: str = f"user_{number}") -> None:
            async with AsyncSessionStore(database.url) as store:
                session = store.session(session_id)
                appending = Appending(session)
                appending.begin(1)
                await asyncio.gather(*appending.calls)

                def end_and_begin_more() -> bool:
                    end_all(database)
                    return appending.begin_unless_done(MORE)

                appending.begin(FIRST)
                loop.arm(end_and_begin_more)
                await asyncio.gather(session.get_items(), *appending.calls)
                loop.disarm()
                await asyncio.gather(*appending.calls)
            assert database.stored(session_id) == appending.in_order()

        loop.run(main())
