"""A check of a database: every session and every item is read, in one state of it."""

from __future__ import annotations

from functools import partial

from ...checking import Checking, CheckReport, Progress, Walk
from .connection import BoundedConnection
from .reads import SLICE_BYTES, Feeder
from .statements import Statements

PAGE_ROWS = 2048
"""The largest number of rows that is read at a time."""


async def check(
    connection: BoundedConnection, statements: Statements, feeder: Feeder, progress: Progress | None
) -> CheckReport:
    """What is wrong with the database; reads it in one transaction, and decodes in threads."""
    checking = Checking(progress)
    async with connection.transaction("REPEATABLE READ READ ONLY"):
        await _walk(connection, statements, feeder, checking)
    return await feeder.in_thread(checking.report)


async def _walk(connection: BoundedConnection, statements: Statements, feeder: Feeder, checking: Checking) -> None:
    """Tell `checking` of every session and item: page by page of items, each with the sessions up to its last one."""
    total = await connection.fetchval(statements.count_items)
    await feeder.in_thread(partial(checking.expect, total or 0))
    walk = Walk(checking)
    session_id, position = "", -1
    upto: str | None = ""
    while upto is not None:
        items = await connection.fetch(statements.page_of_items, session_id, position, PAGE_ROWS, SLICE_BYTES)
        after, upto = upto, items[-1][0] if items else None
        sessions = await connection.fetch(statements.page_of_sessions, after, upto)
        await feeder.in_thread(partial(walk.take, sessions, items))
        if items:
            session_id, position = items[-1][0], items[-1][1]
    walk.end()
