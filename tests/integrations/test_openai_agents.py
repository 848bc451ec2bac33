"""Whoever comes from the Agents SDK changes one import: the same calls, the history taken over once, nothing lost.

The files are written by the SDK's own classes.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from exhaustive import exhaustive
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from processes import Child, files, holdings, holds_again, run_quietly, running_threads, started_since, writer_lock
from tools import NO_AGENTS_SDK, NO_SCRIPTED_MODEL

import agentmem
from agentmem import SessionSettings
from agentmem.engines.sqlite.engine import SQLiteEngine
from agentmem.errors import (
    CorruptItemWarning,
    InvalidItemError,
    SessionClosedError,
    StorageBusyError,
    StorageCorruptError,
    StorageError,
)
from agentmem.integrations.openai_agents import AsyncSQLiteSession, SQLiteSession, Takeover, import_history
from agentmem.items import Item

agents = pytest.importorskip("agents", reason=NO_AGENTS_SDK)
sdk_async = pytest.importorskip(
    "agents.extensions.memory.async_sqlite_session", reason="this Agents SDK has no async SQLite session"
)

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
TWO: Item = {"role": "user", "content": "two"}
THREE: Item = {"role": "user", "content": "three"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conversations.db"


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    before = holdings()
    yield
    holds_again(before)


@contextlib.asynccontextmanager
async def sdk_session(session_id: str, path: Path, kind: str = "sync", **tables: str) -> Any:
    """The SDK's own session; closed at the end."""
    if kind == "sync":
        session = agents.SQLiteSession(session_id, path, **tables)
    else:
        session = sdk_async.AsyncSQLiteSession(session_id, path, **tables)
    try:
        yield session
    finally:
        if kind == "sync":
            session.close()
        else:
            await session.close()


async def sdk_add(path: Path, *items: Item, session_id: str = "user_123", kind: str = "sync", **tables: str) -> None:
    async with sdk_session(session_id, path, kind, **tables) as session:
        await session.add_items(list(items))


async def add(path: Path, *items: Item, session_id: str = "user_123") -> None:
    async with AsyncSQLiteSession(session_id, path) as session:
        await session.add_items(items)


async def get(path: Path, session_id: str = "user_123", **tables: Any) -> list[Item]:
    async with AsyncSQLiteSession(session_id, path, **tables) as session:
        return await session.get_items()


def rows(path: Path, sql: str, *parameters: object) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql, parameters).fetchall()


def sdk_rows(path: Path) -> list[Any]:
    """All that the SDK's tables hold, byte for byte."""
    query = (
        "SELECT id, CAST(session_id AS BLOB), CAST(message_data AS BLOB), created_at FROM agent_messages ORDER BY id"
    )
    return [
        *rows(path, "SELECT * FROM agent_sessions ORDER BY session_id"),
        *rows(path, query),
        *rows(
            path,
            "SELECT sql FROM sqlite_master WHERE name LIKE '%agent_%' AND name NOT LIKE '%agentmem%' ORDER BY name",
        ),
    ]


# The same calls


@pytest.mark.parametrize(
    ("ours", "theirs"), [(SQLiteSession, "SQLiteSession"), (AsyncSQLiteSession, "AsyncSQLiteSession")]
)
def test_the_constructors_take_what_the_sdk_s_take_in_the_same_order_with_the_same_defaults(
    ours: type, theirs: str
) -> None:
    original = getattr(agents, theirs, None) or getattr(sdk_async, theirs)
    our_parameters, their_parameters = (
        [(p.name, p.kind, p.default) for p in inspect.signature(kind).parameters.values()] for kind in (ours, original)
    )
    assert our_parameters == their_parameters


@pytest.mark.parametrize("kind", [SQLiteSession, AsyncSQLiteSession])
async def test_a_caller_of_the_sdk_s_classes_finds_what_they_offer(path: Path, kind: Any) -> None:
    session = kind("user_123", path, "my_sessions", "my_messages")
    assert isinstance(session, agents.Session)
    assert (session.session_id, session.db_path) == ("user_123", path)
    assert (session.sessions_table, session.messages_table) == ("my_sessions", "my_messages")
    assert session.session_settings is None
    await session.add_items([ONE, TWO])
    await session.add_items([])
    assert await session.get_items() == [ONE, TWO]
    assert await session.get_items(1) == [TWO]
    assert await session.get_items(0) == []
    assert await session.get_items(limit=-1) == [ONE, TWO]
    assert await session.pop_item() == TWO
    await session.clear_session()
    assert await session.pop_item() is None
    closed = session.close()
    assert (closed is None) == (kind is SQLiteSession)
    if closed is not None:
        await closed
    for call in (session.get_items(), session.add_items([]), session.pop_item(), session.clear_session()):
        with pytest.raises(RuntimeError):
            await call


async def test_without_a_path_the_session_is_in_memory_and_its_own() -> None:
    async with AsyncSQLiteSession("user_123") as one, SQLiteSession("user_123") as other:
        await one.add_items([ONE])
        assert (await one.get_items(), await other.get_items()) == ([ONE], [])


