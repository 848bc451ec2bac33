"""What is in the file, what is done with a file that is not as it should be, and every error by its name."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import sqlite3
import stat
import subprocess
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from database import connections, mounted, shell
from processes import Child, files
from tools import need_setpriv_under_root

from agentmem import AsyncSessionStore, AsyncSQLiteSession, SessionSettings
from agentmem.engines.readings import MAX_INLINE_BYTES
from agentmem.engines.sqlite.engine import SQLiteEngine
from agentmem.engines.sqlite.errors import ERRORS, map_error
from agentmem.engines.sqlite.statements import read_newest_joined
from agentmem.engines.sqlite.tables import APPLICATION_ID, SCHEMA_VERSION
from agentmem.errors import (
    CorruptItemWarning,
    SchemaVersionError,
    StorageBusyError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
)
from agentmem.items import Item, encode_items
from agentmem.reading import SHORT_ROWS, TailReading

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
TWO: Item = {"role": "user", "content": "two"}


async def add(path: Path, *items: Item, session_id: str = "user_123") -> None:
    async with AsyncSQLiteSession(path, session_id=session_id) as session:
        await session.add_items(items)


async def get(path: Path, session_id: str = "user_123") -> list[Item]:
    async with AsyncSQLiteSession(path, session_id=session_id) as session:
        return await session.get_items()


# The schema


async def test_a_file_says_whose_it_is_and_which_version(path: Path) -> None:
    await add(path, ONE)
    with shell(path) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_people_can_read_the_history_with_any_sqlite_tool(path: Path) -> None:
    await add(path, ONE, session_id="alice")
    await add(path, TWO, session_id="bob")
    await add(path, TWO, session_id="alice")
    with shell(path) as connection:
        rows = connection.execute("SELECT session_id, position, created_at, item FROM agentmem_history").fetchall()
    assert sorted((name, position, json.loads(item)) for name, position, _, item in rows) == [
        ("alice", 0, ONE),
        ("alice", 1, TWO),
        ("bob", 0, TWO),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", created_at) for _, _, created_at, _ in rows)


HOSTILE_IDS = [
    "'; DROP TABLE agentmem_items; --",
    "' OR '1'='1",
    '"',
    "%",
    "_",
    "?",
    ":session_id",
    "user\n\t\r",
    " ",
    "\U0001f600\u0301",
    "\u202e\ufeff",
    "e\u0301",
    "\u00e9",
    "USER_123",
    "x" * 1024,
    "\U0001f600" * 256,
]


async def test_any_session_id_names_its_own_session_and_does_nothing_else(path: Path) -> None:
    await add(path, ONE)
    async with AsyncSessionStore(path) as store:
        for number, name in enumerate(HOSTILE_IDS):
            await store.session(name).add_items([{"number": number}, ONE])
            assert await store.session(name).pop_item() == ONE
        for number, name in enumerate(HOSTILE_IDS):
            assert await store.session(name).get_items() == [{"number": number}]
        for name in HOSTILE_IDS:
            await store.session(name).clear_session()
            assert await store.session(name).get_items() == []
    assert await get(path) == [ONE]
    with shell(path) as connection:
        assert connection.execute("SELECT session_id FROM agentmem_sessions").fetchall() == [("user_123",)]


async def test_items_that_look_like_sql_are_text(path: Path) -> None:
    item = {"'; DROP TABLE agentmem_items; --": "'); DELETE FROM agentmem_sessions; --", "?": ":x"}
    await add(path, item, ONE)
    assert await get(path) == [item, ONE]


async def test_a_cleared_session_leaves_no_rows_and_begins_again_at_position_0(path: Path) -> None:
    await add(path, *[ONE] * 10)
    await add(path, TWO, session_id="other")
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.clear_session()
        with shell(path) as connection:
            assert connection.execute("SELECT count(*) FROM agentmem_items").fetchone() == (1,)
        await session.add_items([TWO])
        with shell(path) as connection:
            rows = connection.execute("SELECT position FROM agentmem_history WHERE session_id = 'user_123'").fetchall()
    assert rows == [(0,)]
    assert await get(path, "other") == [TWO]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
async def test_files_are_readable_by_their_owner_alone_and_an_existing_mode_is_kept(path: Path) -> None:
    old_mask = os.umask(0)
    try:
        async with AsyncSQLiteSession(path, session_id="user_123") as session:
            await session.add_items([ONE])
            assert len(files(path)) == 3
            assert {stat.S_IMODE(path.with_name(name).stat().st_mode) for name in files(path)} == {0o600}
        path.chmod(0o640)
        await add(path, ONE)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(old_mask)


@pytest.mark.parametrize(
    ("durability", "level"), [("full", 2), ("normal", 1)], ids=["full is FULL", "normal is NORMAL"]
)
async def test_durability_sets_how_the_writer_flushes(path: Path, durability: Any, level: int) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123", durability=durability):
        raw = connections(path)[0].raw
        assert raw.execute("PRAGMA synchronous").fetchone() == (level,)


async def test_readers_cannot_write_and_do_not_checkpoint(path: Path) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.get_items()
        (reader,) = [one.raw for one in connections(path) if not one.is_writer]
        assert reader.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM agentmem_items")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"busy_timeout_s": -1}, ValueError),
        ({"busy_timeout_s": "5"}, TypeError),
        ({"busy_timeout_s": True}, TypeError),
        ({"busy_timeout_s": float("inf")}, ValueError),
        ({"busy_timeout_s": float("nan")}, ValueError),
        ({"durability": "none"}, ValueError),
        ({"nonsense": 1}, TypeError),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused_before_anything_is_opened(
    path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        AsyncSessionStore(path, **options)
    assert not path.exists()


@pytest.mark.parametrize(
    ("db", "error"), [("", ValueError), ("a\0b", ValueError), (b"x.db", TypeError), (3, TypeError)]
)
def test_a_path_that_is_none_is_refused(db: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        AsyncSQLiteSession(db, session_id="user_123")


# Files that are not as they should be


async def _every_way_in(path: Path, error: type[StorageError], match: str) -> None:
    """Opening and every call raise this error; nothing but the file is there then, and it is as it was."""
    content = path.read_bytes() if path.is_file() else None
    beside = set(path.parent.iterdir()) if path.parent.exists() else None
    session = AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=0.1)
    calls: list[Callable[[], Awaitable[object]]] = [
        session.__aenter__,
        session.get_items,
        session.pop_item,
        session.clear_session,
        lambda: session.add_items([ONE]),
    ]
    for call in calls:
        with pytest.raises(StorageError, match=match) as raised:
            await call()
        assert type(raised.value) is error
        assert str(path) in str(raised.value)
    await session.close()
    assert (path.read_bytes() if path.is_file() else None) == content
    assert (set(path.parent.iterdir()) if path.parent.exists() else None) == beside


@pytest.mark.parametrize(
    "garbage",
    # Of one byte alone SQLite itself makes an empty database (os_unix.c, unixFileSize).
    [b"xy", b"Dear diary, " * 1000, bytes(4096), b"SQLite format 3\0" + b"\xff" * 8176],
    ids=["two bytes", "text", "zeros", "only the magic"],
)
async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage)
    await _every_way_in(path, StorageCorruptError, "not a database")


async def test_an_empty_file_becomes_a_database(path: Path) -> None:
    path.touch()
    await add(path, ONE)
    assert await get(path) == [ONE]


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE notes (text)", "PRAGMA application_id = 7", "PRAGMA user_version = 7"]
)
@pytest.mark.parametrize("mode", ["delete", "wal"])
async def test_another_programs_database_is_refused_and_left_as_it_is(path: Path, statement: str, mode: str) -> None:
    with shell(path) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute(statement)
    await _every_way_in(path, StorageError, "another program's database; give agentmem a file of its own")


async def test_a_program_that_is_faster_to_make_its_tables_in_an_empty_file_keeps_it(path: Path) -> None:
    with shell(path) as other:
        other.execute("PRAGMA journal_mode = wal")
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE notes (text)")
        # Time for the first look at the file, which finds nothing yet, to be over; the second waits for the lock.
        asyncio.get_running_loop().call_later(0.2, other.execute, "COMMIT")
        with pytest.raises(StorageError, match="another program's database"):
            async with AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=60):
                pass
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("notes",)]


async def test_a_file_of_a_newer_version_is_refused_and_left_as_it_is(path: Path) -> None:
    await add(path, ONE)
    with shell(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    await _every_way_in(path, SchemaVersionError, "upgrade agentmem")
    with shell(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    assert await get(path) == [ONE]


async def test_a_folder_in_the_place_of_the_file_is_an_error(path: Path) -> None:
    path.mkdir()
    await _every_way_in(path, StorageError, "unable to open database file; check that it is a file")


async def test_a_missing_folder_is_an_error_that_says_so_and_works_once_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "conversations.db"
    await _every_way_in(path, StorageError, "create its folder first")
    path.parent.mkdir()
    await add(path, ONE)
    assert await get(path) == [ONE]


async def test_a_damaged_page_is_an_error_that_tells_what_to_do_and_changes_nothing(path: Path) -> None:
    await add(path, *({"text": "x" * 3000, "number": number} for number in range(50)))
    with shell(path) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'agentmem_items'").fetchone()
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_size)
        file.write(b"\xff" * page_size)
    content = path.read_bytes()
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        for call in (session.get_items(), session.add_items([ONE]), session.pop_item(), session.clear_session()):
            with pytest.raises(StorageCorruptError, match="copy the file away as it is") as raised:
                await call
            assert isinstance(raised.value.__cause__, sqlite3.DatabaseError)
    assert path.read_bytes() == content


async def test_a_file_that_loses_its_second_half_while_open_is_an_error_for_every_call(path: Path) -> None:
    await add(path, *({"text": "x" * 5_000} for _ in range(50)))  # closed: nothing is in the WAL
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        assert len(await session.get_items()) == 50
        os.truncate(path, path.stat().st_size // 2)
        for call in (session.get_items(), session.add_items([ONE]), session.pop_item(), session.get_items()):
            with pytest.raises(StorageCorruptError, match="malformed; copy the file away"):
                await call
    with pytest.raises(StorageCorruptError, match="malformed; copy the file away"):
        await get(path)


async def test_a_missing_table_is_an_error_by_name(path: Path) -> None:
    await add(path, ONE)
    with shell(path) as connection:
        connection.execute("DROP TABLE agentmem_items")
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        for call in (session.get_items(), session.add_items([ONE]), session.pop_item(), session.clear_session()):
            with pytest.raises(StorageError, match="its tables are not as agentmem made them") as raised:
                await call
            assert isinstance(raised.value.__cause__, sqlite3.OperationalError)


async def test_a_row_in_the_way_of_the_next_position_is_an_error_and_is_not_overwritten(path: Path) -> None:
    await add(path, ONE)
    with shell(path) as connection:
        connection.execute("INSERT INTO agentmem_items SELECT 7, session_key, 1, 0, 'precious' FROM agentmem_items")
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        with pytest.raises(StorageCorruptError, match="positions and rows do not fit together"):
            await session.add_items([TWO])
    with shell(path) as connection:
        assert connection.execute("SELECT item FROM agentmem_items").fetchall()[1:] == [("precious",)]


@pytest.mark.parametrize("corrupt", ["x'ff00'", "'{'", "'[1]'", "'null'", "17", "zeroblob(100000)", "'{\"a\": NaN}'"])
async def test_a_corrupt_row_hides_no_other_and_is_warned_about(path: Path, corrupt: str) -> None:
    items = [{"number": number} for number in range(6)]
    await add(path, *items)
    with shell(path) as connection:
        connection.execute(f"UPDATE agentmem_items SET item = {corrupt} WHERE position IN (2, 4, 5)")
    left = [items[0], items[1], items[3]]
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        with pytest.warns(CorruptItemWarning) as warned:
            assert await session.get_items() == left
        assert sorted(re.findall(r"'user_123'.*position (\d)", "\n".join(str(w.message) for w in warned))) == [*"245"]
        for limit in range(1, 4):
            with pytest.warns(CorruptItemWarning):
                assert await session.get_items(limit) == left[-limit:]
        with pytest.warns(CorruptItemWarning):
            assert await session.pop_item() == items[3]
        with pytest.warns(CorruptItemWarning, match="position 2 "):
            assert await session.get_items() == left[:2]
        await session.add_items([TWO])
        with pytest.warns(CorruptItemWarning, match="position 2 "):
            assert await session.get_items() == [*left[:2], TWO]


async def test_where_no_row_can_be_read_none_is_removed_by_a_pop(path: Path) -> None:
    await add(path, ONE, TWO)
    with shell(path) as connection:
        connection.execute("UPDATE agentmem_items SET item = 'broken'")
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        with pytest.warns(CorruptItemWarning):
            assert await session.pop_item() is None
    with shell(path) as connection:
        assert connection.execute("SELECT count(*) FROM agentmem_items").fetchone() == (2,)


# Read-only


_READ_ONLY = """
import asyncio, os, sys
from agentmem import AsyncSQLiteSession
from agentmem.errors import StorageError

