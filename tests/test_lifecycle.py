"""A program that closes nothing ends at once, silently, with everything stored; and a fork starts anew."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from database import stored
from endings import ENDINGS, FORK_IMPORTS, imports
from exhaustive import cases, exhaustive
from processes import STRICT, SUPPORT, Child, files, needs_fork, run, run_quietly

threads_may_start_late = pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info < (3, 12, 2),
    reason="Python 3.12.0 and 3.12.1 start no thread once the main one has ended (python/cpython#113964)",
)

# The end of a program

IMPORTS = imports("SQLiteSession", "AsyncSQLiteSession") + "path = db\n"

SCRIPTS = {
    **ENDINGS,
    "sync, in memory": """
for db in (db, ":memory:"):
    session = SQLiteSession(db, session_id="user_123")
    session.add_items([one])
    assert session.get_items() == [one]
""",
    "async, dropped": """
async def main():
    await AsyncSQLiteSession(path, session_id="user_123").add_items([one])
    await AsyncSQLiteSession(":memory:", session_id="user_123").add_items([one])
asyncio.run(main())
""",
    "both, the sync one first": """
SQLiteSession(path, session_id="user_123").add_items([one])
session = AsyncSQLiteSession(path, session_id="user_123")
assert asyncio.run(session.get_items()) == [one]
""",
    "from a thread": """
thread = threading.Thread(target=lambda: SQLiteSession(path, session_id="user_123").add_items([one]))
thread.start()
thread.join()
""",
}


ALIKE = {
    "sync, many sessions and a store",
    "sync, in memory",
    "from a thread",
    "async, entered and not left",
    "sync, before the first use",
    "async, before the first use",
    "a child that ends by itself",
    "a child that uses nothing and ends by itself",
}
"""Ways that differ little from others; here and below."""


@pytest.mark.parametrize("name", cases(SCRIPTS, quick=lambda name: name not in ALIKE))
def test_a_script_that_closes_nothing_ends_silently_with_everything_stored_and_closed(path: Path, name: str) -> None:
    assert run_quietly(IMPORTS + SCRIPTS[name], path) == ""
    assert stored(path) == [{"role": "user", "content": "one"}]
    assert files(path) == {path.name}


def test_the_program_ends_however_late_its_background_loop_is_dropped(path: Path) -> None:
    script = """
import sys
from agentmem import SQLiteSession, blocking
session = SQLiteSession(sys.argv[1], session_id="user_123")
session.add_items([{"number": 0}])
dropped_at_the_end = blocking.background_loop
blocking.background_loop = blocking.BackgroundLoop()
"""
    run_quietly(script, path)
    assert stored(path) == [{"number": 0}]


UNDER_FINALIZATION = """
class Chat:
    def __init__(self):
        self.session = SQLiteSession(path, session_id="user_123")
        self.store = SessionStore(path)
        self.session.add_items([one])
    def __del__(self):
        try:
            self.session.get_items()
        except RuntimeError as error:
            print(error)
        self.session.close()
        self.store.close()
chat = Chat()
"""


def test_a_call_while_the_interpreter_ends_is_an_error_and_closing_then_is_none(path: Path) -> None:
    assert "while the interpreter ends" in run_quietly(IMPORTS + UNDER_FINALIZATION, path)
    assert stored(path) == [{"role": "user", "content": "one"}]
    assert files(path) == {path.name}


LATE = {
    "sync": """
def go_on():
    threading.main_thread().join()
    for number in range(20):
        session.add_items([{"number": number}])
        assert len(session.get_items()) == number + 2
session = SQLiteSession(path, session_id="user_123")
session.add_items([one])
session.get_items()
""",
    "async": """
async def talk():
    session = AsyncSQLiteSession(path, session_id="user_123")
    await session.add_items([one])
    for number in range(20):
        await session.add_items([{"number": number}])
        assert len(await session.get_items()) == number + 2
def go_on():
    threading.main_thread().join()
    asyncio.run(talk())
