"""What a cleared session leaves is removed in slices: nobody sees it, nobody waits for it, and no crash keeps it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from database import shell
from processes import run
from waiting import WAIT_S, wait_until

from agentmem import AsyncSessionStore, SessionStore
from agentmem.engines.batching import Batch
from agentmem.engines.sqlite import removal
from agentmem.engines.sqlite.connection import Connection, Outcome
from agentmem.engines.sqlite.file import FileIdentity
from agentmem.engines.sqlite.removal import LOCKED_PAUSE_S, MAX_BATCHES, MIN_PAUSE_S, SLICE_ROWS, Removals
from agentmem.engines.sqlite.schema import prepare_writer
from agentmem.engines.sqlite.statements import CLEARED_AT_ONCE
from agentmem.engines.sqlite.tables import SCHEMA_VERSION
from agentmem.items import Item

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
MANY = 3 * SLICE_ROWS + 1
"""Items that take four slices."""

NEVER_S = 100_000.0
"""As a pause: as good as for ever."""


def left(path: Path) -> tuple[int, int, int]:
    """What is left of sessions that are gone: keys, items, notes."""
    with shell(path) as other:
        (keys,) = other.execute("SELECT count(*) FROM agentmem_removed").fetchone()
        counts = [
            other.execute(
                f"SELECT count(*) FROM {table} WHERE session_key NOT IN (SELECT session_key FROM agentmem_sessions)"
            ).fetchone()[0]
            for table in ("agentmem_items", "agentmem_notes")
        ]
    return keys, counts[0], counts[1]


async def fill(path: Path, session_id: str = "gone", items: int = MANY) -> None:
    async with AsyncSessionStore(path) as store:
        await store.session(session_id).add_items([{"n": number} for number in range(items)])


def lose_row(path: Path, session_id: str = "gone", notes: int = 0) -> None:
    """What the first transaction of a clear leaves, where the process is killed after it."""
    with shell(path) as other:
        (key,) = other.execute(
            "SELECT session_key FROM agentmem_sessions WHERE session_id = ?", (session_id,)
        ).fetchone()
        for number in range(notes):
            other.execute("INSERT INTO agentmem_notes VALUES (?, 'kind', ?, NULL, '{}')", (key, str(number)))
        other.execute("INSERT INTO agentmem_removed VALUES (?)", (key,))
        other.execute("DELETE FROM agentmem_sessions WHERE session_key = ?", (key,))


# What is seen of it


@pytest.mark.parametrize("items", [1, CLEARED_AT_ONCE, CLEARED_AT_ONCE + 1, 5 * CLEARED_AT_ONCE])
async def test_a_cleared_session_is_gone_at_once_and_begins_anew_and_all_that_it_left_is_removed(
    path: Path, items: int
) -> None:
    await fill(path, items=items)
    await fill(path, "other", items=3)
    async with AsyncSessionStore(path) as store:
        session = store.session("gone")
        await session.clear_session()
        assert await session.get_items() == []
        await session.add_items([ONE])
        assert await session.get_items() == [ONE]
        report = await store.check()
        assert (report.sessions, report.items, report.problems) == (2, 4, ())
        await asyncio.to_thread(wait_until, lambda: left(path) == (0, 0, 0))
        assert await session.get_items() == [ONE]
        assert len(await store.session("other").get_items()) == 3
        assert (await store.check()).problems == ()
    with shell(path) as other:
        positions = other.execute("SELECT position FROM agentmem_history WHERE session_id = 'gone'").fetchall()
        assert positions == [(0,)]


async def test_a_small_session_goes_in_its_clear(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Removals, "is_due", lambda self: False)
    await fill(path, items=CLEARED_AT_ONCE)
    async with AsyncSessionStore(path) as store:
        await store.session("gone").clear_session()
        assert left(path) == (0, 0, 0)
        await store.session("large").add_items([ONE] * (CLEARED_AT_ONCE + 1))
        await store.session("large").clear_session()
        assert left(path) == (1, CLEARED_AT_ONCE + 1, 0)
        report = await store.check()
        assert (report.sessions, report.items, report.problems) == (0, 0, ())


@pytest.mark.parametrize("items", [3, MANY])
async def test_notes_and_the_lock_go_with_their_session(path: Path, items: int) -> None:
    await fill(path, items=items)
    await fill(path, "other", items=3)
    with shell(path) as shared:
        for session_id in ("gone", "other", "not begun"):
            shared.execute("INSERT INTO agentmem_locks VALUES (?, 'token', 'me', 1, 2, 3)", (session_id,))
        for kind in ("key", "summary"):
            shared.execute(
                "INSERT INTO agentmem_notes SELECT session_key, ?, 'name', 1, '{}' FROM agentmem_sessions", (kind,)
            )
    async with AsyncSessionStore(path) as store:
        for session_id in ("gone", "not begun"):
            await store.session(session_id).clear_session()
        await asyncio.to_thread(wait_until, lambda: left(path) == (0, 0, 0))
        assert (await store.check()).problems == ()
    with shell(path) as shared:
        assert shared.execute("SELECT session_id FROM agentmem_locks").fetchall() == [("other",)]
        assert shared.execute("SELECT count(*) FROM agentmem_notes").fetchone() == (2,)


async def test_a_session_in_memory_is_removed_likewise() -> None:
    async with AsyncSessionStore(":memory:") as store:
        session = store.session("gone")
        await session.add_items([ONE] * MANY)
        await session.clear_session()
        await session.add_items([ONE])
        assert await session.get_items() == [ONE]
        report = await store.check()
        assert (report.items, report.problems) == (1, ())


# Who takes it up


async def test_what_a_crash_left_is_no_problem_and_whoever_opens_the_file_next_removes_it(path: Path) -> None:
    await fill(path)
    lose_row(path, notes=SLICE_ROWS + 1)
    store = AsyncSessionStore(path)
    report = await store.check()
    assert (report.sessions, report.items, report.problems) == (0, 0, ())
    assert left(path) == (1, MANY, SLICE_ROWS + 1)
    assert await store.session("gone").get_items() == []
    await asyncio.to_thread(wait_until, lambda: left(path) == (0, 0, 0))
    await store.close()


_CRASHES = """
import os, sys
from agentmem import SessionStore

