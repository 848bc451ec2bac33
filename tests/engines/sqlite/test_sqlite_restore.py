"""A restored file is the backup, whole, or the target is as it was; nobody has it open, and no WAL is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from database import mounted
from exhaustive import cases, exhaustive
from processes import KILLED_AT_STEP, Child, holdings, holds_again, run
from stepping import CycleLoop, cycle_loops

import agentmem
from agentmem import AsyncSQLiteSession, SessionStore, SQLiteSession
from agentmem.engines import open_engine
from agentmem.errors import (
    SchemaVersionError,
    SessionClosedError,
    StorageBusyError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
)

posix = pytest.mark.skipif(os.name != "posix", reason="modes and signals as POSIX has them")

CRASH = """
import os, sys
from agentmem import SQLiteSession
SQLiteSession(sys.argv[1], session_id="alice").add_items([{"text": text} for text in sys.argv[2:]])
os._exit(9)
"""


def texts(path: Path) -> list[str]:
    """What the session in a file holds; the file is closed again, so that nothing is left beside it."""
    with SQLiteSession(path, session_id="alice") as session:
        return [item["text"] for item in session.get_items()]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def crash(path: Path, *added: str) -> None:
    """A program that adds items and ends without closing, so that they are in the WAL alone."""
    assert run(CRASH, path, *added) == (9, "", "")
    assert path.with_name(path.name + "-wal").stat().st_size


@pytest.fixture
def backup(path: Path, tmp_path: Path) -> Path:
    """A backup of the file, which has changed since: "old" is in both, "new" in the file alone, in its WAL."""
    (tmp_path / "backups").mkdir()
    backup = tmp_path / "backups" / "monday.db"
    with SessionStore(path) as store:
        store.session("alice").add_items([{"text": "old"}])
        store.backup(backup)
        store.session("alice").add_items([{"text": "x" * 1000}] * 200)
    crash(path, "new")
    return backup


# What is there then


def test_a_restored_file_is_as_the_backup_and_a_wal_that_a_crash_left_is_gone(path: Path, backup: Path) -> None:
    before = backup.read_bytes()
    agentmem.restore(backup, path)
    assert names(path.parent) == {path.name, "backups"}
    assert texts(path) == ["old"]
    assert backup.read_bytes() == before
    assert names(backup.parent) == {backup.name}
    with SQLiteSession(path, session_id="alice") as session:
        session.add_items([{"text": "later"}])
    assert (texts(path), texts(backup)) == (["old", "later"], ["old"])


@pytest.mark.parametrize(
    "beside", cases([[], ["-wal"], ["-wal", "-shm"], ["-journal"]], quick=["-wal", "-shm"].__eq__), ids=str
)
def test_a_target_that_is_missing_is_made_and_what_is_left_of_it_gone(
    path: Path, backup: Path, beside: list[str]
) -> None:
    path.unlink()
    for suffix in ("-wal", "-shm"):
        if suffix not in beside:
            path.with_name(path.name + suffix).unlink()
    if "-journal" in beside:
        path.with_name(path.name + "-journal").write_bytes(b"stale")
    agentmem.restore(str(backup), f"sqlite:///{path}")
    assert names(path.parent) == {path.name, "backups"}
    assert texts(path) == ["old"]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def _restored_async(backup: Path, path: Path) -> None:
    await agentmem.async_restore(backup, path)
    async with AsyncSQLiteSession(path, session_id="alice") as session:
        assert await session.get_items() == [{"text": "old"}]


def test_the_async_function_restores_likewise(path: Path, backup: Path) -> None:
    asyncio.run(_restored_async(backup, path))


def test_a_backup_that_is_in_use_is_restored_with_all_that_it_has_acknowledged(path: Path, backup: Path) -> None:
    with SQLiteSession(backup, session_id="alice") as session:
        session.add_items([{"text": "in the backup's WAL"}])
        agentmem.restore(backup, path)
        assert texts(path) == ["old", "in the backup's WAL"]


def _of_a_newer_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def _with_bytes(path: Path, start: int, count: int) -> None:
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * count)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: _with_bytes(path, 100, 3996), id="its schema"),
        pytest.param(lambda path: _with_bytes(path, 4096, 4096), id="a page", marks=exhaustive),
        pytest.param(lambda path: os.truncate(path, 5000), id="cut short", marks=exhaustive),
        pytest.param(lambda path: os.truncate(path, 0), id="empty"),
        pytest.param(_of_a_newer_version, id="newer"),
    ],
)
def test_a_file_that_is_damaged_or_of_a_newer_version_is_replaced(
    path: Path, backup: Path, damage: Callable[[Path], None]
) -> None:
    agentmem.restore(backup, path)
    damage(path)
    agentmem.restore(backup, path)
    assert texts(path) == ["old"]
    assert names(path.parent) == {path.name, "backups"}


@posix
def test_the_new_file_keeps_the_mode_of_the_old_one_and_a_link_still_leads_to_it(path: Path, backup: Path) -> None:
    path.chmod(0o640)
    link = path.with_name("link.db")
    link.symlink_to(path)
    agentmem.restore(backup, link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert texts(link) == ["old"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_the_new_file_keeps_the_owner_of_the_old_one(path: Path, backup: Path) -> None:
    os.chown(path, 12345, 23456)
    agentmem.restore(backup, path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


# Who has it open


def _unchanged(path: Path) -> None:
    with SQLiteSession(path, session_id="alice") as session:
        assert session.get_items()[-1] == {"text": "new"}


def test_a_file_that_this_program_has_open_is_not_replaced(path: Path, backup: Path) -> None:
    with SessionStore(path) as store:
        for restore in (agentmem.restore, lambda *of: asyncio.run(agentmem.async_restore(*of))):
            with pytest.raises(StorageBusyError, match=rf"{path} is open in this program .* close every session"):
                restore(backup, path)
        assert store.session("alice").get_items(limit=1) == [{"text": "new"}]
        store.session("alice").add_items([{"text": "new"}])
    _unchanged(path)
    agentmem.restore(backup, path)


@pytest.mark.parametrize("does", cases(["reads", "only reads as SQLite does", "writes"], quick="reads".__eq__))
def test_a_file_that_another_program_has_open_is_not_replaced(path: Path, backup: Path, does: str) -> None:
    script = {
        "reads": """