if os.geteuid() == 0 and "unprivileged" not in sys.argv:  # root may write to any file, but not without these two
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    os.execvp(drop[0], [*drop, *sys.orig_argv, "unprivileged"])

async def main():
    async with AsyncSQLiteSession(sys.argv[1], session_id="user_123") as session:
        for call in (session.add_items([{"number": 1}]), session.pop_item(), session.clear_session()):
            try:
                await call
            except StorageError as error:
                print(type(error).__name__, error)
        print(await session.get_items())

asyncio.run(main())
"""


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
async def test_a_file_that_may_only_be_read_is_read_and_not_written(path: Path) -> None:
    await add(path, ONE)
    path.chmod(0o400)
    need_setpriv_under_root()
    with Child(_READ_ONLY, path) as child:
        code, output, errors = child.finish()
    assert (code, errors) == (0, "")
    *refusals, items = output.splitlines()
    assert len(refusals) == 3
    for refusal in refusals:
        assert refusal.startswith("StorageError session 'user_123' in ")
        assert refusal.endswith("readonly database; make the file and its folder writable for this user")
    assert items == repr([ONE])


async def test_a_disk_that_may_only_be_read_is_an_error_and_the_file_is_left_as_it_is(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as folder:
        path = folder / "conversations.db"
        await add(path, ONE)
        _remount(folder, "ro")
        for call in (get, lambda path: add(path, TWO), lambda path: add(path.with_name("new.db"), TWO)):
            with pytest.raises(StorageError, match=r"permissions|choose a folder that can be written"):
                await call(path)
        _remount(folder, "rw")
        assert await get(path) == [ONE]


def _remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    with mounted(tmp_path / "disk", "size=1m") as folder:
        yield folder


def _fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))
    return filler


async def test_a_full_disk_is_an_error_by_name_loses_nothing_and_writing_resumes_with_room(small_disk: Path) -> None:
    path = small_disk / "conversations.db"
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([ONE])
        filler = _fill(small_disk)
        big = [{"number": number, "text": "x" * 20_000} for number in range(20)]
        for _ in range(2):
            with pytest.raises(StorageFullError, match="make room and try again") as raised:
                await session.add_items(big)
            assert isinstance(raised.value.__cause__, sqlite3.OperationalError)
            assert await session.get_items() == [ONE]
        filler.unlink()
        await session.add_items(big)
        assert await session.get_items() == [ONE, *big]
    assert await get(path) == [ONE, *big]
    with shell(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_on_a_full_disk_the_writes_that_have_room_succeed_beside_those_that_have_not(small_disk: Path) -> None:
    path = small_disk / "conversations.db"
    async with AsyncSessionStore(path) as store:
        await store.session("user_123").add_items([ONE])
        big = [{"text": "x" * 2_000_000}]
        calls = [store.session(f"user_{number}").add_items(big if number % 2 else [ONE]) for number in range(8)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), StorageFullError] * 4
        for number in range(8):
            assert await store.session(f"user_{number}").get_items() == ([] if number % 2 else [ONE])


async def test_a_file_cannot_be_started_on_a_full_disk_and_can_with_room(small_disk: Path) -> None:
    filler = _fill(small_disk)
    path = small_disk / "conversations.db"
    for _ in range(2):
        with pytest.raises(StorageFullError, match="make room and try again"):
            await add(path, ONE)
    filler.unlink()
    await add(path, ONE)
    assert await get(path) == [ONE]


async def test_a_disk_that_has_no_room_for_another_file_is_full_too(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m,nr_inodes=2") as folder:
        (folder / "filler").touch()
        with pytest.raises(StorageFullError, match=r"cannot create .* make room and try again"):
            await add(folder / "conversations.db", ONE)


_LIMITED = """
import asyncio, resource, signal, sys
from agentmem import AsyncSQLiteSession
from agentmem.errors import StorageError

