"""The write operations, and how a group of them is carried out in one transaction, exactly once.

Rules kept here:

- A group of appends to any number of sessions is one statement, and so one transaction and one round trip.
- Positions come from the session's row, which the append updates first; its lock keeps other writers of the session
  waiting. Every group takes these locks in the order of session ids, so no two groups wait for each other.
- Each writer numbers its transactions, and each transaction begins by storing its number (``agentmem_writers``). Where
  a connection is lost before the answer came, the same is sent again on a new one, with the same number: it waits for
  the first attempt, if that is still under way, and does nothing if that was committed. The row of a writer is removed
  when its pool is closed; those of killed processes, after a week.
- An item is stored as the text that it came as: ``jsonb`` would reorder keys and refuse ``\\u0000``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import cast
from uuid import UUID, uuid4

from .. import deadlines
from ..operations import Append, Clear, Pop
from .connection import BoundedConnection
from .errors import GaveUp
from .lane import Lane
from .reads import Feeder
from .schema import SCHEMA_VERSION, Schema
from .statements import Statements, append_values, milliseconds

LOCK_TIMEOUT_S = 0.2
"""How long a group waits for a lock of another connection's, in seconds. After that, the writes that need no wait go
without the others."""

IDLE_IN_TRANSACTION_TIMEOUT_S = 5.0
"""How long the server waits for the next statement of a transaction that holds a session, in seconds, before it ends
the connection: else a process that was stopped in a pop would hold the session for as long as it is stopped."""


Write = Append | Pop | Clear


Claim = tuple[str, str, UUID, int, int]
"""The values of the ``begin`` statement: two time limits, the writer, the transaction's number, and the newest version
of the tables that is known."""


def kind_of(write: Write) -> str | None:
    """Equal for writes that can share a transaction; None for one that cannot."""
    return None if isinstance(write, Pop) else type(write).__name__


def size_bytes(write: Write) -> int:
    """How long the rows of a write are, about."""
    return sum(map(len, write.rows)) if isinstance(write, Append) else 0


class Writer:
    """A lane that writes, and numbers its transactions.

    Args:
        lane: its connections.
        schema, statements: of the database.
        feeder: feeds what a pop reads.
    """

    def __init__(self, lane: Lane, schema: Schema, statements: Statements, feeder: Feeder) -> None:
        self.lane = lane
        self._schema = schema
        self._statements = statements
        self._feeder = feeder
        self._id = uuid4()
        self._number = 0  # of its newest transaction

    @property
    def stored_id(self) -> UUID | None:
        """The id under which it has stored numbers, all of which are settled; None where there are no such ones.

        An attempt whose answer was lost may still wait in the server, and would be done again without its number.
        """
        return self._id if self._number and not self.lane.has_unanswered else None

    async def forget(self, ids: Sequence[UUID]) -> bool:
        """Remove the numbers of writers that will send nothing more; False where no connection is at hand for it."""
        values = [str(one) for one in ids], SCHEMA_VERSION
        return await self.lane.run_at_end(
            lambda connection: connection.execute(self._statements.forget_writers, *values)
        )

    async def write(
        self,
        writes: Sequence[Write],
        deadline: float,
        settle_by: float,
        on_doubt: Callable[[GaveUp], None] = lambda error: None,
    ) -> Sequence[object]:
        """Carry out writes with one :func:`kind_of` in one transaction, exactly once.

        Args:
            deadline, settle_by: the earliest and the latest deadline of the calls that they are for.
            on_doubt: see ``Lane.run``.

        Returns:
            The result of each: what a pop read, else None.

        Raises:
            GaveUp: no connection could do it in time.
            SchemaVersionError: a newer agentmem has upgraded the tables; nothing was written.
            asyncpg.PostgresError: nothing was written; ``LOCK_NOT_AVAILABLE`` where another connection holds one of the
                sessions for longer than `LOCK_TIMEOUT_S`.
        """
        if not self._number:  # with its first write; what such old writers have sent is long since settled
            forget = self._statements.forget_old_writers
            await self.lane.run(lambda connection: connection.execute(forget, self._id, SCHEMA_VERSION), deadline)
        self._number += 1
        lock_timeout_s = min(LOCK_TIMEOUT_S, deadline - deadlines.now())
        run = partial(self.lane.run, deadline=deadline, settle_by=settle_by, on_doubt=on_doubt)
        claim: Claim = (
            milliseconds(lock_timeout_s),
            milliseconds(IDLE_IN_TRANSACTION_TIMEOUT_S),
            self._id,
            self._number,
            SCHEMA_VERSION,
        )
        first = writes[0]
        if isinstance(first, Pop):
            return [await run(partial(self._pop, claim, first))]
        if isinstance(first, Clear):
            await run(partial(self._clear, claim, [write.session_id for write in writes]))
        else:
            appends = cast("Sequence[Append]", writes)
            values = append_values((append.session_id, append.rows) for append in appends)
            await run(partial(self._append, claim, values))
        return [None] * len(writes)

    async def held_among(self, session_ids: Iterable[str], deadline: float) -> set[str]:
        """Which of these sessions other connections hold; one that another connection is just creating is not seen.

        Raises:
            GaveUp, asyncpg.PostgresError: it could not be found out.
        """
        ids = list(set(session_ids))
        rows = await self.lane.run(lambda connection: connection.fetch(self._statements.held, ids), deadline)
        return {session_id for (session_id,) in rows}

    async def _append(self, claim: Claim, values: Sequence[object], connection: BoundedConnection) -> None:
        connection.commit_sent = True  # the statement commits by itself
        self._schema.refuse_newer(await connection.fetchval(self._statements.append, *claim, *values))

    async def _clear(self, claim: Claim, ids: Sequence[str], connection: BoundedConnection) -> None:
        async with self._claimed(connection, claim) as is_new:
            # Only those that were there to be locked: another connection may be creating one of the others right now.
            if is_new and (locked := await connection.fetch(self._statements.lock, ids)):
                await connection.execute(self._statements.clear, [session_id for (session_id,) in locked])

    async def _pop(self, claim: Claim, pop: Pop, connection: BoundedConnection) -> object:
        reading = pop.reading
        async with self._claimed(connection, claim) as is_new:
            if is_new:
                reading.restart()  # an earlier attempt was rolled back; what it read may be gone
            if is_new and await connection.fetch(self._statements.lock, [pop.session_id]):
                await self._feeder.feed(connection, pop.session_id, reading)
                if reading.oldest is not None:
                    await connection.execute(self._statements.cut, pop.session_id, reading.oldest)
        return reading.result()  # of the attempt that was committed

    @asynccontextmanager
    async def _claimed(self, connection: BoundedConnection, claim: Claim) -> AsyncIterator[bool]:
        """A transaction that has stored its number; False where an earlier attempt with this number was committed."""
        async with connection.transaction("READ COMMITTED"):
            begun = await connection.fetchrow(self._statements.begin, *claim)
            self._schema.refuse_newer(begun and begun[0])
            yield bool(begun[1])
            connection.commit_sent = True
