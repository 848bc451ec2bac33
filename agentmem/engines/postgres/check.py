"""What a check reads of a database: every session and every item, in one state of it."""

from __future__ import annotations

from functools import partial

from ...checking import Checking, Walk
from .connection import Bounded, Database
from .pool import SLICE_BYTES, Pool
from .statements import PAGE_OF_ITEMS, PAGE_OF_SESSIONS

PAGE_ROWS = 2048
"""Rows that a check reads at a time."""


async def walk_database(connection: Bounded, database: Database, pool: Pool, checking: Checking) -> None:
    """Tell `checking` of every session and item, in the caller's transaction."""
    total = await connection.fetchval(database.sql("SELECT sum(next_position)::bigint FROM agentmem.agentmem_sessions"))
    await pool.in_thread(partial(checking.expect, total or 0))
    walk = Walk(checking)
    session_id, position = "", -1
    upto: str | None = ""
    while upto is not None:
        items = await connection.fetch(database.sql(PAGE_OF_ITEMS), session_id, position, PAGE_ROWS, SLICE_BYTES)
        before, upto = upto, items[-1][0] if items else None
        sessions = await connection.fetch(database.sql(PAGE_OF_SESSIONS), before, upto)
        await pool.in_thread(partial(walk.take, sessions, items))
        if items:
            session_id, position = items[-1][0], items[-1][1]
    walk.end()
