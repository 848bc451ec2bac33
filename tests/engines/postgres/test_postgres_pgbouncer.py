"""Behind PgBouncer, each transaction may get another connection, and what one of them leaves is the next one's."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import tools
from ports import HOST, free_port
from postgres_database import PostgresDatabase
from postgres_programs import Programs
from postgres_server import PostgresServer
from waiting import WAIT_S, wait_until

from agentmem import AsyncSessionStore
from agentmem.conformance import CHECKS
from agentmem.engines import open_engine
from agentmem.engines.base import Engine
from agentmem.errors import StorageError
from agentmem.items import Item

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

import asyncpg

pytestmark = [pytest.mark.anyio, pytest.mark.exhaustive]

ONE: Item = {"role": "user", "content": "one"}


@pytest.fixture(scope="module")
def pgbouncer_port(quiet_postgres_server: PostgresServer) -> Iterator[int]:
    """PgBouncer before the server, with two connections for each database, which each transaction may change."""
    pgbouncer = tools.program("pgbouncer")
    server, programs, port = quiet_postgres_server, Programs(), free_port()
    folder = server.folder / "pgbouncer"
    folder.mkdir()
    programs.hand_over(folder)
    users, settings = folder / "users.txt", folder / "pgbouncer.ini"
    users.write_text('"agentmem" ""\n')
    settings.write_text(f"""
        [databases]
        * = host={server.host} port={server.port}
        [pgbouncer]
        listen_addr = {HOST}
        listen_port = {port}
        unix_socket_dir = {folder}
        auth_type = trust
        auth_file = {users}
        pool_mode = transaction
        default_pool_size = 2
        server_reset_query_always = 0
    """)
    process = programs.start(pgbouncer, str(settings), folder=folder, log=folder / "log")
    try:
        wait_until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, (folder / "log").read_text()
        yield port
    finally:
        process.kill()
        process.wait(WAIT_S)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@pytest.fixture
def behind(database: PostgresDatabase, pgbouncer_port: int) -> Iterator[PostgresDatabase]:
    """A database; PgBouncer's connections to it are closed at the end."""
    yield database
    of_it = f"FROM pg_stat_activity WHERE datname = '{database.name}'"
    database.server.sql(f"SELECT pg_terminate_backend(pid) {of_it}", database="postgres")


def url(behind: PostgresDatabase, port: int, **options: Any) -> str:
    return behind.url_of(port=port, statement_cache_size=0, **options)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_an_engine_behind_pgbouncer_keeps(
    behind: PostgresDatabase, pgbouncer_port: int, check: Callable[..., Awaitable[None]]
) -> None:
    def opening(schema: str) -> Callable[[], Engine]:
        names = map("engine {}".format, itertools.count())
        # A URL of its own for each, so that they share no pool.
        return lambda: open_engine(
            url(behind, pgbouncer_port, schema=schema, application_name=next(names)), busy_timeout_s=60
        )

    await asyncio.gather(*(check(opening(schema)) for schema in ("a", "b", "c")))


async def test_schemas_behind_one_pgbouncer_keep_apart_whatever_is_done_at_once(
    behind: PostgresDatabase, pgbouncer_port: int
) -> None:
    """Statements without a name, where they are not prepared anew, would be those of the other schema."""

    async def talk(schema: str) -> None:
        async with AsyncSessionStore(url(behind, pgbouncer_port, schema=schema), busy_timeout_s=60) as store:

            async def turns(number: int) -> None:
                session = store.session(f"user_{number}")
                for turn in range(5):
                    await session.add_items([{"schema": schema, "turn": turn}, ONE])
                    assert await session.pop_item() == ONE
                    expected = [{"schema": schema, "turn": earlier} for earlier in range(turn + 1)]
                    assert await session.get_items() == expected

            await asyncio.gather(*map(turns, range(10)))

    schemas = ["a", "b", "c"]
    await asyncio.gather(*map(talk, schemas))
    for schema in schemas:
        stored = behind.sql(f"SELECT count(*) FROM {schema}.agentmem_items WHERE item::json ->> 'schema' = '{schema}'")
        assert stored == "50"


SETTINGS = """
    SELECT name, setting FROM pg_settings
    WHERE (source IN ('session', 'client') OR name LIKE '%timeout%' OR name = 'synchronous_commit')
    AND name <> 'application_name'
"""
"""Without the name of a client: PgBouncer itself sets it for each client that gives one, and leaves it for those that
give none (pgbouncer.org/config.html, "track_extra_parameters")."""


async def settings_of(url: str) -> dict[int, dict[str, str]]:
    """The settings of each of PgBouncer's connections, as another client of it finds them."""
    found: dict[int, dict[str, str]] = {}
    clients = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(2)]
    try:
        transactions = [client.transaction() for client in clients]
        for client, transaction in zip(clients, transactions, strict=True):
            await transaction.start()  # both at once, so that each has a connection of its own
            found[await client.fetchval("SELECT pg_backend_pid()")] = dict(await client.fetch(SETTINGS))
        for transaction in transactions:
            await transaction.rollback()
    finally:
        for client in clients:
            await client.close()
    return found


async def test_nothing_that_agentmem_sets_is_left_to_other_clients(
    behind: PostgresDatabase, pgbouncer_port: int
) -> None:
    behind.sql(f"ALTER DATABASE {behind.name} SET synchronous_commit = off")
    before = await settings_of(behind.url_of(port=pgbouncer_port))
    assert len(before) == 2
    async with AsyncSessionStore(url(behind, pgbouncer_port)) as store:

        async def use(number: int) -> None:
            session = store.session(f"user_{number}")
            await session.add_items([ONE, ONE, {"long": "x" * 200_000}])
            await session.get_items()
            await session.pop_item()
            await session.get_items(1)
            await store.check()
            await session.clear_session()

        await asyncio.gather(*map(use, range(8)))
    after = await settings_of(behind.url_of(port=pgbouncer_port))
    assert after == before
    assert {found["synchronous_commit"] for found in after.values()} == {"off"}
    assert behind.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"


async def test_with_named_statements_the_error_says_what_to_set(behind: PostgresDatabase, pgbouncer_port: int) -> None:
    named = behind.url_of(port=pgbouncer_port)
    others = [await asyncpg.connect(named, statement_cache_size=0) for _ in range(2)]
    async with AsyncSessionStore(named) as store:
        session = store.session("user_123")

        async def add_on_one_connection_after_the_other() -> None:
            transactions = [other.transaction() for other in others]
            for transaction in transactions:
                await transaction.start()  # both connections are in use
            for turn in range(10):
                await transactions[turn % 2].rollback()
                await session.add_items([ONE])
                transactions[turn % 2] = others[turn % 2].transaction()
                await transactions[turn % 2].start()

        with pytest.raises(
            StorageError, match=r"(?s)behind PgBouncer, statement_cache_size=0 is needed; nothing was w"
        ):
            await add_on_one_connection_after_the_other()
    for other in others:
        await other.close()
    async with AsyncSessionStore(url(behind, pgbouncer_port)) as store:
        assert await store.session("user_123").get_items() == behind.stored()
