"""The connections of one event loop to one database, and the batches of reads and writes that run on them.

Rules kept here:

- The writes that wait go together, in groups; so do the reads of newest rows. Larger reads go one by one.
- A batch that has begun finishes, whatever is cancelled meanwhile.
- Connections are opened when they are first needed. They are closed with the last user of the pool, with the event
  loop, or at the end of the program, whichever comes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from types import AsyncGeneratorType
from typing import Any, TypeVar, cast

from ...cancellation import UncancellableTask, despite_cancellation
from ...lifecycle import when_program_ends
from ..batching import Batcher, Done, Groups, Job
from ..pools import Leases, LoopPool, Pools
from .connection import BoundedConnection, in_own_task
from .database import Database
from .errors import LOCK_NOT_AVAILABLE, GaveUp, sqlstate_of
from .held import HeldSessions, held_sessions
from .lane import Lane, Work, connector_for
from .reads import Feeder, Query, ReadNewest, read_newest
from .schema import Schema
from .statements import Statements
from .writes import Write, Writer, group_key, size_bytes

T = TypeVar("T")

WRITERS = 3
"""Connections that write, at most: two, so that one can wait for a flush or a short lock, and one that is opened where
other connections hold sessions for longer."""

READERS = 3
"""Connections that read, at most: one for the newest rows of any number of sessions, the others for larger reads."""

MAX_WRITE_BATCH = 512
"""Largest batch of writes; bounds how long the first of a batch waits for the last."""

MAX_READ_BATCH = 64
"""Largest batch of reads, likewise."""

MAX_GROUP_BYTES = 8 * 1024 * 1024
"""Most bytes of rows in one statement of many appends: sending them takes the event loop some ms."""


@dataclass(frozen=True)
class PoolCounts:
    """What a pool holds at one moment.

    Attributes:
        writers, readers: connections that are open.
        running: batches and tasks that are under way.
        held_sessions: sessions of other connections' that writes wait for.
        held_writes: writes that wait for them.
    """

    writers: int
    readers: int
    running: int
    held_sessions: int
    held_writes: int


class Pool(LoopPool):
    """The connections of one event loop to one database.

    Attributes:
        writes, newest, queries: where calls are submitted: writes, reads of newest rows, and all other reads.
        statements, schema, feeder: of the database, for those who bring statements of their own.
    """

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(database.pool_key, loop)
        self.statements = Statements(database.schema)
        self.schema = Schema(database, self.statements)
        self.feeder = Feeder(self.statements, READERS)
        self.writes: Batcher[Write] = Batcher(
            self._begin_writes, lanes=WRITERS - 1, most=MAX_WRITE_BATCH, key=lambda write: write.session_id
        )
        self.newest: Batcher[ReadNewest] = Batcher(self._begin_newest, lanes=1, most=MAX_READ_BATCH)
        self.queries: Batcher[Query] = Batcher(self._begin_query, lanes=READERS - 1, most=1)
        self._database = database
        self._connector = connector_for(database)
        self._writers = [
            Writer(self._new_lane(), self.statements, self.feeder, database.busy_timeout_s) for _ in range(WRITERS)
        ]
        self._readers = [self._new_lane() for _ in range(READERS)]
        self._held = HeldSessions(self._writers[-1], self.writes, loop, self._begin)
        self._opening = asyncio.Lock()
        self._is_open = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_shutdown: AsyncGeneratorType[None, None] | None = None

    def __repr__(self) -> str:
        counts = self.counts()
        return (
            f"<Pool on {self._database.name}: {counts.writers} of {WRITERS} writers and {counts.readers} of {READERS} "
            f"readers connected, {counts.running} running, {counts.held_writes} writes wait for "
            f"{counts.held_sessions} held sessions>"
        )

    def counts(self) -> PoolCounts:
        """What the pool holds now; no I/O."""
        return PoolCounts(
            writers=sum(writer.lane.is_connected for writer in self._writers),
            readers=sum(lane.is_connected for lane in self._readers),
            running=len(self._tasks),
            held_sessions=self._held.session_count,
            held_writes=self._held.write_count,
        )

    async def open(self) -> None:
        """Connect, and have the schema created or upgraded, unless that was done."""
        if not self._is_open:
            job = await self.newest.submit(ReadNewest("", 0))
            if job.error is not None:
                raise job.error

    async def on_own_connection(self, work: Work[T]) -> T:
        """Do `work` on a connection beside the pool's, for which no tables are created or upgraded.

        Where the caller is cancelled, the work is, too.
        """
        lane = Lane(self._connector, self.loop)

        async def run() -> T:
            try:
                return await lane.run(work)
            finally:
                await lane.close()

        return await in_own_task(run(), is_cancelled_with_caller=True)

    # Opening and closing

    def _new_lane(self) -> Lane:
        return Lane(self._connector, self.loop, self._prepare)

    async def _prepare(self, connection: BoundedConnection) -> None:
        """Have the schema created or upgraded, unless that was done."""
        if self._at_shutdown is None and self._connector.are_kept:
            self._at_shutdown = cast("AsyncGeneratorType[None, None]", self._close_at_shutdown())
            await self._at_shutdown.__anext__()
        if not self._is_open:
            async with self._opening:
                await self.schema.create_or_upgrade(connection)
                self._is_open = True

    async def _close_at_shutdown(self) -> AsyncGenerator[None, None]:
        # loop.shutdown_asyncgens(), as asyncio.run() calls it last, finishes every generator that was begun on the
        # loop. asyncio has no other hook for that. Without it, each event loop of a program that closes nothing would
        # leave its connections to the server until Python collects them.
        try:
            yield
        finally:
            if not self.is_inherited():
                await self._close_lanes()

    async def close(self) -> None:
        await despite_cancellation(self._close())

    async def _close(self) -> None:
        await self._close_lanes()
        if self._at_shutdown is not None and not self._at_shutdown.ag_running:  # the loop's shutdown may run it now
            await self._at_shutdown.aclose()

    async def _close_lanes(self) -> None:
        await self.writes.drain()
        await self.newest.drain()
        await self.queries.drain()
        # All at once: a server that does not answer must not hold up the end once for each of them.
        await asyncio.gather(*(lane.close() for lane in self._lanes()))

    def abandon(self) -> None:
        for lane in self._lanes():
            lane.abandon()

    def _lanes(self) -> list[Lane]:
        return [*(writer.lane for writer in self._writers), *self._readers]

    # Batches

    def _begin(self, work: Coroutine[Any, Any, None], done: Done = lambda error: None) -> None:
        """Run a batch in a task of its own; `done` is called at its end, with what failed all of it."""

        async def run() -> None:
            try:
                await work
            except BaseException as error:
                done(error)
                if not isinstance(error, Exception):
                    raise
            else:
                done(None)

        task = UncancellableTask(run(), loop=self.loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _begin_writes(self, lane: int, jobs: list[Job[Write]], done: Done) -> None:
        self._begin(self._write(self._writers[lane], jobs), done)

    def _begin_newest(self, lane: int, jobs: list[Job[ReadNewest]], done: Done) -> None:
        self._begin(self._read_newest(self._readers[0], jobs), done)

    def _begin_query(self, lane: int, jobs: list[Job[Query]], done: Done) -> None:
        self._begin(self._query(self._readers[1 + lane], jobs[0]), done)

    async def _write(self, writer: Writer, jobs: list[Job[Write]]) -> None:
        deadline = self.loop.time() + self._database.busy_timeout_s
        groups = Groups(jobs, group_key, size=size_bytes, most=MAX_GROUP_BYTES)
        for group in groups:
            self._held.set_aside([job for job in group if job.work.session_id in self._held], deadline)
            ready = [job for job in group if job.work.session_id not in self._held]
            if ready:
                await self._write_group(writer, groups, ready, deadline)

    async def _write_group(
        self, writer: Writer, groups: Groups[Write], group: list[Job[Write]], deadline: float
    ) -> None:
        try:
            groups.succeeded(group, await writer.write([job.work for job in group]))
        except GaveUp as error:
            for job in group:
                job.error = error
            # The other groups would wait as long in vain. Nothing of them was sent, so they are not in doubt.
            groups.failed_for_all([], GaveUp(error.error, in_doubt=False))
        except Exception as error:
            held: set[str] = set()
            if sqlstate_of(error) == LOCK_NOT_AVAILABLE:
                held = await held_sessions(writer, group)
            if held:
                self._held.set_aside([job for job in group if job.work.session_id in held], deadline, error)
                groups.again([job for job in group if job.work.session_id not in held])
            else:  # a session that another connection is just creating is not seen as held
                groups.failed(group, error)

    async def _read_newest(self, lane: Lane, jobs: list[Job[ReadNewest]]) -> None:
        results = await read_newest(lane, self.statements, [job.work for job in jobs])
        for job, result in zip(jobs, results, strict=True):
            job.result = result

    async def _query(self, lane: Lane, job: Job[Query]) -> None:
        job.result = await lane.run(job.work.run)


pools: Pools[Pool] = Pools()
"""All pools of this process."""


def leases(database: Database) -> Leases[Pool]:
    """The pools that one engine on this database uses."""
    return Leases(pools, lambda: pools.lease(database.pool_key, lambda loop: Pool(database, loop)))


def _close_at_end() -> None:
    for pool in pools.all():
        if pool.loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(pool.close(), pool.loop)
            try:
                closing.result(timeout=1)  # seconds; a server that does not answer must not hold up the end
            except Exception:  # noqa: S110  the end of the process closes its connections
                pass


when_program_ends(_close_at_end)
