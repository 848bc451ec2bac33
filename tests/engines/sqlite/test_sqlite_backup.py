"""A backup is one state of the file, whole, private and durable, or nothing at all; whoever reads or writes goes on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import sqlite3
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from database import mounted
from exhaustive import exhaustive
from processes import Child, files, holdings, holds_again, needs_fork, run_quietly, wait_until, writer_lock
from stepping import CycleLoop, cycle_loops

from agentmem import AsyncSessionStore, SessionStore
from agentmem.engines.sqlite import backup as sqlite_backup
from agentmem.engines.sqlite.tables import APPLICATION_ID, SCHEMA_VERSION
from agentmem.errors import SessionClosedError, StorageCorruptError, StorageError, StorageFullError
from agentmem.items import Item

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "monday.db"


async def fill(path: Path, size_mb: int) -> None:
    """Half of it in one session, half in another."""
    async with AsyncSessionStore(path) as store:
        for name in ("alice", "bob"):
            for _ in range(size_mb):
                await store.session(name).add_items([{"role": "user", "content": "x" * 100_000}] * 5)


async def back_up(path: Path | str, target: Path) -> None:
    store = AsyncSessionStore(path)
    try:
        await store.backup(target)
    finally:
        await store.close()


async def problems(path: Path) -> list[str]:
    store = AsyncSessionStore(path)
    report = await store.check()
    await store.close()
    return [str(problem) for problem in report.problems]


async def get(path: Path, session_id: str) -> list[Item]:
    async with AsyncSessionStore(path) as store:
        return await store.session(session_id).get_items()


# The copy


async def test_a_backup_holds_every_session_and_is_used_like_any_file(path: Path, target: Path) -> None:
    items = [ONE, {"lone": "\ud83d", "big": 10**40, "text": "\U0001f600"}]
    async with AsyncSessionStore(path) as store:
        await store.session("alice").add_items(items)
        await store.session("bob").add_items([ONE] * 1000)
        await store.session("carol").add_items([ONE])
        await store.session("carol").clear_session()
        await store.backup(target)
    assert await problems(target) == []
    assert await get(target, "alice") == items
    assert await get(target, "bob") == [ONE] * 1000
    async with AsyncSessionStore(target) as store:
        await store.session("alice").add_items([ONE])
        assert await store.session("alice").get_items() == [*items, ONE]
    assert await get(path, "alice") == items


async def test_a_backup_is_one_file_of_agentmem_s_in_wal_mode_and_its_owner_s_alone(path: Path, target: Path) -> None:
    await fill(path, 1)
    old_mask = os.umask(0)
    try:
        path.chmod(0o644)
        await back_up(path, target)
    finally:
        os.umask(old_mask)
    assert [found.name for found in target.parent.iterdir()] == [target.name]
    if os.name == "posix":
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.stat().st_nlink == 1
    with contextlib.closing(sqlite3.connect(target)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_closed_file_is_backed_up_and_nothing_is_made_beside_it(path: Path, target: Path) -> None:
    await fill(path, 1)
    before = path.read_bytes()
    await back_up(path, target)
    assert files(path) == {path.name}
    assert path.read_bytes() == before
    assert await get(target, "bob") == await get(path, "bob")


async def test_a_store_in_memory_is_backed_up_and_goes_on(target: Path) -> None:
    async with AsyncSessionStore(":memory:") as store:
        await store.session("alice").add_items([ONE] * 3)
        await store.backup(target)
        await store.session("alice").add_items([ONE])
        assert len(await store.session("alice").get_items()) == 4
    with contextlib.closing(sqlite3.connect(target)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert await problems(target) == []
    assert await get(target, "alice") == [ONE] * 3


def test_the_sync_store_backs_up_too(path: Path, target: Path) -> None:
    with SessionStore(path) as store:
        store.session("alice").add_items([ONE])
        store.backup(str(target))
    with SessionStore(target) as store:
        assert store.session("alice").get_items() == [ONE]


# While others write


_WRITER = """
import sys
from agentmem import SessionStore

