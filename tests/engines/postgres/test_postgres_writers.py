"""What a PostgreSQL server holds of agentmem's connections: no row for each that ever was, a name for each there is."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any
from uuid import uuid4

import pytest
from in_postgres import WRITES, connected, numbered, stored
from postgres_server import PostgresServer
from waiting import WAIT_S

from agentmem import AsyncSessionStore, SessionStore

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

import asyncpg

from agentmem.engines.postgres.schema import SCHEMA_VERSION
from agentmem.engines.postgres.statements import Statements

pytestmark = pytest.mark.anyio


def writers(server: PostgresServer) -> int:
    """How many have stored their numbers."""
    return int(server.sql("SELECT count(*) FROM agentmem.agentmem_writers"))


async def use(server: PostgresServer, way: str) -> None:
    """Write something, and end in an orderly way."""
    if way == "pool":
        async with asyncpg.create_pool(server.url, min_size=0) as pool, AsyncSessionStore(pool) as store:
            await write_at_once(store)
    elif way == "async":
        async with AsyncSessionStore(server.url) as store:
            await write_at_once(store)
            assert writers(server) > 0
    else:
        await asyncio.to_thread(use_from_sync_code, server, way)


async def write_at_once(store: AsyncSessionStore) -> None:
    """More than one writer has something to do."""
    await asyncio.gather(*(store.session(f"user_{number}").add_items(numbered(0)) for number in range(100)))
    await asyncio.gather(*(call(store.session("user_0")) for call in WRITES.values()))


def use_from_sync_code(server: PostgresServer, way: str) -> None:
    if way == "sync":
        with SessionStore(server.url) as store:
            store.session("user_0").add_items(numbered(0))
        return
    loop = "asyncio.run({0}.add_items([{{}}]))" if way == "asyncio.run" else "{0}.add_items([{{}}])"
    kind = "AsyncPostgresSession" if way == "asyncio.run" else "PostgresSession"
    program = f"import asyncio, agentmem\n{loop.format(f'agentmem.{kind}({server.url!r}, session_id={way!r})')}"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("way", ["async", "sync", "pool", "asyncio.run", "sync script"])
async def test_whoever_ends_in_an_orderly_way_leaves_no_number_behind(postgres: PostgresServer, way: str) -> None:
    for _ in range(2):
        await use(postgres, way)
        assert writers(postgres) == 0


async def test_where_a_pool_has_no_connection_to_spare_closing_does_not_wait_for_one(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.lane.AT_END_S", 2 * WAIT_S)
    async with asyncpg.create_pool(postgres.url, min_size=0, max_size=1) as pool:
        store = AsyncSessionStore(pool, busy_timeout_s=60)
        await store.session("user_1").add_items(numbered(0))
        async with pool.acquire():
            await asyncio.wait_for(store.close(), WAIT_S)
    assert writers(postgres) == 1


OLD = """
    INSERT INTO agentmem.agentmem_writers
    SELECT gen_random_uuid(), 1, now() - interval '{}' FROM generate_series(1, {})
"""


async def test_numbers_of_killed_processes_are_removed_after_a_week_and_no_others(postgres: PostgresServer) -> None:
    await use(postgres, "async")
    postgres.sql(OLD.format("8 days", 100))
    postgres.sql(OLD.format("6 days", 100))
    await use(postgres, "async")
    assert writers(postgres) == 100
    assert postgres.sql("SELECT min(updated_at) > now() - interval '7 days' FROM agentmem.agentmem_writers") == "t"


async def test_however_many_numbers_there_are_a_writer_looks_at_a_few(postgres: PostgresServer) -> None:
    await use(postgres, "async")
    postgres.sql(OLD.format("6 days", 30_000))
    postgres.sql("ANALYZE agentmem.agentmem_writers")
    statements = Statements("agentmem")
    async with connected(postgres) as connection:
        for sql, writer in ((statements.forget_old_writers, uuid4()), (statements.forget_writers, [str(uuid4())])):
            plan = await connection.fetch(f"EXPLAIN (ANALYZE, TIMING OFF) {sql}", writer, SCHEMA_VERSION)
            lines = [line for (line,) in plan]
            assert not [line for line in lines if "Seq Scan on agentmem_writers" in line], lines
            assert not [line for line in lines if "rows=1000" in line], lines


async def test_numbers_of_a_schema_that_a_newer_agentmem_has_upgraded_stay_as_they_are(
    postgres: PostgresServer,
) -> None:
    async with AsyncSessionStore(postgres.url) as store:
        await store.session("user_1").add_items(numbered(0))
        postgres.sql("UPDATE agentmem.agentmem_schema SET version = version + 1")
        before = writers(postgres)
    assert (before, writers(postgres)) == (1, 1)
    postgres.sql("UPDATE agentmem.agentmem_schema SET version = version - 1")
    assert stored(postgres, "user_1") == numbered(0)


@pytest.mark.parametrize(
    ("option", "environment", "name"),
    [("", None, "agentmem"), ("", "worker", "worker"), ("?application_name=web", "worker", "web")],
)
async def test_the_server_lists_each_connection_under_a_name(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, option: str, environment: str | None, name: str
) -> None:
    monkeypatch.delenv("PGAPPNAME", raising=False)
    if environment is not None:
        monkeypatch.setenv("PGAPPNAME", environment)
    async with AsyncSessionStore(postgres.url + option) as store:
        await store.session("user_1").add_items(numbered(0))
        await store.session("user_1").get_items()
        names = postgres.sql("SELECT DISTINCT application_name FROM pg_stat_activity WHERE usename = 'agentmem'")
    assert names == name


class Counted(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no type annotations
    """A connection that remembers the largest number of rows that it fetched at once."""

    max_rows = 0

    async def fetch(self, *args: Any, **options: Any) -> Any:
        rows = await super().fetch(*args, **options)
        Counted.max_rows = max(Counted.max_rows, len(rows))
        return rows


async def test_a_check_reads_sessions_without_items_in_pages_wherever_they_are(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.check.PAGE_ROWS", 16)
    async with AsyncSessionStore(postgres.url) as store:
        for session_id in ("b", "d"):
            await store.session(session_id).add_items(numbered(*range(20)))
    for prefix, count in (("a", 16), ("c", 100), ("e", 33)):
        postgres.sql(
            f"INSERT INTO agentmem.agentmem_sessions SELECT '{prefix}' || n, 0 FROM generate_series(1, {count}) AS n"
        )
    postgres.sql("UPDATE agentmem.agentmem_sessions SET length = 1 WHERE session_id IN ('a7', 'c50', 'e33')")
    Counted.max_rows = 0
    async with asyncpg.create_pool(postgres.url, min_size=0, connection_class=Counted) as pool:
        report = await AsyncSessionStore(pool).check()
    assert [str(problem) for problem in report.problems] == [
        f"session '{session_id}', position 0: missing" for session_id in ("a7", "c50", "e33")
    ]
    assert (report.sessions, report.items) == (16 + 100 + 33 + 2, 40)
    assert Counted.max_rows == 16
