"""Under another event loop than asyncio's, such as trio's, every async call says what to do instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentmem import Agent, AsyncPostgresSession, AsyncSessionStore, AsyncSQLiteSession, Runner
from agentmem.runner import OfflineModel

ADVICE = "need a running event loop of asyncio, and there is none here. Under trio, call the sync classes in a thread"

CALLS: dict[str, Callable[[Any, Any], Awaitable[object]]] = {
    "get_items": lambda session, store: session.get_items(),
    "add_items": lambda session, store: session.add_items([{"role": "user", "content": "one"}]),
    "pop_item": lambda session, store: session.pop_item(),
    "clear_session": lambda session, store: session.clear_session(),
    "async with session": lambda session, store: session.__aenter__(),
    "open": lambda session, store: store.open(),
    "check": lambda session, store: store.check(),
    "backup": lambda session, store: store.backup("copy.db"),
    "copy_to": lambda session, store: store.copy_to(AsyncSessionStore(":memory:")),
    "run": lambda session, store: Runner.run(Agent("A", None, model=OfflineModel()), "Hi", session=session),
    "stream": lambda session, store: Runner.run_streamed(Agent("A", None, model=OfflineModel()), "Hi").result(),
}


def drive(call: Awaitable[object]) -> None:
    """Drive a coroutine as another library's event loop does: without one of asyncio's."""
    call.__await__().send(None)


@pytest.mark.parametrize("call", CALLS)
def test_an_async_call_without_asyncio_says_what_to_do_and_leaves_nothing_behind(tmp_path: Path, call: str) -> None:
    path = tmp_path / "conversations.db"
    with pytest.raises(RuntimeError, match=ADVICE):
        drive(CALLS[call](AsyncSQLiteSession(path, session_id="alice"), AsyncSessionStore(path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["get_items", "add_items", "pop_item", "clear_session", "async with session"])
def test_a_database_in_memory_and_one_on_a_server_say_the_same(call: str) -> None:
    pytest.importorskip("asyncpg", reason="asyncpg is not installed")
    memory = AsyncSQLiteSession(":memory:", session_id="alice")
    server = AsyncPostgresSession("postgresql://me@nowhere.invalid/db", session_id="alice")
    for session in (memory, server):
        with pytest.raises(RuntimeError, match=ADVICE):
            drive(CALLS[call](session, None))
