"""A URL of PostgreSQL's leads to its database as it says, or to an error by name; and no password is ever shown."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from exhaustive import cases
from ports import HOST, free_port
from postgres_database import PostgresDatabase, postgres_database
from processes import holdings, holds_again, run_quietly

from agentmem import AsyncPostgresSession, AsyncSessionStore, PostgresSession
from agentmem.engines import open_engine
from agentmem.errors import SessionClosedError, StorageError
from agentmem.items import Item

asyncpg = pytest.importorskip("asyncpg", reason="asyncpg is not installed")

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
TWO: Item = {"role": "user", "content": "two"}


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    before = holdings()
    yield
    holds_again(before)


async def add(url: str, *items: Item, session_id: str = "user_123", **options: Any) -> None:
    async with AsyncPostgresSession(url, session_id=session_id, **options) as session:
        await session.add_items(items)


# What a URL leads to


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
async def test_both_schemes_lead_to_the_database(database: PostgresDatabase, scheme: str) -> None:
    url = database.url.replace("postgresql", scheme)
    await add(url, ONE)
    async with AsyncSessionStore(url) as store:
        await store.session("user_123").add_items([TWO])
    assert database.stored() == [ONE, TWO]


async def test_the_options_of_agentmem_are_taken_out_of_a_url_and_all_others_are_the_server_s(
    database: PostgresDatabase,
) -> None:
    url = database.url_of(
        application_name="of & agents", schema="mine", options="-c work_mem=3MB", statement_cache_size=0
    )
    async with AsyncPostgresSession(url, session_id="user_123") as session:
        await session.add_items([ONE])
        of_us = f"FROM pg_stat_activity WHERE datname = '{database.name}' AND usename = 'agentmem'"
        assert database.sql(f"SELECT DISTINCT application_name {of_us}") == "of & agents"
    database.record("current_setting('work_mem')", schema="mine")
    await add(url, TWO)
    assert database.recorded() == ["3MB"]
    assert database.stored(schema="mine") == [ONE, TWO]


@pytest.mark.parametrize("where", ["in the URL", "as an argument"])
@pytest.mark.parametrize("size", [0, 7])
async def test_the_size_of_the_statement_cache_is_that_of_the_url_or_of_the_argument(
    database: PostgresDatabase, where: str, size: int
) -> None:
    in_url = where == "in the URL"
    url = database.url_of(statement_cache_size=size) if in_url else database.url
    options: dict[str, Any] = {} if in_url else {"statement_cache_size": size}
    await add(url, ONE, **options)
    database.record("EXISTS (SELECT FROM pg_prepared_statements WHERE name <> '')")
    await add(url, TWO, **options)
    assert database.recorded() == ["true" if size else "false"]


async def test_of_several_hosts_the_one_is_used_that_serves(database: PostgresDatabase) -> None:
    url = database.url.replace(f"@{HOST}", f"@{HOST}:{free_port()},{HOST}")
    await add(url, ONE)
    assert database.stored() == [ONE]


ODD_SCHEMAS = [
    "Upper",
    "two words",
    'a "quoted" name',
    "semi;colon -- and more",
    "Ü 漢 😀",
    "agentmem.x",
    "$1 %s {}",
    "'",
]


@pytest.mark.parametrize("name", cases([*ODD_SCHEMAS, "é" * 31 + "x"], quick=lambda name: name[0] in "aé"))
async def test_a_schema_may_have_any_name_that_postgresql_takes(database: PostgresDatabase, name: str) -> None:
    for url, options in ((database.url, {"schema": name}), (database.url_of(schema=name), {})):
        await use(url, name, **options)
    assert database.stored(schema=name) == [TWO]
    assert database.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'agentmem'") == "0"


async def use(url: str, name: str, **options: Any) -> None:
    async with AsyncPostgresSession(url, session_id="user_123", **options) as session:
        await session.clear_session()
        await session.add_items([ONE, TWO])
        assert await session.pop_item() == TWO
        assert await session.get_items() == [ONE]
        assert f"(schema {name})" in repr(session)
    async with AsyncSessionStore(url, **options) as store:
        assert (await store.check()).items == 1
        await store.session("user_123").clear_session()
        await store.session("user_123").add_items([TWO])


async def test_an_argument_goes_before_the_same_option_of_the_url(database: PostgresDatabase) -> None:
    await add(database.url_of(schema="of the URL"), ONE, schema="given")
    assert database.stored(schema="given") == [ONE]
    assert database.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'of the URL'") == "0"


def test_handles_share_a_run_key_however_they_connect_to_the_database_and_not_across_databases() -> None:
    def key(url: str, **options: Any) -> object:
        return AsyncPostgresSession(url, session_id="a", **options).run_key

    one = key("postgresql://me:secret@host:1/db")
    for same in (
        "postgres://me@host:1/db",
        "postgresql://you:other@host:1/db?application_name=x",
        "postgresql://me@host:1/db?statement_cache_size=0&schema=agentmem",
        "postgresql://host:1/db?password=secret",
    ):
        assert key(same) == one
    for other in (
        "postgresql://me@host:1/other",
        "postgresql://me@host:2/db",
        "postgresql://me@other:1/db",
        "postgresql://me@host:1",
        "postgresql://me@host:1/db?schema=x",
        "postgresql:///db?host=other&port=1",
    ):
        assert key(other) != one
    assert key("postgresql://me@host") == key("postgresql://me@host/me") != key("postgresql://you@host")


# What is refused before anything is connected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"schema": ""}, ValueError, "schema is a name of 1 to 63 bytes"),
        ({"schema": "x" * 64}, ValueError, "schema is a name of 1 to 63 bytes"),
        ({"schema": "é" * 32}, ValueError, "schema is a name of 1 to 63 bytes"),
        ({"schema": "a\0b"}, ValueError, "schema is a name of 1 to 63 bytes"),
        ({"schema": "\ud800"}, ValueError, "schema is a name of 1 to 63 bytes"),
        ({"schema": 7}, TypeError, "schema is a str, got 7"),
        ({"statement_cache_size": -1}, ValueError, "statement_cache_size is 0 or more, got -1"),
        ({"statement_cache_size": 1.5}, ValueError, "statement_cache_size is 0 or more"),
        ({"statement_cache_size": "many"}, ValueError, "statement_cache_size is 0 or more, got 'many'"),
        ({"busy_timeout_s": -1}, ValueError, "busy_timeout_s is a number of seconds, 0 or more"),
        ({"busy_timeout_s": True}, TypeError, "busy_timeout_s is a number of seconds"),
        ({"durability": "full"}, TypeError, "durability"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AsyncSessionStore("postgresql://host/db", **options)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?schema=", "schema is a name"),
        ("?schema", "are name=value, joined by &"),
        ("?sslmode&schema=x", "are name=value, joined by &"),
        ("?a=1&&b=2", "are name=value, joined by &"),
        ("?statement_cache_size=-1", "statement_cache_size is 0 or more, got '-1'"),
        ("?statement_cache_size=", "statement_cache_size is 0 or more, got ''"),
        ("?statement_cache_size=%D9%A3", "statement_cache_size is 0 or more, got '٣'"),
    ],
)
def test_an_option_of_a_url_that_is_none_is_refused(query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AsyncSessionStore(f"postgresql://host/db{query}")


@pytest.mark.parametrize("kind", [AsyncPostgresSession, PostgresSession])
@pytest.mark.parametrize(
    ("db", "error", "message"),
    [
        ("conversations.db", ValueError, "'conversations.db' is not a PostgreSQL URL"),
        (":memory:", ValueError, "is not a PostgreSQL URL"),
        ("sqlite:///conversations.db", ValueError, "'sqlite:///conversations.db' is not a PostgreSQL URL"),
        ("mysql://host/db", ValueError, "unknown database URL mysql://"),
        (7, TypeError, r"dsn is a URL or an asyncpg\.Pool, got int"),
        (None, TypeError, r"dsn is a URL or an asyncpg\.Pool, got NoneType"),
    ],
    ids=repr,
)
def test_what_is_no_postgresql_is_refused(kind: Any, db: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kind(db, session_id="user_123")


def test_without_asyncpg_the_message_is_the_pip_command() -> None:
    script = """
