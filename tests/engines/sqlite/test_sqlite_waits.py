"""Each call waits for what others hold until its own deadline, and neither the event loop nor a fork waits with it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import sqlite3
import threading
import traceback
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clock import Clock
from database import connections, shell, stored
from held import HeldReading
from loops import loop_in_a_thread
from processes import STRICT, SUPPORT, needs_fork, run_quietly
from waiting import WAIT_S

from agentmem import AsyncSessionStore
from agentmem.engines.sqlite.connection import Connection
from agentmem.engines.sqlite.engine import SQLiteEngine
from agentmem.engines.sqlite.pool import MAX_WRITES
from agentmem.errors import SessionClosedError, StorageBusyError, StorageError

pytestmark = pytest.mark.anyio

ROW = '{"role":"user","content":"one"}'
ITEM = {"role": "user", "content": "one"}

NEVER_S = 60.0
"""How long a call may wait in these tests, on a clock that stands still: nothing ends a wait but a step of the clock,
or what the test lets go."""

HANGS_S = WAIT_S
"""Nothing but a wait that begins anew takes so long."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@contextlib.contextmanager
def write_locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program holds the lock for writing, until the end of the block."""
    with shell(path) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other
        other.execute("ROLLBACK")


@contextlib.contextmanager
def wholly_locked(path: Path) -> Iterator[None]:
    """Another program has the file to itself, so that it can be neither read nor opened."""
    with shell(path) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("CREATE TABLE its (n)")  # something is in the WAL, so that a check does not read without locks
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def waiting(met: list[object], more_than: int = 0) -> None:
    """Until a thread has met a lock so often."""
    while len(met) <= more_than:  # noqa: ASYNC110  the thread knows no event of the test's
        await asyncio.sleep(0.001)


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One for each pause of a thread that waits for a lock."""
    pauses: list[object] = []
    rest = Connection.rest

    def note_and_rest(self: Connection, pause_s: float) -> None:
        pauses.append(self)
        rest(self, pause_s)

    monkeypatch.setattr(Connection, "rest", note_and_rest)
    return pauses


async def outcomes(calls: list[asyncio.Task[Any]], clock: Clock | None = None) -> list[Any]:
    """What each call returned or raised; fails where any of them hangs."""
    _, hanging = await asyncio.wait(calls, timeout=HANGS_S)
    if hanging and clock is not None:
        clock.step(math.inf)  # else the end of the event loop would wait for ever
    assert not hanging
    return await asyncio.gather(*calls, return_exceptions=True)


def begin(*calls: Awaitable[object]) -> list[asyncio.Task[Any]]:
    return [asyncio.ensure_future(call) for call in calls]


async def test_however_many_writes_wait_for_a_lock_they_all_fail_when_their_time_is_over(
    path: Path, clock: Clock, met: list[object]
) -> None:
    engine = SQLiteEngine(path, busy_timeout_s=NEVER_S)
    await engine.append("user_123", [ROW])
    with write_locked(path):
        calls = begin(*(engine.append(f"user_{number % 64}", [ROW]) for number in range(4 * MAX_WRITES)))
        calls += begin(engine.pop("user_123", HeldReading(lambda: None)), engine.clear("user_123"))
        await waiting(met)
        assert not any(call.done() for call in calls)
        clock.step(NEVER_S)
        assert all(isinstance(outcome, StorageBusyError) for outcome in await outcomes(calls, clock))
    await engine.close()
    assert stored(path) == [ITEM]


async def test_calls_of_one_pool_wait_as_long_as_each_of_them_may(path: Path, clock: Clock, met: list[object]) -> None:
    patient, hasty = SQLiteEngine(path, busy_timeout_s=NEVER_S), SQLiteEngine(path, busy_timeout_s=1)
    none = SQLiteEngine(path, busy_timeout_s=0)
    await patient.append("user_123", [ROW])
    with write_locked(path):
        (first,) = begin(patient.append("user_123", [ROW]))
        await waiting(met)
        # They come to the same transaction, wait behind it in the thread, and wait in the queue.
        behind = begin(*(hasty.append("user_123", [ROW]) for _ in range(3 * MAX_WRITES)))
        at_once = begin(*(none.append("user_123", [ROW]) for _ in range(40)))
        more = begin(*(patient.append("more", [ROW]) for _ in range(40)))
        assert all(isinstance(outcome, StorageBusyError) for outcome in await outcomes(at_once, clock))
        assert not any(call.done() for call in (first, *behind, *more))
        clock.step(1)
        assert all(isinstance(outcome, StorageBusyError) for outcome in await outcomes(behind, clock))
        (late,) = begin(hasty.append("user_123", [ROW]))  # its time begins now
        clock.step(0.9)
        await waiting(met, len(met))
        assert not any(call.done() for call in (first, late, *more))
    assert await outcomes([first, late, *more], clock) == [None] * 42
    for engine in (patient, hasty, none):
        await engine.close()
    assert (stored(path), stored(path, "more")) == ([ITEM] * 3, [ITEM] * 40)