@pytest.mark.parametrize(
    "given",
    [agents.SessionSettings(limit=2), {"limit": 2}, SessionSettings(limit=2)],
    ids=["the SDK's", "a dict", "agentmem's"],
)
async def test_the_limit_that_is_given_is_a_window_of_whole_exchanges(given: Any) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "1"}
    async with AsyncSQLiteSession("user_123", session_settings=given) as session:
        assert session.settings == SessionSettings(limit=2)
        await session.add_items([ONE, call, output, TWO])
        assert await session.get_items() == [TWO]
        assert await session.get_items(2) == [output, TWO]


@pytest.mark.parametrize(
    "given", [None, {}, {"limit": None}, {"limit": -1}, agents.SessionSettings(limit=-3)], ids=repr
)
async def test_no_limit_or_a_negative_one_is_none(given: Any) -> None:
    async with SQLiteSession("user_123", session_settings=given) as session:
        assert session.settings == SessionSettings()


@pytest.mark.parametrize("given", [3, "limit", {"limits": 3}], ids=repr)
def test_settings_that_are_none_are_a_type_error_as_with_the_sdk(given: Any) -> None:
    for kind in (SQLiteSession, agents.SQLiteSession):
        with pytest.raises(TypeError, match="Unknown session settings: limits" if isinstance(given, dict) else None):
            kind("user_123", session_settings=given)


@pytest.mark.parametrize("kind", [SQLiteSession, AsyncSQLiteSession])
@pytest.mark.parametrize("used", [False, True])
async def test_a_closed_session_says_so_in_the_sdk_s_words_and_where_it_was(path: Path, kind: Any, used: bool) -> None:
    session = kind("user_123", path)
    if used:
        await session.add_items([ONE])
    for _ in range(2):
        closing = session.close()
        if closing is not None:
            await closing
    words = rf"^{kind.__name__} is closed: session 'user_123' in {path}; make a new one$"
    for call in (session.get_items, session.pop_item, session.clear_session, session.__aenter__):
        with pytest.raises(SessionClosedError, match=words):
            await call()
    for items in ([], [ONE]):
        with pytest.raises(SessionClosedError, match=words):
            await session.add_items(items)


