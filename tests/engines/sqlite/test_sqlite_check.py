"""A check says all that is wrong with a file, nothing of one that is whole, and changes nothing, whatever it finds."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from database import shell
from exhaustive import exhaustive
from processes import Child, files, holdings, holds_again, needs_fork, run_quietly
from waiting import WAIT_S

from agentmem import AsyncSessionStore, AsyncSQLiteSession, SessionStore
from agentmem.checking import CheckReport
from agentmem.engines.sqlite.tables import SCHEMA_VERSION
from agentmem.errors import SchemaVersionError, SessionClosedError, StorageCorruptError, StorageError
from agentmem.items import Item

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}


async def fill(path: Path, sessions: int = 3, items: int = 5, text: str = "") -> None:
    async with AsyncSessionStore(path) as store:
        for number in range(sessions):
            added = [{"role": "user", "content": f"{position} {text}"} for position in range(items)]
            await store.session(f"user_{number}").add_items(added)


async def check(path: Path | str) -> CheckReport:
    store = AsyncSessionStore(path)
    try:
        return await store.check()
    finally:
        await store.close()


def lines(report: CheckReport) -> list[str]:
    return [str(problem) for problem in report.problems]


def folder(path: Path) -> dict[str, bytes | None]:
    return {found.name: found.read_bytes() if found.is_file() else None for found in path.parent.iterdir()}


def without_shm(contents: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """The -shm is SQLite's shared memory, which whoever reads takes part in."""
    return {name: None if name.endswith("-shm") else content for name, content in contents.items()}


# What is whole


async def test_a_whole_file_has_no_problem_and_nothing_is_written_or_made(path: Path) -> None:
    await fill(path, sessions=3, items=5)
    before = folder(path)
    changed_ns = path.stat().st_mtime_ns
    assert await check(path) == CheckReport(sessions=3, items=15, problem_count=0, problems=())
    assert folder(path) == before
    assert path.stat().st_mtime_ns == changed_ns
    assert files(path) == {path.name}


async def test_a_file_in_use_is_checked_with_what_was_just_stored_and_no_file_is_made_beside_it(path: Path) -> None:
    async with AsyncSessionStore(path) as store:
        await store.session("user_123").add_items([ONE, ONE])
        before = folder(path)
        assert set(before) == {path.name, f"{path.name}-wal", f"{path.name}-shm"}
        assert (await store.check()).items == 2
        assert (await check(path)).items == 2
        assert without_shm(folder(path)) == without_shm(before)


