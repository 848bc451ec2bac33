"""Every error of PostgreSQL's and of asyncpg's is one of agentmem's that says what happened, where, and what to do."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import random
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from database import mounted
from exhaustive import cases
from in_postgres import served
from postgres_database import PostgresDatabase, postgres_database
from postgres_programs import Programs

from agentmem import AsyncPostgresSession, AsyncSessionStore
from agentmem.errors import AgentMemError, StorageBusyError, StorageCorruptError, StorageError, StorageFullError
from agentmem.items import Item

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

import asyncpg

from agentmem.engines.postgres.errors import ERRORS, RECONNECT_STATES, map_error

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
TWO: Item = {"role": "user", "content": "two"}

EXCEPTIONS: list[type[Exception]] = [
    kind
    for _, kind in inspect.getmembers(asyncpg.exceptions, inspect.isclass)
    if issubclass(kind, Exception) and kind is not asyncpg.InterfaceWarning  # which is warned of, and never raised
]
SQLSTATES = {code for kind in EXCEPTIONS if (code := getattr(kind, "sqlstate", None))}


# The table


def test_every_sqlstate_that_asyncpg_knows_has_its_entry() -> None:
    assert len(SQLSTATES) > 250
    assert [code for code in sorted(SQLSTATES) if code not in ERRORS and code[:2] not in ERRORS] == []


def test_the_table_has_no_entry_that_postgresql_does_not() -> None:
    known = {code[:2] for code in SQLSTATES} | SQLSTATES
    # Those that came after asyncpg's list was made.
    assert set(ERRORS) - known <= {"25P04", "57P05"}


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_no_exception_of_asyncpg_gets_out(kind: type[Exception]) -> None:
    error = map_error(kind("what happened"), "postgresql://host/db", "user_123")
    assert isinstance(error, StorageError)
    assert str(error).startswith("session 'user_123' in postgresql://host/db: ")
    assert "; " in str(error)  # what to do


def test_what_is_none_of_the_database_s_errors_is_left_as_it_is() -> None:
    for error in (LookupError("a reading's"), AgentMemError("ours"), asyncio.CancelledError()):
        assert map_error(error, "postgresql://host/db") is error


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("53100", StorageFullError),
        ("53200", StorageError),
        ("53300", StorageBusyError),
        ("55P03", StorageBusyError),
        ("40P01", StorageBusyError),
        ("57P01", StorageBusyError),
        ("57014", StorageBusyError),
        ("08006", StorageBusyError),
        ("XX001", StorageCorruptError),
        ("58P01", StorageCorruptError),
        ("23505", StorageCorruptError),
        ("25006", StorageError),
        ("42501", StorageError),
        ("28P01", StorageError),
        ("3D000", StorageError),
        ("ZZ123", StorageError),
    ],
)
def test_the_errors_that_programs_tell_apart_have_their_kinds(code: str, kind: type[StorageError]) -> None:
    error = asyncpg.PostgresError.new({"S": "ERROR", "C": code, "M": "what happened"})
    assert type(map_error(error, "db")) is kind


# What a server raises


async def add(url: str, *items: Item) -> None:
    async with AsyncPostgresSession(url, session_id="user_123") as session:
        await session.add_items(items)


RAISE = """
CREATE TABLE to_raise (code text);
GRANT ALL ON to_raise TO public;
CREATE FUNCTION raise_it() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE raised text := (SELECT code FROM public.to_raise);
    BEGIN
        IF raised IS NOT NULL THEN RAISE 'out of %', 'luck' USING ERRCODE = raised; END IF;
        RETURN NULL;
    END
$$;
CREATE TRIGGER raise_it AFTER INSERT OR DELETE ON agentmem.agentmem_items
    FOR EACH STATEMENT EXECUTE FUNCTION raise_it();
