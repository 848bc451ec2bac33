"""The sync classes are the async ones without ``await``: same names, same docs, from scripts, threads and notebooks."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import re
import sqlite3
import threading
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


SOURCE = ast.parse(Path(inspect.getfile(Session)).read_bytes())
"""The module as static tools see it."""


def documented(cls: type, name: str | None = None) -> str:
    """The docstring that stands in the source for a sync class or its member, which it may have from the base."""
    classes = {node.name: node for node in SOURCE.body if isinstance(node, ast.ClassDef)}
    if name is None:
        return ast.get_docstring(classes[cls.__name__]) or ""
    for base in cls.__mro__[:-1]:
        for node in classes[base.__name__].body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return ast.get_docstring(node) or ""
    return ""


def sections(docstring: str) -> dict[str, list[str]]:
    """What a docstring names in each of its sections: parameters, errors, warnings; a line of text where it is that."""
    found: dict[str, list[str]] = {}
    for title, body in re.findall(r"^(Args|Returns|Raises|Warns):\n((?:    .*\n?|\n)*)", docstring, re.MULTILINE):
        named = re.findall(r"^    ([\w, ]+):", body, re.MULTILINE)
        found[title] = named if title != "Returns" else ["something"]
    return found


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
    assert exported == {"async_restore", "async_upgrade"}
    for name in exported:
        theirs, ours = getattr(agentmem, name), getattr(agentmem, name.removeprefix("async_"))
        assert inspect.iscoroutinefunction(theirs)
        assert not inspect.iscoroutinefunction(ours)
        assert inspect.signature(ours) == inspect.signature(theirs)
        said, expected = inspect.getdoc(ours) or "", inspect.getdoc(theirs) or ""
        assert said.splitlines()[0] == expected.splitlines()[0]
        assert sections(said) == sections(expected)
        assert not ASYNC_WORDS.search(said)


@pytest.mark.parametrize(("async_class", "sync_class", "name"), FUNCTIONS)
def test_a_sync_method_has_the_parameters_of_the_async_one(async_class: type, sync_class: type, name: str) -> None:
    theirs, ours = getattr(async_class, name), getattr(sync_class, name)
    assert not inspect.iscoroutinefunction(ours)
    # A sync store copies to a sync one.
    taken = [str(parameter).replace("Async", "") for parameter in inspect.signature(theirs).parameters.values()]
    assert list(map(str, inspect.signature(ours).parameters.values())) == taken
    returned = str(inspect.signature(theirs).return_annotation).replace("Async", "")
    assert inspect.signature(ours).return_annotation == returned


MEMBERS = [
    pytest.param(async_class, sync_class, name, id=f"{sync_class.__name__}.{name}")
    for async_class, sync_class in PAIRS
    for name, member in [*public(async_class).items(), ("__enter__", None)]
    if inspect.isfunction(member) or isinstance(member, property) or name == "__enter__"
]
ASYNC_WORDS = re.compile(r"\bawait|\basync (with|for)|coroutine|cancell|CancelledError|Async|[Ss]ee :\w+:`~?agentmem\.")


@pytest.mark.parametrize(("async_class", "sync_class", "name"), MEMBERS)
def test_a_sync_method_s_docstring_stands_in_the_source_and_says_what_the_async_one_s_says_in_words_for_sync_code(
    async_class: type, sync_class: type, name: str
) -> None:
    ours = documented(sync_class, name)
    theirs = inspect.getdoc(getattr(async_class, name.replace("__enter__", "__aenter__"))) or ""
    assert ours
    assert not ASYNC_WORDS.search(ours)
    if "see :meth:" not in ours:  # of the same class
        assert ours.splitlines()[0] == theirs.splitlines()[0]
        assert sections(ours) == sections(theirs)


@pytest.mark.parametrize(("async_class", "sync_class"), PAIRS[1:])
def test_a_sync_class_s_docstring_stands_in_the_source_and_names_the_same_arguments_and_errors(
    async_class: type, sync_class: type
) -> None:
    ours, theirs = documented(sync_class), inspect.getdoc(async_class) or ""
    assert ours.splitlines()[0] == theirs.splitlines()[0]
    assert sections(ours) == sections(theirs)
    assert sections(ours).keys() >= {"Args", "Raises"}
    assert not ASYNC_WORDS.search(ours.replace("asyncpg", ""))
    assert inspect.signature(sync_class).parameters == inspect.signature(async_class).parameters


@pytest.mark.parametrize(("async_class", "sync_class"), PAIRS)
def test_a_sync_class_has_every_public_member_of_the_async_one(async_class: type, sync_class: type) -> None:
    assert len(FUNCTIONS) >= 12
    missing = set(public(async_class)) - set(public(sync_class))
    assert missing == set()
    more = set(public(sync_class)) - set(public(async_class))
    assert more <= {"async_session", "async_store"}


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


def test_what_a_background_call_raises_keeps_its_cause(path: Path) -> None:
    with SQLiteSession(path, session_id="user_123", busy_timeout_s=0) as session:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError) as raised:
                session.add_items([ONE])
            other.execute("COMMIT")
        assert isinstance(raised.value.__cause__, sqlite3.OperationalError)


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
    with SQLiteSession(path, session_id="user_123") as session:
        assert session.get_items() == [ONE]