_KILLED = """
import asyncio, os, signal, sys
from agentmem import AsyncSQLiteSession

async def main():
    async with AsyncSQLiteSession(sys.argv[1], session_id="user_123") as session:
        await session.add_items([{"number": number} for number in range(7)])
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
async def test_what_a_killed_process_left_is_checked_and_left_as_it_is(path: Path) -> None:
    with Child(_KILLED, path) as child:
        child.finish()
    before = folder(path)
    assert before[f"{path.name}-wal"]
    assert await check(path) == CheckReport(sessions=1, items=7, problem_count=0, problems=())
    assert without_shm(folder(path)) == without_shm(before)


async def test_a_file_that_was_copied_with_its_wal_is_checked_with_it(path: Path) -> None:
    copy = path.with_name("copy.db")
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([ONE] * 7)
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    before = folder(copy)
    assert await check(copy) == CheckReport(sessions=1, items=7, problem_count=0, problems=())
    after = folder(copy)
    after.pop(f"{copy.name}-shm")
    assert after == before


async def test_a_store_in_memory_is_checked_and_goes_on() -> None:
    async with AsyncSessionStore(":memory:") as store:
        assert (await store.check()).items == 0
        await store.session("user_123").add_items([ONE, ONE])
        assert await store.check() == CheckReport(sessions=1, items=2, problem_count=0, problems=())
        await store.session("user_123").add_items([ONE])
        assert len(await store.session("user_123").get_items()) == 3


async def test_a_store_in_memory_that_is_closed_meanwhile_is_checked_or_says_so_and_leaves_nothing_open() -> None:
    before = holdings()
    for cycles in range(12):
        store = AsyncSessionStore(":memory:")
        await store.session("user_123").add_items([ONE])
        checking = asyncio.ensure_future(store.check())
        for _ in range(cycles):
            await asyncio.sleep(0)
        await store.close()
        try:
            assert (await checking).items == 1
        except SessionClosedError:
            pass  # it had not begun
        holds_again(before)


async def test_a_check_takes_no_more_memory_for_more_items(path: Path) -> None:
    await fill(path, sessions=20, items=1000, text="x" * 1000)
    tracemalloc.start()
    try:
        assert (await check(path)).items == 20_000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 20_000_000
    assert peak_bytes < 1_000_000


# What is no file of agentmem's


async def _refused(path: Path, error: type[StorageError], match: str) -> None:
    before = folder(path)
    with pytest.raises(StorageError, match=match) as raised:
        await check(path)
    assert type(raised.value) is error
    assert str(path) in str(raised.value)
    assert folder(path) == before


async def test_a_missing_file_is_an_error_and_is_not_made(path: Path) -> None:
    await _refused(path, StorageError, "there is no file")


async def test_an_empty_file_is_an_error_and_stays_empty(path: Path) -> None:
    path.touch()
    await _refused(path, StorageError, "is empty, nothing was ever stored in it")


async def test_a_folder_in_the_place_of_the_file_is_an_error(path: Path) -> None:
    path.mkdir()
    await _refused(path, StorageError, "there is no file")


@pytest.mark.parametrize("garbage", [b"xy", b"Dear diary, " * 1000, bytes(4096), b"SQLite format 3\0" + b"\xff" * 8176])
async def test_a_file_that_is_no_database_is_the_error_that_opening_gives(path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage)
    await _refused(path, StorageCorruptError, "not a database")


async def test_another_program_s_database_is_the_error_that_opening_gives(path: Path) -> None:
    with shell(path) as connection:
        connection.execute("CREATE TABLE notes (text)")
    await _refused(path, StorageError, "another program's database")


async def test_a_file_of_the_agents_sdk_s_is_the_error_that_opening_gives_and_is_not_taken_over(path: Path) -> None:
    with shell(path) as connection:
        connection.execute("CREATE TABLE agent_sessions (session_id TEXT PRIMARY KEY, created_at, updated_at)")
        connection.execute(
            "CREATE TABLE agent_messages (id INTEGER PRIMARY KEY AUTOINCREMENT, session_id, message_data, created_at)"
        )
    await _refused(path, StorageError, "agentmem import-sdk FILE")


async def test_a_file_of_a_newer_version_is_the_error_that_opening_gives(path: Path) -> None:
    await fill(path)
    with shell(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    await _refused(path, SchemaVersionError, "upgrade agentmem")


async def test_a_closed_store_checks_nothing(path: Path) -> None:
    async with AsyncSessionStore(path) as store:
        pass
    with pytest.raises(SessionClosedError):
        await store.check()


# What is wrong


OF_USER_1 = "session_key = (SELECT session_key FROM agentmem_sessions WHERE session_id = 'user_1')"
ORPHANS = "session key 2, position 0: 5 items, up to position 4, of a session that is missing"


@pytest.mark.parametrize(
    ("statement", "problems"),
    [
        (f"DELETE FROM agentmem_items WHERE {OF_USER_1} AND position = 3", ["session 'user_1', position 3: missing"]),
        (
            "UPDATE agentmem_sessions SET length = 7 WHERE session_id = 'user_1'",
            ["session 'user_1', position 5: missing, up to position 6"],
        ),
        (
            "UPDATE agentmem_sessions SET length = 3 WHERE session_id = 'user_1'",
            ["session 'user_1', position 3: not below the session's next position, 3, up to position 4"],
        ),
        (
            "UPDATE agentmem_sessions SET length = -1 WHERE session_id = 'user_1'",
            [
                "session 'user_1': its next position is -1",
                "session 'user_1', position 0: not below the session's next position, -1, up to position 4",
            ],
        ),
        (
            "UPDATE agentmem_sessions SET length = x'ff' WHERE session_id = 'user_1'",
            ["session 'user_1': its next position is not a whole number"],
        ),
        ("DELETE FROM agentmem_sessions WHERE session_id = 'user_1'", [ORPHANS]),
        (
            "DELETE FROM agentmem_sessions",
            [re.sub("key 2", f"key {key}", ORPHANS) for key in (1, 2, 3)],
        ),
        (
            f"UPDATE agentmem_items SET session_key = 8, position = 0 WHERE {OF_USER_1} AND position = 4",
            [
                "session 'user_1', position 4: missing",
                "session key 8, position 0: an item of a session that is missing",
            ],
        ),
        (
            f"UPDATE agentmem_items SET item = x'ff00' WHERE session_key > 2 OR {OF_USER_1} AND position >= 3",
            [
                f"session 'user_{session}', position {position}: cannot be read: 'utf-8' codec can't decode byte 0xff"
                for session, position in ((1, 3), (1, 4), *((2, position) for position in range(5)))
            ],
        ),
        (
            f"UPDATE agentmem_items SET item = '[1]' WHERE {OF_USER_1} AND position = 3",
            ["session 'user_1', position 3: cannot be read: not a JSON object but list"],
        ),
        ("DROP TABLE agentmem_items", ["no such table: agentmem_items"]),
        ("DROP TABLE agentmem_sessions", ["no such table: agentmem_sessions"]),
    ],
)
async def test_each_kind_of_inconsistency_is_named_with_session_and_position(
    path: Path, statement: str, problems: list[str]
) -> None:
    await fill(path, sessions=3, items=5)
    with shell(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(statement)
    before = folder(path)
    report = await check(path)
    # Of constraints SQLite's versions say more or less.
    found = [line for line in lines(report) if "CHECK constraint" not in line]
    if "no such table" in problems[0]:
        assert any(problems[0] in line for line in found)
    else:
        assert len(found) == len(problems)
        assert all(line.startswith(problem) for line, problem in zip(found, problems, strict=True)), found
    assert all(line.isprintable() for line in found)
    assert folder(path) == before


async def test_an_index_that_does_not_fit_its_table_is_sqlite_s_own_finding(path: Path) -> None:
    await fill(path, sessions=2, items=1)
    (page,) = pages_of(path, "sqlite_autoindex_agentmem_sessions_1")
    size = page_size(path)
    index = path.read_bytes()[(page - 1) * size : page * size]
    await fill(path, sessions=3, items=1)
    overwrite(path, page, index)
    found = lines(await check(path))
    assert any(line.startswith("SQLite: row 3 missing from index") for line in found), found
    assert all(line.startswith("SQLite: ") for line in found), found


# Damage


def page_size(path: Path) -> int:
    with shell(path) as connection:
        size: int = connection.execute("PRAGMA page_size").fetchone()[0]
        return size


def pages_of(path: Path, name: str) -> list[int]:
    """The pages of a table, from the root down."""
    with shell(path) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    size, data = page_size(path), path.read_bytes()
    found, waiting = [], [root]
    while waiting:
        page = waiting.pop()
        found.append(page)
        start = (page - 1) * size
        if data[start] == 5:  # an inner page of a table (sqlite.org/fileformat2.html#b_tree_pages)
            cells = int.from_bytes(data[start + 3 : start + 5], "big")
            pointers = [int.from_bytes(data[start + 12 + 2 * n : start + 14 + 2 * n], "big") for n in range(cells)]
            waiting += [int.from_bytes(data[start + at : start + at + 4], "big") for at in pointers]
            waiting.append(int.from_bytes(data[start + 8 : start + 12], "big"))
    return found


def overwrite(path: Path, page: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * len(data))
        file.write(data)


@pytest.mark.parametrize("byte", [0, 255], ids=["zeros", "ones"])
async def test_whichever_page_is_damaged_the_check_says_so_and_goes_on(path: Path, byte: int) -> None:
    await fill(path, sessions=3, items=40, text="x" * 300)
    whole, size = path.read_bytes(), page_size(path)
    items = set(pages_of(path, "agentmem_items"))
    leaves = items - {pages_of(path, "agentmem_items")[0]}
    assert len(leaves) > 5
    for page in range(2, len(whole) // size + 1):
        path.write_bytes(whole)
        overwrite(path, page, bytes([byte]) * size)
        before = folder(path)
        report = await check(path)
        assert report.problem_count > 0
        if page in leaves:
            lost = 120 - report.items
            assert 1 <= lost <= 14, lines(report)  # what one page holds
            named = {re.sub(r", position.*", "", line) for line in lines(report) if line.startswith("session ")}
            assert 1 <= len(named) <= 2
            assert report.sessions == 3
            assert sum(_count(line) for line in lines(report)) == lost
        elif page not in items:
            assert report.items in (0, 120)  # 0 where the page had where the tables are
        assert folder(path) == before
    path.write_bytes(whole)
    assert (await check(path)).problem_count == 0


def _count(line: str) -> int:
    found = re.search(r"position (\d+): cannot be read(?:, up to position (\d+))?: ", line)
    return 0 if found is None else int(found[2] or found[1]) - int(found[1]) + 1


async def test_a_first_page_that_is_none_is_no_database(path: Path) -> None:
    await fill(path)
    overwrite(path, 1, bytes(page_size(path)))
    await _refused(path, StorageCorruptError, "not a database")


async def test_several_damaged_pages_hide_nothing_between_them(path: Path) -> None:
    await fill(path, sessions=2, items=2000, text="x" * 300)
    leaves = sorted(pages_of(path, "agentmem_items")[1:])
    for page in leaves[10::60]:
        overwrite(path, page, b"\xff" * page_size(path))
    report = await check(path)
    damaged = len(leaves[10::60])
    assert damaged > 4
    assert 4000 - 14 * damaged <= report.items <= 4000 - 10 * damaged
    assert sum(_count(line) for line in lines(report)) == 4000 - report.items


async def test_a_damaged_page_of_many_small_items_hides_no_large_ones_behind_it(path: Path) -> None:
    async with AsyncSessionStore(path) as store:
        small = [{"n": number} for number in range(200)]
        await store.session("user_0").add_items([*small, *({"text": "x" * 3000} for _ in range(200))])
    size, data = page_size(path), path.read_bytes()
    content = {page: data[(page - 1) * size : page * size] for page in pages_of(path, "agentmem_items")[1:]}
    many = [page for page in sorted(content) if content[page].count(b'{"n":') > 50][-1]
    large = [
        page for page in sorted(content) if content[page].count(b"x" * 3000) == 1 and b'{"n":' not in content[page]
    ]
    for page in (many, *large[:60:2]):
        overwrite(path, page, b"\xff" * size)
    report = await check(path)
    assert report.items == 400 - content[many].count(b'{"n":') - 30
    assert sum(_count(line) for line in lines(report)) == 400 - report.items


async def test_an_item_whose_text_is_on_a_damaged_page_hides_no_other(path: Path) -> None:
    await fill(path, sessions=1, items=3, text="x" * 50_000)
    inner = set(pages_of(path, "agentmem_items"))
    size, data = page_size(path), path.read_bytes()
    (at,) = [page for page in range(1, len(data) // size + 1) if data[(page - 1) * size + 4 :][:40] == b"x" * 40][6:7]
    assert at not in inner
    overwrite(path, at, b"\xff" * size)  # in the middle of an item's chain of pages
    report = await check(path)
    (line,) = [line for line in lines(report) if "position" in line]
    assert re.fullmatch(r"session 'user_0', position \d: cannot be read: database disk image is malformed", line)
    assert report.items == 2


async def test_sessions_on_a_damaged_page_are_named_by_key_and_their_items_are_counted(path: Path) -> None:
    await fill(path, sessions=300, items=2)
    leaves = pages_of(path, "agentmem_sessions")[1:]
    assert len(leaves) > 2
    overwrite(path, leaves[1], b"\xff" * page_size(path))
    report = await check(path)
    assert report.items == 600
    assert 0 < report.sessions < 300
    (found,) = filter(
        None, (re.match(r"no session from key (\d+) on up to key (\d+) can", line) for line in lines(report))
    )
    assert int(found[2]) - int(found[1]) + 1 == 300 - report.sessions
    unknown = [line for line in lines(report) if line.startswith("session key ")]
    assert all(
        line.endswith(", position 0: 2 items, up to position 1, of a session that cannot be read") for line in unknown
    )
    assert len(unknown) > 50


async def test_of_a_file_without_its_second_half_the_first_is_checked(path: Path) -> None:
    await fill(path, sessions=10, items=100, text="x" * 300)
    os.truncate(path, path.stat().st_size // 8 * 4)
    with pytest.raises(StorageCorruptError, match="malformed"):
        async with AsyncSQLiteSession(path, session_id="user_0"):
            pass
    before = folder(path)
    report = await check(path)
    assert lines(report)[0] == "the file is damaged, or a part of it is missing: database disk image is malformed"
    assert report.sessions == 10
    assert 300 < report.items < 600
    assert any(
        line.startswith("session 'user_9', position 0: cannot be read, up to position 99") for line in lines(report)
    )
    assert folder(path) == before


async def test_a_file_whose_schema_is_damaged_is_said_to_be_so(path: Path) -> None:
    await fill(path)
    data = bytearray(path.read_bytes())
    data[100:108] = b"\xff" * 8  # the head of the first page's tree; the file's own header stands before it
    path.write_bytes(data)
    report = await check(path)
    assert lines(report) == ["the file is damaged, or a part of it is missing: database disk image is malformed"]
    assert (report.sessions, report.items) == (0, 0)


# While others write


_WRITER = """
import sys
from agentmem import SessionStore

