"""What is in the tables is what other programs may rely on, and what a commit promises no server's setting weakens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from postgres_database import PostgresDatabase

from agentmem import AsyncPostgresSession, AsyncSessionStore
from agentmem.engines import open_engine
from agentmem.items import Item

asyncpg = pytest.importorskip("asyncpg", reason="asyncpg is not installed")

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
TWO: Item = {"role": "user", "content": "two"}


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """Another program's connection."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


# The tables


async def test_the_tables_have_the_columns_that_others_may_rely_on(database: PostgresDatabase) -> None:
    async with AsyncPostgresSession(database.url, session_id="user_123"):
        pass
    columns = database.sql("""
        SELECT table_name, column_name, data_type, is_nullable, coalesce(collation_name, '')
        FROM information_schema.columns WHERE table_schema = 'agentmem' ORDER BY table_name, ordinal_position
    """)
    assert columns.splitlines() == [
        "agentmem_items|session_id|text|NO|C",
        "agentmem_items|position|bigint|NO|",
        "agentmem_items|created_at|timestamp with time zone|NO|",
        "agentmem_items|item|text|NO|",
        "agentmem_items|sequence|bigint|NO|",
        "agentmem_locks|session_id|text|NO|C",
        "agentmem_locks|token|text|NO|",
        "agentmem_locks|holder|text|NO|",
        "agentmem_locks|since|timestamp with time zone|NO|",
        "agentmem_locks|renewed_at|timestamp with time zone|NO|",
        "agentmem_locks|until|timestamp with time zone|NO|",
        "agentmem_notes|session_id|text|NO|C",
        "agentmem_notes|kind|text|NO|C",
        "agentmem_notes|name|text|NO|C",
        "agentmem_notes|position|bigint|YES|",
        "agentmem_notes|value|text|NO|",
        "agentmem_schema|version|integer|NO|",
        "agentmem_sessions|session_id|text|NO|C",
        "agentmem_sessions|length|bigint|NO|",
        "agentmem_sessions|created_at|timestamp with time zone|NO|",
        "agentmem_sessions|updated_at|timestamp with time zone|NO|",
        "agentmem_sessions|first_position|bigint|NO|",
        "agentmem_sessions|edits|bigint|NO|",
        "agentmem_sessions|owner|text|YES|C",
        "agentmem_sessions|title|text|YES|",
        "agentmem_sessions|metadata|text|YES|",
        "agentmem_sessions|stored_at|timestamp with time zone|NO|",
        "agentmem_sessions|expires_at|timestamp with time zone|YES|",
        "agentmem_sessions|forked_from|text|YES|C",
        "agentmem_sessions|forked_length|bigint|YES|",
        "agentmem_writers|writer|uuid|NO|",
        "agentmem_writers|number|bigint|NO|",
        "agentmem_writers|updated_at|timestamp with time zone|NO|",
    ]
    indexes = database.sql("""
        SELECT replace(pg_get_indexdef(indexrelid), 'agentmem.', '') FROM pg_index JOIN pg_class ON oid = indrelid
        WHERE relnamespace = 'agentmem'::regnamespace ORDER BY 1
    """)
    assert [line.removeprefix("CREATE ") for line in indexes.splitlines()] == [
        "INDEX agentmem_sessions_forked_from ON agentmem_sessions USING btree (forked_from) "
        "WHERE (forked_from IS NOT NULL)",
        "INDEX agentmem_sessions_owner ON agentmem_sessions USING btree (owner, updated_at, session_id)",
        'UNIQUE INDEX agentmem_items_pkey ON agentmem_items USING btree (session_id, "position")',
        "UNIQUE INDEX agentmem_items_sequence ON agentmem_items USING btree (sequence)",
        "UNIQUE INDEX agentmem_locks_pkey ON agentmem_locks USING btree (session_id)",
        "UNIQUE INDEX agentmem_notes_pkey ON agentmem_notes USING btree (session_id, kind, name)",
        "UNIQUE INDEX agentmem_sessions_pkey ON agentmem_sessions USING btree (session_id)",
        "UNIQUE INDEX agentmem_writers_pkey ON agentmem_writers USING btree (writer)",
    ]


TEXTS = [
    '{"b": 1,  "a": 1e2, "b": 2}',  # jsonb would lose the order, the space, the form of the number and the first "b"
    '{"nul": "\\u0000", "lone": "\\ud83d"}',  # and refuse these
    '{"é 漢 😀": "\u2028\ufeff\u202e"}',
    f'{{"n": {10**40}, "x": 5e-324, "zero": -0.0}}',
    "no JSON",
    "",
    "'; DROP TABLE agentmem_items; -- $1 %s \\",
    "\t\r\n\x7f",
    "é" * 300_000,
]


