"""agentmem works with a release of asyncpg that lacks the private attributes which it uses where they are there."""

from __future__ import annotations

import pytest
from altered_asyncpg import alter_asyncpg
from exhaustive import cases
from postgres_database import PostgresDatabase
from processes import Child, needs_fork
from test_postgres_forks import FORKS, FORKS_BEGIN, check_own_connections

pytest.importorskip("asyncpg", reason="asyncpg is not installed")


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a script begins with to import such an asyncpg."""
    return alter_asyncpg(tmp_path_factory.mktemp("altered"))


KEEPS_ITS_PROMISES = """
import asyncio
from agentmem.conformance import CHECKS
from agentmem.engines import open_engine

async def on_a_url(check, number):
    await check(lambda: open_engine(f"{sys.argv[1]}?schema=url_{number}"))

async def on_a_pool(check, number):
    async with asyncpg.create_pool(sys.argv[1], min_size=0, max_size=2) as pool:
        await check(lambda: open_engine(pool, schema=f"pool_{number}"))

for number, check in enumerate(CHECKS):
    asyncio.run(on_a_url(check, number))
    asyncio.run(on_a_pool(check, number))
print(len(CHECKS))
"""


@pytest.mark.exhaustive
def test_an_engine_keeps_all_its_promises(database: PostgresDatabase, altered: str) -> None:
    with Child(altered + KEEPS_ITS_PROMISES, database.url) as program:
        code, output, errors = program.finish()
    assert (code, errors) == (0, "")
    assert int(output) > 10


@needs_fork
@pytest.mark.parametrize("name", cases(FORKS, quick=lambda name: name == "sync"))
def test_after_a_fork_the_child_has_connections_of_its_own_and_the_parent_keeps_its_own(
    database: PostgresDatabase, altered: str, name: str
) -> None:
    check_own_connections(database, altered + FORKS_BEGIN + FORKS[name])


ONE_LOOP_AFTER_THE_OTHER = """
import asyncio
from agentmem import AsyncPostgresSession
session = AsyncPostgresSession(sys.argv[1], session_id="user_123")
for number in range(5):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(session.add_items([{"number": number}]))
    assert len(loop.run_until_complete(session.get_items())) == number + 1
    loop.close()
"""


def test_on_one_event_loop_after_the_other_a_handle_works(database: PostgresDatabase, altered: str) -> None:
    with Child(altered + ONE_LOOP_AFTER_THE_OTHER, database.url, flags=()) as program:
        assert program.finish() == (0, "", "")
    assert database.stored() == [{"number": number} for number in range(5)]


POOL_ON_ANOTHER_LOOP = """
import asyncio
from agentmem import AsyncPostgresSession
from agentmem.errors import StorageError

made_on, used_on = asyncio.Runner(), asyncio.Runner()

async def make():
    return await asyncpg.create_pool(sys.argv[1], min_size=1)

async def use():
    session = AsyncPostgresSession(pool, session_id="user_123", busy_timeout_s=0)
    for call in (session.__aenter__, session.get_items, lambda: session.add_items([{}]), session.pop_item):
        try:
            await call()
        except StorageError as error:
            assert "asyncpg pool" in str(error), error
            print(type(error.__cause__).__name__)
    await session.close()

pool = made_on.run(make())
used_on.run(use())
pool.terminate()
"""


def test_on_another_event_loop_a_pool_is_an_error_by_name(database: PostgresDatabase, altered: str) -> None:
    with Child(altered + POOL_ON_ANOTHER_LOOP, database.url, flags=()) as program:
        code, output, errors = program.finish()
    assert (code, len(output.split())) == (0, 4), errors
