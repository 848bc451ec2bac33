"""The tables are made once, whole or not at all, in the schema that was asked for, with the rights that there are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from postgres_database import PostgresDatabase, postgres_database
from postgres_server import PostgresServer, Standby

from agentmem import AsyncPostgresSession, AsyncSession, AsyncSessionStore
from agentmem.engines import open_engine
from agentmem.errors import SchemaVersionError, StorageError
from agentmem.items import Item

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

from agentmem.engines.postgres.schema import SCHEMA_VERSION

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
TWO: Item = {"role": "user", "content": "two"}

ANY_RIGHT = (
    "role needs CREATE on the database to make the schema; in one that there is USAGE, and CREATE to make the tab"
)


async def add(url: str, *items: Item) -> None:
    async with AsyncPostgresSession(url, session_id="user_123") as session:
        await session.add_items(items)


def contents(database: PostgresDatabase) -> list[str]:
    """All schemas, and all tables with their owners, that are not the server's own."""
    of_users = "nspname NOT LIKE 'pg_%' AND nspname <> 'information_schema'"
    return database.sql(f"""
        SELECT 'schema', nspname, nspowner::regrole FROM pg_namespace WHERE {of_users}
        UNION ALL
        SELECT relkind::text, nspname || '.' || relname, relowner::regrole
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE {of_users}
        ORDER BY 2, 1
    """).splitlines()


@pytest.fixture
def guest(database: PostgresDatabase) -> Iterator[str]:
    """The URL of a role that may connect and nothing else."""
    role = f"guest_of_{database.name}"
    database.sql(f"CREATE ROLE {role} LOGIN; REVOKE ALL ON SCHEMA public FROM PUBLIC")
    yield database.url_of(role)
    database.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def role_of(url: str) -> str:
    return url.partition("://")[2].partition("@")[0]


# Creation


async def test_the_tables_are_made_with_the_first_call_and_never_again(database: PostgresDatabase) -> None:
    session = AsyncPostgresSession(database.url, session_id="user_123")
    before = contents(database)
    assert await session.get_items() == []
    made = contents(database)
    assert [line for line in made if line not in before and not line.startswith("i|")] == [
        "schema|agentmem|agentmem",
        "r|agentmem.agentmem_items|agentmem",
        "S|agentmem.agentmem_items_sequence_seq|agentmem",
        "r|agentmem.agentmem_locks|agentmem",
        "r|agentmem.agentmem_notes|agentmem",
        "r|agentmem.agentmem_schema|agentmem",
        "r|agentmem.agentmem_sessions|agentmem",
        "r|agentmem.agentmem_writers|agentmem",
    ]
    oids = "SELECT relname, oid, relfilenode FROM pg_class WHERE relname LIKE 'agentmem%' ORDER BY 1"
    first = database.sql(oids)
    await session.add_items([ONE])
    await session.close()
    await add(database.url, TWO)
    assert contents(database) == made
    assert database.sql(oids) == first
    assert database.sql("SELECT version FROM agentmem.agentmem_schema") == str(SCHEMA_VERSION)


async def test_two_schemas_of_one_database_know_nothing_of_each_other(database: PostgresDatabase) -> None:
    urls = [database.url_of(schema=schema) for schema in ("one", "two")]
    await add(urls[0], ONE)
    await add(urls[1], TWO, TWO)
    async with AsyncPostgresSession(urls[1], session_id="user_123") as session:
        await session.clear_session()
    assert database.stored(schema="one") == [ONE]
    assert database.stored(schema="two") == []
    assert "agentmem" not in database.sql("SELECT nspname FROM pg_namespace").splitlines()


async def test_a_schema_that_there_is_keeps_what_is_in_it(database: PostgresDatabase) -> None:
    database.sql("CREATE TABLE public.theirs AS SELECT 'theirs' AS text; CREATE TABLE public.items (x int)")
    await add(database.url_of(schema="public"), ONE)
    assert database.stored(schema="public") == [ONE]
    assert database.sql("SELECT text FROM public.theirs") == "theirs"
    assert database.sql("SELECT count(*) FROM public.items") == "0"


