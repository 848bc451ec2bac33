"""Sessions in PostgreSQL, or in a database that speaks its protocol, through asyncpg.

Rules kept here:

- What waits goes together, as in SQLite: a group of appends to any number of sessions is one statement and so one
  transaction and one round trip; a batch of reads of newest rows is one statement, too.
- Positions come from the session's row, which the append updates first: its lock is the session's turn. Every group
  takes these locks in the order of session ids, so no two wait for each other.
- Each connection that writes numbers its transactions, and each of these begins by storing its number
  (``agentmem_writers``). Where a connection is lost before the answer came, the same is sent again on a new one, with
  the same number: it waits for the first attempt, if that is still under way, and does nothing if that was committed.
- An item is stored as the text that it came as: ``jsonb`` would reorder keys and refuse ``\\u0000``.
- Every statement stands for itself or in an explicit transaction, and leaves nothing set on its connection, so that
  PgBouncer may give each transaction another one.
- Names and ids are bound as parameters; only the name of the schema, which cannot be, is quoted into the SQL.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import AsyncGeneratorType
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4
from weakref import WeakSet
from zlib import crc32

import asyncpg
from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from ...cancellation import UncancellableTask, despite_cancellation
from ...checking import Checking, CheckReport, Progress, Walk
from ...errors import (
    AgentMemError,
    SchemaVersionError,
    SessionClosedError,
    StorageBusyError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
)
from ...lifecycle import around_fork, when_program_ends
from ..base import Engine, Reading, check_busy_timeout
from ..batching import Batcher, Done, Groups, Job
from ..pools import Leases, LoopPool, Pools, close_unused

T = TypeVar("T")

Connection = Any
"""An ``asyncpg.Connection``; asyncpg has no type annotations."""

SCHEMA_VERSION = 1

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

MOST_BYTES = 900_000_000
"""Most bytes in one append: PostgreSQL takes no message of 1 GB (``MaxAllocSize``), and ends the connection."""

SHORT_BYTES = 128 * 1024
"""Most bytes of rows that are decoded on the event loop: a fraction of a millisecond's work."""

SLICE_BYTES = 256 * 1024
"""How many bytes of rows end a slice of them, so that long ones take no more memory than they must."""

JOINED_BYTES = 1024 * 1024
"""Most bytes of newest rows that come joined; what is longer comes in slices."""

PAGE_ROWS = 2048
"""Rows that a check reads at a time."""

LOCK_S = 0.2
"""How long a group waits for a lock of another connection's, in seconds, before those that need no wait go without the
others."""

POLL_S = 0.02
"""How often it is looked whether a session that another connection holds is free, in seconds."""

ANSWER_S = 30.0
"""How long a statement may take beyond ``busy_timeout_s`` before its connection is taken for lost, in seconds: a server
or a network that died without a word gives no other sign. Locks on whole tables are waited for as long, too."""

SILENT_S = 5.0
"""How long the server waits for the next statement of a transaction that holds a session, in seconds, before it ends
the connection: else a process that was stopped in a pop would hold the session for as long."""

IDLE_S = 300.0
"""How long a connection may be idle before another is opened instead, in seconds: firewalls and load balancers drop
those that say nothing, mostly after 350 or more, without a word."""

PAUSES_S = (0.01, 0.25)
"""How long to wait before connecting again, in seconds: at first, doubled each time, and at most."""

_STEPS = (
    # To version 1. The collation makes ids equal where their bytes are, and orders them by these.
    """
    CREATE TABLE agentmem.agentmem_sessions (
        session_id text COLLATE "C" PRIMARY KEY,
        next_position bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE agentmem.agentmem_items (
        session_id text COLLATE "C" NOT NULL,
        position bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        item text NOT NULL,  -- JSON
        PRIMARY KEY (session_id, position)
    );
    CREATE TABLE agentmem.agentmem_writers (
        writer uuid PRIMARY KEY,
        number bigint NOT NULL,  -- of its newest transaction
        updated_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE agentmem.agentmem_schema (version int NOT NULL);
    INSERT INTO agentmem.agentmem_schema VALUES (0);
    """,
)
"""What brings the schema from each version to the next one."""

_VERSION = "SELECT version FROM agentmem.agentmem_schema"

# Where the server is set up not to flush commits, agentmem's are flushed nevertheless. Any other value is stronger.
_SETTINGS = """
    set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $2, true),
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
"""

_CLAIM = f"""
    INSERT INTO agentmem.agentmem_writers AS w (writer, number)
    SELECT $3, $4 FROM (SELECT {_SETTINGS}) AS settings
    ON CONFLICT (writer) DO UPDATE SET number = excluded.number, updated_at = now() WHERE w.number < excluded.number
    RETURNING true
"""  # noqa: S608  made of the constants above
"""Take a transaction's number: no row, where it was committed before."""

_APPEND = f"""
    WITH claimed AS ({_CLAIM}),
    ends AS (
        INSERT INTO agentmem.agentmem_sessions AS s (session_id, next_position)
        SELECT session_id, size FROM claimed, unnest($5::text[], $6::text::bigint[]) AS asked (session_id, size)
        ORDER BY session_id COLLATE "C"
        ON CONFLICT (session_id)
            DO UPDATE SET next_position = s.next_position + excluded.next_position, updated_at = now()
        RETURNING s.session_id, s.next_position
    )
    INSERT INTO agentmem.agentmem_items (session_id, position, item)
    SELECT session_id, next_position - before_end, item
    FROM ends
        JOIN unnest($7::text[], $8::text::bigint[], $9::text[]) AS row (session_id, before_end, item) USING (session_id)
"""  # noqa: S608  likewise

_FORGET_WRITERS = """
    DELETE FROM agentmem.agentmem_writers WHERE writer IN (
        SELECT writer FROM agentmem.agentmem_writers WHERE updated_at < now() - interval '7 days' FOR UPDATE SKIP LOCKED
    )
"""

_LOCK = """
    SELECT session_id FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[]) ORDER BY session_id FOR UPDATE
"""

_HELD = """
    WITH free AS (
        SELECT session_id FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[]) FOR UPDATE SKIP LOCKED
    )
    SELECT session_id FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[])
    EXCEPT SELECT session_id FROM free
"""
"""Which of these sessions other connections hold. One that is just being made is not seen."""

