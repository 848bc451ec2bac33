"""On PostgreSQL, too, a program that closes nothing ends at once and silently, and forks and loops start anew."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from postgres_database import PostgresDatabase
from processes import STRICT, Child, needs_fork, run_quietly
from waiting import wait_until

from agentmem import AsyncPostgresSession
from agentmem.items import Item

ONE: Item = {"role": "user", "content": "one"}

# The end of a program

IMPORTS = """
import asyncio, gc, os, sys, threading
from agentmem import AsyncPostgresSession, AsyncSessionStore, PostgresSession, SessionStore
url, one = sys.argv[1], {"role": "user", "content": "one"}
"""

SCRIPTS = {
    "sync": """
session = PostgresSession(url, session_id="user_123")
session.add_items([one])
assert session.get_items() == [one]
""",
    "sync, many sessions and a store": """
store = SessionStore(url)
sessions = [store.session(f"user_{number}") for number in range(50)]
sessions += [PostgresSession(url, session_id="user_123")]
for session in sessions:
    session.add_items([one])
    assert session.get_items() == [one]
""",
    "sync, in threads": """
def add():
    PostgresSession(url, session_id=threading.current_thread().name).add_items([one])
threads = [threading.Thread(target=add, name=f"user_{number}") for number in range(119, 127)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
""",
    "sync, from a daemon thread that never ends": """
session = PostgresSession(url, session_id="user_123")
session.add_items([one])
reading = threading.Event()
def read_for_ever():
    try:
        while True:
            session.get_items()
            reading.set()
    except Exception:
        threading.Event().wait()
threading.Thread(target=read_for_ever, daemon=True).start()
reading.wait()
""",
    "sync, by the server's name": """
session = PostgresSession(url.replace("127.0.0.1", "localhost"), session_id="user_123")
session.add_items([one])
""",
    "async": """
async def main():
    session = AsyncPostgresSession(url, session_id="user_123")
    await session.add_items([one])
    assert await session.get_items() == [one]
    await asyncio.gather(*(session.get_items() for _ in range(300)))
asyncio.run(main())
""",
    "async, two loops one after the other": """
session = AsyncPostgresSession(url, session_id="user_123")
asyncio.run(session.add_items([one]))
asyncio.run(session.get_items())
""",
    "async, entered and not left": """
async def main():
    store = await AsyncSessionStore(url).__aenter__()
    await store.session("user_123").add_items([one])
asyncio.run(main())
""",
    "async, with calls in flight": """
async def main():
    session = AsyncPostgresSession(url, session_id="user_123")
    await session.add_items([one])
    global tasks
    tasks = [asyncio.ensure_future(session.get_items()) for _ in range(100)]
    tasks += [asyncio.ensure_future(AsyncPostgresSession(url, session_id="other").add_items([one]))]
    await asyncio.sleep(0)
asyncio.run(main())
""",
    "sync under a running loop": """
async def main():
    session = PostgresSession(url, session_id="user_123")
    session.add_items([one])
    assert await session.async_session.get_items() == [one]
asyncio.run(main())
""",
    "closed": """
with PostgresSession(url, session_id="user_123") as session:
    session.add_items([one])
async def main():
    async with AsyncPostgresSession(url, session_id="user_123") as session:
        assert await session.get_items() == [one]
asyncio.run(main())
""",
}


@pytest.mark.parametrize("flags", [(), STRICT], ids=["plain", "strict"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_closes_nothing_ends_silently_with_everything_stored(
    database: PostgresDatabase, name: str, flags: Sequence[str]
) -> None:
    assert run_quietly(IMPORTS + SCRIPTS[name], database.url, flags=flags) == ""
    assert database.stored() == [ONE]


# Forks

FORKING = ("-W", "ignore:This process:DeprecationWarning")
"""Python from 3.12 on warns of a fork with threads; agentmem's may be there."""

FORK_IMPORTS = (
    IMPORTS
    + """
sys.path.insert(0, sys.argv[2])
from forking import fork, wait_for

def add(number):
    session.add_items([{"number": number}])

async def async_add(number):
    await async_session.add_items([{"number": number}])

def told():
    print("ready", flush=True)
    sys.stdin.readline()

session = PostgresSession(url, session_id="user_123")
async_session = AsyncPostgresSession(url, session_id="user_123")
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


@needs_fork
@pytest.mark.parametrize("flags", [(), STRICT], ids=["plain", "strict"])
@pytest.mark.parametrize("name", FORKS)
def test_after_a_fork_the_child_has_connections_of_its_own_and_the_parent_goes_on_with_those_that_it_had(
    database: PostgresDatabase, name: str, flags: Sequence[str]
) -> None:
    with Child(FORK_IMPORTS + FORKS[name], database.url, Path(__file__).parent, flags=(*flags, *FORKING)) as parent:
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
@pytest.mark.parametrize("flags", [(), STRICT], ids=["plain", "strict"])
def test_a_parent_that_is_killed_leaves_no_connection_though_its_child_goes_on(
    database: PostgresDatabase, flags: Sequence[str]
) -> None:
    with Child(FORK_IMPORTS + KILLED, database.url, Path(__file__).parent, flags=(*flags, *FORKING)) as parent:
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


@pytest.mark.parametrize("name", LOOPS)
def test_many_event_loops_one_after_the_other_leave_no_connection_but_those_of_the_last(
    database: PostgresDatabase, name: str
) -> None:
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


# Ctrl+C

WRITING = """
session = PostgresSession(url, session_id="user_123")
number = 0
while True:
    session.add_items([{"number": number}, {"number": number}])
    number += 1
    print(number, flush=True)
"""


def test_ctrl_c_in_the_middle_of_writing_ends_the_program_and_keeps_what_was_acknowledged(
    database: PostgresDatabase,
) -> None:
    with Child(IMPORTS + WRITING, database.url) as child:
        while child.read_line() != "20":
            pass
        child.interrupt()
        code, output, errors = child.finish()
    assert code == -2
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    database.wait_until_left()
    items = database.stored()
    assert items[::2] == items[1::2] == [{"number": number} for number in range(len(items) // 2)]
    assert len(items) // 2 >= int((output.splitlines() or ["20"])[-1])


WAITING = """
import signal
session = PostgresSession(url, session_id="user_123", busy_timeout_s=60)
session.add_items([one])
print("ready", flush=True)
sys.stdin.readline()
print("writing", flush=True)
try:
    session.add_items([one])
except KeyboardInterrupt:
    print("interrupted", flush=True)
session.add_items([{"after": "it"}])
"""


def test_ctrl_c_in_a_call_that_waits_for_another_connection_comes_at_once_and_the_session_goes_on(
    database: PostgresDatabase,
) -> None:
    with Child(IMPORTS + WAITING, database.url) as child:
        assert child.read_line() == "ready"
        with database.holding():
            child.write_line()
            assert child.read_line() == "writing"
            wait_until(database.is_waited_for)
            child.interrupt()
            assert child.read_line() == "interrupted"
            assert database.is_waited_for()
        assert child.finish() == (0, "", "")
    # What had begun finishes, as a cancelled call does: it may be there.
    assert [item for item in database.stored() if item != ONE] == [{"after": "it"}]
