"""However many sessions, tasks, event loops and processes share a file, they use few connections and lose nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import sqlite3
import struct
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import anyio
import pytest
from database import connections, stored
from exhaustive import cases, exhaustive
from loops import loop_in_a_thread
from processes import (
    Child,
    files,
    holdings,
    holds_again,
    needs_fork,
    run_quietly,
    running_threads,
    started_since,
    wait_until,
    writer_lock,
)
from stepping import AsyncioCycleLoop, CycleLoop, cycle_loops, on_every_loop

from agentmem import AsyncSession, AsyncSessionStore, AsyncSQLiteSession
from agentmem.engines.sqlite.connection import Connection
from agentmem.engines.sqlite.pool import READERS, SECOND_BATCH_AT, Database, Pool
from agentmem.errors import SessionClosedError, StorageBusyError, StorageCorruptError, StorageError
from agentmem.items import Item

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
TWO: Item = {"role": "user", "content": "two"}


def commits(path: Path) -> int:
    """How many transactions are in the WAL: its frames that end one (sqlite.org/fileformat2.html#walformat)."""
    wal = path.with_name(path.name + "-wal").read_bytes()
    page_size, salt = struct.unpack(">I", wal[8:12])[0], wal[16:24]
    frames = (wal[start : start + 24] for start in range(32, len(wal), 24 + page_size))
    return sum(frame[4:8] != bytes(4) and frame[8:16] == salt for frame in frames)


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    before = holdings()
    yield
    holds_again(before)


# Sharing


async def test_64_tasks_that_add_to_one_session_at_once_keep_each_batch_whole_and_in_order(path: Path) -> None:
    async def add(task: int) -> None:
        async with AsyncSQLiteSession(path, session_id="user_123") as session:
            for batch in range(5):
                await session.add_items([{"task": task, "batch": batch, "place": place} for place in range(3)])

    await asyncio.gather(*map(add, range(64)))
    items = stored(path)
    batches = [items[start : start + 3] for start in range(0, len(items), 3)]
    assert all([item["place"] for item in batch] == [0, 1, 2] for batch in batches)
    assert all(len({(item["task"], item["batch"]) for item in batch}) == 1 for batch in batches)
    for task in range(64):
        assert [batch[0]["batch"] for batch in batches if batch[0]["task"] == task] == list(range(5))


async def test_many_sessions_written_and_read_at_once_keep_apart(path: Path) -> None:
    async def talk(store: AsyncSessionStore, number: int) -> None:
        session = store.session(f"user_{number}")
        for turn in range(3):
            await session.add_items([{"user": number, "turn": turn}])
            assert await session.get_items() == [{"user": number, "turn": earlier} for earlier in range(turn + 1)]

    async with AsyncSessionStore(path) as store:
        await asyncio.gather(*(talk(store, number) for number in range(500)))


@exhaustive
async def test_10_000_open_handles_use_the_threads_and_descriptors_of_one_and_at_most_4_kb_each(
    path: Path,
) -> None:
    async def all_lanes(session: AsyncSession) -> None:
        await asyncio.gather(*(session.get_items() for _ in range(500)), session.add_items([ONE]))

    before = holdings()
    first = AsyncSQLiteSession(path, session_id="first")
    await all_lanes(first)
    with_one = holdings()
    gc.collect()
    tracemalloc.start()
    try:
        handles = [AsyncSQLiteSession(path, session_id=f"user_{number}") for number in range(10_000)]
        for handle in handles:
            await handle.__aenter__()
        gc.collect()
        size_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert size_bytes / len(handles) <= 4096
    await asyncio.gather(*(handle.add_items([ONE]) for handle in handles[::10]))
    await asyncio.gather(*(handle.get_items() for handle in handles))
    await all_lanes(first)
    holds_again(with_one)
    await first.close()
    for handle in handles[1:]:
        await handle.close()
    assert await handles[0].get_items() == [ONE]
    await handles[0].close()
    holds_again(before)
    assert files(path) == {path.name}


async def test_a_pool_has_one_writer_and_a_few_readers_each_opened_when_it_is_needed(path: Path) -> None:
    def added() -> int:
        return len(started_since(before))

    before = running_threads()
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        assert added() == 1
        await session.add_items([ONE])
        assert added() == 1
        await session.get_items()
        assert added() == 2
        await asyncio.gather(*(session.get_items() for _ in range(1000)), session.add_items([ONE]))
        assert added() == 1 + READERS


async def test_the_connection_that_writes_is_the_last_to_close_so_that_no_reader_checkpoints(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    disconnect = Connection.disconnect

    def note_and_disconnect(self: Connection) -> None:
        if self.is_open:
            closed.append(self.is_writer)
        disconnect(self)

    monkeypatch.setattr(Connection, "disconnect", note_and_disconnect)
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await asyncio.gather(*(session.get_items() for _ in range(1000)), session.add_items([ONE]))
    assert closed == [False] * READERS + [True]


async def test_every_way_to_write_a_path_leads_to_one_pool(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.db").symlink_to(path)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    ways: list[str | Path] = [path, str(path), path.name, f"sqlite:///{path.name}", f"sqlite:///{path}", "link.db"]
    ways += [Path("link", path.name), f"folder/../{path.name}"]
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([ONE])
        await session.get_items()
        with_one = holdings()
        handles = [AsyncSQLiteSession(way, session_id="user_123") for way in ways]
        for handle in handles:
            assert await handle.get_items() == [ONE]
            assert handle.run_key == session.run_key
        holds_again(with_one)
        for handle in handles:
            await handle.close()


async def test_handles_share_a_pool_whatever_their_timeouts_and_have_one_of_their_own_for_another_durability(
    path: Path,
) -> None:
    before = holdings()
    async with (
        AsyncSQLiteSession(path, session_id="user_123") as usual,
        AsyncSQLiteSession(path, session_id="user_123", durability="normal") as quick,
        AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=0) as hasty,
        AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=60) as patient,
    ):
        for number, session in enumerate((usual, quick, hasty, patient, quick, usual)):
            await session.add_items([{"number": number}])
            for reader in (usual, quick, hasty, patient):
                assert len(await reader.get_items()) == number + 1
        assert sum(connection.is_writer for connection in connections(path)) == 2
    holds_again(before)
    assert files(path) == {path.name}


async def test_a_handle_that_could_not_be_opened_holds_nothing_once_others_have_closed(path: Path) -> None:
    before = holdings()
    sqlite3.connect(path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            with pytest.raises(StorageBusyError):
                async with AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=0.01):
                    pass
        other.execute("COMMIT")
    async with AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=0.01) as session:
        await session.add_items([ONE])
    holds_again(before)
    assert files(path) == {path.name}