async def test_however_many_reads_wait_for_a_file_that_another_has_to_itself_each_fails_at_its_deadline(
    path: Path, clock: Clock, met: list[object]
) -> None:
    engine, hasty = SQLiteEngine(path, busy_timeout_s=NEVER_S), SQLiteEngine(path, busy_timeout_s=1)
    seed = SQLiteEngine(path)
    await seed.append("user_123", [ROW])
    await seed.close()
    with wholly_locked(path):
        calls = begin(*(engine.rows("user_123", 0, 9) for _ in range(500)), engine.open(), engine.sessions(None, 9))
        calls += begin(engine.append("user_123", [ROW]), engine.check())
        others = begin(*(hasty.rows("user_123", 0, 9) for _ in range(500)), hasty.open())
        await waiting(met)
        clock.step(1)
        assert all(isinstance(outcome, StorageBusyError) for outcome in await outcomes(others, clock))
        assert not any(call.done() for call in calls)
        clock.step(NEVER_S)
        assert all(isinstance(outcome, StorageBusyError) for outcome in await outcomes(calls, clock))
    assert await engine.rows("user_123", 0, 9) == [(0, ROW.encode())]
    await engine.close()
    await hasty.close()


async def test_calls_that_met_a_lock_are_done_when_it_is_let_go(path: Path, clock: Clock, met: list[object]) -> None:
    seed, engine = SQLiteEngine(path), SQLiteEngine(path, busy_timeout_s=NEVER_S)
    await seed.append("user_123", [ROW])
    await seed.close()
    with wholly_locked(path):
        calls = begin(
            engine.rows("user_123", 0, 9), engine.sessions(None, 9), engine.check(), engine.append("zoe", [ROW])
        )
        await waiting(met)
        assert not any(call.done() for call in calls)
    rows, sessions, report, added = await outcomes(calls, clock)
    assert (rows, sessions[:1], report.problem_count, added) == ([(0, ROW.encode())], [("user_123", 1)], 0, None)
    await engine.close()


async def test_a_reading_that_has_taken_rows_is_not_fed_them_again_where_a_lock_is_met_after_it(
    path: Path, met: list[object]
) -> None:
    engine = SQLiteEngine(path, busy_timeout_s=NEVER_S)
    await engine.append("user_123", [ROW])
    begun: list[object] = []
    reading = HeldReading(lambda: begun.append(1))
    reading.go_on.set()
    with write_locked(path):
        calls = begin(engine.append("user_123", [ROW]), engine.pop("user_123", reading))
        await waiting(met)
        assert begun == []
    assert await outcomes(calls) == [None, None]
    assert begun == [1]
    await engine.close()


async def test_calls_that_wait_for_none_but_those_before_them_do_not_fail_however_long_that_takes(
    path: Path, clock: Clock
) -> None:
    engine, hasty = SQLiteEngine(path, busy_timeout_s=1), SQLiteEngine(path, busy_timeout_s=0)
    await engine.append("user_123", [ROW])
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    reading = HeldReading(lambda: loop.call_soon_threadsafe(begun.set))
    calls = begin(engine.pop("user_123", reading))
    await begun.wait()
    calls += begin(*(one.append("user_123", [ROW]) for one in [engine, hasty] * MAX_WRITES))
    await asyncio.sleep(0)
    clock.step(NEVER_S)
    reading.go_on.set()
    assert set(await outcomes(calls, clock)) == {None}
    await engine.close()
    await hasty.close()
    assert len(stored(path)) == 1 + 2 * MAX_WRITES


# Beside the event loop, and across a fork


async def test_another_file_at_the_path_is_opened_while_a_write_waits_for_a_lock_on_the_old_one(
    path: Path, met: list[object]
) -> None:
    old, new = SQLiteEngine(path, busy_timeout_s=NEVER_S), SQLiteEngine(path, busy_timeout_s=NEVER_S)
    await old.append("user_123", [ROW])
    await old.rows("user_123", 0, 9)
    moved = path.with_name("moved.db")
    with write_locked(path):
        calls = begin(old.append("user_123", [ROW]))
        await waiting(met)
        path.rename(moved)
        await new.append("new", [ROW])  # would wait for the other program, or with the event loop for ever
        (outcome,) = await outcomes(calls)
    with pytest.raises(StorageError, match=f"{re.escape(str(path))} was replaced"):
        raise outcome
    await old.close()
    await new.close()
    assert (stored(moved), stored(path, "new")) == ([ITEM], [ITEM])