with SessionStore(sys.argv[1], busy_timeout_s=60) as store:
    number = 0
    while True:
        for name in ("theirs_0", "theirs_1"):
            store.session(name).add_items([{"batch": number, "part": part} for part in range(3)])
        print(number, flush=True)
        number += 1
"""


@exhaustive
async def test_a_backup_holds_whole_batches_and_all_that_was_acknowledged_before(path: Path, target: Path) -> None:
    acknowledged: Counter[str] = Counter()

    async def write(store: AsyncSessionStore, name: str) -> None:
        while True:
            batch = acknowledged[name]
            await store.session(name).add_items([{"batch": batch, "part": part} for part in range(3)])
            acknowledged[name] += 1

    await fill(path, 20)
    with Child(_WRITER, path) as child:
        async with AsyncSessionStore(path, busy_timeout_s=60) as store:
            writers = [asyncio.ensure_future(write(store, f"mine_{number}")) for number in range(8)]
            has_held_up_all = True
            for round_ in itertools.count():
                if round_ >= 5 and not has_held_up_all:
                    break
                copy = target.with_name(f"{round_}.db")
                theirs = int(await asyncio.to_thread(child.read_line))
                before = Counter(acknowledged)
                await store.backup(copy)
                has_held_up_all &= acknowledged.total() == before.total()  # a short one may, as the other process may
                before.update({"theirs_0": theirs + 1, "theirs_1": theirs + 1})
                assert await problems(copy) == []
                copied = _batches(copy)
                for name, batches in before.items():
                    assert copied[name] >= batches
            for writer in writers:
                writer.cancel()
            await asyncio.wait(writers)


def _batches(path: Path) -> Counter[str]:
    """How many batches each session has, which must be whole and in order."""
    found: Counter[str] = Counter()
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
        query = "SELECT session_id, item FROM agentmem_history WHERE session_id LIKE '%\\_%' ESCAPE '\\'"
        parts: dict[str, list[Any]] = {}
        for name, item in connection.execute(query + " ORDER BY session_id, position"):
            parts.setdefault(name, []).append(json.loads(item))
    for name, items in parts.items():
        assert items == [{"batch": number // 3, "part": number % 3} for number in range(len(items))]
        assert len(items) % 3 == 0
        found[name] = len(items) // 3
    return found


async def test_a_backup_waits_for_no_writer(path: Path, target: Path) -> None:
    await fill(path, 1)
    with writer_lock(path):
        async with AsyncSessionStore(path, busy_timeout_s=0) as store:
            await store.backup(target)
    assert await problems(target) == []


async def test_a_closed_file_that_is_written_to_meanwhile_is_copied_again(path: Path, target: Path) -> None:
    await fill(path, 20)
    store = AsyncSessionStore(path)
    running = asyncio.ensure_future(store.backup(target))
    await asyncio.to_thread(wait_until, lambda: list(target.parent.iterdir()))  # the copy under its temporary name
    async with AsyncSessionStore(path) as other:  # closing moves all from the WAL into the file
        await other.session("alice").clear_session()
        await other.session("carol").add_items([ONE] * 50)
    await running
    await store.close()
    assert await problems(target) == []
    assert len(await get(target, "carol")) in (0, 50)
    assert len(await get(target, "alice")) in (100, 0)
    assert [found.name for found in target.parent.iterdir()] == [target.name]


# What is in the way


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
async def test_nothing_is_overwritten(path: Path, target: Path, suffix: str, kind: str) -> None:
    await fill(path, 1)
    there = target.with_name(target.name + suffix)
    if kind == "file":
        there.write_text("precious")
    elif kind == "folder":
        there.mkdir()
    else:
        there.symlink_to(target.with_name("nowhere"))
    async with AsyncSessionStore(path) as store:
        with pytest.raises(StorageError, match="exists, and a backup overwrites nothing") as raised:
            await store.backup(target)
    assert str(there) in str(raised.value)
    assert [found.name for found in target.parent.iterdir()] == [there.name]
    assert kind != "file" or there.read_text() == "precious"


async def test_a_file_does_not_overwrite_itself(path: Path) -> None:
    await fill(path, 1)
    with pytest.raises(StorageError, match="exists"):
        await back_up(path, path)
    assert len(await get(path, "alice")) == 5


async def test_what_comes_to_the_name_meanwhile_is_not_overwritten(path: Path, target: Path) -> None:
    await fill(path, 20)
    store = AsyncSessionStore(path)
    running = asyncio.ensure_future(store.backup(target))
    await asyncio.to_thread(wait_until, lambda: list(target.parent.iterdir()))
    target.write_text("precious")
    with pytest.raises(StorageError, match="exists, and a backup overwrites nothing"):
        await running
    await store.close()
    assert [found.name for found in target.parent.iterdir()] == [target.name]
    assert target.read_text() == "precious"


def test_where_a_file_system_has_no_hard_links_nothing_is_overwritten_either(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)  # as on FAT, which few machines let a test mount
    copy = target.with_name("copy")
    copy.write_text("copy")
    sqlite_backup._move_into_place(str(copy), str(target), str(target.parent))
    assert target.read_text() == "copy"
    assert not copy.exists()
    copy.write_text("another")
    with pytest.raises(StorageError, match="exists"):
        sqlite_backup._move_into_place(str(copy), str(target), str(target.parent))
    assert target.read_text() == "copy"


async def test_a_missing_or_forbidden_folder_is_an_error_that_says_so(path: Path, tmp_path: Path) -> None:
    await fill(path, 1)
    with pytest.raises(StorageError, match=r"no/monday\.db: No such file or directory; create its folder first"):
        await back_up(path, tmp_path / "no" / "monday.db")
    with pytest.raises(StorageError, match="cannot back up to /proc/"):
        await back_up(path, Path("/proc/monday.db"))


async def test_what_is_no_file_of_agentmem_s_is_not_backed_up(path: Path, target: Path) -> None:
    with pytest.raises(StorageError, match="there is no file"):
        await back_up(path, target)
    path.touch()
    with pytest.raises(StorageError, match="is empty"):
        await back_up(path, target)
    path.write_text("Dear diary, " * 1000)
    with pytest.raises(StorageCorruptError, match="not a database"):
        await back_up(path, target)
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (text)")
    with pytest.raises(StorageError, match="another program's database"):
        await back_up(path, target)
    assert list(target.parent.iterdir()) == []


async def test_a_path_that_is_none_and_a_closed_store_are_refused(path: Path, target: Path) -> None:
    async with AsyncSessionStore(path) as store:
        for wrong in (":memory:", "", "a\0b"):
            with pytest.raises(ValueError, match="path"):
                await store.backup(wrong)
        with pytest.raises(TypeError):
            await store.backup(b"monday.db")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(SessionClosedError):
        await store.backup(target)


async def test_a_file_that_is_no_longer_the_one_that_the_store_has_open_is_not_backed_up(
    path: Path, target: Path
) -> None:
    other = path.with_name("other.db")
    await fill(other, 1)
    async with AsyncSessionStore(path) as store:
        await store.session("alice").add_items([ONE])
        other.replace(path)
        with pytest.raises(StorageError, match="was replaced by another file while it was open"):
            await store.backup(target)
    assert list(target.parent.iterdir()) == []


async def test_a_full_disk_is_an_error_by_name_and_nothing_is_left_on_it(path: Path, tmp_path: Path) -> None:
    await fill(path, 3)
    with mounted(tmp_path / "disk", "size=1m") as folder:
        for source in (path, ":memory:"):
            async with AsyncSessionStore(source) as store:
                await store.session("alice").add_items([{"text": "x" * 2_000_000}])
                with pytest.raises(StorageFullError, match=r"monday\.db.* make room and try again"):
                    await store.backup(folder / "monday.db")
            assert list(folder.iterdir()) == []
    with mounted(tmp_path / "inodes", "size=1m,nr_inodes=2") as folder:
        (folder / "filler").touch()
        with pytest.raises(StorageFullError, match=r"cannot back up to .*, make room and try again"):
            await back_up(path, folder / "monday.db")


# Cancellation, crashes, forks


@pytest.mark.parametrize("source", ["file", "memory"])
def test_a_backup_that_is_cancelled_at_any_moment_leaves_nothing_behind(path: Path, target: Path, source: str) -> None:
    asyncio.run(fill(path, 2))
    before = holdings()
    cancelled = 0
    for loop in cycle_loops():
        copy = target.with_name(f"{loop._nth}.db")

        async def main(loop: CycleLoop = loop, copy: Path = copy) -> bool:
            async with AsyncSessionStore(path if source == "file" else ":memory:") as store:
                if source == "memory":
                    await store.session("alice").add_items([{"text": "x" * 100_000}] * 10)
                backup = asyncio.ensure_future(store.backup(copy))
                loop.arm(backup.cancel)
                await asyncio.wait([backup])
                loop.disarm()
                assert len(await store.session("alice").get_items()) == 10
            await loop.shutdown_default_executor()
            return backup.cancelled()

        was_cancelled = loop.run(main())
        cancelled += was_cancelled
        if copy.exists():  # it was complete when the cancellation came
            assert asyncio.run(problems(copy)) == []
            copy.unlink()
        else:
            assert was_cancelled
        assert list(target.parent.iterdir()) == []
        holds_again(before)
    assert cancelled > 1


_ENDLESS = """
import sys
from agentmem import SessionStore