with SessionStore(sys.argv[1], busy_timeout_s=60) as store:
    print("open", flush=True)
    for number in range(100_000):
        session = store.session(f"theirs_{number % 7}")
        session.add_items([{"number": number}] * 10)
        if number % 5 == 0:
            session.pop_item()
        if number % 30 == 0:
            session.clear_session()
"""


async def test_one_state_is_checked_while_this_and_another_process_write(path: Path) -> None:
    async def write(store: AsyncSessionStore, name: str) -> None:
        while True:
            await store.session(name).add_items([ONE] * 10)
            await store.session(name).pop_item()

    await fill(path)
    with Child(_WRITER, path) as child:
        child.read_line()
        async with AsyncSessionStore(path, busy_timeout_s=60) as store:
            writers = [asyncio.ensure_future(write(store, f"mine_{number}")) for number in range(4)]
            counts: list[int] = []
            while len(counts) < 10 or len(set(counts)) == 1:  # the other process may keep these writers waiting
                report = await store.check()
                assert lines(report) == []
                counts.append(report.items)
            for writer in writers:
                writer.cancel()
            await asyncio.wait(writers)


async def test_a_closed_file_that_is_written_to_meanwhile_is_checked_again(path: Path) -> None:
    await fill(path, sessions=2, items=2000)
    changed: list[int] = []

    def change(done: int, of: int) -> None:
        """As another process might: opens, pops from both sessions, moves that into the file, and closes."""
        if done > 1000 and not changed:
            with shell(path) as other:
                other.execute("BEGIN")
                other.execute("UPDATE agentmem_sessions SET length = 1999")
                other.execute("DELETE FROM agentmem_items WHERE position = 1999")
                other.execute("COMMIT")
            assert files(path) == {path.name}
            changed.append(done)

    store = AsyncSessionStore(path)
    report = await store.check(progress=change)
    await store.close()
    assert changed
    assert report == CheckReport(sessions=2, items=3998, problem_count=0, problems=())


async def test_a_check_waits_for_no_writer_and_holds_up_none(path: Path) -> None:
    await fill(path, items=2000)
    with shell(path) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE agentmem_sessions SET length = 7")
        assert (await check(path)).problem_count == 0
        other.execute("ROLLBACK")

    begun, go_on = threading.Event(), threading.Event()

    def hold(done: int, of: int) -> None:
        begun.set()
        assert go_on.wait(WAIT_S)

    async with AsyncSessionStore(path, busy_timeout_s=0) as store:
        checking = asyncio.ensure_future(store.check(progress=hold))
        await asyncio.to_thread(begun.wait)
        await store.session("user_0").add_items([ONE])
        assert len(await store.session("user_0").get_items()) == 2001
        go_on.set()
        assert (await checking).problem_count == 0


# Cancellation, closing, forks, the program's end


async def test_a_cancelled_check_stops_soon_and_leaves_nothing_open(path: Path) -> None:
    await fill(path, sessions=1, items=20_000)
    before = holdings()
    begun, go_on = threading.Event(), threading.Event()
    told = []

    def hold(done: int, of: int) -> None:
        told.append(done)
        begun.set()
        assert go_on.wait(WAIT_S)

    store = AsyncSessionStore(path)
    checking = asyncio.ensure_future(store.check(progress=hold))
    await asyncio.to_thread(begun.wait)
    checking.cancel()
    await asyncio.sleep(0)
    checking.cancel()  # again, while the first is under way
    await asyncio.sleep(0)
    assert not checking.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await checking
    assert len(told) < 10  # of 20
    await store.close()
    await asyncio.get_running_loop().shutdown_default_executor()
    holds_again(before)
    assert files(path) == {path.name}


async def test_closing_a_store_waits_for_its_check(path: Path) -> None:
    await fill(path)
    begun, go_on = threading.Event(), threading.Event()

    def hold(done: int, of: int) -> None:
        begun.set()
        assert go_on.wait(WAIT_S)

    store = AsyncSessionStore(path)
    await store.open()
    checking = asyncio.ensure_future(store.check(progress=hold))
    await asyncio.to_thread(begun.wait)
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    assert not closing.done()
    go_on.set()
    assert (await checking).problem_count == 0
    await closing
    assert files(path) == {path.name}


_FORKING = """
import os, sys, threading
from agentmem import SessionStore