"""


@pytest.mark.parametrize("call", cases(["add_items", "pop_item"], quick=lambda call: call == "add_items"))
async def test_whatever_a_server_raises_is_an_error_by_name_and_nothing_is_written(
    database: PostgresDatabase, call: str
) -> None:
    await add(database.url, ONE)
    database.sql(RAISE)
    other = await asyncpg.connect(database.url)
    try:
        async with AsyncPostgresSession(database.url, session_id="user_123", busy_timeout_s=0) as session:
            for code in [*sorted(SQLSTATES), "ZZ123", "P1234"]:
                if code in RECONNECT_STATES or code.startswith("08"):
                    continue  # after which it may be in doubt; see below
                await other.execute("DELETE FROM to_raise")
                await other.execute("INSERT INTO to_raise VALUES ($1)", code)
                with pytest.raises(StorageError) as raised:
                    await (session.add_items([TWO]) if call == "add_items" else session.pop_item())
                assert "session 'user_123' in postgresql://agentmem@" in str(raised.value)
                assert f"/{database.name}: " in str(raised.value)
                assert "out of luck" in str(raised.value)
                assert f"(SQLSTATE {code}); " in str(raised.value)
                assert isinstance(raised.value.__cause__, Exception)
                meaning = ERRORS.get(code) or ERRORS.get(code[:2])
                assert type(raised.value) is (StorageError if meaning is None else meaning.error)
            await other.execute("DELETE FROM to_raise")
            await session.add_items([TWO])
    finally:
        await other.close()
    assert database.stored() == [ONE, TWO]


ONCE = """
CREATE SEQUENCE attempts;
GRANT ALL ON attempts TO public;
CREATE FUNCTION raise_once() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        -- A sequence is not rolled back.
        IF nextval('public.attempts') = 1 THEN RAISE 'once' USING ERRCODE = '{code}'; END IF;
        RETURN NULL;
    END
$$;
CREATE TRIGGER raise_once AFTER INSERT OR DELETE ON agentmem.agentmem_items
    FOR EACH STATEMENT EXECUTE FUNCTION raise_once();