async def test_an_item_s_text_is_stored_byte_for_byte(database: PostgresDatabase) -> None:
    engine = open_engine(database.url)
    await engine.append("user_123", TEXTS)
    await engine.close()
    async with connected(database.url) as other:
        rows = await other.fetch("SELECT position, item FROM agentmem.agentmem_items ORDER BY position")
    assert [tuple(row) for row in rows] == list(enumerate(TEXTS))


async def test_items_come_back_equal_with_their_keys_in_order_and_other_programs_can_read_them(
    database: PostgresDatabase,
) -> None:
    items: list[Item] = [
        {"z": 1, "a": [None, 1.5, "\ud800 \0"], "Z": {}},
        {"text": "é 漢 😀", "big": 10**40, "zero": -0.0},
    ]
    async with AsyncPostgresSession(database.url, session_id="user_123") as session:
        await session.add_items(items)
        read = await session.get_items()
    assert read == items
    assert [list(item) for item in read] == [list(item) for item in items]
    assert str(read[1]["zero"]) == "-0.0"
    assert database.sql("SELECT item::json ->> 'text' FROM agentmem.agentmem_items WHERE position = 1") == "é 漢 😀"
    async with connected(database.url) as other:
        texts = [row[0] for row in await other.fetch("SELECT item FROM agentmem.agentmem_items ORDER BY position")]
    assert [json.loads(text) for text in texts] == items


async def test_a_client_encoding_of_the_role_changes_no_text(database: PostgresDatabase) -> None:
    database.sql(f"ALTER ROLE agentmem IN DATABASE {database.name} SET client_encoding = 'latin1'")
    async with AsyncPostgresSession(database.url, session_id="Ü 漢 😀") as session:
        await session.add_items([{"text": "é 漢 😀"}])
        assert await session.get_items() == [{"text": "é 漢 😀"}]
    assert database.stored("Ü 漢 😀") == [{"text": "é 漢 😀"}]


async def test_ids_are_equal_where_their_bytes_are_and_sorted_by_these(database: PostgresDatabase) -> None:
    ids = ["b", "B", "a", "A", "é", "e\u0301", "z", "Z", "_", "ä", "😀", "\uffee", "1", "10", "2", " ", "x" * 1024]
    async with AsyncSessionStore(database.url) as store:
        await asyncio.gather(*(store.session(id_).add_items([{"id": id_}]) for id_ in ids))
        for id_ in ids:
            assert await store.session(id_).get_items() == [{"id": id_}]
    async with connected(database.url) as other:
        rows = await other.fetch("SELECT session_id FROM agentmem.agentmem_sessions ORDER BY session_id")
    assert [row[0] for row in rows] == sorted(ids, key=str.encode)


async def test_positions_have_no_gap_whatever_was_removed_before(database: PostgresDatabase) -> None:
    async with AsyncPostgresSession(database.url, session_id="user_123") as session:
        for number in range(4):
            await asyncio.gather(*(session.add_items([{"n": number}, ONE]) for _ in range(8)))
            await asyncio.gather(*(session.pop_item() for _ in range(7)))
            assert len(database.stored()) == 9 * (number + 1)
        await session.clear_session()
        assert database.stored() == []
        assert database.sql("SELECT count(*) FROM agentmem.agentmem_sessions") == "0"
        await session.add_items([TWO])
    assert database.stored() == [TWO]


async def test_a_session_knows_when_it_began_and_when_it_was_changed(database: PostgresDatabase) -> None:
    times = "SELECT created_at, updated_at FROM agentmem.agentmem_sessions"
    async with AsyncPostgresSession(database.url, session_id="user_123") as session, connected(database.url) as other:
        before = await other.fetchval("SELECT clock_timestamp()")
        await session.add_items([ONE])
        created, first = await other.fetchrow(times)
        await session.add_items([ONE])
        still, second = await other.fetchrow(times)
        await session.pop_item()
        same, third = await other.fetchrow(times)
        after = await other.fetchval("SELECT clock_timestamp()")
        of_item = await other.fetchval("SELECT created_at FROM agentmem.agentmem_items")
    assert created == still == same == of_item
    assert before < first < second < third < after


NOTES = [
    ("below", 0),
    ("at the cut", 2),
    ("above", 3),
    ("about the session", None),
]