@pytest.mark.parametrize("kind", [SQLiteSession, AsyncSQLiteSession])
async def test_a_method_that_a_test_replaces_on_a_session_is_what_the_sdk_s_runner_calls(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    testing = pytest.importorskip("agents.testing", reason=NO_SCRIPTED_MODEL)
    agents.set_tracing_disabled(True)

    async def fail(items: object) -> None:
        raise RuntimeError(f"refused {items}")

    async with kind("user_123") as session:
        agent = agents.Agent("A", model=testing.ScriptedModel([]))
        session.add_items = fail
        with pytest.raises(RuntimeError, match=r"refused .*'Hi'"):
            await agents.Runner.run(agent, "Hi", session=session)
        del session.add_items
        monkeypatch.setattr(session, "get_items", fail)
        with pytest.raises(TypeError, match="fail"):
            await agents.Runner.run(agent, "Hi", session=session)
        monkeypatch.undo()
        await session.add_items([ONE])
        assert await session.get_items() == [ONE]


@pytest.mark.parametrize("kind", [SQLiteSession, AsyncSQLiteSession])
@pytest.mark.parametrize(
    "given", [agents.SessionSettings(limit=1), {"limit": 1}, SessionSettings(limit=1)], ids=["SDK", "dict", "agentmem"]
)
async def test_settings_that_are_assigned_become_the_window_and_read_as_none(kind: Any, given: Any) -> None:
    async with kind("user_123", session_settings={"limit": 3}) as session:
        await session.add_items([ONE, TWO])
        session.session_settings = given
        assert session.session_settings is None
        assert session.settings == SessionSettings(limit=1)
        assert await session.get_items() == [TWO]
        with pytest.raises(TypeError, match="Unknown session settings: limits"):
            session.session_settings = {"limits": 3}
        assert session.settings == SessionSettings(limit=1)
        session.session_settings = None
        assert await session.get_items() == [ONE, TWO]


@pytest.mark.parametrize("kind", [SQLiteSession, AsyncSQLiteSession])
async def test_the_sdk_s_encrypted_session_takes_it_with_its_settings(path: Path, kind: Any) -> None:
    pytest.importorskip("cryptography", reason="the SDK's encrypted sessions need cryptography")
    from agents.extensions.memory import EncryptedSession

    async with kind("user_123", path) as session:
        assert isinstance(session, agents.SessionABC)
        encrypted: Any = EncryptedSession("user_123", session, "a key of any length")
        await encrypted.add_items([ONE, TWO, THREE])
        assert [item["__enc__"] for item in await session.get_items()] == [1, 1, 1]
        assert await encrypted.get_items() == [ONE, TWO, THREE]
        encrypted.session_settings = agents.SessionSettings(limit=2)
        assert await encrypted.get_items() == [TWO, THREE]
        assert await encrypted.pop_item() == THREE
        await encrypted.clear_session()
        assert await session.get_items() == []


async def test_the_sdk_s_runner_talks_through_it_as_through_its_own(path: Path) -> None:
    testing = pytest.importorskip("agents.testing", reason=NO_SCRIPTED_MODEL)
    from openai.types.responses import ResponseOutputMessage

    agents.set_tracing_disabled(True)
    content = [{"type": "output_text", "text": "Hello", "annotations": []}]
    answer = ResponseOutputMessage.model_validate(
        {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": content}
    )
    async with sdk_session("user_123", path) as session:
        await agents.Runner.run(
            agents.Agent("A", model=testing.ScriptedModel([[answer]])), "I am Alice", session=session
        )
    async with SQLiteSession("user_123", path) as taken_over:
        model = testing.ScriptedModel([[answer]])
        await agents.Runner.run(agents.Agent("A", model=model), "Who am I?", session=taken_over)
        assert [item.get("content") for item in model.calls[0].input][::2] == ["I am Alice", "Who am I?"]
        assert len(await taken_over.get_items()) == 4


async def test_all_handles_on_a_file_share_one_pool(path: Path) -> None:
    await sdk_add(path, ONE)
    before = running_threads()
    sessions = [kind(f"user_{n}", path) for n in range(20) for kind in (SQLiteSession, AsyncSQLiteSession)]
    for session in sessions:
        await session.add_items([ONE])
    await sessions[0].get_items()
    assert len(started_since(before)) == 2
    for session in sessions:
        await AsyncSQLiteSession.close(session)


def test_one_session_works_on_several_event_loops_and_closes_without_one(path: Path) -> None:
    session = SQLiteSession("user_123", path)
    asyncio.run(session.add_items([ONE]))
    assert asyncio.run(session.get_items()) == [ONE]
    session.close()
    session.close()
    with pytest.raises(SessionClosedError):
        asyncio.run(session.get_items())
    holds_again(holdings())
    assert rows(path, "SELECT count(*) FROM agentmem_items") == [(1,)]


def test_a_close_inside_a_loop_lets_the_calls_under_way_finish_and_is_done_when_the_loop_ends(path: Path) -> None:
    async def main() -> None:
        session = SQLiteSession("user_123", path)
        adding = asyncio.ensure_future(session.add_items([ONE]))
        await asyncio.sleep(0)
        session.close()
        await adding

    asyncio.run(main())
    assert files(path) == {path.name}
    assert rows(path, "SELECT count(*) FROM agentmem_items") == [(1,)]


def test_it_imports_where_the_sdk_is_not_installed() -> None:
    source = "import sys; sys.modules['agents'] = None; from agentmem.integrations.openai_agents import SQLiteSession"
    assert run_quietly(source) == ""


@pytest.mark.parametrize("kind", [agentmem.SQLiteSession, agentmem.AsyncSQLiteSession])
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [(("user_123", "x.db"), {}), (("user_123",), {}), (("user_123",), {"db_path": "x.db"}), ((), {"db_path": "x.db"})],
)
def test_the_sdk_s_form_on_agentmem_s_own_classes_is_an_error_that_shows_both(
    kind: Any, args: tuple[str, ...], kwargs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError) as raised:
        kind(*args, **kwargs)
    name = kind.__name__
    assert f'{name}("conversations.db", session_id="user_123")' in str(raised.value)
    assert f"from agentmem.integrations.openai_agents import {name}" in str(raised.value)
    assert inspect.signature(kind).parameters["session_id"].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(tmp_path.iterdir()) == []


async def test_a_history_is_not_taken_over_into_memory_where_it_would_be_lost(path: Path) -> None:
    await sdk_add(path, ONE)
    with pytest.raises(ValueError, match="into is a file"):
        await import_history(path, into=":memory:")
    assert files(path) == {path.name}


# Taking over


@pytest.mark.parametrize("theirs", ["sync", "async"])
@pytest.mark.parametrize("ours", [SQLiteSession, AsyncSQLiteSession])
async def test_the_first_use_takes_over_every_session_as_it_was(path: Path, theirs: str, ours: Any) -> None:
    odd = {"text": "é \U0001f600 \ud83d \u0000", "n": 10**30, "deep": [None, 1.5, {}]}
    for n in range(3):
        await sdk_add(path, ONE, odd, {"n": n}, session_id="user_123", kind=theirs)
        await sdk_add(path, TWO, session_id=f"other {n}'\"", kind=theirs)
    async with ours("user_123", path) as session:
        assert await session.get_items() == [item for n in range(3) for item in (ONE, odd, {"n": n})]
    for n in range(3):
        assert await get(path, f"other {n}'\"") == [TWO]
    assert rows(path, "SELECT CAST(item AS BLOB) FROM agentmem_items ORDER BY item") == rows(
        path, "SELECT CAST(message_data AS BLOB) FROM agent_messages ORDER BY message_data"
    )
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("use", ["add_items", "get_items", "pop_item", "clear_session", "open"])
async def test_whatever_the_first_use_is_it_finds_the_history(path: Path, use: str) -> None:
    await sdk_add(path, ONE, TWO)
    session = AsyncSQLiteSession("user_123", path)
    if use == "open":
        await session.__aenter__()
    else:
        result = await getattr(session, use)(*([[THREE]] if use == "add_items" else []))
        assert result == {"get_items": [ONE, TWO], "pop_item": TWO}.get(use)
    left = {"add_items": [ONE, TWO, THREE], "pop_item": [ONE], "clear_session": []}.get(use, [ONE, TWO])
    assert await session.get_items() == left
    await session.close()
    assert await get(path) == left


async def test_batches_that_are_added_at_once_by_a_fresh_handle_keep_their_order_after_the_history(path: Path) -> None:
    await sdk_add(path, ONE)
    async with contextlib.AsyncExitStack() as stack:
        session = AsyncSQLiteSession("user_123", path)
        stack.push_async_callback(session.close)
        await asyncio.gather(*(session.add_items([{"n": n}]) for n in range(600)), session.get_items())
        assert await session.get_items() == [ONE, *({"n": n} for n in range(600))]


async def test_the_sdk_s_times_are_kept(path: Path) -> None:
    await sdk_add(path, ONE, TWO)
    changes = [
        "UPDATE agent_messages SET created_at = datetime('2024-02-29 12:00:00', '+' || id || ' seconds')",
        "UPDATE agent_sessions SET created_at = '2024-02-29 11:00:00', updated_at = '2024-03-01 00:00:00'",
    ]
    for change in changes:
        rows(path, change)
    await get(path)
    assert rows(path, "SELECT created_at FROM agentmem_history ORDER BY position") == [
        ("2024-02-29 12:00:01",),
        ("2024-02-29 12:00:02",),
    ]
    assert rows(path, "SELECT created_at, updated_at FROM agentmem_sessions") == [
        (1709204400_000000, 1709251200_000000)
    ]


async def test_the_sdk_s_rows_stay_as_they_are_and_the_sdk_goes_on_with_them(path: Path) -> None:
    await sdk_add(path, ONE, TWO)
    before = sdk_rows(path)
    assert await get(path) == [ONE, TWO]
    await add(path, THREE)
    async with AsyncSQLiteSession("user_123", path) as session:
        await session.clear_session()
    assert sdk_rows(path) == before
    async with sdk_session("user_123", path) as theirs:
        assert await theirs.get_items() == [ONE, TWO]
        assert await theirs.pop_item() == TWO


async def test_what_the_sdk_writes_later_comes_after_what_agentmem_holds_at_the_next_open(path: Path) -> None:
    await sdk_add(path, ONE)
    await add(path, TWO)
    async with AsyncSQLiteSession("user_123", path) as open_all_along:
        assert await open_all_along.get_items() == [ONE, TWO]
        await sdk_add(path, THREE, kind="async")
        assert await open_all_along.get_items() == [ONE, TWO]
        for _ in range(2):
            assert await get(path) == [ONE, TWO, THREE]
    assert [n for (n,) in rows(path, "SELECT position FROM agentmem_history ORDER BY position")] == [0, 1, 2]


async def test_what_agentmem_popped_or_cleared_does_not_come_back(path: Path) -> None:
    await sdk_add(path, ONE, TWO)
    await sdk_add(path, ONE, session_id="cleared")
    async with AsyncSQLiteSession("user_123", path) as session, AsyncSQLiteSession("cleared", path) as other:
        assert await session.pop_item() == TWO
        await other.clear_session()
    assert (await get(path), await get(path, "cleared")) == ([ONE], [])
    await sdk_add(path, THREE, session_id="cleared")
    assert (await get(path), await get(path, "cleared")) == ([ONE], [THREE])


async def test_what_the_sdk_pops_or_clears_later_stays(path: Path) -> None:
    await sdk_add(path, ONE, TWO)
    assert await get(path) == [ONE, TWO]
    async with sdk_session("user_123", path) as session:
        await session.pop_item()
        assert await get(path) == [ONE, TWO]
        await session.clear_session()
        assert await get(path) == [ONE, TWO]
        await session.add_items([THREE])
    assert await get(path) == [ONE, TWO, THREE]


async def test_a_table_that_was_dropped_and_made_anew_is_taken_over_from_its_beginning(path: Path) -> None:
    await sdk_add(path, ONE, TWO)
    assert await get(path) == [ONE, TWO]
    rows(path, "DROP TABLE agent_messages")
    await sdk_add(path, THREE)
    assert await get(path) == [ONE, TWO, THREE]
    assert await get(path) == [ONE, TWO, THREE]


@pytest.mark.parametrize(
    "tables",
    [
        {"sessions_table": "my_sessions", "messages_table": "my_messages"},
        {"sessions_table": '"my ""own"" [sessions]"', "messages_table": "messages_é$1"},
        {"sessions_table": "[a'b]", "messages_table": "Messages"},
    ],
    ids=["plain", "quotes", "brackets"],
)
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_custom_tables_are_taken_over_however_they_are_named(
    path: Path, tables: dict[str, str], kind: str
) -> None:
    await sdk_add(path, ONE, TWO, kind=kind, **tables)
    rows(path, f"UPDATE {tables['sessions_table']} SET created_at = '2024-02-29 11:00:00'")
    assert await get(path, **tables) == [ONE, TWO]
    assert rows(path, "SELECT created_at FROM agentmem_sessions") == [(1709204400_000000,)]  # both tables were found
    await sdk_add(path, THREE, kind=kind, **tables)
    assert await get(path, **{name: _upper(table) for name, table in tables.items()}) == [ONE, TWO, THREE]


def _upper(name: str) -> str:
    """Another spelling that SQLite takes for the same name: it folds only the letters of ASCII."""
    return "".join(character.upper() if character.isascii() else character for character in name)


async def test_a_name_that_is_sql_is_a_name(path: Path) -> None:
    await sdk_add(path, ONE)
    before = path.read_bytes()
    for name in ('agent_messages"; DROP TABLE agent_messages; --', "x' OR 1=1 --", ""):
        copy = path.with_name("copy.db")
        copy.write_bytes(before)
        assert await get(copy, messages_table=name) == []
        assert rows(copy, "SELECT count(*) FROM agent_messages") == [(1,)]
        copy.unlink()


async def test_two_pairs_of_tables_in_one_file_are_not_mixed(path: Path) -> None:
    await sdk_add(path, ONE)
    await sdk_add(path, TWO, sessions_table="b_sessions", messages_table="b_messages")
    assert await get(path) == [ONE]
    with pytest.raises(StorageError, match=f"{path} goes on with .*'agent_messages', not in 'b_messages'.*--into"):
        await get(path, sessions_table="b_sessions", messages_table="b_messages")
    other = path.with_name("b.db")
    await import_history(path, into=other, sessions_table="b_sessions", messages_table="b_messages")
    assert await get(other) == [TWO]
    assert await get(path) == [ONE]


async def test_ids_that_agentmem_refuses_stay_with_the_sdk_and_are_named(path: Path) -> None:
    refused = ["", "x" * 1025, "a\0b"]
    for session_id in [*refused, "\U0001f600" * 256]:
        await sdk_add(path, ONE, session_id=session_id)
    rows(path, "INSERT INTO agent_messages (session_id, message_data) VALUES (x'ff', '{}')")
    with pytest.warns(UserWarning, match=r"4 sessions .*'', 'xxx.*, 'a\\x00b', b'\\xff'"):
        assert await get(path, "\U0001f600" * 256) == [ONE]
    assert rows(path, "SELECT count(*) FROM agentmem_sessions") == [(1,)]
    assert await get(path) == []
    assert len((await import_history(path)).skipped) == 4


@pytest.mark.parametrize("call", ["pop", "append", "clear"])
async def test_where_the_warning_of_refused_ids_is_an_error_the_write_is_not_done_and_the_next_one_is(
    path: Path, call: str
) -> None:
    await sdk_add(path, ONE, TWO, THREE)
    await sdk_add(path, ONE, session_id="")
    session = AsyncSQLiteSession("user_123", path)
    writes: dict[str, Any] = {
        "pop": session.pop_item,
        "append": lambda: session.add_items([ONE]),
        "clear": session.clear_session,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="1 sessions of the Agents SDK's"):
            await writes[call]()
        assert await session.get_items() == [ONE, TWO, THREE]
        result = await writes[call]()
        left = {"pop": [ONE, TWO], "append": [ONE, TWO, THREE, ONE], "clear": list[Item]()}
        assert (result, await session.get_items()) == (THREE if call == "pop" else None, left[call])
    await session.close()


async def test_a_corrupt_row_is_taken_over_and_skipped_with_a_warning(path: Path) -> None:
    await sdk_add(path, ONE, TWO, THREE)
    rows(path, "UPDATE agent_messages SET message_data = CAST(x'7bff' AS TEXT) WHERE id = 2")
    with pytest.warns(CorruptItemWarning, match="position 1"):
        assert await get(path) == [ONE, THREE]
    assert rows(path, "SELECT CAST(item AS BLOB) FROM agentmem_history WHERE position = 1") == [(b"{\xff",)]


async def test_items_that_the_sdk_would_store_as_something_else_are_refused(path: Path) -> None:
    async with AsyncSQLiteSession("user_123", path) as session:
        with pytest.raises(InvalidItemError):
            await session.add_items([{"n": float("nan")}])


# Files that are not the SDK's alone


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_agentmem_s_own_session_leaves_the_sdk_s_file_as_it_is_and_names_the_two_ways(
    path: Path, kind: str
) -> None:
    await sdk_add(path, ONE, kind=kind)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"agentmem\.integrations\.openai_agents.*agentmem import-sdk") as raised:
        async with agentmem.AsyncSQLiteSession(path, session_id="user_123"):
            pass
    assert str(path) in str(raised.value)
    assert path.read_bytes() == before
    assert await get(path) == [ONE]
    async with agentmem.AsyncSQLiteSession(path, session_id="user_123") as session:
        assert await session.get_items() == [ONE]


