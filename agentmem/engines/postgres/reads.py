"""The read operations: how rows come from the server to what reads them.

Rules kept here:

- The newest rows of many sessions come with one statement, one text for each session.
- What is longer comes in slices of bounded size, in one transaction, so that a read sees one state.
- Long texts are decoded in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import asyncpg
from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from ...cancellation import despite_cancellation
from ..base import Reading
from ..readings import SLICE_BYTES, Joined, feed
from .connection import BoundedConnection
from .lane import Lane, Work
from .schema import Schema
from .statements import LAST_POSITION, Statements, array

T = TypeVar("T")

MAX_JOINED_BYTES = 1024 * 1024
"""The largest number of bytes of a session's newest rows that comes as one text; more come in slices."""


@dataclass(frozen=True, slots=True)
class ReadNewest:
    """Read a session's newest rows as one text."""

    session_id: str
    count: int


@dataclass(frozen=True, slots=True)
class Query:
    """Read by any statements."""

    run: Work[object]


async def read_newest(
    lane: Lane, schema: Schema, statements: Statements, wanted: Sequence[ReadNewest], deadline: float
) -> list[Joined | None]:
    """The newest rows of each session; None where they are too long to come as one text.

    Raises:
        SchemaVersionError: a newer agentmem has upgraded the tables.
    """
    ids, counts = [one.session_id for one in wanted], array(one.count for one in wanted)
    try:
        rows = await lane.run(
            lambda connection: connection.fetch(statements.newest_joined, ids, counts, MAX_JOINED_BYTES), deadline
        )
    except (asyncpg.ProgramLimitExceededError, asyncpg.OutOfMemoryError):  # the server could not join them
        return [None] * len(wanted)
    schema.refuse_newer(rows[0][0] if rows else None)
    return [_joined(*row[1:]) for row in rows]


def _joined(text: bytes | None, count: int, oldest: int | None) -> Joined | None:
    return None if text is None and count else (text or b"", count, oldest or 0)


class Feeder:
    """Feeds rows to readings, in threads.

    Args:
        schema, statements: of the database.
        max_threads: how many readings are fed at a time.
    """

    def __init__(self, schema: Schema, statements: Statements, max_threads: int) -> None:
        self._schema = schema
        self._statements = statements
        self._threads = CapacityLimiter(max_threads)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run what decodes rows off the event loop. Where the caller is cancelled, it is waited for all the same."""
        # Else the thread could report to an event loop that was closed meanwhile: anyio shields its wait from its own
        # cancellations, not from those of tasks.
        return await despite_cancellation(run_sync(function, limiter=self._threads))

    async def feed(self, connection: BoundedConnection, session_id: str, reading: Reading[Any]) -> None:
        """Feed a session's rows to `reading` from the newest on, inside the caller's transaction.

        Raises:
            CallbackFailed: `reading` raised an error.
            SchemaVersionError: a newer agentmem has upgraded the tables.
        """
        reading.restart()
        wanted, below = reading.first, LAST_POSITION
        while wanted:
            found = await connection.fetch(self._statements.rows_below, session_id, below, wanted, SLICE_BYTES)
            rows = self._schema.without_version(found)
            below = rows[-1][0] if rows else 0
            wanted = await self.in_thread(partial(feed, reading, rows, at_start=below == 0))
