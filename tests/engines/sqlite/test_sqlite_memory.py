"""A database in memory has one connection, which no moment of closing leaves open and no read holds up for writes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from held import HeldReading
from loops import loop_in_a_thread
from processes import needs_fork, run_quietly, running_threads, started_since, wait_until

from agentmem import AsyncSession, AsyncSessionStore, AsyncSQLiteSession, Session, SessionStore, SQLiteSession
from agentmem.engines.sqlite.connection import open_connections
from agentmem.engines.sqlite.engine import SQLiteEngine
from agentmem.engines.sqlite.pool import Pool
from agentmem.engines.sqlite.schema import prepare_writer
from agentmem.errors import SessionClosedError
from agentmem.integrations import openai_agents

pytestmark = pytest.mark.anyio

ROW = '{"role":"user","content":"one"}'


class Opening:
    """Holds connections at the end of their preparation, and counts them."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()

    def prepare_and_wait(self, *args: Any, **options: Any) -> None:
        prepare_writer(*args, **options)
        self.begun.release()
        self.go_on.wait()


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opening]:
    held = Opening()
    monkeypatch.setattr("agentmem.engines.sqlite.engine.prepare_writer", held.prepare_and_wait)
    yield held
    held.go_on.set()


async def some_cycles() -> None:
    """Let the event loop do all that it can do without another thread."""
    for _ in range(50):
        await asyncio.sleep(0)


USES: dict[str, Callable[[], None]] = {
    "async": lambda: asyncio.run(_use(AsyncSQLiteSession(":memory:", session_id="user_123"))),
    "async, of a store": lambda: asyncio.run(_use(AsyncSessionStore(":memory:").session("user_123"))),
    "sync": lambda: _use_sync(SQLiteSession(":memory:", session_id="user_123")),
    "sync, of a store": lambda: _use_sync(SessionStore(":memory:").session("user_123")),
    "the SDK's names": lambda: asyncio.run(_use(openai_agents.AsyncSQLiteSession("user_123"))),
    "the SDK's names, closed by the other close()": lambda: asyncio.run(_use(openai_agents.SQLiteSession("user_123"))),
}


async def _use(session: AsyncSession) -> None:
    await session.add_items([{"number": 1}])
    assert await session.with_settings(None).get_items() == [{"number": 1}]


def _use_sync(session: Session) -> None:
    session.add_items([{"number": 1}])
    assert session.with_settings(None).get_items() == [{"number": 1}]


@pytest.mark.parametrize("use", USES)
def test_sessions_in_memory_that_are_dropped_unclosed_leave_no_thread_and_no_connection(use: str) -> None:
    _use_sync(SQLiteSession(":memory:", session_id="user_123"))  # starts the background loop
    wait_until(lambda: open_connections() == [])
    gc.collect()
    gc.disable()  # each goes with its last reference, not when Python looks for cycles
    try:
        before = running_threads()
        for _ in range(20):
            USES[use]()
        wait_until(lambda: open_connections() == [] and not _connections_since(before))
    finally:
        gc.enable()


def test_the_pools_of_dropped_databases_in_memory_are_dropped_too() -> None:
    def pools() -> int:
        gc.collect()
        return sum(isinstance(found, Pool) for found in gc.get_objects())

    before = pools()
    for _ in range(20):
        _use_sync(SQLiteSession(":memory:", session_id="user_123"))
    # The last one's stays until another is leased; and a thread that has told its outcome holds it for a moment more.
    wait_until(lambda: pools() <= before + 1)


def test_a_database_in_memory_stays_as_long_as_one_of_its_sessions_can_be_used() -> None:
    session = SessionStore(":memory:").session("user_123")
    session.add_items([{"number": 1}])
    another = session.with_settings(None)
    del session
    gc.collect()
    assert another.get_items() == [{"number": 1}]


