"""Sessions in an SQLite file, through the event loop's pool for that file.

The way of a call: this engine makes an operation of it (``statements``), which waits in the pool's queue
(``batching``); the pool's sender (``sender``) hands a batch to a connection (``connection``), in whose thread it runs
(``transaction``).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Literal, TypeVar, cast
from weakref import finalize

from ...cancellation import despite_cancellation
from ...checking import CheckReport, Progress
from ...errors import SessionClosedError, StorageError
from ...reading import TailReading
from ..base import Engine, Reading, check_busy_timeout
from ..callbacks import CallbackFailed, guarded
from ..pooled import PooledEngine
from ..pools import Leases
from ..readings import Joined
from .backup import back_up
from .check import check
from .connection import MEMORY, Connection, ConnectionLost
from .errors import map_error
from .memory import MemoryDatabase
from .path import database_path
from .pool import Database, Pool, leases, let_go_of_closed_loops
from .removal import Removals
from .restore import restore
from .schema import prepare_writer, require_tables
from .snapshot import Snapshot, SnapshotWork, copied
from .statements import (
    Append,
    Clear,
    ListSessions,
    Pop,
    Read,
    ReadJoined,
    ReadRows,
    ReadSlice,
    Write,
)
from .upgrading import ExclusiveSnapshot, upgrade_file

T = TypeVar("T")


class SQLiteEngine(PooledEngine[Pool]):
    """Sessions in one SQLite file.

    Args:
        db: path of the file, created if there is none; ":memory:" for a database that this engine alone sees.
        busy_timeout_s: how long to wait while another process writes, in seconds.
        durability: "full" flushes every commit to the disk before the call returns; "normal" leaves that to
            the next checkpoint, so that a power cut, though no crash of the process, can take the newest
            commits (sqlite.org/pragma.html#pragma_synchronous).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    accepts_sdk_file = False
    """Whether a file that the Agents SDK wrote may be opened; see ``takeover_engine``."""

    def __init__(
        self,
        db: str | os.PathLike[str],
        *,
        busy_timeout_s: float = 5.0,
        durability: Literal["full", "normal"] = "full",
    ) -> None:
        check_busy_timeout(busy_timeout_s)
        if durability not in ("full", "normal"):
            raise ValueError(f'durability is "full" or "normal", got {durability!r}')
        name = database_path(db)
        memory = MemoryDatabase(_prepare_memory) if name == MEMORY else None
        path = name if memory else os.path.realpath(name)
        # Not id(self), which another engine may have once this one is dropped: its pool stays until it is closed.
        key: Hashable = ("sqlite", memory or path)
        self._database = Database(
            name=name,
            path=path,
            key=(key, durability, self.accepts_sdk_file),
            durability=durability,
            accepts_sdk_file=self.accepts_sdk_file,
            memory=memory,
        )
        self._snapshots: set[SnapshotWork[Any]] = set()
        self._copies: set[Future[None]] = set()  # done when nobody works any more on a copy of a database in memory
        super().__init__(name, key, leases(self._database), busy_timeout_s)
        if memory is not None:
            # The connection is this engine's alone, and has a thread, which would outlive it.
            finalize(self, _drop, memory, self._leases).atexit = False  # the program's end closes what is open then

    async def open(self) -> None:
        # Before the pool is opened, because a pool that cannot be opened is let go of: the next call would start a new
        # file in the place of the one that is missing.
        if (pool := self._leases.get()) is not None:
            pool.check_file()
        await super().open()

    async def open_pool(self, pool: Pool, deadline: float) -> None:
        await pool.open(deadline)

    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        if rows:
            await self.write(Append(session_id, rows))

    async def read(self, session_id: str, reading: Reading[T]) -> T:
        deadline = self.deadline()
        if reading.is_short:
            joined = cast("Joined | None", await self.query(ReadJoined(session_id, reading), deadline))
            if joined is None or reading.feed_joined(*joined):
                return reading.result()
        return cast(T, await self.query(ReadRows(session_id, reading), deadline))

    async def sessions(self, after: str | None, limit: int) -> list[tuple[str, int]]:
        deadline = self.deadline()
        # The pool would make the file, or its tables. A database in memory has them from the start.
        if after is None and not self.accepts_sdk_file and self._database.memory is None:
            await self._on_snapshot(lambda snapshot: require_tables(snapshot.connection, self.name), deadline)
        return cast("list[tuple[str, int]]", await self.query(ListSessions(after, limit), deadline))

    async def rows(self, session_id: str, start: int, limit: int) -> list[tuple[int, bytes]]:
        return cast("list[tuple[int, bytes]]", await self.query(ReadSlice(session_id, start, limit)))

    async def pop(self, session_id: str, reading: Reading[T]) -> T:
        return cast(T, await self.write(Pop(session_id, reading)))

    async def clear(self, session_id: str) -> None:
        await self.write(Clear(session_id))

    async def write(self, operation: Write, deadline: float | None = None) -> object:
        """Do one write operation; returns its result.

        Args:
            deadline: of the call that it is a part of; None where it is all that the call does.
        """
        return await self.submit(self.pool().writes, operation, operation.session_id, deadline=deadline)

    async def query(self, operation: Read, deadline: float | None = None) -> object:
        """Do one read operation; returns its result. For `deadline` see :meth:`write`."""
        return await self.submit(self.pool().reads, operation, operation.session_id, deadline=deadline)

    async def check(self, progress: Progress | None = None) -> CheckReport:
        watched = progress and guarded(progress)
        return await self._on_snapshot(lambda snapshot: check(snapshot, self.name, watched), self.deadline())

    async def backup(self, path: str | os.PathLike[str]) -> None:
        target = database_path(path)
        if target == MEMORY:
            raise ValueError("a backup is a file; give a path")
        self.refuse_closed()
        deadline = self.deadline()
        if (pool := self._leases.get()) is not None:
            # What it has open must still be at its path, else the copy would be of another file.
            await self.submit(pool.reads, ReadRows("", TailReading(0)), deadline=deadline)
        await self._on_snapshot(lambda snapshot: back_up(snapshot, self.name, target), deadline)

    async def restore(self, backup: Engine) -> None:
        self.refuse_closed()
        if not isinstance(backup, SQLiteEngine) or backup._database.memory is not None:
            raise ValueError(f"a backup is an SQLite file, as store.backup() makes it, got {backup.name}")
        if self._database.memory is not None:
            raise ValueError("a backup is restored to a file; give its path")
        target = self._database.path
        await let_go_of_closed_loops(target)
        await backup._on_snapshot(lambda snapshot: restore(snapshot, backup.name, target), backup.deadline())

    async def upgrade(self, progress: Progress | None = None) -> None:
        self.refuse_closed()
        if self._database.memory is not None:
            raise ValueError("a database in memory is always of this version; give the path of a file")
        target, watched = self._database.path, progress and guarded(progress)
        await let_go_of_closed_loops(target)
        await self._on_snapshot(
            lambda snapshot: upgrade_file(snapshot, self.name, target, watched), self.deadline(), ExclusiveSnapshot
        )

    def map_error(self, error: BaseException, session_id: str | None = None) -> BaseException:
        return map_error(error, self.name, session_id) if isinstance(error, sqlite3.Error) else error

    def refuse_other_process(self) -> None:
        if self._database.memory is not None and self._leases.are_inherited():
            raise StorageError("a session in memory stays in the process that made it; use a file to share it")

    def has_more_to_close(self) -> bool:
        return bool(self._snapshots) or self._database.memory is not None

    async def close_pools(self, pools: Sequence[Pool]) -> None:
        for work in list(self._snapshots):
            await work.finished()
        await super().close_pools(pools)
        if self._database.memory is not None:
            await self._database.memory.close()
        if self._copies:
            await asyncio.wait([asyncio.wrap_future(finished) for finished in self._copies])

    async def _on_snapshot(
        self,
        function: Callable[[Snapshot], T],
        deadline: float,
        open_snapshot: Callable[[str], Snapshot] | None = None,
    ) -> T:
        """Run `function` on one state of the database; on a connection of its own, except in memory.

        Args:
            deadline: until when locks are waited for.
            open_snapshot: see :class:`~.snapshot.SnapshotWork`.
        """
        self.refuse_closed()
        try:
            if self._database.memory is not None:
                return await self._on_memory(self._database.memory, function)
            work = SnapshotWork(self._database.path, deadline, function, open_snapshot)
            self._snapshots.add(work)
            try:
                return await work.result()
            finally:
                self._snapshots.discard(work)
        except (sqlite3.Error, CallbackFailed) as error:
            failure = error
        self.raise_mapped(failure)

    async def _on_memory(self, memory: MemoryDatabase, function: Callable[[Snapshot], T]) -> T:
        """Run `function` on a copy: other calls wait only until that is made, and so `function` may wait for them."""
        self.pool()  # raises in a child process that got it by a fork
        finished: Future[None] = Future()
        self._copies.add(finished)
        copies: list[Snapshot] = []  # also of a call that is cancelled while it copies
        try:
            await despite_cancellation(self._copy(memory, copies))
            return await copies[0].run_off_loop(function)
        finally:
            for snapshot in copies:
                snapshot.connection.close()
            self._copies.discard(finished)
            finished.set_result(None)

    async def _copy(self, memory: MemoryDatabase, copies: list[Snapshot]) -> None:
        """Add a copy of the database to `copies`; its connection must be closed."""
        connection = await memory.open()
        try:
            copies.append(await connection.call(lambda connection: copied(connection.raw)))
        except ConnectionLost:
            raise SessionClosedError(f"the store on {self.name} was closed meanwhile; open a new one") from None


def _drop(memory: MemoryDatabase, leases: Leases[Pool]) -> None:
    leases.drop_all()
    memory.drop()


def _prepare_memory(connection: Connection) -> None:
    prepare_writer(connection, MEMORY, durability="normal", accepts_sdk_file=False)
    connection.removals = Removals(MEMORY)
