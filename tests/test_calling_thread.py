"""The caller's own functions run where they may block and make agentmem calls: never on the background loop."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import processes
import pytest
from processes import Child, wait_until
from pydantic import BaseModel, model_serializer

from agentmem import AsyncSession, AsyncSessionStore, Session, SessionSettings, SessionStore, SQLiteSession
from agentmem.blocking import run_blocking
from agentmem.calling_thread import MAX_THREADS, call_back
from agentmem.engines import open_engine
from agentmem.errors import CorruptItemWarning, SessionClosedError
from agentmem.items import Item
from agentmem.replay import replay_window

ONE: Item = {"role": "user", "content": "one"}


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
def store(request: pytest.FixtureRequest) -> Iterator[SessionStore]:
    """An empty store of each kind."""
    url = ":memory:" if request.param == "memory" else request.getfixturevalue(f"empty_{request.param}")
    with SessionStore(url) as opened:
        yield opened


def counting(count_tokens: Callable[[Item], int], max_tokens: int = 1000) -> SessionSettings:
    return SessionSettings(max_tokens=max_tokens, count_tokens=count_tokens)


def in_threads(count: int, function: Callable[[], object]) -> list[object]:
    """What a function returns in each of so many threads at once."""
    with ThreadPoolExecutor(count) as threads:
        return [done.result() for done in [threads.submit(function) for _ in range(count)]]


# count_tokens


def test_a_sync_session_calls_count_tokens_in_the_thread_that_made_the_call(store: SessionStore) -> None:
    seen = []

    def count(item: Item) -> int:
        seen.append(threading.get_ident())
        return 1

    session = store.session("user_123", settings=counting(count))
    session.add_items([ONE, ONE])
    assert session.get_items() == [ONE, ONE]
    assert set(seen) == {threading.get_ident()}


def test_however_many_count_tokens_at_once_each_may_make_sync_calls_that_count_tokens_too(store: SessionStore) -> None:
    threads = MAX_THREADS + 4
    all_count = threading.Barrier(threads)
    inner = store.session("inner", settings=counting(lambda item: len(store.session("inner").get_items(1))))
    inner.add_items([ONE] * 3)

    def count(item: Item) -> int:
        all_count.wait()
        return len(inner.get_items())

    outer = store.session("outer", settings=counting(count))
    outer.add_items([ONE])
    assert in_threads(threads, outer.get_items) == [[ONE]] * threads


def test_a_slow_count_tokens_holds_up_nobody_else(store: SessionStore) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def count(item: Item) -> int:
        begun.set()
        go_on.wait()
        return 1

    slow = store.session("slow", settings=counting(count))
    slow.add_items([ONE])
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(slow.get_items)
        begun.wait()
        store.session("slow").add_items([ONE])
        assert store.session("slow").get_items() == [ONE, ONE]
        assert store.session("slow", settings=counting(lambda item: 1)).get_items() == [ONE, ONE]
        go_on.set()
        assert reading.result() == [ONE]


@pytest.mark.parametrize(("items", "max_tokens"), [(1, 5), (40, 30), (700, 690), (1500, 1200), (40, 0), (0, 5)])
def test_the_window_that_count_tokens_decides_is_the_one_of_the_whole_history(
    store: SessionStore, items: int, max_tokens: int
) -> None:
    history: list[Item] = [{"role": "user", "content": str(number)} for number in range(items)]
    settings = counting(lambda item: 1, max_tokens)
    store.session("user_123").add_items(history)
    window = store.session("user_123", settings=settings).get_items()
    assert window == replay_window(history, settings) == history[len(history) - min(items, max_tokens) :]


@pytest.mark.parametrize("caps", [{"limit": 0}, {"max_turns": 0}, {"limit": 0, "max_turns": 2}])
def test_a_window_of_nothing_counts_nothing_and_still_sees_that_the_store_is_closed(caps: dict[str, int]) -> None:
    settings = SessionSettings(max_tokens=5, count_tokens=lambda item: 1 // 0, **caps)
    store = SessionStore(":memory:")
    session = store.session("user_123", settings=settings)
    session.add_items([ONE])
    assert session.get_items() == []
    store.close()
    with pytest.raises(SessionClosedError):
        session.get_items()


def test_a_corrupt_row_is_warned_of_once_where_rows_are_read_again_for_the_window(path: Path) -> None:
    settings = counting(lambda item: 1, max_tokens=100)
    with SQLiteSession(path, session_id="user_123", settings=settings) as session:
        session.add_items([ONE] * 200)
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE agentmem_items SET item = 'x' WHERE position = 199")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert len(session.get_items()) == 100
        assert [warning.category for warning in caught] == [CorruptItemWarning]


@pytest.mark.parametrize("error", [ZeroDivisionError(), BrokenPipeError(), sqlite3.OperationalError(), SystemExit(3)])
def test_what_count_tokens_raises_is_raised_as_it_is_and_the_next_call_works(
    store: SessionStore, error: BaseException
) -> None:
    def count(item: Item) -> int:
        raise error

    session = store.session("user_123", settings=counting(count))
    session.add_items([ONE])
    with pytest.raises(type(error)) as raised:
        session.get_items()
    assert raised.value is error
    assert session.get_items(1) == [ONE]


@pytest.mark.skipif(sys.platform == "win32", reason="a signal for one process is POSIX's")
def test_ctrl_c_ends_a_count_tokens_that_does_not_end_by_itself(path: Path) -> None:
    script = """