@pytest.mark.parametrize(
    "change", ["CREATE TABLE notes (text)", "PRAGMA user_version = 3", "CREATE VIEW v AS SELECT 1 AS session_id"]
)
async def test_a_file_that_the_sdk_shares_with_another_program_is_left_alone_but_can_be_imported(
    path: Path, change: str
) -> None:
    await sdk_add(path, ONE)
    rows(path, change)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"another program's database.*import-sdk FILE --into NEW"):
        await get(path)
    assert path.read_bytes() == before
    await import_history(path, into=path.with_name("new.db"))
    assert await get(path.with_name("new.db")) == [ONE]


async def test_the_sdk_s_tables_in_a_file_of_agentmem_s_are_taken_over_too(path: Path) -> None:
    await add(path, ONE)
    await sdk_add(path, TWO)
    assert await get(path) == [ONE, TWO]


async def test_a_table_of_the_name_that_is_not_the_sdk_s_is_an_error_by_name(path: Path) -> None:
    await add(path, ONE)
    rows(path, "CREATE TABLE agent_messages (id INTEGER PRIMARY KEY, session_id, message_data, created_at)")
    with pytest.raises(StorageError, match=f"'agent_messages' in {path} is not as the Agents SDK's"):
        await get(path)


# By hand


async def test_an_import_says_what_it_did_and_takes_only_what_is_new_the_next_time(path: Path) -> None:
    await sdk_add(path, ONE, TWO)
    await sdk_add(path, ONE, session_id="other")
    assert await import_history(path) == Takeover(sessions=2, items=3)
    assert await import_history(path, into=path) == Takeover(already_taken=3)
    await sdk_add(path, THREE)
    assert await import_history(path) == Takeover(sessions=1, items=1, already_taken=3)
    assert await get(path) == [ONE, TWO, THREE]


