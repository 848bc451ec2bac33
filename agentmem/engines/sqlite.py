"""Sessions in an SQLite file: the schema and the SQL.

Rules kept here:

- An item's rowid is its session's key and its position in one number, so that a session's rows lie together
  in the table itself: reading the tail of one session among 200,000 took 13 µs, against 41 µs with a
  separate index and 227 µs with WITHOUT ROWID, whose inner pages hold whole rows.
- A group of writes is one transaction. When it fails, each write is tried in a transaction of its own, so
  that one that cannot succeed fails alone; only a lock held by somebody else fails all of them at once.
  A pop is always a transaction of its own, because what it reads with can be fed but once.
- An engine that takes over the Agents SDK's history has that done before its first read and inside its first write on
  each pool (see ``sqlite_takeover``); a file of the SDK's gets agentmem's tables in the same transaction.
- ``PRAGMA application_id`` and ``user_version`` tell agentmem's files from others and older from newer ones.
- Names and ids are bound as parameters, never formatted into SQL.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import warnings
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, ClassVar, Literal, TypeVar, cast
from weakref import WeakSet

from ..errors import SchemaVersionError, SessionClosedError, StorageError
from . import sqlite_takeover as takeover
from .base import Engine, Reading
from .batching import Job, despite_cancellation
from .sdk_tables import SDKTables, holds_sdk_tables, is_sdk_file
from .sqlite_errors import BUSY, map_error, primary_code
from .sqlite_link import MEMORY, WorkerConnection
from .sqlite_pool import Database, MemoryLink, Pool, lease, release

T = TypeVar("T")

APPLICATION_ID = 0x61676D65  # "agme"
SCHEMA_VERSION = 1

_POSITION_BITS = 32
_SCHEMA = (
    """
    CREATE TABLE agentmem_sessions (
        session_key INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL UNIQUE,
        next_position INTEGER NOT NULL CHECK (next_position <= 0x100000000),  -- what item_key has room for
        created_at REAL NOT NULL,  -- seconds since 1970, UTC
        updated_at REAL NOT NULL
    )
    """,
    """
    CREATE TABLE agentmem_items (
        item_key INTEGER PRIMARY KEY,  -- session_key << 32 | position
        created_at REAL NOT NULL,
        item TEXT NOT NULL  -- JSON
    )
    """,
    takeover.SCHEMA,
    # For people with the sqlite3 shell; agentmem reads the tables.
    """
    CREATE VIEW agentmem_history AS
        SELECT session_id, item_key & 0xFFFFFFFF AS position, datetime(i.created_at, 'unixepoch') AS created_at, item
        FROM agentmem_items AS i JOIN agentmem_sessions ON session_key = item_key >> 32
    """,
)

_NEWEST_FIRST = """
    SELECT item_key & 0xFFFFFFFF, CAST(item AS BLOB) FROM agentmem_items
    WHERE item_key >= (SELECT session_key << 32 FROM agentmem_sessions WHERE session_id = :session_id)
      AND item_key < (SELECT (session_key + 1) << 32 FROM agentmem_sessions WHERE session_id = :session_id)
    ORDER BY item_key DESC