async def main():
    async with AsyncSQLiteSession(sys.argv[1], session_id="user_123") as session:
        await session.add_items([{"number": 0}])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            await session.add_items([{"text": "x" * 1_000_000}])
        except StorageError as error:
            print(type(error).__name__)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await session.add_items([{"number": 1}])
        print(await session.get_items())

asyncio.run(main())
"""


@pytest.mark.skipif(os.name != "posix", reason="file-size limits are POSIX's")
async def test_a_file_size_limit_is_an_error_by_name_and_writing_resumes_without_it(path: Path) -> None:
    with Child(_LIMITED, path) as child:
        code, output, errors = child.finish()
    assert (code, errors) == (0, "")
    name, items = output.splitlines()
    assert name in ("StorageFullError", "StorageError")
    assert items == "[{'number': 0}, {'number': 1}]"


# Errors


def _primary_codes() -> dict[str, int]:
    """SQLite's primary result codes that are errors, as Python names them."""
    no_errors = {"SQLITE_OK", "SQLITE_NOTICE", "SQLITE_WARNING", "SQLITE_ROW", "SQLITE_DONE"}
    names = re.findall(r"SQLITE_[A-Z]+", " ".join(RESULT_CODES))
    return {name: getattr(sqlite3, name) for name in names if name not in no_errors}


