"""A file of agentmem's as others see it: what is stored in it, who has it open, and the disk that it is on."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import tools

from agentmem.engines.sqlite.connection import Connection, open_connections
from agentmem.items import Item


@contextlib.contextmanager
def shell(path: Path) -> Iterator[sqlite3.Connection]:
    """The file as somebody with the sqlite3 shell has it; each statement is a transaction."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def stored(path: Path, session_id: str = "user_123") -> list[Item]:
    """What another program finds in the file now, which must be whole, with positions from 0 without a gap."""
    with shell(path) as other:
        rows = other.execute(
            "SELECT position, item FROM agentmem_history WHERE session_id = ? ORDER BY position", (session_id,)
        ).fetchall()
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert [position for position, _ in rows] == list(range(len(rows)))
    return [json.loads(item) for _, item in rows]


def connections(path: Path) -> list[Connection]:
    """agentmem's own open connections to the file, in this process."""
    name = str(path.resolve())
    return [one for one in open_connections() if one.raw.execute("PRAGMA database_list").fetchone()[2] == name]


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory at `folder`, of a size that the options give; skips where that may not be."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(mount, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        tools.is_missing("tmpfs", "there is no mount")
    except subprocess.CalledProcessError as error:
        tools.is_missing("tmpfs", f"only root may mount a tmpfs, and not in every container: {error.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