""",
    "async, starting as the main thread ends": """
async def talk():
    session = AsyncSQLiteSession(path, session_id="user_123")
    await session.add_items([one])
    for number in range(20):
        await session.add_items([{"number": number}])
def go_on():
    asyncio.run(talk())
SQLiteSession(path, session_id="other").add_items([one])
""",
}


AT_EXIT = """
def late():
    for call in (lambda: session.add_items([one]), session.get_items, lambda: asyncio.run(other.add_items([one]))):
        try:
            call()
        except StorageError as error:
            print(error)
session = SQLiteSession(path, session_id="user_123")
session.add_items([one])
session.get_items()
other = AsyncSQLiteSession(path, session_id="user_123")
asyncio.run(other.add_items([one]))
atexit.register(late)
"""


@threads_may_start_late
def test_a_call_at_exit_on_a_handle_that_was_in_use_says_that_the_program_is_ending(path: Path) -> None:
    said = run_quietly("from agentmem.errors import StorageError\n" + IMPORTS + AT_EXIT, path)
    late = f"{path}: the connection was closed because the program is ending; an atexit handler comes too late"
    assert said.splitlines()[:2] == [late] * 2
    assert [item["content"] for item in stored(path)][:2] == ["one", "one"]


@threads_may_start_late
@pytest.mark.parametrize("name", LATE)
def test_threads_that_outlive_the_main_one_use_their_sessions_to_their_end(path: Path, name: str) -> None:
    script = IMPORTS + LATE[name] + "\nfor _ in range(1):\n    threading.Thread(target=go_on).start()\n"
    for _ in range(2):  # how the two threads meet differs
        path.unlink(missing_ok=True)
        assert run_quietly(script, path) == ""
        assert stored(path) == [{"role": "user", "content": "one"}, *({"number": number} for number in range(20))]
        assert files(path) == {path.name}


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("end", "code", "last_line"),
    [
        ("sys.exit(3)", 3, ""),
        ("raise LookupError('mine')", 1, "LookupError: mine"),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt"),
        ("os._exit(4)", 4, ""),
    ],
    ids=["sys.exit", "an exception", "Ctrl+C", "os._exit"],
)
def test_however_a_script_ends_its_exit_is_its_own_and_what_was_acknowledged_is_stored(
    path: Path, kind: str, end: str, code: int, last_line: str
) -> None:
    if kind == "sync":
        script = f"""
session = SQLiteSession(path, session_id="user_123")
session.add_items([one])
session.get_items()
{end}
"""
    else:
        script = f"""
async def main():
    session = AsyncSQLiteSession(path, session_id="user_123")
    await session.add_items([one])
    reading = asyncio.ensure_future(session.get_items())
    await asyncio.sleep(0)
    {end}
asyncio.run(main())
"""
    ended, output, errors = run(IMPORTS + script, path)
    assert ended in (code, 128 - code)  # Windows has no signals
    assert output == ""
    assert (errors.splitlines() or [""])[-1] == last_line
    assert errors.count("Traceback") == bool(last_line), errors
    if "os._exit" not in end:
        assert files(path) == {path.name}
    assert stored(path) == [{"role": "user", "content": "one"}]


@pytest.mark.skipif(os.name != "posix", reason="a signal for one process is POSIX's")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_ctrl_c_in_the_middle_of_writing_ends_the_program_and_keeps_what_was_acknowledged(
    path: Path, kind: str
) -> None:
    scripts = {
        "sync": """
session = SQLiteSession(path, session_id="user_123")
number = 0
while True:
    session.add_items([{"number": number}, {"number": number}])
    number += 1
    print(number, flush=True)
""",
        "async": """
async def main():
    session = AsyncSQLiteSession(path, session_id="user_123")
    number = 0
    while True:
        await session.add_items([{"number": number}, {"number": number}])
        number += 1
        print(number, flush=True)