"""


class SQLiteEngine(Engine):
    """Sessions in one SQLite file, through the event loop's pool for that file.

    Args:
        db: path of the file, created if there is none; ":memory:" for a database that this engine alone sees.
        busy_timeout_s: how long to wait while another process writes, in seconds.
        durability: "full" flushes every commit to the disk before the call returns; "normal" leaves that to
            the next checkpoint, so that a power cut, though no crash of the process, can take the newest
            commits (sqlite.org/pragma.html#pragma_synchronous).
        takes_over: the tables of the Agents SDK's whose history this file goes on with; None takes nothing over, and
            refuses a file that the SDK wrote.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    def __init__(
        self,
        db: str | os.PathLike[str],
        *,
        busy_timeout_s: float = 5.0,
        durability: Literal["full", "normal"] = "full",
        takes_over: SDKTables | None = None,
    ) -> None:
        if not 0 <= busy_timeout_s < float("inf"):
            raise ValueError(f"busy_timeout_s is a number of seconds, 0 or more, got {busy_timeout_s!r}")
        if durability not in ("full", "normal"):
            raise ValueError(f'durability is "full" or "normal", got {durability!r}')
        self.name = _path(db)
        in_memory = self.name == MEMORY
        self.key: Hashable = ("sqlite", id(self) if in_memory else os.path.realpath(self.name))
        self._busy_timeout_s = busy_timeout_s
        self._durability = durability
        self._takes_over = takes_over
        self._caught_up: WeakSet[Pool] = WeakSet()
        self._database = Database(
            path=self.name if in_memory else os.path.realpath(self.name),
            key=(self.key, busy_timeout_s, durability, takes_over is not None),
            busy_timeout_s=busy_timeout_s,
            prepare_writer=self._prepare_writer,
            prepare_reader=_prepare_reader,
            write=_write,
            read=_read,
            memory=MemoryLink() if in_memory else None,
        )
        self._leases: dict[asyncio.AbstractEventLoop, Pool] = {}
        self._closed = False

    async def open(self) -> None:
        pool = self._pool()
        try:
            await pool.open()
            await self._catch_up()
        except BaseException as error:
            # Nobody closes what ``async with`` could not open; a later call leases again.
            if self._leases.get(pool.loop) is pool:
                del self._leases[pool.loop]
                await release(pool)
            if isinstance(error, sqlite3.Error):
                raise map_error(error, self.name) from error
            raise

    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        if rows:
            await self._write(Append(session_id, rows))

    async def read(self, session_id: str, reading: Reading[T]) -> T:
        await self._catch_up()
        job = await self._pool().reads.submit(Read(session_id, reading))
        return cast(T, self._outcome(job))

    async def pop(self, session_id: str, reading: Reading[T]) -> T:
        return cast(T, await self._write(Pop(session_id, reading)))

    async def clear(self, session_id: str) -> None:
        await self._write(Clear(session_id))

    async def take_over(self, tables: SDKTables) -> takeover.Takeover:
        """Take over what is new in the SDK's tables in this file, and say what was taken before.

        Raises:
            StorageError: nothing was taken over.
        """
        return cast(takeover.Takeover, await self._write(Import(tables)))

    async def import_from(self, path: str, tables: SDKTables) -> takeover.Takeover:
        """The same from another file, which is only read. `path` is absolute and without links.

        Raises:
            StorageError: nothing was taken over.
        """
        return cast(takeover.Takeover, await self._write(Import(tables, path)))

    async def close(self) -> None:
        self._closed = True
        await despite_cancellation(self._let_go())

    async def _let_go(self) -> None:
        while self._leases:
            _, pool = self._leases.popitem()
            if not pool.is_inherited():
                await release(pool)
        if self._database.memory is not None:
            await self._database.memory.close()

    def _pool(self) -> Pool:
        """This engine's pool on the running event loop."""
        if self._closed:
            raise SessionClosedError(f"the store on {self.name} is closed; open a new one")
        loop = asyncio.get_running_loop()
        pool = self._leases.get(loop)
        if pool is None or pool.is_inherited():
            for other, theirs in list(self._leases.items()):  # a list: other threads' loops may add theirs meanwhile
                if theirs.is_inherited() and self._database.memory is not None:
                    raise StorageError("a session in memory stays in the process that made it; use a file to share it")
                if theirs.is_inherited() or other.is_closed():
                    self._leases.pop(other, None)
            pool = self._leases[loop] = lease(self._database)
        return pool

    async def _write(self, work: Append | Pop | Clear | Import) -> object:
        pool = self._pool()
        if self._takes_over is None or isinstance(work, Import) or pool in self._caught_up:
            return self._outcome(await pool.writes.submit(work))
        return await self._write_first(pool, TakeOver(self._takes_over, work))

    async def _catch_up(self) -> None:
        """Have what is new of the SDK's taken over, once on each pool; writes do it by themselves."""
        if self._takes_over is None or (pool := self._pool()) in self._caught_up:
            return
        if self._outcome(await pool.reads.submit(IsBehind(self._takes_over))):
            await self._write_first(pool, TakeOver(self._takes_over))
        self._caught_up.add(pool)

    async def _write_first(self, pool: Pool, work: TakeOver) -> object:
        done, result = cast("tuple[takeover.Takeover, object]", self._outcome(await pool.writes.submit(work)))
        self._caught_up.add(pool)
        if done.skipped:
            warnings.warn(
                f"{self.name}: {len(done.skipped)} sessions of the Agents SDK's have ids that agentmem refuses, and "
                f"stay with the SDK: {', '.join(done.skipped[:10])}",
                stacklevel=2,
            )
        return result

    def _outcome(self, job: Job[Any]) -> object:
        if job.error is None:
            return job.result
        if isinstance(job.error, sqlite3.Error):
            raise map_error(job.error, self.name, job.work.session_id) from job.error
        raise job.error

    def _prepare_writer(self, raw: WorkerConnection) -> None:
        raw.is_writer = True
        if not raw.in_memory:
            _refuse_foreign(raw, self.name, self._takes_over)
            _switch_to_wal(raw, self.name, time.monotonic() + self._busy_timeout_s)
        raw.execute(f"PRAGMA synchronous = {'FULL' if self._durability == 'full' else 'NORMAL'}")
        raw.execute("PRAGMA fullfsync = ON")  # macOS: fsync() alone leaves the data in the drive's cache
        if self._takes_over is None or not is_sdk_file(raw):  # else with the takeover, in one transaction
            _create_or_upgrade(raw, self.name, self._takes_over)


def _path(db: str | os.PathLike[str]) -> str:
    if isinstance(db, str) and db == MEMORY:
        return db
    path = os.fspath(db)
    if not isinstance(path, str):
        raise TypeError(f"db is a path or a URL, got {type(db).__name__}")
    if not path or "\0" in path:
        raise ValueError(f"db is a path of a file, got {path!r}")
    return os.path.abspath(os.path.expanduser(path))


def _prepare_reader(raw: WorkerConnection) -> None:
    # The promise that only the writer writes and checkpoints (sqlite.org/wal.html#walresetbug).
    raw.execute("PRAGMA query_only = ON")
    raw.execute("PRAGMA wal_autocheckpoint = 0")


def _refuse_foreign(raw: WorkerConnection, path: str, takes_over: SDKTables | None) -> None:
    """Leave other programs' databases and newer versions' files exactly as they are."""
    application_id, version, tables = raw.execute(
        """
        SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
        FROM pragma_application_id, pragma_user_version
        """
    ).fetchone()
    if application_id == APPLICATION_ID:
        if version > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"{path} has schema version {version}, this agentmem knows up to {SCHEMA_VERSION}; upgrade agentmem"
            )
    elif is_sdk_file(raw):
        if takes_over is None:
            raise StorageError(
                f"{path} was written by the Agents SDK. To go on with its history, import SQLiteSession or "
                "AsyncSQLiteSession from agentmem.integrations.openai_agents, or run: agentmem import-sdk FILE"
            )
    elif tables or application_id or version:
        raise StorageError(
            f"{path} is another program's database; give agentmem a file of its own"
            + (" (agentmem import-sdk FILE --into NEW copies the Agents SDK's history)" * holds_sdk_tables(raw))
        )


