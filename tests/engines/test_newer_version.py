"""A database that a newer agentmem upgrades while we have it open: nothing more is acknowledged, on every engine."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from in_postgres import connected, wait_for_waiters
from postgres_server import PostgresServer

from agentmem import AsyncSessionStore, SessionSettings
from agentmem.engines import open_engine
from agentmem.engines.base import Engine
from agentmem.engines.postgres import schema as postgres_schema
from agentmem.engines.sqlite import tables as sqlite_tables
from agentmem.errors import SchemaVersionError
from agentmem.items import Item

pytestmark = pytest.mark.anyio

ITEMS: list[Item] = [{"number": number, "text": "x" * 2_000} for number in range(700)]
NEWER = r"has schema version (\d+), this agentmem knows up to (?!\1)\d+; upgrade agentmem"
VERSIONS = {"sqlite": sqlite_tables.SCHEMA_VERSION, "postgresql": postgres_schema.SCHEMA_VERSION}


async def set_version(url: str, newer_by: int) -> None:
    """Store a version that is newer than this agentmem's by so much."""
    version = VERSIONS[url.partition(":")[0]] + newer_by
    await execute(url, f"PRAGMA user_version = {version}", f"UPDATE agentmem.agentmem_schema SET version = {version}")


async def execute(url: str, sqlite: str, postgres: str) -> None:
    """Run statements of another program; PostgreSQL's name the schema as ``agentmem.``."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as other:
            other.executescript(sqlite)
    else:
        (schema,) = parse_qs(urlsplit(url).query)["schema"]
        import asyncpg  # where it is missing, tests that need a server are skipped

        connection = await asyncpg.connect(url.partition("?")[0])
        await connection.execute(postgres.replace("agentmem.", f"{schema}."))
        await connection.close()


def calls_on(store: AsyncSessionStore, engine: Engine) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every call that reads or writes, on a session with items and on one without."""
    session, other = store.session("user_1"), store.session("user_2")
    window = store.session("user_1", settings=SessionSettings(max_tokens=50_000))
    return {
        "read few": lambda: session.get_items(1),
        "read all": session.get_items,
        "read window": window.get_items,
        "read nothing": other.get_items,
        "list": lambda: engine.sessions("", 10),
        "list nothing": lambda: engine.sessions("user_3", 10),
        "rows": lambda: engine.rows("user_1", 0, 10),
        "no rows": lambda: engine.rows("user_2", 0, 10),
        "append": lambda: session.add_items(ITEMS[:1]),
        "append to a new session": lambda: other.add_items(ITEMS[:1]),
        "pop": session.pop_item,
        "clear": session.clear_session,
        "check": store.check,
    }


async def test_every_call_on_an_open_handle_is_refused_by_name_and_nothing_is_written(database_url: str) -> None:
    async with AsyncSessionStore(database_url) as store:
        await store.session("user_1").add_items(ITEMS)
        assert await store.session("user_1").get_items() == ITEMS
        engine = open_engine(database_url)
        calls = calls_on(store, engine)
        await calls["rows"]()
        await set_version(database_url, newer_by=1)
        for name, call in calls.items():
            with pytest.raises(SchemaVersionError, match=NEWER) as raised:
                await call()
            assert not raised.value.in_doubt, name
        outcomes = await asyncio.gather(*(call() for call in calls.values()), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {SchemaVersionError}
        await set_version(database_url, newer_by=0)
        assert await store.session("user_1").get_items() == ITEMS
        assert await engine.sessions("", 10) == [("user_1", len(ITEMS))]
        await engine.close()


async def test_tables_that_an_upgrade_has_changed_are_no_reason_to_restore_a_backup(database_url: str) -> None:
    async with AsyncSessionStore(database_url) as store:
        await store.session("user_1").add_items(ITEMS)
        engine = open_engine(database_url)
        calls = calls_on(store, engine)
        await calls["rows"]()
        await execute(
            database_url,
            "DROP VIEW agentmem_history; ALTER TABLE agentmem_items RENAME COLUMN item TO text;"
            "ALTER TABLE agentmem_sessions RENAME TO agentmem_conversations",
            "ALTER TABLE agentmem.agentmem_items RENAME COLUMN item TO text;"
            "ALTER TABLE agentmem.agentmem_sessions RENAME TO agentmem_conversations",
        )
        await set_version(database_url, newer_by=1)
        for call in calls.values():
            with pytest.raises(SchemaVersionError, match=NEWER):
                await call()
        await engine.close()


async def test_a_write_that_waits_for_the_upgrade_of_a_file_is_refused_when_it_is_over(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    async with AsyncSessionStore(path, busy_timeout_s=60) as store:
        session = store.session("user_1")
        await session.add_items(ITEMS[:1])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            appends = [asyncio.ensure_future(session.add_items(ITEMS[:1])) for _ in range(3)]
            read = await session.get_items()  # of the state before
            other.execute(f"PRAGMA user_version = {sqlite_tables.SCHEMA_VERSION + 1}")
            other.execute("COMMIT")
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {SchemaVersionError}
        assert read == ITEMS[:1]
        upgraded = sqlite3.connect(path)
        assert upgraded.execute("SELECT count(*) FROM agentmem_items").fetchone() == (1,)
        upgraded.close()


@pytest.mark.parametrize("name", ["append", "pop", "clear"])
async def test_a_write_that_waits_for_the_upgrade_of_a_schema_is_refused_when_it_is_over(
    postgres: PostgresServer, name: str
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        session = store.session("user_1")
        await session.add_items(ITEMS[:1])
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "append": lambda: session.add_items(ITEMS[:1]),
            "pop": session.pop_item,
            "clear": session.clear_session,
        }
        async with connected(postgres) as other:
            async with other.transaction():
                await other.execute("LOCK agentmem.agentmem_schema IN ACCESS EXCLUSIVE MODE")
                await other.execute("UPDATE agentmem.agentmem_schema SET version = version + 1")
                call = asyncio.ensure_future(calls[name]())
                await wait_for_waiters(postgres, 1)
            with pytest.raises(SchemaVersionError, match=NEWER):
                await call
            assert await other.fetchval("SELECT count(*) FROM agentmem.agentmem_items") == 1
            assert await other.fetchval("SELECT length FROM agentmem.agentmem_sessions") == 1