RESULT_CODES = [
    "SQLITE_OK SQLITE_ERROR SQLITE_INTERNAL SQLITE_PERM SQLITE_ABORT SQLITE_BUSY SQLITE_LOCKED SQLITE_NOMEM",
    "SQLITE_READONLY SQLITE_INTERRUPT SQLITE_IOERR SQLITE_CORRUPT SQLITE_NOTFOUND SQLITE_FULL SQLITE_CANTOPEN",
    "SQLITE_PROTOCOL SQLITE_EMPTY SQLITE_SCHEMA SQLITE_TOOBIG SQLITE_CONSTRAINT SQLITE_MISMATCH SQLITE_MISUSE",
    "SQLITE_NOLFS SQLITE_AUTH SQLITE_FORMAT SQLITE_RANGE SQLITE_NOTADB SQLITE_NOTICE SQLITE_WARNING SQLITE_ROW",
    "SQLITE_DONE",
]
"""sqlite.org/rescode.html, section 3."""


def test_every_primary_result_code_of_sqlite_has_its_meaning() -> None:
    codes = _primary_codes()
    assert len(codes) >= 26
    assert set(codes.values()) == set(ERRORS)


def _real_errors(path: Path) -> Iterator[sqlite3.Error]:
    """Errors that SQLite itself raises, of as many kinds as can be had without breaking the machine."""
    path.write_bytes(b"no database" * 100)
    made = path.with_name("made.db")
    with shell(made) as connection, shell(made) as other:
        connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY CHECK (n < 9), u UNIQUE, s NOT NULL)")
        connection.execute("INSERT INTO t VALUES (1, 1, 1)")
        other.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        connection.execute("PRAGMA busy_timeout = 0")
        attempts: list[Callable[[], object]] = [
            lambda: connection.execute("BEGIN IMMEDIATE"),
            lambda: other.execute("COMMIT"),
            lambda: connection.execute("SELECT * FROM missing"),
            lambda: connection.execute("nonsense"),
            lambda: connection.execute("INSERT INTO t VALUES (9, 9, 9)"),
            lambda: connection.execute("INSERT INTO t VALUES (2, 1, 2)"),
            lambda: connection.execute("INSERT INTO t VALUES (2, 2, NULL)"),
            lambda: connection.execute("INSERT INTO t VALUES ('x', 2, 2)"),
            lambda: connection.execute("SELECT zeroblob(2000000000)"),
            lambda: connection.execute("PRAGMA query_only = 1"),
            lambda: connection.execute("DELETE FROM t"),
            lambda: connection.execute("PRAGMA query_only = 0"),
            lambda: connection.execute("PRAGMA max_page_count = 1"),
            lambda: connection.execute("CREATE TABLE big AS SELECT zeroblob(100000) AS b"),
            lambda: connection.set_progress_handler(lambda: 1, 1),
            lambda: connection.execute(
                "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 99999) SELECT sum(n) FROM c"
            ),
            lambda: connection.set_progress_handler(None, 0),
            lambda: connection.set_authorizer(lambda *args: sqlite3.SQLITE_DENY),
            lambda: connection.execute("DELETE FROM t"),
            lambda: connection.set_authorizer(lambda *args: sqlite3.SQLITE_OK),
            lambda: contextlib.closing(sqlite3.connect(path)).__enter__().execute("SELECT * FROM sqlite_master"),
            lambda: sqlite3.connect(path.parent),
            lambda: sqlite3.connect(path.parent / "missing" / "x.db"),
        ]
        for attempt in attempts:
            try:
                attempt()
            except sqlite3.Error as error:
                yield error


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_error_of_sqlite_is_mapped_by_its_result_code(path: Path) -> None:
    codes = set()
    for error in _real_errors(path):
        codes.add(error.sqlite_errorcode & 0xFF)
        meaning = ERRORS[error.sqlite_errorcode & 0xFF]
        mapped = map_error(error, "x.db")
        assert type(mapped) is meaning.error
        assert str(mapped) == f"x.db: {error}; {meaning.advice}"
    gc.collect()
    assert len(codes) >= 9


