"""The sync classes are the async ones without ``await``: same names, same docs, from scripts, threads and notebooks."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Child, files, holdings, holds_again, run_quietly, running_threads, started_since

import agentmem
from agentmem import (
    AsyncPostgresSession,
    AsyncSession,
    AsyncSessionStore,
    AsyncSQLiteSession,
    PostgresSession,
    Session,
    SessionStore,
    SQLiteSession,
)
from agentmem.blocking import run_blocking
from agentmem.errors import InvalidItemError, SessionClosedError, StorageError
from agentmem.items import Item
from agentmem.replay import SessionSettings

ONE: Item = {"role": "user", "content": "one"}
TWO: Item = {"role": "user", "content": "two"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conversations.db"


def public(cls: type) -> dict[str, Any]:
    return {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}


def summary(thing: object) -> str:
    """The first line of a docstring, without a reference to the async method in it."""
    return (inspect.getdoc(thing) or "").splitlines()[0].partition(" See :meth:")[0]


PAIRS: list[tuple[type, type]] = [
    (AsyncSession, Session),
    (AsyncSQLiteSession, SQLiteSession),
    (AsyncPostgresSession, PostgresSession),
    (AsyncSessionStore, SessionStore),
]
FUNCTIONS = [
    pytest.param(async_class, sync_class, name, id=f"{sync_class.__name__}.{name}")
    for async_class, sync_class in PAIRS
    for name, member in public(async_class).items()
    if inspect.isfunction(member)
]


def test_every_async_class_that_agentmem_exports_has_its_sync_one() -> None:
    exported = {name for name in agentmem.__all__ if name.startswith("Async")}
    assert exported == {async_class.__name__ for async_class, _ in PAIRS}
    assert {name.removeprefix("Async") for name in exported} <= set(agentmem.__all__)


def test_every_async_function_that_agentmem_exports_has_its_sync_one() -> None:
    exported = {name for name in agentmem.__all__ if name.startswith("async_")}
    assert exported == {"async_restore"}
    for name in exported:
        theirs, ours = getattr(agentmem, name), getattr(agentmem, name.removeprefix("async_"))
        assert inspect.iscoroutinefunction(theirs)
        assert not inspect.iscoroutinefunction(ours)
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert summary(ours) == summary(theirs)
        assert f"See :func:`agentmem.{name}`." in (inspect.getdoc(ours) or "")


@pytest.mark.parametrize(("async_class", "sync_class", "name"), FUNCTIONS)
def test_a_sync_method_has_the_parameters_and_docs_of_the_async_one(
    async_class: type, sync_class: type, name: str
) -> None:
    theirs, ours = getattr(async_class, name), getattr(sync_class, name)
    assert not inspect.iscoroutinefunction(ours)
    # A sync store copies to a sync one.
    taken = [str(parameter).replace("Async", "") for parameter in inspect.signature(theirs).parameters.values()]
    assert list(map(str, inspect.signature(ours).parameters.values())) == taken
    assert summary(ours) == summary(theirs)
    assert f"See :meth:`agentmem.{async_class.__mro__[-2].__name__}.{name}`." in (inspect.getdoc(ours) or "")
    returned = str(inspect.signature(theirs).return_annotation).replace("Async", "")
    assert inspect.signature(ours).return_annotation == returned


@pytest.mark.parametrize(("async_class", "sync_class"), PAIRS)
def test_a_sync_class_has_every_public_member_of_the_async_one(async_class: type, sync_class: type) -> None:
    assert len(FUNCTIONS) >= 12
    missing = set(public(async_class)) - set(public(sync_class))
    assert missing == set()
    more = set(public(sync_class)) - set(public(async_class))
    assert more <= {"async_session", "async_store"}


def test_the_constructors_take_the_same_arguments_and_say_the_same() -> None:
    for async_class, sync_class in PAIRS[1:]:
        assert inspect.signature(sync_class).parameters == inspect.signature(async_class).parameters
        assert summary(sync_class) == summary(async_class)
        assert f":class:`agentmem.{async_class.__name__}` describes" in (inspect.getdoc(sync_class) or "")


def test_a_script_uses_sessions_without_await(path: Path) -> None:
    settings = SessionSettings(limit=1)
    with SQLiteSession(path, session_id="user_123", settings=settings) as session:
        assert (session.session_id, session.settings, session.session_settings) == ("user_123", settings, None)
        session.add_items([ONE, TWO])
        assert session.get_items() == [TWO]
        assert session.get_items(2) == [ONE, TWO]
        assert session.pop_item() == TWO
        session.clear_session()
        assert session.get_items(2) == []
        assert repr(session) == f"<SQLiteSession 'user_123' in {path}>"
    with pytest.raises(SessionClosedError):
        session.get_items()
    session.close()
    with SessionStore(path, busy_timeout_s=1) as store:
        one = store.session("user_123", settings=settings)
        assert isinstance(one, Session)
        one.add_items([ONE])
        assert one.run_key == session.run_key == store.session("user_123").run_key
        assert repr(store) == f"<SessionStore on {path}>"
    with pytest.raises(SessionClosedError):
        one.get_items()
    assert files(path) == {path.name}


def test_errors_are_those_of_the_async_classes(path: Path) -> None:
    with pytest.raises(ValueError, match="durability"):
        SQLiteSession(path, session_id="user_123", durability="none")  # type: ignore[arg-type]  # the mistake under test
    session = SQLiteSession(path, session_id="user_123")
    with pytest.raises(InvalidItemError):
        session.add_items([{"x": float("nan")}])
    with pytest.raises(ValueError, match="limit"):
        session.get_items(-1)
    session.close()
    path.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises(StorageError), SQLiteSession(path, session_id="user_123"):
        pass


def test_threads_share_one_event_loop_and_one_pool(path: Path) -> None:
    def talk(thread: int) -> None:
        session = SQLiteSession(path, session_id="user_123")
        begin.wait()
        for number in range(25):
            session.add_items([{"thread": thread, "number": number}, {"thread": thread, "number": number}])
        session.close()

    with SQLiteSession(path, session_id="other") as other:
        other.add_items([ONE])
        before = running_threads()
        begin = threading.Barrier(8)
        running = [threading.Thread(target=talk, args=(thread,)) for thread in range(8)]
        for one in running:
            one.start()
        for one in running:
            one.join()
        assert started_since(before) == []
    with SQLiteSession(path, session_id="user_123") as session:
        items = session.get_items()
    assert len(items) == 400
    assert items[::2] == items[1::2]
    for thread in range(8):
        assert [item["number"] for item in items[::2] if item["thread"] == thread] == list(range(25))


def test_the_first_calls_of_many_threads_start_one_background_loop(path: Path) -> None:
    script = """