async def test_a_handle_that_could_not_be_opened_opens_with_its_next_call_when_the_reason_is_gone(path: Path) -> None:
    path.mkdir()
    session = AsyncSQLiteSession(path, session_id="user_123")
    for _ in range(2):
        with pytest.raises(StorageError, match="unable to open database file"):
            await session.__aenter__()
    path.rmdir()
    await session.add_items([ONE])
    assert await session.get_items() == [ONE]
    await session.close()


async def test_closing_finishes_the_calls_under_way_and_refuses_the_later_ones(path: Path) -> None:
    store = AsyncSessionStore(path)
    session = store.session("user_123")
    calls = []
    for number in range(100):
        calls.append(asyncio.create_task(session.add_items([{"number": number}])))
        if number < 3:
            await asyncio.sleep(0)  # some are under way, the others wait for their turn
    reading = asyncio.create_task(session.get_items())
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*calls, reading)
    assert stored(path) == [{"number": number} for number in range(100)]
    with pytest.raises(SessionClosedError):
        await session.add_items([ONE])
    await store.close()


async def test_closing_waits_for_the_writes_that_wait_for_their_turn(path: Path) -> None:
    store = AsyncSessionStore(path, busy_timeout_s=60)
    session = store.session("user_123")
    await session.add_items([ONE])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        calls = [asyncio.create_task(session.add_items([{"number": 0}]))]
        for _ in range(3):
            await asyncio.sleep(0)  # it is under way now
        calls += [asyncio.create_task(session.add_items([{"number": number}])) for number in range(1, 10)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.close())
        for _ in range(3):
            await asyncio.sleep(0)
        other.execute("COMMIT")
    await asyncio.gather(closing, *calls)
    assert stored(path) == [ONE, *({"number": number} for number in range(10))]


# Event loops


def test_a_handle_works_on_one_event_loop_after_the_other_and_the_closed_ones_are_reclaimed(path: Path) -> None:
    before = holdings()
    session = AsyncSQLiteSession(path, session_id="user_123")

    async def turn(number: int) -> None:
        await session.add_items([{"number": number}])
        assert len(await session.get_items()) == number + 1

    asyncio.run(turn(0))
    with_one = holdings()
    assert with_one != before
    for number in range(1, 10):
        asyncio.run(turn(number))
    holds_again(with_one)
    asyncio.run(session.close())
    holds_again(before)
    assert stored(path) == [{"number": number} for number in range(10)]
    assert files(path) == {path.name}


def test_handles_that_are_dropped_unclosed_with_their_loops_leave_one_pool_at_most(path: Path) -> None:
    async def request() -> None:
        await AsyncSQLiteSession(path, session_id="user_123").add_items([ONE])

    asyncio.run(request())
    with_one = holdings()
    for _ in range(10):
        asyncio.run(request())
    holds_again(with_one)
    assert len(stored(path)) == 11
    asyncio.run(_add_and_get(path))