asyncio.run(main())
""",
    }
    with Child(IMPORTS + scripts[kind], path) as child:
        while child.read_line() != "20":
            pass
        child.interrupt()
        code, output, errors = child.finish()
    assert code == -2
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    items = stored(path)
    assert items[::2] == items[1::2] == [{"number": number} for number in range(len(items) // 2)]
    assert len(items) // 2 >= int((output.splitlines() or ["20"])[-1])
    assert files(path) == {path.name}


def test_a_loop_that_is_closed_under_its_calls_does_not_keep_the_program_from_ending(path: Path) -> None:
    # asyncio and aiosqlite complain on stderr, rightly: nobody waits for these calls.
    script = """
for cycles in range(1, 8):
    loop = asyncio.new_event_loop()
    session = AsyncSQLiteSession(path, session_id="user_123")
    loop.run_until_complete(session.add_items([{"number": cycles}]))
    tasks = [loop.create_task(session.get_items()), loop.create_task(session.add_items([one]))]
    for _ in range(cycles):
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()
print("end")
"""
    code, output, _ = run(IMPORTS + script, path, flags=())
    assert (code, output) == (0, "end\n")
    assert [item["number"] for item in stored(path) if "number" in item] == list(range(1, 8))
    assert files(path) == {path.name}


# Forks

FORKING = (*STRICT, "-W", "ignore:This process:DeprecationWarning")
"""Python from 3.12 on warns of a fork with threads; agentmem's may be there."""

FORKS_BEGIN = IMPORTS + "import json, multiprocessing, time\n" + FORK_IMPORTS

FORKS = {
    "sync, before the first use": """
fork(lambda: add(0))
add(1)
fork(lambda: add(2))
""",
    "sync, after it": """
add(0)
session.get_items()
fork(lambda: add(1))
add(2)
fork(lambda: [add(3), session.get_items(), session.close()])
add(4)
""",
    "async, before the first use": """
fork(lambda: asyncio.run(async_add(0)))
asyncio.run(async_add(1))
""",
    "async, between two loops": """
asyncio.run(async_add(0))
fork(lambda: asyncio.run(async_add(1)))
asyncio.run(async_add(2))
fork(lambda: [asyncio.run(async_add(3)), asyncio.run(async_session.close())])
asyncio.run(async_add(4))
""",
    "async, from a running loop": """
async def main():
    await async_add(0)
    await async_session.get_items()
    fork(lambda: asyncio.run(async_add(1)))
    await async_add(2)
    fork(lambda: asyncio.run(async_session.close()))
    await async_add(3)
asyncio.run(main())
""",
    "a child that forks": """
add(0)
fork(lambda: [add(1), fork(lambda: add(2)), add(3)])
add(4)
""",
    "a child that ends by itself": """
add(0)
if child := os.fork():
    wait_for(child)
    add(2)
else:
    add(1)
""",
    "a child that uses nothing and ends by itself": """
add(0)
memory = SQLiteSession(":memory:", session_id="user_123")
memory.add_items([one])
asyncio.run(async_add(1))
if child := os.fork():
    wait_for(child)
""",
    "multiprocessing": """
if __name__ == "__main__":
    add(0)
    for number in (1, 2):
        process = multiprocessing.get_context("fork").Process(target=add, args=(number,))
        process.start()
        process.join(100)
        assert process.exitcode == 0, process.exitcode
    add(3)
""",
}


@needs_fork
@pytest.mark.parametrize("name", cases(FORKS, quick=lambda name: name not in ALIKE))
def test_after_a_fork_both_processes_go_on_with_connections_of_their_own(path: Path, name: str) -> None:
    assert run_quietly(FORKS_BEGIN + FORKS[name], path, SUPPORT, flags=FORKING) == ""
    items = stored(path)
    assert items == [{"number": number} for number in range(len(items))]
    assert len(items) >= 2
    assert files(path) == {path.name}