def test_every_kind_of_driver_error_is_mapped() -> None:
    kinds: list[type[sqlite3.Error]] = [sqlite3.Error, *_subclasses(sqlite3.Error)]
    assert len(kinds) >= 8
    for kind in kinds:
        mapped = map_error(kind("something new"), "x.db", "user_123")
        assert isinstance(mapped, StorageError)
        assert str(mapped).startswith("session 'user_123' in x.db: something new; ")
    unknown = _error_of_code(250)  # as a newer SQLite might give it
    assert type(map_error(unknown, "x.db")) is StorageError


def _error_of_code(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("something new")
    error.sqlite_errorcode = code
    return error


def _subclasses(kind: type[sqlite3.Error]) -> Iterator[type[sqlite3.Error]]:
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (sqlite3.SQLITE_BUSY, StorageBusyError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StorageBusyError),
        (sqlite3.SQLITE_FULL, StorageFullError),
        (sqlite3.SQLITE_CORRUPT, StorageCorruptError),
        (sqlite3.SQLITE_CORRUPT_INDEX, StorageCorruptError),
        (sqlite3.SQLITE_NOTADB, StorageCorruptError),
        (sqlite3.SQLITE_IOERR, StorageError),
        (sqlite3.SQLITE_IOERR_FSYNC, StorageError),
    ],
)
def test_the_errors_that_callers_tell_apart_keep_their_kinds(code: int, error: type[StorageError]) -> None:
    assert type(map_error(_error_of_code(code), "x.db")) is error