store = SessionStore(sys.argv[1])
for number in range(1_000_000):
    print(number, flush=True)
    store.backup(f"{sys.argv[2]}/{number}.db")
"""


@exhaustive
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
async def test_a_process_that_is_killed_leaves_no_half_backup_under_the_name(path: Path, target: Path) -> None:
    await fill(path, 5)
    for number in range(4):
        with Child(_ENDLESS, path, target.parent) as child:
            for _ in range(number + 2):
                child.read_line()
            for _ in range(random.randrange(100_000)):  # not the same instruction each time
                pass
        complete = list(target.parent.glob("[0-9]*.db"))
        for copy in complete:
            assert await problems(copy) == []
        for left in target.parent.iterdir():
            left.unlink()


_FORKING = """
import os, sys, threading
from agentmem import SessionStore

def back_up():
    for number in range(3):
        store.backup(f"{sys.argv[2]}/{number}.db")

store = SessionStore(sys.argv[1])
thread = threading.Thread(target=back_up)
thread.start()
for number in range(10):
    child = os.fork()
    if child == 0:
        store.backup(f"{sys.argv[2]}/child_{number}.db")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
thread.join()
"""


@exhaustive
@needs_fork
async def test_a_fork_comes_between_and_both_processes_back_up(path: Path, target: Path) -> None:
    await fill(path, 5)
    flags = ("-X", "dev", "-W", "error", "-W", "ignore::DeprecationWarning")
    assert run_quietly(_FORKING, path, target.parent, flags=flags) == ""
    made = sorted(found.name for found in target.parent.iterdir())
    assert made == sorted([f"{number}.db" for number in range(3)] + [f"child_{number}.db" for number in range(10)])
    for name in made:
        assert await problems(target.with_name(name)) == []
    assert files(path) == {path.name}


_ENDING = """
import sys, threading
from agentmem import SessionStore
from agentmem.errors import StorageError

def back_up():
    try:
        for number in range(1000):
            if number == int(sys.argv[3]):
                begun.set()
            store.backup(f"{sys.argv[2]}/{number}.db")
    except (StorageError, RuntimeError) as error:
        # The last are Python's own words, where the interpreter's end came just before agentmem started a thread.
        assert any(words in str(error) for words in ("program ends", "interpreter ends", "interpreter shutdown")), error

store = SessionStore(sys.argv[1])
begun = threading.Event()
threading.Thread(target=back_up, daemon=True).start()
begun.wait()
"""


@exhaustive
async def test_a_program_that_ends_during_a_backup_ends_at_once_and_leaves_nothing_half(
    path: Path, target: Path
) -> None:
    await fill(path, 5)
    for backups in range(3):
        assert run_quietly(_ENDING, path, target.parent, str(backups)) == ""
        for copy in target.parent.iterdir():
            assert copy.suffix == ".db"
            assert await problems(copy) == []
            copy.unlink()