async def test_a_search_path_leads_to_no_other_tables(database: PostgresDatabase) -> None:
    await add(database.url_of(schema="theirs"), TWO)
    database.sql(f"ALTER ROLE agentmem IN DATABASE {database.name} SET search_path = theirs, public")
    await add(database.url, ONE)
    assert (database.stored(), database.stored(schema="theirs")) == ([ONE], [TWO])


_REFUSE = """
CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity LIKE '%agentmem_writers') THEN
            RAISE 'not here';
        END IF;
    END
$$;
CREATE EVENT TRIGGER refuse ON ddl_command_end EXECUTE FUNCTION refuse();
"""


async def test_a_creation_that_is_interrupted_leaves_nothing_and_the_next_call_makes_all(
    database: PostgresDatabase,
) -> None:
    database.sql(_REFUSE)
    before = contents(database)
    session = AsyncPostgresSession(database.url, session_id="user_123")
    for call in (session.__aenter__, session.get_items, lambda: session.add_items([ONE])):
        with pytest.raises(StorageError, match=r"not here.*a trigger of another program's refused it"):
            await call()
        assert contents(database) == before
    database.sql("DROP EVENT TRIGGER refuse")
    await session.add_items([ONE])
    await session.close()
    assert database.stored() == [ONE]


async def test_many_pools_on_several_event_loops_that_find_no_tables_make_them_once(
    database: PostgresDatabase,
) -> None:
    async def use(loop: int) -> None:
        # Handles with caches of their own have pools of their own.
        sessions = [
            AsyncPostgresSession(
                database.url, session_id=f"{loop}-{number}", busy_timeout_s=60, statement_cache_size=number
            )
            for number in range(8)
        ]
        await asyncio.gather(*(session.add_items([ONE]) for session in sessions))
        await asyncio.gather(*(session.close() for session in sessions))

    with ThreadPoolExecutor(3) as threads:
        running = asyncio.get_running_loop()
        await asyncio.gather(*(running.run_in_executor(threads, asyncio.run, use(loop)) for loop in range(3)))
    assert database.sql("SELECT count(*), max(length) FROM agentmem.agentmem_sessions") == "24|1"
    assert database.sql("SELECT count(*) FROM agentmem.agentmem_schema") == "1"


# Rights


async def test_a_role_that_may_not_create_schemas_uses_the_one_that_it_was_given(
    database: PostgresDatabase, guest: str
) -> None:
    database.sql(f"CREATE SCHEMA given; GRANT USAGE, CREATE ON SCHEMA given TO {role_of(guest)}")
    await add(f"{guest}?schema=given", ONE)
    assert database.stored(schema="given") == [ONE]


async def test_a_role_that_may_not_create_tables_uses_those_that_it_may_change(
    database: PostgresDatabase, guest: str
) -> None:
    await add(database.url, ONE)
    database.sql(f"""
        GRANT USAGE ON SCHEMA agentmem TO {role_of(guest)};
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA agentmem TO {role_of(guest)};
    """)
    async with AsyncSessionStore(guest) as store:
        session = store.session("user_123")
        await session.add_items([TWO, TWO])
        assert await session.pop_item() == TWO
        assert await session.get_items() == [ONE, TWO]
        await store.session("other").add_items([ONE])
        await store.session("other").clear_session()
        assert (await store.check()).items == 2
    assert database.stored() == [ONE, TWO]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("", "permission denied for database"),
        ("CREATE SCHEMA agentmem", "permission denied for schema agentmem"),
        ("CREATE SCHEMA agentmem; GRANT USAGE ON SCHEMA agentmem TO {}", "permission denied for schema agentmem"),
    ],
    ids=["nothing", "a schema that it may not use", "a schema in which it may not create"],
)
async def test_a_role_without_a_right_is_told_which_it_needs(
    database: PostgresDatabase, guest: str, given: str, match: str
) -> None:
    database.sql(given.format(role_of(guest)))
    before = contents(database)
    session = AsyncPostgresSession(guest, session_id="user_123")
    for call in (session.__aenter__, session.get_items, lambda: session.add_items([ONE])):
        with pytest.raises(StorageError, match=f"{match}.*{ANY_RIGHT}"):
            await call()
    await session.close()
    assert contents(database) == before


