"""Files and folders that may not be used, after a clean end and after a crash: named errors, and the data as it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import Child, run
from tools import need_setpriv_under_root

from agentmem import AsyncSQLiteSession
from agentmem.items import Item

pytestmark = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")

ONE: Item = {"role": "user", "content": "one"}
NAME = "conversations.db"

_CRASH = """
import asyncio, json, os, sys
from agentmem import AsyncSQLiteSession

async def main():
    session = AsyncSQLiteSession(sys.argv[1], session_id="user_123")
    await session.add_items([json.loads(sys.argv[2])])
    await session.get_items()
    os._exit(0)  # with everything in the WAL

asyncio.run(main())
"""

_USE = """
import asyncio, json, os, sys

if os.geteuid() == 0 and "unprivileged" not in sys.argv:  # root may do anything, but not without these two
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    os.execvp(drop[0], [*drop, *sys.orig_argv, "unprivileged"])

from agentmem import AsyncSQLiteSession
from agentmem.errors import StorageError

async def use(path):
    session = AsyncSQLiteSession(path, session_id="user_123")
    item = {"number": 1}
    for call in (session.get_items, lambda: session.add_items([item]), session.pop_item, session.get_items):
        try:
            print(json.dumps(await call()), flush=True)
        except StorageError as error:
            assert path in str(error)
            print(type(error).__name__, error, flush=True)
    await session.close()
    print("closed", flush=True)

for line in sys.stdin:
    asyncio.run(use(line.rstrip("\\n")))
"""
"""Uses one file after the other, as a line each names them."""


class Case(NamedTuple):
    """What is done to the files, and what may be done with them then.

    Attributes:
        reads: whether the session can be read.
        writes: whether it can be written.
        advice: what the errors say where it cannot.
    """

    change: Callable[[Path], object]
    reads: bool
    writes: bool
    advice: str = ""


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def everything(path: Path, mode: int) -> None:
    for file in path.parent.iterdir():
        file.chmod(mode)


def read_only(path: Path, mode: int = 0o400) -> None:
    everything(path, mode)
    path.parent.chmod(0o500)


def without_index(path: Path, mode: int = 0o600) -> None:
    beside(path, "-shm").unlink()
    read_only(path, mode)


OPEN = "unable to open database file; check that it is a file, its and its folder's permissions"
WRITE = "attempt to write a readonly database; make the file and its folder writable for this user"

AFTER_A_CLEAN_END = {
    "the file has no permissions": Case(lambda path: path.chmod(0), False, False, OPEN),
    "the folder may only be read": Case(lambda path: path.parent.chmod(0o500), False, False, WRITE),
    "the folder has no permissions": Case(
        lambda path: path.parent.chmod(0), False, False, "Permission denied; choose a folder that can be written"
    ),
    "a folder is where the WAL will be": Case(lambda path: beside(path, "-wal").mkdir(), False, False, OPEN),
    "a folder is where the WAL's index will be": Case(lambda path: beside(path, "-shm").mkdir(), True, False, WRITE),
    "a folder is where a journal would be": Case(
        lambda path: beside(path, "-journal").mkdir(), False, False, "check the disk"
    ),
}

AFTER_A_CRASH = {
    "the file may only be read": Case(lambda path: path.chmod(0o400), True, False, WRITE),
    "every file may only be read": Case(lambda path: everything(path, 0o400), True, False, WRITE),
    "the folder may only be read": Case(lambda path: path.parent.chmod(0o500), True, True),
    "folder and files may only be read": Case(read_only, True, False, WRITE),
    "the WAL has no permissions": Case(lambda path: beside(path, "-wal").chmod(0), False, False, OPEN),
    "the WAL's index has no permissions": Case(lambda path: beside(path, "-shm").chmod(0), False, False, OPEN),
    # The WAL cannot be recovered without an index, and that is a new file.
    "the WAL's index is missing in a folder that may only be read": Case(without_index, False, False, OPEN),
    "it is missing where nothing may be written": Case(lambda path: without_index(path, 0o400), False, False, OPEN),
    "the WAL's index is missing": Case(lambda path: beside(path, "-shm").unlink(), True, True),
    "the WAL's index is garbage": Case(lambda path: beside(path, "-shm").write_bytes(b"\xa5" * 32768), True, True),
    "the WAL's index is cut off": Case(lambda path: beside(path, "-shm").write_bytes(b"\0" * 10), True, True),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a file that was closed."""
    path = tmp_path_factory.mktemp("ended") / NAME

    async def add() -> None:
        async with AsyncSQLiteSession(path, session_id="user_123") as session:
            await session.add_items([ONE])

    asyncio.run(add())
    return path.parent


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a file whose process has ended without closing it."""
    path = tmp_path_factory.mktemp("crashed") / NAME
    run(_CRASH, path, json.dumps(ONE))
    assert beside(path, "-wal").stat().st_size
    return path.parent


@pytest.fixture(scope="module")
def user() -> Iterator[Child]:
    """A process that has to keep to the permissions."""
    need_setpriv_under_root()
    with Child(_USE) as child:
        yield child
        assert child.finish() == (0, "", "")


@pytest.mark.parametrize("name", AFTER_A_CLEAN_END)
def test_after_a_clean_end_what_may_not_be_used_is_an_error_that_says_what_to_do(
    tmp_path: Path, ended: Path, user: Child, name: str
) -> None:
    check(tmp_path, AFTER_A_CLEAN_END[name], ended, user)


@pytest.mark.parametrize("name", AFTER_A_CRASH)
def test_after_a_crash_what_is_in_the_wal_is_read_where_that_may_be_and_never_lost(
    tmp_path: Path, crashed: Path, user: Child, name: str
) -> None:
    check(tmp_path, AFTER_A_CRASH[name], crashed, user)


def check(tmp_path: Path, case: Case, folder: Path, user: Child) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "folder")) / NAME
    try:
        case.change(path)
        user.write_line(str(path))
        first, added, popped, last, closed = (user.read_line() for _ in range(5))
    finally:
        path.parent.chmod(0o700)
        for file in path.parent.iterdir():
            if file.is_dir():
                file.rmdir()
            else:
                file.chmod(0o600)
    assert closed == "closed"
    for read in (first, last):
        _as_expected(read, json.dumps([ONE]), case.reads, case.advice)
    _as_expected(added, "null", case.writes, case.advice)
    _as_expected(popped, json.dumps({"number": 1}), case.writes, case.advice)
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert [json.loads(item) for (item,) in other.execute("SELECT item FROM agentmem_history")] == [ONE]


def _as_expected(line: str, result: str, works: bool, advice: str) -> None:
    if works:
        assert line == result
    else:
        assert line.startswith("StorageError ")
        assert advice in line