@needs_fork
@exhaustive
def test_a_fork_at_any_moment_of_a_call_disturbs_neither_process(path: Path) -> None:
    script = """
from stepping import cycle_loops

forks = 0
for closes in (False, True):
    for loop in cycle_loops():
        async def main():
            session = AsyncSQLiteSession(path, session_id="parent")
            def act():
                if work.done():
                    return False
                fork(lambda: asyncio.run(in_child()))
            async def call():
                await session.add_items([one])
                await session.get_items()
                await session.close()
            if closes:
                await session.add_items([one])
                await session.get_items()
                work = asyncio.ensure_future(session.close())
            else:
                work = asyncio.ensure_future(call())
            loop.arm(act)
            await work
            await session.close()
        async def in_child():
            async with AsyncSQLiteSession(path, session_id="child") as session:
                await session.add_items([one])
        loop.run(main())
        forks += loop.happened
print(forks)
"""
    forks = int(run_quietly(FORKS_BEGIN + script, path, SUPPORT, flags=FORKING))
    assert forks > 10
    assert len(stored(path, "child")) == forks
    assert len(stored(path, "parent")) == forks + 2  # in two more runs the fork would have come too late
    assert files(path) == {path.name}


@needs_fork
@exhaustive
def test_a_fork_while_the_first_call_of_another_thread_starts_the_background_loop_disturbs_neither(path: Path) -> None:
    # What starts it imports modules, and their locks would stay locked in the child.
    script = """
import random

def first_calls(number):
    thread = threading.Thread(target=add, args=(2 * number,))
    thread.start()
    time.sleep(random.random() / 20)
    fork(lambda: add(2 * number + 1))
    thread.join()

for number in range(20):
    fork(lambda: first_calls(number))
"""
    assert run_quietly(FORKS_BEGIN + script, path, SUPPORT, flags=FORKING) == ""
    assert sorted(item["number"] for item in stored(path)) == list(range(40))


@needs_fork
def test_forks_while_threads_write_lose_nothing(path: Path) -> None:
    script = """
def write(thread):
    own = SQLiteSession(path, session_id=f"thread_{thread}")
    number = 0
    while not ended.is_set():
        own.add_items([{"number": number}])
        number += 1
        if number % 5 == 0:
            assert len(own.get_items()) == number
    counts[thread] = number

ended, counts = threading.Event(), {}
threads = [threading.Thread(target=write, args=(thread,)) for thread in range(3)]
for thread in threads:
    thread.start()
for number in range(25):
    fork(lambda: add(number))
ended.set()
for thread in threads:
    thread.join()
print(json.dumps(counts))
"""
    counts = json.loads(run_quietly(FORKS_BEGIN + script, path, SUPPORT, flags=FORKING))
    assert stored(path) == [{"number": number} for number in range(25)]
    assert len(counts) == 3
    for thread, count in counts.items():
        assert stored(path, f"thread_{thread}") == [{"number": number} for number in range(count)]
    assert files(path) == {path.name}


@needs_fork
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_session_in_memory_is_an_error_in_the_child_and_goes_on_in_the_parent(path: Path, kind: str) -> None:
    script = """
from agentmem.errors import StorageError

memory = {"sync": SQLiteSession, "async": AsyncSQLiteSession}[sys.argv[3]](":memory:", session_id="user_123")

def call(function, *args):
    return function(*args) if sys.argv[3] == "sync" else asyncio.run(function(*args))

def in_child():
    for function, *args in [(memory.get_items,), (memory.add_items, [one]), (memory.pop_item,)] * 2:
        try:
            call(function, *args)
        except StorageError as error:
            assert "stays in the process that made it" in str(error)
        else:
            raise AssertionError(function)
    call(memory.close)

call(memory.add_items, [one])
fork(in_child)
call(memory.add_items, [one])
print(call(memory.get_items) == [one, one])
call(memory.close)
"""
    assert run_quietly(FORKS_BEGIN + script, path, SUPPORT, kind, flags=FORKING) == "True\n"
