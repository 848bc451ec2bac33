"""Sessions in PostgreSQL that somebody else holds: only what is about them waits, for as long as it may."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from in_postgres import (
    HELD,
    WRITES,
    all_stored,
    locked,
    numbered,
    own_pools,
    served,
    stored,
    until,
    wait_for_waiters,
)
from postgres_server import PostgresServer

from agentmem import AsyncSessionStore
from agentmem.engines.batching import QueueCounts
from agentmem.errors import StorageBusyError
from agentmem.items import Item

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

from agentmem.engines.postgres.pool import PoolCounts

pytestmark = pytest.mark.anyio

AFTER: dict[str, list[Item]] = {"append": [{"number": 0}, {"number": 1}], "pop": [], "clear": []}


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_waits_for_who_holds_its_session_as_long_as_it_may_and_then_nothing_is_written(
    postgres: PostgresServer, name: str
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=0.5) as store:
        session = store.session("user_123")
        await served(lambda: session.add_items(numbered(0)))
        async with locked(postgres):
            with pytest.raises(StorageBusyError, match=HELD):
                await WRITES[name](session)
            assert await served(session.get_items) == numbered(0)
        assert stored(postgres) == numbered(0)
        await served(lambda: WRITES[name](session))
    assert stored(postgres) == AFTER[name]


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_that_waits_for_its_session_goes_on_when_it_is_let_go(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.writes.LOCK_TIMEOUT_S", 60)
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        session = store.session("user_123")
        await session.add_items(numbered(0))
        async with locked(postgres):
            call = asyncio.create_task(WRITES[name](session))
            await wait_for_waiters(postgres, 1)
        await call
    assert stored(postgres) == AFTER[name]


@pytest.mark.parametrize("name", WRITES)
async def test_all_other_sessions_are_served_while_one_is_held_also_those_of_the_same_batch_and_of_later_ones(
    postgres: PostgresServer, name: str
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        sessions = [store.session(f"session_{number:02}") for number in range(64)]
        await asyncio.gather(*(session.add_items(numbered(0)) for session in sessions))
        held = sessions[17]
        async with locked(postgres, [held.session_id]):
            calls = {session.session_id: asyncio.create_task(WRITES[name](session)) for session in sessions}
            waiting = calls.pop(held.session_id)
            await asyncio.gather(*calls.values())
            others = [session for session in sessions if session is not held]
            for number in range(2, 4):
                await asyncio.gather(*(session.add_items(numbered(number)) for session in others))
            assert await held.get_items() == numbered(0)
            assert not waiting.done()
        await waiting
    expected = {session.session_id: AFTER[name] + numbered(2, 3) for session in others}
    if name != "clear":
        expected[held.session_id] = AFTER[name]
    assert all_stored(postgres) == expected


async def test_what_is_asked_of_a_held_session_is_done_in_that_order_and_what_is_asked_of_others_before_it(
    postgres: PostgresServer,
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        held, free = store.session("held"), store.session("free")
        await held.add_items(numbered(0))
        done: list[int] = []

        async def add(number: int) -> None:
            await held.add_items(numbered(number))
            done.append(number)

        async with locked(postgres, ["held"]):
            calls: list[asyncio.Task[Any]] = []
            for number in range(1, 20):
                calls.append(asyncio.create_task(add(number)))
                if number % 5 == 0:
                    calls.append(asyncio.create_task(held.pop_item()))
                if number == 11:
                    calls.append(asyncio.create_task(held.clear_session()))
                await free.add_items(numbered(number))
            assert not any(call.done() for call in calls)
        await asyncio.gather(*calls)
        assert done == list(range(1, 20))
    assert all_stored(postgres) == {"held": numbered(12, 13, 14, 16, 17, 18, 19), "free": numbered(*range(1, 20))}


async def test_a_pool_says_what_it_holds_and_what_waits_for_held_sessions(postgres: PostgresServer) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        (pool,) = own_pools()
        idle = QueueCounts(waiting=0, under_way=0, batches=0)
        await until(lambda: pool.counts().newest == idle)
        assert pool.counts() == PoolCounts(
            writers=0, readers=1, writes=idle, newest=idle, queries=idle, held_sessions=0, held_writes=0
        )
        await asyncio.gather(*(store.session(name).add_items(numbered(0)) for name in ("a", "b")))
        async with locked(postgres, ["a", "b"]):
            calls = [asyncio.create_task(store.session(name).add_items(numbered(1))) for name in ("a", "b", "a")]
            await until(lambda: pool.counts().held_writes == 3)
            assert pool.counts().held_sessions == 2
            calls.append(asyncio.create_task(store.session("a").add_items(numbered(2))))
            await until(lambda: pool.counts().writes == QueueCounts(waiting=1, under_way=3, batches=0))
            assert f"<Pool on {store.name}: " in repr(pool)
            assert "1 calls waiting, 3 under way, 3 of them for 2 held sessions" in repr(pool)
        await asyncio.gather(*calls)
        await until(lambda: pool.counts().writes == idle)
        counts = pool.counts()
        assert (counts.held_sessions, counts.held_writes) == (0, 0)
        assert 2 <= counts.writers <= 3
    assert own_pools() == []
    assert (pool.counts().writers, pool.counts().readers) == (0, 0)


async def test_writes_of_a_held_session_all_fail_once_the_first_of_them_may_wait_no_longer(
    postgres: PostgresServer,
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=0.5) as store:
        held = store.session("user_123")
        await served(lambda: held.add_items(numbered(0)))
        async with locked(postgres):
            outcomes = await asyncio.gather(
                *(held.add_items(numbered(number)) for number in range(1, 30)),
                *(held.pop_item() for _ in range(20)),
                return_exceptions=True,
            )
        assert {type(outcome) for outcome in outcomes} == {StorageBusyError}
        assert await served(held.get_items) == numbered(0)


@pytest.mark.parametrize("name", ["pop", "clear"])
async def test_a_write_that_finds_its_session_cleared_by_who_held_it_finds_nothing(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.writes.LOCK_TIMEOUT_S", 60)
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        await store.session("user_123").add_items(numbered(0))
        async with locked(postgres) as other:
            call = asyncio.create_task(WRITES[name](store.session("user_123")))
            await wait_for_waiters(postgres, 1)
            await other.execute("DELETE FROM agentmem.agentmem_items; DELETE FROM agentmem.agentmem_sessions")
        assert await call is None
        await store.session("user_123").add_items(numbered(5))
    assert stored(postgres) == numbered(5)


async def test_writes_that_came_together_to_a_held_session_keep_their_order_whenever_it_is_let_go(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.writes.LOCK_TIMEOUT_S", 0.001)
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        held = store.session("user_123")
        await held.add_items(numbered(0))
        async with locked(postgres):
            before = postgres.log().count("lock timeout")
            calls = [asyncio.create_task(held.add_items(numbered(number))) for number in range(1, 200)]
            # Those that were sent together are set aside, the others come meanwhile.
            await until(lambda: postgres.log().count("lock timeout") > before)
        await asyncio.gather(*calls)
    assert stored(postgres) == numbered(*range(200))


async def test_engines_that_write_to_the_same_sessions_in_any_order_never_wait_for_each_other_in_a_circle(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shorter one would end a circle before it is found.
    monkeypatch.setattr("agentmem.engines.postgres.writes.LOCK_TIMEOUT_S", 60)
    names = [f"{'ABab'[number % 4]}é{number}" for number in range(40)]  # sorted otherwise by many a collation
    before = postgres.log().count("deadlock")
    # Another statement_cache_size each: they share no pool.
    stores = [AsyncSessionStore(postgres.url, busy_timeout_s=60, statement_cache_size=number) for number in range(3)]

    async def write(store: AsyncSessionStore, writer: int) -> None:
        for number in range(6):
            mixed = random.sample(names, len(names))
            batch = [store.session(name).add_items([{"writer": writer, "number": number}]) for name in mixed]
            fills = [store.session(f"gone {name}").add_items([{}]) for name in mixed]
            clears = [store.session(f"gone {name}").clear_session() for name in mixed]
            await asyncio.gather(*batch, *fills, *clears)

    await asyncio.gather(*(write(store, number) for number, store in enumerate(stores)))
    for store in stores:
        await store.close()
    found = all_stored(postgres)
    for name in names:
        for writer in range(3):
            numbers = [item["number"] for item in found[name] if item["writer"] == writer]
            assert numbers == list(range(6))
    assert postgres.log().count("deadlock") == before


@pytest.mark.parametrize("second", ["append", "clear"])
@pytest.mark.parametrize("first", ["append", "clear"])
async def test_batches_that_wait_in_the_middle_of_their_sessions_hold_none_that_the_other_waits_for(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.writes.LOCK_TIMEOUT_S", 60)
    before = postgres.log().count("deadlock")
    names = ["a", "b", "m", "y", "z"]
    async with (
        AsyncSessionStore(postgres.url, busy_timeout_s=60) as one,
        AsyncSessionStore(postgres.url, busy_timeout_s=60, statement_cache_size=99) as two,  # another pool
    ):
        await asyncio.gather(*(one.session(name).add_items(numbered(0)) for name in names))
        async with locked(postgres, ["m"]):
            calls = [asyncio.create_task(WRITES[first](one.session(name))) for name in names]
            await wait_for_waiters(postgres, 1)
            calls += [asyncio.create_task(WRITES[second](two.session(name))) for name in reversed(names)]
            await wait_for_waiters(postgres, 2)
        await asyncio.gather(*calls)
    assert postgres.log().count("deadlock") == before
