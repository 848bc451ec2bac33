"""A WAL that a crash left is played into the file that it belongs to, and into no other."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from processes import run

from agentmem import SessionStore, SQLiteSession
from agentmem.engines.sqlite import checkpoint
from agentmem.errors import StorageCorruptError
from agentmem.integrations import openai_agents

posix = pytest.mark.skipif(os.name != "posix", reason="Windows replaces no file that is open")

CRASH = """
import os, sys
from agentmem import SessionStore
from agentmem.engines.sqlite import checkpoint
checkpoint.LIMIT_BYTES = int(sys.argv[2])
session = SessionStore(sys.argv[1]).session("alice")
for text in sys.argv[3:]:
    session.add_items([{"text": text}])
os._exit(9)
"""


def crash(path: Path, *added: str, checkpoint_bytes: int = checkpoint.LIMIT_BYTES) -> None:
    """A program that adds items and ends without closing, so that they are in the WAL."""
    assert run(CRASH, path, str(checkpoint_bytes), *added) == (9, "", "")


def texts(path: Path) -> list[str]:
    with SQLiteSession(path, session_id="alice") as session:
        return [item["text"] for item in session.get_items()]


def beside(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def with_backup(path: Path) -> None:
    SessionStore(path).backup(path.with_name("copy.db"))


def with_shell(path: Path) -> None:
    """What the sqlite3 shell's .backup does."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(path.with_name("copy.db"))) as copy:
        source.backup(copy)


def with_another_database(path: Path) -> None:
    with SQLiteSession(path.with_name("copy.db"), session_id="alice") as session:
        session.add_items([{"text": "old"}])


def write(path: Path) -> None:
    """A write that opens the file."""
    with closing(SQLiteSession(path, session_id="alice")) as session:
        session.add_items([{"text": "one"}])


async def read_by_drop_in(path: Path) -> None:
    session = openai_agents.AsyncSQLiteSession("alice", path)
    try:
        await session.get_items()
    finally:
        await session.close()


USES: dict[str, Callable[[Path], object]] = {
    "a session": texts,
    "a write": write,
    "open": lambda path: SessionStore(path).open(),
    "check": lambda path: SessionStore(path).check(),
    "backup": lambda path: SessionStore(path).backup(path.with_name("again.db")),
    "copy_to": lambda path: SessionStore(path).copy_to(SessionStore(":memory:")),
    "the drop-in": lambda path: asyncio.run(read_by_drop_in(path)),
}


@pytest.mark.parametrize("copied", [with_backup, with_shell, with_another_database])
def test_a_file_that_was_replaced_by_a_copy_beside_a_wal_is_refused_by_name_and_left_as_it_is(
    path: Path, copied: Callable[[Path], None]
) -> None:
    crash(path, "old")
    copied(path)
    crash(path, "new")
    shutil.copy(path.with_name("copy.db"), path)
    before = path.read_bytes(), beside(path).read_bytes()
    for use in USES.values():
        with pytest.raises(StorageCorruptError, match=rf"{path}-wal belongs to another file.*agentmem restore BACKUP"):
            use(path)
        assert (path.read_bytes(), beside(path).read_bytes()) == before
    # What the message says:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    assert texts(path) == ["old"]


@pytest.mark.parametrize("crashes", [1, 3])
def test_a_wal_of_the_file_s_own_is_played_into_it_after_any_number_of_crashes(path: Path, crashes: int) -> None:
    for number in range(crashes):
        crash(path, str(number), "x")
        assert beside(path).stat().st_size
    assert texts(path) == [text for number in range(crashes) for text in (str(number), "x")]
    assert SessionStore(path).check().problem_count == 0


def test_a_wal_that_was_begun_anew_after_a_checkpoint_is_known_too(path: Path) -> None:
    """Else the first page, which has the number, would only be in the WAL before."""
    crash(path, "old")
    with_backup(path)
    crash(path, "x" * 20_000, "y" * 20_000, "z", checkpoint_bytes=10_000)
    own = shutil.copy(path, path.with_name("own.db"))
    shutil.copy(beside(path), beside(Path(own)))
    shutil.copy(path.with_name("copy.db"), path)
    with pytest.raises(StorageCorruptError, match="belongs to another file"):
        texts(path)
    assert [text[0] for text in texts(Path(own))] == ["o", "x", "y", "z"]


def test_every_file_and_every_copy_has_a_number_of_its_own(path: Path) -> None:
    crash(path, "old")
    with_backup(path)
    with_another_database(path.with_name("third.db"))
    numbers = set()
    for name in (path, *path.parent.glob("*.db")):
        with closing(sqlite3.connect(name)) as connection:
            numbers.add(connection.execute("PRAGMA schema_version").fetchone()[0])
    assert len(numbers) == len(list(path.parent.glob("*.db")))
    assert min(numbers) >= 10_000
    assert max(numbers) < 2**31 - 10_000


@posix
def test_a_program_that_changed_the_schema_meanwhile_has_the_same_file(path: Path) -> None:
    crash(path, "old")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE INDEX theirs ON agentmem_items (created_at)")
        connection.execute("VACUUM")
    crash(path, "new")
    assert texts(path) == ["old", "new"]