async def test_the_driver_error_is_the_cause_and_never_comes_out_itself(path: Path) -> None:
    await add(path, ONE)
    async with AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=0) as session:
        with shell(path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageBusyError, match=f"session 'user_123' in {re.escape(str(path))}: ") as raised:
                await session.add_items([TWO])
            connection.execute("ROLLBACK")
        assert isinstance(raised.value.__cause__, sqlite3.OperationalError)


def test_an_engine_knows_its_file_by_every_name_it_has(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(path)
    assert SQLiteEngine(path).key == SQLiteEngine(tmp_path / "link.db").key == SQLiteEngine(str(path)).key
    assert SQLiteEngine(path).key != SQLiteEngine(tmp_path / "other.db").key
    assert SQLiteEngine(":memory:").key != SQLiteEngine(":memory:").key


# Where it is decoded


class _Noting(TailReading):
    """A reading that notes how it is fed, and in which thread."""

    def __init__(self, limit: int | None) -> None:
        super().__init__(limit)
        self.fed: list[tuple[str, bool]] = []

    def feed(self, rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
        self.fed.append(("one by one", threading.current_thread() is threading.main_thread()))
        return super().feed(rows, at_start=at_start)

    def feed_joined(self, joined: bytes, count: int, oldest: int) -> bool:
        self.fed.append(("joined", threading.current_thread() is threading.main_thread()))
        return super().feed_joined(joined, count, oldest)


@pytest.mark.parametrize(
    ("limit", "size", "fed"),
    [
        (20, 10, [("joined", True)]),
        (20, 20_000, [("one by one", False)]),
        (SHORT_ROWS + 1, 10, [("one by one", False)]),
        (None, 10, [("one by one", False)]),
    ],
    ids=["few rows", "few rows of many bytes", "many rows", "all"],
)
async def test_only_few_rows_of_few_bytes_are_decoded_on_the_event_loop(
    path: Path, limit: int | None, size: int, fed: list[tuple[str, bool]]
) -> None:
    engine = SQLiteEngine(path)
    await engine.append("user_123", encode_items([{"text": "x" * size}] * 80))
    reading = _Noting(limit)
    assert len(await engine.read("user_123", reading)) == (limit or 80)
    assert reading.fed == fed
    await engine.close()


@pytest.mark.parametrize("texts", [["x" * 2_000_000] * 20, ["x" * 20_000] * 20], ids=["long rows", "many bytes"])
async def test_rows_that_are_too_long_to_be_joined_are_not_read_for_it(path: Path, texts: list[str]) -> None:
    """They are read once, by what feeds them one by one. What SQLite loads of them would become one Python object."""
    await add(path, *({"text": text} for text in texts))
    with shell(path) as connection:
        tracemalloc.start()
        try:
            assert read_newest_joined(connection, "user_123", SHORT_ROWS) is None
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 2 * MAX_INLINE_BYTES
        assert connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) >= 1_000_000_000
        longest = connection.execute("SELECT max(length(CAST(item AS BLOB))) FROM agentmem_items").fetchone()
        assert longest == (len(texts[0]) + len('{"text":""}'),)


async def test_a_callers_function_is_never_called_on_the_event_loop(path: Path) -> None:
    def count_tokens(item: Item) -> int:
        threads.append(threading.current_thread())
        return 1

    threads: list[threading.Thread] = []
    settings = SessionSettings(max_tokens=5, count_tokens=count_tokens)
    async with AsyncSQLiteSession(path, session_id="user_123", settings=settings) as session:
        await session.add_items([ONE] * 20)
        assert len(await session.get_items()) == 5
    assert threads
    assert threading.main_thread() not in threads


# Slices of rows


async def test_a_slice_of_long_rows_ends_early_and_a_longer_row_is_one_by_itself(path: Path) -> None:
    engine = SQLiteEngine(path)
    await engine.append("user_123", ["x" * 100_000] * 5 + ["y" * 3_000_000] * 2)
    slices = [[position for position, _ in await engine.rows("user_123", start, 100)] for start in (0, 3, 5, 6, 7)]
    await engine.close()
    assert slices == [[0, 1, 2], [3, 4, 5], [5], [6], []]
