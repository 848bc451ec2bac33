"""One connection and its thread: batches run whole and in order, and closing waits for them."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clock import Clock
from database import shell, stored
from processes import run, run_quietly, running_threads, started_since, wait_until

from agentmem.cancellation import UncancellableTask
from agentmem.engines import deadlines
from agentmem.engines.batching import Batch, Job
from agentmem.engines.sqlite.checkpoint import Checkpoints
from agentmem.engines.sqlite.connection import Connection, ConnectionLost, Outcome, open_connections, stop_all
from agentmem.engines.sqlite.file import create_private
from agentmem.engines.sqlite.schema import prepare_writer
from agentmem.engines.sqlite.statements import Append, Clear, Write
from agentmem.engines.sqlite.transaction import QUICK_GROUP_BYTES, run_writes
from agentmem.errors import StorageError

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    yield
    assert open_connections() == []


def nothing(_: object) -> None:
    """Prepare a connection that needs no preparation; wait for no outcome."""


async def connect(path: Path) -> Connection:
    return await Connection.open(str(path), nothing)


class Sent:
    """A batch whose way there and back a test follows."""

    def __init__(self, run: Callable[[Connection, Sent], None], *writes: Write) -> None:
        self.loop = asyncio.get_running_loop()
        self.batch = Batch(1, 0, [Job(write, self.loop.create_future()) for write in writes])
        self.told: list[Outcome] = []
        self.met: list[Exception | None] = []
        self.ended = asyncio.Event()
        self.note_return: Callable[[Batch[Any]], object] = nothing
        self._run = run

    def run(self, connection: Connection, batch: Batch[Any]) -> None:
        self._run(connection, self)

    def take_in(self, outcome: Outcome) -> None:
        self.told.append(outcome)
        if outcome.is_last:
            self.ended.set()

    def returned(self, batch: Batch[Any]) -> None:
        self.note_return(batch)
        self.ended.set()

    def waits(self, met: Exception | None) -> None:
        self.met.append(met)


async def test_a_function_runs_in_the_connections_thread_and_its_result_comes_back(path: Path) -> None:
    def function(connection: Connection) -> tuple[list[int], threading.Thread]:
        raw = connection.raw
        raw.execute("CREATE TABLE t (n)")
        raw.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(100)])
        return [n for (n,) in raw.execute("SELECT n FROM t ORDER BY n")], threading.current_thread()

    connection = await connect(path)
    numbers, thread = await connection.call(function)
    assert numbers == list(range(100))
    assert thread is connection.thread is not threading.current_thread()
    await connection.close()


@pytest.mark.parametrize("error", [ValueError("mine"), sqlite3.OperationalError("mine"), SystemExit(3)], ids=repr)
async def test_what_a_function_raises_is_raised_where_it_is_awaited_and_the_connection_goes_on(
    path: Path, error: BaseException
) -> None:
    def function(_: Connection) -> None:
        raise error

    connection = await connect(path)
    with pytest.raises(type(error)) as raised:
        await connection.call(function)
    assert raised.value is error
    assert await connection.call(lambda one: one.raw.execute("SELECT 1").fetchone()) == (1,)
    await connection.close()


async def test_closing_from_another_thread_waits_for_what_runs_and_the_next_call_finds_the_connection_lost(
    path: Path,
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def function(connection: Connection) -> tuple[int]:
        begun.set()
        go_on.wait()
        found: tuple[int] = connection.raw.execute("SELECT 1").fetchone()
        return found

    connection = await connect(path)
    call = asyncio.ensure_future(connection.call(function))
    await asyncio.to_thread(begun.wait)
    closing = threading.Thread(target=connection.disconnect)
    closing.start()
    assert open_connections() == [connection]
    go_on.set()
    assert await call == (1,)
    closing.join()
    assert open_connections() == []
    with pytest.raises(ConnectionLost):
        await connection.call(nothing)
    await connection.close()


async def test_batches_that_come_to_a_closed_connection_go_back_in_order_and_none_is_run(path: Path) -> None:
    def must_not_run(_: Connection, sent: Sent) -> None:
        raise AssertionError("the connection is closed")

    connection = await connect(path)
    connection.disconnect()
    returned: list[Batch[Any]] = []
    batches = [Sent(must_not_run) for _ in range(4)]
    for sent in batches:
        sent.note_return = returned.append
        connection.send(sent, sent.batch)
    await batches[-1].ended.wait()
    assert returned == [sent.batch for sent in batches]
    assert all(sent.told == [] for sent in batches)
    await connection.close()


async def test_a_connection_whose_preparation_fails_is_closed(path: Path) -> None:
    def fail(_: Connection) -> None:
        raise LookupError

    before = running_threads()
    with pytest.raises(LookupError):
        await Connection.open(str(path), fail)
    assert open_connections() == []
    wait_until(lambda: not started_since(before))


async def test_where_connecting_fails_no_thread_is_left(path: Path) -> None:
    path.mkdir()
    before = running_threads()
    for _ in range(20):
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            await connect(path)
    wait_until(lambda: not started_since(before))


async def test_a_connection_that_was_stopped_has_run_what_was_sent_before_and_is_lost_for_what_comes_later(
    path: Path,
) -> None:
    connection = await connect(path)
    ran: list[int] = []

    def note(number: int, _: Connection) -> None:
        ran.append(number)

    calls = [asyncio.ensure_future(connection.call(partial(note, number))) for number in range(9)]
    await asyncio.sleep(0)
    await asyncio.to_thread(stop_all, [connection])
    assert ran == list(range(9))
    await asyncio.gather(*calls)
    assert not connection.thread.is_alive()
    assert connection.is_lost()
    with pytest.raises(ConnectionLost):
        await connection.call(nothing)
    await connection.close()
    await connection.close()


async def test_a_transaction_that_waits_for_another_process_does_not_hold_up_the_news_of_the_one_before(
    path: Path,
) -> None:
    def first(_: Connection, sent: Sent) -> None:
        both_sent.wait()

    def second(connection: Connection, sent: Sent) -> None:
        _write(connection, sent)

    both_sent = threading.Event()
    connection = await _connect_writer(path)
    with shell(path) as other:
        other.execute("BEGIN IMMEDIATE")
        one, two = Sent(first), Sent(second, Append("user_123", ["{}"]))
        connection.send(one, one.batch)
        connection.send(two, two.batch)
        both_sent.set()
        await one.ended.wait()  # before the other process lets go of its lock
        assert not two.ended.is_set()
        other.execute("COMMIT")
        await two.ended.wait()
    assert [job.error for job in two.batch.jobs] == [None]
    await connection.close()
    assert stored(path) == [{}]


def test_a_wait_for_a_lock_ends_at_its_deadline_where_the_event_loop_stands_still(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def begin() -> tuple[Connection, Sent]:
        connection = await _connect_writer(path)
        sent = Sent(_write, Append("user_123", ["{}"]))
        sent.batch.jobs[0].deadline = deadlines.now() + 60
        connection.send(sent, sent.batch)
        return connection, sent

    clock, pauses = Clock(monkeypatch), threading.Semaphore(0)
    rest = Connection.rest

    def note_and_rest(self: Connection, pause_s: float) -> None:
        pauses.release()
        rest(self, pause_s)

    monkeypatch.setattr(Connection, "rest", note_and_rest)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(_make(path))
    with shell(path) as other:
        other.execute("BEGIN IMMEDIATE")
        connection, sent = loop.run_until_complete(begin())
        pauses.acquire()
        clock.step(60)
        connection.stop()
        other.execute("ROLLBACK")
    loop.close()
    (job,) = sent.batch.jobs
    assert "locked" in str(job.error)


async def _make(path: Path) -> None:
    await (await _connect_writer(path)).close()


class ToldLoop(asyncio.SelectorEventLoop):
    """Notes when a thread has told it something, which it hears with its next cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    # The ignore: any arguments are passed on, which typeshed says with type variables.
    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        self.told.set()
        return handle


