"""SQLite connections, shared: one pool per database and event loop.

Rules kept here:

- A pool has one connection that writes and a few that read, each opened when it is first needed. However
  many sessions use the pool, it has no more threads and file descriptors than these need.
- Writes that wait are committed together, reads that wait are served together.
- Only the writer checkpoints (see ``sqlite_checkpoint``): readers are set up not to, and are closed before the writer.
- Nothing is acknowledged that went into a file which is no longer at its path.

No SQL here: a :class:`Database` says how to prepare a connection and how to serve a batch.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from ...cancellation import UncancellableTask, despite_cancellation
from ...errors import SessionClosedError, StorageError
from ...lifecycle import around_fork
from ..batching import Batcher, Done, Job
from ..pools import Leases, LoopPool, Pools
from .connection import (
    MEMORY,
    ConnectionLost,
    Hop,
    Link,
    WorkerConnection,
    create_private,
    has_program_ended,
    stop_all,
)
from .file import FileIdentity

READERS = 3
"""Connections that read. More bring nothing under Python's interpreter lock; with fewer, reads of a few
whole histories would hold up the short ones."""

MOST_WRITES = 512
"""Largest group commit; bounds how long the first of a group waits for the last."""

CROWD = 16
"""Writes that wait before they are handed to the writer while it commits others; see ``sqlite_schema.Transaction``.
For fewer, a flush of their own costs more than the turn-taking."""

MOST_READS = 64
"""Largest batch of reads, likewise."""

Serve = Callable[[WorkerConnection, "list[Job[Any]]"], None]
"""Gives each job of a batch its result or error; runs in the connection's thread."""


