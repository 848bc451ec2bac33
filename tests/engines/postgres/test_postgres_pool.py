"""Sessions use an ``asyncpg.Pool`` of the caller's as any other of its users does: they give back what they take."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from exhaustive import cases, exhaustive
from postgres_database import PostgresDatabase
from stepping import CycleLoop, cycle_loops
from waiting import WAIT_S

from agentmem import AsyncPostgresSession, AsyncSessionStore, PostgresSession, SessionStore
from agentmem.conformance import CHECKS
from agentmem.engines import open_engine
from agentmem.errors import SessionClosedError, StorageBusyError, StorageError
from agentmem.items import Item

asyncpg = pytest.importorskip("asyncpg", reason="asyncpg is not installed")

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
TWO: Item = {"role": "user", "content": "two"}
MANY = [{"role": "user", "content": str(number) * 100} for number in range(600)]
"""More than one slice, and too many bytes to be read on the event loop."""


@contextlib.asynccontextmanager
async def pool_of(database: PostgresDatabase, size: int = 1, **options: Any) -> AsyncIterator[Any]:
    """The caller's pool; all its connections are back in it at the end, and fit for use."""
    async with asyncpg.create_pool(database.url, min_size=0, max_size=size, **options) as pool:
        try:
            yield pool
            assert pool.get_idle_size() == pool.get_size()
            connections = [await pool.acquire(timeout=WAIT_S) for _ in range(size)]
            for connection in connections:
                assert await connection.fetchval("SELECT 1") == 1
                await pool.release(connection)
        except BaseException:
            pool.terminate()  # to close it would be to wait for what is still in use
            raise


@pytest.mark.exhaustive
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_an_engine_on_a_pool_of_one_connection_keeps(
    database: PostgresDatabase, check: Callable[..., Awaitable[None]]
) -> None:
    async with pool_of(database) as pool:
        await check(lambda: open_engine(pool))


@pytest.mark.parametrize("options", [{}, {"statement_cache_size": 0}], ids=str)
@pytest.mark.parametrize("size", [1, 10])
async def test_a_pool_is_used_and_left_open(database: PostgresDatabase, size: int, options: dict[str, Any]) -> None:
    async with pool_of(database, size, **options) as pool:
        for count in range(1, 3):
            async with AsyncPostgresSession(pool, session_id="user_123") as session:
                await session.add_items([ONE])
                assert await session.get_items() == [ONE] * count
                assert await pool.fetchval("SELECT 2") == 2
        async with AsyncSessionStore(pool, schema="mine") as store:
            await store.session("user_123").add_items([TWO])
            assert await store.session("user_123").pop_item() == TWO
            assert (await store.check()).sessions == 1
    assert database.stored() == [ONE, ONE]
    assert database.stored(schema="mine") == []


@pytest.mark.parametrize("size", [1, 2])
async def test_whatever_is_done_at_once_gets_its_turn_on_a_small_pool(database: PostgresDatabase, size: int) -> None:
    async with pool_of(database, size) as pool, AsyncSessionStore(pool, busy_timeout_s=120) as store:
        await store.session("long").add_items(MANY)

        async def talk(number: int) -> None:
            session = store.session(f"user_{number}")
            for turn in range(4):
                await session.add_items([{"turn": turn}, ONE])
                assert await session.pop_item() == ONE
                assert await session.get_items() == [{"turn": earlier} for earlier in range(turn + 1)]
            await session.clear_session()

        async def check() -> None:
            for _ in range(3):
                assert (await store.check()).problems == ()

        async def read() -> None:
            for _ in range(3):
                assert await store.session("long").get_items() == MANY

        async def query() -> None:
            for _ in range(20):
                assert await pool.fetchval("SELECT 3") == 3

        await asyncio.gather(*map(talk, range(20)), check(), read(), query(), read(), check())


async def test_several_stores_on_one_pool_open_at_once(database: PostgresDatabase) -> None:
    async def use(schema: str) -> None:
        async with AsyncSessionStore(pool, schema=schema) as store:
            await store.session("user_123").add_items([ONE])

    async with pool_of(database) as pool:
        await asyncio.gather(*(use(schema) for schema in ("a", "b", "a", "c", "a")))
    assert [database.stored(schema=schema) for schema in "abc"] == [[ONE] * 3, [ONE], [ONE]]


@exhaustive
async def test_a_pool_whose_connections_are_all_in_use_is_waited_for_and_then_an_error(
    database: PostgresDatabase,
) -> None:
    async with pool_of(database) as pool, AsyncPostgresSession(pool, session_id="user_123") as session:
        await session.add_items([ONE])
        async with pool.acquire():
            hasty = AsyncPostgresSession(pool, session_id="user_123", busy_timeout_s=0)
            for call in (hasty.get_items, lambda: hasty.add_items([TWO])):
                with pytest.raises(StorageBusyError, match=r"no connection.*raise busy_timeout_s"):
                    await call()
            await hasty.close()
            reading = asyncio.ensure_future(session.get_items())
            await asyncio.sleep(0)
        assert await reading == [ONE]


