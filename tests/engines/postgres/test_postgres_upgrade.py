"""Tables of an older version are upgraded whole or not at all, lose nothing, and serve no older agentmem any more."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from exhaustive import exhaustive
from in_postgres import connected, until
from postgres_database import PostgresDatabase, postgres_database
from postgres_programs import ENVIRONMENT, find_folder
from postgres_server import PostgresServer
from processes import Child
from waiting import WAIT_S

from agentmem import AsyncSessionStore
from agentmem.errors import StorageBusyError, StorageError
from agentmem.items import Item

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

from agentmem.engines.postgres import retry
from agentmem.engines.postgres.schema import SCHEMA_VERSION

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parent / "data"
"""``schema-1.sql`` is what pg_dump made of a small database of version 1, less what it says of its server. It is never
made again, because what counts is what that version wrote. ``schema-1.json`` says what is in it."""

ADDED: Item = {"role": "user", "content": "and now"}


class OldSession(NamedTuple):
    """A session as version 1 stored it."""

    session_id: str
    length: int
    created_at: datetime
    updated_at: datetime


class OldItem(NamedTuple):
    """An item, likewise."""

    session_id: str
    position: int
    created_at: datetime
    item: Item


def kept() -> tuple[list[OldSession], list[OldItem]]:
    """What is in the dump of version 1: sessions by their ids, and items in the order of their arrival."""
    data = json.loads((DATA / "schema-1.json").read_text(encoding="ascii"))
    when = datetime.fromisoformat
    sessions = [OldSession(name, length, when(made), when(changed)) for name, length, made, changed in data["sessions"]]
    return sessions, [OldItem(name, position, when(made), item) for name, position, made, item in data["items"]]


def load(database: PostgresDatabase) -> None:
    """Have psql restore the dump of version 1, as the role that will upgrade it."""
    command = [str(find_folder() / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(DATA / "schema-1.sql")]
    subprocess.run([*command, database.url], env=ENVIRONMENT, capture_output=True, timeout=WAIT_S, check=True)


@pytest.fixture
def old(database: PostgresDatabase) -> PostgresDatabase:
    """A database of version 1."""
    load(database)
    return database


def dump(database: PostgresDatabase) -> str:
    """The schema as it is, without what differs in each dump."""
    command = [str(find_folder() / "pg_dump"), "--schema=agentmem", database.url]
    told = subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=WAIT_S, check=True, text=True)
    return "\n".join(line for line in told.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


async def upgrade(database: PostgresDatabase) -> None:
    async with AsyncSessionStore(database.url, busy_timeout_s=60):
        pass


def version(database: PostgresDatabase) -> int:
    return int(database.sql("SELECT version FROM agentmem.agentmem_schema"))


def arrival(database: PostgresDatabase) -> list[str]:
    """Session and position of each item by sequence; each sequence from 1 on is there once."""
    lines = database.sql("""
        SELECT json_build_array(sequence, session_id || ' ' || position)
        FROM agentmem.agentmem_items ORDER BY sequence
    """).splitlines()
    found = [json.loads(line) for line in lines]
    assert [sequence for sequence, _ in found] == list(range(1, len(found) + 1))
    return [what for _, what in found]


async def rows(database: PostgresDatabase, sql: str) -> list[tuple[Any, ...]]:
    async with connected(database) as connection:
        return [tuple(row) for row in await connection.fetch(sql)]


# Whole


async def test_a_dump_of_version_1_opens_upgraded_with_everything_in_it(old: PostgresDatabase) -> None:
    sessions, items = kept()
    await upgrade(old)
    assert version(old) == SCHEMA_VERSION
    assert await rows(
        old,
        """
        SELECT session_id, length, created_at, updated_at, stored_at, first_position, edits,
            owner, title, metadata, expires_at, forked_from, forked_length
        FROM agentmem.agentmem_sessions ORDER BY session_id
        """,
    ) == [(*session, session.updated_at, 0, 0, None, None, None, None, None, None) for session in sessions]
    stored = await rows(
        old,
        "SELECT sequence, session_id, position, created_at, item FROM agentmem.agentmem_items ORDER BY sequence",
    )
    assert [(*row[:4], json.loads(row[4])) for row in stored] == [
        (sequence, *item) for sequence, item in enumerate(items, 1)
    ]
    assert old.sql("SELECT count(*) FROM agentmem.agentmem_writers") == "1"
    assert old.sql("SELECT FROM agentmem.agentmem_notes UNION ALL SELECT FROM agentmem.agentmem_locks") == ""


async def test_every_session_of_version_1_is_read_and_gone_on_with(old: PostgresDatabase) -> None:
    sessions, items = kept()
    async with AsyncSessionStore(old.url, busy_timeout_s=60) as store:
        for session in sessions:
            expected = [item.item for item in items if item.session_id == session.session_id]
            handle = store.session(session.session_id)
            assert await handle.get_items() == expected
            await handle.add_items([ADDED, ADDED])
            assert await handle.pop_item() == ADDED
            assert await handle.get_items() == [*expected, ADDED]
        report = await store.check()
    assert (report.sessions, report.items) == (len(sessions), len(items) + len(sessions))
    assert report.problems == ()


async def test_a_check_of_version_1_upgrades_nothing_and_finds_what_is_wrong(old: PostgresDatabase) -> None:
    sessions, items = kept()
    before = dump(old)
    store = AsyncSessionStore(old.url, busy_timeout_s=60)
    report = await store.check()
    assert (report.sessions, report.items, report.problems) == (len(sessions), len(items), ())
    assert dump(old) == before
    old.sql("UPDATE agentmem.agentmem_sessions SET next_position = 21 WHERE session_id = 'plain'")
    assert [str(problem) for problem in (await store.check()).problems] == ["session 'plain', position 20: missing"]
    assert version(old) == 1
    await store.close()


async def test_what_arrives_after_the_upgrade_comes_after_all_that_was_there(old: PostgresDatabase) -> None:
    _, items = kept()
    async with AsyncSessionStore(old.url, busy_timeout_s=60) as store:
        await store.session("new").add_items([ADDED, ADDED])
        await store.session("new").pop_item()
        await store.session("new").add_items([ADDED])  # the sequence of what was removed is not issued again
    sequences = old.sql("SELECT sequence FROM agentmem.agentmem_items WHERE session_id = 'new' ORDER BY position")
    assert sequences.split() == [str(len(items) + 1), str(len(items) + 3)]


async def test_old_items_are_in_the_order_of_their_times_and_never_against_that_of_their_positions(
    old: PostgresDatabase,
) -> None:
    # The clock was set back while session "a" was written: its position 2 came after its position 1 all the same.
    old.sql("""
        TRUNCATE agentmem.agentmem_sessions, agentmem.agentmem_items;
        INSERT INTO agentmem.agentmem_sessions VALUES ('a', 3), ('b', 3), ('c', 2);
        INSERT INTO agentmem.agentmem_items
        SELECT session_id, position, timestamptz '2026-01-01Z' + second * interval '1 second', '{}' FROM (VALUES
            ('b', 2, 6), ('c', 1, 7), ('c', 0, 7), ('a', 2, 3), ('a', 1, 5), ('b', 1, 4), ('b', 0, 2), ('a', 0, 1)
        ) AS items (session_id, position, second);
    """)
    await upgrade(old)
    assert arrival(old) == ["a 0", "b 0", "b 1", "a 1", "a 2", "b 2", "c 0", "c 1"]


# Or not at all

_KILL = """
CREATE SEQUENCE commands;
CREATE FUNCTION kill() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        IF nextval('public.commands') = {number} THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
    END