import sys, threading
from agentmem import SessionSettings, SQLiteSession

def count(item):
    print("counting", flush=True)
    threading.Event().wait()

settings = SessionSettings(max_tokens=5, count_tokens=count)
session = SQLiteSession(sys.argv[1], session_id="user_123", settings=settings)
session.add_items([{"number": 1}])
try:
    session.get_items()
except KeyboardInterrupt:
    print(session.get_items(1))
"""
    with Child(script, path) as child:
        assert child.read_line() == "counting"
        child.interrupt()
        assert child.finish() == (0, "[{'number': 1}]\n", "")


@pytest.mark.anyio
async def test_an_async_session_calls_count_tokens_off_the_loop_where_it_may_use_sessions_in_every_way(
    database_url: str,
) -> None:
    loop = asyncio.get_running_loop()
    at_once = MAX_THREADS + 4
    threads = set()
    with SessionStore(database_url) as sync_store:
        async with AsyncSessionStore(database_url) as store:
            await store.session("user_123").add_items([ONE])
            inner = store.session("user_123", settings=counting(lambda item: 1))

            async def elsewhere() -> list[Item]:
                async with AsyncSessionStore(database_url) as theirs:
                    return await theirs.session("user_123", settings=counting(lambda item: 1)).get_items()

            def count(item: Item) -> int:
                threads.add(threading.get_ident())
                on_this_loop = asyncio.run_coroutine_threadsafe(inner.get_items(), loop).result()
                return (
                    len(on_this_loop) * len(sync_store.session("user_123").get_items()) * len(asyncio.run(elsewhere()))
                )

            outer = store.session("user_123", settings=counting(count))
            assert await asyncio.gather(*(outer.get_items() for _ in range(at_once))) == [[ONE]] * at_once
            wait_until(lambda: "agentmem-call" not in processes.threads())  # each ends with its call
    assert threading.get_ident() not in threads


@pytest.mark.anyio
async def test_a_cancelled_call_waits_for_the_count_tokens_that_has_begun() -> None:
    begun, go_on = threading.Event(), threading.Event()
    ended = []

    def count(item: Item) -> int:
        begun.set()
        go_on.wait()
        ended.append(item)
        return 1

    async with AsyncSessionStore(":memory:") as store:
        session = store.session("user_123", settings=counting(count))
        await session.add_items([ONE])
        reading = asyncio.ensure_future(session.get_items())
        await asyncio.to_thread(begun.wait)
        reading.cancel()
        await asyncio.sleep(0)
        assert not reading.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert ended == [ONE]


# Where callbacks run


def test_code_that_runs_an_event_loop_of_its_own_inside_a_callback_does_not_wait_for_its_own_thread(
    store: SessionStore, tmp_path: Path
) -> None:
    with SQLiteSession(tmp_path / "other.db", session_id="user_123", settings=counting(lambda item: 1)) as other:
        other.add_items([ONE])
        session = store.session(
            "user_123", settings=counting(lambda item: len(asyncio.run(other.async_session.get_items())))
        )
        session.add_items([ONE])
        assert session.get_items() == [ONE]


def test_a_task_that_outlives_its_sync_call_calls_back_in_a_thread_of_its_own() -> None:
    ended: list[asyncio.Task[int]] = []
    gate: list[asyncio.Event] = []

    async def later() -> int:
        await gate[0].wait()
        return await call_back(threading.get_ident)

    async def start() -> None:
        gate.append(asyncio.Event())
        ended.append(asyncio.ensure_future(later()))

    async def finish() -> int:
        gate[0].set()
        return await ended[0]

    run_blocking(start)
    assert run_blocking(finish) not in (threading.get_ident(), run_blocking(_own_thread))


async def _own_thread() -> int:
    return threading.get_ident()


def test_a_callback_that_its_task_no_longer_waits_for_is_not_run() -> None:
    run: list[str] = []

    async def cancel(task: asyncio.Task[Any]) -> None:
        task.cancel()

    async def call() -> None:
        loop = asyncio.get_running_loop()
        held = asyncio.ensure_future(call_back(lambda: asyncio.run_coroutine_threadsafe(cancel(second), loop).result()))
        first, second, third = (
            asyncio.ensure_future(call_back(run.append, name)) for name in ("first", "2nd", "third")
        )
        await asyncio.wait([held, first, second, third])
        assert second.cancelled()

    run_blocking(call)
    assert run == ["first", "third"]


def test_an_interrupt_of_a_callback_ends_the_call_and_not_the_loop() -> None:
    met: list[BaseException] = []

    async def call() -> None:
        try:
            await call_back(sys.exit, 3)
        except asyncio.CancelledError as error:
            met.append(error)
            raise

    with pytest.raises(SystemExit):
        run_blocking(call)
    assert [type(error) for error in met] == [asyncio.CancelledError]
    assert run_blocking(_own_thread)


# Iterables and models


class Speaks(BaseModel):
    """A model whose JSON form takes a look at a session."""

    @model_serializer
    def serialize(self) -> dict[str, Any]:
        seen.append(threading.get_ident())
        return {"role": "user", "content": str(len(looked_at[0].get_items()))}


seen: list[int] = []
looked_at: list[Session] = []


def test_what_a_sync_add_items_is_given_is_read_in_its_thread_and_may_use_sessions(store: SessionStore) -> None:
    session = store.session("user_123")
    session.add_items([ONE])
    seen.clear()
    looked_at[:] = [session]

    def history() -> Iterator[Item | BaseModel]:
        seen.append(threading.get_ident())
        yield from session.get_items()
        yield {"copied": [Speaks()]}
        yield Speaks()

    session.add_items(history())
    assert session.get_items() == [
        ONE,
        ONE,
        {"copied": [{"role": "user", "content": "1"}]},
        {"role": "user", "content": "1"},
    ]
    assert set(seen) == {threading.get_ident()}


def test_a_slow_iterable_holds_up_nobody_else(store: SessionStore) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[Item]:
        begun.set()
        go_on.wait()
        yield ONE

    session = store.session("user_123")
    with ThreadPoolExecutor(1) as threads:
        adding = threads.submit(session.add_items, slow())
        begun.wait()
        session.add_items([{"number": 1}])
        go_on.set()
        adding.result()
    assert session.get_items() == [{"number": 1}, ONE]


def test_a_closed_session_does_not_begin_to_read_what_it_is_given() -> None:
    session = SQLiteSession(":memory:", session_id="user_123")
    session.close()
    items = iter([ONE])
    with pytest.raises(SessionClosedError):
        session.add_items(items)
    assert list(items) == [ONE]


def test_a_sync_session_calls_the_add_items_of_the_async_session_that_it_was_given() -> None:
    class Loud(AsyncSession):
        __slots__ = ()

        async def add_items(self, items: Any) -> None:
            await super().add_items([{**item, "loud": True} for item in items])

    with Session(Loud(open_engine(":memory:"), "user_123", owns_engine=True)) as session:
        session.add_items([ONE])
        assert session.get_items() == [{**ONE, "loud": True}]


# progress


@pytest.mark.parametrize("work", ["check", "copy_to"])
def test_progress_of_a_sync_store_never_runs_on_the_background_loop_and_may_use_sessions(
    store: SessionStore, tmp_path: Path, work: str
) -> None:
    sessions = [store.session(str(number), settings=counting(lambda item: 1)) for number in range(3)]
    for session in sessions:
        session.add_items([ONE] * 600)
    told, threads = [], set()

    def progress(done: int, of: int) -> None:
        threads.add(threading.get_ident())
        assert len(sessions[0].get_items()) == 600
        told.append((done, of))

    if work == "check":
        assert store.check(progress=progress).problem_count == 0
    else:
        with SessionStore(tmp_path / "copy.db") as other:
            assert store.copy_to(other, progress=progress).items == 1800
        assert threads == {threading.get_ident()}
    assert run_blocking(_own_thread) not in threads
    assert told == sorted(told)
    assert told[-1] == (1800, 1800)


@pytest.mark.parametrize("work", ["check", "copy_to"])
def test_what_progress_raises_ends_the_work_and_is_raised_as_it_is(
    store: SessionStore, tmp_path: Path, work: str
) -> None:
    store.session("user_123").add_items([ONE])
    error = ZeroDivisionError()

    def progress(done: int, of: int) -> None:
        raise error

    with SessionStore(tmp_path / "copy.db") as other:
        call = store.check if work == "check" else partial(store.copy_to, other)
        with pytest.raises(ZeroDivisionError) as raised:
            call(progress=progress)
    assert raised.value is error


def test_however_many_checks_tell_their_progress_at_once_each_may_read(store: SessionStore) -> None:
    session = store.session("user_123", settings=SessionSettings(max_tokens=10_000))
    session.add_items([ONE] * 600)
    checks = 5
    all_tell = threading.Barrier(checks)

    def check() -> int:
        begun: list[bool] = []

        def progress(done: int, of: int) -> None:
            if not begun:
                begun.append(True)
                all_tell.wait()
                assert len(session.get_items()) == 600

        return store.check(progress=progress).items

    assert in_threads(checks, check) == [600] * checks


def test_a_backup_path_of_the_caller_s_own_kind_may_use_sessions(path: Path, tmp_path: Path) -> None:
    with SQLiteSession(path, session_id="user_123") as session:
        session.add_items([ONE])

        class Named:
            def __fspath__(self) -> str:
                return str(tmp_path / f"{len(session.get_items())}.db")

        SessionStore(path).backup(Named())
    assert (tmp_path / "1.db").exists()
