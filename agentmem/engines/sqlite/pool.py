"""SQLite connections, shared: one pool per database and event loop.

Rules kept here:

- A pool has one connection that writes and a few that read, each opened when it is first needed. However many sessions
  use the pool, it has no more threads and file descriptors than these need.
- Writes that wait are committed together; reads that wait are carried out together.
- Only the writer checkpoints (see ``checkpoint``): readers are set up not to, and are closed before the writer.
- Nothing is acknowledged that went into a file which is no longer at its path.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...cancellation import despite_cancellation
from ...lifecycle import around_fork
from ..batching import Batch, Batcher, Queue, QueueCounts
from ..pools import Leases, LoopPool, Pools
from .connection import Connection, ConnectionLost, Origin, stop_all
from .file import FileIdentity, create_private, warn_of_other_names
from .lineage import refuse_foreign_wal
from .memory import MemoryDatabase
from .removal import Removals
from .schema import prepare_reader, prepare_writer
from .sender import Sender
from .statements import Read, Write
from .transaction import run_reads, run_writes

READERS = 3
"""Connections that read. More bring nothing under Python's interpreter lock; with fewer, reads of a few
whole histories would hold up the short ones."""

MAX_WRITES = 512
"""The largest number of writes in a batch; bounds how long the first of them waits for the last."""

SECOND_BATCH_AT = 16
"""How many writes must wait before they are handed to the writer while it commits others; see
``transaction.Transaction``. For fewer, a flush of their own costs more than the handing over."""

MAX_READS = 64
"""The largest number of reads in a batch."""


@dataclass(frozen=True)
class Database:
    """What a pool opens, and how.

    Args:
        name: the path as messages name it.
        path: of the file, absolute and without links; unused for a database in memory.
        key: equal for two databases that share a pool.
        durability: "full" or "normal", see ``schema.prepare_writer``.
        accepts_sdk_file: whether a file of the Agents SDK's, without agentmem's tables, may be opened.
        memory: set for a database in memory.
    """

    name: str
    path: str
    key: Hashable
    durability: str
    accepts_sdk_file: bool = False
    memory: MemoryDatabase | None = field(default=None, compare=False)

    def prepare_writer(self, connection: Connection) -> None:
        """Set up the connection that writes, in its thread."""
        prepare_writer(
            connection,
            self.name,
            durability=self.durability,
            accepts_sdk_file=self.accepts_sdk_file,
        )
        connection.removals = Removals(self.name)


@dataclass(frozen=True)
class PoolCounts:
    """What a pool holds at one moment.

    Attributes:
        writers, readers: connections that are open.
        writes, reads: what waits and what is under way.
    """

    writers: int
    readers: int
    writes: QueueCounts
    reads: QueueCounts


class Pool(LoopPool):
    """The connections of one event loop to one database."""

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(database.key, loop)
        self.database = database
        self._file: FileIdentity | None = None
        self._is_replaced = False
        self.writes: Batcher[Write] = Batcher(
            self._send_writes, Queue(slots=2, max_batch_size=MAX_WRITES, second_batch_at=SECOND_BATCH_AT)
        )
        self.reads: Batcher[Read] = Batcher(self._send_reads, Queue(slots=READERS, max_batch_size=MAX_READS))
        self._writer = Sender(self.writes, self._run_writes, self._open_writer, loop)
        self._readers = [Sender(self.reads, self._run_reads, self._open_reader, loop) for _ in range(READERS)]

    def __repr__(self) -> str:
        counts = self.counts()
        return (
            f"<Pool on {self.database.name}: {counts.writers} writer and {counts.readers} readers open, "
            f"{counts.writes.waiting + counts.reads.waiting} calls waiting, "
            f"{counts.writes.under_way + counts.reads.under_way} under way>"
        )

    def counts(self) -> PoolCounts:
        """What it holds now."""
        return PoolCounts(
            writers=int(self._writer.is_connected()),
            readers=sum(reader.is_connected() for reader in self._readers),
            writes=self.writes.counts(),
            reads=self.reads.counts(),
        )

    async def open(self, deadline: float) -> None:
        """Connect, and have the schema created or upgraded, unless that was done."""
        await self._writer.connected(deadline)

    async def close(self) -> None:
        """Finish what was asked for, then close the readers, then the writer."""
        await despite_cancellation(self._close())

    def is_current(self) -> bool:
        """Whether the file at the path is still the one that was opened, or none was opened yet."""
        return not self._is_replaced and (self._file is None or self._file.is_at_its_path())

    def retire(self) -> None:
        """Let go of a file that was replaced, from any thread; those who still use it get StorageError.

        Its connections are closed by whoever opens the file that is there now: here it would have to be waited for.
        """
        self._is_replaced = True

    def abandon(self) -> None:
        # In a thread, because closing waits for what the connections still run.
        thread = threading.Thread(target=stop_all, args=(self._connections(),), name="agentmem-abandon")
        _abandoned[thread] = self.database.path
        thread.start()

    def _connections(self) -> list[Connection]:
        """Those that are this pool's to close, the readers first."""
        if self.database.memory is not None:
            return []
        connections = [*(reader.connection for reader in self._readers), self._writer.connection]
        return [connection for connection in connections if connection is not None]

    async def _close(self) -> None:
        await self.writes.drain()
        await self.reads.drain()
        if self.database.memory is None:  # else the connection is not this pool's alone
            for reader in self._readers:
                await reader.close()
            await self._writer.close()

    # Sending, on the event loop

    def _send_writes(self, batch: Batch[Write]) -> None:
        self._writer.send(batch)

    def _send_reads(self, batch: Batch[Read]) -> None:
        self._readers[batch.slot].send(batch)

    # Opening

    async def _open_writer(self, deadline: float) -> Connection:
        if self._is_replaced and self._file is not None:
            raise self._file.replaced()
        if self.database.memory is not None:
            return await self.database.memory.open()
        # SQLite keeps a closed connection's descriptor for as long as another of this process has the file locked
        # (POSIX drops all locks of a process with any descriptor): with the old pool closed first, none is left.
        await _abandoned_closed(self.database.path)
        file: FileIdentity

        def before() -> None:
            nonlocal file
            if self._file is None:
                create_private(self.database.path)
                warn_of_other_names(self.database.path)
                file = FileIdentity(self.database.path)
            else:
                file = self._file
                file.check()  # reopened after a fork: it must not become another file unnoticed

        def prepare(connection: Connection) -> None:
            if not file.is_at_its_path():
                raise file.replaced()  # SQLite may have opened the other one, whose WAL is not ours to remove
            refuse_foreign_wal(self.database.path, busy_timeout_s=0)  # SQLite has read nothing of it yet
            connection.file = file
            try:
                self.database.prepare_writer(connection)
            finally:
                file.remember_wal()

        connection = await self._open(prepare, before, deadline, [self.writes, self._writer.openings, self.reads])
        self._file = file
        return connection

    async def _open_reader(self, deadline: float) -> Connection:
        # The writer comes first: it creates the schema, and recovers the WAL after a crash.
        writer = await self._writer.connected(deadline)
        file = self._file
        if file is None:
            return writer  # a database in memory has one connection

        def prepare(connection: Connection) -> None:
            connection.file = file
            prepare_reader(connection)

        # Where there is no file, SQLite would make one; where there is another, it would not be this pool's.
        return await self._open(prepare, file.check, deadline, [self.reads])

    async def _open(
        self,
        prepare: Callable[[Connection], None],
        before: Callable[[], None],
        deadline: float,
        waiting: Sequence[Batcher[Any]],
    ) -> Connection:
        """Open a connection; while that waits for a lock, the jobs of these batchers fail at their deadlines."""

        def on_wait(met: Exception | None) -> None:
            for batcher in waiting:
                if met is None:
                    batcher.unblock(self)
                else:
                    batcher.block(self, met)

        while True:
            try:
                return await Connection.open(self.database.path, prepare, before, deadline=deadline, on_wait=on_wait)
            except ConnectionLost:
                pass  # a fork came between connecting and preparing

    # Running, in a connection's thread

    def _run_writes(self, connection: Connection, origin: Origin, batch: Batch[Write]) -> None:
        self.check_file()
        # Looked at again after the commit: the file can be deleted at any time before it.
        run_writes(connection, origin, batch, self.database.name, confirm=self.check_file)

    def _run_reads(self, connection: Connection, origin: Origin, batch: Batch[Read]) -> None:
        self.check_file()
        run_reads(connection, origin, batch, self.database.name)

    def check_file(self) -> None:
        """Check that the file and its WAL are those that were opened, if any were.

        Raises:
            StorageError: one of them was deleted, moved or replaced, or the file was emptied.
        """
        if self._file is not None:
            self._file.check()
            # After a fork a reader may be opened before the writer, and with it another WAL.
            writer = self._writer.connection
            if writer is not None and writer.is_open:
                self._file.check_wal()


_pools: Pools[Pool] = Pools()
_abandoned: dict[threading.Thread, str] = {}
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


async def let_go_of_closed_loops(path: str) -> None:
    """Close the connections to a file that pools of closed event loops have open, and wait until they are closed."""
    _pools.abandon_closed_loops()
    await _abandoned_closed(path)


async def _abandoned_closed(path: str) -> None:
    """Wait until the connections to a file that were abandoned are closed."""
    while _awaits_abandoned(path):  # noqa: ASYNC110  a thread that waits for a thread would be one more to end
        await asyncio.sleep(0.001)


def _awaits_abandoned(path: str) -> bool:
    for thread in list(_abandoned):  # at once, as other threads add theirs
        if not thread.is_alive() and thread.ident is not None:
            _abandoned.pop(thread, None)
    return path in list(_abandoned.values())


def _forget_in_child() -> None:
    _abandoned.clear()


around_fork(before=lambda: None, in_parent=lambda: None, in_child=_forget_in_child)