@needs_fork
def test_a_session_in_memory_that_a_child_process_drops_stays_in_the_parent(path: Path) -> None:
    script = """
import gc, os, sys
from agentmem import SQLiteSession
session = SQLiteSession(":memory:", session_id="user_123")
session.add_items([{"number": 1}])
child = os.fork()
if child == 0:
    del session
    gc.collect()
    another = SQLiteSession(sys.argv[1], session_id="user_123")
    another.add_items([{"number": 2}])
    another.close()
    os._exit(0)
print(os.waitpid(child, 0)[1], session.get_items())
"""
    flags = ("-X", "dev", "-W", "error", "-W", "ignore::DeprecationWarning")
    assert run_quietly(script, path, flags=flags) == "0 [{'number': 1}]\n"


async def _refuses_every_call(engine: SQLiteEngine) -> None:
    for call in (engine.open(), engine.append("user_123", [ROW]), engine.rows("user_123", 0, 1), engine.check()):
        with pytest.raises(SessionClosedError):
            await call


def _connections_since(before: frozenset[threading.Thread]) -> list[str]:
    # asyncio keeps the threads of its own in which a test waited.
    return [name for name in started_since(before) if name.startswith("agentmem")]


@pytest.mark.parametrize("call", ["open", "check"])
async def test_a_session_in_memory_that_is_closed_while_it_opens_leaves_no_thread_and_no_connection(
    opening: Opening, call: str
) -> None:
    before = running_threads()
    engine = SQLiteEngine(":memory:")
    under_way = asyncio.ensure_future(engine.open() if call == "open" else engine.check())
    await asyncio.to_thread(opening.begun.acquire)
    closing = asyncio.ensure_future(engine.close())
    await some_cycles()
    opening.go_on.set()
    with contextlib.suppress(SessionClosedError):  # or it was opened first
        await under_way
    await closing
    await _refuses_every_call(engine)
    assert open_connections() == []
    wait_until(lambda: not _connections_since(before))


async def test_a_session_in_memory_that_is_closed_while_several_event_loops_open_it_is_closed_for_all_of_them(
    opening: Opening,
) -> None:
    before = running_threads()
    engine = SQLiteEngine(":memory:")
    with contextlib.ExitStack() as stack:
        loops = [stack.enter_context(loop_in_a_thread()) for _ in range(3)]
        checks = [asyncio.run_coroutine_threadsafe(engine.check(), loop) for loop in loops]
        for _ in loops:
            opening.begun.acquire()
        closing = asyncio.ensure_future(engine.close())
        await some_cycles()
        opening.go_on.set()
        waited_for = [asyncio.wrap_future(check) for check in checks]
        outcomes = await asyncio.gather(*waited_for, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [SessionClosedError] * 3
        await closing
        for loop in loops:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_refuses_every_call(engine), loop))
    assert open_connections() == []
    wait_until(lambda: not _connections_since(before))


@pytest.mark.parametrize("earlier", ["append", "read"])
async def test_in_memory_a_call_is_answered_before_a_later_read_that_takes_long_is_done(earlier: str) -> None:
    loop = asyncio.get_running_loop()
    first_begun, second_begun = asyncio.Event(), asyncio.Event()
    # The loop is told from the connection's thread, so whatever that thread told before has come before.
    first = HeldReading(lambda: loop.call_soon_threadsafe(first_begun.set))
    second = HeldReading(lambda: loop.call_soon_threadsafe(second_begun.set))
    engine = SQLiteEngine(":memory:")
    await engine.append("user_123", [ROW])
    try:
        reading = [asyncio.ensure_future(engine.read("user_123", first))]
        await first_begun.wait()
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "append": lambda: engine.append("user_123", [ROW]),
            "read": lambda: engine.rows("user_123", 0, 9),
        }
        call = asyncio.ensure_future(calls[earlier]())
        await some_cycles()  # it is sent
        reading.append(asyncio.ensure_future(engine.read("user_123", second)))
        await some_cycles()
        first.go_on.set()
        await second_begun.wait()
        await some_cycles()
        assert call.done()
    finally:
        first.go_on.set()
        second.go_on.set()
        await asyncio.gather(*reading)
        await call
        await engine.close()
