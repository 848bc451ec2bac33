"""The connections of one event loop to one database, and the batches that they serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import AsyncGeneratorType
from typing import Any, TypeVar, cast
from zlib import crc32

import asyncpg
from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from ...cancellation import UncancellableTask, despite_cancellation
from ...errors import SchemaVersionError, StorageError
from ...lifecycle import when_program_ends
from ..base import Reading
from ..batching import Batcher, Done, Groups, Job
from ..pools import LoopPool, Pools
from .connection import Bounded, Database
from .errors import LOCKED, FromReading, Lost, sqlstate
from .lane import Lane
from .schema import SCHEMA_VERSION, STEPS, VERSION
from .statements import (
    APPEND,
    BELOW,
    CLAIM,
    CLEAR,
    CUT,
    FORGET_WRITERS,
    HELD,
    LAST_POSITION,
    LOCK,
    NEWEST_JOINED,
    Append,
    append_values,
    array,
    milliseconds,
)

T = TypeVar("T")

WRITERS = 3
"""Connections that write, at most: two, so that one can wait for a flush or a short lock, and one that is opened where
sessions are held by others for longer."""

READERS = 3
"""Connections that read, at most: one for the newest rows of any number of sessions, the others for what is longer."""

MOST_WRITES = 512
"""Largest group of writes; bounds how long the first of a group waits for the last."""

MOST_READS = 64
"""Largest batch of reads, likewise."""

GROUP_BYTES = 8 * 1024 * 1024
"""Most bytes of rows in one statement of many appends: sending them takes the event loop some ms."""


SLICE_BYTES = 256 * 1024
"""How many bytes of rows end a slice of them, so that long ones take no more memory than they must."""

JOINED_BYTES = 1024 * 1024
"""Most bytes of newest rows that come joined; what is longer comes in slices."""


LOCK_S = 0.2
"""How long a group waits for a lock of another connection's, in seconds, before those that need no wait go without the
others."""

POLL_S = 0.02
"""How often it is looked whether a session that another connection holds is free, in seconds."""


SILENT_S = 5.0
"""How long the server waits for the next statement of a transaction that holds a session, in seconds, before it ends
the connection: else a process that was stopped in a pop would hold the session for as long."""


@dataclass(frozen=True, slots=True)
class Pop:
    """Remove the newest rows, as many as a reading takes."""

    session_id: str
    reading: Reading[Any]


@dataclass(frozen=True, slots=True)
class Clear:
    """Remove a session."""

    session_id: str


Write = Append | Pop | Clear


@dataclass(frozen=True, slots=True)
class HeldWrite:
    """A write that waits for a session that another connection holds."""

    job: Job[Write]
    deadline: float
    error: Exception


@dataclass(frozen=True, slots=True)
class Newest:
    """Read the newest rows, joined."""

    session_id: str
    most: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Read by any statements."""

    session_id: str | None
    work: Callable[[Bounded], Awaitable[object]]