"""


@pytest.mark.parametrize(
    ("code", "call"),
    cases(
        itertools.product(["40001", "40P01", "57P01", "57P03", "25006"], ["add_items", "pop_item", "clear_session"]),
        quick=lambda case: case[0] == "57P01" or case[1] == "add_items",
    ),
)
async def test_what_passes_is_tried_again_and_written_once(database: PostgresDatabase, code: str, call: str) -> None:
    await add(database.url, ONE, TWO)
    database.sql(ONCE.format(code=code))
    async with AsyncPostgresSession(database.url, session_id="user_123", busy_timeout_s=60) as session:
        if call == "add_items":
            await session.add_items([TWO])
            expected = [ONE, TWO, TWO]
        elif call == "pop_item":
            assert await session.pop_item() == TWO
            expected = [ONE]
        else:
            await session.clear_session()
            expected = []
    assert database.stored() == expected
    assert database.sql("SELECT last_value FROM attempts") == "2"


@asynccontextmanager
async def locked(database: PostgresDatabase, session_id: str) -> Any:
    """Another program in the middle of a transaction on this session."""
    other = await asyncpg.connect(database.url)
    try:
        async with other.transaction():
            await other.execute("SELECT FROM agentmem.agentmem_sessions WHERE session_id = $1 FOR UPDATE", session_id)
            yield
    finally:
        await other.close()


async def test_a_session_that_another_program_holds_is_an_error_by_name_and_holds_up_no_other(
    database: PostgresDatabase,
) -> None:
    await add(database.url, ONE)
    async with AsyncSessionStore(database.url, busy_timeout_s=0.3) as store:
        held, free = store.session("user_123"), store.session("free")
        await served(store.open)
        async with locked(database, "user_123"):
            outcomes = await asyncio.gather(
                held.add_items([TWO]),
                free.add_items([TWO]),
                held.pop_item(),
                held.clear_session(),
                free.pop_item(),
                free.add_items([ONE]),
                held.get_items(),
                return_exceptions=True,
            )
            assert outcomes[1::2] == [None, outcomes[3], None]
            assert (outcomes[4], outcomes[6]) == (TWO, [ONE])
            for outcome in (outcomes[0], outcomes[2], outcomes[3]):
                assert type(outcome) is StorageBusyError
                assert "session 'user_123' in" in str(outcome)
                assert "another connection holds the session; nothing was written" in str(outcome)
        await served(lambda: held.add_items([TWO]))
        assert await served(free.get_items) == [ONE]
    assert database.stored() == [ONE, TWO]


async def test_a_write_waits_for_a_session_that_is_held_and_goes_on_when_it_is_free(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.writes.LOCK_TIMEOUT_S", 300)
    await add(database.url, ONE)
    async with AsyncPostgresSession(database.url, session_id="user_123", busy_timeout_s=300) as session:
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        async with locked(database, "user_123"):
            adding = asyncio.ensure_future(session.add_items([TWO]))
            while await asyncio.to_thread(database.sql, waits) == "0":
                assert not adding.done()
        await adding
    assert database.stored() == [ONE, TWO]


async def test_a_statement_that_a_timeout_ends_is_an_error_by_name(database: PostgresDatabase) -> None:
    await add(database.url, ONE)
    database.record("pg_sleep(3600)")
    # Long enough for every other statement, however slow the machine is.
    async with AsyncPostgresSession(database.url_of(statement_timeout="1s"), session_id="user_123") as session:
        with pytest.raises(StorageBusyError, match=r"SQLSTATE 57014.*statement_timeout is too short; nothing was wr"):
            await session.add_items([TWO])
    assert database.stored() == [ONE]


async def test_a_server_that_is_full_is_an_error_by_name_and_serves_when_there_is_room(
    database: PostgresDatabase,
) -> None:
    database.sql(f"ALTER DATABASE {database.name} CONNECTION LIMIT 0")
    session = AsyncPostgresSession(database.url, session_id="user_123", busy_timeout_s=0)
    for call in (session.__aenter__, session.get_items, lambda: session.add_items([ONE])):
        with pytest.raises(StorageBusyError, match=r"too many connections.*PgBouncer in between"):
            await call()
    database.sql(f"ALTER DATABASE {database.name} CONNECTION LIMIT 5")
    await session.add_items([ONE])
    await session.close()
    assert database.stored() == [ONE]


async def test_a_schema_that_is_dropped_under_its_handles_is_an_error_until_all_have_closed(
    database: PostgresDatabase,
) -> None:
    session = AsyncPostgresSession(database.url, session_id="user_123")
    await session.add_items([ONE])
    database.sql("SET client_min_messages = error; DROP SCHEMA agentmem CASCADE")
    for call in (session.get_items, session.pop_item, lambda: session.add_items([ONE])):
        with pytest.raises(StorageError, match=r"its tables are gone; restore a backup, or close all handles"):
            await call()
    await session.close()
    await add(database.url, TWO)
    assert database.stored() == [TWO]


# A full disk


@pytest.fixture
def small(database: PostgresDatabase) -> Iterator[PostgresDatabase]:
    """A database on a disk of its own, of 32 MB."""
    server = database.server
    with mounted(server.folder / "small", "size=32m") as folder:
        Programs().hand_over(folder)
        server.sql(f"CREATE TABLESPACE small LOCATION '{folder}'", database="postgres")
        try:
            with postgres_database(server, "TABLESPACE small") as on_it:
                yield on_it
        finally:
            server.sql("DROP TABLESPACE small", database="postgres")


@pytest.mark.exhaustive
async def test_a_full_disk_is_an_error_by_name_loses_nothing_and_goes_on_when_there_is_room(
    small: PostgresDatabase,
) -> None:
    def item(number: int) -> Item:
        # Random digits, because the server compresses what it can.
        return {"number": number, "text": random.Random(number).randbytes(250_000).hex()}

    async def add_until_full() -> None:
        for number in itertools.count():
            await session.add_items([item(number), ONE])
            added.append(number)

    added: list[int] = []
    small.sql("CREATE TABLE theirs AS SELECT repeat('x', 1000) AS text FROM generate_series(1, 6000)")
    async with AsyncSessionStore(small.url) as store:
        session = store.session("user_123")
        await store.session("other").add_items([ONE])
        with pytest.raises(
            StorageFullError, match=r"(?s)session 'user_123'.*nothing was written; make room on the ser"
        ):
            await add_until_full()
        assert len(added) > 5
        assert len(await session.get_items()) == 2 * len(added)
        with pytest.raises(StorageFullError):
            await session.add_items([item(len(added))])
        assert await store.session("other").get_items() == [ONE]
        assert (await store.check()).problems == ()
        small.sql("DROP TABLE theirs")
        await session.add_items([item(0), TWO])
        assert await session.get_items(2) == [item(0), TWO]
        assert await session.pop_item() == TWO
        assert (await store.check()).problems == ()
    stored = small.sql("SELECT count(*) FROM agentmem.agentmem_items WHERE session_id = 'user_123'")
    assert int(stored) == 2 * len(added) + 1
