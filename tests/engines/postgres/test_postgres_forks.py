"""On PostgreSQL, a forked child and another event loop have connections of their own, and leave none behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from endings import FORK_IMPORTS
from exhaustive import cases
from postgres_database import PostgresDatabase
from processes import STRICT, SUPPORT, Child, needs_fork
from test_postgres_lifecycle import IMPORTS, ONE
from waiting import wait_until

from agentmem import AsyncPostgresSession

# Forks

FORKING = ("-W", "ignore:This process:DeprecationWarning")
"""Python from 3.12 on warns of a fork with threads; agentmem's may be there."""

FORKS_BEGIN = (
    IMPORTS
    + FORK_IMPORTS
    + """
def told():
    print("ready", flush=True)
    sys.stdin.readline()
"""
)

FORKS = {
    "sync": """
add(0)
session.get_items()
told()
fork(lambda: add(1))
add(2)
fork(lambda: [add(3), session.get_items(), session.close()])
add(4)
session.get_items()
told()
""",
    "async, from a running loop": """
async def main():
    await async_add(0)
    await async_session.get_items()
    told()
    fork(lambda: asyncio.run(async_add(1)))
    await async_add(2)
    fork(lambda: [asyncio.run(async_add(3)), asyncio.run(async_session.close())])
    await async_add(4)
    await async_session.get_items()
    told()
asyncio.run(main())
""",
    "async, between two calls on a loop that the child lets be collected": """
loop = asyncio.new_event_loop()
loop.run_until_complete(async_add(0))  # no reading, whose thread would keep the loop alive
told()
def in_child():
    asyncio.run(async_add(1))
    global loop
    loop = None
    gc.collect()
fork(in_child)
loop.run_until_complete(async_add(2))
loop.run_until_complete(async_session.get_items())
told()
loop.run_until_complete(async_session.close())
loop.close()
""",
    "a child that ends by itself": """
add(0)
session.get_items()
told()
if child := os.fork():
    wait_for(child)
    add(2)
    session.get_items()
    told()
else:
    add(1)
""",
    "a child that uses nothing and ends by itself": """
add(0)
session.get_items()
told()
if child := os.fork():
    wait_for(child)
    add(1)
    session.get_items()
    told()
""",
}


def check_own_connections(database: PostgresDatabase, script: str, flags: Sequence[str] = FORKING) -> None:
    """Run a parent that forks children: each child opens connections of its own, and the parent keeps its own."""
    with Child(script, database.url, SUPPORT, flags=flags) as parent:
        assert parent.read_line() == "ready"
        before = database.connections()
        assert before
        parent.write_line()
        assert parent.read_line() == "ready"
        wait_until(lambda: len(database.connections()) <= 2)  # those of the children are gone, or about to be noticed
        assert before <= database.connections()
        parent.write_line()
        assert parent.finish() == (0, "", "")
    items = database.stored()
    assert items == [{"number": number} for number in range(len(items))]
    assert len(items) >= 2


@needs_fork
@pytest.mark.parametrize(
    ("name", "flags"),
    cases(
        [
            *((name, STRICT) for name in FORKS),
            ("async, between two calls on a loop that the child lets be collected", ()),
            ("a child that ends by itself", ()),
        ],
        quick=lambda case: case[1] and case[0] in ("async, from a running loop", "a child that ends by itself"),
    ),
)
def test_after_a_fork_the_child_has_connections_of_its_own_and_the_parent_goes_on_with_those_that_it_had(
    database: PostgresDatabase, name: str, flags: Sequence[str]
) -> None:
    check_own_connections(database, FORKS_BEGIN + FORKS[name], (*flags, *FORKING))


KILLED = """
import signal
add(0)
session.get_items()
if not os.fork():
    add(1)
    print("ready", flush=True)
    sys.stdin.readline()
    add(2)
    print("added", flush=True)
    os._exit(0)
signal.pause()
"""


@needs_fork
def test_a_parent_that_is_killed_leaves_no_connection_though_its_child_goes_on(database: PostgresDatabase) -> None:
    with Child(FORKS_BEGIN + KILLED, database.url, SUPPORT, flags=(*STRICT, *FORKING)) as parent:
        assert parent.read_line() == "ready"
        assert len(database.connections()) == 3
        parent.kill()
        wait_until(lambda: len(database.connections()) == 1)
        parent.write_line()
        assert parent.read_line() == "added"
        assert parent.finish() == (-9, "", "")
    database.wait_until_left()
    assert database.stored() == [{"number": number} for number in range(3)]


# Event loops

LOOPS = {
    "asyncio.run": "asyncio.run(talk())",
    "a loop that is closed and no more": """
loop = asyncio.new_event_loop()
loop.run_until_complete(talk())
loop.close()
""",
    "a loop of uvloop's that is closed and no more": """
import uvloop
loop = uvloop.new_event_loop()
loop.run_until_complete(talk())
loop.close()
""",
    "a loop in a thread": """
thread = threading.Thread(target=lambda: asyncio.run(talk()))
thread.start()
thread.join()
""",
}

MANY_LOOPS = """
gc.disable()
session = AsyncPostgresSession(url, session_id="user_123")
async def talk():
    await session.add_items([{"number": number}])
    assert len(await session.get_items()) == number + 1
for number in range(20):
    exec(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("name", cases(LOOPS, quick=lambda name: name == "a loop that is closed and no more"))
def test_many_event_loops_one_after_the_other_leave_no_connection_but_those_of_the_last(
    database: PostgresDatabase, name: str
) -> None:
    if "uvloop" in name:
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    with Child(IMPORTS + MANY_LOOPS, database.url, LOOPS[name], flags=()) as program:
        assert program.read_line() == "ready"
        wait_until(lambda: len(database.connections()) <= (2 if "no more" in name else 0))
        program.write_line()
        assert program.finish() == (0, "", "")
    assert database.stored() == [{"number": number} for number in range(20)]


@pytest.mark.anyio
async def test_on_another_event_loop_a_handle_works_by_that_loops_connections(database: PostgresDatabase) -> None:
    async def talk() -> set[int]:
        await session.add_items([ONE])
        await session.get_items()
        return database.connections()

    session = AsyncPostgresSession(database.url, session_id="user_123")
    here = await talk()
    there = await asyncio.to_thread(lambda: asyncio.run(talk()))
    assert len(here) == 2
    assert there > here
    assert len(there) == 4
    await session.add_items([ONE])
    wait_until(lambda: database.connections() == here)
    await session.close()
    database.wait_until_left()
    assert database.stored() == [ONE] * 3