async def test_pools_that_other_threads_abandon_at_any_step_of_opening_another_one_do_not_disturb_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr("agentmem.engines.sqlite.pool.stop_all", lambda connections: go_on.wait())  # long under way
    closed = asyncio.new_event_loop()
    closed.close()
    other = str(path.with_name("other.db"))
    left = Pool(Database(other, other, "other", durability="full"), closed)
    steps = 0

    def abandon_one() -> None:
        thread = threading.Thread(target=left.abandon)
        thread.start()
        thread.join()

    def at_each_step(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        if frame.f_code.co_filename in (inspect.getfile(Pool), weakref.__file__):
            steps += 1
            abandon_one()
            return at_each_step
        return None

    abandon_one()
    session = AsyncSQLiteSession(path, session_id="user_123")
    tracing = sys.gettrace()
    sys.settrace(at_each_step)
    try:
        await session.add_items([ONE])
    finally:
        sys.settrace(tracing)
        go_on.set()
        await session.close()
    assert steps
    assert stored(path) == [ONE]


def test_two_event_loops_in_two_threads_share_a_handle(path: Path) -> None:
    session = AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=60)
    begin = threading.Barrier(2)

    async def talk(thread: int) -> None:
        begin.wait()
        for number in range(50):
            await session.add_items([{"thread": thread, "number": number}, {"thread": thread, "number": -number}])
            items = await session.get_items()
            assert [item for item in items if item["thread"] == thread][-1]["number"] == -number

    def run(thread: int) -> None:
        asyncio.run(talk(thread))
        ended.append(thread)

    ended: list[int] = []
    running = [threading.Thread(target=run, args=(thread,)) for thread in range(2)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    assert sorted(ended) == [0, 1]
    asyncio.run(session.close())
    items = stored(path)
    assert all(items[at]["number"] == -items[at + 1]["number"] for at in range(0, 200, 2))
    for thread in range(2):
        assert [item["number"] for item in items[::2] if item["thread"] == thread] == list(range(50))


def test_a_handle_that_is_closed_on_one_event_loop_closes_on_the_others_too(path: Path) -> None:
    before = holdings()
    session = AsyncSQLiteSession(path, session_id="user_123")
    with loop_in_a_thread() as other:
        asyncio.run_coroutine_threadsafe(session.add_items([ONE]), other).result()
        asyncio.run(session.close())
        with pytest.raises(SessionClosedError):
            asyncio.run_coroutine_threadsafe(session.get_items(), other).result()
        wait_until(lambda: files(path) == {path.name})
    holds_again(before)


def test_a_handle_that_is_closed_elsewhere_while_its_event_loop_stands_still_is_closed_all_the_same(path: Path) -> None:
    before = holdings()
    session = AsyncSQLiteSession(path, session_id="user_123")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(session.add_items([ONE]))
    asyncio.run(session.close())
    wait_until(lambda: files(path) == {path.name})
    loop.close()
    holds_again(before)


# Group commit


@pytest.mark.parametrize(("count", "expected"), [(SECOND_BATCH_AT, 1), (2 * SECOND_BATCH_AT - 1, 1), (64, 2), (300, 2)])
async def test_writes_that_wait_together_are_committed_together_many_in_two_halves(
    path: Path, count: int, expected: int
) -> None:
    async with AsyncSessionStore(path) as store:
        await store.session("user_0").add_items([ONE])
        before = commits(path)
        await asyncio.gather(*(store.session(f"user_{number % 8}").add_items([ONE, TWO]) for number in range(count)))
        assert commits(path) - before == expected
        before = commits(path)
        await store.session("user_0").add_items([ONE])
        await store.session("user_0").add_items([ONE])
        assert commits(path) - before == 2


@pytest.mark.parametrize("loss", ["none", "of the connection"])
async def test_writes_happen_in_the_order_in_which_they_were_asked_for_however_many_wait(path: Path, loss: str) -> None:
    expected = [{"number": number} for number in range(400)]
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        calls = []
        for number in range(400):
            calls.append(asyncio.create_task(session.add_items([{"number": number}])))
            if number % 50 == 49:
                await asyncio.sleep(0)
            if loss == "of the connection" and number % 100 == 99:
                for connection in connections(path):
                    connection.disconnect()  # as before a fork
        await asyncio.gather(*calls)
        assert stored(path) == expected


def test_writes_keep_their_order_whenever_a_crowd_of_them_comes_while_the_file_is_opened(tmp_path: Path) -> None:
    for loop in cycle_loops():
        path = tmp_path / f"{loop._nth}.db"

        async def main(loop: CycleLoop = loop, path: Path = path) -> None:
            session = AsyncSQLiteSession(path, session_id="user_123")
            opening = asyncio.ensure_future(session.get_items())
            for _ in range(3):
                await asyncio.sleep(0)  # it has begun
            first = asyncio.ensure_future(session.add_items([{"number": 0}]))
            crowd: list[asyncio.Future[None]] = []

            def come() -> None:
                numbers = range(1, SECOND_BATCH_AT + 1)
                crowd.extend(asyncio.ensure_future(session.add_items([{"number": number}])) for number in numbers)

            loop.arm(lambda: _unless(first.done(), come))
            await asyncio.gather(opening, first)
            loop.disarm()
            await asyncio.gather(*crowd)
            assert await session.get_items() == [{"number": number} for number in range(1 + len(crowd))]
            await session.close()

        loop.run(main())


async def test_reads_that_wait_together_take_no_more_hops_than_there_are_readers(path: Path) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([ONE])
        await asyncio.gather(*(session.get_items() for _ in range(READERS * 64)))
        loop = asyncio.get_running_loop()
        hops = []
        call_soon_threadsafe = loop.call_soon_threadsafe

        def count(*args: Any, **kwargs: Any) -> asyncio.Handle:
            hops.append(args)
            return call_soon_threadsafe(*args, **kwargs)

        loop.call_soon_threadsafe = count  # type: ignore[assignment,method-assign]  # counts, and does the same
        try:
            await asyncio.gather(*(session.get_items() for _ in range(READERS * 64)))
        finally:
            del loop.call_soon_threadsafe
        assert len(hops) == READERS


async def test_a_write_that_fails_fails_alone_whatever_it_was_committed_with(path: Path) -> None:
    async with AsyncSessionStore(path) as store:
        for name in ("full", "popped", "cleared", "added"):
            await store.session(name).add_items([ONE, TWO])
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE agentmem_sessions SET length = 1 WHERE session_id = 'full'")
        outcomes = await asyncio.gather(
            store.session("popped").pop_item(),
            store.session("added").add_items([ONE]),
            store.session("full").add_items([ONE]),
            store.session("cleared").clear_session(),
            store.session("popped").add_items([ONE]),
            store.session("full").add_items([ONE]),
            store.session("popped").pop_item(),
            store.session("popped").pop_item(),
            store.session("cleared").add_items([TWO]),
            return_exceptions=True,
        )
        assert [outcomes[0], *outcomes[6:8]] == [TWO, ONE, ONE]
        assert isinstance(outcomes[2], StorageCorruptError)
        assert isinstance(outcomes[5], StorageCorruptError)
        assert [outcomes[at] for at in (1, 3, 4, 8)] == [None] * 4
    assert stored(path, "added") == [ONE, TWO, ONE]
    assert stored(path, "full") == [ONE, TWO]
    assert stored(path, "cleared") == [TWO]
    assert stored(path, "popped") == []


async def test_a_lock_held_by_another_process_makes_writes_fail_by_name_and_holds_up_no_read(path: Path) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=0.2) as session:
        await session.add_items([ONE])
        with writer_lock(path) as other:
            writes = [asyncio.create_task(session.add_items([TWO])) for _ in range(10)]
            writes += [asyncio.create_task(session.clear_session())]
            while not all(write.done() for write in writes):
                assert await session.get_items() == [ONE]
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {StorageBusyError}
            with pytest.raises(StorageBusyError, match="another process is writing; nothing was written"):
                await session.pop_item()
            other.write_line()
            assert other.finish() == (0, "", "")
        await session.add_items([TWO])
        assert await session.get_items() == [ONE, TWO]


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
async def test_opening_a_new_file_waits_for_another_process_that_opens_it(path: Path, lock: str) -> None:
    path.touch()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        # As a process does that is about to switch the file to WAL; SQLite itself does not wait for that everywhere.
        other.execute(f"BEGIN {lock}")
        asyncio.get_running_loop().call_later(0.2, other.execute, "ROLLBACK")
        async with AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=60) as session:
            assert not other.in_transaction
            await session.add_items([ONE])
    assert stored(path) == [ONE]