async def test_the_event_loop_goes_on_while_another_file_at_the_path_waits_for_what_runs_in_the_old_one(
    path: Path, clock: Clock
) -> None:
    old, hasty = SQLiteEngine(path), SQLiteEngine(path, busy_timeout_s=1)
    new = SQLiteEngine(path, busy_timeout_s=NEVER_S)
    await old.append("user_123", [ROW])
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    reading = HeldReading(lambda: loop.call_soon_threadsafe(begun.set))
    popping = begin(old.pop("user_123", reading))
    await begun.wait()
    path.rename(path.with_name("moved.db"))
    # Nothing but this event loop lets the pop go on.
    watchdog = threading.Timer(HANGS_S, reading.go_on.set)
    watchdog.start()
    calls, late = begin(new.append("new", [ROW])), begin(hasty.append("new", [ROW]))
    await asyncio.sleep(0)
    clock.step(1)
    with pytest.raises(StorageBusyError, match="replaced, and what this program does in the old file has not ended"):
        raise (await outcomes(late, clock))[0]
    assert not reading.go_on.is_set()
    assert not calls[0].done()
    reading.go_on.set()
    watchdog.cancel()
    assert await outcomes(calls, clock) == [None]
    await outcomes(popping, clock)
    for engine in (old, new, hasty):
        await engine.close()
    assert stored(path, "new") == [ITEM]


@needs_fork
@pytest.mark.parametrize("call", ["write", "open", "check"])
def test_a_fork_does_not_wait_for_a_lock_for_which_a_call_waits_and_the_call_goes_on_after_it(
    path: Path, call: str
) -> None:
    assert run_quietly(_FORKING, path, SUPPORT, call, flags=FORKING) == "forked while the lock was held\ndone\n"


FORKING = (*STRICT, "-W", "ignore:This process:DeprecationWarning")
"""Python from 3.12 on warns of a fork with threads; agentmem's may be there."""

_FORKING = """
import asyncio, sqlite3, sys
path, call = sys.argv[1], sys.argv[3]
sys.path.insert(0, sys.argv[2])
from agentmem.engines.sqlite import connection, snapshot
from agentmem.engines.sqlite.engine import SQLiteEngine
from forking import fork

met = []

def noting(method):
    def note(self, *args):
        met.append(method)
        return method(self, *args)
    return note

connection.Connection.rest = noting(connection.Connection.rest)
snapshot.Snapshot.rest = noting(snapshot.Snapshot.rest)

async def main():
    seed, engine = SQLiteEngine(path), SQLiteEngine(path, busy_timeout_s=60)
    await seed.append("user_123", ["{}"])
    await seed.close()
    other = sqlite3.connect(path, isolation_level=None)
    if call == "write":
        await engine.open()
    else:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("CREATE TABLE its (n)")
    other.execute("BEGIN IMMEDIATE")
    calls = {"write": lambda: engine.append("user_123", ["{}"]), "open": engine.open, "check": engine.check}
    waiting = asyncio.ensure_future(calls[call]())
    while not met:
        await asyncio.sleep(0.001)
    fork(lambda: None)
    for _ in range(3):
        await asyncio.sleep(0)
    print("forked while the lock was held" if not waiting.done() else waiting)
    other.execute("ROLLBACK")
    other.close()
    await waiting
    await engine.close()
    print("done")

asyncio.run(main())
"""


# What each caller is told


async def test_each_call_of_a_batch_that_fails_gets_an_error_of_its_own_whose_traceback_is_its_own_way(
    path: Path,
) -> None:
    async with AsyncSessionStore(path) as store:
        await store.session("user_123").add_items([ITEM])
        path.unlink()
        calls = begin(*(store.session("user_123").add_items([ITEM]) for _ in range(200)))
        errors = await outcomes(calls)
    assert all(isinstance(error, StorageError) for error in errors)
    assert len({id(error) for error in errors}) == len(errors)
    depths = [len(traceback.extract_tb(error.__traceback__)) for error in errors]
    assert min(depths) == max(depths)
    assert len({str(error) for error in errors}) == 1


# Closing and opening at the same moment


async def test_an_engine_that_another_thread_closes_during_a_call_leases_no_pool_any_more(path: Path) -> None:
    class ClosedMeanwhile(SQLiteEngine):
        def refuse_other_process(self) -> None:  # between the look whether it is closed and the lease
            threads = [threading.Thread(target=asyncio.run, args=(self.close(),))]
            for thread in threads:
                thread.start()
                thread.join()

    engine = ClosedMeanwhile(path)
    with pytest.raises(SessionClosedError):
        await engine.append("user_123", [ROW])
    with loop_in_a_thread() as other, pytest.raises(SessionClosedError):
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(engine.open(), other))
    assert connections(path) == []
    assert not os.path.exists(path)
