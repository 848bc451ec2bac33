"""A sync call waits for its outcome: also after Ctrl+C, and never for a background loop that has ended."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Child, files, run, run_quietly, writer_lock

from agentmem.blocking import run_blocking

needs_signals = pytest.mark.skipif(os.name != "posix", reason="a signal for one process is POSIX's")


def test_run_blocking_passes_arguments_and_results_through() -> None:
    async def add(left: int, *, right: int) -> int:
        return left + right

    call: Callable[..., int] = run_blocking
    assert call(add, 2, right=3) == 5


# Ctrl+C

TOLD = """
import asyncio, os, signal, sys, threading

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # one line, whichever threads tell at once

def interrupted(number, frame):
    tell("interrupted")
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupted)
"""

FINISHES = (
    TOLD
    + """
from agentmem.blocking import run_blocking
from agentmem.cancellation import despite_cancellation

ended = threading.Event()

async def write():
    tell("begun")
    try:
        await despite_cancellation(finish())
    except asyncio.CancelledError:
        tell("cancelled")
        raise

async def finish():
    await asyncio.to_thread(sys.stdin.readline)
    ended.set()
"""
)


@needs_signals
def test_ctrl_c_is_raised_when_the_outcome_of_the_call_is_known(path: Path) -> None:
    script = """
async def tell_when_cancelled(task):
    while not task.cancelling():
        await asyncio.sleep(0.001)
    tell("asked to end")

async def watched():
    watching = asyncio.ensure_future(tell_when_cancelled(asyncio.current_task()))
    await write()

try:
    run_blocking(watched)
except KeyboardInterrupt:
    tell("raised, ended:", ended.is_set())
"""
    with Child(FINISHES + script) as child:
        assert child.read_line() == "begun"
        child.interrupt()
        assert {child.read_line(), child.read_line()} == {"interrupted", "asked to end"}
        child.write_line()
        assert child.read_line() == "cancelled"
        assert child.finish() == (0, "raised, ended: True\n", "")


@needs_signals
def test_a_second_ctrl_c_gives_up_and_the_call_still_ends_by_itself(path: Path) -> None:
    script = """
from agentmem import SQLiteSession

async def watched():
    task = asyncio.ensure_future(write())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        tell("asked to end")
        await despite_cancellation(asyncio.wait([task]))
        raise

try:
    run_blocking(watched)
except KeyboardInterrupt:
    tell("raised, ended:", ended.is_set())
ended.wait()
session = SQLiteSession(sys.argv[1], session_id="user_123")
session.add_items([{"number": 1}])
tell(session.get_items())
"""
    with Child(FINISHES + script, path) as child:
        assert child.read_line() == "begun"
        child.interrupt()
        assert {child.read_line(), child.read_line()} == {"interrupted", "asked to end"}
        child.interrupt()
        assert child.read_line() == "interrupted"
        assert child.read_line() == "raised, ended: False"
        child.write_line()
        assert child.finish() == (0, "[{'number': 1}]\n", "")


WAITING = (
    TOLD
    + """
import contextlib, gc, sqlite3
from agentmem import SQLiteSession
from agentmem.engines.sqlite.pool import Pool

def stored():
    with contextlib.closing(sqlite3.connect(sys.argv[1])) as connection:
        return [item for (item,) in connection.execute("SELECT item FROM agentmem_history ORDER BY position")]

def tell_when_it_is_under_way():
    (pool,) = [found for found in gc.get_objects() if isinstance(found, Pool)]
    while not pool.counts().writes.under_way:
        pass
    tell("waits")

session = SQLiteSession(sys.argv[1], session_id="user_123", busy_timeout_s=600)
session.add_items([{"number": 0}])
tell("ready")
sys.stdin.readline()
threading.Thread(target=tell_when_it_is_under_way).start()
"""
)


@needs_signals
@pytest.mark.parametrize(
    ("call", "left"),
    [
        ("session.add_items([{'number': 1}])", [{"number": 0}, {"number": 1}]),
        ("session.pop_item()", []),
        ("session.clear_session()", []),
    ],
)
def test_ctrl_c_in_a_write_that_waits_for_another_process_s_lock_is_raised_when_it_is_done(
    path: Path, call: str, left: list[object]
) -> None:
    script = f"""
try:
    {call}
except KeyboardInterrupt:
    tell(f"[{{','.join(stored())}}]")
session.add_items([{{"number": 2}}])
tell(f"[{{','.join(stored())}}]")
"""
    with Child(WAITING + script, path) as child:
        assert child.read_line() == "ready"
        with writer_lock(path) as lock:
            child.write_line()
            assert child.read_line() == "waits"
            child.interrupt()
            assert child.read_line() == "interrupted"
            lock.write_line()
            assert lock.finish() == (0, "", "")
        code, output, errors = child.finish()
    assert (code, errors) == (0, "")
    when_raised, at_the_end = map(json.loads, output.splitlines())
    assert when_raised == left
    assert at_the_end == [*left, {"number": 2}]
    assert files(path) == {path.name}


@needs_signals
def test_the_error_of_a_write_that_was_interrupted_is_the_interrupt_s_cause(path: Path) -> None:
    script = """
