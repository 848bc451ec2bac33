"""Each call waits for a session or a server until its own deadline, however many wait with it, on one small pool."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from typing import Any

import pytest
from clock import Clock
from in_postgres import all_stored, connections, locked, numbered, own_pools, stored, until
from postgres_server import PostgresServer
from tcp_proxy import TcpProxy

from agentmem import AsyncSessionStore
from agentmem.errors import StorageBusyError, StorageError

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

from agentmem.engines.postgres.pool import READERS, WRITERS

pytestmark = pytest.mark.anyio

NEVER_S = 60.0
"""How long a call may wait in these tests, on a clock that stands still: nothing ends a wait but a step of the clock,
or what the test lets go."""

HANGS_S = 30
"""Nothing but a wait that begins anew takes so long."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def begin(*calls: Awaitable[object]) -> list[asyncio.Task[Any]]:
    return [asyncio.ensure_future(call) for call in calls]


async def outcomes(calls: list[asyncio.Task[Any]], clock: Clock | None = None) -> list[Any]:
    """What each call returned or raised; fails where any of them hangs."""
    _, hanging = await asyncio.wait(calls, timeout=HANGS_S)
    if hanging and clock is not None:
        clock.step(math.inf)  # else the end of the event loop would wait for ever
    assert not hanging
    return await asyncio.gather(*calls, return_exceptions=True)


async def set_aside(count: int) -> None:
    """Until so many writes wait for held sessions."""
    (pool,) = own_pools()
    await until(lambda: pool.counts().held_writes >= count)


async def test_however_many_writes_wait_for_a_held_session_they_all_fail_when_their_time_is_over(
    postgres: PostgresServer, clock: Clock
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=NEVER_S) as store:
        session = store.session("user_123")
        await session.add_items(numbered(0))
        async with locked(postgres):
            calls = begin(*(session.add_items(numbered(number)) for number in range(1, 2000)))
            calls += begin(session.pop_item(), session.clear_session())
            await set_aside(1)
            await store.session("free").add_items(numbered(1))
            clock.step(NEVER_S)
            found = await outcomes(calls, clock)
        assert all(isinstance(outcome, StorageBusyError) for outcome in found)
        assert len({id(outcome) for outcome in found}) == len(found)
    assert all_stored(postgres) == {"user_123": numbered(0), "free": numbered(1)}


async def test_writes_of_a_held_session_wait_as_long_as_each_of_them_may(
    postgres: PostgresServer, clock: Clock
) -> None:
    async with (
        AsyncSessionStore(postgres.url, busy_timeout_s=NEVER_S) as patient,
        AsyncSessionStore(postgres.url, busy_timeout_s=1) as hasty,
    ):
        await patient.session("user_123").add_items(numbered(0))
        async with locked(postgres):
            (first,) = begin(patient.session("user_123").add_items(numbered(1)))
            await set_aside(1)
            behind = begin(*(hasty.session("user_123").add_items(numbered(9)) for _ in range(40)))
            (last,) = begin(patient.session("user_123").add_items(numbered(2)))
            await asyncio.sleep(0)
            clock.step(1)
            assert all(isinstance(outcome, StorageBusyError) for outcome in await outcomes(behind, clock))
            assert not first.done()
            assert not last.done()
        assert await outcomes([first, last], clock) == [None, None]
    assert stored(postgres) == numbered(0, 1, 2)


async def test_writes_that_came_together_to_held_sessions_fail_each_at_its_own_deadline(
    postgres: PostgresServer, clock: Clock
) -> None:
    async with (
        AsyncSessionStore(postgres.url, busy_timeout_s=NEVER_S) as patient,
        AsyncSessionStore(postgres.url, busy_timeout_s=1) as hasty,
    ):
        await asyncio.gather(*(patient.session(name).add_items(numbered(0)) for name in "ab"))
        async with locked(postgres, ["a", "b"]):
            waiting = begin(*(patient.session(name).add_items(numbered(1)) for name in "ab"))
            late = begin(*(hasty.session(name).add_items(numbered(9)) for name in "ab"))
            await set_aside(2)
            clock.step(1)
            assert all(isinstance(outcome, StorageBusyError) for outcome in await outcomes(late, clock))
            assert not any(call.done() for call in waiting)
        assert await outcomes(waiting, clock) == [None, None]
    assert all_stored(postgres) == dict.fromkeys("ab", numbered(0, 1))


async def test_however_many_calls_wait_for_a_server_that_is_gone_each_fails_at_its_own_deadline(
    postgres: PostgresServer, clock: Clock
) -> None:
    with TcpProxy(postgres.port) as proxy:
        url = postgres.url_at(proxy.port)
        async with (
            AsyncSessionStore(url, busy_timeout_s=NEVER_S) as patient,
            AsyncSessionStore(url, busy_timeout_s=1) as hasty,
        ):
            await patient.session("user_123").add_items(numbered(0))
            await patient.session("user_123").get_items()
            proxy.refuse()
            proxy.cut()
            names = [f"user_{number}" for number in range(1500)]
            calls = begin(*(patient.session(name).add_items(numbered(1)) for name in names))
            calls += begin(*(patient.session("user_123").get_items() for _ in range(100)))
            late = begin(*(hasty.session(name).add_items(numbered(2)) for name in names))
            late += begin(*(hasty.session("user_123").get_items() for _ in range(100)))
            await asyncio.sleep(0)
            clock.step(1)
            assert all(isinstance(outcome, StorageError) for outcome in await outcomes(late, clock))
            assert not any(call.done() for call in calls)
            clock.step(NEVER_S)
            assert all(isinstance(outcome, StorageError) for outcome in await outcomes(calls, clock))
            proxy.accept()
            assert await patient.session("user_123").get_items() == numbered(0)
    assert all_stored(postgres) == {"user_123": numbered(0)}


async def test_calls_that_wait_for_a_server_that_is_gone_are_done_when_it_is_back(
    postgres: PostgresServer, clock: Clock
) -> None:
    with TcpProxy(postgres.port) as proxy:
        async with AsyncSessionStore(postgres.url_at(proxy.port), busy_timeout_s=NEVER_S) as store:
            await store.session("user_123").add_items(numbered(0))
            proxy.refuse()
            proxy.cut()
            calls = begin(*(store.session("user_123").add_items(numbered(number)) for number in range(1, 900)))
            await asyncio.sleep(0)
            clock.step(NEVER_S / 2)
            proxy.accept()
            assert set(await outcomes(calls, clock)) == {None}
    assert stored(postgres) == numbered(*range(900))


async def test_stores_of_any_timeouts_share_one_pool_of_at_most_six_connections(postgres: PostgresServer) -> None:
    stores = [AsyncSessionStore(postgres.url, busy_timeout_s=number) for number in (0, 1, 5, 60)]
    for name in ("held", "user_123"):
        await stores[0].session(name).add_items(numbered(0))
    async with locked(postgres, ["held"]):
        calls = begin(stores[-1].session("held").add_items(numbered(1)))
        await set_aside(1)
        calls += begin(
            *(store.session(f"user_{number}").add_items(numbered(0)) for store in stores for number in range(50)),
            *(store.session("user_123").get_items() for store in stores for _ in range(50)),
            *(store.session("user_123").get_items(limit=1) for store in stores for _ in range(50)),
        )
        await outcomes(calls[1:])
        assert len(own_pools()) == 1
        # The one of `locked`, and agentmem's.
        assert connections(postgres) <= 1 + WRITERS + READERS == 7
    assert not [outcome for outcome in await outcomes(calls) if isinstance(outcome, Exception)]
    for store in stores:
        await store.close()
