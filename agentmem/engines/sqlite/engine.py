"""Sessions in an SQLite file, through the event loop's pool for that file.

The tables are in ``sqlite_schema``, the SQL of each call in ``sqlite_calls``, the connections in ``sqlite_pool``, and
SQLite's errors are mapped in ``sqlite_errors``.

An engine that takes over the Agents SDK's history has that done before its first read and inside its first write on
each pool (see ``sqlite_takeover``).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, cast
from weakref import WeakSet

from ...cancellation import UncancellableTask, despite_cancellation
from ...checking import CheckReport, Progress
from ...errors import SessionClosedError, StorageError
from ...reading import TailReading
from ..base import Engine, Reading, check_busy_timeout
from ..batching import Job
from ..pools import close_unused
from .backup import back_up
from .check import check
from .connection import MEMORY, ConnectionLost
from .errors import map_error
from .pool import Database, MemoryLink, Pool, leases
from .schema import prepare_reader, prepare_writer, require_tables
from .sdk_tables import SDKTables
from .snapshot import Snapshot, SnapshotWork, until_done
from .statements import (
    Append,
    Clear,
    Import,
    IsBehind,
    Joined,
    ListSessions,
    Pop,
    Read,
    ReadShort,
    Slice,
    TakeOver,
    serve_reads,
    serve_writes,
)
from .takeover import Takeover

T = TypeVar("T")


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
        check_busy_timeout(busy_timeout_s)
        if durability not in ("full", "normal"):
            raise ValueError(f'durability is "full" or "normal", got {durability!r}')
        self.name = _path(db)
        memory = MemoryLink() if self.name == MEMORY else None
        real_path = self.name if memory else os.path.realpath(self.name)
        # Not id(self), which another engine may have once this one is dropped: its pool stays until it is closed.
        self.key: Hashable = ("sqlite", memory or real_path)
        self._takes_over = takes_over
        self._caught_up: WeakSet[Pool] = WeakSet()
        self._database = Database(
            path=real_path,
            key=(self.key, busy_timeout_s, durability, takes_over is not None),
            busy_timeout_s=busy_timeout_s,
            prepare_writer=partial(
                prepare_writer,
                path=self.name,
                busy_timeout_s=busy_timeout_s,
                durability=durability,
                takes_over=takes_over,
            ),
            prepare_reader=prepare_reader,
            write=serve_writes,
            read=serve_reads,
            memory=memory,
        )
        self._leases = leases(self._database)
        self._apart: set[SnapshotWork[Any]] = set()
        self._closed = False

    async def open(self) -> None:
        pool = self._pool()
        try:
            await pool.open()
            await self._catch_up()
        except BaseException as error:
            await self._leases.let_go(pool)  # a later call leases again
            if isinstance(error, sqlite3.Error):
                raise map_error(error, self.name) from error
            raise

    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        if rows:
            await self._write(Append(session_id, rows))

    async def read(self, session_id: str, reading: Reading[T]) -> T:
        await self._catch_up()
        reads = self._pool().reads
        if reading.is_short:
            joined = cast("Joined | None", self._outcome(await reads.submit(ReadShort(session_id, reading))))
            if joined is None or reading.feed_joined(*joined):
                return reading.result()
        return cast(T, self._outcome(await reads.submit(Read(session_id, reading))))

    async def sessions(self, after: str | None, most: int) -> list[tuple[str, int]]:
        if after is None and self._takes_over is None:  # the pool would make the file, or its tables
            await self._on_snapshot(lambda snapshot: require_tables(snapshot.connection, self.name))
        await self._catch_up()
        listing = await self._pool().reads.submit(ListSessions(after, most))
        return cast("list[tuple[str, int]]", self._outcome(listing))

    async def rows(self, session_id: str, start: int, most: int) -> list[tuple[int, bytes]]:
        await self._catch_up()
        found = await self._pool().reads.submit(Slice(session_id, start, most))
        return cast("list[tuple[int, bytes]]", self._outcome(found))

    async def pop(self, session_id: str, reading: Reading[T]) -> T:
        return cast(T, await self._write(Pop(session_id, reading)))

    async def clear(self, session_id: str) -> None:
        await self._write(Clear(session_id))

    async def take_over(self, tables: SDKTables) -> Takeover:
        """Take over what is new in the SDK's tables in this file, and say what was taken before.

        Raises:
            StorageError: nothing was taken over.
        """
        return cast(Takeover, await self._write(Import(tables)))

    async def import_from(self, path: str, tables: SDKTables) -> Takeover:
        """The same from another file, which is only read. `path` is absolute and without links.

        Raises:
            StorageError: nothing was taken over.
        """
        return cast(Takeover, await self._write(Import(tables, path)))

    async def check(self, progress: Progress | None = None) -> CheckReport:
        return await self._on_snapshot(lambda snapshot: check(snapshot, self.name, progress))

    async def backup(self, path: str | os.PathLike[str]) -> None:
        target = _path(path)
        if target == MEMORY:
            raise ValueError("a backup is a file; give a path")
        self._refuse_closed()
        if (pool := self._leases.get()) is not None:
            # What it has open must still be at its path, else the copy would be of another file.
            self._outcome(await pool.reads.submit(Read("", TailReading(0))))
        await self._on_snapshot(lambda snapshot: back_up(snapshot, self.name, target))

    async def close(self) -> None:
        self._closed = True
        unused = self._leases.give_back()
        if unused or self._apart or self._database.memory is not None:  # else there is nothing to wait for
            await despite_cancellation(self._close(unused))

    async def _close(self, pools: Sequence[Pool]) -> None:
        for work in list(self._apart):
            await work.finished()
        for pool in pools:
            await close_unused(pool)
        if self._database.memory is not None:
            await self._database.memory.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise SessionClosedError(f"the store on {self.name} is closed; open a new one")

    def _pool(self) -> Pool:
        """This engine's pool on the running event loop."""
        self._refuse_closed()
        if self._database.memory is not None and self._leases.are_inherited():
            raise StorageError("a session in memory stays in the process that made it; use a file to share it")
        return self._leases.take()

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
        done, result = cast("tuple[Takeover, object]", self._outcome(await pool.writes.submit(work)))
        self._caught_up.add(pool)
        if done.skipped:
            warnings.warn(
                f"{self.name}: {len(done.skipped)} sessions of the Agents SDK's have ids that agentmem refuses, and "
                f"stay with the SDK: {', '.join(done.skipped[:10])}",
                stacklevel=2,
            )
        return result

    async def _on_snapshot(self, function: Callable[[Snapshot], T]) -> T:
        """Run `function` apart from the pool; one in memory has nothing but its connection."""
        self._refuse_closed()
        try:
            if self._database.memory is not None:
                return await self._on_connection(self._database.memory, function)
            work = SnapshotWork(self._database.path, self._database.busy_timeout_s, function)
            self._apart.add(work)
            try:
                return await work.result()
            finally:
                self._apart.discard(work)
        except sqlite3.Error as error:
            raise map_error(error, self.name) from error

    async def _on_connection(self, memory: MemoryLink, function: Callable[[Snapshot], T]) -> T:
        self._pool()  # raises in a child process that got it by a fork
        link = await despite_cancellation(memory.open(self._database))
        snapshot = Snapshot(link.raw)

        def run(_: object) -> T:
            with snapshot.reading():
                return function(snapshot)

        task = UncancellableTask(link.hop(run), loop=asyncio.get_running_loop())
        try:
            return await until_done(task, snapshot.halt)
        except ConnectionLost:
            raise SessionClosedError(f"the store on {self.name} was closed meanwhile; open a new one") from None

    def _outcome(self, job: Job[Any]) -> object:
        if job.error is None:
            return job.result
        if isinstance(job.error, sqlite3.Error):
            raise map_error(job.error, self.name, job.work.session_id) from job.error
        raise job.error


def _path(db: str | os.PathLike[str]) -> str:
    if isinstance(db, str) and db == MEMORY:
        return db
    path = os.fspath(db)
    if not isinstance(path, str):
        raise TypeError(f"db is a path or a URL, got {type(db).__name__}")
    if not path or "\0" in path:
        raise ValueError(f"db is a path of a file, got {path!r}")
    return os.path.abspath(os.path.expanduser(path))
