"""On PostgreSQL, too, a program that closes nothing ends at once and silently, with everything stored."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from postgres_database import PostgresDatabase
from processes import STRICT, Child, run_quietly
from waiting import wait_until

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


@pytest.mark.parametrize(
    ("name", "flags"),
    [*((name, STRICT) for name in SCRIPTS), ("sync", ()), ("async", ()), ("async, two loops one after the other", ())],
)
def test_a_script_that_closes_nothing_ends_silently_with_everything_stored(
    database: PostgresDatabase, name: str, flags: Sequence[str]
) -> None:
    assert run_quietly(IMPORTS + SCRIPTS[name], database.url, flags=flags) == ""
    assert database.stored() == [ONE]


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