async def test_an_import_into_another_database_does_not_write_to_the_file(path: Path) -> None:
    into = path.with_name("into.db")
    await sdk_add(path, ONE, TWO)
    before, changed = path.read_bytes(), path.stat().st_mtime_ns
    assert await import_history(path, into=into) == Takeover(sessions=1, items=2)
    assert await import_history(path, into=into) == Takeover(already_taken=2)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, changed)
    async with agentmem.AsyncSQLiteSession(into, session_id="user_123") as session:
        assert await session.get_items() == [ONE, TWO]
        await session.clear_session()
        await session.add_items([ONE])
    await sdk_add(path, THREE)
    assert await import_history(path, into=into) == Takeover(sessions=1, items=1, already_taken=2)
    async with agentmem.AsyncSQLiteSession(into, session_id="user_123") as session:
        assert await session.get_items() == [ONE, THREE]
    for table in ("sessions", "items"):
        assert rows(into, f"SELECT count(*) FROM agentmem_{table}") == [({"sessions": 1, "items": 2}[table],)]


async def branched(path: Path, *, branch: str | None, **tables: str) -> None:
    """A session of the SDK's AdvancedSQLiteSession with two turns, and a branch that leaves it after the first."""
    advanced = pytest.importorskip(
        "agents.extensions.memory.advanced_sqlite_session", reason="this Agents SDK has no session with branches"
    )
    session = advanced.AdvancedSQLiteSession(session_id="user_123", db_path=path, create_tables=True, **tables)
    await session.add_items([ONE, {"role": "assistant", "content": "1"}])
    await session.add_items([TWO, {"role": "assistant", "content": "2"}])
    if branch is not None:
        await session.create_branch_from_turn(2, branch)
        await session.add_items([THREE])
    session.close()