class Pool(LoopPool):
    """The connections of one event loop to one database."""

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(database.key, loop)
        self.database = database
        self.has_connected = False
        self.writes: Batcher[Write] = Batcher(
            self._serve_writes, lanes=WRITERS - 1, most=MOST_WRITES, key=lambda write: write.session_id
        )
        self.newest: Batcher[Newest] = Batcher(self._serve_newest, lanes=1, most=MOST_READS)
        self.asks: Batcher[Ask] = Batcher(self._serve_ask, lanes=READERS - 1, most=1)
        self.threads = CapacityLimiter(READERS)
        *self._write_lanes, self._lock_lane = self._writers = [Lane(self) for _ in range(WRITERS)]
        self._newest_lane, *self._ask_lanes = self._readers = [Lane(self) for _ in range(READERS)]
        self._held: dict[str, list[HeldWrite]] = {}
        self._opening = asyncio.Lock()
        self._is_open = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: AsyncGeneratorType[None, None] | None = None
        sql = database.sql
        self._append_sql, self._claim_sql, self._newest_sql = sql(APPEND), sql(CLAIM), sql(NEWEST_JOINED)

    async def open(self) -> None:
        """Connect, and have the schema created or upgraded, unless that was done."""
        if not self._is_open:
            job = await self.newest.submit(Newest("", 0))
            if job.error is not None:
                raise job.error

    async def close(self) -> None:
        await despite_cancellation(self._close())

    async def close_with_loop(self) -> None:
        """From now on, have the connections closed when the event loop shuts down, as ``asyncio.run()`` does last."""
        if self._closing is None:
            self._closing = cast("AsyncGeneratorType[None, None]", self._close_at_shutdown())
            await self._closing.__anext__()

    async def _close_at_shutdown(self) -> AsyncGenerator[None, None]:
        # asyncio's one hook for that: loop.shutdown_asyncgens() finishes what was begun on the loop. Else each loop of
        # a program that closes nothing would leave its connections to the server until Python collects them.
        try:
            yield
        finally:
            if not self.is_inherited():
                await self._close_lanes()

    def abandon(self) -> None:
        for lane in (*self._writers, *self._readers):
            lane.abandon()

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run what decodes rows off the event loop."""
        return await run_sync(function, limiter=self.threads)

    async def _close(self) -> None:
        await self._close_lanes()
        if self._closing is not None and not self._closing.ag_running:  # the event loop's shutdown may run it now
            await self._closing.aclose()

    async def _close_lanes(self) -> None:
        await self.writes.drain()
        await self.newest.drain()
        await self.asks.drain()
        # All at once: a server that does not answer must not hold up the end once for each of them.
        await asyncio.gather(*(lane.close() for lane in (*self._writers, *self._readers)))

    # The schema

    async def prepare(self, connection: Bounded) -> None:
        """Have the schema created or upgraded, unless that was done."""
        if not self._is_open:
            await self._create_or_upgrade(connection)

    async def _create_or_upgrade(self, connection: Bounded) -> None:
        async with self._opening:
            if await self.version(connection) < SCHEMA_VERSION:
                database = self.database
                async with connection.transaction("READ COMMITTED"):
                    await connection.execute(
                        "SELECT set_config('lock_timeout', $1, true)", milliseconds(self.database.busy_timeout_s)
                    )
                    await connection.execute("SELECT pg_advisory_xact_lock($1)", crc32(database.schema.encode()))
                    # Looked at again under the lock: another process may have done it meanwhile.
                    if not await connection.fetchval(
                        "SELECT true FROM pg_namespace WHERE nspname = $1", database.schema
                    ):
                        await connection.execute(f"CREATE SCHEMA {database.quoted_schema}")
                    for step in STEPS[await self.version(connection) :]:
                        await connection.execute(database.sql(step))
                    set_version = database.sql("UPDATE agentmem.agentmem_schema SET version = $1")
                    await connection.execute(set_version, SCHEMA_VERSION)
            self._is_open = True

    async def version(self, connection: Bounded) -> int:
        """The schema's version, 0 where there is none.

        Raises:
            SchemaVersionError: this agentmem does not know it.
            StorageError: the database cannot hold any text.
        """
        database = self.database
        exists, encoding = await connection.fetchrow(
            """
            SELECT EXISTS (
                SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                WHERE nspname = $1 AND relname = 'agentmem_schema'
            ), current_setting('server_encoding')
            """,
            database.schema,
        )
        if encoding != "UTF8":
            raise StorageError(f"{database.name} is in {encoding}; items need a database in UTF8")
        version: int = (await connection.fetchval(database.sql(VERSION)) or 0) if exists else 0
        if version > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"{database.name} has schema version {version}, this agentmem knows up to {SCHEMA_VERSION}; "
                "upgrade agentmem"
            )
        return version

    # Writes

    def _serve_writes(self, lane: int, jobs: list[Job[Write]], done: Done) -> None:
        self._begin(self._write(self._write_lanes[lane], jobs), done)

    def _begin(self, serving: Any, done: Done) -> None:
        async def serve() -> None:
            try:
                await serving
            except BaseException as error:
                done(error)
                if not isinstance(error, Exception):
                    raise
            else:
                done(None)

        task = UncancellableTask(serve(), loop=self.loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, lane: Lane, jobs: list[Job[Write]]) -> None:
        deadline = self.loop.time() + self.database.busy_timeout_s
        groups = Groups(jobs, kind, size=size_bytes, most=GROUP_BYTES)
        for group in groups:
            ready = [job for job in group if job.work.session_id not in self._held]
            self._set_aside([job for job in group if job.work.session_id in self._held], deadline)
            if not ready:
                continue
            try:
                results = await self._together(lane, [job.work for job in ready])
            except Lost as error:
                for job in ready:
                    job.error = error
                # What is left would wait as long; nothing of it is in doubt.
                groups.failed_for_all([], Lost(error.error, in_doubt=False))
            except Exception as error:
                if sqlstate(error) != LOCKED:
                    groups.failed(ready, error)
                    continue
                held = await self._held_of(lane, ready)
                if held:
                    self._set_aside([job for job in ready if job.work.session_id in held], deadline, error)
                    groups.again([job for job in ready if job.work.session_id not in held])
                else:
                    groups.failed(ready, error)  # what is being made is not seen
            else:
                groups.succeeded(ready, results)

    def _set_aside(self, jobs: Sequence[Job[Write]], deadline: float, error: Exception | None = None) -> None:
        """Have these wait for their sessions, which other connections hold, without holding up others."""
        self.writes.detach(jobs)
        is_waiting = bool(self._held)
        for job in jobs:
            waiting = self._held.setdefault(job.work.session_id, [])
            waiting.append(HeldWrite(job, deadline, error or waiting[-1].error))
        if jobs and not is_waiting:
            self._begin(self._wait_for_locks(), lambda error: None)

    async def _wait_for_locks(self) -> None:
        """Write what was set aside, as soon as its session is free; at its deadline, let it fail."""
        while self._held:
            jobs = [waiting[0].job for waiting in self._held.values()]
            try:
                held = await self._held_ids(self._lock_lane, jobs)
                for job in jobs:
                    if job.work.session_id not in held:
                        await self._write_held(job.work.session_id)
            except Exception as error:
                self._fail_held(Lost(error.error, in_doubt=False) if isinstance(error, Lost) else error)
                return
            self._fail_late()
            if self._held:
                await asyncio.sleep(POLL_S)

    async def _write_held(self, session_id: str) -> None:
        """Write all that waits for a session, in order, as long as nobody else holds it."""
        while waiting := self._held.get(session_id):
            job = waiting[0].job
            try:
                (job.result,) = await self._together(self._lock_lane, [job.work])
            except Exception as error:
                if sqlstate(error) == LOCKED:
                    return
                job.error = error
                if isinstance(error, Lost):
                    self._drop_first(session_id)
                    raise
            self._drop_first(session_id)

    def _fail_late(self) -> None:
        now = self.loop.time()
        for session_id in list(self._held):
            while (waiting := self._held.get(session_id)) and waiting[0].deadline <= now:
                waiting[0].job.error = waiting[0].error
                self._drop_first(session_id)

    def _fail_held(self, error: Exception) -> None:
        for session_id in list(self._held):
            while waiting := self._held.get(session_id):
                waiting[0].job.error = error
                self._drop_first(session_id)

    def _drop_first(self, session_id: str) -> None:
        waiting = self._held[session_id]
        job = waiting.pop(0).job
        if not waiting:
            del self._held[session_id]
        self.writes.answer([job])

    async def _held_of(self, lane: Lane, group: Sequence[Job[Write]]) -> set[str]:
        """Which sessions kept a group from being written; none where that cannot be said."""
        if len(group) == 1:
            return {group[0].work.session_id}
        try:
            return await self._held_ids(lane, group)
        except Exception:  # then each is tried alone, and meets what is wrong
            return set()

    async def _held_ids(self, lane: Lane, jobs: Sequence[Job[Write]]) -> set[str]:
        ids = list({job.work.session_id for job in jobs})
        rows = await lane.run(lambda connection: connection.fetch(self.database.sql(HELD), ids))
        return {session_id for (session_id,) in rows}

    async def _together(self, lane: Lane, writes: Sequence[Write]) -> Sequence[object]:
        """Do these writes in one transaction, which waits `LOCK_S` for each lock at most."""
        if not lane.number:  # their transactions are long since settled
            await lane.run(lambda connection: connection.execute(self.database.sql(FORGET_WRITERS)))
        lane.number += 1
        lock_wait_s = min(LOCK_S, self.database.busy_timeout_s)
        claim = (milliseconds(lock_wait_s), milliseconds(SILENT_S), lane.writer, lane.number)
        if isinstance(pop := writes[0], Pop):
            return [await lane.run(lambda connection: self._pop(connection, lane, claim, pop))]
        if isinstance(writes[0], Clear):
            ids = [write.session_id for write in writes]
            await lane.run(lambda connection: self._clear(connection, lane, claim, ids))
        else:
            values = append_values(cast("Sequence[Append]", writes))
            await lane.run(lambda connection: self._append(connection, lane, claim, values))
        return [None] * len(writes)

    async def _append(self, connection: Bounded, lane: Lane, claim: Any, values: Any) -> None:
        lane.is_sent = True
        await connection.execute(self._append_sql, *claim, *values)

    async def _clear(self, connection: Bounded, lane: Lane, claim: Any, ids: Sequence[str]) -> None:
        async with self._claimed(connection, lane, claim) as is_mine:
            # Of those alone that were there to be locked: another connection may be making the others at this moment.
            if is_mine and (locked := await connection.fetch(self.database.sql(LOCK), ids)):
                await connection.execute(self.database.sql(CLEAR), [session_id for (session_id,) in locked])

    async def _pop(self, connection: Bounded, lane: Lane, claim: Any, pop: Pop) -> object:
        async with self._claimed(connection, lane, claim) as is_mine:
            if is_mine:
                pop.reading.restart()  # what an attempt before has read was not removed, and may be gone
            if is_mine and await connection.fetch(self.database.sql(LOCK), [pop.session_id]):
                await self.feed(connection, pop.session_id, pop.reading)
                if pop.reading.oldest is not None:
                    cut = self.database.sql(CUT)
                    await connection.execute(cut, pop.session_id, pop.reading.oldest)
        return pop.reading.result()  # what an attempt before has read, where that one was committed

    @asynccontextmanager
    async def _claimed(self, connection: Bounded, lane: Lane, claim: Any) -> Any:
        """A transaction that has its number; False where it was committed before."""
        async with connection.transaction("READ COMMITTED"):
            yield await connection.fetchval(self._claim_sql, *claim)
            lane.is_sent = True

    # Reads

    def _serve_newest(self, lane: int, jobs: list[Job[Newest]], done: Done) -> None:
        self._begin(self._read_newest(jobs), done)

    async def _read_newest(self, jobs: list[Job[Newest]]) -> None:
        ids, mosts = [job.work.session_id for job in jobs], array(job.work.most for job in jobs)
        try:
            rows = await self._newest_lane.run(
                lambda connection: connection.fetch(self._newest_sql, ids, mosts, JOINED_BYTES)
            )
        except (asyncpg.ProgramLimitExceededError, asyncpg.OutOfMemoryError):
            return  # too long to be joined: with no result, they are read in slices
        for job, (texts, count, oldest) in zip(jobs, rows, strict=True):
            if texts is not None or not count:
                job.result = (texts or b"", count, oldest or 0)

    def _serve_ask(self, lane: int, jobs: list[Job[Ask]], done: Done) -> None:
        async def ask() -> None:
            (job,) = jobs
            job.result = await self._ask_lanes[lane].run(job.work.work)

        self._begin(ask(), done)

    async def feed(self, connection: Bounded, session_id: str, reading: Reading[Any]) -> None:
        """Feed a session's rows to `reading` from the newest on, inside the caller's transaction."""
        reading.restart()
        wanted, below = reading.first, LAST_POSITION
        while wanted:
            rows = await connection.fetch(self.database.sql(BELOW), session_id, below, wanted, SLICE_BYTES)
            below = rows[-1][0] if rows else 0
            feed = partial(reading.feed, rows, at_start=below == 0)
            try:
                wanted = await self.in_thread(feed)
            except Exception as error:
                raise FromReading(error) from error


def size_bytes(write: Write) -> int:
    """How long the rows of a write are."""
    return sum(map(len, write.rows)) if isinstance(write, Append) else 0


def kind(write: Write) -> str | None:
    """Equal for writes that can share a transaction; None for one that cannot."""
    return None if isinstance(write, Pop) else type(write).__name__


pools: Pools[Pool] = Pools()


def _close_at_end() -> None:
    for pool in pools.all():
        if pool.loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(pool.close(), pool.loop)
            try:
                closing.result(timeout=1)  # seconds; a server that does not answer must not hold up the end
            except Exception:  # noqa: S110  the end closes it as well
                pass


when_program_ends(_close_at_end)