class MemoryLink:
    """The one connection of an in-memory database, which all event loops share: closing it ends the data."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.lock = threading.Lock()
        self._process = os.getpid()
        self._is_closed = False

    async def open(self, database: Database) -> Link:
        if self._is_closed:
            raise SessionClosedError("the database in memory was closed; open a new one")
        if self.link is not None and self.link.is_lost():
            raise StorageError("the session in memory was closed because the program is ending")
        if self.link is None:
            link = await Link.open(MEMORY, database.busy_timeout_s, database.prepare_writer)
            with self.lock:
                if self.link is None:
                    self.link = link
            if self.link is not link:  # another loop's thread was faster
                await link.close()
        return self.link

    async def close(self) -> None:
        self._is_closed = True
        link, self.link = self.link, None
        if link is not None and self._process == os.getpid():  # a fork has no thread that could close it
            await link.close()


@dataclass(frozen=True)
class Database:
    """What a pool opens, and how.

    Args:
        path: of the file, absolute and without links; unused for one in memory.
        key: equal for two databases that share a pool.
        busy_timeout_s: how long a statement waits for another process's lock.
        prepare_writer, prepare_reader: set up a fresh connection, in its thread.
        write, read: serve a batch.
        memory: set for a database in memory.
    """

    path: str
    key: Hashable
    busy_timeout_s: float
    prepare_writer: Callable[[WorkerConnection], None]
    prepare_reader: Callable[[WorkerConnection], None]
    write: Serve
    read: Serve
    memory: MemoryLink | None = field(default=None, compare=False)


class Pool(LoopPool):
    """The connections of one event loop to one database."""

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(database.key, loop)
        self.database = database
        self.writes: Batcher[Any] = Batcher(self._serve_writes, lanes=2, most=MOST_WRITES, crowd=CROWD)
        self.reads: Batcher[Any] = Batcher(self._serve_reads, lanes=READERS, most=MOST_READS)
        self._writer: Link | None = None
        self._readers: list[Link | None] = [None] * READERS
        self._opening = asyncio.Lock()
        self._turn = asyncio.Lock()  # of the writes that wait for a connection
        self._unsent = 0  # how many these are
        self._tasks: set[asyncio.Task[None]] = set()
        self._file: FileIdentity | None = None
        self._replaced = False

    async def open(self) -> None:
        """Connect, and have the schema created or upgraded, unless that was done."""
        # A task costs as much as half of opening a handle on a pool that is open.
        if self._writer is None or self._writer.is_lost():
            await despite_cancellation(self._open_writer())

    async def close(self) -> None:
        """The writer last."""
        await despite_cancellation(self._close())

    def is_current(self) -> bool:
        """Whether the file at the path is still the one that was opened, or none was opened yet."""
        return not self._replaced and (self._file is None or self._file.is_at_its_path())

    def retire(self) -> None:
        """Let go of a file that was replaced, from any thread; those who still use it get StorageError."""
        self._replaced = True
        for link in self._links():
            link.raw.disconnect()

    def abandon(self) -> None:
        # In a thread, because stopping a connection under a running loop reports to that loop, which may be
        # closed by then.
        thread = threading.Thread(target=stop_all, args=(self._links(),), name="agentmem-abandon")
        thread.start()
        _abandoned[thread] = self.database.path

    def _awaits_abandoned(self) -> bool:
        path = self.database.path
        return any(thread.is_alive() for thread, theirs in list(_abandoned.items()) if theirs == path)

    def _links(self) -> list[Link]:
        links = [*self._readers, self._writer] if self.database.memory is None else []
        return [link for link in links if link is not None]

    async def _open_writer(self) -> Link:
        async with self._opening:
            if self._writer is None or self._writer.is_lost():
                if self._writer is not None:
                    _refuse_at_end()
                    await self._writer.close()
                if self._replaced and self._file is not None:
                    raise self._file.replaced()
                if self.database.memory is not None:
                    self._writer = await self.database.memory.open(self.database)
                else:
                    self._writer = await self._open_file()
        return self._writer

    async def _open_file(self) -> Link:
        # SQLite keeps a closed connection's descriptor for as long as another of this process has the file locked
        # (POSIX drops all locks of a process with any descriptor): with the old pool closed first, none is left.
        while self._awaits_abandoned():  # noqa: ASYNC110  a thread that waits for a thread would be one more to end
            await asyncio.sleep(0.001)
        if self._file is None:
            create_private(self.database.path)
            file = FileIdentity(self.database.path)
        else:
            file = self._file
            file.check()  # reopened after a fork: it must not become another file unnoticed

        def prepare(raw: WorkerConnection) -> None:
            if not file.is_at_its_path():
                raise file.replaced()  # SQLite may have opened the other one, whose WAL is not ours to remove
            raw.file = file
            try:
                self.database.prepare_writer(raw)
            finally:
                file.remember_wal()

        link = await self._open(prepare)
        self._file = file
        return link

    async def _open(self, prepare: Callable[[WorkerConnection], None]) -> Link:
        while True:
            try:
                return await Link.open(self.database.path, self.database.busy_timeout_s, prepare)
            except ConnectionLost:
                pass  # a fork came between connecting and preparing

    def _serve_writes(self, lane: int, jobs: list[Job[Any]], done: Done) -> None:
        self._serve(self._writer, self._open_writer, partial(self._write, jobs=jobs), done, is_write=True)

    def _serve_reads(self, lane: int, jobs: list[Job[Any]], done: Done) -> None:
        self._serve(
            self._readers[lane], partial(self._open_reader, lane), partial(self._read, jobs=jobs), done, is_write=False
        )

    def _serve(
        self,
        link: Link | None,
        open_link: Callable[[], Coroutine[Any, Any, Link]],
        function: Callable[[WorkerConnection], None],
        done: Done,
        *,
        is_write: bool,
    ) -> None:
        """Run `function` in the thread of `link`, or of a new one where that is lost or was not opened yet."""

        def served(hop: Hop[None]) -> None:
            if isinstance(hop.error, ConnectionLost):
                self._serve(None, open_link, function, done, is_write=is_write)
            else:
                done(hop.error)

        async def open_and_send() -> None:
            try:
                if link is not None:
                    await link.close()  # with the news of what was sent before, which then queues up first
                async with self._turn if is_write else nullcontext():
                    while True:
                        try:
                            return (await open_link()).send(function, served, reports=is_write)
                        except ConnectionLost:
                            pass
            except BaseException as error:
                if not self.loop.is_closed():  # else nobody waits
                    done(error)
                if not isinstance(error, Exception):
                    raise
            finally:
                self._unsent -= is_write

        # Writes happen in the order in which they were asked for: while one of them waits for a connection, the later
        # ones queue up behind it, also when there is one in the meantime.
        if link is not None and not (is_write and self._unsent):
            try:
                return link.send(function, served, reports=is_write)
            except ConnectionLost:
                pass
        else:
            link = None
        self._unsent += is_write
        task = UncancellableTask(open_and_send(), loop=self.loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_reader(self, lane: int) -> Link:
        # The writer comes first: it creates the schema, and recovers the WAL after a crash.
        link = await self._open_writer()
        if self._file is not None:
            reader = self._readers[lane]
            if reader is not None:
                if not reader.is_lost():
                    return reader
                _refuse_at_end()
                await reader.close()
            self._file.check()  # where there is no file, SQLite would make one
            link = await self._open(self.database.prepare_reader)
        self._readers[lane] = link
        return link

    def _write(self, raw: WorkerConnection, *, jobs: list[Job[Any]]) -> None:
        self.database.write(raw, jobs)
        # After the commit: the file can be deleted at any time before it, and then nothing was stored.
        self._check_file()

    def _read(self, raw: WorkerConnection, *, jobs: list[Job[Any]]) -> None:
        self._check_file()
        self.database.read(raw, jobs)

    def _check_file(self) -> None:
        if self._file is not None:
            self._file.check()
            # After a fork a reader may be opened before the writer, and with it another WAL.
            if self._writer is not None and self._writer.raw.alive:
                self._file.check_wal()

    async def _close(self) -> None:
        await self.writes.drain()
        await self.reads.drain()
        async with self._opening:  # an open() may be under way
            for link in self._links():
                await link.close()
            self._readers = [None] * READERS
            self._writer = None


def _refuse_at_end() -> None:
    """Open no connection again that was closed because the program ends: nobody would close it."""
    if has_program_ended():
        raise StorageError("the connection was closed because the program is ending")


_pools: Pools[Pool] = Pools()
_abandoned: WeakKeyDictionary[threading.Thread, str] = WeakKeyDictionary()
"""Which threads close the connections that a closed event loop left, and to which path."""


def leases(database: Database) -> Leases[Pool]:
    """An engine's leases of pools for `database`; a lease does no I/O but a look at the file."""

    def is_replaced(pool: Pool) -> bool:
        # SQLite must not have two files open under one path: both would use the same -wal and -shm.
        replaced = pool.database.path == database.path and not pool.is_current()
        if replaced:
            pool.retire()
        return replaced

    return Leases(_pools, lambda: _pools.lease(database.key, lambda loop: Pool(database, loop), is_replaced))


def _forget_in_child() -> None:
    _abandoned.clear()


around_fork(before=lambda: None, in_parent=lambda: None, in_child=_forget_in_child)
