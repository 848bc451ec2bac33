"""Scripts that close nothing, or fork: the same for every engine, on the names that :func:`imports` gives them."""

from __future__ import annotations


def imports(sync: str, asynchronous: str) -> str:
    """What a script begins with: the database, one item, and these two classes as Session and AsyncSession."""
    return f"""
import asyncio, atexit, gc, os, signal, sys, threading
from agentmem import AsyncSessionStore, SessionStore, {asynchronous}, {sync}
db, one = sys.argv[1], {{"role": "user", "content": "one"}}
Session, AsyncSession = {sync}, {asynchronous}
"""


ENDINGS = {
    "sync": """
session = Session(db, session_id="user_123")
session.add_items([one])
assert session.get_items() == [one]
""",
    "sync, many sessions and a store": """
store = SessionStore(db)
sessions = [store.session(f"user_{number}") for number in range(50)]
sessions += [Session(db, session_id="user_123")]
for session in sessions:
    session.add_items([one])
    assert session.get_items() == [one]
""",
    "sync, from a daemon thread that never ends": """
session = Session(db, session_id="user_123")
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
    "async": """
async def main():
    session = AsyncSession(db, session_id="user_123")
    await session.add_items([one])
    assert await session.get_items() == [one]
    await asyncio.gather(*(session.get_items() for _ in range(300)))
asyncio.run(main())
""",
    "async, two loops one after the other": """
session = AsyncSession(db, session_id="user_123")
asyncio.run(session.add_items([one]))
asyncio.run(session.get_items())
""",
    "async, entered and not left": """
async def main():
    store = await AsyncSessionStore(db).__aenter__()
    await store.session("user_123").add_items([one])
asyncio.run(main())
""",
    "async, with calls in flight": """
async def main():
    session = AsyncSession(db, session_id="user_123")
    await session.add_items([one])
    global tasks
    tasks = [asyncio.ensure_future(session.get_items()) for _ in range(100)]
    tasks += [asyncio.ensure_future(AsyncSession(db, session_id="other").add_items([one]))]
    await asyncio.sleep(0)
asyncio.run(main())
""",
    "sync under a running loop": """
async def main():
    session = Session(db, session_id="user_123")
    session.add_items([one])
    assert await session.async_session.get_items() == [one]
asyncio.run(main())
""",
    "closed": """
with Session(db, session_id="user_123") as session:
    session.add_items([one])
async def main():
    async with AsyncSession(db, session_id="user_123") as session:
        assert await session.get_items() == [one]
asyncio.run(main())
""",
}

FORK_IMPORTS = """
sys.path.insert(0, sys.argv[2])
from forking import fork, wait_for

def add(number):
    session.add_items([{"number": number}])

async def async_add(number):
    await async_session.add_items([{"number": number}])

session = Session(db, session_id="user_123")
async_session = AsyncSession(db, session_id="user_123")
"""
"""What a script that forks goes on with; sys.argv[2] is this folder."""