def _switch_to_wal(raw: WorkerConnection, path: str, deadline: float) -> None:
    while True:
        try:
            (mode,) = raw.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            # Processes that open a new file together get this at once, without SQLite's own waiting, because
            # two that wait for each other's lock would never go on.
            if primary_code(error) != BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        else:
            if mode != "wal":
                raise StorageError(f"{path} cannot be used in WAL mode ({mode} instead); put it on a local disk")
            return


def _create_or_upgrade(raw: WorkerConnection, path: str, takes_over: SDKTables | None) -> None:
    (version,) = raw.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    with _Transaction(raw):
        # Looked at again under the lock: another process may have created it meanwhile.
        _refuse_foreign(raw, path, takes_over)
        _create(raw)


def _create(raw: WorkerConnection) -> None:
    """Make agentmem's tables, if there are none."""
    if raw.execute("PRAGMA user_version").fetchone() == (0,):
        for statement in _SCHEMA:
            raw.execute(statement)
        raw.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


class _Transaction:
    """``BEGIN IMMEDIATE``, then ``COMMIT``, or ``ROLLBACK`` when something is raised."""

    def __init__(self, raw: WorkerConnection) -> None:
        self._raw = raw

    def __enter__(self) -> None:
        self._raw.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if kind is None:
                self._raw.execute("COMMIT")
        finally:
            if self._raw.in_transaction:  # not after a commit, nor where SQLite has rolled back by itself
                self._raw.execute("ROLLBACK")


def _write(raw: WorkerConnection, jobs: list[Job[Any]]) -> None:
    """Serve a batch of writes: in one transaction, but for pops and where that fails."""
    groups = deque(_groups(jobs))
    while groups:
        group = groups.popleft()
        try:
            results = _write_together(raw, [job.work for job in group])
        except Exception as error:
            if isinstance(error, sqlite3.Error) and primary_code(error) == BUSY:
                for job in chain(group, *groups):  # each group would wait for the same lock, one after the other
                    job.error = error
                return
            if len(group) > 1:
                groups.extendleft([job] for job in reversed(group))
            else:
                group[0].error = error
        else:
            for job, result in zip(group, results, strict=True):
                job.result = result


def _groups(jobs: list[Job[Any]]) -> Iterator[list[Job[Any]]]:
    for are_alone, group in groupby(jobs, lambda job: bool(job.work.alone)):
        if are_alone:
            yield from ([job] for job in group)
        else:
            yield list(group)


def _write_together(raw: WorkerConnection, works: list[Write]) -> list[object]:
    now = time.time()
    with _Transaction(raw):
        return [work.apply(raw, now) for work in works]