from agentmem.blocking import run_blocking

async def write():
    async def fail():
        tell("begun")
        await asyncio.to_thread(sys.stdin.readline)
        raise OSError("the disk is gone")
    from agentmem.cancellation import despite_cancellation
    await despite_cancellation(fail())

try:
    run_blocking(write)
except KeyboardInterrupt as interrupt:
    tell(repr(interrupt.__cause__))
"""
    with Child(TOLD + script) as child:
        assert child.read_line() == "begun"
        child.interrupt()
        assert child.read_line() == "interrupted"
        child.write_line()
        assert child.finish() == (0, "OSError('the disk is gone')\n", "")


@needs_signals
def test_a_write_that_is_interrupted_before_its_turn_comes_is_not_written(path: Path) -> None:
    script = """
import gc, os, signal, sqlite3, sys, threading
from agentmem import SQLiteSession
from agentmem.engines.sqlite.pool import Pool

session = SQLiteSession(sys.argv[1], session_id="user_123", busy_timeout_s=600)
session.add_items([{"number": 0}])
(pool,) = [found for found in gc.get_objects() if isinstance(found, Pool)]
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN IMMEDIATE")
first = threading.Thread(target=session.add_items, args=[[{"number": 1}]])
first.start()
while not pool.counts().writes.under_way:
    pass

def interrupt_when_it_waits():
    while not pool.counts().writes.waiting:
        pass
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt_when_it_waits).start()
try:
    session.add_items([{"number": 2}])
except KeyboardInterrupt:
    print("interrupted")
other.execute("COMMIT")
other.close()
first.join()
session.add_items([{"number": 3}])
print([item["number"] for item in session.get_items()])
"""
    assert run_quietly(script, path) == "interrupted\n[0, 1, 3]\n"


# A loop that ends

ENDED = """
import asyncio, os, sys, threading
from agentmem import SQLiteSession
from agentmem.blocking import run_blocking
from agentmem.errors import AgentMemError

def tell(call):
    try:
        call()
    except AgentMemError as error:
        assert "look before you write it again" in str(error)
        os.write(1, f"{{type(error).__name__}} {{type(error.__cause__).__name__}}\\n".encode())  # one line, whole

async def wait_for_ever():
    waiting.release()
    await asyncio.Event().wait()

async def end():
    loop = asyncio.get_running_loop()
    {how}
    await asyncio.sleep(3600)

session = SQLiteSession(sys.argv[1], session_id="user_123")
session.add_items([{{"number": 1}}])
waiting = threading.Semaphore(0)
threads = [threading.Thread(target=tell, args=[lambda: run_blocking(wait_for_ever)]) for _ in range(3)]
for thread in threads:
    thread.start()
    waiting.acquire()
tell(lambda: run_blocking(end))
for thread in threads:
    thread.join()
tell(lambda: session.add_items([{{"number": 2}}]))
tell(session.get_items)
tell(session.close)
print(asyncio.run(SQLiteSession(sys.argv[1], session_id="user_123").async_session.get_items()))
"""


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("loop.stop()", "RuntimeError"),
        ("loop.call_soon(sys.exit)", "SystemExit"),
        ("loop.call_soon(lambda: (_ for _ in ()).throw(KeyboardInterrupt))", "KeyboardInterrupt"),
    ],
    ids=["stopped", "SystemExit", "KeyboardInterrupt"],
)
def test_where_the_background_loop_has_ended_every_call_is_an_error_by_name_and_the_async_classes_go_on(
    path: Path, how: str, cause: str
) -> None:
    code, output, errors = run(ENDED.format(how=how), path)
    assert (code, errors) == (0, "")
    *told, items = output.splitlines()
    # Three that waited, the one that ended it, and three later ones.
    assert told == [f"BackgroundLoopError {cause}"] * 7
    assert items == "[{'number': 1}]"


def test_code_that_cancels_every_task_of_the_background_loop_does_not_end_it(path: Path) -> None:
    script = """
import asyncio, sys
from agentmem import SQLiteSession
from agentmem.blocking import run_blocking

async def cancel_all():
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(3600)

session = SQLiteSession(sys.argv[1], session_id="user_123")
session.add_items([{"number": 1}])
try:
    run_blocking(cancel_all)
except asyncio.CancelledError:
    print("cancelled")
session.add_items([{"number": 2}])
print(session.get_items())
"""
    assert run_quietly(script, path) == "cancelled\n[{'number': 1}, {'number': 2}]\n"