async def test_a_write_waits_for_another_process_and_goes_on_when_that_is_done(path: Path) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=60) as session:
        await session.add_items([ONE])
        with writer_lock(path) as other:
            write = asyncio.create_task(session.add_items([TWO]))
            assert await session.get_items() == [ONE]
            assert not write.done()
            other.write_line()
            await write
            assert other.finish() == (0, "", "")
        assert await session.get_items() == [ONE, TWO]


# Cancellation


class Handle(NamedTuple):
    """A session, and what opens and closes the connection behind it."""

    session: AsyncSession
    open: Callable[[], Awaitable[object]]
    close: Callable[[], Awaitable[None]]


def _alone(path: Path) -> Handle:
    session = AsyncSQLiteSession(path, session_id="user_123")
    return Handle(session, session.__aenter__, session.close)


def _of_store(path: Path) -> Handle:
    store = AsyncSessionStore(path)
    return Handle(store.session("user_123"), store.open, store.close)


Operation = Callable[[Handle], Awaitable[object]]

OPERATIONS: dict[str, tuple[Callable[[Path], Handle], bool, Operation, list[Item]]] = {
    # name: the handle, whether it is open and holds ONE before, the call, what it leaves when it is carried out
    "open": (_alone, False, lambda handle: handle.open(), []),
    "first add": (_alone, False, lambda handle: handle.session.add_items([ONE, TWO]), [ONE, TWO]),
    "first get": (_alone, False, lambda handle: handle.session.get_items(), []),
    "add": (_alone, True, lambda handle: handle.session.add_items([TWO, TWO]), [ONE, TWO, TWO]),
    "get": (_alone, True, lambda handle: handle.session.get_items(), [ONE]),
    "get a tail": (_alone, True, lambda handle: handle.session.get_items(1), [ONE]),
    "pop": (_alone, True, lambda handle: handle.session.pop_item(), []),
    "clear": (_alone, True, lambda handle: handle.session.clear_session(), []),
    "close": (_alone, True, lambda handle: handle.close(), [ONE]),
    "open a store": (_of_store, False, lambda handle: handle.open(), []),
    "first pop of a store's": (_of_store, False, lambda handle: handle.session.pop_item(), []),
    "first clear of a store's": (_of_store, False, lambda handle: handle.session.clear_session(), []),
    "add to a store's": (_of_store, True, lambda handle: handle.session.add_items([TWO, TWO]), [ONE, TWO, TWO]),
    "close a store": (_of_store, True, lambda handle: handle.close(), [ONE]),
}


def _unless(too_late: bool, act: Callable[[], None]) -> bool:
    if not too_late:
        act()
    return not too_late


async def _native(loop: CycleLoop, work: Callable[[], Awaitable[object]]) -> bool:
    task = asyncio.ensure_future(work())
    loop.arm(task.cancel)
    return isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)


async def _in_scope(loop: CycleLoop, work: Callable[[], Awaitable[object]]) -> bool:
    async def scoped() -> bool:
        with anyio.CancelScope() as scope:
            loop.arm(lambda: _unless(task.done(), scope.cancel))
            await work()
        return scope.cancelled_caught

    task = asyncio.ensure_future(scoped())
    try:
        return await task
    finally:
        loop.disarm()


async def _wait_for(loop: CycleLoop, work: Callable[[], Awaitable[object]]) -> bool:
    async def limited() -> None:
        await asyncio.wait_for(work(), 3600)

    return await _native(loop, limited)


WAYS = {"task.cancel": _native, "anyio": _in_scope, "wait_for": _wait_for}