@pytest.mark.parametrize("tables", [{}, {"sessions_table": "s", "messages_table": "M"}], ids=["", "other tables"])
async def test_branches_of_the_sdk_s_are_refused_by_name_and_not_merged(path: Path, tables: dict[str, str]) -> None:
    await branched(path, branch="another way", **tables)
    before = path.read_bytes()
    for into in (path.with_name("new.db"), path):
        with pytest.raises(StorageError, match=r"1 sessions with branches .*: 'user_123' \(another way\).*get_items"):
            await import_history(path, into=into, **tables)
    assert not path.with_name("new.db").exists()
    assert path.read_bytes() == before


async def test_what_a_deleted_branch_has_left_is_refused_too(path: Path) -> None:
    await branched(path, branch="another way")
    rows(path, "DELETE FROM message_structure WHERE branch_id <> 'main'")  # releases that leave the messages
    with pytest.raises(StorageError, match=r"'user_123' \(what is left of a deleted one\)"):
        await import_history(path, into=path.with_name("new.db"))


async def test_sessions_without_branches_are_imported_until_there_is_one(path: Path) -> None:
    new = path.with_name("new.db")
    await branched(path, branch=None)
    await sdk_add(path, THREE, session_id="of another class")
    assert await import_history(path, into=new) == Takeover(sessions=2, items=5)
    assert [item["content"] for item in await get(new)] == [ONE["content"], "1", TWO["content"], "2"]
    await branched(path, branch="b")
    with pytest.raises(StorageError, match=r"'user_123' \(b\)"):
        await import_history(path, into=new)
    assert len(await get(new)) == 4


async def test_a_handle_on_a_file_of_agentmem_s_refuses_branches_in_it_likewise(path: Path) -> None:
    await add(path, ONE)
    await branched(path, branch="b")
    for call in (get(path), add(path, TWO)):
        with pytest.raises(StorageError, match=r"'user_123' \(b\)"):
            await call
    async with agentmem.AsyncSQLiteSession(path, session_id="user_123") as session:
        assert await session.get_items() == [ONE]


async def test_an_import_takes_what_the_sdk_has_committed_while_it_has_the_file_open(path: Path) -> None:
    async with sdk_session("user_123", path) as session:
        await session.add_items([ONE])
        assert await import_history(path, into=path.with_name("into.db")) == Takeover(sessions=1, items=1)
        await session.add_items([TWO])
        assert await session.get_items() == [ONE, TWO]
    assert await import_history(path, into=path.with_name("into.db")) == Takeover(sessions=1, items=1, already_taken=1)