_CUT = """
    WITH removed AS (DELETE FROM agentmem.agentmem_items WHERE session_id = $1 AND position >= $2)
    UPDATE agentmem.agentmem_sessions SET next_position = $2, updated_at = now() WHERE session_id = $1
"""

_CLEAR = """
    WITH removed AS (DELETE FROM agentmem.agentmem_items WHERE session_id = ANY($1::text[]))
    DELETE FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[])
"""

# One row for each reading, because each costs the event loop as much as decoding it.
_NEWEST_JOINED = """
    SELECT CASE WHEN size <= $3 THEN convert_to(texts, 'UTF8') END, count, oldest
    FROM unnest($1::text[], $2::text::bigint[]) WITH ORDINALITY AS asked (id, most, place),
        LATERAL (
            SELECT
                string_agg(item, ',' ORDER BY position DESC) AS texts, sum(octet_length(item)) AS size,
                count(*) AS count, min(position) AS oldest
            FROM (
                SELECT position, item FROM agentmem.agentmem_items WHERE session_id = id
                ORDER BY position DESC LIMIT most
            ) AS newest
        ) AS joined
    ORDER BY place
"""

# Each slice ends with the row that makes it long.
_BELOW = """
    SELECT position, convert_to(item, 'UTF8')
    FROM (
        SELECT position, item, sum(octet_length(item)) OVER (ORDER BY position DESC) - octet_length(item) AS before
        FROM (
            SELECT position, item FROM agentmem.agentmem_items WHERE session_id = $1 AND position < $2
            ORDER BY position DESC LIMIT $3
        ) AS slice
    ) AS measured
    WHERE before < $4 ORDER BY position DESC
"""

_FROM = """
    SELECT position, convert_to(item, 'UTF8')
    FROM (
        SELECT position, item, sum(octet_length(item)) OVER (ORDER BY position) - octet_length(item) AS before
        FROM (
            SELECT position, item FROM agentmem.agentmem_items WHERE session_id = $1 AND position >= $2
            ORDER BY position LIMIT $3
        ) AS slice
    ) AS measured
    WHERE before < $4 ORDER BY position
"""

_SESSIONS = """
    SELECT session_id, next_position FROM agentmem.agentmem_sessions WHERE session_id > $1 ORDER BY session_id LIMIT $2
"""

_PAGE_OF_SESSIONS = """
    SELECT session_id, next_position FROM agentmem.agentmem_sessions
    WHERE session_id > $1 AND ($2::text IS NULL OR session_id <= $2) ORDER BY session_id
"""

_PAGE_OF_ITEMS = """
    SELECT session_id, position, convert_to(item, 'UTF8')
    FROM (
        SELECT
            session_id, position, item,
            sum(octet_length(item)) OVER (ORDER BY session_id, position) - octet_length(item) AS before
        FROM (
            SELECT session_id, position, item FROM agentmem.agentmem_items WHERE (session_id, position) > ($1, $2)
            ORDER BY session_id, position LIMIT $3
        ) AS slice
    ) AS measured
    WHERE before < $4 ORDER BY session_id, position
"""

_LAST_POSITION = 2**63 - 1


class _Meaning(NamedTuple):
    error: type[StorageError]
    advice: str


_DEFECT = _Meaning(StorageError, "a defect in agentmem; please report it")
_TRY_AGAIN = _Meaning(StorageBusyError, "nothing was written; try again")
_GONE = _Meaning(StorageBusyError, "the server does not serve now; try again, or raise busy_timeout_s")
_TABLES = _Meaning(StorageCorruptError, "its tables are not as agentmem made them; restore a backup")

ERRORS = {
    "01": _Meaning(StorageError, "a trigger of another program's refused it"),
    "02": _Meaning(StorageError, "a trigger of another program's refused it"),
    "03": _DEFECT,
    "08": _GONE,
    "09": _Meaning(StorageError, "a trigger of another program's refused it"),
    "0A": _Meaning(StorageError, "the server lacks what agentmem uses; PostgreSQL 12 and later have it"),
    "0B": _DEFECT,
    "0F": _DEFECT,
    "0L": _DEFECT,
    "0P": _Meaning(StorageError, "check the role that the URL names"),
    "0Z": _DEFECT,
    "10": _DEFECT,
    "20": _DEFECT,
    "21": _DEFECT,
    "22": _Meaning(StorageError, "nothing was written; the database must be in UTF8 to hold any text"),
    "22023": _Meaning(StorageError, "check the options in the URL"),
    "23": _TABLES,
    "23505": _Meaning(StorageCorruptError, "positions and rows do not fit together; restore a backup"),
    "24": _DEFECT,
    "25": _DEFECT,
    "25006": _Meaning(
        StorageError, "the server only reads: it is a replica, or was made read-only; nothing was written"
    ),
    "25P03": _GONE,
    "25P04": _GONE,
    "26": _Meaning(StorageError, "behind PgBouncer, statement_cache_size=0 is needed; nothing was written"),
    "27": _TABLES,
    "28": _Meaning(StorageError, "check the URL's user and password, and the server's pg_hba.conf"),
    "2B": _DEFECT,
    "2D": _DEFECT,
    "2F": _DEFECT,
    "34": _DEFECT,
    "38": _DEFECT,
    "39": _DEFECT,
    "3B": _DEFECT,
    "3D": _Meaning(StorageError, "check the URL's database; agentmem makes none"),
    "3F": _Meaning(StorageError, "its schema is gone; restore a backup, or close all handles to begin anew"),
    "40": _TRY_AGAIN,
    "42": _Meaning(
        StorageError, "its tables are not as agentmem made them; restore a backup, or choose another schema"
    ),
    "42501": _Meaning(
        StorageError,
        "the role needs CREATE on the database to make the schema; in one that there is USAGE, and CREATE to make the "
        "tables; in these SELECT, INSERT, UPDATE and DELETE",
    ),
    "42704": _Meaning(StorageError, "check the options in the URL"),
    "42939": _Meaning(StorageError, "choose another schema"),
    "42P01": _Meaning(StorageError, "its tables are gone; restore a backup, or close all handles to begin anew"),
    "42P05": _Meaning(StorageError, "behind PgBouncer, statement_cache_size=0 is needed; nothing was written"),
    "44": _TABLES,
    "53": _Meaning(StorageError, "the server is short of it; nothing was written, try again"),
    "53100": _Meaning(StorageFullError, "nothing was written; make room on the server and try again"),
    "53300": _Meaning(StorageBusyError, "raise the server's max_connections, or put PgBouncer in between; try again"),
    "54": _Meaning(StorageError, "PostgreSQL stores up to 1 GB in a value; split the item"),
    "55": _Meaning(StorageError, "nothing was written; try again"),
    "55P03": _Meaning(
        StorageBusyError, "another connection holds the session; nothing was written, try again or raise busy_timeout_s"
    ),
    "57": _GONE,
    "57014": _Meaning(
        StorageBusyError, "somebody cancelled it, or statement_timeout is too short; nothing was written"
    ),
    "58": _Meaning(StorageError, "check the server's disk and its log"),
    "58P01": _Meaning(StorageCorruptError, "a file of the server's is missing; restore a backup"),
    "72": _TRY_AGAIN,
    "F0": _Meaning(StorageError, "check the server's configuration"),
    "HV": _DEFECT,
    "P0": _Meaning(StorageError, "a trigger of another program's refused it"),
    "XX": _Meaning(StorageError, "check the server's log"),
    "XX001": _Meaning(StorageCorruptError, "copy the server's data away as it is, then restore a backup"),
    "XX002": _Meaning(StorageCorruptError, "an index is damaged: REINDEX it, and check the server's disk"),
}
"""What PostgreSQL's errors mean to a caller: by SQLSTATE, or by its class, the first two characters
(postgresql.org/docs/current/errcodes-appendix.html). Classes 01 and 02 are no errors, but a trigger may say so."""

