"""The connections of one event loop to one database, and the batches of reads and writes that run on them.

Rules kept here:

- The writes that wait go together, in groups; so do the reads of newest rows. Larger reads go one by one.
- A batch that has begun finishes, whatever is cancelled meanwhile.
- Connections are opened when they are first needed. They are closed with the last user of the pool, with the event
  loop, or at the end of the program, whichever comes first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from types import AsyncGeneratorType
from typing import Any, TypeVar, cast

from ...cancellation import UncancellableTask, despite_cancellation
from ...lifecycle import when_program_ends
from .. import deadlines
from ..batching import Batch, Batcher, Job, Queue, QueueCounts, first_and_last_deadline, give_errors
from ..groups import Groups
from ..pools import Leases, LoopPool, Pools
from .connection import BoundedConnection, in_own_task
from .database import Database
from .errors import LOCK_NOT_AVAILABLE, GaveUp, sqlstate_of
from .held import HeldSessions, held_sessions
from .lane import ATTEMPT_S, Lane, Work, connector_for
from .reads import Feeder, Query, ReadNewest, read_newest
from .schema import Schema
from .statements import Statements
from .writes import Write, Writer, kind_of, size_bytes

T = TypeVar("T")
W = TypeVar("W")

WRITERS = 3
"""The largest number of connections that write: two, so that one can wait for a flush or a short lock, and a third that
is opened where other connections hold sessions for longer."""

READERS = 3
"""The largest number of connections that read: one for the newest rows of any number of sessions, the others for larger
reads."""

MAX_WRITES = 512
"""The largest number of writes in a batch; bounds how long the first of them waits for the last."""

MAX_READS = 64
"""The largest number of reads of newest rows in a batch."""

MAX_GROUP_BYTES = 8 * 1024 * 1024
"""The largest number of bytes of rows in one statement of several appends: sending them blocks the event loop."""


@dataclass(frozen=True)
class PoolCounts:
    """What a pool holds at one moment.

    Attributes:
        writers, readers: connections that are open.
        writes, newest, queries: what waits and what is under way.
        held_sessions: sessions that other connections hold.
        held_writes: writes that wait for them; they are counted as under way, too.
    """

    writers: int
    readers: int
    writes: QueueCounts
    newest: QueueCounts
    queries: QueueCounts
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
        self.feeder = Feeder(self.schema, self.statements, READERS)
        self.writes: Batcher[Write] = Batcher(
            self._send_writes,
            Queue(slots=WRITERS - 1, max_batch_size=MAX_WRITES, key=lambda write: write.session_id),
        )
        self.newest: Batcher[ReadNewest] = Batcher(self._send_newest, Queue(slots=1, max_batch_size=MAX_READS))
        self.queries: Batcher[Query] = Batcher(self._send_query, Queue(slots=READERS - 1, max_batch_size=1))
        self._database = database
        self._connector = connector_for(database)
        self._writers = [
            Writer(self._new_lane(self.writes), self.schema, self.statements, self.feeder) for _ in range(WRITERS)
        ]
        self._readers = [self._new_lane(self.newest), *(self._new_lane(self.queries) for _ in range(READERS - 1))]
        self._held = HeldSessions(self._writers[-1], self.writes, loop, self._start)
        self._opening = asyncio.Lock()
        self._is_open = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_shutdown: AsyncGeneratorType[None, None] | None = None

    def __repr__(self) -> str:
        counts = self.counts()
        queues = (counts.writes, counts.newest, counts.queries)
        return (
            f"<Pool on {self._database.name}: {counts.writers} of {WRITERS} writers and {counts.readers} of {READERS} "
            f"readers connected, {sum(queue.waiting for queue in queues)} calls waiting, "
            f"{sum(queue.under_way for queue in queues)} under way, {counts.held_writes} of them for "
            f"{counts.held_sessions} held sessions>"
        )

    def counts(self) -> PoolCounts:
        """What the pool holds now; no I/O."""
        return PoolCounts(
            writers=sum(writer.lane.is_connected for writer in self._writers),
            readers=sum(lane.is_connected for lane in self._readers),
            writes=self.writes.counts(),
            newest=self.newest.counts(),
            queries=self.queries.counts(),
            held_sessions=self._held.session_count,
            held_writes=self._held.write_count,
        )

    async def open(self, deadline: float) -> None:
        """Connect, and have the schema created or upgraded, unless that was done."""
        if not self._is_open:
            job = await self.newest.submit(ReadNewest("", 0), deadline)
            if job.error is not None:
                raise job.error

    async def on_own_connection(self, work: Work[T], deadline: float) -> T:
        """Do `work` on a connection beside the pool's, for which no tables are created or upgraded.

        Where the caller is cancelled, the work is, too.
        """
        lane = Lane(self._connector, self.loop)

        async def run() -> T:
            try:
                return await lane.run(work, deadline)
            finally:
                await lane.close()

        return await in_own_task(run(), is_cancelled_with_caller=True)

    # Opening and closing

    def _new_lane(self, batcher: Batcher[Any]) -> Lane:
        """A lane for the batches of a batcher."""

        def on_wait(error: Exception | None) -> None:
            if error is None:
                batcher.unblock(lane)
            else:
                batcher.block(lane, error)

        lane = Lane(self._connector, self.loop, self._prepare, self.schema.explain, on_wait)
        return lane

    async def _prepare(self, connection: BoundedConnection) -> None:
        """Have the schema created or upgraded, unless that was done."""
        if self._at_shutdown is None and self._connector.are_kept:
            self._at_shutdown = cast("AsyncGeneratorType[None, None]", self._close_at_shutdown())
            await self._at_shutdown.__anext__()
        if not self._is_open:
            await in_own_task(self._begin_opening(max(ATTEMPT_S, connection.wait_s)))
            try:
                await self.schema.create_or_upgrade(connection)
                self._is_open = True
            finally:
                self._opening.release()

    async def _begin_opening(self, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            await self._opening.acquire()

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
        await self._forget_writers()
        # All at once: a server that does not answer must not hold up the end once for each of them.
        await asyncio.gather(*(lane.close() for lane in self._lanes()))

    async def _forget_writers(self) -> None:
        """Remove the numbers of this pool's writers: nothing of theirs is under way that would be sent again."""
        stored = {writer.stored_id: writer for writer in self._writers}
        ids = [one for one in stored if one is not None]
        for one in ids:
            if await stored[one].forget(ids):
                return

    def abandon(self) -> None:
        for lane in self._lanes():
            lane.abandon()

    def _lanes(self) -> list[Lane]:
        return [*(writer.lane for writer in self._writers), *self._readers]

    # Batches

    def _send_writes(self, batch: Batch[Write]) -> None:
        self.writes.claim(batch)
        self._start(self._carry_out(self.writes, batch, self._write(self._writers[batch.slot], batch)))

    def _send_newest(self, batch: Batch[ReadNewest]) -> None:
        self.newest.claim(batch)
        self._start(self._carry_out(self.newest, batch, self._read_newest(self._readers[0], batch)))

    def _send_query(self, batch: Batch[Query]) -> None:
        self.queries.claim(batch)
        self._start(self._carry_out(self.queries, batch, self._query(self._readers[1 + batch.slot], batch)))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = UncancellableTask(work, loop=self.loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, batcher: Batcher[W], batch: Batch[W], work: Awaitable[None]) -> None:
        try:
            await work
        except BaseException as error:
            batcher.fail(batch, error)
            if not isinstance(error, Exception):
                raise
        else:
            batcher.finish(batch)

    async def _write(self, writer: Writer, batch: Batch[Write]) -> None:
        groups = Groups(batch.jobs, kind_of, size_of=size_bytes, max_size=MAX_GROUP_BYTES)
        for group in groups:
            self._held.set_aside([job for job in group if job.work.session_id in self._held])
            ready = [job for job in group if job.work.session_id not in self._held]
            if not ready:
                continue
            deadline, settle_by = first_and_last_deadline(ready)
            try:
                fail_late = partial(self._fail_late_in_doubt, ready)
                results = await writer.write([job.work for job in ready], deadline, settle_by, fail_late)
            except GaveUp as error:
                self._give_up(groups, ready, error)
            except Exception as error:
                is_held = sqlstate_of(error) == LOCK_NOT_AVAILABLE
                held = await held_sessions(writer, ready, deadline) if is_held else set[str]()
                if held:
                    self._held.set_aside([job for job in ready if job.work.session_id in held], error)
                    groups.again([job for job in ready if job.work.session_id not in held])
                elif groups.failed(ready, error):
                    self.writes.settle(ready)
            else:
                groups.succeeded(ready, results)
                self.writes.settle([job for job in ready if not job.is_settled])

    def _fail_late_in_doubt(self, group: Sequence[Job[Write]], error: GaveUp) -> None:
        """Let those fail that may wait no longer, while the others' attempts find out what became of the group."""
        now = deadlines.now()
        late = [job for job in group if job.deadline <= now and not job.is_settled]
        give_errors(late, error)
        self.writes.settle(late)

    def _give_up(self, groups: Groups[Write], group: list[Job[Write]], error: GaveUp) -> None:
        """Let those fail that may wait no longer; all, where waiting is in vain."""
        not_sent = GaveUp(error.error, in_doubt=False)
        if error.in_doubt:
            left = [job for job in group if not job.is_settled]
            give_errors(left, error)
            failed = [*left, *groups.fail_late([], not_sent, deadlines.now())]
        else:
            failed = groups.fail_late(group, not_sent, deadlines.now()) or groups.fail_late([], not_sent, math.inf)
        self.writes.settle(failed)

    async def _read_newest(self, lane: Lane, batch: Batch[ReadNewest]) -> None:
        jobs = batch.jobs
        while jobs:
            deadline, _ = first_and_last_deadline(jobs)
            try:
                wanted = [job.work for job in jobs]
                results = await read_newest(lane, self.schema, self.statements, wanted, deadline)
            except GaveUp as error:
                now = deadlines.now()
                late = [job for job in jobs if job.deadline <= now] or jobs
                give_errors(late, error)
            else:
                late = jobs
                for job, result in zip(jobs, results, strict=True):
                    job.result = result
            self.newest.settle(late)
            jobs = [job for job in jobs if not job.is_settled]

    async def _query(self, lane: Lane, batch: Batch[Query]) -> None:
        (job,) = batch.jobs
        job.result = await lane.run(job.work.run, job.deadline)
        self.queries.settle(batch.jobs)


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
