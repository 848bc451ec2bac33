"""Upgrades a file that is too large to be upgraded while it is opened: a new file is built beside it, and replaces it.

Rules kept here:

- Nobody else has the file open meanwhile: SQLite's exclusive lock on it is held from before it is read until after the
  rename (see ``restore``). It is only read.
- The new file takes its place whole, by one rename, or the old one stays as it was, also where the process is killed.
- What agentmem did not make, such as tables of the Agents SDK's, goes into the new file as it is. What others have made
  on agentmem's own tables (an index, a trigger) is left out, because those tables are others now.
- Rows are copied by SQL alone, so that what is corrupt in them stays as it is, byte for byte.

Beside the new file, SQLite needs room for temporary files, about 60 bytes for each item (sqlite.org/tempfiles.html).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from ...checking import Progress
from ...errors import StorageError
from .backup import temporary_name, writing_a_copy
from .file import warn_of_other_names
from .lineage import begin_lineage, refuse_foreign_wal
from .restore import connect_to_replace, lock_exclusively, replace_file, require_no_damage
from .schema import has_tables, require_tables
from .snapshot import STOP_CHECK_OPCODES, Snapshot
from .tables import Version1, create_empty_tables, create_indexes, mark

SLICE_ITEMS = 10_000
"""How many items are copied and flushed at a time: some megabytes, as other files' commits wait for what is flushed."""

_OURS = "('agentmem_sessions', 'agentmem_items', 'agentmem_history')"

_OTHERS = f"""
    SELECT type, name, sql, rootpage FROM main.sqlite_master
    WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT IN {_OURS} AND tbl_name NOT IN {_OURS}
    ORDER BY rowid
"""  # noqa: S608  of constants alone


class ExclusiveSnapshot(Snapshot):
    """A file that nobody else has open.

    Args:
        path: the absolute path of the file, without symbolic links.

    Raises:
        StorageError: there is no file at `path`, or it is empty.
        StorageCorruptError: the WAL beside it is another file's.
    """

    def __init__(self, path: str) -> None:
        if not os.path.isfile(path):
            raise StorageError(f"there is no file {path}; check the path")
        if not os.path.getsize(path):  # taking the lock would write to it
            raise StorageError(f"{path} is empty, nothing was ever stored in it; check the path")
        warn_of_other_names(path)
        refuse_foreign_wal(path, busy_timeout_s=0)
        self._path = path
        super().__init__(connect_to_replace(path))

    @contextmanager
    def reading(self, deadline: float = 0) -> Iterator[None]:
        """Hold the lock during the block.

        Raises:
            StorageBusyError: somebody has the file open.
            StorageCorruptError: it is no database.
        """
        self.connection.set_progress_handler(lambda: int(self.halted), STOP_CHECK_OPCODES)
        try:
            lock_exclusively(self.connection, self._path)
            yield
        finally:
            self.connection.set_progress_handler(None, 0)


def upgrade_file(snapshot: Snapshot, path: str, target: str, progress: Progress | None) -> None:
    """Bring a file of an older version to this one. One of this version is left as it is.

    Args:
        snapshot: an ``ExclusiveSnapshot`` of the file.
        path: its path, for messages.
        target: its absolute path, without symbolic links.
        progress: called in this thread.

    Raises:
        StorageError: the file is not one of agentmem's, has something that cannot be copied, or the folder cannot be
            written.
        StorageCorruptError: it is damaged.
        StorageFullError: there is no space for the new file.
        SchemaVersionError: a newer agentmem wrote it.
        Halted: the snapshot was halted.
        Exception: what `progress` raises.
    """
    raw = snapshot.connection
    require_tables(raw, path)
    if has_tables(raw):
        return
    require_no_damage(
        snapshot,
        path,
        "was not upgraded; agentmem check names what is damaged. Restore a backup, or have the agentmem that wrote it "
        "copy what can be read into a new file",
    )
    folder = os.path.dirname(target)
    with writing_a_copy(snapshot, "upgrade", target, "which was to be upgraded"), temporary_name(folder) as copy:
        _build(snapshot, copy, progress)
        snapshot.require_valid()
        replace_file(raw, copy, target)


def _build(snapshot: Snapshot, copy: str, progress: Progress | None) -> None:
    raw = snapshot.connection
    others = raw.execute(_OTHERS).fetchall()
    for kind, name, _, rootpage in others:
        if kind == "table" and not rootpage:
            raise StorageError(f"the virtual table {name!r} is not agentmem's, and was not upgraded; drop it first")
    ((encoding,),) = raw.execute("PRAGMA encoding")
    descriptor = os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with _incomplete(snapshot, copy) as new:
            new.execute(f"PRAGMA encoding = '{encoding}'")  # that of attached databases must be the same
            create_empty_tables(new)
            for sql in [sql for kind, _, sql, _ in others if kind == "table"]:
                new.execute(sql)
        _copy_rows(snapshot, copy, descriptor, [name for kind, name, _, _ in others if kind == "table"], progress)
        with _incomplete(snapshot, copy) as new:
            create_indexes(new)
            for sql in [sql for kind, _, sql, _ in others if kind != "table"]:
                new.execute(sql)
            mark(new)
            begin_lineage(new)  # a WAL of the old file is not this one's
            new.execute("PRAGMA journal_mode = WAL")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _incomplete(snapshot: Snapshot, copy: str) -> Iterator[sqlite3.Connection]:
    """Open the new file, which is deleted where it is not completed, and so needs no journal."""
    with closing(sqlite3.connect(copy, isolation_level=None)) as new:
        new.set_progress_handler(lambda: int(snapshot.halted), STOP_CHECK_OPCODES)
        new.execute("PRAGMA journal_mode = OFF")
        new.execute("PRAGMA synchronous = OFF")
        yield new


def _copy_rows(snapshot: Snapshot, copy: str, descriptor: int, tables: list[str], progress: Progress | None) -> None:
    raw = snapshot.connection
    raw.execute("ATTACH ? AS new", (copy,))
    try:
        raw.execute("PRAGMA new.journal_mode = OFF")
        raw.execute("PRAGMA new.synchronous = OFF")
        for name in tables:
            quoted = '"' + name.replace('"', '""') + '"'
            raw.execute(f"INSERT INTO new.{quoted} SELECT * FROM main.{quoted}")  # noqa: S608  its own name, quoted
        old = Version1(old="main.", new="new.")
        old.copy_sessions(raw)
        count = old.sort(raw)
        for done in range(0, count, SLICE_ITEMS):
            if progress is not None:
                progress(done, count)
            old.copy_items(raw, done + 1, done + SLICE_ITEMS)
            os.fsync(descriptor)
            snapshot.require_valid()
        old.end(raw)
        _copy_issued_ids(raw)
    finally:
        raw.execute("DETACH new")
    if progress is not None:
        progress(count, count)


def _copy_issued_ids(raw: sqlite3.Connection) -> None:
    """Have other AUTOINCREMENT tables go on with their ids; a takeover of the Agents SDK's depends on it."""
    if raw.execute("SELECT 1 FROM main.sqlite_master WHERE name = 'sqlite_sequence'").fetchone():
        raw.execute("DELETE FROM new.sqlite_sequence WHERE name IN (SELECT name FROM main.sqlite_sequence)")
        raw.execute("INSERT INTO new.sqlite_sequence (name, seq) SELECT name, seq FROM main.sqlite_sequence")