async def test_a_pool_that_was_closed_is_an_error_by_name_and_closing_the_session_is_none(
    database: PostgresDatabase,
) -> None:
    session: AsyncPostgresSession
    async with pool_of(database) as pool:
        session = AsyncPostgresSession(pool, session_id="user_123", busy_timeout_s=0)
        await session.add_items([ONE])
    for call in (session.get_items, session.pop_item, lambda: session.add_items([ONE])):
        with pytest.raises(StorageError, match=r"asyncpg pool.*pool is closed.*check the URL, or the pool"):
            await call()
    await session.close()
    with pytest.raises(SessionClosedError):
        await session.get_items()


async def test_the_size_of_the_statement_cache_is_the_pool_s_own(database: PostgresDatabase) -> None:
    async with pool_of(database) as pool:
        with pytest.raises(ValueError, match="statement_cache_size is the pool's own"):
            AsyncSessionStore(pool, statement_cache_size=0)
        with pytest.raises(TypeError, match="durability"):
            AsyncSessionStore(pool, durability="full")


async def test_a_pool_s_sessions_share_a_run_key(database: PostgresDatabase) -> None:
    async with pool_of(database) as pool, pool_of(database) as other:
        one = AsyncPostgresSession(pool, session_id="a")
        assert one.run_key == AsyncPostgresSession(pool, session_id="a").run_key
        assert one.run_key != AsyncPostgresSession(pool, session_id="a", schema="b").run_key
        assert one.run_key != AsyncPostgresSession(other, session_id="a").run_key
        assert repr(one) == "<AsyncPostgresSession 'a' in the given asyncpg pool>"


async def test_on_another_event_loop_a_pool_is_an_error_that_says_what_to_do(database: PostgresDatabase) -> None:
    async def use() -> list[Item]:
        async with AsyncSessionStore(pool) as store:
            return await store.session("user_123").get_items()

    async with pool_of(database) as pool:
        errors: list[BaseException] = []

        def on_another_loop() -> None:
            try:
                asyncio.run(use())
            except StorageError as error:
                errors.append(error)

        thread = threading.Thread(target=on_another_loop)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert ["used on the event loop that made it" in str(error) for error in errors] == [True]
        assert await use() == []


@pytest.mark.parametrize("kind", ["session", "store"])
async def test_the_sync_classes_say_that_they_need_a_url_instead_of_a_pool(
    database: PostgresDatabase, kind: str
) -> None:
    def use(pool: Any) -> None:
        session = PostgresSession(pool, session_id="a") if kind == "session" else SessionStore(pool).session("a")
        with pytest.raises(StorageError, match="the sync classes do not run on; give them a URL"):
            session.get_items()
        with pytest.raises(StorageError, match="give them a URL"):
            session.add_items([ONE])
        session.close()

    async with pool_of(database) as pool:
        await asyncio.to_thread(use, pool)


@pytest.mark.parametrize(
    ("call", "how"),
    cases(
        [
            ("check", "a task"),
            ("check", "a scope"),  # which anyio cancels at every await
            ("get_items", "a scope"),
            ("get_items of a long history", "a task"),
            ("add_items", "a scope"),
            ("pop_item", "a task"),
            ("open", "a scope"),
        ],
        quick=lambda case: case[0] in ("add_items", "get_items of a long history"),
    ),
)
def test_a_call_that_is_cancelled_at_any_moment_gives_its_connection_back(
    database: PostgresDatabase, call: str, how: str
) -> None:
    async def prepare() -> None:
        async with pool_of(database) as pool, AsyncPostgresSession(pool, session_id="long") as session:
            await session.add_items(MANY)

    async def cancelled(loop: CycleLoop) -> None:
        async with pool_of(database) as pool:
            store = AsyncSessionStore(pool)
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "check": store.check,
                "get_items": store.session("user_123").get_items,
                "get_items of a long history": store.session("long").get_items,
                "add_items": lambda: store.session("user_123").add_items([ONE]),
                "pop_item": store.session("long").pop_item,
                "open": store.open,
            }
            scope = anyio.CancelScope()

            async def run() -> None:
                with scope:
                    await calls[call]()

            task = asyncio.ensure_future(run())
            loop.arm(task.cancel if how == "a task" else scope.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await task
            loop.disarm()
            await store.close()

    asyncio.run(prepare())
    for loop in cycle_loops():
        loop.run(cancelled(loop))
    assert database.sql("SELECT count(*) FROM agentmem.agentmem_sessions WHERE session_id = 'long'") == "1"