$$;
CREATE EVENT TRIGGER kill ON ddl_command_end EXECUTE FUNCTION kill();
"""


@exhaustive
async def test_an_upgrade_that_is_killed_after_any_of_its_commands_leaves_all_as_it_was(
    quiet_postgres_server: PostgresServer,
) -> None:
    for number in itertools.count(1):
        with postgres_database(quiet_postgres_server) as database:
            load(database)
            before = dump(database)
            database.sql(_KILL.format(number=number))
            store = AsyncSessionStore(database.url, busy_timeout_s=0)
            try:
                await store.open()
                break  # it has fewer commands
            except StorageBusyError:
                database.wait_until_left()
                assert dump(database) == before
            finally:
                await store.close()
                database.sql("DROP EVENT TRIGGER kill; DROP FUNCTION kill; DROP SEQUENCE commands")
            await upgrade(database)
            assert version(database) == SCHEMA_VERSION
            assert len(arrival(database)) == len(kept()[1])
    assert number > 8


async def test_an_upgrade_that_the_server_ends_to_resolve_a_deadlock_is_made_again(old: PostgresDatabase) -> None:
    of_role = f"ALTER ROLE agentmem IN DATABASE {old.name} SET deadlock_timeout"
    old.sql(f"{of_role} = '1h'")  # the upgrade is to find the deadlock, and so to be the one that is ended
    async with connected(old) as writer, connected(old) as reader:
        old.sql(f"{of_role} = '1ms'")
        await writer.execute("BEGIN; SELECT FROM agentmem.agentmem_schema")
        await reader.execute("BEGIN; SELECT FROM agentmem.agentmem_items")
        opening = asyncio.ensure_future(upgrade(old))
        await until(lambda: waiting(old) == 1)  # for the writer
        reading = asyncio.ensure_future(reader.execute("SELECT FROM agentmem.agentmem_schema"))
        await until(lambda: waiting(old) == 2)  # behind the upgrade, which will need the table that the reader has
        await writer.execute("COMMIT")
        await reading
        await reader.execute("COMMIT")
        await opening
    assert version(old) == SCHEMA_VERSION
    await until(lambda: old.sql(f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{old.name}'") == "1")


def waiting(database: PostgresDatabase) -> int:
    """How many connections wait for a lock."""
    of_locks = f"datname = '{database.name}' AND wait_event_type = 'Lock'"
    return int(database.sql(f"SELECT count(*) FROM pg_stat_activity WHERE {of_locks}"))


# Beside others

_OPEN = """
import asyncio, sys
from agentmem import AsyncSessionStore

