"""A database in memory has one connection, which no moment of closing leaves open and no read holds up for writes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from held import HeldReading
from loops import loop_in_a_thread
from processes import running_threads, started_since, wait_until

from agentmem.engines.sqlite.connection import open_connections
from agentmem.engines.sqlite.engine import SQLiteEngine
from agentmem.engines.sqlite.schema import prepare_writer
from agentmem.errors import SessionClosedError

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
