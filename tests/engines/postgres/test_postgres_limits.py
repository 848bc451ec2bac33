"""What one call does on PostgreSQL costs no other: what others are making, held sessions, bytes, errors of callers."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any
from uuid import uuid4

import pytest
from in_postgres import all_stored, connected, locked, until
from postgres_server import PostgresServer
from tcp_proxy import TcpProxy

from agentmem import AsyncSessionStore, SessionSettings
from agentmem.engines import open_engine
from agentmem.errors import StorageError
from agentmem.items import Item

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

from agentmem.engines.postgres import engine, pool, statements, writes
from agentmem.engines.postgres.schema import SCHEMA_VERSION

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}


async def test_a_clear_of_many_leaves_alone_what_others_make_at_that_moment(postgres: PostgresServer) -> None:
    with TcpProxy(postgres.port) as proxy:
        async with AsyncSessionStore(postgres.url_at(proxy.port), busy_timeout_s=60) as store:
            await store.session("there").add_items([ONE])
            moment = proxy.stall_before(b"removed AS")  # what locks was done, what removes is still to come
            clears = asyncio.gather(store.session("there").clear_session(), store.session("new").clear_session())
            await moment.happened()
            async with AsyncSessionStore(postgres.url) as other:
                await other.session("new").add_items([ONE])
            async with connected(postgres) as connection, connection.transaction():  # an append that is under way
                await connection.execute("UPDATE agentmem.agentmem_sessions SET length = 2 WHERE session_id = 'new'")
                await connection.execute(
                    "INSERT INTO agentmem.agentmem_items (session_id, position, item) VALUES ('new', 1, '{}')"
                )
                proxy.go_on()
                await until(lambda: clears.done() or _waits(postgres))
            await clears
    assert all_stored(postgres) == {"new": [ONE, {}]}


def _waits(server: PostgresServer) -> bool:
    return server.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' LIMIT 1") == "1"


async def test_however_many_sessions_are_held_each_write_to_another_is_served_meanwhile(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "LOCK_TIMEOUT_S", 0.01)
    names = [f"held {number}" for number in range(40)]
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        await asyncio.gather(*(store.session(name).add_items([ONE]) for name in [*names, "free"]))
        async with locked(postgres, names):
            held = []
            for name in names:  # one after the other, so that each might take a connection for itself
                held.append(asyncio.create_task(store.session(name).add_items([ONE])))
                await store.session("free").add_items([ONE])
            assert not any(task.done() for task in held)
            assert len(await store.session(names[0]).get_items()) == 1
        await asyncio.gather(*held)
    assert {name: len(items) for name, items in all_stored(postgres).items()} == dict.fromkeys(names, 2) | {"free": 41}


async def test_long_items_of_many_sessions_go_in_several_statements_and_are_all_there(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_GROUP_BYTES", 100_000)
    long: Item = {"content": "x" * 60_000}
    async with AsyncSessionStore(postgres.url) as store:
        await store.open()
        before = int(postgres.sql("SELECT pg_current_xact_id()::text::bigint"))
        await asyncio.gather(*(store.session(f"user {number}").add_items([long]) for number in range(20)))
        transactions = int(postgres.sql("SELECT pg_current_xact_id()::text::bigint")) - before
    assert all_stored(postgres) == {f"user {number}": [long] for number in range(20)}
    assert transactions >= 20


async def test_no_statement_of_the_largest_size_seems_so_costly_that_the_server_would_compile_it_first(
    postgres: PostgresServer,
) -> None:
    async with AsyncSessionStore(postgres.url) as store:
        await store.open()  # the tables are new: the planner knows nothing of them
    sql = statements.Statements("agentmem")
    ids = [f"user {number}" for number in range(pool.MAX_WRITES)]
    values = statements.append_values((session_id, ["{}"] * 4) for session_id in ids)
    wanted = ids[: pool.MAX_READS], statements.array([64] * pool.MAX_READS), 1_000_000
    async with connected(postgres) as connection:
        compiled_above = float(
            await connection.fetchval("SELECT boot_val FROM pg_settings WHERE name = 'jit_above_cost'")
        )
        for statement, arguments in (
            (sql.append, ("1s", "1s", uuid4(), 1, SCHEMA_VERSION, *values)),
            (sql.newest_joined, wanted),
        ):
            plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments))
            assert plan[0]["Plan"]["Total Cost"] < compiled_above / 10


async def test_what_is_more_than_postgresql_takes_at_once_is_refused_by_name_and_nothing_is_sent(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_APPEND_BYTES", 1_000_000)
    async with AsyncSessionStore(postgres.url) as store:
        large = store.session("large").add_items([{"content": "é" * 300_000}] * 2)
        small = store.session("small").add_items([ONE])
        refused, kept = await asyncio.gather(large, small, return_exceptions=True)
        with pytest.raises(StorageError, match=r"takes up to 1 GB at once, .* have 1200\d+ bytes; nothing was written"):
            raise refused  # type: ignore[misc]  # it is the error
        assert kept is None
    assert all_stored(postgres) == {"small": [ONE]}


async def test_what_counts_tokens_fails_with_its_own_error_and_at_once(postgres: PostgresServer) -> None:
    def count_tokens(item: Item) -> int:
        calls.append(item)
        raise ConnectionError("the tokenizer is down")

    calls: list[Item] = []
    settings = SessionSettings(max_tokens=10, count_tokens=count_tokens)
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        session = store.session("user_123", settings=settings)
        await session.add_items([ONE])
        other = open_engine(postgres.url)
        await other.append("user_123", ["no JSON"])  # so that the items are read one by one
        await other.close()
        with pytest.raises(ConnectionError, match=r"^the tokenizer is down$"):
            await session.get_items()
    assert len(calls) == 1


async def test_a_check_of_long_items_takes_the_memory_of_a_few(postgres: PostgresServer) -> None:
    async with AsyncSessionStore(postgres.url) as store:
        for _ in range(20):
            await store.session("user_123").add_items([{"content": "x" * 1_000_000}])
        tracemalloc.start()
        try:
            report = await store.check()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (report.items, report.problem_count) == (20, 0)
        assert peak < 10_000_000
        items: list[Any] = await store.session("user_123").get_items()
        assert len(items) == 20