import sys
sys.modules["asyncpg"] = None  # what import takes for: it is not there
from agentmem import AsyncPostgresSession, AsyncSessionStore, SessionStore
from agentmem.errors import MissingDependencyError
for make in (AsyncSessionStore, SessionStore, lambda db: AsyncPostgresSession(db, session_id="user_123")):
    try:
        make("postgresql://host/db")
    except MissingDependencyError as error:
        print(error, type(error.__cause__).__name__)
"""
    assert run_quietly(script) == "pip install asyncpg ModuleNotFoundError\n" * 3


# What a server refuses


async def refused(url: str, match: str, *, hidden: str = "", **options: Any) -> StorageError:
    """Opening and every call raise this error, whose text and traceback show nothing of what is hidden."""
    name = open_engine(url, **options).name
    session = AsyncPostgresSession(url, session_id="user_123", **options)
    for call in (session.__aenter__, session.get_items, session.pop_item, lambda: session.add_items([ONE])):
        with pytest.raises(StorageError, match=match) as raised:
            await call()
        assert name in str(raised.value)
        shown = "".join(traceback.format_exception(raised.value)) + repr(session) + repr(session.run_key)
        assert not hidden or hidden not in shown
    await session.close()
    return raised.value


async def test_a_database_that_there_is_not_is_an_error_by_name(database: PostgresDatabase) -> None:
    error = await refused(
        database.url.replace(database.name, "nowhere"), 'database "nowhere" does not exist.*agentmem makes none'
    )
    assert type(error) is StorageError


@pytest.mark.parametrize("host", [f"{HOST}:1", "nowhere.invalid", "/nowhere"])
async def test_a_server_that_cannot_be_reached_is_an_error_at_once(host: str) -> None:
    # "At once" is without a second try, which would be told by the time; one that waited would be stopped by pytest.
    url = f"postgresql:///db?host={host}" if host.startswith("/") else f"postgresql://{host}/db"
    await refused(url, "check that the server runs and its address", busy_timeout_s=10_000)


async def test_an_option_that_the_server_does_not_know_is_an_error_by_name(database: PostgresDatabase) -> None:
    await refused(database.url_of(nonsense=1), '"nonsense".*check the options in the URL')
    await refused(database.url_of(timezone="Nowhere"), '"Nowhere".*check the options in the URL')
    await refused(database.url_of(sslmode="nonsense"), "sslmode.*check the URL")


async def test_a_schema_whose_name_is_the_server_s_own_is_an_error_by_name(database: PostgresDatabase) -> None:
    await refused(database.url_of(schema="pg_mine"), "pg_mine.*(?s:.*)choose another schema")


async def test_a_database_that_is_not_in_utf8_is_refused_and_left_empty(database: PostgresDatabase) -> None:
    with postgres_database(database.server, "ENCODING LATIN1 TEMPLATE template0") as latin:
        await refused(latin.url, "is in LATIN1; items need a database in UTF8")
        store = AsyncSessionStore(latin.url)
        with pytest.raises(StorageError, match="LATIN1"):
            await store.check()
        await store.close()
        assert latin.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'agentmem'") == "0"


async def test_backup_says_what_to_do_instead(database: PostgresDatabase) -> None:
    store = AsyncSessionStore(database.url)
    with pytest.raises(StorageError, match=r"pg_dump; agentmem copy SOURCE TARGET"):
        await store.backup("copy.db")
    await store.close()
    with pytest.raises(SessionClosedError):
        await store.backup("copy.db")