store = SessionStore(sys.argv[1])
store.session("gone").clear_session()
os._exit(9)
"""


async def test_a_process_that_ends_right_after_its_clear_has_cleared(path: Path) -> None:
    await fill(path, items=20 * SLICE_ROWS)
    assert run(_CRASHES, path) == (9, "", "")
    with SessionStore(path) as store:
        assert store.session("gone").get_items() == []
        report = store.check()
        assert (report.items, report.problems) == (0, ())
        wait_until(lambda: left(path) == (0, 0, 0))


async def test_what_has_items_and_a_row_although_it_is_being_removed_is_a_problem(path: Path) -> None:
    await fill(path, items=2)
    store = AsyncSessionStore(path)
    with shell(path) as other:
        other.execute("INSERT INTO agentmem_removed SELECT session_key FROM agentmem_sessions")
        other.execute("INSERT INTO agentmem_notes VALUES (77, 'kind', 'name', NULL, '{}')")
        other.execute("INSERT INTO agentmem_items VALUES (99, 'x', 1.5, 0, '{}')")
        other.execute("INSERT INTO agentmem_locks VALUES ('not begun', 'token', 'me', 1, 2, 3)")
    assert [str(problem) for problem in (await store.check()).problems] == [
        "1 items whose session key or position is not a whole number",
        "1 notes of sessions that are missing",
        "1 sessions whose items are being removed, although they were not cleared",
    ]


# Nobody waits for it


async def test_closing_waits_for_one_slice_and_calls_for_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "MIN_PAUSE_S", NEVER_S)
    await fill(path)
    lose_row(path)
    async with AsyncSessionStore(path) as store:
        for _ in range(3 * MAX_BATCHES):
            await store.session("mine").add_items([ONE])
        await asyncio.to_thread(wait_until, lambda: left(path) == (1, MANY - SLICE_ROWS, 0))
    assert left(path) == (1, MANY - SLICE_ROWS, 0)


@pytest.fixture
async def connection(path: Path) -> Any:
    """A connection that writes, to a file with a session that was cleared, and which removes nothing by itself."""
    await fill(path)
    lose_row(path)

    def prepare(opened: Connection) -> None:
        opened.file = FileIdentity(str(path))
        prepare_writer(opened, str(path), durability="full", accepts_sdk_file=False)
        opened.file.remember_wal()

    opened = await Connection.open(str(path), prepare)
    yield opened
    await opened.close()


async def test_a_slice_is_small_and_leaves_the_file_to_others_afterwards(path: Path, connection: Connection) -> None:
    removals = Removals(str(path))
    for rows in (MANY - SLICE_ROWS, MANY - 2 * SLICE_ROWS, 1, 0):
        pause_s = await connection.call(removals.run)
        assert pause_s >= MIN_PAUSE_S
        assert removals.is_due()
        assert left(path) == (int(rows > 0), rows, 0)
        with shell(path) as other:
            other.execute("BEGIN IMMEDIATE")  # at once
            other.execute("COMMIT")
    await connection.call(removals.run)
    assert not removals.is_due()
    removals.look()
    assert removals.is_due()


async def test_a_slice_that_meets_a_lock_is_tried_again_later(path: Path, connection: Connection) -> None:
    removals = Removals(str(path))
    with shell(path) as other:
        other.execute("BEGIN IMMEDIATE")
        assert await connection.call(removals.run) == LOCKED_PAUSE_S
        other.execute("COMMIT")
    assert removals.is_due()
    assert left(path) == (1, MANY, 0)
    await connection.call(removals.run)
    assert left(path) == (1, MANY - SLICE_ROWS, 0)


def _fetch(statement: str, connection: Connection) -> Any:
    return connection.raw.execute(statement).fetchone()


def _upgrade(path: Path) -> None:
    with shell(path) as other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def _move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def _drop(path: Path) -> None:
    with shell(path) as other:
        other.execute("DROP TABLE agentmem_notes")


@pytest.mark.parametrize("change", [_upgrade, _move, _drop])
async def test_nothing_is_removed_from_a_file_that_has_changed_under_the_connection(
    path: Path, connection: Connection, change: Callable[[Path], None]
) -> None:
    removals = Removals(str(path))
    for _ in range(3):
        await connection.call(removals.run)
    change(path)
    await connection.call(removals.run)
    assert not removals.is_due()
    for table in ("agentmem_items", "agentmem_removed"):
        count = f"SELECT count(*) FROM {table}"
        assert await connection.call(partial(_fetch, count)) == (1,)
    if not path.exists():
        path.with_name("moved.db").rename(path)


async def test_nothing_is_removed_where_an_upgrade_comes_just_before_the_transaction(
    path: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upgrade_before(raw: sqlite3.Connection) -> int | None:
        monkeypatch.undo()
        _upgrade(path)
        return removal._next_key(raw)

    monkeypatch.setattr(removal, "_next_key", upgrade_before)
    removals = Removals(str(path))
    await connection.call(removals.run)
    assert not removals.is_due()
    assert left(path) == (1, MANY, 0)


class _Counting:
    """Spare work that never ends, and notes how many batches had run before each part of it."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.batches = 0

    def look(self) -> None:
        pass

    def is_due(self) -> bool:
        return True

    def is_overdue(self) -> bool:
        return self.batches - (self.done or [0])[-1] >= 5

    def run(self, connection: Connection) -> float:
        self.done.append(self.batches)
        return 0.0 if self.batches < 12 else NEVER_S


