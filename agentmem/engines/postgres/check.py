"""A check of a database: every session and every item is read, in one state of it.

Tables of an older version, which only opening upgrades, are checked as they are.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import partial
from operator import itemgetter

from ...checking import Checker, CheckReport, Progress, SortedFeed
from ..readings import SLICE_BYTES
from .connection import BoundedConnection
from .reads import Feeder
from .schema import Schema
from .statements import CheckStatements, Statements

PAGE_ROWS = 2048
"""The largest number of rows that is read at a time."""


async def check(
    connection: BoundedConnection, schema: Schema, statements: Statements, feeder: Feeder, progress: Progress | None
) -> CheckReport:
    """What is wrong with the database; reads it in one transaction, and decodes in threads.

    Raises:
        StorageError, SchemaVersionError: as ``Schema.require_tables`` does.
    """
    checker = Checker(progress)
    async with connection.transaction("REPEATABLE READ READ ONLY"):
        version = await schema.require_tables(connection)
        await _walk(connection, statements.of_check(version), feeder, checker)
    return await feeder.in_thread(checker.report)


async def _walk(connection: BoundedConnection, statements: CheckStatements, feeder: Feeder, checker: Checker) -> None:
    """Tell `checker` of every session and item: page by page of items, each with the sessions up to its last one, which
    come in pages, too."""
    total = await connection.fetchval(statements.count_items)
    await feeder.in_thread(partial(checker.expect_items, total or 0))
    feed = SortedFeed(checker)
    session_id, position = "", -1
    upto: str | None = ""
    while upto is not None:
        items = await connection.fetch(statements.page_of_items, session_id, position, PAGE_ROWS, SLICE_BYTES)
        after, upto = upto, items[-1][0] if items else None
        sessions = await connection.fetch(statements.page_of_sessions, after, upto, PAGE_ROWS)
        fed = 0
        while len(sessions) == PAGE_ROWS:  # many sessions without items
            after = sessions[-1][0]
            end = bisect_right(items, after, key=itemgetter(0))
            await feeder.in_thread(partial(feed.add, sessions, items[fed:end]))
            fed = end
            sessions = await connection.fetch(statements.page_of_sessions, after, upto, PAGE_ROWS)
        await feeder.in_thread(partial(feed.add, sessions, items[fed:]))
        if items:
            session_id, position = items[-1][0], items[-1][1]
    feed.finish()
    if statements.page_of_lost_notes is not None:
        await _look_for_lost_notes(connection, statements.page_of_lost_notes, checker)


async def _look_for_lost_notes(connection: BoundedConnection, page: str, checker: Checker) -> None:
    """Tell `checker` of the sessions that have notes and do not exist. Locks are kept apart from sessions: they may
    stand without one."""
    after = ""
    while found := await connection.fetch(page, after, PAGE_ROWS):
        for (session_id,) in found:
            checker.add_damage(f"notes of session {session_id[:80]!r}, which does not exist")
        after = found[-1][0]