@on_every_loop
@pytest.mark.parametrize(
    ("name", "way", "times"),
    cases(
        [
            (name, *way)
            for name in OPERATIONS
            for way in (("task.cancel", 1), ("task.cancel", 5), ("anyio", 1), ("wait_for", 1))
        ],
        quick=lambda case: case[0] in ("first add", "add") or case[1:] == ("task.cancel", 1),
    ),
)
def test_a_call_that_is_cancelled_at_any_moment_is_carried_out_or_not_and_leaves_nothing_behind(
    tmp_path: Path, name: str, way: str, times: int, kind: str, eager: bool
) -> None:
    make, is_open, operation, after = OPERATIONS[name]
    begun = False
    before_all = holdings()
    for loop in cycle_loops(times=times, kind=kind, eager=eager):
        path = tmp_path / f"{loop._nth}.db"

        async def main(loop: CycleLoop = loop, path: Path = path) -> tuple[bool, list[Item]]:
            handle = make(path)
            if is_open:
                await handle.session.add_items([ONE])
            cancelled = await WAYS[way](loop, lambda: operation(handle))
            loop.disarm()
            left = _left(path)
            await handle.close()
            assert _left(path) == left  # nothing happens after the outcome was raised
            return cancelled, left

        cancelled, left = loop.run(main())
        assert left in (_left_before(is_open), after)
        if not cancelled or begun:
            assert left == after  # what has begun finishes, and every later moment is one where it has begun
        begun = begun or (cancelled and left == after != _left_before(is_open))
        assert files(path) <= {path.name}
        holds_again(before_all)
    assert begun or after == _left_before(is_open) or (way, name) == ("anyio", "open")


def _left(path: Path) -> list[Item]:
    try:
        return stored(path) if path.exists() and path.stat().st_size else []
    except sqlite3.OperationalError:
        return []  # no tables yet


def _left_before(is_open: bool) -> list[Item]:
    return [ONE] if is_open else []


@on_every_loop
def test_a_handle_that_is_closed_at_any_moment_of_its_opening_leaves_nothing_open(
    tmp_path: Path, kind: str, eager: bool
) -> None:
    before = holdings()
    for loop in cycle_loops(kind=kind, eager=eager):
        path = tmp_path / f"{loop._nth}.db"

        async def main(loop: CycleLoop = loop, path: Path = path) -> None:
            session = AsyncSQLiteSession(path, session_id="user_123")
            opening = asyncio.ensure_future(session.__aenter__())
            closing: list[asyncio.Future[None]] = []
            loop.arm(lambda: _unless(opening.done(), lambda: closing.append(asyncio.ensure_future(session.close()))))
            try:
                await opening
            except SessionClosedError:
                pass  # it was closed before it began to open
            await asyncio.gather(*closing, session.close())

        loop.run(main())
        holds_again(before)
        assert files(path) <= {path.name}


@on_every_loop
def test_a_session_in_memory_whose_close_is_cancelled_at_any_moment_is_closed(kind: str, eager: bool) -> None:
    before = holdings()
    for loop in cycle_loops(kind=kind, eager=eager):

        async def main(loop: CycleLoop = loop) -> None:
            session = AsyncSQLiteSession(":memory:", session_id="user_123")
            await session.add_items([ONE])
            closing = asyncio.ensure_future(session.close())
            await asyncio.sleep(0)  # begun
            loop.arm(closing.cancel)
            await asyncio.gather(closing, return_exceptions=True)

        loop.run(main())
        holds_again(before)


def test_a_cancelled_write_that_waits_for_its_turn_is_never_written(path: Path) -> None:
    loop = AsyncioCycleLoop()

    async def main() -> None:
        async with AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=60) as session:
            await session.add_items([ONE])
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                first = asyncio.create_task(session.add_items([{"number": 1}]))
                for _ in range(3):
                    await asyncio.sleep(0)
                second, third = (asyncio.create_task(session.add_items([{"number": n}])) for n in (2, 3))
                await asyncio.sleep(0)
                for task in (first, second):
                    task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await second
                assert not first.done()
                other.execute("COMMIT")
            with pytest.raises(asyncio.CancelledError):
                await first
            assert stored(path)[:2] == [ONE, {"number": 1}]
            await third
        assert stored(path) == [ONE, {"number": 1}, {"number": 3}]

    loop.run(main())


@pytest.mark.parametrize("limit", ["wait_for", "anyio.fail_after", "anyio.move_on_after", "asyncio.timeout"])
async def test_a_write_whose_time_is_up_while_it_is_under_way_is_written_when_that_is_raised(
    path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    loop, rest = asyncio.get_running_loop(), Connection.rest
    real_time, passed_s = loop.time, 0.0

    def rest_and_have_its_time_up(self: Connection, pause_s: float) -> None:
        if not met:
            met.append(self)
            loop.call_soon_threadsafe(its_time_is_up)
        rest(self, pause_s)

    def its_time_is_up() -> None:
        nonlocal passed_s
        passed_s = 3600
        # Timers of one loop run in the order of their times, however slow the machine is.
        loop.call_later(0.1, other.execute, "COMMIT")

    met: list[Connection] = []
    monkeypatch.setattr(loop, "time", lambda: real_time() + passed_s)
    monkeypatch.setattr(Connection, "rest", rest_and_have_its_time_up)
    async with AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=60) as session:
        await session.add_items([ONE])
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            write = session.add_items([TWO])
            if limit == "wait_for":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(write, 3600)
            elif limit == "asyncio.timeout":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(3600):
                        await write
            elif limit == "anyio.fail_after":
                with pytest.raises(TimeoutError), anyio.fail_after(3600):
                    await write
            else:
                with anyio.move_on_after(3600) as scope:
                    await write
                assert scope.cancelled_caught
            assert not other.in_transaction
            assert stored(path) == [ONE, TWO]