async def main():
    async with AsyncSessionStore(sys.argv[1], busy_timeout_s=60) as store:
        await store.session(sys.argv[2]).add_items([{"from": sys.argv[2]}])

asyncio.run(main())
"""


async def test_of_two_processes_that_open_it_at_once_one_upgrades_it_and_neither_sees_an_error(
    old: PostgresDatabase,
) -> None:
    async with connected(old) as holder:
        await holder.execute("BEGIN; SELECT FROM agentmem.agentmem_schema")
        with Child(_OPEN, old.url, "one") as one, Child(_OPEN, old.url, "two") as two:
            await until(lambda: waiting(old) == 2)
            await holder.execute("COMMIT")
            assert one.finish() == two.finish() == (0, "", "")
    assert (old.stored("one"), old.stored("two")) == ([{"from": "one"}], [{"from": "two"}])
    assert len(arrival(old)) == len(kept()[1]) + 2


# Writes as version 1 did it: what is patched is all that has changed in its statements.
_OLDER = """
import asyncio, itertools, os, sys
from agentmem import AsyncSessionStore
from agentmem.engines.postgres import schema, statements, writes
from agentmem.errors import SchemaVersionError

schema.SCHEMA_VERSION = writes.SCHEMA_VERSION = 1
statements._APPEND = f'''
    WITH claimed AS ({statements._CLAIM}),
    ends AS (
        INSERT INTO agentmem.agentmem_sessions AS s (session_id, next_position)
        SELECT session_id, size FROM claimed, unnest($6::text[], $7::text::bigint[]) AS wanted (session_id, size)
        ORDER BY session_id COLLATE "C"
        ON CONFLICT (session_id)
            DO UPDATE SET next_position = s.next_position + excluded.next_position, updated_at = now()
        RETURNING s.session_id, s.next_position
    ),
    added AS (
        INSERT INTO agentmem.agentmem_items (session_id, position, item)
        SELECT session_id, next_position - before_end, item
        FROM ends JOIN unnest($8::text[], $9::text::bigint[], $10::text[]) AS row (session_id, before_end, item)
            USING (session_id)
    )
    SELECT version FROM agentmem.agentmem_schema
'''
statements._CUT = '''
    WITH removed AS (DELETE FROM agentmem.agentmem_items WHERE session_id = $1 AND position >= $2)
    UPDATE agentmem.agentmem_sessions SET next_position = $2, updated_at = now() WHERE session_id = $1
'''
statements._CLEAR = '''
    WITH removed AS (DELETE FROM agentmem.agentmem_items WHERE session_id = ANY($1::text[]))
    DELETE FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[])
'''