async def test_a_pop_counts_as_an_edit_and_takes_the_notes_on_what_it_removes_but_no_keys_of_appends(
    database: PostgresDatabase,
) -> None:
    state = """
        SELECT length, edits, first_position, stored_at = updated_at, updated_at > created_at
        FROM agentmem.agentmem_sessions WHERE session_id = 'user_123'
    """
    async with AsyncSessionStore(database.url) as store, connected(database.url) as other:
        session = store.session("user_123")
        await session.add_items([ONE, ONE])
        await session.add_items([ONE, ONE])
        assert tuple(await other.fetchrow(state)) == (4, 0, 0, True, True)
        await store.session("other").add_items([ONE] * 4)
        notes = [
            (session_id, kind, name, position)
            for session_id in ("user_123", "other")
            for kind in ("key", "summary")
            for name, position in NOTES
        ]
        await other.executemany("INSERT INTO agentmem.agentmem_notes VALUES ($1, $2, $3, $4, '{}')", notes)
        await session.pop_item()
        await session.pop_item()
        assert tuple(await other.fetchrow(state)) == (2, 2, 0, True, True)
        left = await other.fetch("SELECT session_id, kind, name, position FROM agentmem.agentmem_notes")
        removed = {("user_123", "summary", "at the cut", 2), ("user_123", "summary", "above", 3)}
        assert {tuple(row) for row in left} == set(notes) - removed
        await session.clear_session()
        await session.pop_item()  # of nothing, which changes nothing
        await session.add_items([ONE])
        assert tuple(await other.fetchrow(state)) == (1, 0, 0, True, False)


async def test_a_clear_takes_the_notes_and_the_lock_of_its_session_alone(database: PostgresDatabase) -> None:
    async with AsyncSessionStore(database.url) as store:
        for name in ("user_123", "other"):
            await store.session(name).add_items([ONE])
            database.sql(f"""
                INSERT INTO agentmem.agentmem_notes VALUES
                    ('{name}', 'key', 'a', 0, '{{}}'), ('{name}', 'usage', 'b', NULL, '{{}}');
                INSERT INTO agentmem.agentmem_locks VALUES ('{name}', 'token', 'holder', now(), now(), now())
            """)
        await store.session("user_123").clear_session()
    tables = "SELECT session_id FROM agentmem.agentmem_notes UNION ALL SELECT session_id FROM agentmem.agentmem_locks"
    assert database.sql(tables).splitlines() == ["other"] * 3


# What a commit promises


async def every_write(url: str) -> None:
    async with AsyncPostgresSession(url, session_id="user_123") as session:
        await session.add_items([ONE, TWO])
        await session.pop_item()
        await session.clear_session()


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("ROLE {role}", {}),
        ("DATABASE {database}", {}),
        ("ROLE {role} IN DATABASE {database}", {}),
        ("", {"synchronous_commit": "off"}),
    ],
    ids=["by its role", "by its database", "by both", "by the URL"],
)
async def test_where_commits_are_not_flushed_agentmem_s_are(
    database: PostgresDatabase, where: str, options: dict[str, Any]
) -> None:
    await every_write(database.url)
    role = f"hasty_of_{database.name}"
    database.sql(f"CREATE ROLE {role} LOGIN; GRANT agentmem TO {role}")
    if where:
        whose = where.format(role=role, database=database.name)
        database.sql(f"ALTER {whose} SET synchronous_commit = off")
    database.record("current_setting('synchronous_commit')")
    url = database.url_of(role, **options)
    await every_write(url)
    assert database.recorded() == ["on"] * 3
    async with connected(url) as other:
        assert await other.fetchval("SHOW synchronous_commit") == "off"
    database.sql(f"DROP ROLE {role}")


@pytest.mark.parametrize("level", ["on", "local", "remote_write", "remote_apply"])
async def test_any_other_promise_of_a_commit_is_left_as_it_was_chosen(database: PostgresDatabase, level: str) -> None:
    await every_write(database.url)
    database.record("current_setting('synchronous_commit')")
    await every_write(database.url_of(synchronous_commit=level))
    assert database.recorded() == [level] * 3


SETTINGS = "SELECT name, setting FROM pg_settings WHERE source = 'session' OR name LIKE '%timeout%' ORDER BY name"


async def test_no_setting_is_left_on_a_connection(database: PostgresDatabase) -> None:
    async def leave(connection: Any) -> None:
        """A pool would reset what it takes back."""

    url = database.url_of(synchronous_commit="off", lock_timeout="7s", idle_in_transaction_session_timeout="8s")
    async with asyncpg.create_pool(url, min_size=1, max_size=1, reset=leave) as pool:
        before = await pool.fetch(SETTINGS)
        async with AsyncPostgresSession(pool, session_id="user_123") as session:
            await session.add_items([ONE, TWO])
            await session.add_items([{"long": "x" * 500_000}])
            await session.get_items()
            await session.get_items(1)
            await session.pop_item()
            await session.clear_session()
        async with AsyncSessionStore(pool) as store:
            await store.check()
        after = await pool.fetch(SETTINGS)
        assert await pool.fetchval("SHOW synchronous_commit") == "off"
    assert dict(before) == dict(after)
    assert dict(after)["lock_timeout"] == "7000"
    assert database.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"