@dataclass(frozen=True, slots=True)
class Append:
    """Append rows to a session; the first append creates it."""

    alone: ClassVar[bool] = False
    session_id: str
    rows: Sequence[str]

    def apply(self, raw: WorkerConnection, now: float) -> None:
        count = len(self.rows)
        found = raw.execute(
            "SELECT session_key, next_position FROM agentmem_sessions WHERE session_id = ?", (self.session_id,)
        ).fetchone()
        if found is None:
            position = 0
            key = raw.execute(
                "INSERT INTO agentmem_sessions (session_id, next_position, created_at, updated_at) VALUES (?, ?, ?, ?)",
                (self.session_id, count, now, now),
            ).lastrowid
        else:
            key, position = found
            _set_end(raw, key, position + count, now)
        first = (key << _POSITION_BITS) + position
        raw.executemany(
            "INSERT INTO agentmem_items (item_key, created_at, item) VALUES (?, ?, ?)",
            [(first + place, now, item) for place, item in enumerate(self.rows)],
        )


@dataclass(frozen=True, slots=True)
class Pop:
    """Read, and remove the rows from the oldest one read on."""

    alone: ClassVar[bool] = True
    session_id: str
    reading: Reading[Any]

    def apply(self, raw: WorkerConnection, now: float) -> object:
        _feed(raw, self.session_id, self.reading)
        oldest = self.reading.oldest
        key = _session_key(raw, self.session_id)
        if oldest is not None and key is not None:
            _delete_from(raw, key, oldest)
            _set_end(raw, key, oldest, now)
        return self.reading.result()


@dataclass(frozen=True, slots=True)
class Clear:
    """Remove a session."""

    alone: ClassVar[bool] = False
    session_id: str

    def apply(self, raw: WorkerConnection, now: float) -> None:
        key = _session_key(raw, self.session_id)
        if key is not None:
            _delete_from(raw, key, 0)
            raw.execute("DELETE FROM agentmem_sessions WHERE session_key = ?", (key,))


@dataclass(frozen=True, slots=True)
class Import:
    """Take over by hand: from this file's SDK tables, or from another file's."""

    alone: ClassVar[bool] = True
    session_id: ClassVar[None] = None
    tables: SDKTables
    path: str | None = None

    def apply(self, raw: WorkerConnection, now: float) -> takeover.Takeover:
        _create(raw)
        if self.path is None:
            return takeover.take_over_and_count(raw, self.tables, now)
        return takeover.import_from(raw, self.path, self.tables, now)


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Take over what is new in the SDK's tables, then do a write that waits for it; both or none."""

    tables: SDKTables
    write: Append | Pop | Clear | None = None

    @property
    def alone(self) -> bool:
        return self.write is not None and self.write.alone

    @property
    def session_id(self) -> str | None:
        return None if self.write is None else self.write.session_id

    def apply(self, raw: WorkerConnection, now: float) -> tuple[takeover.Takeover, object]:
        _create(raw)
        done = takeover.take_over(raw, self.tables, now)
        return done, None if self.write is None else self.write.apply(raw, now)


Write = Append | Pop | Clear | Import | TakeOver


@dataclass(frozen=True, slots=True)
class Read:
    """Feed a session's rows to a reading."""

    session_id: str
    reading: Reading[Any]

    def apply(self, raw: WorkerConnection) -> object:
        _feed(raw, self.session_id, self.reading)
        return self.reading.result()


@dataclass(frozen=True, slots=True)
class IsBehind:
    """Ask whether a takeover has something to do."""

    session_id: ClassVar[None] = None
    tables: SDKTables

    def apply(self, raw: WorkerConnection) -> bool:
        return takeover.is_behind(raw, self.tables)


def _session_key(raw: WorkerConnection, session_id: str) -> int | None:
    found = raw.execute("SELECT session_key FROM agentmem_sessions WHERE session_id = ?", (session_id,)).fetchone()
    return None if found is None else found[0]


def _set_end(raw: WorkerConnection, key: int, next_position: int, now: float) -> None:
    raw.execute(
        "UPDATE agentmem_sessions SET next_position = ?, updated_at = ? WHERE session_key = ?",
        (next_position, now, key),
    )


def _delete_from(raw: WorkerConnection, key: int, position: int) -> None:
    raw.execute(
        "DELETE FROM agentmem_items WHERE item_key >= ? AND item_key < ?",
        ((key << _POSITION_BITS) + position, (key + 1) << _POSITION_BITS),
    )


def _read(raw: WorkerConnection, jobs: list[Job[Any]]) -> None:
    """Serve a batch of reads; each is one statement, so it sees one state of the database."""
    for job in jobs:
        try:
            job.result = job.work.apply(raw)
        except Exception as error:
            job.error = error


def _feed(raw: WorkerConnection, session_id: str, reading: Reading[Any]) -> None:
    wanted = reading.first
    if not wanted:
        return
    cursor = raw.execute(_NEWEST_FIRST, {"session_id": session_id})
    try:
        while wanted:
            rows = cursor.fetchmany(wanted)
            wanted = reading.feed(rows, at_start=len(rows) < wanted)
    finally:
        cursor.close()  # ends the statement, and with it the read transaction