async def main():
    async with AsyncSessionStore(sys.argv[1], busy_timeout_s=60) as store:
        async def write(task):
            session = store.session(f"session {task}")
            try:
                for number in itertools.count():
                    await session.add_items([{"number": number, "place": place} for place in range(3)])
                    os.write(1, f"added {task} {number}\\n".encode())
                    if number % 5 == 4:
                        await session.pop_item()
                        os.write(1, f"popped {task} {number}\\n".encode())
                    if number % 50 == 49:
                        await session.clear_session()
                        os.write(1, f"cleared {task} {number}\\n".encode())
                    await session.get_items(1)
            except SchemaVersionError as error:
                assert not error.in_doubt
                os.write(1, f"refused: {error}\\n".encode())
        await asyncio.gather(*map(write, range(20)))

asyncio.run(main())
"""


async def test_an_older_agentmem_that_writes_meanwhile_is_refused_by_name_and_all_that_it_wrote_is_there(
    old: PostgresDatabase,
) -> None:
    with Child(_OLDER, old.url) as child:
        told = [child.read_line() for _ in range(300)]
        async with AsyncSessionStore(old.url, busy_timeout_s=60) as store:
            await store.open()
            code, output, errors = await asyncio.to_thread(child.finish)
            assert (await store.check()).problems == ()
    assert (code, errors) == (0, "")
    told += output.splitlines()
    refused = f"has schema version {SCHEMA_VERSION}, this agentmem knows up to 1; upgrade agentmem"
    assert [refused in line for line in told if line.startswith("refused")] == [True] * 20
    expected: dict[str, list[Item]] = {f"session {task}": [] for task in range(20)}
    for did, task, number in (line.split() for line in told if not line.startswith("refused")):
        items = expected[f"session {task}"]
        if did == "added":
            items += [{"number": int(number), "place": place} for place in range(3)]
        elif did == "popped":
            items.pop()
        else:
            items.clear()
    found = {session_id: items for session_id, items in old.sessions().items() if session_id in expected}
    assert found == {session_id: items for session_id, items in expected.items() if items or session_id in found}


async def test_an_upgrade_waits_for_a_write_of_an_older_agentmem_and_loses_nothing_of_it(
    old: PostgresDatabase,
) -> None:
    async with connected(old) as older:
        await older.execute("BEGIN; SELECT version FROM agentmem.agentmem_schema")
        opening = asyncio.ensure_future(upgrade(old))
        await until(lambda: waiting(old) == 1)
        await older.execute("INSERT INTO agentmem.agentmem_sessions (session_id, next_position) VALUES ('late', 1)")
        await older.execute("INSERT INTO agentmem.agentmem_items (session_id, position, item) VALUES ('late', 0, '{}')")
        await older.execute("COMMIT")
        await opening
    assert old.stored("late") == [{}]
    assert arrival(old)[-1] == "late 0"


async def test_a_read_that_began_before_the_upgrade_and_goes_on_after_it_misses_no_row(old: PostgresDatabase) -> None:
    async with connected(old) as reader:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT")  # its snapshot is taken, and no lock
        await upgrade(old)
        read = await reader.fetch("SELECT session_id, position, created_at, item FROM agentmem.agentmem_items")
        sessions = await reader.fetchval("SELECT count(*) FROM agentmem.agentmem_sessions")
    kept_sessions, kept_items = kept()
    assert sessions == len(kept_sessions)
    expected = {(item.session_id, item.position, item.created_at, json.dumps(item.item)) for item in kept_items}
    assert {(*row[:3], json.dumps(json.loads(row[3]))) for row in read} == expected


# Rights


async def test_who_was_given_the_old_tables_is_given_the_new_ones_by_the_upgrade(old: PostgresDatabase) -> None:
    role = f"A guest of {old.name}"
    old.sql(f"""
        CREATE ROLE "{role}" LOGIN;
        GRANT USAGE ON SCHEMA agentmem TO "{role}";
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA agentmem TO "{role}";
    """)
    await upgrade(old)
    async with AsyncSessionStore(old.url_of(role), busy_timeout_s=60) as guest:
        session = guest.session("plain")
        await session.add_items([ADDED, ADDED])
        assert await session.pop_item() == ADDED
        await session.clear_session()
        assert (await guest.check()).problems == ()
    old.sql(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


async def test_a_role_that_does_not_own_the_tables_is_told_that_their_owner_must_upgrade_them(
    old: PostgresDatabase,
) -> None:
    role = f"guest_of_{old.name}"
    old.sql(f"""
        CREATE ROLE {role} LOGIN;
        GRANT USAGE, CREATE ON SCHEMA agentmem TO {role};
        GRANT ALL ON ALL TABLES IN SCHEMA agentmem TO {role};
    """)
    before = dump(old)
    guest = AsyncSessionStore(old.url_of(role), busy_timeout_s=60)
    with pytest.raises(StorageError, match=r"must be owner of table .* the role that owns them upgrades them"):
        await guest.open()
    assert dump(old) == before
    await upgrade(old)
    await guest.session("plain").add_items([ADDED])
    await guest.close()
    old.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


# Large

_MANY = """
    TRUNCATE agentmem.agentmem_sessions, agentmem.agentmem_items;
    INSERT INTO agentmem.agentmem_sessions SELECT 'user ' || n, 2 FROM generate_series(1, 1000000) AS n;
    INSERT INTO agentmem.agentmem_items
    SELECT 'user ' || n, position, now() + (n * 7919 % 1000003 * 2 + position) * interval '1 second', repeat('x', 300)
    FROM generate_series(1, 1000000::bigint) AS n, generate_series(1, 0, -1) AS position
"""


@pytest.mark.exhaustive
async def test_a_million_sessions_are_upgraded_however_long_it_takes(
    old: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "ANSWER_TIMEOUT_S", 1.0)  # no server upgrades them in so little
    old.sql(f"{_MANY}; ALTER ROLE agentmem IN DATABASE {old.name} SET statement_timeout = '1s'")
    async with AsyncSessionStore(old.url, busy_timeout_s=1) as store:
        await store.open()
    told = old.sql("""
        SELECT count(*), count(DISTINCT sequence), min(sequence), max(sequence),
            count(*) FILTER (WHERE sequence < previous), count(*) FILTER (WHERE created_at < previous_created_at)
        FROM (
            SELECT
                sequence, created_at, lag(created_at) OVER (ORDER BY sequence) AS previous_created_at,
                lag(sequence) OVER (PARTITION BY session_id ORDER BY position) AS previous
            FROM agentmem.agentmem_items
        ) AS items
    """)
    assert told == "2000000|2000000|1|2000000|0|0"
    whole = "length = 2 AND stored_at = updated_at"
    assert old.sql(f"SELECT count(*) FROM agentmem.agentmem_sessions WHERE {whole}") == "1000000"