async def test_a_file_that_was_moved_or_copied_is_not_imported_twice(path: Path) -> None:
    into, moved = path.with_name("into.db"), path.with_name("moved.db")
    await sdk_add(path, ONE, TWO)
    await import_history(path, into=into)
    path.rename(moved)
    assert await import_history(moved, into=into) == Takeover(already_taken=2)
    await sdk_add(moved, THREE)
    assert (await import_history(moved, into=into)).items == 1
    assert await get(into) == [ONE, TWO, THREE]


async def test_another_file_at_the_path_of_an_imported_one_is_imported_whole(path: Path) -> None:
    into = path.with_name("into.db")
    await sdk_add(path, ONE, TWO)
    await import_history(path, into=into)
    path.unlink()
    await sdk_add(path, TWO, THREE, ONE, session_id="new")
    assert await import_history(path, into=into) == Takeover(sessions=1, items=3)
    assert await get(into, "new") == [TWO, THREE, ONE]


async def test_a_file_that_ends_before_what_was_imported_from_it_is_an_error_and_nothing_is_doubled(path: Path) -> None:
    into = path.with_name("into.db")
    await sdk_add(path, ONE)
    older = path.read_bytes()
    await sdk_add(path, TWO)
    await import_history(path, into=into)
    path.write_bytes(older)
    with pytest.raises(StorageError, match="older copy, or another file"):
        await import_history(path, into=into)
    assert await get(into) == [ONE, TWO]


async def test_a_popped_last_row_does_not_hide_what_was_imported(path: Path) -> None:
    into = path.with_name("into.db")
    await sdk_add(path, ONE, TWO)
    await import_history(path, into=into)
    async with sdk_session("user_123", path) as session:
        await session.pop_item()
    assert await import_history(path, into=into) == Takeover(already_taken=1)
    await sdk_add(path, THREE)
    assert (await import_history(path, into=into)).items == 1
    assert await get(into) == [ONE, TWO, THREE]


async def test_corrupt_text_and_odd_ids_are_imported_as_they_are_taken_over(path: Path) -> None:
    await sdk_add(path, ONE, TWO)
    await sdk_add(path, ONE, session_id="")
    rows(path, "UPDATE agent_messages SET message_data = CAST(x'7bff' AS TEXT) WHERE id = 2")
    into = path.with_name("into.db")
    assert await import_history(path, into=into) == Takeover(sessions=1, items=1 + 1, skipped=("''",))
    assert rows(into, "SELECT typeof(item), CAST(item AS BLOB) FROM agentmem_items ORDER BY sequence DESC LIMIT 1") == [
        ("text", b"{\xff")
    ]


@pytest.mark.parametrize("into", [None, "into.db"], ids=["here", "into another"])
@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (None, StorageError, "there is no file"),
        (b"Dear diary " * 1000, StorageCorruptError, "not a database"),
        (b"", StorageError, "has no table 'agent_messages'.*--messages-table"),
    ],
    ids=["missing", "no database", "no tables"],
)
async def test_a_file_without_the_sdk_s_history_is_a_named_error_and_nothing_is_made(
    path: Path, into: str | None, content: bytes | None, error: type[StorageError], match: str
) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StorageError, match=match) as raised:
        await import_history(path, into=into and path.with_name(into))
    assert type(raised.value) is error
    assert str(path) in str(raised.value)
    assert [found.read_bytes() for found in path.parent.iterdir()] == ([] if content is None else [content])


# Many at once, and killed

_OPEN = """
import asyncio, sys
from agentmem.integrations.openai_agents import AsyncSQLiteSession
async def main():
    async with AsyncSQLiteSession(sys.argv[2], sys.argv[1]) as session:
        print(len(await session.get_items()), flush=True)
        sys.stdin.readline()
print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
"""


@exhaustive
async def test_processes_that_open_at_the_same_instant_take_it_over_once(path: Path) -> None:
    await sdk_add(path, *({"n": n} for n in range(5000)))
    for _ in range(2):
        copy = path.with_name("copy.db")
        copy.write_bytes(path.read_bytes())
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(Child(_OPEN, copy, "user_123")) for _ in range(3)]
            assert [child.read_line() for child in children] == ["ready"] * 3
            for child in children:
                child.write_line()
            assert [child.read_line() for child in children] == ["5000"] * 3
            assert [child.finish()[::2] for child in children] == [(0, "")] * 3
        assert await get(copy) == [{"n": n} for n in range(5000)]
        copy.unlink()


@exhaustive
async def test_a_takeover_that_is_killed_has_taken_all_or_nothing(path: Path) -> None:
    text = "x" * 1000
    await sdk_add(path, *({"n": n, "text": text} for n in range(15_000)))
    before, outcomes = path.read_bytes(), set()
    for frames in (0, 200, 3_000):
        copy = path.with_name("copy.db")
        copy.write_bytes(before)
        wal = copy.with_name("copy.db-wal")
        with Child(_OPEN, copy, "user_123") as child:
            assert child.read_line() == "ready"
            child.write_line()
            while (wal.stat().st_size if wal.exists() else 0) <= frames * 4096:  # it is writing, this far
                pass
        copied = path.with_name("after.db")
        copied.write_bytes(copy.read_bytes())
        copied.with_name("after.db-wal").write_bytes(wal.read_bytes() if wal.exists() else b"")
        tables = rows(copied, "SELECT count(*) FROM sqlite_master WHERE name LIKE 'agentmem%' AND type = 'table'")
        items = rows(copied, "SELECT count(*) FROM agentmem_items") if tables != [(0,)] else [(0,)]
        outcomes.add((tables[0][0], items[0][0]))
        assert await get(copy) == [{"n": n, "text": text} for n in range(15_000)]
        for found in path.parent.glob("*"):
            if found != path:
                found.unlink()
    assert outcomes <= {(0, 0), (3, 15_000)}
    assert (0, 0) in outcomes