import sys
from agentmem import SQLiteSession
session = SQLiteSession(sys.argv[1], session_id="alice")
session.get_items()
""",
        "only reads as SQLite does": """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM agentmem_items").fetchall()
""",
        "writes": """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
""",
    }[does]
    with Child(script + "print('open', flush=True); input()", path) as child:
        child.read_line()
        with pytest.raises(StorageBusyError, match="or in another, and was not replaced"):
            agentmem.restore(backup, path)
    _unchanged(path)
    agentmem.restore(backup, path)
    assert texts(path) == ["old"]


def test_what_a_closed_event_loop_left_open_is_closed_for_it(path: Path, backup: Path) -> None:
    async def leave_open() -> None:
        await AsyncSQLiteSession(path, session_id="alice").get_items(limit=1)

    asyncio.run(leave_open())
    agentmem.restore(backup, path)
    assert texts(path) == ["old"]


# What cannot be restored


def _other_program_s(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE photos (id)")


def test_what_is_no_backup_is_refused_and_the_target_stays(path: Path, backup: Path, tmp_path: Path) -> None:
    damaged, newer, other, empty = (backup.with_name(name) for name in ("damaged", "newer", "other", "empty"))
    for name in (damaged, newer):
        name.write_bytes(backup.read_bytes())
    _with_bytes(damaged, 8192, 4096)
    _of_a_newer_version(newer)
    _other_program_s(other)
    empty.touch()
    for source, error, match in (
        (backup.with_name("no.db"), StorageError, "there is no file"),
        (backup.parent, StorageError, "there is no file"),
        (empty, StorageError, "is empty"),
        (other, StorageError, "another program's database"),
        (newer, SchemaVersionError, "upgrade agentmem"),
        (damaged, StorageCorruptError, "is damaged .* was not restored; agentmem check names"),
        (":memory:", ValueError, "a backup is an SQLite file"),
        (path, ValueError, "are the same file"),
    ):
        with pytest.raises(error, match=match):
            agentmem.restore(source, path)
    os.link(path, tmp_path / "same.db")
    with pytest.raises(ValueError, match="are the same file"), pytest.warns(agentmem.errors.HardLinkWarning):
        agentmem.restore(tmp_path / "same.db", path)
    (tmp_path / "same.db").unlink()
    _unchanged(path)


def test_what_is_not_agentmem_s_is_not_replaced(path: Path, backup: Path, tmp_path: Path) -> None:
    notes, photos, folder = (tmp_path / name for name in ("notes.txt", "photos.db", "folder"))
    notes.write_text("Dear diary. " * 1000)
    _other_program_s(photos)
    folder.mkdir()
    for target, error, match in (
        (notes, StorageCorruptError, "is not a database .* not replaced; if it is what is left of yours, move it"),
        (photos, StorageError, "another program's database, and was not replaced"),
        (folder, StorageError, "is not a file"),
        (folder / "no" / "app.db", StorageError, "create its folder first"),
        (":memory:", ValueError, "restored to a file"),
    ):
        before = target.read_bytes() if isinstance(target, Path) and target.is_file() else b""
        with pytest.raises(error, match=match):
            agentmem.restore(backup, target)
        assert not before or Path(target).read_bytes() == before
    assert names(folder) == set()


def test_a_database_on_a_server_is_restored_by_its_own_tools(backup: Path, tmp_path: Path) -> None:
    pytest.importorskip("asyncpg", reason="asyncpg is not installed")
    url = "postgresql://me:hunter2@nowhere.invalid/db"
    with pytest.raises(StorageError, match="pg_restore") as raised:
        agentmem.restore(backup, url)
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ValueError, match="a backup is an SQLite file") as refused:
        agentmem.restore(url, tmp_path / "new.db")
    assert "hunter2" not in str(refused.value)
    assert not (tmp_path / "new.db").exists()


async def _closed(backup: Path, path: Path) -> None:
    target, source = open_engine(path), open_engine(backup)
    await target.close()
    with pytest.raises(SessionClosedError):
        await target.restore(source)


def test_an_engine_that_was_closed_restores_nothing(path: Path, backup: Path) -> None:
    asyncio.run(_closed(backup, path))
    _unchanged(path)


def test_a_full_disk_is_an_error_by_name_and_the_target_stays(backup: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=300k") as folder:
        path = folder / "app.db"
        agentmem.restore(backup, path)
        with SQLiteSession(backup, session_id="alice") as session:
            session.add_items([{"text": "x" * 500_000}])
        with pytest.raises(StorageFullError, match=r"app\.db.* make room and try again"):
            agentmem.restore(backup, path)
        assert names(folder) == {"app.db"}
        assert texts(path) == ["old"]


# Crashes and cancellation

KILLED = KILLED_AT_STEP + "agentmem.restore(sys.argv[3], path)"


@posix
@exhaustive
def test_a_process_that_is_killed_at_any_step_leaves_the_old_file_or_the_backup(path: Path, backup: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    crashed = path.read_bytes(), wal.read_bytes()
    seen = set()
    for step in range(1, 100):
        path.write_bytes(crashed[0])
        wal.write_bytes(crashed[1])
        code, _, errors = run(KILLED, path, str(step), backup)
        assert code in (0, -signal.SIGKILL), errors
        found = texts(path)
        assert found == ["old"] or (found[0], found[-1], len(found)) == ("old", "new", 202)
        seen.add((len(found), code))
        for left in path.parent.glob(".agentmem-*"):
            left.unlink()
        assert names(path.parent) == {path.name, "backups"}
        if code == 0:
            break
    assert seen == {(202, -signal.SIGKILL), (1, -signal.SIGKILL), (1, 0)}


def test_a_restore_that_is_cancelled_at_any_moment_leaves_the_old_file_or_the_backup(path: Path, backup: Path) -> None:
    before = holdings()
    cancelled = 0
    for loop in cycle_loops():

        async def main(loop: CycleLoop = loop) -> bool:
            restoring = asyncio.ensure_future(agentmem.async_restore(backup, path))
            loop.arm(restoring.cancel)
            await asyncio.wait([restoring])
            loop.disarm()
            await loop.shutdown_default_executor()
            return restoring.cancelled()

        was_cancelled = loop.run(main())
        cancelled += was_cancelled
        found = texts(path)
        assert found == ["old"] or (was_cancelled and found[-1] == "new")
        assert names(path.parent) == {path.name, "backups"}
        if found == ["old"]:
            with SQLiteSession(path, session_id="alice") as session:
                session.add_items([{"text": "new"}])
        holds_again(before)
    assert cancelled > 1


def test_two_restores_at_once_leave_one_of_both_backups_whole(path: Path, backup: Path) -> None:
    other = backup.with_name("tuesday.db")
    with SessionStore(path) as store:
        store.backup(other)
    script = """
import sys
import agentmem
from agentmem.errors import StorageBusyError
for _ in range(20):
    try:
        agentmem.restore(sys.argv[1], sys.argv[2])
    except StorageBusyError:
        pass
"""
    with Child(script + "print('done')", backup, path) as first, Child(script + "print('done')", other, path) as second:
        assert (first.read_line(), second.read_line()) == ("done", "done")
    assert names(path.parent) == {path.name, "backups"}
    assert texts(path)[-1] in ("old", "new")
    with SessionStore(path) as store:
        assert store.check().problem_count == 0