def test_a_connection_whose_event_loop_is_closed_before_it_hears_that_it_is_open_closes_itself(path: Path) -> None:
    def prepare(_: Connection) -> None:
        go_on.wait()

    async def open_one() -> None:
        opening.append(Connection.open(str(path), prepare))
        await opening[0]

    loop, opening, go_on = ToldLoop(), list[Coroutine[Any, Any, Connection]](), threading.Event()
    before = running_threads()
    task = UncancellableTask(open_one(), loop=loop)
    loop.run_until_complete(asyncio.sleep(0))
    go_on.set()  # not before, or the loop might hear of it in the midst of this
    loop.told.wait()
    opened = open_connections()
    loop.close()
    assert len(opened) == 1
    wait_until(lambda: open_connections() == [])
    wait_until(lambda: not started_since(before))
    assert not task.done()
    opening[0].close()


LARGE = Append("user_123", ["x" * QUICK_GROUP_BYTES])
MANY = Append("user_123", ["{}"] * (QUICK_GROUP_BYTES // 64))


@pytest.mark.parametrize(
    ("work", "is_quick"),
    [(Append("user_123", ['{"a":1}']), True), (LARGE, False), (MANY, False), (Clear("user_123"), False)],
    ids=["a small append", "one of many bytes", "one of many rows", "a clear"],
)
async def test_only_small_appends_keep_the_news_of_the_commit_before_waiting(
    path: Path, work: Append | Clear, is_quick: bool
) -> None:
    statements: list[tuple[str, bool]] = []

    def first(_: Connection, sent: Sent) -> None:
        both_sent.wait()

    def second(connection: Connection, sent: Sent) -> None:
        raw = connection.raw
        raw.set_trace_callback(lambda statement: statements.append((statement, connection.has_unreported())))
        run_writes(connection, sent, sent.batch, "sessions.db", confirm=lambda: None)
        raw.set_trace_callback(None)

    both_sent = threading.Event()
    prepare = partial(prepare_writer, name=str(path), durability="full", accepts_sdk_file=False)
    connection = await Connection.open(str(path), prepare)
    one, two = Sent(first), Sent(second, work)
    connection.send(one, one.batch)
    connection.send(two, two.batch)
    both_sent.set()
    await two.ended.wait()
    assert [is_waiting for statement, is_waiting in statements if statement == "BEGIN IMMEDIATE"] == [is_quick]
    assert ("COMMIT", False) in statements
    await connection.close()


async def test_each_write_is_told_of_before_a_large_one_of_its_own_batch_begins(path: Path) -> None:
    # The first of two groups is committed; the callers of it must not wait for the second, which takes long.
    told: list[bool] = []

    def run(connection: Connection, sent: Sent) -> None:
        def trace(statement: str) -> None:
            if statement == "BEGIN IMMEDIATE":
                told.append(connection.has_unreported())

        connection.raw.set_trace_callback(trace)
        run_writes(connection, sent, sent.batch, "sessions.db", confirm=lambda: None)
        connection.raw.set_trace_callback(None)

    prepare = partial(prepare_writer, name=str(path), durability="full", accepts_sdk_file=False)
    connection = await Connection.open(str(path), prepare)
    sent = Sent(run, Append("a", ["{}"]), Clear("b"), *(Append("c", ["x" * 1_500_000]) for _ in range(4)))
    connection.send(sent, sent.batch)
    await sent.ended.wait()
    assert told == [False, False]  # two groups: all together are more than 4 MB
    assert [len(outcome.jobs) for outcome in sent.told] == [4, 2]
    await connection.close()


async def test_a_thread_that_fails_between_two_batches_ends_says_so_and_leaves_nobody_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Checkpoints):
        def is_due(self) -> bool:
            return all_sent.is_set()

        def run(self, raw: sqlite3.Connection) -> None:
            raise RuntimeError("nobody expects this")

    def prepare(connection: Connection) -> None:
        connection.checkpoints = Broken(str(path))

    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    all_sent = threading.Event()
    connection = await Connection.open(str(path), prepare)
    calls = [asyncio.ensure_future(connection.call(lambda _: all_sent.wait())) for _ in range(3)]
    await asyncio.sleep(0)
    all_sent.set()
    assert await calls[0] is True
    for call in calls[1:]:
        with pytest.raises(ConnectionLost):
            await call
    assert connection.is_lost()
    await connection.close()
    connection.thread.join()
    assert [args.exc_type for args in told] == [RuntimeError]


def test_an_event_loop_that_is_closed_under_a_batch_is_no_error_in_the_connections_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def function(_: Connection, sent: Sent) -> None:
        begun.set()
        go_on.wait()

    async def send() -> None:
        sent = Sent(function)
        connection.send(sent, sent.batch)

    errors: list[object] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(connect(path))
    loop.run_until_complete(send())
    begun.wait()
    loop.close()
    go_on.set()
    connection.stop()
    assert errors == []


def test_a_connection_whose_event_loop_is_closed_while_it_opens_closes_itself(path: Path) -> None:
    preparing, go_on = threading.Event(), threading.Event()

    def prepare(_: Connection) -> None:
        preparing.set()
        go_on.wait()

    loop = asyncio.new_event_loop()
    opening = loop.create_task(Connection.open(str(path), prepare))
    loop.run_until_complete(asyncio.sleep(0))
    preparing.wait()
    opening.cancel()
    loop.run_until_complete(asyncio.gather(opening, return_exceptions=True))
    loop.close()
    assert len(open_connections()) == 1
    go_on.set()
    wait_until(lambda: open_connections() == [])
    assert opening.cancelled()


async def _connect_writer(path: Path) -> Connection:
    prepare = partial(prepare_writer, name=str(path), durability="full", accepts_sdk_file=False)
    return await Connection.open(str(path), prepare)


def _write(connection: Connection, sent: Sent) -> None:
    run_writes(connection, sent, sent.batch, "sessions.db", confirm=lambda: None)


async def test_writes_whose_bookkeeping_fails_once_they_are_committed_are_not_written_twice(path: Path) -> None:
    class Broken(Checkpoints):
        failures = 0

        def wrote(self, sessions: int, size_bytes: int) -> None:
            if not self.failures:
                self.failures += 1
                raise MemoryError
            super().wrote(sessions, size_bytes)

    connection = await _connect_writer(path)
    broken = connection.checkpoints = Broken(str(path))
    for number in range(2):
        sent = Sent(_write, *(Append(f"user_{at}", [json.dumps({"number": number})]) for at in range(3)))
        connection.send(sent, sent.batch)
        await sent.ended.wait()
        assert [job.error for job in sent.batch.jobs] == [None] * 3
    await connection.close()
    assert broken.failures == 1
    for at in range(3):
        assert stored(path, f"user_{at}") == [{"number": 0}, {"number": 1}]


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
async def test_a_transaction_that_fails_at_any_step_is_not_left_open_for_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    both_sent = threading.Event()
    executed: list[str] = []

    def wait(_: Connection, sent: Sent) -> None:
        both_sent.wait()

    def write_and_fail(connection: Connection, sent: Sent) -> None:
        execute = connection.raw.execute

        def fail(sql: str, *args: Any) -> sqlite3.Cursor:
            cursor = execute(sql, *args)
            executed.append(sql)
            if len(executed) == nth:
                raise MemoryError
            return cursor

        with monkeypatch.context() as patch:
            patch.setattr(connection.raw, "execute", fail)
            _write(connection, sent)

    connection = await _connect_writer(path)
    # The news of the first batch waits for the second.
    first, failing, later = Sent(wait), Sent(write_and_fail, Append("user_123", ["{}"])), Sent(_write, LATER)
    connection.send(first, first.batch)
    connection.send(failing, failing.batch)
    both_sent.set()
    await failing.ended.wait()
    connection.send(later, later.batch)
    await later.ended.wait()
    assert [job.error for job in later.batch.jobs] == [None]
    with shell(path) as other:
        other.execute("BEGIN IMMEDIATE")  # nobody holds the lock
        other.execute("COMMIT")
    await connection.close()
    assert len(executed) >= nth
    assert stored(path, "later") == [{"number": 1}]


LATER = Append("later", ['{"number":1}'])


def test_without_descriptors_opening_is_an_error_that_says_so_and_works_again_when_there_are_some(path: Path) -> None:
    pytest.importorskip("resource", reason="this system has no limit for descriptors")
    code, output, errors = run(_WITH_FEW_DESCRIPTORS, path, flags=())
    assert code == 0, errors  # which may name an event loop of asyncio's that got no descriptors, when it is collected
    outcomes = output.splitlines()
    assert outcomes[0] == "StorageError that says so"
    assert set(outcomes) == {"StorageError that says so", "opened"}
    assert outcomes[-1] == "opened"


_WITH_FEW_DESCRIPTORS = """
import asyncio, errno, os, resource, sys
from agentmem.engines.sqlite.engine import SQLiteEngine
from agentmem.errors import StorageError

async def use():
    engine = SQLiteEngine(sys.argv[1])
    try:
        await engine.append("user_123", ["{}"])
        await engine.rows("user_123", 0, 9)
        return "opened"
    except StorageError as error:
        says_so = "too many open files" in str(error).lower() or "descriptor" in str(error)
        return "StorageError that says so" if says_so else repr(error)
    finally:
        await engine.close()

async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    outcomes = []
    await use()
    for free in (*range(20), 64):
        taken = []
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            assert error.errno == errno.EMFILE
        for _ in range(min(free, len(taken))):
            os.close(taken.pop())
        try:
            outcomes.append(await use())
        except BaseException as error:
            outcomes.append(repr(error))
        for descriptor in taken:
            os.close(descriptor)
    print(*outcomes, sep="\\n")

asyncio.run(main())
"""


OPEN_MANY = """
import asyncio, sys, threading
from agentmem import AsyncSQLiteSession

folder, loops_thread, on_the_loop, elsewhere = sys.argv[1], threading.get_ident(), [], []

def note(event, arguments):
    if event != "os.listdir" and any(isinstance(value, str) and folder in value for value in arguments):
        (on_the_loop if threading.get_ident() == loops_thread else elsewhere).append(event)

async def add(number):
    async with AsyncSQLiteSession(f"{folder}/{number}.db", session_id="user_123") as session:
        await session.add_items([{"number": number}])
        return await session.get_items()

async def main():
    await asyncio.gather(*map(add, range(3)))
    print(sorted(set(on_the_loop)), sorted(set(elsewhere)))

sys.addaudithook(note)
asyncio.run(main())
"""


def test_files_are_created_and_opened_in_threads_of_their_own_and_never_on_the_event_loop(tmp_path: Path) -> None:
    assert run_quietly(OPEN_MANY, tmp_path) == "[] ['open', 'sqlite3.connect']\n"


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
