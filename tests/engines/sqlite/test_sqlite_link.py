"""One connection and its thread: hops run whole and in order, and closing waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from processes import threads, wait_until

from agentmem.engines.batching import Job
from agentmem.engines.sqlite import connection as sqlite_link
from agentmem.engines.sqlite.connection import ConnectionLost, Link, WorkerConnection, create_private
from agentmem.engines.sqlite.schema import Transaction, prepare_writer
from agentmem.engines.sqlite.statements import Append, Clear, serve_writes
from agentmem.errors import StorageError

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    yield
    assert not sqlite_link._live
    assert not sqlite_link._connecting


def nothing(_: object) -> None:
    """Prepare a connection that needs no preparation; wait for no outcome."""


async def open_link(path: Path) -> Link:
    return await Link.open(str(path), 5.0, nothing)


async def test_a_hop_runs_a_whole_function_in_the_connections_thread_and_returns_its_result(path: Path) -> None:
    def function(raw: WorkerConnection) -> tuple[list[int], threading.Thread]:
        raw.execute("CREATE TABLE t (n)")
        raw.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(100)])
        return [n for (n,) in raw.execute("SELECT n FROM t ORDER BY n")], threading.current_thread()

    link = await open_link(path)
    numbers, thread = await link.hop(function)
    assert numbers == list(range(100))
    assert thread is link.raw.thread is not threading.current_thread()
    await link.close()


@pytest.mark.parametrize("error", [ValueError("mine"), sqlite3.OperationalError("mine"), SystemExit(3)], ids=repr)
async def test_what_a_hop_raises_is_raised_where_it_is_awaited_and_the_connection_goes_on(
    path: Path, error: BaseException
) -> None:
    def function(raw: WorkerConnection) -> None:
        raise error

    link = await open_link(path)
    with pytest.raises(type(error)) as raised:
        await link.hop(function)
    assert raised.value is error
    assert await link.hop(lambda raw: raw.execute("SELECT 1").fetchone()) == (1,)
    await link.close()


async def test_closing_from_another_thread_waits_for_the_hop_and_the_next_one_finds_the_connection_lost(
    path: Path,
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def function(raw: WorkerConnection) -> tuple[int]:
        begun.set()
        go_on.wait()
        found: tuple[int] = raw.execute("SELECT 1").fetchone()
        return found

    link = await open_link(path)
    hop = asyncio.ensure_future(link.hop(function))
    await asyncio.to_thread(begun.wait)
    closing = threading.Thread(target=link.raw.disconnect)
    closing.start()
    assert link.raw in sqlite_link._live
    go_on.set()
    assert await hop == (1,)
    closing.join()
    assert link.raw not in sqlite_link._live
    with pytest.raises(ConnectionLost):
        await link.hop(nothing)
    await link.close()


async def test_a_connection_whose_preparation_fails_is_closed(path: Path) -> None:
    def fail(raw: WorkerConnection) -> None:
        raise LookupError

    before = threads()
    with pytest.raises(LookupError):
        await Link.open(str(path), 5.0, fail)
    assert not sqlite_link._live
    wait_until(lambda: threads() == before)


async def test_where_connecting_fails_the_thread_has_ended_when_that_is_raised(path: Path) -> None:
    # Else it would report its end to an event loop that may be closed by then, with a traceback on stderr.
    path.mkdir()
    before = threads()
    for _ in range(20):
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            await open_link(path)
        assert threads() == before


async def test_a_connection_that_was_stopped_has_run_what_was_sent_before_and_is_lost_for_what_comes_later(
    path: Path,
) -> None:
    link = await open_link(path)
    ran: list[int] = []

    def note(number: int, raw: WorkerConnection) -> None:
        ran.append(number)

    hops = [asyncio.ensure_future(link.hop(partial(note, number))) for number in range(9)]
    await asyncio.sleep(0)
    await asyncio.to_thread(sqlite_link.stop_all, [link])
    assert ran == list(range(9))
    await asyncio.gather(*hops)
    assert not link.raw.thread.is_alive()
    assert link.is_lost()
    with pytest.raises(ConnectionLost):
        await link.hop(nothing)
    await link.close()
    await link.close()


@pytest.mark.parametrize("reports", [True, False])
async def test_a_hop_is_told_of_before_the_next_one_begins_or_when_that_says_so(path: Path, reports: bool) -> None:
    told: list[str] = []
    both_sent, told_first, ended = threading.Event(), threading.Event(), asyncio.Event()

    def first(raw: WorkerConnection) -> None:
        both_sent.wait()

    def tell_first(_: object) -> None:
        told.append("first")
        told_first.set()

    def second(raw: WorkerConnection) -> None:
        if reports:
            assert raw.has_unreported()
            raw.report()
        assert not raw.has_unreported()
        told_first.wait()
        told.append("second runs")

    link = await open_link(path)
    link.send(first, tell_first)
    link.send(second, lambda _: ended.set(), reports=reports)
    both_sent.set()
    await ended.wait()
    assert told == ["first", "second runs"]
    await link.close()


async def test_a_transaction_that_waits_for_another_process_does_not_hold_up_the_news_of_the_one_before(
    path: Path,
) -> None:
    def first(raw: WorkerConnection) -> None:
        locked.wait()

    def second(raw: WorkerConnection) -> None:
        with Transaction(raw):
            raw.execute("INSERT INTO t VALUES (2)")

    locked, ended = threading.Event(), asyncio.Event()
    link = await open_link(path)
    await link.hop(lambda raw: raw.execute("PRAGMA journal_mode = WAL").fetchone())
    await link.hop(lambda raw: raw.execute("CREATE TABLE t (n)"))
    await link.hop(lambda raw: raw.execute("PRAGMA busy_timeout = 60000").fetchone())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        link.send(first, lambda _: other.execute("COMMIT"))
        link.send(second, lambda _: ended.set(), reports=True)
        locked.set()
        await ended.wait()
        assert other.execute("SELECT n FROM t").fetchall() == [(2,)]
    assert await link.hop(lambda raw: raw.execute("PRAGMA busy_timeout").fetchone()) == (60000,)
    await link.close()


@pytest.mark.parametrize("work", [Append("user_123", ['{"a":1}']), Clear("user_123")], ids=["an append", "a clear"])
async def test_only_appends_keep_the_news_of_the_batch_before_waiting(path: Path, work: Append | Clear) -> None:
    statements: list[tuple[str, bool]] = []

    def second(raw: WorkerConnection) -> None:
        raw.set_trace_callback(lambda statement: statements.append((statement, raw.has_unreported())))
        serve_writes(raw, [Job(work, asyncio.Future(loop=loop))])
        raw.set_trace_callback(None)

    loop, sent, ended = asyncio.get_running_loop(), threading.Event(), asyncio.Event()
    prepare = partial(prepare_writer, path=str(path), busy_timeout_s=5.0, durability="full", takes_over=None)
    link = await Link.open(str(path), 5.0, prepare)
    link.send(lambda raw: sent.wait(), nothing)
    link.send(second, lambda _: ended.set(), reports=True)
    sent.set()
    await ended.wait()
    begun = [is_waiting for statement, is_waiting in statements if statement == "BEGIN IMMEDIATE"]
    assert begun == [isinstance(work, Append)]
    assert ("COMMIT", False) in statements
    await link.close()


async def test_a_thread_that_fails_between_two_hops_ends_says_so_and_leaves_nobody_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def wrote(self, sessions: int, size_bytes: int) -> None: ...

        def is_due(self) -> bool:
            return all_sent.is_set()

        def run(self, raw: WorkerConnection) -> None:
            raise RuntimeError("nobody expects this")

    def prepare(raw: WorkerConnection) -> None:
        raw.checkpoints = Broken()

    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    all_sent = threading.Event()
    link = await Link.open(str(path), 5.0, prepare)
    hops = [asyncio.ensure_future(link.hop(lambda raw: all_sent.wait())) for _ in range(3)]
    await asyncio.sleep(0)
    all_sent.set()
    assert await hops[0] is True
    for hop in hops[1:]:
        with pytest.raises(ConnectionLost):
            await hop
    assert link.is_lost()
    await link.close()
    link.raw.thread.join()
    assert [args.exc_type for args in told] == [RuntimeError]


def test_an_event_loop_that_is_closed_under_a_hop_is_no_error_in_the_connections_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def function(raw: WorkerConnection) -> None:
        begun.set()
        go_on.wait()

    errors: list[object] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    loop = asyncio.new_event_loop()
    link = loop.run_until_complete(open_link(path))
    loop.call_soon(link.send, function, nothing)
    loop.call_soon(loop.stop)
    loop.run_forever()
    begun.wait()
    loop.close()
    go_on.set()
    link.stop()
    assert errors == []


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_file_is_created_for_its_owner_alone_and_one_that_is_there_is_not_touched(path: Path) -> None:
    old_mask = os.umask(0)
    try:
        create_private(str(path))
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    path.write_bytes(b"content")
    create_private(str(path))
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_that_cannot_be_created_is_an_error_that_tells_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="create its folder first") as raised:
        create_private(str(tmp_path / "missing" / "x.db"))
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    with pytest.raises(StorageError, match="choose a folder that can be written"):
        create_private(str(tmp_path / ("x" * 300)))