class _Batch:
    """The origin of one batch, which does what it is told."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.loop = asyncio.get_running_loop()
        self.batch: Batch[Any] = Batch(1, 0, [])
        self.ended = asyncio.Event()
        self._work = work

    def run(self, connection: Connection, batch: Batch[Any]) -> None:
        self._work()

    def take_in(self, outcome: Outcome) -> None:
        self.ended.set()

    def returned(self, batch: Batch[Any]) -> None:
        raise AssertionError("it was open")

    def waits(self, met: Exception | None) -> None:
        pass


async def test_spare_work_is_done_while_no_batch_waits_and_at_times_although_some_do(connection: Connection) -> None:
    work = _Counting()
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(WAIT_S)

    def count() -> None:
        work.batches += 1

    first, *rest = batches = [_Batch(hold), *(_Batch(count) for _ in range(12))]
    connection.send(first, first.batch)
    await asyncio.to_thread(begun.wait)
    connection.removals = work
    for batch in rest:
        connection.send(batch, batch.batch)
    go_on.set()
    for batch in batches:
        await batch.ended.wait()
    await asyncio.to_thread(wait_until, lambda: len(work.done) == 3)
    assert work.done == [5, 10, 12]  # where it was overdue; and the last when nothing waited any more


def test_removals_are_overdue_after_some_batches(path: Path) -> None:
    removals = Removals(str(path))
    assert [removals.is_overdue() for _ in range(MAX_BATCHES + 1)] == [False] * MAX_BATCHES + [True]