def check():
    for _ in range(5):
        reports.append(SessionStore(sys.argv[1]).check())

reports = []
SessionStore(sys.argv[1])  # imports what it needs: a fork must not come between
thread = threading.Thread(target=check)
thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        store = SessionStore(sys.argv[1])
        whole = store.check().problem_count == 0
        store.close()
        os._exit(0 if whole else 1)
    print(os.waitpid(child, 0)[1], flush=True)
thread.join()
print([(report.items, report.problem_count) for report in reports])
"""


@exhaustive
@needs_fork
async def test_a_fork_comes_between_and_both_processes_check(path: Path) -> None:
    await fill(path, sessions=2, items=10_000)
    output = run_quietly(_FORKING, path, flags=("-X", "dev", "-W", "error", "-W", "ignore::DeprecationWarning"))
    *children, last = output.splitlines()
    assert children == ["0"] * 10
    assert last == str([(20_000, 0)] * 5)
    assert files(path) == {path.name}


_ENDING = """
import sys, threading, time
from agentmem import SessionStore
from agentmem.errors import StorageError

begun = threading.Event()

def progress(done, of):
    print(done, flush=True)
    begun.set()
    time.sleep(0.3)

def check():
    try:
        SessionStore(sys.argv[1]).check(progress=progress)
    except (StorageError, RuntimeError) as error:
        assert "program ends" in str(error) or "interpreter ends" in str(error)

threading.Thread(target=check, daemon=True).start()
begun.wait()
"""


async def test_a_program_that_ends_during_a_check_ends_at_once_and_quietly(path: Path) -> None:
    await fill(path, sessions=2, items=10_000)
    before = folder(path)
    told = run_quietly(_ENDING, path).split()
    assert told[0] == "0"
    assert int(told[-1]) < 20_000  # to go on to the end would take six seconds
    assert folder(path) == before


def test_the_sync_store_checks_too(path: Path) -> None:
    with SessionStore(path) as store:
        store.session("user_123").add_items([ONE])
        told: list[Any] = []
        tell: Callable[[int, int], None] = lambda done, of: told.append((done, of))  # noqa: E731  its type is the test
        assert store.check(progress=tell) == CheckReport(sessions=1, items=1, problem_count=0, problems=())
        assert told[-1] == (1, 1)