import sys, threading
from agentmem import SQLiteSession
begin = threading.Barrier(8)
def call(number):
    session = SQLiteSession(sys.argv[1], session_id=str(number))
    begin.wait()
    session.add_items([{"number": number}])
running = [threading.Thread(target=call, args=(number,)) for number in range(8)]
for one in running:
    one.start()
for one in running:
    one.join()
print(sum(thread.name == "agentmem-loop" for thread in threading.enumerate()))
"""
    with Child(script, path) as child:
        assert child.finish() == (0, "1\n", "")


def test_sync_calls_work_under_a_running_event_loop_as_in_a_notebook(path: Path) -> None:
    async def cell() -> list[Item]:
        session = SQLiteSession(path, session_id="user_123")
        session.add_items([ONE])
        await asyncio.sleep(0)
        items = session.get_items()
        session.close()
        return items

    assert asyncio.run(cell()) == [ONE]


def test_the_async_session_of_a_sync_one_works_on_any_event_loop(path: Path) -> None:
    with SQLiteSession(path, session_id="user_123") as session:
        session.add_items([ONE])

        async def use() -> list[Item]:
            await session.async_session.add_items([TWO])
            return await session.async_session.get_items()

        assert asyncio.run(use()) == [ONE, TWO]
        assert session.get_items() == [ONE, TWO]


@pytest.mark.parametrize("name", ["get_items", "add_items", "pop_item", "clear_session", "close"])
def test_a_call_from_the_background_loop_itself_is_an_error_at_once_that_says_what_to_do(path: Path, name: str) -> None:
    with SQLiteSession(path, session_id="user_123") as session:
        session.add_items([ONE])

        async def call() -> None:
            arguments = [[TWO]] if name == "add_items" else []
            with pytest.raises(RuntimeError, match="await the async class there"):
                getattr(session, name)(*arguments)
            with pytest.raises(RuntimeError, match="await the async class there"):
                SessionStore(path).open()

        run_blocking(call)
        assert session.get_items() == [ONE]


def test_closing_leaves_only_the_background_loop(path: Path) -> None:
    SQLiteSession(path, session_id="user_123").close()
    with SQLiteSession(":memory:", session_id="user_123") as memory:
        memory.add_items([ONE])
    before = holdings()
    for _ in range(3):
        with SessionStore(path) as store:
            store.session("user_123").add_items([ONE])
            store.session("user_123").get_items()
    holds_again(before)


INTERRUPTED = """
import asyncio, os, signal, sqlite3, sys, threading, time
from agentmem import SQLiteSession
from agentmem.blocking import run_blocking

signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupt_when_it_waits(main=threading.main_thread().ident):
    def calls():
        frame = sys._current_frames()[main]
        while frame is not None:
            yield frame.f_code.co_name
            frame = frame.f_back
    while not {"run_blocking", "result", "wait"} <= {*calls()}:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

session = SQLiteSession(sys.argv[1], session_id="user_123", busy_timeout_s=600)
session.add_items([{"number": 0}])
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN IMMEDIATE")
"""


@pytest.mark.skipif(os.name != "posix", reason="a signal for one process is POSIX's")
@pytest.mark.parametrize(
    "call", ["session.add_items([{'number': 1}])", "session.pop_item()", "session.clear_session()"]
)
def test_ctrl_c_interrupts_a_call_that_waits_and_the_session_goes_on(path: Path, call: str) -> None:
    script = f"""
threading.Thread(target=interrupt_when_it_waits).start()
try:
    {call}
except KeyboardInterrupt:
    print("interrupted")
other.execute("COMMIT")
other.close()
session.add_items([{{"number": 2}}])
print([item["number"] for item in session.get_items()])
"""
    first, second = run_quietly(INTERRUPTED + script, path).splitlines()
    assert first == "interrupted"
    # The interrupted write had begun or not; either way it is whole, and in its place.
    assert json.loads(second) in ([0, 2], [0, 1, 2], [2])
    assert files(path) == {path.name}


@pytest.mark.skipif(os.name != "posix", reason="a signal for one process is POSIX's")
def test_a_write_that_is_interrupted_before_its_turn_comes_is_not_written(path: Path) -> None:
    script = """
async def background_loop():
    return asyncio.get_running_loop()
first = asyncio.run_coroutine_threadsafe(
    session.async_session.add_items([{"number": 1}]), run_blocking(background_loop)
)
for _ in range(5):
    run_blocking(asyncio.sleep, 0)  # it is under way now
threading.Thread(target=interrupt_when_it_waits).start()
try:
    session.add_items([{"number": 2}])
except KeyboardInterrupt:
    print("interrupted")
run_blocking(asyncio.sleep, 0)
other.execute("COMMIT")
other.close()
first.result()
session.add_items([{"number": 3}])
print([item["number"] for item in session.get_items()])
"""
    assert run_quietly(INTERRUPTED + script, path) == "interrupted\n[0, 1, 3]\n"


def test_what_a_background_call_raises_keeps_its_cause(path: Path) -> None:
    with SQLiteSession(path, session_id="user_123", busy_timeout_s=0) as session:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError) as raised:
                session.add_items([ONE])
            other.execute("COMMIT")
        assert isinstance(raised.value.__cause__, sqlite3.OperationalError)


def test_run_blocking_passes_arguments_and_results_through() -> None:
    async def add(left: int, *, right: int) -> int:
        return left + right

    call: Callable[..., int] = run_blocking
    assert call(add, 2, right=3) == 5


def test_a_program_ends_at_once_though_a_daemon_thread_holds_the_module_to_the_end(path: Path) -> None:
    script = """
import sys, threading
import agentmem
from agentmem import sync

agentmem.SQLiteSession(sys.argv[1], session_id="user_123").add_items([{"role": "user", "content": "one"}])
holding = threading.Event()

def hold(module):
    holding.set()
    threading.Event().wait()

threading.Thread(target=hold, args=[sync], daemon=True).start()
holding.wait()
"""
    assert run_quietly(script, path) == ""
    assert SQLiteSession(path, session_id="user_123").get_items() == [ONE]