async def reads(session: AsyncSession, store: AsyncSessionStore, url: str) -> None:
    """All that only reads sees [ONE, TWO]."""
    assert await session.get_items() == [ONE, TWO]
    assert await session.get_items(1) == [TWO]
    assert (await store.check()).problems == ()
    engine = open_engine(url, busy_timeout_s=0)
    assert await engine.sessions(None, 10) == [("user_123", 2)]
    assert [json.loads(text) for _, text in await engine.rows("user_123", 0, 10)] == [ONE, TWO]
    await engine.close()


def writes(session: AsyncSession) -> list[Callable[[], Awaitable[object]]]:
    return [lambda: session.add_items([ONE]), session.pop_item, session.clear_session]


async def test_a_role_that_may_only_read_reads_and_its_writes_are_refused_by_name(
    database: PostgresDatabase, guest: str
) -> None:
    await add(database.url, ONE, TWO)
    role = role_of(guest)
    database.sql(f"GRANT USAGE ON SCHEMA agentmem TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA agentmem TO {role}")
    async with AsyncSessionStore(guest) as store:
        session = store.session("user_123")
        await reads(session, store, guest)
        for write in writes(session):
            with pytest.raises(StorageError, match=f"permission denied for table agentmem.*{ANY_RIGHT}"):
                await write()
        await reads(session, store, guest)
    assert database.stored() == [ONE, TWO]


async def test_where_transactions_only_read_an_existing_schema_is_read_and_nothing_is_written(
    database: PostgresDatabase,
) -> None:
    url = database.url_of(default_transaction_read_only="on")
    store = AsyncSessionStore(url, busy_timeout_s=0)
    with pytest.raises(StorageError, match=r"read-only transaction.*the server only reads"):
        await store.open()
    assert "agentmem" not in database.sql("SELECT nspname FROM pg_namespace").splitlines()
    await add(database.url, ONE, TWO)
    session = store.session("user_123")
    await reads(session, store, url)
    for write in writes(session):
        with pytest.raises(StorageError, match=r"the server only reads.*nothing was written"):
            await write()
    await store.close()
    assert database.stored() == [ONE, TWO]


@pytest.fixture(scope="module")
def standby(postgres_server: PostgresServer) -> Iterator[Standby]:
    with postgres_server.standby() as following:
        yield following


@pytest.mark.exhaustive
async def test_a_standby_serves_reads_and_refuses_writes_by_name(
    postgres_server: PostgresServer, standby: Standby
) -> None:
    with postgres_database(postgres_server) as database:
        await add(database.url, ONE, TWO)
        standby.catch_up()
        url = database.url_of(port=standby.port)
        async with AsyncSessionStore(url, busy_timeout_s=0) as store:
            session = store.session("user_123")
            await reads(session, store, url)
            for write in writes(session):
                with pytest.raises(StorageError, match=r"the server only reads: it is a replica.*nothing was written"):
                    await write()
            await add(database.url, TWO)
            standby.catch_up()
            assert await session.get_items() == [ONE, TWO, TWO]
        hosts = f"{standby.host}:{standby.port},{standby.host}:{postgres_server.port}"
        primary = database.url.replace(f"{standby.host}:{postgres_server.port}", hosts)
        await add(f"{primary}?target_session_attrs=primary", ONE)
        assert database.stored() == [ONE, TWO, TWO, ONE]


# Versions


async def test_a_newer_version_is_refused_by_name_and_left_as_it_is(database: PostgresDatabase) -> None:
    await add(database.url, ONE)
    newer = SCHEMA_VERSION + 1
    database.sql(f"UPDATE agentmem.agentmem_schema SET version = {newer}; DROP TABLE agentmem.agentmem_writers")
    before = contents(database)
    store = AsyncSessionStore(database.url)
    session = store.session("user_123")
    engine = open_engine(database.url)
    calls: list[Callable[[], Awaitable[object]]] = [
        store.open,
        session.get_items,
        store.check,
        lambda: engine.sessions(None, 1),
        *writes(session),
    ]
    for call in calls:
        with pytest.raises(SchemaVersionError, match=f"has schema version {newer}.*up to {SCHEMA_VERSION}; upgrade"):
            await call()
    await store.close()
    await engine.close()
    assert contents(database) == before
    assert database.sql("SELECT version FROM agentmem.agentmem_schema") == str(newer)
    assert database.stored() == [ONE]
