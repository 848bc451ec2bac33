"""What leads to a file: a path; and what would make a file of a name that nobody meant is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentmem import AsyncSessionStore, SessionStore, SQLiteSession
from agentmem.engines.sqlite.path import database_path
from agentmem.errors import StorageError
from agentmem.integrations.openai_agents import SQLiteSession as DropIn
from agentmem.integrations.openai_agents import import_history

posix = pytest.mark.skipif(os.name != "posix", reason="paths as POSIX has them")

NO_PATHS = {
    "": "db is a path of a file",
    "\0": "db is a path of a file",
    "x\0.db": "db is a path of a file",
    "sqlite:x.db": "begins like a URL of SQLite's and is none; write a path, or a URL: sqlite:///relative.db",
    "sqlite:/x.db": "begins like a URL of SQLite's",
    " sqlite:x.db": "begins like a URL of SQLite's",
    "SQLite3:x.db": "begins like a URL of SQLite's",
    "sqlite+aiosqlite:x.db": "begins like a URL of SQLite's",
    "file:x.db?mode=ro": "takes no file: URI; write the path alone, and give options by keyword",
    "file::memory:?cache=shared": "takes no file: URI",
    "postgresql:/me@host/db": "begins like a URL of PostgreSQL's and is none; write postgresql://user@host/database",
    "postgres:me@host/db": "begins like a URL of PostgreSQL's",
    "host=localhost dbname=app": "looks like the address of a PostgreSQL database",
    ":memory": 'write ":memory:" for a database in memory',
    ":MEMORY:": 'write ":memory:" for a database in memory',
    "x.db/": "the path of a folder",
    "/": "the path of a folder",
    "half a character: \ud800.db": "characters that no file name can have",
}
WINDOWS = [r"C:\data\x.db", "c:/data/x.db", r"\\server\share\x.db"]


@pytest.mark.parametrize("path", NO_PATHS)
def test_what_is_no_path_is_refused_wherever_a_path_is_taken_and_no_file_is_made(tmp_path: Path, path: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: AsyncSessionStore(path),
        lambda: SQLiteSession(path, session_id="user_123"),
        lambda: DropIn("user_123", path),
        lambda: SessionStore("app.db").backup(path),
        lambda: anyio.run(import_history, path),
        lambda: SQLiteSession(Path(path) if path.strip("/") else path, session_id="user_123"),
    ]
    with chdir(tmp_path):
        for use in uses[: -1 if path.endswith("/") else None]:  # a Path has no slash at its end
            with pytest.raises(ValueError, match=NO_PATHS[path].replace("(", r"\(")):
                use()
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("path", [*WINDOWS, "sqlite:///C:/data/x.db"])
def test_a_path_of_windows_is_refused_elsewhere(tmp_path: Path, path: str) -> None:
    with chdir(tmp_path), pytest.raises(ValueError, match="a path of Windows, which means nothing on this system"):
        AsyncSessionStore(path)


@pytest.mark.parametrize(
    "path", [b"x.db", bytearray(b"x.db"), 7, True, None, ["x.db"], object()], ids=lambda path: type(path).__name__
)
def test_what_is_neither_a_text_nor_a_path_is_a_type_error(path: Any) -> None:
    with pytest.raises(TypeError, match=f"db is a path or a URL, got {type(path).__name__}"):
        database_path(path)


@pytest.mark.parametrize(
    "name",
    ["./sqlite:x.db", "./file:x.db", "./me:secret@host", "./a=1 host=b", "./:x", "what?.db", "a#b.db", "user:a@b.db"],
)
def test_a_file_may_have_any_name_behind_its_folder_s(tmp_path: Path, name: str) -> None:
    with chdir(tmp_path), SessionStore(name) as store:
        assert store.name == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [Path(name).name]


def test_memory_is_memory_as_a_path_too(tmp_path: Path) -> None:
    with chdir(tmp_path), SessionStore(Path(":memory:")) as store:
        assert store.name == ":memory:"
    assert list(tmp_path.iterdir()) == []


@posix
def test_a_working_directory_that_was_deleted_is_a_storage_error_for_relative_paths_alone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with chdir(tmp_path), SessionStore(tmp_path / "app.db") as store:
        os.chdir(gone)
        gone.rmdir()
        for use in (
            lambda: SessionStore("x.db"),
            lambda: SQLiteSession("sqlite:///x.db", session_id="user_123"),
            lambda: store.backup("x.db"),
            lambda: anyio.run(import_history, "x.db"),
        ):
            with pytest.raises(StorageError, match=r"'x\.db' is relative, and the working directory .* absolute path"):
                use()
        store.backup(tmp_path / "copy.db")
