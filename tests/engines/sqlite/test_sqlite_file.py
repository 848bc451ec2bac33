"""The file that is open is the one at its path, or that is noticed."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from agentmem import SessionStore, SQLiteSession
from agentmem.engines.sqlite.file import FileIdentity
from agentmem.errors import HardLinkWarning, StorageError


def test_a_file_is_the_same_until_it_is_deleted_replaced_or_emptied(path: Path) -> None:
    path.write_bytes(b"one")
    file = FileIdentity(str(path))
    file.check()
    path.write_bytes(b"another text")
    file.check()
    os.truncate(path, 0)
    with pytest.raises(StorageError, match="was emptied"):
        file.check()
    assert file.is_at_its_path()
    path.rename(path.with_suffix(".away"))
    with pytest.raises(StorageError, match=r"was deleted or moved .* put it back"):
        file.check()
    assert not file.is_at_its_path()
    path.write_bytes(b"one")
    with pytest.raises(StorageError, match="was replaced"):
        file.check()
    assert not file.is_at_its_path()


def _get_items(path: Path) -> None:
    with closing(SQLiteSession(path, session_id="user_123")) as session:
        session.get_items()


def test_a_file_with_a_second_name_is_a_warning_by_name_wherever_it_is_opened(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with SQLiteSession(path, session_id="user_123") as session:
        session.add_items([{"role": "user", "content": "one"}])
    os.link(path, other)
    for name in (path, other):
        for use in (
            lambda name=name: _get_items(name),
            lambda name=name: SessionStore(name).check(),
            lambda name=name: SessionStore(name).backup(tmp_path / "copy.db"),
        ):
            with pytest.raises(HardLinkWarning, match=rf"{name} has 2 names \(hard links\).* can be lost"):
                use()  # warnings are errors here
    with pytest.warns(HardLinkWarning), SQLiteSession(path, session_id="user_123") as session:
        assert len(session.get_items()) == 1
    other.unlink()
    other.symlink_to(path)
    with SQLiteSession(other, session_id="user_123") as session:
        assert len(session.get_items()) == 1


def test_of_a_replaced_file_only_its_own_wal_is_removed(path: Path) -> None:
    wal, shm = path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")
    for beside in (path, wal, shm):
        beside.write_bytes(b"old")
    file = FileIdentity(str(path))
    file.remove_stale_wal(is_copied=True)
    assert wal.exists()
    file.remember_wal()
    wal.with_suffix(".new").write_bytes(b"of the new file")
    os.replace(wal.with_suffix(".new"), wal)
    file.remove_stale_wal(is_copied=True)
    assert wal.exists()
    file.remember_wal()
    file.remove_stale_wal(is_copied=True)
    file.remove_stale_wal(is_copied=True)
    assert not wal.exists()
    assert not shm.exists()
