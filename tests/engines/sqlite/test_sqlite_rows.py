"""What stands in the rows of an SQLite file after each verb: lengths, edits, times, and numbers never issued twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from database import shell

from agentmem import AsyncSessionStore
from agentmem.items import Item

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}


def row(path: Path, session_id: str = "user_123") -> dict[str, Any]:
    """A session's row."""
    with shell(path) as other:
        cursor = other.execute("SELECT * FROM agentmem_sessions WHERE session_id = ?", (session_id,))
        (found,) = cursor.fetchall()
        return dict(zip([name for name, *_ in cursor.description], found, strict=True))


def sequences(path: Path) -> list[int]:
    with shell(path) as other:
        return [number for (number,) in other.execute("SELECT sequence FROM agentmem_items ORDER BY position")]


async def test_an_append_sets_length_and_times_and_is_no_edit(path: Path) -> None:
    before = time.time_ns() // 1000
    async with AsyncSessionStore(path) as store:
        session = store.session("user_123")
        await session.add_items([ONE, ONE])
        first = row(path)
        await session.add_items([ONE])
        second = row(path)
    assert (first["length"], second["length"]) == (2, 3)
    assert before <= first["created_at"] == first["updated_at"] == first["stored_at"]
    assert first["created_at"] == second["created_at"]
    assert second["updated_at"] == second["stored_at"] >= first["updated_at"]
    assert all(isinstance(second[name], int) for name in ("created_at", "updated_at", "stored_at"))
    assert (second["edits"], second["first_position"]) == (0, 0)
    rest = ("owner", "title", "metadata", "expires_at", "forked_from", "forked_length")
    assert [second[name] for name in rest] == [None] * 6
    with shell(path) as other:
        times = other.execute("SELECT created_at FROM agentmem_items ORDER BY position").fetchall()
    assert times == [(first["updated_at"],), (first["updated_at"],), (second["updated_at"],)]


async def test_a_pop_that_removes_something_is_an_edit_and_any_other_is_none(path: Path) -> None:
    async with AsyncSessionStore(path) as store:
        session = store.session("user_123")
        await session.add_items([ONE, ONE])
        before = row(path)
        await session.pop_item()
        popped = row(path)
        assert (popped["length"], popped["edits"]) == (1, 1)
        assert popped["updated_at"] == popped["stored_at"] > before["updated_at"]
        await session.pop_item()
        assert await session.pop_item() is None
        emptied = row(path)
        assert (emptied["length"], emptied["edits"]) == (0, 2)
        await session.clear_session()
        await session.add_items([ONE])
        assert (row(path)["length"], row(path)["edits"]) == (1, 0)


async def test_a_cut_removes_the_notes_of_what_it_removes_but_keys_of_appends(path: Path) -> None:
    async with AsyncSessionStore(path) as store:
        await store.session("user_123").add_items([ONE] * 3)
        await store.session("other").add_items([ONE] * 3)
        notes = [(kind, str(position), position) for kind in ("key", "summary") for position in (None, 0, 1, 2, 3)]
        with shell(path) as other:
            for note in notes:
                other.execute(
                    "INSERT INTO agentmem_notes SELECT session_key, ?, ?, ?, '{}' FROM agentmem_sessions", note
                )
        await store.session("user_123").pop_item()
        with shell(path) as other:
            found = other.execute(
                "SELECT session_id, kind, name FROM agentmem_notes JOIN agentmem_sessions USING (session_key)"
            ).fetchall()
    kept = {("user_123", kind, name) for kind, name, position in notes if kind == "key" or (position or 0) < 2}
    assert set(found) == kept | {("other", kind, name) for kind, name, _ in notes}


async def test_no_sequence_and_no_session_key_is_issued_twice(path: Path) -> None:
    async with AsyncSessionStore(path) as store:
        session = store.session("user_123")
        await session.add_items([ONE, ONE])
        await session.pop_item()
        await session.add_items([ONE])
        assert sequences(path) == [1, 3]
        key = row(path)["session_key"]
        await session.clear_session()
    async with AsyncSessionStore(path) as store:
        await store.session("user_123").add_items([ONE])
        assert sequences(path) == [4]
        assert row(path)["session_key"] > key


async def test_items_have_their_sequence_in_the_order_in_which_they_were_appended(path: Path) -> None:
    async with AsyncSessionStore(path) as store:
        for number in range(6):
            await store.session(f"user_{number % 2}").add_items([{"n": number}])
    with shell(path) as other:
        found = other.execute("SELECT item FROM agentmem_items ORDER BY sequence").fetchall()
    assert found == [(f'{{"n":{number}}}',) for number in range(6)]