@on_every_loop
def test_an_event_loop_that_ends_at_any_moment_stores_what_was_acknowledged(
    tmp_path: Path, kind: str, eager: bool
) -> None:
    before = holdings()
    for loop in cycle_loops(kind=kind, eager=eager):
        path = tmp_path / f"{loop._nth}.db"
        session = AsyncSQLiteSession(path, session_id="user_123")
        acknowledged: list[int] = []

        async def add(number: int, session: AsyncSession = session, acknowledged: list[int] = acknowledged) -> None:
            await session.add_items([{"number": number}, {"number": number}])
            acknowledged.append(number)

        async def main(loop: CycleLoop = loop, add: Callable[[int], Awaitable[None]] = add) -> None:
            ended = loop.create_future()
            loop.arm(lambda: _unless(ended.done(), lambda: ended.set_result(None)))
            adding = {asyncio.ensure_future(add(number)) for number in range(3)}
            while not ended.done() and not all(task.done() for task in adding):
                await asyncio.wait([ended, *adding], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                loop.disarm()

        loop.run(main())
        left = _left(path)
        assert left[::2] == left[1::2]
        assert set(acknowledged) <= {item["number"] for item in left}

        async def go_on(session: AsyncSession = session, left: list[Item] = left) -> None:
            await session.add_items([ONE])
            assert await session.get_items() == [*left, ONE]
            await session.close()

        asyncio.run(go_on())
        holds_again(before)
        assert files(path) == {path.name}


@on_every_loop
def test_after_every_task_was_cancelled_the_session_goes_on_whenever_that_was(
    tmp_path: Path, kind: str, eager: bool
) -> None:
    before = holdings()
    for loop in cycle_loops(kind=kind, eager=eager):
        path = tmp_path / f"{loop._nth}.db"

        async def main(loop: CycleLoop = loop, path: Path = path) -> None:
            session = AsyncSQLiteSession(path, session_id="user_123")
            calls = [asyncio.ensure_future(session.add_items([ONE])), asyncio.ensure_future(session.get_items())]
            me = asyncio.current_task()
            loop.arm(lambda: [task.cancel() for task in asyncio.all_tasks() - {me}] != [])
            await asyncio.gather(*calls, return_exceptions=True)
            left = await session.get_items()
            assert left in ([], [ONE])
            await session.add_items([TWO])
            assert await session.get_items() == [*left, TWO]
            await session.close()
            assert asyncio.all_tasks() == {me}

        loop.run(main())
        holds_again(before)


# Changes of the file


async def test_a_file_that_is_deleted_while_open_is_an_error_and_a_new_handle_starts_a_new_file(path: Path) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([ONE])
        path.unlink()
        for call in (session.add_items([TWO]), session.get_items(), session.pop_item(), session.clear_session()):
            with pytest.raises(StorageError, match="was deleted or moved while it was open"):
                await call
        # More readers than were open before: no call may create the file that it misses.
        outcomes = await asyncio.gather(*(session.get_items() for _ in range(500)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StorageError}
        assert not path.exists()
        async with AsyncSQLiteSession(path, session_id="user_123") as new:
            assert await new.get_items() == []
            await new.add_items([TWO])
            with pytest.raises(StorageError):
                await session.add_items([ONE])
        assert stored(path) == [TWO]


def put_another_there(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"another")


LOST: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "replaced": put_another_there,
    "emptied": lambda path: path.write_bytes(b""),
    "without its WAL": lambda path: path.with_name(f"{path.name}-wal").unlink(),
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
async def test_opening_a_store_again_says_each_time_that_its_file_is_lost_and_makes_no_new_one(
    path: Path, lose: Callable[[Path], object]
) -> None:
    async with AsyncSessionStore(path) as store, AsyncSQLiteSession(path, session_id="user_123") as session:
        await store.session("alice").add_items([ONE])
        lose(path)
        left = path.read_bytes() if path.exists() else None
        for _ in range(3):
            for opening in (store.open, session.__aenter__):
                with pytest.raises(StorageError, match=r"(was|were) .* while .* was open"):
                    await opening()
        assert (path.read_bytes() if path.exists() else None) == left


async def test_opening_a_store_again_goes_on_with_a_file_that_is_put_back(path: Path) -> None:
    async with AsyncSessionStore(path) as store:
        await store.session("alice").add_items([ONE])
        path.rename(path.with_suffix(".away"))
        with pytest.raises(StorageError, match="put it back"):
            await store.open()
        path.with_suffix(".away").rename(path)
        await store.open()
        assert await store.session("alice").get_items() == [ONE]


async def test_a_file_that_is_put_back_goes_on(path: Path) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([ONE])
        path.rename(path.with_suffix(".away"))
        with pytest.raises(StorageError, match="put it back"):
            await session.get_items()
        path.with_suffix(".away").rename(path)
        assert await session.get_items() == [ONE]
        await session.add_items([TWO])
    assert stored(path) == [ONE, TWO]


@pytest.mark.parametrize("end", ["close", "new handle"])
async def test_a_file_that_was_moved_away_has_all_that_was_acknowledged(path: Path, end: str) -> None:
    moved = path.with_name("moved.db")
    session = AsyncSQLiteSession(path, session_id="user_123")
    await session.add_items([ONE, TWO])
    await session.get_items()
    path.rename(moved)
    if end == "new handle":
        async with AsyncSQLiteSession(path, session_id="user_123") as new:
            assert await new.get_items() == []
    await session.close()
    assert stored(moved) == [ONE, TWO]
    async with AsyncSQLiteSession(path, session_id="user_123") as new:
        assert await new.get_items() == []
    assert files(path) == {path.name}


def replace(path: Path, content: Item) -> None:
    """Put another agentmem database with this one item at the path."""
    other = path.with_name("other.db")

    async def make() -> None:
        async with AsyncSQLiteSession(other, session_id="user_123") as session:
            await session.add_items([content])

    thread = threading.Thread(target=asyncio.run, args=(make(),))
    thread.start()
    thread.join()
    os.replace(other, path)


@pytest.mark.parametrize("where", ["on the same loop", "on another loop", "on a loop that is closed", "other options"])
def test_a_new_handle_sees_the_file_that_replaced_the_old_one_and_nothing_of_the_old_ones_wal(
    path: Path, where: str
) -> None:
    before = holdings()
    old = AsyncSQLiteSession(path, session_id="user_123", durability="normal" if where == "other options" else "full")

    async def fill() -> None:
        # The last pages are in the WAL alone; where they were played into the new file, they would show.
        await old.add_items([{"old": number, "text": "x" * 5000} for number in range(50)])
        await asyncio.gather(*(old.get_items() for _ in range(100)))

    async def use_new() -> None:
        replace(path, ONE)
        for _ in range(2):
            async with AsyncSQLiteSession(path, session_id="user_123") as new:
                assert await new.get_items() == [ONE]
                await new.add_items([TWO])
                assert await new.pop_item() == TWO
        assert stored(path) == [ONE]

    async def refuse_old() -> None:
        for call in (old.get_items(), old.add_items([TWO]), old.pop_item(), old.clear_session()):
            with pytest.raises(StorageError, match="was replaced by another file"):
                await call
        assert stored(path) == [ONE]

    async def all_on_one_loop() -> None:
        await fill()
        await use_new()
        await refuse_old()
        await old.close()

    if where == "on another loop":
        with loop_in_a_thread() as other:
            asyncio.run_coroutine_threadsafe(fill(), other).result()
            asyncio.run(use_new())
            asyncio.run_coroutine_threadsafe(refuse_old(), other).result()
            asyncio.run_coroutine_threadsafe(old.close(), other).result()
    elif where == "on a loop that is closed":
        asyncio.run(fill())
        asyncio.run(use_new())
        asyncio.run(old.close())
    else:
        asyncio.run(all_on_one_loop())
    with contextlib.closing(sqlite3.connect(path)) as other_program:
        assert other_program.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    holds_again(before)
    assert files(path) == {path.name}


def test_a_file_that_is_replaced_at_any_moment_of_opening_is_never_taken_for_the_old_one(tmp_path: Path) -> None:
    for loop in cycle_loops():
        path = tmp_path / f"{loop._nth}.db"

        async def main(loop: CycleLoop = loop, path: Path = path) -> None:
            session = AsyncSQLiteSession(path, session_id="user_123")
            adding = asyncio.ensure_future(session.add_items([TWO]))
            loop.arm(lambda: _unless(adding.done(), lambda: replace(path, ONE)))
            try:
                await adding
            except StorageError as error:
                assert "replaced" in str(error)  # noqa: PT017  it need not be raised
            loop.disarm()
            await session.close()

        loop.run(main())
        if loop.happened:
            assert stored(path) in ([ONE], [ONE, TWO])
            asyncio.run(_add_and_get(path))


async def _add_and_get(path: Path) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        before = await session.get_items()
        await session.add_items([TWO])
        assert await session.get_items() == [*before, TWO]


async def test_a_file_that_is_emptied_while_open_is_an_error_for_every_call(path: Path) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([ONE])
        os.truncate(path, 0)
        for call in (session.get_items(), session.add_items([TWO])):
            with pytest.raises(StorageError, match="was emptied while it was open"):
                await call


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_where_the_wal_is_gone_nothing_is_acknowledged_and_closing_saves_what_was(path: Path, how: str) -> None:
    wal = path.with_name(path.name + "-wal")
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([ONE])
        assert await session.get_items() == [ONE]
        wal.unlink()
        if how == "replaced":
            wal.touch()
        for call in (session.get_items(), session.add_items([TWO]), session.get_items()):
            with pytest.raises(StorageError, match="-wal was deleted or replaced while"):
                await call
    assert stored(path)[0] == ONE
    async with AsyncSQLiteSession(path, session_id="user_123") as new:
        assert (await new.get_items())[0] == ONE
    assert files(path) == {path.name}


# Memory


async def test_a_session_in_memory_is_private_to_its_handle_and_gone_when_it_closes() -> None:
    before = holdings()
    async with (
        AsyncSQLiteSession(":memory:", session_id="user_123") as one,
        AsyncSQLiteSession(":memory:", session_id="user_123") as two,
    ):
        await one.add_items([ONE])
        assert await one.get_items() == [ONE]
        assert await two.get_items() == []
        assert one.run_key != two.run_key
    holds_again(before)
    with pytest.raises(SessionClosedError):
        await one.get_items()
    assert not os.path.exists(":memory:")


async def test_a_session_in_memory_that_was_dropped_unclosed_is_never_found_by_another() -> None:
    links = []
    for number in range(20):
        session = AsyncSQLiteSession(":memory:", session_id="user_123")
        assert await session.get_items() == []
        await session.add_items([{"number": number}])
        links.append(session._engine._database.memory)  # type: ignore[attr-defined]  # to close it in the end
        del session
    for link in links:
        await link.close()


async def test_a_store_in_memory_is_shared_by_its_sessions_alone() -> None:
    async with AsyncSessionStore(":memory:") as store, AsyncSessionStore("sqlite:///:memory:") as other:
        await store.session("user_123").add_items([ONE])
        assert await store.session("user_123").get_items() == [ONE]
        assert await other.session("user_123").get_items() == []


def test_a_session_in_memory_lives_on_over_event_loops_until_it_is_closed() -> None:
    before = holdings()
    session = AsyncSQLiteSession(":memory:", session_id="user_123")

    async def talk(thread: int) -> None:
        for number in range(20):
            await session.add_items([{"thread": thread, "number": number}])

    running = [threading.Thread(target=lambda thread=thread: asyncio.run(talk(thread))) for thread in range(4)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    asyncio.run(talk(4))
    items = asyncio.run(session.get_items())
    assert len(items) == 100
    for thread in range(5):
        assert [item["number"] for item in items if item["thread"] == thread] == list(range(20))
    asyncio.run(session.close())
    holds_again(before)


# Processes

_WRITER = """
import asyncio, sys
from agentmem import AsyncSQLiteSession

async def add(task):
    own = AsyncSQLiteSession(sys.argv[1], session_id="writer_" + sys.argv[2], busy_timeout_s=60)
    shared = AsyncSQLiteSession(sys.argv[1], session_id="shared", busy_timeout_s=60)
    for batch in range(8):
        for session in (own, shared):
            await session.add_items([{"of": [sys.argv[2], task, batch], "place": place} for place in range(3)])

async def main():
    await asyncio.gather(*(add(task) for task in range(4)))

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
"""


@pytest.mark.exhaustive
def test_eight_processes_that_open_a_new_file_at_the_same_instant_write_without_error_or_loss(path: Path) -> None:
    with contextlib.ExitStack() as all_of_them:
        children = [all_of_them.enter_context(Child(_WRITER, path, str(number))) for number in range(8)]
        for child in children:
            assert child.read_line() == "ready"
        for child in children:
            child.write_line()
        for child in children:
            assert child.finish() == (0, "", "")
    shared = stored(path, "shared")
    assert len(shared) == 8 * 4 * 8 * 3
    _check_batches(shared)
    for number in range(8):
        own = stored(path, f"writer_{number}")
        assert len(own) == 4 * 8 * 3
        _check_batches(own)
    assert files(path) == {path.name}


_OPENERS = """
import asyncio, os, sys
from agentmem import AsyncSQLiteSession

async def add(path, number):
    async with AsyncSQLiteSession(path, session_id="shared", busy_timeout_s=60) as session:
        await session.add_items([{"of": [number, 0], "place": place} for place in range(3)])

for round in range(int(sys.argv[2])):
    start, go = os.pipe()
    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(start, 1)  # the end of the pipe comes to all of them at once
            try:
                asyncio.run(add(f"{sys.argv[1]}.{round}", number))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        children.append(child)
    os.close(start)
    os.close(go)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
"""


@exhaustive
@needs_fork
def test_a_new_file_that_eight_processes_open_at_the_same_instant_is_created_once(path: Path) -> None:
    rounds = 4
    run_quietly(_OPENERS, path, str(rounds))
    for number in range(rounds):
        items = stored(path.with_name(f"{path.name}.{number}"), "shared")
        _check_batches(items)
        assert sorted(item["of"][0] for item in items[::3]) == list(range(8))


def _check_batches(items: list[Item]) -> None:
    """Every batch is whole, and those of one task are in the order in which they were added."""
    last: dict[tuple[Any, ...], int] = {}
    for batch in (items[start : start + 3] for start in range(0, len(items), 3)):
        assert [item["place"] for item in batch] == [0, 1, 2]
        assert batch[0]["of"] == batch[1]["of"] == batch[2]["of"]
        *writer, number = batch[0]["of"]
        assert last.get(tuple(writer), -1) < number
        last[tuple(writer)] = number


# A process that imports once, and forks a writer for each round: a process a round would be killed while it starts.
_KILLED = """
import asyncio, os, random, signal, sys, threading
from agentmem import AsyncSQLiteSession

async def add(path, round, task, out):
    session = AsyncSQLiteSession(path, session_id="shared")
    batch = 0
    while True:
        await session.add_items([{"of": [round, task, batch], "place": place} for place in range(3)])
        os.write(out, b"%d %d %d\\n" % (round, task, batch))
        batch += 1

async def main(path, round, out):
    await asyncio.gather(*(add(path, round, task, out) for task in range(8)))

for round in range(int(sys.argv[2])):
    acknowledged, out = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(acknowledged)
        asyncio.run(main(sys.argv[1], round, out))
    os.close(out)
    # A number of acknowledgements and a moment after that: not the same instruction in each round.
    lines = open(acknowledged)
    seen = [lines.readline() for _ in range(random.randrange(2, 40))]
    for _ in range(random.randrange(20000)):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    sys.stdout.write("".join(seen) + lines.read())
    lines.close()
"""


@exhaustive
@needs_fork
def test_a_writer_that_is_killed_at_any_moment_leaves_whole_batches_and_all_that_were_acknowledged(path: Path) -> None:
    output = run_quietly(_KILLED, path, "20")
    items = stored(path, "shared")
    _check_batches(items)
    written = {tuple(item["of"]) for item in items}
    acknowledged = {tuple(map(int, line.split())) for line in output.splitlines()}
    assert len(acknowledged) > 20
    assert acknowledged <= written
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    asyncio.run(_add_and_get(path))