_PASSING = {"25006", "40003", "25P03", "25P04", "53300", "57P01", "57P02", "57P03", "57P05"}
"""SQLSTATEs after which another connection may do: the server ends, starts, is full, is no primary any more,
or does not know whether it has committed."""

_REPEATABLE = {"40001", "40P01"}
"""Those after which the same transaction may succeed at once; nothing of it was written."""

_READ_ONLY = "25006"
"""Of those that pass, the one that answers a write: nothing of it was done."""

_LOCKED = "55P03"

_ENDED = (OSError, asyncio.TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What a connection raises where it was lost before it is closed or given back."""

_NO_PRIMARY = asyncpg.exceptions.TargetServerAttributeNotMatched
"""What asyncpg raises where none of the URL's hosts is what its ``target_session_attrs`` asks for."""


@dataclass(frozen=True)
class Database:
    """What a pool connects to, and how.

    Args:
        name: as messages name it.
        key: equal for two databases that share a pool.
        dsn: for asyncpg; "" where `given` is there.
        given: a pool of the caller's, whose connections are used and which is never closed.
        schema: that holds the tables.
        busy_timeout_s: how long to wait for a lock, a connection, or a server that starts again.
        statement_cache_size: asyncpg's.
    """

    name: str
    key: Hashable = field(repr=False)
    dsn: str = field(repr=False)  # with its password
    given: Any
    schema: str
    busy_timeout_s: float
    statement_cache_size: int

    @property
    def quoted_schema(self) -> str:
        """The schema's name in SQL."""
        return '"' + self.schema.replace('"', '""') + '"'

    def sql(self, text: str) -> str:
        """`text` on this database's tables."""
        return text.replace("agentmem.", f"{self.quoted_schema}.")


@dataclass(frozen=True, slots=True)
class _Append:
    session_id: str
    rows: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Pop:
    session_id: str
    reading: Reading[Any]


@dataclass(frozen=True, slots=True)
class _Clear:
    session_id: str


_Write = _Append | _Pop | _Clear


@dataclass(frozen=True, slots=True)
class _Held:
    """A write that waits for a session that another connection holds."""

    job: Job[_Write]
    deadline: float
    error: Exception


@dataclass(frozen=True, slots=True)
class _Newest:
    """Read the newest rows, joined."""

    session_id: str
    most: int


@dataclass(frozen=True, slots=True)
class _Ask:
    """Read by any statements."""

    session_id: str | None
    work: Callable[[_Bounded], Awaitable[object]]


class _Lost(Exception):  # noqa: N818  becomes a StorageError
    """No connection could do it in time, or none can be made."""

    def __init__(self, error: BaseException, *, in_doubt: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.in_doubt = in_doubt


class _FromReading(Exception):  # noqa: N818  what it holds is raised instead
    """What a reading raised, which is no error of the server's, whatever it is."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Bounded:
    """A connection, each statement of which is answered within `limit_s` or ends in a TimeoutError.

    Transactions, too: asyncpg's own have no time limit but what the connection was made with.
    """

    def __init__(self, connection: Connection, limit_s: float) -> None:
        self._connection = connection
        self._limit_s = limit_s

    async def execute(self, sql: str, *values: object) -> None:
        await self._answered(self._connection.execute(sql, *values, timeout=self._limit_s))

    async def fetch(self, sql: str, *values: object) -> Sequence[Any]:
        rows: Sequence[Any] = await self._answered(self._connection.fetch(sql, *values, timeout=self._limit_s))
        return rows

    async def fetchrow(self, sql: str, *values: object) -> Any:
        return await self._answered(self._connection.fetchrow(sql, *values, timeout=self._limit_s))

    async def fetchval(self, sql: str, *values: object) -> Any:
        return await self._answered(self._connection.fetchval(sql, *values, timeout=self._limit_s))

    async def _answered(self, asking: Awaitable[T]) -> T:
        try:
            return await asking
        except asyncpg.PostgresWarning as warning:
            # It lets nothing be set on it, so that no ``with`` could pass it on.
            error = asyncpg.PostgresError(str(warning))
            error.sqlstate = warning.sqlstate
            raise error from warning

    @asynccontextmanager
    async def transaction(self, mode: str) -> AsyncIterator[None]:
        try:
            await self.execute(f"BEGIN ISOLATION LEVEL {mode}")
            yield
            await self.execute("COMMIT")
        except TimeoutError:
            raise  # what does not answer would not answer this either
        except BaseException:
            with suppress(*_ENDED):  # where it fails the connection is lost, and the transaction with it
                await self.execute("ROLLBACK")
            raise


class _Lane:
    """One connection at a time, opened when it is needed, and who writes through it.

    Args:
        pool: whose lane it is.
        prepares: whether it has the schema created or upgraded first.
    """

    def __init__(self, pool: Pool, *, prepares: bool = True) -> None:
        self.writer = uuid4()
        self.number = 0  # of its newest transaction
        self.is_sent = False  # whether the end of a transaction was sent: from then on it may be committed
        self._pool = pool
        self._prepares = prepares
        self._connection: Connection = None
        self._used_at = 0.0
        self._turn = 0  # which of several hosts is asked first

    async def run(self, work: Callable[[_Bounded], Awaitable[T]]) -> T:
        """Do `work` on the connection; where that is lost, again on a new one, for as long as may be waited.

        Raises:
            _Lost: no connection could do it in time, or none can be made.
        """
        now, wait_s = self._pool.loop.time, self._pool.database.busy_timeout_s
        deadline, limit_s = now() + wait_s, wait_s + ANSWER_S
        has_failed = in_doubt = False
        pause_s, longest_pause_s = PAUSES_S
        while True:
            self.is_sent = is_connected = False
            try:
                connection = await self._connected(deadline - now(), limit_s)
                is_connected = True
                result = await work(connection)
            except Exception as error:
                is_lost = _is_lost(error, self._connection)
                in_doubt = in_doubt or (is_lost and self.is_sent and _sqlstate(error) != _READ_ONLY)
                await self._let_go(is_lost=is_lost)
                is_passing = is_lost or in_doubt or _sqlstate(error) in _REPEATABLE
                if is_connected and not is_passing:
                    raise
                if is_connected and not has_failed:
                    has_failed, deadline = True, now() + wait_s
                if now() >= deadline or not is_passing or self._is_nowhere(error):
                    raise _Lost(error, in_doubt=in_doubt) from error
                if not is_connected and isinstance(error, asyncio.TimeoutError):
                    self._turn += 1
                if has_failed:
                    limit_s = min(limit_s, max(1.0, deadline - now()))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_pause_s)
            else:
                self._used_at = now()
                await self._let_go(is_lost=False)
                return result

    def _is_nowhere(self, error: Exception) -> bool:
        """Whether nothing has ever answered at the address, so that waiting is in vain."""
        passes = (asyncio.TimeoutError, ConnectionAbortedError)  # the first has waited, the second is our own
        return not self._pool.has_connected and isinstance(error, OSError) and not isinstance(error, passes)

    async def close(self) -> None:
        """Close its connection, if it has one, or give it back."""
        if self._pool.database.given is not None:
            await self._let_go(is_lost=False)
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(ConnectionAbortedError):  # the end of the event loop has ended the connection, too
                await _in_plain_task(_end(connection))

    def abandon(self) -> None:
        """Hang up on the server, and forget the connection, whose event loop is gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # Python closes the socket when it collects it, which may be much later.
            with suppress(OSError, TypeError):  # uvloop has closed its sockets with the loop, and says so by TypeError
                _socket_of(connection).shutdown(socket.SHUT_RDWR)

    async def _connected(self, wait_s: float, limit_s: float) -> _Bounded:
        pool, database = self._pool, self._pool.database
        if self._connection is not None and pool.loop.time() - self._used_at > IDLE_S:
            await self.close()
        if self._connection is None:
            if database.given is not None:
                connecting = database.given.acquire(timeout=max(wait_s, 1.0))
            else:
                dsn, hosts = _rotated(database.dsn, self._turn)
                # asyncpg's limit is for all hosts together: one that is silent must leave time for the others.
                connecting = asyncpg.connect(
                    dsn, timeout=max(wait_s / hosts, 1.0), statement_cache_size=database.statement_cache_size
                )
            await _in_plain_task(self._keep(connecting))
            if database.given is None:
                _made.add(self._connection)
                await pool.close_with_loop()
            self._used_at = pool.loop.time()
            pool.has_connected = True
        connection = _Bounded(self._connection, limit_s)
        if self._prepares:
            await pool.prepare(connection)
        return connection

    async def _keep(self, connecting: Awaitable[Connection]) -> None:
        self._connection = await connecting  # here, because who waits for it may be cancelled meanwhile

    async def _let_go(self, *, is_lost: bool) -> None:
        connection = self._connection
        if connection is None or not (is_lost or self._pool.database.given is not None):
            return
        self._connection = None
        try:
            if is_lost:
                connection.terminate()
            if self._pool.database.given is not None:
                await _in_plain_task(self._pool.database.given.release(connection))
        except Exception:  # noqa: S110  the pool has ended what it could not take back; what was done is done
            pass


class Pool(LoopPool):
    """The connections of one event loop to one database."""

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(database.key, loop)
        self.database = database
        self.has_connected = False
        self.writes: Batcher[_Write] = Batcher(
            self._serve_writes, lanes=WRITERS - 1, most=MOST_WRITES, key=lambda write: write.session_id
        )
        self.newest: Batcher[_Newest] = Batcher(self._serve_newest, lanes=1, most=MOST_READS)
        self.asks: Batcher[_Ask] = Batcher(self._serve_ask, lanes=READERS - 1, most=1)
        self.threads = CapacityLimiter(READERS)
        *self._write_lanes, self._lock_lane = self._writers = [_Lane(self) for _ in range(WRITERS)]
        self._newest_lane, *self._ask_lanes = self._readers = [_Lane(self) for _ in range(READERS)]
        self._held: dict[str, list[_Held]] = {}
        self._opening = asyncio.Lock()
        self._is_open = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: AsyncGeneratorType[None, None] | None = None
        sql = database.sql
        self._append_sql, self._claim_sql, self._newest_sql = sql(_APPEND), sql(_CLAIM), sql(_NEWEST_JOINED)

    async def open(self) -> None:
        """Connect, and have the schema created or upgraded, unless that was done."""
        if not self._is_open:
            job = await self.newest.submit(_Newest("", 0))
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

    async def prepare(self, connection: _Bounded) -> None:
        """Have the schema created or upgraded, unless that was done."""
        if not self._is_open:
            await self._create_or_upgrade(connection)

    async def _create_or_upgrade(self, connection: _Bounded) -> None:
        async with self._opening:
            if await self.version(connection) < SCHEMA_VERSION:
                database = self.database
                async with connection.transaction("READ COMMITTED"):
                    await connection.execute(
                        "SELECT set_config('lock_timeout', $1, true)", _milliseconds(self.database.busy_timeout_s)
                    )
                    await connection.execute("SELECT pg_advisory_xact_lock($1)", crc32(database.schema.encode()))
                    # Looked at again under the lock: another process may have done it meanwhile.
                    if not await connection.fetchval(
                        "SELECT true FROM pg_namespace WHERE nspname = $1", database.schema
                    ):
                        await connection.execute(f"CREATE SCHEMA {database.quoted_schema}")
                    for step in _STEPS[await self.version(connection) :]:
                        await connection.execute(database.sql(step))
                    set_version = database.sql("UPDATE agentmem.agentmem_schema SET version = $1")
                    await connection.execute(set_version, SCHEMA_VERSION)
            self._is_open = True

    async def version(self, connection: _Bounded) -> int:
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
        version: int = (await connection.fetchval(database.sql(_VERSION)) or 0) if exists else 0
        if version > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"{database.name} has schema version {version}, this agentmem knows up to {SCHEMA_VERSION}; "
                "upgrade agentmem"
            )
        return version

    # Writes

    def _serve_writes(self, lane: int, jobs: list[Job[_Write]], done: Done) -> None:
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

    async def _write(self, lane: _Lane, jobs: list[Job[_Write]]) -> None:
        deadline = self.loop.time() + self.database.busy_timeout_s
        groups = Groups(jobs, _kind, size=_size_bytes, most=GROUP_BYTES)
        for group in groups:
            ready = [job for job in group if job.work.session_id not in self._held]
            self._set_aside([job for job in group if job.work.session_id in self._held], deadline)
            if not ready:
                continue
            try:
                results = await self._together(lane, [job.work for job in ready])
            except _Lost as error:
                for job in ready:
                    job.error = error
                # What is left would wait as long; nothing of it is in doubt.
                groups.failed_for_all([], _Lost(error.error, in_doubt=False))
            except Exception as error:
                if _sqlstate(error) != _LOCKED:
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

    def _set_aside(self, jobs: Sequence[Job[_Write]], deadline: float, error: Exception | None = None) -> None:
        """Have these wait for their sessions, which other connections hold, without holding up others."""
        self.writes.detach(jobs)
        is_waiting = bool(self._held)
        for job in jobs:
            waiting = self._held.setdefault(job.work.session_id, [])
            waiting.append(_Held(job, deadline, error or waiting[-1].error))
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
                self._fail_held(_Lost(error.error, in_doubt=False) if isinstance(error, _Lost) else error)
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
                if _sqlstate(error) == _LOCKED:
                    return
                job.error = error
                if isinstance(error, _Lost):
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

    async def _held_of(self, lane: _Lane, group: Sequence[Job[_Write]]) -> set[str]:
        """Which sessions kept a group from being written; none where that cannot be said."""
        if len(group) == 1:
            return {group[0].work.session_id}
        try:
            return await self._held_ids(lane, group)
        except Exception:  # then each is tried alone, and meets what is wrong
            return set()

    async def _held_ids(self, lane: _Lane, jobs: Sequence[Job[_Write]]) -> set[str]:
        ids = list({job.work.session_id for job in jobs})
        rows = await lane.run(lambda connection: connection.fetch(self.database.sql(_HELD), ids))
        return {session_id for (session_id,) in rows}

    async def _together(self, lane: _Lane, writes: Sequence[_Write]) -> Sequence[object]:
        """Do these writes in one transaction, which waits `LOCK_S` for each lock at most."""
        if not lane.number:  # their transactions are long since settled
            await lane.run(lambda connection: connection.execute(self.database.sql(_FORGET_WRITERS)))
        lane.number += 1
        lock_wait_s = min(LOCK_S, self.database.busy_timeout_s)
        claim = (_milliseconds(lock_wait_s), _milliseconds(SILENT_S), lane.writer, lane.number)
        if isinstance(pop := writes[0], _Pop):
            return [await lane.run(lambda connection: self._pop(connection, lane, claim, pop))]
        if isinstance(writes[0], _Clear):
            ids = [write.session_id for write in writes]
            await lane.run(lambda connection: self._clear(connection, lane, claim, ids))
        else:
            values = _append_values(cast("Sequence[_Append]", writes))
            await lane.run(lambda connection: self._append(connection, lane, claim, values))
        return [None] * len(writes)

    async def _append(self, connection: _Bounded, lane: _Lane, claim: Any, values: Any) -> None:
        lane.is_sent = True
        await connection.execute(self._append_sql, *claim, *values)

    async def _clear(self, connection: _Bounded, lane: _Lane, claim: Any, ids: Sequence[str]) -> None:
        async with self._claimed(connection, lane, claim) as is_mine:
            # Of those alone that were there to be locked: another connection may be making the others at this moment.
            if is_mine and (locked := await connection.fetch(self.database.sql(_LOCK), ids)):
                await connection.execute(self.database.sql(_CLEAR), [session_id for (session_id,) in locked])

    async def _pop(self, connection: _Bounded, lane: _Lane, claim: Any, pop: _Pop) -> object:
        async with self._claimed(connection, lane, claim) as is_mine:
            if is_mine:
                pop.reading.restart()  # what an attempt before has read was not removed, and may be gone
            if is_mine and await connection.fetch(self.database.sql(_LOCK), [pop.session_id]):
                await self.feed(connection, pop.session_id, pop.reading)
                if pop.reading.oldest is not None:
                    cut = self.database.sql(_CUT)
                    await connection.execute(cut, pop.session_id, pop.reading.oldest)
        return pop.reading.result()  # what an attempt before has read, where that one was committed

    @asynccontextmanager
    async def _claimed(self, connection: _Bounded, lane: _Lane, claim: Any) -> Any:
        """A transaction that has its number; False where it was committed before."""
        async with connection.transaction("READ COMMITTED"):
            yield await connection.fetchval(self._claim_sql, *claim)
            lane.is_sent = True

    # Reads

    def _serve_newest(self, lane: int, jobs: list[Job[_Newest]], done: Done) -> None:
        self._begin(self._read_newest(jobs), done)

    async def _read_newest(self, jobs: list[Job[_Newest]]) -> None:
        ids, mosts = [job.work.session_id for job in jobs], _array(job.work.most for job in jobs)
        try:
            rows = await self._newest_lane.run(
                lambda connection: connection.fetch(self._newest_sql, ids, mosts, JOINED_BYTES)
            )
        except (asyncpg.ProgramLimitExceededError, asyncpg.OutOfMemoryError):
            return  # too long to be joined: with no result, they are read in slices
        for job, (texts, count, oldest) in zip(jobs, rows, strict=True):
            if texts is not None or not count:
                job.result = (texts or b"", count, oldest or 0)

    def _serve_ask(self, lane: int, jobs: list[Job[_Ask]], done: Done) -> None:
        async def ask() -> None:
            (job,) = jobs
            job.result = await self._ask_lanes[lane].run(job.work.work)

        self._begin(ask(), done)

    async def feed(self, connection: _Bounded, session_id: str, reading: Reading[Any]) -> None:
        """Feed a session's rows to `reading` from the newest on, inside the caller's transaction."""
        reading.restart()
        wanted, below = reading.first, _LAST_POSITION
        while wanted:
            rows = await connection.fetch(self.database.sql(_BELOW), session_id, below, wanted, SLICE_BYTES)
            below = rows[-1][0] if rows else 0
            feed = partial(reading.feed, rows, at_start=below == 0)
            try:
                wanted = await self.in_thread(feed)
            except Exception as error:
                raise _FromReading(error) from error


def _append_values(appends: Sequence[_Append]) -> tuple[list[str], str, list[str], str, list[str]]:
    """The sessions, how many rows each gets; and for each row its session, its place before the new end, its text."""
    sizes: dict[str, int] = {}
    for append in appends:
        sizes[append.session_id] = sizes.get(append.session_id, 0) + len(append.rows)
    left = dict(sizes)
    of: list[str] = []
    before_end: list[int] = []
    texts: list[str] = []
    for append in appends:
        end, size = left[append.session_id], len(append.rows)
        left[append.session_id] = end - size
        of += [append.session_id] * size
        before_end += range(end, end - size, -1)
        texts += append.rows
    return list(sizes), _array(sizes.values()), of, _array(before_end), texts


def _array(numbers: Iterable[int]) -> str:
    """An array of numbers as PostgreSQL reads it.

    As a list, asyncpg would first ask the server what ``bigint[]`` is, with each new connection, and leave a setting
    behind on it (``jit``), which behind PgBouncer may be another client's next.
    """
    return "{" + ",".join(map(str, numbers)) + "}"


def _milliseconds(seconds: float) -> str:
    return f"{max(1, int(seconds * 1000))}ms"  # 0 would mean for ever


def _size_bytes(write: _Write) -> int:
    return sum(map(len, write.rows)) if isinstance(write, _Append) else 0


def _sqlstate(error: BaseException) -> str | None:
    return getattr(error, "sqlstate", None)


def _kind(write: _Write) -> str | None:
    return None if isinstance(write, _Pop) else type(write).__name__


async def _nothing(connection: _Bounded) -> None:
    pass


def _is_lost(error: BaseException, connection: Connection) -> bool:
    """Whether another connection may do what this one did not."""
    if isinstance(error, (AgentMemError, _FromReading)):
        return False
    if isinstance(error, (OSError, asyncio.TimeoutError, asyncpg.PostgresConnectionError, _NO_PRIMARY)):
        return True
    if _sqlstate(error) in _PASSING:
        return True
    try:
        return connection is not None and connection.is_closed()
    except asyncpg.InterfaceError:
        return True  # a pool takes back at once what was lost


async def _in_plain_task(work: Coroutine[Any, Any, T], *, ends_early: bool = False) -> T:
    """Await what sets itself a time limit: that cancels the task it runs in, which a lane's must not be.

    Where the wait is cancelled, as a check's may be, the work is waited for all the same. If it `ends_early`, it is
    cancelled itself, but once: an anyio scope would cancel it at every await, also where it ends its transaction.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        if ends_early:
            task.cancel()
        await despite_cancellation(asyncio.wait([task]))
        if not task.cancelled():
            task.exception()  # nobody is left to be told of it
        raise
    if task.cancelled():  # as asyncio.run does last with every task: what waits for it here is to be done nevertheless
        raise ConnectionAbortedError("the event loop ended it")
    return task.result()


async def _end(connection: Connection) -> None:
    try:
        await connection.close(timeout=1)
    except _ENDED:
        connection.terminate()  # what was to be closed is gone


_pools: Pools[Pool] = Pools()


def _close_at_end() -> None:
    for pool in _pools.all():
        if pool.loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(pool.close(), pool.loop)
            try:
                closing.result(timeout=1)  # seconds; a server that does not answer must not hold up the end
            except Exception:  # noqa: S110  the end closes it as well
                pass


when_program_ends(_close_at_end)

_made: WeakSet[Any] = WeakSet()
"""The connections that this process has made, for as long as there are such objects."""


def _leave_to_parent() -> None:
    """Cut a forked child off from its parent's connections, and leave those as they are.

    With a copy of their sockets, the child would keep them open when the parent is killed, with the locks that they
    hold at the server, and could say goodbye over them. A socket whose other end is closed takes the place of each.
    """
    ours, other_end = socket.socketpair()
    other_end.close()
    with ours:
        for connection in list(_made):
            if not connection.is_closed() and not connection._loop.is_closed():
                theirs: int = _socket_of(connection).fileno()
                if theirs >= 0:  # it is closed where its end was just noticed
                    os.dup2(ours.fileno(), theirs, inheritable=False)
    _made.clear()


def _socket_of(connection: Connection) -> Any:
    return connection._transport.get_extra_info("socket")


around_fork(before=lambda: None, in_parent=lambda: None, in_child=_leave_to_parent)


class PostgresEngine(Engine):
    """Sessions in one schema of a PostgreSQL database, through the event loop's pool for it.

    Args:
        db: a URL for asyncpg (``postgresql://user:password@host:port/database?option=value``), which may also set
            `schema` and `statement_cache_size`; or an ``asyncpg.Pool``, which is used and left open, on its own
            event loop.
        schema: that holds the tables, created if there is none; default: "agentmem".
        busy_timeout_s: how long to wait for a session that another connection holds, for a connection, and for a server
            that was lost to come back, in seconds.
        statement_cache_size: asyncpg's; 0 for PgBouncer in transaction or statement mode before its version 1.21, or
            with ``max_prepared_statements`` 0. Default: asyncpg's.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    def __init__(
        self,
        db: Any,
        *,
        schema: str | None = None,
        busy_timeout_s: float = 5.0,
        statement_cache_size: int | None = None,
    ) -> None:
        check_busy_timeout(busy_timeout_s)
        dsn = ""
        given: Any = None
        options: dict[str, str] = {}
        if isinstance(db, str):
            dsn, options = _split(db)
        elif isinstance(db, asyncpg.Pool):
            given = db
        else:
            raise TypeError(f"db is a URL or an asyncpg.Pool, got {type(db).__name__}")
        if given is not None and statement_cache_size is not None:
            raise ValueError("statement_cache_size is the pool's own; give it to asyncpg.create_pool()")
        schema = _checked_schema(options.get("schema", "agentmem") if schema is None else schema)
        cache_size = (
            options.get("statement_cache_size", "100") if statement_cache_size is None else statement_cache_size
        )
        if not re.fullmatch("[0-9]{1,9}", str(cache_size)):
            raise ValueError(f"statement_cache_size is 0 or more, got {cache_size!r}")
        self.name = (_without_password(dsn) if given is None else "the given asyncpg pool") + (
            "" if schema == "agentmem" else f" (schema {schema})"
        )
        self.key: Hashable = ("postgresql", _address(dsn) if given is None else given, schema)
        self._database = Database(
            name=self.name,
            key=(dsn if given is None else given, schema, busy_timeout_s, int(cache_size)),
            dsn=dsn,
            given=given,
            schema=schema,
            busy_timeout_s=busy_timeout_s,
            statement_cache_size=int(cache_size),
        )
        database = self._database
        self._leases = Leases(_pools, lambda: _pools.lease(database.key, lambda loop: Pool(database, loop)))
        self._closed = False

    async def open(self) -> None:
        pool = self._pool()
        try:
            await pool.open()
        except BaseException as error:
            await self._leases.let_go(pool)  # a later call leases again
            if isinstance(error, Exception):
                raise self._mapped(error) from _cause(error)
            raise

    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        pool = self._pool()
        if sum(map(len, rows)) > MOST_BYTES // 8:  # only then is it worth counting
            size_bytes = sum(len(row.encode()) + len(session_id.encode()) + 32 for row in rows)
            if size_bytes > MOST_BYTES:
                raise StorageError(
                    f"session {session_id[:80]!r} in {self.name}: PostgreSQL takes up to 1 GB at once, and these items "
                    f"have {size_bytes} bytes; nothing was written, add fewer at a time"
                )
        if rows:
            self._outcome(await pool.writes.submit(_Append(session_id, rows)))

    async def read(self, session_id: str, reading: Reading[T]) -> T:
        pool = self._pool()
        if reading.first:
            joined = self._outcome(await pool.newest.submit(_Newest(session_id, reading.first)))
            if joined is not None:
                if reading.is_short and len(joined[0]) <= SHORT_BYTES:
                    is_enough = reading.feed_joined(*joined)
                else:
                    is_enough = await pool.in_thread(lambda: reading.feed_joined(*joined))
                if is_enough:
                    return reading.result()

            async def feed(connection: _Bounded) -> None:
                async with connection.transaction("REPEATABLE READ READ ONLY"):
                    await pool.feed(connection, session_id, reading)

            self._outcome(await pool.asks.submit(_Ask(session_id, feed)))
        return reading.result()

    async def pop(self, session_id: str, reading: Reading[T]) -> T:
        return cast(T, self._outcome(await self._pool().writes.submit(_Pop(session_id, reading))))

    async def clear(self, session_id: str) -> None:
        self._outcome(await self._pool().writes.submit(_Clear(session_id)))

    async def sessions(self, after: str | None, most: int) -> list[tuple[str, int]]:
        pool = self._pool()
        if after is None:  # the pool would make the tables
            await self._apart(pool, _nothing)
        sql = self._database.sql(_SESSIONS)
        found = await pool.asks.submit(_Ask(None, lambda connection: connection.fetch(sql, after or "", most)))
        return [(session_id, length) for session_id, length in self._outcome(found)]

    async def rows(self, session_id: str, start: int, most: int) -> list[tuple[int, bytes]]:
        sql = self._database.sql(_FROM)
        found = await self._pool().asks.submit(
            _Ask(session_id, lambda connection: connection.fetch(sql, session_id, start, most, SLICE_BYTES))
        )
        return [(position, text) for position, text in self._outcome(found)]

    async def check(self, progress: Progress | None = None) -> CheckReport:
        pool = self._pool()

        async def walk(connection: _Bounded) -> CheckReport:
            checking = Checking(progress)  # tells of its progress in the thread that feeds it
            async with connection.transaction("REPEATABLE READ READ ONLY"):
                await _walk(connection, self._database, pool, checking)
            return await pool.in_thread(checking.report)

        return await self._apart(pool, walk)

    async def backup(self, path: str | os.PathLike[str]) -> None:
        self._pool()
        raise StorageError(
            f"{self.name}: back it up with pg_dump; agentmem copy SOURCE TARGET makes a file of its sessions"
        )

    async def close(self) -> None:
        self._closed = True
        if unused := self._leases.give_back():
            await despite_cancellation(_close_all(unused))

    def _pool(self) -> Pool:
        """This engine's pool on the running event loop."""
        if self._closed:
            raise SessionClosedError(f"the store on {self.name} is closed; open a new one")
        given = self._database.given
        if given is not None:
            if self._leases.are_inherited():
                raise StorageError("an asyncpg pool stays in the process that made it; make one in the child")
            if getattr(given, "_loop", None) is not asyncio.get_running_loop():
                raise StorageError(
                    "an asyncpg pool is used on the event loop that made it, which the sync classes do not run on; "
                    "give them a URL"
                )
        return self._leases.take()

    async def _apart(self, pool: Pool, work: Callable[[_Bounded], Awaitable[T]]) -> T:
        """Do `work` on a connection apart from the pool's, to a database that has agentmem's tables."""

        async def with_tables(connection: _Bounded) -> T:
            if not await pool.version(connection):
                raise StorageError(f"{self.name} holds no sessions of agentmem's; check the URL and the schema")
            return await work(connection)

        async def once() -> T:
            lane = _Lane(pool, prepares=False)
            try:
                return await lane.run(with_tables)
            finally:
                await lane.close()

        try:
            return await _in_plain_task(once(), ends_early=True)
        except Exception as error:
            raise self._mapped(error) from _cause(error)

    def _outcome(self, job: Job[Any]) -> Any:
        if job.error is None:
            return job.result
        raise self._mapped(job.error, job.work.session_id) from _cause(job.error)

    def _mapped(self, error: BaseException, session_id: str | None = None) -> BaseException:
        """agentmem's error for the driver's; any other is returned as it is."""
        return map_error(error, self.name, session_id)


async def _walk(connection: _Bounded, database: Database, pool: Pool, checking: Checking) -> None:
    """Tell `checking` of every session and item, in the caller's transaction."""
    total = await connection.fetchval(database.sql("SELECT sum(next_position)::bigint FROM agentmem.agentmem_sessions"))
    await pool.in_thread(partial(checking.expect, total or 0))
    walk = Walk(checking)
    session_id, position = "", -1
    upto: str | None = ""
    while upto is not None:
        items = await connection.fetch(database.sql(_PAGE_OF_ITEMS), session_id, position, PAGE_ROWS, SLICE_BYTES)
        before, upto = upto, items[-1][0] if items else None
        sessions = await connection.fetch(database.sql(_PAGE_OF_SESSIONS), before, upto)
        await pool.in_thread(partial(walk.take, sessions, items))
        if items:
            session_id, position = items[-1][0], items[-1][1]
    walk.end()


def map_error(error: BaseException, name: str, session_id: str | None = None) -> BaseException:
    """agentmem's error for one of asyncpg's or of the connection's; any other is returned as it is."""
    if isinstance(error, _FromReading):
        return error.error
    subject = name if session_id is None else f"session {session_id[:80]!r} in {name}"
    if isinstance(error, _Lost):
        if error.in_doubt:
            return StorageError(
                f"{subject}: the connection was lost while it was written ({_text(error.error)}), and no server would "
                "say in time whether it was; look before you write it again, or raise busy_timeout_s"
            )
        error = error.error
    if isinstance(error, (asyncpg.PostgresError, asyncpg.PostgresWarning)):
        code = error.sqlstate or ""
        meaning = ERRORS.get(code) or ERRORS.get(code[:2]) or _Meaning(StorageError, "see the cause above")
        return meaning.error(f"{subject}: {error} (SQLSTATE {code}); {meaning.advice}")
    if isinstance(error, asyncio.TimeoutError):
        return StorageBusyError(f"{subject}: no connection, or no answer, in time; try again or raise busy_timeout_s")
    if isinstance(error, OSError):
        advice = "check that the server runs and its address"
        if isinstance(error, (ssl.SSLError, FileNotFoundError, PermissionError)):
            advice += ", and its certificate and the files that the URL names"
        return StorageError(f"{subject}: {_text(error)}; {advice}")
    if isinstance(error, (asyncpg.InterfaceError, asyncpg.InternalClientError)):  # also where asyncpg refuses the URL
        return StorageError(f"{subject}: {error}; check the URL, or the pool")
    return error


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _cause(error: BaseException) -> BaseException | None:
    """What is to stand behind the error that it is mapped to: the driver's, and nothing behind itself."""
    if isinstance(error, _FromReading):
        return error.error.__cause__
    return error.__cause__ if isinstance(error, AgentMemError) else error


def _split(url: str) -> tuple[str, dict[str, str]]:
    """The URL for asyncpg, which would take agentmem's own options for the server's; and those.

    Raises:
        ValueError: it is no URL that asyncpg would take.
    """
    before, mark, query = url.partition("?")
    _check_ports(before)
    options: dict[str, str] = {}
    rest: list[str] = []
    for option in query.split("&") if query else []:
        if not re.match("[^=]+=", option):
            raise ValueError(f"the options of {_without_password(url)} are name=value, joined by &")
        ((name, value),) = parse_qsl(option, keep_blank_values=True)
        if name in ("schema", "statement_cache_size"):
            options[name] = value
        else:
            rest.append(option)
    return before + (mark + "&".join(rest) if rest else ""), options


def _check_ports(url: str) -> None:
    for host in urlsplit(url).netloc.rpartition("@")[2].split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (re.fullmatch("[0-9]{1,5}", port) and int(port) < 2**16):
            # Without a word of it: it may be a piece of a password.
            raise ValueError(
                "a port in the URL is no number below 65536; in the user and the password, "
                "write / ? # @ : % as %2F %3F %23 %40 %3A %25"
            )


def _checked_schema(schema: object) -> str:
    if not isinstance(schema, str):
        raise TypeError(f"schema is a str, got {schema!r}")
    # A longer one PostgreSQL would cut.
    if re.search("[\0\ud800-\udfff]", schema) or not 1 <= len(schema.encode()) <= 63:
        raise ValueError(f"schema is a name of 1 to 63 bytes in UTF-8, got {schema!r}")
    return schema


def _without_password(dsn: str) -> str:
    scheme, _, rest = dsn.partition("?")[0].partition("://")
    user, at, where = rest.rpartition("@")  # the last one: what should have been escaped belongs to the password
    return f"{scheme}://{user.partition(':')[0]}{at}{where}"


def _rotated(dsn: str, turn: int) -> tuple[str, int]:
    """The URL with another of its hosts first, and how many it has."""
    scheme, mark, rest = dsn.partition("://")
    where = re.match("[^/?]*", rest)
    assert where is not None
    user, at, hosts = where[0].rpartition("@")
    names = hosts.split(",")
    first = turn % len(names)
    return f"{scheme}{mark}{user}{at}{','.join(names[first:] + names[:first])}{rest[where.end() :]}", len(names)


def _address(dsn: str) -> Hashable:
    """Where the database is: equal for URLs that differ in how they connect to it, and without a password."""
    parts = urlsplit(dsn)
    user, _, hosts = parts.netloc.rpartition("@")
    options = sorted(pair for pair in parse_qsl(parts.query) if pair[0] in ("host", "port", "database", "dbname"))
    return (hosts, parts.path.strip("/") or user.partition(":")[0], *options)  # the user's name is the default


async def _close_all(pools: Sequence[Pool]) -> None:
    for pool in pools:
        await close_unused(pool)