async def test_a_takeover_that_cannot_be_done_now_leaves_the_file_to_the_sdk_and_is_done_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sdk_add(path, ONE)
    before = sdk_rows(path)
    monkeypatch.setattr(SQLiteEngine, "__init__", partialmethod(SQLiteEngine.__init__, busy_timeout_s=0.1))
    session = AsyncSQLiteSession("user_123", path)
    with writer_lock(path) as other:
        with pytest.raises(StorageBusyError):
            await session.add_items([TWO])
        other.write_line()
        assert other.finish()[0] == 0
    assert sdk_rows(path) == before
    assert await session.get_items() == [ONE]
    await session.close()


# In turns

ITEMS = st.lists(st.integers(0, 9).map(lambda n: {"n": n}), min_size=1, max_size=3)
IDS = st.sampled_from(["a", "b"])


class Turns(RuleBasedStateMachine):
    """The SDK and agentmem write to one file in turns, next to a plain list for each session."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "conversations.db")
        self.model: dict[str, list[Item]] = {"a": [], "b": []}
        self.waiting: list[tuple[str, Item]] = []  # what the SDK has written since the last open

    def run(self, call: Any) -> Any:
        return self.loop.run_until_complete(call)

    def _taken_over(self) -> None:
        for session_id, item in self.waiting:
            self.model[session_id].append(item)
        self.waiting.clear()

    @rule(session_id=IDS, items=ITEMS, kind=st.sampled_from(["sync", "async"]))
    def the_sdk_adds(self, session_id: str, items: list[Item], kind: str) -> None:
        self.run(sdk_add(self.path, *items, session_id=session_id, kind=kind))
        self.waiting += [(session_id, item) for item in items]

    @rule(session_id=IDS)
    def the_sdk_pops(self, session_id: str) -> None:
        async def pop() -> None:
            async with sdk_session(session_id, self.path) as session:
                await session.pop_item()

        self.run(pop())
        mine = [place for place, (name, _) in enumerate(self.waiting) if name == session_id]
        if mine:  # not yet taken over: gone; else it stays
            del self.waiting[mine[-1]]

    @rule(session_id=IDS)
    def the_sdk_clears(self, session_id: str) -> None:
        async def clear() -> None:
            async with sdk_session(session_id, self.path) as session:
                await session.clear_session()

        self.run(clear())
        self.waiting = [(name, item) for name, item in self.waiting if name != session_id]

    @rule(session_id=IDS, items=ITEMS)
    def agentmem_adds(self, session_id: str, items: list[Item]) -> None:
        self.run(add(self.path, *items, session_id=session_id))
        self._taken_over()
        self.model[session_id] += items

    @rule(session_id=IDS, call=st.sampled_from(["pop_item", "clear_session"]))
    def agentmem_removes(self, session_id: str, call: str) -> None:
        async def remove() -> None:
            session = SQLiteSession(session_id, self.path)
            await getattr(session, call)()
            session.close()

        self.run(remove())
        self._taken_over()
        del self.model[session_id][-1 if call == "pop_item" else 0 :]

    @rule(session_id=IDS)
    def agentmem_reads(self, session_id: str) -> None:
        items = self.run(get(self.path, session_id))
        self._taken_over()
        assert items == self.model[session_id]

    @rule()
    def by_hand(self) -> None:
        if self.path.exists() and rows(self.path, "SELECT 1 FROM sqlite_master WHERE name = 'agent_messages'"):
            assert self.run(import_history(self.path)).items == len(self.waiting)
            self._taken_over()

    @invariant()
    def positions_have_no_gaps(self) -> None:
        if self.path.exists() and rows(self.path, "SELECT 1 FROM sqlite_master WHERE name = 'agentmem_items'"):
            for session_id, items in self.model.items():
                query = "SELECT position, item FROM agentmem_history WHERE session_id = ? ORDER BY position"
                found = [(position, json.loads(item)) for position, item in rows(self.path, query, session_id)]
                assert found == list(enumerate(items))

    async def _finish(self) -> None:
        """What asyncio.run() does at its end: wait for a close() under way, and end the threads that the SDK used."""
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        await asyncio.get_running_loop().shutdown_default_executor()

    def teardown(self) -> None:
        self.loop.run_until_complete(self._finish())
        self.loop.close()
        self.folder.cleanup()


@exhaustive
@pytest.mark.hypothesis
def test_where_the_sdk_and_agentmem_write_in_turns_nothing_is_lost_doubled_or_reordered() -> None:
    run_state_machine_as_test(Turns, settings=hypothesis_settings(stateful_step_count=15))
